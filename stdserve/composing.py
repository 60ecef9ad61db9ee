"""Other people's classes in front of a server's, and their attributes on it.

Handlers ask their server for things: ``SimpleXMLRPCRequestHandler`` for the methods of a ``SimpleXMLRPCDispatcher``,
others for an ``application`` or a ``registry``. Here a server gets them, as ``socketserver`` users know it from
``class Server(Dispatcher, TCPServer)``, without that class.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from .errors import ConfigError
from .mixin import ServerMixin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["compose", "set_attributes"]

#: Attributes of a server that are its own; what a handler of others would find in their place is no better for it.
_OWN = frozenset(
    ("options", "max_conns", "sink", "listeners", "sessions", "begun", "failure", "counters", "waiter", "active")
)


class _Door:
    """Stands behind classes whose constructor takes nothing: a ``super().__init__()`` of theirs ends here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            super().__init__(*args, **kwargs)


def compose(server: type[ServerMixin], bases: Sequence[type] = ()) -> type[ServerMixin]:
    """Return ``server`` with ``bases`` in front of it, so that they may override its hooks; itself if nothing is new.

    A class whose ``__init__`` takes ``**kwargs`` has its part in the server's: it passes on what it is given. Any
    other is initialised before it, without arguments, as ``SimpleXMLRPCDispatcher`` can be; that also holds for what
    stands in front in a class of the user's that has no ``__init__`` itself. Raises ConfigError for classes that do
    not go together.
    """
    if bases:
        apart = [base for base in bases if not _passes_on(base)]
        passing = [base for base in bases if base not in apart]
        door = [_Door] if apart else []
        try:
            server = type(server.__name__, (*apart, *door, *passing, server), {"__module__": server.__module__})
        except TypeError as error:
            names = ", ".join(getattr(base, "__name__", repr(base)) for base in bases)
            raise ConfigError(f"bases {names} do not go with {server.__name__}: {error}") from None
    front = _front_of(server)
    apart = [cls for cls in front if not _passes_on(cls)]
    if not apart:
        return server
    last = front.index(apart[-1])
    for cls in front[:last]:
        if cls not in apart:
            raise ConfigError(
                f"{server.__name__}: {cls.__name__} would pass its arguments on to {apart[-1].__name__}, which takes"
                f" none: let it stand behind, or give {server.__name__} an __init__"
            )
    # Of classes that inherit from each other, the one in front answers for the rest.
    begun = [cls for at, cls in enumerate(apart) if not any(issubclass(other, cls) for other in apart[:at])]
    for cls in begun:
        _check_needs_nothing(cls)
    return _beginning_with(begun, apart[-1], server)


def _beginning_with(begun: Sequence[type], last: type, server: type[ServerMixin]) -> type[ServerMixin]:
    """Return ``server`` with an ``__init__`` that calls those of ``begun``, then the one that comes after ``last``."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for cls in begun:
            cls.__init__(self)  # type: ignore[misc] # it is known to take nothing
        super(last, self).__init__(*args, **kwargs)  # type: ignore[arg-type] # a class that stands in front

    names = {"__init__": __init__, "__module__": server.__module__, "__doc__": server.__doc__}
    return type(server.__name__, (server,), names)


def _front_of(server: type[ServerMixin]) -> list[type]:
    """Return the classes of others whose ``__init__`` would be called instead of the server's own."""
    made = [cls for cls in server.__mro__ if "__init__" in vars(cls) and cls is not _Door]
    own = next(at for at, cls in enumerate(made) if issubclass(cls, ServerMixin))
    return made[:own]


def _passes_on(cls: type) -> bool:
    """Tell whether a class has its part in a constructor that is not its own; one that has no ``__init__`` may."""
    if getattr(cls, "__init__", object.__init__) is object.__init__:
        return True
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc] # of this very class
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _check_needs_nothing(cls: type) -> None:
    try:
        inspect.signature(cls.__init__).bind(None)  # type: ignore[misc] # of this very class
    except TypeError as error:
        raise ConfigError(f"{cls.__name__} cannot be mixed in: its __init__ needs arguments ({error})") from None


def set_attributes(server: ServerMixin, attributes: Mapping[str, Any]) -> None:
    """Set ``attributes`` on ``server``, over those that its bases have; raise ConfigError for one that is its own."""
    for name, value in attributes.items():
        if name in _OWN or (name.startswith("_") and hasattr(ServerMixin, name)):
            raise ConfigError(f"attribute {name!r} is the server's own")
        setattr(server, name, value)
