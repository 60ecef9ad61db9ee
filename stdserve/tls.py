"""TLS on one connection: the handshake under a deadline, reads and replies that end well, close_notify.

Imported where TLS is asked for, and only there: ``ssl`` takes longer to import than all that a start needs.

A session's TLS goes in three steps, all in its own thread or child: ``wrap`` puts a :class:`TLSSocket` in the place of
the accepted socket, ``handshake`` on it makes it usable, and ``close_notify`` says goodbye before the raw half-close
and the lingering of ``sessions``, which work on it as on any other socket.
"""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import time
from functools import partial

from .certificates import PLAIN_EOF
from .errors import PeerError
from .steps import READS
from .streams import SessionSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .rows import SessionRow
    from .steps import Steps
    from .tally import Tally

__all__ = ["TLSSocket", "wrap"]

#: Seconds that ``TLSSocket.shutdown`` waits for room in the send buffer of a socket without a timeout.
GOODBYE_SECONDS = 1.0

#: The first byte of a TLS connection: a handshake record (RFC 8446, 5.1).
_HANDSHAKE = 0x16

#: What an HTTP client that forgot the s is told, as nginx does.
_USE_HTTPS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port speaks TLS: use https.\n"
)
_HTTP_METHOD = re.compile(rb"[A-Z]{3,7} ")

#: OpenSSL's words that tell an operator too little.
_WORDS = {
    "CERTIFICATE_VERIFY_FAILED": "the peer's certificate is refused",
    "NO_SHARED_CIPHER": "no cipher in common",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer sent no certificate",
    "UNSUPPORTED_PROTOCOL": "the peer speaks no version of TLS that is allowed here",
    "WRONG_VERSION_NUMBER": "not TLS, or a version of it that nobody knows",
}
_ALERT = re.compile("(?:SSLV3|TLSV1|TLSV13)_ALERT_")

#: RFC 4514, section 3, by the names that OpenSSL gives the attributes; others keep theirs.
_ATTRIBUTES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
_SPECIAL = re.compile(r'[,+"\\<>;]|^[ #]| $')
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")

# How to wait for one descriptor, also for one above select(2)'s limit of 1024.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


def wrap(accepted: socket.socket, context: ssl.SSLContext) -> TLSSocket:
    """Return a TLSSocket in the place of ``accepted``, whose handshake is still to be done; nothing is sent yet.

    ``context`` is one of ``certificates.load_context``. Raises ConnectionResetError, with everything closed, if the
    connection is gone: ``ssl`` would give a socket that reads and writes plain text (as in CVE-2023-40217).
    """
    context.sslsocket_class = TLSSocket
    max_line = getattr(accepted, "max_line", TLSSocket.max_line)
    driver = getattr(accepted, "driver", None)
    try:
        tls: Any = context.wrap_socket(
            accepted, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=not PLAIN_EOF
        )
    except OSError as error:
        accepted.close()
        raise ConnectionResetError(f"the connection was gone before its TLS handshake: {error}") from None
    try:
        # No connection comes back: one that is there now was there when ``ssl`` looked for it.
        tls.getpeername()
    except OSError:
        tls.close()
        raise ConnectionResetError("the connection was gone before its TLS handshake") from None
    tls.max_line = max_line
    if driver is not None:
        tls.be_driven(driver)
    wrapped: TLSSocket = tls
    return wrapped


