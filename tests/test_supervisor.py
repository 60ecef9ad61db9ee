"""The supervisor: all workers serve, the dead are replaced, the end is complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import DEADLINE, ServerProcess, children_of, connect, eventually, exchange, read_all


def test_all_workers_serve() -> None:
    """With two of three stopped by SIGSTOP, the third serves; each in its turn."""
    with ServerProcess("--workers", "3") as server:
        server.wait_for_log("^listening")
        workers = children_of(server.pid)
        assert 3 == len(workers)
        for number, worker in enumerate(workers):
            others = [pid for pid in workers if pid != worker]
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            assert b"" == exchange(server.address, b"worker %d\nexit\n" % number)
            for pid in others:
                os.kill(pid, signal.SIGCONT)
            server.wait_for_output(b"worker %d\n" % number)


def test_a_worker_that_dies_is_replaced_and_the_others_go_on() -> None:
    """Sessions of other workers do not notice."""
    with ServerProcess("--workers", "2") as server:
        server.wait_for_log("^listening")
        first, second = children_of(server.pid)
        os.kill(first, signal.SIGSTOP)
        with connect(server.address) as client:
            server.wait_for_log("^open")
            os.kill(first, signal.SIGKILL)
            server.wait_for_log(f"error worker {first} was ended by SIGKILL; another starts in ")
            eventually(lambda: len(children_of(server.pid)) == 2)
            assert second in children_of(server.pid)
            client.sendall(b"here\nexit\n")
            assert b"" == read_all(client)
        server.wait_for_output(b"here\n")
        assert 0 == server.stop()


def test_a_worker_that_ends_by_itself_is_replaced_too() -> None:
    """SIGTERM to one worker is not a stop of the server."""
    with ServerProcess("--workers", "2") as server:
        server.wait_for_log("^listening")
        first, second = children_of(server.pid)
        eventually(lambda: catches(first, signal.SIGTERM))
        os.kill(first, signal.SIGTERM)
        server.wait_for_log(f"error worker {first} ended with status 0; another starts in ")
        eventually(lambda: len(children_of(server.pid)) == 2)


def catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler of its own for a signal (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (signum - 1) & 1)


def test_sigkill_to_a_child_of_a_worker_leaves_the_worker_alone() -> None:
    """Fork mode under workers."""
    with ServerProcess("--workers", "2", "--mode", "fork") as server:
        with connect(server.address) as client:
            server.wait_for_log("^open")
            eventually(lambda: any(children_of(worker) for worker in children_of(server.pid)))
            (child,) = [child for worker in children_of(server.pid) for child in children_of(worker)]
            os.kill(child, signal.SIGKILL)
            assert b"" == read_all(client)
        server.wait_for_log(r"^error .* child \d+ was ended")
        assert 0 == server.stop()
        assert not [line for line in server.log if line.startswith("error worker")]


SCRIPT = """
import logging, os, signal, sys, threading
from stdserve.supervisor import Supervisor
logging.basicConfig(level="DEBUG", format="%(message)s", stream=sys.stderr)
{work}
def alive(): print("alive", flush=True)
supervisor = Supervisor(work, {count}, patience={patience}, fatal=(3,){more})
sys.exit(supervisor.run(lambda: print("ready", flush=True)))
"""


def script(work: str, count: int = 1, patience: float = 5, more: str = "") -> ServerProcess:
    """A supervisor of workers that do as they are told here."""
    code = SCRIPT.format(work=work, count=count, patience=patience, more=more)
    return ServerProcess(port=None, command=(sys.executable, "-c", code))


def test_a_fatal_status_stops_everything() -> None:
    """No other worker would fare better."""
    work = (
        "reader, writer = os.pipe()\n"
        "os.write(writer, b'x')\n"
        "os.set_blocking(reader, False)\n"
        "def work(beat):\n"
        "    try:\n"
        "        os.read(reader, 1)\n"
        "    except BlockingIOError:\n"
        "        return beat() or signal.pause()\n"
        "    return 3\n"
    )
    with script(work, count=2) as supervisor:
        assert 3 == supervisor.wait()
        assert b"" == supervisor.output


def test_ready_is_told_once_when_the_last_of_all_workers_serves() -> None:
    """Not before, though the others do; and not again for one that takes another's place."""
    work = (
        "reader, writer = os.pipe()\n"
        "os.write(writer, b'xx')\n"
        "def work(beat):\n"
        "    os.read(reader, 1)\n"
        "    beat()\n"
        "    print('serves', flush=True)\n"
        "    signal.pause()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os.write(writer, b'xx'))\n"
    )
    with script(work, count=3) as supervisor:
        eventually(lambda: supervisor.output.count(b"serves") == 2)
        assert b"ready" not in supervisor.output
        supervisor.process.send_signal(signal.SIGUSR1)
        supervisor.wait_for_output(b"ready\n")
        os.kill(children_of(supervisor.pid)[0], signal.SIGKILL)
        eventually(lambda: supervisor.output.count(b"serves") == 4)
        assert 0 == supervisor.stop()
        assert 1 == supervisor.output.count(b"ready")


