"""The header of the PROXY protocol as a value: its properties, and how it is written."""

from __future__ import annotations

import pickle

import pytest

from stdserve.errors import ConfigError
from stdserve.proxyheader import (
    ProxyHeader,
    ProxySsl,
    SocketAddress,
    encode_v1,
    encode_v2,
    ip_address,
    unix_address,
)

CLIENT, SERVER = ("192.0.2.1", 56324), ("198.51.100.2", 443)
CLIENT6, SERVER6 = ("2001:db8::1", 56324, 0, 0), ("2001:db8::2", 443, 0, 0)


def test_the_registered_tlvs_have_names() -> None:
    """As text, but for the unique ID, which is of any bytes; the first of a kind counts."""
    tlvs = ((1, b"h2"), (2, "пример.рф".encode()), (5, b"\0\xff"), (0x30, b"blue"), (2, b"second"), (0x30, b""))
    header = ProxyHeader(2, tlvs=tlvs)

    assert ("h2", "пример.рф", b"\0\xff", "blue") == (*(header.alpn, header.authority, header.unique_id, header.netns),)
    assert header.ssl is None


def test_without_tlvs_nothing_is_known() -> None:
    """None, which differs from an empty value."""
    header = ProxyHeader(1, local=True)
    assert [None] * 5 == [header.alpn, header.authority, header.unique_id, header.netns, header.ssl]
    assert ("", b"") == (ProxyHeader(2, tlvs=((2, b""),)).authority, ProxyHeader(2, tlvs=((5, b""),)).unique_id)


def test_undecodable_text_is_shown() -> None:
    """It can always be encoded again, and so be logged."""
    assert "\\xffa" == ProxyHeader(2, tlvs=((2, b"\xffa"),)).authority


def test_the_clients_tls_is_told() -> None:
    """Flags, result, and the five sub-TLVs (2.2.6)."""
    value = bytes([7, 0, 0, 0, 0]) + b"".join(
        bytes([kind, 0, len(text)]) + text
        for kind, text in [(0x21, b"TLSv1.3"), (0x22, b"Anna"), (0x23, b"AES"), (0x24, b"SHA256"), (0x25, b"RSA2048")]
    )
    told = ProxyHeader(2, tlvs=((0x20, value),)).ssl

    assert told is not None
    assert ("TLSv1.3", "Anna", "AES", "SHA256", "RSA2048") == (
        *(told.version, told.cn, told.cipher, told.signature_algorithm, told.key_algorithm),
    )
    assert told.encrypted and told.certificate_sent and told.certificate_known and told.verified


@pytest.mark.parametrize(
    ("client", "verify", "verified"),
    [(1, 0, False), (3, 0, True), (5, 0, True), (7, 0, True), (3, 1, False), (5, 18, False), (0, 0, False)],
)
def test_only_a_certificate_can_be_verified(client: int, verify: int, verified: bool) -> None:
    """A result of 0 says "no error", which there is not without a certificate either."""
    told = ProxySsl(client, verify)
    assert verified is told.verified
    assert (bool(client & 1), bool(client & 2), bool(client & 4)) == (
        *(told.encrypted, told.certificate_sent, told.certificate_known),
    )
    assert [None] * 5 == [told.version, told.cn, told.cipher, told.signature_algorithm, told.key_algorithm]


