"""Fair shares of the interpreter: while sessions compute, each of them keeps it from the others for less time.

A thread that waits for the interpreter asks for it after the switch interval, 5 ms, and a session waits a dozen times:
after each call that lets go of it. Beside 64 sessions that compute, that takes five seconds; with a tenth of the
interval, half a second. But where nobody computes, all that a short interval does is to make those who wait ask more
often, which costs sessions that are all talking up to a fifth of what they do. So it is short only while it has to be.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .threads import SessionThreads

__all__ = ["fair_shares"]

#: Seconds that a thread which computes keeps the interpreter from one that asks, while there are such threads.
SHORT_SECONDS = 0.0005

#: Seconds over which it is looked what the process does.
LOOK_SECONDS = 0.1

#: Seconds from one look to the next while it does next to nothing: at most.
MOST_REST = 2.0


@contextmanager
def fair_shares(threads: SessionThreads | None) -> Iterator[None]:
    """Have the interpreter shared fairly for the length of the block, whatever the sessions of ``threads`` do.

    Where there are none, a short interval costs nothing: the few threads besides the one that serves have little to do.
    """
    before = sys.getswitchinterval()
    try:
        if threads is None:
            sys.setswitchinterval(SHORT_SECONDS)
            yield
        else:
            with FairShares(threads):
                yield
    finally:
        sys.setswitchinterval(before)


class FairShares:
    """Looks from a thread of its own, in a ``with`` block, whether sessions compute; asleep while there are none.

    Who computes spends the time of the CPU in the program, twice as much at least as in the system; of sessions that
    talk to their peers it is a third, and of those that do beside one that computes, a half and more.
    """

    def __init__(self, threads: SessionThreads) -> None:
        self._threads = threads
        self._usual = sys.getswitchinterval()
        self._short = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stdserve fairness", daemon=True)

    def __enter__(self) -> FairShares:
        try:
            self._thread.start()
        except RuntimeError:  # the system has no more of them: what may be needed is for ever
            self._share(short=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._threads.handed_over.set()  # or it would sleep on
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        rest = LOOK_SECONDS
        while not self._over.is_set():
            self._sleep(rest)
            before = os.times()
            self._over.wait(LOOK_SECONDS)
            after = os.times()
            user, system = after.user - before.user, after.system - before.system
            if user + system > 0:  # in whole ticks, of 10 ms
                rest = LOOK_SECONDS
                self._share(short=user > (0.5 if self._short else 2.0) * system)
            else:
                rest = min(2 * rest, MOST_REST)

    def _sleep(self, seconds: float) -> None:
        """Sleep until work is handed over; for ``seconds`` at most while some is not finished."""
        if self._threads.unfinished:
            self._threads.handed_over.wait(seconds)
        else:
            self._share(short=False)
            self._threads.handed_over.wait()
        self._threads.handed_over.clear()

    def _share(self, short: bool) -> None:
        if short is not self._short:
            self._short = short
            sys.setswitchinterval(SHORT_SECONDS if short else self._usual)
