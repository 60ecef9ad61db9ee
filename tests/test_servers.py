"""What is particular to each mode: threads that are bounded and reused, children that are reaped by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
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
)
from test_mixin import LOCAL, Upper, running

from stdserve import (
    ForkServer,
    LineHandler,
    PrintHandler,
    ServerMixin,
    SingleServer,
    ThreadServer,
    create_server,
)
from stdserve.sink import Sink, open_sink


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SingleServer, socketserver.TCPServer),
        (ThreadServer, socketserver.ThreadingTCPServer),
        (ForkServer, socketserver.ForkingTCPServer),
    ],
)
def test_each_server_is_a_real_subclass_of_its_standard_one(ours: type[ServerMixin], theirs: type) -> None:
    """With the one mix-in in front."""
    assert issubclass(ours, theirs)
    assert issubclass(ours, ServerMixin)
    assert ours.__mro__.index(ServerMixin) < ours.__mro__.index(theirs)


class Notes(PrintHandler):
    """Notes the thread that it runs in."""

    prompt = True
    threads: list[int]

    def connection_made(self) -> None:
        self.threads.append(threading.get_ident())


class Heir(Notes):
    """What it does besides may wait."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who has said all")
@pytest.mark.parametrize(
    ("handler", "to_a_file", "finished", "here"),
    [(Notes, True, True, True), (Heir, True, True, False), (Notes, False, True, False), (Notes, True, False, False)],
    ids=["all said", "not inherited", "output that may wait", "not all said"],
)
def test_who_has_said_all_is_served_without_a_thread_where_nothing_can_wait(
    handler: type[Notes], to_a_file: bool, finished: bool, here: bool, tmp_path: Path
) -> None:
    """By the thread that accepts; what was said is printed as ever."""
    handler.threads = []
    reader, writer = os.pipe()
    sink = open_sink(str(tmp_path / "out")) if to_a_file else Sink(writer)
    server = create_server(handler, bind="127.0.0.1:0", sink=sink)
    with connect(server.server_address) as client:
        client.sendall(b"one\n")
        if finished:
            client.shutdown(socket.SHUT_WR)
        with running(server):
            eventually(lambda: handler.threads)
            main = server._serving_thread
            if not finished:
                client.sendall(b"exit\n")
            assert b"" == read_all(client)
    sink.close()
    if to_a_file:
        os.close(writer)
    assert here == (handler.threads == [main])
    with open(tmp_path / "out" if to_a_file else reader, "rb") as out:
        assert b"one\n" == out.read()
    if to_a_file:
        os.close(reader)


def test_threads_are_reused_from_one_session_to_the_next() -> None:
    """100 clients, one after the other, and a thread or two."""
    server = create_server(Upper, bind="127.0.0.1:0")
    with running(server):
        for _ in range(100):
            assert b"ONE\n" == exchange(server.server_address, b"one")
        # The next client may come before the last one's thread has sat down again.
        assert len(server.session_threads) < 20  # type: ignore[attr-defined]


def test_process_request_thread_may_be_overridden() -> None:
    """As in ThreadingMixIn; what it raises ends one session."""
    seen: list[str] = []

    class Watches(ThreadServer):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            seen.append("before")
            if len(seen) == 1:
                raise LookupError("once")
            super().process_request_thread(request, client_address)

    with running(Watches(LOCAL, Upper)) as server:
        with contextlib.suppress(ConnectionError):
            assert b"" == exchange(server.server_address, b"")
        assert b"ONE\n" == exchange(server.server_address, b"one")
        eventually(lambda: not server.sessions)
    assert ["before", "before"] == seen


def test_silent_clients_hold_no_more_threads_than_allowed() -> None:
    """50 of them against -m 10; when they leave, the next one is served."""
    with ServerProcess("--max-conns", "10") as server:
        silent = [connect(server.address) for _ in range(50)]
        server.wait_for_log("^open", count=10)
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert int(status.partition("Threads:")[2].split()[0]) <= 12
        for client in silent:
            client.close()
        exchange(server.address, b"served")
        server.wait_for_output(b"served\n")


