"""Many clients at once, hostile ones among them, by the numbers of the faults that socketserver has with those."""

from __future__ import annotations

import contextlib
import gc
import re
import resource
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
from test_faults import THEIRS, Silent, linux, port_of, script, stock
from test_mixin import LOCAL, readable, running
from test_stop import begin, ended, read_exactly

from stdserve import EchoHandler, LineHandler, Options, ThreadServer, create_server
from stdserve.listeners import BACKLOG, effective_backlog
from stdserve.sink import open_sink
from stdserve.streams import SessionSocket

CAP = 50


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Allow this process 2,000 clients, or as many as it may have and the kernel lets wait; give their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 10_000 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 4096)), hard))
    count = min(2000, max(soft, min(most, 4096)) - 200, effective_backlog(BACKLOG) + CAP - 10)
    if count < 500:
        pytest.skip(f"{count} clients are no crowd")
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def status(server: ServerProcess, field: str) -> int:
    """A number from a process's status; sizes are in kB (Linux)."""
    text = Path(f"/proc/{server.pid}/status").read_text()
    return int(text.partition(f"\n{field}:")[2].split()[0])


@linux
def test_18_the_standard_library_has_a_thread_for_every_silent_client() -> None:
    """As many as come."""
    before = stock_threads()  # of other tests, which may end meanwhile
    with stock(THEIRS, Silent, request_queue_size=200) as server:
        with contextlib.ExitStack() as clients:
            for _ in range(200):
                clients.enter_context(connect(server.server_address))
            eventually(lambda: stock_threads() >= 200)
        eventually(lambda: stock_threads() <= before)


def stock_threads() -> int:
    """How many threads of this process are those of a session of the standard library's."""
    return len([thread for thread in threading.enumerate() if "process_request_thread" in thread.name])


@linux
@pytest.mark.parametrize("overflow", ["wait", "close", "reply"])
def test_18_two_thousand_silent_clients_have_fifty_threads(overflow: str, many_descriptors: int) -> None:
    """And no memory to speak of. Who comes then waits, or is refused as the policy says, until they go."""
    words = [
        "-b",
        "127.0.0.1:0",
        "-m",
        str(CAP),
        "--overflow",
        overflow,
        "--overflow-message",
        "full",
        "--log-level",
        "info",
    ]
    with ServerProcess(*words, port=None) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server.address)) for _ in range(CAP)]
        server.wait_for_log("^open", count=CAP)
        threads, memory = status(server, "Threads"), status(server, "VmRSS")
        assert threads <= CAP + 2
        silent += [stack.enter_context(connect(server.address)) for _ in range(many_descriptors - CAP)]
        if overflow == "wait":
            fast = stack.enter_context(connect(server.address))
            fast.sendall(b"patient\nexit\n")
            fast.settimeout(0.2)
            with pytest.raises(TimeoutError):
                fast.recv(1)
            fast.settimeout(DEADLINE)
        else:
            told = {"close": {b""}, "reply": {b"full\n", b""}}[overflow]  # more than so many refusals are not read out
            assert told >= {read_all(client) for client in silent[CAP:]}
            assert {"close": b"", "reply": b"full\n"}[overflow] == refusal(server.address)
        assert threads == status(server, "Threads")
        assert status(server, "VmRSS") - memory < 10_000
        for client in silent:
            client.close()
        if overflow == "wait":
            assert b"" == read_all(fast)
            server.wait_for_output(b"patient\n")
        eventually(lambda: b"" == refusal(server.address, b"fast\nexit\n") and b"fast\n" in server.output)
        assert CAP + 2 >= status(server, "Threads")
        server.wait_for_log("^overload ended")
        assert 0 == server.stop()
        # More than twice where the machine is so busy that a second passes before all who waited are gone.
        assert len([line for line in server.log if line.startswith("overload")]) < 20


def refusal(address: Any, said: bytes = b"") -> bytes:
    """What a client reads that is not let in, or that is done."""
    with connect(address) as client, contextlib.suppress(ConnectionError):
        client.sendall(said)
        return read_all(client)
    return b""


