"""Twisted's LineOnlyReceiver: ``reactor.py print|echo``."""

from __future__ import annotations

import importlib
import sys

from lines import ECHO, say_where

reactor = importlib.import_module("twisted.internet.reactor")
protocol = importlib.import_module("twisted.internet.protocol")
basic = importlib.import_module("twisted.protocols.basic")


class Session(basic.LineOnlyReceiver):  # type: ignore[misc, name-defined]
    """Prints lines, and replies them."""

    delimiter = b"\n"

    def lineReceived(self, line: bytes) -> None:  # its name is Twisted's
        """Print one."""
        if line.strip() in (b"", b"exit"):
            self.transport.loseConnection()
            return
        sys.stdout.buffer.write(line + b"\n")
        if ECHO:
            self.sendLine(line)


port = reactor.listenTCP(0, protocol.Factory.forProtocol(Session), backlog=4096, interface="127.0.0.1")
reactor.callWhenRunning(say_where, port.getHost().port, stops_by_itself=True)
reactor.run()
