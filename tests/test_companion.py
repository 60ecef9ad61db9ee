"""A process beside the workers: there as long as it should be, and no longer.

Every fork is done in a script of its own, which has one thread.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from processes import DEADLINE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

PREAMBLE = """
import logging, os, signal, sys, time
from stdserve import companion as room
from stdserve.companion import Companion

logging.basicConfig(format="%(message)s", stream=sys.stdout)

def sleep_for_ever():
    while True:
        signal.pause()

def pid_of(companion):
    return companion._child.pid if companion._child is not None else None

def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

def check_until(condition):
    end = time.monotonic() + 30
    while not condition():
        companion.check()
        assert time.monotonic() < end

companion = Companion("the other", sleep_for_ever)
"""


def outcome(script: str) -> list[str]:
    """Run a script, which must end well and say nothing on standard error; return what it printed and logged."""
    command = [sys.executable, "-bb", "-W", "error", "-c", PREAMBLE + textwrap.dedent(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (0, "") == (run.returncode, run.stderr)
    return run.stdout.splitlines()


def test_it_is_started_once_and_ended() -> None:
    """More looks change nothing; SIGTERM is enough for the end."""
    script = """
    companion.check()
    pid = pid_of(companion)
    companion.check()
    print(pid == pid_of(companion), alive(pid))
    companion.end()
    companion.end()
    companion.check()
    print(pid_of(companion), alive(pid))
    """
    assert ["True True", "None False"] == outcome(script)


def test_one_that_ends_is_started_again_after_longer_and_longer() -> None:
    """0.1 s, 0.2 s, 0.4 s and so on, while it never lasts."""
    script = """
    companion = Companion("the other", lambda: 7)
    check_until(lambda: companion._wait > 0.3)
    companion.end()
    """
    line = "error the other ended with status 7; another starts in {} s"
    assert [line.format(wait) for wait in ("0.1", "0.2", "0.4")] == outcome(script)


def test_one_that_held_is_replaced_at_once() -> None:
    """The wait is for those that never get anywhere."""
    script = """
    room.HELD_SECONDS = 0.0
    companion.check()
    before = pid_of(companion)
    os.kill(before, signal.SIGKILL)
    check_until(lambda: pid_of(companion) != before)
    print(alive(pid_of(companion)))
    companion.end()
    """
    assert ["error the other ended with status -9; another starts in 0 s", "True"] == outcome(script)


def test_one_that_ends_when_it_is_told_is_not_replaced() -> None:
    """Nor is it complained about."""
    script = """
    companion.check()
    companion.tell()
    check_until(lambda: pid_of(companion) is None)
    companion.check()
    print(pid_of(companion))
    companion.tell()
    companion.end()
    """
    assert ["None"] == outcome(script)


def test_one_that_will_not_end_is_killed() -> None:
    """After a while."""
    script = """
    room.PATIENCE = 0.2
    reader, writer = os.pipe()

    def deaf():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(writer, b"deaf")
        sleep_for_ever()

    companion = Companion("the other", deaf)
    companion.check()
    pid = pid_of(companion)
    os.read(reader, 4)
    companion.end()
    print(alive(pid))
    """
    assert ["False"] == outcome(script)


def test_no_process_to_be_had_is_told_and_tried_again() -> None:
    """As workers are."""
    script = """
    fork = room.fork_child

    def refuse(*arguments):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    room.fork_child = refuse
    companion.check()
    companion.check()
    room.fork_child = fork
    check_until(lambda: pid_of(companion) is not None)
    companion.end()
    """
    message = "[Errno 11] Resource temporarily unavailable; tried again in 0.1 s"
    assert [f"error the other cannot be started: {message}"] == outcome(script)
