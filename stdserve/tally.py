"""Counting for whoever wants no more than a session's own line in the log; ``metrics`` counts for the whole server.

Both have the same methods, so that no session needs to know whether it is watched; ``metrics`` is not even imported
where nobody asked for it.
"""

from __future__ import annotations

__all__ = ["Counters", "Tally"]


class Tally:
    """What one session counts; a ``rows.SessionRow`` that nobody else can read, and that keeps no more than counts."""

    __slots__ = ("_lines_in", "_lines_out", "_received", "_sent")

    def __init__(self) -> None:
        self._received = self._sent = self._lines_in = self._lines_out = 0

    def adopt(self) -> None:
        """Do nothing: who runs the session is of no interest here."""

    def name(self, peer: str) -> None:
        """Do nothing: the session knows its peer."""

    def open(self) -> None:
        """Do nothing: a tally is for one session."""

    def add_received(self, size: int) -> None:
        """Count bytes that came in."""
        self._received += size

    def add_sent(self, size: int) -> None:
        """Count bytes that went out."""
        self._sent += size

    def add_lines_in(self, count: int) -> None:
        """Count lines that came in."""
        self._lines_in += count

    def add_lines_out(self, count: int) -> None:
        """Count lines that went out."""
        self._lines_out += count

    def end(self, word: str) -> None:
        """Do nothing: the log tells why."""

    def reject(self, word: str) -> None:
        """Do nothing: the log tells why."""

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Bytes received and sent, lines in and out."""
        return self._received, self._sent, self._lines_in, self._lines_out


class Counters:
    """What a server counts that nobody watches: nothing; the methods are those of ``metrics.WorkerCounters``."""

    def serve(self) -> None:
        """Do nothing."""

    def beat(self) -> None:
        """Do nothing."""

    def drain(self) -> None:
        """Do nothing."""

    def count_accept_error(self) -> None:
        """Do nothing."""

    def reject(self, word: str) -> None:
        """Do nothing."""

    def take(self, peer: str) -> Tally:
        """Return what a session counts in."""
        return Tally()

    def give_back(self, tally: object) -> None:
        """Do nothing."""
