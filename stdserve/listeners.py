"""Listening sockets: opened here, then passed around as values. Servers adopt them, workers inherit them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable

from .addresses import Address
from .errors import StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "BACKLOG",
    "close_listeners",
    "effective_backlog",
    "open_listener",
    "open_listeners",
    "prepare_listener",
]

#: Clients that may wait to be accepted: as many as the kernel allows; it cuts larger numbers to its own.
BACKLOG = max(socket.SOMAXCONN, 65535)

#: What a machine without IPv6 (or without this address) answers, by the call that notices.
_FAMILY_MISSING = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}

#: A peer that vanished is noticed after two minutes (60 s, then 6 probes), not after the two hours of RFC 1122.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}

_REASONS = {
    errno.EADDRINUSE: "address already in use",
    errno.EACCES: "permission denied (a port below 1024 needs root or CAP_NET_BIND_SERVICE)",
    errno.EADDRNOTAVAIL: "no such address on this machine",
}


def effective_backlog(asked: int) -> int:
    """Return how many clients the kernel really lets wait; it cuts ``listen``'s number silently (listen(2))."""
    try:
        with open("/proc/sys/net/core/somaxconn") as limit:
            return min(asked, int(limit.read()))
    except OSError:
        return asked


def open_listeners(addresses: Iterable[Address]) -> list[socket.socket]:
    """Open a listener for every address, and for every address that a host name stands for.

    Listeners do not block, so that workers that share one never hang in a lost race for a client, and their
    backlog is the kernel's maximum. Optional addresses that the machine does not have are left out; one that
    asks for port 0 gets the port of the listener before it if that is free, so that ``localhost`` is one server.
    Raises StartError, with everything closed, if any other cannot be opened.
    """
    listeners: list[socket.socket] = []
    try:
        for address in addresses:
            listeners += _open_address(address, listeners)
        if not listeners:
            raise StartError("cannot listen: the machine has none of the addresses asked for")
    except BaseException:
        close_listeners(listeners)
        raise
    return listeners


def close_listeners(listeners: Iterable[socket.socket]) -> None:
    """Close each listener; closing twice is harmless."""
    for listener in listeners:
        listener.close()


def open_listener(family: int, where: tuple[Any, ...]) -> socket.socket:
    """Bind and listen at a socket address; raise OSError.

    A port in its closing wait is taken over at once on POSIX; on Windows, where SO_REUSEADDR would let a second
    process steal a live port, the address is taken exclusively instead. An IPv6 listener takes IPv6 only.
    """
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:  # pragma: no cover - Windows
            listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE"), 1)  # noqa: B009
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
        prepare_listener(listener)
    except BaseException:
        listener.close()
        raise
    return listener


def prepare_listener(listener: socket.socket) -> None:
    """Make ``listener`` non-blocking, and give its future connections what they inherit from it.

    Replies are not held back until the last one is acknowledged (cpython gh-108736: 40 ms each), and a peer that
    vanished is noticed (tcp(7): TCP_NODELAY; socket(7): SO_KEEPALIVE).
    """
    listener.setblocking(False)
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # pragma: no branch - Linux has them all
                listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _open_address(address: Address, before: list[socket.socket]) -> list[socket.socket]:
    port = before[-1].getsockname()[1] if address.optional and address.port == 0 and before else address.port
    opened: list[socket.socket] = []
    try:
        for family, host, *scope in _resolve(address.host):
            opened.append(_open_at(family, (host, port, *scope), any_port=address.port == 0))
            port = opened[-1].getsockname()[1]
    except (OSError, UnicodeError) as error:  # the latter for a name that DNS cannot carry, such as "a..b"
        close_listeners(opened)
        code = getattr(error, "errno", None)
        if address.optional and code in _FAMILY_MISSING:
            return []
        reason = _REASONS.get(code or 0) or getattr(error, "strerror", None) or str(error)
        raise StartError(f"cannot listen on {address}: {reason}") from None
    return opened


def _open_at(family: int, where: tuple[Any, ...], any_port: bool) -> socket.socket:
    try:
        return open_listener(family, where)
    except OSError as error:
        # The port was the idea of the listener before; where it is taken, any free one will do.
        if error.errno != errno.EADDRINUSE or not any_port:
            raise
        return open_listener(family, (where[0], 0, *where[2:]))


def _resolve(host: str) -> list[tuple[Any, ...]]:
    """Return (family, host, flow and scope if any) for each address of ``host``, in the resolver's order."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, where[0], *where[2:]) for family, _, _, _, where in found))
