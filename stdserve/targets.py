"""What a word on the command line stands for: ``module:Class`` and the request handler class behind it."""

from __future__ import annotations

import importlib
import inspect
import os
import socketserver
from collections.abc import Callable

from .errors import ConfigError

__all__ = ["Handler", "load_handler"]

#: What makes a handler: a request handler class, or anything that is called like one.
Handler = Callable[..., socketserver.BaseRequestHandler]


def load_handler(target: str) -> Handler:
    """Import ``module:Class``; raise ConfigError that says which part is wrong.

    What the module raises while it is imported counts as its fault, named in the error.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"--handler must be module:Class, not {target!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Python passes over a folder that it may not read: the module is just not there.
        closed = "" if os.access(".", os.R_OK | os.X_OK) else "; this user cannot read the current folder"
        raise ConfigError(f"--handler {target}: cannot import {module_name!r}: {error!r}{closed}") from error
    handler = getattr(module, name, None)
    if handler is None:
        raise ConfigError(f"--handler {target}: module {module_name!r} has no {name!r}")
    if not (inspect.isclass(handler) and issubclass(handler, socketserver.BaseRequestHandler)):
        raise ConfigError(f"--handler {target}: {name} is not a subclass of socketserver.BaseRequestHandler")
    return handler
