"""Running a server to its end: :func:`serve` for programs, :func:`serving` for tests."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

from .addresses import format_peer
from .children import fork_child, ignore_signal
from .errors import OutputError, StartError, StdserveError
from .factory import Handler, create_server, load_handler, make_options, server_class
from .interrupts import StopNow
from .listeners import BACKLOG, close_listeners, effective_backlog, open_listeners
from .mixin import ServerMixin
from .options import Options
from .sink import Sink, open_sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Serving", "serve", "serving"]

_log = logging.getLogger("stdserve")

#: Statuses of a worker: stopped as asked, its output takes no more, it cannot start.
_STOPPED, _FAILED, _UNSTARTED = 0, 1, 3

#: Seconds that a thread which computes keeps the interpreter from the others, a tenth of Python's own figure: with 64
#: of them busy, a session that waits for its turn a dozen times is answered in a fraction of a second, not in five.
SWITCH_SECONDS = 0.0005

#: Seconds on top of the graceful timeout before a stop that its own loop cannot enforce is broken off.
_GRACE = 2.0


def serve(
    handler: Handler | None = None,
    options: Options | None = None,
    *,
    ready: Callable[[list[str]], None] | None = None,
    **settings: Any,
) -> None:
    """Serve until SIGTERM or SIGINT (each tells sessions to end, a second one cuts them), then return.

    ``handler`` is a request handler class; without one, ``options.handler`` is loaded. ``settings`` are fields of
    ``Options``, on top of ``options``. ``ready(addresses)`` is called once clients can connect, with the
    addresses as text. To be called in the main thread, before other threads run if the mode or workers fork.

    Raises ConfigError (wrong options or handler), StartError (an address or the output cannot be had), OutputError
    (the output takes no more).
    """
    options = make_options(options, settings)
    server_class(options.mode)
    handler = handler or load_handler(options.handler)
    sink = open_sink(options.output, format=options.format, raw=options.raw)
    try:
        listeners = open_listeners(options.addresses)
        try:
            run = _run_workers if options.workers > 1 else _run_alone
            run(partial(_announce, options, listeners, ready), handler, options, listeners, sink)
        finally:
            close_listeners(listeners)
    finally:
        sink.close()


class Serving:
    """A server that runs beside the test that wants it.

    ``addresses`` are its (host, port) pairs, ``address`` the first; ``server`` is the server object where it runs in
    this process, None where it runs in its own (mode fork, or workers).
    """

    def __init__(self, listeners: Sequence[socket.socket], server: ServerMixin | None) -> None:
        self.addresses: list[tuple[str, int]] = [listener.getsockname()[:2] for listener in listeners]
        self.server = server

    @property
    def address(self) -> tuple[str, int]:
        """The (host, port) to connect to."""
        return self.addresses[0]


@contextmanager
def serving(
    handler: Handler | None = None, mode: str | None = None, options: Options | None = None, **settings: Any
) -> Iterator[Serving]:
    """Run a server for the length of a ``with`` block, by default on a free port of 127.0.0.1; yield a Serving.

    Modes single and thread run in a thread of this process; mode fork and workers run in a process of their own,
    forked before any session begins. At the end of the block the server is stopped, its sessions are ended, and
    what failed in it is raised (OutputError, or StdserveError for a process that ended badly).
    """
    if mode is not None:
        settings["mode"] = mode
    if options is None:
        settings.setdefault("bind", "127.0.0.1:0")
    options = make_options(options, settings)
    server_class(options.mode)
    handler = handler or load_handler(options.handler)
    sink = open_sink(options.output, format=options.format, raw=options.raw)
    try:
        listeners = open_listeners(options.addresses)
        try:
            run = _apart if options.workers > 1 or server_class(options.mode).forks else _beside
            with run(handler, options, listeners, sink) as server:
                yield server
        finally:
            close_listeners(listeners)
    finally:
        sink.close()


@contextmanager
def _beside(handler: Handler, options: Options, listeners: Sequence[socket.socket], sink: Sink) -> Iterator[Serving]:
    server = create_server(handler, options=options, listeners=listeners, sink=sink)
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
        thread.join(options.graceful_timeout + _GRACE)
        server.server_close()
    if failures:
        raise failures[0]


@contextmanager
def _apart(handler: Handler, options: Options, listeners: Sequence[socket.socket], sink: Sink) -> Iterator[Serving]:
    run = _run_workers if options.workers > 1 else _run_alone
    live = partial(_status_of, run, handler, options, listeners, sink)
    child = fork_child(live, {signal.SIGINT: ignore_signal}, born=lambda child: None)
    server = Serving(listeners, None)
    close_listeners(listeners)
    try:
        yield server
    finally:
        child.kill(signal.SIGTERM)
        status = child.wait(options.graceful_timeout + 2 * _GRACE)
        if status is None:
            child.kill(signal.SIGKILL)
            status = child.wait(_GRACE)
    if error := sink.error:
        raise error
    if status:
        raise StdserveError(f"the server's process ended with status {status}")


def _run_alone(
    ready: Callable[[], None],
    handler: Handler,
    options: Options,
    listeners: Sequence[socket.socket],
    sink: Sink,
    stop_signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
) -> None:
    server = create_server(handler, options=options, listeners=listeners, sink=sink)
    server.close_on_stop = True
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with _signals_stop(server, stop_signals):
            ready()
            server.serve_forever()
    finally:
        sys.setswitchinterval(before)
        server.server_close()


def _run_workers(
    ready: Callable[[], None], handler: Handler, options: Options, listeners: Sequence[socket.socket], sink: Sink
) -> None:
    from .supervisor import (
        Supervisor,  # here, for the sake of a quick start without workers
    )

    supervisor = Supervisor(
        # A worker leaves SIGINT alone: Ctrl-C reaches it too, and would be the first of two signals to stop.
        partial(_status_of, _run_alone, handler, options, listeners, sink, (signal.SIGTERM,)),
        options.workers,
        fatal=(_FAILED, _UNSTARTED),
        patience=options.graceful_timeout + _GRACE,
        stopping=partial(close_listeners, listeners),
    )
    status = supervisor.run(ready)
    if error := sink.error:
        raise error
    if status:
        raise StartError("a worker could not start")


def _status_of(run: Callable[..., None], *arguments: Any) -> int:
    """Run a server in a process of its own and return the status it ends with."""
    try:
        run(_no_one, *arguments)
    except OutputError:
        return _FAILED  # the sink, which the processes share, tells the parent why
    except StdserveError as error:
        _log.error("error %s", error)
        return _UNSTARTED
    return _STOPPED


@contextmanager
def _signals_stop(server: ServerMixin, stop_signals: Sequence[int]) -> Iterator[None]:
    """Let signals stop ``server``: the first asks, the second and the alarm after the deadline insist."""
    asked = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise StopNow
        asked = True
        server.request_stop()
        # A handler that keeps the main thread (mode single) keeps the accept loop from seeing the deadline.
        if hasattr(signal, "setitimer"):  # pragma: no branch - Windows has no alarm
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, server.options.graceful_timeout + _GRACE)

    before = {number: signal.signal(number, stop) for number in stop_signals}
    try:
        with _signals_wake(server, stop_signals):
            yield
    except StopNow:
        pass  # it came when the server had stopped already
    finally:
        if asked and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_wake(server: ServerMixin, stop_signals: Sequence[int]) -> Iterator[None]:
    """Let no signal be slept through: one that comes just before a wait is otherwise noticed after it only.

    The accept loop has a descriptor for that. Where sessions keep the main thread, another thread listens in its
    place and ends their input, so that the main thread gets to run the signal's handler.
    """
    if not server.inline:
        before = signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while came := reader.recv(1):
            if came[0] in stop_signals:
                server.request_stop()

    listener = threading.Thread(target=listen, name="stdserve signals", daemon=True)
    with reader:
        listener.start()
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.close()
            listener.join()


def _announce(options: Options, listeners: Sequence[socket.socket], ready: Callable[[list[str]], None] | None) -> None:
    addresses = [format_peer(listener.getsockname()) for listener in listeners]
    workers = f", {options.workers} workers" if options.workers > 1 else ""
    # The kernel's number, not the one asked for: clients beyond it are dropped, and nobody else tells.
    backlog = effective_backlog(BACKLOG)
    for address in addresses:
        _log.info(
            "listening on %s (mode %s%s, backlog %d, pid %d)", address, options.mode, workers, backlog, os.getpid()
        )
    if ready is not None:
        ready(addresses)


def _no_one() -> None:
    """Tell nobody: the parent has said that clients can connect."""
