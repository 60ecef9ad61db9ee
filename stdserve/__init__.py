"""stdserve runs any ``socketserver`` request handler in production, and has a print/exit line protocol of its own.

::

    from stdserve import LineHandler, serve

    class Upper(LineHandler):
        def line_received(self, line):
            return line.upper()

    serve(Upper)

Names are imported from their modules when they are first used, so that ``python -m stdserve`` starts at once.
"""

from __future__ import annotations

from .version import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .connection import Client
    from .errors import (
        ConfigError,
        ConnectError,
        OutputError,
        SendError,
        SessionError,
        StartError,
        StdserveError,
    )
    from .factory import MODES, create_server, register_mode
    from .handlers import ChunkHandler, EchoHandler, LineHandler, PrintHandler
    from .mixin import ServerMixin
    from .options import Options
    from .protocol import Chunk, EndReason, Lines
    from .runner import serve
    from .servers import EventServer, ForkServer, SingleServer, ThreadServer
    from .sessions import Peer
    from .testing import serving

__all__ = [
    "MODES",
    "Chunk",
    "ChunkHandler",
    "Client",
    "ConfigError",
    "ConnectError",
    "EchoHandler",
    "EndReason",
    "EventServer",
    "ForkServer",
    "LineHandler",
    "Lines",
    "Options",
    "OutputError",
    "Peer",
    "PrintHandler",
    "SendError",
    "ServerMixin",
    "SessionError",
    "SingleServer",
    "StartError",
    "StdserveError",
    "ThreadServer",
    "create_server",
    "register_mode",
    "serve",
    "serving",
]

_HOMES = {
    "connection": ("Client",),
    "errors": (
        "ConfigError",
        "ConnectError",
        "OutputError",
        "SendError",
        "SessionError",
        "StartError",
        "StdserveError",
    ),
    "factory": ("MODES", "create_server", "register_mode"),
    "handlers": ("ChunkHandler", "EchoHandler", "LineHandler", "PrintHandler"),
    "mixin": ("ServerMixin",),
    "options": ("Options",),
    "protocol": ("Chunk", "EndReason", "Lines"),
    "runner": ("serve",),
    "servers": ("EventServer", "ForkServer", "SingleServer", "ThreadServer"),
    "sessions": ("Peer",),
    "testing": ("serving",),
}


def __getattr__(name: str) -> object:
    """Import a public name from its module (PEP 562)."""
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
