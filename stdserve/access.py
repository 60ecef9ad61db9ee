"""Who may come in, and what those hear who may not: networks, caps in total and per address, and what overflow means.

Everything here but ``admit`` and ``leave`` belongs to the thread of the accept loop.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from .errors import PeerError
from .logs import Event
from .options import Options
from .seats import Seats, SharedSeats
from .sessions import Session, half_close
from .tally import Counters
from .waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .metrics import WorkerCounters

__all__ = ["Admission"]

_log = logging.getLogger("stdserve")

#: Seconds without a client too many after which an overload counts as over.
CALM_SECONDS = 1.0

#: Refused clients that may read their message at a time; beyond that the oldest is closed at once.
MOST_REFUSALS = 256

#: Reads of one refused client in one turn; what it still sends waits for the next.
READS_PER_TURN = 16


class Admission:
    """The caps of a server and its overflow policy: "wait" (in the backlog), "close", or "reply" with a message.

    ``max_conns`` is the cap on all sessions, ``options.max_conns_per_ip`` that on those of one address, whose
    clients cannot be told from others in the backlog and are refused under every policy. A refused client can
    read the message, and ``close(request)`` is called in the end; the accept loop never waits for it.

    Behind a proxy, whose header tells the client's address only later, ``enter`` asks whether the proxy may speak
    for others, and ``admit`` all that depends on the address. ``forks``: that is then called in a child.
    """

    def __init__(
        self,
        options: Options,
        max_conns: int,
        waiter: Waiter,
        close: Callable[[Any], None],
        forks: bool = False,
        counters: Counters | WorkerCounters | None = None,
    ) -> None:
        self._max_conns = max_conns
        self._waits = options.overflow == "wait"
        self._late = options.proxy_protocol
        limit = options.max_conns_per_ip
        self._addresses = (
            None if limit is None else SharedSeats(limit, max_conns) if forks and self._late else Seats(limit)
        )
        self._rules = options.rules
        self._options = options  # the networks of proxies are loaded where there are any
        # In the place of a handshake, a message in plain text would only be a riddle.
        replies = options.overflow == "reply" and options.certificates is None
        self._message = f"{options.overflow_message}\n".encode() if replies else b""
        self._close = close
        self._counters = counters or Counters()
        self._refusals = _Refusals(waiter, self._message, options.linger_timeout, close)
        fate = "clients wait in the backlog" if self._waits else "clients are refused"
        self._overload = _Overload(f"{max_conns} sessions are the limit, {fate}")

    def has_room(self, active: int) -> bool:
        """Tell whether to accept the next client while ``active`` sessions are open, be it to refuse it."""
        return active < self._max_conns or not self._waits

    def crowd(self) -> None:
        """Tell that clients wait for whom there is no room."""
        self._overload.strike()

    def enter(self, session: Session, active: int) -> bool:
        """Count a session in, or refuse it: False, and the connection is taken care of."""
        if active >= self._max_conns:
            self._refuse(session, PeerError("full", "all sessions are in use"))
            return False
        try:
            if self._late:
                self._check_proxy(session)
            else:
                self.admit(session)
        except PeerError as error:
            self._refuse(session, error)
            return False
        return True

    def admit(self, session: Session) -> None:
        """Count in the address of a session, in any thread; raise PeerError if it is not let in."""
        host = session.client_address[0] if session.client_address else ""
        if self._rules is not None and not self._rules.admits(host):
            raise PeerError("denied", "its address is not let in")
        if self._addresses is not None and not self._addresses.enter(session, host):
            raise PeerError("address", "its address has all the sessions that it may have")

    def words_for(self, error: PeerError) -> bytes:
        """Return what a client that ``admit`` did not let in may read; nothing for other errors."""
        return self._message if error.reason == "address" else b""

    def leave(self, session: Session) -> None:
        """Count a session out; in any thread."""
        if self._addresses is not None:
            self._addresses.leave(session)

    def _check_proxy(self, session: Session) -> None:
        if not self._options.trusted_proxies.admits(session.client_address[0]):
            raise PeerError("proxy", "its PROXY header is not believed (--proxy-allow-from)")
        if self._addresses is not None:
            self._addresses.reserve(session)

    def _refuse(self, session: Session, error: PeerError) -> None:
        self._counters.reject(error.reason)
        # Of those there are too many of, the log counts; it names those who have no business here.
        crowd = error.reason in ("full", "address")
        _log.log(logging.DEBUG if crowd else logging.INFO, session.event("reject", reason=error.reason))
        if crowd:
            self._overload.strike(refused=1)
            self._refusals.refuse(session.request)
        else:
            self._close(session.request)

    def next_check(self, timeout: float | None) -> float | None:
        """Return ``timeout`` (seconds), or less if ``check`` is due earlier."""
        if not self._overload.going_on and not self._refusals.pending:
            return timeout
        return CALM_SECONDS if timeout is None else min(timeout, CALM_SECONDS)

    def check(self, active: int) -> None:
        """Do what time has made due: close refused clients, notice the end of an overload."""
        self._refusals.close_late()
        self._overload.check(crowded=active >= self._max_conns and self._waits)

    def close(self) -> None:
        """Close the refused clients that are still there."""
        self._refusals.close_all()


class _Overload:
    """One line in the log when an overload begins, one when it is over, with counts; never one per client."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._last = 0.0
        self._refused = 0

    @property
    def going_on(self) -> bool:
        return bool(self._began)

    def strike(self, refused: int = 0) -> None:
        self._last = time.monotonic()
        self._refused += refused
        if not self._began:
            self._began = self._last
            _log.warning(Event("overload", f"began: {self._what}"))

    def check(self, crowded: bool) -> None:
        if not self._began:
            return
        now = time.monotonic()
        if crowded:
            self._last = now
        elif now - self._last >= CALM_SECONDS:
            seconds = self._last - self._began
            told = {"refused": self._refused, "seconds": round(seconds, 1)}
            _log.warning(Event("overload", f"ended: refused={self._refused} seconds={seconds:.1f}", data=told))
            self._began, self._refused = 0.0, 0


