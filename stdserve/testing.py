"""For tests of handlers: a server for the length of a ``with`` block, and the run of a handler without any.

The first is :func:`serving`, with clients that decide where their bytes are cut, the other :func:`run_handler`. Under
pytest, the fixture ``stdserve_server`` is ``serving`` for the length of a test.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from tempfile import TemporaryFile

from .children import fork_child, ignore_signal
from .errors import ConfigError, OutputError, StdserveError
from .factory import create_server_of, server_class
from .handler_run import HandlerRun, run_handler
from .heartbeat import Heartbeat
from .ledger import Ledger
from .listeners import address_of, close_listeners, leave_listeners, open_listeners
from .loading import load_parts, settle_mode
from .mixin import ServerMixin
from .options import Options, make_options
from .pieces import SplitClient, split
from .running import GRACE, run_alone, run_workers, status_of
from .sink import Sink, open_sink
from .targets import Handler, Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["HandlerRun", "Serving", "SplitClient", "run_handler", "serving", "split"]

#: Seconds that a client of a test waits for the server, unless told otherwise: no test hangs.
READ_SECONDS = 5.0

#: Seconds that sessions get to notice that their clients have gone, where the graceful timeout is not shorter.
GONE_SECONDS = 5.0


class Serving:
    """A server that runs beside the test that wants it.

    ``addresses`` are its (host, port) pairs, for a UNIX socket the text ``unix:PATH``, ``address`` the first, all as
    ``Client`` takes them; ``server`` is the server object where it runs in this process, None where it runs in its
    own (mode fork, workers, or with ``status``). ``status`` are the addresses at which it tells how it is.
    ``failures``, "raise" or "ignore", is what comes of sessions that fail; it may be set anew.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        server: ServerMixin | None,
        ledger: Ledger,
        status: Sequence[socket.socket] = (),
    ) -> None:
        self.addresses: list[tuple[str, int] | str] = [address_of(listener) for listener in listeners]
        self.status: list[tuple[str, int] | str] = [address_of(listener) for listener in status]
        self.server = server
        self.failures = "raise"
        self._ledger = ledger
        self._clients: list[SplitClient] = []

    @property
    def address(self) -> tuple[str, int] | str:
        """The (host, port), or ``unix:PATH``, to connect to."""
        return self.addresses[0]

    def client(self, **settings: Any) -> SplitClient:
        """Return a client that is connected to ``address``, and closed at the end of the block.

        ``settings`` are arguments of ``Client``: ``tls=context`` for a server that speaks TLS, ``read_timeout`` (5 s
        here), ``proxy_protocol``... Raises what ``Client`` does.
        """
        settings.setdefault("read_timeout", READ_SECONDS)
        client = SplitClient(self.address, **settings)
        self._clients.append(client)
        return client

    def check(self) -> None:
        """Raise SessionError if handlers have raised so far; each failure is told once, so not again at the end."""
        if self.failures == "raise":
            self._ledger.check()

    def close_clients(self) -> None:
        """Close all that ``client`` has returned, as the end of the block does."""
        for client in self._clients:
            client.close()


