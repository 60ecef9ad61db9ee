"""Addresses as people type them, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdserve.addresses import DEFAULT_PORT, LOOPBACK, Address, format_peer, parse_address, parse_port
from stdserve.errors import ConfigError

ports = st.integers(0, 65535)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.org", "example.org", 77),
        ("example.org:8000", "example.org", 8000),
        ("127.0.0.1:0", "127.0.0.1", 0),
        (":8000", "0.0.0.0", 8000),
        ("::1", "::1", 77),
        ("::", "::", 77),
        ("fe80::1%eth0", "fe80::1%eth0", 77),
        ("[::1]", "::1", 77),
        ("[::1]:8000", "::1", 8000),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
        ("пример.рф:80", "пример.рф", 80),
        ("host:00080", "host", 80),
    ],
)
def test_every_form_is_read(text: str, host: str, port: int) -> None:
    """A host with or without a port, IPv6 with or without brackets, an empty host for all interfaces."""
    assert Address(host, port) == parse_address(text, 77)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "host:", "[::1", "[]", "[]:80", "[::1]:", "[::1]80", "[::1]]:80"),
        *("two words:80", "tab\t:80", "[ ::1]:80", "nul\0:80", "line\n:80", "nbsp\xa0:80"),
        *("host:http", "host:-1", "host:65536", "host: 80", "host:８０", "[::1]:x"),
    ],
)
def test_anything_else_is_quoted_back(text: str) -> None:
    """The error shows what was typed, or the part of it that is wrong, in one line."""
    with pytest.raises(ConfigError) as caught:
        parse_address(text)

    port = text.rpartition(":")[2]
    assert repr(text) in str(caught.value) or repr(port) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["http://localhost:8000", "127.0.0.1:80:90", "]::", "[name]:80"])
def test_only_an_ipv6_address_has_colons_and_brackets(text: str) -> None:
    """What is no address of any form is refused as such, not looked up as a name."""
    with pytest.raises(ConfigError):
        parse_address(text)


@given(
    st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str) | st.from_regex(r"[a-zа-я0-9.-]+", fullmatch=True),
    ports,
)
def test_what_is_shown_can_be_typed(host: str, port: int) -> None:
    """An address reads back as itself, whatever the default port."""
    assert Address(host, port) == parse_address(str(Address(host, port)), 1)


@given(st.text(st.sampled_from("a1.:[]% \n\u3000") | st.characters(), max_size=8))
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    """Nothing else is raised, and no address has a host that would break a line of the log."""
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert str(address).isprintable()
    assert address.host
    assert 0 <= address.port <= 65535


def test_a_port_is_a_plain_number() -> None:
    """From 0 to 65535, in ASCII digits."""
    assert list(range(65536)) == [parse_port(str(port)) for port in range(65536)]


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "+1", "65536", "99999999", "1.0", "0x50", "1_0", " 80", "80 ", "٣", "²", "a"]
)
def test_what_is_no_port_is_quoted_back(text: str) -> None:
    """The error says what a port is, and what came instead."""
    with pytest.raises(ConfigError, match="^port must be a number from 0 to 65535, not ") as caught:
        parse_port(text)

    assert str(caught.value).endswith(repr(text))


def test_a_port_of_thousands_of_digits_is_a_config_error() -> None:
    """Not the error of int() for a number too long to read (sys.set_int_max_str_digits)."""
    try:
        parse_port("1" * 5000)
    except ConfigError:
        return


def test_the_default_is_the_lectures_port_on_this_machine() -> None:
    """Both loopback addresses, and IPv6 only where there is such a thing."""
    assert ["127.0.0.1:10001", "[::1]:10001"] == [str(address) for address in LOOPBACK]
    assert [False, True] == [address.optional for address in LOOPBACK]
    assert Address("host", DEFAULT_PORT) == parse_address("host")


def test_addresses_are_values() -> None:
    """Equal addresses are one in a set; one that may be missing is another."""
    assert 2 == len({Address("host", 1), Address("host", 1), Address("host", 1, optional=True)})


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 4000), "127.0.0.1:4000"),
        (("::1", 4000, 0, 0), "[::1]:4000"),
        ("/run/peer.sock", "/run/peer.sock"),
        ("", "local"),
        (b"", "local"),
        (None, "local"),
    ],
)
def test_a_peer_is_shown_as_accept_names_it(address: object, text: str) -> None:
    """IPv4, IPv6, and Unix sockets, most of which have no name."""
    assert text == format_peer(address)


def test_an_abstract_unix_peer_is_shown_by_its_name() -> None:
    """Linux gives its name as bytes after a NUL (unix(7)); neither belongs into a log."""
    assert "b'" not in format_peer(b"\0name")
