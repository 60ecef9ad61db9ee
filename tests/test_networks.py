"""Access rules against a naive implementation: the standard library's ``address in network``, one after the other."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from processes import DEADLINE

from stdserve.errors import ConfigError, StartError
from stdserve.networks import Rules, parse_networks, read_networks

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Draw a network of a few neighbours, or any: overlaps and edges are what may go wrong."""
    address: Any = draw(addresses)
    prefix = draw(st.integers(0, address.max_prefixlen))
    return ipaddress.ip_network(f"{address}/{prefix}", strict=False)


near = st.sampled_from(
    [
        *("10.0.0.0", "10.0.0.1", "10.0.0.255", "10.255.255.255", "11.0.0.0", "0.0.0.0", "255.255.255.255"),
        *("2001:db8::", "2001:db8::1", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "::", "::1", "::a00:1", "fe80::1"),
    ]
).map(ipaddress.ip_address)
# IPv4-mapped ones have a test of their own; the standard library takes them for IPv6.
addresses = near | st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None)
network_lists = st.lists(networks(), max_size=6)


def naively(allow: Iterable[Network], deny: Iterable[Network], address: Any) -> bool:
    """Say what the rules want, one network after the other."""
    if any(address in network for network in deny):
        return False
    return not allow or any(address in network for network in allow)


@given(network_lists, network_lists, st.lists(addresses, min_size=1, max_size=8))
@example([ipaddress.ip_network("0.0.0.0/0")], [], [ipaddress.ip_address("::1")])
@example([ipaddress.ip_network("::/0")], [], [ipaddress.ip_address("10.0.0.1")])
def test_the_rules_are_those_of_the_naive_implementation(
    allow: list[Network], deny: list[Network], peers: list[Any]
) -> None:
    """For any networks and addresses, given as texts, as networks, and all in one text."""
    expected = [naively(allow, deny, peer) for peer in peers]

    for rules in (
        Rules(allow, deny),
        Rules(map(str, allow), map(str, deny)),
        Rules([", ".join(map(str, allow))] if allow else [], [",".join(map(str, deny))] if deny else []),
    ):
        assert expected == [rules.admits(str(peer)) for peer in peers]
        assert bool(allow or deny) == bool(rules)


@given(network_lists, network_lists, st.ip_addresses(v=4) | near.filter(lambda address: address.version == 4))
def test_an_ipv4_mapped_address_is_ipv4(allow: list[Network], deny: list[Network], peer: Any) -> None:
    """As a peer, in either spelling, and as a rule."""
    rules = Rules(allow, deny)
    mapped = [f"::ffff:{peer}", str(ipaddress.IPv6Address(0xFFFF_0000_0000 + int(peer)))]

    assert [naively(allow, deny, peer)] * 2 == [rules.admits(host) for host in mapped]
    assert [True] * 3 == [Rules(allow=[host]).admits(str(peer)) for host in [*mapped, str(peer)]]


def test_a_mapped_network_is_one_of_ipv4() -> None:
    """Its prefix counts from where the IPv4 address begins; a wider one is of IPv6."""
    rules = Rules(deny=["::ffff:10.0.0.0/104"])
    assert [False, False, True] == [rules.admits(host) for host in ("10.1.2.3", "::ffff:10.1.2.3", "11.0.0.0")]

    assert Rules(deny=["::fffe:0:0/95"]).admits("10.1.2.3")
    assert not Rules(deny=["::ffff:0:0/96"]).admits("10.1.2.3")


@pytest.mark.parametrize(
    ("allow", "deny", "host", "admitted"),
    [
        ([], [], "192.0.2.1", True),
        (["10.0.0.0/8"], [], "10.9.9.9", True),
        (["10.0.0.0/8"], [], "192.0.2.1", False),
        (["10.0.0.0/8"], ["10.6.6.6"], "10.6.6.6", False),
        (["10.6.6.6"], ["10.0.0.0/8"], "10.6.6.6", False),
        ([], ["10.0.0.0/8"], "192.0.2.1", True),
        (["::1"], [], "::1", True),
        (["fe80::/10"], [], "fe80::1%eth0", True),
        ([], ["fe80::1"], "fe80::1%eth0", False),
        (["10.0.0.0/255.0.0.0"], [], "10.9.9.9", True),
        (["10.0.0.0/8,::1"], [], "::1", True),
    ],
)
def test_the_rules_by_example(allow: list[str], deny: list[str], host: str, admitted: bool) -> None:
    """Deny wins; an allow denies the rest; a zone does not count."""
    assert admitted is Rules(allow, deny).admits(host)


@pytest.mark.parametrize("host", ["", "/run/peer.sock", "@name", b"\0name", "peer", "nul\0", "a:b"])
def test_a_unix_peer_is_not_of_any_network(host: str | bytes) -> None:
    """File permissions say who connects there, not the rules."""
    assert Rules(allow=["10.0.0.0/8"], deny=["0.0.0.0/0", "::/0"]).admits(host)


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ("10.0.0.1/8", ["10.0.0.0/8", "10.0.0.1?"]),
        ("2001:db8::1/32", ["2001:db8::/32", "2001:db8::1?"]),
        ("192.168.0.1/255.255.0.0", ["192.168.0.0/16"]),
        ("example.org", ["names are not looked up"]),
        ("localhost", ["names are not looked up"]),
        ("fe80::1%eth0", ["zone"]),
        *((text, ["ADDRESS/PREFIX"]) for text in ["", " ", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1"]),
        *((text, ["ADDRESS/PREFIX"]) for text in ["10/8", "10.0.0", "010.0.0.0/8", "10.0.0.0/8/8", "１０.0.0.0/8"]),
        *((text, ["ADDRESS/PREFIX"]) for text in ["192.168.0.0-255", "192.168.*.*", "10.0.0.1:80", "[::1]", "\n"]),
    ],
)
def test_what_is_no_network_is_quoted_back(text: str, hints: list[str]) -> None:
    """In one line that says what was probably meant; one bad word in a list of good ones too."""
    for given_text in (text, f"::1,{text}"):
        with pytest.raises(ConfigError) as caught:
            Rules(deny=[given_text])

        assert repr(text.strip()) in str(caught.value)
        assert str(caught.value).isprintable()
        assert [] == [hint for hint in hints if hint not in str(caught.value)]


