"""The servers of the bench: real processes, their CPU seconds and memory, and what is said of their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import children_of, eventually, exchange, peer_program

from stdserve import bench_servers
from stdserve.bench_servers import Choice, RunningServer, resident, tree_of, wait_for
from stdserve.errors import ConfigError, StartError

ECHO = "stdserve:EchoHandler"

#: Says that it listens, then does what is asked for.
SCRIPT = "import sys, time, signal; print('listening on 127.0.0.1:1', file=sys.stderr, flush=True); "

linux = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")


def script(code: str) -> list[str]:
    """The command of a server that is none."""
    return [sys.executable, "-c", SCRIPT + code]


@pytest.mark.parametrize(
    ("choice", "name", "flags"),
    [
        (Choice("thread"), "thread", "--mode thread"),
        (Choice("single", 3), "single, 3 workers", "--mode single --workers 3"),
    ],
)
def test_a_choice_has_a_name_and_its_flags(choice: Choice, name: str, flags: str) -> None:
    """For the table, and for what to type."""
    assert (name, flags) == (str(choice), choice.flags)
    assert flags.split() == choice.command(ECHO, 10)[-len(flags.split()) :]


#: Interrupts its parent, a given time after each line.
INTERRUPTER = """
import os, signal, sys, time
for line in sys.stdin:
    time.sleep(float(line))
    os.kill(os.getppid(), signal.SIGINT)
"""


@linux
def test_an_interrupt_while_it_starts_leaves_no_process(tmp_path: Path) -> None:
    """Wherever it comes: before the fork, after it, while the new process is looked at."""
    with subprocess.Popen([sys.executable, "-uc", INTERRUPTER], stdin=subprocess.PIPE) as other:
        assert other.stdin is not None
        for turn in range(60):
            with pytest.raises(KeyboardInterrupt):
                other.stdin.write(b"%f\n" % (turn / 20_000))
                other.stdin.flush()
                with RunningServer([sys.executable, "-S", "-c", "import time; time.sleep(99)"], tmp_path):
                    pass
        assert [other.pid] == children_of(os.getpid())
        other.stdin.close()


def test_room_for_many_clients_is_asked_for() -> None:
    """A fork server has fewer by default."""
    assert "--max-conns" not in Choice("fork").command(ECHO, 190)
    assert ["--max-conns", "508"] == Choice("fork").command(ECHO, 500)[-2:]


@pytest.mark.parametrize("choice", [Choice("thread"), Choice("fork"), Choice("thread", 2)], ids=str)
def test_a_server_runs_is_measured_and_stops(choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are those of the command, not of the environment."""
    monkeypatch.setenv("STDSERVE_FRAMING", "chunk")
    with RunningServer(choice.command(ECHO, 10), tmp_path) as server:
        assert b"one\n" == exchange(("127.0.0.1", server.port), b"one\n\n")
        assert server.wait_for_sessions(1)
        assert server.memory() > 1000
        life = server.stop()
        assert 0 < life < 60
    assert "" == server.problem
    assert b"one\n" == server.output.read_bytes()


FAMILY = """
import os

def burn():
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass

if os.fork() == 0:
    burn()
    os._exit(0)
os.wait()
if os.fork() == 0:
    burn()
    time.sleep(99)
time.sleep(99)
"""


@linux
def test_the_cpu_seconds_are_those_of_the_whole_tree(tmp_path: Path) -> None:
    """Of children that live, and of those that have ended: 0.2 s each."""
    with RunningServer(script(f"exec({FAMILY!r})"), tmp_path) as server:
        eventually(lambda: (server.cpu() or 0.0) > 0.36)
        (child,) = children_of(server._process.pid)
        os.kill(child, signal.SIGKILL)


def test_without_proc_there_is_ps(tmp_path: Path) -> None:
    """And no CPU seconds before the end."""
    peer_program("ps")
    with RunningServer(Choice("thread").command(ECHO, 10), tmp_path, proc=tmp_path / "absent") as server:
        assert server.cpu() is None
        assert server.memory() > 1000
        assert server.stop() > 0


def test_without_ps_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """0, and no error."""
    monkeypatch.setenv("PATH", "")
    assert 0 == resident(os.getpid())


def test_a_process_that_has_gone_has_nothing(tmp_path: Path) -> None:
    """It may end while its tree is looked at."""
    with RunningServer(Choice("thread").command(ECHO, 10), tmp_path) as server:
        server.stop()
        assert 0.0 == (server.cpu() or 0.0)
        assert 0.0 == server.memory()


def test_a_tree_is_all_below() -> None:
    """Whatever the order of pids."""
    assert [5, 2, 9, 1] == tree_of(5, {1: 9, 2: 5, 5: 0, 7: 0, 9: 5, 8: 7})


def test_a_wrong_command_says_what_is_wrong(tmp_path: Path) -> None:
    """In the server's own words."""
    with pytest.raises(ConfigError, match="the server does not start: .*cannot import 'nosuch'"):
        RunningServer(Choice("thread").command("nosuch:Handler", 10), tmp_path)
    with pytest.raises(StartError, match="the server does not start: it says nothing"):
        RunningServer([sys.executable, "-c", "pass"], tmp_path)


def test_output_is_buffered_whoever_looks_at_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONUNBUFFERED, which containers often have, would be measured instead of a server that prints."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    code = "import os; print('PYTHONUNBUFFERED' in os.environ, file=sys.stderr, flush=True)"
    with RunningServer(script(code), tmp_path) as server:
        eventually(lambda: server.last_words == "False")


def test_a_bad_end_is_a_problem(tmp_path: Path) -> None:
    """With its last words."""
    with RunningServer(script("print('alas', file=sys.stderr); sys.exit(3)"), tmp_path) as server:
        eventually(lambda: server.problem)
    assert "the server ended with 3: alas" == server.problem


def test_a_server_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    monkeypatch.setattr(bench_servers, "PATIENCE", 0.5)
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', file=sys.stderr, flush=True); time.sleep(99)"
    with RunningServer(script(code), tmp_path) as server:
        eventually(lambda: server.last_words == "deaf")
        assert not server.wait_for_sessions(1)
    assert "the server ended with -9: deaf" == server.problem


def test_waiting_ends() -> None:
    """When it is true."""
    states = iter([False, True])
    assert wait_for(lambda: next(states))