class TestFork:
    """Against a real process; the test process has threads of its own and must not fork a server."""

    def test_each_session_has_a_child_and_leaves_no_zombie(self) -> None:
        """Two at a time; when their clients are gone, so are they."""
        with ServerProcess("--mode", "fork") as server:
            clients = [connect(server.address) for _ in range(2)]
            eventually(lambda: len(children_of(server.pid)) == 2)
            for client in clients:
                client.close()
            eventually(lambda: children_of(server.pid) == [])

    def test_at_the_limit_clients_wait_and_the_loop_does_not(self) -> None:
        """The next one is served when a child has ended, and a stop does not wait for it."""
        with ServerProcess("--mode", "fork", "-m", "2") as server:
            first, second = connect(server.address), connect(server.address)
            with second, connect(server.address) as third:
                third.sendall(b"third\nexit\n")
                eventually(lambda: len(children_of(server.pid)) == 2)
                third.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    third.recv(1)
                first.close()
                third.settimeout(DEADLINE)
                assert b"" == read_all(third)
                server.wait_for_output(b"third\n")
                with connect(server.address):
                    assert 0 == server.stop()

    def test_a_child_that_is_killed_is_told_and_replaced_by_nobody(self) -> None:
        """Its session is lost, its place is free."""
        with ServerProcess("--mode", "fork", "-m", "1") as server:
            with connect(server.address) as client:
                eventually(lambda: children_of(server.pid))
                (child,) = children_of(server.pid)
                os.kill(child, signal.SIGKILL)
                assert b"" == read_all(client)
            server.wait_for_log(f"^error .* child {child} was ended by SIGKILL")
            exchange(server.address, b"next")
            server.wait_for_output(b"next\n")

    def test_a_handlers_exception_is_logged_and_its_prints_are_not_lost(self, tmp_path: Path) -> None:
        """The child flushes what print() left in its buffers."""
        (tmp_path / "mine.py").write_text(
            "import stdserve\n"
            "class Fails(stdserve.LineHandler):\n"
            "    def line_received(self, line):\n"
            "        print('said', line)\n"
            "        raise ValueError(line)\n"
        )
        with ServerProcess("--mode", "fork", "--handler", "mine:Fails", cwd=tmp_path) as server:
            exchange(server.address, b"one\n")
            server.wait_for_log("^ValueError: one")
            server.wait_for_output(b"said one\n")
            assert 0 == server.stop()

    def test_sessions_that_do_not_end_are_killed_at_the_deadline(self, tmp_path: Path) -> None:
        """No descendant is left."""
        (tmp_path / "mine.py").write_text(
            "import signal, stdserve, threading\n"
            "class Stuck(stdserve.LineHandler):\n"
            "    def connection_made(self):\n"
            "        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
            "        self.wfile.write(b'stuck'); self.wfile.flush()\n"
            "        threading.Event().wait()\n"
        )
        words = ["--mode", "fork", "--handler", "mine:Stuck", "--graceful-timeout", "200ms"]
        with ServerProcess(*words, cwd=tmp_path) as server, connect(server.address) as client:
            assert b"stuck" == client.recv(5)
            (child,) = children_of(server.pid)
            assert 0 == server.stop()
            server.wait_for_log("^stopped finished=0 cut=1$")
            assert not Path(f"/proc/{child}").exists()

    def test_where_no_pidfd_can_be_had_children_are_reaped_all_the_same(self) -> None:
        """All descriptors but the last few are taken, so that pidfd_open fails and accept does not."""
        code = (
            "import os, resource, sys, stdserve, stdserve.children\n"
            "del os.pidfd_open\n"
            "stdserve.serve(mode='fork', port=0, ready=lambda a: print(a[0], file=sys.stderr, flush=True))\n"
        )
        command = (sys.executable, "-c", code)
        with ServerProcess(port=None, command=command) as server:
            address = ("127.0.0.1", int(server.wait_for_log(r"^127\.0\.0\.1:(\d+)$")[1]))
            with connect(address) as idle:
                for _ in range(3):
                    exchange(address, b"one\n")
                eventually(lambda: len(children_of(server.pid)) == 1)
                assert 0 == server.stop()
                assert b"" == read_all(idle)
            assert b"one\n" * 3 == server.output

    def test_a_fork_that_fails_costs_one_session(self) -> None:
        """RLIMIT_NPROC does not hold root, so fork itself is told to fail once."""
        code = (
            "import os, sys, logging, stdserve\n"
            "logging.basicConfig(level='INFO', format='%(message)s')\n"
            "fork = os.fork\n"
            "def failing():\n"
            "    os.fork = fork\n"
            "    raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
            "os.fork = failing\n"
            "stdserve.serve(mode='fork', port=0)\n"
        )
        with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
            assert b"" == exchange(server.address, b"", half_close=False)
            exchange(server.address, b"two")
            server.wait_for_output(b"two\n")
            server.wait_for_log("error .*Resource temporarily unavailable")

    def test_clients_who_wait_together_do_not_wait_for_each_other(self) -> None:
        """They are accepted in one turn, and their children forked in a row: none keeps a copy of another's socket."""
        with ServerProcess("--mode", "fork") as server, contextlib.ExitStack() as stack:
            address = server.address
            os.kill(server.pid, signal.SIGSTOP)
            clients = [stack.enter_context(connect(address)) for _ in range(8)]
            os.kill(server.pid, signal.SIGCONT)
            for client in clients:  # the others live on, those before and those after
                client.sendall(b"one\n")
                client.shutdown(socket.SHUT_WR)
                assert b"" == read_all(client)
            server.wait_for_log("^close .* reason=eof", count=8)
            eventually(lambda: not children_of(server.pid))
            assert b"one\n" * 8 == server.output

    def test_a_fork_that_fails_among_others_costs_one_session(self) -> None:
        """Those before it live, those after it get their children."""
        code = (
            "import logging, os, stdserve\n"
            "logging.basicConfig(level='INFO', format='%(message)s')\n"
            "fork, asked = os.fork, []\n"
            "def failing():\n"
            "    asked.append(1)\n"
            "    if len(asked) == 3:\n"
            "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
            "    return fork()\n"
            "os.fork = failing\n"
            "stdserve.serve(stdserve.EchoHandler, mode='fork', port=0)\n"
        )
        command = (sys.executable, "-c", code)
        with ServerProcess(port=None, command=command) as server, contextlib.ExitStack() as stack:
            address = server.address
            os.kill(server.pid, signal.SIGSTOP)
            clients = [stack.enter_context(connect(address)) for _ in range(5)]
            os.kill(server.pid, signal.SIGCONT)
            answers = [b""] * len(clients)
            for at, client in enumerate(clients):
                with contextlib.suppress(OSError):
                    client.sendall(b"one\n")
                    client.shutdown(socket.SHUT_WR)
                    answers[at] = read_all(client)
            assert [b"one\n", b"one\n", b"", b"one\n", b"one\n"] == answers
            server.wait_for_log("error .*Resource temporarily unavailable")

    def test_a_hook_that_fails_when_the_parent_lets_go_of_a_client_costs_nobody(self) -> None:
        """The child has the client by then, and keeps him."""
        code = (
            "import os, sys, stdserve\n"
            "parent = os.getpid()\n"
            "class Mine(stdserve.ForkServer):\n"
            "    def close_request(self, request):\n"
            "        if os.getpid() == parent:\n"
            "            raise LookupError('mine')\n"
            "        super().close_request(request)\n"
            "server = Mine(('127.0.0.1', 0), stdserve.EchoHandler)\n"
            "print('listening on %s:%d' % server.server_address, file=sys.stderr, flush=True)\n"
            "server.serve_forever()\n"
        )
        with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
            address = ("127.0.0.1", int(server.wait_for_log(r"^listening on 127\.0\.0\.1:(\d+)$")[1]))
            for _ in range(2):
                assert b"one\n" == exchange(address, b"one\n")
            server.wait_for_log("^LookupError: mine", count=2)

    def test_a_handler_that_closes_its_server_closes_nothing_of_its_parents(self, tmp_path: Path) -> None:
        """It is the child's copy, and the next client is served."""
        (tmp_path / "mine.py").write_text(
            "import stdserve\n"
            "class Closes(stdserve.LineHandler):\n"
            "    def line_received(self, line):\n"
            "        self.server.server_close()\n"
            "        return 'closed'\n"
        )
        with ServerProcess("--mode", "fork", "--handler", "mine:Closes", cwd=tmp_path) as server:
            for _ in range(2):
                assert b"closed\n" == exchange(server.address, b"one\n")
            eventually(lambda: not children_of(server.pid))

    def test_a_child_never_collects_what_was_its_parents(self, tmp_path: Path) -> None:
        """It would copy all of it (gc.freeze); the parent itself goes on collecting."""
        (tmp_path / "mine.py").write_text(
            "import gc, stdserve\n"
            "class Frozen(stdserve.LineHandler):\n"
            "    def line_received(self, line):\n"
            "        return str(gc.get_freeze_count() > 1000 and gc.isenabled())\n"
        )
        with ServerProcess("--mode", "fork", "--handler", "mine:Frozen", cwd=tmp_path) as server:
            assert b"True\n" == exchange(server.address, b"one\n")

    def test_a_hook_of_the_loop_may_close_the_server(self) -> None:
        """It is closed when it has stopped: a child that still runs is told, and reaped."""
        code = (
            "import sys, stdserve\n"
            "class Mine(stdserve.ForkServer):\n"
            "    def service_actions(self):\n"
            "        if self.active:\n"
            "            self.server_close()\n"
            "server = Mine(('127.0.0.1', 0), stdserve.EchoHandler)\n"
            "print('listening on %s:%d' % server.server_address, file=sys.stderr, flush=True)\n"
            "server.serve_forever(0.05)\n"
            "print('left', server.active, file=sys.stderr, flush=True)\n"
        )
        with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
            address = ("127.0.0.1", int(server.wait_for_log(r"^listening on 127\.0\.0\.1:(\d+)$")[1]))
            with connect(address) as client:
                assert b"" == read_all(client)
            server.wait_for_log("^left 0$")
            assert 0 == server.wait()

    def test_shutdown_from_inside_a_handler_returns(self, tmp_path: Path) -> None:
        """It is the child's copy of the server; the handler goes on."""
        (tmp_path / "mine.py").write_text(
            "import stdserve\n"
            "class Stops(stdserve.LineHandler):\n"
            "    def line_received(self, line):\n"
            "        self.server.shutdown()\n"
            "        return 'returned'\n"
        )
        with ServerProcess("--mode", "fork", "--handler", "mine:Stops", cwd=tmp_path) as server:
            assert b"returned\n" == exchange(server.address, b"one\n")

    def test_a_parent_that_is_killed_leaves_the_port_free(self) -> None:
        """The child has closed its copy of the listener."""
        with ServerProcess("--mode", "fork") as server:
            with connect(server.address) as client:
                server.wait_for_log("^open")
                eventually(lambda: children_of(server.pid))
                (child,) = children_of(server.pid)
                address = server.address
                listeners = f"/proc/{child}/fd"
                eventually(lambda: len(os.listdir(listeners)) < len(os.listdir(f"/proc/{server.pid}/fd")) + 2)
                server.process.kill()
                server.process.wait(DEADLINE)
                with ServerProcess("--bind", "%s:%d" % address, port=None) as second:
                    exchange(second.address, b"mine")
                    second.wait_for_output(b"mine\n")
                client.sendall(b"still served\nexit\n")
                assert b"" == read_all(client)
            server.wait_for_output(b"still served\n")

    def test_foreign_children_keep_their_exit_status(self) -> None:
        """Only children of ours are waited for."""
        code = (
            "import subprocess, sys, threading, stdserve\n"
            "foreign = subprocess.Popen(['sh', '-c', 'read x; exit 7'], stdin=subprocess.PIPE)\n"
            "server = stdserve.create_server(stdserve.EchoHandler, 'fork', bind='127.0.0.1:0', once=True)\n"
            "print(server.server_address[1], file=sys.stderr, flush=True)\n"
            "foreign.stdin.close()\n"
            "server.serve_forever()\n"
            "sys.exit(foreign.wait())\n"
        )
        with subprocess.Popen([sys.executable, "-c", code], stderr=-1, stdout=-1, text=True) as process:
            assert process.stderr is not None
            assert b"one\n" == exchange(("127.0.0.1", int(process.stderr.readline())), b"one\n")
            assert ("one\n", "") == process.communicate(timeout=DEADLINE)
            assert 7 == process.returncode

    def test_handle_request_serves_one_client_in_a_child(self) -> None:
        """Without a loop; the child is reaped at the next turn."""
        code = (
            "import sys, stdserve\n"
            "with stdserve.ForkServer(('127.0.0.1', 0), stdserve.EchoHandler) as server:\n"
            "    print(server.server_address[1], file=sys.stderr, flush=True)\n"
            "    server.handle_request()\n"
            "    server.handle_request()\n"
        )
        with subprocess.Popen([sys.executable, "-W", "error", "-c", code], stderr=-1, stdout=-1, text=True) as process:
            assert process.stderr is not None
            address = ("127.0.0.1", int(process.stderr.readline()))
            for word in (b"one\n", b"two\n"):
                assert word == exchange(address, word)
            assert ("one\ntwo\n", "") == process.communicate(timeout=DEADLINE)


def test_each_handler_class_of_a_plain_kind_runs_in_each_mode() -> None:
    """A BaseRequestHandler that knows nothing of lines."""

    class Plain(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100)[::-1])

    class Lines(LineHandler):
        def line_received(self, line: str) -> str:
            return line[::-1]

    for server_class in (SingleServer, ThreadServer):
        for handler in (Plain, Lines):
            with running(server_class(LOCAL, handler)) as server:
                assert b"eno" == exchange(server.server_address, b"one").strip()
