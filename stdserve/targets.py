"""What a word on the command line stands for: ``module:name``, ``module:Outer.Inner``, ``module:make()``.

What is found there is anything; ``loading`` says whether it can be run.
"""

from __future__ import annotations

import importlib
import os
import socketserver
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Handler", "Parts", "call_target", "find_target", "kind_of"]

#: What can be run: a request handler class, anything that is called like one, or a server class that names its own.
Handler = Callable[..., socketserver.BaseRequestHandler] | type[socketserver.BaseServer]


class Parts:
    """What a server is composed of besides its options, which name its handler where ``handler`` is None.

    ``attributes`` are set on the server object, ``bases`` stand in front of its class.
    """

    def __init__(
        self,
        handler: Handler | None = None,
        attributes: Mapping[str, Any] | None = None,
        bases: Sequence[type] = (),
    ) -> None:
        self.handler = handler
        self.attributes = dict(attributes or {})
        self.bases = tuple(bases)


def find_target(target: str, flag: str, form: str = "module:Class") -> Any:
    """Import ``module:name`` and return what the name stands for, or what its call returns if ``()`` follows it.

    Raises ConfigError that says which part is wrong, and what is near it; ``flag`` and ``form`` are how to put it. What
    the module raises while it is imported, or the call, counts as their fault and is told.
    """
    module_name, colon, path = target.partition(":")
    names = path.removesuffix("()").split(".")
    if not (module_name and colon and all(name.isidentifier() for name in names)):
        bare = colon and path.endswith(")") and not path.endswith("()")
        raise ConfigError(f"{flag} must be {form}, not {target!r}" + ("; a call takes no arguments here" * bool(bare)))
    where = f"{flag} {target}"
    found = _import(module_name, where)
    owner = f"module {module_name!r}"
    for name in names:
        found = _attribute(found, name, owner, where)
        owner = name if owner.startswith("module ") else f"{owner}.{name}"
    return call_target(found, owner, where) if path.endswith("()") else found


def call_target(found: Any, name: str, where: str) -> Any:
    """Return what ``found()`` returns; raise ConfigError with what it raises."""
    if not callable(found):
        raise ConfigError(f"{where}: {name} cannot be called: it is {kind_of(found)}")
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {name}() raised {error!r}") from error


def kind_of(found: object) -> str:
    """Name what something is, for messages."""
    if found is None:
        return "None"
    return f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"


def _import(name: str, where: str) -> Any:
    with suppress(ImportError):  # of its own last part, where this user cannot read the interpreter's library
        importlib.invalidate_caches()  # the module may have come since somebody looked
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        # Python passes over a folder that it may not read: the module is just not there.
        closed = "" if os.access(".", os.R_OK | os.X_OK) else "; this user cannot read the current folder"
        near = closed or _near_module(name, error)
        raise ConfigError(f"{where}: cannot import {name!r}: {error!r}{near}") from error


def _near_module(name: str, error: BaseException) -> str:
    """Propose another module, where there is none of that name or none that a part of it names."""
    missing = isinstance(error, ModuleNotFoundError) and error.name or ""
    if not missing or not f"{name}.".startswith(f"{missing}."):
        return ""  # it is a module that this one imports
    import pkgutil  # here, as difflib: what goes well needs neither

    package, _, last = missing.rpartition(".")
    path = getattr(sys.modules.get(package), "__path__", ()) if package else None
    names = {found.name for found in pkgutil.iter_modules(path)} | (set() if package else sys.stdlib_module_names)
    before, rest = f"{package}." if package else "", name[len(missing) :]
    return _did_you_mean(last, sorted(names), f"'{before}{{}}{rest}'")


def _attribute(owner: Any, name: str, owner_name: str, where: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        near = _did_you_mean(name, [near for near in dir(owner) if not near.startswith("_")], "{!r}")
        raise ConfigError(f"{where}: {owner_name} has no {name!r}{near}") from None
    except Exception as error:  # a module or a property that makes its attributes as they are asked for
        raise ConfigError(f"{where}: {owner_name} has no {name!r}: {error!r}") from error


def _did_you_mean(word: str, names: Iterable[str], form: str) -> str:
    from .settings import (
        did_you_mean,  # here, for what goes well needs no settings file
    )

    return did_you_mean(word, names, form)
