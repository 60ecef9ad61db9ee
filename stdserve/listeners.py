"""Listening sockets: opened or adopted here, then passed around as values. Servers own them, workers inherit them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence

from .addresses import UNIX_MODE, Address, format_peer
from .errors import StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "BACKLOG",
    "address_of",
    "adopt_listener",
    "client_address_of",
    "close_listeners",
    "effective_backlog",
    "family_for",
    "leave_listeners",
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


def open_listeners(
    addresses: Iterable[Address], *, unix_mode: int = UNIX_MODE, reuse_port: bool = False
) -> list[socket.socket]:
    """Open a listener for every address, and for every address that a host name stands for; adopt what was passed.

    Listeners do not block, so that workers that share one never hang in a lost race for a client, and their
    backlog is the kernel's maximum. Optional addresses that the machine does not have are left out; one that
    asks for port 0 gets the port of the listener before it if that is free, so that ``localhost`` is one server.
    ``unix_mode`` is that of UNIX sockets, ``reuse_port`` lets other servers listen on the same TCP port.
    Raises StartError, with everything closed, adopted listeners included, if any other cannot be opened.
    """
    wanted = [one for address in addresses for one in _both_families(address)]
    listeners: list[socket.socket] = []
    try:
        passed: Sequence[tuple[int, str]] = ()
        if any(address.kind == "systemd" for address in wanted):
            from .systemd import listen_fds  # here, for few starts need it

            passed = listen_fds()
        for address in wanted:
            if address.kind == "unix":
                listeners.append(_open_unix(address, unix_mode))
            elif address.kind == "tcp":
                listeners += _open_tcp(address, listeners, reuse_port)
            else:
                fds = [address.port] if address.kind == "fd" else _fds_named(address, passed)
                for fd in fds:
                    listeners.append(_adopt(address, fd, listeners))
        if not listeners:
            raise StartError("cannot listen: the machine has none of the addresses asked for")
    except BaseException:
        close_listeners(listeners)
        raise
    return listeners


#: That of the class behind ``socket.socket``, whatever a class in front of it does at its end.
_close = socket.SocketType.close


def close_listeners(listeners: Iterable[socket.socket]) -> None:
    """Close each listener; closing twice is harmless."""
    for listener in listeners:
        listener.close()


def leave_listeners(listeners: Iterable[socket.socket]) -> None:
    """Close each listener in this process only, where another one serves: a file stays until ``close_listeners``."""
    for listener in listeners:
        _close(listener)


def address_of(listener: socket.socket) -> tuple[str, int] | str:
    """Return where to connect: (host, port), or for a UNIX socket the text that ``parse_address`` reads."""
    name = listener.getsockname()
    return name[:2] if isinstance(name, tuple) else format_peer(name)


def family_for(address: Any, default: int) -> int:
    """Return the family of a socket address as ``bind`` takes it: ``default``, unless it cannot be that.

    ``address_family`` of the standard library's servers is AF_INET for every address (cpython gh-64414).
    """
    if default != socket.AF_INET:
        return default
    if isinstance(address, str | bytes):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else default


def client_address_of(accepted: socket.socket, address: Any) -> Any:
    """Return ``address``, as accept gave it, in the form that handlers get: a tuple of a host and a number.

    An IPv4 client of an IPv6 listener has its IPv4 address, not ``::ffff:127.0.0.1``. A client over a UNIX socket,
    whose address is empty (http.server's handler fails on its first character), has what ``unix.client_of`` gives.
    """
    if not isinstance(address, tuple):
        from .unix import client_of  # here, for few servers need it

        return client_of(accepted)
    host = address[0]
    return (host[7:], address[1]) if host.startswith("::ffff:") and "." in host else address


def adopt_listener(fd: int) -> socket.socket:
    """Return the listener that is open as ``fd`` already, of whatever family the kernel says it is.

    Its descriptor is closed with it, and on exec. Raises OSError, and leaves the descriptor alone, where that is no
    stream socket of TCP or UNIX that listens.
    """
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        told = {errno.EBADF: "it is not open", errno.ENOTSOCK: "it is no socket"}
        raise OSError(error.errno, told.get(error.errno or 0, error.strerror)) from None
    try:
        if listener.family not in (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None)):
            raise OSError(errno.EAFNOSUPPORT, "it is no socket of TCP or UNIX")
        if listener.type != socket.SOCK_STREAM:
            raise OSError(errno.EPROTOTYPE, "it is no stream socket")
        if not _listens(listener):
            raise OSError(errno.EINVAL, "it does not listen")
        listener.set_inheritable(False)
        listener.listen(BACKLOG)  # as gunicorn does: whoever made it may have thought of five clients
        prepare_listener(listener)
    except BaseException:
        listener.detach()
        raise
    return listener


def open_listener(family: int, where: tuple[Any, ...], reuse_port: bool = False) -> socket.socket:
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
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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


def _listens(listener: socket.socket) -> bool:
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # pragma: no cover - a system that does not tell (xnu)
        return True


def _both_families(address: Address) -> tuple[Address, ...]:
    if address.kind != "tcp" or address.host != "*":
        return (address,)
    return Address("0.0.0.0", address.port), Address("::", address.port, optional=True)


def _open_unix(address: Address, mode: int) -> socket.socket:
    from .unix import listen_unix  # here, for few starts need it

    try:
        listener = listen_unix(address.host, mode, BACKLOG)
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror}") from None
    prepare_listener(listener)
    return listener


def _fds_named(address: Address, passed: Sequence[tuple[int, str]]) -> list[int]:
    fds = [fd for fd, name in passed if address.host in ("", name)]
    if not fds:
        names = ", ".join(sorted({repr(name) for _, name in passed}))
        which = f"the sockets that were passed are named {names}" if names else "no sockets were passed to this process"
        raise StartError(f"cannot listen on {address}: {which}")
    return fds


def _adopt(address: Address, fd: int, before: Sequence[socket.socket]) -> socket.socket:
    what = str(address) if address.kind == "fd" else f"{address}, descriptor {fd}"
    if fd in [listener.fileno() for listener in before]:
        raise StartError(f"cannot listen on {what}: it is listened on already")
    try:
        return adopt_listener(fd)
    except OSError as error:
        raise StartError(f"cannot listen on {what}: {error.strerror}") from None


def _open_tcp(address: Address, before: Sequence[socket.socket], reuse_port: bool) -> list[socket.socket]:
    port = address.port
    if address.optional and port == 0 and before and isinstance(near := address_of(before[-1]), tuple):
        port = near[1]
    opened: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, host, *scope in _resolve(address.host):
            try:
                opened.append(_open_at(family, (host, port, *scope), address.port == 0, reuse_port))
            except OSError as error:
                # "localhost" has an address of IPv6 also where that is off; one of its addresses is enough.
                if error.errno not in _FAMILY_MISSING or not (address.optional or family == socket.AF_INET6):
                    raise
                missing = error
                continue
            port = opened[-1].getsockname()[1]
        if missing and not opened and not address.optional:
            raise missing
    except (OSError, UnicodeError) as error:  # the latter for a name that DNS cannot carry, such as "a..b"
        close_listeners(opened)
        code = getattr(error, "errno", None)
        reason = _REASONS.get(code or 0) or getattr(error, "strerror", None) or str(error)
        raise StartError(f"cannot listen on {address}: {reason}") from None
    return opened


def _open_at(family: int, where: tuple[Any, ...], any_port: bool, reuse_port: bool) -> socket.socket:
    try:
        return open_listener(family, where, reuse_port)
    except OSError as error:
        # The port was the idea of the listener before; where it is taken, any free one will do.
        if error.errno != errno.EADDRINUSE or not any_port:
            raise
        return open_listener(family, (where[0], 0, *where[2:]), reuse_port)


def _resolve(host: str) -> list[tuple[Any, ...]]:
    """Return (family, host, flow and scope if any) for each address of ``host``, in the resolver's order."""
    # As bytes it is passed on as it is. For text the codec of international names is imported, and all of Unicode.
    name = host.encode() if host.isascii() else host
    found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, where[0], *where[2:]) for family, _, _, _, where in found))
