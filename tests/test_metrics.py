"""Counters in shared memory: exact whoever counts, whoever is killed, whoever reads meanwhile.

Forks are done in scripts of their own, where there is one thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import DEADLINE, eventually

from stdserve import rows
from stdserve.errors import StartError
from stdserve.metrics import Metrics, SessionRecord, Snapshot, WorkerCounters
from stdserve.protocol import EndReason
from stdserve.rows import BOUNDS, END_WORDS, FORKING, REJECT_WORDS, SessionRow

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

PREAMBLE = """
import os, random, signal, socket, sys, time
from stdserve.metrics import Metrics

def fork(run):
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    return pid

def session(row):
    row.open()
    row.add_received(1)
    row.end("exit")

def serve_for_ever(forks):
    counters = metrics.enter(0, forks=forks)
    while True:
        counters.beat()
        row = counters.take("peer")
        if forks:
            os.waitpid(fork(lambda: (row.adopt(), session(row))), 0)
        else:
            session(row)
        counters.give_back(row)

def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
"""


def run_forking(script: str) -> list[str]:
    """Run a script that forks; return the lines it printed. It must end well and leave nothing on standard error."""
    command = [sys.executable, "-bb", "-W", "error", "-c", PREAMBLE + textwrap.dedent(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=DEADLINE)
        finally:
            # What a script that failed has forked would go on for ever.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (0, "") == (process.returncode, errors)
    return output.splitlines()


def serve(counters: WorkerCounters, word: str = "exit", peer: str = "peer", size: int = 0) -> None:
    """Go through a whole session."""
    row = counters.take(peer)
    row.open()
    row.add_received(size)
    row.end(word)
    counters.give_back(row)


def nonzero(counts: dict[str, int]) -> dict[str, int]:
    """Leave out what did not happen."""
    return {word: count for word, count in counts.items() if count}


def check(snapshot: Snapshot) -> None:
    """Look at what must hold at every moment at which no session begins or ends."""
    assert snapshot.total == snapshot.open + sum(snapshot.ended.values())
    assert sum(snapshot.durations) == sum(snapshot.ended.values())


def test_every_reason_that_a_session_can_end_for_has_a_place() -> None:
    """The words are those of the protocol, and two more; so has every reason to refuse a peer that the code gives."""
    assert {reason.value for reason in EndReason} | {"killed", "other"} == set(END_WORDS)
    sources = [path.read_text(encoding="utf-8") for path in Path(rows.__file__).parent.glob("*.py")]
    refusals = {word for source in sources for word in re.findall(r'PeerError\(\s*"(\w+)"', source)}
    assert {"full", "address", "denied", "proxy"} <= refusals <= set(REJECT_WORDS)
    assert "other" == END_WORDS[-1] == REJECT_WORDS[-1]


def test_a_session_is_counted_from_its_opening_to_its_end() -> None:
    """Each number where it belongs."""
    metrics = Metrics(1, 10)
    counters = metrics.enter(0)
    row = counters.take("127.0.0.1:4000")
    assert 0 == metrics.snapshot().total
    row.name("192.0.2.1:5000")
    row.open()
    row.add_received(10)
    row.add_received(5)
    row.add_sent(7)
    row.add_lines_in(2)
    row.add_lines_out(1)
    (told,) = metrics.snapshot(sessions=True).sessions
    assert SessionRecord("192.0.2.1:5000", told.age, 15, 7, 2, 1, os.getpid()) == told
    assert 0 <= told.age < DEADLINE
    row.end("idle_timeout")
    counters.give_back(row)
    snapshot = metrics.snapshot(sessions=True)

    check(snapshot)
    assert (0, 1, ()) == (snapshot.open, snapshot.total, snapshot.sessions)
    assert {"idle_timeout": 1} == nonzero(snapshot.ended)
    assert (15, 7, 2, 1) == (snapshot.received, snapshot.sent, snapshot.lines_in, snapshot.lines_out)
    assert 0 < snapshot.seconds < DEADLINE


def test_the_next_session_in_a_row_begins_at_zero_and_the_totals_go_on() -> None:
    """A row is used again, from the lowest."""
    metrics = Metrics(1, 10)
    counters = metrics.enter(0)
    serve(counters, size=100)
    before = metrics.snapshot()
    row = counters.take("next")
    row.open()
    row.add_received(1)
    assert (1, 0, 0, 0) == row.counts
    assert 101 == metrics.snapshot().received
    row.end("eof")
    row.end("error")
    after = metrics.snapshot()
    check(after)
    assert {"exit": 1, "eof": 1} == nonzero(after.ended)
    assert before.seconds < after.seconds


def test_a_connection_that_becomes_no_session_is_only_rejected() -> None:
    """Before it has a row, or in the midst of its preamble; unknown words are other reasons."""
    metrics = Metrics(1, 10)
    counters = metrics.enter(0)
    counters.reject("full")
    counters.reject("full")
    row = counters.take("peer")
    row.reject("tls")
    row.reject("unheard of")
    counters.give_back(row)
    counters.count_accept_error()
    serve(counters, "unheard of")
    snapshot = metrics.snapshot()
    assert {"full": 2, "tls": 1, "other": 1} == nonzero(snapshot.rejected)
    assert (1, 1, {"other": 1}) == (snapshot.accept_errors, snapshot.total, nonzero(snapshot.ended))


@pytest.mark.parametrize(("seconds", "bucket"), [(0, 0), (0.01, 0), (0.0101, 1), (86400, 11), (86400.1, 12)])
def test_durations_are_counted_by_their_bounds(monkeypatch: pytest.MonkeyPatch, seconds: float, bucket: int) -> None:
    """A bound belongs to its bucket; beyond the last one there is one more."""
    metrics = Metrics(1, 10)
    counters = metrics.enter(0)
    now = 1_000_000
    monkeypatch.setattr(rows, "micros_now", lambda: now)
    row = counters.take("peer")
    row.open()
    now += round(seconds * 1_000_000)
    row.end("exit")
    snapshot = metrics.snapshot()
    assert len(BOUNDS) + 1 == len(snapshot.durations)
    assert [bucket] == [place for place, count in enumerate(snapshot.durations) if count]
    assert seconds == snapshot.seconds


@given(st.text())
def test_any_text_can_be_a_peer(text: str) -> None:
    """Its first 64 bytes are kept; nothing raises, no character is torn."""
    row = SessionRow(bytearray(rows.ROW_CELLS * rows.CELL))
    row.name(text)
    kept = row.peer
    encoded = text.encode("utf-8", "backslashreplace")
    assert encoded.startswith(kept.encode())
    assert len(encoded[:64].rstrip(b"\0")) - len(kept.encode()) < 4


def test_counts_of_eight_threads_are_exact_and_never_go_back() -> None:
    """Each counts in its row, and nobody waits for anybody; a reader sees totals grow."""
    metrics = Metrics(1, 8)
    counters = metrics.enter(0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def count(row: SessionRow) -> None:
        row.open()
        for _ in range(5000):
            row.add_received(3)
            row.add_lines_in(1)
        row.end("exit")
        counters.give_back(row)

    try:
        threads = [threading.Thread(target=count, args=(counters.take(f"peer {n}"),)) for n in range(8)]
        for thread in threads:
            thread.start()
        seen = 0
        while any(thread.is_alive() for thread in threads):
            snapshot = metrics.snapshot(sessions=True)
            assert seen <= snapshot.received
            seen = snapshot.received
        for thread in threads:
            thread.join(DEADLINE)
    finally:
        sys.setswitchinterval(interval)
    snapshot = metrics.snapshot()
    check(snapshot)
    assert (120_000, 40_000, 8, 0) == (snapshot.received, snapshot.lines_in, snapshot.total, snapshot.open)


def test_rows_are_given_back_by_any_thread() -> None:
    """The accept loop takes as many as there may be sessions, over and over, and none is lost or given twice."""
    metrics = Metrics(1, 2)
    counters = metrics.enter(0)
    for _ in range(200):
        taken = [counters.take("peer") for _ in range(4)]
        assert 4 == len(set(taken))
        threads = [threading.Thread(target=counters.give_back, args=(row,)) for row in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
    for _ in range(4):
        counters.take("peer").open()
    assert 4 == metrics.snapshot().open


def test_sessions_without_a_row_are_served_uncounted() -> None:
    """Where more than the cap have outlived the worker before; a row that comes free is used again."""
    metrics = Metrics(1, 1)
    counters = metrics.enter(0)
    first, second, third = (counters.take("peer") for _ in range(3))
    third.open()
    third.add_received(5)
    assert (0, 0) == (metrics.snapshot().open, metrics.snapshot().received)
    counters.give_back(third)
    counters.give_back(first)
    assert first is counters.take("peer")
    assert third not in (counters.take("peer"), second)


def test_workers_do_not_share_and_are_summed_up() -> None:
    """Each has its slot."""
    metrics = Metrics(3, 10)
    for number in (0, 2):
        serve(metrics.enter(number), size=10)
    snapshot = metrics.snapshot()
    assert (2, 20) == (snapshot.total, snapshot.received)
    assert [0, 2] == [worker.number for worker in snapshot.workers]
    for number in (-1, 3):
        with pytest.raises(IndexError, match="there are 3 slots"):
            metrics.enter(number)


def test_the_states_of_a_worker_are_told() -> None:
    """From its start to its end, with the age of its heartbeat."""
    metrics = Metrics(1, 10)

    def state() -> list[tuple[str, int]]:
        return [(worker.state, worker.open) for worker in metrics.snapshot().workers]

    assert [] == state()
    counters = metrics.enter(0)
    assert [("starting", 0)] == state()
    counters.serve()
    assert [("serving", 0)] == state()
    eventually(lambda: metrics.snapshot().workers[0].heartbeat > 0.2)

    def beats() -> bool:
        counters.beat()
        return metrics.snapshot().workers[0].heartbeat < 0.2

    eventually(beats)
    counters.take("peer").open()
    counters.drain()
    assert [("draining", 1)] == state()
    metrics.bury(0)
    assert [] == state()


def test_what_belongs_to_the_whole_server_is_told() -> None:
    """Drain, restarts, uptime, the queue of each listener that has one."""
    metrics = Metrics(1, 10)
    metrics.count_restart()
    metrics.drain()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as closed:
        closed.close()
        snapshot = metrics.snapshot([listener, closed])
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert (True, 1) == (snapshot.draining, snapshot.restarts)
    assert 0 < snapshot.uptime < DEADLINE
    if sys.platform == "linux":
        assert [(address, 0)] == [(backlog.address, backlog.waiting) for backlog in snapshot.backlogs]


def test_more_sessions_than_memory_could_count_are_a_start_error() -> None:
    """It says how many of what."""
    with pytest.raises(StartError, match=f"no memory to count {10**15} sessions in each of 3 workers"):
        Metrics(3, 10**15)


def test_the_oldest_session_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever row it is in."""
    metrics = Metrics(2, 10)
    for number, (worker, peer) in enumerate([(1, "first"), (0, "second"), (1, "third")]):
        monkeypatch.setattr(rows, "micros_now", lambda number=number: 1000 * number)
        metrics.enter(worker).take(peer).open()
    assert ["first", "second", "third"] == [session.peer for session in metrics.snapshot(sessions=True).sessions]


