"""What may break off whatever the main thread does: a second signal, a Ctrl-C; told from what handlers raise."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "STOP_SIGNALS",
    "StopNow",
    "breaks_off",
    "hold_interrupts",
    "hold_stops",
    "let_stops",
    "spare_stops",
    "stop_listening",
]

#: The signals that stop a server.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

#: These, and the others that a server handles: what comes while it starts would end the process.
_HELD = (*STOP_SIGNALS, *(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)))


class StopNow(KeyboardInterrupt):
    """Raised in the main thread to break off whatever it does: the second signal, or the deadline of a stop."""


def breaks_off(error: BaseException) -> bool:
    """Tell a Ctrl-C or a second signal, which must get out, from what a handler may raise itself.

    A KeyboardInterrupt is a Ctrl-C only in the main thread, and only while Python's own SIGINT handler is in place.
    """
    return isinstance(error, StopNow) or (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let a Ctrl-C that comes in the block be handled at its end; a process started in it has no part in this."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, frame: came.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def hold_stops() -> Iterator[None]:
    """Keep the STOP_SIGNALS waiting until ``let_stops`` says that someone can handle them, or the block ends.

    So it does with all others that a server handles.
    """
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows delivers Ctrl-C at once
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_stops() -> None:
    """Let the STOP_SIGNALS come, also where the caller was started with them blocked, and the others of a server."""
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch - Windows blocks none
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def spare_stops() -> Callable[[], None]:
    """Return a function for a program to call when its server runs: STOP_SIGNALS left to the program do nothing then.

    Who presses Ctrl-C again while the process is on its way out would else get a traceback, or change its status.
    """
    running = False

    def meet(signum: int, frame: object) -> None:
        if not running:
            signal.signal(signum, before[signum])
            signal.raise_signal(signum)

    def run() -> None:
        nonlocal running
        running = True

    before: dict[int, Any] = {number: signal.signal(number, meet) for number in STOP_SIGNALS}
    return run


def stop_listening() -> None:
    """Let STOP_SIGNALS do nothing to a process that is on its way out, the interpreter's own end included."""
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch - Windows blocks none
        # First, so that none is between its arrival and its handler when that is taken away.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
