"""A client that decides where its bytes are cut."""

from __future__ import annotations

import os
import select
import socket
import socketserver
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from authority import Authority
from hypothesis import given
from hypothesis import strategies as st
from processes import DEADLINE, reset

from stdserve import EchoHandler, SendError, serving
from stdserve.errors import SendTimeout
from stdserve.testing import SplitClient, split


class Reads(socketserver.BaseRequestHandler):
    """Notes what each read returns; each test makes a subclass with a list of its own."""

    reads: list[bytes]

    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.reads.append(data)
        self.request.sendall(b"bye\n")


def reads() -> Any:
    """A Reads with an empty list."""
    return type("Fresh", (Reads,), {"reads": []})


@given(st.binary(max_size=50), st.lists(st.integers(-5, 60)))
def test_a_split_loses_nothing_and_cuts_where_it_is_told(data: bytes, at: list[int]) -> None:
    """No piece is empty; each begins at a position that was given, but the first."""
    pieces = split(data, at)
    assert data == b"".join(pieces)
    assert b"" not in pieces
    starts = [sum(map(len, pieces[:number])) for number in range(1, len(pieces))]
    assert sorted({position for position in at if 0 < position < len(data)}) == starts


PLACES = ["127.0.0.1:0", "[::1]:0", "*:0", "unix:@stdserve-pieces-{pid}"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the other end has read")
@pytest.mark.parametrize("place", PLACES)
def test_each_piece_is_a_read_of_its_own(place: str) -> None:
    """However fast they come, and however slow the server is."""
    handler = reads()
    data = b"one\ntwo\nthree\n" * 5
    with serving(handler, bind=place.format(pid=os.getpid())) as server:
        client = server.client()
        client.send_split(data, at=[1, 5, 9, 10])
        client.send_pieces([b"x" * 60000, b"y", b"z" * 60000])
        assert b"bye\n" == client.finish()
    assert split(data, [1, 5, 9, 10]) == handler.reads[:5]
    assert [b"x", b"y", b"z"] == list(dict.fromkeys(piece[:1] for piece in handler.reads[5:]))
    assert all(1 == len(set(piece)) for piece in handler.reads[5:])


def test_each_piece_is_a_read_over_tls_too(authority: Authority) -> None:
    """A record of its own, at least."""
    handler = reads()
    pair = authority.pair()
    with serving(handler, tls_cert=pair.certfile, tls_key=pair.keyfile) as server:
        client = server.client(tls=authority.client(), tls_name="localhost")
        client.send_pieces([b"one", b"two\n", b"three"])
        assert b"bye\n" == client.finish()
    assert [b"one", b"two\n", b"three"] == handler.reads


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the other end has read")
def test_a_server_that_does_not_read_is_told() -> None:
    """Within the read timeout."""
    gate = threading.Event()

    class Waits(EchoHandler):
        def connection_made(self) -> None:
            assert gate.wait(DEADLINE)

    with serving(Waits) as server:
        client = server.client(read_timeout=0.1)
        with pytest.raises(SendTimeout, match="the server does not read"):
            client.send_pieces([b"one\n"])
        gate.set()


def test_without_a_read_timeout_it_waits() -> None:
    """As long as it takes."""
    with serving(EchoHandler) as server, SplitClient(server.address) as client:
        client.send_split(b"one\ntwo\n", [4])
        assert "one" == client.receive_line()


def test_a_server_that_has_gone_is_told() -> None:
    """Whether it goes before the first piece or with one unread."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        early, late = SplitClient(listener.getsockname()), SplitClient(listener.getsockname())
        reset(listener.accept()[0])
        assert [early.sock] == select.select([early.sock], [], [], DEADLINE)[0]
        with pytest.raises(SendError):
            early.send_pieces([b"one\n"] * 2)
        peer = listener.accept()[0]

        def go_when_it_comes() -> None:
            assert [peer] == select.select([peer], [], [], DEADLINE)[0]
            reset(peer)

        gone = pool.submit(go_when_it_comes)
        with pytest.raises(SendError):
            late.send_pieces([b"one\n"] * 2)
        gone.result(DEADLINE)
        early.close()
        late.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the other end has read")
def test_another_machines_reading_is_beyond_us() -> None:
    """There, what its system has taken is enough: as in a network namespace of its own, it is not listed here."""
    with socket.create_server(("127.0.0.1", 0)) as listener, SplitClient(listener.getsockname()) as client:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stdserve.pieces._unread", lambda *_: None)
            with SplitClient(listener.getsockname(), read_timeout=DEADLINE) as other:
                other.send_pieces([b"nobody", b"reads"])
        assert client.read_timeout is None
