"""What ``--status`` adds to a server of workers: their counters, and the status server beside them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from .addresses import format_peer
from .companion import Companion
from .factory import server_class
from .heartbeat import Heartbeat
from .hooks import Hooks
from .listeners import leave_listeners
from .logs import Event
from .metrics import Metrics, WorkerCounters
from .options import Options
from .status_server import run_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

__all__ = ["Observation"]

_log = logging.getLogger("stdserve")

#: Seconds between two heartbeats that others can see.
BEAT_SECONDS = 1.0

#: Workers there can be at a time: three for each that there should be, those of three reloads that drain side by side,
#: and some for SIGTTIN. Those beyond that work as well, but are not counted; memory that is not used costs nothing.
SLOTS_PER_WORKER, MORE_SLOTS = 3, 8


class Observation:
    """Counts what the workers of a server do and serves the numbers on ``listeners``; ``watched`` are the workers' own.

    To be made before anything is forked. ``beside`` is where the supervisor runs; ``enter`` is for a worker, which
    passes what it gets to its server; ``hooked`` gives the hooks of the supervisor.
    """

    def __init__(self, options: Options, listeners: Sequence[socket.socket], watched: Sequence[socket.socket]) -> None:
        composed = server_class(options.mode)
        self._forks = composed.forks
        self._listeners = listeners
        self._watched = watched
        slots = SLOTS_PER_WORKER * (options.workers or 1) + MORE_SLOTS
        self._metrics = Metrics(slots, options.max_conns or composed.default_max_conns)
        self._leave: Callable[[], None] = lambda: None
        self._companion = Companion("the status server", self._serve)
        # Slots of workers that have ended, where sessions in processes of their own may live on.
        self._haunted: set[int] = set()
        self._looked = 0.0

    @contextmanager
    def beside(self, leave: Callable[[], None]) -> Iterator[None]:
        """Run the status server for the length of the block; ``leave()`` closes there what is the supervisor's own."""
        self._leave = leave
        self._companion.check()
        for listener in self._listeners:
            address = format_peer(listener.getsockname())
            _log.info(Event("status", f"on {address}", data={"address": address}))
        try:
            yield
        finally:
            self._companion.end()

    def enter(self, number: int, heartbeat: Heartbeat) -> WorkerCounters | None:
        """Return the counters of worker ``number``, in its process, and let them hear its ``heartbeat``.

        None for a worker too many.
        """
        leave_listeners(self._listeners)
        if number >= self._metrics.slots:
            _log.error(Event("error", f"more than {self._metrics.slots} workers at a time: this one is not counted"))
            return None
        counters = self._metrics.enter(number, forks=self._forks)
        heartbeat.ready = partial(_both, counters.serve, heartbeat.ready)
        heartbeat.beat = partial(_both, counters.beat, heartbeat.beat)
        heartbeat.seconds = min(BEAT_SECONDS, heartbeat.seconds or BEAT_SECONDS)
        return counters

    def hooked(self, hooks: Hooks) -> Hooks:
        """Return ``hooks`` for the supervisor that also tell what is to be observed."""
        return replace(hooks, stopping=partial(_both, self._stop, hooks.stopping), turned=self._turn, ended=self._end)

    def _serve(self) -> int:
        self._leave()
        return run_status(self._listeners, self._metrics, self._watched)

    def _end(self, number: int, died: bool) -> None:
        if died:
            self._metrics.count_restart()
        if number < self._metrics.slots:
            self._haunted.add(number)
            self._bury()

    def _turn(self, taken: Collection[int]) -> None:
        self._companion.check()
        # Workers look after their slots themselves.
        self._haunted.difference_update(taken)
        if self._haunted and time.monotonic() - self._looked >= BEAT_SECONDS:
            self._bury()

    def _stop(self) -> None:
        self._metrics.drain()
        self._companion.tell()

    def _bury(self) -> None:
        self._looked = time.monotonic()
        self._haunted = {number for number in self._haunted if not self._metrics.bury(number)}


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()
