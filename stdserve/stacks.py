"""Where every thread of this process is, for the log: what an operator asks of a server that hangs."""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import FrameType

from .logs import Event

__all__ = ["log_stacks", "stack_of", "stacks_of"]

_log = logging.getLogger("stdserve")

#: Frames of one thread that are shown, the innermost ones; of a recursion without end they are enough.
MOST_FRAMES = 50


def log_stacks(signum: int, frame: FrameType | None) -> None:
    """Write the stack of every thread to the log, one line a thread; a signal handler."""
    for name, stack in stacks_of(frame):
        _log.info(Event("stack", f": {stack}", pid=os.getpid(), thread=name))


def stacks_of(main: FrameType | None) -> list[tuple[str, str]]:
    """Return the name and the stack of each thread, from its outermost call to where it is: ``module:line function``.

    ``main`` is the frame in which the main thread was interrupted. No file is read: the state of the process may be
    that none can be had.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames: dict[int, FrameType | None] = {**sys._current_frames(), threading.main_thread().ident or 0: main}
    return [(names.get(ident, str(ident)), _describe(frame)) for ident, frame in frames.items()]


def stack_of(ident: int) -> str:
    """Return the stack of one thread, as ``stacks_of`` does."""
    return _describe(sys._current_frames().get(ident))


def _describe(frame: FrameType | None) -> str:
    calls: list[str] = []
    while frame is not None and len(calls) < MOST_FRAMES:
        calls.append(f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " > ".join(reversed(calls))
