"""The status server: our own server with our own handler, in a process of its own beside those that work.

A process, not a thread: a worker forks, or computes, as it likes, and neither of both goes well with a thread that
is to answer at once. It is forked like a worker and only reads the memory that workers write to.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType

from .listeners import close_listeners
from .metrics import Metrics, Snapshot
from .options import Options
from .servers import ThreadServer
from .status import status_handler

__all__ = ["run_status"]

_log = logging.getLogger("stdserve")

#: Clients at a time, and how long (seconds) one may take in all: slow ones cannot keep the others out for longer.
_OPTIONS = Options(mode="thread", max_conns=64, session_timeout=5.0, linger_timeout=0.5, graceful_timeout=1.0)


def run_status(listeners: Sequence[socket.socket], metrics: Metrics, watched: Sequence[socket.socket] = ()) -> int:
    """Serve the numbers of ``metrics`` on ``listeners`` and return 0 at the second SIGTERM; for a process of its own.

    ``watched`` are the listeners of the workers, to tell how long their queues are. At the first SIGTERM, when the
    workers begin to drain, its copies of them are closed, or clients would go on to be let in; it answers on, with
    readiness 503, until the workers have ended and it is told again. It ends by itself if its parent dies.
    """
    # Its sessions are not those that the log tells of.
    _log.setLevel(max(_log.getEffectiveLevel(), logging.WARNING))

    def snapshot(sessions: bool) -> Snapshot:
        return metrics.snapshot(watched, sessions=sessions)

    server = _StatusServer(listeners[0].getsockname(), status_handler(snapshot), listeners=listeners, options=_OPTIONS)
    server.close_on_stop = True
    asked = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            server.request_stop()
        asked = True
        close_listeners(watched)

    signal.signal(signal.SIGTERM, stop)
    signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
    try:
        server.serve_forever()
    finally:
        server.server_close()
    return 0


class _StatusServer(ThreadServer):
    """Ends with its parent: nobody else would end it."""

    parent = 0

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        self.parent = os.getppid()
        super().serve_forever(poll_interval)

    def service_actions(self) -> None:
        if os.getppid() != self.parent:
            self.request_stop()