def test_it_says_that_all_is_alive_only_while_every_worker_beats() -> None:
    """A worker that is stuck silences it, for as long as that lasts; one that died is replaced, no more."""
    work = "import select\ndef work(beat):\n    while True:\n        beat()\n        select.select([], [], [], 0.05)\n"
    with script(work, count=2, more=", alive=alive, beat_seconds=0.1") as supervisor:
        supervisor.wait_for_output(b"alive\nalive\n")
        first, second = children_of(supervisor.pid)
        os.kill(first, signal.SIGSTOP)
        silent_for_a_second(supervisor)
        os.kill(first, signal.SIGCONT)
        supervisor.wait_for_output(supervisor.output + b"alive\nalive\n")
        os.kill(second, signal.SIGKILL)
        supervisor.wait_for_log("worker .* started", count=3)
        supervisor.wait_for_output(supervisor.output + b"alive\nalive\n")
        assert 0 == supervisor.stop()


def silent_for_a_second(process: ServerProcess) -> None:
    """Return when nothing was written for that long."""
    before, pause = b"", threading.Event()
    while before != process.output:
        before = process.output
        pause.wait(1)


def test_a_heart_that_beats_too_fast_or_stops_costs_nothing() -> None:
    """What does not fit the pipe is not needed; an end that was closed is not waited for."""
    work = (
        "def work(beat):\n"
        "    os.kill(os.getppid(), signal.SIGSTOP)\n"
        "    for _ in range(70000): beat()\n"
        "    os.kill(os.getppid(), signal.SIGCONT)\n"
        "    signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "    os.closerange(3, 100)\n"
        "    beat()\n"
        "    print('beaten', flush=True)\n"
        "    signal.pause()\n"
        "    return 0\n"
    )
    with script(work) as supervisor:
        supervisor.wait_for_output(b"ready\n")
        supervisor.wait_for_output(b"beaten\n")
        started = cpu_seconds(supervisor.pid)
        threading.Event().wait(1)
        assert cpu_seconds(supervisor.pid) - started < 0.5
        assert 0 == supervisor.stop()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_worker_that_raises_is_logged_and_started_again_later_and_later() -> None:
    """With its traceback; the wait doubles."""
    with script("def work(beat):\n    raise LookupError('no work')") as supervisor:
        for wait in ("0.1", "0.2", "0.4"):
            supervisor.wait_for_log(f"error worker .* ended with status 70; another starts in {wait} s")
        supervisor.wait_for_log("LookupError: no work")
        assert 0 == supervisor.stop()


def test_workers_that_do_not_end_are_killed_at_the_deadline() -> None:
    """SIGTERM was not enough."""
    work = (
        "def work(beat):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    print('deaf', flush=True)\n"
        "    signal.pause()"
    )
    with script(work, count=2, patience=0.2) as supervisor:
        eventually(lambda: supervisor.output.count(b"deaf") == 2)
        pids = children_of(supervisor.pid)
        assert 0 == supervisor.stop()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_every_signal_is_passed_on() -> None:
    """The first lets workers finish; what a second one means is theirs to know."""
    work = (
        "def work(beat):\n"
        "    count = []\n"
        "    signal.signal(signal.SIGTERM, lambda *_: (count.append(1), print('told', flush=True)))\n"
        "    print('up', flush=True)\n"
        "    while len(count) < 2: signal.pause()\n"
        "    return 0"
    )
    with script(work) as supervisor:
        supervisor.wait_for_output(b"up")
        supervisor.process.send_signal(signal.SIGINT)
        supervisor.wait_for_output(b"told")
        assert 0 == supervisor.stop()
        assert 2 == supervisor.output.count(b"told")


def test_where_no_pidfd_can_be_had_workers_are_reaped_all_the_same() -> None:
    """By looking now and then."""
    with script("del os.pidfd_open\ndef work(beat):\n    signal.pause()", count=2) as supervisor:
        supervisor.wait_for_log("worker .* started", count=2)
        os.kill(children_of(supervisor.pid)[0], signal.SIGKILL)
        supervisor.wait_for_log("ended by SIGKILL")
        supervisor.wait_for_log("worker .* started", count=3)
        assert 0 == supervisor.stop()


def test_a_worker_that_cannot_start_ends_serve_with_a_start_error() -> None:
    """Exit code 3 on the command line."""
    code = (
        "import stdserve, sys\n"
        "class Fails(stdserve.ThreadServer):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        raise stdserve.StartError('not today')\n"
        "stdserve.register_mode('fails', Fails)\n"
        "from stdserve.cli import main\n"
        "sys.exit(main(['0', '--mode', 'fails', '--workers', '2']))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert 3 == result.returncode
    assert "error not today" in result.stderr
    assert "stdserve: a worker could not start" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_the_sessions_of_all_workers(signum: int) -> None:
    """Each prints what it has; nobody is left."""
    with ServerProcess("--workers", "3") as server:
        clients = [connect(server.address) for _ in range(9)]
        server.wait_for_log("^open", count=9)
        for number, client in enumerate(clients):
            client.sendall(b"unfinished %d" % number)
        assert 0 == server.stop(signum)
        assert sorted(b"unfinished %d" % number for number in range(9)) == sorted(server.output.splitlines())
        for client in clients:
            assert b"" == read_all(client)
            client.close()
