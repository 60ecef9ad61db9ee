"""What a session replies, on its way to the peer: gathered, and sent together."""

from __future__ import annotations

import io
import threading
from threading import get_ident

from .steps import WRITES, wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Protocol

    class Driver(Protocol):
        """What takes the steps of a session that never waits."""

        #: The thread that runs the session's own code, 0 while it waits.
        inside: int
        outbox: Outbox | None

        def print_first(self) -> None:
            """Put out what was printed; raise OutputError if that fails."""

        def stir(self, outbox: Outbox) -> None:
            """Have it put out what it has, in any thread."""


__all__ = ["Outbox", "ReplyFile", "Unsent", "put_out"]

#: Bytes of replies from other sessions and threads that wait for a peer, beyond which it counts as not reading.
MOST_UNSENT = 1 << 20


class Unsent(BlockingIOError):
    """What has gathered did not go, for whatever reason: it is for the session's own step to find out why."""


class ReplyFile(io.BufferedIOBase):
    """What is written gathers, ``limit`` bytes at most, until ``flush`` sends it, all at once; then it holds no memory.

    ``io.BufferedWriter`` keeps its 8 KiB for as long as the session lasts. Threads may write and flush at any time.
    What is flushed is sent or lost: after an error of the socket there is no telling how much of it went.
    """

    # The base class brings a dictionary along, which takes half as long again to look into.
    __slots__ = ("_limit", "_lock", "_over", "_size", "_sock", "blocks")

    #: Whether what gathers goes out without a step of the session's own.
    flows = False

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self._sock = sock
        self._limit = limit
        #: What has gathered.
        # It comes in by ``append`` and goes out by ``_take``, each of which is whole: a lock would cost more than both.
        self.blocks: list[bytes | memoryview] = []
        #: Bytes since the last flush; what one thread adds another may overwrite, which makes for a later flush.
        self._size = 0
        self._lock = threading.Lock()
        self._over = False

    def close(self) -> None:
        """Flush and take no more. Raises what ``flush`` does."""
        try:
            super().close()
        finally:
            self._over = True

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def write(self, data: Any) -> int:
        """Take ``data``; send what has gathered if that is more than ``limit``. Raises what ``flush`` does."""
        if self._over:
            raise ValueError("write to closed file")
        block = data if type(data) is bytes else bytes(data)
        size = len(block)
        self.blocks.append(block)
        self._size += size
        if self._size > self._limit:
            self.flush()
        return size

    def flush(self) -> None:
        """Send what has gathered. Raises TimeoutError, and OSError if the connection is gone."""
        with self._lock:  # or a block could overtake one that was taken before it
            if self.blocks:
                self._size = 0
                self._sock.sendall(self._take())

    def put_out(self) -> None:
        """Flush, as a step of the session's own that may have to wait."""
        self.flush()

    def _take(self) -> bytes | memoryview:
        if len(self.blocks) == 1:
            return self.blocks.pop(0)  # the first, for others may have come
        taken = self.blocks[:]
        del self.blocks[: len(taken)]
        return b"".join(taken)


class Outbox(ReplyFile):
    """The same for a session whose driver waits: what the peer does not take at once stays here until it does.

    What comes from elsewhere than the session itself is refused, with a TimeoutError, while MOST_UNSENT bytes are here:
    the peer does not read. The session itself, and who puts out, are one thread.
    """

    __slots__ = ("_driver", "_told", "_told_size", "flows")

    def __init__(self, sock: socket.socket, limit: int, driver: Driver) -> None:
        super().__init__(sock, limit)
        self._driver = driver
        driver.outbox = self
        # What others have replied, until the driver comes for it.
        self._told: list[bytes] = []
        self._told_size = 0
        # Not while the peer has not taken all: before it can be expected to, what comes is only kept.
        self.flows = True

    @property
    def unsent(self) -> int:
        """Bytes that have not gone."""
        return self._size + self._told_size

    def write(self, data: Any) -> int:
        """Take ``data``; send what has gathered if that is more than ``limit`` and the peer takes it."""
        if self._driver.inside == get_ident():
            if self._told:
                self._hear()  # what was told before comes before
            return super().write(data)
        if self._over:
            raise ValueError("write to closed file")
        if self.unsent > MOST_UNSENT:
            raise TimeoutError("the peer takes no replies")
        block = bytes(data)
        with self._lock:
            self._told.append(block)
            self._told_size += len(block)
        self._driver.stir(self)
        return len(block)

    def flush(self) -> None:
        """Send what the peer takes now, or have it sent. Raises OSError if the connection is gone."""
        if self._driver.inside != get_ident():
            self._driver.stir(self)
        elif self.flows:
            try:
                self._driver.print_first()
            except BaseException:
                self.discard()
                raise
            try:
                self.put_out()
            except OSError as error:
                if not wanted(error, WRITES):
                    raise

    def put_out(self) -> None:
        """Send all, or raise what the socket does for who does not wait, and keep what it has not taken."""
        if self._told:
            self._hear()
        self.flows = False
        while self.blocks:
            data = self._take()
            try:
                sent = self._sock.send(data)
            except BaseException:
                self.blocks.append(data)
                raise
            self._size -= sent
            if sent < len(data):
                self.blocks.append(memoryview(data)[sent:])
        self.flows = True

    def discard(self) -> None:
        """Send nothing of what is here."""
        self._hear()
        self.blocks.clear()
        self._size = 0

    def _hear(self) -> None:
        with self._lock:
            self.blocks += self._told
            self._size += self._told_size
            self._told, self._told_size = [], 0


def put_out(file: Any, driver: Driver | None) -> None:
    """Put out what ``file`` has, as a step that may have to wait; be it one that a handler has put over ours."""
    if hasattr(file, "put_out"):  # to ask for its class would be to ask an ABC
        file.put_out()
        return
    file.flush()
    if driver is not None and driver.outbox is not None:
        driver.outbox.put_out()  # what it has handed on
