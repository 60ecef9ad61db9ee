"""The PROXY protocol: a proxy's first words on a connection, which tell whose it is; bytes in, a header out.

Versions 1 (a line of text) and 2 (binary), after HAProxy's specification, whose sections are named here:
https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt

Pure: no socket is read. What follows the header belongs to TLS or to the handler, so a reader takes from the socket
what the parser asks for, never a byte more, under a deadline of its own::

    parser = ProxyParser()
    while (header := parser.receive_data(connection.recv(parser.wanted))) is None:
        pass

That is three reads for version 2 and about seven for version 1, whose end can only be felt for. Whether a header comes
at all must be configured, never guessed, and whose word is taken is the caller's to decide (2).
"""

from __future__ import annotations

import socket

from .errors import PeerError
from .proxyheader import (
    FAMILIES,
    SIGNATURE,
    ProxyHeader,
    ProxySsl,
    Tlv,
    encode_v1,
    encode_v2,
    header_error,
    ip_address,
    read_tlvs,
    split_tlvs,
    unix_address,
)

# The header and its encoders too: users of the protocol need one door.
__all__ = ["MAX_V1", "MAX_V2", "ProxyHeader", "ProxyParser", "ProxySsl", "encode_v1", "encode_v2"]

#: The longest line of version 1, in bytes with its CRLF (2.1).
MAX_V1 = 107

#: The longest header of version 2 that is taken, in bytes; a length of 16 bits could say 65,551. nginx stops here too,
#: and the specification has every header smaller than a TCP segment (2.2).
MAX_V2 = 4096

_SHORTEST = len(b"PROXY UNKNOWN\r\n")
_TRANSPORTS = ("unspec", "stream", "dgram")
_ADDRESS_BYTES = {"unspec": 0, "inet": 12, "inet6": 36, "unix": 216}


class ProxyParser:
    """Reads one header, fed by any split of the stream; the outcome is the same for all of them.

    The first byte that cannot belong to a header is an error, and so is EOF before its end; nothing is fed after one.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._rest = bytearray()
        self._wanted = _SHORTEST
        self._header: ProxyHeader | None = None

    @property
    def wanted(self) -> int:
        """How many bytes are missing at least: as many can be read and are the header's; 0 once it is complete."""
        return self._wanted

    @property
    def received(self) -> int:
        """How many bytes of the header have come."""
        return len(self._head)

    @property
    def rest(self) -> bytes:
        """What came after the header; nothing, where never more than ``wanted`` was read."""
        return bytes(self._rest)

    def receive_data(self, data: bytes) -> ProxyHeader | None:
        """Return the header once it is complete; ``b""`` is EOF. Raises PeerError, whose reason is "proxy"."""
        if not data and self._header is None:
            ended = f"ends after {len(self._head)} bytes" if self._head else "is missing: the connection ended"
            raise header_error(ended)
        start = 0
        while self._header is None and start < len(data):
            taken = data[start : start + self._wanted]
            start += len(taken)
            self._advance(taken)
        self._rest += data[start:]
        return self._header

    def _advance(self, taken: bytes) -> None:
        self._head += taken
        missing, read = (_missing_v1, _read_v1) if self._head.startswith(b"P") else (_missing_v2, _read_v2)
        self._wanted = missing(self._head)
        if not self._wanted:
            self._header = read(bytes(self._head))


# Version 1 (2.1). A field that is unfinished may go on when some ending makes it whole, and the shortest such ending
# tells how many bytes are missing at least.

_IPV4_ENDINGS = (b"", b"0", b".0", b"0.0", b".0.0", b"0.0.0", b".0.0.0", b"0.0.0.0")
_IPV6_ENDINGS = (b"", b"0", b":", b"::", *_IPV4_ENDINGS[2:7])


def _is_ipv4(text: bytes) -> bool:
    if text.translate(None, b"0123456789."):
        return False
    try:
        # There and back: some systems take leading zeros.
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text.decode())) == text.decode()
    except OSError:
        return False


def _is_ipv6(text: bytes) -> bool:
    if text.translate(None, b"0123456789abcdefABCDEF:."):
        return False
    try:
        return bool(socket.inet_pton(socket.AF_INET6, text.decode()))
    except OSError:
        return False


def _is_port(text: bytes) -> bool:
    return text.isdigit() and int(text) <= 65535 and (text[0] != ord("0") or text == b"0")


# What is a whole field, how an unfinished one may end, and the least that one has.
_IPV4 = (_is_ipv4, _IPV4_ENDINGS, len(b"0.0.0.0"))
_IPV6 = (_is_ipv6, _IPV6_ENDINGS, len(b"::"))
_PORT = (_is_port, (b"", b"0"), len(b"0"))
_FORMS = {b"PROXY TCP4 ": (_IPV4, _IPV4, _PORT, _PORT), b"PROXY TCP6 ": (_IPV6, _IPV6, _PORT, _PORT)}
_UNKNOWN = b"PROXY UNKNOWN"


def _missing_v1(head: bytearray) -> int:
    """Return how many bytes are missing at least from the line that begins like this."""
    missing = _least_v1(bytes(head))
    if missing is None:
        first = next(size for size in range(1, len(head) + 1) if _least_v1(bytes(head[:size])) is None)
        raise _wrong_byte(head, first)
    return missing


