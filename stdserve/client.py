"""The client: connect, send lines, show what the server replies. ``python -m stdserve.client ADDRESS [MESSAGE ...]``.

:class:`Client` is for programs: a line at a time. The command line sends an input of any size while the replies come in
(:class:`Transfer`) and ends with the server's own end: exit code 0 means that the server has finished what was sent.
An error is one line on stderr, the text of its exception: ``connect timeout``, ``connection refused``, ``connect error:
...``, ``send data timeout: ...``, ``send data error: ...``, ``output error: ...`` (exit code 1), wrong usage (2).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .addresses import Address, parse_address, parse_port
from .errors import ConfigError, ConnectError, ConnectTimeout, OutputError, SendError, SendTimeout, StdserveError
from .terminal import say, settle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["Client", "Input", "Progress", "Transfer", "main"]

# Bytes read or sent at a time: a pipe's capacity on Linux (pipe(7)).
_CHUNK = 65536
# Seconds, 23 days: poll(2), under every timeout of a socket, counts its milliseconds in an int.
_LONGEST_WAIT = 2e6
# Seconds for an input to end after the server: "(echo exit; cleanup) | client" is in order, "tail -f | client" is not.
_LAST_WORD = 1.0


class Client:
    """A connection to a line server: ``with Client("127.0.0.1:10001") as client: print(client.ask("ping 1"))``.

    Making it connects, to text as :func:`~stdserve.addresses.parse_address` reads it, an Address or a (host, port)
    pair. Timeouts are in seconds, None for no limit: ``connect_timeout`` (the lecture's 5) for each address of a host,
    ``read_timeout`` for each later wait, be it to send or to receive. Text is UTF-8, undecodable bytes are kept as lone
    surrogates (PEP 383). Raises ConfigError for a malformed address or a timeout not above 0, ConnectTimeout and
    ConnectError; later calls raise SendTimeout after ``read_timeout``, SendError when the connection breaks.
    """

    def __init__(
        self,
        address: str | Address | tuple[str, int],
        *,
        connect_timeout: float | None = 5.0,
        read_timeout: float | None = None,
    ) -> None:
        if isinstance(address, str):
            address = parse_address(address)
        host, port = (address.host, address.port) if isinstance(address, Address) else address
        self.read_timeout = _above_zero("read_timeout", read_timeout)
        port = parse_port(str(port))  # getaddrinfo would take 70000 for 4464
        self.sock = _connect(host, port, _above_zero("connect_timeout", connect_timeout))
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
        with _network_errors():
            self.sock.sendall(_line(line))

    def receive_line(self) -> str:
        """Wait for the server's next line and return it without its LF, nor a CR before that.

        What comes without a LF before the server's end is a line too; SendError after that. A timeout loses nothing.
        """
        searched = 0
        while self._received.find(b"\n", searched) < 0:
            searched = len(self._received)
            if not self._receive():
                break
        if not self._received:
            raise SendError("send data error: the server ended the session")
        line, terminator, self._received = self._received.partition(b"\n")
        return (line.removesuffix(b"\r") if terminator else line).decode("utf-8", "surrogateescape")

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

    def _receive(self) -> bool:
        with _network_errors():
            data = self.sock.recv(_CHUNK)
        self._received += data
        return bool(data)


def _line(text: str | bytes) -> bytes:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return data if data.endswith(b"\n") else data + b"\n"


def _above_zero(name: str, seconds: float | None) -> float | None:
    """Return a timeout that sockets accept: 0 would mean non-blocking to them, a year would overflow."""
    if seconds is not None and not seconds > 0:  # nor is a NaN
        raise ConfigError(f"{name} must be above 0, not {seconds:g}")
    return seconds and min(seconds, _LONGEST_WAIT)


def _connect(host: str, port: int, timeout: float | None) -> socket.socket:
    """Connect to the first address of ``host`` that accepts; raise ConnectError for the last that did not."""
    try:
        return socket.create_connection((host, port), timeout)
    except TimeoutError:
        raise ConnectTimeout("connect timeout") from None
    except ConnectionRefusedError:
        raise ConnectError("connection refused") from None
    except (OSError, UnicodeError) as error:  # the latter for a name that DNS cannot carry, such as "a..b"
        unknown = "unknown host " if isinstance(error, socket.gaierror | UnicodeError) else ""
        raise ConnectError(f"connect error: {unknown}{host}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the words of the operating system without its number."""
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Raise what goes wrong with a connected socket as SendTimeout or SendError."""
    try:
        yield
    except OSError as error:
        kind, word = (SendTimeout, "timeout") if isinstance(error, TimeoutError) else (SendError, "error")
        raise kind(f"send data {word}: {_reason(error)}") from error


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
                while data := os.read(fd, _CHUNK):  # sys.stdin's lock, held by a daemon, would abort the exit
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

    sock: socket.socket
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

    def _wait(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """Return the sockets to read and to write; SendTimeout if it is the server's turn and it does nothing."""
        reads, writes, limit = [self.sock], [self.sock] if self._pending else [], self.read_timeout
        if self.source and not self._pending:
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
        with _network_errors(), contextlib.suppress(BlockingIOError):
            data = self.sock.recv(_CHUNK)
            self._ended = not data
        if data and os.isatty(self.output):
            self._progress.end()  # they share the screen, and replies are progress to be seen, too
        _write(self.output, data)
        return bool(data)

    def _send(self) -> None:
        try:
            with _network_errors(), contextlib.suppress(BlockingIOError):
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
        self._pending = memoryview(source.sock.recv(_CHUNK))
        if not self._pending:
            source.sock.close()
            self.source = None
            if source.error:
                raise SendError(f"send data error: cannot read the input: {_reason(source.error)}")

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
            raise OutputError(f"output error: {_reason(error)}") from error


def _parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """Read the command line into the arguments of :func:`_run`; raise ConfigError for one that is wrong."""
    import argparse  # only the command line needs these

    from .flags import parse_duration

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(message.replace(", MESSAGE", "") + " (see --help)")  # intermixed parsing requires it

    def duration(text: str) -> float:
        try:
            return parse_duration(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    codes = "Exit codes: 0 the server has finished what was sent, 1 it has not, 2 usage, 130 interrupted."
    parser = Parser("python -m stdserve.client", description="Send lines, show the replies.", epilog=codes)
    add = parser.add_argument
    add("address", metavar="ADDRESS", help="HOST:PORT, [V6]:PORT or HOST")
    add("messages", metavar="MESSAGE", nargs="*", help="a line to send; none: standard input is sent as it comes")
    add("--connect-timeout", metavar="SECONDS", type=duration, default=5.0, help="(%(default)g; also 500ms, 2m, 1h)")
    add("--read-timeout", metavar="SECONDS", type=duration, help="for the server to take, reply, finish (no limit)")
    # Intermixed, or argparse would give no MESSAGE to "ADDRESS --read-timeout 2 MESSAGE".
    return vars(parser.parse_intermixed_args(argv))


def _run(address: str, messages: Sequence[str], **timeouts: float | None) -> None:
    if not sys.stdout:  # the socket would get its number, and the server its own replies
        raise OutputError("output error: standard output is closed")
    if not messages and not sys.stdin:
        raise ConfigError("there is no MESSAGE to send, and standard input is closed")
    with Client(address, **timeouts) as client:
        source = None if messages else Input(sys.stdin.fileno())
        data = b"".join(map(_line, messages))
        Transfer(client.sock, sys.stdout.fileno(), data, source, client.read_timeout).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the client's command line (``sys.argv`` by default) and return its exit code; errors go to stderr."""
    try:
        _run(**_parse(argv))
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells count
    except (StdserveError, OSError) as error:  # OSError: no descriptors left
        say(f"{error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        settle()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
