"""The PROXY protocol against its specification: tables of good and bad headers, any bytes in any split, HAProxy."""

from __future__ import annotations

import ipaddress
import itertools
import socket
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from processes import DEADLINE, connect, peer_program, read_all
from test_listeners import needs_ipv6

from stdserve.errors import PeerError
from stdserve.proxy import (
    MAX_V1,
    MAX_V2,
    ProxyHeader,
    ProxyParser,
    encode_v1,
    encode_v2,
)
from stdserve.proxyheader import SIGNATURE, SocketAddress

CLIENT, SERVER = ("192.0.2.1", 56324), ("198.51.100.2", 443)
CLIENT6, SERVER6 = ("2001:db8::1", 56324, 0, 0), ("2001:db8::2", 443, 0, 0)
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"

# Not st.binary(): what Hypothesis draws, it also compares with numbers and text, which is an error under -bb.
octets = st.lists(st.integers(0, 255), max_size=40).map(bytes)

#: What becomes of a stream: the header and what is left of it, an error, or nothing yet.
Outcome = tuple[ProxyHeader | str | None, bytes]


def feed(*blocks: bytes) -> Outcome:
    """Return what a parser makes of some reads; EOF is one without bytes."""
    parser, fed, header = ProxyParser(), 0, None
    for block in blocks:
        try:
            header = parser.receive_data(block)
        except PeerError as error:
            assert "proxy" == error.reason
            assert str(error).isascii() and str(error).isprintable()
            return str(error), b""
        fed += len(block)
        assert fed == parser.received + len(parser.rest)
        assert (header is None) is bool(parser.wanted)
    return header, parser.rest


def parse(data: bytes) -> ProxyHeader:
    """Return the header that ``data`` is, all of it."""
    header, rest = feed(data)
    assert isinstance(header, ProxyHeader), header
    assert b"" == rest
    return header


def error_of(data: bytes) -> str:
    """Return what is wrong with ``data``."""
    error, _ = feed(data)
    assert isinstance(error, str), error
    return error


def v2(body: bytes = b"", *, command: int = 0x21, kind: int = 0x11, length: int | None = None) -> bytes:
    """Write a header of version 2, right or wrong."""
    return SIGNATURE + bytes([command, kind]) + (len(body) if length is None else length).to_bytes(2, "big") + body


def tlv(kind: int, value: bytes) -> bytes:
    """Write a TLV."""
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


V4 = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + (56324).to_bytes(2, "big") + (443).to_bytes(2, "big")


# Version 1.


