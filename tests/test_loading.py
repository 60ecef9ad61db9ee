"""What can be run by its name: handlers, server classes, what makes one; by whom it is loaded, and in which mode."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE, ServerProcess, children_of, eventually, exchange

from stdserve import (
    ConfigError,
    EchoHandler,
    ForkServer,
    Options,
    create_server,
    serving,
)
from stdserve.loading import load_handler

SOURCE = """
import functools, socketserver, stdserve

class Says(socketserver.StreamRequestHandler):
    def __init__(self, *args, word="handler"):
        self.word = word
        super().__init__(*args)
    def handle(self):
        self.wfile.write(self.word.encode())

class Outer:
    class Inner(Says): pass

partly = functools.partial(functools.partial(Says, word="x"), word="partly")
def make(): return functools.partial(Says, word="made")
def configured(word="server"):
    class Configured(stdserve.ForkServer):
        RequestHandlerClass = functools.partial(Says, word=word)
    return Configured
Single = type("Single", (stdserve.SingleServer,), {"RequestHandlerClass": Says})
Own = type("Own", (stdserve.ServerMixin, socketserver.TCPServer), {"RequestHandlerClass": Says})
class Bare(stdserve.ThreadServer): pass
class Foreign(socketserver.ThreadingTCPServer): pass
class Neither: pass
def wants(something): return Says
def app(environ, start_response): return []
def fail(): raise LookupError("no luck")
def nothing(): pass
def neither(): return Neither
opaque = getattr
number = 7
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's, each time anew."""
    (tmp_path / "shop.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("Says", b"handler"),
        ("Outer.Inner", b"handler"),
        ("partly", b"partly"),
        ("make", b"made"),
        ("make()", b"made"),
        ("configured", b"server"),
        ("configured()", b"server"),
        ("Single", b"handler"),
    ],
)
def test_what_can_be_run_is_run(target: str, word: bytes) -> None:
    """By its name in a test, as on the command line."""
    with serving(load_handler(f"shop:{target}")) as server:
        assert word == exchange(server.address, b"")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("Neither", "Neither is no request handler: Neither is not a subclass of socketserver.BaseRequestHandler"),
        ("number", "number is no request handler: it is of type int, not a subclass of"),
        ("nothing", "nothing() is no request handler: it is None, not a subclass of"),
        ("neither", "neither() is no request handler: Neither is not a subclass of"),
        ("fail", "fail() raised LookupError('no luck')"),
        ("opaque", "opaque() raised TypeError("),
        ("wants", "wants is no request handler, and takes arguments, (something), which nobody has for it"),
        (
            "app",
            "app is no request handler, and takes arguments, (environ, start_response), which nobody has for it;"
            " a WSGI application is run by --wsgi shop:app",
        ),
        ("Bare", "Bare has no request handler: let its RequestHandlerClass be one"),
        ("Foreign", "Foreign is a server class, but none of stdserve's: derive it from one of SingleServer, "),
    ],
)
def test_what_cannot_be_run_says_why(target: str, reason: str) -> None:
    """In terms of what was typed."""
    with pytest.raises(ConfigError, match=re.escape(f"--handler shop:{target}: {reason}")):
        load_handler(f"shop:{target}")


def test_a_server_class_has_a_mode_of_its_own() -> None:
    """Another one is refused, and so is a class without."""
    shop = sys.modules.get("shop") or __import__("shop")
    with create_server(shop.configured(), bind="127.0.0.1:0") as server:
        assert isinstance(server, ForkServer)
    with create_server(shop.configured(), "fork", bind="127.0.0.1:0") as server:
        assert isinstance(server, ForkServer)
    with pytest.raises(ConfigError, match="--mode thread is not the mode of Single, which is single: leave --mode out"):
        create_server(shop.Single, "thread", bind="127.0.0.1:0")
    with (
        pytest.raises(ConfigError, match="Own is of no mode: derive it from one of SingleServer, ThreadServer"),
        serving(shop.Own),
    ):
        pass


