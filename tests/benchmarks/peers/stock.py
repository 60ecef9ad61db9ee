"""The standard library's socketserver: ``stock.py print|echo TCPServer|ThreadingTCPServer|ForkingTCPServer``.

As its documentation shows it, but for the backlog (5) and the number of children (40), which are raised.
"""

from __future__ import annotations

import socketserver
import sys

from lines import ECHO, say_where


class Handler(socketserver.StreamRequestHandler):
    """Prints lines, and replies them."""

    def handle(self) -> None:
        """Go on until a blank line, "exit" or EOF."""
        for line in self.rfile:
            if line.strip() in (b"", b"exit"):
                break
            sys.stdout.buffer.write(line)
            if ECHO:
                self.wfile.write(line)
        sys.stdout.flush()  # a child of ForkingTCPServer ends by os._exit


Server = getattr(socketserver, sys.argv[2])
Server.request_queue_size = 4096
Server.max_children = 1000
Server.daemon_threads = True
Server.allow_reuse_address = True

with Server(("127.0.0.1", 0), Handler) as server:
    say_where(server.server_address[1])
    server.serve_forever()
