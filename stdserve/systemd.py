"""systemd from the side of a service: sockets it passes, what it wants to be told (sd_listen_fds(3), sd_notify(3)).

Nothing here needs systemd: without its environment variables no sockets are passed, and nobody is told.
"""

from __future__ import annotations

import os

from .errors import StartError

__all__ = ["listen_fds", "notify", "watchdog_seconds"]

#: The first descriptor that is passed (SD_LISTEN_FDS_START).
FIRST_FD = 3

_PASSED = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def listen_fds() -> list[tuple[int, str]]:
    """Return (descriptor, FileDescriptorName=) for each socket passed to this process; none if they are not for us.

    To be called once: it removes the variables, so that no child takes the sockets for its own, and closes the
    descriptors on exec. Raises StartError if what is said was passed is not there.
    """
    pid, count, names, _ = (os.environ.pop(name, "") for name in _PASSED)
    if pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdecimal() and len(count) <= 9):
        raise StartError(f"LISTEN_FDS must be a number, not {count!r}")
    named = dict(enumerate(names.split(":") if names else [], FIRST_FD))
    passed = []
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            raise StartError(f"descriptor {fd} is not open, but LISTEN_FDS={count} says that it was passed") from None
        passed.append((fd, named.get(fd, "unknown")))
    return passed


def notify(*states: str) -> None:
    """Tell the service's supervisor ``READY=1``, ``STATUS=...``, as one message; never raises, never waits.

    ``RELOADING=1`` gets the time that Type=notify-reload wants with it.
    """
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where.startswith(("/", "@")):
        return  # nobody asked, or by a kind of socket that we do not know (vsock)
    import socket  # here, as time: few starts have anybody to tell
    import time

    if "RELOADING=1" in states:
        states += (f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}",)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(states).encode(), "\0" + where[1:] if where.startswith("@") else where)
    except OSError:
        pass  # whoever listened has gone; that is no reason for us to go


def watchdog_seconds() -> float | None:
    """Return the seconds within which ``WATCHDOG=1`` is to be said each time (WatchdogSec=); None if not by us."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (usec.isascii() and usec.isdecimal() and len(usec) <= 18):
        return None
    return int(usec) / 1e6 or None