def test_headers_are_values() -> None:
    """Equal, in sets, and through a pipe to another process."""
    header = ProxyHeader(2, False, "inet", "stream", CLIENT, SERVER, ((4, b""),))
    assert 1 == len({header, pickle.loads(pickle.dumps(header))})


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (CLIENT, SERVER, b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"),
        (CLIENT6, SERVER6, b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"),
        (("FE80::0:1%eth0", 0, 0, 2), ("::1", 65535), b"PROXY TCP6 fe80::1 ::1 0 65535\r\n"),
        (CLIENT, SERVER6, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n"),
        (None, None, b"PROXY UNKNOWN\r\n"),
        ("/run/a.sock", b"\0name", b"PROXY UNKNOWN\r\n"),
    ],
)
def test_a_line_is_written(source: SocketAddress | None, destination: SocketAddress | None, line: bytes) -> None:
    """In the shortest form; a zone means nothing elsewhere; an IPv4 address beside an IPv6 one is mapped."""
    assert line == encode_v1(source, destination)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (encode_v2(), b"\x20\x00\0\0"),
        (encode_v2(tlvs=[(4, b"x")]), b"\x20\x00\0\4\4\0\1x"),
        (encode_v2(CLIENT, SERVER), b"\x21\x11\0\x0c\xc0\0\2\1\xc6\x33\x64\2\xdc\4\1\xbb"),
        (encode_v2(CLIENT, SERVER, tlvs=iter([(4, b"")])), b"\x21\x11\0\x0f\xc0\0\2\1\xc6\x33\x64\2\xdc\4\1\xbb\4\0\0"),
        (
            encode_v2(CLIENT, ("::1", 2)),
            b"\x21\x21\0\x24" + bytes(10) + b"\xff\xff\xc0\0\2\1" + bytes(15) + b"\1\xdc\4\0\2",
        ),
        (encode_v2("/a", b"\0b"), b"\x21\x31\0\xd8/a" + bytes(106) + b"\0b" + bytes(106)),
        (encode_v2("", ""), b"\x21\x31\0\xd8" + bytes(216)),
    ],
)
def test_a_binary_header_is_written(header: bytes, data: bytes) -> None:
    """The signature, and what the specification draws (2.2)."""
    assert b"\r\n\r\n\0\r\nQUIT\n" + data == header


@pytest.mark.parametrize(
    ("source", "destination", "text"),
    [
        (CLIENT, None, "two addresses of one kind"),
        (None, CLIENT, "two addresses of one kind"),
        (CLIENT, "/run/a.sock", "two addresses of one kind"),
        ("/run/a.sock", CLIENT, "two addresses of one kind"),
        (("example.org", 1), SERVER, "IP addresses, not 'example.org'"),
        (("nul\0", 1), SERVER, r"IP addresses, not 'nul\x00'"),
        (SERVER, ("", 1), "IP addresses, not ''"),
        (("192.0.2.1", 65536), SERVER, "ports must be numbers from 0 to 65535"),
        (SERVER, ("192.0.2.1", -1), "ports must be numbers from 0 to 65535"),
        ("/" * 109, "", "at most 108 bytes, not 109"),
    ],
)
def test_what_cannot_be_written_is_said(
    source: SocketAddress | None, destination: SocketAddress | None, text: str
) -> None:
    """In one line, by both versions."""
    for encode in (encode_v1, encode_v2):
        with pytest.raises(ConfigError) as caught:
            encode(source, destination)
        assert text in str(caught.value)
        assert str(caught.value).isprintable()


def test_a_header_has_room_for_what_its_length_can_say() -> None:
    """65,535 bytes, of which a TLV takes three itself."""
    assert 16 + 0xFFFF == len(encode_v2(CLIENT, SERVER, tlvs=[(4, bytes(0xFFFF - 15))]))
    for tlvs in ([(4, bytes(0xFFFF - 14))], [(4, bytes(0x10000))]):
        with pytest.raises(ConfigError, match="more than 65535$"):
            encode_v2(CLIENT, SERVER, tlvs=tlvs)


def test_addresses_are_those_of_accept() -> None:
    """IPv4 and IPv6 tuples, paths, names; only the one prefix makes an address mapped."""
    assert ("127.0.0.1", 1) == ip_address(b"\x7f\0\0\1", 1) == ip_address(bytes(10) + b"\xff\xff\x7f\0\0\1", 1)
    assert ("::ff:ffff:7f00:1", 1, 0, 0) == ip_address(bytes(9) + b"\xff\xff\xff\x7f\0\0\1", 1)
    assert ("/a", "", b"\0a\0b", "x" * 108) == (
        *(unix_address(b"/a\0junk".ljust(108, b"\0")), unix_address(bytes(108))),
        *(unix_address(b"\0a\0b".ljust(108, b"\0")), unix_address(b"x" * 108)),
    )
