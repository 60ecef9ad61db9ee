"""Sessions count what they read, send and say: for their line in the log, and for metrics where those are wanted."""

from __future__ import annotations

import contextlib
import errno
import socket
import socketserver
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from authority import Authority
from processes import DEADLINE, connect, eventually, exchange, read_all

from stdserve import EchoHandler, Options, ServerMixin, ThreadServer, create_server
from stdserve.metrics import Metrics, Snapshot
from stdserve.streams import CountedSocket
from stdserve.tally import Counters, Tally


@contextlib.contextmanager
def counting(handler: Any = EchoHandler, **options: Any) -> Iterator[tuple[ServerMixin, Callable[[], Snapshot]]]:
    """Run a server that counts; give it and what takes a snapshot."""
    metrics = Metrics(1, 100)
    server = create_server(handler, options=Options(port=0, **options), counters=metrics.enter(0))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, metrics.snapshot
    finally:
        server.shutdown()
        thread.join(DEADLINE)
        server.server_close()


def address_of(server: ServerMixin) -> tuple[str, int]:
    """Return where a client finds it."""
    return "127.0.0.1", server.server_address[1]


def nonzero(counts: dict[str, int]) -> dict[str, int]:
    """Return the counts that there are."""
    return {word: count for word, count in counts.items() if count}


def rejects(metrics: Metrics, expected: dict[str, int]) -> bool:
    """Tell whether it was these that were rejected so far."""
    return expected == nonzero(metrics.snapshot().rejected)


def rejected(snapshot: Callable[[], Snapshot]) -> dict[str, int]:
    """Wait for the first rejection, and return all."""
    eventually(lambda: any(snapshot().rejected.values()), "a rejection")
    return nonzero(snapshot().rejected)


def test_a_tally_counts_for_one_session_and_counters_for_nobody() -> None:
    """The methods are those of metrics, which need not be there."""
    counters = Counters()
    counters.serve()
    counters.beat()
    counters.count_accept_error()
    counters.reject("full")
    tally = counters.take("peer")
    assert isinstance(tally, Tally)
    tally.adopt()
    tally.name("peer")
    tally.open()
    tally.add_received(1)
    tally.add_sent(2)
    tally.add_lines_in(3)
    tally.add_lines_out(4)
    tally.reject("tls")
    tally.end("eof")
    counters.give_back(tally)
    counters.drain()
    assert (1, 2, 3, 4) == tally.counts
    assert (0, 0, 0, 0) == counters.take("peer").counts


@pytest.mark.parametrize("mode", ["single", "thread"])
def test_lines_bytes_and_ends_are_counted(mode: str) -> None:
    """What clients sent and got, and why each session ended."""
    with counting(mode=mode) as (server, snapshot):
        assert b"one\ntwo\n" == exchange(address_of(server), b"one\ntwo\n")
        assert b"" == exchange(address_of(server), b"exit\n")
        eventually(lambda: snapshot().open == 0 and snapshot().total == 2)
        counted = snapshot()
    assert (13, 8, 2, 2) == (counted.received, counted.sent, counted.lines_in, counted.lines_out)
    assert {"eof": 1, "exit": 1} == nonzero(counted.ended)
    assert {} == nonzero(counted.rejected)
    assert {"draining"} == {worker.state for worker in snapshot().workers}


class Foreign(socketserver.BaseRequestHandler):
    """Reads and writes in all the ways that a socket has."""

    def handle(self) -> None:
        request: socket.socket = self.request
        if not isinstance(request, ssl.SSLSocket):
            request.recv(3, socket.MSG_PEEK)
            request.recv_into(bytearray(3), flags=socket.MSG_PEEK)
        request.recv(3)
        request.recv_into(bytearray(3))
        with request.makefile("rb") as reader:
            request.sendall(reader.readline())
        request.send(b"yy")
        with request.makefile("wb") as writer:
            writer.write(b"zzz")
        with tempfile.TemporaryFile() as file:
            file.write(b"f" * 100)
            file.flush()
            request.sendfile(file, 50)


@pytest.mark.parametrize("tls", [False, True])
def test_a_handler_that_knows_nothing_of_it_is_counted(tls: bool, authority: Authority) -> None:
    """Each byte once, whichever of the socket's methods it takes; with TLS, what is said in it."""
    pair = authority.pair()
    options: dict[str, Any] = {"tls_cert": pair.certfile, "tls_key": pair.keyfile} if tls else {}
    with counting(Foreign, **options) as (server, snapshot):
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(connect(address_of(server)))
            if tls:
                client = stack.enter_context(authority.client().wrap_socket(client, server_hostname="localhost"))
            client.sendall(b"abcdef1234567890\n")
            got = read_all(client)
        eventually(lambda: snapshot().open == 0 and snapshot().total == 1)
        assert b"1234567890\nyyzzz" + b"f" * 50 == got
        assert (17, len(got)) == (snapshot().received, snapshot().sent)
        assert {"closed": 1} == nonzero(snapshot().ended)


