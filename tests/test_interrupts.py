"""Which exceptions end the loop, and which end one session."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
from processes import DEADLINE

from stdserve.interrupts import STOP_SIGNALS, StopNow, breaks_off, hold_stops, let_stops


def test_a_second_signal_gets_out_and_a_handlers_exit_does_not() -> None:
    """Whatever the signal handlers are."""
    assert breaks_off(StopNow())
    assert not breaks_off(SystemExit())
    assert not breaks_off(ValueError())


def test_ctrl_c_is_pythons_own_in_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a KeyboardInterrupt is a handler's affair."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert breaks_off(KeyboardInterrupt())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert not breaks_off(KeyboardInterrupt())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        told: list[bool] = []
        thread = threading.Thread(target=lambda: told.append(breaks_off(KeyboardInterrupt())))
        thread.start()
        thread.join()
        assert [False] == told
    finally:
        signal.signal(signal.SIGINT, before)


def test_stops_are_held_until_someone_can_take_them() -> None:
    """And the mask of before comes back."""

    def held() -> bool:
        return set(STOP_SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, [])

    with hold_stops():
        assert held()
        let_stops()
        assert not held()
    assert not held()


def signalled(code: str) -> tuple[int, str]:
    """Run a program that sends itself signals; return its status and what it printed."""
    preamble = (
        "import signal\n"
        "from stdserve.interrupts import spare_stops, stop_listening\n"
        "signal.signal(signal.SIGINT, lambda *_: print('the program\\'s own'))\n"
    )
    result = subprocess.run([sys.executable, "-c", preamble + code], capture_output=True, text=True, timeout=DEADLINE)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout


def test_a_stop_before_a_program_serves_means_what_it_meant() -> None:
    """Its own handler, or the default."""
    assert (0, "the program's own\n") == signalled("spare_stops()\nsignal.raise_signal(signal.SIGINT)\n")
    assert (-signal.SIGTERM, "") == signalled("spare_stops()\nsignal.raise_signal(signal.SIGTERM)\nprint('alive')\n")


def test_a_stop_after_it_has_served_means_nothing() -> None:
    """At first, and at its very end."""
    each = "signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGTERM)\n"
    assert (0, "") == signalled("spare_stops()()\n" + each)
    assert (0, "") == signalled("stop_listening()\n" + each)
