"""The header of the PROXY protocol as a value: what a proxy tells of a connection, and how that is written.

Versions 1 (a line of text) and 2 (binary), after HAProxy's specification, whose sections are named here:
https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt. It is read by :mod:`stdserve.proxy`.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ConfigError, PeerError

__all__ = [
    "FAMILIES",
    "SIGNATURE",
    "ProxyHeader",
    "ProxySsl",
    "SocketAddress",
    "Tlv",
    "encode_v1",
    "encode_v2",
    "header_error",
    "ip_address",
    "read_tlvs",
    "split_tlvs",
    "unix_address",
]

#: An address as ``accept()`` gives it: IPv4, IPv6, a UNIX path ("" for none), an abstract UNIX name (unix(7)).
SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str | bytes

#: A type and a value (2.2).
Tlv = tuple[int, bytes]

#: How version 2 begins.
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

#: The families of addresses by their number in version 2.
FAMILIES = ("unspec", "inet", "inet6", "unix")

_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _SSL, _NETNS = 0x01, 0x02, 0x03, 0x05, 0x20, 0x30
_MAPPED = bytes(10) + b"\xff\xff"  # the first 96 bits of an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2)
_UNIX_BYTES = 108  # sockaddr_un.sun_path


@dataclass(frozen=True)
class ProxySsl:
    """What a proxy tells of the client's TLS (2.2.6): flags, the result of the check, and sub-TLVs."""

    client: int
    verify: int
    tlvs: tuple[Tlv, ...] = ()

    @property
    def encrypted(self) -> bool:
        """The client spoke TLS to the proxy."""
        return bool(self.client & 0x01)

    @property
    def certificate_sent(self) -> bool:
        """The client sent a certificate on this very connection."""
        return bool(self.client & 0x02)

    @property
    def certificate_known(self) -> bool:
        """The client sent a certificate at least once in its TLS session, which may have been resumed."""
        return bool(self.client & 0x04)

    @property
    def verified(self) -> bool:
        """There was a certificate, and it passed; HAProxy sends a ``verify`` of 0 for no certificate too."""
        return (self.certificate_sent or self.certificate_known) and not self.verify

    @property
    def version(self) -> str | None:
        """The version of TLS: "TLSv1.3"."""
        return _text(self.tlvs, 0x21)

    @property
    def cn(self) -> str | None:
        """The common name of the client's certificate; believe it when ``verified``."""
        return _text(self.tlvs, 0x22)

    @property
    def cipher(self) -> str | None:
        """The cipher: "ECDHE-RSA-AES128-GCM-SHA256"."""
        return _text(self.tlvs, 0x23)

    @property
    def signature_algorithm(self) -> str | None:
        """What the proxy's own certificate was signed with: "SHA256"."""
        return _text(self.tlvs, 0x24)

    @property
    def key_algorithm(self) -> str | None:
        """The key of the proxy's own certificate: "RSA2048"."""
        return _text(self.tlvs, 0x25)


@dataclass(frozen=True)
class ProxyHeader:
    """Whose a connection is. ``source`` is the client, ``destination`` where it connected to.

    Both are None where the connection's own addresses count: where it is ``local`` (LOCAL in version 2, UNKNOWN in
    version 1) or UNSPEC. Local is a proxy's own check of health, but with HAProxy also a client on a UNIX socket.

    ``family`` is "inet", "inet6", "unix" or "unspec", ``transport`` "stream", "dgram" or "unspec", as the header has
    them; an IPv4-mapped IPv6 address is shown as the IPv4 address that it is, a pair. Of a TLV that comes twice the
    first counts. Texts are UTF-8, undecodable bytes as ``\\xNN``, control characters as they came: a log escapes them.
    """

    version: int
    local: bool = False
    family: str = "unspec"
    transport: str = "unspec"
    source: SocketAddress | None = None
    destination: SocketAddress | None = None
    tlvs: tuple[Tlv, ...] = ()

    @property
    def alpn(self) -> str | None:
        """The protocol that client and proxy agreed on: "h2" (2.2.1)."""
        return _text(self.tlvs, _ALPN)

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for, in TLS the server name (2.2.2)."""
        return _text(self.tlvs, _AUTHORITY)

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's name for this connection, up to 128 bytes of any kind (2.2.5)."""
        return _value(self.tlvs, _UNIQUE_ID)

    @property
    def netns(self) -> str | None:
        """The network namespace of the proxy's listener (2.2.7)."""
        return _text(self.tlvs, _NETNS)

    @property
    def ssl(self) -> ProxySsl | None:
        """The client's TLS, where the proxy tells of it (2.2.6)."""
        value = _value(self.tlvs, _SSL)
        return None if value is None else _read_ssl(value)


def encode_v1(source: SocketAddress | None = None, destination: SocketAddress | None = None) -> bytes:
    """Return the line of version 1 for two addresses as ``getpeername()`` gives them; UNKNOWN for UNIX or none.

    Raises ConfigError for addresses that are no pair of one kind, or no addresses.
    """
    family, packed, ports = _pack(source, destination)
    if family in ("unix", "unspec"):
        return b"PROXY UNKNOWN\r\n"
    number, word = (socket.AF_INET, "TCP4") if family == "inet" else (socket.AF_INET6, "TCP6")
    hosts = [socket.inet_ntop(number, host) for host in packed]
    return f"PROXY {word} {hosts[0]} {hosts[1]} {ports[0]} {ports[1]}\r\n".encode()