class Killed(BaseException):
    """The end of a process, in the midst of something."""


class DyingCells:
    """Cells whose writer is killed before its n-th store."""

    def __init__(self, cells: memoryview[int], stores: int) -> None:
        self.cells = cells
        self.left = stores

    def __getitem__(self, key: int) -> int:
        return self.cells[key]

    def __setitem__(self, key: int, value: int) -> None:
        if not self.left:
            raise Killed
        self.left -= 1
        self.cells[key] = value


def killed_after(stores: int, row: SessionRow, step: Callable[[], None]) -> bool:
    """Take a step of a row's life, but be killed after some stores; tell whether that happened."""
    cells = row._cells
    row._cells = DyingCells(cells, stores)  # type: ignore[assignment]
    try:
        step()
    except Killed:
        return True
    finally:
        row._cells = cells
    return False


@pytest.mark.parametrize("stores", range(8))
def test_whatever_step_a_session_was_killed_in_it_is_counted_once(monkeypatch: pytest.MonkeyPatch, stores: int) -> None:
    """Between any two stores of its opening and of its end."""
    now = 1_000_000
    monkeypatch.setattr(rows, "micros_now", lambda: now)
    metrics = Metrics(1, 1)
    counters = metrics.enter(0)
    serve(counters)
    row = counters.take("peer")

    def live() -> None:
        nonlocal now
        row.open()
        now += 2_000_000
        row.add_received(5)
        row.end("eof")

    killed = killed_after(stores, row, live)
    assert killed is (stores < 7)
    metrics.bury(0)
    snapshot = metrics.snapshot()
    check(snapshot)
    opened, received, ended = stores >= 2, stores >= 3, stores >= 7
    assert (0, 1 + opened, 5 * received) == (snapshot.open, snapshot.total, snapshot.received)
    assert 2.0 * (now > 1_000_000) == snapshot.seconds
    expected = {"exit": 1, **({"eof": 1} if ended else {"killed": 1} if opened else {})}
    assert expected == nonzero(snapshot.ended)
    serve(metrics.enter(0))
    check(metrics.snapshot())


