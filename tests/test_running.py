"""The way to the end: signals, deadlines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE, ServerProcess, connect, read_all

from stdserve.errors import OutputError, StartError
from stdserve.running import status_of


def test_serve_puts_the_callers_signal_handlers_back() -> None:
    """Also after the second signal, and the alarm of the deadline is off."""
    code = (
        "import signal, stdserve, sys\n"
        "def mine(*_): print('mine', flush=True)\n"
        "for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):\n"
        "    signal.signal(signum, mine)\n"
        "stdserve.serve(port=0, ready=lambda a: signal.raise_signal(signal.SIGTERM))\n"
        "assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)\n"
        "for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):\n"
        "    signal.raise_signal(signum)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert ("mine\n" * 3, "") == (result.stdout, result.stderr)


@pytest.mark.parametrize("mode", ["single", "thread", "event"])
def test_a_second_signal_while_the_server_ends_is_no_traceback(mode: str) -> None:
    """It came when there was nothing left to cut."""
    code = (
        "import signal, stdserve\n"
        "def twice(addresses):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        f"stdserve.serve(port=0, mode='{mode}', ready=twice)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert (0, "", "") == (result.returncode, result.stdout, result.stderr)


def test_a_session_that_holds_the_main_thread_is_broken_off_at_the_deadline(tmp_path: Path) -> None:
    """Mode single, a handler that takes no notice, one signal."""
    (tmp_path / "mine.py").write_text(
        "import stdserve, threading\n"
        "class Stuck(stdserve.LineHandler):\n"
        "    def line_received(self, line):\n"
        "        self.wfile.write(b'stuck'); self.wfile.flush()\n"
        "        threading.Event().wait()\n"
    )
    words = ["--mode", "single", "--handler", "mine:Stuck", "--graceful-timeout", "100ms"]
    with ServerProcess(*words, cwd=tmp_path) as server, connect(server.address) as client:
        client.sendall(b"one\n")
        assert b"stuck" == client.recv(5)
        assert 0 == server.stop()
        assert b"" == read_all(client)
        assert not [line for line in server.log if "Traceback" in line]


def test_an_idle_client_does_not_hold_up_the_end_of_the_process() -> None:
    """os.kill to oneself from a thread, the way some programs stop."""
    code = (
        "import os, signal, socket, stdserve, threading\n"
        "def stop(addresses):\n"
        "    host, port = addresses[0].split(':')\n"
        "    global idle\n"
        "    idle = socket.create_connection((host, int(port)))\n"
        "    threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM)).start()\n"
        "stdserve.serve(port=0, ready=stop)\n"
        "idle.close()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert (0, "") == (result.returncode, result.stderr)
    assert os.name == "posix"


def test_the_status_of_a_process_says_what_ended_its_server(caplog: pytest.LogCaptureFixture) -> None:
    """What the sink knows needs no words; the other reasons are in the log."""

    def end(error: Exception | None) -> None:
        if error is not None:
            raise error

    assert [0, 1, 3] == [status_of(end, error) for error in (None, OutputError("full"), StartError("taken"))]
    assert ["error taken"] == caplog.messages
