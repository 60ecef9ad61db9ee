"""Running a server to its end: :func:`serve`. What listening needs is here; the rest comes when clients can connect."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from .addresses import format_peer
from .interrupts import hold_stops
from .listeners import BACKLOG, close_listeners, effective_backlog, open_listeners
from .logs import Event
from .options import Options, make_options
from .session_options import BUILT_IN_MODES, DEFAULT_MODE
from .sink import Sink, open_sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .observing import Observation
    from .privileges import Identity
    from .targets import Handler, Parts

__all__ = ["check", "serve", "umask_of"]

#: What the rest of a start and sessions import only if they need it.
_LATER = (
    *("datetime", "faulthandler", "hashlib", "json", "pkgutil", "random", "resource", "shlex", "struct"),
    *(".composing", ".descriptors", ".heartbeat", ".hints", ".loading", ".observing", ".proxy", ".running"),
    *(".supervisor", ".threads"),
)

_log = logging.getLogger("stdserve")


def serve(
    handler: Handler | None = None,
    options: Options | None = None,
    *,
    ready: Callable[[list[str]], None] | None = None,
    attributes: Mapping[str, Any] | None = None,
    bases: Sequence[type] = (),
    **settings: Any,
) -> None:
    """Serve until SIGTERM or SIGINT (each tells sessions to end, a second one cuts them), then return.

    ``handler``, ``attributes`` and ``bases`` are what ``create_server`` takes; without a handler, ``options.handler``
    is loaded. ``settings`` are fields of ``Options``, on top of ``options``. ``ready(addresses)`` is called once
    clients can connect, with the addresses as text. To be called in the main thread, before other threads run if the
    mode or workers fork. With ``options.user`` or ``group`` the process is somebody else from then on, and stays so.

    Raises ConfigError (wrong options or handler), StartError (an address, a file or a user cannot be had), OutputError
    (the output takes no more).
    """
    options = make_options(options, settings)
    identity = _load_files(options)
    parts = _parts(handler, attributes, bases)
    if identity is None:
        options, parts = _load_foreign(options, parts)
    with _claims(options):
        made = _files_to_make(options)
        sink = open_sink(options.output, format=options.format, raw=options.raw)
        try:
            with _listening(options) as (listeners, status):
                if identity is not None:
                    _become(identity, [*made, *_files_of([*listeners, *status])])
                    # With no more rights than it will have when workers are renewed.
                    options, parts = _load_foreign(options, parts)
                _run(partial(_announce, options, listeners, ready), parts, options, listeners, sink, status)
        finally:
            sink.close()


@contextmanager
def _listening(options: Options) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """Have the listeners for the length of the block, and those of the status server."""
    listeners = open_listeners(options.addresses, unix_mode=options.unix_mode, reuse_port=options.reuse_port)
    try:
        status = open_listeners(options.status_addresses, unix_mode=options.unix_mode) if options.status else []
        try:
            yield listeners, status
        finally:
            close_listeners(status)
    finally:
        close_listeners(listeners)


def check(options: Options) -> None:
    """Load all that ``serve`` would load, and open nothing; raise what it would raise for that."""
    _load_files(options)
    _load_foreign(options, None)


def _load_files(options: Options) -> Identity | None:
    """Read the files that are named, and look up who to become; None if that is who we are."""
    options.load()
    if options.user is None and options.group is None:
        return None
    from .privileges import find_identity

    return find_identity(options.user, options.group)


def _parts(handler: Handler | None, attributes: Mapping[str, Any] | None, bases: Sequence[type]) -> Parts | None:
    if handler is None and not attributes and not bases:
        return None
    from .targets import Parts  # here, for the command line has none

    return Parts(handler, attributes, bases)


def _load_foreign(options: Options, parts: Parts | None) -> tuple[Options, Parts | None]:
    """Load what may be wrong: a mode and a handler that are not ours; workers load the handler for themselves."""
    if options.mode is not None and options.mode not in BUILT_IN_MODES:
        from .factory import server_class

        server_class(options.mode)
    if parts is None and not options.foreign:
        return options, None
    from .loading import load_parts, settle_mode, try_parts
    from .targets import Parts

    parts = parts or Parts()
    if options.supervised and parts.handler is None:
        return try_parts(options, parts), parts  # each of them imports it for itself, anew after each reload
    parts = load_parts(options, parts)
    return settle_mode(options, parts), parts


@contextmanager
def umask_of(options: Options) -> Iterator[None]:
    """Have the umask of the options for the length of the block; for who opens files before ``serve`` does."""
    if options.umask is None:
        yield
        return
    from .privileges import masked

    with masked(options.umask):
        yield


@contextmanager
def _claims(options: Options) -> Iterator[None]:
    """Have the umask and the pid file of the options for the length of the block."""
    with umask_of(options):
        if options.pid is None:
            yield
            return
        from .pidfile import pid_file

        with pid_file(options.pid):
            yield


def _files_to_make(options: Options) -> list[str]:
    """Return the files that will be the server's own: an output that is yet to be made, the log."""
    new = [path for path in (options.output,) if path is not None and not os.path.lexists(path)]
    return new if options.log_file is None else [*new, options.log_file]


def _files_of(listeners: Sequence[socket.socket]) -> list[str]:
    paths = [getattr(listener, "path", None) for listener in listeners]
    return [path for path in paths if path is not None]


def _become(identity: Identity, made: Sequence[str]) -> None:
    from importlib import import_module

    # While it can be read: a Python under /root is closed to all others.
    for name in _LATER:
        import_module(name, __package__)
    from .privileges import become, give_files

    give_files(identity, made)
    become(identity)


def _run(
    announce: Callable[[], None],
    parts: Parts | None,
    options: Options,
    listeners: Sequence[socket.socket],
    sink: Sink,
    status: Sequence[socket.socket],
) -> None:
    if options.supervised:
        from .heartbeat import service_heartbeat
        from .running import run_workers

        heartbeat = service_heartbeat(listeners)
        run_workers(announce, parts, options, listeners, sink, heartbeat, _observe(options, listeners, status))
        return
    # Half of the start is still to be done; clients that come meanwhile wait in the backlog, and so does a stop.
    with hold_stops():
        announce()
        from .heartbeat import service_heartbeat
        from .running import run_alone

        run_alone(parts, options, listeners, sink, heartbeat=service_heartbeat(listeners))


def _observe(
    options: Options, listeners: Sequence[socket.socket], status: Sequence[socket.socket]
) -> Observation | None:
    if not status:
        return None
    from .observing import Observation  # here, for few servers are asked for numbers

    return Observation(options, status, listeners)


def _announce(options: Options, listeners: Sequence[socket.socket], ready: Callable[[list[str]], None] | None) -> None:
    addresses = [format_peer(listener.getsockname()) for listener in listeners]
    workers = f", {options.workers} worker{'s' * (options.workers > 1)}" if options.workers is not None else ""
    # The kernel's number, not the one asked for: clients beyond it are dropped, and nobody else tells.
    backlog = effective_backlog(BACKLOG)
    mode = options.mode or DEFAULT_MODE
    for address in addresses:
        text = f"on {address} (mode {mode}{workers}, backlog {backlog}, pid {os.getpid()})"
        told = {"address": address, "mode": mode, "workers": options.workers, "backlog": backlog}
        _log.info(Event("listening", text, data=told))
    if ready is not None:
        ready(addresses)
