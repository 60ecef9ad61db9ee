"""What the log says, in text and in JSON, and where it goes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import DEADLINE, ServerProcess, connect, eventually, exchange
from test_modes import MODES

from stdserve.errors import StartError
from stdserve.logs import (
    Event,
    JsonFormatter,
    TextFormatter,
    log_to,
    reopen_file,
    reopen_logs,
)

LOGGER = logging.getLogger("stdserve")
JSON = {"STDSERVE_LOG_FORMAT": "json"}


def record(message: object, **more: Any) -> logging.LogRecord:
    """A record with a time of its own."""
    made = LOGGER.makeRecord("stdserve", logging.INFO, "file", 1, message, (), None, **more)
    made.created, made.msecs, made.process = 1_800_000_000.25, 250.0, 4711
    return made


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Event("accept", "works again"), "accept works again"),
        (Event("open", peer="127.0.0.1:1"), "open 127.0.0.1:1"),
        (Event("close", peer="[::1]:1", reason="exit", lines=2), "close [::1]:1 reason=exit lines=2"),
        (Event("reject", ": no TLS", peer="a:1", reason="tls"), "reject a:1 reason=tls: no TLS"),
        (Event("listening", "on a:1", data={"address": "a:1"}), "listening on a:1"),
        (Event("error", ": a\nb\x1b[2J\u009b\udc80", peer="a:1"), r"error a:1: a\x0ab\x1b[2J\xc2\x9b\udc80"),
    ],
)
def test_an_event_is_one_line_whatever_stands_in_it(event: Event, text: str) -> None:
    """Nothing that a peer sent begins another line or drives a terminal."""
    assert text == str(event)
    assert text == TextFormatter().format(record(event))


def test_in_a_file_a_line_of_text_says_when_how_bad_and_who() -> None:
    """In UTC."""
    assert "2027-01-15T08:00:00.250Z INFO 4711 open a:1" == TextFormatter(stamped=True).format(
        record(Event("open", peer="a:1"))
    )


def test_in_json_every_record_has_the_same_fields_and_those_of_its_event() -> None:
    """What the text says comes first, so that one search finds it in both."""
    event = Event("close", peer="a:1", session=7, reason="exit", data={"more": 1})
    assert {
        "message": "close a:1 reason=exit",
        "time": "2027-01-15T08:00:00.250Z",
        "level": "info",
        "event": "close",
        "worker": 4711,
        "peer": "a:1",
        "session": 7,
        "more": 1,
        "reason": "exit",
    } == json.loads(JsonFormatter().format(record(event)))


def test_a_record_of_somebody_elses_is_an_event_too() -> None:
    """And an exception has its traceback, on the same line."""
    try:
        raise ValueError("bug")
    except ValueError:
        made = record("plain %s")
        made.args, made.exc_info = ("words",), sys.exc_info()
    line = JsonFormatter().format(made)
    row = json.loads(line)
    assert ("plain words", "log", None, None) == (row["message"], row["event"], row["peer"], row["session"])
    assert row["traceback"].startswith("Traceback") and row["traceback"].endswith("ValueError: bug")
    assert "\n" not in line


def test_the_log_goes_to_a_file_for_the_length_of_a_block(tmp_path: Path) -> None:
    """JSON unless text is asked for; the logger is as it was afterwards."""
    before = LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)
    with log_to(str(tmp_path / "log"), None, "warning") as plain:
        assert not plain
        LOGGER.info(Event("open"))
        LOGGER.warning(Event("accept"))
    with log_to(str(tmp_path / "log"), "text", "info") as plain:
        assert not plain
        LOGGER.info(Event("open"))
    assert before == (LOGGER.level, LOGGER.propagate, list(LOGGER.handlers))
    first, second = (tmp_path / "log").read_text().splitlines()
    assert "accept" == json.loads(first)["event"]
    assert re.fullmatch(r"\d{4}-.*Z INFO \d+ open", second)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With its reason, at the start."""
    with (
        pytest.raises(StartError, match="cannot write the log to .*: Is a directory"),
        log_to(str(tmp_path), None, "info"),
    ):
        pass


@contextlib.contextmanager
def closed_stderr() -> Iterator[None]:
    """No standard error, as in a program that was started without one."""
    before, sys.stderr = sys.stderr, None
    try:
        yield
    finally:
        sys.stderr = before


def test_without_a_standard_error_there_is_no_terminal() -> None:
    """And the log goes nowhere, without a word."""
    with closed_stderr(), log_to(None, None, "info") as plain:
        assert not plain
        LOGGER.info(Event("open"))
        reopen_logs()  # there is no file to open again


