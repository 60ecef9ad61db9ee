"""Room for many sessions: each needs a descriptor, and the usual limit of 1,024 is for programs that use select(2)."""

from __future__ import annotations

import logging

from .logs import Event

__all__ = ["make_room"]

_log = logging.getLogger("stdserve")

#: Descriptors that a server needs besides those of its sessions.
SPARE = 64


def make_room(sessions: int) -> None:
    """Raise this process's soft limit so that it can have so many sessions, as far as the hard limit lets it.

    What is missing is logged: clients beyond it wait in the backlog (getrlimit(2), RLIMIT_NOFILE).
    """
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sessions + SPARE
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if most < wanted:
        _log.warning(Event("limit", f"of {most} descriptors (ulimit -Hn): not enough for {sessions} sessions"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
