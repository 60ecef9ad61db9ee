"""Addresses as people type them, and as they are shown: ``host:port``, ``[v6]:port``, ``*``, ``unix:/path``, ``fd://3``.

Pure text: nothing here resolves a name or opens a socket.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError
from .escaping import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "DEFAULT_PORT",
    "LOOPBACK",
    "UNIX_MODE",
    "Address",
    "connect_form",
    "format_peer",
    "parse_address",
    "parse_port",
]

#: The lecture's port.
DEFAULT_PORT = 10001

#: Who may connect to a UNIX socket unless told otherwise: the server's own user. waitress has it so too; gunicorn (777)
#: and systemd (666) let everybody in, which is one word here as well, but not the word of somebody who said nothing.
UNIX_MODE = 0o600


@dataclass(frozen=True)
class Address:
    """Where to listen or to connect; ``kind`` tells what ``host`` and ``port`` mean.

    =========  ===============================================  =================================
    kind       host                                             port
    =========  ===============================================  =================================
    "tcp"      a name, a numeric address, "*" (all interfaces)  the TCP port, 0 for any free one
    "unix"     a path, or "@" and a name (abstract, unix(7))    0
    "fd"       empty                                            the number of an open descriptor
    "systemd"  FileDescriptorName=, empty for all it passed     0
    =========  ===============================================  =================================

    ``optional`` marks an address that a machine may do without (``::1`` where IPv6 is off). The last two can only
    be listened on; :func:`connect_form` gives the others as a socket takes them.
    """

    host: str
    port: int = 0
    optional: bool = False
    kind: str = "tcp"

    def __str__(self) -> str:
        """Write it so that :func:`parse_address` reads it back."""
        if self.kind == "unix":
            return f"unix:{self.host}"
        if self.kind == "fd":
            return f"fd://{self.port}"
        if self.kind == "systemd":
            return f"systemd:{self.host}" if self.host else "systemd"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: Listened on when nobody says otherwise: this machine only, both families.
LOOPBACK = (Address("127.0.0.1", DEFAULT_PORT), Address("::1", DEFAULT_PORT, optional=True))

_FORMS = "HOST:PORT, [V6]:PORT, *:PORT, unix:PATH, unix:@NAME, fd://N or systemd:NAME"


def parse_port(text: str) -> int:
    """Return the TCP port in ``text``, 0 to 65535; raise ConfigError for anything else."""
    # str.isdecimal takes digits of every script; a port is ASCII.
    if text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535:
        return int(text)
    raise ConfigError(f"port must be a number from 0 to 65535, not {text!r}")


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """Read ``HOST``, ``HOST:PORT``, ``[V6]:PORT``, ``[V6]``, a bare V6 address, and what is no host at all.

    ``*`` and ``*:PORT`` are all interfaces of both families; an empty host (``:8000``) is all of IPv4, as in the
    lecture's ``bind(('', 10001))``. The others are ``unix:PATH``, ``unix:@NAME``, ``fd://N``, ``systemd`` and
    ``systemd:NAME``. Raises ConfigError that quotes the text when it is none of these.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest.removeprefix("@") and rest.isprintable():
        return Address(rest, kind="unix")
    if scheme == "systemd" and rest.isprintable() and (rest or text == "systemd"):
        return Address(rest, kind="systemd")
    number = text.removeprefix("fd://")
    if number != text and number.isascii() and number.isdecimal() and len(number) <= 9:
        return Address("", int(number), kind="fd")
    if number != text or scheme in ("unix", "systemd"):
        raise ConfigError(f"address must be {_FORMS}, not {text!r}")
    return _parse_tcp(text, default_port)


def _parse_tcp(text: str, default_port: int) -> Address:
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise ConfigError(f"address must be {_FORMS}, not {text!r}")
        port = rest[1:]
        missing = rest == ":"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        missing = not port
    else:
        missing = not text
    if missing or not _is_host(host, bracketed=text.startswith("[")):
        raise ConfigError(f"address must be {_FORMS}, not {text!r}")
    return Address(host or "0.0.0.0", parse_port(port) if port else default_port)


def _is_host(host: str, bracketed: bool) -> bool:
    if bracketed or ":" in host:
        from ipaddress import (  # here, for few starts need it
            AddressValueError,
            IPv6Address,
        )

        try:
            IPv6Address(host)
        except AddressValueError:
            return False
    return not any(c.isspace() or not c.isprintable() for c in host)


def connect_form(address: Address) -> tuple[int, Any]:
    """Return the family and the socket address to connect to; raise ConfigError where there is nothing to connect to.

    A UNIX socket is (AF_UNIX, path), the path of an abstract one beginning with a NUL. TCP is (AF_UNSPEC, (host,
    port)), whose host is for the resolver, as in ``socket.create_connection``; "*" is this machine.
    """
    import socket  # here, since all the rest is text

    if address.kind == "unix":
        abstract = address.host.startswith("@")
        return socket.AF_UNIX, "\0" + address.host[1:] if abstract else address.host
    if address.kind == "tcp":
        return socket.AF_UNSPEC, ("localhost" if address.host == "*" else address.host, address.port)
    raise ConfigError(f"{address} can be listened on, not connected to")


def format_peer(address: Any) -> str:
    """Show the address of a listener (``getsockname()``) or of a client (as a handler has it), safe for a log.

    ``127.0.0.1:4000``, ``[::1]:4000``, ``unix:/path``, ``unix:@name`` for an abstract one; a client over a UNIX
    socket is ``unix:uid=1000,pid=4711``, or "local" where the system does not tell.
    """
    if isinstance(address, tuple):
        host, number = address[:2]
        if host.startswith("unix:"):
            return f"{host},pid={number}"
        return "local" if host == "local" else str(Address(host, number))
    name = address.encode("utf-8", "surrogateescape") if isinstance(address, str) else address
    if not name:
        return "local"
    path = b"@" + name[1:] if name.startswith(b"\0") else name
    return "unix:" + escape(path).decode().replace("\n", "\\x0a")