def _least_v1(head: bytes) -> int | None:
    """Return how many bytes are missing at least; None where no line begins like this."""
    word = next((word for word in [*_FORMS, _UNKNOWN] if word.startswith(head) or head.startswith(word)), None)
    if word is None:
        return None
    if len(head) < len(word):
        return _SHORTEST - len(head)
    missing = _least_unknown(head[len(word) :]) if word == _UNKNOWN else _least_tcp(word, head[len(word) :])
    return missing if missing is not None and len(head) + missing <= MAX_V1 else None


def _least_unknown(rest: bytes) -> int | None:
    """Ignore everything up to CRLF; what no space sets off would make another word of UNKNOWN."""
    if rest and not rest.startswith(b" ") and rest not in (b"\r", b"\r\n"):
        return None
    return 0 if rest.endswith(b"\r\n") else 1 if rest.endswith(b"\r") else 2


def _least_tcp(word: bytes, rest: bytes) -> int | None:
    line, cr, lf = rest.partition(b"\r")
    *whole, last = line.split(b" ")
    fields = _FORMS[word]
    if len(whole) >= len(fields) or not all(field[0](text) for field, text in zip(fields, whole, strict=False)):
        return None
    is_valid, endings, _ = fields[len(whole)]
    later = fields[len(whole) + 1 :]
    if cr:
        return 1 - len(lf) if not later and is_valid(last) and lf in (b"", b"\n") else None
    for ending in endings:
        if is_valid(last + ending):
            return len(ending) + sum(len(b" ") + shortest for _, _, shortest in later) + len(b"\r\n")
    return None


def _read_v1(head: bytes) -> ProxyHeader:
    if head.startswith(_UNKNOWN):
        return ProxyHeader(1, local=True)
    _, word, *hosts, source_port, destination_port = head.decode().split()
    family = "inet" if word == "TCP4" else "inet6"
    number = socket.AF_INET if word == "TCP4" else socket.AF_INET6
    source, destination = (socket.inet_pton(number, host) for host in hosts)
    return ProxyHeader(
        1,
        family=family,
        transport="stream",
        source=ip_address(source, int(source_port)),
        destination=ip_address(destination, int(destination_port)),
    )


# Version 2 (2.2).


def _missing_v2(head: bytearray) -> int:
    """Return how many bytes are missing at least from the header that begins like this; check its first 16."""
    if not head.startswith(SIGNATURE[: len(head)]):
        raise _wrong_byte(head, next(size for size in range(1, 13) if head[:size] != SIGNATURE[:size]))
    if len(head) > 12 and head[12] not in (0x20, 0x21):
        raise header_error(f"has a version and command of {head[12]:#04x}, neither 0x20 nor 0x21")
    local = len(head) > 12 and head[12] == 0x20  # whose family is ignored, whatever it is
    family, transport = divmod(head[13], 16) if len(head) > 13 and not local else (0, 0)
    if family >= len(FAMILIES) or transport >= len(_TRANSPORTS):
        raise header_error(f"has an unknown family and transport of {head[13]:#04x}")
    if len(head) < 15:
        return 16 - len(head)
    # With the higher byte of the length alone, it has at least that many: one read of a long header saved.
    length = int.from_bytes(head[14:16].ljust(2, b"\0"), "big")
    if 16 + length > MAX_V2:
        raise header_error(f"has more than {MAX_V2} bytes")
    if len(head) >= 16 and transport and length < _ADDRESS_BYTES[FAMILIES[family]]:
        raise header_error(f"has {length} bytes for its addresses, not {_ADDRESS_BYTES[FAMILIES[family]]}")
    return 16 + length - len(head)


def _read_v2(head: bytes) -> ProxyHeader:
    if head[12] == 0x20:
        return ProxyHeader(2, local=True)
    family, transport = FAMILIES[head[13] >> 4], _TRANSPORTS[head[13] & 15]
    if "unspec" in (family, transport):
        return ProxyHeader(2, tlvs=_unspec_tlvs(head) if head[13] == 0 else ())
    start = 16 + _ADDRESS_BYTES[family]
    addresses = head[16:start]
    if family == "unix":
        source, destination = unix_address(addresses[:108]), unix_address(addresses[108:])
    else:
        size = (len(addresses) - 4) // 2
        source = ip_address(addresses[:size], int.from_bytes(addresses[-4:-2], "big"))
        destination = ip_address(addresses[size : 2 * size], int.from_bytes(addresses[-2:], "big"))
    return ProxyHeader(2, False, family, transport, source, destination, read_tlvs(head, start))


def _unspec_tlvs(head: bytes) -> tuple[Tlv, ...]:
    """Return the TLVs of an UNSPEC header; if what it has are none, they are addresses, which are ignored."""
    try:
        split_tlvs(head[16:])
    except PeerError:
        return ()
    return read_tlvs(head, 16)


def _wrong_byte(head: bytearray, number: int) -> PeerError:
    if number == 1:
        return header_error(f"is missing: the connection begins with {bytes(head[:1])!r}")
    return header_error(f"is wrong at byte {number}: {bytes(head[max(0, number - 40) : number])!r}")
