"""What a word on the command line stands for: ``module:Class`` and the request handler class behind it."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import socketserver
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from .children import Child, fork_child
from .errors import ConfigError

__all__ = ["Handler", "check_handler", "load_handler"]

#: The longest wait (seconds) for a module to be imported, 23 days.
LONGEST_WAIT = 2e6

#: Exit status of the child that could not load the handler, and said why.
_WRONG = 2

#: What makes a handler: a request handler class, or anything that is called like one.
Handler = Callable[..., socketserver.BaseRequestHandler]


def load_handler(target: str) -> Handler:
    """Import ``module:Class``; raise ConfigError that says which part is wrong.

    What the module raises while it is imported counts as its fault, named in the error.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"--handler must be module:Class, not {target!r}")
    with suppress(ImportError):  # of its own last part, where this user cannot read the interpreter's library
        importlib.invalidate_caches()  # the module may have come since somebody looked
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # Python passes over a folder that it may not read: the module is just not there.
        closed = "" if os.access(".", os.R_OK | os.X_OK) else "; this user cannot read the current folder"
        raise ConfigError(f"--handler {target}: cannot import {module_name!r}: {error!r}{closed}") from error
    handler = getattr(module, name, None)
    if handler is None:
        raise ConfigError(f"--handler {target}: module {module_name!r} has no {name!r}")
    if not (inspect.isclass(handler) and issubclass(handler, socketserver.BaseRequestHandler)):
        raise ConfigError(f"--handler {target}: {name} is not a subclass of socketserver.BaseRequestHandler")
    return handler


def check_handler(target: str) -> None:
    """Raise what ``load_handler`` raises; it is called in a child, so that nothing of the module's stays here.

    What has been imported once cannot be imported anew: an extension module refuses, others hold on to what they had.
    """
    reader, writer = os.pipe()
    with open(reader, "rb") as said:
        try:
            child = fork_child(partial(_load_apart, target, writer), {signal.SIGINT: signal.SIG_DFL}, _written_down)
        finally:
            os.close(writer)
        status = child.wait(LONGEST_WAIT)
        if status == _WRONG:
            raise ConfigError(said.readline().decode())
    if status:
        raise ConfigError(f"--handler {target}: the process that imported it for a try ended with status {status}")


def _load_apart(target: str, writer: int) -> int:
    try:
        load_handler(target)
    except ConfigError as error:
        with open(writer, "wb") as out:
            out.write(str(error).encode("utf-8", "backslashreplace"))
        return _WRONG
    return 0


def _written_down(child: Child) -> None:
    """Do nothing: whoever forks it waits for it."""
