"""Waiting for many descriptors at once, and being woken from anywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from processes import DEADLINE
from test_children import run_script

from stdserve.waiting import Waiter


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    """A waiter that is closed in the end."""
    with contextlib.closing(Waiter()) as waiter:
        yield waiter


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Three connected pairs: what is watched, and what makes it readable."""
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(3)]
        for ends in pairs:
            for end in ends:
                stack.enter_context(end)
        yield pairs


def test_what_is_readable_is_called_once_in_each_turn(
    waiter: Waiter, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """Sockets and bare descriptors, until they are read; the others are not called."""
    calls: list[int] = []
    for number, (watched, _) in enumerate(pairs):
        waiter.watch(watched.fileno() if number == 2 else watched, partial(calls.append, number))
    pairs[0][1].send(b"x")
    pairs[2][1].send(b"x")
    waiter.turn()
    waiter.turn(DEADLINE)
    assert [0, 0, 2, 2] == sorted(calls)

    pairs[0][0].recv(1)
    pairs[2][0].recv(1)
    waiter.turn(0)
    assert 4 == len(calls)


def test_a_turn_ends_after_its_timeout(waiter: Waiter) -> None:
    """Not before, and without a call."""
    before = time.monotonic()
    waiter.turn(0.05)

    assert 0.05 <= time.monotonic() - before < DEADLINE


def test_what_is_forgotten_is_not_called(waiter: Waiter, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """It may be watched again, with another call."""
    calls: list[str] = []
    watched, other = pairs[0]
    other.send(b"x")
    waiter.watch(watched, lambda: calls.append("first"))
    waiter.unwatch(watched)
    waiter.turn(0)
    assert [] == calls

    waiter.watch(watched, lambda: calls.append("second"))
    waiter.turn(0)
    assert ["second"] == calls


def test_what_an_earlier_call_of_the_turn_had_forgotten_is_not_called(
    waiter: Waiter, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """All three are readable; whichever comes first has the others forgotten."""
    calls: list[int] = []

    def call(number: int) -> None:
        calls.append(number)
        for watched, _ in pairs:
            waiter.unwatch(watched)

    for number, (watched, other) in enumerate(pairs):
        other.send(b"x")
        waiter.watch(watched, partial(call, number))
    waiter.turn(DEADLINE)

    assert 1 == len(calls)


def test_what_an_earlier_call_had_forgotten_and_closed_is_not_called(
    waiter: Waiter, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """Forgotten first, then closed, as ``unwatch`` wants it."""
    calls: list[int] = []

    def call(number: int) -> None:
        calls.append(number)
        for watched, _ in pairs:
            waiter.unwatch(watched)
            watched.close()

    for number, (watched, other) in enumerate(pairs):
        other.send(b"x")
        waiter.watch(watched, partial(call, number))
    waiter.turn(DEADLINE)

    assert 1 == len(calls)


def test_a_descriptor_with_the_number_of_a_forgotten_one_is_another(
    waiter: Waiter, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """What was readable under the number before is not called in its place."""
    calls: list[str] = []
    numbers = [os.dup(watched.fileno()) for watched, _ in pairs[:2]]

    def call(number: int, other: int) -> None:
        calls.append("first")
        waiter.unwatch(other)
        os.dup2(pairs[2][0].fileno(), other)
        waiter.watch(other, partial(calls.append, "another"))

    for number, other in (numbers, reversed(numbers)):
        pairs[numbers.index(number)][1].send(b"x")
        waiter.watch(number, partial(call, number, other))
    waiter.turn(DEADLINE)
    for number in numbers:
        waiter.unwatch(number)
        os.close(number)

    assert ["first"] == calls


def test_a_wake_up_ends_the_next_wait_and_only_that(waiter: Waiter) -> None:
    """It is not lost when nobody waits yet, and used up by the turn it ends, however often it was asked for."""
    waiter.wake()
    waiter.wake()
    waiter.turn()
    before = time.monotonic()
    waiter.turn(0.05)

    assert 0.05 <= time.monotonic() - before


def test_another_thread_wakes_the_one_that_waits(waiter: Waiter) -> None:
    """At once, not after a poll."""
    timer = threading.Timer(0.05, waiter.wake)
    timer.start()
    before = time.monotonic()
    waiter.turn(10 * DEADLINE)
    timer.join()

    assert 0.04 < time.monotonic() - before < DEADLINE


def test_a_signal_wakes_by_the_descriptor_that_its_c_handler_writes_to(waiter: Waiter) -> None:
    """Also when it came before the wait, whatever its Python handler does."""
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    before = signal.set_wakeup_fd(waiter.wakeup_fd)
    try:
        signal.raise_signal(signal.SIGALRM)
        waiter.turn()
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGALRM, handler)


def test_a_signal_handler_wakes_the_thread_that_it_interrupts(waiter: Waiter) -> None:
    """The wait would go on after the handler (PEP 475), but for the wake-up."""
    handler = signal.signal(signal.SIGALRM, lambda *_: waiter.wake())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        before = time.monotonic()
        waiter.turn(10 * DEADLINE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)

    assert time.monotonic() - before < DEADLINE


def test_wake_ups_that_nobody_reads_do_not_block(waiter: Waiter) -> None:
    """A signal handler may come any number of times."""
    for _ in range(10_000):
        waiter.wake()
    waiter.turn()


def test_a_closed_waiter_may_be_woken_and_closed_again() -> None:
    """Who wakes need not know; nothing is left open."""
    before = os.listdir("/dev/fd")
    waiter = Waiter()
    waiter.close()
    waiter.wake()
    waiter.close()

    assert before == os.listdir("/dev/fd")


def test_a_turn_takes_any_timeout(waiter: Waiter) -> None:
    """``--graceful-timeout 1000h`` is a duration like any other."""
    waiter.wake()
    waiter.turn(1000 * 3600.0)


def test_a_forked_child_that_closes_it_takes_nothing_from_its_parent() -> None:
    """The parent is woken, and called for what it watches, as before."""
    finished = run_script("""
        import os, socket
        from stdserve.waiting import Waiter

        waiter = Waiter()
        watched, other = socket.socketpair()
        waiter.watch(watched, lambda: print(watched.recv(10).decode()))
        pid = os.fork()
        if pid == 0:
            waiter.close()
            os._exit(0)
        os.waitpid(pid, 0)
        other.send(b"called")
        waiter.turn(20)
        waiter.wake()
        waiter.turn()
        print("woken")
        for file in (waiter, watched, other):
            file.close()
    """)

    assert (["called", "woken"], "") == (finished.stdout.splitlines(), finished.stderr)


def test_who_was_closed_without_a_word_makes_way_for_who_has_its_number(waiter: Waiter) -> None:
    """And is not taken for it when it is forgotten."""
    calls: list[str] = []
    former, later = partial(calls.append, "former"), partial(calls.append, "later")
    reader, writer = os.pipe()
    waiter.watch(reader, former)
    os.close(reader)
    os.close(writer)
    again, writer = os.pipe()
    assert reader == again
    waiter.watch(again, later)
    waiter.forget(again, former)
    os.write(writer, b"x")
    waiter.turn(DEADLINE)
    assert ["later"] == calls
    waiter.forget(again, later)
    waiter.forget(again, later)
    waiter.turn(0)
    assert ["later"] == calls
    os.close(again)
    os.close(writer)
