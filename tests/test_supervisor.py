"""The supervisor: all workers serve, the dead are replaced, the end is complete."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
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
from stdserve.supervisor import Hooks, Supervisor
logging.basicConfig(level="DEBUG", format="%(message)s", stream=sys.stderr)
{work}
def alive(): print("alive", flush=True)
def ready(): print("ready", flush=True)
supervisor = Supervisor(work, {count}, patience={patience}, fatal=(4,), hooks=Hooks(ready{hooks}){more})
status = supervisor.run()
print("reason:", supervisor.reason, file=sys.stderr, flush=True)
sys.exit(status)
"""


def script(work: str, count: int = 1, patience: float = 5, more: str = "", hooks: str = "") -> ServerProcess:
    """A supervisor of workers that do as they are told here."""
    code = SCRIPT.format(work=work, count=count, patience=patience, more=more, hooks=hooks)
    return ServerProcess(port=None, command=(sys.executable, "-c", code))


def test_a_fatal_status_stops_everything() -> None:
    """No other worker would fare better."""
    work = (
        "reader, writer = os.pipe()\n"
        "os.write(writer, b'x')\n"
        "os.set_blocking(reader, False)\n"
        "def work(link):\n"
        "    try:\n"
        "        os.read(reader, 1)\n"
        "    except BlockingIOError:\n"
        "        return link.beat() or signal.pause()\n"
        "    return 4\n"
    )
    with script(work, count=2) as supervisor:
        assert 4 == supervisor.wait()
        assert b"" == supervisor.output


def test_ready_is_told_once_when_the_last_of_all_workers_serves() -> None:
    """Not before, though the others do; and not again for one that takes another's place."""
    work = (
        "reader, writer = os.pipe()\n"
        "os.write(writer, b'xx')\n"
        "def work(link):\n"
        "    os.read(reader, 1)\n"
        "    link.beat()\n"
        "    print('serves', flush=True)\n"
        "    signal.pause()\n"
        "signal.signal(signal.SIGVTALRM, lambda *_: os.write(writer, b'xx'))\n"
    )
    with script(work, count=3) as supervisor:
        eventually(lambda: supervisor.output.count(b"serves") == 2)
        assert b"ready" not in supervisor.output
        supervisor.process.send_signal(signal.SIGVTALRM)
        supervisor.wait_for_output(b"ready\n")
        os.kill(children_of(supervisor.pid)[0], signal.SIGKILL)
        eventually(lambda: supervisor.output.count(b"serves") == 4)
        assert 0 == supervisor.stop()
        assert 1 == supervisor.output.count(b"ready")


def test_it_says_that_all_is_alive_only_while_every_worker_beats() -> None:
    """A worker that is stuck silences it, for as long as that lasts; one that died is replaced, no more."""
    work = "def work(link):\n    while True:\n        link.beat()\n        threading.Event().wait(0.05)\n"
    with script(work, count=2, hooks=", alive=alive, alive_seconds=0.1") as supervisor:
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
        "def work(link):\n"
        "    os.kill(os.getppid(), signal.SIGSTOP)\n"
        "    for _ in range(70000): link.beat()\n"
        "    os.kill(os.getppid(), signal.SIGCONT)\n"
        "    signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "    os.closerange(3, 100)\n"
        "    link.beat()\n"
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


def test_workers_that_have_ended_cost_nothing() -> None:
    """Though others, forked later, inherited what their end was to be noticed by."""
    with script("def work(link):\n    link.beat()\n    signal.pause()\n", count=3) as supervisor:
        supervisor.wait_for_output(b"ready\n")
        for number, worker in enumerate(children_of(supervisor.pid)):
            os.kill(worker, signal.SIGKILL)
            supervisor.wait_for_log("worker .* started", count=4 + number)
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
    with script("def work(link):\n    link.beat()\n    raise LookupError('no work')") as supervisor:
        for wait in ("0.1", "0.2", "0.4"):
            supervisor.wait_for_log(f"error worker .* ended with status 70; another starts in {wait} s")
        supervisor.wait_for_log("LookupError: no work")
        assert 0 == supervisor.stop()


