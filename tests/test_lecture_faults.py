"""What the lecture's programs get wrong, shown on them as they are printed, and that stdserve does not do it.

Each test runs the lecture's own server first (see ``lecture_programs``), then stdserve in the same situation.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from lecture_programs import lecture
from processes import DEADLINE, ServerProcess, children_of, connect, eventually

#: Seconds in which something that must not happen is given the chance to.
NEVER = 1.0

#: An ASCII byte in front, so that the lecture's recv(1024) cuts the 512th letter in two.
SPLIT = ("a" + "я" * 600).encode()

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the lecture's programs are ended by their process group")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="processes and threads are counted in /proc")


def never(condition: Callable[[], object]) -> None:
    """Watch a condition for a while; it must not come true."""
    with pytest.raises(pytest.fail.Exception, match="not within"):
        eventually(condition, deadline=NEVER)


@contextlib.contextmanager
def crowd(server: ServerProcess, size: int) -> Iterator[None]:
    """Keep ``size`` clients connected that say nothing."""
    with contextlib.ExitStack() as clients:
        for _ in range(size):
            clients.enter_context(connect(server.address))
        yield


def status(pid: int, field: str) -> str:
    """Return a field of the process's status, as proc_pid_status(5) names it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)[field].strip()


def threads_of(server: ServerProcess) -> int:
    """Count the threads of a server's process."""
    return int(status(server.pid, "Threads"))


@contextlib.contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Hold processes still (SIGSTOP) for the time of the block."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: all(status(pid, "State").startswith("T") for pid in pids))
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("name", ["ONE_CLIENT", "ONE_BY_ONE", "READ_TIMEOUT"])
def test_a_letter_cut_in_two_kills_the_lectures_server(name: str) -> None:
    """600 Cyrillic letters end the lecture's server with a UnicodeDecodeError; stdserve prints them and goes on."""
    with lecture(name) as server:
        with connect(server.address) as client:
            client.sendall(SPLIT)
            assert 1 == server.wait()
        assert server.log[-1].startswith("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xd1 in position 1023")
        with pytest.raises(ConnectionRefusedError):
            connect(server.address)

    with ServerProcess("--mode", "single") as server:
        for text in (SPLIT, b"next"):
            with connect(server.address) as client:
                client.sendall(text + b"\n")
                server.wait_for_output(text + b"\n")
        assert 0 == server.stop()
        assert SPLIT + b"\nnext\n" == server.output


@pytest.mark.parametrize("name", ["ONE_CLIENT", "ONE_BY_ONE"])
def test_exit_inside_a_word_cuts_the_lectures_session(name: str) -> None:
    """The lecture's server swallows "process exited" and hangs up; to stdserve it is a line like any other."""
    with lecture(name) as server, connect(server.address) as client:
        client.sendall(b"process exited\n")

        assert b"" == client.recv(1)
        if name == "ONE_BY_ONE":
            server.wait_for_output(b"connection closed")
        else:
            assert 0 == server.wait()
        assert b"process" not in server.output

    with ServerProcess("--mode", "single") as server, connect(server.address) as client:
        client.sendall(b"process exited\n")
        server.wait_for_output(b"process exited\n")
        client.sendall(b"still here\n")
        server.wait_for_output(b"process exited\nstill here\n")
        assert 0 == server.stop()


def test_a_silent_client_blocks_the_lectures_server() -> None:
    """While one client is silent the lecture's server serves nobody else; stdserve does, and stops when asked to."""
    with lecture("ONE_BY_ONE") as server, connect(server.address) as silent, connect(server.address) as second:
        second.sendall(b"hello\n")
        never(lambda: b"hello" in server.output)

        silent.close()
        server.wait_for_output(b"hello")

    with ServerProcess() as server, connect(server.address), connect(server.address) as second:
        second.sendall(b"hello\n")
        server.wait_for_output(b"hello\n")
        assert 0 == server.stop()


def test_a_browser_waits_for_the_lectures_server_for_ever() -> None:
    """The lecture proposes a browser and never answers it; stdserve prints the request and answers with a page."""
    with lecture("ONE_BY_ONE") as server, connect(server.address) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        server.wait_for_output(b"GET / HTTP/1.1")
        browser.settimeout(NEVER)
        with pytest.raises(TimeoutError):
            browser.recv(1)

    with ServerProcess() as server:
        connection = http.client.HTTPConnection(*server.address, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert (11, 200) == (answer.version, answer.status)
            assert b"stdserve" in answer.read()
        assert 0 == server.stop()
        assert server.output.startswith(b"GET / HTTP/1.1\n")


@needs_proc
def test_only_one_of_the_lectures_three_workers_starts() -> None:
    """The lecture starts a worker and waits for its end before the next; all three of stdserve's workers serve."""
    with lecture("PROCESSES_AND_THREADS") as server:
        for number in range(3):
            with connect(server.address) as client:
                client.sendall(b"client %d\n" % number)
                server.wait_for_output(b"client %d\n" % number)
        (worker,) = children_of(server.pid)
        # Whole lines only: the program's threads print into each other's.
        assert {b"%d" % worker} == set(re.findall(rb"PID: (\d+)\n", server.output))

        os.kill(worker, signal.SIGKILL)
        eventually(lambda: len(set(children_of(server.pid)) - {worker}) == 1)

    with ServerProcess("--mode", "thread", "--workers", "3") as server:
        server.wait_for_log("^listening")  # said when all of them serve
        workers = set(children_of(server.pid))
        assert 3 == len(workers)
        for worker in workers:
            with stopped(workers - {worker}), connect(server.address) as client:
                client.sendall(b"served by %d\nexit\n" % worker)
                # Its session is over, so it is not stopped while it holds the lock of the output that all share.
                assert b"" == client.recv(1)
                server.wait_for_output(b"served by %d\n" % worker)
        assert 0 == server.stop()


@needs_proc
def test_the_lectures_threads_have_no_bound() -> None:
    """300 silent clients are 300 threads of the lecture's server; stdserve has as many as it may, and serves on."""
    with lecture("THREADS") as server, crowd(server, 300):
        eventually(lambda: threads_of(server) == 301)

    with ServerProcess("--max-conns", "20") as server:
        with crowd(server, 300):
            eventually(lambda: threads_of(server) >= 20)
            never(lambda: threads_of(server) > 25)
        with connect(server.address) as client:
            client.sendall(b"after the crowd\n")
            server.wait_for_output(b"after the crowd\n")
        assert 0 == server.stop()
