"""``--status`` on a real server: what it tells is what clients saw, whatever became of its workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from processes import (
    DEADLINE,
    ServerProcess,
    children_of,
    connect,
    descendants_of,
    eventually,
    exchange,
    read_all,
)
from prometheus_client.parser import text_string_to_metric_families
from test_status import browser, words_of

from stdserve.status import STALE_SECONDS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Observed(ServerProcess):
    """A server with ``--status``."""

    def __init__(self, *arguments: str, status: str = "127.0.0.1:0", **more: Any) -> None:
        super().__init__("--status", status, *arguments, **more)

    def __enter__(self) -> Observed:
        return self

    @property
    def place(self) -> str:
        """Where it tells how it is."""
        return self.wait_for_log(r"^status on (\S+)")[1]

    def ask(self, path: str) -> tuple[int, str]:
        """Return the status and the body of an answer."""
        host, _, port = self.place.rpartition(":")
        asked = http.client.HTTPConnection(host, int(port) if port.isdecimal() else 80, timeout=DEADLINE)
        if not port.isdecimal():
            asked.sock = connect(self.place)
        with contextlib.closing(asked):
            asked.request("GET", path)
            answer = asked.getresponse()
            return answer.status, answer.read().decode()

    def samples(self) -> dict[str, float]:
        """Return what Prometheus would read, by name and label."""
        families = text_string_to_metric_families(self.ask("/metrics")[1])
        return {
            ",".join([sample.name.removeprefix("stdserve_"), *sample.labels.values()]): sample.value
            for family in families
            for sample in family.samples
        }

    def wait_for(self, **expected: float) -> dict[str, float]:
        """Return all samples when some have come to be these."""
        eventually(lambda: expected.items() <= self.samples().items(), f"{expected} in {self.samples()}")
        return self.samples()

    @property
    def workers(self) -> list[int]:
        """The pids of the workers that it tells of."""
        return [worker["pid"] for worker in json.loads(self.ask("/live")[1])["workers"]]

    @property
    def companion(self) -> int:
        """The pid of the status server (Linux)."""
        (pid,) = set(children_of(self.pid)) - set(self.workers)
        return pid


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event"])
def test_after_a_run_the_totals_are_what_the_clients_counted(mode: str, tls: bool, authority: Authority) -> None:
    """Sessions, their ends, bytes and lines both ways, of 60 clients at two workers; in JSON and for Prometheus."""
    pair = authority.pair()
    flags = ["--tls-cert", pair.certfile, "--tls-key", str(pair.keyfile)] if tls else []

    def talk(number: int) -> tuple[int, int]:
        words = b"".join(b"%d of %d\n" % (line, number) for line in range(number))
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(connect(server.address))
            if tls:
                client = stack.enter_context(authority.client().wrap_socket(client, server_hostname="localhost"))
            client.sendall(words + b"exit\n")
            assert words == read_all(client)
        return len(words) + 5, len(words)

    words = ["--handler", "stdserve:EchoHandler", "--workers", "2", "--mode", mode, *flags]
    with Observed(*words) as server, ThreadPoolExecutor(8) as pool:
        counted = list(pool.map(talk, range(60)))
        samples = server.wait_for(sessions_total=60, sessions_open=0)
        lines = sum(range(60))
        assert {"sessions_ended_total,exit": 60} == {
            name: value for name, value in samples.items() if name.startswith(("sessions_ended", "rejected")) and value
        }
        assert [sum(sizes) for sizes in zip(*counted, strict=True)] == [
            *(samples["received_bytes_total"], samples["sent_bytes_total"]),
        ]
        assert [lines, lines] == [samples["received_lines_total"], samples["sent_lines_total"]]
        assert 60 == samples["session_seconds_count"] == samples["session_seconds_bucket,+Inf"]
        assert {"open": 0, "sessions": []} == json.loads(server.ask("/sessions")[1])
        assert 0 == server.stop()


def test_open_sessions_are_told() -> None:
    """By whom they are with, in which worker, and what was said."""
    with Observed("--workers", "2") as server, connect(server.address) as client:
        client.sendall(b"one\ntwo\n")
        server.wait_for(received_lines_total=2)
        (session,) = json.loads(server.ask("/sessions")[1])["sessions"]
        assert session["peer"] == "{}:{}".format(*client.getsockname())
        assert (8, 0, 2) == (session["received"], session["sent"], session["lines_in"])
        assert session["worker"] in server.workers
        assert 0 <= session["age"] < DEADLINE


def test_without_workers_there_is_one_and_a_supervisor() -> None:
    """One way only."""
    with Observed() as server:
        assert b"" == exchange(server.address, b"line\nexit\n")
        assert 1 == server.wait_for(sessions_total=1, sessions_open=0)["workers"]
        assert (200, "ready\n") == server.ask("/readyz")
        assert b"line\n" == server.output
        assert 0 == server.stop()


def test_the_address_may_be_a_unix_socket(tmp_path: Path) -> None:
    """Its file is for the user alone, and gone in the end."""
    path = tmp_path / "status"
    with Observed(status=f"unix:{path}") as server:
        eventually(lambda: (200, "ready\n") == server.ask("/readyz"))
        assert 0o600 == path.stat().st_mode & 0o777
        assert 0 == server.stop()
    assert not path.exists()


def test_an_address_in_use_is_told_and_nothing_is_served() -> None:
    """Exit code 3, one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with Observed(status=place) as server:
            assert 3 == server.wait()
            assert [f"stdserve: cannot listen on {place}: address already in use"] == server.log


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--status", "nowhere:at:all:x"], "--status address must be"),
        (["--status", "127.0.0.1:0", "--once"], "--once and --status exclude each other"),
    ],
)
def test_what_makes_no_sense_is_told(words: list[str], complaint: str) -> None:
    """Exit code 2."""
    with ServerProcess(*words) as server:
        assert 2 == server.wait()
        assert complaint in "\n".join(server.log)


