"""Request handlers for line protocols: subclass :class:`LineHandler`, or use one of the three that print.

They are ``socketserver.StreamRequestHandler`` subclasses and also run on the standard library's own servers,
with default settings.
"""

from __future__ import annotations

import io
import socket
import socketserver
import threading
from functools import cache
from threading import get_ident

from .browser import is_request, page_for
from .options import Options
from .protocol import (
    EXIT_PAUSE,
    FRAMINGS,
    Chunk,
    ChunkProtocol,
    EndReason,
    Event,
    LineProtocol,
    Lines,
    SessionEnd,
)
from .replies import Outbox, ReplyFile, Unsent, put_out
from .sessions import Peer, Session
from .sink import Sink, open_sink
from .steps import READS, WRITES, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .steps import Steps

__all__ = ["ChunkHandler", "EchoHandler", "LineHandler", "PrintHandler"]

#: Bytes asked for in one read while all that was asked for comes.
MOST_READ = 256 * 1024


#: Held by who makes a session's replies a place, for its driver must know the one that is everybody's.
_making = threading.Lock()


class _Lazy:
    """An attribute of a handler, made at its first use: most sessions need few of them, and many are short."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, handler: Any, owner: type | None = None) -> Any:
        # Two threads may ask at once: the first one's is everybody's.
        return self if handler is None else handler.__dict__.setdefault(self._name, self._make(handler))


class LineHandler(socketserver.StreamRequestHandler):
    """One session of the print/exit protocol: lines in, optional replies out.

    Methods to override, for each session one after the other: in its own thread or process, or, in mode event, all in
    one thread, where none of them may wait for anything:

    - ``connection_made()``: the session begins. State of your own is attributes, set here.
    - ``line_received(line) -> reply or None``: a line came, without its LF, as text. What is returned, text or bytes,
      goes back as a line. ``raw_line_received(line)`` is the same for bytes, in the place of the other.
    - ``lines_received(lines)``: a run of whole lines came; calls ``raw_line_received`` for each. To be overridden by
      handlers that can do a megabyte at once.
    - ``connection_lost(reason)``: the session is over, for an ``EndReason``; may still reply unless it is RESET.
      Called once for each ``connection_made``, also after an exception.

    Methods to call: ``reply(line)``, also from other threads; ``close()``.

    Attributes to read: ``peer`` (a ``Peer``: address, TLS, PROXY header), ``session`` (counters), ``sink`` (the
    output), and those of ``StreamRequestHandler``, ``server`` above all.

    Attributes to set on the class: ``encoding`` (one that writes LF as ASCII does) and ``errors``, as ``bytes.decode``
    knows them; ``obey_exit``: whether a blank line and "exit" end the session; ``framing`` ("line" or "chunk") and
    ``max_line`` (bytes), where the server's options are not to decide; ``timeout`` (seconds of silence, and of a reply
    that is not taken); ``wbufsize``: bytes of replies that gather, 0 for none; ``prompt``, True where no hook ever
    waits for anything (a lock, a file, a slow reader), not inherited: a client who has said all at once may then be
    served by the thread that accepts, without one of its own.

    An exception raised in any of them ends this session, is logged, and disturbs no other.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    obey_exit = True
    framing: str | None = None
    max_line: int | None = None
    prompt = False

    #: Replies gather until their block of lines is done, or io.DEFAULT_BUFFER_SIZE of them.
    wbufsize = -1
    #: What a read of ours returned is all there is; nothing may wait in a second buffer.
    rbufsize = 0

    session: Session
    #: Who is at the other end.
    peer: Peer
    #: Where received lines go; standard output on a server that has no sink.
    sink: Sink

    #: Why the peer takes no more replies, once it does not.
    _gone: EndReason | None = None
    _closing = False
    _read_size = 0

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        """Run the session, as ``BaseRequestHandler`` does, or leave that to a server that takes its steps.

        In the modes that can wait, whatever a subclass does in its own is done as ever.
        """
        known: dict[Any, Session] = getattr(server, "sessions", {})
        session = known.get(request)
        kind = type(self)
        # Where it could wait, one that was made in the usual way alone: others may have something to do after this.
        if (
            session is not None
            and session.adopts
            and kind.handle is LineHandler.handle
            and (server.in_steps or (kind is server.RequestHandlerClass and kind.__init__ is LineHandler.__init__))
        ):
            self.request, self.client_address, self.server = request, client_address, server
            session.adopts, session.adopted = False, self._steps
        else:
            super().__init__(request, client_address, server)

    def connection_made(self) -> None:
        """Do nothing; to be overridden."""

    def line_received(self, line: str) -> str | bytes | None:
        """Return None, no reply; to be overridden."""
        return None

    def raw_line_received(self, line: bytes) -> str | bytes | None:
        """Return what ``line_received`` says to the line as text; to be overridden by who wants bytes."""
        return self.line_received(line.decode(self.encoding, self.errors))

    def connection_lost(self, reason: EndReason) -> None:
        """Do nothing; to be overridden."""

    def lines_received(self, lines: Lines | Chunk) -> None:
        """Call ``raw_line_received`` for each line and reply what it returns."""
        for line in lines.split():
            answer = self.raw_line_received(line)
            if answer is not None:
                self.reply(answer)
            if self._closing:
                return

    def reply(self, line: str | bytes) -> None:
        """Send ``line`` and a LF.

        Replies go out together when the lines that came together are done, or on ``wfile.flush()``. From any other
        thread than the session's own, where the lines of one session are told to others, it goes out at once, and may
        block for as long as the peer takes nothing, ``timeout`` at most; in mode event it never blocks, but is dropped
        while the peer has MOST_UNSENT bytes of ``replies`` to take. One that cannot be sent is dropped: its session's
        end is on its way.
        """
        data = line.encode(self.encoding, self.errors) if isinstance(line, str) else line
        self._send(data + b"\n", 1, now=self._thread != get_ident())

    def close(self) -> None:
        """End the session when what has been replied is sent; lines that came with this one are not looked at.

        Safe in any thread. ``connection_lost`` is told CLOSED.
        """
        self._closing = True
        if not self._is_inside():
            self.session.end_input()

    def _is_inside(self) -> bool:
        """Tell whether it is the session itself that calls."""
        driver = getattr(self.connection, "driver", None)
        return get_ident() == (self._thread if driver is None else driver.inside)

    def setup(self) -> None:
        """Prepare the session; to be extended, not replaced."""
        # As StreamRequestHandler, but for its files: those are made when somebody asks for them.
        self.connection = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._thread = get_ident()
        # A server of the standard library keeps no sessions.
        known: dict[Any, Session] = getattr(self.server, "sessions", {})
        self.session = known.get(self.request) or Session(self.request, self.client_address)

    def handle(self) -> None:
        """Run the session from ``connection_made`` to ``connection_lost``; not to be overridden."""
        run(self._conversation())

    def _steps(self) -> Steps[None]:
        """Tell the session from ``setup`` to ``finish`` in steps, for a server that has adopted this handler."""
        self.setup()
        return self._conversation(self.finish)

    def _make_reader(self) -> Any:
        return self.connection.makefile("rb", self.rbufsize)

    def _make_writer(self) -> Any:
        limit = io.DEFAULT_BUFFER_SIZE if self.wbufsize < 0 else self.wbufsize
        driver = getattr(self.connection, "driver", None)
        if driver is None:
            return ReplyFile(self.connection, limit)
        with _making:
            return driver.outbox or Outbox(self.connection, limit, driver)

    if not TYPE_CHECKING:  # pragma: no branch - a checker takes them for the attributes that they become
        peer = _Lazy(lambda self: Peer(self.session))
        sink = _Lazy(lambda self: getattr(self.server, "sink", None) or _standard_output())
        rfile = _Lazy(_make_reader)
        wfile = _Lazy(_make_writer)

    def finish(self) -> None:
        """Send what is left and close both files, whatever the connection has become; to be extended."""
        for name in ("wfile", "rfile"):
            try:
                if name in self.__dict__:
                    getattr(self, name).close()
            except OSError:
                pass  # the peer has gone; ``reason`` tells it if the session had not ended by then

    def _conversation(self, finish: Callable[[], None] | None = None) -> Steps[None]:
        options = getattr(self.server, "options", None) or _default_options()
        protocol = FRAMINGS[self.framing or options.framing](self.max_line or options.max_line, self.obey_exit)
        connection, reason = self.connection, EndReason.ERROR
        try:
            try:
                self.connection_made()
                try:
                    idle, ended = connection.gettimeout(), None
                    while ended is None and not self._closing:
                        file = self.__dict__.get("wfile")
                        if file is not None and self._gone is None and not getattr(file, "flows", False):
                            try:
                                yield connection, WRITES, self._flush, file
                            except (OSError, ValueError) as error:
                                self._give_up(error)
                        hasty, size = protocol.awaiting_exit, self._read_size or protocol.least_read
                        try:
                            if self._gone is EndReason.IDLE_TIMEOUT:
                                raise TimeoutError
                            if hasty:
                                connection.settimeout(EXIT_PAUSE if idle is None else min(EXIT_PAUSE, idle))
                            # Nothing of what was read is kept here: the session may be silent for hours.
                            events = self._received(protocol, (yield connection, READS, connection.recv, size), size)
                            if hasty:
                                connection.settimeout(idle)
                        except Unsent:
                            events = []
                            if hasty:
                                connection.settimeout(idle)
                        except TimeoutError:
                            events = protocol.pause() or protocol.end(EndReason.IDLE_TIMEOUT)
                        except OSError:
                            events = protocol.end(EndReason.RESET)
                        ended, events = self._act(events), []
                    reason = self._gone or ended or EndReason.CLOSED
                finally:
                    self.session.reason = reason
                    self.connection_lost(reason)
            except Exception:
                yield from self._put_out()
                raise
            yield from self._put_out()
        finally:
            if finish is not None:
                finish()

    def _act(self, events: list[Event]) -> EndReason | None:
        """Do what events ask for, as long as the session is not closed; return why it has ended, if it has."""
        for event in events:
            if self._closing:
                return None
            if isinstance(event, SessionEnd):
                return event.reason
            self.session.tally.add_lines_in(len(event))
            self.lines_received(event)
        return None

    def _received(self, protocol: LineProtocol | ChunkProtocol, data: bytes, size: int) -> list[Event]:
        """Return the events of what has been read, where ``size`` was asked for."""
        received, session = len(data), self.session
        if received == size:
            self._read_size = min(size * 8, MOST_READ)
        elif self._read_size and received <= protocol.least_read:
            self._read_size = 0
        if not received:
            # What reads as the end may be our own half-close, made by a stop; that is told before it is done.
            session.at_end = not session.input_ended
        if not session.counted:
            session.tally.add_received(received)
        return protocol.receive_data(data)

    def _send(self, data: bytes, lines: int = 0, now: bool = False) -> None:
        # A peer that takes no replies has still sent what it sent: that is read to its end.
        if self._gone is not None:
            return
        try:
            self.wfile.write(data)
            self.session.tally.add_lines_out(lines)
            if now:
                self.wfile.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _put_out(self) -> Steps[None]:
        """Send what has gathered; before, as before any step that writes, a server that holds prints puts them out."""
        try:
            if self._gone is None and "wfile" in self.__dict__:
                yield self.connection, WRITES, self._flush, self.wfile
            elif (driver := getattr(self.connection, "driver", None)) is not None and driver.prints:
                yield self.connection, WRITES, _send_nothing, None
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _flush(self, file: Any) -> None:
        put_out(file, getattr(self.connection, "driver", None))

    def _give_up(self, error: Exception) -> None:
        # A ValueError comes from a closed file: the session is over, and others do not know yet.
        self._gone = EndReason.IDLE_TIMEOUT if isinstance(error, TimeoutError) else EndReason.RESET
        if getattr(self.connection, "driver", None) is not None and not self._is_inside():
            self.session.end_input()  # or its memory would be held for as long as the peer says nothing


