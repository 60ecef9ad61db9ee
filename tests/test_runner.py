"""serve(), for programs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from processes import DEADLINE, ServerProcess, exchange


def test_serve_takes_a_class_and_settings(tmp_path: Path) -> None:
    """The six lines of the README, as a program."""
    code = (
        "from stdserve import LineHandler, serve\n"
        "class Upper(LineHandler):\n"
        "    def line_received(self, line):\n"
        "        return line.upper()\n"
        "serve(Upper, port=0, ready=lambda addresses: print(addresses[0], flush=True))\n"
    )
    with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
        server.wait_for_output(b"\n")
        address = ("127.0.0.1", int(server.output.split(b":")[1]))
        assert b"ONE\n" == exchange(address, b"one")
        assert 0 == server.stop(signal.SIGINT)
        assert [] == server.log


def test_a_stop_that_comes_while_the_server_starts_is_not_lost() -> None:
    """It listens, and says so, before it can serve; nor does the stop end it with the signal's own status."""
    code = (
        "import os, signal, stdserve, sys\n"
        "stopped = []\n"
        "def stop(addresses):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    stopped.append('stdserve.servers' in sys.modules)\n"
        "stdserve.serve(port=0, ready=stop)\n"
        "assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "print(stopped)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert (0, "[False]\n", "") == (result.returncode, result.stdout, result.stderr)


def test_a_mode_of_ones_own_is_known_to_serve() -> None:
    """Registered before; an unknown one is told before anything listens."""
    code = (
        "import os, signal, stdserve\n"
        "stdserve.register_mode('mine', stdserve.ThreadServer)\n"
        "stdserve.serve(port=0, mode='mine', ready=lambda a: os.kill(os.getpid(), signal.SIGTERM))\n"
        "try:\n"
        "    stdserve.serve(port=0, mode='other', ready=print)\n"
        "except stdserve.ConfigError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    told = "--mode must be one of single, thread, fork, event, mine, not 'other'\n"
    assert (told, "") == (result.stdout, result.stderr)
