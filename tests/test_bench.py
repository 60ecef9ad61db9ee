"""The bench's command line: real servers, measured shortly; what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE, eventually

from stdserve.bench import _choices, _parse, main

#: A server, a moment.
SHORT = ["--seconds", "50ms", "--quick", "--idle", "4", "--clients", "2"]
BENCH = [sys.executable, "-bb", "-W", "error", "-m", "stdserve.bench"]


def test_every_job_has_a_table_and_at_the_end_there_is_advice(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --handler it measures our own; single is left out where it has to serve two at once."""
    assert 0 == main([*SHORT, "--modes", "thread,single", "--workers", "0"])
    output, errors = capsys.readouterr()
    assert "" == errors
    assert re.match(
        r"system \S+ \S+, cpus \d+, python 3\.\d+\.\S+, stdserve \S+; \d+ s\n\nbulk: 4 clients send", output
    )
    tables = {part.split(":")[0]: part.splitlines()[2:] for part in output.split("\n\n")[1:5]}
    servers = {job: {row.split()[0] for row in rows} for job, rows in tables.items()}
    both = {"thread", "single"}
    assert {"bulk": both, "sessions": both, "echo": {"thread"}, "idle": {"thread"}} == servers
    assert "Take thread: python -m stdserve --mode thread\n" in output
    assert "█" in output