def test_readiness_ends_with_the_beginning_of_a_stop() -> None:
    """It is told until the last session has ended; then nobody answers."""
    with Observed("--workers", "2") as server, connect(server.address) as client:
        eventually(lambda: (200, "ready\n") == server.ask("/readyz"))
        client.sendall(b"begun\n")
        server.wait_for_output(b"begun\n")
        for pid in server.workers:
            os.kill(pid, signal.SIGSTOP)  # so that the stop takes a while
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: (503, "draining\n") == server.ask("/readyz"))
        assert (200, "ok\n") == server.ask("/healthz")
        assert 1 == server.samples()["draining"]
        for pid in server.workers:
            os.kill(pid, signal.SIGCONT)
        assert 0 == server.wait()
        with pytest.raises(ConnectionRefusedError):
            server.ask("/healthz")


def test_a_worker_that_stands_still_makes_the_server_unready() -> None:
    """Stopped by SIGSTOP, it is no other than one that is stuck."""
    with Observed("--workers", "2") as server:
        eventually(lambda: (200, "ready\n") == server.ask("/readyz"))
        stopped = server.workers[0]
        os.kill(stopped, signal.SIGSTOP)
        eventually(lambda: 503 == server.ask("/readyz")[0], deadline=STALE_SECONDS + DEADLINE)
        assert re.fullmatch(r"1 of 2 workers stuck, for \d+ s\n", server.ask("/readyz")[1])
        assert STALE_SECONDS < max(
            value for name, value in server.samples().items() if name.startswith("worker_heartbeat_age_seconds")
        )
        os.kill(stopped, signal.SIGCONT)
        eventually(lambda: (200, "ready\n") == server.ask("/readyz"))
        assert 0 == server.stop()


BUSY = """
import socketserver
class Busy(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"busy")
        while True:
            sum(range(1000))
from stdserve import LineHandler
class BusyInLines(LineHandler):
    def connection_made(self):
        while True:
            sum(range(1000))
"""


