"""The stop, by the numbers of the faults that it has in the standard library: from anywhere, in any order, complete."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from processes import (
    DEADLINE,
    ServerProcess,
    connect,
    descendants_of,
    eventually,
    exchange,
    read_all,
)
from test_faults import THEIRS, linux, listening, port_of, script
from test_mixin import LOCAL, Upper, both, running
from test_modes import MODES

from stdserve import LineHandler, ServerMixin, SingleServer, ThreadServer

#: Seconds in which what hangs for ever has not ended either.
WHILE = 0.7


def ended(thread: threading.Thread, seconds: float = DEADLINE) -> bool:
    """Whether a thread ends within so many seconds."""
    thread.join(seconds)
    return not thread.is_alive()


def begin(target: Callable[..., Any], *arguments: Any) -> threading.Thread:
    """Call something in a thread of its own."""
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def outcome(address: Any) -> bytes | str:
    """What a client with one line to say gets: the reply up to EOF, or a refusal; silence fails the test."""
    try:
        return exchange(address, b"one\n")
    except ConnectionError:
        return "refused"


# Clients that come while the server stops.


@both
def test_17_a_client_that_comes_while_the_server_stops_gets_all_or_nothing(server_class: type[ServerMixin]) -> None:
    """100 stops, 10 clients each at the same moment: a whole reply or a refusal, and nobody is left waiting."""
    seen: list[bytes | str] = []
    with ThreadPoolExecutor(10) as pool:
        for number in range(100):
            server = server_class(LOCAL, Upper)
            serving = begin(server.serve_forever)
            clients = [pool.submit(outcome, server.server_address) for _ in range(10)]
            if number % 2:
                clients[number % 10].result(DEADLINE)
            server.server_close()
            seen += [client.result(DEADLINE) for client in clients]
            assert ended(serving)
    assert {b"ONE\n", b"", "refused"} >= set(seen)
    assert 50 <= seen.count(b"ONE\n") < 1000


@pytest.mark.parametrize("mode", MODES)
def test_12_17_clients_keep_coming_while_all_processes_stop(mode: str, tmp_path: Path) -> None:
    """Each gets a whole reply or a refusal; no worker is kept by a client that another one took."""
    (tmp_path / "mine.py").write_text(
        "import stdserve\n"
        "class Upper(stdserve.LineHandler):\n"
        "    def line_received(self, line):\n"
        "        return line.upper()\n"
    )
    words = [*MODES[mode], "--handler", "mine:Upper", "--log-level", "error"]
    with ServerProcess(*words, cwd=tmp_path) as server:
        address = listening(server)
        seen: list[bytes | str] = []

        def keep_coming() -> None:
            while not seen or seen[-1] != "refused":
                seen.append(outcome(address))

        clients = [begin(keep_coming) for _ in range(4)]
        eventually(lambda: len(seen) > 20)
        started = time.monotonic()
        assert 0 == server.stop()
        assert time.monotonic() - started < DEADLINE / 2
        assert all(map(ended, clients))
        assert {b"ONE\n", b"", "refused"} >= set(seen)
        assert [] == server.log


# How long a stop takes, and what an idle server does.


def test_14_a_stop_does_not_wait_for_a_poll() -> None:
    """100 starts and stops, the 99th of 100 well below the half second that the standard library polls in."""
    assert any(stop_of(THEIRS(LOCAL, Upper), with_client=True) > 0.1 for _ in range(5))
    servers = ((SingleServer, ThreadServer)[number % 2](LOCAL, Upper) for number in range(100))
    times = [stop_of(server, with_client=number % 10 == 0) for number, server in enumerate(servers)]
    # On a quiet machine the 99th takes 2 ms.
    assert statistics.median(times) < 0.1
    assert sorted(times)[98] < 0.45


def stop_of(server: Any, with_client: bool) -> float:
    """Start a server, stop it, and return the seconds that ``shutdown`` took."""
    serving = begin(server.serve_forever)
    if with_client:
        assert b"ONE\n" == exchange(server.server_address, b"one")
    started = time.monotonic()
    server.shutdown()
    seconds = time.monotonic() - started
    server.server_close()
    assert ended(serving)
    return seconds


def wake_ups(pid: int) -> int:
    """How often the threads of a process and of its descendants have waited for something (Linux)."""
    status = [
        path for process in (pid, *descendants_of(pid)) for path in Path(f"/proc/{process}/task").glob("*/status")
    ]
    return sum(int(path.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for path in status)


@linux
def test_14_an_idle_server_sleeps() -> None:
    """Two seconds without a client: the standard library's loop wakes up four times, no process of ours does."""
    code = (
        "import socketserver, sys\n"
        "with socketserver.TCPServer(('127.0.0.1', 0), socketserver.BaseRequestHandler) as server:\n"
        "    print(server.server_address[1], file=sys.stderr, flush=True)\n"
        "    server.serve_forever()\n"
    )
    with contextlib.ExitStack() as stack:
        servers = {mode: stack.enter_context(ServerProcess(*words)) for mode, words in MODES.items()}
        theirs = stack.enter_context(script(code))
        exchange(port_of(theirs), b"")
        for server in servers.values():
            exchange(server.address, b"one\nexit\n")
            server.wait_for_log("^close")
        pids = {mode: server.pid for mode, server in servers.items()} | {"theirs": theirs.pid}
        least = woken_in_two_seconds(pids)
        for _ in range(2):  # what an earlier client left to be done may come late, once; a poll comes every time
            if any(least[mode] for mode in MODES):
                again = woken_in_two_seconds(pids)
                least = {mode: min(least[mode], again[mode]) for mode in pids}
    assert least.pop("theirs") >= 3
    assert dict.fromkeys(MODES, 0) == least


