"""``--reload``: a source file is saved, and the next client is served by it; who is connected notices nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import ServerProcess, children_of, eventually
from test_reload import HANDLER, Load, answers, ask

from stdserve import ConfigError, Options
from stdserve.hooks import Hooks
from stdserve.reloading import Reloader
from stdserve.worker import Link


def write(path: Path, text: str) -> None:
    """Save a file as editors do: another takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


@contextmanager
def serving(folder: Path, *words: str, target: str = "mine:Handler") -> Iterator[ServerProcess]:
    """A server of the code in a folder, which it watches; it must end well."""
    with ServerProcess("--handler", target, "--reload", "-b", "127.0.0.1:0", *words, cwd=folder) as server:
        server.wait_for_log("^listening")
        yield server
        assert 0 == server.stop()
        assert [] == [line for line in server.log if "Traceback" in line]


def begin(folder: Path, word: str = "old") -> None:
    """Write a handler in two modules; it answers with a word that stands in the second."""
    write(folder / "mine.py", HANDLER.format(before=""))
    write(folder / "more.py", f"WORD = {word!r}\n")


def reloads(server: ServerProcess) -> int:
    """How often all workers have been replaced so far, or are being."""
    return len([line for line in server.log if line.startswith("reload begins")])


@pytest.mark.parametrize(
    "words", [[], ["--workers", "3"], ["--mode", "fork"], ["--status", "127.0.0.1:0"]], ids=" ".join
)
def test_a_change_is_served_and_nobody_is_refused(words: list[str], tmp_path: Path) -> None:
    """One reload for each, however many workers there are; the log says which file it was."""
    begin(tmp_path)
    with serving(tmp_path, *words) as server, Load(server.address) as load:
        load.go_on()
        workers = 3 if "--workers" in words else 1
        assert workers + ("--status" in words) == len(children_of(server.pid))
        for number, word in enumerate(("new", "newer"), 1):
            write(tmp_path / "more.py", f"WORD = {word!r}\n")
            server.wait_for_log(f"^changed {tmp_path}/more.py$", number)
            server.wait_for_log("^reloaded", number)
            answers(server, word)
            load.go_on()
        assert 2 == reloads(server)
        assert [] == load.failed
    assert [] == [line for line in server.log if line.startswith("error")]


def test_code_that_does_not_import_leaves_the_old_to_answer(tmp_path: Path) -> None:
    """And the log says why; once it is mended, it serves."""
    begin(tmp_path)
    with serving(tmp_path) as server:
        assert "old" == ask(server)
        write(tmp_path / "more.py", "WORD = (\n")
        server.wait_for_log("^error reload: .*SyntaxError.*more.py.*; the workers from before stay$")
        assert "old" == ask(server)
        write(tmp_path / "more.py", "WORD = 'mended'\n")
        answers(server, "mended")
        assert 2 == reloads(server)


def test_no_bytecode_is_written_that_would_be_taken_for_that_of_a_later_save(tmp_path: Path) -> None:
    """Python tells a source from the one before it by whole seconds and the size."""
    begin(tmp_path)
    words = ("--handler", "mine:Handler", "--reload", "--workers", "2")
    with ServerProcess(*words, cwd=tmp_path, env={"PYTHONDONTWRITEBYTECODE": ""}) as server:
        assert "old" == ask(server)
        assert [] == list(tmp_path.glob("**/*.pyc"))


def test_a_new_package_with_an_error_in_it_is_waited_for(tmp_path: Path) -> None:
    """No worker that serves has ever imported it, nor looked where it is; not even while it is missing."""
    begin(tmp_path)
    with serving(tmp_path) as server:
        write(tmp_path / "more.py", "from fresh.inner.word import WORD\n")
        server.wait_for_log("^error reload: .*ModuleNotFoundError.*'fresh'")
        write(tmp_path / "fresh" / "inner" / "word.py", "WORD = missing\n")
        write(tmp_path / "fresh" / "__init__.py", "")
        server.wait_for_log("^error reload: .*NameError")
        assert "old" == ask(server)
        write(tmp_path / "fresh" / "inner" / "word.py", "WORD = (\n")
        server.wait_for_log("^error reload: .*SyntaxError")
        write(tmp_path / "fresh" / "inner" / "word.py", "WORD = 'found'\n")
        answers(server, "found")


def test_a_file_that_comes_or_goes_is_a_change_and_others_are_none(tmp_path: Path) -> None:
    """Several at once are one."""
    begin(tmp_path)
    with serving(tmp_path) as server:
        for name in ("notes.txt", "more.pyc", ".hidden/__init__.py"):
            write(tmp_path / name, "x")
        write(tmp_path / "one.py", "")
        write(tmp_path / "two.py", "")
        write(tmp_path / "pack" / "__init__.py", "")
        server.wait_for_log(f"^changed {tmp_path}/one.py and 2 more$")
        server.wait_for_log("^reloaded")
        (tmp_path / "one.py").unlink()
        server.wait_for_log(f"^changed {tmp_path}/one.py$")
        server.wait_for_log("^reloaded", 2)
        assert 2 == reloads(server)


