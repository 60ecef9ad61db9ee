"""Caps and what overflow means, on real connections and on a real server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from processes import (
    DEADLINE,
    ServerProcess,
    connect,
    eventually,
    exchange,
    read_all,
    reset,
)

from stdserve.access import MOST_REFUSALS, Admission
from stdserve.errors import PeerError
from stdserve.options import Options
from stdserve.sessions import Session
from stdserve.waiting import Waiter


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    """The accept loop's."""
    waiter = Waiter()
    yield waiter
    waiter.close()


class Pairs:
    """Connections, each with its two ends; what was closed on our side is noted."""

    def __init__(self) -> None:
        self.closed: list[socket.socket] = []
        self.theirs: list[socket.socket] = []
        self.ours: list[socket.socket] = []

    def new(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.settimeout(DEADLINE)
        self.theirs.append(theirs)
        self.ours.append(ours)
        return ours

    def close(self, request: socket.socket) -> None:
        request.close()
        self.closed.append(request)


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    """All peers are closed at the end."""
    pairs = Pairs()
    yield pairs
    for end in (*pairs.ours, *pairs.theirs):
        end.close()


def checked(admission: Admission, active: int) -> bool:
    """Do what the accept loop does after each turn."""
    admission.check(active)
    return True


PEER = ("127.0.0.1", 4000)


def test_waiting_means_that_nobody_is_let_in_to_be_refused(waiter: Waiter, pairs: Pairs) -> None:
    """The other policies accept in order to refuse."""
    for overflow, room in (("wait", False), ("close", True), ("reply", True)):
        admission = Admission(Options(overflow=overflow), 2, waiter, pairs.close)
        assert admission.has_room(1)
        assert room == admission.has_room(2)


def test_close_closes_at_once(waiter: Waiter, pairs: Pairs) -> None:
    """Without a word."""
    admission = Admission(Options(overflow="close"), 1, waiter, pairs.close)
    assert admission.enter(Session(pairs.new(), PEER), 0)
    assert not admission.enter(Session(pairs.new(), PEER), 1)
    assert b"" == read_all(pairs.theirs[-1])


def test_reply_can_be_read_by_a_client_that_sends_first(waiter: Waiter, pairs: Pairs) -> None:
    """What it sends is thrown away until it closes."""
    admission = Admission(Options(overflow="reply", overflow_message="занято"), 1, waiter, pairs.close)
    refused = pairs.new()
    assert not admission.enter(Session(refused, PEER), 1)
    theirs = pairs.theirs[0]
    theirs.sendall(b"x" * 50_000)
    waiter.turn(1)
    assert "занято\n".encode() == read_all(theirs)
    assert [] == pairs.closed
    theirs.close()
    waiter.turn(1)
    assert [refused] == pairs.closed


def test_a_flood_does_not_hold_the_loop(waiter: Waiter, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn reads so much and no more."""
    monkeypatch.setattr("stdserve.access.READS_PER_TURN", 1)
    admission = Admission(Options(overflow="reply"), 1, waiter, pairs.close)
    assert not admission.enter(Session(pairs.new(), PEER), 1)
    pairs.theirs[0].sendall(b"x" * 100_000)
    pairs.theirs[0].shutdown(socket.SHUT_WR)
    waiter.turn(1)
    assert [] == pairs.closed
    for _ in range(5):
        waiter.turn(0)
    assert 1 == len(pairs.closed)


def test_one_that_does_not_close_is_closed_when_its_time_is_up(waiter: Waiter, pairs: Pairs) -> None:
    """And all of them when the server closes; a stop is not held up."""
    admission = Admission(Options(overflow="reply", linger_timeout=0.05), 1, waiter, pairs.close)
    for _ in range(2):
        assert not admission.enter(Session(pairs.new(), PEER), 1)
    assert 1.0 == admission.next_check(None)
    assert 0.5 == admission.next_check(0.5)
    admission.check(0)
    assert [] == pairs.closed
    eventually(lambda: checked(admission, 0) and len(pairs.closed) == 2)
    assert not admission.enter(Session(pairs.new(), PEER), 1)
    admission.close()
    assert 3 == len(pairs.closed)


def test_a_refused_client_that_has_gone_is_closed(waiter: Waiter, pairs: Pairs) -> None:
    """Before it could be told, or with a reset afterwards."""
    admission = Admission(Options(overflow="reply"), 1, waiter, pairs.close)
    request = pairs.new()
    pairs.theirs[0].close()
    assert not admission.enter(Session(request, PEER), 1)
    assert [request] == pairs.closed

    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = connect(listener.getsockname())
        request, address = listener.accept()
        assert not admission.enter(Session(request, address), 1)
        reset(client)
        waiter.turn(1)
        assert 2 == len(pairs.closed)


def test_so_many_may_linger_and_then_the_oldest_goes(waiter: Waiter, pairs: Pairs) -> None:
    """Refusing costs no more descriptors than that."""
    admission = Admission(Options(overflow="reply"), 1, waiter, pairs.close)
    requests = [pairs.new() for _ in range(MOST_REFUSALS + 1)]
    for request in requests:
        assert not admission.enter(Session(request, PEER), 1)
    assert requests[:1] == pairs.closed
    admission.close()


def test_each_address_has_its_share(waiter: Waiter, pairs: Pairs) -> None:
    """Others are let in meanwhile; a place is free when a session has left."""
    admission = Admission(Options(max_conns_per_ip=2), 100, waiter, pairs.close)
    sessions = [Session(pairs.new(), ("127.0.0.1", port)) for port in range(3)]
    assert [True, True, False] == [admission.enter(session, 0) for session in sessions]
    assert admission.enter(Session(pairs.new(), ("127.0.0.2", 1)), 0)
    admission.leave(sessions[2])  # it never came in: no place is free
    assert not admission.enter(Session(pairs.new(), ("127.0.0.1", 8)), 0)
    admission.leave(sessions[0])
    assert admission.enter(Session(pairs.new(), ("127.0.0.1", 9)), 0)


def test_a_client_of_tls_is_refused_without_plain_text(
    waiter: Waiter, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take a message for a broken handshake."""
    monkeypatch.setattr(Options, "certificates", "some")
    admission = Admission(Options(overflow="reply"), 1, waiter, pairs.close)
    assert not admission.enter(Session(pairs.new(), PEER), 1)
    assert b"" == pairs.theirs[-1].recv(100)


def test_who_is_not_let_in_is_named_once_and_closed(
    waiter: Waiter, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a word, whatever the overflow policy; it is no overload."""
    options = Options(allow=("127.0.0.0/8",), deny=("127.0.0.3",), overflow="reply")
    admission = Admission(options, 100, waiter, pairs.close)
    assert admission.enter(Session(pairs.new(), ("127.0.0.1", 1)), 0)
    with caplog.at_level("INFO", "stdserve"):
        for host in ("127.0.0.3", "192.0.2.1"):
            request = pairs.new()
            assert not admission.enter(Session(request, (host, 1)), 0)
            assert pairs.closed[-1] is request
    assert ["reject 127.0.0.3:1 reason=denied", "reject 192.0.2.1:1 reason=denied"] == caplog.messages


def test_behind_a_proxy_the_proxy_is_asked_for_first_and_the_client_later(waiter: Waiter, pairs: Pairs) -> None:
    """Whose word is taken is one question, who may come in another; an address counts when it is known."""
    options = Options(proxy_protocol=True, proxy_allow_from=("192.0.2.0/24",), deny=("127.0.0.9",), max_conns_per_ip=1)
    admission = Admission(options, 100, waiter, pairs.close)
    assert not admission.enter(Session(pairs.new(), ("127.0.0.1", 1)), 0)
    sessions = [Session(pairs.new(), ("192.0.2.7", port)) for port in range(3)]
    assert [True] * 3 == [admission.enter(session, 0) for session in sessions]
    reasons = []
    for session, host in zip(sessions, ("127.0.0.5", "127.0.0.5", "127.0.0.9"), strict=True):
        session.name((host, 1))
        try:
            admission.admit(session)
        except PeerError as error:
            reasons.append(error.reason)
    assert ["address", "denied"] == reasons


def test_an_overload_is_two_lines_whatever_its_size(
    waiter: Waiter, pairs: Pairs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it begins and when it has been calm for a second, with counts."""
    monkeypatch.setattr("stdserve.access.CALM_SECONDS", 0.05)
    admission = Admission(Options(overflow="close"), 1, waiter, pairs.close)
    assert admission.next_check(None) is None
    admission.check(0)
    for _ in range(50):
        admission.enter(Session(pairs.new(), PEER), 1)
    eventually(lambda: checked(admission, 1) and "ended" in caplog.text)
    assert [
        "overload began: 1 sessions are the limit, clients are refused",
        "overload ended: refused=50 seconds=0.0",
    ] == [record.getMessage() for record in caplog.records]


def test_a_server_that_stays_full_stays_overloaded(
    waiter: Waiter, pairs: Pairs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the policy of waiting the crowd is not seen again until there is room."""
    monkeypatch.setattr("stdserve.access.CALM_SECONDS", 0.0)
    admission = Admission(Options(), 1, waiter, pairs.close)
    admission.crowd()
    admission.check(1)
    assert "ended" not in caplog.text
    admission.check(0)
    assert "overload ended: refused=0" in caplog.text


@pytest.mark.parametrize("mode", ["thread", "fork", "event"])
def test_a_full_server_replies_and_goes_on(mode: str) -> None:
    """50 clients that send first read the message, all of them; then there is room again."""
    words = ["--mode", mode, "-m", "1", "--overflow", "reply", "--overflow-message", "come back later"]
    with ServerProcess(*words) as server:
        with connect(server.address) as first:
            server.wait_for_log("^open")
            for _ in range(50):
                assert b"come back later\n" == exchange(server.address, b"x" * 30_000)
            first.sendall(b"still here\nexit\n")
            assert b"" == read_all(first)
        server.wait_for_log("^overload ended: refused=50 ")
        exchange(server.address, b"next")
        server.wait_for_output(b"still here\nnext\n")
        assert 0 == server.stop()
        assert 2 == len([line for line in server.log if "overload" in line])


@pytest.mark.parametrize("mode", ["thread", "fork", "event", "thread_workers"])
def test_an_address_over_its_share_is_refused_and_finds_room_later(mode: str) -> None:
    """In every process by itself."""
    words: dict[str, Any] = {"thread_workers": ["--workers", "2"]}
    with ServerProcess(
        *words.get(mode, ["--mode", mode]), "--max-conns-per-ip", "2", "-b", "127.0.0.1:0", port=None
    ) as server:
        share = 4 if mode == "thread_workers" else 2
        clients = []
        refused = 0
        while refused < 3:
            client = connect(server.address)
            client.settimeout(0.3)
            try:
                assert b"" == client.recv(1)
                refused += 1
                client.close()
            except TimeoutError:
                clients.append(client)
            assert len(clients) <= share
        for client in clients:
            client.close()
        server.wait_for_log("^close", count=len(clients))
        eventually(lambda: served(server))


def served(server: ServerProcess) -> bool:
    """Whether a client is let in."""
    with connect(server.address) as client:
        client.sendall(b"in\nexit\n")
        try:
            return b"" == read_all(client) and b"in\n" in server.output
        except ConnectionError:
            return False
