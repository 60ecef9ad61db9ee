"""Forked children: started with signals in order, told from other people's, reaped by pid and by no other way."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # behind ``signal``
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from .logs import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeVar

    Whose = TypeVar("Whose")

__all__ = ["CRASHED", "POLL_SECONDS", "Child", "Ends", "fork_child", "fork_children", "ignore_signal"]

_log = logging.getLogger("stdserve")

#: What ``signal.pthread_sigmask`` is made of. That one makes an enum member of each signal in the mask that was, and
#: has an exception for each real-time signal, which has none: 65 us a call, five times for each session. ``signal``
#: does the like with a handler: whatever else a child looks at is a page more that is copied for it.
_sigmask, _set_handler = _signal.pthread_sigmask, _signal.signal

_ALL_SIGNALS = frozenset(_signal.valid_signals())

#: Exit status of a child whose code raised (EX_SOFTWARE of sysexits.h).
CRASHED = 70

#: Seconds between looks at children where the system cannot tell when one ends.
POLL_SECONDS = 0.05


class Child:
    """A child process: its ``pid`` and ``fd``, a descriptor that is readable once it has ended.

    ``fd`` is None where the system has no such thing (pidfd_open(2), Linux 5.3); then ``reap`` is to be tried
    every POLL_SECONDS.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd: int | None = None
        try:
            self.fd = os.pidfd_open(pid)
        except (AttributeError, OSError):
            pass

    def kill(self, signum: int) -> None:
        """Send a signal; nothing happens if the child has ended (until it is reaped, the pid is still its own)."""
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            pass

    def reap(self) -> int | None:
        """Return the exit status if the child has ended, -N if signal N ended it; None while it runs.

        Not to be called again after a status was returned.
        """
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            # Someone waits for children at large, or ignores SIGCHLD; how ours ended is lost.
            pid, status = self.pid, 0
        if not pid:
            return None
        if self.fd is not None:
            os.close(self.fd)
        return os.waitstatus_to_exitcode(status)

    def wait(self, seconds: float) -> int | None:
        """Return what ``reap`` does as soon as the child has ended; None if that takes longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        if self.fd is not None:
            poll.register(self.fd, select.POLLIN)
        while (status := self.reap()) is None and (left := deadline - time.monotonic()) > 0:
            poll.poll(1000 * (left if self.fd is not None else min(left, POLL_SECONDS)))
        return status


class Ends:
    """Tells which children have ended, with one descriptor for all of them; for a process that has many.

    ``fileno`` is readable when one has. Children that have no descriptor are in ``polled``: whoever waits is to call
    ``take`` every POLL_SECONDS while there are any.
    """

    def __init__(self) -> None:
        self.polled: list[Child] = []
        self._watched: dict[int, Child] = {}
        # Rather than a selector of the standard library: that is six calls of Python for each child, and its objects.
        self._epoll = select.epoll() if hasattr(os, "pidfd_open") else None

    def fileno(self) -> int:
        """Return the descriptor; -1 on a system where no child has one."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def watch(self, child: Child) -> None:
        """Have the end of ``child`` told by ``take``."""
        if child.fd is not None and self._epoll is not None:
            with suppress(OSError):  # where the system watches no more for one user (epoll_ctl(2), ENOSPC)
                self._epoll.register(child.fd, select.EPOLLIN)
                self._watched[child.fd] = child
                return
        self.polled.append(child)

    def take(self) -> list[tuple[Child, int]]:
        """Return those that have ended since the last time, each with what its ``reap`` returned."""
        ended = []
        if self._epoll is not None and self._watched:
            for fd, _ in self._epoll.poll(0):
                # Not by closing it alone, for its siblings hold copies of the descriptor.
                self._epoll.unregister(fd)
                child = self._watched.pop(fd)
                ended.append((child, child.reap() or 0))
        for child in self.polled[:]:
            if (status := child.reap()) is not None:
                self.polled.remove(child)
                ended.append((child, status))
        return ended

    def close(self) -> None:
        """Close the descriptor."""
        if self._epoll is not None:
            self._epoll.close()


def fork_child(run: Callable[[], int], handlers: Mapping[int, Any], born: Callable[[Child], None]) -> Child:
    """Fork a child that installs signal ``handlers``, calls ``run()`` and exits with what it returns.

    ``born(child)`` is called in the parent before any signal handler can run there, so that none finds a child
    that nobody has written down. In the child, signals wait until its own handlers are in place: none is lost,
    none reaches the parent's. The child never returns from here; it flushes the standard streams (``os._exit``
    would drop what they hold), runs no exit hooks of the parent's, and exits with CRASHED if ``run`` raises. Once
    ``run`` is over no signal but SIGKILL reaches it.
    Raises OSError.
    """
    children: list[Child] = []

    def write_down(_: None, child: Child) -> None:
        born(child)
        children.append(child)

    fork_children(lambda _: run(), (None,), handlers, write_down)
    return children[0]


def fork_children(
    run: Callable[[Whose], int],
    each: Sequence[Whose],
    handlers: Mapping[int, Any],
    born: Callable[[Whose, Child], None],
    begin: Callable[[Whose], None] | None = None,
) -> None:
    """Fork a child for ``each``, which calls ``run`` with it; all in a row, and then call ``born`` for each.

    For each child that is forked, its parent copies what it touches before the next: it is to do little between two.
    Otherwise this is as ``fork_child``; ``begin`` is called first of all in the child, while signals wait. When the
    system refuses one, those before it live, and are written down.
    """
    _flush_streams()  # or the child would say again what the parent has said
    # No more than those that something waits for: sixty of them fill a set that has to be made for each child.
    heard = [signum for signum in _ALL_SIGNALS if callable(_signal.getsignal(signum))]
    before = _sigmask(_signal.SIG_BLOCK, {*heard, *handlers})
    pids: list[int] = []
    plain = {signum: handler if callable(handler) else int(handler) for signum, handler in handlers.items()}
    # glibc sorts what has been freed at the next request that is not small: here once, or in each child, page for page.
    bytes(1200)
    try:
        try:
            for whose in each:
                pid = os.fork()
                if pid == 0:
                    _live(run, whose, plain, begin, before)
                pids.append(pid)
        finally:
            for whose, pid in zip(each, pids, strict=False):
                born(whose, Child(pid))
    finally:
        _sigmask(_signal.SIG_SETMASK, before)


def ignore_signal(signum: int, frame: Any) -> None:
    """Do nothing. Unlike SIG_IGN, this is not passed on to the programs that a handler starts."""


def _live(
    run: Callable[[Whose], int],
    whose: Whose,
    handlers: Mapping[int, Any],
    begin: Callable[[Whose], None] | None,
    mask: set[Any],
) -> NoReturn:
    status = CRASHED
    try:
        _signal.set_wakeup_fd(-1)
        if begin is not None:
            begin(whose)
        for signum, handler in handlers.items():
            _set_handler(signum, handler)
        _sigmask(_signal.SIG_SETMASK, mask)
        status = int(run(whose))
    except BaseException:
        _log.exception(Event("error", f"in child process {os.getpid()}"))
    finally:
        # There is nothing left to be told. A handler that ran in the middle of the end would find locks held, such as
        # the buffers' here and those of whoever measures the process as it ends, and wait for itself.
        _sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            _flush_streams()
        finally:
            os._exit(status)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # None, broken or closed: nothing more can be said there
