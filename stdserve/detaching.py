"""Handlers that keep their connection when they return: :meth:`DetachMixin.detach_request`.

Some handlers only hand the socket over, to a thread of their own (pynetdicom's do) or to another loop; a server that
closes it behind them is of no use to them.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from .protocol import EndReason
from .sessions import Session, half_close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["DetachMixin", "await_keepers", "end_kept_input"]


class DetachMixin:
    """The part of ``ServerMixin`` that lets go of a connection."""

    sessions: dict[Any, Session]

    def detach_request(self, request: socket.socket) -> socket.socket:
        """Let the handler keep ``request`` beyond its session; return it, blocking and without a timeout.

        To be called from its handler. From then on the server neither half-closes nor lingers nor closes it, no limit
        of time holds for it, and a stop does not wait for it: whoever keeps it closes it. The session ends when the
        handler returns, with ``reason=detached`` in the log. A TLS connection goes on as one: ``shutdown(SHUT_WR)``
        on it says close_notify, ``close`` alone does not. What ``rfile`` has read ahead is in ``rfile``.

        In modes single and thread, keep it in a daemon thread, or the process ends only with that thread. In mode
        fork the child, and its place among ``max_conns``, stays until all threads have ended that the handler
        has started in it; when the server stops, the connection reads EOF, and the deadline holds.

        Raises ValueError if ``request`` is not the socket of a session of this server, or is detached already.
        """
        session = self.sessions.get(request)
        if session is None:
            raise ValueError("only the request of a session that runs can be detached, and once")
        # The server goes on with a socket that is closed already: whatever it does to it is nothing.
        stand_in = socket.socket(request.family)
        stand_in.close()
        self.sessions[stand_in] = session
        del self.sessions[request]
        session.request, session.kept = stand_in, request
        session.reason = EndReason.DETACHED
        request.settimeout(None)
        if session.counted:
            request.tally = None  # type: ignore[attr-defined] # the next session counts in its place
        return request


def await_keepers(session: Session) -> None:
    """Wait until all threads of this process have ended but this one; then nobody keeps the connection any more."""
    if session.input_ended:
        end_kept_input(session)
    here, seen = threading.current_thread(), set()
    seen.add(here)
    while others := [thread for thread in threading.enumerate() if thread not in seen]:
        for thread in others:
            seen.add(thread)
            with contextlib.suppress(RuntimeError, AssertionError):  # one that threading did not start
                thread.join()


def end_kept_input(session: Session) -> None:
    """Let whoever keeps the connection of a session read EOF."""
    half_close(session.kept or session.request, socket.SHUT_RD)