def test_a_rotated_file_is_opened_again_under_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The descriptor stays the same number; a name that cannot be opened keeps the file from before."""
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, b"one\n")
        path.rename(tmp_path / "out.1")
        assert reopen_file(fd, str(path))
        os.write(fd, b"two\n")
        assert not reopen_file(fd, str(tmp_path))
        os.write(fd, b"three\n")
    finally:
        os.close(fd)
    assert "one\n" == (tmp_path / "out.1").read_text()
    assert "two\nthree\n" == path.read_text()
    assert 1 == len(caplog.records)


def test_a_server_whose_standard_error_is_no_terminal_logs_in_json() -> None:
    """Each line is an object; the first says that it listens, in the words of the text."""
    with ServerProcess(env=JSON) as server:
        port = server.wait_for_log(r"listening on 127\.0\.0\.1:(\d+) ")[1]
        assert b"" == exchange(("127.0.0.1", int(port)), b"one\nexit\n")
        server.wait_for_log('"event": "close"')
        assert 0 == server.stop()
        rows = [json.loads(line) for line in server.log]
    events = [row["event"] for row in rows]
    assert "listening" == events[0]
    assert {"listening", "try", "open", "close", "stopped"} == set(events)
    assert all({"message", "time", "level", "event", "worker", "peer", "session"} <= set(row) for row in rows)
    (opened,) = (row for row in rows if row["event"] == "open")
    (closed,) = (row for row in rows if row["event"] == "close")
    assert (opened["peer"], opened["session"]) == (closed["peer"], closed["session"])
    assert ("exit", 1) == (closed["reason"], closed["lines"])
    assert server.pid == closed["worker"]


def test_the_default_is_json_in_a_pipe_and_text_on_a_terminal() -> None:
    """Where nothing says otherwise."""
    with ServerProcess(env={"STDSERVE_LOG_FORMAT": ""}) as server:
        server.wait_for_log(r'^\{"message": "listening on ')
    terminal, inside = pty.openpty()
    try:
        with (
            ServerProcess(env={"STDSERVE_LOG_FORMAT": ""}, stderr=inside) as server,
            open(terminal, "rb", buffering=0, closefd=False) as screen,
        ):
            shown = b""
            while b"a browser: http://" not in shown:
                shown += screen.read(1000)
            assert shown.startswith(b"listening on 127.0.0.1:")
            assert 0 == server.stop()
    finally:
        os.close(inside)
        os.close(terminal)


def test_a_log_file_keeps_standard_error_free(tmp_path: Path) -> None:
    """Errors of the start aside, nothing is said there."""
    words = ["--log-file", str(tmp_path / "log"), "-b", "127.0.0.1:0"]
    with ServerProcess(*words, port=None) as server:
        while not (tmp_path / "log").exists() or "try" not in (tmp_path / "log").read_text():
            assert server.process.poll() is None
        assert 0 == server.stop()
        assert [] == server.log
    assert re.search(r"INFO \d+ stopped finished=0 cut=0\n\Z", (tmp_path / "log").read_text())


@pytest.mark.parametrize("mode", MODES)
def test_sigusr2_opens_rotated_files_again(mode: str, tmp_path: Path) -> None:
    """The output and the log, in every process; a session that is open goes on in the new file."""
    output, log = tmp_path / "output", tmp_path / "log"
    words = [*MODES[mode], "-b", "127.0.0.1:0", "-o", str(output), "--log-file", str(log), "--log-format", "text"]
    with ServerProcess(*words, port=None) as server:
        eventually(lambda: log.exists() and "try" in log.read_text())
        match = re.search(r"listening on 127\.0\.0\.1:(\d+) ", log.read_text())
        assert match is not None
        address = ("127.0.0.1", int(match[1]))
        with connect(address) as client:
            client.sendall(b"before\n")
            eventually(lambda: b"before\n" == output.read_bytes())
            for path in (output, log):
                path.rename(f"{path}.1")
            server.process.send_signal(signal.SIGUSR2)

            def moved() -> bool:
                client.sendall(b"line\n")
                return output.exists() and b"line\n" in output.read_bytes()

            eventually(moved)
        assert 0 == server.stop()
        assert "stopped" in log.read_text()
        assert "stopped" not in Path(f"{log}.1").read_text()
        assert [] == server.log


def test_a_signal_handler_may_log_while_the_main_thread_does(tmp_path: Path) -> None:
    """Not a record is lost, and none is complained of; the buffer of a stream would refuse the second."""
    code = (
        "import logging, signal, sys\n"
        "from stdserve.logs import Event, log_to\n"
        "log = logging.getLogger('stdserve')\n"
        "signals = []\n"
        "def handle(*_):\n"
        "    signals.append(1)\n"
        "    log.info(Event('signal'))\n"
        # The next one is asked for here, so that a slow machine gets on with its main thread between two.
        "    signal.setitimer(signal.ITIMER_REAL, 0 if done else 0.0001)\n"
        "signal.signal(signal.SIGALRM, handle)\n"
        "done = False\n"
        "with log_to(None, 'text', 'info'):\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.0001)\n"
        "    for _ in range(5000):\n"
        "        log.info(Event('main'))\n"
        "    done = True\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print(len(signals))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    lines = done.stderr.splitlines()
    assert {"main", "signal"} == set(lines)
    assert (5000, int(done.stdout)) == (lines.count("main"), lines.count("signal"))


def test_a_log_that_cannot_be_written_is_survived() -> None:
    """Its reader has gone."""
    code = (
        "import logging\n"
        "from stdserve.logs import Event, log_to\n"
        "with log_to(None, 'text', 'info'):\n"
        "    logging.getLogger('stdserve').info(Event('open'))\n"
        "print('survived')\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, timeout=DEADLINE)
    finally:
        os.close(writer)
    assert (0, b"survived\n") == (done.returncode, done.stdout)