def test_json_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every round, in turn."""
    words = ["--modes", "thread,fork", "--workers", "0", "--jobs", "sessions", "--rounds", "2", "--json"]
    assert 0 == main([*SHORT, *words])
    told = json.loads(capsys.readouterr().out)
    assert {"machine", "plan", "results", "advice"} == set(told)
    assert ["thread", "fork"] == list(told["results"]["sessions"])
    rounds = [one for rounds in told["results"]["sessions"].values() for one in rounds]
    assert 4 == len(rounds)
    assert all(one["rate"] > 0 and one["problem"] == "" for one in rounds)
    assert (0.05, 2, 4) == tuple(told["plan"][name] for name in ("seconds", "clients", "idle"))


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a current folder with handlers of the user's."""
    code = """
        from socketserver import StreamRequestHandler
        from stdserve import LineHandler, PrintHandler
        class Rude(StreamRequestHandler):
            def handle(self):
                self.request.recv(1)  # what is left unread makes it a reset
                self.request.close()
        class Reads(StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    self.wfile.write(line)
        class Upper(LineHandler):
            def line_received(self, line):
                return line.upper()
        class Forgetful(PrintHandler):
            def lines_received(self, lines):
                if b"session 1 " not in lines.data:
                    super().lines_received(lines)
    """
    (tmp_path / "theirs.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("theirs")
def test_a_handler_of_the_users_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Its replies are counted; the advice is the command for it."""
    assert 0 == main(
        [*SHORT, "--handler", "theirs:Upper", "--modes", "thread", "--workers", "0", "--jobs", "bulk,echo"]
    )
    output = capsys.readouterr().out
    assert "Take thread: python -m stdserve --mode thread --handler theirs:Upper\n" in output
    assert "echo: 2 clients" in output


@pytest.mark.usefixtures("theirs")
def test_mode_event_is_left_out_for_a_handler_that_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """And where there is nothing else to measure, that is said; of one that it serves, it is told what to mind."""
    words = ["--workers", "0", "--jobs", "sessions"]
    assert 0 == main([*SHORT, *words, "--handler", "theirs:Reads", "--modes", "event,thread"])
    output = capsys.readouterr().out
    assert "\nTake thread: " in output
    assert output.endswith("\nevent was left out: it serves handlers that derive from LineHandler.\n")
    assert 2 == main([*SHORT, *words, "--handler", "theirs:Reads", "--modes", "event"])
    assert "there is nothing to measure" in capsys.readouterr().err
    assert 0 == main([*SHORT, *words, "--handler", "theirs:Upper", "--modes", "event"])
    output = capsys.readouterr().out
    assert "\nTake event: " in output
    assert "A hook that waits for anything keeps all of its sessions waiting" in output


@pytest.mark.usefixtures("theirs")
def test_a_handler_that_drops_lines_is_not_correct(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, in words and figures; echo is left out, for it does not reply."""
    words = ["--handler", "theirs:Forgetful", "--modes", "thread", "--workers", "0", "--jobs", "echo,sessions"]
    assert 1 == main([*SHORT, *words])
    output = capsys.readouterr().out
    assert re.search(r"^thread: NOT CORRECT in 1 of 1 rounds: of \d+ lines 1 lost$", output, re.MULTILINE)
    assert "echo was left out: the handler does not reply." in output
    assert "No server was correct" in output


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--jobs", "bulk,ecko"], "--jobs: 'ecko' is none of bulk, sessions, echo, idle; did you mean echo?"),
        (["--modes", "threads"], "--modes: 'threads' is none of thread, fork, single, event; did you mean thread?"),
        (["--workers", "two"], "--workers must be a whole number, not 'two'"),
        (["--workers", "-1"], "--workers must be at least 0, not -1"),
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--length", "11"], "--length must be at least 12, not 11"),
        (["--seconds", "1d"], "--seconds must be a duration above 0 such as 500ms, 5s, 2m or 1h, not '1d'"),
        (["--seconds", "2m"], "--seconds must be above 0 and at most 60 seconds, not 2m"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate (see --help)"),
        (["--modes", "single", "--jobs", "echo"], "there is nothing to measure: "),
        (
            ["--handler", "nosuch:Handler"],
            "the server does not start: stdserve: --handler nosuch:Handler: cannot import",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line that says what is wrong and what would be right."""
    assert 2 == main(words)
    output, errors = capsys.readouterr()
    assert ("", 1) == (output, errors.count("\n"))
    assert errors.startswith(f"stdserve.bench: {error}")


@pytest.mark.usefixtures("theirs")
def test_a_handler_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and one line."""
    assert 1 == main([*SHORT, "--handler", "theirs:Rude"])
    output, errors = capsys.readouterr()
    assert "" == output
    assert errors.startswith("stdserve.bench: --handler theirs:Rude does not answer two lines and their end: ")


def test_fork_is_measured_once() -> None:
    """Whatever the numbers of workers; those without come first."""
    assert ["thread", "fork", "thread, 2 workers"] == [str(choice) for choice in _choices(["thread", "fork"], "2,0")]
    assert ["fork"] == [str(choice) for choice in _choices(["fork"], "2,4")]


def test_the_readmes_commands_are_understood() -> None:
    """Each of them; what they do is tested here, in less time."""
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    block = readme.partition("<!-- example: bench -->\n```console\n")[2].partition("```")[0]
    commands = [line.removeprefix("$ python -m stdserve.bench").split() for line in block.splitlines()]
    quick, theirs, figures = map(_parse, commands)
    assert (1, 3, 3) == (quick.rounds, theirs.rounds, figures.rounds)
    assert (None, "upper:Upper", ("sessions", "echo")) == (quick.handler, theirs.handler, theirs.jobs)
    assert figures.json and not quick.json


def test_help_explains_the_jobs() -> None:
    """And the program is run as the README says."""
    result = subprocess.run([*BENCH, "--help"], capture_output=True, text=True, timeout=DEADLINE)
    assert (0, "") == (result.returncode, result.stderr)
    for word in ("bulk  ", "sessions  ", "echo  ", "idle  ", "--handler TARGET", "exit codes: 0 measured, 1 "):
        assert word in result.stdout


def test_progress_is_shown_on_a_terminal_only() -> None:
    """On standard error, and wiped off at the end; where output takes no blocks, bars are of #."""
    terminal, side = pty.openpty()
    words = [*BENCH, *SHORT, "--jobs", "sessions", "--modes", "thread", "--workers", "0"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=side, env=environment) as bench:
        os.close(side)
        output = bench.communicate(timeout=DEADLINE)[0]
    shown = os.read(terminal, 4096)
    os.close(terminal)
    assert b"\r\x1b[K[1/1] round 1 of 1: sessions, thread\r\x1b[K" == shown
    assert b"########" in output


def test_an_interrupt_ends_it_and_its_servers() -> None:
    """Exit code 130."""
    terminal, side = pty.openpty()
    words = [*BENCH, "--seconds", "30s", "--jobs", "bulk", "--modes", "thread"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=side, start_new_session=True) as bench:
        os.close(side)
        seen = os.read(terminal, 4096)
        assert b"round 1 of 3" in seen
        os.killpg(bench.pid, signal.SIGINT)
        assert 130 == bench.wait(DEADLINE)
        shown = os.read(terminal, 4096)
        assert b"\r\x1b[K" == shown
        eventually(lambda: not _alive(bench.pid))
    os.close(terminal)


@pytest.mark.parametrize(("closed", "error"), [(">&-", b""), (">/dev/full", b"No space left on device")])
def test_an_output_that_takes_nothing(closed: str, error: bytes) -> None:
    """It is not a reason for a traceback."""
    words = [*BENCH, *SHORT, "--jobs", "sessions", "--modes", "thread", "--workers", "0"]
    result = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *words], stderr=subprocess.PIPE, timeout=DEADLINE)
    assert error in result.stderr
    assert b"Traceback" not in result.stderr


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