def test_the_options_name_what_a_test_serves() -> None:
    """Where no class is given."""
    with serving(options=Options(bind=("127.0.0.1:0",), handler="shop:Says")) as server:
        assert b"handler" == exchange(server.address, b"")
    with serving(EchoHandler, options=Options(bind=("127.0.0.1:0",), handler="shop:Says")) as server:
        assert b"one\n" == exchange(server.address, b"one\n")


@pytest.mark.parametrize("words", [[], ["--workers", "2"]], ids=["alone", "workers"])
def test_the_mode_of_a_server_class_is_that_of_the_server(words: list[str], tmp_path: Path) -> None:
    """The log says it; one that disagrees is refused before anything listens."""
    with ServerProcess("--handler", "shop:configured()", *words, cwd=tmp_path) as server:
        server.wait_for_log(r"^listening .*\(mode fork[,)]")
        assert b"server" == exchange(server.address, b"")
    with ServerProcess("--handler", "shop:configured", "--mode", "single", *words, cwd=tmp_path) as server:
        assert 2 == server.wait()
        assert ["stdserve: --mode single is not the mode of Configured, which is fork: leave --mode out"] == server.log


def test_workers_load_anew_what_a_function_makes(tmp_path: Path) -> None:
    """After a reload, a module that has changed is another one; a mode that has changed keeps the old workers."""
    path = tmp_path / "shop.py"
    with ServerProcess("--handler", "shop:configured", "--workers", "2", cwd=tmp_path) as server:
        assert b"server" == exchange(server.address, b"")
        path.write_text(SOURCE.replace('word="server"', 'word="another server"'))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^reloaded")
        # The last of the old ones, told to stop, may still take who comes in that moment.
        eventually(lambda: b"another server" == exchange(server.address, b""))
        path.write_text(SOURCE.replace("stdserve.ForkServer", "stdserve.SingleServer") + "\n\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("--mode fork is not the mode of Configured, which is single")
        assert b"another server" == exchange(server.address, b"")
        eventually(lambda: 2 == len(children_of(server.pid)), "the worker that could not start has gone")


def test_check_config_loads_what_it_checks(tmp_path: Path) -> None:
    """And tells what is wrong with it."""
    for target, code in (("shop:make", 0), ("shop:maker", 2)):
        command = [sys.executable, "-m", "stdserve", "--check-config", "--handler", target]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
        assert code == result.returncode
        assert "did you mean 'make'" in result.stderr or not code


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0\n", "--handler tried:Handler: cannot import 'tried': ZeroDivisionError('division by zero')"),
        ("", "--handler tried:Handler: module 'tried' has no 'Handler'"),
        ("import os\nos._exit(5)\n", "--handler tried:Handler: the process that imported it for a try .* status 5"),
        ("from stdserve import EchoHandler as Handler\n", "None"),
        (
            "from stdserve import ForkServer, EchoHandler\n"
            "class Handler(ForkServer): RequestHandlerClass = EchoHandler\n",
            "fork",
        ),
    ],
)
def test_a_handler_can_be_tried_without_a_trace_of_it(source: str, reason: str, tmp_path: Path) -> None:
    """What is wrong with it is told all the same, and the mode that it needs."""
    (tmp_path / "tried.py").write_text(source)
    code = (
        "import os, sys\n"
        "from stdserve import ConfigError, Options\n"
        "from stdserve.loading import try_parts\n"
        "from stdserve.targets import Parts\n"
        "try:\n"
        "    print(try_parts(Options(handler='tried:Handler'), Parts()).mode)\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
        "print('tried' in sys.modules, len(os.listdir('/proc/self/fd')))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
    )
    *told, last = result.stdout.splitlines()
    assert ("False 4", "") == (last, result.stderr)
    assert re.match(reason.replace("(", r"\(").replace(")", r"\)") + "$", "".join(told))
