"""A hook that keeps all sessions of an event loop waiting is named in the log, with where it is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .driver import Driver
from .events import EventLoop
from .logs import Event
from .stacks import stack_of

__all__ = ["StallWatch"]

_log = logging.getLogger("stdserve")

#: Seconds after which a hook is named, and from one look at the loop to the next.
STALL_SECONDS = 1.0
LOOK_SECONDS = 0.25


class StallWatch:
    """Looks at an event loop from a thread of its own, in a ``with`` block; asleep while nothing happens there.

    ``event(driver, word, text)`` makes a line of the log about the session of ``driver``. A hook is named once.
    """

    def __init__(self, loop: EventLoop, event: Callable[[Driver | EventLoop, str, str], Event]) -> None:
        self._loop = loop
        self._event = event
        self._roused, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stdserve stalls", daemon=True)

    def __enter__(self) -> StallWatch:
        self._loop.rouse = self._roused.set
        self._loop.unwatched = True
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.unwatched = False
        self._over.set()
        self._roused.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self._roused.wait()
            self._roused.clear()
            self._look_on()

    def _look_on(self) -> None:
        """Look at the loop now and then, until nothing has happened from one look to the next."""
        loop, since, told = self._loop, time.monotonic(), False
        count = loop.count
        while not self._over.wait(LOOK_SECONDS):
            driver = loop.current
            if driver is None:
                loop.unwatched = True  # first: what begins after the next line rouses us
            if loop.count != count:
                count, since, told = loop.count, time.monotonic(), False
            elif driver is None:
                return
            elif not told and time.monotonic() - since >= STALL_SECONDS:
                told = True
                _, _, where = stack_of(loop.thread).rpartition(" go > ")  # what the loop has called, not what called it
                who = "the output" if driver is loop else "a hook"
                _log.warning(self._event(driver, "stall", f": {who} keeps all sessions waiting: {where}"))
