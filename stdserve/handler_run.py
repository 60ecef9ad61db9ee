"""A handler's run over a socket pair, without a server: bytes in, bytes out, the same each time."""

from __future__ import annotations

import os
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from .blame import reason_for
from .errors import PeerError
from .options import Options, make_options
from .protocol import EndReason
from .sessions import Session, half_close
from .sink import Sink
from .streams import SessionSocket
from .targets import Handler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["HandlerRun", "run_handler"]

#: Bytes of a piece that are on their way at a time, if the system takes them (Linux does, macOS takes 8 KiB).
BLOCK = 65536

#: Seconds that a handler waits for a client that stays and says nothing, where no timeout of its own is shorter.
SILENCE = 5.0


@dataclass(frozen=True)
class HandlerRun:
    """What came of a run: what the handler ``sent`` and ``printed`` (on the server's sink), and why it ended."""

    sent: bytes
    printed: bytes
    reason: EndReason

    @property
    def lines(self) -> list[str]:
        """What it sent as lines, without their ends; undecodable bytes are lone surrogates, as ``Client`` has them."""
        lines = self.sent.decode("utf-8", "surrogateescape").split("\n")
        return [line.removesuffix("\r") for line in lines[:-1]] + [line for line in lines[-1:] if line]


def run_handler(
    handler: Handler,
    pieces: bytes | Iterable[bytes],
    *,
    options: Options | None = None,
    client_address: Any = ("127.0.0.1", 10001),
    stays: bool = False,
    attributes: Mapping[str, Any] | None = None,
    **settings: Any,
) -> HandlerRun:
    """Run a request handler in this thread for one client who sends ``pieces`` and then no more; return what it did.

    Each piece is one ``recv`` of the handler's, if that asks for so much and the piece is at most 64 KiB: the next one
    comes when it has read this one, and nothing depends on time. Bytes are one piece; empty ones are left out, for a
    ``recv`` would take them for the end. With ``stays`` the client does not say that it has finished: it is silent,
    until the ``idle_timeout`` of the options or the handler's own, or 5 s, are over. ``settings`` are fields of
    ``Options``, on top of ``options``; ``attributes`` are set on what the handler gets for its server, which serves
    nobody.

    What a handler raises comes out, but for what a server takes for its peer's fault: that is the ``reason``.
    """
    options = make_options(options, settings)
    options.load()
    feed = _Feed(iter([pieces] if isinstance(pieces, bytes) else pieces), stays)
    with tempfile.TemporaryFile() as output, feed:
        request: Any = _FedSocket.adopt(feed.other)
        request.max_line, request.feed = options.max_line, feed
        request.settimeout(options.idle_timeout or (SILENCE if stays else None))
        session = Session(request, client_address)
        sink = Sink(os.dup(output.fileno()), format=options.format, raw=options.raw)
        server = _NoServer(handler, options, sink, session)
        for name, value in (attributes or {}).items():
            setattr(server, name, value)
        try:
            with feed.collecting(request) as sent:
                _live(session, server)
        finally:
            request.close_now()
            sink.close()
        output.seek(0)
        return HandlerRun(bytes(sent), output.read(), session.reason)


def _live(session: Session, server: _NoServer) -> None:
    """Do what a server does with a session when nothing stands between the client and the handler any more."""
    session.open()
    try:
        server.RequestHandlerClass(session.request, session.client_address, server)
    except Exception as error:
        session.reason = reason_for(error)
        if session.reason is EndReason.ERROR and not isinstance(error, PeerError):
            raise


class _NoServer(socketserver.BaseServer):
    """What a handler finds on its ``server``: what ours have, but listeners."""

    server_name, server_port = "localhost", 0
    forks = False

    def __init__(self, handler: Any, options: Options, sink: Sink, session: Session) -> None:
        super().__init__(("localhost", 0), handler)
        self.options = options
        self.sink = sink
        self.sessions = {session.request: session}

    def shutdown(self) -> None:
        """Do nothing: there is nothing to stop, and socketserver's would wait for ever."""


class _Feed:
    """The client's end of a socket pair: sends a piece when the one before has been read, and collects what comes."""

    def __init__(self, pieces: Iterator[bytes], stays: bool) -> None:
        self.other, self._sock = socket.socketpair()
        self._pieces = pieces
        self._stays = stays
        self._rest = memoryview(b"")
        self._arrived = 0
        self._send()

    def __enter__(self) -> _Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def read(self, size: int, flags: int) -> None:
        """Know that the handler has read so much."""
        if not flags & socket.MSG_PEEK:
            self._arrived -= size
            if size and not self._arrived:
                self._send()

    def _send(self) -> None:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                if not self._stays:
                    half_close(self._sock, socket.SHUT_WR)
                return
            self._rest = memoryview(piece)
        try:
            self._arrived = self._sock.send(self._rest[:BLOCK])
        except OSError:  # the handler takes no more: it has shut its side
            self._pieces = iter(())
        self._rest = self._rest[self._arrived :]

    @contextmanager
    def collecting(self, request: socket.socket) -> Iterator[bytearray]:
        """Read what ``request``, the other end, sends in the block; at the end of that it has sent all."""
        sent = bytearray()

        def read() -> None:
            while data := self._sock.recv(65536):
                sent.extend(data)

        reader = threading.Thread(target=read, name="stdserve client")
        reader.start()
        try:
            yield sent
        finally:
            half_close(request, socket.SHUT_WR)
            reader.join()


class _FedSocket(SessionSocket):
    """The handler's end of the pair, which lets the client know what has been read."""

    feed: _Feed | None = None

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive, and have the next piece sent when this was the rest of one."""
        data = super().recv(bufsize, flags)
        if self.feed is not None:
            self.feed.read(len(data), flags)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive, and have the next piece sent when this was the rest of one."""
        size = super().recv_into(buffer, nbytes, flags)
        if self.feed is not None:
            self.feed.read(size, flags)
        return size

    def setsockopt(self, level: int, *option: Any) -> None:
        """Set an option, unless it is one of TCP, which a handler may well ask for."""
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *option)
