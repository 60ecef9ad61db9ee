"""SIGHUP under workers: new code, certificates and rules, one worker after the other, and nobody notices.

The last tests do that, and kill workers, under a load, five times each; SOAK_RELOADS says how often (tox -e soak: 50).
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from authority import Authority
from processes import (
    DEADLINE,
    ServerProcess,
    children_of,
    connect,
    eventually,
    exchange,
    read_all,
)
from test_heartbeat import Manager, manager
from test_supervisor import SLEEPER, alive, words_of

RELOADS = int(os.environ.get("SOAK_RELOADS", "5"))

__all__ = ["manager"]

HANDLER = """
import os, stdserve
{before}
from more import WORD
class Handler(stdserve.LineHandler):
    def line_received(self, line):
        return f"{{WORD}} {{os.getppid() if self.server.forks else os.getpid()}} {{line}}"
"""


def write_code(folder: Path, word: str, before: str = "") -> None:
    """Write a handler in two modules; it answers with a word that stands in the second, and its worker's pid."""
    for name, text in (("mine.py", HANDLER.format(before=before)), ("more.py", f"WORD = {word!r}\n")):
        (folder / name).with_suffix(".new").write_text(text)
        (folder / name).with_suffix(".new").replace(folder / name)


@contextmanager
def serving(folder: Path, *words: str, workers: int = 2, env: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server of that handler, with workers; it must end well. Bytecode would be told from new code by its second."""
    arguments = ["--handler", "mine:Handler", "--workers", str(workers), "-b", "127.0.0.1:0", *words]
    with ServerProcess(*arguments, cwd=folder, env={"PYTHONDONTWRITEBYTECODE": "1", **(env or {})}) as server:
        server.wait_for_log("^listening")
        yield server
        assert 0 == server.stop()
        assert [] == [line for line in server.log if "Traceback" in line]


def ask(server: ServerProcess) -> str:
    """What its handler says now: the word."""
    return exchange(server.address, b"x\n").decode().partition(" ")[0]


def answers(server: ServerProcess, word: str) -> None:
    """Return when it says that; an old worker that has been told to stop may still take the next client or two."""
    eventually(lambda: word == ask(server))


def reload(server: ServerProcess, count: int = 1) -> None:
    """Send SIGHUP, and return when all workers are new, for the ``count``-th time."""
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("^reloaded workers=", count)


@pytest.mark.parametrize("mode", ["single", "thread", "fork", "event"])
def test_a_reload_brings_new_code_in_new_workers(mode: str, tmp_path: Path) -> None:
    """All of it, also what the handler's module imports; who had a session reads end-of-file, and it is not lost."""
    write_code(tmp_path, "old")
    with serving(tmp_path, "--mode", mode) as server:
        old = children_of(server.pid)
        assert "old" == ask(server)
        with connect(server.address) as client:
            client.sendall(b"begun")
            server.wait_for_log("^open", count=2)
            write_code(tmp_path, "new")
            reload(server)
            assert re.fullmatch(rb"old \d+ begun\n", read_all(client))
        eventually(lambda: not [pid for pid in old if alive(pid)])
        for _ in range(10):
            assert "new" == ask(server)
        eventually(lambda: 2 == len(children_of(server.pid)))
        assert [] == words_of(server, "error")


BROKEN = {
    "syntax": ("def f(:", "cannot import 'mine': SyntaxError"),
    "import": ("import nowhere", "cannot import 'mine': ModuleNotFoundError"),
    "exit": ("raise SystemExit('no')", "cannot import 'mine': SystemExit"),
    "slow": ("import threading; threading.Event().wait()", "worker [0-9]+ is not ready after 2 s"),
    "death": ("os._exit(9)", "worker [0-9]+ ended with status 9"),
    "crash": ("os.abort()", "worker [0-9]+ was ended by SIGABRT"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_code_that_is_broken_leaves_the_old_workers_where_they_are(how: str, tmp_path: Path) -> None:
    """One error line says why; when it is whole again, so is the reload."""
    before, reason = BROKEN[how]
    write_code(tmp_path, "old")
    with serving(tmp_path, "--worker-timeout", "2s" if how == "slow" else "60s") as server:
        workers = children_of(server.pid)
        write_code(tmp_path, "new", before)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(f"^error reload: .*{reason}.*; the workers from before stay$")
        eventually(lambda: workers == children_of(server.pid))
        for _ in range(10):
            assert "old" == ask(server)
        assert 1 == len(words_of(server, "error"))
        write_code(tmp_path, "whole")
        reload(server)
        answers(server, "whole")
        assert 1 == len(words_of(server, "error"))


def test_a_reload_that_fails_half_way_keeps_what_is_new(tmp_path: Path) -> None:
    """The first of the new workers serves, the second does not start; whoever takes a dead one's place is new."""
    write_code(tmp_path, "old")
    with serving(tmp_path) as server:
        old = children_of(server.pid)
        before = "try: os.close(os.open('first', os.O_CREAT | os.O_EXCL))\nexcept FileExistsError: import nowhere"
        write_code(tmp_path, "new", before)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^error reload: .*'nowhere'.*; the workers from before stay$")
        eventually(lambda: 1 == len(set(old) & set(children_of(server.pid))) and 2 == len(children_of(server.pid)))
        (stays,) = set(old) & set(children_of(server.pid))
        write_code(tmp_path, "newer")
        os.kill(stays, signal.SIGKILL)
        server.wait_for_log(f"^error worker {stays} was ended by SIGKILL")
        eventually(lambda: {"new", "newer"} == {ask(server) for _ in range(20)})


def test_a_worker_that_cannot_start_later_is_tried_again(tmp_path: Path) -> None:
    """Later and later, until it can."""
    write_code(tmp_path, "old")
    with serving(tmp_path) as server:
        write_code(tmp_path, "new", "import nowhere")
        first, second = children_of(server.pid)
        os.kill(first, signal.SIGKILL)
        for wait in ("0.4", "0.8"):
            server.wait_for_log(f"^error --handler .*'nowhere'.*; another starts in {wait} s")
        assert "old" == ask(server)
        write_code(tmp_path, "whole")
        eventually(lambda: {"old", "whole"} == {ask(server) for _ in range(20)})
        assert second in children_of(server.pid)


#: Code that waits to be let through.
GATE = "open('waits', 'w').close()\nopen('gate').close()"


def begin_a_reload_that_waits(server: ServerProcess, folder: Path) -> None:
    """Have the first new worker stand at the gate; return when it does."""
    os.mkfifo(folder / "gate")
    write_code(folder, "new", GATE)
    server.process.send_signal(signal.SIGHUP)
    eventually((folder / "waits").exists)


def test_a_reload_during_a_reload_comes_after_it(tmp_path: Path) -> None:
    """However often it was asked for, once; with the code as it is then."""
    write_code(tmp_path, "old")
    with serving(tmp_path) as server:
        begin_a_reload_that_waits(server, tmp_path)
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
        write_code(tmp_path, "newest")
        (tmp_path / "gate").open("w").close()
        server.wait_for_log("^reloaded workers=2", count=2)
        answers(server, "newest")
        assert 2 == len(words_of(server, "reload"))


def test_a_reload_before_all_serve_comes_when_they_do(tmp_path: Path) -> None:
    """Nor does it make a bad start of it."""
    (tmp_path / "mine.py").write_text(SLEEPER)
    code = (
        "import os, signal, stdserve, sys\n"
        "class Late(stdserve.ThreadServer):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        os.kill(os.getppid(), signal.SIGHUP)\n"
        "stdserve.register_mode('late', Late)\n"
        "from stdserve.cli import main\n"
        "sys.exit(main(['0', '--mode', 'late', '--workers', '2', '--log-format', 'text']))\n"
    )
    with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
        server.wait_for_log("^reloaded workers=2", count=2)
        assert server.log.index("reload begins: workers are replaced one by one") > 0
        assert server.log[0].startswith("listening")
        assert 0 == server.stop()


def test_a_stop_during_a_reload_is_a_stop(tmp_path: Path) -> None:
    """Also of the worker that has not started yet."""
    write_code(tmp_path, "old")
    with serving(tmp_path) as server:
        begin_a_reload_that_waits(server, tmp_path)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGHUP)
        assert 0 == server.wait()


def test_a_class_that_was_given_to_serve_stays_what_it_is() -> None:
    """It can be imported from nowhere; its workers are new all the same."""
    code = (
        "import os\n"
        "from stdserve import LineHandler, serve\n"
        "class Pid(LineHandler):\n"
        "    def line_received(self, line):\n"
        "        return str(os.getpid())\n"
        "import logging, sys\n"
        "logging.basicConfig(level='INFO', format='%(message)s', stream=sys.stderr)\n"
        "serve(Pid, port=0, workers=1)\n"
    )
    with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
        before = exchange(server.address, b"one\n")
        reload(server)
        eventually(lambda: before != exchange(server.address, b"one\n"))
        assert 0 == server.stop()


def test_rules_are_read_again(tmp_path: Path) -> None:
    """And a file that has become bad keeps the old ones."""
    write_code(tmp_path, "old")
    (tmp_path / "foes").write_text("10.0.0.0/8\n")
    with serving(tmp_path, "--denyfile", "foes") as server:
        assert "old" == ask(server)
        (tmp_path / "foes").write_text("nonsense\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^error reload: .*nonsense.*; the workers from before stay$")
        assert "old" == ask(server)
        (tmp_path / "foes").write_text("127.0.0.0/8\n")
        reload(server)

        def refused() -> bool:
            try:
                return "" == ask(server)
            except ConnectionError:
                return True

        eventually(refused)
        server.wait_for_log("^reject 127.0.0.1:.* reason=denied")


def test_certificates_are_read_again(tmp_path: Path, authority: Authority) -> None:
    """And one that is bad keeps the old one."""
    write_code(tmp_path, "old")
    pair = authority.pair()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def renew() -> None:
        fresh = authority.pair()
        cert.write_bytes(Path(fresh.certfile).read_bytes())
        key.write_bytes(Path(str(fresh.keyfile)).read_bytes())

    def serial() -> str:
        with (
            connect(server.address) as client,
            authority.client().wrap_socket(client, server_hostname="localhost") as tls,
        ):
            return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"")

    assert pair.keyfile
    renew()
    with serving(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        first = serial()
        renew()
        reload(server)
        eventually(lambda: first != serial())
        second = serial()
        cert.write_text("no certificate")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^error reload: .*no certificate in PEM; the workers from before stay$")
        assert second == serial()


def test_systemd_is_told_when_a_reload_begins_and_ends(manager: Manager, tmp_path: Path) -> None:
    """Be it in vain."""
    write_code(tmp_path, "old")
    with serving(tmp_path, env=manager.env) as server:
        assert "READY=1" == manager.next()[0]
        for before in ("", "import nowhere"):
            write_code(tmp_path, "new", before)
            server.process.send_signal(signal.SIGHUP)
            first, second, third = manager.next()
            assert ("RELOADING=1", "STATUS=reloading") == (first, second)
            assert third.startswith("MONOTONIC_USEC=")
            assert "READY=1" == manager.next()[0]


class Load:
    """Eight clients that come again and again: one line, one answer."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.over = threading.Event()
        self.answered = 0
        self.failed: list[tuple[str, bytes]] = []
        self._threads = [threading.Thread(target=self._come_again, args=(number,)) for number in range(8)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _come_again(self, number: int) -> None:
        count = 0
        while not self.over.is_set():
            count += 1
            self._talk(b"%d %d" % (number, count))

    def _talk(self, words: bytes) -> None:
        reply, why = b"", "cut off"
        try:
            with connect(self.address) as client:
                client.sendall(words + b"\n")
                while not reply.endswith(b" " + words + b"\n") and (more := client.recv(100)):
                    reply += more
                client.shutdown(socket.SHUT_WR)
                read_all(client)
        except OSError as error:
            why = repr(error)
        if reply.endswith(b" " + words + b"\n"):
            self.answered += 1
        else:
            self.failed.append((why, reply))

    def go_on(self, sessions: int = 8) -> None:
        """Return when that many more have been answered."""
        goal = self.answered + sessions
        eventually(lambda: self.answered >= goal)


@pytest.mark.parametrize("mode", ["thread", "fork", "event"])
def test_no_session_fails_through_reloads(mode: str, tmp_path: Path) -> None:
    """Eight clients in a closed loop, new code each time."""
    write_code(tmp_path, "word0")
    with serving(tmp_path, "--mode", mode, "--log-level", "info") as server, Load(server.address) as load:
        load.go_on()
        for number in range(1, RELOADS + 1):
            write_code(tmp_path, f"word{number}")
            reload(server, number)
            answers(server, f"word{number}")
            load.go_on()
        assert [] == load.failed
    assert [] == words_of(server, "error")


@pytest.mark.parametrize("mode", ["thread", "fork", "event"])
def test_only_sessions_of_killed_workers_fail(mode: str, tmp_path: Path) -> None:
    """A session says at its beginning whose it is, and again in its answer; of those that fail, no other worker's."""
    write_code(tmp_path, "word")
    code = (tmp_path / "mine.py").read_text()
    greeting = (
        "    def connection_made(self):\n        self.reply(self.line_received('hello'))\n        self.wfile.flush()\n"
    )
    (tmp_path / "mine.py").write_text(code + greeting)
    killed: set[int] = set()
    with serving(tmp_path, "--mode", mode, workers=3) as server, Load(server.address) as load:
        load.go_on()
        for _ in range(RELOADS):
            worker = random.choice(children_of(server.pid))
            killed.add(worker)
            os.kill(worker, signal.SIGKILL)
            server.wait_for_log(f"^error worker {worker} was ended by SIGKILL")
            load.go_on()
        eventually(lambda: 3 == len(children_of(server.pid)))
    assert len(load.failed) <= 8 * RELOADS
    for why, reply in load.failed:
        assert not reply or int(reply.split()[1]) in killed, (why, reply)
