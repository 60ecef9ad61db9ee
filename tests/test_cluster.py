"""The examples of running on more than one machine: two nodes behind real HAProxy, systemd's units, Kubernetes."""

from __future__ import annotations

import csv
import itertools
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import (
    DEADLINE,
    ServerProcess,
    connect,
    eventually,
    free_port,
    peer_program,
    read_all,
)

from stdserve import Options, cli
from stdserve.settings import read_settings

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CONFIG = EXAMPLES / "cluster" / "haproxy.cfg"
README = (EXAMPLES / "cluster" / "README.md").read_text(encoding="utf-8")

#: The nodes of the configuration, and where the README has them.
NODES = {"node1": "127.0.0.1:10011", "node2": "127.0.0.1:10012"}

#: Clients at a time, lines of a session, seconds between these: a hundred sessions a second, and always some open.
CLIENTS, LINES, PACE = 6, 3, 0.01


class Node:
    """A real server process, and those that follow it on the same port; all append to one output."""

    def __init__(self, name: str, folder: Path, stack: ExitStack) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._output = folder / f"{name}.txt"
        self._stack = stack
        command = re.search(rf"^python3 -m stdserve (.*{re.escape(NODES[name])}.*)$", README, re.MULTILINE)
        assert command is not None
        self._words = command[1].replace(NODES[name], self.address).split()
        # An echo tells the client that its line has been printed.
        self._words += ["--handler", "stdserve:EchoHandler", "--format", "peer", "--output", str(self._output)]
        self.start()

    def start(self) -> None:
        """Start it, again if need be; return when it listens."""
        self.process = self._stack.enter_context(ServerProcess(*self._words, port=None))
        self.process.wait_for_log("^listening")

    def printed(self) -> list[str]:
        """All lines of its output."""
        return self._output.read_text().splitlines()

    def serves(self) -> None:
        """Return when it has printed something new."""
        before = len(self.printed())
        eventually(lambda: len(self.printed()) > before)


class Cluster:
    """HAProxy with the configuration as it is, told by the environment where its nodes and its clients are."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._admin = str(folder / "admin.sock")
        self.nodes = {name: Node(name, folder, stack) for name in NODES}
        front = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.address = front.getsockname()
        where = {
            "CLUSTER_LISTEN": f"fd@{front.fileno()}",
            "CLUSTER_NODE_1": self.nodes["node1"].address,
            "CLUSTER_NODE_2": self.nodes["node2"].address,
            "CLUSTER_ADMIN": self._admin,
        }
        log = stack.enter_context((folder / "haproxy.log").open("wb"))
        process = subprocess.Popen(
            [peer_program("haproxy"), "-db", "-f", str(CONFIG)],
            env={**os.environ, **where},
            pass_fds=[front.fileno()],
            stdout=log,
            stderr=log,
        )
        stack.callback(process.wait, DEADLINE)
        stack.callback(process.kill)
        for name in NODES:
            self.wait_until(name, "UP")

    def admin(self, command: str) -> str:
        """Say something to HAProxy; no answer but the empty one while it starts."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            try:
                client.connect(self._admin)
            except OSError:
                return ""
            client.sendall(command.encode() + b"\n")
            return read_all(client).decode()

    def state(self, name: str) -> list[str]:
        """What the README's ``state`` shows of a node after its name: sessions, status."""
        columns = re.search(r"cut -d, -f([\d,]+) ", README)
        assert columns is not None
        for row in csv.reader(self.admin("show stat").splitlines()):
            chosen = [row[int(column) - 1] for column in columns[1].split(",") if row]
            if name in chosen:
                return chosen[1:]
        return []

    def wait_until(self, name: str, shown: str) -> None:
        """Return when the state of a node has that number of sessions, or that status."""
        eventually(lambda: shown in self.state(name), f"{name} is {shown}")

    def end_output(self) -> Counter[str]:
        """Stop the nodes; return what they have printed, and how often."""
        for node in self.nodes.values():
            assert 0 == node.process.stop()
            assert [] == [line for line in node.process.log if line.startswith(("error", "reject", "Traceback"))]
        return Counter(line for node in self.nodes.values() for line in node.printed())


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Both nodes up."""
    # Not tmp_path: the path of a UNIX socket is short, and HAProxy's own addition to it is not.
    with tempfile.TemporaryDirectory(prefix="stdserve-") as folder, ExitStack() as stack:
        yield Cluster(Path(folder), stack)


@dataclass
class Session:
    """What a client has said, who it was, and what went wrong if something did."""

    lines: list[str]
    began: float
    peer: str = ""
    failure: str = ""


class Load:
    """Clients that come again and again, each time for a short session, as long as the block lasts."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._over = threading.Event()
        self.sessions: list[Session] = []

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [self._pool.submit(self._keep_coming, f"client {number}") for number in range(CLIENTS)]
        self.goes_on()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    @property
    def failed(self) -> list[Session]:
        """The sessions that did not get all their lines back, and then an end."""
        return [session for session in self.sessions if session.failure]

    def goes_on(self) -> None:
        """Return when some more sessions are over."""
        enough = len(self.sessions) + 5 * CLIENTS
        eventually(lambda: len(self.sessions) >= enough)

    def _keep_coming(self, name: str) -> None:
        for number in itertools.count():
            if self._over.is_set():
                return
            lines = [f"{name} session {number} line {line}" for line in range(LINES)]
            session = Session(lines, time.monotonic())
            try:
                self._converse(session, leaves=number % 2 == 0)
            except OSError as error:
                session.failure = repr(error)
            self.sessions.append(session)

    def _converse(self, session: Session, leaves: bool) -> None:
        with connect(self._address) as client:
            session.peer = "{}:{}".format(*client.getsockname())
            for line in session.lines:
                client.sendall(line.encode() + b"\n")
                self._over.wait(PACE)
            if leaves:
                client.sendall(b"exit\n")
            else:
                client.shutdown(socket.SHUT_WR)
            answered = read_all(client).decode().splitlines()
        if answered != session.lines:
            session.failure = f"only {answered} came back"


