"""How many sessions each address has, counted where the address is told: in the accept loop, a thread or a child."""

from __future__ import annotations

import mmap
import threading

from .sessions import Session

__all__ = ["Seats", "SharedSeats"]

#: Bytes that stand for an address in shared memory.
MARK_BYTES = 16


class Seats:
    """Counts the sessions of each address."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def reserve(self, session: Session) -> None:
        """Prepare for an address that is told later; nothing to do here."""

    def enter(self, session: Session, host: str) -> bool:
        """Take a seat for ``host``; False if it has as many as it may have."""
        with self._lock:
            count = self._counts.get(host, 0)
            if count >= self._limit:
                return False
            self._counts[host] = count + 1
        session.seat = host
        return True

    def leave(self, session: Session) -> None:
        """Give the seat back; harmless for a session that has none."""
        if session.seat is None:
            return
        with self._lock:
            self._counts[session.seat] -= 1
            if not self._counts[session.seat]:
                del self._counts[session.seat]


class SharedSeats:
    """The same for sessions that learn their address in a child: a seat for each, in memory that is shared.

    A child writes its address on its seat and then counts: of two that come at once, both may be refused, but
    never are too many let in. The parent clears the seat of a child that has ended, however it did.
    """

    def __init__(self, limit: int, seats: int) -> None:
        self._limit = limit
        self._free = list(range(seats))
        self._marks = mmap.mmap(-1, seats * MARK_BYTES)

    def reserve(self, session: Session) -> None:
        """Take a seat whose address will be told later."""
        session.seat = self._free.pop()

    def enter(self, session: Session, host: str) -> bool:
        """Write ``host`` on the seat; False if it has as many as it may have."""
        from hashlib import blake2b  # here, for few servers need it

        mark = blake2b(host.encode(), digest_size=MARK_BYTES).digest()
        self._write(session.seat, mark)
        taken = self._marks[:]
        same = sum(taken[at : at + MARK_BYTES] == mark for at in range(0, len(taken), MARK_BYTES))
        return same <= self._limit

    def leave(self, session: Session) -> None:
        """Clear the seat."""
        self._write(session.seat, bytes(MARK_BYTES))
        self._free.append(session.seat)

    def _write(self, seat: int, mark: bytes) -> None:
        self._marks[seat * MARK_BYTES : (seat + 1) * MARK_BYTES] = mark
