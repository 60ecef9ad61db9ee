"""One connection: what is known of it, and how it is closed without losing the last words."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import DEADLINE, connect, eventually, read_all, reset

from stdserve.protocol import EndReason
from stdserve.sessions import Session, half_close, has_said_all, linger
from stdserve.steps import run


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection: our end, as accept() returned it, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener, connect(listener.getsockname()) as theirs:
        listener.settimeout(DEADLINE)
        ours, _ = listener.accept()
        with ours:
            ours.settimeout(DEADLINE)
            yield ours, theirs


def test_a_session_begins_with_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    """Who it is, since when, nothing counted yet, and closed for no reason of ours."""
    ours, theirs = pair
    before = time.monotonic()
    session = Session(ours, theirs.getsockname())

    assert ours is session.request
    assert theirs.getsockname() == session.client_address
    assert f"127.0.0.1:{theirs.getsockname()[1]}" == session.peer
    assert (0, 0, EndReason.CLOSED) == (session.lines, session.received, session.reason)
    assert 0 <= session.seconds <= time.monotonic() - before


def test_a_session_knows_how_long_it_has_lasted(pair: tuple[socket.socket, socket.socket]) -> None:
    """Time goes on while it is open."""
    session = Session(pair[0], ("127.0.0.1", 1))
    first = session.seconds

    eventually(lambda: session.seconds > first)


def test_a_sessions_input_can_be_ended(pair: tuple[socket.socket, socket.socket]) -> None:
    """What has arrived is read first, then EOF; replies still go out, and the reason is the handler's to say."""
    ours, theirs = pair
    session = Session(ours, theirs.getsockname())
    theirs.sendall(b"last")
    eventually(lambda: len(ours.recv(10, socket.MSG_PEEK)) == 4)
    session.end_input()

    assert [b"last", b""] == [ours.recv(10), ours.recv(10)]
    ours.sendall(b"bye")
    assert b"bye" == theirs.recv(10)
    assert session.cut_for is None


def test_a_session_can_be_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    """Both directions end at once, whatever waits for them; the first reason is the one that counts."""
    ours, theirs = pair
    session = Session(ours, theirs.getsockname())
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(ours.recv, 10)
        session.cut(EndReason.SESSION_TIMEOUT)
        assert b"" == read.result(DEADLINE)
    session.cut(EndReason.CUT)

    assert EndReason.SESSION_TIMEOUT is session.cut_for
    assert b"" == theirs.recv(10)
    with pytest.raises(BrokenPipeError):
        ours.sendall(b"x")


def test_a_session_takes_no_attributes_by_mistake(pair: tuple[socket.socket, socket.socket]) -> None:
    """A counter misspelt is an error, and thousands of sessions stay small."""
    with pytest.raises(AttributeError):
        Session(pair[0], None).recieved = 1  # type: ignore[attr-defined]


def test_closing_the_reading_half_is_eof_for_the_handler_only(pair: tuple[socket.socket, socket.socket]) -> None:
    """The reader wakes up with EOF, and can still reply."""
    ours, theirs = pair
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(ours.recv, 10)
        assert half_close(ours, socket.SHUT_RD)
        assert b"" == read.result(DEADLINE)
    ours.sendall(b"bye")

    assert b"bye" == theirs.recv(10)


def test_closing_the_sending_half_is_eof_for_the_peer(pair: tuple[socket.socket, socket.socket]) -> None:
    """And what it still sends arrives."""
    ours, theirs = pair

    assert half_close(ours, socket.SHUT_WR)
    assert b"" == theirs.recv(10)
    theirs.sendall(b"more")
    assert b"more" == ours.recv(10)


def test_half_of_a_connection_that_is_gone_cannot_be_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    """A reset, or a socket closed already, is told by False."""
    ours, theirs = pair
    reset(theirs)
    with contextlib.suppress(ConnectionResetError):
        ours.recv(1)

    assert not half_close(ours, socket.SHUT_WR)
    ours.close()
    assert not half_close(ours, socket.SHUT_RDWR)


def test_a_half_closed_tls_connection_still_speaks_tls(pair: tuple[socket.socket, socket.socket]) -> None:
    """SSLSocket.shutdown would drop TLS and send the reply as plain text (cpython gh-124618)."""

    def wrap(end: socket.socket, side: int) -> ssl.SSLSocket:
        context = ssl.SSLContext(side)
        # Or OpenSSL 3 takes the EOF that we make for an attack, and sends no more.
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
        # Without a certificate: ciphers that need none.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("aNULL:@SECLEVEL=0")
        return context.wrap_socket(end, server_side=side == ssl.PROTOCOL_TLS_SERVER)

    with ThreadPoolExecutor(1) as pool:
        wrapping = pool.submit(wrap, pair[0], ssl.PROTOCOL_TLS_SERVER)
        theirs = wrap(pair[1], ssl.PROTOCOL_TLS_CLIENT)
        ours = wrapping.result(DEADLINE)
    with ours, theirs:
        assert half_close(ours, socket.SHUT_RD)
        assert b"" == ours.recv(10)
        ours.sendall(b"bye")
        assert b"bye" == theirs.recv(10)