@contextmanager
def serving(
    handler: Handler | None = None,
    mode: str | None = None,
    options: Options | None = None,
    *,
    attributes: Mapping[str, Any] | None = None,
    bases: Sequence[type] = (),
    failures: str = "raise",
    **settings: Any,
) -> Iterator[Serving]:
    """Run a server for the length of a ``with`` block, by default on a free port of 127.0.0.1; yield a Serving.

    Modes single and thread run in a thread of this process; mode fork and workers run in a process of their own,
    forked before any session begins. ``attributes`` and ``bases`` are as for ``create_server``. At the end of the
    block the clients it gave are closed, the server is stopped, its sessions are ended, and what failed in it is raised
    (OutputError, or StdserveError for a process that ended badly).

    SessionError is raised there for a handler that has raised (with its traceback; in any mode, and not for what a peer
    has done), and for a session that has not ended by itself 5 seconds after its clients were closed, or after the
    graceful timeout where that is shorter; unless the block itself raises. ``failures="ignore"`` is for tests that
    mean such things to happen.
    """
    if failures not in ("raise", "ignore"):
        raise ConfigError(f"failures must be raise or ignore, not {failures!r}")
    if mode is not None:
        settings["mode"] = mode
    if options is None:
        settings.setdefault("bind", "127.0.0.1:0")
    options = make_options(options, settings)
    server_class(options.mode)
    parts = load_parts(options, Parts(handler, attributes, bases))
    options = settle_mode(options, parts)
    with ExitStack() as stack:
        sink = open_sink(options.output, format=options.format, raw=options.raw)
        stack.callback(sink.close)
        listeners = open_listeners(options.addresses, unix_mode=options.unix_mode, reuse_port=options.reuse_port)
        stack.callback(close_listeners, listeners)
        status = open_listeners(options.status_addresses, unix_mode=options.unix_mode) if options.status else []
        stack.callback(close_listeners, status)
        ledger = Ledger(stack.enter_context(TemporaryFile(buffering=0)))
        run = _apart if options.supervised or server_class(options.mode).forks else _beside
        running = run(parts, options, listeners, sink, ledger, status)
        yield stack.enter_context(_judged(running, ledger, failures, min(GONE_SECONDS, options.graceful_timeout)))


@contextmanager
def _judged(
    running: AbstractContextManager[Serving], ledger: Ledger, failures: str, patience: float
) -> Iterator[Serving]:
    """Have the server for the length of the block; at its end raise what has become of sessions."""
    overdue: dict[str, str] = {}
    with running as server:
        server.failures = failures
        try:
            yield server
        finally:
            server.close_clients()
        if server.failures == "raise":
            overdue = ledger.overdue(patience)
            if overdue and server.server is not None:
                server.server.request_stop(now=True)
    if server.failures == "raise":
        ledger.settle(overdue)


@contextmanager
def _beside(
    parts: Parts,
    options: Options,
    listeners: Sequence[socket.socket],
    sink: Sink,
    ledger: Ledger,
    told: Sequence[socket.socket],
) -> Iterator[Serving]:
    server = create_server_of(parts, options=options, listeners=listeners, sink=sink)
    ledger.follow(server)
    failures: list[OutputError] = []

    def run() -> None:
        try:
            server.serve_forever()
        except OutputError as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="stdserve", daemon=True)
    thread.start()
    try:
        yield Serving(listeners, server, ledger, told)
    finally:
        server.shutdown()
        thread.join(options.graceful_timeout + GRACE)
        server.server_close()
    if failures:
        raise failures[0]


@contextmanager
def _apart(
    parts: Parts,
    options: Options,
    listeners: Sequence[socket.socket],
    sink: Sink,
    ledger: Ledger,
    told: Sequence[socket.socket],
) -> Iterator[Serving]:
    observation = None
    if told:
        from .observing import Observation  # here, for few tests want it

        observation = Observation(options, told, listeners)
    run: Callable[..., None] = partial(run_alone, heartbeat=Heartbeat(ledger.tell_ready))
    if options.supervised:
        run = partial(run_workers, ledger.tell_ready, observation=observation)
    live = partial(status_of, partial(run, follow=ledger.follow), parts, options, listeners, sink)
    child = fork_child(live, {signal.SIGINT: ignore_signal}, born=lambda child: None)
    server = Serving(listeners, None, ledger, told)
    leave_listeners([*listeners, *told])
    try:
        yield server
    finally:
        ledger.await_ready(GRACE)  # before, a signal would be the end of it
        child.kill(signal.SIGTERM)
        status = child.wait(options.graceful_timeout + 2 * GRACE)
        if status is None:
            child.kill(signal.SIGKILL)
            status = child.wait(GRACE)
    if error := sink.error:
        raise error
    if status:
        raise StdserveError(f"the server's process ended with status {status}")
