"""TLS for the client: a socket's own calls over a session whose two directions end one at a time, as TCP's do.

Each side of TLS 1.3 says by itself that it has finished (close_notify, RFC 8446 section 6.1); peers of TLS 1.2 are as a
rule content with that, too. An ``ssl.SSLSocket`` cannot do it: its unwrap() goes on to read, and when it finds a reply
instead of the server's close_notify it fails with APPLICATION_DATA_AFTER_CLOSE_NOTIFY and from then on reports the end:
replies are lost without an error. Its shutdown() sends a bare FIN, on which a server with OpenSSL 3 gives up instead of
replying. (Measured: Python 3.10 to 3.13, OpenSSL 3.0, TLS 1.2 and 1.3.) So the records pass through our own hands, and
close_notify is sent when OpenSSL has none left that it could stumble over.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

from .errors import ConfigError

__all__ = ["TLSStream"]

# Bytes sent or received at a time, four records.
_BLOCK = 65536


class TLSStream:
    """The client's side of TLS over ``sock``, which is connected and belongs to the stream from now on.

    ``name`` is the server's, to be verified as ``context`` wants it, None if there is none. The calls are those of a
    socket, blocking or not, and raise what theirs do; a fault of TLS is an OSError, its words those of OpenSSL.
    ``tls`` is the ``ssl.SSLObject``, for whoever asks for the version or the certificate. Raises ConfigError for a
    name that none can be.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            if context.check_hostname and name is None:
                raise ValueError  # an SSLObject would verify no name, without a word
            self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        except ValueError:  # a UnicodeError, too, from IDNA
            raise ConfigError(f"tls_name must be the name of the server to verify, not {name!r}") from None
        self._received, self._ended = b"", False
        self._fault: OSError | None = None
        self._unsent = memoryview(b"")
        self._finishing = self._finished = False

    def handshake(self, timeout: float) -> None:
        """Agree on keys with the server within ``timeout`` seconds. Raises TimeoutError, and OSError for any fault."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                left = deadline - time.monotonic()
                if left <= 0:  # what drips in pushes no deadline back
                    raise TimeoutError("timed out") from None
                self._sock.settimeout(left)
                self._feed(_BLOCK)
            except ssl.SSLEOFError:
                raise ConnectionError(0, "the server ended the TLS handshake") from None
            except ssl.SSLError as error:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that tells the server
                raise _fault(error) from error
        self._flush()
        self._decrypt()

    @property
    def received(self) -> bool:
        """Whether recv() will return at once, whatever select(2) says of the socket."""
        return bool(self._received)

    @property
    def unsent(self) -> bool:
        """Whether there is something for send(), of no data if need be, to pass on to the network."""
        return not self._finished and bool(self._unsent or self._outgoing.pending)

    def recv(self, size: int) -> bytes:
        """Return all that the next ``size`` bytes from the network say, b"" at the server's close_notify.

        An end without it is an OSError: somebody may have cut the reply short (RFC 8446 section 6.1).
        """
        while not (self._received or self._ended or self._fault):
            self._feed(size)
            self._decrypt()
        data, self._received = self._received, b""
        if not data and self._fault:
            raise self._fault
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Encrypt the beginning of ``data`` and pass it on; return how much that was, BlockingIOError if nothing."""
        if self._fault:
            raise self._fault
        self._flush()
        view, count = memoryview(data), 0
        while count < len(view) and self._outgoing.pending < _BLOCK:
            try:
                count += self.tls.write(view[count:])
            except ssl.SSLWantReadError:  # renegotiation, which TLS 1.2 has, unless the context forbids it
                self._feed(_BLOCK)
                self._decrypt()
            except ssl.SSLError as error:
                raise _fault(error) from error
        with contextlib.suppress(BlockingIOError):
            self._flush()
        return count

    def sendall(self, data: bytes) -> None:
        """Send ``data``; the timeout is that of each wait."""
        left = memoryview(data)
        while left:
            left = left[self.send(left) :]

    def shutdown(self, how: int) -> None:
        """End sending (``how`` is SHUT_WR, nothing else): close_notify, and behind it the FIN. Replies still come."""
        if self._finishing:
            return
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # the server's own close_notify is for recv() to find
        except ssl.SSLError as error:
            raise _fault(error) from error
        self._finishing = True
        with contextlib.suppress(BlockingIOError):
            self._flush()

    def close(self) -> None:
        """Close at once, with a close_notify if the network takes one."""
        with contextlib.suppress(OSError):
            self._sock.setblocking(False)
            self.shutdown(socket.SHUT_WR)
        self._sock.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait for."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Wait in each call, or never, as a socket."""
        self._sock.setblocking(flag)

    def settimeout(self, seconds: float | None) -> None:
        """Limit each wait, as a socket's."""
        self._sock.settimeout(seconds)

    def _feed(self, size: int) -> None:
        """Hand up to ``size`` bytes from the network to OpenSSL, or their end; what it had to say goes out before."""
        with contextlib.suppress(OSError):  # a connection that is gone says so, and why, when it is read
            self._flush()
        data = self._sock.recv(size)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypt(self) -> None:
        """Take all that OpenSSL can decrypt: select(2) does not see it there, and unwrap() would stumble over it."""
        plain = [self._received]
        try:
            while data := self.tls.read(_BLOCK):
                plain.append(data)
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the end, when we have said ours before
            self._ended = True
        except ssl.SSLEOFError:
            self._fault = ConnectionError(0, "the server ended the session without a close_notify of TLS")
        except ssl.SSLError as error:
            self._fault = _fault(error)
        self._received = b"".join(plain)

    def _flush(self) -> None:
        """Pass on what OpenSSL has written; BlockingIOError if the network does not take all of it."""
        while self.unsent:
            self._unsent = self._unsent or memoryview(self._outgoing.read())
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        if self._finishing and not self._finished:
            self._finished = True  # what OpenSSL still answers (KeyUpdate) has no way to go, and no need
            self._sock.shutdown(socket.SHUT_WR)


def _fault(error: ssl.SSLError) -> OSError:
    """Return the error with OpenSSL's words for its text, without file, line and number."""
    if isinstance(error, ssl.SSLCertVerificationError):
        words = f"certificate verify failed: {error.verify_message.rstrip('.')}"
    elif error.reason == "WRONG_VERSION_NUMBER":
        words = "the server does not speak TLS"
    else:
        words = error.reason.replace("_", " ").lower() if error.reason else str(error)
    return OSError(error.errno, words)
