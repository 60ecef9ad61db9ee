"""A process beside the workers: forked like them, started again when it ends, told to end when they are."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from .children import Child, fork_child, ignore_signal
from .logs import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Companion"]

_log = logging.getLogger("stdserve")

#: Longest wait (seconds) before one that keeps ending is started again; the wait doubles from FIRST_WAIT.
LONGEST_WAIT = 10.0
FIRST_WAIT = 0.1

#: One that lasted this long (seconds) has held: when it ends, the next one is started at once.
HELD_SECONDS = 1.0

#: Seconds that it gets to end before it is killed.
PATIENCE = 3.0

#: Signals to the whole group or meant for workers; at SIGTERM it ends, unless ``work`` knows better.
_NOT_MEANT = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


class Companion:
    """Keeps one forked child running that calls ``work()``; ``name`` is for the log.

    All methods belong to the main thread of its parent, which calls ``check`` now and then, ``tell`` once or more, and
    ``end`` in the end.
    """

    def __init__(self, name: str, work: Callable[[], int]) -> None:
        self._name = name
        self._work = work
        self._child: Child | None = None
        self._told = False
        self._born = self._start_at = self._wait = 0.0

    def check(self) -> None:
        """Start it if there is none, after a while if it keeps ending."""
        if self._child is not None and (status := self._child.reap()) is not None:
            self._child = None
            if not self._told:
                wait = self._step_back()
                _log.error(Event("error", f"{self._name} ended with status {status}; another starts in {wait:g} s"))
        if self._child is None and not self._told and time.monotonic() >= self._start_at:
            self._start()

    def tell(self) -> None:
        """Send SIGTERM to it, and start no other."""
        self._told = True
        if self._child is not None:
            self._child.kill(signal.SIGTERM)

    def end(self) -> None:
        """Send SIGTERM and wait until it has ended; kill it if that takes too long."""
        self.tell()
        child, self._child = self._child, None
        if child is not None and child.wait(PATIENCE) is None:
            child.kill(signal.SIGKILL)
            child.wait(PATIENCE)

    def _start(self) -> None:
        handlers: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, **dict.fromkeys(_NOT_MEANT, ignore_signal)}
        self._born = time.monotonic()
        try:
            fork_child(self._work, handlers, self._write_down)
        except OSError as error:  # no process or memory to be had
            wait = self._step_back()
            _log.error(Event("error", f"{self._name} cannot be started: {error}; tried again in {wait:g} s"))

    def _write_down(self, child: Child) -> None:
        self._child = child

    def _step_back(self) -> float:
        now = time.monotonic()
        self._wait = 0.0 if now - self._born >= HELD_SECONDS else min(LONGEST_WAIT, max(FIRST_WAIT, self._wait * 2))
        self._start_at = now + self._wait
        return self._wait
