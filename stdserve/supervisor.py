"""Pre-forked workers: started together, replaced when they die, rolled, stopped and reaped together.

The supervisor knows a callable to run in each worker; sockets reach the workers by inheritance. What a worker tells it
comes through a pipe, its heartbeat above all.
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
from .hooks import Hooks
from .logs import Event
from .rolling import Roll
from .stacks import log_stacks
from .terminal import has_terminal
from .waiting import Waiter
from .worker import Link, Worker

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

#: Heartbeats in the time after which a worker that has none is stuck.
BEATS = 4


class Supervisor:
    """Keeps ``count`` workers running, each a forked child that calls ``work(link)`` and exits with what it returns.

    ``work`` calls ``link.beat()`` when it serves, and again at least every ``beat_seconds``; a worker that does not for
    ``timeout`` seconds, be it at its start, is stuck: its stacks are logged, it is killed and replaced. When
    ``link.lifeline`` ends, so should the worker: there is no supervisor any more.

    Methods for the caller: ``run()``, ``reload()`` from a hook, and ``leave()`` in its own children. A status in
    ``fatal`` means that no other worker would fare better: the rest is stopped and ``run`` returns it. It returns
    ``unstarted`` if a worker fails before all have served once; ``reason`` says why. Workers that have not ended
    ``patience`` seconds after they were told to are killed.

    Signals: SIGTERM and SIGINT stop, a second one at once; SIGHUP replaces all workers, one by one (but stops where it
    means that the terminal was closed); SIGTTIN and SIGTTOU make them one more or one fewer; SIGUSR1 has each log its
    stacks, SIGUSR2 open its files again.
    """

    def __init__(
        self,
        work: Callable[[Link], int],
        count: int,
        *,
        patience: float,
        timeout: float = 60.0,
        fatal: Collection[int] = (),
        unstarted: int = 3,
        hooks: Hooks | None = None,
    ) -> None:
        """Set up; nothing is forked yet."""
        self.reason = ""
        self.beat_seconds = timeout / BEATS
        self._work = work
        self._count = count
        self._patience = patience
        self._timeout = timeout
        self._fatal = fatal
        self._unstarted = unstarted
        self._hooks = hooks or Hooks()
        self._roll = Roll(self._hooks.reloading, self._hooks.reloaded)
        self._ready = self._stopping = self._terminal = False
        self._workers: dict[int, Worker] = {}
        self._signals: deque[int] = deque()
        self._status = 0
        self._alive_at = 0.0
        self._wait = 0.0
        self._start_at = 0.0
        self._turned = time.monotonic()
        self._waiter = Waiter()
        #: Nobody writes to it. The workers have the reading end, and nobody but this process the other.
        self._lifeline = os.pipe()
        self._handlers: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._handle_term,
            signal.SIGINT: self._handle_term,
            signal.SIGHUP: self._handle_hup,
            signal.SIGTTIN: self._handle_ttin,
            signal.SIGTTOU: self._handle_ttou,
            signal.SIGUSR1: self._handle_usr1,
            signal.SIGUSR2: self._handle_usr2,
        }

    def run(self) -> int:
        """Start the workers, return when all have ended: 0, a fatal status of one, or ``unstarted``.

        To be called in the main thread, before any other thread runs. The caller's signal handlers come back.
        """
        before = {signum: signal.signal(signum, self._queue_signal) for signum in self._handlers}
        wakeup_fd = signal.set_wakeup_fd(self._waiter.wakeup_fd, warn_on_full_buffer=False)
        # Under nohup(1), one does not care what becomes of the terminal.
        self._terminal = before[signal.SIGHUP] is not signal.SIG_IGN and has_terminal()
        try:
            self._renew()
            while self._workers or not self._stopping:
                self._waiter.turn(self._next_due())
                self._handle_signals()
                self._end_late()
                self._check_hearts()
                self._renew()
                self._tell()
                self._hooks.turned(self.numbers)
        finally:
            signal.set_wakeup_fd(wakeup_fd)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self._waiter.close()
            for fd in self._lifeline:
                os.close(fd)
        return self._status

    def reload(self) -> None:
        """Replace all workers, one by one; where they are being replaced already, do it again after that."""
        if not self._stopping:
            self._roll.request(self._ready)

    @property
    def numbers(self) -> set[int]:
        """The numbers of the workers that there are, those included that are about to end."""
        return {worker.number for worker in self._workers.values()}

    @property
    def _staying(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if not worker.leaving]

    # Signals.

    def _queue_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals.append(signum)
        self._waiter.wake()

    def _handle_signals(self) -> None:
        while self._signals:
            signum = self._signals.popleft()
            _log.debug(Event("signal", signal.Signals(signum).name))
            self._handlers[signum]()

    def _handle_term(self) -> None:
        again = self._stopping
        self._stop()
        if again:
            self._pass_on(signal.SIGTERM)

    def _handle_hup(self) -> None:
        if self._terminal and not has_terminal():
            _log.error(Event("error", "the terminal was closed"))
            self._stop()
        self.reload()

    def _handle_ttin(self) -> None:
        self._change_count(+1)

    def _handle_ttou(self) -> None:
        self._change_count(-1)

    def _handle_usr1(self) -> None:
        self._pass_on(signal.SIGUSR1)

    def _handle_usr2(self) -> None:
        self._hooks.reopen()
        self._pass_on(signal.SIGUSR2)

    def _pass_on(self, signum: int) -> None:
        for worker in self._workers.values():
            worker.child.kill(signum)

    def _change_count(self, change: int) -> None:
        self._count = max(1, self._count + change)
        _log.info(Event("workers", count=self._count))

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._hooks.stopping()
        for worker in self._workers.values():
            worker.drain(self._patience)

    # The workers there should be.

    def _renew(self) -> None:
        """Start workers that are missing, and retire those whose successors serve."""
        if self._stopping:
            return
        staying = self._staying
        serving = sorted((worker for worker in staying if worker.serves), key=self._rank)
        for worker in serving[: max(0, len(serving) - self._count)]:
            _log.debug(Event("worker", f"{worker.child.pid} is not needed any more"))
            worker.drain(self._patience)
        if time.monotonic() >= self._start_at:
            self._start_missing()

    def _rank(self, worker: Worker) -> tuple[bool, float]:
        """Return the key by which those come first that are to go first."""
        return not self._replaces(worker), worker.born

    def _replaces(self, worker: Worker) -> bool:
        return worker.spent or self._roll.replaces(worker)

    def _missing(self) -> int:
        """Return how many workers to start: one more than there should be, if it is to take another's place."""
        staying = self._staying
        one_more = any(map(self._replaces, staying)) and all(worker.serves for worker in staying)
        return 0 if self._stopping else max(0, self._count + one_more - len(staying))

    def _start_missing(self) -> None:
        try:
            for _ in range(self._missing()):
                self._start()
        except OSError as error:  # no process, descriptor or memory to be had
            if not self._ready:
                self._give_up(self._unstarted, str(error))
            else:
                wait = self._step_back()
                _log.error(Event("error", f"no worker can be started: {error}; tried again in {wait:g} s"))

    def _start(self) -> None:
        heart, pulse = os.pipe()
        number = min(set(range(len(self._workers) + 1)) - self.numbers)
        link = Link(pulse, self._lifeline[0], number, self._roll.generation)
        # Ctrl-C reaches the whole foreground group; what it means is for the supervisor to say.
        handlers: dict[int, Any] = dict.fromkeys(self._handlers, signal.SIG_DFL)
        handlers.update(dict.fromkeys((signal.SIGINT, signal.SIGHUP), ignore_signal))
        handlers.update({signal.SIGUSR1: log_stacks, signal.SIGUSR2: lambda *_: self._hooks.reopen()})
        try:
            fork_child(partial(self._live, link, heart), handlers, partial(self._write_down, link, heart))
        except OSError:
            os.close(heart)
            raise
        finally:
            os.close(pulse)

    def _write_down(self, link: Link, heart: int, child: Child) -> None:
        worker = self._workers[child.pid] = Worker(child, heart, link.number, link.generation)
        if child.fd is not None:
            self._waiter.watch(child.fd, partial(self._reap, worker))
        self._waiter.watch(heart, partial(self._hear, worker))
        _log.debug(Event("worker", f"{child.pid} started"))

    def leave(self) -> None:
        """Close what is the supervisor's own, in a process that was forked from it."""
        self._waiter.close()
        others = self._workers.values()
        fds = [worker.heart for worker in others] + [
            worker.child.fd for worker in others if worker.child.fd is not None
        ]
        for fd in (self._lifeline[1], *fds):
            os.close(fd)

    def _live(self, link: Link, heart: int) -> int:
        self.leave()
        os.close(heart)
        os.set_blocking(link.fd, False)
        link.show_crashes()
        return self._work(link)

    # What becomes of them.

    def _hear(self, worker: Worker) -> None:
        if not worker.hear():
            self._waiter.unwatch(worker.heart)  # it is about to be reaped
        if worker.leaving and worker.deadline is None:
            worker.leave_within(self._patience)
            self._step_back(worker)

    def _end_late(self) -> None:
        for worker in list(self._workers.values()):
            worker.kill_late()
            if worker.child.fd is None:
                self._reap(worker)

    def _reap(self, worker: Worker) -> None:
        # Before it is closed: what epoll watches goes on being watched while a forked process has it, too.
        if (fd := worker.child.fd) is not None:
            self._waiter.unwatch(fd)
        status = worker.child.reap()
        if status is None:
            return
        with suppress(KeyError):
            self._waiter.unwatch(worker.heart)
        worker.bury()
        del self._workers[worker.child.pid]
        self._hooks.ended(worker.number, bool(status) and not self._stopping and (worker.stuck or not worker.told))
        self._mourn(worker, status)

    def _mourn(self, worker: Worker, status: int) -> None:
        """Say how a worker ended, where that was not asked of it, and what follows from that."""
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        reason = worker.reason or f"{worker} {how}"
        for line in worker.stacks:
            _log.error(Event("stack", f"{worker}: {line}"))
        if self._stopping:
            return
        if status in self._fatal:
            self._give_up(status, reason)
        elif worker.told:
            _log.debug(Event("worker", f"{worker.child.pid} {how}"))
        elif not self._fail(worker, reason):
            # One that said that it would end is stepped back from already.
            wait = self._step_back(worker) if worker.deadline is None else self._wait
            _log.error(Event("error", f"{reason}; another starts in {wait:g} s"))

    def _fail(self, worker: Worker, reason: str) -> bool:
        """Take a failure to start for what it means for all, if it does."""
        if worker.serves:
            return False
        if not self._ready:
            self._give_up(self._unstarted, reason)
            return True
        return self._roll.fail(worker, reason)

    def _give_up(self, status: int, reason: str) -> None:
        self._status, self.reason = status, reason
        self._stop()

    def _step_back(self, worker: Worker | None = None) -> float:
        """Return the seconds until another worker is started: more and more of them if they die young, or none came."""
        lasted = time.monotonic() - worker.born if worker is not None else 0.0
        self._wait = 0.0 if lasted >= HELD_SECONDS else min(LONGEST_WAIT, max(FIRST_WAIT, self._wait * 2))
        self._start_at = time.monotonic() + self._wait
        return self._wait

    def _check_hearts(self) -> None:
        now = time.monotonic()
        if now - self._turned > 2 * self.beat_seconds:
            # We were stopped ourselves (Ctrl-Z, a paused machine, swapping), and so may they have been.
            for worker in self._workers.values():
                worker.heard = now
        self._turned = now
        for worker in [] if self._stopping else self._staying:
            if now - worker.heard >= self._timeout:
                self._end_stuck(worker)

    def _end_stuck(self, worker: Worker) -> None:
        what = "stands still" if worker.serves else "is not ready"
        reason = f"{worker} {what} after {self._timeout:g} s"
        worker.abort()
        if not self._fail(worker, reason):
            wait = self._step_back(worker)
            _log.error(Event("error", f"{reason}; it is killed, another starts in {wait:g} s"))

    def _tell(self) -> None:
        """Tell, when it is time to, that all workers serve, or that they still do."""
        if self._stopping:
            return
        staying = self._staying
        if not self._ready and not self._missing() and all(worker.serves for worker in staying):
            self._ready = True
            self._hooks.ready()
        self._roll.check(staying, self._ready and not self._missing())
        now, every = time.monotonic(), self._hooks.alive_seconds
        if every is not None and now >= self._alive_at:
            self._alive_at = now + every
            # The time of two beats, for one may have come just after we looked. A dead worker is no matter of hearts.
            if staying and all(now - worker.heard < 2 * every for worker in staying):
                self._hooks.alive()

    def _next_due(self) -> float | None:
        """Return the seconds until something is to be done that no descriptor tells."""
        due = [worker.deadline for worker in self._workers.values() if worker.deadline is not None]
        if not self._stopping:
            due.append(self._turned + self.beat_seconds)
            due += [self._start_at] if self._missing() else []
            due += [self._alive_at] if self._hooks.alive_seconds is not None else []
        waits = [max(0.0, min(due) - time.monotonic())] if due else []
        if any(worker.child.fd is None for worker in self._workers.values()):
            waits.append(POLL_SECONDS)
        if self._hooks.turn_seconds is not None:
            waits.append(self._hooks.turn_seconds)
        return min(waits, default=None)
