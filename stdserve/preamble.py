"""What comes between accept and the handler: PROXY header, access rules, TLS; in the session's own thread or child.

Each step may refuse the peer. All of them together have one deadline, so that a silent client costs nobody else.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial

from .access import Admission
from .errors import PeerError
from .options import Options
from .sessions import Session, half_close, linger
from .steps import READS, WRITES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .certificates import Certificates
    from .steps import SomeSteps, Steps

__all__ = ["Preamble"]


class Preamble:
    """The steps that the options ask for, in their order; false where there are none.

    ``admission`` is asked about an address that only a PROXY header tells.
    """

    def __init__(self, options: Options, admission: Admission) -> None:
        self._admission = admission
        self._seconds = options.handshake_timeout
        self._steps: list[Callable[[Session, float], SomeSteps]] = []
        if options.proxy_protocol:
            self._steps += [_read_proxy_header, self._admit]
        if (certificates := options.certificates) is not None:
            self._steps.append(partial(_shake_hands, certificates))

    def __bool__(self) -> bool:
        return bool(self._steps)

    def steps(self, session: Session) -> Steps[None]:
        """Take ``session`` through the steps; its ``request``, ``client_address`` and the like may be others then.

        Raises PeerError if the peer is refused, OSError if the connection breaks.
        """
        deadline = time.monotonic() + self._seconds
        try:
            for step in self._steps:
                yield from step(session, deadline)
        except PeerError as error:
            yield from self._part(session.request, self._admission.words_for(error), deadline)
            raise
        session.request.settimeout(None)

    def _admit(self, session: Session, deadline: float) -> SomeSteps:
        self._admission.admit(session)
        return ()

    def _part(self, request: socket.socket, words: bytes, deadline: float) -> Steps[None]:
        """Let a peer that is refused read why, before the deadline: an alert of TLS, or our own ``words``."""
        try:
            request.settimeout(max(deadline - time.monotonic(), 0.000001))
            # A fresh connection has room for a line.
            yield request, WRITES, partial(socket.socket.send, request), words
        except OSError:
            return
        half_close(request, socket.SHUT_WR)
        yield from linger(request, deadline - time.monotonic())


def _shake_hands(certificates: Certificates, session: Session, deadline: float) -> Steps[None]:
    """Go on in TLS, or not at all."""
    from .tls import wrap  # here, as ssl: few servers need it

    secure = wrap(session.request, certificates.context)
    session.move_to(secure)
    yield from secure.handshake(deadline)
    session.tls, session.subject = secure.version(), secure.subject


def _read_proxy_header(session: Session, deadline: float) -> Steps[None]:
    """Let the header say who the client is; not a byte is read beyond it, what follows is for TLS or the handler."""
    from .proxy import ProxyParser  # here, for few servers need it

    parser, header = ProxyParser(), None
    while header is None:
        data = yield from _receive_by(session.request, parser.wanted, deadline)
        if not data and not parser.received:  # what looks whether a port is open does this all day
            raise ConnectionAbortedError("it left before its PROXY header")
        header = parser.receive_data(data)
    session.proxy = header
    if isinstance(header.source, tuple):  # of a UNIX client of the proxy there is no more than a path, if any
        session.name(header.source)


def _receive_by(sock: socket.socket, size: int, deadline: float) -> Steps[bytes]:
    """Read at most ``size`` bytes before ``deadline`` (of the monotonic clock); raise PeerError when it has come."""
    try:
        # A timeout of 0 would mean not to wait at all, and to say so with another error.
        sock.settimeout(max(deadline - time.monotonic(), 0.000001))
        data: bytes = yield sock, READS, sock.recv, size
        return data
    except TimeoutError:
        raise PeerError("handshake_timeout", "the PROXY header did not come in time") from None
