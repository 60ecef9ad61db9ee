"""The life of a session, from accept to close: told once, for all modes."""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
from functools import partial
from threading import get_ident

from .accepting import AcceptLoop
from .access import Admission
from .addresses import format_peer
from .blame import reason_for, refusal_for
from .errors import OutputError, PeerError
from .interrupts import breaks_off
from .logs import Event
from .options import Options
from .preamble import Preamble
from .protocol import EndReason
from .sessions import Session, end_output, linger
from .steps import run
from .streams import SessionSocket
from .tally import Counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .metrics import WorkerCounters
    from .steps import SomeSteps, Steps

__all__ = ["LifeMixin"]

_log = logging.getLogger("stdserve")


class LifeMixin(socketserver.BaseServer):
    """The part of ``ServerMixin`` that takes a session from accept to close.

    Methods that may be overridden: ``finish_request``, ``shutdown_request``, ``close_request``, ``handle_error``.
    """

    #: Whether sessions can only be taken step by step.
    in_steps = False

    max_conns: int
    options: Options
    sessions: dict[Any, Session]
    counters: Counters | WorkerCounters
    _admission: Admission
    _preamble: Preamble
    _loop: AcceptLoop
    _accepts_left: int | None
    _serving_thread: int | None

    if TYPE_CHECKING:  # what the server has besides

        @property
        def active(self) -> int:
            """How many sessions are open."""

        @property
        def _stopping(self) -> bool: ...

        def _fail(self, error: OutputError) -> None: ...

    def run_session(self, request: socket.socket, client_address: Any) -> None:
        """Run the preamble and the handler, close the connection; whatever a hook or a handler raises ends here."""
        run(self._life(request, client_address))

    def _life(self, request: socket.socket, client_address: Any) -> Steps[None]:
        """Tell the life of a session from accept to close."""
        session = self.sessions.get(request)
        try:
            if session is not None:
                if self._preamble:
                    yield from self._open(session)
                    request, client_address = session.request, session.client_address
                self._begin(session)
            yield from self.handler_steps(request, client_address)
            if session is not None:
                request = session.request  # another one if the handler keeps its own
            yield from self._shut(request)
        except BaseException as error:
            if session is not None:
                request, client_address = session.request, session.client_address
            if breaks_off(error) or isinstance(error, GeneratorExit):
                request.close()
                raise
            yield from self._shut_badly(request, client_address)
        finally:
            self._forget(request)

    def _open(self, session: Session) -> Steps[None]:
        """Take a session through the preamble; its socket and address may be others then."""
        accepted = session.request
        try:
            yield from self._preamble.steps(session)
        finally:
            if session.request is not accepted:
                self.sessions[session.request] = session
                del self.sessions[accepted]

    def _begin(self, session: Session) -> None:
        session.open()
        if _log.isEnabledFor(session.level):
            told = {"tls": session.tls, "subject": session.subject}
            _log.log(session.level, session.event("open", **{name: text for name, text in told.items() if text}))

    def handler_steps(self, request: socket.socket, client_address: Any) -> SomeSteps:
        """Run the handler; a ``LineHandler`` in steps, unless somebody's ``finish_request`` is to run it whole."""
        session = self.sessions.get(request)
        if session is None:
            self.finish_request(request, client_address)
            return ()
        session.adopts = self.in_steps or getattr(self.finish_request, "__func__", None) is LifeMixin.finish_request
        self.finish_request(request, client_address)
        return session.adopted_steps()

    def _end_badly(self, request: Any, client_address: Any) -> None:
        run(self._shut_badly(request, client_address))

    def _shut_badly(self, request: Any, client_address: Any) -> Steps[None]:
        """Report the exception being handled and close the connection, even if the hooks for that raise too."""
        try:
            try:
                self.handle_error(request, client_address)
            except BaseException as error:
                self._excuse(error, client_address)
            try:
                yield from self._shut(request)
            except BaseException as error:
                self._excuse(error, client_address)
        finally:
            request.close()
            self._forget(request)

    def _excuse(self, error: BaseException, client_address: Any) -> None:
        if breaks_off(error):
            raise error
        _log.exception(Event("error", ": a hook of the server failed", peer=format_peer(client_address)))

    def _shut(self, request: Any) -> SomeSteps:
        """Call the hook ``shutdown_request``; in steps, where it is our own."""
        if getattr(self.shutdown_request, "__func__", None) is LifeMixin.shutdown_request:
            return self._shutting(request)
        session = self.sessions.get(request)
        if session is None or not self.in_steps:
            self.shutdown_request(request)
            return ()
        session.adopts = True
        self.shutdown_request(request)
        return session.adopted_steps()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Run the handler, with the idle timeout on its socket (the handler's own ``timeout`` takes its place).

        In mode event it is made here, and runs later.
        """
        if self.options.idle_timeout is not None:
            request.settimeout(self.options.idle_timeout)
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Finish sending, discard what the peer still sends (bounded), close, and let go of the session.

        In mode event all that may have to wait is done later.
        """
        session = self.sessions.get(request)
        steps = self._shutting(request)
        if steps and session is not None and session.adopts:
            session.adopts, session.adopted = False, lambda: steps
        elif steps:
            run(steps)

    def _shutting(self, request: Any) -> SomeSteps:
        session = self.sessions.get(request)
        if session is not None and session.at_end and not session.tls:
            # To close is enough where nothing can come any more; but TLS has a last word.
            self.close_request(request)
            return ()
        return self._parting(request, session is not None and session.opened)

    def _parting(self, request: Any, lingers: bool) -> Steps[None]:
        patience = self.options.linger_timeout
        if (yield from end_output(request, patience)) and lingers:
            yield from linger(request, patience)
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        """Close the connection, also where a handler left files open that would keep it; let go of the session.

        The standard library's ``ForkingMixIn`` in front of ours does no more than this in the parent.
        """
        (request.close_now if isinstance(request, SessionSocket) else request.close)()
        self._forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception that is being handled: a peer that went away at debug level, a bug with its traceback.

        An output that takes no more stops the server.
        """
        error = sys.exc_info()[1]
        reason = reason_for(error)
        session = self.sessions.get(request)
        event = partial(Event, peer=format_peer(client_address)) if session is None else session.event
        if session is not None:
            session.reason = reason
            session.refusal = refusal_for(error)
        if isinstance(error, OutputError):
            self._fail(error)
        elif isinstance(error, PeerError):
            cut = session and session.cut_for
            _log.info(event("reject", f": {error}", reason=cut.value if cut else error.reason))
        elif reason is not EndReason.ERROR:
            _log.debug(event("error", f": {error}"))
        else:
            _log.error(event("error", f": {error!r}"), exc_info=True)

    def _forget(self, request: Any) -> None:
        full = self.active >= self.max_conns  # before: of two that leave at once, one finds that there was no room
        session = self.sessions.pop(request, None)
        if session is None:
            return
        reason = session.end()
        if session.opened and _log.isEnabledFor(session.level):
            _log.log(
                session.level,
                session.event(
                    "close",
                    reason=reason,
                    lines=session.lines,
                    bytes=session.received,
                    seconds=f"{session.seconds:.3f}",
                ),
            )
        self._leave(session)
        if (full or self._stopping or self._accepts_left == 0) and get_ident() != self._serving_thread:
            self._loop.waiter.wake()

    def _leave(self, session: Session) -> None:
        """Let others have what the session had."""
        self._admission.leave(session)
        self.counters.give_back(session.tally)  # type: ignore[arg-type] # what its own ``take`` has returned