class PrintHandler(LineHandler):
    """Prints what clients send: each line to the server's sink. The default handler, the lecture's server.

    A browser, told by the request line of HTTP, is answered with a small page that says so.
    """

    prompt = True

    #: Whether a browser gets its page; not where it would come after replies.
    answers_browsers = True

    _page = b""

    def lines_received(self, lines: Lines | Chunk) -> None:
        """Print them, all in one write."""
        self.sink.write(lines, self.peer)
        if self.answers_browsers and is_request(lines.data) and self.session.lines == len(lines):
            self._page = page_for(lines.data)
            if isinstance(lines, Chunk):  # no blank line ends this session, but the browser, having read it all
                self._send(self._page, self._page.count(b"\n"))

    def connection_lost(self, reason: EndReason) -> None:
        """Answer a browser when the blank line after its headers has ended the session."""
        if reason is EndReason.EMPTY_LINE:
            self._send(self._page, self._page.count(b"\n"))


class EchoHandler(PrintHandler):
    """Prints each line, then sends it back: a reply means that the line is printed."""

    answers_browsers = False

    def lines_received(self, lines: Lines | Chunk) -> None:
        """Print them and send them back as they came."""
        super().lines_received(lines)
        self._send(lines.data, len(lines))


class ChunkHandler(PrintHandler):
    """The lecture's server, byte for byte: each read is one message."""

    prompt = True
    framing = "chunk"


def _send_nothing(_: None) -> None:
    """Be a step that writes, and so comes after what is printed: who reads the end of a session finds its lines."""


@cache
def _default_options() -> Options:
    return Options()


@cache
def _standard_output() -> Sink:
    return open_sink()
