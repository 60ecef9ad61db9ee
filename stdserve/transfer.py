"""One session of the client's command line: an input of any size goes out while the replies come in."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import sys
import threading
import time
from dataclasses import dataclass

from .connection import BLOCK, network_errors, reason
from .errors import OutputError, SendError, SendTimeout
from .terminal import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .tls_stream import TLSStream

    Stream = socket.socket | TLSStream

__all__ = ["Input", "Progress", "Transfer"]

# Seconds for an input to end after the server: "(echo exit; cleanup) | client" is in order, "tail -f | client" is not.
_LAST_WORD = 1.0


class Input:
    """A file descriptor made into a socket, ``sock``, that ends with it.

    A thread copies one into the other. No other way to wait for an input and the network together holds everywhere:
    epoll refuses regular files, macOS's poll refuses terminals, Windows selects sockets only, and whoever reads a
    terminal does not see the server's end. The socket's buffer bounds what is read ahead.
    ``interactive``: people type it. ``size``: bytes to come, None if unknown. ``error``: what ended it early, or None.
    """

    def __init__(self, fd: int) -> None:
        self.interactive = os.isatty(fd)
        status = os.fstat(fd)
        self.size = status.st_size - os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None
        self.error: OSError | None = None
        self.sock, tail = socket.socketpair()
        # A daemon, for nothing but the end of the process wakes it from a read of a terminal.
        threading.Thread(target=self._copy, args=(fd, tail), daemon=True).start()

    def _copy(self, fd: int, tail: socket.socket) -> None:
        with tail:
            try:
                while data := os.read(fd, BLOCK):  # sys.stdin's lock, held by a daemon, would abort the exit
                    tail.sendall(data)
            except OSError as error:
                self.error = error


class Progress:
    """A line on the terminal (stderr) that says how far sending has come; it appears after a second.

    ``total`` is in bytes, None if unknown; ``interval``, the seconds from one state of the line to the next, is None
    where there is no terminal, and nothing is shown.
    """

    def __init__(self, total: int | None) -> None:
        self.interval = 0.2 if sys.stderr and sys.stderr.isatty() else None
        self._total = total
        self._start = time.monotonic()
        self._next = self._start + 1.0
        self._width = 0

    def show(self, sent: int) -> None:
        """Draw the line if its time has come; ``sent`` is in bytes."""
        now = time.monotonic()
        if self.interval is None or now < self._next:
            return
        self._next = now + self.interval
        percent = f", {min(100, 100 * sent // self._total)} %" if self._total else ""
        line = f"{sent:,} bytes sent{percent}, {sent / (now - self._start) / 1e6:.1f} MB/s"
        # Spaces wipe what was longer on any terminal, also on one that knows no escape sequences.
        say("\r" + line.ljust(self._width))
        self._width = len(line)

    def end(self) -> None:
        """Wipe the line, if it is there, and show no more."""
        if self._width:
            say("\r" + " " * self._width + "\r")
        self.interval, self._width = None, 0


@dataclass
class Transfer:
    """One session of the command line: ``data`` and then ``source`` go out while the replies come in.

    ``sock`` is connected and becomes non-blocking; replies go unaltered to the file descriptor ``output``;
    ``read_timeout`` is in seconds. One select(2) waits for both directions, so that neither holds up the other.
    """

    sock: Stream
    output: int
    data: bytes = b""
    source: Input | None = None
    read_timeout: float | None = None

    def __post_init__(self) -> None:
        self.sock.setblocking(False)
        self._pending = memoryview(self.data)
        self._sent = 0  # what the kernel has taken
        self._finishing = self._ended = False
        self._progress = Progress(self.source.size if self.source else len(self.data))
        if self.source and self.source.interactive:
            self._progress.end()

    def run(self) -> None:
        """Send everything, half-close, pass on the replies until the server ends the session; close ``source``.

        Raises SendTimeout when it is the server's turn, not the input's, and it neither takes nor sends a byte for
        ``read_timeout``; SendError when the connection breaks, the input cannot be read, or the server ends before
        everything was sent; OutputError when the output takes no more.
        """
        try:
            while not self._ended:
                self._step()
            self._check_sent()
        finally:
            if self.source:
                self.source.sock.close()
            self._progress.end()

    def _step(self) -> None:
        if not self._pending and not self.source and not self._finishing:
            with contextlib.suppress(OSError):  # as in Client.finish
                self.sock.shutdown(socket.SHUT_WR)
            self._finishing = True
        readable, writable = self._wait()
        # Replies first: a server that has ended the session is sent no more.
        if self.sock in readable:
            self._receive()
        if self.sock in writable and not self._ended:
            self._send()
        if self.source and self.source.sock in readable:
            self._read(self.source)

    def _wait(self) -> tuple[list[Stream], list[Stream]]:
        """Return the sockets to read and to write; SendTimeout if it is the server's turn and it does nothing."""
        received = unsent = False
        if not isinstance(self.sock, socket.socket):  # what TLS holds is not for select(2) to see
            received, unsent = self.sock.received, self.sock.unsent
        if received:
            return [self.sock], []
        reads: list[Stream] = [self.sock]
        writes: list[Stream] = [self.sock] if self._pending or unsent else []
        limit = self.read_timeout
        if self.source and not writes:
            reads, limit = [self.sock, self.source.sock], None
        deadline = time.monotonic() + (float("inf") if limit is None else limit)
        while True:
            if not self._finishing:
                self._progress.show(self._sent)
            left = max(0.0, deadline - time.monotonic())
            readable, writable, _ = select.select(reads, writes, [], min(left, self._progress.interval or 3600))
            if readable or writable:
                return readable, writable
            if not left:
                fault = "did not finish" if self._finishing else "took nothing"
                raise SendTimeout(f"send data timeout: the server {fault} for {limit:g} s")

    def _receive(self) -> bool:
        """Pass on one block of replies; False when there is none."""
        data = b""  # no error when select(2) was wrong, see its BUGS
        with network_errors(), contextlib.suppress(BlockingIOError):
            data = self.sock.recv(BLOCK)
            self._ended = not data
        if data and os.isatty(self.output):
            self._progress.end()  # they share the screen, and replies are progress to be seen, too
        _write(self.output, data)
        return bool(data)

    def _send(self) -> None:
        try:
            with network_errors(), contextlib.suppress(BlockingIOError):
                count = self.sock.send(self._pending)
                self._pending = self._pending[count:]
                self._sent += count
        except SendError:
            # The server's last words, which often say why, are still there to be read.
            with contextlib.suppress(SendError):
                while self._receive():
                    pass
            raise

    def _read(self, source: Input) -> None:
        """Take what the input has, or see its end."""
        self._pending = memoryview(source.sock.recv(BLOCK))
        if not self._pending:
            source.sock.close()
            self.source = None
            if source.error:
                raise SendError(f"send data error: cannot read the input: {reason(source.error)}")

    def _check_sent(self) -> None:
        """Raise SendError if the server ended before the input did; ``exit`` typed at a terminal is all there is."""
        typed = self.source is not None and self.source.interactive
        patience = 0 if typed else _LAST_WORD
        if self.source and not self._pending and select.select([self.source.sock], [], [], patience)[0]:
            self._read(self.source)
        if self._pending or (self.source and not typed):
            raise SendError(f"send data error: the server ended the session after {self._sent} bytes")


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # another program, with which it is shared, made it so (Node.js does)
            select.select([], [fd], [])
        except OSError as error:
            raise OutputError(f"output error: {reason(error)}") from error
