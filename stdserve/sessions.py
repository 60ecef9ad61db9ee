"""One connection as the server sees it: who, since when, how much, why it ended; and how it is closed."""

from __future__ import annotations

import itertools
import logging
import socket
import sys
import time
from contextlib import suppress
from functools import partial

from .addresses import format_peer
from .logs import Event
from .protocol import EndReason
from .replies import Unsent
from .steps import READS, WRITES
from .tally import Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .proxyheader import ProxyHeader
    from .rows import SessionRow
    from .steps import SomeSteps, Steps

__all__ = ["LINGER_BYTES", "Peer", "Session", "end_output", "half_close", "has_said_all", "linger"]

#: Bytes that a lingering close reads at most.
LINGER_BYTES = 64 * 1024 * 1024


#: The option that tells a connection's state in its first byte, and the state in which nothing is to come (Linux).
_TCP_INFO = getattr(socket, "TCP_INFO", -1) if sys.platform == "linux" else -1
_CLOSE_WAIT = 8

_numbers = itertools.count(1)


class Session:
    """The record of one connection, from accept to close.

    ``number`` tells it from the others of this process, ``request`` is the socket, ``client_address`` and ``peer``
    its address, as the system gives it and as text. ``tally`` is where it counts: its handler lines, and bytes unless
    the socket does that by itself, for any handler (``counted``). ``reason`` is why it ended: CLOSED until a handler
    knows better, and what ``cut`` said once that was called. ``proxy`` is the header of the PROXY protocol that gave
    the address, ``tls`` the version of TLS that is spoken, ``subject`` whom the client's certificate is for; None
    where there is none.
    ``adopts`` tells a handler, or a hook, that it may leave its steps to the server: by a function, ``adopted``, that
    returns them.
    ``at_end`` tells that the handler has read all that the peer ever sent.
    ``opened`` tells that nothing stood between the client and the handler any more, ``refusal`` why something did;
    ``seat`` belongs to whoever counts addresses, ``kept`` is the socket that a handler has detached.
    """

    __slots__ = (
        *(
            "adopted",
            "adopts",
            "at_end",
            "client_address",
            "counted",
            "cut_for",
            "input_ended",
            "kept",
            "number",
            "opened",
            "_peer",
            "proxy",
            "reason",
            "refusal",
        ),
        *("request", "seat", "started", "subject", "tally", "tls"),
    )

    def __init__(self, request: socket.socket, client_address: Any) -> None:
        self.request = request
        self.number = next(_numbers)
        self.cut_for: EndReason | None = None
        self.adopted: Callable[[], SomeSteps] | None = None
        self.adopts = self.at_end = self.counted = self.input_ended = self.opened = False
        self.proxy: ProxyHeader | None = None
        self.tls: str | None = None
        self.subject: str | None = None
        self.seat: Any = None
        self.kept: socket.socket | None = None
        self.name(client_address)
        self.started = time.monotonic()
        self.reason = EndReason.CLOSED
        self.refusal = "other"
        self.tally: Tally | SessionRow = Tally()

    @property
    def received(self) -> int:
        """Bytes that came in since the session was opened."""
        return self.tally.counts[0]

    @property
    def lines(self) -> int:
        """Lines that came in."""
        return self.tally.counts[2]

    @property
    def seconds(self) -> float:
        """How long the session has lasted."""
        return time.monotonic() - self.started

    @property
    def level(self) -> int:
        """The level of its lines in the log: a proxy that only looks whether the server lives does so all day."""
        looks = self.proxy is not None and self.proxy.local and not self.received
        return logging.DEBUG if looks else logging.INFO

    def event(self, word: str, text: str = "", **fields: Any) -> Event:
        """Return an event of the log that is about this session."""
        return Event(word, text, peer=self.peer, session=self.number, **fields)

    def name(self, client_address: Any) -> None:
        """Say who the client is."""
        self.client_address = client_address
        self._peer: str | None = None

    @property
    def peer(self) -> str:
        """Its address as text."""
        if self._peer is None:  # where nobody asks for it, it is not made
            self._peer = format_peer(self.client_address)
        return self._peer

    def open(self) -> None:
        """Begin: nothing stands between the client and the handler any more, and what they say counts."""
        self.opened = True
        if type(self.tally) is not Tally:  # somebody watches
            self.tally.name(self.peer)
        self.tally.open()
        request: Any = self.request
        self.counted = hasattr(request, "tally")
        if self.counted:
            request.tally = self.tally

    def end(self) -> str:
        """Count the session, or what never became one; return why it ended."""
        reason = (self.cut_for or self.reason).value
        if self.opened:
            self.tally.end(reason)
        else:
            self.tally.reject(self.cut_for.value if self.cut_for else self.refusal)
        return reason

    def adopted_steps(self) -> SomeSteps:
        """Return the steps that were left to the server, once."""
        adopted, self.adopted, self.adopts = self.adopted, None, False
        return () if adopted is None else adopted()

    def move_to(self, request: socket.socket) -> None:
        """Go on with another socket for the same connection; what was asked of the old one holds for it too."""
        self.request = request
        # Whoever asks says so before acting: between the old socket and this one, nothing is missed.
        if self.input_ended:
            self.end_input()
        if self.cut_for is not None:
            self.cut(self.cut_for)

    def end_input(self) -> None:
        """Let the handler read end-of-file, after what has already arrived."""
        self.input_ended = True
        half_close(self.request, socket.SHUT_RD)

    def cut(self, reason: EndReason) -> None:
        """Break the session off for ``reason``: whatever the handler waits for on the socket ends now."""
        self.cut_for = self.cut_for or reason
        half_close(self.request, socket.SHUT_RDWR)


