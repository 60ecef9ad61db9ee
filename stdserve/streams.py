"""The socket a session gets: a real one, whose files are free of three faults of the standard library's.

- A timeout poisons a file of ``socket.makefile``: every later read raises "cannot read from timed out object".
- ``readline()`` has no bound: a line without an end takes all memory.
- ``readline()`` loses what it had read of a line when a timeout comes.
"""

from __future__ import annotations

import io
import os
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .rows import SessionRow
    from .tally import Tally

    class Driver(Protocol):
        """What takes a session's steps for it."""

        def notice(self) -> None:
            """Be told that the socket is about to be closed, in any thread."""


__all__ = ["CountedSocket", "LineTooLong", "SessionReader", "SessionSocket"]


#: Whether an accepted socket has the mode of its listener, which does not block; on Linux it has not (accept(2)).
_INHERITS_MODE = sys.platform != "linux"


class LineTooLong(ConnectionAbortedError):
    """A peer sent a line longer than ``max_line``; raised by ``rfile.readline()`` of a handler that set no bound."""


class SessionSocket(socket.socket):
    """An accepted connection; ``max_line`` bounds the lines that its files read without a bound of their own."""

    max_line = 65536

    #: What waits for it in its place (an ``events.Driver``), where its calls must never wait.
    driver: Driver | None = None
    #: Whether bytes that were received may wait in its own memory, where no selector sees them.
    holds_bytes = False
    #: Seconds that the driver waits (None: for ever), in the place of the socket's own timeout.
    patience: float | None = None

    @classmethod
    def adopt(cls, accepted: socket.socket) -> SessionSocket:
        """Return a SessionSocket in the place of ``accepted``, which is closed without closing the connection."""
        family, kind, proto = accepted.family, accepted.type, accepted.proto
        return cls(family, kind, proto, accepted.detach())

    @classmethod
    def accept_from(cls, listener: socket.socket) -> tuple[SessionSocket, Any]:
        """Take a client from ``listener``, as ``accept`` does; return its socket, which blocks, and its address."""
        if type(listener) is socket.socket:
            # As socket.accept does it, but for the socket that would be made only to be adopted.
            fd, address = listener._accept()  # type: ignore[attr-defined]
            plain: Any = super(socket.socket, listener)  # whose family and type are the bare numbers
            request = cls(plain.family, plain.type, plain.proto, fd)
        else:  # one of the user's own, with an accept of its own
            accepted, address = listener.accept()
            request = cls.adopt(accepted)
        if _INHERITS_MODE:  # pragma: no cover - the BSDs
            request.setblocking(True)
        return request, address

    def be_driven(self, driver: Driver) -> None:
        """Never wait any more: ``driver`` does, as long as ``settimeout`` says."""
        self.patience = self.gettimeout()
        super().setblocking(False)
        self.driver = driver

    def close(self) -> None:
        """Close, as a socket; who waits in its place is told."""
        if self.driver is not None:
            self.driver.notice()
        super().close()

    def dup(self) -> SessionSocket:
        """Return a copy, as a socket; of one that never waits, one that never does: they share that state."""
        if self.driver is None:
            return super().dup()
        copy = SessionSocket(self.family, self.type, self.proto, os.dup(self.fileno()))
        copy.settimeout(0)
        return copy

    def be_alone(self) -> None:
        """Wait again, as ``settimeout`` says."""
        self.driver = None
        self.settimeout(self.patience)

    def settimeout(self, value: float | None) -> None:
        """Set the seconds after which a call gives up."""
        if self.driver is None:
            super().settimeout(value)
        else:
            self.patience = value

    def gettimeout(self) -> float | None:
        """Return the seconds after which a call gives up."""
        return super().gettimeout() if self.driver is None else self.patience

    def setblocking(self, flag: bool) -> None:
        """Wait without a limit, or not at all."""
        self.settimeout(None if flag else 0.0)

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        """Return a file as ``socket.makefile`` does; those that are for reading bytes are a SessionReader."""
        if mode != "rb" or buffering == 0:
            return super().makefile(mode, buffering, **text)  # type: ignore[call-overload]
        size = buffering if buffering is not None and buffering > 0 else io.DEFAULT_BUFFER_SIZE
        return SessionReader(_RawReader(self), size, self.max_line)

    def setsockopt(self, level: int, option: int, *value: Any) -> None:
        """Set an option; one of TCP is nothing to a UNIX socket, where handlers that set one would fail (xmlrpc's)."""
        if level != socket.IPPROTO_TCP or self.family in (socket.AF_INET, socket.AF_INET6):
            super().setsockopt(level, option, *value)

    def close_now(self) -> None:
        """Close the connection, also where files made from it are still open and would keep it (they are refused)."""
        self.close()
        if self.fileno() >= 0:
            os.close(self.detach())


