"""One row of 64-bit cells for each session that can be open: what it has counted, in memory that processes share.

A row is never emptied. The next session in it counts on, so that the sum over all rows is the total of all sessions
there have been, with no moment of folding in which a process could be killed. A cell has one writer at a time, the
thread or process that runs the session, and needs no lock; a store of one aligned cell is whole, so that a reader
in another process sees the old value or the new one, and never a counter that goes back.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap

    Buffer = mmap.mmap | bytes | bytearray

__all__ = [
    "BOUNDS",
    "CELL",
    "END_WORDS",
    "FORKING",
    "REJECT_WORDS",
    "ROW_CELLS",
    "RowSums",
    "SessionRow",
    "cells_of",
    "micros_now",
    "open_rows",
    "word_index",
]

#: Bytes of a cell.
CELL = 8

#: Why sessions end: the words of ``protocol.EndReason``; "killed" for one whose process was.
END_WORDS = (
    *("empty_line", "exit", "eof", "idle_timeout", "line_too_long", "session_timeout", "cut", "reset", "closed"),
    *("detached", "error", "killed", "other"),
)

#: Why connections become no session: the reasons of ``errors.PeerError``, and what else comes before a handler.
REJECT_WORDS = (
    *("full", "address", "denied", "verify", "proxy", "tls", "handshake_timeout", "session_timeout", "cut", "broken"),
    *("error", "other"),
)

#: Upper bounds of the buckets of session durations, in seconds; one more bucket is for what is longer.
BOUNDS = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)
_MICRO_BOUNDS = [round(bound * 1_000_000) for bound in BOUNDS]

#: Bytes of a peer's text that are kept: the longest IPv6 address with a scope and a port fits.
PEER_BYTES = 64

# The cells of a row. First what is the present session's own ...
_PID, _STARTED, _ENDED = range(3)
_BEFORE = 3  # what the five counters read when it was taken
_PEER = _BEFORE + 5
# ... then what goes on from one session to the next.
_SUMS = _OPENED = _PEER + PEER_BYTES // CELL
_RECEIVED, _SENT, _LINES_IN, _LINES_OUT, _MICROS = _COUNTERS = range(_OPENED + 1, _OPENED + 6)
_BUCKETS = _MICROS + 1
_ENDS = _BUCKETS + len(BOUNDS) + 1
_REJECTS = _ENDS + len(END_WORDS)
_END = _REJECTS + len(REJECT_WORDS)

#: Cells of a row: whole cache lines (64 bytes), so that no two processes write to the same one.
ROW_CELLS = (_END + 7) // 8 * 8

#: In the place of a pid: the process that is to run the session is being forked.
FORKING = -1


def cells_of(memory: Buffer, first: int, count: int) -> memoryview[int]:
    """Return a view of ``count`` cells, made from the memory itself and not from another view.

    What slices of one view share is counted without a lock in free-threaded Python (cpython gh-155606).
    """
    return memoryview(memory)[first * CELL : (first + count) * CELL].cast("q")


def micros_now() -> int:
    """Return the monotonic time in microseconds; the clock is one for all processes of a system (PEP 418)."""
    return time.monotonic_ns() // 1000


def word_index(words: tuple[str, ...], word: str) -> int:
    """Return where ``word`` stands; the last place, "other", for one that is not known."""
    return words.index(word) if word in words else len(words) - 1


class SessionRow:
    """The row of one connection, from accept to the end of its session; then of the next one.

    The accept loop calls ``take``; the thread that runs the session ``name``, ``open``, ``add_...`` and ``end`` (or
    ``reject``, where there is to be no session); a process forked for it calls ``adopt`` first. ``give_back`` is for
    whoever took it, once nobody else writes any more: a session still open then was killed.
    """

    __slots__ = ("_cells", "_text")

    def __init__(self, memory: Buffer, first: int = 0) -> None:
        """Use the cells of ``memory`` from the one numbered ``first`` on."""
        self._cells = cells_of(memory, first, ROW_CELLS)
        self._text = self._cells.cast("B")[_PEER * CELL : _PEER * CELL + PEER_BYTES]

    def take(self, peer: str, pid: int) -> None:
        """Begin with a connection from ``peer``; process ``pid`` will run it, or FORKING."""
        self.name(peer)
        cells = self._cells
        cells[_BEFORE : _BEFORE + 5] = cells[_RECEIVED : _MICROS + 1]
        cells[_STARTED] = micros_now()
        cells[_PID] = pid

    def adopt(self) -> None:
        """Say that this process is the one that runs the session."""
        self._cells[_PID] = os.getpid()

    def name(self, peer: str) -> None:
        """Say who the client is; of a long text, only the beginning is kept."""
        self._text[:] = peer.encode("utf-8", "backslashreplace")[:PEER_BYTES].ljust(PEER_BYTES, b"\0")

    def open(self) -> None:
        """Count a session that begins."""
        cells = self._cells
        cells[_ENDED] = 0
        cells[_OPENED] += 1

    def add_received(self, size: int) -> None:
        """Count bytes that came in."""
        self._cells[_RECEIVED] += size

    def add_sent(self, size: int) -> None:
        """Count bytes that went out."""
        self._cells[_SENT] += size

    def add_lines_in(self, count: int) -> None:
        """Count lines that came in."""
        self._cells[_LINES_IN] += count

    def add_lines_out(self, count: int) -> None:
        """Count lines that went out."""
        self._cells[_LINES_OUT] += count

    def end(self, word: str) -> None:
        """Count a session that ends, for a reason of END_WORDS; nothing if none is open.

        Whoever finishes this after a writer was killed in the midst of it counts nothing twice: each step can be seen
        to be done or can be done again, and the last one is what ends the session.
        """
        if not self.is_open:
            return
        cells = self._cells
        cells[_ENDED] = cells[_ENDED] or micros_now()
        micros = cells[_ENDED] - cells[_STARTED]
        cells[_MICROS] = cells[_BEFORE + 4] + micros
        if sum(cells[_BUCKETS:_ENDS]) < cells[_OPENED]:
            cells[_BUCKETS + bisect_left(_MICRO_BOUNDS, micros)] += 1
        cells[_ENDS + word_index(END_WORDS, word)] += 1

    def reject(self, word: str) -> None:
        """Count a connection that becomes no session, for a reason of REJECT_WORDS."""
        self._cells[_REJECTS + word_index(REJECT_WORDS, word)] += 1

    def give_back(self) -> None:
        """Make the row free; end its session as killed if it is still open."""
        self.end("killed")
        self._cells[_PID] = 0

    @property
    def pid(self) -> int:
        """The process that runs the session, FORKING while it is being forked, 0 where the row is free."""
        return self._cells[_PID]

    @property
    def is_open(self) -> bool:
        """Whether a session is open."""
        cells = self._cells
        return cells[_OPENED] > sum(cells[_ENDS:_REJECTS])

    @property
    def peer(self) -> str:
        """Who the client is."""
        return bytes(self._text).rstrip(b"\0").decode("utf-8", "ignore")

    @property
    def age(self) -> float:
        """Seconds since the connection was accepted."""
        return (micros_now() - self._cells[_STARTED]) / 1_000_000

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Bytes received and sent, lines in and out, of the present session, or of the last one."""
        cells = self._cells
        received, sent, lines_in, lines_out = (cells[_COUNTERS[i]] - cells[_BEFORE + i] for i in range(4))
        return received, sent, lines_in, lines_out


