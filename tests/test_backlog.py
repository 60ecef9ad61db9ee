"""The kernel's figures about a listener's queue, with real clients in it."""

from __future__ import annotations

import socket
import sys

import pytest
from processes import eventually

from stdserve.addresses import format_peer
from stdserve.backlog import Backlog, read_backlog

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the figures are Linux's")


def test_clients_that_wait_are_counted_and_those_turned_away() -> None:
    """A backlog of 2 holds 3 clients (listen(2) counts so on Linux); what comes then is dropped and tries again."""
    with socket.create_server(("127.0.0.1", 0), backlog=2) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        assert Backlog(format_peer(listener.getsockname()), waiting=3, limit=2, drops=0) == read_backlog(listener)
        with socket.socket() as late:
            late.setblocking(False)
            late.connect_ex(listener.getsockname())
            eventually(lambda: (read_backlog(listener) or Backlog("", 0, 0, 0)).drops > 0)
        for client in clients:
            listener.accept()[0].close()
            client.close()
        told = read_backlog(listener)
        assert told is not None
        assert 0 == told.waiting


def test_where_there_are_no_figures_none_are_told() -> None:
    """A UNIX listener, a closed one."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # Linux finds an abstract address
        listener.listen()
        assert None is read_backlog(listener)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pass
    assert None is read_backlog(listener)
