"""The client for programs, against servers of a few lines."""

from __future__ import annotations

import contextlib
import inspect
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from peers import (
    behind_proxy,
    closed_port,
    die_at_the_end,
    echo,
    full_listener,
    listening,
    run,
    serving,
)
from processes import DEADLINE, read_all

from stdserve.addresses import parse_address
from stdserve.connection import Client
from stdserve.errors import (
    ConfigError,
    ConnectError,
    ConnectTimeout,
    SendError,
    SendTimeout,
)
from stdserve.proxy import ProxyHeader


def test_ask_and_receive_line_by_line() -> None:
    """A program asks, and reads further lines; CR LF and LF end one, and so does the server's end."""

    def answer(peer: socket.socket) -> None:
        with peer.makefile("rb") as lines:
            assert b"one\n" == lines.readline()
            peer.sendall(b"1\r\nmore\r\r\n\n\xff")
            assert b"two\n" == lines.readline()

    with serving(answer) as address, Client(address, read_timeout=DEADLINE) as client:
        assert "1" == client.ask("one")
        assert "more\r" == client.receive_line()
        assert "" == client.receive_line()
        client.send(b"two\n")
        assert "\udcff" == client.receive_line()
        with pytest.raises(SendError, match="^send data error: the server ended the session$"):
            client.receive_line()


def test_lines_are_read_until_the_server_ends() -> None:
    """A loop over the lines ends with the session; what was asked before it is not seen again."""

    def count(peer: socket.socket) -> None:
        with peer.makefile("rb") as lines:
            assert b"go\n" == lines.readline()
            peer.sendall(b"one\ntwo\r\n\nlast")

    with serving(count) as address, Client(address, read_timeout=DEADLINE) as client:
        assert "one" == client.ask("go")
        assert ["two", "", "last"] == list(client.lines())
        assert [] == list(client.lines())


def test_finish_returns_the_rest() -> None:
    """After the last line a program half-closes and gets all that the server still has to say."""

    def summarize(peer: socket.socket) -> None:
        peer.sendall(b"hello\n")
        peer.sendall(b"%d bytes\nbye\n" % len(read_all(peer)))

    with serving(summarize) as address, Client(address, read_timeout=DEADLINE) as client:
        assert "hello" == client.receive_line()
        client.send("ping")
        assert b"5 bytes\nbye\n" == client.finish()
        assert b"" == client.finish()


def test_a_timeout_loses_nothing() -> None:
    """Half a line that came before a timeout is there for the next call."""
    go = threading.Event()

    def hesitate(peer: socket.socket) -> None:
        peer.sendall(b"tick ")
        assert go.wait(DEADLINE)
        peer.sendall(b"tock\n")

    with serving(hesitate) as address, Client(address, read_timeout=0.2) as client:
        with pytest.raises(SendTimeout, match="^send data timeout: timed out$"):
            client.receive_line()
        go.set()
        client.sock.settimeout(DEADLINE)
        assert "tick tock" == client.receive_line()


def test_addresses_of_every_kind() -> None:
    """Text, an Address and a pair are all understood; no timeout, and one longer than sockets can wait, are too."""
    for convert in (str, parse_address, lambda text: (parse_address(text).host, parse_address(text).port)):
        with serving(echo) as text, Client(convert(text), connect_timeout=None, read_timeout=1e99) as client:
            assert "ping" == client.ask("ping")


