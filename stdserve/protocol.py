"""The print/exit protocol without a socket: bytes in, events out; no clock, no print.

Two framings with one interface. :class:`LineProtocol` tells lines apart whatever TCP did to the stream;
:class:`ChunkProtocol` takes each read for one message, as the lecture's servers do.

Feed ``receive_data`` with what a read returned (``b""`` is EOF) and act on the events in order. The last event
of a session is :class:`SessionEnd`; after it, everything is ignored. Times are the caller's: when ``awaiting_exit``
is true, call :meth:`pause` after EXIT_PAUSE seconds without a byte; when a session must end for a reason of the
caller's own, call :meth:`end` with it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from .escaping import decode, escape

__all__ = [
    "EXIT_PAUSE",
    "FRAMINGS",
    "Chunk",
    "ChunkProtocol",
    "EndReason",
    "Event",
    "LineProtocol",
    "Lines",
    "SessionEnd",
]

#: Seconds of silence after which an unfinished "exit" counts.
EXIT_PAUSE = 0.2


class EndReason(Enum):
    """Why a session ended; the value is the word in logs."""

    #: A line was blank.
    EMPTY_LINE = "empty_line"
    #: A line read "exit".
    EXIT = "exit"
    #: The peer finished sending, or the server is draining.
    EOF = "eof"
    #: The peer was silent for too long.
    IDLE_TIMEOUT = "idle_timeout"
    #: A line was longer than the limit.
    LINE_TOO_LONG = "line_too_long"
    #: The session lasted too long altogether.
    SESSION_TIMEOUT = "session_timeout"
    #: The server stopped, and its patience was over.
    CUT = "cut"
    #: The connection broke.
    RESET = "reset"
    #: The handler closed the session, or has no protocol of ours and returned.
    CLOSED = "closed"
    #: The handler keeps the connection; what becomes of it is the handler's own affair.
    DETACHED = "detached"
    #: The handler failed.
    ERROR = "error"


# Not frozen, though nobody changes it: that would double the cost of making one.
@dataclass(unsafe_hash=True, slots=True)
class Lines:
    """A run of whole lines: ``data`` holds each with a LF, the CR of a CRLF removed. Iterates as text, len() counts."""

    data: bytes
    _count: int | None = field(default=None, init=False, repr=False, compare=False)

    def __iter__(self) -> Iterator[str]:
        return map(decode, self.split())

    def split(self) -> list[bytes]:
        """Return the lines, each without its LF."""
        return self.data[:-1].split(b"\n")

    def __len__(self) -> int:
        if self._count is None:  # once for a block: it is a fifth of the work
            self._count = self.data.count(b"\n")
        return self._count

    def visible(self) -> bytes:
        """Return the lines with control characters and undecodable bytes made visible."""
        return escape(self.data)


@dataclass(frozen=True)
class Chunk:
    """One message in chunk framing: ``data`` as it came, cut between characters. Iterates as its one text."""

    data: bytes

    def __iter__(self) -> Iterator[str]:
        yield decode(self.data)

    def split(self) -> list[bytes]:
        """Return the one message."""
        return [self.data]

    def __len__(self) -> int:
        return 1

    def visible(self) -> bytes:
        """Return the message with control characters made visible, but for line ends: those may be telnet's, CRLF."""
        return b"\r\n".join(map(escape, self.data.split(b"\r\n")))


@dataclass(frozen=True)
class SessionEnd:
    """The session is over; nothing follows."""

    reason: EndReason


Event = Lines | Chunk | SessionEnd

# Made once: a session has one, and many sessions are short.
_ENDS = {reason: SessionEnd(reason) for reason in EndReason}