@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event"])
def test_it_answers_at_once_while_all_workers_are_busy_and_full(mode: str, tmp_path: Path) -> None:
    """Within 100 ms; the best of twenty answers is judged, for the machine may be busy with others as well."""
    (tmp_path / "busy.py").write_text(BUSY)
    most = 1 if mode in ("single", "event") else 2
    handler = "busy:BusyInLines" if mode == "event" else "busy:Busy"
    words = [
        "--handler",
        handler,
        "--workers",
        "2",
        "--mode",
        mode,
        "--graceful-timeout",
        "100ms",
    ]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Observed(*words, "--max-conns", str(most), cwd=tmp_path))
        clients = [stack.enter_context(connect(server.address)) for _ in range(2 * most + 1)]
        server.wait_for(sessions_open=2 * most)
        for path in ("/metrics", "/readyz", "/sessions", "/"):
            took = []
            for _ in range(20):
                began = time.monotonic()
                assert 200 == server.ask(path)[0]
                took.append(time.monotonic() - began)
            assert min(took) < 0.1, path
        if sys.platform == "linux":
            assert 1 == server.samples()[f"listen_queue_length,127.0.0.1:{server.port}"]
        del clients
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        server.wait()


def test_a_worker_that_was_killed_is_counted_and_so_is_what_it_had_done() -> None:
    """Its sessions as killed; its slot is the next one's."""
    with Observed("--workers", "1", "--handler", "stdserve:EchoHandler") as server, connect(server.address) as client:
        assert b"before\n" == exchange(server.address, b"before\n")
        client.sendall(b"open\n")
        assert b"open\n" == client.recv(100)
        server.wait_for(sessions_open=1, sessions_total=2)
        os.kill(server.workers[0], signal.SIGKILL)
        samples = server.wait_for(sessions_open=0, worker_restarts_total=1, workers=1)
        assert (1, 1) == (samples["sessions_ended_total,eof"], samples["sessions_ended_total,killed"])
        assert b"after\n" == exchange(server.address, b"after\n")
        samples = server.wait_for(sessions_open=0, sessions_total=3)
        assert (18, 18, 3) == (
            *(samples["received_bytes_total"], samples["sent_bytes_total"], samples["received_lines_total"]),
        )
        assert 0 == server.stop()


@linux
def test_a_session_of_its_own_process_outlives_its_worker_and_is_told_until_it_ends() -> None:
    """The next worker in the slot looks after it."""
    words = ["--workers", "1", "--mode", "fork", "--handler", "stdserve:EchoHandler"]
    with Observed(*words) as server, connect(server.address) as client:
        client.sendall(b"one\n")
        assert b"one\n" == client.recv(100)
        (worker,) = server.workers
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: server.workers not in ([], [worker]))
        client.sendall(b"two\n")
        assert b"two\n" == client.recv(100)
        server.wait_for(received_lines_total=2, sessions_open=1)
        client.close()
        assert 1 == server.wait_for(sessions_open=0, sessions_total=1)["sessions_ended_total,eof"]
        assert 0 == server.stop()


HAUNTED = """
import os, signal, socket, time
from stdserve import Options, observing
from stdserve.children import fork_child
from stdserve.hooks import Hooks

observation = observing.Observation(Options(mode="fork"), [socket.create_server(("127.0.0.1", 0))], [])
hooks = observation.hooked(Hooks())
metrics = observation._metrics
reader, writer = os.pipe()

def worker():
    row = metrics.enter(0, forks=True).take("peer")

    def session():
        row.adopt()
        row.open()
        os.write(writer, b"open")
        signal.pause()

    os.write(writer, b"%d\\n" % fork_child(session, {}, lambda child: None).pid)
    return 7

child = fork_child(worker, {}, lambda child: None)
assert 7 == child.wait(30)
said = b""
while b"open" not in said or b"\\n" not in said:
    said += os.read(reader, 100)
hooks.ended(0, True)
hooks.ended(100, False)  # one too many: it has no slot
snapshot = metrics.snapshot()
print(snapshot.open, snapshot.restarts)
os.kill(int(said.replace(b"open", b"")), signal.SIGKILL)
before = time.monotonic()
while metrics.snapshot().open:
    hooks.turned([])
    assert time.monotonic() < before + 30
print(metrics.snapshot().ended["killed"])
hooks.stopping()
print(metrics.snapshot().draining)
observation._companion.end()
"""


