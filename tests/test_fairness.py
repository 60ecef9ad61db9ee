"""Who computes keeps the interpreter for less time; who talks, or is silent, does as ever."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from processes import DEADLINE, eventually
from test_children import run_script

from stdserve import LineHandler, serving
from stdserve.fairness import LOOK_SECONDS, SHORT_SECONDS, fair_shares
from stdserve.threads import SessionThreads


@contextmanager
def busy(step: Callable[[], object], count: int = 3) -> Iterator[SessionThreads]:
    """Have so many threads of sessions take the step again and again."""
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            step()

    threads = SessionThreads(serve, count, keep=0.01)
    try:
        with fair_shares(threads):
            for _ in range(count):
                threads.submit()
            yield threads
            over.set()
            eventually(lambda: sys.getswitchinterval() == pytest.approx(0.005), "as ever")
    finally:
        over.set()
        eventually(lambda: not threads.unfinished)


def test_sessions_that_compute_share_the_interpreter_while_they_do() -> None:
    """In small parts; when they are done, it is as before."""
    with busy(lambda: sum(range(1000))):
        eventually(lambda: sys.getswitchinterval() == pytest.approx(SHORT_SECONDS), "in small parts")


def test_sessions_that_are_busy_with_the_system_go_on_as_ever() -> None:
    """They let go of the interpreter by themselves; to be asked more often would only cost them time."""
    with open("/dev/zero", "rb", buffering=0) as zeros, busy(lambda: os.read(zeros.fileno(), 1 << 20)) as threads:
        for _ in range(4):
            eventually(lambda: not threads.handed_over.is_set(), "looked, and roused again")
            assert pytest.approx(0.005) == sys.getswitchinterval()
            threads.submit()


class Noted(SessionThreads):
    """Notes how long it was from one look to the next."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.gaps: list[float] = []
        self._looked_at = time.monotonic()
        self._unfinished = 0
        super().__init__(*args, **kwargs)

    @property
    def unfinished(self) -> int:
        """What is asked before each rest, by that thread alone."""
        if threading.current_thread().name == "stdserve fairness":
            now = time.monotonic()
            self.gaps.append(now - self._looked_at)
            self._looked_at = now
        return self._unfinished

    @unfinished.setter
    def unfinished(self, value: int) -> None:
        self._unfinished = value


def test_silent_sessions_are_looked_at_less_and_less() -> None:
    """Twice as long each time that the process has done next to nothing."""
    silent = threading.Event()
    threads = Noted(lambda: silent.wait(DEADLINE), 1, keep=0.01)
    with fair_shares(threads):
        threads.submit()
        eventually(lambda: max(threads.gaps[1:], default=0.0) > 5 * LOOK_SECONDS, "a rest of four looks, and a look")
        silent.set()
        eventually(lambda: not threads.unfinished)


def test_what_computes_from_the_start_leaves_the_interval_as_it_was() -> None:
    """Also if the server ends in the midst of it."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    threads = SessionThreads(compute, 2, keep=0.01)
    with fair_shares(threads):
        threads.submit()
        threads.submit()
        eventually(lambda: sys.getswitchinterval() == pytest.approx(SHORT_SECONDS), "in small parts")
    assert pytest.approx(0.005) == sys.getswitchinterval()
    over.set()
    eventually(lambda: not threads.unfinished)


def test_where_no_sessions_have_threads_the_parts_are_small() -> None:
    """For the page of the status, beside one session that computes."""
    with fair_shares(None):
        assert pytest.approx(SHORT_SECONDS) == sys.getswitchinterval()
    assert pytest.approx(0.005) == sys.getswitchinterval()


@pytest.mark.parametrize("mode", ["thread", "single", "event"])
def test_a_server_that_is_embedded_leaves_the_interval_alone(mode: str) -> None:
    """It is the program's: only the runner sets it."""

    class Tells(LineHandler):
        def line_received(self, line: str) -> str:
            return str(sys.getswitchinterval())

    with serving(Tells, mode) as server:
        assert 0.005 == pytest.approx(float(server.client().ask("how long?")))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of memory is another one elsewhere")
def test_where_nobody_can_look_the_parts_are_small() -> None:
    """For want of a thread: the server serves, and does so fairly."""
    finished = run_script("""
        import resource, sys, threading
        from stdserve.fairness import fair_shares
        from stdserve.threads import SessionThreads

        threads = SessionThreads(print, 5)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
        threading.stack_size(1 << 31)
        with fair_shares(threads):
            print(sys.getswitchinterval())
        print(sys.getswitchinterval())
    """)

    assert "" == finished.stderr
    assert ["0.0005", "0.005"] == finished.stdout.splitlines()