# A line of nothing but the bytes of "exit" and of what str.strip() removes (LF aside, in UTF-8) may end the session;
# few others look like it, and for those the text decides. One set of bytes costs the engine neither time nor memory,
# and with the LF of the line in front it searches for that one byte.
_CANDIDATE = rb"[exit\t\x0b-\r\x1c-\x20\x80-\x8a\x9a\x9f\xa0\xa8\xa9\xaf\xc2\xe1-\xe3]*\n"
_FIRST = re.compile(_CANDIDATE)
_OTHER = re.compile(rb"\n" + _CANDIDATE)
#: What such a line begins with: to look that up takes a third of the time that it takes to ask the engine.
_BEGINNINGS = {bytes([code]) for code in range(256) if _FIRST.match(bytes([code]) + b"\n")}

#: As a number: to look for that in bytes takes a ninth of the time that one byte of bytes does.
_CR = 13


def _find_end(lines: bytes) -> tuple[int, EndReason] | None:
    """Return where the first line begins that ends the session, and why; ``lines`` are whole."""
    candidate = _FIRST.match(lines) if lines[:1] in _BEGINNINGS else None
    if candidate is None and lines.find(b"\n") < len(lines) - 1:  # not one line, as of those who wait for each answer
        candidate = _OTHER.search(lines)
    while candidate is not None:
        text = decode(candidate[0]).strip()
        if text in ("", "exit"):
            begin = candidate.start() + (candidate.re is _OTHER)
            return begin, EndReason.EXIT if text else EndReason.EMPTY_LINE
        candidate = _OTHER.search(lines, candidate.end() - 1)
    return None


def _find_no_end(lines: bytes) -> None:
    """Find none, whatever the lines say."""


class LineProtocol:
    """Lines end at LF; the stream decides, never its segments.

    ``max_line`` bounds a line in bytes, its CR and LF not counted, and with it what is held back: a longer line
    yields its first ``max_line`` bytes and LINE_TOO_LONG. asyncio's streams and http.server stop at 64 KiB too.
    Without ``obey_exit`` a blank line and "exit" are lines like any other.
    """

    #: Bytes to ask for in a read: few, for a session that waits holds the memory for them; more while they all come.
    least_read = 1024

    def __init__(self, max_line: int = 65536, obey_exit: bool = True) -> None:
        self._max_line = max_line
        self._find_end = _find_end if obey_exit else _find_no_end
        self._pending = bytearray()
        self._ended = False

    @property
    def awaiting_exit(self) -> bool:
        """True when what is unfinished reads just "exit": a client may be waiting for us to hang up."""
        if not self._pending:
            return False
        return self._find_end is _find_end and (self._pending == b"exit" or self._pending == b"exit\r")

    def receive_data(self, data: bytes) -> list[Event]:
        """Return the events that ``data`` completes; ``b""`` is EOF."""
        if self._ended:
            return []
        if not data:
            return self.end(EndReason.EOF)
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._pending += data
            return self._check_pending()
        # A megabyte is copied once at most; where it ends with its last line, not at all.
        whole = data
        if self._pending:
            whole = b"".join((self._pending, memoryview(data)[:cut]))
            self._pending[:] = data[cut:]
        elif cut < len(data):
            whole = data[:cut]
            self._pending += data[cut:]
        if len(whole) > self._max_line or self._find_end(whole) is not None:
            end = self._split(whole)
            if end is not None:
                return end
        lines = Lines(_without_cr(whole) if _CR in whole else whole)
        return [lines, *self._check_pending()] if self._pending else [lines]

    def pause(self) -> list[Event]:
        """Tell that nothing came for EXIT_PAUSE seconds: an unfinished "exit" ends the session."""
        return self._finish(b"", EndReason.EXIT) if self.awaiting_exit else []

    def end(self, reason: EndReason) -> list[Event]:
        """End the session for ``reason``; what is unfinished is a line, which after EOF may be a reason itself."""
        if self._ended:
            return []
        rest = bytes(self._pending)
        if len(rest) > self._max_line:  # by a CR that no LF made part of a terminator
            return self._finish(rest[: self._max_line] + b"\n", EndReason.LINE_TOO_LONG)
        ending = self._find_end(rest + b"\n") if rest else None
        if ending is None:
            return self._finish(rest + b"\n" if rest else b"", reason)
        return self._finish(b"", ending[1] if reason is EndReason.EOF else reason)

    def _split(self, whole: bytes) -> list[Event] | None:
        """Return the events of lines of which one ends the session; None if they only are many."""
        too_long = self._first_too_long(whole) if len(whole) > self._max_line else None
        ending = self._find_end(whole if too_long is None else whole[:too_long])
        if ending is not None:
            return self._finish(_without_cr(whole[: ending[0]]), ending[1])
        if too_long is not None:
            start = whole[too_long : too_long + self._max_line]
            return self._finish(_without_cr(whole[:too_long]) + start + b"\n", EndReason.LINE_TOO_LONG)
        return None

    def _first_too_long(self, whole: bytes) -> int | None:
        """Return where the first line that is too long begins, found in leaps of ``max_line``; None if all fit."""
        start, longest = 0, self._max_line
        while len(whole) - start > longest + 1:
            newline = whole.rfind(b"\n", start, start + longest + 1)
            if newline < 0:
                newline = start + longest + 1
                if whole[newline - 1 : newline + 1] != b"\r\n":
                    return start
            start = newline + 1
        return None

    def _check_pending(self) -> list[Event]:
        excess = len(self._pending) - self._max_line
        if excess <= 0 or (excess == 1 and self._pending.endswith(b"\r")):
            return []
        return self._finish(bytes(self._pending[: self._max_line]) + b"\n", EndReason.LINE_TOO_LONG)

    def _finish(self, lines: bytes, reason: EndReason) -> list[Event]:
        self._ended = True
        self._pending.clear()
        return [Lines(lines), _ENDS[reason]] if lines else [_ENDS[reason]]