class Peer:
    """Who is at the other end of a session, for its handler. ``str(peer)`` is the address as the log writes it."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __str__(self) -> str:
        return self._session.peer

    @property
    def address(self) -> Any:
        """The address as ``socket.accept`` gives it, (host, port) and more for IPv6; behind a proxy, the client's."""
        return self._session.client_address

    @property
    def tls(self) -> str | None:
        """The version of TLS that is spoken, such as "TLSv1.3"; None for plain text."""
        return self._session.tls

    @property
    def subject(self) -> str | None:
        """Whom the client's certificate names, as RFC 4514 writes it; None if it has shown none."""
        return self._session.subject

    @property
    def proxy(self) -> ProxyHeader | None:
        """The header of the PROXY protocol that told the address, with its TLVs; None if none was asked for."""
        return self._session.proxy


def half_close(request: socket.socket, how: int) -> bool:
    """Shut one direction down (socket.SHUT_RD: the handler reads EOF); False if the connection is gone already.

    On the raw socket: ``SSLSocket.shutdown`` would go on in plain text (cpython gh-124618).
    """
    try:
        socket.socket.shutdown(request, how)
    except OSError:
        return False
    return True


def has_said_all(request: socket.socket) -> bool:
    """Tell whether the peer has finished sending already; only on Linux, for TCP, and never wrongly (tcp(7))."""
    try:
        return request.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] == _CLOSE_WAIT
    except OSError:
        return False


def end_output(request: Any, seconds: float) -> Steps[bool]:
    """Tell the peer that nothing more will come, TLS in ``seconds`` at most; False if the connection is gone."""
    if hasattr(request, "close_notify"):  # a TLS socket has more to say than the end of the stream
        request.settimeout(seconds)
        with suppress(TimeoutError):
            yield request, WRITES, request.close_notify, time.monotonic() + seconds
    return half_close(request, socket.SHUT_WR)


def linger(request: socket.socket, seconds: float, limit: int = LINGER_BYTES) -> Steps[None]:
    """Read and discard until the peer closes, for at most ``seconds`` and ``limit`` bytes.

    Closing with unread input makes the kernel send RST, and the peer may lose our last words (RFC 7230, 6.6).
    nginx waits 5 s between reads and 30 s in all; a handler's thread is dearer.
    """
    deadline = time.monotonic() + seconds
    receive = partial(socket.socket.recv, request)  # of TLS the bare records: nobody reads them any more
    try:
        while limit > 0 and (left := deadline - time.monotonic()) > 0:
            request.settimeout(left)
            with suppress(Unsent):  # what a handler has replied when it was too late for that
                data = yield request, READS, receive, 65536
                if not data:
                    return
                limit -= len(data)
    except OSError:
        pass  # a reset, or the deadline: either way there is no one left to be polite to
