"""Standard streams that are closed, broken or missing; each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from processes import DEADLINE

CLOSED_READER = "import os, sys; r, w = os.pipe(); os.dup2(w, {fd}); os.close(r); os.close(w)\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program, and return how it ended."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, env=env)


def test_what_is_said_is_on_standard_error() -> None:
    """At once, and nowhere else."""
    result = run("from stdserve.terminal import say\nsay('hello\\n')\nimport os\nos._exit(0)")
    assert ("", "hello\n") == (result.stdout, result.stderr)


@pytest.mark.parametrize(
    "ruin", [CLOSED_READER.format(fd=2), "import sys\nsys.stderr = None\n", "import sys\nsys.stderr.close()\n"]
)
def test_nobody_to_tell_is_no_error(ruin: str) -> None:
    """Broken, missing, closed: the exit code is the program's own."""
    result = run(ruin + "from stdserve.terminal import say, settle\nsay('hello\\n')\nsettle()\nprint('fine')\n")
    assert (0, "fine\n") == (result.returncode, result.stdout)


def test_what_is_left_for_a_reader_that_has_gone_does_not_change_the_exit_code() -> None:
    """Without settle() it is 120."""
    code = CLOSED_READER.format(fd=1) + "sys.stdout.write('lost')\n"
    assert 120 == run(code).returncode
    assert 0 == run(code + "from stdserve.terminal import settle\nsettle()\n").returncode


def test_a_buffer_that_another_thread_holds_is_not_waited_for() -> None:
    """It writes into a pipe that nobody reads; what others have printed before comes out as ever."""
    held = (
        "import os, threading\n"
        "r, w = os.pipe(); keep = os.dup(1); os.dup2(w, 1)\n"
        "threading.Thread(target=print, args=('x' * 1_000_000,), daemon=True).start()\n"
        "os.read(r, 1)\n"
        "from stdserve.terminal import settle\n"
        "settle(0.1)\n"
        "os.write(keep, b'fine')\n"
        "os._exit(0)\n"
    )
    assert "fine" == run(held).stdout
    assert (
        "all\n"
        == run("from stdserve.terminal import settle\nprint('all')\nsettle(60)\nimport os\nos._exit(0)\n").stdout
    )


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 2), (0, 1, 2)])
def test_closed_descriptors_are_filled_but_for_standard_output(closed: tuple[int, ...]) -> None:
    """What is opened next gets a number of its own."""
    code = (
        "import os, sys\n"
        "from stdserve.terminal import fill_descriptors\n"
        "keep = os.dup(1)\n"
        f"for fd in {closed}: os.close(fd)\n"
        "fill_descriptors()\n"
        "names = [os.path.exists(f'/proc/self/fd/{fd}') for fd in range(3)]\n"
        "os.write(keep, repr(names).encode())\n"
        "os._exit(0)\n"
    )
    assert repr([True, 1 not in closed, True]) == run(code).stdout
