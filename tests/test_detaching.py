"""Handlers that keep their connection: handed to a thread, the session over, the server no longer in charge."""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from processes import (
    ServerProcess,
    children_of,
    connect,
    eventually,
    exchange,
    read_all,
)
from transports import every_mode, every_transport, offered

from stdserve import create_server, serving

SOURCE = '''
import contextlib, socketserver, threading

class Keeps(socketserver.BaseRequestHandler):
    """Starts a thread that talks on, and returns, as pynetdicom's does."""

    daemon = True

    def handle(self):
        self.server.detach_request(self.request)
        threading.Thread(target=self.talk, daemon=self.daemon).start()

    def talk(self):
        with self.request, contextlib.suppress(ConnectionError):
            while data := self.request.recv(100):
                self.request.sendall(data.upper())
            self.request.sendall(b"bye")

class Holds(Keeps):
    daemon = False

class Twice(Keeps):
    def handle(self):
        super().handle()
        self.server.detach_request(self.request)

class Fails(Keeps):
    def handle(self):
        super().handle()
        raise LookupError("afterwards")
'''

_names: dict[str, Any] = {"__name__": "keepers"}
exec(SOURCE, _names)
Keeps: Any = _names["Keeps"]


@every_mode
@every_transport
def test_a_connection_that_is_kept_goes_on(mode: str, transport: str, authority: Authority) -> None:
    """After the session has ended, over TLS too; neither end nor limit of the server's holds for it."""
    limits = {"idle_timeout": 0.2, "session_timeout": 0.3, "linger_timeout": 0.1}
    with (
        offered(Keeps, mode, transport, authority, **limits) as server,
        server.connect() as first,
        server.connect() as second,
    ):
        for _ in range(3):
            threading.Event().wait(0.15)  # past each of the limits
            for client in (first, second):
                client.sendall(b"one")
                assert b"ONE" == client.recv(100)
        if transport != "tls":  # the standard library's client cannot say that it has finished
            first.shutdown(1)
            assert b"bye" == read_all(first)


@pytest.fixture(autouse=True)
def module(tmp_path: Path) -> None:
    """A module with handlers that keep."""
    (tmp_path / "keepers.py").write_text(SOURCE)


def test_the_session_ends_with_a_reason_of_its_own(tmp_path: Path) -> None:
    """In the log, when the handler returns; it no longer counts, and a stop does not wait for it."""
    words = ["--handler", "keepers:Keeps", "--max-conns", "1", "--status", "127.0.0.1:0"]
    with ServerProcess(*words, cwd=tmp_path) as server:
        clients = [connect(server.address) for _ in range(3)]
        for number, client in enumerate(clients, 1):
            client.sendall(b"one")
            assert b"ONE" == client.recv(100)
            server.wait_for_log("^close .* reason=detached lines=0 bytes=0 ", number)
        host, _, port = server.wait_for_log(r"^status on (\S+)")[1].rpartition(":")
        metrics = exchange((host, int(port)), b"GET /metrics HTTP/1.0\r\n\r\n").decode()
        assert 'stdserve_sessions_ended_total{reason="detached"} 3' in metrics
        assert 0 == server.stop()
        server.wait_for_log("^stopped finished=0 cut=0")
        for client in clients:
            assert b"" == read_all(client)
            client.close()


def test_a_daemon_thread_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """One that is none does, as in any program, until its client has gone."""
    for handler in ("Keeps", "Holds"):
        with ServerProcess("--handler", f"keepers:{handler}", cwd=tmp_path) as server:
            with connect(server.address) as client:
                client.sendall(b"one")
                assert b"ONE" == client.recv(100)
                server.process.send_signal(signal.SIGTERM)
                server.wait_for_log("^stopped")
                if handler == "Keeps":
                    assert 0 == server.wait()
                    continue
                client.sendall(b"two")
                assert b"TWO" == client.recv(100)
            assert 0 == server.wait()


def test_a_fork_lives_as_long_as_its_threads(tmp_path: Path) -> None:
    """It takes its place until then; a stop lets them read EOF."""
    words = ["--handler", "keepers:Keeps", "--mode", "fork", "--max-conns", "2"]
    with ServerProcess(*words, cwd=tmp_path) as server:
        with connect(server.address) as client:
            client.sendall(b"one")
            assert b"ONE" == client.recv(100)
            server.wait_for_log("^close .* reason=detached")
            assert 1 == len(children_of(server.pid))
        eventually(lambda: not children_of(server.pid), "the child has ended")
        with connect(server.address) as client:
            client.sendall(b"two")
            assert b"TWO" == client.recv(100)
            server.process.send_signal(signal.SIGTERM)
            assert b"bye" == read_all(client)
        assert 0 == server.wait()
        server.wait_for_log("^stopped finished=1 cut=0")


def test_a_stop_that_comes_before_the_handler_returns_is_not_lost(tmp_path: Path) -> None:
    """Mode fork: who keeps the connection reads EOF all the same."""
    (tmp_path / "late.py").write_text(
        "import keepers, os, signal, threading\n"
        "class Late(keepers.Keeps):\n"
        "    def handle(self):\n"
        "        super().handle()\n"
        "        os.kill(os.getppid(), signal.SIGTERM)\n"
        "        (session,) = self.server.sessions.values()\n"
        "        while not session.input_ended:\n"
        "            threading.Event().wait(0.01)\n"
    )
    with ServerProcess("--handler", "late:Late", "--mode", "fork", cwd=tmp_path) as server:
        assert b"bye" == exchange(server.address, b"", half_close=False)
        assert 0 == server.wait()


def test_what_goes_wrong_after_that_leaves_the_connection_alone(tmp_path: Path) -> None:
    """It is logged, with its traceback."""
    for handler, reason in (("Fails", "LookupError"), ("Twice", "ValueError: only the request of a session that runs")):
        with (
            ServerProcess("--handler", f"keepers:{handler}", cwd=tmp_path) as server,
            connect(server.address) as client,
        ):
            server.wait_for_log(f"^{reason}")
            server.wait_for_log("^close .* reason=error")
            client.sendall(b"one")
            assert b"ONE" == client.recv(100)


def test_only_a_session_of_the_server_can_be_detached() -> None:
    """No other socket."""
    here, there = socket.socketpair()
    with (
        here,
        there,
        create_server(Keeps, bind="127.0.0.1:0") as server,
        pytest.raises(ValueError, match="only the request of a session"),
    ):
        server.detach_request(here)


def test_threads_that_are_not_threadings_are_not_waited_for() -> None:
    """Nobody can wait for them; the child ends."""

    class Bare(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            import _thread

            seen = threading.Event()

            def look() -> None:
                threading.current_thread()  # threading takes note of it
                seen.set()
                threading.Event().wait()

            server: Any = self.server
            server.detach_request(self.request)
            _thread.start_new_thread(look, ())
            seen.wait()
            self.request.sendall(b"%d" % os.getpid())

    with serving(Bare, "fork") as server, connect(server.address) as client:
        pid = int(read_all(client))
        assert pid != os.getpid()