def test_workers_that_do_not_end_are_killed_at_the_deadline() -> None:
    """SIGTERM was not enough."""
    work = (
        "def work(link):\n"
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
        "def work(link):\n"
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
    with script("del os.pidfd_open\ndef work(link):\n    link.beat()\n    signal.pause()", count=2) as supervisor:
        supervisor.wait_for_output(b"ready\n")
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
    assert ["stdserve: a worker could not start: not today"] == result.stderr.splitlines()


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


def test_a_worker_that_fails_before_all_have_served_ends_everything() -> None:
    """The status is that of a bad start; the reason is the worker's own words, or how it ended."""
    for what, reason in (
        ("return link.explain('the wrong day') or 7", "the wrong day"),
        ("return 5", "worker \\d+ ended with status 5"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "worker \\d+ was ended by SIGKILL"),
    ):
        with script(f"def work(link):\n    {what}\n", count=2) as supervisor:
            assert 3 == supervisor.wait()
            supervisor.wait_for_log(f"^reason: {reason}$")
            assert b"" == supervisor.output


def test_a_worker_that_takes_too_long_to_start_ends_the_first_start() -> None:
    """With its stack in the log."""
    work = "def work(link):\n    threading.Event().wait()\n"
    with script(work, more=", timeout=0.5") as supervisor:
        assert 3 == supervisor.wait()
        supervisor.wait_for_log("^reason: worker .* is not ready after 0.5 s$")
        supervisor.wait_for_log("^stack worker .*: .* in work$")


def test_a_worker_that_stands_still_is_shown_killed_and_replaced() -> None:
    """The stacks of all of its threads are in the log; one that is stopped has none to show, and is killed."""
    work = (
        "import select\n"
        "def hang(): select.select([], [], [])\n"
        "def work(link):\n"
        "    reader, stuck = os.pipe()\n"
        "    signal.signal(signal.SIGUSR2, lambda *_: os.write(stuck, b'x'))\n"
        "    threading.Thread(target=hang, daemon=True).start()\n"
        "    while True:\n"
        "        link.beat()\n"
        "        if select.select([reader], [], [], 0.05)[0]: hang()\n"
    )
    with script(work, count=2, more=", timeout=2") as supervisor:
        supervisor.wait_for_output(b"ready\n")
        first, second = children_of(supervisor.pid)
        eventually(lambda: catches(first, signal.SIGUSR2))
        os.kill(first, signal.SIGUSR2)
        supervisor.wait_for_log(f"^error worker {first} stands still after 2 s; it is killed, another starts in 0 s")
        supervisor.wait_for_log(f"^stack worker {first}: .* in hang$", count=2)
        supervisor.wait_for_log("worker .* started", count=3)
        os.kill(second, signal.SIGSTOP)
        supervisor.wait_for_log(f"^error worker {second} stands still after 2 s")
        supervisor.wait_for_log("worker .* started", count=4)
        supervisor.wait_for_log(f"^worker {second} was ended by SIGKILL")
        assert 0 == supervisor.stop()


def test_a_supervisor_that_was_stopped_itself_blames_no_worker() -> None:
    """As by Ctrl-Z, or on a machine that was paused."""
    work = "def work(link):\n    while True:\n        link.beat()\n        threading.Event().wait(0.05)\n"
    with script(work, more=", timeout=2") as supervisor:
        supervisor.wait_for_output(b"ready\n")
        pids = [supervisor.pid, *children_of(supervisor.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(2.5)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        silent_for_a_second(supervisor)
        assert pids[1:] == children_of(supervisor.pid)
        assert 0 == supervisor.stop()


STUCK = """
import stdserve, sys, threading
class Stuck(stdserve.ThreadServer):
    def verify_request(self, request, client_address):
        threading.Event().wait()
stdserve.register_mode('stuck', Stuck)
from stdserve.cli import main
sys.exit(main(['0', '--mode', 'stuck', '--workers', '1', '--worker-timeout', '1s', '--log-format', 'text']))
"""


def test_an_accept_loop_that_stands_still_is_replaced_and_the_server_goes_on() -> None:
    """A hook that never returns."""
    with ServerProcess(port=None, command=(sys.executable, "-c", STUCK)) as server:
        with connect(server.address) as client:
            (worker,) = children_of(server.pid)
            server.wait_for_log(f"^error worker {worker} stands still after 1 s")
            server.wait_for_log(f"^stack worker {worker}: .* in verify_request$")
            assert b"" == read_all(client)
        eventually(lambda: len(children_of(server.pid)) == 1 and worker not in children_of(server.pid))
        assert 0 == server.stop()


@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event"])
def test_a_worker_that_is_busy_does_not_stand_still(mode: str) -> None:
    """With a session that lasts longer than the worker may be silent."""
    with ServerProcess("--workers", "1", "--mode", mode, "--worker-timeout", "2s") as server:
        with connect(server.address) as client:
            server.wait_for_log("^open")
            workers = children_of(server.pid)
            threading.Event().wait(3)
            client.sendall(b"still here\nexit\n")
            assert b"" == read_all(client)
        server.wait_for_output(b"still here\n")
        assert workers == children_of(server.pid)
        assert 0 == server.stop()


def test_one_worker_more_and_one_fewer_but_never_none() -> None:
    """SIGTTIN, SIGTTOU."""
    with ServerProcess("--workers", "2") as server:
        server.wait_for_log("^listening")
        up, down = signal.SIGTTIN, signal.SIGTTOU
        counts = [(up, 3), (up, 4), (down, 3), (down, 2), (down, 1), (down, 1), (up, 2)]
        for number, (signum, count) in enumerate(counts, 1):
            server.process.send_signal(signum)
            server.wait_for_log("^workers count=", number)
            eventually(lambda count=count: len(children_of(server.pid)) == count)  # type: ignore[misc]
            assert b"" == exchange(server.address, b"now %d\nexit\n" % count)
        assert 0 == server.stop()
        assert [f"workers count={count}" for _, count in counts] == words_of(server, "workers")
        assert [] == words_of(server, "error")


def words_of(server: ServerProcess, word: str) -> list[str]:
    """The lines of the log that begin with a word."""
    return [line for line in server.log if line.split()[0] == word]


SLEEPER = """
import stdserve, threading
class Sleeper(stdserve.LineHandler):
    def line_received(self, line):
        self.reply("asleep")
        self.wfile.flush()
        self.sleep_soundly()
    def sleep_soundly(self):
        threading.Event().wait()
"""


@pytest.mark.parametrize("words", [[], ["--workers", "2"], ["--mode", "fork", "--workers", "1"], ["--mode", "single"]])
def test_sigusr1_shows_where_every_thread_is(words: list[str], tmp_path: Path) -> None:
    """Of every worker, and of the processes of sessions; also without workers. All goes on."""
    (tmp_path / "mine.py").write_text(SLEEPER)
    words = [*words, "--handler", "mine:Sleeper", "--graceful-timeout", "100ms"]
    with ServerProcess(*words, cwd=tmp_path) as server, connect(server.address) as client:
        client.sendall(b"one\n")
        assert b"asleep\n" == client.recv(100)
        sleeps = "^stack pid=.*: .*mine:[0-9]+ line_received > mine:[0-9]+ sleep_soundly > threading:"

        def shown() -> bool:
            """It may not sleep yet when it is asked."""
            server.process.send_signal(signal.SIGUSR1)
            return any(re.search(sleeps, line) for line in server.log)

        eventually(shown)
        for pid in children_of(server.pid) or [server.pid]:
            server.wait_for_log(f"^stack pid={pid} thread=MainThread: .* serve_forever > ")
        assert 0 == server.stop()


def test_sigusr1_shows_a_worker_that_is_starting_too() -> None:
    """What it waits for is what one wants to know."""
    work = "def wait_for_what(): threading.Event().wait()\ndef work(link):\n    wait_for_what()\n"
    with script(work) as supervisor:
        eventually(lambda: children_of(supervisor.pid))
        (worker,) = children_of(supervisor.pid)
        eventually(lambda: catches(worker, signal.SIGUSR1))

        def shown() -> bool:
            # It may not have come there yet.
            supervisor.process.send_signal(signal.SIGUSR1)
            pattern = f"^stack pid={worker} thread=MainThread: .* work > __main__:.* wait_for_what"
            return any(re.match(pattern, line) for line in supervisor.log)

        eventually(shown)
        assert 0 == supervisor.stop()


def test_a_worker_that_crashes_shows_its_stacks() -> None:
    """Whatever it crashes of."""
    work = (
        "import faulthandler\n"
        "def crash(): faulthandler._sigsegv()\n"
        "def work(link):\n"
        "    link.beat()\n"
        "    signal.signal(signal.SIGUSR2, lambda *_: crash())\n"
        "    threading.Event().wait()\n"
    )
    with script(work) as supervisor:
        supervisor.wait_for_output(b"ready\n")
        (worker,) = children_of(supervisor.pid)
        eventually(lambda: catches(worker, signal.SIGUSR2))
        os.kill(worker, signal.SIGUSR2)
        supervisor.wait_for_log(f"^stack worker {worker}: .* in crash$")
        supervisor.wait_for_log(f"^error worker {worker} was ended by SIGSEGV; another starts in ")
        assert 0 == supervisor.stop()


@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event"])
def test_kill_9_of_the_supervisor_leaves_nobody_and_the_port_free(mode: str) -> None:
    """The workers notice, let their sessions finish, and go; what was received is not lost."""
    with ServerProcess("--workers", "2", "--mode", mode, "-b", "127.0.0.1:0") as server:
        with connect(server.address) as client:
            client.sendall(b"received")
            server.wait_for_log("^open")
            pids = descendants_of(server.pid)
            server.process.kill()
            assert b"" == read_all(client)
        eventually(lambda: not [pid for pid in pids if alive(pid)])
        server.wait_for_output(b"received\n")
        server.wait_for_log("^error the supervisor has gone; worker .* ends", count=2)
        with ServerProcess("-b", f"127.0.0.1:{server.port}", port=None) as another:
            assert b"" == exchange(another.address, b"exit\n")


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie that waits for the init of a container (Linux)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, and before it was read
        return False


def test_a_worker_that_has_had_its_sessions_is_replaced_without_a_gap(tmp_path: Path) -> None:
    """One after the other is served; some by other workers than the first."""
    (tmp_path / "mine.py").write_text(
        "import os, stdserve\n"
        "class Pid(stdserve.LineHandler):\n"
        "    def line_received(self, line):\n"
        "        return str(os.getpid())\n"
    )
    words = ["--workers", "1", "--max-sessions", "2", "--max-sessions-jitter", "2", "--handler", "mine:Pid"]
    pids: set[bytes] = set()
    with ServerProcess(*words, cwd=tmp_path) as server:

        def third_worker() -> bool:
            pids.add(exchange(server.address, b"one\n"))
            return len(pids) >= 3

        eventually(third_worker)
        assert b"" not in pids
        assert 0 == server.stop()
        assert [] == words_of(server, "error")


def test_a_worker_that_leaves_is_replaced_before_it_has_gone() -> None:
    """It says so as its stop begins."""
    work = (
        "def work(link):\n"
        "    signal.signal(signal.SIGTERM, lambda *_: link.leave())\n"
        "    signal.signal(signal.SIGUSR2, lambda *_: os._exit(0))\n"
        "    link.beat()\n"
        "    print(link.number, flush=True)\n"
        "    while True: signal.pause()\n"
    )
    with script(work, patience=1, more=", timeout=100") as supervisor:
        supervisor.wait_for_output(b"ready\n")
        (first,) = children_of(supervisor.pid)
        os.kill(first, signal.SIGTERM)
        supervisor.wait_for_log("^worker .* started", count=2)
        assert alive(first)
        supervisor.wait_for_output(b"1\n")
        os.kill(first, signal.SIGUSR2)
        supervisor.wait_for_log(f"^error worker {first} ended with status 0; another starts in ")
        (second,) = children_of(supervisor.pid)
        os.kill(second, signal.SIGKILL)
        supervisor.wait_for_log("^worker .* started", count=3)
        eventually(lambda: supervisor.output.count(b"0\n") == 2)
        assert 0 == supervisor.stop()


def test_where_no_worker_can_be_started_it_is_tried_again() -> None:
    """Out of descriptors; the others go on."""
    work = (
        "import resource\n"
        "least, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "def limit(*_): resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))\n"
        "def unlimit(*_): resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))\n"
        "signal.signal(signal.SIGVTALRM, limit)\n"
        "signal.signal(signal.SIGWINCH, unlimit)\n"
        "def work(link):\n"
        "    link.beat()\n"
        "    signal.pause()\n"
    )
    with script(work, count=2) as supervisor:
        supervisor.wait_for_output(b"ready\n")
        supervisor.process.send_signal(signal.SIGVTALRM)
        limits = Path(f"/proc/{supervisor.pid}/limits")
        eventually(lambda: "Max open files            3 " in limits.read_text())
        os.kill(children_of(supervisor.pid)[0], signal.SIGKILL)
        supervisor.wait_for_log("^error no worker can be started: .*Too many open files; tried again in 0.2 s")
        assert 1 == len(children_of(supervisor.pid))
        supervisor.process.send_signal(signal.SIGWINCH)
        supervisor.wait_for_log("^worker .* started", count=3)
        assert 0 == supervisor.stop()


def test_a_fork_that_fails_leaves_no_descriptor_behind() -> None:
    """No process to be had."""
    work = (
        "import errno\n"
        "def fork(): raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "os.fork = fork\n"
        "def work(link): pass\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "import atexit\n"
        "atexit.register(lambda: print(len(os.listdir('/proc/self/fd')) - before))\n"
    )
    with script(work) as supervisor:
        assert 3 == supervisor.wait()
        supervisor.wait_for_log("^reason: .*Resource temporarily unavailable")
        assert b"0\n" == supervisor.output


def test_the_callers_signal_handlers_come_back() -> None:
    """All of them."""
    work = (
        "def mine(*_): print('mine', flush=True)\n"
        "signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1)\n"
        "for signum in signals: signal.signal(signum, mine)\n"
        "def work(link):\n"
        "    link.beat()\n"
        "    signal.pause()\n"
        "import atexit\n"
        "atexit.register(lambda: [signal.raise_signal(signum) for signum in signals])\n"
    )
    with script(work) as supervisor:
        supervisor.wait_for_output(b"ready\n")
        assert 0 == supervisor.stop()
        assert b"ready\n" + 6 * b"mine\n" == supervisor.output


IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests themselves are run with nohup
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "stdserve", *sys.argv[2:]])
"""


def test_workers_do_not_outlive_their_terminal() -> None:
    """A window that is closed ends what runs in it; before that, SIGHUP is a reload."""
    terminal, side = pty.openpty()
    command = (sys.executable, "-c", IN_A_TERMINAL, str(side))
    with ServerProcess("0", "--workers", "2", port=None, command=command, pass_fds=[side]) as server:
        os.close(side)
        server.wait_for_log("^listening")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^reloaded")
        os.close(terminal)
        assert 0 == server.wait()
        assert ["error the terminal was closed"] == words_of(server, "error")


def test_auto_is_a_worker_for_each_cpu() -> None:
    """Of those that this process may use."""
    with ServerProcess("-w", "auto") as server:
        server.wait_for_log("^listening")
        assert len(os.sched_getaffinity(0)) == len(children_of(server.pid))


def test_nothing_that_the_handlers_module_does_is_done_in_the_supervisor(tmp_path: Path) -> None:
    """It is imported by the workers, and once for a try."""
    (tmp_path / "mine.py").write_text(
        "import stdserve, os\nos.write(2, b'%d\\n' % os.getpid())\nclass Mine(stdserve.EchoHandler): pass\n"
    )
    with ServerProcess("-w", "2", "--handler", "mine:Mine", cwd=tmp_path) as server:
        server.wait_for_log("^listening")
        workers = children_of(server.pid)
        imported = [int(line) for line in server.log if line.isdigit()]
        assert 3 == len(set(imported)) == len(imported)
        assert set(workers) < set(imported)
        assert server.pid not in imported
