"""One session of many in a thread: its steps are taken, each as soon as it can be."""

from __future__ import annotations

import time
from threading import get_ident

from .replies import Unsent
from .steps import READS, WRITES, wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from typing import Any, Protocol

    from .replies import Outbox
    from .steps import Step, Steps
    from .waiting import Waiter

    class Loop(Protocol):
        """The ``events.EventLoop`` of the thread."""

        waiter: Waiter
        thread: int
        current: Any
        prints: list[bytes]
        #: Those of which ``go_on`` is to be called when what was printed in this turn is put out.
        postponed: deque[Driver]

        def enter(self, who: Driver) -> None:
            """Know who runs now."""

        def stir(self, driver: Driver, outbox: Outbox | None) -> None:
            """Call ``driver.wake(outbox)`` soon; in any thread."""

        def set_alarm(self, alarm: float, driver: Driver) -> None:
            """Call ``driver.ring(alarm, now)`` when it is that late."""

        def print_first(self) -> None:
            """Put out what was printed."""


__all__ = ["Driver"]

#: Steps that one session takes before others have their turn.
STEPS_PER_TURN = 16


def begin(_: object) -> None:
    """Be what comes before the first step: nothing is called, and nothing returned."""


class Driver:
    """Takes the steps of one session, each as soon as it can be taken.

    ``inside``, ``stir`` and ``notice`` are for any thread, all else for that of the loop.
    """

    __slots__ = (
        *("inside", "outbox", "_alarm", "_deadline", "_fd", "_loop", "_mask"),
        *("_queued", "_step", "_steps", "_stirred", "_stuck", "_timed", "_wants"),
    )

    def __init__(self, loop: Loop, steps: Steps[None], first: Step) -> None:
        self._loop = loop
        self._steps: Steps[None] | None = steps
        self._step = first
        self._fd, self._mask = -1, 0  # what the waiter watches, and for what
        self._wants = 0  # what the step waits for
        self._timed: Step | None = None  # the step that ``_deadline`` is for
        self._deadline: float | None = None
        self._alarm: float | None = None
        #: The thread that runs the session's own code, 0 while it waits.
        self.inside = 0
        #: The session's replies, if it has any: those of its ``wfile``, if that is one of ours.
        self.outbox: Outbox | None = None
        self._stirred = self._queued = False
        self._stuck: Outbox | None = None  # what others have replied and the peer does not take

    @property
    def request(self) -> Any:
        """The socket of its session."""
        return self._step[0]

    def awaits(self, alarm: float) -> bool:
        """Tell whether this alarm is still of interest."""
        return self._steps is not None and alarm == self._alarm

    def go(self, error: BaseException | None = None) -> None:
        """Take steps until one has to wait; ``error`` is what has become of the one that did, or was postponed."""
        steps, loop = self._steps, self._loop
        self._queued = False
        if steps is None:
            return
        self.inside = loop.thread
        loop.enter(self)
        try:
            step = self._step if error is None else steps.throw(error)
            for _ in range(STEPS_PER_TURN):
                sock, waits, call, argument = step
                if waits == WRITES and loop.prints:
                    self._postpone(step)
                    return
                try:
                    if waits == READS and sock.driver is not self:
                        raise ConnectionAbortedError("the handler keeps the connection")
                    result = call(argument)
                except BaseException as failure:
                    wants = wanted(failure, waits)
                    fault = self._wait(step, wants) if wants else failure
                    if fault is None:
                        return
                    step = steps.throw(fault)
                else:
                    step = steps.send(result)
                if step[1] == READS:
                    if (outbox := self.outbox) is not None and outbox.flows and outbox.blocks:
                        if loop.prints:
                            self._postpone(step)
                            return
                        if fault := self._reply(outbox):
                            step = steps.throw(fault)
                            continue
                    if self._rests(step):
                        return
            self._yield_turn(step)
        except StopIteration:
            self._end()
        except BaseException:  # a second signal, a Ctrl-C: all else is the session's own affair
            self._end()
            steps.close()  # or its socket would be open for as long as somebody has the traceback
            raise
        finally:
            self.inside, loop.current = 0, None

    def go_on(self, error: BaseException | None) -> None:
        """Reply, or take the step that was postponed, unless ``error`` is what has become of the prints before it."""
        step, steps = self._step, self._steps
        if error is None and step[1] == READS and steps is not None and self.outbox is not None:
            try:
                error = self._reply(self.outbox)
            except BaseException:  # as in ``go``; and nobody knows whether the reply went
                self._end()
                steps.close()
                raise
            if error is None and self._rests(step):
                self._queued = False
                return
        self.go(error)

    def _reply(self, outbox: Outbox) -> Exception | None:
        """Put out what the session has replied, before it reads on; return what it has to hear if that fails."""
        try:
            outbox.put_out()
        except (OSError, ValueError):
            return Unsent()
        except Exception as error:  # of memory, say: its own fault, as any other's in a step
            return error
        return None

    def discard(self) -> None:
        """Reply nothing of what has gathered."""
        if self.outbox is not None:
            self.outbox.discard()

    def _postpone(self, step: Step) -> None:
        if step is not self._timed:  # else it goes on to wait, and for no longer than it was to
            self._timed = self._deadline = None
        self._step = step
        self._queued = True  # nothing else has it go on
        self._loop.postponed.append(self)

    def _yield_turn(self, step: Step) -> None:
        if step[1] == WRITES and self._loop.prints:
            self._postpone(step)  # it is not to be taken if they fail
            return
        # The step has not begun to wait; what the last one had to do by when is over.
        self._step, self._timed, self._deadline = step, None, None
        self._queue()

    def notice(self) -> None:
        """Have the session find out, in its step, that its socket is closed; no selector tells.

        The selector may know it beyond that, by a copy that somebody has made, so it is let go of before.
        """
        if self.inside == get_ident():
            self.let_go()
        elif self._steps is not None:
            self._queue()

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._loop.stir(self, None)

    def stir(self, outbox: Outbox) -> None:
        """Have ``outbox`` put out what others have replied."""
        if not self._stirred:
            self._stirred = True
            self._loop.stir(self, outbox)

    def wake(self, outbox: Outbox | None) -> None:
        """Go on after others had their turn, or put out what they have replied."""
        if outbox is None:
            self.go()
            return
        self._stirred = False  # first: what comes from now on is another matter
        if self._queued:
            self.stir(outbox)  # later, when it is known what the session waits for
            return
        # A session that is about to write puts out all there is, and who is stuck waits for the peer.
        if self._steps is not None and self._step[1] == READS and self._stuck is None:
            self._put_out(outbox)

    def ring(self, alarm: float, now: float) -> None:
        """Give up waiting if that has been for too long; an alarm is set for many steps, and may be early."""
        if not self.awaits(alarm):
            return
        self._alarm = None
        if self._deadline is None:
            return
        if self._deadline > now:
            self._set_alarm(self._deadline)
        else:
            self.go(TimeoutError("timed out"))

    def put_out(self) -> None:
        """Put out what the session has replied so far; raise BlockingIOError if the peer does not take all of it."""
        if self.outbox is not None:
            self._loop.print_first()
            self.outbox.put_out()

    @property
    def prints(self) -> list[bytes]:
        """What was printed, by any session, and is not put out."""
        return self._loop.prints

    def print_first(self) -> None:
        """Put out what was printed, before a reply that goes out at once. Raises OutputError if that fails."""
        self._loop.print_first()

    def let_go(self) -> None:
        """Watch the socket no more."""
        if self._mask:
            self._loop.waiter.forget(self._fd, self._ready)
            self._mask = 0

    def _ready(self) -> None:
        if self._stuck is not None:
            self._put_out(self._stuck)
        if not self._queued:  # else it has its turn when all others had theirs
            self.go()

    def _put_out(self, outbox: Outbox) -> None:
        self._stuck = None
        try:
            if self._loop.prints:
                self.stir(outbox)  # whoever told it may have printed it, too
            else:
                outbox.put_out()
        except Exception as error:
            if wanted(error, WRITES) != WRITES:
                self._queue()  # the connection is gone, as the step that waits will find
                return
            self._stuck = outbox
        self._watch()

    def _rests(self, step: Step) -> bool:
        """Pause until the waiter says that there is something to read, if it will: it knows not what OpenSSL holds."""
        sock = step[0]
        if self._mask != READS or sock.fileno() != self._fd or (sock.holds_bytes and sock.pending()):
            return False
        self._pause(step)
        return True

    def _wait(self, step: Step, wants: int) -> OSError | None:
        """Begin to wait, or go on to; return why that cannot be done, None if it can."""
        self._step, self._wants = step, wants
        if fault := self._watch():
            return fault
        if step is not self._timed:
            self._pause(step)
        return None

    def _pause(self, step: Step) -> None:
        """Begin to wait for a step, for as long as its socket says."""
        self._step = self._timed = step
        patience = step[0].patience
        self._deadline = None if patience is None else time.monotonic() + patience
        if self._deadline is not None:
            self._set_alarm(self._deadline)

    def _watch(self) -> OSError | None:
        mask = self._wants if self._stuck is None else self._wants | WRITES
        fd = self._step[0].fileno()
        if mask == self._mask and fd == self._fd:
            return None
        if fd != self._fd:
            self.let_go()
        try:
            if self._mask:
                self._loop.waiter.watch_for(fd, self._ready, mask)
            else:
                self._loop.waiter.watch(fd, self._ready, mask)
        except OSError as error:  # such as more than the system watches for one user (epoll_ctl(2), ENOSPC)
            return error
        self._fd, self._mask = fd, mask
        return None

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is None or deadline < self._alarm:
            self._alarm = deadline
            self._loop.set_alarm(deadline, self)

    def _end(self) -> None:
        self.let_go()
        # Of the socket, the driver and the outbox each knows another one.
        self._steps = self._timed = self._stuck = self.outbox = None
        self._step = _OVER


_OVER: Step = (None, 0, begin, None)
