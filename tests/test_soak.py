"""Good and hostile clients at once, for a while, against workers that are killed with -9 meanwhile; then the books.

Two seconds for each mode by default, so that it is known to work; ``tox -e soak`` gives each a minute (SOAK_SECONDS,
in seconds). All of the load is bounded, in clients, bytes and time, and goes to this machine only.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import re
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import ServerProcess, children_of, connect, eventually, exchange, reset
from test_stop import begin, ended

SECONDS = float(os.environ.get("SOAK_SECONDS", "2"))
LONG = SECONDS >= 30

WORKERS = 2
CAP = 50
LINES = 40
#: What the good ones send: client, session and number of the line, told apart wherever they stand.
TOKEN = re.compile(rb"<good \d+ \d+ \d+>")

HANDLER = """
import os, stdserve
class Soaked(stdserve.EchoHandler):
    "Says which worker it is, then echoes what it has printed."
    def connection_made(self):
        self.reply(str(os.getppid() if self.server.forks else os.getpid()))
        self.wfile.flush()
"""


class Talk(NamedTuple):
    """One session of a good client: with which worker, what it said, what of it came back, and whether to EOF."""

    worker: int
    said: list[bytes]
    answered: list[bytes]
    whole: bool


class Load:
    """Clients in threads, and what the good ones of them have seen."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.over = threading.Event()
        self.talks: list[Talk] = []
        self.failures: list[BaseException] = []
        self._numbers = itertools.count()

    def start(self, kinds: Sequence[Callable[[int], None]]) -> list[threading.Thread]:
        """Let one client of each kind come again and again."""
        return [begin(self._come_again, kind, number) for number, kind in enumerate(kinds)]

    def _come_again(self, kind: Callable[[int], None], number: int) -> None:
        try:
            while not self.over.is_set():
                try:
                    kind(number)
                except OSError as error:
                    if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                        raise
        except BaseException as error:
            self.failures.append(error)

    def good(self, number: int) -> None:
        """Say some lines, then that it was all, and read what comes until EOF."""
        session = next(self._numbers)
        said = [b"<good %d %d %d>" % (number, session, line) for line in range(LINES)]
        reply, whole = b"", False
        with contextlib.suppress(ConnectionError), connect(self.address) as client:
            client.sendall(b"".join(line + b"x" * (session % 500) + b"\n" for line in said))
            client.shutdown(socket.SHUT_WR)
            while more := client.recv(65536):
                reply += more
            whole = True
        pid, _, echoes = reply.partition(b"\n")
        if echoes or pid.isdigit():
            self.talks.append(Talk(int(pid or b"0"), said, TOKEN.findall(echoes), whole))

    def silent(self, number: int) -> None:
        """Say nothing for a while."""
        with connect(self.address):
            self.over.wait(0.2)

    def stubborn(self, number: int) -> None:
        """Say nothing until the server has enough of it."""
        with connect(self.address) as client:
            client.settimeout(0.1)
            while not self.over.is_set():
                with contextlib.suppress(TimeoutError):
                    if not client.recv(100):
                        return

    def dripping(self, number: int) -> None:
        """A byte at a time, and never a line."""
        with connect(self.address) as client:
            for _ in range(20):
                client.sendall(b"x")
                self.over.wait(0.01)

    def resetting(self, number: int) -> None:
        """Go with a reset, in the middle of a line or of the reply."""
        client = connect(self.address)
        client.sendall(random.choice((b"", b"half a li", b"line\n" * 100)))
        self.over.wait(random.choice((0, 0.01)))
        reset(client)
        # It waits for nothing, and would fill the backlog with more of its like than can be taken: the others too wait.
        self.over.wait(0.05)

    def flooding(self, number: int) -> None:
        """Lines as fast as they are taken, and no look at the replies; 300 kB of them."""
        with connect(self.address) as client:
            client.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                for _ in range(30):
                    client.sendall(b"flood\n" * 1700)
            self.over.wait(0.1)

    def endless(self, number: int) -> None:
        """One line that does not end, half a megabyte of it."""
        with connect(self.address) as client:
            for _ in range(50):
                client.sendall(b"x" * 10_000)
            self.over.wait(0.05)


class Books(NamedTuple):
    """What a process holds: descriptors, threads, and kilobytes of memory (Linux)."""

    descriptors: int
    threads: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Books:
        """Look at one."""
        status = Path(f"/proc/{pid}/status").read_text()
        threads, memory = (int(status.partition(f"\n{field}:")[2].split()[0]) for field in ("Threads", "VmRSS"))
        return cls(len(os.listdir(f"/proc/{pid}/fd")), threads, memory)