def encode_v2(
    source: SocketAddress | None = None,
    destination: SocketAddress | None = None,
    *,
    tlvs: Iterable[Tlv] = (),
    checksum: bool = False,
) -> bytes:
    """Return the header of version 2 for a stream between two addresses, with ``tlvs``; LOCAL for none.

    ``checksum`` adds the TLV with the CRC32c (2.2.3). Raises ConfigError as :func:`encode_v1` does, and where it would
    be longer than its length can say.
    """
    family, packed, ports = _pack(source, destination)
    body = b"".join([*packed, *(port.to_bytes(2, "big") for port in ports)])
    for kind, value in [*tlvs, *([(_CRC32C, bytes(4))] if checksum else [])]:
        if len(value) > 0xFFFF:
            raise ConfigError(f"a TLV of the PROXY header has {len(value)} bytes, more than 65535")
        body += bytes([kind]) + len(value).to_bytes(2, "big") + value
    if len(body) > 0xFFFF:
        raise ConfigError(f"the PROXY header has {len(body)} bytes, more than 65535")
    command, transport = (0x20, 0) if family == "unspec" else (0x21, 1)
    start = SIGNATURE + bytes([command, FAMILIES.index(family) << 4 | transport]) + len(body).to_bytes(2, "big")
    if checksum:
        body = body[:-4] + _crc32c(start + body).to_bytes(4, "big")
    return start + body


def header_error(text: str) -> PeerError:
    """Return the error of a header that ``text`` tells of; the reason in logs and counters is "proxy"."""
    return PeerError("proxy", f"the PROXY header {text}")


def ip_address(packed: bytes, port: int) -> SocketAddress:
    """Return the address in 4 or 16 bytes as ``accept()`` gives it; one that is IPv4-mapped is IPv4."""
    if packed.startswith(_MAPPED):
        packed = packed[12:]
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed), port
    return socket.inet_ntop(socket.AF_INET6, packed), port, 0, 0


def unix_address(field: bytes) -> SocketAddress:
    """Return the name in the 108 bytes of a ``sun_path`` as ``accept()`` gives it (unix(7))."""
    if field[:1] == b"\0" and field.strip(b"\0"):
        return field.rstrip(b"\0")
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def read_tlvs(head: bytes, start: int) -> tuple[Tlv, ...]:
    """Return the TLVs of a header of version 2 from byte ``start`` on.

    Raises PeerError for a wrong checksum (2.2.3), and where the properties of ProxyHeader could not be read.
    """
    tlvs = split_tlvs(head[start:])
    for kind, value in tlvs:
        if kind == _CRC32C:
            zeroed = head[: start + 3] + bytes(4) + head[start + 7 :]
            if len(value) != 4 or _crc32c(zeroed) != int.from_bytes(value, "big"):
                raise header_error("has a wrong checksum")
        elif kind == _SSL:
            _read_ssl(value)
        elif kind == _UNIQUE_ID and len(value) > 128:
            raise header_error(f"has a unique ID of {len(value)} bytes, more than 128")
        start += 3 + len(value)
    return tlvs


def split_tlvs(data: bytes) -> tuple[Tlv, ...]:
    """Return the TLVs that ``data`` is made of (2.2); raise PeerError where the last is cut short."""
    tlvs, start = [], 0
    while start < len(data):
        end = start + 3 + int.from_bytes(data[start + 1 : start + 3], "big")
        if end > len(data):
            raise header_error(f"has a TLV of type {data[start]:#04x} that is cut short")
        tlvs.append((data[start], data[start + 3 : end]))
        start = end
    return tuple(tlvs)


def _read_ssl(value: bytes) -> ProxySsl:
    if len(value) < 5:
        raise header_error(f"has a TLV about TLS of {len(value)} bytes, fewer than 5")
    return ProxySsl(value[0], int.from_bytes(value[1:5], "big"), split_tlvs(value[5:]))


def _value(tlvs: tuple[Tlv, ...], wanted: int) -> bytes | None:
    return next((value for kind, value in tlvs if kind == wanted), None)


def _text(tlvs: tuple[Tlv, ...], wanted: int) -> str | None:
    value = _value(tlvs, wanted)
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _pack(
    source: SocketAddress | None, destination: SocketAddress | None
) -> tuple[str, tuple[bytes, ...], tuple[int, ...]]:
    """Return the family, the packed addresses and the ports, none for UNIX; an IPv4 one beside IPv6 is mapped."""
    if source is None and destination is None:
        return "unspec", (), ()
    if isinstance(source, str | bytes) and isinstance(destination, str | bytes):
        return "unix", (_pack_unix(source), _pack_unix(destination)), ()
    if not isinstance(source, tuple) or not isinstance(destination, tuple):
        raise ConfigError(f"the PROXY header needs two addresses of one kind, not {source!r} and {destination!r}")
    hosts = [_pack_ip(address[0]) for address in (source, destination)]
    ports = source[1], destination[1]
    if not all(0 <= port <= 65535 for port in ports):
        raise ConfigError(f"ports must be numbers from 0 to 65535, not {ports[0]!r} and {ports[1]!r}")
    if len(hosts[0]) == len(hosts[1]):
        return "inet" if len(hosts[0]) == 4 else "inet6", tuple(hosts), ports
    return "inet6", tuple(host if len(host) == 16 else _MAPPED + host for host in hosts), ports


def _pack_ip(host: str) -> bytes:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, host.partition("%")[0])  # a zone means something on one machine only
        except (OSError, ValueError):  # the latter for a NUL
            pass
    raise ConfigError(f"the PROXY header needs IP addresses, not {host!r}")


def _pack_unix(name: str | bytes) -> bytes:
    field = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    if len(field) > _UNIX_BYTES:
        raise ConfigError(f"a UNIX address has at most {_UNIX_BYTES} bytes, not {len(field)}: {name!r}")
    return field.ljust(_UNIX_BYTES, b"\0")


def _crc32c(data: bytes) -> int:
    """Return the checksum of RFC 4960, appendix B: CRC-32 with Castagnoli's polynomial, which zlib has not."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return tuple(table)
