"""A client for tests that decides where its bytes are cut, and how the server gets to read them so."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import cached_property

from .connection import Client, network_errors
from .errors import SendTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["SplitClient", "split"]

#: Seconds between two looks whether the server has read a piece.
LOOK_SECONDS = 0.0005


def split(data: bytes, at: Iterable[int]) -> list[bytes]:
    """Cut ``data`` at these positions, in any order; one at its ends or beyond them cuts nothing."""
    cuts = [0, *sorted({position for position in at if 0 < position < len(data)}), len(data)]
    return [data[start:end] for start, end in zip(cuts, cuts[1:], strict=False) if start < end]


class SplitClient(Client):
    """A ``Client``, made as that is, whose bytes reach the server in the pieces that the test wants.

    On Linux, to a server on the same machine over TCP or a UNIX socket, the next piece is sent when the server has read
    this one to its end: no ``recv`` of the server's returns bytes of two pieces. One that asks for less than a piece
    needs several. (A record of TLS is read in two or more.) Elsewhere each piece is a segment of its own, or a record
    of TLS, and what becomes of those on the way is the network's affair.
    """

    @cached_property
    def _has_read(self) -> Callable[[], bool]:
        """What tells whether the server has read all, of a connection that sends at once."""
        raw = socket.socket(fileno=self.sock.fileno())
        try:
            if raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _reading_of(raw)
        except OSError:  # the server has gone; sending will tell
            return _at_once
        finally:
            raw.detach()

    def __enter__(self) -> SplitClient:
        return self

    def send_split(self, data: bytes, at: Iterable[int]) -> None:
        """Send ``data``, cut ``at`` these positions; see ``send_pieces``."""
        self.send_pieces(split(data, at))

    def send_pieces(self, pieces: Iterable[bytes]) -> None:
        """Send each piece as it is (no LF is added) when the server has read the one before; return when it has all.

        Raises SendTimeout if the server does not read for ``read_timeout`` seconds, SendError if the connection breaks.
        """
        has_read = self._has_read
        for piece in pieces:
            with network_errors():
                self.sock.sendall(piece)
            self._wait_until(has_read)

    def _wait_until(self, has_read: Callable[[], bool]) -> None:
        deadline = None if self.read_timeout is None else time.monotonic() + self.read_timeout
        while not has_read():
            if deadline is not None and time.monotonic() >= deadline:
                raise SendTimeout("send data timeout: the server does not read")
            threading.Event().wait(LOOK_SECONDS)


def _at_once() -> bool:  # pragma: no cover - on Linux the connection is gone then, and nobody asks
    return True


def _reading_of(sock: socket.socket) -> Callable[[], bool]:
    """Return what tells whether all that was sent by ``sock`` has been read at its other end."""
    if sys.platform != "linux":  # pragma: no cover - no other system tells
        return _at_once
    import fcntl
    import struct
    import termios

    fd = sock.fileno()

    def unsent() -> int:
        # SIOCOUTQ, which is TIOCOUTQ. Of TCP, what the other kernel has not acknowledged (tcp(7)); of a UNIX socket,
        # what the other end has not read, for that is where the memory stays (unix(7)).
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0])

    if sock.family == socket.AF_UNIX:
        return lambda: not unsent()
    ends = _as_listed(sock.getpeername()), _as_listed(sock.getsockname())
    if _unread(*ends) is None:  # it is not on this machine
        return lambda: not unsent()
    return lambda: not unsent() and not _unread(*ends)


def _unread(server: str, client: str) -> int | None:
    """Return the bytes that wait to be read by the server's socket, None if there is no such socket.

    Of IPv4 in a socket for IPv6 (``::ffff:127.0.0.1``) the last word is the address.
    """
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as rows:
            for row in rows:
                _, local, remote, _, queues, *_ = row.split()
                if local.endswith(server) and remote.endswith(client):
                    return int(queues.partition(":")[2], 16)
    return None


def _as_listed(address: tuple[Any, ...]) -> str:
    """Return an address as /proc/net has it: words of 32 bits as this machine reads them, and the port."""
    import struct

    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    packed = socket.inet_pton(family, address[0].partition("%")[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
