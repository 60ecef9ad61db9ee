"""A handler's run over a socket pair: no server, no time, the same each time."""

from __future__ import annotations

import logging
import os
import select
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdserve import (
    ChunkHandler,
    ConfigError,
    EchoHandler,
    EndReason,
    LineHandler,
    Options,
    PrintHandler,
)
from stdserve.errors import PeerError
from stdserve.testing import HandlerRun, run_handler, split


class Upper(LineHandler):
    """The README's handler."""

    def line_received(self, line: str) -> str:
        return line.upper()


class Reads(socketserver.BaseRequestHandler):
    """Answers with the size of each read, in decimal, and of 0 at the end."""

    def handle(self) -> None:
        sizes: list[int] = []
        while not sizes or sizes[-1]:
            sizes.append(len(self.request.recv(65536)))
        self.request.sendall(" ".join(map(str, sizes)).encode())


class Files(socketserver.StreamRequestHandler):
    """The same for lines, by way of files."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"%d\n" % len(line))


def test_a_run_says_what_was_sent_and_printed_and_why_it_ended() -> None:
    """Of whichever handler of ours."""
    assert HandlerRun(b"ONE\nTWO\n", b"", EndReason.EOF) == run_handler(Upper, b"one\r\ntwo")
    assert HandlerRun(b"", b"one\n", EndReason.EXIT) == run_handler(PrintHandler, [b"one\nex", b"it\nmore"])
    assert HandlerRun(b"one\n", b"one\n", EndReason.EMPTY_LINE) == run_handler(EchoHandler, b"one\n\ntwo\n")
    assert HandlerRun(b"", b"", EndReason.EOF) == run_handler(EchoHandler, [])


def test_the_lines_of_a_run_are_what_a_client_would_read() -> None:
    """Without their ends; what is unfinished is one, too."""
    assert ["one", "two\udcff", "", "three"] == HandlerRun(b"one\r\ntwo\xff\n\nthree", b"", EndReason.EOF).lines
    assert [] == HandlerRun(b"", b"", EndReason.EOF).lines
    assert ["ONE"] == run_handler(Upper, b"one").lines


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9), max_size=9))
def test_each_piece_is_one_read(pieces: list[bytes]) -> None:
    """But empty ones, which would be the end."""
    sizes = [len(piece) for piece in pieces if piece]
    assert sizes + [0] == [int(word) for word in run_handler(Reads, pieces).sent.split()]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["one", "two three", "ж"]), max_size=5), st.lists(st.integers(0, 60)))
def test_how_the_bytes_are_cut_changes_nothing(lines: list[str], at: list[int]) -> None:
    """What a handler's own test may look like."""
    data = "".join(line + "\n" for line in lines).encode()
    assert [line.upper() for line in lines] == run_handler(Upper, split(data, at)).lines


def test_a_handler_by_files_gets_pieces_too() -> None:
    """And may ask for what only TCP has."""
    assert ["4", "4", "1"] == run_handler(Files, [b"o", b"ne\ntw", b"o\n", b"!"]).lines