def woken_in_two_seconds(pids: dict[str, int]) -> dict[str, int]:
    """Return how often each was woken, once all but the one that polls were at rest."""
    before = settled({mode: pid for mode, pid in pids.items() if mode != "theirs"})
    before["theirs"] = wake_ups(pids["theirs"])
    threading.Event().wait(2)
    return {mode: wake_ups(pid) - before[mode] for mode, pid in pids.items()}


def settled(pids: dict[str, int]) -> dict[str, int]:
    """Return the ``wake_ups`` of each once there are no more of them."""
    counts = dict.fromkeys(pids, -1)

    def calm() -> bool:
        nonlocal counts
        before, counts = counts, {mode: wake_ups(pid) for mode, pid in pids.items()}
        threading.Event().wait(0.2)
        return before == counts

    eventually(calm, "the end of the start")
    return counts


# Ctrl-C.

INTERRUPTED = """
import signal, socketserver, sys, stdserve.servers
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us with &
class Greets(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"hello\\n")
        if self.rfile.readline() == b"much\\n":
            self.wfile.write(b"begun\\n")
            for _ in range(100):
                self.wfile.write(b"x" * 100_000)
class GreetsInLines(stdserve.LineHandler):
    def connection_made(self):
        self.reply("hello")
    def line_received(self, line):
        self.reply("begun")
        self.wfile.write(b"x" * 10_000_000)
        self.close()
base = getattr(stdserve.servers, sys.argv[1], socketserver.ThreadingTCPServer)
try:
    with base(("127.0.0.1", 0), GreetsInLines if sys.argv[1] == "EventServer" else Greets) as server:
        print(server.server_address[1], file=sys.stderr, flush=True)
        server.serve_forever()
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
"""


def test_22_ctrl_c_never_ends_the_standard_librarys_server_with_an_idle_client() -> None:
    """It waits for the thread of each client."""
    with script(INTERRUPTED, "theirs") as server, connect(port_of(server)) as client:
        assert b"hello\n" == client.recv(100)
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(WHILE)
        client.close()
        assert 0 == server.wait()


