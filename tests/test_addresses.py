"""Addresses as people type them, and back."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdserve.addresses import (
    DEFAULT_PORT,
    LOOPBACK,
    Address,
    connect_form,
    format_peer,
    parse_address,
    parse_port,
)
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
        ("*", "*", 77),
        ("*:8000", "*", 8000),
        ("unix.example:80", "unix.example", 80),
        ("fd:80", "fd", 80),
    ],
)
def test_every_form_is_read(text: str, host: str, port: int) -> None:
    """A host with or without a port, IPv6 with or without brackets, an empty host for all interfaces."""
    assert Address(host, port) == parse_address(text, 77)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/x.sock", Address("/run/x.sock", kind="unix")),
        ("unix:relative", Address("relative", kind="unix")),
        ("unix:///run/x.sock", Address("///run/x.sock", kind="unix")),
        ("unix:a b:c", Address("a b:c", kind="unix")),
        ("unix:@name", Address("@name", kind="unix")),
        ("unix:./@file", Address("./@file", kind="unix")),
        ("fd://3", Address("", 3, kind="fd")),
        ("fd://0", Address("", 0, kind="fd")),
        ("systemd", Address("", kind="systemd")),
        ("systemd:web", Address("web", kind="systemd")),
        ("systemd:my.socket", Address("my.socket", kind="systemd")),
    ],
)
def test_what_is_no_host_is_read_by_its_first_word(text: str, address: Address) -> None:
    """UNIX sockets by path and by abstract name, open descriptors, what systemd passes; no port fills in."""
    assert address == parse_address(text, 77)
    assert text == str(address)


@pytest.mark.parametrize(
    "text",
    [
        *("unix:", "unix:@", "unix:a\nb", "unix:\0name", "unix:\x1b[2J", "unix:\udcff"),
        *("fd://", "fd://x", "fd://-1", "fd://3:80", "fd://1000000000", "fd://٣", "systemd:", "systemd:a\nb"),
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


visible = st.text(st.characters().filter(str.isprintable), min_size=1)


@given(
    st.builds(Address, visible.filter(lambda name: name != "@"), kind=st.just("unix"))
    | st.builds(Address, st.just(""), st.integers(0, 999_999_999), kind=st.just("fd"))
    | st.builds(Address, visible | st.just(""), kind=st.just("systemd"))
)
def test_what_is_no_host_can_be_typed_as_it_is_shown(address: Address) -> None:
    """All that can be written on one line."""
    assert address == parse_address(str(address))


@given(
    st.text(st.sampled_from("a1.:[]%*@ \n\u3000") | st.characters(), max_size=8),
    st.sampled_from(["", "unix:", "fd://", "systemd", "systemd:", "*"]),
)
def test_any_text_is_an_address_or_a_config_error(text: str, scheme: str) -> None:
    """Nothing else is raised, and no address has a host that would break a line of the log."""
    try:
        address = parse_address(scheme + text)
    except ConfigError:
        return
    assert str(address).isprintable()
    assert address.host or address.kind in ("fd", "systemd")
    if address.kind != "tcp":
        assert str(address) == scheme + text or address.kind == "fd"
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
        (("unix:uid=1000", 4711), "unix:uid=1000,pid=4711"),
        (("local", 0), "local"),
        ("/run/x.sock", "unix:/run/x.sock"),
        (b"\0name", "unix:@name"),
        ("a\nb\x1b", "unix:a\\x0ab\\x1b"),
        ("caf\udce9", "unix:caf\\xe9"),
        (b"\0\xff\0", "unix:@\\xff\\x00"),
        ("", "local"),
        (b"", "local"),
        (None, "local"),
    ],
)
def test_what_the_system_names_is_shown_on_one_line(address: object, text: str) -> None:
    """Clients of IPv4, IPv6 and UNIX sockets, and listeners, an abstract one by what follows its NUL (unix(7))."""
    assert text == format_peer(address)
    assert text.isprintable()


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("127.0.0.1:80", (socket.AF_UNSPEC, ("127.0.0.1", 80))),
        ("[::1]:80", (socket.AF_UNSPEC, ("::1", 80))),
        ("*:80", (socket.AF_UNSPEC, ("localhost", 80))),
        ("unix:/run/x.sock", (socket.AF_UNIX, "/run/x.sock")),
        ("unix:@name", (socket.AF_UNIX, "\0name")),
    ],
)
def test_what_can_be_connected_to_has_a_form_for_that(text: str, form: object) -> None:
    """The resolver does the rest for TCP."""
    assert form == connect_form(parse_address(text))


@pytest.mark.parametrize("text", ["fd://3", "systemd", "systemd:web"])
def test_what_is_passed_to_a_server_is_nothing_to_connect_to(text: str) -> None:
    """Told as the mistake that it is."""
    with pytest.raises(ConfigError, match=f"^{text} can be listened on, not connected to$"):
        connect_form(parse_address(text))
