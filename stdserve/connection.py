"""A connection for programs and for tests: connect, send a line, read the one that answers it."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator

from .addresses import Address, connect_form, parse_address, parse_port
from .errors import ConfigError, ConnectError, ConnectTimeout, SendError, SendTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any

    from .tls_stream import TLSStream

__all__ = ["BLOCK", "Client", "as_line", "network_errors", "reason"]

#: Bytes read or sent at a time: a pipe's capacity on Linux (pipe(7)).
BLOCK = 65536

# Seconds, 23 days: poll(2), under every timeout of a socket, counts its milliseconds in an int.
_LONGEST_WAIT = 2e6


class Client:
    """A connection to a line server: ``with Client("127.0.0.1:10001") as client: print(client.ask("ping 1"))``.

    Making it connects, to text as :func:`~stdserve.addresses.parse_address` reads it, an Address or a (host, port)
    pair. Timeouts are in seconds, None for no limit: ``connect_timeout`` (the lecture's 5) for each address of a host
    and again for TLS's handshake, ``read_timeout`` for each later wait, be it to send or to receive. Text is UTF-8,
    undecodable bytes are kept as lone surrogates (PEP 383).

    ``tls`` is True (the CAs of the system are to vouch for the server) or a context of your own, ``tls_name`` the name
    to verify where it is not the host. ``proxy_protocol`` ("v1" or "v2") sends the header of a proxy first of all, one
    that tells of a client at ``proxy_source``, (address, port); by default it tells of this end of the connection.
    ``sock`` is the socket, with TLS the :class:`~stdserve.tls_stream.TLSStream` over it.

    Raises ConfigError for an argument that cannot be used, ConnectTimeout and ConnectError (also for a certificate that
    is not to be trusted); later calls raise SendTimeout after ``read_timeout``, SendError when the connection breaks.
    """

    def __init__(
        self,
        address: str | Address | tuple[str, int],
        *,
        tls: ssl.SSLContext | bool | None = None,
        tls_name: str | None = None,
        proxy_protocol: str | None = None,
        proxy_source: tuple[str, int] | None = None,
        connect_timeout: float | None = 5.0,
        read_timeout: float | None = None,
    ) -> None:
        if not isinstance(address, Address):
            address = parse_address(address) if isinstance(address, str) else Address(*address)
        family, where = _where(address)
        self.read_timeout = _above_zero("read_timeout", read_timeout)
        connect_timeout = _above_zero("connect_timeout", connect_timeout)
        header, context = _proxy_header(proxy_protocol, proxy_source), _context(tls)
        with _connect_errors(address):
            self.sock: socket.socket | TLSStream = _connect(family, where, connect_timeout)
            try:
                self.sock.sendall(header(self.sock))
                if context:
                    name = address.host if tls_name is None and address.kind == "tcp" else tls_name
                    self.sock = _secure(self.sock, context, name, connect_timeout)
            except BaseException:
                self.sock.close()
                raise
        self.sock.settimeout(self.read_timeout)
        self._received = bytearray()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, line: str | bytes) -> None:
        """Send a line, with a LF unless it has one; return when the kernel has it, not the server.

        Replies are not read meanwhile: megabytes to a server that answers before it reads on would block both.
        """
        with network_errors():
            self.sock.sendall(as_line(line))

    def receive_line(self) -> str:
        """Wait for the server's next line and return it without its LF, nor a CR before that.

        What comes without a LF before the server's end is a line too; SendError after that. A timeout loses nothing.
        """
        line = self._next_line()
        if line is None:
            raise SendError("send data error: the server ended the session")
        return line

    def lines(self) -> Iterator[str]:
        """Yield the server's lines as they come, each as :meth:`receive_line` returns it, until it ends the session."""
        while (line := self._next_line()) is not None:
            yield line

    def ask(self, line: str | bytes) -> str:
        """Send a line and return the one that the server answers, as :meth:`receive_line` does."""
        self.send(line)
        return self.receive_line()

    def finish(self) -> bytes:
        """Say that no more will be sent (half-close), wait for the server's end, return all it sent until then."""
        with contextlib.suppress(OSError):  # a connection that is gone (ENOTCONN) says so, and why, when it is read
            self.sock.shutdown(socket.SHUT_WR)
        while self._receive():
            pass
        rest, self._received = bytes(self._received), bytearray()
        return rest

    def close(self) -> None:
        """Close the connection at once; what the server has not read by then may be lost, see :meth:`finish`."""
        self.sock.close()

    def _next_line(self) -> str | None:
        searched = 0
        while self._received.find(b"\n", searched) < 0:
            searched = len(self._received)
            if not self._receive():
                break
        if not self._received:
            return None
        line, terminator, self._received = self._received.partition(b"\n")
        return (line.removesuffix(b"\r") if terminator else line).decode("utf-8", "surrogateescape")

    def _receive(self) -> bool:
        with network_errors():
            data = self.sock.recv(BLOCK)
        self._received += data
        return bool(data)


def as_line(text: str | bytes) -> bytes:
    """Return a line as it is sent: text in UTF-8, with a LF unless it has one."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return data if data.endswith(b"\n") else data + b"\n"


def _above_zero(name: str, seconds: float | None) -> float | None:
    """Return a timeout that sockets accept: 0 would mean non-blocking to them, a year would overflow."""
    if seconds is not None and not seconds > 0:  # nor is a NaN
        raise ConfigError(f"{name} must be above 0, not {seconds:g}")
    return seconds and min(seconds, _LONGEST_WAIT)


def _where(address: Address) -> tuple[int, Any]:
    """Return the family and the socket address to connect to; ConfigError if there is none, or not one."""
    if address.kind == "tcp":
        parse_port(str(address.port))  # getaddrinfo would take 70000 for 4464
        if address.host == "*":
            raise ConfigError(f"{address} can be listened on, not connected to")
    return connect_form(address)


def _connect(family: int, where: Any, timeout: float | None) -> socket.socket:
    """Connect to a UNIX socket, or to the first address of a host that accepts; the last one's OSError if none does."""
    if family == socket.AF_UNSPEC:
        return socket.create_connection(where, timeout)
    sock = socket.socket(family)
    try:
        # Where its backlog is full, a UNIX socket's connect waits for room if it blocks, and for no longer than this
        # (socket(7)); one that does not block would fail at once (EAGAIN), and poll would not tell when to try again.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout))
        sock.connect(where)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(None))
        sock.settimeout(timeout)
    except BaseException as error:
        sock.close()
        if isinstance(error, BlockingIOError):
            raise TimeoutError("timed out") from None
        raise
    return sock


