"""Many sessions in one thread: each takes its next step when its socket is ready, and none waits for another."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident

from .driver import Driver, begin
from .errors import OutputError
from .waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .replies import Outbox
    from .sink import Sink
    from .steps import Steps
    from .streams import SessionSocket

__all__ = ["EventLoop"]

#: Alarms among which nobody looks for those that are not needed any more.
FEW_ALARMS = 1024


def _nobody() -> None:
    """Rouse nobody."""


class EventLoop:
    """Takes the steps of all sessions of one thread, which calls ``until_due``, waits for ``waiter``, calls ``settle``.

    ``begin`` is for that thread, too. ``current`` is the session whose own code runs now, the loop itself while it
    prints, None between two; ``count`` grows with each of them.
    """

    #: The socket of the session that runs while the loop is the ``current`` one.
    request = None

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.current: Driver | EventLoop | None = None
        self.count = 0
        #: Whether ``rouse`` is to be called when the code of a session begins, and that.
        self.unwatched = False
        self.rouse: Callable[[], None] = _nobody
        #: The thread that takes the steps.
        self.thread = 0
        self._numbers = itertools.count()
        self._alarms: list[tuple[float, int, Driver]] = []
        self._most_alarms = FEW_ALARMS
        # Sessions that have something to do which no socket tells of, and what others have replied to them.
        self._stirred: deque[tuple[Driver, Outbox | None]] = deque()
        #: What the sessions of a turn have printed: it is put out, in one write, before any of them replies.
        self.prints: list[bytes] = []
        self._put_out: Callable[[], None] = _nobody
        #: Those that go on then: what they do next is a reply, or may be the end of a session.
        self.postponed: deque[Driver] = deque()

    def begin(self, request: SessionSocket, steps: Steps[None]) -> None:
        """Take the first steps of a session, as far as they go without waiting."""
        self.thread = get_ident()
        driver = Driver(self, steps, (request, 0, begin, None))
        request.be_driven(driver)
        driver.go()

    def until_due(self, timeout: float | None) -> float | None:
        """Return ``timeout`` (seconds), or less if a session has something to do earlier."""
        if self._stirred or self.prints or self.postponed:
            return 0.0
        if not self._alarms:
            return timeout
        left = max(0.0, self._alarms[0][0] - time.monotonic())
        return left if timeout is None else min(left, timeout)

    def settle(self) -> None:
        """Do what is due: alarms that ring, prints and what was to come after them, sessions that were stirred.

        Raises OutputError when the output takes no more; those who were to reply have heard of it.
        """
        self.thread = get_ident()
        if self._alarms:
            now = time.monotonic()
            while self._alarms and self._alarms[0][0] <= now:
                alarm, _, driver = heapq.heappop(self._alarms)
                driver.ring(alarm, now)
        if self.prints or self.postponed:
            self._print()
        for _ in range(len(self._stirred)):  # those that stir meanwhile have the next turn
            driver, outbox = self._stirred[0]
            driver.wake(outbox)
            self._stirred.popleft()  # last: a Ctrl-C must not lose it

    def enter(self, who: Driver | EventLoop) -> None:
        """Begin to do what may take long: ``who`` does it."""
        self.current = who
        self.count += 1
        if self.unwatched:
            self.unwatched = False
            self.rouse()

    @contextmanager
    def gathering(self, sink: Sink) -> Iterator[None]:
        """Have what is printed to ``sink`` put out once in a turn, for the length of the block."""
        with sink.gathering() as self.prints:
            self._put_out = sink.put_out
            yield

    def print_first(self) -> None:
        """Put out what was printed, before anybody replies. Raises OutputError when the output takes no more.

        Who was to reply then does not: a reply means that its line is printed.
        """
        if not self.prints:
            return
        before = self.current
        self.enter(self)
        try:
            self._put_out()
        except BaseException:  # a second signal as well: the lines are lost
            for driver in self.postponed:
                driver.discard()
            raise
        finally:
            self.current = before

    def _print(self) -> None:
        failure: OutputError | None = None
        try:
            self.print_first()
        except OutputError as error:
            failure = error
        for _ in range(len(self.postponed)):
            if self.prints and failure is None:
                break  # one has gone on to print again; the others are the first of the next turn
            self.postponed[0].go_on(failure)
            self.postponed.popleft()
        if failure is not None:
            raise failure

    def stir(self, driver: Driver, outbox: Outbox | None) -> None:
        """Call ``driver.wake(outbox)`` soon; in any thread."""
        self._stirred.append((driver, outbox))
        if get_ident() != self.thread:
            self.waiter.wake()

    def set_alarm(self, alarm: float, driver: Driver) -> None:
        """Call ``driver.ring(alarm, now)`` when it is that late (time.monotonic)."""
        heapq.heappush(self._alarms, (alarm, next(self._numbers), driver))
        if len(self._alarms) > self._most_alarms:
            # Those of sessions that have ended; there is a limit to how many others there can be.
            self._alarms = [entry for entry in self._alarms if entry[2].awaits(entry[0])]
            heapq.heapify(self._alarms)
            self._most_alarms = max(FEW_ALARMS, 2 * len(self._alarms))
