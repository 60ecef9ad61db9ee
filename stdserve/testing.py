"""A running server for the length of a test: :func:`serving`."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from .children import fork_child, ignore_signal
from .errors import OutputError, StdserveError
from .factory import create_server_of, server_class
from .listeners import address_of, close_listeners, leave_listeners, open_listeners
from .loading import load_parts, settle_mode
from .mixin import ServerMixin
from .options import Options, make_options
from .running import GRACE, run_alone, run_workers, status_of
from .sink import Sink, open_sink
from .targets import Handler, Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Serving", "serving"]


class Serving:
    """A server that runs beside the test that wants it.

    ``addresses`` are its (host, port) pairs, for a UNIX socket the text ``unix:PATH``, ``address`` the first, all as
    ``Client`` takes them; ``server`` is the server object where it runs in this process, None where it runs in its
    own (mode fork, workers, or with ``status``). ``status`` are the addresses at which it tells how it is.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], server: ServerMixin | None, status: Sequence[socket.socket] = ()
    ) -> None:
        self.addresses: list[tuple[str, int] | str] = [address_of(listener) for listener in listeners]
        self.status: list[tuple[str, int] | str] = [address_of(listener) for listener in status]
        self.server = server

    @property
    def address(self) -> tuple[str, int] | str:
        """The (host, port), or ``unix:PATH``, to connect to."""
        return self.addresses[0]


@contextmanager
def serving(
    handler: Handler | None = None,
    mode: str | None = None,
    options: Options | None = None,
    *,
    attributes: Mapping[str, Any] | None = None,
    bases: Sequence[type] = (),
    **settings: Any,
) -> Iterator[Serving]:
    """Run a server for the length of a ``with`` block, by default on a free port of 127.0.0.1; yield a Serving.

    Modes single and thread run in a thread of this process; mode fork and workers run in a process of their own,
    forked before any session begins. ``attributes`` and ``bases`` are as for ``create_server``. At the end of the
    block the server is stopped, its sessions are ended, and what failed in it is raised (OutputError, or StdserveError
    for a process that ended badly).
    """
    if mode is not None:
        settings["mode"] = mode
    if options is None:
        settings.setdefault("bind", "127.0.0.1:0")
    options = make_options(options, settings)
    server_class(options.mode)
    parts = load_parts(options, Parts(handler, attributes, bases))
    options = settle_mode(options, parts)
    sink = open_sink(options.output, format=options.format, raw=options.raw)
    try:
        with ExitStack() as stack:
            listeners = open_listeners(options.addresses, unix_mode=options.unix_mode, reuse_port=options.reuse_port)
            stack.callback(close_listeners, listeners)
            status = open_listeners(options.status_addresses, unix_mode=options.unix_mode) if options.status else []
            stack.callback(close_listeners, status)
            if options.supervised or server_class(options.mode).forks:
                yield stack.enter_context(_apart(parts, options, listeners, sink, status))
            else:
                yield stack.enter_context(_beside(parts, options, listeners, sink))
    finally:
        sink.close()


@contextmanager
def _beside(parts: Parts, options: Options, listeners: Sequence[socket.socket], sink: Sink) -> Iterator[Serving]:
    server = create_server_of(parts, options=options, listeners=listeners, sink=sink)
    failures: list[OutputError] = []

    def run() -> None:
        try:
            server.serve_forever()
        except OutputError as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="stdserve", daemon=True)
    thread.start()
    try:
        yield Serving(listeners, server)
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
    told: Sequence[socket.socket],
) -> Iterator[Serving]:
    observation = None
    if told:
        from .observing import Observation  # here, for few tests want it

        observation = Observation(options, told, listeners)
    run = partial(run_workers, _no_one, observation=observation) if options.supervised else run_alone
    live = partial(status_of, run, parts, options, listeners, sink)
    child = fork_child(live, {signal.SIGINT: ignore_signal}, born=lambda child: None)
    server = Serving(listeners, None, told)
    leave_listeners([*listeners, *told])
    try:
        yield server
    finally:
        child.kill(signal.SIGTERM)
        status = child.wait(options.graceful_timeout + 2 * GRACE)
        if status is None:
            child.kill(signal.SIGKILL)
            status = child.wait(GRACE)
    if error := sink.error:
        raise error
    if status:
        raise StdserveError(f"the server's process ended with status {status}")


def _no_one() -> None:
    """Tell nobody: whoever asked for the server knows that clients can connect."""