@needs_fork
def test_what_a_child_wrote_before_sigkill_is_counted_and_nothing_twice() -> None:
    """The parent hears of each byte after it was counted: it is told one more at most."""
    assert ["1 1 0 {'killed': 1}", "True"] == run_forking("""
        metrics = Metrics(1, 10)
        counters = metrics.enter(0, forks=True)
        row = counters.take("peer")
        reader, writer = os.pipe()

        def child():
            row.adopt()
            row.open()
            while True:
                row.add_received(1)
                os.write(writer, b".")

        pid = fork(child)
        heard = 0
        while heard < 10_000:
            heard += len(os.read(reader, 1000))
        assert metrics.snapshot(sessions=True).sessions[0].peer == "peer"
        opened = metrics.snapshot().open
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(writer)
        while news := os.read(reader, 1000):
            heard += len(news)
        counters.give_back(row)
        now = metrics.snapshot()
        print(opened, now.total, now.open, {word: count for word, count in now.ended.items() if count})
        print(heard <= now.received <= heard + 1)
    """)


@needs_fork
@pytest.mark.parametrize("forks", [False, True])
def test_totals_hold_through_a_hundred_sigkills_of_a_worker(forks: bool) -> None:
    """It opens and ends sessions as fast as it can, and dies anywhere; a new one takes its slot each time."""
    told = run_forking(f"""
        metrics = Metrics(1, 100)
        seen = 0
        for _ in range(100):
            alive, held = os.pipe()
            pid = fork(lambda: serve_for_ever({forks}))
            os.close(held)
            until(lambda: metrics.snapshot().total > seen + 3)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            metrics.bury(0)
            os.read(alive, 1)  # EOF: its child, where it has one, has come to its end
            os.close(alive)
            metrics.bury(0)
            until(lambda: not metrics.snapshot().open)
            metrics.count_restart()
            now = metrics.snapshot()
            assert now.total > seen
            seen = now.total
            assert now.workers == (), now
            assert now.total == sum(now.ended.values()) == sum(now.durations), now
            assert now.ended["exit"] + now.ended["killed"] == now.total
            assert now.total - now.ended["killed"] <= now.received <= now.total
        print(now.restarts)
    """)
    assert ["100"] == told


