"""The files of an accepted connection: bounded lines, timeouts that lose and poison nothing."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import DEADLINE

from stdserve.streams import LineTooLong, SessionReader, SessionSocket


@pytest.fixture
def pair() -> Iterator[tuple[SessionSocket, socket.socket]]:
    """A session's socket and its peer's."""
    ours, theirs = socket.socketpair()
    session = SessionSocket.adopt(ours)
    session.settimeout(DEADLINE)
    with session, theirs:
        yield session, theirs


Pair = tuple[SessionSocket, socket.socket]


def test_it_takes_the_place_of_the_accepted_socket(pair: Pair) -> None:
    """Same connection, same kind; the object it came from is closed."""
    session, peer = pair
    peer.sendall(b"hello")
    assert b"hello" == session.recv(10)
    assert (peer.family, peer.type, peer.proto) == (session.family, session.type, session.proto)


def test_only_files_for_reading_bytes_are_ours(pair: Pair) -> None:
    """Unbuffered, text and writing files are the standard library's."""
    session, peer = pair
    with session.makefile("rb") as reader, session.makefile("rb", 0) as raw, session.makefile("wb") as writer:
        assert isinstance(reader, SessionReader)
        assert not isinstance(raw, SessionReader)
        writer.write(b"one\n")
        writer.flush()
        assert b"one\n" == peer.recv(10)
        assert session.fileno() == reader.fileno()
    with session.makefile("r", encoding="utf-8") as text:
        peer.sendall("ж\n".encode())
        assert "ж\n" == text.readline()


def test_a_timeout_loses_nothing_and_poisons_nothing(pair: Pair) -> None:
    """A line begun before it is whole after it, be it read by readline or by read."""
    session, peer = pair
    session.settimeout(0.05)
    with session.makefile("rb", -1) as reader:
        ways: list[tuple[Callable[[], bytes], bytes]] = [
            (reader.readline, b"begun ended\n"),
            (lambda: reader.read(9), b"begun end"),
        ]
        for read, expected in ways:
            peer.sendall(b"begun ")
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    reader.readline()
            peer.sendall(b"ended\n")
            assert expected == read()
        assert b"ed\n" == reader.readline()
        peer.sendall(b"be")
        with pytest.raises(TimeoutError):
            reader.readline()
        assert b"b" == reader.read(1)
        peer.sendall(b"gun\nmore")
        peer.shutdown(socket.SHUT_WR)
        assert b"egun\nmore" == reader.read()
        assert b"" == reader.readline()


def test_a_line_longer_than_the_limit_is_refused_and_one_as_long_is_not(pair: Pair) -> None:
    """Without a bound of the caller's; with one, that bound holds."""
    session, peer = pair
    session.max_line = 10
    with session.makefile("rb", 16) as reader:
        peer.sendall(b"123456789\n" + b"1234567890x\n" + b"tail")
        assert b"123456789\n" == reader.readline()
        assert b"1234567890x\n" == reader.readline(100)
        peer.sendall(b"x" * 7 + b"\n")
        with pytest.raises(LineTooLong, match="more than 10 bytes"):
            reader.readline()
    assert issubclass(LineTooLong, ConnectionError)


def test_iterating_has_the_limit_too(pair: Pair) -> None:
    """`for line in rfile`, readlines."""
    session, peer = pair
    session.max_line = 3
    with session.makefile("rb", -1) as reader:
        peer.sendall(b"a\nbcdefg\n")
        lines = []
        with pytest.raises(LineTooLong):
            for line in reader:
                lines.append(line)
        assert [b"a\n"] == lines


@given(st.binary(max_size=200), st.lists(st.integers(0, 40) | st.none(), max_size=30), st.integers(1, 64))
def test_reads_and_bounded_lines_are_those_of_any_other_file(
    data: bytes, sizes: list[int | None], buffer_size: int
) -> None:
    """Whatever is asked for, in whatever order: as BytesIO would answer."""
    import io

    ours, theirs = socket.socketpair()
    with SessionSocket.adopt(ours) as session, theirs, session.makefile("rb", buffer_size) as reader:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        model = io.BytesIO(data)
        for number, size in enumerate(sizes):
            if number % 2:
                assert model.read(size) == reader.read(size)
            else:
                assert model.readline(-1 if size is None else size) == reader.readline(size)
        assert model.read() == reader.read()


def test_close_now_closes_though_files_are_open() -> None:
    """They would keep the connection; what reads on gets an error, and the number is free at once."""
    ours, theirs = socket.socketpair()
    session = SessionSocket.adopt(ours)
    reader, number = session.makefile("rb"), session.fileno()
    session.close()
    os.fstat(number)
    session.close_now()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert b"" == theirs.recv(1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        reader.readline()
    session.close_now()
    reader.close()
    theirs.close()


class Wrapped(socket.socket):
    """A listener with an accept of its own, as TLS on the listener has."""

    def accept(self) -> tuple[socket.socket, object]:
        accepted, address = super().accept()
        return accepted, ("told", address)


@pytest.mark.parametrize("kind", [socket.socket, Wrapped])
def test_an_accepted_connection_blocks_whatever_the_listener_does(kind: type[socket.socket]) -> None:
    """Its address is what accept gave, also where that is the user's own."""
    with kind() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            ready, _, _ = select.select([listener], [], [], DEADLINE)
            assert ready
            listener.setblocking(False)
            session, address = SessionSocket.accept_from(listener)
            with session:
                assert session.gettimeout() is None
                assert client.getsockname() == (address[1] if kind is Wrapped else address)
                assert (socket.AF_INET, socket.SOCK_STREAM) == (session.family, session.type)
                client.sendall(b"x")
                assert b"x" == session.recv(1)
