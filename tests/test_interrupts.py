"""Which exceptions end the loop, and which end one session."""

from __future__ import annotations

import signal
import threading

import pytest

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