def test_a_socket_by_itself_counts_nothing() -> None:
    """A session's does once it has begun; a PROXY header is nobody's words."""
    ours, theirs = socket.socketpair()
    request: Any = CountedSocket.adopt(ours)
    with theirs, request, tempfile.TemporaryFile() as file:
        file.write(b"data")
        file.flush()
        request.send(b"a")
        request.sendall(b"b")
        assert 4 == request.sendfile(file)
        theirs.sendall(b"word")
        assert (b"wo", 2) == (request.recv(2), request.recv_into(bytearray(2)))
        request.tally = Tally()
        request.sendall(b"c")
        assert (0, 1, 0, 0) == request.tally.counts


def test_the_header_of_a_proxy_is_not_counted_and_its_client_is_told() -> None:
    """Of the sessions listed, each is named by whom it is with."""
    with counting(proxy_protocol=True) as (server, _), connect(address_of(server)) as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\nword\n")
        assert b"word\n" == client.recv(100)
        (session,) = server.sessions.values()
        tally: Any = session.tally
        eventually(lambda: ("192.0.2.7:5000", (5, 5, 1, 1)) == (tally.peer, tally.counts))


class Picky(ThreadServer):
    """Turns everybody away, or fails at it."""

    fails = False

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if self.fails:
            raise ValueError("of the hook")
        return False


@pytest.mark.parametrize(("fails", "reason"), [(False, "verify"), (True, "error")])
def test_those_whom_a_hook_turns_away_are_counted(fails: bool, reason: str) -> None:
    """Under a name of their own; a hook that fails is our error."""
    metrics = Metrics(1, 100)
    server = Picky(("127.0.0.1", 0), EchoHandler, counters=metrics.enter(0))
    server.fails = fails
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert b"" == exchange(address_of(server), b"word\n")
        assert {reason: 1} == rejected(metrics.snapshot)
        server.shutdown()
        thread.join(DEADLINE)
    assert 0 == metrics.snapshot().total


def test_those_for_whom_there_is_no_room_are_counted() -> None:
    """With overflow "close" they come in no further than accept."""
    with counting(max_conns=1, overflow="close") as (server, snapshot), connect(address_of(server)) as client:
        client.sendall(b"word\n")
        assert b"word\n" == client.recv(100)
        assert b"" == exchange(address_of(server), b"")
        assert {"full": 1} == rejected(snapshot)
        assert (1, 1) == (snapshot().open, snapshot().total)


@pytest.mark.parametrize(
    ("words", "reason"), [(b"GET / HTTP/1.1\r\n", "tls"), (b"", "broken")], ids=["plain text", "nothing"]
)
def test_those_who_fail_in_the_preamble_are_counted(words: bytes, reason: str, authority: Authority) -> None:
    """They are no sessions."""
    pair = authority.pair()
    with counting(tls_cert=pair.certfile, tls_key=pair.keyfile) as (server, snapshot):
        exchange(address_of(server), words)
        assert {reason: 1} == rejected(snapshot)
        assert (0, 0, 0) == (snapshot().total, snapshot().received, snapshot().sent)


def test_those_cut_in_the_preamble_are_counted(authority: Authority) -> None:
    """A stop does not wait for handshakes; their rows are free for others."""
    pair = authority.pair()
    options = {"tls_cert": pair.certfile, "tls_key": pair.keyfile, "graceful_timeout": 0.1}
    with counting(**options) as (server, snapshot), connect(address_of(server)) as client:
        eventually(lambda: server.sessions, "a session")
        server.request_stop(now=True)
        read_all(client)
        assert {"cut": 1} == rejected(snapshot)


class NoThreads(ThreadServer):
    """Has no thread for anybody."""

    def process_request(self, request: Any, client_address: Any) -> None:
        raise RuntimeError("can't start new thread")


def test_those_for_whom_there_is_no_thread_are_counted() -> None:
    """That is an error of ours."""
    metrics = Metrics(1, 1)
    server = NoThreads(("127.0.0.1", 0), EchoHandler, counters=metrics.enter(0))
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for count in (1, 2, 3):  # more than there are rows: each comes back
            assert b"" == exchange(address_of(server), b"word\n")
            eventually(partial(rejects, metrics, {"error": count}))
        server.shutdown()
        thread.join(DEADLINE)


class NoAccept(ThreadServer):
    """Fails to accept: as out of descriptors, and for a client that has gone."""

    errors = [errno.ECONNABORTED, errno.EMFILE]

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        if self.errors:
            request.close()
            raise OSError(self.errors.pop(0), "of the test")
        return request, address


def test_failures_of_accept_are_counted() -> None:
    """A client that has gone is rejected; what is wrong here is another matter."""
    metrics = Metrics(1, 1)
    with NoAccept(("127.0.0.1", 0), EchoHandler, counters=metrics.enter(0)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for _ in range(2):
            with contextlib.suppress(ConnectionError):
                assert b"" == exchange(address_of(server), b"")
        assert b"word\n" == exchange(address_of(server), b"word\n")
        server.shutdown()
        thread.join(DEADLINE)
    snapshot = metrics.snapshot()
    assert ({"broken": 1}, 1, 1) == (nonzero(snapshot.rejected), snapshot.accept_errors, snapshot.total)
