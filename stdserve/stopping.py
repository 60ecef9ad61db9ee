"""The stop of a server: asked for from anywhere, sessions told to end, what is left cut at the deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .accepting import AcceptLoop
from .errors import OutputError
from .listeners import close_listeners
from .logs import Event
from .options import Options
from .protocol import EndReason
from .sessions import Session
from .tally import Counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from .metrics import WorkerCounters

__all__ = ["StopMixin"]

_log = logging.getLogger("stdserve")

#: Seconds that sessions which were cut get to notice it.
CUT_SECONDS = 1.0

#: Seconds from accept on in which a stop waits for a client's first words: they may be on their way, behind a PROXY
#: header or a TLS handshake, and whoever is behind a proxy cannot be sent elsewhere any more.
FIRST_SECONDS = 0.3

#: Seconds after which sessions that have not ended are told again.
REPEAT_SECONDS = 0.1


class StopMixin:
    """The part of ``ServerMixin`` that ends it; ``serve_forever`` calls ``_drain`` at its end.

    Methods for the caller: ``request_stop``, ``shutdown``. Methods that a mode may override: ``_end_input`` (all
    sessions read EOF), ``_cut`` (all are broken off), ``_inside_session``.

    Attributes to set on the class: ``close_on_stop``. Attributes to read: ``occupied``.
    """

    #: Close the listeners as soon as a stop begins, so that clients are refused, not left waiting; set it on
    #: a server that will not serve again.
    close_on_stop = False

    inline: bool
    options: Options
    sessions: dict[Any, Session]
    failure: OutputError | None
    counters: Counters | WorkerCounters
    _loop: AcceptLoop

    #: How many times this server has served, and which of them was asked to stop, and to stop at once.
    _run = 0
    _stop_for = _cut_for = -1
    _serving_thread: int | None = None
    _at_rest: threading.Event
    _close_at_end = _last_call = False
    #: Whether there may be sessions that no stop has ended.
    _left_behind = False
    #: Sessions that a stop ended before it came to the others: finished, cut.
    _ended_before = (0, 0)

    if TYPE_CHECKING:  # what the server has besides

        @property
        def listeners(self) -> list[socket.socket]:
            """All listening sockets."""

        def server_close(self) -> None:
            """Close what the server holds."""

        def _turn(self, timeout: float | None) -> None: ...

    def _begin_at_rest(self) -> None:
        self._at_rest = threading.Event()
        self._at_rest.set()
        self._ending = threading.RLock()

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Be the thread that serves; at the end, be as before, ready for another time."""
        self._at_rest.clear()
        self._serving_thread = threading.get_ident()
        try:
            yield
        finally:
            self._loop.shut()
            # In this order, which request_stop relies on.
            self._serving_thread = None
            self._run += 1
            if self._close_at_end:
                self.server_close()
            self._at_rest.set()

    @property
    def active(self) -> int:
        """How many sessions are open."""
        return len(self.sessions)

    @property
    def occupied(self) -> bool:
        """Whether the thread that serves is in a hook of the server's, or in a session, and sees no request to stop."""
        return self._loop.occupied

    def request_stop(self, now: bool = False) -> None:
        """Ask the server to stop and return at once; ``now``: without waiting for its sessions, which are cut.

        Safe in any thread and in a signal handler. Once a server has served and stopped, this does nothing.
        """
        run = self._run  # read first: what is asked of a run that ends just now must not stop the next one
        if self._serving_thread is None and run:
            return
        if now:
            self._cut_for = run
        self._stop_for = run
        self._loop.waiter.wake()

    @property
    def _stopping(self) -> bool:
        return self._stop_for == self._run

    @property
    def _stopping_now(self) -> bool:
        return self._cut_for == self._run

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

    def _drain(self) -> None:
        """End all sessions: they read EOF, print and answer what they have; at the deadline they are cut.

        So they are on a second signal and on a second Ctrl-C.
        """
        self.request_stop()
        self._loop.shut()
        self.counters.drain()
        before = self.active
        finished_before, cut_before = self._ended_before
        try:
            if self.close_on_stop:
                self._leave_listeners()
            before = self.active
            if before and not self._stopping_now and not self.failure:
                patience = self.options.graceful_timeout
                _log.info(Event("drain", sessions=before, seconds=f"{patience:g}"))
                self._end_input()
                self._wait_for_sessions(patience)
        except KeyboardInterrupt:
            pass
        cut = self.active
        if cut:
            self._cut()
            self._wait_for_sessions(CUT_SECONDS, cut=True)
        self._left_behind = False  # not before: who closes the server meanwhile is to wait
        _log.info(Event("stopped", finished=finished_before + max(0, before - cut), cut=cut_before + cut))

    def _end_leftovers(self) -> None:
        """End the sessions that ``handle_request`` began and that outlive it, as a stop would."""
        if not self._left_behind or self._inside_session():
            return
        with self._ending:
            if not self._left_behind or not self.active:
                return
            close_listeners(self.listeners)
            self.close_on_stop = True  # their first words may still be on their way
            self._stop_for = self._run
            self._drain()

    def _leave_listeners(self) -> None:
        """Close the listeners; before that, accept whom the kernel has connected: the close resets them."""
        told_otherwise = self.inline or self.failure or self._stopping_now or self._serving_thread is None
        self._last_call = not told_otherwise
        try:
            self._loop.last_call()
        finally:
            self._last_call = False
            close_listeners(self.listeners)

    def _wait_for_sessions(self, seconds: float, cut: bool = False) -> None:
        """Wait for sessions to end, for so long; no longer once they are to be cut, unless they are already."""
        told = time.monotonic()
        deadline = told + seconds
        while self.active and (left := deadline - time.monotonic()) > 0 and (cut or not self._stopping_now):
            self._turn(min(left, REPEAT_SECONDS))
            # Again: some were too young; a signal that a child gets just before it reads is noticed after that read.
            if time.monotonic() - told >= REPEAT_SECONDS:
                self._end_input()
                told = time.monotonic()

    def _end_input(self) -> None:
        for session in list(self.sessions.values()):
            self._end_input_of(session)

    def _end_input_of(self, session: Session) -> None:
        """End the input of a session, unless its first words may still be on their way."""
        if self.inline or not self.close_on_stop or session.received or session.seconds >= FIRST_SECONDS:
            session.end_input()

    def _cut(self) -> None:
        for session in list(self.sessions.values()):
            session.cut(EndReason.CUT)
