"""What the options name, made ready to run: a handler class, a server class, or the application of ``--wsgi``.

Each worker loads it for itself, anew after each reload; ``try_parts`` finds out before that whether it can.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import socketserver
import sys
from functools import partial

from .children import Child, fork_child
from .errors import ConfigError
from .targets import Parts, call_target, find_target, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .options import Options
    from .targets import Handler

__all__ = ["load_handler", "load_parts", "settle_mode", "try_parts"]

#: The longest wait (seconds) for a module to be imported, 23 days.
LONGEST_WAIT = 2e6

#: Exit status of the child that could not load what it was to try, and said why.
_WRONG = 2


def load_handler(target: str) -> Handler:
    """Return what ``--handler`` names, to be run: see ``find_target``, whose errors it raises, for what can be named.

    A request handler class, or a ``partial`` of one, is taken as it is, and so is a server class of ours with
    ``RequestHandlerClass`` on it. A function is called, without arguments, and has to return one of these.
    """
    found = find_target(target, "--handler")
    where, name = f"--handler {target}", target.partition(":")[2]
    if not isinstance(found, type) and not _is_handler(found) and callable(found):
        _check_factory(found, name, where, target)
        found, name = call_target(found, name, where), f"{name}()"
    if isinstance(found, type) and issubclass(found, socketserver.BaseServer):
        from .factory import (
            server_for,  # here and below: a request handler has time for it when clients can connect
        )

        try:
            server_for(found, None)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    elif not _is_handler(found):
        what = f"{found.__name__} is" if isinstance(found, type) else f"it is {kind_of(found)},"
        told = f"{what} not a subclass of socketserver.BaseRequestHandler"
        raise ConfigError(f"{where}: {name} is no request handler: {told}")
    handler: Handler = found
    return handler


def _is_handler(found: Any) -> bool:
    while isinstance(found, functools.partial):
        found = found.func
    return isinstance(found, type) and issubclass(found, socketserver.BaseRequestHandler)


def _check_factory(found: Any, name: str, where: str, target: str) -> None:
    """Raise ConfigError for a function that cannot be called without arguments."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # some of those in C do not tell
    try:
        signature.bind()
    except TypeError:
        hint = f"; a WSGI application is run by --wsgi {target}" if len(signature.parameters) == 2 else ""
        told = f"takes arguments, {signature}, which nobody has for it{hint}"
        raise ConfigError(f"{where}: {name} is no request handler, and {told}") from None


def load_parts(options: Options, parts: Parts) -> Parts:
    """Return ``parts`` with the handler that ``options`` name, where they have none; ConfigError if it is none."""
    if parts.handler is not None or not options.foreign:
        return parts
    if options.wsgi is None:
        return Parts(load_handler(options.handler), parts.attributes, parts.bases)
    from .wsgi import (  # here, for few servers need it
        ApplicationMixin,
        WSGIHandler,
        load_application,
    )

    attributes = {"application": load_application(options.wsgi), **parts.attributes}
    return Parts(WSGIHandler, attributes, (*parts.bases, ApplicationMixin))


def settle_mode(options: Options, parts: Parts) -> Options:
    """Return ``options`` with the mode of the server class, where the handler is one; ConfigError if they disagree."""
    handler = parts.handler
    if not (isinstance(handler, type) and issubclass(handler, socketserver.BaseServer)):
        if options.mode == "event" and handler is not None:  # the other modes serve whatever there is
            from .servers import EventServer

            EventServer.check_handler(handler)
        return options
    from .factory import mode_of, server_for

    return options.with_mode(mode_of(server_for(handler, options.mode)[0]))


def try_parts(options: Options, parts: Parts) -> Options:
    """Do what ``load_parts`` and ``settle_mode`` do in a child, so that nothing of the module's stays here.

    What has been imported once cannot be imported anew: an extension module refuses, others hold on to what they had.
    """
    reader, writer = os.pipe()
    with open(reader, "rb") as said:
        try:
            live = partial(_load_apart, options, parts, writer)
            child = fork_child(live, {signal.SIGINT: signal.SIG_DFL}, _written_down)
        finally:
            os.close(writer)
        status = child.wait(LONGEST_WAIT)
        if status == _WRONG:
            raise ConfigError(said.readline().decode())
        if status:
            what = f"--handler {options.handler}" if options.wsgi is None else f"--wsgi {options.wsgi}"
            raise ConfigError(f"{what}: the process that imported it for a try ended with status {status}")
        mode = said.readline().decode()
        return options.with_mode(mode) if mode else options


def _load_apart(options: Options, parts: Parts, writer: int) -> int:
    # A trial leaves nothing: bytecode of now would be taken for that of a source that is saved in the same second.
    sys.dont_write_bytecode = True
    try:
        told, status = settle_mode(options, load_parts(options, parts)).mode or "", 0
    except ConfigError as error:
        told, status = str(error), _WRONG
    with open(writer, "wb") as out:
        out.write(told.encode("utf-8", "backslashreplace"))
    return status


def _written_down(child: Child) -> None:
    """Do nothing: whoever forks it waits for it."""
