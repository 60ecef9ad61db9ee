"""The output: whole lines, in every mode, to every kind of file; and what happens when it takes no more."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from processes import DEADLINE, ServerProcess, connect, eventually, exchange, read_all
from test_modes import MODES

QUIET = ("--log-level", "warning", "--bind", "127.0.0.1:0")
CLIENTS = 16
LINES = 20_000


def lines_of(client: int) -> list[bytes]:
    """20,000 lines of 1 to 20,000 bytes, mostly short, each with its client and its number."""
    chance = random.Random(client)
    lines = []
    for number in range(LINES):
        stem = b"%x %x " % (client, number)
        lines.append(stem[: chance.choice((1, 2))] if number % 97 == 0 else stem)
        if number % 11 == 1:
            size = chance.choice((60, 500, 4095, 4096, 4097, 20_000) if number % 3 == 0 else (20, 60, 200))
            lines[-1] = stem.ljust(size, b"abcdefgh"[client % 8 : client % 8 + 1])
    return lines


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "single"])
def test_sixteen_clients_through_a_pipe_arrive_whole_and_in_order(mode: str) -> None:
    """No line is torn, lost or doubled, and each client's lines keep their order."""
    sent = [lines_of(client) for client in range(CLIENTS)]
    with ServerProcess(*MODES[mode], "--format", "peer", stdout=subprocess.PIPE) as server:
        received = bytearray()
        reader = threading.Thread(target=lambda: received.extend(server.pipe.read()))
        reader.start()

        def send(client: int) -> bytes:
            with connect(server.address) as connection:
                peer = "%s:%d" % connection.getsockname()
                connection.sendall(b"\n".join(sent[client]) + b"\nexit\n")
                assert b"" == read_all(connection)
                return peer.encode()

        with ThreadPoolExecutor(CLIENTS) as pool:
            peers = list(pool.map(send, range(CLIENTS)))
        assert 0 == server.stop()
        reader.join(DEADLINE)

    found: dict[bytes, list[bytes]] = {peer: [] for peer in peers}
    for line in bytes(received).splitlines():
        peer, _, text = line.partition(b" ")
        found[peer].append(text)
    for client, peer in enumerate(peers):
        assert sent[client] == found[peer], f"client {client}"


def test_sixteen_clients_into_a_file_arrive_whole_with_workers(tmp_path: Path) -> None:
    """The kernel keeps the writes of all processes to one open file apart; no lock is needed."""
    path = tmp_path / "lines"
    path.write_bytes(b"kept\n")
    with ServerProcess(*MODES["fork_workers"], "-o", str(path)) as server:
        sent = [b"".join(b"%d %04d\n" % (n, i) for i in range(5000)) for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda lines: exchange(server.address, lines), sent))
        assert 0 == server.stop()
        assert b"" == server.output

    first, *lines = path.read_bytes().splitlines()
    assert b"kept" == first
    assert sorted(b"".join(sent).splitlines()) == sorted(lines)


def test_a_terminal_gets_the_lines_and_is_not_driven_by_them() -> None:
    """What a client sends is seen, never obeyed."""
    terminal, side = pty.openpty()
    with ServerProcess(stdout=side) as server:
        os.close(side)
        exchange(server.address, b"\x1b]0;owned\x07 ping\n")
        assert rb"\x1b]0;owned\x07 ping" + b"\r\n" == os.read(terminal, 4096)
    os.close(terminal)


def test_format_peer_puts_the_address_before_each_line() -> None:
    """So that lines can be told apart by client."""
    with ServerProcess("--format", "peer") as server:
        with connect(server.address) as client:
            client.sendall(b"one\ntwo\nexit\n")
            read_all(client)
            peer = b"%s:%d" % (b"127.0.0.1", client.getsockname()[1])
        assert peer + b" one\n" + peer + b" two\n" == server.output