class TLSSocket(SessionSocket, ssl.SSLSocket):
    """A connection that speaks TLS, with the files of a SessionSocket; made by ``wrap``.

    What the peer does to the connection is told as on a socket without TLS: an EOF reads as ``b""``, be it by
    close_notify or without, be it our own half-close of the raw socket, after which replies can still be sent; a
    connection that broke, or whose bytes are no TLS, raises a ConnectionError; a timeout loses nothing that was read.
    A read or a write has all of ``settimeout`` to itself, however its bytes drip.

    ``pending()`` bytes are deciphered and unread: ``select`` does not see them, blocking reads need not care.
    """

    holds_bytes = True

    #: The last write has failed, or has yet to be repeated by a handler that does not block.
    _unfinished = False

    #: Where what is said is counted, once it is.
    tally: Tally | SessionRow | None = None

    def handshake(self, deadline: float) -> Steps[None]:
        """Do the handshake by ``deadline`` (of time.monotonic), whatever the peer does or does not; keep the timeout.

        Raises PeerError with reason "handshake_timeout", or "tls" with what is wrong with the peer: plain text, no
        certificate or a bad one, an alert of its own. Raises ConnectionError if the peer has left. The connection is
        then to be closed as at the end of a session, or the peer may not read the alert that tells it why.
        """
        timeout = self.gettimeout()
        try:
            yield from self._check_first_bytes(deadline)
            # For the whole handshake, not for each of its reads (ssl's documentation of do_handshake).
            self._set_deadline(deadline)
            yield self, READS, self.do_handshake, False
        except (TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise PeerError("handshake_timeout", "the TLS handshake was not done in time") from None
        except (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError):
            raise ConnectionResetError("the peer left during the TLS handshake") from None
        except ssl.SSLError as error:
            raise PeerError("tls", _describe(error)) from None
        except ConnectionError:
            raise
        except OSError as error:  # ENOTCONN, and EBADF where the session was cut
            raise ConnectionResetError(f"the peer left before the TLS handshake: {error}") from None
        self.settimeout(timeout)

    def _set_deadline(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)

    def _check_first_bytes(self, deadline: float) -> Steps[None]:
        """Wait for the client's first word; tell plain text apart at once, where OpenSSL would wait for five bytes."""
        self._set_deadline(deadline)
        peek = partial(socket.socket.recv, self, 8)
        first = yield self, READS, peek, socket.MSG_PEEK
        if not first:
            raise ConnectionResetError("the peer left before the TLS handshake")
        if first[0] == _HANDSHAKE:
            return
        is_http = _HTTP_METHOD.match(first)
        if is_http:
            socket.socket.send(self, _USE_HTTPS)
        raise PeerError("tls", "plain text on a TLS port" + (": an HTTP request" if is_http else ""))

    @property
    def subject(self) -> str | None:
        """Whom the peer's certificate names, as RFC 4514 writes it, on one line; None if the peer has shown none."""
        certificate = self.getpeercert()
        if not certificate:
            return None
        names: Any = certificate["subject"]
        return ",".join(
            "+".join(f"{_ATTRIBUTES.get(key, key)}={_escape(text)}" for key, text in name) for name in names[::-1]
        )

    def close_notify(self, deadline: float) -> None:
        """Tell the peer that no more will come; wait for room in the send buffer until ``deadline``, for no answer.

        Nothing is told after a write that failed: a reply that was cut off must not look like a whole one. To be
        followed by a half-close of the raw socket. What the peer sent and was not read is lost to ``recv``.
        """
        tls: Any = getattr(self, "_sslobj", None)
        if tls is None or self._unfinished:
            return
        timeout = self.gettimeout()
        # Non-blocking, for it would wait for the answer too; and not by unwrap, which would go on in plain text.
        self.setblocking(False)
        try:
            while True:
                try:
                    tls.shutdown()
                except ssl.SSLWantWriteError:
                    if self.driver is not None:
                        raise
                    if self._has_room(deadline):
                        continue
                except OSError:
                    pass  # told, and not answered yet (SSLWantReadError); or there is no one left to tell
                return
        finally:
            self.settimeout(timeout)

    def _has_room(self, deadline: float) -> bool:
        with _Selector() as selector:
            selector.register(self, selectors.EVENT_WRITE)
            return bool(selector.select(max(0.0, deadline - time.monotonic())))

    # What ssl does differently from a socket.

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Read as ``SSLSocket.read`` does, which ``recv`` and ``recv_into`` call, and count."""
        try:
            data: Any = super().read(len, buffer)
        except ssl.SSLZeroReturnError:  # EOF again, after our own close_notify
            return b"" if buffer is None else 0
        except ssl.SSLError as error:
            raise _as_of_a_socket(error) from None
        if self.tally is not None:
            self.tally.add_received(data if buffer is not None else memoryview(data).nbytes)
        return data

    def send(self, data: Any, flags: int = 0) -> int:
        """Send as ``SSLSocket.send`` does, which ``sendall`` calls, and count."""
        self._unfinished = True
        try:
            sent = super().send(data, flags)
        except ssl.SSLError as error:
            raise _as_of_a_socket(error) from None
        self._unfinished = False
        if self.tally is not None:
            self.tally.add_sent(sent)
        return sent

    def shutdown(self, how: int) -> None:
        """Shut down one direction or both; before that of writing, the peer gets close_notify.

        ``SSLSocket.shutdown`` drops TLS, and whatever is read and written after it is plain text (cpython gh-124618).
        """
        if how != socket.SHUT_RD:
            self.close_notify(time.monotonic() + (self.gettimeout() or GOODBYE_SECONDS))
        socket.socket.shutdown(self, how)

    def detach(self) -> int:
        """Give the descriptor away; OpenSSL, which knows it by its number, must not go on using it."""
        self._sslobj = None
        return super().detach()


def _as_of_a_socket(error: ssl.SSLError) -> OSError:
    """Return what a socket without TLS would raise in the place of ``error``."""
    if isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError):
        return error
    if isinstance(error, ssl.SSLEOFError | ssl.SSLSyscallError):
        return ConnectionResetError("the TLS connection broke")
    return ConnectionAbortedError(f"TLS failed: {_describe(error)}")


def _describe(error: ssl.SSLError) -> str:
    """Say what OpenSSL found, in its own fixed words: nothing of it is the peer's."""
    reason = error.reason or "no reason given"
    if _ALERT.match(reason):
        return "the peer sent the alert " + _ALERT.sub("", reason).lower().replace("_", " ")
    words = _WORDS.get(reason) or reason.lower().replace("_", " ")
    return f"{words}: {error.verify_message}" if isinstance(error, ssl.SSLCertVerificationError) else words


def _escape(value: str) -> str:
    """Escape an attribute's value (RFC 4514, 2.4); control characters too, which must not reach a log."""
    value = _SPECIAL.sub(r"\\\g<0>", value)
    return _CONTROL.sub(lambda control: "".join(f"\\{byte:02X}" for byte in control[0].encode()), value)
