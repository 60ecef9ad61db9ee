"""A worker as its supervisor knows it, and the supervisor as a worker knows it: two ends of two pipes.

Through one a worker tells things, a byte or a line of text at a time; the other is silent, and ends as the supervisor
does.
"""

from __future__ import annotations

import os
import signal
import time

from .children import Child

__all__ = ["Link", "Worker"]

#: What a worker tells in one byte: it serves (and still does), it has had enough sessions, it is about to end.
_BEAT, _SPENT, _LEAVING = b"\0", b"\1", b"\2"

#: How a line begins that says why a worker cannot work; other text is stacks, which faulthandler writes.
_REASON = b"\3"

#: Seconds that a stuck worker gets to say where it is stuck, and between two SIGKILL.
DUMP_SECONDS = 2.0

#: Bytes that are kept of what a worker writes: all stacks that faulthandler shows, 100 of 100 frames.
MOST_TEXT = 1 << 20


class Link:
    """What a worker has of its supervisor.

    Attributes: ``fd``, the pipe's writing end; ``generation``, which grows with each reload, 0 at first; ``number``,
    the least that no other worker has; ``lifeline``, a descriptor that reads EOF once there is no supervisor.
    """

    def __init__(self, fd: int, lifeline: int, number: int, generation: int) -> None:
        self.fd = fd
        self.lifeline = lifeline
        self.number = number
        self.generation = generation

    def beat(self) -> None:
        """Tell that the worker serves, and that it still does."""
        self._tell(_BEAT)

    def spent(self) -> None:
        """Tell that another worker should take the place of this one, which serves until it is told to stop."""
        self._tell(_SPENT)

    def leave(self) -> None:
        """Tell that this worker is about to end."""
        self._tell(_LEAVING)

    def explain(self, reason: str) -> None:
        """Tell why this worker cannot do its work; it is to end then."""
        self._tell(_REASON + reason.encode("utf-8", "backslashreplace").replace(b"\n", b" ") + b"\n")

    def show_crashes(self) -> None:
        """Have the stacks of all threads told if the worker crashes or gets SIGABRT, though all of Python be stuck."""
        import faulthandler  # here, for a process without workers has no need of it

        faulthandler.enable(self.fd)

    def _tell(self, data: bytes) -> None:
        try:
            os.write(self.fd, data)
        except OSError:
            pass  # full: enough is said; broken: there is no supervisor to be told


class Worker:
    """A worker process, ``child``: what was heard of it through ``heart``, the reading end of its pipe, and told to it.

    ``born`` and ``heard`` are times (monotonic). It ``serves`` once it said so; ``spent`` is one that wants to be
    replaced. One that is ``leaving`` does not count any more, and is killed at ``deadline``; it was ``told`` to leave
    unless it does so by itself. One that is ``stuck`` was told the hard way.
    """

    def __init__(self, child: Child, heart: int, number: int, generation: int) -> None:
        self.child = child
        self.heart = heart
        os.set_blocking(heart, False)
        self.number = number
        self.generation = generation
        self.born = self.heard = time.monotonic()
        self.serves = self.spent = self.leaving = self.told = self.stuck = False
        self.deadline: float | None = None
        self._text = b""

    def __str__(self) -> str:
        return f"worker {self.child.pid}"

    def hear(self) -> bool:
        """Read what it tells; False if it has closed its end."""
        return self._read() != b""

    def _read(self) -> bytes | None:
        """Return what it tells, nothing at the end, None if there is nothing for now."""
        try:
            data = os.read(self.heart, 65536)
        except BlockingIOError:
            return None
        if data:
            self.heard = time.monotonic()
        self.serves = self.serves or _BEAT in data
        self.spent = self.spent or _SPENT in data
        self.leaving = self.leaving or _LEAVING in data
        self._text = (self._text + data.translate(None, _BEAT + _SPENT + _LEAVING))[:MOST_TEXT]
        return data

    @property
    def reason(self) -> str:
        """Why it cannot do its work, if it said so."""
        return " ".join(line[1:].decode() for line in self._text.split(b"\n") if line.startswith(_REASON))

    @property
    def stacks(self) -> list[str]:
        """The stacks that it wrote when it crashed, line by line."""
        lines = [line for line in self._text.split(b"\n") if line and not line.startswith(_REASON)]
        return [line.decode("utf-8", "backslashreplace") for line in lines]

    def drain(self, patience: float) -> None:
        """Tell it to end, within ``patience`` seconds; once, for a second time means to cut its sessions."""
        if not self.told and not self.leaving:
            self.told = True
            self.child.kill(signal.SIGTERM)
        self.leave_within(patience)

    def leave_within(self, seconds: float) -> None:
        """Count on it no more, and kill it if it has not ended in time."""
        self.leaving = True
        if self.deadline is None:
            self.deadline = time.monotonic() + seconds

    def abort(self) -> None:
        """Have it show where it is stuck, and end."""
        self.told = self.stuck = True
        self.deadline = None
        self.child.kill(signal.SIGABRT)
        self.leave_within(DUMP_SECONDS)

    def kill_late(self) -> None:
        """Kill it if its deadline has passed."""
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            self.child.kill(signal.SIGKILL)
            self.deadline = now + DUMP_SECONDS

    def bury(self) -> None:
        """Hear its last words and close the pipe, once it has ended."""
        heard: bytes | None = b"?"
        while heard:
            heard = self._read()
        os.close(self.heart)
