"""Threads for sessions: bounded, reused, leaving, and never waited for."""

from __future__ import annotations

import _thread
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from processes import DEADLINE, eventually
from test_children import run_script

from stdserve.threads import SessionThreads, at_work


class Gate:
    """Work that says when it has begun and waits until it is let through."""

    def __init__(self) -> None:
        self.begun: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.opened = threading.Event()
        self.done: list[Any] = []

    def serve(self, work: Any) -> None:
        """Do one piece of work."""
        self.begun.put(work)
        assert self.opened.wait(DEADLINE)
        self.done.append(work)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that no thread is left behind at."""
    gate = Gate()
    yield gate
    gate.opened.set()


def test_work_is_done_in_another_thread_with_all_its_arguments() -> None:
    """One call of serve for each piece of work."""
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threads = SessionThreads(lambda *work: done.put((work, threading.get_ident())), 1, keep=0.01)
    threads.submit("request", "address")
    work, ident = done.get(timeout=DEADLINE)

    assert ("request", "address") == work
    assert threading.get_ident() != ident
    eventually(lambda: len(threads) == 0)


def test_each_piece_of_work_gets_a_thread_up_to_the_limit_and_the_rest_waits(gate: Gate) -> None:
    """Handing over never blocks; what exceeds the limit is done in order as threads become free."""
    threads = SessionThreads(gate.serve, 3, keep=0.01)
    assert 0 == len(threads)
    for number in range(10):
        threads.submit(number)

    assert 3 == len(threads)
    assert {0, 1, 2} == {gate.begun.get(timeout=DEADLINE) for _ in range(3)}
    with pytest.raises(queue.Empty):
        gate.begun.get(timeout=0.1)
    gate.opened.set()
    assert [3, 4, 5, 6, 7, 8, 9] == sorted(gate.begun.get(timeout=DEADLINE) for _ in range(7))
    eventually(lambda: len(threads) == 0)
    assert list(range(10)) == sorted(gate.done)


def test_one_thread_takes_the_waiting_work_in_the_order_it_came() -> None:
    """First come, first served."""
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    threads = SessionThreads(done.put, 1, keep=0.01)
    for number in range(100):
        threads.submit(number)

    assert list(range(100)) == [done.get(timeout=DEADLINE) for _ in range(100)]
    eventually(lambda: len(threads) == 0)


def test_threads_are_reused() -> None:
    """One client after the other needs no thread for each."""
    idents: queue.SimpleQueue[int] = queue.SimpleQueue()
    threads = SessionThreads(lambda: idents.put(threading.get_ident()), 100, keep=0.3)
    seen = set()
    for _ in range(200):
        threads.submit()
        seen.add(idents.get(timeout=DEADLINE))

    # A second or third may start while the first is between two pieces of work.
    assert len(seen) <= 5
    eventually(lambda: len(threads) == 0)


def test_a_thread_without_work_leaves_and_another_comes_when_needed() -> None:
    """An idle server keeps no threads."""
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = _thread._count()
    threads = SessionThreads(done.put, 5, keep=0.01)
    for number in range(3):
        threads.submit(number)
        assert number == done.get(timeout=DEADLINE)
        eventually(lambda: len(threads) == 0)
        eventually(lambda: _thread._count() <= before)


def test_closing_lets_idle_threads_end_and_busy_ones_after_their_work(gate: Gate) -> None:
    """Work that comes later is done, too."""
    threads = SessionThreads(gate.serve, 3)
    for number in range(2):
        threads.submit(number)
        gate.begun.get(timeout=DEADLINE)
    threads.close()
    assert 2 == len(threads)
    gate.opened.set()
    eventually(lambda: len(threads) == 0)
    threads.submit(2)
    eventually(lambda: 3 == len(gate.done) and len(threads) == 0)


def test_a_thread_with_work_does_not_leave(gate: Gate) -> None:
    """Only idle seconds count, not those of a long session."""
    threads = SessionThreads(gate.serve, 1, keep=0.01)
    threads.submit("long")
    gate.begun.get(timeout=DEADLINE)
    with pytest.raises(queue.Empty):
        gate.begun.get(timeout=0.1)

    assert 1 == len(threads)


def test_a_thread_stays_when_work_came_in_the_moment_it_would_have_left() -> None:
    """Its patience is over, and it takes the work all the same: no other thread was started for it."""
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    threads = SessionThreads(done.put, 1, keep=0.01)

    class Late:
        """A queue whose second piece of work arrives just after the reader has given up."""

        def __init__(self) -> None:
            self.reads = 0
            self.put = threads._work.put
            self._get = threads._work.get

        def get(self, timeout: float) -> Any:
            self.reads += 1
            if self.reads == 2:
                threads.submit("late")
                raise queue.Empty
            return self._get(timeout=timeout)

    threads._work = Late()  # type: ignore[assignment]
    threads.submit("first")

    assert ["first", "late"] == [done.get(timeout=DEADLINE), done.get(timeout=DEADLINE)]
    eventually(lambda: len(threads) == 0)


def test_a_thread_knows_that_it_is_one_of_them() -> None:
    """Not the caller's, and not one of other threads'."""
    inside: queue.SimpleQueue[bool] = queue.SimpleQueue()
    threads = SessionThreads(lambda: inside.put(threads.inside), 1, keep=0.01)
    others = SessionThreads(lambda: inside.put(threads.inside), 1, keep=0.01)

    threads.submit()
    assert inside.get(timeout=DEADLINE)
    others.submit()
    assert not inside.get(timeout=DEADLINE)
    assert not threads.inside
    eventually(lambda: len(threads) + len(others) == 0)


def test_a_later_thread_with_the_same_identity_is_not_one_of_them() -> None:
    """The system gives the identity of a thread that has left to the next one."""
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = _thread._count()
    threads = SessionThreads(lambda: left.put(threading.get_ident()), 1, keep=0)
    threads.submit()
    ident = left.get(timeout=DEADLINE)
    eventually(lambda: _thread._count() <= before)
    found: list[tuple[int, bool]] = []
    while ident not in dict(found) and len(found) < 100:
        later = threading.Thread(target=lambda: found.append((threading.get_ident(), threads.inside)))
        later.start()
        later.join()

    assert not any(inside for _, inside in found)


@pytest.mark.parametrize("what", ["trace", "profile"])
def test_debuggers_and_profilers_see_the_threads(what: str) -> None:
    """A bare thread asks threading for what was set for all threads, as a Thread does."""
    seen: queue.SimpleQueue[str] = queue.SimpleQueue()
    install: Callable[[Any], None] = getattr(threading, f"set{what}")
    before = getattr(threading, f"get{what}")()

    def serve(done: threading.Event) -> None:
        done.set()

    def watch(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            seen.put(frame.f_code.co_name)

    threads = SessionThreads(serve, 1, keep=0.01)
    install(watch)
    try:
        done = threading.Event()
        threads.submit(done)
        assert done.wait(DEADLINE)
        eventually(lambda: len(threads) == 0)
    finally:
        install(before)

    assert "serve" in [seen.get() for _ in range(seen.qsize())]


def test_an_idle_thread_keeps_nothing_of_its_last_work() -> None:
    """A socket that it held would stay open until the next client."""

    class Client:
        pass

    done = threading.Event()
    threads = SessionThreads(lambda client: done.set(), 1, keep=DEADLINE)
    client = Client()
    gone = weakref.ref(client)
    threads.submit(client)
    del client
    assert done.wait(DEADLINE)

    eventually(lambda: gone() is None)
    assert 1 == len(threads)


def test_many_short_pieces_of_work_never_exceed_the_limit_and_none_is_lost() -> None:
    """Threads that leave as soon as they are idle race with one that hands over as fast as it can."""
    limit, count = 4, 20_000
    lock = threading.Lock()
    now = most = 0
    done: list[int] = []

    def serve(number: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        done.append(number)
        with lock:
            now -= 1

    threads = SessionThreads(serve, limit, keep=0)
    for number in range(count):
        threads.submit(number)
        assert len(threads) <= limit
    eventually(lambda: len(done) == count)
    eventually(lambda: len(threads) == 0)

    assert sorted(done) == list(range(count))
    assert 1 <= most <= limit


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of memory is another one elsewhere")
def test_no_thread_to_be_had_is_told_and_leaves_nothing_behind() -> None:
    """A real refusal by the system is a RuntimeError; once there is memory again, work is done again."""
    finished = run_script("""
        import queue, resource, threading
        from stdserve.threads import SessionThreads, at_work

        done = queue.SimpleQueue()
        threads = SessionThreads(done.put, 5)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
        threading.stack_size(1 << 31)
        for _ in range(3):
            try:
                threads.submit("refused")
            except RuntimeError as error:
                print(error, len(threads))
        threading.stack_size(1 << 20)
        threads.submit("taken")
        print(done.get(timeout=20), len(threads), done.empty())
    """)

    assert "" == finished.stderr
    assert [*["can't start new thread 0"] * 3, "taken 1 True"] == finished.stdout.splitlines()


def test_a_thread_that_never_ends_does_not_hold_up_the_process() -> None:
    """Like a daemon thread it is left behind at the end."""
    finished = run_script("""
        import threading
        from stdserve.threads import SessionThreads, at_work

        begun = threading.Event()
        SessionThreads(lambda: begun.set() or threading.Event().wait(), 1).submit()
        begun.wait(20)
    """)

    assert (0, "", "") == (finished.returncode, finished.stdout, finished.stderr)


def test_it_is_known_whether_any_are_at_work(gate: Gate) -> None:
    """Of any pool of the process; not while one is just sitting down."""
    threads = SessionThreads(gate.serve, 1, keep=0.01)
    eventually(lambda: not at_work())  # those of other tests
    threads.submit("work")
    assert at_work()
    gate.opened.set()
    eventually(lambda: not at_work())
