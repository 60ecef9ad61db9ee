"""Threads that serve sessions: bounded in number, reused, and never waited for when they start."""

from __future__ import annotations

import _thread
import queue
import sys
import threading
import time
from collections.abc import Callable
from weakref import WeakSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["SessionThreads", "at_work"]

#: Seconds a thread waits for its next session before it ends.
KEEP_SECONDS = 10.0


#: Seconds that a thread may need from the end of its session to the end of its work.
SETTLE_SECONDS = 0.1

_pools: WeakSet[SessionThreads] = WeakSet()


def at_work() -> bool:
    """Tell whether threads of this process still serve sessions, be they of servers that have stopped."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while any(pool.unfinished for pool in _pools):
        if time.monotonic() > deadline:
            return True
        threading.Event().wait(SETTLE_SECONDS / 10)
    return False


class SessionThreads:
    """At most ``limit`` threads that call ``serve(*work)`` for each piece of work handed over.

    Threads are started when work waits and none is idle, and end after ``keep`` seconds without any. They are
    bare threads: ``Thread.start`` waits for the new thread's first step, and one that dies before it
    would stop the accept loop for ever (cpython gh-140746). Like daemon threads, they do not hold up the end of
    the process. ``serve`` must not raise.
    """

    def __init__(self, serve: Callable[..., None], limit: int, keep: float = KEEP_SECONDS) -> None:
        self._serve = serve
        self._limit = limit
        self._keep = keep
        self._work: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idents: set[int] = set()
        self._count = 0
        #: Work handed over and not finished; what exceeds the count of threads waits in the queue.
        self.unfinished = 0
        #: Set when work is handed over; to be cleared by who waits for that.
        self.handed_over = threading.Event()
        _pools.add(self)

    def __len__(self) -> int:
        return self._count

    @property
    def inside(self) -> bool:
        """True when called from one of these threads."""
        return _thread.get_ident() in self._idents

    def submit(self, *work: Any) -> None:
        """Hand over one piece of work and return at once; raise RuntimeError if no thread can be had for it."""
        with self._lock:
            if self._count <= self.unfinished and self._count < self._limit:
                _thread.start_new_thread(self._begin, ())
                self._count += 1
            self.unfinished += 1
        self._work.put(work)
        if not self.handed_over.is_set():  # a fifth of what it takes to set it
            self.handed_over.set()

    def close(self) -> None:
        """Let idle threads end now, and others after their work; what is handed over later is still done."""
        self._keep = 0.0
        for _ in range(self._count):
            self._work.put(None)

    def _begin(self) -> None:  # pragma: no cover - what is run before tracing is on cannot be traced
        # Debuggers, profilers and coverage ask threading for its threads; a bare one has to ask back.
        sys.settrace(threading.gettrace())
        sys.setprofile(threading.getprofile())
        self._run()

    def _run(self) -> None:
        ident = _thread.get_ident()
        self._idents.add(ident)
        while True:
            try:
                work = self._work.get(timeout=self._keep)
            except queue.Empty:
                work = None
            if work is None:
                if self._leave(ident):
                    return
                continue
            self._serve(*work)
            del work  # or an idle thread would keep its last client's socket alive
            with self._lock:
                self.unfinished -= 1

    def _leave(self, ident: int) -> bool:
        """Take this thread out of the count; False if there is work for it after all."""
        with self._lock:
            if self._count <= self.unfinished:
                return False
            self._count -= 1
            self._idents.discard(ident)
            return True
