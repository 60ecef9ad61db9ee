"""The scenarios of the protocol, over every mode, address family, TLS and PROXY, against real processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from authority import Authority
from processes import ServerProcess, connect, eventually, exchange, read_all, reset

from stdserve.proxy import encode_v2

MODES = {
    "single": ["--mode", "single"],
    "thread": ["--mode", "thread"],
    "fork": ["--mode", "fork"],
    "thread_workers": ["--mode", "thread", "--workers", "2"],
    "event": ["--mode", "event"],
    "event_workers": ["--mode", "event", "--workers", "2"],
    "fork_workers": ["--mode", "fork", "--workers", "2"],
}
BINDS = {"ipv4": "127.0.0.1:0", "ipv6": "[::1]:0", "unix": "unix:sock"}
NAMES = itertools.count()


#: Every mode, family, with and without TLS, with and without a proxy in front; workers add nothing to a session.
COMBINATIONS = [
    f"{mode}-{family}-{security}-{way}"
    for mode in MODES
    for family in BINDS
    for security in ("plain", "tls")
    for way in ("direct", "proxy")
    if not mode.endswith("_workers") or (security, way) == ("plain", "direct") or family == "ipv4"
]


class Running:
    """A server and the way to reach it: by which family, with TLS or not, through a proxy or not."""

    def __init__(self, process: ServerProcess, combination: str, authority: Authority) -> None:
        self.process = process
        self.mode, self.family, self.security, self.way = combination.split("-")
        process.wait_for_log("^listening on ")
        hosts = {"ipv4": "127.0.0.1", "ipv6": "::1"}
        unix = self.family == "unix"
        self.address: Any = f"unix:{process.folder}/sock" if unix else (hosts[self.family], process.port)
        self._context = authority.client()
        self._ports = itertools.count(1)
        self._sources: dict[socket.socket, int] = {}

    def connect(self) -> socket.socket:
        """A connection of which the first line is still to be said."""
        client, port = connect(self.address), next(self._ports)
        if self.way == "proxy":
            client.sendall(encode_v2(("192.0.2.1", port), ("192.0.2.2", 80)))
        if self.security == "tls":
            client = self._context.wrap_socket(client, server_hostname="localhost")
        if self.way == "proxy":
            self._sources[client] = port
        return client

    def exchange(self, data: bytes, *, half_close: bool = True) -> bytes:
        """Send ``data``, say that it was all, and return the reply up to EOF."""
        with self.connect() as client:
            client.sendall(data)
            if half_close:
                with contextlib.suppress(OSError):  # it may have closed already, which what follows tells
                    # Of the bare connection: an SSLSocket would go on without TLS (cpython gh-124618).
                    socket.socket.shutdown(client, socket.SHUT_WR)
            return read_all(client)

    def peer_of(self, client: socket.socket) -> str:
        """The client as the log names it, as a pattern."""
        if client in self._sources:
            return rf"192\.0\.2\.1:{self._sources[client]}"
        return peer_of(client)

    def opened(self) -> int:
        """How many sessions the log has seen, once all of them are over; what is asked before a client connects."""

        def lines(word: str) -> int:
            return len([line for line in self.process.log if line.startswith(word)])

        eventually(lambda: lines("open ") == lines("close "))
        return lines("open ")

    def wait_for_session(self, client: socket.socket, opened: int) -> None:
        """Return when one more than that has been seen, of this client."""
        self.process.wait_for_log("^open ", opened + 1)
        self.process.wait_for_log(rf"^open {self.peer_of(client)}( tls=\S+)?$")


@pytest.fixture(scope="module", params=COMBINATIONS)
def running(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Running]:
    """One server for all the scenarios of a combination; it must end well."""
    mode, family, security, way = request.param.split("-")
    words = ["--bind", BINDS[family], *MODES[mode], "--max-line", "5000"]
    if security == "tls":
        pair = authority.pair()
        words += ["--tls-cert", pair.certfile, "--tls-key", str(pair.keyfile)]
    if way == "proxy":
        words += ["--proxy-protocol"]
    with ServerProcess(*words, port=None) as process:
        yield Running(process, request.param, authority)
        assert 0 == process.stop()
        assert [] == [line for line in process.log if "Traceback" in line or line.startswith("error")]


@pytest.fixture
def name() -> bytes:
    """A word that no other test sends."""
    return b"client-%d" % next(NAMES)


def test_lines_are_printed_and_exit_ends_the_session(running: Running, name: bytes) -> None:
    """Both line ends count, the lines come out in order, what follows exit does not."""
    assert b"" == running.exchange(name + b" 1\n" + name + b" 2\r\n exit \nafter " + name + b"\n")

    running.process.wait_for_output(name + b" 1\n" + name + b" 2\n")
    assert b"after " + name not in running.process.output


def test_a_client_that_says_exit_sees_the_server_hang_up(running: Running, name: bytes) -> None:
    """The client keeps its side open; EOF comes all the same."""
    assert b"" == running.exchange(name + b"\nexit\n", half_close=False)


def test_exit_without_a_newline_is_answered_after_a_pause(running: Running) -> None:
    """The lecture's telnet habit: four bytes, then waiting for the server."""
    assert b"" == running.exchange(b"exit", half_close=False)


