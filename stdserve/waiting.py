"""Waiting for many descriptors at once, and being woken from anywhere: the heart of the accept loop."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Waiter"]

#: Seconds, 23 days: epoll_wait(2) counts its milliseconds in an int.
LONGEST_WAIT = 2e6


class Waiter:
    """Calls back when a watched descriptor is readable; sleeps until then, without polling.

    All methods belong to the thread that takes the turns, except ``wake``, which any thread or signal handler
    may call. The wake-up is a socket pair, since Windows cannot select on a pipe.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._forgotten = False
        self._wakened, self._waker = socket.socketpair()
        self._wakened.setblocking(False)
        self._waker.setblocking(False)
        self.watch(self._wakened, self._drop_wakeups)

    def watch(self, file: Any, call: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        """Call ``call()`` in each turn in which ``file`` (a socket or descriptor) is readable, or for other ``events``.

        An error and the end of a connection are all events. Who was watched under the same number has been closed
        without a word, and is forgotten.
        """
        try:
            self._selector.register(file, events, call)
        except KeyError:
            self._selector.unregister(file)
            self._selector.register(file, events, call)

    def watch_for(self, file: Any, call: Callable[[], None], events: int) -> None:
        """Call ``call()`` for other ``events`` than before; ``file`` must be watched."""
        self._selector.modify(file, events, call)

    def unwatch(self, file: Any) -> None:
        """Forget ``file``; it must be watched. One that is closed already is to be forgotten before another is open."""
        self._forgotten = True
        self._selector.unregister(file)

    def forget(self, fd: int, call: Callable[[], None]) -> None:
        """Forget a descriptor that may be closed already, and have gone to another since, if ``call`` is its own."""
        key = self._selector.get_map().get(fd)
        if key is not None and key.data == call:
            self.unwatch(fd)

    @property
    def wakeup_fd(self) -> int:
        """The descriptor that wakes when written to, for ``signal.set_wakeup_fd``.

        A signal that arrives just before the wait begins has its Python handler run only after it: what the handler
        does to wake would come too late. The byte that the C handler writes does not.
        """
        return self._waker.fileno()

    def wake(self) -> None:
        """End the wait that is going on, or the next one."""
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # full: it wakes anyway; closed: no one waits

    def turn(self, timeout: float | None = None) -> None:
        """Wait for ``timeout`` seconds at most (None: until something happens) and call what is due."""
        events = self._selector.select(None if timeout is None else min(timeout, LONGEST_WAIT))
        self._forgotten = False
        for key, _ in events:
            # An earlier call of this turn may have had it forgotten, and its number given to another.
            if not self._forgotten or self._selector.get_map().get(key.fd) is key:
                key.data()

    def close(self) -> None:
        """Close the descriptors of the waiter itself. A forked child may, without harm to its parent's."""
        self._selector.close()
        self._wakened.close()
        self._waker.close()

    def _drop_wakeups(self) -> None:
        self._wakened.recv(4096)
