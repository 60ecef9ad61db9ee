"""What becomes of the sessions of a server under test: told by ``serving`` at the end of its block, in every mode."""

from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import tempfile
import threading
from typing import Any

import pytest
from processes import DEADLINE, connect, eventually, exchange, reset

from stdserve import (
    ConfigError,
    EchoHandler,
    LineHandler,
    SendError,
    SessionError,
    serving,
)
from stdserve.ledger import Ledger

#: A handler of each kind, for processes that fork: pytest has threads.
HANDLERS = """
import os, signal, socketserver, threading
from stdserve import LineHandler, SessionError, serving

class Fails(LineHandler):
    def line_received(self, line):
        if line == '1':
            return line
        raise ValueError(line)

class Stays(LineHandler):
    def line_received(self, line):
        return line
    def connection_lost(self, reason):
        threading.Event().wait(600)

class Dies(socketserver.BaseRequestHandler):
    def handle(self):
        os.kill(os.getpid(), signal.SIGKILL)
"""


class Fails(LineHandler):
    """Divides by what it gets."""

    def line_received(self, line: str) -> str:
        return str(1 // int(line))


def told(body: str) -> str:
    """What a SessionError says that ends a block of ``serving``, in a process of its own."""
    indented = body.replace("\n", "\n        ")
    code = (
        f"{HANDLERS}\ntry:\n    {indented}\nexcept SessionError as error:\n    print(error)\nelse:\n    print('fine')\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert 0 == result.returncode, result.stderr
    return result.stdout


@pytest.mark.parametrize("mode", ["single", "thread", "event"])
def test_a_handler_that_raises_is_told_at_the_end(mode: str) -> None:
    """With its peer, and its traceback from its own code on."""
    with pytest.raises(SessionError) as caught, serving(Fails, mode) as server, connect(server.address) as client:
        peer = "%s:%d" % client.getsockname()
        client.sendall(b"1\n0\n")
        assert b"1\n" == client.recv(100)
        assert b"" == client.recv(100)
    ((who, what),) = caught.value.sessions
    assert peer == who
    first, second, third, *_, last = what.splitlines()
    assert ("failed:", "Traceback (most recent call last):") == (first, second)
    assert os.path.basename(__file__) in third
    assert "ZeroDivisionError: integer division or modulo by zero" == last
    assert f"the session with {peer} failed:\nTraceback" in str(caught.value)


@pytest.mark.parametrize("settings", ["mode='fork'", "workers=2", "mode='fork', workers=2", "status='127.0.0.1:0'"])
def test_so_it_is_where_it_runs_in_another_process(settings: str) -> None:
    """Each of many at once, however long its traceback is: no line is torn."""
    body = (
        f"with serving(Fails, {settings}) as server:\n"
        "    clients = [server.client() for _ in range(20)]\n"
        "    for number, client in enumerate(clients):\n"
        "        client.send('x' * 10000 + str(number))\n"
        "    for client in clients:\n"
        "        client.finish()\n"
    )
    text = told(body)
    assert 20 == text.count("\nTraceback (most recent call last):\n")
    for number in range(20):
        assert 1 == text.count(f"\nValueError: {'x' * 10000}{number}\n")


def test_all_is_fine_when_none_fails() -> None:
    """In every mode; a peer that goes away, or says too much, is no failure."""
    for mode in ("single", "thread", "event"):
        with serving(EchoHandler, mode, max_line=10) as server:
            assert b"one\n" == exchange(server.address, b"one")
            exchange(server.address, b"x" * 100)
            with connect(server.address) as client:
                client.sendall(b"x\n" * 10)
                reset(client)
    for settings in ("mode='fork'", "workers=2"):
        assert "fine\n" == told(
            f"with serving(Fails, {settings}) as server:\n    assert '1' == server.client().ask('1')"
        )


class Gone(socketserver.StreamRequestHandler):
    """Raises what a peer makes it raise."""

    def handle(self) -> None:
        raise {b"r\n": ConnectionResetError, b"t\n": TimeoutError}.get(self.rfile.readline(), ValueError)


def test_what_a_peer_does_to_a_handler_is_no_failure() -> None:
    """The server's log has the same idea of it."""
    with serving(Gone) as server:
        for word in (b"r\n", b"t\n"):
            exchange(server.address, word)
    with pytest.raises(SessionError, match="ValueError"), serving(Gone) as server:
        exchange(server.address, b"other\n")


def test_the_block_itself_comes_first() -> None:
    """What it raises is not hidden by what a handler has raised, nor are its sessions waited for."""
    with pytest.raises(KeyError), serving(Fails) as server:
        exchange(server.address, b"0\n")
        raise KeyError("x")


def test_failures_can_be_meant() -> None:
    """By who starts the server, or later, or one by one."""
    with serving(Fails, failures="ignore") as server:
        exchange(server.address, b"0\n")
        server.check()
    with serving(Fails) as server:
        exchange(server.address, b"0\n")
        server.failures = "ignore"
    with serving(Fails) as server:
        server.check()
        for _ in range(2):
            exchange(server.address, b"0\n")
            with pytest.raises(SessionError, match="ZeroDivisionError") as caught:
                server.check()
            assert 1 == len(caught.value.sessions)
            server.check()


class Stays(EchoHandler):
    """Goes on until it is let go, whatever its client does."""

    gate: threading.Event

    def connection_lost(self, reason: object) -> None:
        assert self.gate.wait(DEADLINE)


def test_a_session_that_does_not_end_is_told_with_its_age() -> None:
    """When all clients have gone and some time has passed."""
    handler: Any = type("Fresh", (Stays,), {"gate": threading.Event()})
    try:
        with pytest.raises(SessionError) as caught, serving(handler, graceful_timeout=0.3) as server:
            assert "one" == server.client().ask("one")
            with connect(server.address) as client:
                peer = "%s:%d" % client.getsockname()
                client.sendall(b"two\n")
                assert b"two\n" == client.recv(100)
    finally:
        handler.gate.set()
    assert 2 == len(caught.value.sessions)
    assert peer in [who for who, _ in caught.value.sessions]
    for _, what in caught.value.sessions:
        assert what.startswith("is still open 0.3 s after all clients have gone; it is ")
        assert what.endswith(" s old")


def test_a_client_that_the_test_keeps_is_one_that_has_not_gone() -> None:
    """Its session is open, and its test should say that this is meant."""
    with (
        pytest.raises(SessionError, match="still open 0.2 s after"),
        serving(EchoHandler, graceful_timeout=0.2) as server,
    ):
        client = connect(server.address)
        client.sendall(b"one\n")
        assert b"one\n" == client.recv(100)
    client.close()


def test_a_session_without_an_end_is_told_when_the_server_has_stopped() -> None:
    """Though it was not overdue: it began after the last look."""
    handler: Any = type("Fresh", (Stays,), {"gate": threading.Event()})
    with (
        tempfile.TemporaryFile(buffering=0) as file,
        serving(handler, failures="ignore", graceful_timeout=0.1) as server,
    ):
        ledger = Ledger(file)
        assert server.server is not None
        ledger.follow(server.server)
        assert not ledger.overdue(0.0)
        with connect(server.address) as client:
            client.sendall(b"exit\n")
            eventually(lambda: ledger.overdue(0.0))
            with pytest.raises(SessionError, match="goes on after the server's stop$"):
                ledger.settle({})
        handler.gate.set()
        assert not ledger.overdue(DEADLINE)
        ledger.settle({})


@pytest.mark.parametrize("settings", ["mode='fork'", "workers=1"])
def test_an_open_session_and_a_dead_process_are_told_from_outside(settings: str) -> None:
    """One does not end, the other has no process any more that could end it."""
    stays = told(f"with serving(Stays, {settings}, graceful_timeout=0.3) as server:\n    server.client().ask('x')")
    assert "is still open 0.3 s after all clients have gone; it is" in stays
    try_it = "with serving(Dies, {}) as server:\n    server.client().finish()"
    assert "did not end: its process, " in told(try_it.format(settings))


@pytest.mark.parametrize("settings", ["mode='fork'", "workers=2", "mode='fork', workers=2"])
def test_a_block_may_end_before_its_server_has_begun(settings: str) -> None:
    """It is told to stop when it can be told."""
    assert "fine\n" == told(f"with serving(Fails, {settings}):\n    pass")


def test_there_are_two_words_for_failures() -> None:
    """Others are refused before anything is opened."""
    with pytest.raises(ConfigError, match="failures must be raise or ignore, not 'no'"), serving(failures="no"):
        pass


def test_what_a_client_sees_does_not_depend_on_it() -> None:
    """The error of a handler is an end of the session, as without a test."""
    with serving(Fails, failures="ignore") as server, pytest.raises(SendError):
        server.client().ask("0")