@pytest.mark.parametrize(
    ("line", "family", "source", "destination"),
    [
        (LINE, "inet", CLIENT, SERVER),
        (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "inet", ("0.0.0.0", 0), ("0.0.0.0", 0)),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            *("inet", ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
        ),
        (b"PROXY TCP6 :: ::1 1 2\r\n", "inet6", ("::", 1, 0, 0), ("::1", 2, 0, 0)),
        (b"PROXY TCP6 2001:DB8::1 2001:db8:0:0::2 56324 443\r\n", "inet6", CLIENT6, SERVER6),
        (b"PROXY TCP6 2001:0db8:0000::0001 2001:db8:0:0:0:0:0:2 56324 443\r\n", "inet6", CLIENT6, SERVER6),
        (b"PROXY TCP6 1:2:3:4:5:6:7:: ::2:3:4:5:6:7:8 1 2\r\n", "inet6", ("1:2:3:4:5:6:7:0", 1, 0, 0), None),
        (
            b"PROXY TCP6 %b %b 65535 65535\r\n" % ((b":".join([b"ffff"] * 8),) * 2),
            *("inet6", (":".join(["ffff"] * 8), 65535, 0, 0), (":".join(["ffff"] * 8), 65535, 0, 0)),
        ),
        (b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n", "inet6", CLIENT, SERVER6),
        (b"PROXY TCP6 ::ffff:c000:201 2001:db8::2 56324 443\r\n", "inet6", CLIENT, SERVER6),
    ],
)
def test_a_line_is_read(line: bytes, family: str, source: SocketAddress, destination: SocketAddress | None) -> None:
    """Addresses come out as accept() gives them, those that are IPv4-mapped as IPv4."""
    header = parse(line)

    assert (1, False, family, "stream", ()) == (
        *(header.version, header.local, header.family, header.transport, header.tlvs),
    )
    assert source == header.source
    assert destination in (None, header.destination)


@pytest.mark.parametrize(
    "rest", [b"", b" ", b" ::1 ::1 1 2", b" \r", b" \n \r \0\xff", b" TCP4 999", b" " + b"f" * (MAX_V1 - 16)]
)
def test_unknown_is_accepted_with_anything_up_to_crlf(rest: bytes) -> None:
    """The receiver must ignore it, and use the connection's own addresses (2.1)."""
    assert ProxyHeader(1, local=True) == parse(b"PROXY UNKNOWN" + rest + b"\r\n")


@pytest.mark.parametrize(
    ("begin", "wrong"),
    [
        *((b"PROXY", wrong) for wrong in (b"\r", b"\t", b"Y", b"\0")),
        *((b"PROXY ", wrong) for wrong in (b" ", b"t", b"\r", b"X")),
        *((b"PROXY TCP", wrong) for wrong in (b"5", b" ", b"\r")),
        *((b"PROXY TCP4", wrong) for wrong in (b"4", b"\r", b"\t")),
        *((b"PROXY TCP4 ", wrong) for wrong in (b" ", b".", b"-", b"+", b":", b"a", b"\r", b"\n", b"\xff", b"\0")),
        *((b"PROXY TCP4 1", wrong) for wrong in (b" ", b"a", b"\r")),
        *((b"PROXY TCP4 0", wrong) for wrong in (b"0", b"1")),
        *((b"PROXY TCP4 25", wrong) for wrong in (b"6", b"9")),
        *((b"PROXY TCP4 1.", wrong) for wrong in (b".", b" ")),
        *((b"PROXY TCP4 1.2.3", wrong) for wrong in (b" ", b"\r")),
        *((b"PROXY TCP4 1.2.3.4", wrong) for wrong in (b".", b"/", b"\r", b"\t")),
        *((b"PROXY TCP4 1.2.3.4 ", wrong) for wrong in (b" ", b"\r", b":")),
        *((b"PROXY TCP4 1.2.3.4 5.6.7.8", wrong) for wrong in (b"\r", b"\n", b".")),
        *((b"PROXY TCP4 1.2.3.4 5.6.7.8 ", wrong) for wrong in (b" ", b"\r", b"-", b"+", b"a", b"\xb2")),
        *((b"PROXY TCP4 1.2.3.4 5.6.7.8 0", wrong) for wrong in (b"0", b"1", b"x", b"\r")),
        *((b"PROXY TCP4 1.2.3.4 5.6.7.8 6553", wrong) for wrong in (b"6", b"9")),
        *((b"PROXY TCP4 1.2.3.4 5.6.7.8 10000", wrong) for wrong in (b"0",)),
        *((b"PROXY TCP4 1.2.3.4 5.6.7.8 1 ", wrong) for wrong in (b" ", b"\r", b"\n", b"_")),
        *((b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2", wrong) for wrong in (b" ", b"\n", b"\0")),
        *((b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r", wrong) for wrong in (b"\r", b" ", b"x")),
        *((b"PROXY TCP6 ", wrong) for wrong in (b" ", b".", b"g", b"[", b"\r")),
        *((b"PROXY TCP6 1", wrong) for wrong in (b".", b" ")),
        *((b"PROXY TCP6 :", wrong) for wrong in (b" ", b"1", b".")),
        *((b"PROXY TCP6 ::", wrong) for wrong in (b":", b".", b"%")),
        *((b"PROXY TCP6 ::1", wrong) for wrong in (b"%", b"/", b"\r")),
        *((b"PROXY TCP6 1::2:", wrong) for wrong in (b":", b" ")),
        *((b"PROXY TCP6 1234", wrong) for wrong in (b"5", b"g")),
        *((b"PROXY TCP6 1:2:3:4:5:6:7:8", wrong) for wrong in (b":", b".")),
        *((b"PROXY TCP6 ::ffff:1.2.3.25", wrong) for wrong in (b"6", b":", b".")),
        *((b"PROXY TCP6 ::1 ", wrong) for wrong in (b" ", b"\r")),
        *((b"PROXY UNKNOWN", wrong) for wrong in (b"S", b"\n", b"\0", b"4")),
        *((b"PROXY UNKNOWN\r", wrong) for wrong in (b"\r", b" ")),
    ],
)
def test_the_first_wrong_byte_of_a_line_is_an_error(begin: bytes, wrong: bytes) -> None:
    """Not the end of the line: whoever sends it may never end it."""
    assert (None, b"") == feed(begin)
    assert f"the PROXY header is wrong at byte {len(begin) + 1}: {begin[-39:] + wrong!r}" == error_of(begin + wrong)
    assert error_of(begin + wrong) == error_of(begin + wrong + LINE)


@pytest.mark.parametrize("first", [b"G", b"\x16", b"\0", b"p", b"\n", b" ", b"\xff"])
def test_a_connection_without_a_header_is_told_by_its_first_byte(first: bytes) -> None:
    """An HTTP request, a TLS handshake, whatever came by a way that has no proxy."""
    assert f"the PROXY header is missing: the connection begins with {first!r}" == error_of(first + b"ET / HTTP/1.1")


def test_a_line_is_bounded() -> None:
    """At 107 bytes with its CRLF (2.1); what cannot end by then is refused, be it by one byte."""
    begin = b"PROXY UNKNOWN ".ljust(MAX_V1 - 2, b"f")
    assert ProxyHeader(1, local=True) == parse(begin + b"\r\n")
    assert (None, b"") == feed(begin + b"\r")
    assert (None, b"") == feed(begin)
    assert f"wrong at byte {MAX_V1 - 1}:" in error_of(begin + b"f")
    assert f"wrong at byte {MAX_V1}:" in error_of(begin + b"\rf")

    # Two addresses in their longest form of all would be too long.
    longest = b":".join([b"ffff"] * 6) + b":255.255.255.255"
    assert "wrong at byte" in error_of(b"PROXY TCP6 %b %b 65535 65535\r\n" % (longest, longest))


texts = st.ip_addresses(v=6).flatmap(
    lambda address: st.sampled_from(
        [
            str(address),
            address.exploded,
            str(address).upper(),
            socket.inet_ntop(socket.AF_INET6, address.packed),
            f"{address.exploded[:29]}:{ipaddress.IPv4Address(address.packed[12:])}",
            f"::{':'.join(address.exploded.split(':')[1:])}",
            f"{':'.join(address.exploded.split(':')[:-1])}::",
        ]
    )
)


@given(texts | st.ip_addresses(v=4).map(str), st.integers(0, 65535))
@example("::", 0)
@example("1::", 1)
@example("1:2:3:4:5:6:7:8", 1)
@example("::1.2.3.4", 1)
@example("1:2:3:4:5:6:1.2.3.4", 1)
def test_every_spelling_of_an_address_is_taken_and_no_byte_too_many_is_wanted(host: str, port: int) -> None:
    """The standard library is asked what the text means; what is wanted never passes the end of the line."""
    address = ipaddress.ip_address(host)
    line = f"PROXY TCP{address.version} {host} {host} {port} {port}\r\n".encode()
    if len(line) > MAX_V1:
        return
    header, reads = read_exactly(line + b"the next")

    assert header is not None and isinstance(header.source, tuple)
    assert (getattr(address, "ipv4_mapped", None) or address) == ipaddress.ip_address(header.source[0])
    assert header.source == header.destination
    assert port == header.source[1]
    assert reads <= 25


@given(st.text(st.sampled_from("0123456789abcdefABCDEF:.:. "), max_size=24))
@example("1:2:3:4:5:6:7:8:9")
@example("::1.2.3.04")
def test_what_the_standard_library_does_not_take_is_refused(host: str) -> None:
    """For both families."""
    for word, address in (("TCP4", ipaddress.IPv4Address), ("TCP6", ipaddress.IPv6Address)):
        result, _ = feed(f"PROXY {word} {host} ".encode())
        try:
            address(host)
        except ValueError:
            if " " not in host:
                assert isinstance(result, str)
        else:
            assert result is None


# Version 2.


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (v2(V4), ProxyHeader(2, False, "inet", "stream", CLIENT, SERVER)),
        (v2(V4, kind=0x12), ProxyHeader(2, False, "inet", "dgram", CLIENT, SERVER)),
        (
            v2(bytes(15) + b"\1" + b"\x20\1\x0d\xb8" + bytes(11) + b"\2\0\1\xff\xff", kind=0x21),
            ProxyHeader(2, False, "inet6", "stream", ("::1", 1, 0, 0), ("2001:db8::2", 65535, 0, 0)),
        ),
        (
            v2(bytes(10) + b"\xff\xff\xc0\0\2\1" + bytes(15) + b"\1\xdc\4\0\1", kind=0x22),
            ProxyHeader(2, False, "inet6", "dgram", CLIENT, ("::1", 1, 0, 0)),
        ),
        (
            v2(b"/run/a.sock".ljust(108, b"\0") + b"\0name".ljust(108, b"\0"), kind=0x31),
            ProxyHeader(2, False, "unix", "stream", "/run/a.sock", b"\0name"),
        ),
        (
            v2(bytes(108) + b"x\xff".ljust(108, b"x"), kind=0x32),
            ProxyHeader(2, False, "unix", "dgram", "", "x\udcff" + "x" * 106),
        ),
        (
            v2(V4 + tlv(4, b"") + tlv(0xE0, b"mine")),
            ProxyHeader(2, False, "inet", "stream", CLIENT, SERVER, ((4, b""), (0xE0, b"mine"))),
        ),
        # LOCAL: everything is skipped, whatever it is (2.2).
        (v2(command=0x20, kind=0x00), ProxyHeader(2, local=True)),
        (v2(V4, command=0x20), ProxyHeader(2, local=True)),
        (v2(b"junk", command=0x20, kind=0xFF), ProxyHeader(2, local=True)),
        (v2(tlv(3, b"nope"), command=0x20, kind=0x00), ProxyHeader(2, local=True)),
        # UNSPEC: no addresses, TLVs where there are some.
        (v2(kind=0x00), ProxyHeader(2)),
        (v2(tlv(5, b"id"), kind=0x00), ProxyHeader(2, tlvs=((5, b"id"),))),
        (v2(b"\1\2\3\4", kind=0x00), ProxyHeader(2)),
        *((v2(b"\1\2\3\4", kind=kind), ProxyHeader(2)) for kind in (0x01, 0x02, 0x10, 0x20, 0x30)),
        *((v2(tlv(5, b"id"), kind=kind), ProxyHeader(2)) for kind in (0x01, 0x10)),
    ],
)
def test_a_binary_header_is_read(data: bytes, header: ProxyHeader) -> None:
    """Every command, family and transport that the specification has."""
    assert header == parse(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        *(
            (SIGNATURE[:size] + b"!", f"is wrong at byte {size + 1}: {SIGNATURE[:size] + b'!'!r}")
            for size in range(1, 12)
        ),
        *((v2(V4, command=byte), f"version and command of {byte:#04x}") for byte in (0x22, 0x2F, 0x11, 0x31, 0x01, 0)),
        *((v2(V4, kind=byte), f"family and transport of {byte:#04x}") for byte in (0x13, 0x1F, 0x41, 0xF1, 0x03, 0x40)),
        *((v2(V4, kind=kind, length=11), "has 11 bytes for its addresses, not 12") for kind in (0x11, 0x12)),
        *((v2(V4, kind=kind, length=35), "has 35 bytes for its addresses, not 36") for kind in (0x21, 0x22)),
        *((v2(V4, kind=kind, length=215), "has 215 bytes for its addresses, not 216") for kind in (0x31, 0x32)),
        (v2(), "has 0 bytes for its addresses, not 12"),
        (v2(length=MAX_V2 - 15), "has more than 4096 bytes"),
        (v2(length=0xFFFF, command=0x20), "has more than 4096 bytes"),
        (v2(V4 + b"\4"), "a TLV of type 0x04 that is cut short"),
        (v2(V4 + b"\4\0"), "a TLV of type 0x04 that is cut short"),
        (v2(V4 + b"\4\0\1"), "a TLV of type 0x04 that is cut short"),
        (v2(V4 + tlv(4, b"") + b"\xe1\xff\xff" + bytes(99)), "a TLV of type 0xe1 that is cut short"),
        (v2(V4 + tlv(3, b"abcd")), "has a wrong checksum"),
        (v2(V4 + tlv(3, b"abc")), "has a wrong checksum"),
        (v2(tlv(3, b"abcd"), kind=0x00), "has a wrong checksum"),
        (v2(V4 + tlv(5, b"x" * 129)), "has a unique ID of 129 bytes, more than 128"),
        (v2(V4 + tlv(0x20, b"\1\0\0\0")), "has a TLV about TLS of 4 bytes, fewer than 5"),
        (v2(V4 + tlv(0x20, b"\1\0\0\0\0\x21\0\5TLS")), "a TLV of type 0x21 that is cut short"),
    ],
)
def test_a_wrong_binary_header_is_an_error(data: bytes, text: str) -> None:
    """As early as it can be seen, in words that say what is wrong."""
    assert text in error_of(data)


@pytest.mark.parametrize("wrong", [v2(command=0x23), v2(kind=0x44), v2(length=0x1000), v2(kind=0x21, length=12)])
def test_the_first_sixteen_bytes_are_judged_without_the_others(wrong: bytes) -> None:
    """Nobody waits for a body that can only be refused."""
    assert "the PROXY header has" in error_of(wrong[:16])


def test_the_longest_header_is_taken() -> None:
    """And one byte more is not: nginx's limit too."""
    body = V4 + tlv(4, bytes(MAX_V2 - 16 - 12 - 3))
    assert MAX_V2 == len(v2(body))
    assert CLIENT == parse(v2(body)).source


def crc32c(data: bytes) -> int:
    """Compute the checksum of RFC 4960, appendix B, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_checksum_is_castagnolis() -> None:
    """The test vectors of RFC 3720, B.4, for the tests' own, and that for ours."""
    vectors = {bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    assert list(vectors.values()) == [crc32c(data) for data in vectors]
    written = encode_v2(CLIENT, SERVER, checksum=True)
    assert crc32c(written[:-4] + bytes(4)) == int.from_bytes(written[-4:], "big")


@given(octets, st.integers(0, 7), st.data())
def test_any_flipped_bit_breaks_the_checksum(value: bytes, bit: int, data: st.DataObject) -> None:
    """It covers the whole header, its own TLV taken for zeros (2.2.3), and comes anywhere among the TLVs."""
    header = encode_v2(CLIENT, SERVER, tlvs=[(0xE0, value)], checksum=True)
    assert [0xE0, 3] == [kind for kind, _ in parse(header).tlvs]
    # Past the addresses' length any damage is seen by the checksum, unless an earlier check sees it.
    place = data.draw(st.integers(0, len(header) - 1))
    damaged = bytearray(header)
    damaged[place] ^= 1 << bit
    result, _ = feed(bytes(damaged))

    # A longer length waits for more; LOCAL says that all of this means nothing.
    assert result is None or isinstance(result, str) or result.local or 3 not in dict(result.tlvs)


def test_a_checksum_before_other_tlvs_is_verified() -> None:
    """Its place is where it is zeroed for the sum."""
    alone = encode_v2(CLIENT, SERVER, tlvs=[(4, b"")], checksum=True)
    assert CLIENT == parse(alone).source
    swapped = alone[:28] + alone[31:] + alone[28:31]

    assert "wrong checksum" in error_of(swapped)
    zeroed = swapped[:31] + bytes(4) + swapped[35:]
    right = swapped[:31] + crc32c(zeroed).to_bytes(4, "big") + swapped[35:]
    assert [3, 4] == [kind for kind, _ in parse(right).tlvs]


# Both.

ip_sources = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535))
ip6_sources = st.tuples(
    st.ip_addresses(v=6).map(lambda address: socket.inet_ntop(socket.AF_INET6, address.packed)),
    *(st.integers(0, 65535), st.just(0), st.just(0)),
).filter(lambda address: not address[0].startswith("::ffff:"))
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
unix_sources = names | names.filter(bool).map(lambda name: b"\0" + name.encode())
pairs = st.one_of(*(st.tuples(kind, kind) for kind in (ip_sources, ip6_sources, unix_sources)))
tlv_lists = st.lists(st.tuples(st.sampled_from([1, 2, 4, 0x30, 0xE0, 0xFF]), octets), max_size=4)
headers = (
    st.builds(lambda pair: encode_v1(*pair), pairs)
    | st.builds(
        lambda pair, tlvs, checksum: encode_v2(*pair, tlvs=tlvs, checksum=checksum), pairs, tlv_lists, st.booleans()
    )
    | st.just(encode_v1())
    | st.builds(lambda tlvs, checksum: encode_v2(tlvs=tlvs, checksum=checksum), tlv_lists, st.booleans())
)


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Draw a header with a byte changed, dropped or put in: most bytes that are random fail at the first."""
    data = bytearray(draw(headers))
    place = draw(st.integers(0, len(data) - 1))
    data[place : place + draw(st.integers(0, 1))] = bytes(draw(st.lists(st.integers(0, 255), max_size=1)))
    return bytes(data)


streams = octets | headers | mutants() | st.tuples(headers | mutants(), octets).map(b"".join)


def cut(stream: bytes, places: set[int]) -> list[bytes]:
    """Cut a stream at some places."""
    bounds = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


@given(streams, st.sets(st.integers(0, 300), max_size=12))
@example(LINE, {5})
@example(b"PROXY TCP4 1..2..3", {14, 15})
def test_any_split_of_any_bytes_has_the_same_outcome(stream: bytes, places: set[int]) -> None:
    """A header and what follows it, or one typed error with the same words, or a wait for more, which EOF ends."""
    outcome = feed(*cut(stream, set()))
    for blocks in (cut(stream, places), cut(stream, set(range(len(stream))))):
        assert outcome == feed(*blocks)
    header, rest = outcome
    if isinstance(header, ProxyHeader):
        assert stream.endswith(rest)
        assert outcome == feed(stream, b"")
        assert {header} and str(header)
        assert (header.source is None) is (header.family == "unspec")
        assert [header.alpn, header.authority, header.netns, header.unique_id, header.ssl]
    elif header is None:
        assert isinstance(feed(stream, b"")[0], str)


def read_exactly(stream: bytes) -> tuple[ProxyHeader | None, int]:
    """Read as from a socket, what is wanted at a time; return the header and the number of reads."""
    parser, start = ProxyParser(), 0
    for reads in itertools.count(1):
        assert 0 < parser.wanted
        block = stream[start : start + parser.wanted]
        start += len(block)
        header = parser.receive_data(block)
        if header is not None:
            assert b"" == parser.rest
            assert parser.received == start
            return header, reads
    raise AssertionError


@given(pairs, octets, tlv_lists, st.booleans())
def test_what_is_written_is_read(
    pair: tuple[SocketAddress, SocketAddress], rest: bytes, tlvs: list[tuple[int, bytes]], checksum: bool
) -> None:
    """By wanted bytes and in one read, with all that follows intact."""
    source, destination = pair
    for data in (encode_v1(source, destination), encode_v2(source, destination, tlvs=tlvs, checksum=checksum)):
        header, left = feed(data + rest)
        assert isinstance(header, ProxyHeader)
        assert rest == left
        assert (header, True) == (read_exactly(data + rest)[0], read_exactly(data + rest)[1] <= 25)
        if header.version == 1 and not isinstance(source, tuple):
            assert (True, None) == (header.local, header.source)
            continue
        assert (source, destination) == (header.source, header.destination)
        if header.version == 2:
            assert [*tlvs, *([3] if checksum else [])] == [*header.tlvs[: len(tlvs)], *dict(header.tlvs[len(tlvs) :])]


def test_how_many_reads_a_header_takes() -> None:
    """What the module promises: few, though not a byte is read too many."""
    assert 3 == read_exactly(encode_v2(CLIENT, SERVER))[1]
    assert 2 == read_exactly(encode_v2())[1]
    assert 3 == read_exactly(encode_v2(CLIENT6, SERVER6, tlvs=[(4, bytes(3000))]))[1]
    assert 1 == read_exactly(encode_v1())[1]
    assert 8 > read_exactly(LINE)[1]
    assert 8 > read_exactly(encode_v1(CLIENT6, SERVER6))[1]


@pytest.mark.parametrize("data", [LINE, b"PROXY UNKNOWN x\r\n", encode_v2(CLIENT, SERVER, tlvs=[(4, b"x")])])
def test_eof_inside_a_header_is_an_error(data: bytes) -> None:
    """At every byte; one before the first is told apart, for it may be a port scan or a check of the listener alone."""
    assert ("the PROXY header is missing: the connection ended", b"") == feed(b"")
    for size in range(1, len(data)):
        assert (f"the PROXY header ends after {size} bytes", b"") == feed(data[:size], b"")
    assert isinstance(feed(data, b"")[0], ProxyHeader)


def test_what_follows_is_kept_in_order() -> None:
    """However much is read with the header or after it."""
    parser = ProxyParser()
    header = parser.receive_data(LINE + b"one ")
    assert (header, header) == (parser.receive_data(b"two "), parser.receive_data(b""))
    assert b"one two " == parser.rest
    assert (0, len(LINE)) == (parser.wanted, parser.received)


def test_a_header_with_megabytes_behind_it_costs_no_more_than_their_copies() -> None:
    """What follows is handed on, not looked at."""
    rest = bytes(4 << 20)
    tracemalloc.start()
    try:
        assert CLIENT == getattr(feed(LINE + rest)[0], "source", None)
        assert tracemalloc.get_traced_memory()[1] < 7 * len(rest)
    finally:
        tracemalloc.stop()


def test_a_byte_costs_the_same_at_the_end_of_a_long_header() -> None:
    """Byte by byte too: lines of Python are counted, not time."""

    def lines_run(size: int) -> int:
        data, parser, count = v2(V4 + tlv(4, bytes(size))), ProxyParser(), 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for place in range(len(data)):
                parser.receive_data(data[place : place + 1])
        finally:
            sys.settrace(before)
        assert 0 == parser.wanted
        return count

    costs = [lines_run(size) for size in (1000, 2000, 3000)]
    assert 0 < costs[2] - costs[1] == costs[1] - costs[0]


# HAProxy itself.


@contextmanager
def haproxy(folder: Path, front: socket.socket, bind: str, server: str, *more: str) -> Iterator[socket.socket]:
    """Run HAProxy between ``front``, which listens already, and a plain listener; yield the latter.

    ``bind`` and ``server`` are options of those lines in its configuration, ``more`` are lines of their own.
    """
    with socket.create_server(("127.0.0.1", 0)) as back:
        back.settimeout(DEADLINE)
        lines = [
            *("defaults", " mode tcp", " timeout connect 60s", " timeout client 60s", " timeout server 60s"),
            *("listen test", f" bind fd@{front.fileno()} {bind}"),
            *(f" {line}" for line in more),
            f" server back 127.0.0.1:{back.getsockname()[1]} {server}",
        ]
        config = folder / "haproxy.cfg"
        config.write_text("\n".join(lines) + "\n")
        process = subprocess.Popen([peer_program("haproxy"), "-db", "-q", "-f", str(config)], pass_fds=[front.fileno()])
        try:
            yield back
        finally:
            process.kill()
            process.wait(DEADLINE)


def read_header(back: socket.socket) -> tuple[ProxyHeader, socket.socket, SocketAddress]:
    """Accept a connection, read its header from the socket and not a byte more."""
    connection, peer = back.accept()
    connection.settimeout(DEADLINE)
    parser = ProxyParser()
    while (header := parser.receive_data(connection.recv(parser.wanted))) is None:
        pass
    assert b"" == parser.rest
    return header, connection, peer


def says_hello(client: socket.socket, back: socket.socket) -> ProxyHeader:
    """Send a line through HAProxy, see that nothing of it is lost, and return the header before it."""
    client.sendall(b"hello\n")
    client.shutdown(socket.SHUT_WR)
    header, connection, _ = read_header(back)
    with connection:
        assert b"hello\n" == read_all(connection)
    return header


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
def test_haproxy_says_who_its_client_is(tmp_path: Path, host: str, option: str) -> None:
    """In either version and family, with a checksum that is its own work."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as front,
        haproxy(tmp_path, front, "", option, "unique-id-format test-%ms") as back,
        connect((host, front.getsockname()[1])) as client,
    ):
        own, there = client.getsockname(), client.getpeername()
        header = says_hello(client, back)

    assert (own, there, False, "stream") == (header.source, header.destination, header.local, header.transport)
    assert (1 if option == "send-proxy" else 2) == header.version
    if "crc32c" in option:
        assert 3 in dict(header.tlvs)
        assert (header.unique_id or b"").startswith(b"test-")


