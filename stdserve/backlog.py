"""How many clients wait in a listener's backlog, and how many it has turned away: the kernel's own figures."""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass

from .addresses import format_peer

__all__ = ["Backlog", "read_backlog"]

#: Of struct tcp_info (linux/tcp.h): tcpi_unacked and tcpi_sacked, which of a listener are its queue and its limit.
_QUEUE = struct.Struct("24xII")

#: SO_MEMINFO (Linux 4.12), nine numbers of which the last is SK_MEMINFO_DROPS; Python has no name for it.
_SO_MEMINFO = 55
_DROPS = struct.Struct("32xI")


@dataclass(frozen=True)
class Backlog:
    """The queue of the listener at ``address``: clients ``waiting``, ``limit`` of them, ``drops`` since it was opened.

    A client counts as dropped each time it tries while the queue is full.
    """

    address: str
    waiting: int
    limit: int
    drops: int


def read_backlog(listener: socket.socket) -> Backlog | None:
    """Ask the kernel (three system calls); None where it does not tell: not Linux, not TCP, closed.

    It may be closed by another thread at any moment.
    """
    if sys.platform != "linux":  # pragma: no cover - elsewhere TCP_INFO means something else, if anything
        return None
    try:
        queue = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUE.size)
        memory = listener.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _DROPS.size)
        address = format_peer(listener.getsockname())
    except OSError:
        return None
    waiting, limit = _QUEUE.unpack(queue)
    return Backlog(address, waiting, limit, _DROPS.unpack(memory)[0])