def test_a_blank_line_ends_the_session(running: Running, name: bytes) -> None:
    """Blank means blank after strip()."""
    assert b"" == running.exchange(name + b"\n \t\r\nafter " + name, half_close=False)
    running.process.wait_for_output(name + b"\n")
    assert b"after " + name not in running.process.output


def test_what_came_without_a_newline_before_eof_is_a_line(running: Running, name: bytes) -> None:
    """The lecture's clients never send a newline."""
    running.exchange(b"ping " + name)
    running.process.wait_for_output(b"ping " + name + b"\n")


def test_exit_inside_a_line_is_ordinary_text(running: Running, name: bytes) -> None:
    """A line that reads "process exited" is a line like any other."""
    running.exchange(b"process exited " + name + b"\nexit code 0 " + name + b"\n")
    running.process.wait_for_output(b"process exited " + name + b"\nexit code 0 " + name + b"\n")


def test_control_characters_and_bad_bytes_are_shown_not_obeyed(running: Running, name: bytes) -> None:
    """NUL, ESC, CR, DEL, C1 and invalid UTF-8 come out as \\xNN; tab stays."""
    running.exchange(name + b" \x00 \x1b[2J a\rb \x7f \xc2\x9b \xff\xfe \t.\n")
    running.process.wait_for_output(name + rb" \x00 \x1b[2J a\x0db \x7f \xc2\x9b \xff\xfe " + b"\t.\n")


def test_characters_cut_between_segments_stay_whole(running: Running, name: bytes) -> None:
    """600 Cyrillic letters, cut in the middle of one, which kills the lecture's server."""
    text = name + b" " + "ж".encode() * 600
    with running.connect() as client:
        send_at_once(client)
        client.sendall(text[: len(name) + 2])
        eventually(lambda: any("open" in line for line in running.process.log))
        client.sendall(text[len(name) + 2 :])
    running.process.wait_for_output(text + b"\n")


def test_bytes_one_at_a_time_give_the_same_lines(running: Running, name: bytes) -> None:
    """How TCP cuts the stream changes nothing."""
    with running.connect() as client:
        send_at_once(client)
        for byte in name + b" one\r\n" + name + " два\n".encode() + b"exit\r\n":
            client.sendall(bytes([byte]))
        assert b"" == read_all(client)
    running.process.wait_for_output(name + b" one\n" + name + " два\n".encode())


def test_a_line_that_is_too_long_is_cut_and_ends_the_session(running: Running, name: bytes) -> None:
    """The first max_line bytes are printed; the rest is discarded, and the client sees a clean end."""
    line = (name + b" ").ljust(5000, b"x")
    assert b"" == running.exchange(line + b"y" * 100_000 + b"\nafter " + name + b"\n")

    running.process.wait_for_output(line + b"\n")
    assert b"y" * 10 not in running.process.output
    running.process.wait_for_log(r"close .* reason=line_too_long lines=1 ")


def test_a_client_that_resets_disturbs_nobody(running: Running, name: bytes) -> None:
    """What it sent is printed, nothing is complained of, the next client is served."""
    client = running.connect()
    client.sendall(name + b" whole\n" + name + b" unfinished")
    running.process.wait_for_output(name + b" whole\n")
    reset(client)
    running.process.wait_for_output(name + b" unfinished\n")
    running.exchange(b"next " + name)
    running.process.wait_for_output(b"next " + name + b"\n")


def test_a_browser_gets_a_page_and_its_request_is_printed(running: Running, name: bytes) -> None:
    """A request line of HTTP, then headers, then the blank line that ends the session."""
    request = b"GET /" + name + b" HTTP/1.1\r\nHost: here\r\n\r\n"
    reply = running.exchange(request, half_close=False)

    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    running.process.wait_for_output(b"GET /" + name + b" HTTP/1.1\nHost: here\n")