@pytest.mark.parametrize(("option", "version"), [("send-proxy", 1), ("send-proxy-v2 proxy-v2-options unique-id", 2)])
def test_haproxy_has_no_address_for_a_unix_client(tmp_path: Path, option: str, version: int) -> None:
    """UNKNOWN, or LOCAL with TLVs, which are discarded (2.2): so not all that is local is a check of health."""
    # A listener of HAProxy's own has its path for a moment before it listens.
    with socket.socket(socket.AF_UNIX) as front, socket.socket(socket.AF_UNIX) as client:
        front.bind(str(tmp_path / "front.sock"))
        front.listen()
        with haproxy(tmp_path, front, "", option, "unique-id-format test") as back:
            client.settimeout(DEADLINE)
            client.connect(front.getsockname())
            header = says_hello(client, back)

    assert ProxyHeader(version, local=True) == header


@pytest.mark.parametrize(("option", "local"), [("send-proxy", False), ("send-proxy-v2", True)])
def test_haproxy_checks_a_server_with_a_header_of_its_own(tmp_path: Path, option: str, local: bool) -> None:
    """LOCAL, or in version 1 the addresses of the very connection, and then it hangs up."""
    with (
        socket.create_server(("127.0.0.1", 0)) as front,
        haproxy(tmp_path, front, "", f"check inter 100ms check-send-proxy {option}") as back,
    ):
        header, connection, peer = read_header(back)
        connection.close()
    assert (local, None if local else peer) == (header.local, header.source)