class ChunkProtocol:
    """Each read is one message, printed as it came; a blank one, or one with "exit" anywhere, ends the session.

    The lecture's rule. What the lecture gets wrong is put right: a character cut between two reads is held back
    until it is whole, and so is a CR until it is known whether a LF follows. ``max_line`` has no meaning here.
    Without ``obey_exit`` no message ends the session.
    """

    #: An "exit" counts when it is read; nothing is ever unfinished.
    awaiting_exit = False
    #: Bytes to ask for in a read, which is to bring a message as it was sent.
    least_read = 65536

    def __init__(self, max_line: int = 65536, obey_exit: bool = True) -> None:
        self._obey_exit = obey_exit
        self._held = b""
        self._ended = False

    def receive_data(self, data: bytes) -> list[Event]:
        """Return the events of one read; ``b""`` is EOF."""
        if self._ended:
            return []
        if not data:
            return self.end(EndReason.EOF)
        message = self._held + data
        text, used = codecs.utf_8_decode(message, "backslashreplace", False)
        if self._obey_exit and "exit" in text:
            return self._end_with(message, EndReason.EXIT)
        if self._obey_exit and used == len(message) and not text.strip():
            return self._end_with(message, EndReason.EMPTY_LINE)
        if text.endswith("\r") and used == len(message):
            used -= 1
        self._held = message[used:]
        return [Chunk(message[:used])] if used else []

    def pause(self) -> list[Event]:
        """Do nothing: silence means nothing in this framing."""
        return []

    def end(self, reason: EndReason) -> list[Event]:
        """End the session for ``reason``, with what was held back."""
        if self._ended:
            return []
        self._ended = True
        return [Chunk(self._held), _ENDS[reason]] if self._held else [_ENDS[reason]]

    def _end_with(self, message: bytes, reason: EndReason) -> list[Event]:
        """End with a message that is not printed, but for the rest of a character of the one before."""
        for size in range(len(self._held), 5 if self._held else 0):
            try:
                message[:size].decode()
            except UnicodeDecodeError:
                continue
            self._held = message[:size]
            break
        return self.end(reason)


#: The framings by the word that chooses them.
FRAMINGS: dict[str, type[LineProtocol | ChunkProtocol]] = {"line": LineProtocol, "chunk": ChunkProtocol}


def _without_cr(whole: bytes) -> bytes:
    """Remove the one CR before each LF that belongs to the terminator."""
    return whole.replace(b"\r\n", b"\n")
