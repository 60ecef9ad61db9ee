"""What systemd hears of a server, on a real socket of its kind: ready, alive, stopping, each only when it is true."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import (
    DEADLINE,
    ServerProcess,
    children_of,
    connect,
    eventually,
    exchange,
)

from stdserve import LineHandler, ThreadServer
from stdserve.heartbeat import Heartbeat

MODES = {
    "single": ["--mode", "single"],
    "thread": ["--mode", "thread"],
    "event": ["--mode", "event"],
    "fork": ["--mode", "fork"],
    "workers": ["--workers", "2"],
    "single_workers": ["--mode", "single", "--workers", "2"],
}


class Manager:
    """The socket that a service's words go to, and what came."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.env = {"NOTIFY_SOCKET": str(path)}

    def next(self) -> list[str]:
        """Return the states of the next message."""
        self.socket.settimeout(DEADLINE)
        return self.socket.recv(4096).decode().split("\n")

    def next_but(self, *states: str) -> list[str]:
        """Return the next message that is not this one."""
        while (message := self.next()) == list(states):
            pass
        return message

    def silent(self, seconds: float) -> bool:
        """Tell whether nothing comes for so long, from now on."""
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(4096)
        except (TimeoutError, BlockingIOError):
            return True
        return False


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A manager of services."""
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


@pytest.mark.parametrize("mode", MODES)
def test_ready_is_said_when_it_serves_and_stopping_when_it_stops(manager: Manager, mode: str) -> None:
    """Once each, by the process that was started; nothing between them, as nobody asked for it."""
    with ServerProcess(*MODES[mode], "--bind", "127.0.0.1:0", env=manager.env) as server:
        ready = manager.next()
        assert ["READY=1", f"MAINPID={server.pid}", f"STATUS=listening on 127.0.0.1:{server.port}"] == ready
        exchange(server.address, b"one\n")
        with connect(server.address) as idle:
            server.wait_for_log("^open", count=2)
            server.process.send_signal(signal.SIGTERM)
            assert ["STOPPING=1", "STATUS=stopping"] == manager.next()
            assert b"" == idle.recv(1)
        assert 0 == server.wait()
        assert manager.silent(0)


def test_ready_is_not_said_while_a_worker_does_not_serve(manager: Manager, tmp_path: Path) -> None:
    """One of three waits as it starts; nor does the log say that it listens."""
    os.mkfifo(tmp_path / "gate")
    code = (
        "import os, stdserve, sys\n"
        "class Late(stdserve.ThreadServer):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        try:\n"
        f"            os.close(os.open({str(tmp_path / 'first')!r}, os.O_CREAT | os.O_EXCL))\n"
        "        except FileExistsError:\n"
        "            return\n"
        f"        open({str(tmp_path / 'gate')!r}).close()\n"
        "stdserve.register_mode('late', Late)\n"
        "from stdserve.cli import main\n"
        "sys.exit(main(['0', '--mode', 'late', '--workers', '3', '--log-level', 'debug']))\n"
    )
    with ServerProcess(port=None, command=(sys.executable, "-c", code), env=manager.env) as server:
        eventually(lambda: (tmp_path / "first").exists())
        server.wait_for_log("worker .* started", count=3)
        assert manager.silent(0.5)
        assert not [line for line in server.log if line.startswith("listening")]
        (tmp_path / "gate").open("w").close()
        assert "READY=1" == manager.next()[0]
        server.wait_for_log("^listening")
        assert 0 == server.stop()


@pytest.mark.parametrize("mode", MODES)
def test_the_watchdog_is_fed_while_the_accept_loop_turns(manager: Manager, mode: str) -> None:
    """Idle, and also in mode single while a session keeps its loop: busy is not stuck."""
    env = {**manager.env, "WATCHDOG_USEC": "400000"}
    with ServerProcess(*MODES[mode], env=env) as server:
        assert "READY=1" == manager.next_but("WATCHDOG=1")[0]
        for _ in range(5):
            assert ["WATCHDOG=1"] == manager.next()
        with connect(server.address), connect(server.address):
            server.wait_for_log("^open")
            for _ in range(10):
                assert ["WATCHDOG=1"] == manager.next()
        server.process.send_signal(signal.SIGTERM)
        assert ["STOPPING=1", "STATUS=stopping"] == manager.next_but("WATCHDOG=1")
        assert 0 == server.wait()


STUCK = """
import stdserve, sys, threading
class Stuck(stdserve.{server}):
    def verify_request(self, request, client_address):
        print('stuck', file=sys.stderr, flush=True)
        threading.Event().wait()
stdserve.register_mode('stuck', Stuck)
from stdserve.cli import main
sys.exit(main(['0', '--mode', 'stuck', '--workers', '{workers}', '--graceful-timeout', '100ms']))
"""


@pytest.mark.parametrize(("server", "workers"), [("SingleServer", 1), ("ThreadServer", 1), ("ThreadServer", 2)])
def test_the_watchdog_is_not_fed_when_an_accept_loop_is_stuck(manager: Manager, server: str, workers: int) -> None:
    """In a hook that never returns; one of two workers is enough."""
    env = {**manager.env, "WATCHDOG_USEC": "400000"}
    command = (sys.executable, "-c", STUCK.format(server=server, workers=workers))
    with ServerProcess(port=None, command=command, env=env) as process, connect(process.address):
        process.wait_for_log("^stuck")
        eventually(lambda: manager.silent(1))
        for pid in (*children_of(process.pid), process.pid):
            os.kill(pid, signal.SIGKILL)


def test_the_watchdog_of_another_process_is_not_ours(manager: Manager) -> None:
    """It is for whoever is named."""
    env = {**manager.env, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    with ServerProcess(env=env):
        assert "READY=1" == manager.next()[0]
        assert manager.silent(0.5)


def test_service_actions_of_a_class_are_called_as_ever() -> None:
    """With a heartbeat at its pace too, and at least twice a second."""
    called, beaten = threading.Event(), threading.Event()
    heartbeat = Heartbeat(beat=beaten.set, seconds=1000.0)
    with ThreadServer(("127.0.0.1", 0), LineHandler) as server, heartbeat.of(server) as poll_interval:
        assert 1000.0 == poll_interval
    kind = type("Acting", (ThreadServer,), {"service_actions": lambda self: called.set()})
    with kind(("127.0.0.1", 0), LineHandler) as acting, heartbeat.of(acting) as poll_interval:
        assert 0.5 == poll_interval
        thread = threading.Thread(target=acting.serve_forever, args=(0.01,))
        thread.start()
        assert called.wait(DEADLINE)
        assert beaten.wait(DEADLINE)
        acting.shutdown()
        thread.join(DEADLINE)
