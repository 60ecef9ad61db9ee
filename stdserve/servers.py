"""The four servers: one session at a time, a thread each, a child process each, all in one thread.

What they share is in :class:`ServerMixin`; here each says how a session gets its thread or its process.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial

from .children import POLL_SECONDS, Child, Ends, fork_children, ignore_signal
from .detaching import await_keepers, end_kept_input
from .driver import Driver
from .errors import ConfigError, OutputError
from .events import EventLoop
from .handlers import LineHandler
from .listeners import leave_listeners
from .logs import Event
from .mixin import ServerMixin
from .protocol import EndReason
from .sessions import Session, has_said_all
from .sink import Sink
from .stalls import StallWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["EventServer", "SingleServer", "ThreadServer"]

_log = logging.getLogger("stdserve")


class SingleServer(ServerMixin, socketserver.TCPServer):
    """One session at a time, in the thread that serves; others wait in the backlog."""

    inline = True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Run the session, here and now; a timer sees to the session timeout, for the accept loop cannot."""
        if self._stopping:
            self._end_input()  # whoever asked for that did not find it among the sessions yet
        session, cut = self.sessions[request], True
        try:
            if self.options.session_timeout is None:
                self.run_session(request, client_address)
            else:
                with self._timed(session, self.options.session_timeout):
                    self.run_session(request, client_address)
            cut = session.cut_for is not None
        finally:
            if self._stopping:
                self._ended_before = (0, 1) if cut else (1, 0)

    @contextmanager
    def _timed(self, session: Session, limit: float) -> Iterator[None]:
        timer = threading.Timer(limit, session.cut, (EndReason.SESSION_TIMEOUT,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def request_stop(self, now: bool = False) -> None:
        """Ask the server to stop; the session that keeps the accept loop reads EOF, or is cut if that is to be now."""
        super().request_stop(now)
        if self._stopping_now:
            self._cut()
        else:
            self._end_input()


class ThreadServer(ServerMixin, socketserver.ThreadingTCPServer):
    """A thread for each session, at most ``max_conns``, reused.

    The default of 1000 (gunicorn's too) fits the usual limit of 1024 descriptors and some 20 MB of memory.
    ``session_threads`` (a ``threads.SessionThreads``) are those of this server.
    """

    cuts_late = True
    default_max_conns = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what ``ServerMixin`` takes."""
        from .threads import SessionThreads  # here, for those who fork need none

        super().__init__(*args, **kwargs)
        self.session_threads = SessionThreads(self._run_in_thread, self.max_conns)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the session over to a thread; one that cannot wait for anything is run here and now."""
        if self._prompt and has_said_all(request):
            self.run_session(request, client_address)
        else:
            self.session_threads.submit(request, client_address)

    @cached_property
    def _prompt(self) -> bool:
        # Not inherited: what is prompt here may wait in a subclass.
        prompt = getattr(self.RequestHandlerClass, "__dict__", {}).get("prompt", False)
        return bool(prompt) and not self._preamble and self.sink.prompt

    def server_close(self) -> None:
        """Close the listeners and what the server holds, as in every mode, and let idle threads end."""
        super().server_close()
        if "session_threads" in vars(self):  # a constructor that fails closes what there is
            self.session_threads.close()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Run the session, in its thread; may be overridden, as in ``ThreadingMixIn``."""
        self.run_session(request, client_address)

    def _run_in_thread(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        except BaseException:
            self._end_badly(request, client_address)

    def _inside_session(self) -> bool:
        return self.session_threads.inside


class EventServer(ServerMixin, socketserver.TCPServer):
    """All sessions in the thread that serves, each of which goes on when its peer has something to say.

    For handlers derived from ``LineHandler``, whose hooks must not wait for anything: whoever waits keeps all others
    waiting. The default of 10,000 takes some 40 MB.
    """

    in_steps = True
    cuts_late = True
    default_max_conns = 10_000

    def __init__(self, server_address: Any, RequestHandlerClass: Any, *args: Any, **kwargs: Any) -> None:
        """Take what ``ServerMixin`` takes; raise ConfigError for a handler that cannot be served so."""
        self.check_handler(RequestHandlerClass)
        super().__init__(server_address, RequestHandlerClass, *args, **kwargs)
        self._events = EventLoop(self.waiter)

    @contextmanager
    def _serving(self) -> Iterator[None]:
        sink = vars(self).get("sink")  # one that is only made when somebody prints writes at once, as does another's
        prints = self._events.gathering(sink) if isinstance(sink, Sink) else nullcontext()
        with StallWatch(self._events, self._event_of), super()._serving(), prints:
            try:
                yield
            finally:
                self._print_last_words()

    def _print_last_words(self) -> None:
        try:
            self._events.print_first()
        except OutputError as error:
            self._fail(error)
        except KeyboardInterrupt:
            pass  # whoever asked twice for the end does not wait for a reader of the output

    def _event_of(self, driver: Driver | EventLoop, word: str, text: str) -> Event:
        session = self.sessions.get(driver.request)
        return Event(word, text) if session is None else session.event(word, text)

    @property
    def occupied(self) -> bool:
        """Whether the thread that serves is in a hook, of the server's or of a session."""
        return super().occupied or self._events.current is not None

    @classmethod
    def check_handler(cls, handler: Any) -> None:
        """Raise ConfigError for a class that is no ``LineHandler``, or has a ``handle`` of its own."""
        while isinstance(handler, partial):
            handler = handler.func
        if isinstance(handler, type) and getattr(handler, "handle", None) is not LineHandler.handle:
            raise ConfigError(
                f"--mode event serves handlers that derive from LineHandler, which {handler.__name__} does not:"
                " take --mode thread, fork or single"
            )

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin the session; it goes on in later turns."""
        self._events.begin(request, self._life(request, client_address))

    def detach_request(self, request: Any) -> Any:
        """Let the handler keep ``request``, as in every mode; BlockingIOError if its peer has not taken all replies."""
        driver = getattr(request, "driver", None)
        if driver is not None and request in self.sessions:
            driver.put_out()
        kept: Any = super().detach_request(request)
        kept.driver.let_go()
        kept.be_alone()
        return kept

    def _serve_taken(self) -> None:
        while self.sessions and not self._stopping:
            self._turn(None)

    def _turn(self, timeout: float | None) -> None:
        super()._turn(self._events.until_due(timeout))
        try:
            self._events.settle()
        except OutputError as error:
            self._fail(error)


if hasattr(os, "fork"):  # pragma: no branch - Windows has none
    __all__ += ["ForkServer"]

    class ForkServer(ServerMixin, socketserver.ForkingTCPServer):
        """A child process for each session, at most ``max_conns``, reaped by pid.

        The default of 200 holds at about 1 MB each. What a handler does to the server's state stays in its child.
        """

        forks = True
        default_max_conns = 200

        #: In a child, its own.
        _session: Session

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            """Take what ``ServerMixin`` takes."""
            self._children: dict[int, tuple[Child, Session]] = {}
            #: Sessions that are about to get a child: with their sockets and addresses, for the hooks.
            self._expecting: list[tuple[Session, Any, Any]] = []
            self._ends = Ends()
            self._in_child = False
            super().__init__(*args, **kwargs)
            _ = self.sink  # made before the first fork: children share its lock
            if self._ends.fileno() >= 0:  # pragma: no branch - not on Linux
                self._loop.waiter.watch(self._ends, self._reap)
            # Made once for all children, as all is that need not be made for each: to fork is to copy what one touches.
            self._child_handlers: dict[int, Any] = {
                int(signal.SIGTERM): self._end_own_input,
                int(signal.SIGALRM): self._cut_own,
                int(signal.SIGINT): ignore_signal,
            }

        @property
        def active(self) -> int:
            """How many sessions are open; in a child, its own."""
            return len(self.sessions) + len(self._children)

        def server_close(self) -> None:
            """Close the listeners and what the server holds, as in every mode."""
            super().server_close()
            if self._serving_thread is None:
                self._ends.close()

        def process_request(self, request: Any, client_address: Any) -> None:
            """Have a child run the session; it is forked when all clients who wait are accepted."""
            self._expecting.append((self.sessions[request], request, client_address))

        def _fork(self) -> None:
            """Fork a child for each session that expects one; all in a row, for what is touched between is copied."""
            while self._expecting:
                forked: list[Any] = []
                try:
                    born = partial(self._write_down, forked)
                    expecting = self._expecting[:]
                    fork_children(self._live_in_child, expecting, self._child_handlers, born, self._begin_in_child)
                except OSError:  # the system refuses one; what a signal handler raises goes on its way
                    _, request, client_address = self._expecting.pop(0)
                    self._end_badly(request, client_address)
                finally:
                    for request in forked:
                        self._leave_to_child(request)

        def _write_down(self, forked: list[Any], expecting: tuple[Session, Any, Any], child: Child) -> None:
            # All at once, where no signal can come between: a session counts once.
            session, request, _ = expecting
            self._expecting.remove(expecting)
            self._children[child.pid] = child, session
            self.sessions.pop(request, None)  # a hook may have closed it
            self._ends.watch(child)
            forked.append(request)

        def _leave_to_child(self, request: Any) -> None:
            try:
                self.close_request(request)
            except Exception:
                _log.exception(Event("error", ": a hook of the server failed"))
                request.close()

        def _begin_in_child(self, expecting: tuple[Session, Any, Any]) -> None:
            session, request, _ = expecting
            # Or a collection, which by the parent's counts may be due, would look at all there is, and so copy it.
            gc.freeze()
            # What was the parent's is left alone, not emptied: that would touch, and so copy, all that was in it.
            self._parents = self._children, self.sessions
            self._in_child, self._session, self._children, self.sessions = True, session, {}, {request: session}

        def _live_in_child(self, expecting: tuple[Session, Any, Any]) -> int:
            session, request, client_address = expecting
            if self._watched:
                session.tally.adopt()
            # An orphan that kept them would keep the port, and other clients would not read the end of their sessions.
            leave_listeners((self.socket, *self._more_listeners))
            if len(self._expecting) > 1:
                others = [other for _, other, _ in self._expecting if other is not request]
                leave_listeners([other for other in others if isinstance(other, socket.socket)])
            if self.options.session_timeout is not None:
                signal.setitimer(signal.ITIMER_REAL, self.options.session_timeout)
            self.run_session(request, client_address)
            if session.kept is not None:
                self._outlive(session)
            return 0

        def _outlive(self, session: Session) -> None:
            """Live on for the threads to which the handler has given its connection; a stop ends their input."""
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGTERM, lambda *_: end_kept_input(session))
            await_keepers(session)

        def _end_own_input(self, signum: int, frame: Any) -> None:
            self._end_input_of(self._session)

        def _cut_own(self, signum: int, frame: Any) -> None:
            self._session.cut(EndReason.SESSION_TIMEOUT)

        def _turn(self, timeout: float | None) -> None:
            if self._ends.polled:
                timeout = POLL_SECONDS if timeout is None else min(timeout, POLL_SECONDS)
            try:
                super()._turn(timeout)
            finally:
                self._fork()
            if self._ends.polled:
                self._reap()

        def _leave_listeners(self) -> None:
            try:
                super()._leave_listeners()
            finally:
                self._fork()

        def _reap(self) -> None:
            for child, status in self._ends.take():
                _, session = self._children.pop(child.pid)
                if self._stopping:
                    session.tally.end(EndReason.CUT.value)
                self._leave(session)
                if status < 0 and not self._stopping:
                    _log.error(session.event("error", f"child {child.pid} was ended by {signal.Signals(-status).name}"))
            if not self._stopping and (failure := self.sink.error):
                self._fail(failure)

        def _end_input(self) -> None:
            self._kill_children(signal.SIGTERM)

        def _cut(self) -> None:
            self._kill_children(signal.SIGKILL)

        def signal_sessions(self, signum: int) -> None:
            """Send a signal to the processes in which sessions run."""
            self._kill_children(signum)

        def _kill_children(self, signum: int) -> None:
            for child, _ in list(self._children.values()):
                child.kill(signum)

        def _inside_session(self) -> bool:
            return self._in_child
