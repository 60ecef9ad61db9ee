"""gevent's StreamServer: ``green.py print|echo``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from lines import ECHO, Lines, say_where


def serve(sock: Any, address: Any) -> None:
    """Print lines, and reply them."""
    lines = Lines()
    while not lines.ended and (data := sock.recv(65536)):
        whole = lines.feed(data)
        sys.stdout.buffer.write(whole)
        if ECHO:
            sock.sendall(whole)
    sock.close()


server = importlib.import_module("gevent.server").StreamServer(("127.0.0.1", 0), serve, backlog=4096)
server.start()
say_where(server.server_port)
server.serve_forever()
