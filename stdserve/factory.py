"""Where the parts meet: a handler, a mode and options make a server."""

from __future__ import annotations

import socket
import socketserver
from collections.abc import Callable, Mapping, Sequence

from . import servers
from .errors import ConfigError
from .handlers import PrintHandler
from .listeners import close_listeners, open_listeners
from .mixin import ServerMixin
from .options import Options, make_options
from .servers import EventServer, SingleServer, ThreadServer
from .session_options import DEFAULT_MODE
from .sink import Sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .metrics import WorkerCounters
    from .targets import Handler, Parts

__all__ = ["MODES", "create_server", "create_server_of", "mode_of", "register_mode", "server_class", "server_for"]

#: The concurrency modes by the word that chooses them.
MODES: dict[str, type[ServerMixin]] = {"single": SingleServer, "thread": ThreadServer}
if hasattr(servers, "ForkServer"):  # pragma: no branch - Windows has no fork
    MODES["fork"] = servers.ForkServer
MODES["event"] = EventServer


def register_mode(mode: str, server: type[ServerMixin]) -> None:
    """Add a concurrency mode, or replace one; raise ConfigError if ``server`` is not a ServerMixin class."""
    if not (isinstance(server, type) and issubclass(server, ServerMixin)):
        raise ConfigError(f"mode {mode!r} needs a subclass of ServerMixin, not {server!r}")
    MODES[mode] = server


def server_class(mode: str | None) -> type[ServerMixin]:
    """Return the class for ``mode`` (None: "thread"); raise ConfigError that names the known modes."""
    try:
        return MODES[mode or DEFAULT_MODE]
    except KeyError:
        if mode == "fork":
            raise ConfigError("--mode fork needs os.fork, which this system does not have; try --mode thread") from None
        raise ConfigError(f"--mode must be one of {', '.join(MODES)}, not {mode!r}") from None


def mode_of(server: type[ServerMixin]) -> str:
    """Return the word of the mode that a server class is of; raise ConfigError if it is of none."""
    words = {composed: word for word, composed in reversed(MODES.items())}
    for ancestor in server.__mro__:
        if ancestor in words:
            return words[ancestor]
    raise ConfigError(f"{server.__name__} is of no mode: derive it from one of {_names()}")


def _names() -> str:
    return ", ".join(composed.__name__ for composed in MODES.values())


def server_for(
    handler: Handler, mode: str | None
) -> tuple[type[ServerMixin], Callable[..., socketserver.BaseRequestHandler]]:
    """Return the class that runs ``handler`` in ``mode``, and the handler.

    ``handler`` may be a server class of ours whose class attribute ``RequestHandlerClass`` is the handler; its mode
    is its own. Raises ConfigError for one that is not, has none, or is of another mode.
    """
    if not (isinstance(handler, type) and issubclass(handler, socketserver.BaseServer)):
        return server_class(mode), handler  # type: ignore[return-value] # it is called as what it is
    if not issubclass(handler, ServerMixin):
        raise ConfigError(
            f"{handler.__name__} is a server class, but none of stdserve's:"
            f" derive it from one of {_names()}, or run its request handler"
        )
    chosen = getattr(handler, "RequestHandlerClass", None)
    if chosen is None:
        raise ConfigError(f"{handler.__name__} has no request handler: let its RequestHandlerClass be one")
    if mode is not None and not issubclass(handler, server_class(mode)):
        own = mode_of(handler)
        raise ConfigError(f"--mode {mode} is not the mode of {handler.__name__}, which is {own}: leave --mode out")
    return handler, chosen


def create_server(
    handler: Handler = PrintHandler,
    mode: str | None = None,
    *,
    options: Options | None = None,
    listeners: Sequence[socket.socket] = (),
    sink: Sink | None = None,
    counters: WorkerCounters | None = None,
    attributes: Mapping[str, Any] | None = None,
    bases: Sequence[type] = (),
    **settings: Any,
) -> ServerMixin:
    """Return a server of ``mode`` ("thread" if nothing says otherwise) that runs ``handler``, listening already.

    ``handler`` is a request handler class, or a subclass of one of our server classes with ``RequestHandlerClass`` on
    it. ``attributes`` are set on the server object, for handlers that ask for them; ``bases`` are classes to stand in
    front of the server's (see ``composing``), such as ``SimpleXMLRPCDispatcher``.
    ``settings`` are fields of ``Options``, on top of ``options``. It opens the listeners that they name, or
    adopts ``listeners``; ``server_close`` closes them. Without ``sink``, what handlers print goes to standard output.
    Raises ConfigError for wrong settings, StartError if an address cannot be had.
    """
    if mode is not None:
        settings["mode"] = mode
    options = make_options(options, settings)
    composed, request_handler = server_for(handler, options.mode)
    if bases or composed.__module__ != servers.__name__:
        from .composing import compose  # here, for few servers need it

        composed = compose(composed, bases)
    options.load()
    opened = list(listeners) or open_listeners(
        options.addresses, unix_mode=options.unix_mode, reuse_port=options.reuse_port
    )
    try:
        server = composed(
            opened[0].getsockname(), request_handler, listeners=opened, options=options, sink=sink, counters=counters
        )
    except BaseException:
        close_listeners(opened)
        raise
    if attributes:
        from .composing import set_attributes

        try:
            set_attributes(server, attributes)
        except BaseException:
            server.server_close()
            raise
    return server


def create_server_of(parts: Parts | None, **settings: Any) -> ServerMixin:
    """Return what ``create_server`` does, of ``parts`` that are together already; None are the default's."""
    if parts is None:
        return create_server(**settings)
    handler = parts.handler or PrintHandler
    return create_server(handler, attributes=parts.attributes, bases=parts.bases, **settings)
