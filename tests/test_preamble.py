"""PROXY header and access rules before the handler, on real servers in every mode; TLS has tests of its own."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
from test_modes import MODES

from stdserve import LineHandler, Options, serving
from stdserve.access import Admission
from stdserve.preamble import Preamble
from stdserve.proxy import encode_v1, encode_v2
from stdserve.steps import run
from stdserve.waiting import Waiter

BEHIND_A_PROXY = ["--proxy-protocol", "--format", "peer"]
HERE = ("192.0.2.80", 80)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> list[str]:
    """The words for a mode."""
    return MODES[request.param]


@contextlib.contextmanager
def behind_a_proxy(*words: str) -> Iterator[ServerProcess]:
    """A server that wants a PROXY header; it must end well."""
    with ServerProcess(*BEHIND_A_PROXY, *words) as server:
        yield server
        assert 0 == server.stop()
        assert [] == [line for line in server.log if "Traceback" in line or re.match("error .* child ", line)]


@pytest.mark.parametrize("header", [encode_v1, encode_v2], ids=["v1", "v2"])
def test_the_header_says_who_the_client_is(mode: list[str], header: Callable[..., bytes]) -> None:
    """In the output and in the log, of either family; what comes with it in one segment is not lost."""
    with behind_a_proxy(*mode) as server:
        for source, here in ((("192.0.2.1", 1111), HERE), (("2001:db8::1", 2222), ("2001:db8::2", 80))):
            assert b"" == exchange(server.address, header(source, here) + b"one\nexit\n")
        server.wait_for_output(b"192.0.2.1:1111 one\n")
        server.wait_for_output(b"[2001:db8::1]:2222 one\n")
        server.wait_for_log(r"^open 192\.0\.2\.1:1111")
        server.wait_for_log(r"^close \[2001:db8::1\]:2222 reason=exit lines=1")


def test_a_proxy_that_speaks_for_itself_is_the_client(mode: list[str]) -> None:
    """LOCAL, UNKNOWN; one that says nothing more is a health check, and no line in the log."""
    with behind_a_proxy(*mode) as server:
        assert b"" == exchange(server.address, b"PROXY UNKNOWN\r\n")
        for header in (b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"):
            assert b"" == exchange(server.address, header + b"one\n")
        server.wait_for_log(r"^close 127\.0\.0\.1:\d+ reason=eof lines=1", count=2)
        assert 2 == len([line for line in server.log if line.startswith("close")])


@pytest.mark.parametrize(
    "words", [b"hello\n", b"PROXY TCP4 nonsense\r\n", b"\r\n\r\n\0\r\nQUIT\n\x99"], ids=["none", "v1", "v2"]
)
def test_what_is_no_header_ends_the_session_at_once(mode: list[str], words: bytes) -> None:
    """One line in the log, nothing in the output, and the next client is served."""
    with behind_a_proxy(*mode) as server:
        with contextlib.suppress(ConnectionError):
            assert b"" == exchange(server.address, words, half_close=False)
        server.wait_for_log(r"^reject 127\.0\.0\.1:\d+ reason=proxy: ")
        assert b"" == exchange(server.address, encode_v1(("192.0.2.1", 1), HERE) + b"one\n")
        server.wait_for_output(b"one\n")
        assert b"192.0.2.1:1 one\n" == server.output


def test_a_header_that_does_not_come_in_time_ends_the_session(mode: list[str]) -> None:
    """Silent or dripping, the deadline is one for the whole; in mode single others wait for no longer."""
    with behind_a_proxy(*mode, "--handshake-timeout", "500ms") as server:
        with connect(server.address) as silent, connect(server.address) as dripping:
            stop = threading.Event()

            def drip() -> None:
                with contextlib.suppress(OSError):
                    for byte in encode_v1(("192.0.2.1", 1), HERE)[:-2]:
                        dripping.sendall(bytes([byte]))
                        if stop.wait(0.1):
                            break

            thread = threading.Thread(target=drip)
            thread.start()
            for client in (silent, dripping):
                with contextlib.suppress(ConnectionError):
                    assert b"" == read_all(client)
            stop.set()
            thread.join(DEADLINE)
        server.wait_for_log(r"^reject .* reason=handshake_timeout: ", count=2)
        assert b"" == exchange(server.address, encode_v2(("192.0.2.1", 1), HERE) + b"one\n")
        server.wait_for_output(b"192.0.2.1:1 one\n")


def test_who_only_looks_whether_the_port_is_open_is_no_line_in_the_log(mode: list[str]) -> None:
    """Load balancers do so every second; a debug line has it."""
    with behind_a_proxy(*mode, "--log-level", "debug") as server:
        connect(server.address).close()
        reset(connect(server.address))
        server.wait_for_log(r"^error 127\.0\.0\.1:\d+: ", count=2)
        assert b"" == exchange(server.address, encode_v1(("192.0.2.1", 1), HERE) + b"one\n")
        server.wait_for_output(b"one\n")
        assert not [line for line in server.log if line.startswith("reject")]


def test_the_word_of_others_is_not_taken(mode: list[str]) -> None:
    """By default that of this machine is, and no other's."""
    with behind_a_proxy(*mode, "--proxy-allow-from", "192.0.2.0/24") as server:
        with contextlib.suppress(ConnectionError):
            assert b"" == exchange(server.address, encode_v1(("192.0.2.1", 1), HERE) + b"one\n")
        server.wait_for_log(r"^reject 127\.0\.0\.1:\d+ reason=proxy$")
        assert b"" == server.output


