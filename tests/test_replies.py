"""Replies on their way: gathered, sent together, whole between threads."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import DEADLINE

from stdserve.replies import ReplyFile

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A session's socket and its peer's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE)
    with ours, theirs:
        yield ours, theirs


def test_replies_gather_until_they_are_flushed_or_too_many(pair: Pair) -> None:
    """Then they go out at once, in order; a limit of 0 holds nothing back."""
    session, theirs = pair
    theirs.settimeout(0)
    with ReplyFile(session, 10) as file:
        assert file.writable()
        assert session.fileno() == file.fileno()
        file.write(b"one ")
        file.write(memoryview(b"two "))
        with pytest.raises(BlockingIOError):
            theirs.recv(100)
        file.flush()
        assert b"one two " == theirs.recv(100)
        file.write(b"more than ten bytes")
        assert b"more than ten bytes" == theirs.recv(100)
        file.write(b"end")
    assert b"end" == theirs.recv(100)
    with pytest.raises(ValueError, match="closed"):
        file.write(b"late")
    with ReplyFile(session, 0) as file:
        file.write(b"now")
        assert b"now" == theirs.recv(100)


def test_no_reply_is_lost_or_torn_between_threads(pair: Pair) -> None:
    """Each of them writes whole lines and flushes now and then."""
    session, theirs = pair
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.00001)
    try:
        with ReplyFile(session, 1000) as file, ThreadPoolExecutor(5) as threads:

            def reply(name: int) -> None:
                for number in range(500):
                    file.write(b"%d %d\n" % (name, number))
                    if number % 7 == name:
                        file.flush()

            received = threads.submit(lambda: b"".join(iter(lambda: theirs.recv(65536), b"")))
            list(threads.map(reply, range(4)))
            file.flush()
            session.shutdown(socket.SHUT_WR)
            lines = received.result(DEADLINE).splitlines()
    finally:
        sys.setswitchinterval(before)
    for name in range(4):
        assert [b"%d %d" % (name, number) for number in range(500)] == [
            line for line in lines if line.startswith(b"%d " % name)
        ]
    assert 2000 == len(lines)
