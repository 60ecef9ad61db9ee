"""The heartbeat of an accept loop, for whoever must know that it runs: a supervisor of workers, systemd."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from .addresses import format_peer
from .mixin import ServerMixin
from .systemd import notify, watchdog_seconds

__all__ = ["Heartbeat", "service_heartbeat"]

#: Seconds between calls of a ``service_actions`` that a server's class has of its own (socketserver's figure).
POLL_SECONDS = 0.5


def _nobody() -> None:
    """Tell nobody."""


class Heartbeat:
    """What is told of a server, when: by itself nothing, to nobody.

    ``ready()`` is called as its accept loop begins, ``beat()`` every ``seconds`` while it turns (None: never, and an
    idle server sleeps), ``spent()`` once it has also had ``most`` sessions, ``stopping()`` and ``reloading()`` are for
    the caller to call as a stop or a reload begins, ``ready()`` again when the latter is done.
    """

    def __init__(
        self,
        ready: Callable[[], None] = _nobody,
        beat: Callable[[], None] = _nobody,
        seconds: float | None = None,
        stopping: Callable[[], None] = _nobody,
        reloading: Callable[[], None] = _nobody,
        spent: Callable[[], None] = _nobody,
        most: int | None = None,
    ) -> None:
        self.ready = ready
        self.beat = beat
        self.seconds = seconds
        self.stopping = stopping
        self.reloading = reloading
        self.spent = spent
        self.most = most

    @contextmanager
    def of(self, server: ServerMixin) -> Iterator[float]:
        """Tell ``ready`` at once, and beat in the block; yield the poll interval that ``serve_forever`` is to have."""
        self.ready()
        if self.seconds is None:
            yield POLL_SECONDS
            return
        own_actions, due, most = server.service_actions, 0.0, self.most
        polled = type(server).service_actions is not ServerMixin.service_actions

        def service_actions() -> None:
            nonlocal due, most
            now = time.monotonic()
            if now >= due:
                due = now + (self.seconds or 0.0)
                self.beat()
            if most is not None and server.begun >= most:
                most = None
                self.spent()
            own_actions()

        server.service_actions = service_actions  # type: ignore[method-assign]
        with self._through_sessions(server):
            yield min(POLL_SECONDS, self.seconds) if polled else self.seconds

    @contextmanager
    def _through_sessions(self, server: ServerMixin) -> Iterator[None]:
        """Beat also while a session of mode single keeps the accept loop: busy is not stuck."""
        if not server.inline:
            yield
            return
        over = threading.Event()

        def watch() -> None:
            while not over.wait(self.seconds):
                if server.active:
                    self.beat()

        watcher = threading.Thread(target=watch, name="stdserve heartbeat", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def service_heartbeat(listeners: Sequence[socket.socket]) -> Heartbeat:
    """Return the heartbeat that systemd wants of a service (Type=notify, WatchdogSec=); elsewhere nobody is told.

    It beats four times in the watchdog's time: systemd advises two, and a worker's beat has two hops to go.
    """
    watchdog = watchdog_seconds()
    status = "listening on " + ", ".join(format_peer(listener.getsockname()) for listener in listeners)
    return Heartbeat(
        ready=partial(notify, "READY=1", f"MAINPID={os.getpid()}", f"STATUS={status}"),
        beat=partial(notify, "WATCHDOG=1"),
        seconds=watchdog and watchdog / 4,
        stopping=partial(notify, "STOPPING=1", "STATUS=stopping"),
        reloading=partial(notify, "RELOADING=1", "STATUS=reloading"),
    )
