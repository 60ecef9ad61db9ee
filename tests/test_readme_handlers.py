"""What the README says of handlers that one already has: its commands and its code, run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from xmlrpc.client import ServerProxy

import pytest
from processes import DEADLINE, ServerProcess, exchange
from test_readme import TEXT, block
from transports import package


def ask_http(address: tuple[str, int]) -> bytes:
    """The reply to a request for the file "file"."""
    return exchange(address, b"GET /file HTTP/1.0\r\n\r\n")


def ask_xmlrpc(address: tuple[str, int]) -> bytes:
    """What 2 ** 5 is there."""
    with ServerProxy("http://%s:%d" % address) as calculator:
        return str(calculator.pow(2, 5)).encode()


def ask_dns(address: tuple[str, int]) -> bytes:
    """What any name stands for."""
    dnslib = package("dnslib")
    reply = dnslib.DNSRecord.question("example.org").send(*address, tcp=True, timeout=DEADLINE)
    return str(dnslib.DNSRecord.parse(reply).short()).encode()


#: The commands of the table, a client for each, what its reply ends with, and the package that it takes.
HANDLERS: dict[str, tuple[Callable[[tuple[str, int]], bytes], bytes, str]] = {
    "--handler http.server:SimpleHTTPRequestHandler --workers 2": (ask_http, b"\r\n\r\na file", "http.server"),
    "--handler prometheus_client:MetricsHandler": (ask_http, b"\n", "prometheus_client"),
    "--handler shop:files": (ask_http, b"\r\n\r\na public file", "http.server"),
    "--handler shop:Calculator": (ask_xmlrpc, b"32", "xmlrpc.server"),
    "--handler shop:names": (ask_dns, b"192.0.2.7", "dnslib"),
    "--wsgi shop:app --mode fork": (ask_http, b"\r\n\r\nhello\n", "wsgiref"),
    '--wsgi "shop:make_app()" --workers 2': (ask_http, b"</p>\n", "flask"),
}


@pytest.mark.parametrize("command", HANDLERS)
def test_handlers_that_one_already_has(command: str, tmp_path: Path) -> None:
    """Each command of the table, as it stands there but for the port, in a folder with the module that it names."""
    ask, end, needs = HANDLERS[command]
    package(needs)
    assert f"| `python -m stdserve {command}` |" in TEXT
    (tmp_path / "shop.py").write_text(block("example: shop"))
    (tmp_path / "file").write_text("a file")
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "file").write_text("a public file")
    with ServerProcess(*shlex.split(command), cwd=tmp_path) as server:
        assert ask(server.address).endswith(end)


def test_every_handler_of_the_table_is_run() -> None:
    """None was added without its test."""
    table = TEXT.partition("| what you have | how to run it |")[2].partition("\n\n")[0]
    assert list(HANDLERS) == re.findall(r"`python -m stdserve ([^`]*)` \|", table)


def test_the_codes_of_the_readme_for_handlers_of_others_work(tmp_path: Path) -> None:
    """As they stand there, but for the port."""
    section = TEXT.partition("### Run a handler you already have")[2].partition("\n## ")[0]
    xmlrpc_code, wsgi_code = re.findall(r"`(serve\([^`]*\))`", section)
    (tmp_path / "shop.py").write_text(block("example: shop"))
    (tmp_path / "code.py").write_text(
        "from shop import *\n"
        "from stdserve import serve\n"
        "from stdserve.wsgi import ApplicationMixin, WSGIHandler\n"
        "import functools, sys\n"
        "serve = functools.partial(serve, bind='127.0.0.1:0', ready=lambda on: print(on[0], flush=True))\n"
        f"if sys.argv[1] == 'xmlrpc':\n    {xmlrpc_code}\nelse:\n    {' '.join(wsgi_code.split())}\n"
    )
    for which, ask, end in (("xmlrpc", ask_xmlrpc, b"32"), ("wsgi", ask_http, b"\r\n\r\nhello\n")):
        with ServerProcess(which, port=None, command=(sys.executable, "code.py"), cwd=tmp_path) as server:
            server.wait_for_output(b"\n")
            assert ask(("127.0.0.1", int(server.output.split(b":")[1]))).endswith(end)
