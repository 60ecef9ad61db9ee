"""Networks as people type them, and whether an address is in one of many: the rules of who may come in.

Pure: no name is looked up. ncat's rules (``--allow``, ``--deny`` and their files) without its host names, octet ranges
and wildcards: a name may change or fail to resolve while the server runs, a range is written as networks.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from .errors import ConfigError, StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network
    from os import PathLike

    Network = IPv4Network | IPv6Network

__all__ = ["Rules", "parse_networks", "read_networks"]

_MAPPED = bytes(10) + b"\xff\xff"  # the first 96 bits of an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2)


class Rules:
    """Which addresses are admitted: ``Rules(allow=["10.0.0.0/8", "::1"], deny=["10.6.6.6"])``.

    ``deny`` wins; once anything is allowed, everything else is denied, of either family (``::/0`` is all of IPv6 and
    nothing of IPv4); without rules all are admitted. Networks are texts as :func:`parse_networks` reads them, or its
    results; those in files are added. A file that allows none still denies the rest, as in ncat: it may have been
    emptied by accident. Raises what :func:`parse_networks` and :func:`read_networks` raise.
    """

    def __init__(
        self,
        allow: Iterable[str | Network] = (),
        deny: Iterable[str | Network] = (),
        *,
        allow_files: Sequence[str | PathLike[str]] = (),
        deny_files: Sequence[str | PathLike[str]] = (),
    ) -> None:
        self._allowed = _Networks(allow, allow_files)
        self._denied = _Networks(deny, deny_files)
        self._selective = bool(self._allowed or allow_files)

    def __bool__(self) -> bool:
        """Tell whether there are any rules."""
        return self._selective or bool(self._denied)

    def admits(self, host: str | bytes) -> bool:
        """Tell whether the peer at ``host`` may come in: the first part of an address, as ``accept()`` gives it.

        The zone of an IPv6 address does not count, and an IPv4-mapped one is IPv4. What is no IP address is a UNIX
        peer, named or not: who may connect there is said by the socket's mode, and the rules do not apply.
        """
        if not self:
            return True
        packed = _pack(host)
        if packed is None:
            return True
        return packed not in self._denied and (not self._selective or packed in self._allowed)


class _Networks:
    """A set of networks, by the length of their address and prefix; a look-up tries each such pair once."""

    def __init__(self, networks: Iterable[str | Network], files: Iterable[str | PathLike[str]]) -> None:
        self._prefixes: dict[tuple[int, int], set[int]] = {}
        for item in networks:
            for network in parse_networks(item) if isinstance(item, str) else (item,):
                self._add(network)
        for path in files:
            for network in read_networks(path):
                self._add(network)

    def _add(self, network: Network) -> None:
        packed, prefix = network.network_address.packed, network.prefixlen
        if packed.startswith(_MAPPED):  # with bits up to the 96th set, so the prefix has them too
            packed, prefix = packed[12:], prefix - 96
        shift = len(packed) * 8 - prefix
        self._prefixes.setdefault((len(packed), shift), set()).add(int.from_bytes(packed, "big") >> shift)

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    def __contains__(self, packed: bytes) -> bool:
        number = int.from_bytes(packed, "big")
        for (size, shift), prefixes in self._prefixes.items():
            if size == len(packed) and number >> shift in prefixes:
                return True
        return False


def parse_networks(text: str) -> tuple[Network, ...]:
    """Read one network or several with commas between: ``10.0.0.0/8``, ``192.168.1.7``, ``2001:db8::/32,::1``.

    Raises ConfigError that quotes what is none, and says what may have been meant.
    """
    return tuple(_parse(word.strip()) for word in text.split(","))


def read_networks(path: str | PathLike[str]) -> tuple[Network, ...]:
    """Read a file with a network a line, ``#`` comments and blank lines; UTF-8.

    Raises StartError where it cannot be read, ConfigError that names the file and the line of what is no network.
    """
    networks: list[Network] = []
    try:
        # A byte that is no UTF-8 is quoted back with its line.
        with open(path, encoding="utf-8-sig", errors="backslashreplace") as file:
            for number, line in enumerate(file, 1):
                text = line.partition("#")[0].strip()
                if text:
                    networks.append(_parse(text, f"{path}:{number}: "))
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror or error}") from error
    return tuple(networks)


def _parse(text: str, where: str = "") -> Network:
    from ipaddress import ip_address, ip_network  # here, for few servers have rules

    if "%" in text:
        raise ConfigError(f"{where}a network has no zone, and that of a peer does not count: {text!r}")
    try:
        network, address = ip_network(text, strict=False), ip_address(text.partition("/")[0])
    except ValueError:
        wanted = "a network must be an IP address or ADDRESS/PREFIX (names are not looked up)"
        raise ConfigError(f"{where}{wanted}, not {text!r}") from None
    if network.network_address != address:
        raise ConfigError(f"{where}{text!r} has bits set after its prefix: did you mean {network} or just {address}?")
    return network


def _pack(host: str | bytes) -> bytes | None:
    """Return the bytes of an IP address; None for anything else."""
    if isinstance(host, bytes):
        return None
    text = host.partition("%")[0]
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):  # the latter for a NUL
        return None
    return packed[12:] if packed.startswith(_MAPPED) else packed