def test_a_silent_client_keeps_nobody_waiting(running: Running, name: bytes) -> None:
    """Except in mode single, where the next client is served when the first one is done."""
    opened = running.opened()
    with running.connect() as silent:
        running.wait_for_session(silent, opened)
        if running.mode == "single":
            with connect(running.address) as second:
                second.sendall(b"exit\n")
                second.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    second.recv(1)
            silent.close()
        assert b"" == running.exchange(b"served " + name + b"\nexit\n", half_close=False)
    running.process.wait_for_output(b"served " + name + b"\n")


def test_the_log_tells_each_session_from_open_to_close(running: Running, name: bytes) -> None:
    """One line each, with the peer, the reason and the counts."""
    opened = running.opened()
    with running.connect() as client:
        peer = running.peer_of(client)
        running.wait_for_session(client, opened)
        client.sendall(name + b"\n" + name + b"\nexit\n")
        read_all(client)
    size = 2 * len(name) + 7
    running.process.wait_for_log(rf"^close {peer} reason=exit lines=2 bytes={size} seconds=\d+\.\d\d\d$")


def send_at_once(client: socket.socket) -> None:
    """Let nothing that is written wait for what was written before, where it would."""
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def peer_of(client: socket.socket) -> str:
    """The client as the server's log names it, as a pattern."""
    if client.family == socket.AF_UNIX:
        return f"unix:uid={os.getuid()},pid={os.getpid()}" if sys.platform == "linux" else "local"
    host, port = client.getsockname()[:2]
    return rf"\[{host}\]:{port}" if ":" in host else f"{host}:{port}"


@pytest.mark.parametrize("mode", MODES)
def test_sigterm_stops_at_once_with_idle_clients_connected(mode: str) -> None:
    """Exit code 0, and what an idle client has sent is printed."""
    with ServerProcess(*MODES[mode]) as server:
        with connect(server.address) as idle:
            server.wait_for_log("open " + peer_of(idle))
            idle.sendall(b"unfinished")
            # In the kernel's buffers when the signal comes, or already read: either way it is not lost.
            assert 0 == server.stop()
            assert b"" == read_all(idle)
        assert b"unfinished\n" == server.output


@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_stops_it(mode: str) -> None:
    """SIGINT goes to supervisor, workers and children alike; exit code 0, nobody is left."""
    import os
    import signal

    with ServerProcess(*MODES[mode], start_new_session=True) as server, connect(server.address) as idle:
        server.wait_for_log("open " + peer_of(idle))
        os.killpg(server.pid, signal.SIGINT)
        assert 0 == server.wait()
        assert b"" == read_all(idle)
        with pytest.raises(ProcessLookupError):
            os.killpg(server.pid, 0)


@pytest.mark.parametrize("mode", MODES)
def test_an_idle_timeout_ends_a_silent_session(mode: str) -> None:
    """What was unfinished is printed first."""
    with ServerProcess(*MODES[mode], "--idle-timeout", "300ms") as server:
        assert b"" == exchange(server.address, b"and then", half_close=False)
        assert b"and then\n" == server.output
        server.wait_for_log("close .* reason=idle_timeout lines=1 bytes=8 ")


@pytest.mark.parametrize("mode", ["single", "thread", "fork"])
def test_once_serves_one_client_and_ends(mode: str) -> None:
    """A client that takes its time is not hurried."""
    with ServerProcess("--mode", mode, "--once") as server:
        with connect(server.address) as client:
            server.wait_for_log("open " + peer_of(client))
            client.sendall(b"one\n")
            server.wait_for_output(b"one\n")
            client.sendall(b"two\nexit\n")
            assert b"" == read_all(client)
        assert 0 == server.wait()
        assert b"one\ntwo\n" == server.output


@pytest.mark.parametrize("mode", MODES)
def test_chunk_framing_takes_each_read_for_a_message(mode: str) -> None:
    """As it came, without a newline of ours; exit counts anywhere."""
    with ServerProcess(*MODES[mode], "--framing", "chunk") as server:
        with connect(server.address) as client:
            client.sendall(b"one")
            server.wait_for_output(b"one")
            client.sendall("д".encode()[:1])
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall("д".encode()[1:] + b" two\r\n")
            server.wait_for_output("oneд two\r\n".encode())
            client.sendall(b"process exited")
            assert b"" == read_all(client)
        assert 0 == server.stop()
        assert "oneд two\r\n".encode() == server.output