def test_format_json_is_one_object_a_line() -> None:
    """With time, peer and line; controls are JSON's escapes, undecodable bytes \\xNN."""
    with ServerProcess("--format", "json") as server:
        exchange(server.address, "ключ \x1b \x9b".encode() + b" \xff\nsecond\n")
        assert 0 == server.stop()
        rows = [json.loads(line) for line in server.output.splitlines()]

        assert ["ключ \x1b \x9b \\xff", "second"] == [row["line"] for row in rows]
        assert {"time", "peer", "line"} == set(rows[0])
        assert re.fullmatch(r"127\.0\.0\.1:\d+", rows[0]["peer"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", rows[0]["time"])
        assert "ключ".encode() in server.output
        assert "\x9b".encode() not in server.output


def test_raw_passes_bytes_through() -> None:
    """The line as it came, with a LF."""
    with ServerProcess("--raw") as server:
        exchange(server.address, b"\x1b[31m \xff\x00\r\nend")
        assert 0 == server.stop()
        assert b"\x1b[31m \xff\x00\nend\n" == server.output


def test_formats_take_the_messages_of_chunk_framing_too() -> None:
    """One object, or one prefix a line, for each message."""
    with ServerProcess("--framing", "chunk", "--format", "json") as server:
        exchange(server.address, b"one\r\ntwo")
        assert 0 == server.stop()
        assert "one\r\ntwo" == json.loads(server.output)["line"]
    with ServerProcess("--framing", "chunk", "--format", "peer") as server:
        exchange(server.address, b"one\r\ntwo")
        assert 0 == server.stop()
        assert re.fullmatch(rb"127\S+ one\r\n127\S+ two\n", server.output)


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_that_goes_away_stops_the_server_with_one_line(mode: str) -> None:
    """As with `| head -1`: exit code 1, what and why in one line, no traceback."""
    with ServerProcess(*MODES[mode], *QUIET, stdout=subprocess.PIPE) as server:
        address = listening_address(server)
        exchange(address, b"first\n")
        assert b"first\n" == server.pipe.read(6)
        server.pipe.close()
        exchange_until_refused(address)
        assert 1 == server.wait()
        assert ["stdserve: cannot write to standard output: its reader has gone"] == server.log


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_stops_the_server_with_one_line(mode: str) -> None:
    """/dev/full says what a full disk says."""
    with open("/dev/full", "wb") as full, ServerProcess(*MODES[mode], *QUIET, stdout=full.fileno()) as server:
        exchange_until_refused(listening_address(server))
        assert 1 == server.wait()
        assert ["stdserve: cannot write to standard output: No space left on device"] == server.log


def listening_address(server: ServerProcess) -> tuple[str, int]:
    """Where a server listens that does not say so, as the kernel tells."""

    def ports() -> list[int]:
        inodes = set()
        for fd in Path(f"/proc/{server.pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(fd))
            except FileNotFoundError:
                continue
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]

    eventually(ports, "a listening socket")
    return "127.0.0.1", ports()[0]


def exchange_until_refused(address: tuple[str, int]) -> None:
    """Send a line; the server may end before, while or after it takes the client."""
    with contextlib.suppress(ConnectionError):
        exchange(address, b"second\n")


def test_a_slow_reader_slows_the_clients_and_costs_no_memory() -> None:
    """With nobody reading, what fits in the buffers between is all that a client can send."""
    with ServerProcess(stdout=subprocess.PIPE) as server:
        with connect(server.address) as client:
            client.settimeout(1.0)
            before = resident(server.pid)
            sent = 0
            with pytest.raises(TimeoutError):
                while sent < 200_000_000:
                    sent += client.send(b"x" * 63 + b"\n" + b"y" * 63 + b"\n")
            assert sent < 50_000_000
            assert resident(server.pid) - before < 10_000_000
            # It goes on as soon as somebody reads.
            reader = threading.Thread(target=drain, args=(server.pipe,))
            reader.start()
            client.settimeout(DEADLINE)
            client.sendall(b"\nexit\n")
            assert b"" == read_all(client)
        assert 0 == server.stop()
        reader.join(DEADLINE)


def drain(stream: IO[bytes]) -> None:
    """Read to the end and forget."""
    while stream.read(1 << 16):
        pass


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_second_signal_cuts_a_server_whose_output_is_stuck() -> None:
    """The first waits for the session that waits for the reader; the second does not."""
    for mode in MODES:
        with ServerProcess(*MODES[mode], stdout=subprocess.PIPE) as server, connect(server.address) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                while True:
                    client.sendall(b"x" * 64_000 + b"\n")
            server.process.send_signal(signal.SIGTERM)
            if not mode.startswith(("single", "event")):  # there the loop that would say so is the one that is stuck
                server.wait_for_log("^drain sessions=1")
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(0.3)
            assert 0 == server.stop()


def test_a_hundred_megabytes_without_a_newline_leave_memory_flat() -> None:
    """The first max_line bytes are printed, the session ends, the rest is thrown away as it comes."""
    with ServerProcess() as server:
        exchange(server.address, b"warm up")
        before = resident(server.pid)
        peak = [before]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak.append(resident(server.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with connect(server.address) as client:
                block = b"x" * 1_000_000
                for _ in range(100):
                    client.sendall(block)
        except ConnectionError:
            pass  # a lingering close has its bounds
        finally:
            done.set()
            watcher.join()
        server.wait_for_log("close .* reason=line_too_long lines=1 ")
        assert max(peak) - before < 10_000_000
        assert b"warm up\n" + b"x" * 65536 + b"\n" == server.output


def test_standard_output_closed_at_the_start_is_told_at_once() -> None:
    """Its number would go to a socket, and lines to a client."""
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'stdserve', '0'])"
    with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
        assert 3 == server.wait()
        assert ["stdserve: cannot write to standard output: Bad file descriptor"] == server.log
