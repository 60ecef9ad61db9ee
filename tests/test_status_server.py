"""The status server in a process of its own: forked by its parent, quick whatever else goes on, gone in time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest
from processes import DEADLINE, ServerProcess, children_of, connect, eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

SCRIPT = """
import logging, os, signal, socket, sys, threading
from functools import partial
from stdserve.children import fork_child
from stdserve.listeners import open_listeners
from stdserve.addresses import parse_address
from stdserve.metrics import Metrics
from stdserve.status_server import run_status
logging.basicConfig(level="DEBUG", format="%(message)s", stream=sys.stderr)
metrics = Metrics(2, 8)
working = open_listeners([parse_address("127.0.0.1:0")])
listeners = open_listeners([parse_address("127.0.0.1:0")])
status = fork_child(partial(run_status, listeners, metrics, working), {{}}, born=lambda child: None)
for listener in listeners:
    print("status", listener.getsockname()[1], status.pid, working[0].getsockname()[1], flush=True)
    listener.close()

def compute(number):
    counters = metrics.enter(number)
    counters.serve()
    for _ in range(8):
        counters.take("peer").open()
    def spin():
        while True:
            counters.beat()
    threads = [threading.Thread(target=spin) for _ in range(4)]
    for thread in threads:
        thread.start()
    threads[0].join()

{work}
"""


class Parent(ServerProcess):
    """A process that has forked a status server, and does as it is told here."""

    def __init__(self, work: str) -> None:
        super().__init__(port=None, command=(sys.executable, "-W", "error", "-c", SCRIPT.format(work=work)))
        eventually(lambda: b"\n" in self.output, "".join(self.log))
        found = re.search(rb"status (\d+) (\d+) (\d+)", self.output)
        assert found
        self.status_port, self.status_pid, self.working_port = map(int, found.groups())

    def __enter__(self) -> Parent:
        return self

    def ask(self, path: str) -> tuple[int, str]:
        """Return the status and the body of an answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}{path}", timeout=DEADLINE) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not (Linux)."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_it_answers_while_every_worker_computes_and_has_all_the_sessions_it_may_have() -> None:
    """Within 100 ms, once the machine lets it: the best of twenty answers of each kind is judged."""
    work = "for number in range(2): fork_child(partial(compute, number), {}, born=print)\nsignal.pause()"
    with Parent(work) as parent:
        eventually(lambda: "\nstdserve_sessions_open 16\n" in parent.ask("/metrics")[1])
        for path in ("/metrics", "/readyz", "/sessions", "/live", "/"):
            took = []
            for _ in range(20):
                began = time.monotonic()
                assert 200 == parent.ask(path)[0]
                took.append(time.monotonic() - began)
            assert min(took) < 0.1, path
        for pid in children_of(parent.pid):
            os.kill(pid, signal.SIGKILL)


def test_it_tells_the_queue_of_the_workers_listeners_until_they_drain() -> None:
    """Its copies of them would keep clients waiting for nobody; it tells of the drain until it is told again."""
    work = (
        "import time\n"
        "counters = metrics.enter(0)\n"
        "counters.serve()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: (metrics.drain(), status.kill(signal.SIGTERM)))\n"
        "signal.signal(signal.SIGUSR2, lambda *_: status.kill(signal.SIGTERM))\n"
        "working[0].close()\n"
        "while (code := status.reap()) is None: counters.beat(), time.sleep(0.01)\n"
        "print('ended with', code, flush=True)\n"
    )
    with Parent(work) as parent:
        queue = f'stdserve_listen_queue_length{{listener="127.0.0.1:{parent.working_port}"}}'
        if sys.platform == "linux":
            with connect(("127.0.0.1", parent.working_port)):
                assert f"\n{queue} 1\n" in parent.ask("/metrics")[1]
        eventually(lambda: parent.ask("/readyz") == (200, "ready\n"))
        parent.process.send_signal(signal.SIGUSR1)
        eventually(lambda: parent.ask("/readyz") == (503, "draining\n"))
        assert parent.ask("/healthz") == (200, "ok\n")
        assert queue not in parent.ask("/metrics")[1]
        with pytest.raises(ConnectionRefusedError):
            connect(("127.0.0.1", parent.working_port))
        parent.process.send_signal(signal.SIGUSR2)
        parent.wait_for_output(b"ended with 0\n")
        with pytest.raises(ConnectionRefusedError):
            connect(("127.0.0.1", parent.status_port))
        assert 0 == parent.wait()
        assert [] == parent.log


def test_it_ends_when_its_parent_is_killed_and_leaves_the_port_free() -> None:
    """Nobody else would end it."""
    with Parent("signal.pause()") as parent:
        assert 200 == parent.ask("/healthz")[0]
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        eventually(lambda: is_gone(parent.status_pid))
        with pytest.raises(ConnectionRefusedError):
            connect(("127.0.0.1", parent.status_port))


def test_slow_clients_keep_nobody_out_for_long() -> None:
    """Even when they are as many as it takes, and send a byte now and then."""
    with Parent("signal.pause()") as parent:
        slow = [connect(("127.0.0.1", parent.status_port)) for _ in range(64)]
        answered = threading.Event()

        def dribble() -> None:
            while not answered.wait(1):
                for client in slow:
                    with contextlib.suppress(OSError):
                        client.send(b"G")

        dribbler = threading.Thread(target=dribble)
        dribbler.start()
        try:
            assert 200 == parent.ask("/healthz")[0]
        finally:
            answered.set()
            dribbler.join(DEADLINE)
            for client in slow:
                client.close()
