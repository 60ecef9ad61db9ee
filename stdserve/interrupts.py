"""What may break off whatever the main thread does: a second signal, a Ctrl-C; told from what handlers raise."""

from __future__ import annotations

import signal
import threading

__all__ = ["StopNow", "breaks_off"]


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
