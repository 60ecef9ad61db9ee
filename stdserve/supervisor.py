"""Pre-forked workers: started together, replaced when they die, stopped and reaped together.

The supervisor knows a callable to run in each worker; sockets reach the workers by inheritance. What a worker tells it
is its heartbeat: a byte in a pipe when it serves, and more where somebody wants to know that it still does.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from types import FrameType

from .children import POLL_SECONDS, Child, fork_child, ignore_signal
from .logs import Event
from .waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Supervisor"]

_log = logging.getLogger("stdserve")

#: A worker that lasted this long (seconds) has held: the next death of one is answered at once again.
HELD_SECONDS = 1.0

#: Longest wait (seconds) before a worker that keeps dying is started again; the wait doubles from FIRST_WAIT.
LONGEST_WAIT = 10.0
FIRST_WAIT = 0.1


class _Worker:
    """A worker: its process, the reading end of its heartbeat, when (monotonic) it was born and last heard of."""

    def __init__(self, child: Child, heart: int) -> None:
        self.child = child
        self.heart = heart
        self.born = self.heard = time.monotonic()
        self.serves = False


class Supervisor:
    """Keeps ``count`` workers running, each a forked child that calls ``work(beat)`` and exits with what it returns.

    ``work`` calls ``beat()`` when it serves; if ``alive`` is given, again every ``beat_seconds``, and ``alive()`` is
    called at that pace while none of the workers has missed its time.

    Methods for the caller: ``run()``. A status in ``fatal`` means that no other worker would fare better: the
    rest is stopped and ``run`` returns it. SIGTERM and SIGINT tell the workers to stop (SIGTERM), a second
    one again; workers that have not ended ``patience`` seconds after the first are killed.
    """

    def __init__(
        self,
        work: Callable[[Callable[[], None]], int],
        count: int,
        *,
        patience: float,
        fatal: Collection[int] = (),
        stopping: Callable[[], None] | None = None,
        alive: Callable[[], None] | None = None,
        beat_seconds: float = 1.0,
        passed_on: Collection[int] = (),
    ) -> None:
        """Set up; nothing is forked yet. ``stopping()`` is called once, when the workers are told to stop.

        Signals in ``passed_on`` are for the workers to understand.
        """
        self._passed_on = passed_on
        self._ready: Callable[[], None] | None = None
        self._alive = alive
        self._beat_seconds = beat_seconds
        self._alive_at = 0.0
        self._work = work
        self._stopping = stopping
        self._count = count
        self._fatal = fatal
        self._patience = patience
        self._workers: dict[int, _Worker] = {}
        self._signals: deque[int] = deque()
        self._status = 0
        self._deadline: float | None = None
        self._wait = 0.0
        self._start_at = 0.0
        self._waiter = Waiter()

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call ``ready()`` when all serve, return when all have ended: 0, or one's fatal status.

        To be called in the main thread, before any other thread runs. The caller's signal handlers come back.
        """
        signals = (signal.SIGTERM, signal.SIGINT, *self._passed_on)
        before = {signum: signal.signal(signum, self._queue_signal) for signum in signals}
        wakeup_fd = signal.set_wakeup_fd(self._waiter.wakeup_fd, warn_on_full_buffer=False)
        try:
            self._ready = ready
            self._start_missing()
            while self._workers or self._deadline is None:
                self._waiter.turn(self._next_due())
                self._handle_signals()
                self._reap_workers()
                self._start_missing()
                self._kill_late()
                self._tell()
        finally:
            signal.set_wakeup_fd(wakeup_fd)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self._waiter.close()
        return self._status

    def _queue_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals.append(signum)
        self._waiter.wake()

    def _handle_signals(self) -> None:
        while self._signals:
            signum = self._signals.popleft()
            _log.debug(Event("signal", signal.Signals(signum).name))
            if signum not in self._passed_on:
                self._stop()
                continue
            for worker in self._workers.values():
                worker.child.kill(signum)

    def _stop(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + self._patience
            if self._stopping is not None:
                self._stopping()
        for worker in self._workers.values():
            worker.child.kill(signal.SIGTERM)

    def _kill_late(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            for worker in self._workers.values():
                worker.child.kill(signal.SIGKILL)

    def _tell(self) -> None:
        """Tell, when it is time to, that all workers serve, or that they still do."""
        if self._deadline is not None:
            return
        workers = self._workers.values()
        if self._ready is not None and not self._missing() and all(worker.serves for worker in workers):
            ready, self._ready = self._ready, None
            ready()
        now = time.monotonic()
        if self._alive is not None and now >= self._alive_at:
            self._alive_at = now + self._beat_seconds
            # The time of two beats, for one may have come just after we looked. A dead worker is no matter of hearts.
            if workers and all(now - worker.heard < 2 * self._beat_seconds for worker in workers):
                self._alive()

    def _next_due(self) -> float | None:
        """Return the seconds until something is to be done that no descriptor tells."""
        due = [at for at in (self._deadline, self._start_at if self._missing() else None) if at is not None]
        if self._alive is not None and self._deadline is None:
            due.append(self._alive_at)
        waits = [max(0.0, min(due) - time.monotonic())] if due else []
        if any(worker.child.fd is None for worker in self._workers.values()):
            waits.append(POLL_SECONDS)
        return min(waits, default=None)

    def _missing(self) -> int:
        return 0 if self._deadline is not None else self._count - len(self._workers)

    def _start_missing(self) -> None:
        if time.monotonic() < self._start_at:
            return
        for _ in range(self._missing()):
            heart, beat = os.pipe()
            try:
                # Ctrl-C reaches the whole foreground group; what it means is for the supervisor to say.
                ignored = dict.fromkeys((signal.SIGINT, *self._passed_on), ignore_signal)
                handlers: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, **ignored}
                fork_child(partial(self._live, heart, beat), handlers, partial(self._write_down, heart))
            finally:
                os.close(beat)

    def _write_down(self, heart: int, child: Child) -> None:
        worker = self._workers[child.pid] = _Worker(child, heart)
        if child.fd is not None:
            self._waiter.watch(child.fd, _nothing)
        self._waiter.watch(heart, partial(self._hear, worker))
        _log.debug(Event("worker", f"{child.pid} started"))

    def _hear(self, worker: _Worker) -> None:
        if os.read(worker.heart, 4096):
            worker.heard, worker.serves = time.monotonic(), True
        else:
            self._waiter.unwatch(worker.heart)  # it has closed its end, and is about to be reaped

    def _live(self, heart: int, beat: int) -> int:
        self._waiter.close()
        for fd in (heart, *(worker.heart for worker in self._workers.values())):
            os.close(fd)
        os.set_blocking(beat, False)
        return self._work(partial(_beat, beat))

    def _reap_workers(self) -> None:
        for worker in list(self._workers.values()):
            child = worker.child
            fd = child.fd
            status = child.reap()
            if status is None:
                continue
            for watched in (fd, worker.heart):
                if watched is not None:
                    with suppress(KeyError, ValueError):
                        self._waiter.unwatch(watched)
            os.close(worker.heart)
            del self._workers[child.pid]
            if self._deadline is None:
                self._replace(child, status, time.monotonic() - worker.born)

    def _replace(self, worker: Child, status: int, lasted: float) -> None:
        """Stop all if the status is fatal; else see that a new worker starts, later and later if they die young."""
        if status in self._fatal:
            self._status = status
            self._stop()
            return
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._wait = 0.0 if lasted >= HELD_SECONDS else min(LONGEST_WAIT, max(FIRST_WAIT, self._wait * 2))
        self._start_at = time.monotonic() + self._wait
        _log.error(Event("error", f"worker {worker.pid} {how}; another starts in {self._wait:g} s"))


def _beat(fd: int) -> None:
    try:
        os.write(fd, b"\0")
    except OSError:
        pass  # full: enough is said; broken: there is no supervisor to be told


def _nothing() -> None:
    """Wait no longer: the reaping is done after each turn."""