def test_sessions_that_outlive_the_last_worker_of_a_slot_are_looked_after() -> None:
    """By the supervisor, as long as no other worker has the slot."""
    run = subprocess.run([sys.executable, "-c", HAUNTED], capture_output=True, text=True, timeout=DEADLINE)
    assert ("1 1\n1\nTrue\n", "") == (run.stdout, run.stderr)


def test_a_reload_takes_other_slots_and_the_totals_go_on() -> None:
    """Workers that drain are told beside their successors; no restart is counted."""
    with Observed("--workers", "2", "--handler", "stdserve:EchoHandler") as server, connect(server.address) as client:
        client.sendall(b"one\n")
        assert b"one\n" == client.recv(100)
        before = set(server.workers)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^reloaded ")
        eventually(lambda: not before & set(server.workers))
        assert b"two\n" == exchange(server.address, b"two\n")
        samples = server.wait_for(sessions_open=0, sessions_total=2, workers=2)
        assert (2, 0) == (samples["received_lines_total"], samples["worker_restarts_total"])
        assert (200, "ready\n") == server.ask("/readyz")
        assert 0 == server.stop()


def test_more_workers_than_can_be_counted_work_as_well() -> None:
    """There is a line in the log for each."""
    with Observed("--workers", "1", "--handler", "stdserve:EchoHandler") as server:
        assert server.port
        for count in range(2, 13):
            server.process.send_signal(signal.SIGTTIN)
            server.wait_for_log(f"^workers count={count}")  # signals are not queued
        server.wait_for_log("^error more than 11 workers at a time: this one is not counted")
        eventually(lambda: 11 == len(server.workers))
        assert b"word\n" == exchange(server.address, b"word\n")
        assert 0 == server.stop()


@linux
def test_the_status_server_is_replaced_when_it_dies() -> None:
    """The workers take no notice."""
    with Observed("--workers", "2") as server:
        eventually(lambda: 2 == len(server.workers))
        before = server.workers, server.companion
        os.kill(server.companion, signal.SIGKILL)
        server.wait_for_log("^error the status server ended with status -9; another starts in")
        eventually(lambda: {*children_of(server.pid)} - {*before[0], before[1]})
        assert before[0] == server.workers
        assert before[1] != server.companion
        assert 0 == server.stop()


@linux
def test_nothing_is_left_behind_when_the_supervisor_is_killed() -> None:
    """Neither a process nor a port."""
    with Observed("--workers", "2", "--mode", "fork") as server:
        eventually(lambda: 2 == len(server.workers))
        server.wait_for_log("^listening")
        host, _, port = server.place.rpartition(":")
        left = descendants_of(server.pid)
        server.process.kill()
        server.wait()
        eventually(lambda: not [pid for pid in left if alive(pid)])
        for number in (int(port), server.port):
            with socket.create_server((host, number)):
                pass


def alive(pid: int) -> bool:
    """Whether a process runs (Linux)."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def talking(server: ServerProcess) -> Iterator[None]:
    """Have one client that has said something, and one that is still there."""
    assert b"one\n" == exchange(server.address, b"one\n")
    with connect(server.address) as client:
        client.sendall(b"two\n")
        assert b"two\n" == client.recv(100)
        yield


def test_chromium_shows_the_numbers_of_a_real_server() -> None:
    """From the sessions to the page."""
    with Observed("--workers", "2", "--handler", "stdserve:EchoHandler") as server, talking(server):
        server.wait_for(sessions_open=1, sessions_total=2, sent_lines_total=2)
        with browser(f"http://{server.place}/", "--virtual-time-budget=2500") as dom:
            assert "Ready" == words_of(dom, "state")
            assert "1" == words_of(dom, "open")
            assert "2 in all" == words_of(dom, "total")
            assert "8 B, 2 lines" == words_of(dom, "received-all")
            assert "127.0.0.1:" in words_of(dom, "table")
        assert 0 == server.stop()