class RowSums:
    """The sums of many rows, by the names of their cells.

    ``opened`` (sessions), ``received`` and ``sent`` (bytes), ``lines_in``, ``lines_out``, ``micros`` (of sessions that
    have ended); ``buckets``, ``ends`` and ``rejects`` are lists in the order of BOUNDS, END_WORDS and REJECT_WORDS.
    """

    def __init__(self, *parts: memoryview[int]) -> None:
        """Sum up parts of memory, each of whole rows that follow each other."""
        sums = [sum(sum(part[cell::ROW_CELLS]) for part in parts) for cell in range(_SUMS, _END)]
        self.opened, self.received, self.sent, self.lines_in, self.lines_out, self.micros = sums[:6]
        self.buckets = sums[_BUCKETS - _SUMS : _ENDS - _SUMS]
        self.ends = sums[_ENDS - _SUMS : _REJECTS - _SUMS]
        self.rejects = sums[_REJECTS - _SUMS : _END - _SUMS]


def open_rows(memory: Buffer, first: int, count: int) -> Iterator[SessionRow]:
    """Yield those with an open session of ``count`` rows that follow each other from cell ``first`` on."""
    cells = cells_of(memory, 0, first + count * ROW_CELLS)
    for row in range(first, len(cells), ROW_CELLS):
        if cells[row + _OPENED] > sum(cells[row + _ENDS : row + _REJECTS]):
            yield SessionRow(memory, row)