def session_of(pid: int) -> list[int]:
    """Return the pids of all processes that came from one, orphans included, in its session (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == pid and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def kill_workers(server: ServerProcess, load: Load) -> list[int]:
    """Kill a worker now and then until the time is over, each when all are there; return which."""
    killed: list[int] = []
    rounds = max(2, int(SECONDS / 3))
    for _ in range(rounds):
        load.over.wait(SECONDS / (rounds + 1))
        eventually(lambda: len(children_of(server.pid)) == WORKERS)
        killed.append(random.choice(children_of(server.pid)))
        os.kill(killed[-1], signal.SIGKILL)
        server.wait_for_log(f"error worker {killed[-1]} was ended by SIGKILL")
    load.over.wait(SECONDS / (rounds + 1))
    return killed


def check_talks(talks: list[Talk], killed: list[int], output: bytes) -> None:
    """Nothing that was acknowledged is lost, nothing is doubled; a worker that lived has served all of a session."""
    printed = Counter(TOKEN.findall(output))
    assert not [token for token, count in printed.items() if count > 1]
    for talk in talks:
        assert talk.answered == talk.said[: len(talk.answered)]
        assert not [token for token in talk.answered if not printed[token]]
        if talk.whole and talk.worker not in killed:
            assert talk.said == talk.answered, talk.worker
    assert [talk for talk in talks if talk.worker not in killed]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event"])
def test_everything_is_as_before_when_the_clients_have_gone(mode: str, tmp_path: Path) -> None:
    """Descriptors, threads, children, memory; and what good clients have seen acknowledged is printed, once."""
    (tmp_path / "mine.py").write_text(HANDLER)
    words = ["--mode", mode, "--workers", str(WORKERS), "-b", "127.0.0.1:0", "-m", str(CAP), "--handler", "mine:Soaked"]
    words += ["--idle-timeout", "5s", "--session-timeout", "30s", "--linger-timeout", "500ms", "--max-line", "5000"]
    with ServerProcess(*words, port=None, cwd=tmp_path, start_new_session=True) as server:
        address = server.address
        for _ in range(20):
            exchange(address, b"warm\n")
        eventually(lambda: len(session_of(server.pid)) == 1 + WORKERS)
        before = Books.of(server.pid), [Books.of(pid) for pid in children_of(server.pid)]

        load = Load(address)
        kinds = [load.silent, load.dripping, load.resetting, load.flooding, load.endless]
        if mode != "single":  # where one of them would be all that there is
            kinds = [*kinds, *kinds, load.stubborn]
        clients = load.start([load.good] * 4 + kinds)
        killed = kill_workers(server, load)
        eventually(lambda: any(talk.worker not in killed for talk in load.talks))
        load.over.set()
        assert all(map(ended, clients))
        assert [] == load.failures

        # Children and orphans end with their clients; a worker that was killed last is replaced.
        eventually(lambda: len(session_of(server.pid)) == 1 + WORKERS)
        eventually(lambda: Books.of(server.pid).descriptors == before[0].descriptors)
        most = max(each.descriptors for each in before[1])
        eventually(lambda: all(Books.of(pid).descriptors <= most for pid in children_of(server.pid)))
        threads = max(each.threads for each in before[1]) if LONG else CAP + 2
        eventually(lambda: all(Books.of(pid).threads <= threads for pid in children_of(server.pid)))
        assert Books.of(server.pid).memory - before[0].memory < 5_000
        memory = max(each.memory for each in before[1])
        assert max(Books.of(pid).memory for pid in children_of(server.pid)) - memory < 20_000

        assert 0 == server.stop()
        assert [] == session_of(server.pid)
        complaints = [line for line in server.log if line.startswith(("error", "Traceback"))]
        assert len(killed) == len(complaints), complaints
        check_talks(load.talks, killed, server.output)
    whole = sum(talk.whole for talk in load.talks)
    sys.stdout.write(f"{mode}: {whole} of {len(load.talks)} talks whole, {len(killed)} workers killed\n")


def test_the_books_are_balanced_only_by_what_is_true() -> None:
    """What would be a lost line, a doubled one and a cut session is seen."""
    said = [b"<good 0 0 %d>" % number for number in range(3)]
    fine = Talk(7, said, said, True)
    output = b"other\n" + b"\n".join(said)
    check_talks([fine], [], output)
    check_talks([fine, Talk(8, [b"<good 0 1 0>"], [], True)], [8], output)
    for talks, written in (
        ([fine], output.replace(said[1], b"")),
        ([fine], output + said[1]),
        ([fine, Talk(8, [b"<good 0 1 0>"], [], True)], output),
        ([fine._replace(answered=said[1:])], output),
        ([], output),
    ):
        with pytest.raises(AssertionError):
            check_talks(talks, [], written)