def _timeval(seconds: float | None) -> bytes:
    """Return a struct timeval, in which 0 stands for no limit."""
    return struct.pack("@ll", *divmod(0 if seconds is None else max(1, int(seconds * 1e6)), 1_000_000))


def _proxy_header(version: str | None, source: tuple[str, int] | None) -> Callable[[socket.socket], bytes]:
    """Return what makes the header for a connection, an empty one if none is asked for."""
    if version is None and source is None:
        return lambda _: b""
    from .proxyheader import encode_v1, encode_v2  # few clients have a use for it

    encode = {"v1": encode_v1, "v2": encode_v2}.get(version or "")
    if encode is None:
        raise ConfigError(f"proxy_protocol must be v1 or v2, not {version!r}")
    return lambda sock: encode(source or sock.getsockname(), sock.getpeername())


def _context(tls: ssl.SSLContext | bool | None) -> ssl.SSLContext | None:
    """Return the context that ``tls`` asks for, None for no TLS."""
    if tls is True:
        from .certificates import client_context  # it imports ssl, a quarter of a start

        return client_context()
    return tls or None


def _secure(sock: socket.socket, context: ssl.SSLContext, name: str | None, timeout: float | None) -> TLSStream:
    """Begin TLS on a connected socket."""
    from .tls_stream import TLSStream

    stream = TLSStream(sock, context, name)
    stream.handshake(_LONGEST_WAIT if timeout is None else timeout)
    return stream


@contextlib.contextmanager
def _connect_errors(address: Address) -> Iterator[None]:
    """Raise what goes wrong before the first line as ConnectTimeout or ConnectError."""
    try:
        yield
    except TimeoutError:
        raise ConnectTimeout("connect timeout") from None
    except ConnectionRefusedError:
        raise ConnectError("connection refused") from None
    except (OSError, UnicodeError) as error:  # the latter for a name that DNS cannot carry, such as "a..b"
        unknown = "unknown host " if isinstance(error, socket.gaierror | UnicodeError) else ""
        name = address.host if address.kind == "tcp" else address
        raise ConnectError(f"connect error: {unknown}{name}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the words of the operating system without its number."""
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def network_errors() -> Iterator[None]:
    """Raise what goes wrong with a connected socket as SendTimeout or SendError."""
    try:
        yield
    except OSError as error:
        kind, word = (SendTimeout, "timeout") if isinstance(error, TimeoutError) else (SendError, "error")
        raise kind(f"send data {word}: {reason(error)}") from error
