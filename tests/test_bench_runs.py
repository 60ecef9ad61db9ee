"""A run of the bench: real servers, real load, and a check that fails where it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE

from stdserve import bench_runs
from stdserve.bench_runs import Plan, Traits, measure, own_handler, probe
from stdserve.bench_servers import Choice, RunningServer
from stdserve.errors import ConfigError, StartError

QUICK = Plan(clients=3, streams=2, idle=6, seconds=0.1, warmup=0.05)

HANDLERS = """
from socketserver import StreamRequestHandler
from stdserve import LineHandler, PrintHandler

class Upper(LineHandler):
    def line_received(self, line):
        return line.upper()

class Silent(LineHandler):
    pass

class Forgetful(PrintHandler):
    def lines_received(self, lines):
        if b" 000007" not in lines.data:
            super().lines_received(lines)

class Rude(StreamRequestHandler):
    def handle(self):
        self.request.recv(1)  # what is left unread makes it a reset
        self.request.close()

class Alike(LineHandler):
    def line_received(self, line):
        return "always the same"
"""


@pytest.fixture(autouse=True)
def handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a current folder with handlers."""
    (tmp_path / "theirs.py").write_text(HANDLERS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("handler", "traits"),
    [
        ("stdserve:PrintHandler", Traits(True, "none")),
        ("stdserve:EchoHandler", Traits(True, "echo")),
        ("theirs:Upper", Traits(False, "line")),
        ("theirs:Silent", Traits(False, "none")),
    ],
)
def test_a_probe_sees_what_a_handler_does(handler: str, traits: Traits) -> None:
    """Whether it prints, and what it replies."""
    assert traits == probe(handler)


def test_a_probe_that_is_not_answered_says_so() -> None:
    """And a handler that is none is wrong usage."""
    with pytest.raises(StartError, match="--handler theirs:Rude does not answer two lines and their end: "):
        probe("theirs:Rude")
    with pytest.raises(ConfigError, match="theirs.* has no 'Nobody'"):
        probe("theirs:Nobody")


@pytest.mark.parametrize("job", ["bulk", "sessions", "echo", "idle"])
def test_each_job_measures_what_it_is_about(job: str) -> None:
    """With nothing wrong."""
    handler, traits = own_handler(job)
    done = measure(job, Choice("thread").command(handler, 10), traits, QUICK)
    assert "" == done.problem
    assert done.rate > 0
    assert 0 <= done.server_cores < (os.cpu_count() or 1) + 1
    assert 0 <= done.client_cores < 1.5
    assert (job == "idle") == (done.memory != 0)
    assert (job != "bulk") == (0 < done.p50 <= done.p99)
    assert done.megabytes == done.rate * 64 / 1e6


def test_silent_connections_are_waited_for_in_the_log() -> None:
    """Of a handler that does not reply."""
    done = measure("idle", Choice("thread").command("theirs:Silent", 10), Traits(False, "none"), QUICK)
    assert ("", 0.0) == (done.problem, done.rate)
    assert done.memory != 0


def test_a_handler_that_drops_lines_is_caught() -> None:
    """It answers the probe well."""
    traits = probe("theirs:Forgetful")
    assert Traits(True, "none") == traits
    done = measure("bulk", Choice("thread").command("theirs:Forgetful", 10), traits, QUICK)
    assert "lines" in done.problem and done.problem.endswith(" lost")


def test_wrong_replies_are_caught() -> None:
    """Each is compared with what was sent."""
    done = measure("echo", Choice("thread").command("theirs:Alike", 10), Traits(False, "echo"), QUICK)
    assert "a reply is not the line that was sent" == done.problem


def test_without_proc_the_cpu_seconds_are_those_of_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are more than none."""
    monkeypatch.setattr(RunningServer, "cpu", lambda self: None)
    handler, traits = own_handler("sessions")
    done = measure("sessions", Choice("thread").command(handler, 10), traits, QUICK)
    assert done.cpu > 0 and done.server_cores > 0


def test_a_generator_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one more thing that can be wrong."""
    monkeypatch.setattr(Plan, "task", lambda self, job, port, traits: self)
    handler, traits = own_handler("echo")
    assert "the generator broke off" == measure("echo", Choice("thread").command(handler, 10), traits, QUICK).problem


def test_nothing_is_left_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the server nor the generator."""
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(self: RunningServer) -> float:
        started.append(self._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunningServer, "cpu", interrupt)
    handler, traits = own_handler("echo")
    with pytest.raises(KeyboardInterrupt):
        measure("echo", Choice("thread").command(handler, 10), traits, QUICK)
    assert 0 == started[0].wait(DEADLINE)


def test_the_generator_is_a_program() -> None:
    """Of its own, so that its CPU seconds are its own."""
    assert "bench_load" in bench_runs.__dict__["Task"].__module__
    result = subprocess.run(
        [sys.executable, "-m", "stdserve.bench_load", '{"job": "bulk", "port": 1}'],
        input=b"go\n",
        capture_output=True,
        timeout=DEADLINE,
    )
    assert b"could not be reached" in result.stdout