class _Refusals:
    """Refused clients, until they have read why: a close with unread input would be a reset (RFC 7230, 6.6).

    What they send is thrown away until they close, for at most ``seconds``.
    """

    def __init__(self, waiter: Waiter, message: bytes, seconds: float, close: Callable[[Any], None]) -> None:
        self._waiter = waiter
        self._message = message
        self._seconds = seconds
        self._close = close
        self._leaving: dict[Any, float] = {}

    @property
    def pending(self) -> bool:
        return bool(self._leaving)

    def refuse(self, request: Any) -> None:
        if not self._message or not self._say(request):
            self._close(request)
            return
        if len(self._leaving) >= MOST_REFUSALS:
            self._let_go(next(iter(self._leaving)))
        self._leaving[request] = time.monotonic() + self._seconds
        self._waiter.watch(request, lambda: self._discard(request))

    def close_late(self) -> None:
        now = time.monotonic()
        for request in [request for request, deadline in self._leaving.items() if deadline <= now]:
            self._let_go(request)

    def close_all(self) -> None:
        for request in list(self._leaving):
            self._let_go(request)

    def _say(self, request: Any) -> bool:
        request.setblocking(False)
        try:
            request.send(self._message)  # a fresh connection has room for a line
        except OSError:
            return False
        return half_close(request, socket.SHUT_WR)

    def _discard(self, request: Any) -> None:
        try:
            for _ in range(READS_PER_TURN):
                if not request.recv(65536):
                    break
            else:
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._let_go(request)

    def _let_go(self, request: Any) -> None:
        del self._leaving[request]
        self._waiter.unwatch(request)
        self._close(request)