def check_lines(sessions: list[Session], printed: Counter[str]) -> None:
    """Every line of a session that went well is printed once, under its client's own address; none is twice."""
    wanted = [f"{session.peer} {line}" for session in sessions if not session.failure for line in session.lines]
    known = {f"{session.peer} {line}" for session in sessions for line in session.lines}
    assert [] == [line for line in wanted if printed[line] != 1]
    assert [] == [line for line, times in printed.items() if times != 1 or line not in known]


def test_clients_reach_both_nodes_under_their_own_address(cluster: Cluster) -> None:
    """In the output and in the log, where nothing is said of HAProxy and its health checks."""
    with Load(cluster.address) as load:
        for node in cluster.nodes.values():
            node.serves()
    printed = cluster.end_output()
    assert [] == load.failed
    check_lines(load.sessions, printed)

    logged = [
        line.split()[1] for node in cluster.nodes.values() for line in node.process.log if line.startswith("open ")
    ]
    assert sorted(session.peer for session in load.sessions) == sorted(logged)


def test_a_node_that_dies_takes_its_own_sessions_with_it_and_no_other(cluster: Cluster) -> None:
    """None fails once it is marked down, before that at most one for each client; back again, it is sent new ones."""
    node = cluster.nodes["node1"]
    with Load(cluster.address) as load:
        node.process.process.kill()
        cluster.wait_until("node1", "DOWN")
        down = time.monotonic()
        load.goes_on()
        node.start()
        cluster.wait_until("node1", "UP")
        node.serves()
    printed = cluster.end_output()
    assert [] == [session for session in load.failed if session.began > down]
    assert len(load.failed) <= CLIENTS
    check_lines(load.sessions, printed)


def test_both_nodes_are_restarted_and_no_session_notices(cluster: Cluster) -> None:
    """By the README's commands: drained, stopped, started, let back in; first one, then the other."""
    commands = re.findall(r'^admin "(set server .*?)"', README, re.MULTILINE)
    assert ["drain", "ready"] == [command.rpartition(" ")[2] for command in commands]
    with Load(cluster.address) as load:
        for name, node in cluster.nodes.items():
            drain, ready = (command.replace("node1", name) for command in commands)
            assert "" == cluster.admin(drain).strip()
            cluster.wait_until(name, "0")
            assert 0 == node.process.stop()
            node.start()
            cluster.wait_until(name, "DRAIN")
            assert "" == cluster.admin(ready).strip()
            node.serves()
    printed = cluster.end_output()
    assert [] == load.failed
    check_lines(load.sessions, printed)


def test_the_configuration_is_one_without_a_warning() -> None:
    """As it stands, with its own defaults."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_")}
    words = [peer_program("haproxy"), "-c", "-V", "-f", str(CONFIG)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=DEADLINE)
    assert (0, "Configuration file is valid\n", "") == (done.returncode, done.stdout, done.stderr)


def exec_start() -> list[str]:
    """The command of the systemd unit."""
    command = re.search(r"^ExecStart=(.*)$", (EXAMPLES / "systemd" / "stdserve.service").read_text(), re.MULTILINE)
    assert command is not None
    return shlex.split(command[1])


def test_the_units_are_ones_that_systemd_takes(tmp_path: Path) -> None:
    """Without a complaint, once there is a Python where they say."""
    for unit in (EXAMPLES / "systemd").iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(exec_start()[0], sys.executable))
    words = [peer_program("systemd-analyze"), "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def options_of(words: list[str]) -> Options:
    """What the command line makes of some words; it raises ConfigError for those that it does not know."""
    return read_settings(cli._parse(words), {})[0].options


def test_the_command_of_the_unit_is_one_that_we_take() -> None:
    """systemd gives up on it no earlier than the graceful timeout has passed."""
    python, *words = exec_start()
    assert ["-m", "stdserve"] == words[:2]
    options = options_of(words[2:])
    unit = (EXAMPLES / "systemd" / "stdserve.service").read_text()
    assert number(r"^TimeoutStopSec=(\d+)s$", unit) > options.graceful_timeout

    # The unit of the socket gives it the name that the command asks for.
    name = re.search(r"^FileDescriptorName=(.*)$", (EXAMPLES / "systemd" / "stdserve.socket").read_text(), re.MULTILINE)
    assert name is not None
    assert (f"systemd:{name[1]}",) == options.bind


def test_the_command_of_the_pod_is_one_that_we_take() -> None:
    """The pod is given the time that its sleep and the graceful timeout take together; its port is the one bound."""
    pod = (EXAMPLES / "kubernetes.yaml").read_text()
    assert "command: [python, -m, stdserve]" in pod
    options = options_of(re.findall(r"^ +- (--.*)$", pod, re.MULTILINE))
    sleep = number(r'command: \[sleep, "(\d+)"\]', pod)
    assert number(r"terminationGracePeriodSeconds: (\d+)$", pod) > sleep + options.graceful_timeout
    assert {options.addresses[0].port} == {number(rf"{word}: (\d+)\W", pod) for word in ("containerPort", " port")}
    (status,) = options.status_addresses
    assert status.port == number(r"name: status, containerPort: (\d+)\W", pod)
    assert {"/healthz", "/readyz"} == set(re.findall(r"httpGet: {path: (\S+), port: status}", pod))


def number(pattern: str, text: str) -> int:
    """The number in a setting of an example."""
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, pattern
    return int(found[1])