@linux
def test_21_ten_thousand_connections_leave_nothing_behind() -> None:
    """No object that the garbage collector knows of, be it of the server, of a session or of a thread."""

    class Greets(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    def come(times: int) -> None:
        for _ in range(times):
            with connect(server.server_address) as client:
                client.sendall(b"one\n")
                assert b"one\n" == client.recv(10)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # no TIME_WAIT for each

    with running(create_server(Greets, bind="127.0.0.1:0", max_conns=20)) as server, ThreadPoolExecutor(4) as pool:
        counts = []
        for times in (100, 2400):
            list(pool.map(come, [times] * 4))
            eventually(lambda: not server.sessions)
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[1] - counts[0] < 200


# The child and the system.


def test_30_what_a_handler_prints_in_a_child_comes_out() -> None:
    """The standard library's child leaves by os._exit and takes along what stands in its buffer."""
    code = (
        "import socketserver, sys, stdserve.servers\n"
        "class Prints(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        print('printed')\n"
        "base = getattr(stdserve.servers, sys.argv[1], socketserver.ForkingTCPServer)\n"
        "with base(('127.0.0.1', 0), Prints) as server:\n"
        "    print(server.server_address[1], file=sys.stderr, flush=True)\n"
        "    server.handle_request()\n"
        "    server._close_at_end = True\n"
        "    server.shutdown() if sys.argv[1] == 'ForkServer' else None\n"
        "    server.service_actions()\n"
    )
    for name, printed in (("theirs", b""), ("ForkServer", b"printed\n")):
        with script(code, name, env={"PYTHONUNBUFFERED": ""}) as server:
            assert b"" == exchange(port_of(server), b"", half_close=False)
            assert 0 == server.wait()
            assert printed == server.output


def test_30_a_system_without_fork_is_told_so() -> None:
    """By a ConfigError that names the flag, before anything is opened; the other modes run."""
    code = (
        "import os\n"
        "del os.fork\n"
        "import stdserve\n"
        "from stdserve import ConfigError, create_server, serve, serving\n"
        "def beside(**settings):\n"
        "    with serving(**settings): pass\n"
        "for settings in ({'mode': 'fork'}, {'workers': 2}):\n"
        "    for start in (create_server, serve, beside):\n"
        "        try:\n"
        "            start(**settings)\n"
        "        except ConfigError as error:\n"
        "            print(str(error).partition(',')[0])\n"
        "print(hasattr(stdserve, 'ForkServer'), sorted(stdserve.MODES))\n"
        "for mode in stdserve.MODES:\n"
        "    with serving(mode=mode): pass\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    refused = "--mode fork needs os.fork\n" * 3 + "--workers needs os.fork\n" * 3
    assert (refused + "False ['event', 'single', 'thread']\n", "") == (result.stdout, result.stderr)


# Clients that never end.


def drip(client: socket.socket) -> None:
    """Send a byte now and then until the connection is cut."""
    pause = threading.Event()
    with contextlib.suppress(ConnectionError):
        while not readable(client, 0):
            client.sendall(b"x")
            pause.wait(0.05)


def test_36_a_timeout_for_each_read_never_ends_a_client_that_drips() -> None:
    """The standard library's: a second, and another one later it is still there."""

    class Waits(socketserver.StreamRequestHandler):
        timeout = 1.0

        def handle(self) -> None:
            self.rfile.readline()

    with stock(THEIRS, Waits) as server, connect(server.server_address) as client:
        dripping = begin(drip, client)
        assert not ended(dripping, 2)
        client.shutdown(socket.SHUT_RDWR)
        assert ended(dripping)


@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event"])
def test_36_who_drips_and_who_never_reads_are_cut_at_the_total_deadline(mode: str, tmp_path: Path) -> None:
    """Half a second for the whole session, whatever it does; the next client is served."""
    (tmp_path / "mine.py").write_text(
        "import socketserver\n"
        "class Talks(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        while self.rfile.readline() == b'talk\\n':\n"
        "            for _ in range(1000):\n"
        "                self.wfile.write(b'x' * 100_000)\n"
        "from stdserve import LineHandler\n"
        "class TalksInLines(LineHandler):\n"
        "    def line_received(self, line):\n"
        "        self.wfile.write(b'x' * 10_000_000 * (line == 'talk'))\n"
    )
    handler = "mine:TalksInLines" if mode == "event" else "mine:Talks"
    words = ["--mode", mode, "--handler", handler, "--session-timeout", "500ms", "--idle-timeout", "30s"]
    with ServerProcess(*words, cwd=tmp_path) as server:
        with connect(server.address) as dripping, connect(server.address) as deaf:
            started = time.monotonic()
            deaf.sendall(b"talk\n")
            drip(dripping)
            server.wait_for_log("^close .* reason=session_timeout", count=2)
            assert time.monotonic() - started < DEADLINE / 2
        assert b"" == exchange(server.address, b"\n")
        server.wait_for_log("^close .* reason=(closed|empty_line)")
        assert 0 == server.stop()


# Threads without a global lock.


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Let threads take turns as often as they can where they have to; without a global lock they need not."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Crowded(LineHandler):
    """Counts how many of its kind are at work, all in all and by address."""

    lock = threading.Lock()
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def connection_made(self) -> None:
        with self.lock:
            for key in ("all", self.client_address[0]):
                self.now[key] += 1
                self.most[key] = max(self.most[key], self.now[key])

    def line_received(self, line: str) -> str:
        return line.upper()

    def connection_lost(self, reason: Any) -> None:
        with self.lock:
            for key in ("all", self.client_address[0]):
                self.now[key] -= 1


def test_49_the_books_are_right_after_two_thousand_sessions_at_once(eager_switching: None) -> None:
    """Caps hold at every moment, and when all have gone no session, seat, thread or piece of work is left over.

    What several threads write is: ``sessions`` (each its own key), the seats and the pool's counts (under locks), the
    flags of the stop (written whole). A lost update in any of them leaves a trace in these books. With a global lock
    threads have to be made to take turns in the middle of one; without it (3.13t and later) they meet by themselves.
    """
    Crowded.now.clear()
    Crowded.most.clear()
    refused = 0

    def come(number: int) -> int:
        """20 sessions from one of two addresses; return how many of them were refused."""
        refused = 0
        for _ in range(20):
            with socket.socket() as client:
                client.settimeout(DEADLINE)
                client.bind((f"127.0.0.{1 + number % 2}", 0))
                try:
                    client.connect(server.server_address)
                    client.sendall(b"one\n")
                    reply = read_exactly(client, 4)
                    assert reply in (b"ONE\n", b"")
                    refused += reply == b""
                    if number % 5 == 0:
                        reset(client)
                except ConnectionError:
                    refused += 1
        return refused

    with running(create_server(Crowded, bind="127.0.0.1:0", max_conns=12, max_conns_per_ip=8)) as server:
        with ThreadPoolExecutor(32) as pool:
            refused = sum(pool.map(come, range(100)))
        eventually(lambda: not server.sessions)
        assert isinstance(server, ThreadServer)
        eventually(lambda: not server.session_threads.unfinished)
        assert 12 >= len(server.session_threads)
        assert server._admission._addresses is not None
        assert {} == server._admission._addresses._counts  # type: ignore[union-attr]
    assert 0 == sum(Crowded.now.values())
    assert Crowded.most["all"] <= 12
    assert max(Crowded.most["127.0.0.1"], Crowded.most["127.0.0.2"]) <= 8
    assert refused < 2000


def test_49_lines_of_many_threads_are_whole_and_none_is_lost(eager_switching: None, tmp_path: Path) -> None:
    """All that they share is the sink; a pool of eight threads, half of the clients over and over with new ones."""
    sent = [
        [b"%d-%d " % (client, number) + b"x" * (number * 37 % 5000) for number in range(200)] for client in range(16)
    ]
    sink = open_sink(str(tmp_path / "out"))
    with running(create_server(EchoHandler, bind="127.0.0.1:0", max_conns=8, sink=sink)) as server:

        def say(lines: list[bytes]) -> None:
            for part in (lines[:50], lines[50:100], lines[100:]):
                data = b"\n".join(part) + b"\n"
                assert data == exchange(server.server_address, data)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(say, sent))
    sink.close()
    assert sorted(line for lines in sent for line in lines) == sorted((tmp_path / "out").read_bytes().splitlines())


class Watched(SessionSocket):
    """A connection that notes which threads set its timeout, and which of them has its session."""

    setters: list[tuple[Watched, int]]
    owners: dict[Watched, int]

    def settimeout(self, value: float | None) -> None:
        self.setters.append((self, threading.get_ident()))
        super().settimeout(value)

    def setblocking(self, flag: bool) -> None:
        self.setters.append((self, threading.get_ident()))
        super().setblocking(flag)


def test_49_no_thread_sets_the_timeout_of_a_socket_that_another_one_uses(eager_switching: None) -> None:
    """cpython gh-153935 is about that. From the moment a session has its thread, only that sets timeouts.

    Whoever cuts it or ends its input from outside does so by ``shutdown``, which the system call makes safe. Here are
    idle, dripping, deaf and resetting clients, replies, refusals, a session timeout, and a stop in the middle.
    """
    Watched.setters, Watched.owners = [], {}

    class Talks(LineHandler):
        def connection_made(self) -> None:
            Watched.owners[self.request] = threading.get_ident()

        def line_received(self, line: str) -> str:
            return line * 1000

    class Server(ThreadServer):
        def get_request(self) -> Any:
            request, client_address = super().get_request()
            return Watched.adopt(request), client_address

    def come(number: int) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError), connect(server.server_address) as client:
            client.sendall((b"one\n", b"exi", b"exit", b"half a line")[number % 4])
            if number % 3 == 0:
                client.settimeout(0.2)
                client.recv(10)
            elif number % 3 == 1:
                reset(client)
            else:
                drip(client)

    settings = Options(idle_timeout=0.1, session_timeout=0.4, linger_timeout=0.1, max_conns=16, overflow="reply")
    server = Server(LOCAL, Talks, options=settings)
    with ThreadPoolExecutor(24) as pool:
        with running(server):
            coming = [pool.submit(come, number) for number in range(120)]
            for each in coming[:80]:
                each.result(DEADLINE)
        for each in coming:
            each.result(DEADLINE)
    assert len(Watched.owners) > 20
    strangers = [
        (sock, ident) for sock, ident in Watched.setters if sock in Watched.owners and ident != Watched.owners[sock]
    ]
    assert [] == strangers


# The list.


def test_every_fault_has_a_test_by_its_number() -> None:
    """Rows 10, 13 and 46 are about TLS, and have theirs in its files."""
    names = [
        name
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"def test_((?:\d\d_)+)", path.read_text())
    ]
    tested = {int(number) for name in names for number in name.split("_") if number}
    assert [] == sorted(set(range(1, 50)) - {10, 13, 46} - tested)
