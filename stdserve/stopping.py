"""The stop of a server: asked for from anywhere, sessions told to end, what is left cut at the deadline."""

from __future__ import annotations

import logging
import threading
import time

from .accepting import AcceptLoop
from .errors import OutputError
from .interrupts import StopNow
from .listeners import close_listeners
from .options import Options
from .protocol import EndReason
from .sessions import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

__all__ = ["StopMixin"]

_log = logging.getLogger("stdserve")

#: Seconds that sessions which were cut get to notice it.
CUT_SECONDS = 1.0


class StopMixin:
    """The part of ``ServerMixin`` that ends it; ``serve_forever`` calls ``_drain`` once a stop was asked for.

    Methods for the caller: ``request_stop``, ``shutdown``. Methods that a mode may override: ``_end_input`` (all
    sessions read EOF), ``_cut`` (all are broken off), ``_wait_for_sessions``, ``_inside_session``.

    Attributes to set on the class: ``close_on_stop``.
    """

    #: Close the listeners as soon as a stop begins, so that clients are refused, not left waiting; set it on
    #: a server that will not serve again.
    close_on_stop = False

    options: Options
    sessions: dict[Any, Session]
    failure: OutputError | None
    _loop: AcceptLoop

    _stopping = _served = False
    _serving_thread: int | None = None
    _at_rest: threading.Event

    def _begin_at_rest(self) -> None:
        self._at_rest = threading.Event()
        self._at_rest.set()

    @property
    def listeners(self) -> list[socket.socket]:
        """All listening sockets."""
        raise NotImplementedError

    @property
    def active(self) -> int:
        """How many sessions are open."""
        return len(self.sessions)

    def request_stop(self) -> None:
        """Ask the server to stop and return at once. Safe in any thread and in a signal handler.

        Once a server has served and stopped, this does nothing.
        """
        if self._serving_thread is None and self._served:
            return
        self._stopping = True
        self._loop.waiter.wake()

    def shutdown(self) -> None:
        """Stop the server and wait until it has; from one of its own sessions, return without waiting."""
        self.request_stop()
        if threading.get_ident() == self._serving_thread or self._inside_session():
            return
        if not self._at_rest.wait(self.options.graceful_timeout + 2 * CUT_SECONDS):
            self._cut()
            self._at_rest.wait(CUT_SECONDS)

    def _inside_session(self) -> bool:
        return False

    def _fail(self, error: OutputError) -> None:
        self.failure = error
        self.request_stop()

    def _drain(self, patience: float) -> None:
        """End all sessions: they read EOF, print and answer what they have; after ``patience`` seconds, cut them."""
        self._loop.shut()
        if self.close_on_stop:
            close_listeners(self.listeners)
        before = self.active
        try:
            if before and patience and not self.failure:
                _log.info("drain sessions=%d seconds=%g", before, patience)
                self._end_input()
                self._wait_for_sessions(patience)
        except StopNow:
            pass
        cut = self.active
        if cut:
            self._cut()
            self._wait_for_sessions(CUT_SECONDS)
        _log.info("stopped finished=%d cut=%d", before - cut, cut)

    def _wait_for_sessions(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.active and (left := deadline - time.monotonic()) > 0:
            self._turn(left)

    def _end_input(self) -> None:
        for session in list(self.sessions.values()):
            session.end_input()

    def _cut(self) -> None:
        for session in list(self.sessions.values()):
            session.cut(EndReason.CUT)

    def _turn(self, timeout: float | None) -> None:
        raise NotImplementedError
