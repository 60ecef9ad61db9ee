"""What the servers of all modes have in common: the accept loop, the life of a session, the stop.

:class:`ServerMixin` stands in front of the standard library's classes and keeps their constructor, attributes and
hooks.
"""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import time
from collections.abc import Callable, Sequence
from functools import cached_property

from .accepting import AcceptLoop
from .access import Admission
from .detaching import DetachMixin
from .errors import OutputError
from .interrupts import StopNow, breaks_off
from .life import LifeMixin
from .listeners import (
    BACKLOG,
    address_of,
    client_address_of,
    close_listeners,
    family_for,
    prepare_listener,
)
from .options import Options
from .preamble import Preamble
from .protocol import EndReason
from .sessions import Session
from .sink import Sink, open_sink
from .stopping import StopMixin
from .streams import CountedSocket, SessionSocket
from .tally import Counters
from .waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .metrics import WorkerCounters

__all__ = ["ServerMixin"]

_log = logging.getLogger("stdserve")

#: By a name of its own: the standard library's may be replaced by one of ours, as its own tests have it here.
_TCPServer = socketserver.TCPServer


class ServerMixin(LifeMixin, StopMixin, DetachMixin, socketserver.TCPServer):
    """What every mode shares: the accept loop, its bounds, the life of a session, the stop.

    Methods for the caller: those of ``socketserver.BaseServer``. ``shutdown`` may be called from anywhere, a handler,
    a signal handler and the serving thread included; ``request_stop`` is the same without waiting.
    ``detach_request`` is for handlers that keep their connection.

    Methods that may be overridden: those of ``BaseServer`` too: ``get_request``, ``verify_request``,
    ``process_request``, ``finish_request``, ``shutdown_request``, ``close_request``, ``handle_error``,
    ``service_actions`` (where overridden, called every ``poll_interval`` seconds; else an idle server sleeps).

    Attributes: ``options`` (an ``Options``), ``max_conns``, ``sink`` (where handlers print), ``listeners`` (all
    listening sockets; ``socket`` is the first), ``sessions`` (by socket), ``begun`` (how many there have been),
    ``failure`` (what ended the server).
    """

    allow_reuse_address = os.name == "posix"
    request_queue_size = BACKLOG

    #: Whether sessions run in processes of their own.
    forks = False
    #: Whether sessions run in the thread that serves, and keep it from its accept loop.
    inline = False
    #: Whether the accept loop sees to the session timeout.
    cuts_late = False
    #: Sessions at a time where the options do not say.
    default_max_conns = 1

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Callable[..., socketserver.BaseRequestHandler],
        bind_and_activate: bool = True,
        *,
        listeners: Sequence[socket.socket] = (),
        options: Options | None = None,
        sink: Sink | None = None,
        counters: WorkerCounters | None = None,
    ) -> None:
        """Bind ``server_address`` as the standard library does, or adopt ``listeners``, which it then owns."""
        self.options = options or Options()
        self.max_conns = self.options.max_conns or self.default_max_conns
        self.sessions: dict[Any, Session] = {}
        self.failure: OutputError | None = None
        self.begun = 0
        self._made_sink: Sink | None = None
        if sink is not None:
            self.sink = sink
        self.counters = counters or Counters()
        self._watched = counters is not None
        self._socket_class = SessionSocket if counters is None else CountedSocket
        self._loop = AcceptLoop(
            lambda: self.listeners, self._has_room, self._take, self._admit, self._crowd, self.counters
        )
        self._admission = Admission(
            self.options, self.max_conns, self._loop.waiter, self.close_request, self.forks, self.counters
        )
        self._preamble = Preamble(self.options, self._admission)
        self._accepting: socket.socket | None = None
        self._next_look = 0.0
        self._taken = 0
        self._take_until: int | None = None
        self._accepts_left = 1 if self.options.once else None
        self._begin_at_rest()
        self._more_listeners = list(listeners[1:])
        if listeners:
            socketserver.BaseServer.__init__(self, server_address, RequestHandlerClass)
            self.socket = listeners[0]
            self.address_family = self.socket.family
            self._name_server()
        else:
            self.address_family = family_for(server_address, self.address_family)
            super().__init__(server_address, RequestHandlerClass, bind_and_activate)

    @cached_property
    def sink(self) -> Sink:
        """Where handlers print: standard output, unless the server was given another."""
        self._made_sink = open_sink()
        return self._made_sink

    @property
    def listeners(self) -> list[socket.socket]:
        """All listening sockets."""
        return [self.socket, *self._more_listeners]

    @property
    def waiter(self) -> Waiter:
        """What the accept loop waits with; its methods belong to the thread that serves."""
        return self._loop.waiter

    @property
    def wakeup_fd(self) -> int:
        """The descriptor that wakes the accept loop when written to, for ``signal.set_wakeup_fd``."""
        return self._loop.waiter.wakeup_fd

    # Listening, accepting.

    def server_bind(self) -> None:
        """Bind, and ask no name server: ``HTTPServer``'s would look up its own name (cpython gh-106505)."""
        _TCPServer.server_bind(self)
        self._name_server()

    def _name_server(self) -> None:
        # What handlers written for HTTPServer look for.
        name = address_of(self.socket)
        self.server_name, self.server_port = ("localhost", 0) if isinstance(name, str) else name

    def server_activate(self) -> None:
        """Listen; never block in accept, where a client may have gone, or to another worker."""
        super().server_activate()
        if self.timeout is None:
            self.timeout = self.socket.gettimeout() or None  # the other place where handle_request looks for one
        prepare_listener(self.socket)

    def server_close(self) -> None:
        """Close the listeners and what the accept loop holds; a server that still serves is stopped first.

        Sessions that ``handle_request`` has left behind are ended, as by a stop. From one of its own sessions it
        is closed when it has stopped.
        """
        if self._serving_thread is not None:
            self._close_at_end = True
            self.shutdown()
            if self._serving_thread is not None:
                return
            # At its end it may have looked just before it was told to close.
        self._end_leftovers()
        self.request_stop()  # for a thread that is about to serve, and has not begun
        close_listeners(self.listeners)
        self._admission.close()
        self._loop.waiter.close()
        if self._made_sink is not None:
            self._made_sink.close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take one client from the listener that has one; raise OSError (BlockingIOError if it has gone)."""
        request, client_address = self._socket_class.accept_from(self._accepting or self.socket)
        request.max_line = self.options.max_line
        return request, client_address_of(request, client_address)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until ``shutdown`` or ``request_stop``, then end the sessions and return.

        They are ended as well before a Ctrl-C, or what ``service_actions`` raises, goes on its way.
        ``poll_interval`` (seconds) only matters where ``service_actions`` is overridden. A stop asked for
        before the first call makes that call return at once. Raises OutputError when the output takes no more.
        """
        polled = getattr(self.service_actions, "__func__", None) is not ServerMixin.service_actions
        with self._serving():
            try:
                while not self._stopping and (self._accepts_left != 0 or self.active):
                    self._turn(poll_interval if polled else None)
                    with self._loop.hook():
                        self.service_actions()
            except StopNow:
                self._loop.occupied = False  # it may have come just before the hook's own end
                self.request_stop(now=True)
            finally:
                self._drain()
        if self.failure is not None:
            raise self.failure

    def service_actions(self) -> None:
        """Do nothing; to be overridden."""

    def handle_request(self) -> None:
        """Wait for one client, ``self.timeout`` seconds at most, and serve it; without one call ``handle_timeout``.

        A timeout that was set on ``socket`` holds, too; a stop ends the wait.
        """
        limits = [seconds for seconds in (self.timeout, self.socket.gettimeout() or None) if seconds is not None]
        deadline = time.monotonic() + min(limits) if limits else None
        self._take_until = self._taken + 1
        with self._serving():
            try:
                while self._taken < self._take_until and not self._stopping:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        self.handle_timeout()
                        return
                    self._turn(left)
                self._serve_taken()
            finally:
                self._take_until, self._left_behind = None, True

    def _serve_taken(self) -> None:
        """Serve to its end what ``handle_request`` has taken, where nobody else does."""

    def _turn(self, timeout: float | None) -> None:
        limit = self.options.session_timeout if self.cuts_late and self.sessions else None
        if limit is not None:
            left = max(0.0, self._next_look - time.monotonic())
            timeout = left if timeout is None else min(timeout, left)
        self._loop.turn(self._admission.next_check(timeout))
        self._admission.check(self.active)
        if limit is not None and time.monotonic() >= self._next_look:
            # Looking at all of them now and then is cheaper than a timer for each, of which few would ever ring.
            self._next_look = time.monotonic() + min(1.0, limit / 10)
            for session in list(self.sessions.values()):
                if session.seconds >= limit:
                    session.cut(EndReason.SESSION_TIMEOUT)

    def _crowd(self) -> None:
        if not self._stopping and self._accepts_left != 0:
            self._admission.crowd()

    def _has_room(self) -> bool:
        if self._stopping and not self._last_call or self._accepts_left == 0 or self._taken == self._take_until:
            return False
        return self._admission.has_room(self.active)

    def _take(self, listener: socket.socket) -> tuple[Any, Any]:
        self._accepting = listener
        request, client_address = self.get_request()
        self._taken += 1
        return request, client_address

    def _admit(self, request: socket.socket, client_address: Any) -> None:
        session = None
        try:
            if self.options.tls_reload and (certificates := self.options.certificates) is not None:
                certificates.refresh()
            if not self.verify_request(request, client_address):
                self.counters.reject("verify")
                self.shutdown_request(request)
                return
            session = Session(request, client_address)
            if not self._admission.enter(session, self.active):
                return
            if self._accepts_left is not None:
                self._accepts_left -= 1
            self.begun += 1
            session.tally = self.counters.take(session.peer if self._watched else "")
            self.sessions[request] = session
            self.process_request(request, client_address)
        except BaseException as error:
            if breaks_off(error):
                raise
            if session is None:
                self.counters.reject("error")
            self._end_badly(request, client_address)

    def signal_sessions(self, signum: int) -> None:
        """Send a signal to the processes in which sessions run; here there are none."""