def test_a_change_during_a_reload_is_served_after_it(tmp_path: Path) -> None:
    """The new worker has read the file already, and waits."""
    begin(tmp_path)
    with serving(tmp_path) as server:
        os.mkfifo(tmp_path / "gate")
        write(tmp_path / "more.py", "WORD = 'late'\nopen('waits', 'w').close()\nopen('gate').close()\n")
        eventually((tmp_path / "waits").exists)
        write(tmp_path / "more.py", "WORD = 'latest'\n")
        server.wait_for_log("^changed", 2)
        (tmp_path / "gate").open("w").close()
        answers(server, "latest")
        server.wait_for_log("^reloaded", 2)
        assert 2 == reloads(server)


def test_what_is_imported_later_is_watched_as_well(tmp_path: Path) -> None:
    """By a session, from another folder."""
    code = (
        "import stdserve, sys\n"
        "sys.path.append('elsewhere')\n"
        "class Handler(stdserve.LineHandler):\n"
        "    def line_received(self, line):\n"
        "        from later import WORD\n"
        "        return WORD + ' '\n"
    )
    write(tmp_path / "mine.py", code)
    write(tmp_path / "elsewhere" / "later.py", "WORD = 'old'\n")
    with serving(tmp_path) as server:
        answers(server, "old")
        word = 0

        def changes() -> bool:
            nonlocal word
            word += 1
            write(tmp_path / "elsewhere" / "later.py", f"WORD = 'new{word}'\n")
            time.sleep(0.7)  # not to wait for anything: a file that never rests is never read
            return any(line.startswith("changed ") for line in server.log)

        eventually(changes)
        answers(server, f"new{word}")


def test_a_supervisor_that_watches_is_at_rest(tmp_path: Path) -> None:
    """Of two seconds in which nothing changes, it computes for a fraction."""
    begin(tmp_path)
    with serving(tmp_path) as server:
        answers(server, "old")

        def ticks() -> int:
            fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        before = ticks()
        time.sleep(2)
        assert ticks() - before < 0.2 * os.sysconf("SC_CLK_TCK")


def test_it_can_still_be_asked_by_a_signal(tmp_path: Path) -> None:
    """SIGHUP, as ever."""
    begin(tmp_path)
    with serving(tmp_path) as server:
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("^reloaded")
        assert "old" == ask(server)


def test_where_it_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client only, or a system without fork."""
    assert Options(reload=True).supervised
    with pytest.raises(ConfigError, match="--once and --reload exclude each other"):
        Options(reload=True, once=True)
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ConfigError, match="--reload needs os.fork"):
        Options(reload=True)


class Told:
    """A Reloader, and what it asks for; workers that are none live in this process."""

    def __init__(self) -> None:
        self.times = 0
        self.reloader = Reloader(self.reload)
        self.hooks = self.reloader.hooked(Hooks())

    def reload(self) -> None:
        self.times += 1

    def turn(self, seconds: float = 0.6) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.hooks.turned([])

    def live(self, run: Any) -> None:
        before = sys.dont_write_bytecode
        try:
            self.reloader.live(Link(os.open(os.devnull, os.O_WRONLY), -1, 0, 0), run)
        finally:
            sys.dont_write_bytecode = before


def test_what_changed_while_it_was_imported_is_a_change(tmp_path: Path) -> None:
    """A worker may have read the file before; one that was there long before has not changed."""
    told = Told()
    source = tmp_path / "mine.py"
    for age, times in ((10, 0), (0, 1)):
        folder = tmp_path / str(times)
        source = folder / "mine.py"

        def fail(source: Path = source, age: int = age) -> None:
            write(source, "x = (")
            os.utime(source, ns=(0, time.time_ns() - age * 10**9))
            exec(compile(source.read_text(), str(source), "exec"))

        with pytest.raises(SyntaxError):
            told.live(fail)
        told.turn()
        assert times == told.times


def test_a_worker_tells_though_nobody_listens() -> None:
    """The pipe is full then; nothing waits for it."""
    told = Told()
    with told.reloader:
        for number in range(40):

            def fail(folder: str = f"/{number}{'x' * 3000}") -> None:
                raise SyntaxError("x", (f"{folder}/a.py", 1, 1, "x"))

            with pytest.raises(SyntaxError):
                told.live(fail)
        told.turn()
    assert 0 == told.times