def test_the_rules_are_about_the_client_not_its_proxy(mode: list[str]) -> None:
    """Refused after the header, before anything else."""
    with behind_a_proxy(*mode, "--deny", "192.0.2.0/25", "--deny", "127.0.0.1") as server:
        for host, reply in (("192.0.2.1", b"refused\n"), ("192.0.2.200", b"let in\n")):
            with contextlib.suppress(ConnectionError):
                assert b"" == exchange(server.address, encode_v1((host, 1), HERE) + reply)
        server.wait_for_output(b"192.0.2.200:1 let in\n")
        server.wait_for_log(r"^reject 192\.0\.2\.1:1 reason=denied: ")
        assert b"refused" not in server.output


@pytest.mark.parametrize("where", ["--deny", "--denyfile"])
def test_without_a_proxy_an_address_is_refused_before_a_session_begins(
    mode: list[str], where: str, tmp_path: Path
) -> None:
    """By a network in the command line or in a file; others are let in."""
    (tmp_path / "networks").write_text("# not these\n127.0.0.2/31\n")
    word = "127.0.0.2/31" if where == "--deny" else str(tmp_path / "networks")
    with ServerProcess(*mode, where, word) as server:
        with socket.socket() as client:
            client.settimeout(DEADLINE)
            client.bind(("127.0.0.2", 0))
            client.connect(server.address)
            with contextlib.suppress(ConnectionError):
                assert b"" == read_all(client)
        server.wait_for_log(r"^reject 127\.0\.0\.2:\d+ reason=denied")
        assert b"" == exchange(server.address, b"one\n")
        server.wait_for_output(b"one\n")
        assert 0 == server.stop()


def test_each_clients_address_has_its_share_behind_a_proxy() -> None:
    """In every mode that can hold two sessions; whoever is over it may read why, and a place comes free."""
    for name in ("thread", "fork"):
        words = ["--max-conns-per-ip", "1", "--overflow", "reply"]
        with behind_a_proxy(*MODES[name], *words) as server:
            header = encode_v2(("192.0.2.1", 1), HERE)
            with connect(server.address) as first:
                first.sendall(header + b"one\n")
                server.wait_for_output(b"one\n")
                assert b"busy, try again later\n" == exchange(server.address, header, half_close=False)
                assert b"" == exchange(server.address, encode_v2(("192.0.2.2", 1), HERE) + b"two\n")
                server.wait_for_log(r"reason=address: ")

            def served(header: bytes = header) -> bool:
                return exchange(server.address, header + b"three\n") == b""

            eventually(served)
            server.wait_for_output(b"three\n")


def test_a_stop_ends_sessions_whose_header_has_not_come(mode: list[str]) -> None:
    """At once, not at their deadline."""
    patience = ["--handshake-timeout", "10m", "--graceful-timeout", "10m"]
    with behind_a_proxy(*mode, *patience) as server, connect(server.address) as silent:
        silent.sendall(b"PROXY")
        # It has begun: another that is done has come after it, or (mode single) waits behind it.
        if "single" not in mode:
            assert b"" == exchange(server.address, encode_v1(("192.0.2.1", 1), HERE) + b"one\n")
        assert 0 == server.stop()
        with contextlib.suppress(ConnectionError):
            assert b"" == read_all(silent)


def test_the_handler_has_the_header_and_what_it_carried() -> None:
    """As session.proxy, TLVs and all; client_address is what the header said."""

    class Tells(LineHandler):
        def line_received(self, line: str) -> str:
            assert self.session.proxy is not None
            return f"{self.client_address[:2]} {self.session.proxy.version} {self.session.proxy.tlvs}"

    with serving(Tells, proxy_protocol=True) as server:
        header = encode_v2(("192.0.2.1", 1), HERE, tlvs=[(0xE0, b"own")])
        assert b"('192.0.2.1', 1) 2 ((224, b'own'),)\n" == exchange(server.address, header + b"?\n")


def test_an_unmodified_handler_finds_the_client_where_it_looks() -> None:
    """In client_address; the socket stands at the first byte after the header."""

    class Tells(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100) + str(self.client_address[0]).encode())

    with serving(Tells, proxy_protocol=True) as server, connect(server.address) as client:
        client.sendall(encode_v1(("192.0.2.1", 1), HERE) + b"hello ")
        client.shutdown(socket.SHUT_WR)
        assert b"hello 192.0.2.1" == read_all(client)


def test_a_peer_that_has_gone_is_not_waited_for() -> None:
    """There is nobody to read why it is refused."""
    options, waiter = Options(proxy_protocol=True), Waiter()
    preamble = Preamble(options, Admission(options, 1, waiter, socket.socket.close))
    started = time.monotonic()
    with socket.socket() as gone:
        run(preamble._part(gone, b"", started + 2 * DEADLINE))
    assert time.monotonic() - started < DEADLINE
    waiter.close()