class CountedSocket(SessionSocket):
    """What it reads and sends is counted in ``tally``, once it has one.

    By recv and recv_into, send, sendall and sendfile, which files use too. Each costs half a microsecond more: it is
    for servers that are asked for numbers. Of a ``sendall`` that fails, nobody knows how much was sent.
    """

    tally: Tally | SessionRow | None = None

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive, and count what is not to be received again."""
        data = super().recv(bufsize, flags)
        if self.tally is not None and not flags & socket.MSG_PEEK:
            self.tally.add_received(len(data))
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive, and count what is not to be received again."""
        size = super().recv_into(buffer, nbytes, flags)
        if self.tally is not None and not flags & socket.MSG_PEEK:
            self.tally.add_received(size)
        return size

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send, and count."""
        size = super().send(data, flags)
        if self.tally is not None:
            self.tally.add_sent(size)
        return size

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send, and count."""
        super().sendall(data, flags)
        if self.tally is not None:
            self.tally.add_sent(memoryview(data).nbytes)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send, and count what ``send`` has not, which takes over where the system cannot send a file itself."""
        before = self.tally.counts[1] if self.tally is not None else 0
        size = super().sendfile(file, offset, count)
        if self.tally is not None:
            self.tally.add_sent(size - (self.tally.counts[1] - before))
        return size


class _RawReader(io.RawIOBase):
    """Reads from a socket. A timeout ends one read, not all: a fresh file takes the place of the poisoned one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = socket.socket.makefile(sock, "rb", 0)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._sock.fileno()

    def readinto(self, buffer: Any) -> int | None:
        try:
            return self._file.readinto(buffer)
        except TimeoutError:
            poisoned, self._file = self._file, socket.socket.makefile(self._sock, "rb", 0)
            poisoned.close()
            raise

    def close(self) -> None:
        self._file.close()
        super().close()


class SessionReader(io.BufferedReader):
    """A buffered reader whose ``readline`` is bounded and loses nothing to a timeout.

    ``readline()`` and iteration raise LineTooLong for a line of more than ``max_line`` bytes; ``readline(size)`` has
    its own bound, as ever. What a timeout left of a line is returned by the next ``readline`` or ``read``.
    """

    def __init__(self, raw: io.RawIOBase, buffer_size: int, max_line: int) -> None:
        super().__init__(raw, buffer_size)
        self._max_line = max_line
        self._begun = bytearray()

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read one line, at most ``size`` bytes of it if that is given and not negative."""
        limit = self._max_line + 1 if size is None or size < 0 else size
        if not self._begun and b"\n" in self.peek(1)[:limit]:
            return super().readline(limit)
        while len(self._begun) < limit:
            waiting = self.peek(1)[: limit - len(self._begun)]
            taken = super().read(waiting.find(b"\n") + 1 or len(waiting))
            self._begun += taken
            if not taken or taken.endswith(b"\n"):
                break
        line = bytes(self._begun)
        self._begun.clear()
        if len(line) > self._max_line and (size is None or size < 0):
            raise LineTooLong(f"a line of more than {self._max_line} bytes")
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        """Read ``size`` bytes, or all there are until the end."""
        if not self._begun:
            return super().read(size)
        wanted = None if size is None or size < 0 else size
        begun = bytes(self._begun[:wanted])
        del self._begun[:wanted]
        rest = -1 if wanted is None else wanted - len(begun)
        return begun + super().read(rest)
