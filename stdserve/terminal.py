"""The standard streams of a command line: saying something on standard error, whatever has become of it."""

from __future__ import annotations

import os
import sys

__all__ = ["fill_descriptors", "has_terminal", "say", "settle"]


def say(text: str) -> None:
    """Write ``text`` on standard error at once. Where that is closed or its reader has gone, nobody is told."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass  # None, broken, closed


def fill_descriptors() -> None:
    """Give closed stdin and stderr something harmless to be called at the start.

    Else the next socket takes their number, and gets what is meant for them. A closed stdout is left to those who
    need it: they refuse to start.
    """
    for wanted in (0, 2):
        try:
            os.fstat(wanted)
        except OSError:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != wanted:
                os.dup2(fd, wanted)
                os.close(fd)


def has_terminal() -> bool:
    """Tell whether this process has a controlling terminal, and that has not been closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def settle(seconds: float | None = None) -> None:
    """Empty the buffers of stdout and stderr, to be called at the end; what cannot be written is dropped.

    An interpreter that finds something left to write at its exit, and cannot, exits with 120 (Py_FinalizeEx).
    With ``seconds`` given it takes no longer: another thread may be in the middle of a write, and hold the buffer.
    """
    if seconds is None:
        _empty_buffers()
        return
    import threading  # here, for the sake of a quick start

    thread = threading.Thread(target=_empty_buffers, name="stdserve settle", daemon=True)
    thread.start()
    thread.join(seconds)


def _empty_buffers() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):
            pass  # None, as it was closed from the start, or closed since
        except OSError:
            fd = os.open(os.devnull, os.O_WRONLY)
            os.dup2(fd, stream.fileno())
            os.close(fd)