def test_a_handler_that_takes_less_or_looks_first_is_not_misled() -> None:
    """The next piece comes after the last byte of this one, and one that waits with select finds it."""

    class Looks(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            buffer = bytearray(2)
            for _ in range(6):
                assert [self.request] == select.select([self.request], [], [], 0)[0]
                assert b"" != self.request.recv(10, socket.MSG_PEEK)
                size = self.request.recv_into(buffer)
                self.request.sendall(b"%d" % size)
            assert b"" == self.request.recv(10)

    assert b"212122" == run_handler(Looks, [b"abc", b"def", b"ghij"]).sent


def test_large_pieces_and_replies_stop_nothing() -> None:
    """Neither side of the pair holds a megabyte."""
    pieces = [b"x" * 99 + b"\n", b"y" * (1 << 20) + b"\n", b"z\n"]
    assert HandlerRun(b"".join(pieces), b"".join(pieces), EndReason.EOF) == run_handler(
        EchoHandler, pieces, max_line=2 << 20
    )


def test_what_a_handler_raises_comes_out() -> None:
    """And nothing is left open, nor a thread."""

    class Fails(Upper):
        def line_received(self, line: str) -> str:
            raise KeyError(line)

    threads = threading.active_count()
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with pytest.raises(KeyError, match="one"):
            run_handler(Fails, b"one\n")
    assert before == len(os.listdir("/dev/fd"))
    assert threads == threading.active_count()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(), EndReason.RESET),
        (TimeoutError(), EndReason.IDLE_TIMEOUT),
        (PeerError("denied", "not you"), EndReason.ERROR),
    ],
    ids=str,
)
def test_what_a_peer_is_to_blame_for_is_the_reason(error: Exception, reason: EndReason) -> None:
    """As in the log of a server."""

    class Blames(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise error

    assert reason is run_handler(Blames, b"").reason


def test_a_line_that_is_too_long_ends_it() -> None:
    """By whichever way it is read."""
    assert EndReason.LINE_TOO_LONG is run_handler(Upper, b"x" * 20, max_line=10).reason
    assert EndReason.LINE_TOO_LONG is run_handler(Files, b"x" * 20 + b"\n", max_line=10).reason


def test_a_client_that_stays_is_silent_until_a_timeout() -> None:
    """Of the options; an unfinished "exit" counts before."""
    assert EndReason.IDLE_TIMEOUT is run_handler(Upper, b"one\ntwo", stays=True, idle_timeout=0.1).reason
    assert EndReason.EXIT is run_handler(Upper, b"one\nexit", stays=True).reason


def test_a_handler_that_takes_no_more_gets_no_more() -> None:
    """It has shut its side, as a stop does."""

    class Shuts(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.shutdown(socket.SHUT_RD)
            self.request.sendall(self.request.recv(100))
            self.request.recv(100)

    assert b"one" == run_handler(Shuts, [b"one", b"two", b"three"]).sent


def test_a_handler_finds_what_it_looks_for_on_its_server() -> None:
    """Options, sink, sessions, and what the test puts there; the peer is whoever it says."""

    class Looks(LineHandler):
        def line_received(self, line: str) -> str:
            server: Any = self.server
            server.shutdown()
            assert isinstance(self.server, socketserver.BaseServer)
            assert server.RequestHandlerClass is Looks
            return f"{self.client_address} {server.greeting} {server.options.max_line} {server.forks}"

    result = run_handler(
        Looks, b"x", client_address=("192.0.2.1", 4711), options=Options(max_line=99), attributes={"greeting": "hello"}
    )
    assert ["('192.0.2.1', 4711) hello 99 False"] == result.lines
    with pytest.raises(ConfigError, match="max_lines"):
        run_handler(Looks, b"x", max_lines=1)


def test_the_format_of_what_is_printed_is_that_of_the_options() -> None:
    """With the peer's address, say."""
    assert (
        b"192.0.2.1:5 one\n"
        == run_handler(PrintHandler, b"one\n", client_address=("192.0.2.1", 5), format="peer").printed
    )
    assert b"one" == run_handler(ChunkHandler, [b"one"], framing="chunk").printed


def test_a_handler_of_others_runs_too(caplog: pytest.LogCaptureFixture) -> None:
    """http.server's."""

    class Hello(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with caplog.at_level(logging.DEBUG):
        result = run_handler(Hello, [b"GET / HT", b"TP/1.1\r\nHost: x\r", b"\n\r\nGET / HTTP/1.0\r\n\r\n"])
    assert 2 == result.sent.count(b"\r\n\r\nhello")
    assert (b"", EndReason.CLOSED) == (result.printed, result.reason)
    assert [] == caplog.records


def test_a_copy_of_the_socket_reads_on() -> None:
    """What it takes is not counted, but the end comes."""

    class Copies(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with self.request.dup() as copy:
                copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                copy.sendall(copy.recv(1))
                buffer = bytearray(10)
                copy.sendall(buffer[: copy.recv_into(buffer)])

    assert b"one" == run_handler(Copies, [b"one", b"two"]).sent
