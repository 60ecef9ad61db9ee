"""What the server has done and is doing, counted in memory that all its processes share; ``snapshot`` reads it.

The memory is one anonymous mapping, made before the first fork: a slot for each worker, a row (``rows.SessionRow``)
in it for each session. Every cell has one writer at a time, so nothing here takes a lock, and nothing makes a system
call for an event. What a process has counted stays counted however it ends.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .backlog import Backlog, read_backlog
from .errors import StartError
from .rows import (
    CELL,
    END_WORDS,
    FORKING,
    REJECT_WORDS,
    ROW_CELLS,
    RowSums,
    SessionRow,
    cells_of,
    micros_now,
    open_rows,
    word_index,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

__all__ = ["STATES", "Metrics", "SessionRecord", "Snapshot", "WorkerCounters", "WorkerRecord"]

#: What a worker is doing; the first stands for a slot without one.
STATES = ("none", "starting", "serving", "draining")

#: Seconds that a fork may take; a row that waits for its process longer was left by a parent that died before.
FORK_SECONDS = 10.0

#: Seconds between two looks at the rows of sessions that have outlived their worker.
LOOK_SECONDS = 1.0

# The cells in front of all slots.
_BEGAN, _DRAINING, _RESTARTS = range(3)
_FRONT = 8
# The cells in front of a slot's rows; _USED is how many of these have ever been used.
_PID, _STATE, _BEAT, _USED, _ACCEPT_ERRORS, _REJECTS = range(6)
_HEAD = (_REJECTS + len(REJECT_WORDS) + 7) // 8 * 8


@dataclass(frozen=True)
class SessionRecord:
    """An open session: ``age`` in seconds since accept, bytes and lines so far, the pid of its ``worker``."""

    peer: str
    age: float
    received: int
    sent: int
    lines_in: int
    lines_out: int
    worker: int


@dataclass(frozen=True)
class WorkerRecord:
    """A worker: its slot's ``number``, ``pid``, ``state`` (of STATES), sessions ``open``.

    ``heartbeat`` is the seconds since it was last heard of.
    """

    number: int
    pid: int
    state: str
    heartbeat: float
    open: int


@dataclass(frozen=True)
class Snapshot:
    """All that was counted since the server began, ``uptime`` seconds ago.

    Sessions: ``open`` now, ``total``, ``ended`` by reason; ``rejected`` are connections that became none, by reason.
    ``received`` and ``sent`` are bytes. ``durations`` counts ended sessions by the bounds of ``rows.BOUNDS``, and those
    longer than all; ``seconds`` is their sum. ``sessions`` is empty unless it was asked for.
    """

    uptime: float
    draining: bool
    restarts: int
    accept_errors: int
    open: int
    total: int
    ended: dict[str, int]
    rejected: dict[str, int]
    received: int
    sent: int
    lines_in: int
    lines_out: int
    durations: tuple[int, ...]
    seconds: float
    workers: tuple[WorkerRecord, ...]
    backlogs: tuple[Backlog, ...] = ()
    sessions: tuple[SessionRecord, ...] = ()


class Metrics:
    """The counters of a server of at most ``slots`` workers, ``max_conns`` sessions each, replaced any number of times.

    To be made before anything is forked. A worker gets its own part by ``enter``; the process that starts workers
    calls ``bury`` for each that has ended, and ``count_restart`` and ``drain`` when that is what happens.
    """

    def __init__(self, slots: int, max_conns: int) -> None:
        """Map the memory; pages that are never used cost nothing. Raises StartError if there is not enough of it."""
        self.slots = slots
        # Twice the cap: a session gives its row back a moment after its place in the cap is free again, and
        # sessions in processes of their own go on when their worker is killed.
        self._rows = 2 * max_conns
        self._size = _HEAD + self._rows * ROW_CELLS
        try:
            self._map = mmap.mmap(-1, CELL * (_FRONT + slots * self._size))
        except (OSError, OverflowError) as error:
            raise StartError(f"no memory to count {max_conns} sessions in each of {slots} workers: {error}") from None
        self._front = cells_of(self._map, 0, _FRONT)
        self._front[_BEGAN] = micros_now()

    def enter(self, number: int, *, forks: bool = False) -> WorkerCounters:
        """Return the counters of worker ``number`` (from 0), to be called in its process, which writes to them.

        ``forks``: its sessions run in processes of their own. A worker that takes the place of another counts on where
        that one stopped.
        """
        return WorkerCounters(self._map, self._first(number), self._rows, forks=forks)

    def bury(self, number: int) -> bool:
        """Let the sessions of a worker that has ended be over, as killed; to be called once it is reaped.

        Sessions that run in processes of their own stay open while those live: then it returns False, and is to be
        called again, now and then, unless another worker takes the slot.
        """
        first = self._first(number)
        head = cells_of(self._map, first, _HEAD)
        over = True
        for row in _rows_of(self._map, first, head[_USED]):
            if row.pid and (row.pid == head[_PID] or _is_abandoned(row)):
                row.give_back()
            over = over and not row.pid
        head[_STATE] = head[_PID] = 0
        return over

    def drain(self) -> None:
        """Say that the server as a whole is about to end."""
        self._front[_DRAINING] = 1

    def count_restart(self) -> None:
        """Count a worker that is started in the place of one that died."""
        self._front[_RESTARTS] += 1

    def snapshot(self, listeners: Iterable[socket.socket] = (), *, sessions: bool = False) -> Snapshot:
        """Read everything, in any process; ``listeners`` are asked for their backlog.

        Costs about a millisecond for each 1000 sessions that were ever open at a time, ``sessions`` some more.
        """
        slots = [self._copy(number) for number in range(self.slots)]
        sums = RowSums(*(slot.rows for slot in slots))
        refused = [sum(slot.head[_REJECTS + place] for slot in slots) for place in range(len(REJECT_WORDS))]
        listed = [record for slot in slots for record in slot.sessions()] if sessions else []
        return Snapshot(
            uptime=_seconds_since(self._front[_BEGAN]),
            draining=bool(self._front[_DRAINING]),
            restarts=self._front[_RESTARTS],
            accept_errors=sum(slot.head[_ACCEPT_ERRORS] for slot in slots),
            open=sums.opened - sum(sums.ends),
            total=sums.opened,
            ended=dict(zip(END_WORDS, sums.ends, strict=True)),
            rejected=dict(zip(REJECT_WORDS, map(sum, zip(sums.rejects, refused, strict=True)), strict=True)),
            received=sums.received,
            sent=sums.sent,
            lines_in=sums.lines_in,
            lines_out=sums.lines_out,
            durations=tuple(sums.buckets),
            seconds=sums.micros / 1_000_000,
            workers=tuple(slot.worker(number) for number, slot in enumerate(slots) if slot.head[_PID]),
            backlogs=tuple(_read_backlogs(listeners)),
            sessions=tuple(sorted(listed, key=lambda session: -session.age)),
        )

    def _first(self, number: int) -> int:
        if not 0 <= number < self.slots:
            raise IndexError(f"worker {number}: there are {self.slots} slots")
        return _FRONT + number * self._size

    def _copy(self, number: int) -> _SlotCopy:
        first = self._first(number)
        used = cells_of(self._map, first, _HEAD)[_USED]
        return _SlotCopy(self._map[first * CELL : (first + _HEAD + used * ROW_CELLS) * CELL])


class _SlotCopy:
    """What a slot held at one moment, or nearly: to copy it takes no time."""

    def __init__(self, memory: bytes) -> None:
        self._memory = memory
        self.head = cells_of(memory, 0, _HEAD)
        self._used = self.head[_USED]
        self.rows = cells_of(memory, _HEAD, self._used * ROW_CELLS)

    def worker(self, number: int) -> WorkerRecord:
        head, opened = self.head, sum(1 for _ in self._open())
        return WorkerRecord(number, head[_PID], STATES[head[_STATE]], _seconds_since(head[_BEAT]), opened)

    def sessions(self) -> Iterator[SessionRecord]:
        for row in self._open():
            yield SessionRecord(row.peer, row.age, *row.counts, self.head[_PID])

    def _open(self) -> Iterator[SessionRow]:
        return open_rows(self._memory, _HEAD, self._used)


class WorkerCounters:
    """What one worker counts. All methods but ``give_back`` belong to the thread of its accept loop.

    (``beat`` may be called by another one while a session keeps the loop, in mode single, which forks nothing.)
    """

    def __init__(self, memory: mmap.mmap, first: int, rows: int, *, forks: bool) -> None:
        """Use the slot from cell ``first`` on, see ``Metrics.enter``."""
        self._head = head = cells_of(memory, first, _HEAD)
        self._taker = FORKING if forks else os.getpid()
        self._more = _rows_of(memory, first, rows)
        used = [next(self._more) for _ in range(head[_USED])]
        # Sessions that have outlived the worker before write to their rows still.
        self._orphans = [row for row in used if row.pid]
        self._looked = 0
        self._uncounted: set[SessionRow] = set()
        self._free = [row for row in reversed(used) if not row.pid]
        self._take_over()
        head[_BEAT] = micros_now()
        head[_STATE] = STATES.index("starting")
        head[_PID] = os.getpid()

    def serve(self) -> None:
        """Say that the accept loop runs from now on."""
        self.beat()
        self._head[_STATE] = STATES.index("serving")

    def drain(self) -> None:
        """Say that the worker takes no more clients."""
        self._head[_STATE] = STATES.index("draining")

    def beat(self) -> None:
        """Say that the accept loop turns, or is busy with a session."""
        now = self._head[_BEAT] = micros_now()
        if self._orphans and now - self._looked >= LOOK_SECONDS * 1_000_000:
            self._take_over()

    def count_accept_error(self) -> None:
        """Count a client that could not be accepted for lack of something of ours."""
        self._head[_ACCEPT_ERRORS] += 1

    def reject(self, word: str) -> None:
        """Count a connection that is refused, for a reason of REJECT_WORDS, before it has a row."""
        self._head[_REJECTS + word_index(REJECT_WORDS, word)] += 1

    def take(self, peer: str) -> SessionRow:
        """Return the row of a connection that may become a session; to be given back when it is over."""
        # Those first that were used before: what is never touched takes no memory, and no time to read.
        row = self._free.pop() if self._free else self._take_fresh()
        row.take(peer, self._taker)
        return row

    def give_back(self, row: SessionRow) -> None:
        """Take back the row of a connection that is over, in any thread, once nobody else writes to it any more.

        A session that is still open ends as killed.
        """
        row.give_back()
        if row in self._uncounted:
            self._uncounted.discard(row)
        else:
            self._free.append(row)

    def _take_fresh(self) -> SessionRow:
        row = next(self._more, None)
        if row is None:
            # More sessions than the cap have outlived the worker before. Better uncounted than refused.
            row = SessionRow(bytearray(ROW_CELLS * CELL))
            self._uncounted.add(row)
        else:
            self._head[_USED] += 1
        return row

    def _take_over(self) -> None:
        self._looked = micros_now()
        for row in self._orphans[:]:
            if not row.pid or _is_abandoned(row):
                self._orphans.remove(row)
                self.give_back(row)


def _rows_of(memory: mmap.mmap, slot: int, count: int) -> Iterator[SessionRow]:
    for number in range(count):
        yield SessionRow(memory, slot + _HEAD + number * ROW_CELLS)


def _is_abandoned(row: SessionRow) -> bool:
    """Tell that a row is taken for a process of its own, and that there is none."""
    pid = row.pid
    if pid == FORKING:
        return row.age > FORK_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # the number has gone to somebody else; wait for them too
    return False


def _seconds_since(micros: int) -> float:
    return (micros_now() - micros) / 1_000_000


def _read_backlogs(listeners: Iterable[socket.socket]) -> Iterator[Backlog]:
    for listener in listeners:
        if (backlog := read_backlog(listener)) is not None:
            yield backlog