def certificate(folder: Path, name: str) -> Path:
    """Make a self-signed certificate with its key, in one PEM file."""
    path = folder / f"{name}.pem"
    command = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}"
    words = [peer_program("openssl"), *command.split(), "-addext", f"subjectAltName=DNS:{name}"]
    key = folder / f"{name}.key"
    result = subprocess.run([*words, "-keyout", str(key)], capture_output=True, check=True, timeout=DEADLINE)
    path.write_bytes(result.stdout + key.read_bytes())
    return path


@pytest.mark.parametrize("known", [True, False], ids=["certificate", "anonymous"])
def test_haproxy_tells_of_the_clients_tls(tmp_path: Path, known: bool) -> None:
    """The name asked for, the protocol agreed on, the cipher, and the client's certificate where it has one."""
    server, owner = certificate(tmp_path, "server.test"), certificate(tmp_path, "Anna")
    context = ssl.create_default_context(cafile=str(server))
    context.set_alpn_protocols(["print-exit"])
    if known:
        context.load_cert_chain(owner)
    with (
        socket.create_server(("127.0.0.1", 0)) as front,
        haproxy(
            tmp_path,
            front,
            f"ssl crt {server} ca-file {owner} verify optional alpn print-exit",
            "send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c",
        ) as back,
        connect(front.getsockname()) as raw,
        context.wrap_socket(raw, server_hostname="server.test") as client,
    ):
        client.sendall(b"hello\n")
        header, connection, _ = read_header(back)
        with connection:
            assert b"hello\n" == connection.recv(6, socket.MSG_WAITALL)
        own, version, cipher = client.getsockname(), client.version(), client.cipher()

    assert ("server.test", "print-exit", own) == (header.authority, header.alpn, header.source)
    told = header.ssl
    assert told is not None and cipher is not None
    assert (True, version, cipher[0]) == (told.encrypted, told.version, told.cipher)
    assert ("ecdsa-with-SHA256", "EC256") == (told.signature_algorithm, told.key_algorithm)
    assert (known, known, "Anna" if known else None) == (told.certificate_sent, told.verified, told.cn)
    # Without a certificate HAProxy sends a result of 0 all the same, which alone would say "verified".
    assert 0 == told.verify


@pytest.mark.parametrize(
    "data",
    [
        encode_v1(CLIENT, SERVER),
        encode_v1(CLIENT6, SERVER6),
        encode_v2(CLIENT, SERVER),
        encode_v2(CLIENT6, SERVER6, checksum=True),
        encode_v2(CLIENT, SERVER, tlvs=[(5, b"mine"), (2, b"server.test")], checksum=True),
    ],
)
def test_haproxy_reads_what_is_written(tmp_path: Path, data: bytes) -> None:
    """It passes on the addresses that it was told, our checksum verified."""
    with (
        socket.create_server(("127.0.0.1", 0)) as front,
        haproxy(tmp_path, front, "accept-proxy", "send-proxy-v2") as back,
        connect(front.getsockname()) as client,
    ):
        client.sendall(data)
        header = says_hello(client, back)

    assert parse(data).source == header.source
    assert parse(data).destination == header.destination
