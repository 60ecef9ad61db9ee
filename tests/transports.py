"""Servers reached in every way that there is: each mode, over TCP, TLS and a UNIX socket, by the clients of others."""

from __future__ import annotations

import http.client
import importlib
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from processes import connect

from stdserve import serving

MODES = ("single", "thread", "fork")  # those for handlers of others, which mode event refuses
TRANSPORTS = ("tcp", "tls", "unix")

every_mode = pytest.mark.parametrize("mode", MODES)
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


class Offer:
    """A server that runs, and how to reach it: ``connect`` gives a socket that is through all handshakes."""

    def __init__(self, address: Any, context: ssl.SSLContext | None) -> None:
        self.address = address
        self.context = context

    def connect(self) -> socket.socket:
        """Return a connection; its every wait has a deadline."""
        connection = connect(self.address)
        if self.context is None:
            return connection
        return self.context.wrap_socket(connection, server_hostname="localhost")

    def http(self) -> http.client.HTTPConnection:
        """Return the standard library's client."""
        return _Client(self)


class _Client(http.client.HTTPConnection):
    """It finds its way to the server, again after each reply that closes the connection."""

    def __init__(self, offer: Offer) -> None:
        super().__init__("localhost")
        self._offer = offer

    def connect(self) -> None:
        self.sock = self._offer.connect()


@contextmanager
def offered(handler: Any, mode: str, transport: str, authority: Authority, **settings: Any) -> Iterator[Offer]:
    """Run ``handler`` for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="stdserve-") as folder:
        context = None
        if transport == "tls":
            pair = authority.pair()
            settings |= {"tls_cert": pair.certfile, "tls_key": pair.keyfile}
            context = authority.client()
        elif transport == "unix":
            settings["bind"] = f"unix:{Path(folder, 'socket')}"
        with serving(handler, mode, **settings) as server:
            yield Offer(server.address, context)


def package(name: str) -> Any:
    """Import what others have written; skip where it is not installed, but fail in CI."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and this is CI")
        pytest.skip(f"{name} is not installed")
