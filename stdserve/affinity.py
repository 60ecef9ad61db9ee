"""Keeping a process on one CPU: threads that take turns gain nothing from a second one, and lose by every move."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["on_one_cpu"]


@contextmanager
def on_one_cpu(number: int) -> Iterator[None]:
    """Keep this thread, and those that it starts, on one CPU for the length of the block (sched_setaffinity(2)).

    It is the ``number``-th of those that may be used, counted around, so that workers with numbers of their own share
    them evenly. The interpreter's lock then passes from thread to thread without waking another CPU.
    """
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(usable)[number % len(usable)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)