@given(st.text(st.sampled_from("012.:/f%,- \n") | st.characters(), max_size=12))
def test_any_text_is_networks_or_a_config_error(text: str) -> None:
    """Nothing else is raised, and what is read reads back as itself."""
    try:
        found = parse_networks(text)
    except ConfigError as error:
        assert str(error).isprintable()
        return
    assert found == parse_networks(",".join(map(str, found)))


@given(st.text())
def test_any_host_is_admitted_or_not(host: str) -> None:
    """What is no IP address is a UNIX peer, whatever it is called."""
    assert Rules().admits(host)
    assert Rules(allow=["0.0.0.0/0", "::/0"]).admits(host)


# Files.


def test_a_file_has_a_network_a_line(tmp_path: Path) -> None:
    """With comments, blank lines, blanks around, CRLF and a byte order mark, as editors leave them."""
    path = tmp_path / "allow.txt"
    path.write_bytes(b"\xef\xbb\xbf10.0.0.0/8\r\n\r\n  # the office\n\t192.0.2.1 # Ann\xc3\xa9e\n2001:db8::/32")

    assert ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"] == [str(network) for network in read_networks(path)]
    assert not Rules(deny=read_networks(str(path))).admits("192.0.2.1")


def test_an_empty_file_denies_nobody_but_allows_nobody_either(tmp_path: Path) -> None:
    """A list of who may come in that was emptied by accident opens no door."""
    path = tmp_path / "list.txt"
    path.write_text("# nobody\n")
    allowed, denied = Rules(allow_files=[path]), Rules(deny_files=[str(path)])

    assert [True, False] == [bool(allowed), allowed.admits("10.0.0.1")]
    assert [False, True] == [bool(denied), denied.admits("10.0.0.1")]
    assert Rules(["10.0.0.1"], allow_files=[path]).admits("10.0.0.1")


def test_files_add_to_the_rules(tmp_path: Path) -> None:
    """Several, with rules of their own beside them."""
    for name, text in [("a", "10.0.0.0/8"), ("b", "::1"), ("c", "10.6.6.6")]:
        (tmp_path / name).write_text(text)
    rules = Rules(
        ["192.0.2.1"], ["10.7.7.7"], allow_files=[tmp_path / "a", tmp_path / "b"], deny_files=[tmp_path / "c"]
    )

    assert [True] * 3 == [rules.admits(host) for host in ("192.0.2.1", "10.0.0.1", "::1")]
    assert [False] * 3 == [rules.admits(host) for host in ("192.0.2.2", "10.6.6.6", "10.7.7.7")]


@pytest.mark.parametrize("line", [b"10.0.0.1/8", b"example.org # the proxy", b"\xff\xfe", b"10.0.0.0/8 ::1", b"a,b"])
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    """By file and number, and quoted without raw bytes."""
    path = tmp_path / "deny.txt"
    path.write_bytes(b"::1\n# comment\n" + line + b"\n::2\n")

    with pytest.raises(ConfigError) as caught:
        read_networks(path)

    assert str(caught.value).startswith(f"{path}:3: ")
    assert str(caught.value).isprintable()


def test_a_file_that_cannot_be_read_is_the_surroundings_fault(tmp_path: Path) -> None:
    """Missing, or a folder: the server cannot start."""
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(StartError, match=f"^cannot read {path}: "):
            read_networks(path)


# Costs.


def lines_run(rules: Rules, host: str) -> int:
    """Count the lines of Python that one check runs."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        rules.admits(host)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("host", ["192.0.2.1", "10.0.3.1", "2001:db8::1"])
def test_ten_thousand_networks_cost_what_a_few_do(host: str) -> None:
    """A check depends on how many lengths of prefix there are, not on how many networks."""
    few, many = ([ipaddress.ip_network((0x0A000000 + (n << 8), 24)) for n in range(count)] for count in (10, 10_000))
    other = [ipaddress.ip_network((0x0B000000 + (n << 8), 24 + n)) for n in range(8)]

    assert 0 < lines_run(Rules(deny=few), host) == lines_run(Rules(deny=many), host)
    assert lines_run(Rules(deny=many), "192.0.2.1") < lines_run(Rules(deny=other), "192.0.2.1")


def test_a_server_without_rules_never_imports_ipaddress() -> None:
    """Nor does a check of none; start-up time counts."""
    code = """if True:
        import sys
        sys.modules.pop("ipaddress", None)  # some installations import it before any program
        from stdserve.networks import Rules
        assert Rules().admits("10.0.0.1")
        assert "ipaddress" not in sys.modules
        Rules(["::1"])
        assert "ipaddress" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE)
