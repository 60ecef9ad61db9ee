"""Addresses as people type them, and as they are shown: ``host:port``, ``[v6]:port``, a bare host.

Pure text: nothing here resolves a name or opens a socket.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["DEFAULT_PORT", "LOOPBACK", "Address", "format_peer", "parse_address", "parse_port"]

#: The lecture's port.
DEFAULT_PORT = 10001


@dataclass(frozen=True)
class Address:
    """Where to listen or to connect: a host name or numeric address, and a TCP port (0: any free one).

    ``optional`` marks an address that a machine may do without (``::1`` where IPv6 is off).
    """

    host: str
    port: int
    optional: bool = False

    def __str__(self) -> str:
        """Write it so that :func:`parse_address` reads it back."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: Listened on when nobody says otherwise: this machine only, both families.
LOOPBACK = (Address("127.0.0.1", DEFAULT_PORT), Address("::1", DEFAULT_PORT, optional=True))


def parse_port(text: str) -> int:
    """Return the TCP port in ``text``, 0 to 65535; raise ConfigError for anything else."""
    # str.isdecimal takes digits of every script; a port is ASCII.
    if text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535:
        return int(text)
    raise ConfigError(f"port must be a number from 0 to 65535, not {text!r}")


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """Read ``HOST``, ``HOST:PORT``, ``[V6]:PORT``, ``[V6]`` or a bare V6 address.

    An empty host (``:8000``) means all IPv4 interfaces, as in the lecture's ``bind(('', 10001))``.
    Raises ConfigError that quotes the text when it is none of these.
    """
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise ConfigError(f"address must be HOST:PORT or [V6]:PORT, not {text!r}")
        port = rest[1:]
        missing = rest == ":"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        missing = not port
    else:
        missing = not text
    if missing or not _is_host(host, bracketed=text.startswith("[")):
        raise ConfigError(f"address must be HOST:PORT or [V6]:PORT, not {text!r}")
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


def format_peer(address: Any) -> str:
    """Show a socket address as ``getpeername()`` or ``accept()`` gives it: ``127.0.0.1:4000``, ``[::1]:4000``.

    An abstract UNIX address begins with ``@`` in the place of its NUL; a client without an address is "local".
    """
    if isinstance(address, tuple):
        return str(Address(*address[:2]))
    if isinstance(address, bytes):
        address = address.decode("utf-8", "backslashreplace").replace("\0", "@")
    return "local" if not address else str(address)