@needs_fork
def test_a_session_that_outlives_its_worker_keeps_its_row_until_it_ends() -> None:
    """The worker that comes after does not give the row to others; the session is open, and counts on."""
    assert ["1 open, 7 bytes", "1 open, 1007 bytes", "0 open, 1007 bytes, ended {'eof': 1}", "free"] == run_forking("""
        metrics = Metrics(1, 10)
        reader, writer = os.pipe()
        ready, told = os.pipe()

        def session(row):
            row.adopt()
            row.open()
            row.add_received(7)
            os.write(told, b".")
            os.read(reader, 1)
            row.add_received(1000)
            os.write(told, b".")
            os.read(reader, 1)
            row.end("eof")
            row.give_back()

        def worker():
            counters = metrics.enter(0, forks=True)
            row = counters.take("peer")
            fork(lambda: session(row))
            signal.pause()

        pid = fork(worker)
        os.read(ready, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        metrics.bury(0)
        counters = metrics.enter(0, forks=True)
        counters.beat()
        now = metrics.snapshot()
        print(f"{now.open} open, {now.received} bytes")
        row = counters.take("another")
        row.open()
        row.end("exit")
        os.write(writer, b".")
        os.read(ready, 1)
        now = metrics.snapshot()
        print(f"{now.open} open, {now.received} bytes")
        os.write(writer, b".")
        until(lambda: not metrics.snapshot().open)
        now = metrics.snapshot()
        ended = {word: count for word, count in now.ended.items() if count and word != "exit"}
        print(f"{now.open} open, {now.received} bytes, ended {ended}")
        def all_rows():
            counters.beat()
            return len(counters._free) == 1
        until(all_rows)
        print("free")
    """)


