"""The accept loop: clients are taken from the listeners while there is room for them, and errors have names."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .waiting import Waiter

__all__ = ["AcceptLoop"]

_log = logging.getLogger("stdserve")

#: Clients taken from one listener before the others have their turn.
ACCEPTS_PER_TURN = 64

#: Seconds the listeners rest after accept() failed (trio's figure): they stay readable, so trying on would spin.
REST_SECONDS = 0.1

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
    ) -> None:
        self.waiter = Waiter()
        self._listeners = listeners
        self._has_room = has_room
        self._take = take
        self._admit = admit
        self._crowd = crowd
        self._open: Sequence[socket.socket] = ()
        self._resting = False
        self._rest_until = 0.0

    def turn(self, timeout: float | None = None) -> None:
        """Wait once, ``timeout`` seconds at most, for clients and for whatever else the waiter watches."""
        rest = self._rest_until - time.monotonic()
        if self._resting and rest > 0:
            self.shut()
            timeout = rest if timeout is None else min(timeout, rest)
        elif not self._open and self._has_room():
            self._open = self._listeners()
            for listener in self._open:
                self.waiter.watch(listener, partial(self._accept_from, listener))
        self.waiter.turn(timeout)

    def shut(self) -> None:
        """Look at the listeners no more, until the next turn that has room."""
        for listener in self._open:
            self.waiter.unwatch(listener)
        self._open = ()

    def _accept_from(self, listener: socket.socket) -> None:
        if self._resting and time.monotonic() < self._rest_until:
            return  # another listener of this turn has just failed
        if not self._has_room():
            self.shut()
            self._crowd()
        for _ in range(ACCEPTS_PER_TURN):
            if not self._has_room():
                return
            try:
                request, client_address = self._take(listener)
            except BlockingIOError:
                return
            except Exception as error:
                if getattr(error, "errno", None) in _BROKEN_CLIENT:
                    _log.debug("reject reason=broken error=%s", error)
                    continue
                self._rest(error)
                return
            if self._resting:
                self._resting = False
                _log.warning("accept works again")
            self._admit(request, client_address)

    def _rest(self, error: Exception) -> None:
        if not self._resting:
            _log.error("error accept: %s; clients wait in the backlog until it works again", error)
        self._resting = True
        self._rest_until = time.monotonic() + REST_SECONDS