@linux
@pytest.mark.parametrize("name", ["SingleServer", "ThreadServer", "ForkServer", "EventServer"])
def test_22_ctrl_c_ends_a_program_of_ones_own_with_an_idle_client(name: str) -> None:
    """``serve_forever`` in a with-block, nothing else done about signals; no child is left behind (28)."""
    with script(INTERRUPTED, name) as server:
        with connect(port_of(server)) as client:
            assert b"hello\n" == client.recv(100)
            below = descendants_of(server.pid)
            started = time.monotonic()
            assert 0 == server.stop(signal.SIGINT)
            assert time.monotonic() - started < DEADLINE / 2
            assert b"" == read_all(client)
        assert "interrupted" == server.log[-1]
        assert [] == [pid for pid in below if Path(f"/proc/{pid}").exists()]


def read_exactly(client: socket.socket, size: int) -> bytes:
    """Return so many bytes."""
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


@linux
@pytest.mark.parametrize("name", ["ThreadServer", "ForkServer"])
def test_22_23_a_busy_session_gets_its_reply_out_before_ctrl_c_goes_on(name: str) -> None:
    """And a second Ctrl-C cuts it."""
    for presses in (1, 2):
        with script(INTERRUPTED, name) as server:
            with connect(port_of(server)) as idle, connect(port_of(server)) as busy:
                assert b"hello\n" == idle.recv(100)
                busy.sendall(b"much\n")
                assert b"hello\nbegun\n" == read_exactly(busy, 12)
                below = descendants_of(server.pid)
                server.process.send_signal(signal.SIGINT)
                assert b"" == read_all(idle)
                if presses == 2:
                    assert 0 == server.stop(signal.SIGINT)
                with contextlib.suppress(ConnectionError):
                    assert (len(read_all(busy)) == 100 * 100_000) == (presses == 1)
                assert 0 == server.wait()
            assert [] == [pid for pid in below if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("mode", MODES)
def test_22_ctrl_c_with_an_idle_client_is_obeyed_at_once(mode: str) -> None:
    """Half a second is the bar on a quiet machine, where it takes a tenth of that."""
    with ServerProcess(*MODES[mode]) as server, connect(server.address) as idle:
        server.wait_for_log("^open")
        started = time.monotonic()
        assert 0 == server.stop(signal.SIGINT)
        assert time.monotonic() - started < DEADLINE / 4
        assert b"" == read_all(idle)
        server.wait_for_log("^stopped finished=1 cut=0$")


# The end of the process.


def test_23_the_standard_librarys_daemon_threads_are_cut_in_the_middle_of_a_reply() -> None:
    """Those are what it offers to whom row 22 befell."""
    daemons = INTERRUPTED.replace("try:", "base.daemon_threads = True\ntry:", 1)
    with script(daemons, "theirs") as server, connect(port_of(server)) as client:
        client.sendall(b"much\n")
        assert b"hello\nbegun\n" == read_exactly(client, 12)
        assert 0 == server.stop(signal.SIGINT)
        with contextlib.suppress(ConnectionError):
            assert len(read_all(client)) < 100 * 100_000


#: Python does not buffer what is printed where this is set, and the fault lies in the buffer's lock.
BUFFERED = {"PYTHONUNBUFFERED": ""}

ENDS_OFTEN = """
import os, sys, stdserve.cli, stdserve.running, stdserve.children
class Prints(stdserve.LineHandler):
    def line_received(self, line):
        print(line)
        return line.upper()
sys.modules["mine"] = sys.modules["__main__"]
sys.argv[1:] = ["0", "--bind", "127.0.0.1", "--handler", "mine:Prints", *sys.argv[1:]]
for _ in range(25):
    pid = os.fork()
    if not pid:
        break
    print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=sys.stderr, flush=True)
else:
    sys.exit()
stdserve.cli.run()
"""


@linux
@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event", "thread_workers"])
def test_23_a_hundred_exits_under_load_are_clean(mode: str) -> None:
    """25 in each mode, with clients in the middle of their talk and handlers that print: no word, no half reply."""
    line = b"abc " * 5000 + b"\n"

    def talk(address: Any, enough: threading.Semaphore) -> int:
        whole = 0
        with contextlib.suppress(ConnectionError), connect(address) as client:
            while True:
                client.sendall(line)
                reply = read_exactly(client, len(line))
                if not reply:
                    break
                assert line.upper() == reply
                whole += 1
                enough.release()
        return whole

    with script(ENDS_OFTEN, *MODES[mode], env=BUFFERED) as server, ThreadPoolExecutor(4) as pool:
        for number in range(1, 26):
            found = server.wait_for_log(r"^listening on 127.0.0.1:(\d+) .* pid (\d+)", count=number)
            enough = threading.Semaphore(0)
            talks = [pool.submit(talk, ("127.0.0.1", int(found[1])), enough) for _ in range(4)]
            for _ in range(10):
                assert enough.acquire(timeout=DEADLINE)
            os.kill(int(found[2]), signal.SIGTERM)
            assert sum(each.result(DEADLINE) for each in talks) >= 10
            server.wait_for_log("^exit 0$", count=number)
        assert 0 == server.wait()
        words = "listening|open|close|drain|stopped|exit|overload"
        assert [] == [line for line in server.log if not re.match(words, line)]


@pytest.mark.parametrize("full", [False, True])
def test_23_a_session_that_prints_for_ever_spoils_no_exit(full: bool, tmp_path: Path) -> None:
    """Cut, it goes on; to a terminal or file, and into a pipe that nobody reads, which holds it in its middle."""
    (tmp_path / "mine.py").write_text(
        "import stdserve\n"
        "class Prints(stdserve.LineHandler):\n"
        "    def connection_made(self):\n"
        "        self.reply('begun'); self.wfile.flush()\n"
        "        while True: print('x' * 100)\n"
    )
    words = ["--handler", "mine:Prints", "--graceful-timeout", "10ms"]
    with contextlib.ExitStack() as stack:
        stdout = subprocess.PIPE if full else subprocess.DEVNULL
        servers = [
            stack.enter_context(ServerProcess(*words, cwd=tmp_path, stdout=stdout, env=BUFFERED)) for _ in range(6)
        ]
        for server in servers:
            for _ in range(3):
                assert b"begun\n" == read_exactly(stack.enter_context(connect(server.address)), 6)
        for server in servers:
            server.process.terminate()
        for server in servers:
            assert 0 == server.wait()
            assert "stopped finished=0 cut=3" == server.log[-1]


# From anywhere.

FROM_A_SIGNAL = """
import signal, socketserver, sys, stdserve.servers
base = getattr(stdserve.servers, sys.argv[1], socketserver.ThreadingTCPServer)
class Leaves(stdserve.LineHandler):
    def connection_made(self):
        self.close()
handler = Leaves if sys.argv[1] == "EventServer" else socketserver.StreamRequestHandler
with base(("127.0.0.1", 0), handler) as server:
    signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
    print(server.server_address[1], file=sys.stderr, flush=True)
    server.serve_forever()
"""


def test_31_shutdown_in_a_signal_handler_deadlocks_the_standard_library() -> None:
    """It waits for the loop that waits for it."""
    with script(FROM_A_SIGNAL, "theirs") as server:
        exchange(port_of(server), b"", half_close=False)
        server.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(WHILE)
        server.process.kill()


@pytest.mark.parametrize("name", ["SingleServer", "ThreadServer", "ForkServer", "EventServer"])
def test_31_shutdown_in_a_signal_handler_stops_ours(name: str) -> None:
    """As many programs do it."""
    with script(FROM_A_SIGNAL, name) as server:
        exchange(port_of(server), b"", half_close=False)
        assert 0 == server.stop()


# In any order.


def test_32_orders_that_the_standard_library_does_not_survive() -> None:
    """shutdown() before serve_forever() never returns; a second one makes the next serve_forever() return at once."""
    with THEIRS(LOCAL, Upper) as server:
        too_early = begin(server.shutdown)
        assert not ended(too_early, WHILE)
        begin(server.serve_forever, 0.01)
        assert ended(too_early)

    with THEIRS(LOCAL, Upper) as server:
        serving = begin(server.serve_forever, 0.01)
        assert b"ONE\n" == exchange(server.server_address, b"one")
        server.shutdown()
        server.shutdown()
        assert ended(serving)
        assert ended(begin(server.serve_forever, 0.01))


class Obeys(LineHandler):
    """A session that calls what its client says."""

    def line_received(self, line: str) -> str:
        if line != "one":
            getattr(self.server, line)()
        return line.upper()


class Overtaken(ThreadServer):
    """A server whose run ends while ``overtaken`` (a thread) has just seen that it serves."""

    overtaken: threading.Thread | None = None

    @property
    def _serving_thread(self) -> int | None:
        seen: int | None = self.__dict__.get("serving")
        if threading.current_thread() is self.overtaken:
            self.overtaken = None
            self.shutdown()
        return seen

    @_serving_thread.setter
    def _serving_thread(self, ident: int | None) -> None:
        self.__dict__["serving"] = ident


@pytest.mark.parametrize("late", ["request_stop", "shutdown", "server_close"])
def test_32_a_stop_that_comes_as_the_server_ends_neither_stops_its_next_run_nor_leaves_it_open(late: str) -> None:
    """However close the two are."""
    server = Overtaken(LOCAL, Upper)
    serving = begin(server.serve_forever)
    assert b"ONE\n" == exchange(server.server_address, b"one")
    stopper = threading.Thread(target=getattr(server, late))
    server.overtaken = stopper
    stopper.start()
    assert ended(stopper)
    assert ended(serving)
    if late == "server_close":
        assert -1 == server.socket.fileno()
        return
    with running(server):
        assert b"TWO\n" == exchange(server.server_address, b"two")


@both
def test_32_a_stop_ends_the_wait_of_handle_request(server_class: type[ServerMixin]) -> None:
    """Asked for before, meanwhile, or by the session that it serves; the next call waits again."""
    with server_class(LOCAL, Obeys) as server:
        server.shutdown()
        server.handle_request()
        for ask in (server.shutdown, server.request_stop, lambda: exchange(server.server_address, b"shutdown\n")):
            waiting = begin(server.handle_request)
            eventually(lambda: server._serving_thread is not None)
            assert waiting.is_alive()
            ask()
            assert ended(waiting)
        eventually(lambda: not server.sessions)
        waiting = begin(server.handle_request)
        assert b"ONE\n" == exchange(server.server_address, b"one")
        assert ended(waiting)


def test_32_34_a_session_that_begins_as_the_stop_is_asked_for_reads_eof() -> None:
    """In mode single the accept loop, which would tell it so, waits for it."""

    class Stops(SingleServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            begin(self.request_stop).join(DEADLINE)
            return True

    server = Stops(LOCAL, Upper)
    serving = begin(server.serve_forever)
    with connect(server.server_address) as idle:
        assert b"" == read_all(idle)
    assert ended(serving)
    server.server_close()


def test_32_a_close_ends_the_session_that_handle_request_has_left_behind() -> None:
    """Its client is answered what it has said, and reads the end; in mode single none is left behind."""
    with ThreadServer(LOCAL, Obeys) as server, connect(server.server_address) as client:
        server.handle_request()
        client.sendall(b"one\n")
        closing = [begin(server.server_close) for _ in range(2)]
        assert b"ONE\n" == read_all(client)
        assert all(map(ended, closing))
        assert not server.active


class Orders(RuleBasedStateMachine):
    """Start, stop, close, connect, in any order, from here, from another thread, from a session, several at once.

    Nothing hangs; a server that was not stopped since it was started serves; one that was closed holds no port.
    """

    server_class: type[ServerMixin]
    STOPS = ("shutdown", "request_stop", "server_close")

    def __init__(self) -> None:
        super().__init__()
        self.server = self.server_class(LOCAL, Obeys)
        self.address = self.server.server_address
        self.serving: threading.Thread | None = None
        self.served = self.stop_waits = self.closed = False
        self.idle: list[socket.socket] = []
        self.failed: list[BaseException] = []

    @precondition(lambda self: self.serving is None)
    @rule(call=st.sampled_from(["serve_forever", "handle_request"]), settle=st.booleans())
    def start(self, call: str, settle: bool) -> None:
        """Serve in a thread."""
        self.serving = begin(self._serve, getattr(self.server, call))
        if self.stop_waits or self.closed or call == "handle_request":
            if not self.stop_waits and not self.closed and not self.idle:
                eventually(lambda: self.server._serving_thread is not None or not self._alive())
            self._stop("shutdown")
            self._see_it_stopped()
        elif settle or self.served:
            # What is asked of a server that has served, and does not yet again, is not for its next run.
            eventually(lambda: self.server._serving_thread is not None)

    def _serve(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            self.failed.append(error)

    def _alive(self) -> bool:
        return self.serving is not None and self.serving.is_alive()

    def _stop(self, how: str) -> None:
        getattr(self.server, how)()

    def _see_it_stopped(self) -> None:
        if self.serving is None:
            self.stop_waits = self.stop_waits or not self.served
            return
        assert ended(self.serving)
        self.serving, self.served, self.stop_waits = None, True, False
        assert not self.failed or self.closed, self.failed

    @rule(how=st.sampled_from(STOPS), elsewhere=st.booleans())
    def stop(self, how: str, elsewhere: bool) -> None:
        """From here, or from another thread."""
        if elsewhere:
            assert ended(begin(self._stop, how))
        else:
            self._stop(how)
        self.closed = self.closed or how == "server_close"
        self._see_it_stopped()
        self._see_it_closed()

    @rule(hows=st.lists(st.sampled_from(STOPS), min_size=2, max_size=4), clients=st.integers(0, 3))
    def stop_at_once(self, hows: list[str], clients: int) -> None:
        """Several ways at the same time, while clients come."""
        threads = [begin(self._stop, how) for how in hows]
        # A port that was closed a while ago may be another's by now, who would keep the client.
        for _ in range(0 if self.closed else clients):
            with contextlib.suppress(ConnectionError):
                self.idle.append(connect(self.address))
        assert all(map(ended, threads))
        self.closed = self.closed or "server_close" in hows
        self._see_it_stopped()
        self._see_it_closed()

    @precondition(lambda self: self._alive())
    @rule(how=st.sampled_from(STOPS))
    def stop_in_session(self, how: str) -> None:
        """A session calls it, and gets its reply out."""
        self.leave()
        assert how.upper().encode() + b"\n" == exchange(self.address, how.encode() + b"\n")
        self.closed = self.closed or how == "server_close"
        self._see_it_stopped()
        self._see_it_closed()

    @precondition(lambda self: not self.closed and len(self.idle) < 5)
    @rule()
    def connect(self) -> None:
        """A client that says nothing."""
        self.idle.append(connect(self.address))

    @rule()
    def leave(self) -> None:
        """All of those go."""
        for client in self.idle:
            client.close()
        self.idle.clear()

    @precondition(lambda self: self._alive())
    @rule()
    def exchange(self) -> None:
        """Whoever comes to a server that serves is served; in mode single after those who came before."""
        if self.server.inline:
            self.leave()
        assert b"ONE\n" == exchange(self.address, b"one\n")

    def _see_it_closed(self) -> None:
        if not self.closed:
            return
        with pytest.raises(ConnectionRefusedError):
            connect(self.address)
        for client in self.idle:
            with contextlib.suppress(ConnectionError):
                assert b"" == read_all(client)
        self.leave()

    def teardown(self) -> None:
        """It can always be closed."""
        self.server.server_close()
        self.closed = True
        self._see_it_stopped()
        self._see_it_closed()
        assert -1 == self.server.socket.fileno()


@both
def test_32_every_order_of_start_stop_and_close(server_class: type[ServerMixin]) -> None:
    """Also from several threads at once; see ``Orders``."""
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("Machine", (Orders,), {"server_class": server_class})
    bounds = settings(max_examples=40, stateful_step_count=12, deadline=None, database=None)
    run_state_machine_as_test(machine, settings=bounds)


# What is left.


def test_33_the_standard_librarys_shutdown_keeps_the_port() -> None:
    """It needs server_close() too; who forgets it finds the address in use."""
    server = THEIRS(LOCAL, Upper)
    serving = begin(server.serve_forever, 0.01)
    server.shutdown()
    assert ended(serving)
    with pytest.raises(OSError, match="in use"):
        THEIRS(server.server_address, Upper)
    server.server_close()


@pytest.mark.parametrize("name", ["SingleServer", "ThreadServer", "ForkServer", "EventServer"])
def test_33_one_call_stops_and_gives_everything_back(name: str) -> None:
    """A session is open; after server_close() the port is free, and no warning of anything left open is given."""
    code = (
        "import gc, os, signal, socket, sys, threading, stdserve\n"
        "Server = getattr(stdserve, sys.argv[1])\n"
        "def descriptors(): return len(os.listdir('/proc/self/fd')) if os.path.exists('/proc') else 0\n"
        "def again():\n"
        "    server = Server(address, stdserve.EchoHandler)\n"
        "    client = socket.create_connection(address)\n"
        "    client.sendall(b'one\\n')\n"
        "    signal.signal(signal.SIGALRM, lambda *_: server.server_close())\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "    server.serve_forever()\n"
        "    assert client.recv(100) == b'one\\n' and client.recv(100) == b''\n"
        "    client.close()\n"
        "with socket.create_server(('127.0.0.1', 0)) as free: address = free.getsockname()\n"
        "again()\n"
        "before = descriptors()\n"
        "again()\n"
        "gc.collect()\n"
        "print(descriptors() - before)\n"
    )
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert ("one\none\n0\n", "", 0) == (result.stdout, result.stderr, result.returncode)


# The drain.

TALKS = (
    "import socketserver\n"
    "class Talks(socketserver.StreamRequestHandler):\n"
    "    def handle(self):\n"
    "        self.wfile.write(b'hello\\n')\n"
    "        if self.rfile.readline():\n"
    "            for _ in range(100):\n"
    "                self.wfile.write(b'x' * 100_000)\n"
    "            self.wfile.write(b'end')\n"
    "from stdserve import LineHandler\n"
    "class TalksInLines(LineHandler):\n"
    "    def connection_made(self):\n"
    "        self.reply('hello')\n"
    "    def line_received(self, line):\n"
    "        for _ in range(100):\n"
    "            self.wfile.write(b'x' * 100_000)\n"
    "        self.wfile.write(b'end')\n"
    "        self.close()\n"
)
REPLY = b"x" * 10_000_000 + b"end"


def talker(mode: str) -> list[str]:
    """The words for a handler that such a mode serves."""
    return ["--handler", "mine:TalksInLines" if mode.startswith("event") else "mine:Talks"]


class Drained:
    """A server with sessions that are in the middle of a reply, more than the buffers take, and idle ones."""

    def __init__(self, server: ServerProcess, busy: int, idle: int) -> None:
        self.busy = [self._greeted(server) for _ in range(busy)]
        self.idle = [self._greeted(server) for _ in range(idle)]
        for client in self.busy:
            client.sendall(b"much\n")
            assert b"x" == client.recv(1, socket.MSG_PEEK)

    def _greeted(self, server: ServerProcess) -> socket.socket:
        client = connect(server.address)
        assert b"hello\n" == client.recv(6)
        return client

    def __enter__(self) -> Drained:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for client in (*self.busy, *self.idle):
            client.close()


def counted(server: ServerProcess) -> tuple[int, int]:
    """What all processes of a server say of their stop together: sessions finished, sessions cut."""
    found = [re.search(r"^stopped finished=(\d+) cut=(\d+)$", line) for line in server.log]
    rows = [(int(match[1]), int(match[2])) for match in found if match]
    return sum(finished for finished, _ in rows), sum(cut for _, cut in rows)


@pytest.mark.parametrize("mode", MODES)
def test_34_a_stop_ends_idle_sessions_at_once_and_lets_busy_ones_finish(mode: str, tmp_path: Path) -> None:
    """20 of each (one of each in turn in mode single); whole replies, all of them counted as finished."""
    (tmp_path / "mine.py").write_text(TALKS)
    for busy, idle in ((1, 0), (0, 1)) if mode == "single" else ((20, 20),):
        with ServerProcess(*MODES[mode], *talker(mode), cwd=tmp_path) as server:
            with Drained(server, busy, idle) as clients, ThreadPoolExecutor(20) as pool:
                server.process.terminate()
                for client in clients.idle:
                    assert b"" == read_all(client)
                assert server.process.poll() is None or not busy
                assert [True] * busy == list(pool.map(lambda client: read_all(client) == REPLY, clients.busy))
                assert 0 == server.wait()
            assert (busy + idle, 0) == counted(server)


@linux
@pytest.mark.parametrize("mode", MODES)
def test_34_a_second_signal_cuts(mode: str, tmp_path: Path) -> None:
    """Busy sessions whose clients do not read are over at once, and counted; so at a third and fourth signal."""
    (tmp_path / "mine.py").write_text(TALKS)
    busy, idle = (1, 0) if mode == "single" else (20, 20)
    with ServerProcess(*MODES[mode], *talker(mode), cwd=tmp_path) as server:
        with Drained(server, busy, idle) as clients:
            below = descendants_of(server.pid)
            server.process.terminate()
            for client in clients.idle:
                assert b"" == read_all(client)
            if idle:
                server.wait_for_log("^close", count=idle)
            if "fork" in mode:
                eventually(lambda: len(descendants_of(server.pid)) == len(below) - idle)
            # The kernel makes one of two signals of which the first has not been taken yet.
            while server.process.poll() is None:
                server.process.terminate()
                threading.Event().wait(0.05)
            assert 0 == server.wait()
        assert [] == [pid for pid in below if Path(f"/proc/{pid}").exists()]
        assert (idle, busy) == counted(server)


@linux
@pytest.mark.parametrize("mode", ["thread", "fork", "fork_workers"])
def test_34_however_often_it_is_told_no_child_is_left(mode: str, tmp_path: Path) -> None:
    """A thousand signals a second until the process is gone, five times over."""
    (tmp_path / "mine.py").write_text(TALKS)
    for _ in range(5):
        with ServerProcess(*MODES[mode], *talker(mode), cwd=tmp_path) as server:
            with Drained(server, 10, 0):
                below = descendants_of(server.pid)
                while server.process.poll() is None:
                    server.process.send_signal(signal.SIGINT)
                    # Slower than it can be done: a handler that is always interrupted by the next one never ends.
                    threading.Event().wait(0.001)
                assert 0 == server.wait()
            assert [] == [pid for pid in below if Path(f"/proc/{pid}").exists()]
            assert [] == [line for line in server.log if "Traceback" in line]
