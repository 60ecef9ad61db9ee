"""The accept loop: clients are taken from the listeners while there is room for them, and errors have names."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from .logs import Event
from .tally import Counters
from .waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .metrics import WorkerCounters

__all__ = ["AcceptLoop"]

_log = logging.getLogger("stdserve")

#: Clients taken from one listener before the others have their turn.
ACCEPTS_PER_TURN = 64

#: Seconds the listeners rest after accept() failed (trio's figure): they stay readable, so trying on would spin.
REST_SECONDS = 0.1

#: Seconds without a failure after which accept works again: descriptors that come back one by one are one failure.
CALM_SECONDS = 1.0

#: Errors of one connection, not of the listener: it broke before we took it (accept(2), "Error handling").
_BROKEN_CLIENT = {
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN"),
        *("ENONET", "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT", "EINTR"),
    )
    if hasattr(errno, name)
}


class AcceptLoop:
    """Waits for clients and hands them on, one ``turn`` at a time; the server it works for tells when to stop.

    ``listeners()`` are the listening sockets, non-blocking. ``has_room()`` tells whether one more client may come:
    while it says no, clients wait in the backlog, and ``crowd()`` is told once when the first one does.
    ``take(listener)`` accepts one and returns it, with its address, to be passed to ``admit(request, client_address)``.

    An error of ``take`` that is not the client's makes the listeners rest, out of descriptors or memory above all:
    the next accept would fail as fast. The log has one line when that begins and one when it is over.
    """

    def __init__(
        self,
        listeners: Callable[[], Sequence[socket.socket]],
        has_room: Callable[[], bool],
        take: Callable[[socket.socket], tuple[Any, Any]],
        admit: Callable[[Any, Any], None],
        crowd: Callable[[], None],
        counters: Counters | WorkerCounters | None = None,
    ) -> None:
        self.waiter = Waiter()
        #: Whether something runs that may take long and that is not ours: a hook of the server, a session.
        self.occupied = False
        self._listeners = listeners
        self._has_room = has_room
        self._take = take
        self._admit = admit
        self._crowd = crowd
        self._counters = counters or Counters()
        self._open: Sequence[socket.socket] = ()
        # When accept failed last, while the log has not said that it works again.
        self._failed_at: float | None = None

    @contextmanager
    def hook(self) -> Iterator[None]:
        """Be ``occupied`` for the length of the block."""
        self.occupied = True
        try:
            yield
        finally:
            self.occupied = False

    def turn(self, timeout: float | None = None) -> None:
        """Wait once, ``timeout`` seconds at most, for clients and for whatever else the waiter watches."""
        if self._failed_at is not None:
            rest = self._recover(time.monotonic() - self._failed_at)
            timeout = rest if timeout is None else min(timeout, rest)
        if self._rests():
            self.shut()
        elif not self._open and self._has_room():
            self._open = self._listeners()
            for listener in self._open:
                self.waiter.watch(listener, partial(self._accept_from, listener))
        self.waiter.turn(timeout)

    def last_call(self) -> None:
        """Take those who wait in the backlog, as many as fit and a turn of each listener allows."""
        for listener in self._listeners():
            self._accept_from(listener)

    def shut(self) -> None:
        """Look at the listeners no more, until the next turn that has room."""
        opened, self._open = self._open, ()
        for listener in opened:
            # One that was closed under the loop is not there any more.
            with suppress(KeyError, ValueError):
                self.waiter.unwatch(listener)

    def _accept_from(self, listener: socket.socket) -> None:
        if self._rests():
            return  # another listener of this turn has just failed
        if not self._has_room():
            self.shut()
            self._crowd()
        for _ in range(ACCEPTS_PER_TURN):
            if not self._has_room():
                return
            self.occupied = True  # as by ``hook``, at a tenth of its cost
            try:
                if not self._accept_one(listener):
                    return
            finally:
                self.occupied = False

    def _accept_one(self, listener: socket.socket) -> bool:
        """Take one client and hand it on; False if there is no sense in trying for another one."""
        try:
            request, client_address = self._take(listener)
        except BlockingIOError:
            return False
        except Exception as error:
            if getattr(error, "errno", None) in _BROKEN_CLIENT:
                self._counters.reject("broken")
                _log.debug(Event("reject", f": {error}", reason="broken"))
                return True
            self._fail(error)
            return False
        self._admit(request, client_address)
        return True

    def _rests(self) -> bool:
        return self._failed_at is not None and time.monotonic() - self._failed_at < REST_SECONDS

    def _fail(self, error: Exception) -> None:
        self._counters.count_accept_error()
        if self._failed_at is None:
            _log.error(Event("error", f"accept: {error}; clients wait in the backlog until it works again"))
        self._failed_at = time.monotonic()

    def _recover(self, calm: float) -> float:
        """Log the end of a failure that has been over for long enough; return the seconds until the next look."""
        if calm < REST_SECONDS:
            return REST_SECONDS - calm
        if calm >= CALM_SECONDS:
            _log.warning(Event("accept", "works again"))
            self._failed_at = None
        return CALM_SECONDS