@needs_fork
def test_a_session_that_is_killed_after_its_worker_is_over_too() -> None:
    """Its process is looked for, now and then: by the next worker, or by whoever buries."""
    assert ["2 0", "2 0"] == run_forking("""
        for finish in ("bury", "beat"):
            metrics = Metrics(1, 10)
            reader, writer = os.pipe()

            def session(row):
                row.adopt()
                row.open()
                os.write(writer, b"%d\\n" % os.getpid())
                signal.pause()

            def worker():
                counters = metrics.enter(0, forks=True)
                for _ in range(2):
                    row = counters.take("peer")
                    fork(lambda: session(row))
                signal.pause()

            pid = fork(worker)
            pids = b""
            while pids.count(b"\\n") < 2:
                pids += os.read(reader, 100)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            metrics.bury(0)
            opened = metrics.snapshot().open
            counters = metrics.enter(0, forks=True) if finish == "beat" else None
            for pid in map(int, pids.split()):
                os.kill(pid, signal.SIGKILL)
            def over():
                counters.beat() if counters else metrics.bury(0)
                return not metrics.snapshot().open
            until(over)
            print(opened, metrics.snapshot().open)
    """)


def test_a_row_whose_process_was_never_forked_is_waited_for_and_then_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker was killed in between."""
    metrics = Metrics(1, 1)
    now = rows.micros_now()
    monkeypatch.setattr(rows, "micros_now", lambda: now)
    monkeypatch.setattr("stdserve.metrics.micros_now", lambda: now)
    row = metrics.enter(0, forks=True).take("peer")
    assert FORKING == row.pid
    metrics.bury(0)
    assert FORKING == row.pid
    counters = metrics.enter(0, forks=True)
    for wait, pid in [(0, FORKING), (5, FORKING), (6, 0)]:
        now += wait * 1_000_000
        counters.beat()
        assert pid == row.pid


@needs_fork
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_that_cannot_be_signalled_is_one_that_lives() -> None:
    """Its number may have gone to somebody else."""
    assert ["1 0"] == run_forking("""
        metrics = Metrics(1, 1)
        row = metrics.enter(0, forks=True).take("peer")
        pid = fork(lambda: (row.adopt(), row.open(), signal.pause()))
        until(lambda: row.is_open)
        os.setresuid(65534, 65534, 0)
        metrics.bury(0)
        opened = metrics.snapshot().open
        os.setresuid(0, 0, 0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        metrics.bury(0)
        print(opened, metrics.snapshot().open)
    """)
