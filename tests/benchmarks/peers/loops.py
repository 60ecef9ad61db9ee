"""asyncio, with its own loop or another one: ``loops.py print|echo asyncio|uvloop``."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import cast

from lines import ECHO, Lines, say_where


class Session(asyncio.Protocol):
    """Prints lines, and replies them."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport, self.lines = cast(asyncio.Transport, transport), Lines()

    def data_received(self, data: bytes) -> None:
        """Print what is whole."""
        lines = self.lines.feed(data)
        sys.stdout.buffer.write(lines)
        if ECHO:
            self.transport.write(lines)
        if self.lines.ended:
            self.transport.close()


async def serve() -> None:
    """Serve until the process ends."""
    server = await asyncio.get_running_loop().create_server(Session, "127.0.0.1", 0, backlog=4096)
    say_where(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if sys.argv[2] == "uvloop":
    importlib.import_module("uvloop").run(serve())
else:
    asyncio.run(serve())
