"""WSGI applications, by their name or from code, in every mode; what they are told is true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler
from wsgiref.validate import validator

import pytest
from authority import Authority
from processes import ServerProcess, exchange
from transports import every_mode, every_transport, offered

from stdserve import ConfigError, Options, create_server, serving
from stdserve.wsgi import ApplicationMixin, WSGIHandler, load_application

REQUEST = b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\nX-Y: z\r\n\r\n"

SOURCE = '''
import json

def app(environ, start_response):
    """Tell what was told."""
    size = int(environ["CONTENT_LENGTH"] or 0)
    told = {name: environ[name] for name in environ if isinstance(environ[name], (str, bool))}
    reply = json.dumps({**told, "body": environ["wsgi.input"].read(size).decode()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(reply)))])
    return [reply]

def make_app(word="made"):
    def made(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [word.encode()]
    return made

class Application:
    def __init__(self, environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
    def __iter__(self):
        yield b"a class"

def fails(environ, start_response): raise LookupError("no luck")
def one(environ): pass
number = 7
opaque = str
'''

_names: dict[str, Any] = {}
exec(SOURCE, _names)
app: Callable[..., Any] = _names["app"]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with applications."""
    (tmp_path / "applications.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))


@every_mode
@every_transport
def test_the_standard_librarys_handler_as_it_is(mode: str, transport: str, authority: Authority) -> None:
    """What is told of threads, processes, scheme, client and server holds; the validator has nothing to say."""
    made = {"bases": [ApplicationMixin], "attributes": {"application": validator(app)}}
    with offered(WSGIRequestHandler, mode, transport, authority, **made) as server:
        client = server.http()
        client.request("POST", "/a%20b?c=d", b"hello", {"X-Y": "z"})
        reply = client.getresponse()
        told = json.loads(reply.read())
        client.close()
    assert 200 == reply.status
    assert ("/a b", "c=d", "z", "hello") == (
        *(told["PATH_INFO"], told["QUERY_STRING"], told["HTTP_X_Y"], told["body"]),
    )
    assert (mode == "thread", mode == "fork") == (told["wsgi.multithread"], told["wsgi.multiprocess"])
    assert ("https" if transport == "tls" else "http") == told["wsgi.url_scheme"]
    if transport == "unix":
        assert re.fullmatch(r"unix:uid=\d+", told["REMOTE_ADDR"])
        assert ("localhost", "80") == (told["SERVER_NAME"], told["SERVER_PORT"])
    else:
        assert "127.0.0.1" == told["REMOTE_ADDR"]
        assert ["127.0.0.1", told["SERVER_PORT"]] == [told["SERVER_NAME"], str(server.address[1])]


def told_by(reply: bytes) -> Any:
    """What the application has told."""
    return json.loads(reply.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    ("target", "body"), [("make_app()", b"made"), ("Application", b"a class"), ("app", b'{"'), ("opaque", b"")]
)
def test_an_application_by_its_name(target: str, body: bytes) -> None:
    """Or by what a call returns, or a class; not a factory without its call."""
    with serving(options=Options(bind=("127.0.0.1:0",), wsgi=f"applications:{target}")) as server:
        assert body in exchange(server.address, REQUEST, half_close=False)


@pytest.mark.parametrize("mode", ["single", "thread", "fork"])
def test_workers_from_the_command_line(mode: str, tmp_path: Path) -> None:
    """More than one process is told; requests are lines of our own log, each with its client."""
    words = ["--wsgi", "applications:app", "--mode", mode, "--workers", "2", "--log-format", "json"]
    with ServerProcess(*words, port=None, cwd=tmp_path, env={"STDSERVE_PORT": "0"}) as server:
        port = int(server.wait_for_log(r'"address": "127\.0\.0\.1:(\d+)"')[1])
        told = told_by(exchange(("127.0.0.1", port), REQUEST))
        assert (mode == "thread", True) == (told["wsgi.multithread"], told["wsgi.multiprocess"])
        exchange(("127.0.0.1", port), b"nonsense\r\n\r\n")
        server.wait_for_log('"event": "close"', 2)
        assert 0 == server.stop()
    rows = [json.loads(line) for line in server.log]  # each of them is JSON
    requests = [row for row in rows if row["event"] == "request"]
    assert '"GET /a%20b?c=d HTTP/1.1" 200' in requests[0]["message"]
    assert requests[0]["peer"].startswith("127.0.0.1:")
    assert "code 400" in requests[1]["message"]


def test_an_application_that_fails_is_answered_for(tmp_path: Path) -> None:
    """By wsgiref, with 500, and its traceback on standard error; others go on."""
    with ServerProcess("--wsgi", "applications:fails", cwd=tmp_path) as server:
        for _ in range(2):
            assert b"500 Internal Server Error" in exchange(server.address, REQUEST)
        server.wait_for_log("^LookupError: no luck$", 2)


def test_an_application_may_be_set_later() -> None:
    """As with WSGIServer; until then there is none."""
    with create_server(WSGIHandler, bases=[ApplicationMixin], bind="127.0.0.1:0") as server:
        wsgi: Any = server
        with pytest.raises(ConfigError, match="there is no application"):
            wsgi.get_app()({}, print)
        wsgi.set_app(lambda environ, start_response: [b"set"])
        assert [b"set"] == wsgi.get_app()({}, print)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("make_app", r"it takes \(word='made'\), not \(environ, start_response\)$"),
        ("one", r"one is no WSGI application: it takes \(environ\), not \(environ, start_response\)$"),
        ("number", "number is no WSGI application: it is of type int$"),
        ("make", "module 'applications' has no 'make'; did you mean 'make_app'"),
        ("make_app(1)", "--wsgi must be module:app, not 'applications:make_app.1.'; a call takes no arguments here"),
    ],
)
def test_what_is_no_application_says_why(target: str, reason: str) -> None:
    """In terms of what was typed."""
    with pytest.raises(ConfigError, match=reason):
        load_application(f"applications:{target}")


def test_a_factory_without_arguments_is_told_how_to_call_it(tmp_path: Path) -> None:
    """Parentheses are explicit: an application is callable, too."""
    (tmp_path / "applications.py").write_text("def make(): return print\n")
    with ServerProcess("--wsgi", "applications:make", cwd=tmp_path) as server:
        assert 2 == server.wait()
        assert server.log[0].endswith("for the one that it returns: --wsgi applications:make()")


def test_it_has_a_handler_of_its_own() -> None:
    """There cannot be two."""
    with pytest.raises(ConfigError, match="--wsgi and --handler exclude each other"):
        Options(wsgi="a:b", handler="c:d")
