"""serving(), for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import DEADLINE, connect, eventually, exchange, read_all

from stdserve import (
    ConfigError,
    EchoHandler,
    LineHandler,
    Options,
    OutputError,
    StartError,
    StdserveError,
    serving,
)


class Upper(LineHandler):
    """The README's handler."""

    def line_received(self, line: str) -> str:
        return line.upper()


@pytest.mark.parametrize("settings", [{"mode": "single"}, {}, {"mode": "thread"}], ids=str)
def test_serving_runs_beside_the_test_and_gives_the_address(settings: dict[str, Any]) -> None:
    """Bound already; after the block nobody listens there."""
    with serving(Upper, **settings) as server:
        assert b"ONE\n" == exchange(server.address, b"one")
        assert [server.address] == server.addresses
        assert server.server is not None
        listener = server.server.socket
    assert -1 == listener.fileno()


@pytest.mark.parametrize("settings", ["mode='fork'", "workers=2", "mode='fork', workers=2"])
def test_serving_forks_a_process_for_what_forks(settings: str) -> None:
    """From a process without threads, as pytest is not when other tests have run."""
    code = (
        "import socket\n"
        "from stdserve import LineHandler, serving\n"
        "class Upper(LineHandler):\n"
        "    def line_received(self, line):\n"
        "        return line.upper()\n"
        f"with serving(Upper, {settings}) as server:\n"
        "    assert server.server is None\n"
        "    with socket.create_connection(server.address) as client:\n"
        "        client.sendall(b'one\\n')\n"
        "        assert client.recv(100) == b'ONE\\n'\n"
        "import os\n"
        "try:\n"
        "    os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError:\n"
        "    print('nobody left')\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert "nobody left\n" == result.stdout
    assert "Error" not in result.stderr


def test_serving_prints_where_it_is_told(tmp_path: Path) -> None:
    """A handler by its name, and options as a whole."""
    path = tmp_path / "out"
    options = Options(output=str(path), bind=("127.0.0.1:0",), handler="stdserve:EchoHandler")
    with serving(options=options) as server:
        assert b"one\n" == exchange(server.address, b"one\n")
    assert b"one\n" == path.read_bytes()


def test_serving_raises_what_ended_the_server() -> None:
    """A full disk, say."""
    full = pytest.raises(OutputError, match="No space left")
    with full, serving(output="/dev/full") as server, connect(server.address) as client:
        client.sendall(b"one\n")
        assert b"" == read_all(client)


def test_serving_raises_what_ended_the_output_in_the_servers_process() -> None:
    """The sink is shared; the parent learns of it."""
    code = (
        "import socket\n"
        "from stdserve import OutputError, serving\n"
        "try:\n"
        "    with serving(output='/dev/full', mode='fork') as server:\n"
        "        with socket.create_connection(server.address) as client:\n"
        "            client.sendall(b'one\\n')\n"
        "            client.recv(1)\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert "cannot write to /dev/full: No space left on device\n" == result.stdout


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGKILL, -9), (signal.SIGSTOP, -9)],
    ids=["killed", "stopped"],
)
def test_a_servers_process_that_ends_badly_is_told(signum: int, status: int) -> None:
    """Killed by someone, or so stuck that it had to be."""
    code = (
        "import os, socket, stdserve\n"
        "class Ends(stdserve.LineHandler):\n"
        "    def connection_made(self):\n"
        f"        os.kill(os.getppid(), {int(signum)})\n"
        "try:\n"
        "    with stdserve.serving(Ends, 'fork', graceful_timeout=0.1) as server:\n"
        "        with socket.create_connection(server.address) as client:\n"
        "            client.sendall(b'exit\\n')\n"
        "            client.recv(1)\n"
        "except stdserve.StdserveError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert f"the server's process ended with status {status}\n" == result.stdout


def test_wrong_settings_are_told_before_anything_is_opened() -> None:
    """By both."""
    with pytest.raises(ConfigError), serving(mode="none"):
        pass
    with pytest.raises(StartError), serving(bind="192.0.2.1:0"):
        pass
    assert issubclass(StartError, StdserveError)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("mode", ["thread", "fork"])
def test_a_server_that_tells_how_it_is_says_where(mode: str) -> None:
    """For tests of what an operator will see."""
    with serving(EchoHandler, mode, status="127.0.0.1:0") as server:
        assert b"word\n" == exchange(server.address, b"word\n")
        (place,) = server.status

        def told() -> bytes:
            return exchange(place, b"GET /metrics HTTP/1.0\r\n\r\n", half_close=False)

        eventually(lambda: b'\nstdserve_sessions_ended_total{reason="eof"} 1\n' in told())
