"""A reload of all workers: each is replaced by one of a new generation, while the others serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from .logs import Event
from .worker import Worker

__all__ = ["Roll"]

_log = logging.getLogger("stdserve")


class Roll:
    """Which generation of workers there should be, and how far a reload is on the way to it.

    A reload begins with ``request``. If the first of the new workers fails, nothing has changed; if a later one does,
    those that are new stay new: their code is known to work. ``began()`` and ``ended()`` are called as those things
    happen; a reload that is requested while there is one is done after it.
    """

    def __init__(self, began: Callable[[], None], ended: Callable[[], None]) -> None:
        #: What a worker is started with now.
        self.generation = 0
        self._began = began
        self._ended = ended
        self._active = self._again = False
        self._last = self._proven = 0
        self._started = 0.0

    def request(self, ready: bool) -> None:
        """Begin a reload; not before all workers are ``ready`` for the first time."""
        if self._active or not ready:
            self._again = True
            return
        self._active = True
        self._last += 1
        self.generation = self._last
        self._started = time.monotonic()
        _log.info(Event("reload", "begins: workers are replaced one by one"))
        self._began()

    def replaces(self, worker: Worker) -> bool:
        """Tell whether a worker is to be replaced."""
        return self._active and worker.generation < self.generation

    def fail(self, worker: Worker, reason: str) -> bool:
        """Give the reload up because a new worker failed before it served; False if it is no part of one."""
        if not self._active or worker.generation != self.generation:
            return False
        self.generation = self._proven
        _log.error(Event("error", f"reload: {reason}; the workers from before stay"))
        self._finish()
        return True

    def check(self, workers: Collection[Worker], whole: bool) -> None:
        """Notice what has come of the ``workers`` that are to stay; ``whole``: they are as many as there should be."""
        if self._active:
            if any(worker.serves and worker.generation == self.generation for worker in workers):
                self._proven = self.generation
            if whole and all(worker.serves and not self.replaces(worker) for worker in workers):
                seconds = f"{time.monotonic() - self._started:.3f}"
                _log.info(Event("reloaded", workers=len(workers), seconds=seconds))
                self._finish()
        if self._again and whole and not self._active:
            self._again = False
            self.request(whole)

    def _finish(self) -> None:
        self._active = False
        self._ended()