def test_the_last_words_arrive_although_input_was_not_read(pair: tuple[socket.socket, socket.socket]) -> None:
    """Closing with unread input is answered by the kernel with a reset, for which the peer would lose the reply."""
    ours, theirs = pair

    def talk() -> bytes:
        theirs.sendall(b"x" * 10_000_000)
        theirs.shutdown(socket.SHUT_WR)
        return read_all(theirs)

    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(talk)
        ours.recv(1)
        ours.sendall(b"bye")
        half_close(ours, socket.SHUT_WR)
        run(linger(ours, DEADLINE))
        ours.close()
        assert b"bye" == reply.result(DEADLINE)


def test_lingering_ends_with_the_peer(pair: tuple[socket.socket, socket.socket]) -> None:
    """As soon as it closes, however long it might have taken."""
    ours, theirs = pair
    theirs.sendall(b"unread")
    theirs.close()
    before = time.monotonic()
    run(linger(ours, 10 * DEADLINE))

    assert time.monotonic() - before < DEADLINE
    assert b"" == ours.recv(1)


def test_a_silent_peer_is_lingered_for_only_so_long(pair: tuple[socket.socket, socket.socket]) -> None:
    """A peer that keeps the connection open costs the seconds, and no more."""
    before = time.monotonic()
    run(linger(pair[0], 0.1))

    assert 0.1 <= time.monotonic() - before < DEADLINE


def test_a_peer_that_drips_does_not_put_off_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    """The seconds are for all reads together, not for each."""
    ours, theirs = pair
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.01):
            theirs.sendall(b"x")

    with ThreadPoolExecutor(1) as pool:
        dripping = pool.submit(drip)
        before = time.monotonic()
        try:
            run(linger(ours, 0.2))
        finally:
            stop.set()
        dripping.result(DEADLINE)

    assert 0.2 <= time.monotonic() - before < DEADLINE


def test_a_peer_that_floods_is_read_only_so_far(pair: tuple[socket.socket, socket.socket]) -> None:
    """The bytes are bounded too, within one read."""
    ours, theirs = pair
    theirs.sendall(b"x" * 200_000)
    run(linger(ours, 10 * DEADLINE, 100_000))
    ours.settimeout(DEADLINE)
    theirs.shutdown(socket.SHUT_WR)

    assert 100_000 - 65_536 <= len(read_all(ours)) <= 100_000


def test_lingering_is_over_at_once_where_nothing_is_left_to_do(pair: tuple[socket.socket, socket.socket]) -> None:
    """No bytes or no time granted, a reset, a socket that is closed: none of them waits or raises."""
    ours, theirs = pair
    before = time.monotonic()
    run(linger(ours, 10 * DEADLINE, 0))
    run(linger(ours, 0))
    reset(theirs)
    run(linger(ours, 10 * DEADLINE))
    ours.close()
    run(linger(ours, 10 * DEADLINE))

    assert time.monotonic() - before < DEADLINE


def test_what_was_asked_of_a_session_holds_for_the_socket_it_moves_to() -> None:
    """A drain or a cut that comes just before the handshake is not lost."""
    first, second = socket.socketpair()
    third, fourth = socket.socketpair()
    with first, second, third, fourth:
        session = Session(first, ("192.0.2.1", 1))
        session.end_input()
        session.move_to(third)
        assert third is session.request
        assert b"" == third.recv(1)
        session.cut(EndReason.CUT)
        session.move_to(first)
        assert b"" == second.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_peer_that_has_finished_sending_is_known_by_that(pair: tuple[socket.socket, socket.socket]) -> None:
    """Whether what it sent has been read or not; not where it may go on, or where the system does not tell."""
    ours, theirs = pair
    theirs.sendall(b"one")
    assert not has_said_all(ours)
    theirs.shutdown(socket.SHUT_WR)
    eventually(lambda: has_said_all(ours))
    assert b"one" == read_all(ours)
    assert has_said_all(ours)
    here, there = socket.socketpair()
    with here, there:
        there.close()
        assert not has_said_all(here)
