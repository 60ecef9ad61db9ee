"""Where the parts meet: a handler, a mode and options make a server."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from . import servers
from .errors import ConfigError
from .handlers import PrintHandler
from .listeners import close_listeners, open_listeners
from .mixin import ServerMixin
from .options import Options, make_options
from .servers import SingleServer, ThreadServer
from .sink import Sink
from .targets import Handler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .metrics import WorkerCounters

__all__ = ["MODES", "create_server", "register_mode", "server_class"]

#: The concurrency modes by the word that chooses them.
MODES: dict[str, type[ServerMixin]] = {"single": SingleServer, "thread": ThreadServer}
if hasattr(servers, "ForkServer"):  # pragma: no branch - Windows has no fork
    MODES["fork"] = servers.ForkServer


def register_mode(mode: str, server: type[ServerMixin]) -> None:
    """Add a concurrency mode, or replace one; raise ConfigError if ``server`` is not a ServerMixin class."""
    if not (isinstance(server, type) and issubclass(server, ServerMixin)):
        raise ConfigError(f"mode {mode!r} needs a subclass of ServerMixin, not {server!r}")
    MODES[mode] = server


def server_class(mode: str) -> type[ServerMixin]:
    """Return the class for ``mode``; raise ConfigError that names the known modes."""
    try:
        return MODES[mode]
    except KeyError:
        if mode == "fork":
            raise ConfigError("--mode fork needs os.fork, which this system does not have; try --mode thread") from None
        raise ConfigError(f"--mode must be one of {', '.join(MODES)}, not {mode!r}") from None


def create_server(
    handler: Handler = PrintHandler,
    mode: str | None = None,
    *,
    options: Options | None = None,
    listeners: Sequence[socket.socket] = (),
    sink: Sink | None = None,
    counters: WorkerCounters | None = None,
    **settings: Any,
) -> ServerMixin:
    """Return a server of ``mode`` ("thread" if nothing says otherwise) that runs ``handler``, listening already.

    ``settings`` are fields of ``Options``, on top of ``options``. It opens the listeners that they name, or
    adopts ``listeners``; ``server_close`` closes them. Without ``sink``, what handlers print goes to standard output.
    Raises ConfigError for wrong settings, StartError if an address cannot be had.
    """
    if mode is not None:
        settings["mode"] = mode
    options = make_options(options, settings)
    composed = server_class(options.mode)
    options.load()
    opened = list(listeners) or open_listeners(
        options.addresses, unix_mode=options.unix_mode, reuse_port=options.reuse_port
    )
    try:
        return composed(
            opened[0].getsockname(), handler, listeners=opened, options=options, sink=sink, counters=counters
        )
    except BaseException:
        close_listeners(opened)
        raise