@pytest.fixture(params=["path", "abstract"])
def unix_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address of a UNIX socket, in the file system or, on Linux, without one (unix(7))."""
    if request.param == "path":
        return f"unix:{tmp_path}/socket"
    if sys.platform != "linux":
        pytest.skip("only Linux has abstract addresses")
    return f"unix:@{tmp_path}"


def test_unix_sockets(unix_address: str) -> None:
    """They are like any other, for programs and on the command line, and for the header of a proxy."""
    headers: list[ProxyHeader] = []
    with serving(echo, unix_address), Client(unix_address, read_timeout=DEADLINE) as client:
        assert "ping" == client.ask("ping")
    Path(unix_address.removeprefix("unix:")).unlink(missing_ok=True)
    with serving(behind_proxy(headers, echo), unix_address):
        assert (0, b"ping\n", b"") == run(unix_address, "ping", "--proxy-protocol", "v2")
    assert [("unix", "")] == [(header.family, header.source) for header in headers]


def test_a_unix_socket_where_nobody_accepts(unix_address: str) -> None:
    """Where the backlog is full the connect timeout holds, and no limit means none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(unix_address, backlog=0))
        stack.enter_context(Client(unix_address))
        with pytest.raises(ConnectTimeout, match="^connect timeout$"):
            Client(unix_address, connect_timeout=0.3)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        waiting = pool.submit(Client, unix_address, connect_timeout=None)
        stack.enter_context(listener.accept()[0])
        stack.enter_context(waiting.result(DEADLINE))


def test_a_unix_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    """One whose server has gone refuses; one that is not there is named."""
    address = f"unix:{tmp_path}/socket"
    with pytest.raises(ConnectError, match=f"^connect error: {address}: No such file or directory$"):
        Client(address)
    listening(address).close()
    with pytest.raises(ConnectError, match="^connection refused$"):
        Client(address)


@pytest.mark.parametrize("address", ["fd://3", "systemd", "systemd:web", "*:10001"])
def test_addresses_to_listen_on_only(address: str) -> None:
    """What a server may be given is not always what a client can do something with."""
    assert (2, b"", f"{address} can be listened on, not connected to\n".encode()) == run(address, "ping")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_header_of_a_proxy_comes_first(version: int, host: str) -> None:
    """It tells of a client that is somewhere else, or of this one; then come the lines."""
    headers: list[ProxyHeader] = []
    own = []

    def session(peer: socket.socket) -> None:
        own.append(peer.getpeername())
        own.append(peer.getsockname())
        echo(peer)

    for source in (None, ("2001:db8::7", 4711)):
        told: dict[str, Any] = {"proxy_protocol": f"v{version}", "proxy_source": source}
        with serving(behind_proxy(headers, session), host) as address, Client(address, **told) as client:
            assert "ping" == client.ask("ping")

    here, there = headers
    assert (version, *own[:2]) == (here.version, here.source, here.destination)
    assert (version, ("2001:db8::7", 4711, 0, 0)) == (there.version, there.source)


def test_a_header_that_cannot_be_sent() -> None:
    """It is a mistake of the caller's, and no line is sent."""
    arrived = []
    wrong = pytest.raises(ConfigError, match="^the PROXY header needs IP addresses, not 'localhost'$")
    with serving(lambda peer: arrived.append(read_all(peer))) as address, wrong:
        Client(address, proxy_protocol="v2", proxy_source=("localhost", 1))
    assert [b""] == arrived
    with pytest.raises(ConfigError, match="^proxy_protocol must be v1 or v2, not 'v3'$"):
        Client(closed_port(), proxy_protocol="v3")


def test_errors_are_told_apart_by_type() -> None:
    """A program catches what it can do something about."""
    with pytest.raises(ConnectError, match="^connection refused$"):
        Client(closed_port())
    with full_listener() as address, pytest.raises(ConnectTimeout, match="^connect timeout$"):
        Client(address, connect_timeout=0.2)
    with pytest.raises(ConfigError, match="^port must be a number from 0 to 65535, not '70000'$"):
        Client(("127.0.0.1", 70000))
    with pytest.raises(ConfigError, match="^read_timeout must be above 0, not nan$"):
        Client(closed_port(), read_timeout=float("nan"))
    broken = pytest.raises(SendError, match="^send data error: Connection reset by peer$")
    with serving(die_at_the_end) as address, Client(address, read_timeout=DEADLINE) as client, broken:
        client.finish()


def test_connecting_takes_no_longer_than_in_the_lecture() -> None:
    """Who says nothing waits 5 seconds for a connection, on the command line too, and for ever afterwards."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(Client).parameters.items()}

    assert (5.0, None) == (defaults["connect_timeout"], defaults["read_timeout"])
    assert b"(5; also" in run("--help")[1]
