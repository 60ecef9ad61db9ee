"""The faults of socketserver by their number: shown on the standard library's class where that is quick, gone in ours.

The numbers are those of the project's list of faults. What is told by a whole file of its own is only named
here: stopping (12, 17, 22, 23, 31-34) in test_stop, threads and overload (18, 21) in test_stress.
"""

from __future__ import annotations

import contextlib
import gc
import http.server
import io
import logging
import os
import re
import resource
import signal
import socket
import socketserver
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import (
    DEADLINE,
    ServerProcess,
    children_of,
    connect,
    eventually,
    exchange,
    read_all,
    reset,
)
from test_mixin import LOCAL, Upper, readable, running

from stdserve import Options, SingleServer, ThreadServer, create_server
from stdserve.listeners import BACKLOG, effective_backlog

THEIRS = socketserver.ThreadingTCPServer
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


class Silent(socketserver.StreamRequestHandler):
    """Waits for the client to say something, and says nothing itself."""

    def handle(self) -> None:
        self.rfile.read()


@contextlib.contextmanager
def stock(server_class: type[socketserver.TCPServer], handler: Any, **attributes: Any) -> Iterator[Any]:
    """One of the standard library's servers, serving in a thread."""
    server_class = type("Stock", (server_class,), {"daemon_threads": True, "block_on_close": False, **attributes})
    with server_class(LOCAL, handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(DEADLINE)


def script(code: str, *arguments: str, **popen: Any) -> ServerProcess:
    """A program that runs a server and prints its port on standard error."""
    return ServerProcess(*arguments, port=None, command=(sys.executable, "-c", code), **popen)


def port_of(server: ServerProcess) -> Any:
    """Where a program of ``script`` listens."""
    return "127.0.0.1", int(server.wait_for_log(r"^(\d+)$")[1])


# Binding and listening.


def connects(address: Any, count: int) -> int:
    """How many of so many connections succeed at once while nobody accepts."""
    clients = [socket.socket() for _ in range(count)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(address)
    done = threading.Event()
    done.wait(0.5)
    succeeded = sum(1 for client in clients if not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and up(client))
    for client in clients:
        client.close()
    return succeeded


def up(client: socket.socket) -> bool:
    """Whether a connection attempt has come to its good end."""
    with contextlib.suppress(OSError):
        client.getpeername()
        return True
    return False


def test_01_a_burst_of_clients_finds_room_in_the_backlog() -> None:
    """200 connections while nobody accepts; the standard library's backlog of 5 takes a handful (fixed in 3.15)."""
    if effective_backlog(BACKLOG) < 200:
        pytest.skip("the kernel's own limit is below 200")
    if sys.version_info < (3, 15):
        with THEIRS(LOCAL, Upper) as server:
            assert connects(server.server_address, 40) < 20
    with ThreadServer(LOCAL, Upper) as server, create_server(Upper, bind="127.0.0.1:0") as made:
        assert 200 == connects(server.server_address, 200)
        assert 200 == connects(made.server_address, 200)


@linux
def test_01_the_kernels_own_limit_is_told(tmp_path: Path) -> None:
    """`ss` and the first line of the log agree."""
    with ServerProcess() as server:
        told = int(server.wait_for_log(r"^listening .*backlog (\d+)")[1])
        port = server.port
        rows = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout.splitlines()
        (row,) = [row.split() for row in rows if f"127.0.0.1:{port} " in row]
        assert told == int(row[2])


def test_02_binding_asks_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPServer's server_bind asks for its own name, which takes half a minute where the resolver is bad."""

    def asked(*arguments: object) -> str:
        raise LookupError("asked a name server")

    monkeypatch.setattr(socket, "getfqdn", asked)
    monkeypatch.setattr(socket, "gethostbyaddr", asked)
    with pytest.raises(LookupError):
        http.server.HTTPServer(LOCAL, http.server.BaseHTTPRequestHandler)

    ours = type("Ours", (ThreadServer, http.server.HTTPServer), {})
    for server in (
        ours(LOCAL, http.server.BaseHTTPRequestHandler),
        ours(("0.0.0.0", 0), http.server.BaseHTTPRequestHandler),
        create_server(http.server.BaseHTTPRequestHandler, bind="[::]:0"),
    ):
        with server:
            assert server.socket.getsockname()[:2] == (server.server_name, server.server_port)


def test_04_a_quick_restart_finds_its_port_free() -> None:
    """With a connection of the server before in its closing wait; and two live servers cannot share a port."""

    def restart(server_class: Any) -> None:
        with server_class(LOCAL, Upper) as server:
            address = server.server_address
            with connect(address) as client:
                request, peer = accept(server)
                request.close()  # the side that closes first has the closing wait
                assert b"" == read_all(client)
        server_class(address, Upper).server_close()

    with pytest.raises(OSError, match="in use"):
        restart(THEIRS)
    for ours in (SingleServer, ThreadServer):
        restart(ours)
        with ours(LOCAL, Upper) as server, pytest.raises(OSError, match="in use"):
            ours(server.server_address, Upper)


def accept(server: socketserver.TCPServer) -> tuple[Any, Any]:
    """Take the one client that has connected."""
    assert readable(server.socket, DEADLINE)
    return server.get_request()


def test_05_a_second_instance_is_refused_with_workers_too() -> None:
    """No SO_REUSEPORT, unless asked for."""
    with ServerProcess("--workers", "2") as server:
        second = [sys.executable, "-m", "stdserve", "--bind", "%s:%d" % server.address]
        result = subprocess.run(second, capture_output=True, text=True, timeout=DEADLINE)
        assert (3, True) == (result.returncode, "address already in use" in result.stderr)


# The accept loop.


@linux
def test_09_without_descriptors_the_loop_rests() -> None:
    """24 descriptors, 40 clients, 2 s: the standard library's loop tries 250,000 times a second, ours 10."""
    code = (
        "import logging, resource, socketserver, sys, threading, time, stdserve\n"
        "logging.basicConfig(level='INFO', format='%(message)s')\n"
        "accepts = 0\n"
        "class Counts:\n"
        "    def get_request(self):\n"
        "        global accepts\n"
        "        accepts += 1\n"
        "        return super().get_request()\n"
        "class Echo(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while data := self.request.recv(100): self.request.sendall(data)\n"
        "base = {'ours': stdserve.ThreadServer, 'theirs': socketserver.ThreadingTCPServer}[sys.argv[1]]\n"
        "attributes = {'daemon_threads': True, 'request_queue_size': 100}\n"
        "server = type('Server', (Counts, base), attributes)(('127.0.0.1', 0), Echo)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))\n"
        "print(server.server_address[1], file=sys.stderr, flush=True)\n"
        "sys.stdin.readline()\n"
        "accepts, cpu = 0, time.process_time()\n"
        "time.sleep(float(sys.argv[2]))\n"
        "print(accepts, time.process_time() - cpu, flush=True)\n"
        "sys.stdin.readline()\n"
    )

    def measure(side: str, seconds: float) -> tuple[int, float]:
        command = [sys.executable, "-c", code, side, str(seconds)]
        with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
            assert process.stdin and process.stdout and process.stderr
            try:
                address = ("127.0.0.1", int(process.stderr.readline()))
                clients = [connect(address) for _ in range(40)]
                clients[0].sendall(b"served")
                assert b"served" == clients[0].recv(100)
                log = [process.stderr.readline()] if side == "ours" else []
                process.stdin.write("\n")
                process.stdin.flush()
                accepts, cpu = process.stdout.readline().split()
                clients[0].sendall(b"still served")
                assert b"still served" == clients[0].recv(100)
                if side == "ours":
                    for client in clients[:30]:
                        client.close()
                    clients[-1].sendall(b"accepting resumed")
                    assert b"accepting resumed" == clients[-1].recv(100)
                    log += iter(process.stderr.readline, "accept works again\n")
                    log += ["accept works again"]
                process.stdin.close()
                process.wait(DEADLINE)
                log += process.stderr.read().splitlines()
                if side == "ours":
                    told = [line for line in log if "accept" in line]
                    assert 2 == len(told), log
                for client in clients:
                    client.close()
                return int(accepts), float(cpu)
            finally:
                process.kill()

    accepts, _ = measure("theirs", 0.5)
    assert accepts > 5000
    accepts, cpu = measure("ours", 2)
    assert 0 < accepts < 50
    assert cpu < 0.1


def test_11_a_hook_that_raises_does_not_end_the_loop() -> None:
    """verify_request and get_request; the standard library's serve_forever comes to its end."""

    class Raises:
        raised = 0

        def verify_request(self, request: Any, client_address: Any) -> bool:
            if not self.raised:
                self.raised += 1
                self.left_open = request
                raise LookupError
            return True

    class RaisesEarlier:
        raised = 0

        def get_request(self) -> Any:
            if not self.raised:
                self.raised += 1
                raise LookupError
            return super().get_request()  # type: ignore[misc]

    for hook in (Raises, RaisesEarlier):
        ended = threading.Event()

        def serve(server: Any, ended: threading.Event = ended) -> None:
            with contextlib.suppress(LookupError):
                server.serve_forever()
            ended.set()

        with type("Stock", (hook, THEIRS), {})(LOCAL, Upper) as server:
            threading.Thread(target=serve, args=(server,), daemon=True).start()
            with connect(server.server_address):
                assert ended.wait(DEADLINE)
            if hook is Raises:
                server.left_open.close()  # it leaks, too
        with running(type("Ours", (hook, ThreadServer), {})(LOCAL, Upper)) as server:
            with contextlib.suppress(ConnectionError):
                exchange(server.server_address, b"one")
            assert b"TWO\n" == exchange(server.server_address, b"two")


def test_12_a_client_that_another_process_took_does_not_block_the_loop() -> None:
    """The queue is drained between poll and accept; the stop works (the standard library's hangs in accept)."""

    stolen = threading.Event()

    class Loses:
        def get_request(self) -> Any:
            self.socket.accept()[0].close()  # type: ignore[attr-defined]
            stolen.set()
            return super().get_request()  # type: ignore[misc]

    server = type("Stock", (Loses, THEIRS), {})(LOCAL, Upper)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    connect(server.server_address).close()
    assert stolen.wait(DEADLINE)
    stopper = threading.Thread(target=server.shutdown, daemon=True)
    stopper.start()
    stopper.join(1)
    assert stopper.is_alive()
    while stopper.is_alive():  # each of these is stolen in its turn, or ends the wait
        with contextlib.suppress(OSError):
            connect(server.server_address).close()
        stopper.join(0.1)
        Loses.get_request = THEIRS.get_request  # type: ignore[method-assign, assignment]
    server.server_close()


def test_12_ours_is_never_blocked_by_a_client_that_has_gone() -> None:
    """The listener does not block."""

    class Loses(ThreadServer):
        def get_request(self) -> Any:
            with contextlib.suppress(BlockingIOError):
                self.socket.accept()[0].close()
            return super().get_request()

    server = Loses(LOCAL, Upper)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    connect(server.server_address).close()
    started = time.monotonic()
    server.shutdown()
    thread.join(DEADLINE)
    server.server_close()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("mode", ["thread", "fork", "event"])
def test_12_workers_that_share_a_listener_all_stop(mode: str) -> None:
    """1,000 clients (a child each in mode fork, so fewer), each taken by one of four workers and lost by three."""
    with ServerProcess("--mode", mode, "--workers", "4", "--log-level", "error") as server:
        eventually(lambda: len(children_of(server.pid)) == 4)
        address = listening(server)
        for _ in range(1000 if mode == "thread" else 40):
            connect(address).close()
        started = time.monotonic()
        assert 0 == server.stop()
        # Half a second on a quiet machine; one that hangs would be cut after half a minute.
        assert time.monotonic() - started < 20


def listening(server: ServerProcess) -> tuple[str, int]:
    """Where it listens, though it does not say so."""
    from test_output import listening_address

    return listening_address(server)


def test_15_one_idle_client_does_not_freeze_a_single_server_for_ever() -> None:
    """It is cut by the idle timeout, and the next one is served."""
    first = stock(socketserver.TCPServer, Upper)
    with first as server, connect(server.server_address), connect(server.server_address) as second:
        second.sendall(b"one\nexit\n")
        assert not readable(second, 0.5)
    ours = create_server(Upper, "single", bind="127.0.0.1:0", idle_timeout=0.2)
    with running(ours), connect(ours.server_address):
        assert b"ONE\n" == exchange(ours.server_address, b"one")


@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event", "thread_workers"])
def test_16_sys_exit_in_a_handler_ends_its_session_only(mode: str, tmp_path: Path) -> None:
    """Also KeyboardInterrupt and a BaseException of one's own; each is logged once."""
    (tmp_path / "mine.py").write_text(
        "import stdserve, sys\n"
        "class Own(BaseException): pass\n"
        "class Leaves(stdserve.LineHandler):\n"
        "    def line_received(self, line):\n"
        "        raise {'exit!': SystemExit, 'interrupt': KeyboardInterrupt, 'own': Own}[line]\n"
    )
    words = {"thread_workers": ["--mode", "thread", "--workers", "2"]}.get(mode, ["--mode", mode])
    with ServerProcess(*words, "--handler", "mine:Leaves", cwd=tmp_path) as server:
        for line in (b"exit!", b"interrupt", b"own"):
            assert b"" == exchange(server.address, line)
        server.wait_for_log("^close", count=3)
        assert 0 == server.stop()
        assert 3 == len([line for line in server.log if line.startswith("Traceback")])
        assert not [line for line in server.log if line.startswith("error worker")]


def test_16_sys_exit_in_a_handler_ends_the_standard_librarys_loop() -> None:
    """For comparison."""

    class Leaves(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            sys.exit()

    with socketserver.TCPServer(LOCAL, Leaves) as server, connect(server.server_address), pytest.raises(SystemExit):
        server.serve_forever(0.01)


# Threads.


def test_19_a_thread_that_cannot_start_costs_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library's server_close then fails too."""

    def refuse(*arguments: object, **named: object) -> None:
        raise RuntimeError("can't start new thread")

    server = THEIRS(LOCAL, Upper)
    with monkeypatch.context() as patch, connect(server.server_address):
        patch.setattr(threading.Thread, "start", refuse)
        with contextlib.redirect_stderr(io.StringIO()):
            server.handle_request()
    with pytest.raises(RuntimeError, match="cannot join thread before it is started"):
        server.server_close()

    import _thread

    ours = ThreadServer(LOCAL, Upper)
    with running(ours):
        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", refuse)
            for _ in range(10):
                assert b"" == exchange(ours.server_address, b"", half_close=False)
        assert b"ONE\n" == exchange(ours.server_address, b"one")
        eventually(lambda: not ours.sessions)
        assert 1 == len(ours.session_threads)


@pytest.mark.parametrize("times", [1, 2, 10])
def test_20_a_thread_that_dies_before_it_begins_does_not_stop_the_server(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thread.start waits for its thread's first step, for ever if need be (cpython gh-140746)."""
    bootstrap = threading.Thread._bootstrap  # type: ignore[attr-defined]
    deaths: list[int] = []

    def dies(self: threading.Thread) -> None:
        if self.name.startswith("doomed") or len(deaths) < times:
            deaths.append(1)
            return
        bootstrap(self)

    if times == 1:
        with THEIRS(LOCAL, Upper) as server:
            server.daemon_threads = True
            loop = threading.Thread(target=server.serve_forever, daemon=True)
            loop.start()
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "_bootstrap", dies)
                first = connect(server.server_address)
                eventually(lambda: deaths)
            with connect(server.server_address) as second:
                second.sendall(b"one\n")
                assert not readable(second, 0.5)
            first.close()
            deaths.clear()
    ours = create_server(Upper, bind="127.0.0.1:0", max_conns=20)
    with running(ours):
        monkeypatch.setattr(threading.Thread, "_bootstrap", dies)
        clients = [connect(ours.server_address) for _ in range(20)]
        for client in clients:
            client.sendall(b"one\n")
            assert b"ONE\n" == client.recv(100)
            client.close()
        monkeypatch.undo()


@linux
def test_20_a_cheap_request_is_answered_while_64_sessions_compute(tmp_path: Path) -> None:
    """Accepting does not wait for a thread to get its turn."""
    (tmp_path / "mine.py").write_text(
        "import stdserve, threading\n"
        "class Computes(stdserve.LineHandler):\n"
        "    def line_received(self, line):\n"
        "        while line == 'compute' and not self.server._stopping:\n"
        "            sum(range(1000))\n"
        "        return line\n"
    )
    with ServerProcess("--handler", "mine:Computes", "--graceful-timeout", "1s", cwd=tmp_path) as server:
        busy = [connect(server.address) for _ in range(64)]
        for client in busy:
            client.sendall(b"compute\n")
        # Two seconds are the bar on a machine that does nothing else; exchange() has its deadline.
        assert b"cheap\n" == exchange(server.address, b"cheap")
        for client in busy:
            client.close()


# Fork.


def test_24_25_at_its_limit_the_loop_waits_for_nobody_and_steals_no_child() -> None:
    """Two stuck children of two: the stop works, and a program that exits 7 reports 7 meanwhile."""
    code = (
        "import signal, subprocess, sys, threading, stdserve, socketserver\n"
        "class Stuck(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        signal.pause()\n"
        "server = stdserve.create_server(Stuck, 'fork', bind='127.0.0.1:0', max_conns=2, graceful_timeout=0.2)\n"
        "def stop(*_):\n"
        "    print(subprocess.run(['sh', '-c', 'exit 7']).returncode, flush=True)\n"
        "    server.shutdown()\n"
        "signal.signal(signal.SIGUSR1, stop)\n"
        "print(server.server_address[1], file=sys.stderr, flush=True)\n"
        "server.serve_forever()\n"
    )
    with script(code) as server:
        address = port_of(server)
        clients = [connect(address) for _ in range(3)]
        eventually(lambda: len(children_of(server.pid)) == 2)
        assert 0 == server.stop(signal.SIGUSR1)
        assert b"7\n" == server.output
        for client in clients:
            client.close()


def test_25_the_standard_librarys_loop_takes_the_status_of_a_strangers_child() -> None:
    """For comparison: at its limit it waits for whichever child ends, and a program that exited 7 reports 0."""
    code = (
        "import socket, socketserver, subprocess, threading\n"
        "class Waits(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        self.request.recv(1)\n"
        "class Server(socketserver.ForkingTCPServer):\n"
        "    max_children = 1\n"
        "with Server(('127.0.0.1', 0), Waits) as server:\n"
        "    client = socket.create_connection(server.server_address)\n"
        "    server.handle_request()\n"
        "    foreign = subprocess.Popen(['sh', '-c', 'read x; exit 7'], stdin=subprocess.PIPE)\n"
        "    foreign.stdin.close()\n"
        "    threading.Timer(0.5, client.sendall, (b'x',)).start()\n"
        "    server.collect_children()\n"
        "    print(foreign.wait())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert "0\n" == result.stdout


@linux
def test_26_no_zombie_is_left_after_200_sessions() -> None:
    """A tenth of a second after the last one."""
    with ServerProcess("--mode", "fork", "--log-level", "error") as server:
        address = listening(server)
        for _ in range(200):
            exchange(address, b"one\n")
        started = time.monotonic()
        eventually(lambda: children_of(server.pid) == [])
        assert time.monotonic() - started < 1
        assert b"one\n" * 200 == server.output


def test_27_an_orphan_does_not_keep_the_port() -> None:
    """kill -9 of the parent: rebinding works at once. The standard library's child still listens."""
    code = (
        "import os, socketserver, sys, stdserve\n"
        "class Waits(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        self.request.sendall(b'child')\n"
        "        self.request.recv(1)\n"
        "base = {'ours': stdserve.ForkServer, 'theirs': socketserver.ForkingTCPServer}[sys.argv[1]]\n"
        "base.allow_reuse_address = True\n"
        "with base(('127.0.0.1', 0), Waits) as server:\n"
        "    print(server.server_address[1], file=sys.stderr, flush=True)\n"
        "    server.serve_forever()\n"
    )
    for side, free in (("theirs", False), ("ours", True)):
        with script(code, side) as server:
            address = port_of(server)
            with connect(address) as client:
                assert b"child" == client.recv(5)
                server.process.kill()
                server.process.wait(DEADLINE)
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    assert free == (probe.connect_ex(address) != 0)
                with contextlib.ExitStack() as second:
                    if not free:
                        second.enter_context(pytest.raises(OSError, match="in use"))
                    ThreadServer(address, Upper).server_close()


@linux
def test_28_a_stop_leaves_no_descendant() -> None:
    """SIGTERM to the parent; the standard library's children live on."""
    from processes import descendants_of

    code = (
        "import socketserver, sys\n"
        "class Waits(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        self.request.recv(1)\n"
        "with socketserver.ForkingTCPServer(('127.0.0.1', 0), Waits) as server:\n"
        "    print(server.server_address[1], file=sys.stderr, flush=True)\n"
        "    server.serve_forever()\n"
    )
    with script(code) as theirs:
        with connect(port_of(theirs)):
            eventually(lambda: children_of(theirs.pid))
            (child,) = children_of(theirs.pid)
            theirs.process.terminate()
            theirs.process.wait(DEADLINE)
            assert Path(f"/proc/{child}").exists()
        eventually(lambda: not Path(f"/proc/{child}").exists())
    with ServerProcess("--mode", "fork", "--workers", "2") as ours:
        clients = [connect(ours.address) for _ in range(6)]
        eventually(lambda: len(descendants_of(ours.pid)) == 8)
        below = descendants_of(ours.pid)
        assert 0 == ours.stop()
        assert [] == [pid for pid in below if Path(f"/proc/{pid}").exists()]
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "words", [["single"], ["thread"], ["fork"], ["event"], ["thread", "--workers", "2"], ["fork", "--workers", "2"]]
)
def test_29_no_mode_forks_while_threads_run(words: list[str]) -> None:
    """-W error from the first line to the last: Python 3.12 and newer warn of it."""
    command = (sys.executable, "-W", "error", "-m", "stdserve")
    with ServerProcess("--mode", *words, command=command) as server:
        for _ in range(5):
            exchange(server.address, b"one\n")
        server.wait_for_output(b"one\n" * 5)
        assert 0 == server.stop()
        assert not [line for line in server.log if "Warning" in line]


# Connection I/O. (30, what print() leaves in a child's buffers, is in test_servers.)


def test_35_silent_clients_of_an_unmodified_handler_are_let_go() -> None:
    """100 of them, one second, each closed; the standard library holds its threads for ever."""
    with running(ThreadServer(LOCAL, Silent, options=Options(idle_timeout=1))) as server:
        clients = [connect(server.server_address) for _ in range(100)]
        started = time.monotonic()
        for client in clients:
            assert b"" == read_all(client)
            client.close()
        assert time.monotonic() - started < 5


def test_37_a_timeout_does_not_poison_rfile() -> None:
    """A handler that catches it and reads on gets what comes, begun lines included."""
    got: list[object] = []

    class ReadsOn(socketserver.StreamRequestHandler):
        timeout = 0.1

        def handle(self) -> None:
            for _ in range(20):
                try:
                    got.append(self.rfile.readline())
                    return
                except TimeoutError:
                    got.append("timeout")
                    self.wfile.write(b"go on\n")
                except OSError as error:
                    got.append(str(error))
                    return

    for server_class, last in ((THEIRS, "cannot read from timed out object"), (ThreadServer, b"begun and ended\n")):
        got.clear()
        context = running(server_class(LOCAL, ReadsOn)) if server_class is ThreadServer else stock(THEIRS, ReadsOn)
        with context as server, connect(server.server_address) as client:
            client.sendall(b"begun ")
            assert b"go on\n" == client.recv(6)
            client.sendall(b"and ended\n")
            read_all(client)
        assert "timeout" == got[0]
        assert last == got[-1]


def test_38_server_timeout_is_not_the_clients(caplog: pytest.LogCaptureFixture) -> None:
    """It stays settable for handlers that read it, and has nothing to do with idle clients."""
    server = ThreadServer(LOCAL, Upper)
    server.timeout = 0.05
    with running(server), connect(server.server_address) as client:
        client.sendall(b"one\n")
        assert b"ONE\n" == client.recv(100)
        assert not readable(client, 0.3)
        client.sendall(b"two\n")
        assert b"TWO\n" == client.recv(100)


class Talks(socketserver.StreamRequestHandler):
    """Answers a line with a lot; ``wbufsize`` as a test wants it."""

    def handle(self) -> None:
        line = self.rfile.readline()
        if line == b"fail\n":
            raise ValueError("a bug of the handler's own")
        for _ in range(1000):
            self.wfile.write(b"x" * 100_000)


@pytest.mark.parametrize("wbufsize", [0, -1])
@linux
def test_39_40_a_client_that_leaves_is_no_traceback_and_leaks_nothing(
    wbufsize: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """RST before the request, in it, in the reply: one debug line each; a handler's own error keeps its traceback."""
    handler = type("Handler", (Talks,), {"wbufsize": wbufsize})
    told: list[str] = []

    with stock(THEIRS, handler) as server:

        def complains() -> bool:
            leave(server.server_address, b"talk\n", 1000)
            told.append(capfd.readouterr().err)
            return "Traceback" in "".join(told)

        eventually(complains)

    caplog.set_level("DEBUG", "stdserve")
    gc.collect()
    with running(ThreadServer(LOCAL, handler)) as ours:
        exchange(ours.server_address, b"")
        eventually(lambda: not ours.sessions)
        before = len(os.listdir("/proc/self/fd"))
        caplog.clear()
        gc.disable()
        try:
            for _ in range(20):
                for said, read in ((b"", 0), (b"ta", 0), (b"talk\n", 1000)):
                    leave(ours.server_address, said, read)
            eventually(lambda: not ours.sessions)
            assert before == len(os.listdir("/proc/self/fd"))
        finally:
            gc.enable()
        assert 60 == len([record for record in caplog.records if record.getMessage().startswith("close ")])
        assert {"INFO", "DEBUG"} >= {record.levelname for record in caplog.records}
        assert "Traceback" not in caplog.text
        exchange(ours.server_address, b"fail\n")
        eventually(lambda: "Traceback" in caplog.text)
    assert "ValueError: a bug of the handler's own" in caplog.text


def leave(address: Any, said: bytes, read: int) -> None:
    """Say something, read a little, and go with a reset."""
    client = connect(address)
    client.sendall(said)
    if read:
        client.recv(read)
    reset(client)


@linux
@pytest.mark.parametrize("stage", ["setup", "finish"])
def test_41_a_setup_or_finish_that_raises_leaks_no_descriptor(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    """1,000 of them, and the garbage collector is not asked."""
    logging.getLogger("stdserve").setLevel("CRITICAL")

    class Raises(socketserver.StreamRequestHandler):
        pass

    def fail(self: Any) -> None:
        getattr(super(Raises, self), stage)()
        raise ValueError(stage)

    setattr(Raises, stage, fail)
    gc.collect()
    gc.disable()
    try:
        with running(ThreadServer(LOCAL, Raises)) as server:
            exchange(server.server_address, b"", half_close=False)
            eventually(lambda: not server.sessions)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(1000):
                exchange(server.server_address, b"", half_close=False)
            eventually(lambda: not server.sessions)
            assert before >= len(os.listdir("/proc/self/fd"))
    finally:
        gc.enable()
        logging.getLogger("stdserve").setLevel("NOTSET")


def test_42_fifty_megabytes_to_a_slow_reader_arrive_whole() -> None:
    """One write of the handler's; the reader takes its time."""
    data = os.urandom(1 << 20) * 50

    class Sends(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(data)

    with running(ThreadServer(LOCAL, Sends, options=Options(idle_timeout=DEADLINE))) as server:
        with connect(server.server_address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            got = bytearray()
            while part := client.recv(1 << 20):
                got += part
        assert data == got


def test_43_small_replies_are_not_held_back() -> None:
    """Keep-alive replies of http.server in two writes each: 44 ms there, well under 5 here."""

    class Small(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *arguments: object) -> None:
            pass

    def median(address: Any) -> float:
        with connect(address) as client:
            times = []
            for _ in range(20):
                started = time.monotonic()
                client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
                reply = b""
                while not reply.endswith(b"hello"):
                    reply += client.recv(1000)
                times.append(time.monotonic() - started)
        return statistics.median(times)

    with stock(THEIRS, Small) as theirs:
        if median(theirs.server_address) < 0.02:
            pytest.skip("this kernel does not delay acknowledgements on loopback")
    with running(ThreadServer(LOCAL, Small)) as ours:
        assert median(ours.server_address) < 0.005


@linux
@pytest.mark.parametrize("way", ["readline", "for", "readlines"])
def test_44_a_line_without_an_end_does_not_take_all_memory(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """100 MB of it to an unmodified handler: the session ends for line_too_long; 10 MB are not taken."""
    caplog.set_level("INFO", "stdserve")

    class Reads(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for _ in {"readline": iter(self.rfile.readline, b""), "for": self.rfile}.get(way) or self.rfile.readlines():
                pass

    with running(ThreadServer(LOCAL, Reads)) as server:
        exchange(server.server_address, b"short\n")
        before = resident()
        with contextlib.suppress(ConnectionError), connect(server.server_address) as client:
            for _ in range(100):
                client.sendall(b"x" * 1_000_000)
        eventually(lambda: not server.sessions)
        assert resident() - before < 10_000_000
    assert "reason=line_too_long" in caplog.text
    assert "Traceback" not in caplog.text


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_45_a_refused_upload_gets_its_answer() -> None:
    """3 MB on the way, refused after the first line: 20 of 20 clients read why."""

    class Refuses(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"refused\n")

    def answered(address: Any, size: int) -> int:
        count = 0
        for _ in range(20):
            with connect(address) as client, contextlib.suppress(ConnectionError):
                client.sendall(b"upload\n" + b"x" * size)
                count += read_all(client) == b"refused\n"
        return count

    with stock(THEIRS, Refuses) as theirs:
        # More than fits the buffers between, or a slow machine has taken it all before it refuses.
        assert answered(theirs.server_address, 30_000_000) < 20
    with running(ThreadServer(LOCAL, Refuses)) as ours:
        assert 20 == answered(ours.server_address, 3_000_000)


def test_45_a_client_that_does_not_close_is_not_waited_for_longer_than_said() -> None:
    """The lingering close has its deadline."""
    server = ThreadServer(LOCAL, Upper, options=Options(linger_timeout=0.2))
    with running(server), connect(server.server_address) as client:
        client.sendall(b"one\nexit\n")
        assert b"ONE\n" == read_all(client)
        eventually(lambda: not server.sessions)


@linux
def test_47_a_peer_that_vanished_is_noticed() -> None:
    """Keepalive, after 60 s and then every 10; asked of the kernel on an accepted socket."""
    seen: list[tuple[int, ...]] = []

    class Asks(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            tcp = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_NODELAY]
            on = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            seen.append((on, *(self.request.getsockopt(socket.IPPROTO_TCP, name) for name in tcp)))

    for server in (ThreadServer(LOCAL, Asks), create_server(Asks, "single", bind="127.0.0.1:0")):
        with running(server):
            exchange(server.server_address, b"")
    assert [(1, 60, 10, 6, 1)] * 2 == seen


def test_48_errors_are_one_log_record_and_a_missing_stderr_is_survived(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard library prints each in a dozen writes, and fails where there is no stderr."""

    class Fails(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            raise ValueError("a bug")

    monkeypatch.setattr(sys, "stderr", None)
    with running(ThreadServer(LOCAL, Fails)) as server:
        for _ in range(2):
            exchange(server.server_address, b"")
        eventually(lambda: not server.sessions)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert ["ValueError", "ValueError"] == [type(record.exc_info[1]).__name__ for record in errors if record.exc_info]


def test_48_a_closed_stderr_does_not_end_a_server_that_logs_there(tmp_path: Path) -> None:
    """A reader of the log that has gone away, and a handler that fails."""
    (tmp_path / "mine.py").write_text(
        "import stdserve\n"
        "class Fails(stdserve.LineHandler):\n"
        "    def line_received(self, line):\n"
        "        if line == 'fail': raise ValueError(line)\n"
        "        return line\n"
    )
    command = [sys.executable, "-m", "stdserve", "0", "--handler", "mine:Fails"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stderr is not None
        found = re.search(rb"127\.0\.0\.1:(\d+)", process.stderr.readline())
        assert found is not None
        address = ("127.0.0.1", int(found[1]))
        process.stderr.close()
        for _ in range(3):
            assert b"" == exchange(address, b"fail\n")
        assert b"fine\n" == exchange(address, b"fine\n")
        process.terminate()
        assert 0 == process.wait(DEADLINE)
