"""Pre-forked workers: started together, replaced when they die, stopped and reaped together.

The supervisor knows a callable to run in each worker; sockets reach the workers by inheritance.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Collection
from types import FrameType

from .children import POLL_SECONDS, Child, fork_child, ignore_signal
from .waiting import Waiter

__all__ = ["Supervisor"]

_log = logging.getLogger("stdserve")

#: A worker that lasted this long (seconds) has held: the next death of one is answered at once again.
HELD_SECONDS = 1.0

#: Longest wait (seconds) before a worker that keeps dying is started again; the wait doubles from FIRST_WAIT.
LONGEST_WAIT = 10.0
FIRST_WAIT = 0.1


class Supervisor:
    """Keeps ``count`` workers running, each a forked child that calls ``work()`` and exits with what it returns.

    Methods for the caller: ``run()``. A status in ``fatal`` means that no other worker would fare better: the
    rest is stopped and ``run`` returns it. SIGTERM and SIGINT tell the workers to stop (SIGTERM), a second
    one again; workers that have not ended ``patience`` seconds after the first are killed.
    """

    def __init__(
        self,
        work: Callable[[], int],
        count: int,
        *,
        patience: float,
        fatal: Collection[int] = (),
        stopping: Callable[[], None] | None = None,
    ) -> None:
        """Set up; nothing is forked yet. ``stopping()`` is called once, when the workers are told to stop."""
        self._work = work
        self._stopping = stopping
        self._count = count
        self._fatal = fatal
        self._patience = patience
        self._workers: dict[int, tuple[Child, float]] = {}
        self._signals: deque[int] = deque()
        self._status = 0
        self._deadline: float | None = None
        self._wait = 0.0
        self._start_at = 0.0
        self._waiter = Waiter()

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call ``ready()``, and return when all have ended: 0, or the fatal status of one.

        To be called in the main thread, before any other thread runs. The caller's signal handlers come back.
        """
        stop_signals = (signal.SIGTERM, signal.SIGINT)
        before = {signum: signal.signal(signum, self._queue_signal) for signum in stop_signals}
        wakeup_fd = signal.set_wakeup_fd(self._waiter.wakeup_fd, warn_on_full_buffer=False)
        try:
            self._start_missing()
            ready()
            while self._workers or self._deadline is None:
                self._waiter.turn(self._next_due())
                self._handle_signals()
                self._reap_workers()
                self._start_missing()
                self._kill_late()
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
            _log.debug("signal %s", signal.Signals(self._signals.popleft()).name)
            self._stop()

    def _stop(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + self._patience
            if self._stopping is not None:
                self._stopping()
        for worker, _ in self._workers.values():
            worker.kill(signal.SIGTERM)

    def _kill_late(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            for worker, _ in self._workers.values():
                worker.kill(signal.SIGKILL)

    def _next_due(self) -> float | None:
        """Return the seconds until something is to be done that no descriptor tells."""
        due = [at for at in (self._deadline, self._start_at if self._missing() else None) if at is not None]
        waits = [max(0.0, min(due) - time.monotonic())] if due else []
        if any(worker.fd is None for worker, _ in self._workers.values()):
            waits.append(POLL_SECONDS)
        return min(waits, default=None)

    def _missing(self) -> int:
        return 0 if self._deadline is not None else self._count - len(self._workers)

    def _start_missing(self) -> None:
        if time.monotonic() < self._start_at:
            return
        for _ in range(self._missing()):
            # Ctrl-C reaches the whole foreground group; what it means is for the supervisor to say.
            fork_child(self._live, {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: ignore_signal}, self._write_down)

    def _write_down(self, worker: Child) -> None:
        self._workers[worker.pid] = worker, time.monotonic()
        if worker.fd is not None:
            self._waiter.watch(worker.fd, _nothing)
        _log.debug("worker %d started", worker.pid)

    def _live(self) -> int:
        self._waiter.close()
        return self._work()

    def _reap_workers(self) -> None:
        for worker, started in list(self._workers.values()):
            fd = worker.fd
            status = worker.reap()
            if status is None:
                continue
            if fd is not None:
                self._waiter.unwatch(fd)
            del self._workers[worker.pid]
            if self._deadline is None:
                self._replace(worker, status, time.monotonic() - started)

    def _replace(self, worker: Child, status: int, lasted: float) -> None:
        """Stop all if the status is fatal; else see that a new worker starts, later and later if they die young."""
        if status in self._fatal:
            self._status = status
            self._stop()
            return
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._wait = 0.0 if lasted >= HELD_SECONDS else min(LONGEST_WAIT, max(FIRST_WAIT, self._wait * 2))
        self._start_at = time.monotonic() + self._wait
        _log.error("error worker %d %s; another starts in %g s", worker.pid, how, self._wait)


def _nothing() -> None:
    """Wait no longer: the reaping is done after each turn."""
