"""Listening sockets: which addresses they open, what they are like, and that none is left open on the way."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import DEADLINE, connect, eventually, free_port, peer_program
from test_children import run_forking, run_script

from stdserve.addresses import LOOPBACK, Address
from stdserve.errors import StartError
from stdserve.listeners import (
    BACKLOG,
    address_of,
    adopt_listener,
    client_address_of,
    close_listeners,
    effective_backlog,
    family_for,
    open_listener,
    open_listeners,
    prepare_listener,
)

IPV4, IPV6 = Address("127.0.0.1", 0), Address("::1", 0, optional=True)


def descriptors() -> list[str]:
    """Return the open descriptors of this process."""
    return os.listdir("/dev/fd")


@contextlib.contextmanager
def listening(*addresses: Address) -> Iterator[list[socket.socket]]:
    """Open listeners, close them in the end, and see that this leaves nothing open."""
    before = descriptors()
    listeners = open_listeners(addresses)
    try:
        yield listeners
    finally:
        close_listeners(listeners)
        close_listeners(listeners)
    assert before == descriptors()


def port_of(listener: socket.socket) -> int:
    """Return the port that a listener has."""
    port: int = listener.getsockname()[1]
    return port


def refused(*addresses: Address) -> str:
    """Return why the addresses cannot be listened on; nothing is left open."""
    before = descriptors()
    with pytest.raises(StartError) as caught:
        open_listeners(addresses)
    assert before == descriptors()
    return str(caught.value)


def has_ipv6() -> bool:
    """Tell whether this machine has an IPv6 loopback address."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux has it")


def test_a_listener_takes_clients_and_does_not_block() -> None:
    """In a lost race for a client, accept() comes back at once."""
    with listening(IPV4) as (listener,):
        with pytest.raises(BlockingIOError):
            listener.accept()
        with connect(listener.getsockname()) as client:
            listener.settimeout(DEADLINE)
            accepted, address = listener.accept()
            accepted.close()
            assert client.getsockname() == address


@pytest.mark.parametrize("address", [IPV4, pytest.param(IPV6, marks=needs_ipv6)], ids=str)
@linux_only
def test_connections_inherit_what_a_session_needs(address: Address) -> None:
    """Replies are not held back, and a peer that vanished is noticed, without a call for each connection."""
    with listening(address) as (listener,), connect(listener.getsockname()[:2]):
        listener.settimeout(DEADLINE)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, count = (
                accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            )
    assert 120 == idle + count * interval


def test_the_backlog_holds_a_crowd() -> None:
    """A hundred clients connect before the first is accepted; with socketserver's backlog of five they would wait."""
    with listening(IPV4) as (listener,), contextlib.ExitStack() as clients:
        for _ in range(100):
            clients.enter_context(socket.create_connection(listener.getsockname(), 5))


@linux_only
def test_the_backlog_is_what_the_kernel_allows() -> None:
    """What we say it is, the kernel says of the listener too (tcp_info.tcpi_sacked of a listening socket)."""
    with listening(IPV4) as (listener,):
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)  # type: ignore[attr-defined, unused-ignore]
        assert effective_backlog(BACKLOG) == struct.unpack_from("=I", info, 28)[0]
    assert 5 == effective_backlog(5)
    assert 1 <= effective_backlog(10**9) < 10**9


def test_a_backlog_whose_limit_cannot_be_read_is_what_was_asked_for() -> None:
    """As on systems that do not tell; here there is no descriptor to read it with."""
    printed = run_forking("""
        from stdserve.listeners import effective_backlog

        limits = use_up_descriptors()
        backlog = effective_backlog(10**9)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        print(backlog)
    """)

    assert ["1000000000"] == printed


def test_a_unix_listener_is_prepared_too() -> None:
    """It does not block either; TCP's options are not for it."""
    with socket.socket(socket.AF_UNIX) as listener:
        prepare_listener(listener)
        assert not listener.getblocking()


@needs_ipv6
def test_loopback_is_one_server_on_one_port() -> None:
    """IPv6 gets the free port that IPv4 was given."""
    with listening(IPV4, IPV6) as (first, second):
        assert (socket.AF_INET, socket.AF_INET6) == (first.family, second.family)
        assert port_of(first) == port_of(second)
    assert [IPV4.host, IPV6.host] == [address.host for address in LOOPBACK]


@needs_ipv6
def test_an_ipv6_listener_leaves_ipv4_alone() -> None:
    """All interfaces of both families, on one port."""
    with listening(Address("0.0.0.0", 0), Address("::", 0, optional=True)) as (first, second):
        assert port_of(first) == port_of(second)
        assert second.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@needs_ipv6
def test_a_shared_port_that_is_taken_is_not_insisted_on() -> None:
    """Any free one was asked for."""
    port = free_port()  # not one that the kernel gives away: it may be another test's in the other family
    with listening(Address("::1", port)) as (other,), listening(Address(IPV4.host, port), IPV6) as (first, second):
        assert port_of(first) == port_of(other)
        assert port_of(second) not in (0, port_of(other))


@needs_ipv6
def test_ports_are_shared_only_by_what_belongs_together() -> None:
    """An address that is wanted in its own right gets its own free port."""
    with listening(IPV4, Address("::1", 0)) as (first, second), listening(IPV4, IPV4) as (third, fourth):
        assert 4 == len({(one.family, port_of(one)) for one in (first, second, third, fourth)})


def test_an_address_that_the_machine_may_lack_is_left_out() -> None:
    """As ::1 where IPv6 is off; here one that no machine has (RFC 5737)."""
    with listening(Address("192.0.2.1", 0, optional=True), IPV4) as (listener,):
        assert "127.0.0.1" == listener.getsockname()[0]


@linux_only
def test_a_machine_without_ipv6_listens_on_ipv4() -> None:
    """Tried where the kernel has IPv6 switched off for a network of our own: by default, by name, on all interfaces.

    What is wanted of IPv6 alone is an error all the same.
    """
    peer_program("unshare")
    finished = run_in_namespaces(
        """
        from stdserve.addresses import LOOPBACK, parse_address
        from stdserve.errors import StartError
        from stdserve.listeners import close_listeners, open_listeners

        for addresses in (LOOPBACK, [parse_address("localhost:0")], [parse_address("*:0")]):
            listeners = open_listeners(addresses)
            print(listeners[0].getsockname()[0])
            close_listeners(listeners)
        try:
            open_listeners([parse_address("[::1]:0")])
        except StartError as error:
            print(error)
        """,
        "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
        "--net",
    )

    told = "cannot listen on [::1]:0: no such address on this machine"
    assert ["127.0.0.1", "127.0.0.1", "0.0.0.0", told] == finished.splitlines()


def accepted_from(listener: socket.socket, address: object) -> tuple[Any, Any]:
    """Connect, and return the client's address as a handler gets it, and as the client has it."""
    with connect(address) as client:
        eventually(lambda: bool(select.select([listener], [], [], 1)[0]))
        accepted, theirs = listener.accept()
        with accepted:
            return client_address_of(accepted, theirs), client.getsockname()


@needs_ipv6
def test_all_interfaces_are_those_of_both_families() -> None:
    """On one port, each client with the address of its own family."""
    with listening(Address("*", 0)) as (first, second):
        assert port_of(first) == port_of(second)
        for listener, host in ((first, "127.0.0.1"), (second, "::1")):
            theirs, ours = accepted_from(listener, (host, port_of(listener)))
            assert (host, ours[1]) == theirs[:2]


@needs_ipv6
def test_a_client_of_ipv4_on_a_listener_for_both_has_its_ipv4_address() -> None:
    """Whoever made that listener; ours of IPv6 take no others."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        for host in ("127.0.0.1", "::1"):
            theirs, ours = accepted_from(both, (host, port_of(both)))
            assert ours == theirs
    with listening(Address("::", 0)) as (listener,), pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.1", port_of(listener)))


def test_an_address_that_only_looks_like_ipv4_in_ipv6_is_left_as_it_is() -> None:
    """::ffff: is how others begin too."""
    with socket.socket() as accepted:
        assert ("10.0.0.1", 80) == client_address_of(accepted, ("::ffff:10.0.0.1", 80, 0, 0))
        assert ("::ffff:0:1", 80, 0, 0) == client_address_of(accepted, ("::ffff:0:1", 80, 0, 0))
        assert ("10.0.0.1", 80) == client_address_of(accepted, ("10.0.0.1", 80))


# Listeners that were made by others.


def made(family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, listen: bool = True) -> int:
    """Return the descriptor of a socket that somebody else made; a UNIX socket has the file "sock"."""
    with socket.socket(family, kind) as sock:
        if listen:
            sock.bind(("127.0.0.1", 0) if family == socket.AF_INET else "sock")
            sock.listen(1)
        sock.set_inheritable(True)
        return sock.detach()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["ipv4", "unix"])
def test_a_listener_is_adopted_whatever_its_family(
    family: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number; it is like our own then, and closing it closes the descriptor, and removes no file."""
    monkeypatch.chdir(tmp_path)
    fd = made(family)
    before = descriptors()
    (listener,) = open_listeners([Address("", fd, kind="fd")])
    assert before == descriptors()
    assert (family, fd) == (listener.family, listener.fileno())
    assert not listener.getblocking()
    assert not listener.get_inheritable()
    with contextlib.ExitStack() as clients:
        for _ in range(20):  # more than its maker let wait
            clients.enter_context(connect(address_of(listener)))
    close_listeners([listener])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert family == socket.AF_INET or Path("sock").is_socket()


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "it does not listen"),
        (socket.AF_INET, socket.SOCK_DGRAM, "it is no stream socket"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "it is no stream socket"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "it does not listen"),
        pytest.param(
            *(getattr(socket, "AF_NETLINK", 0), socket.SOCK_RAW, "it is no socket of TCP or UNIX"), marks=linux_only
        ),
    ],
)
def test_what_is_no_listener_is_refused_and_left_open(family: int, kind: int, reason: str) -> None:
    """It is not ours to close."""
    fd = made(family, kind, listen=False)
    assert f"cannot listen on fd://{fd}: {reason}" == refused(Address("", fd, kind="fd"))
    os.close(fd)


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    """A file, a number that nothing is open as, a connection."""
    with (tmp_path / "file").open("w") as file:
        fd = file.fileno()
        assert f"cannot listen on fd://{fd}: it is no socket" == refused(Address("", fd, kind="fd"))
    assert f"cannot listen on fd://{fd}: it is not open" == refused(Address("", fd, kind="fd"))
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="it does not listen"):
        adopt_listener(ours.fileno())


def test_a_descriptor_is_adopted_once() -> None:
    """Twice would be closed twice; what was adopted before the mistake is closed with the rest."""
    fd = made()
    address = Address("", fd, kind="fd")
    with pytest.raises(StartError, match=f"^cannot listen on fd://{fd}: it is listened on already$"):
        open_listeners([address, address])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_shared_port_is_that_of_a_tcp_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A UNIX socket before it has none to share."""
    monkeypatch.chdir(tmp_path)
    with listening(Address("sock", kind="unix"), Address("127.0.0.1", 0, optional=True)) as (_, second):
        assert 0 != port_of(second)


def test_a_port_is_shared_with_other_servers_only_on_request() -> None:
    """By both of them."""
    (first,) = open_listeners([IPV4], reuse_port=True)
    with first:
        same = Address("127.0.0.1", port_of(first))
        assert f"cannot listen on {same}: address already in use" == refused(same)
        close_listeners(open_listeners([same], reuse_port=True))


@pytest.mark.parametrize(
    ("address", "default", "family"),
    [
        (("127.0.0.1", 0), socket.AF_INET, socket.AF_INET),
        (("localhost", 0), socket.AF_INET, socket.AF_INET),
        (("::1", 0), socket.AF_INET, socket.AF_INET6),
        (("::1", 0, 0, 0), socket.AF_INET6, socket.AF_INET6),
        (("localhost", 0), socket.AF_INET6, socket.AF_INET6),
        ("/path", socket.AF_INET, socket.AF_UNIX),
        (b"\0name", socket.AF_INET, socket.AF_UNIX),
    ],
)
def test_the_family_is_that_of_the_address(address: object, default: int, family: int) -> None:
    """Unless a class has said which one it is."""
    assert family == family_for(address, default)


def test_with_none_of_its_addresses_a_server_cannot_start() -> None:
    """Optional is each of them, not all."""
    missing = Address("192.0.2.1", 0, optional=True)

    assert "cannot listen: the machine has none of the addresses asked for" == refused(missing, missing)
    assert "cannot listen: the machine has none of the addresses asked for" == refused()


def test_a_missing_address_that_is_wanted_is_an_error() -> None:
    """Named, with the reason; and what was open already is closed."""
    assert "cannot listen on 192.0.2.1:0: no such address on this machine" == refused(IPV4, Address("192.0.2.1", 0))


@pytest.mark.parametrize("optional", [False, True])
def test_an_address_in_use_is_an_error(optional: bool) -> None:
    """Also of an address that the machine might have lacked."""
    with listening(IPV4) as (other,):
        taken = Address("127.0.0.1", port_of(other), optional)
        assert f"cannot listen on {taken}: address already in use" == refused(IPV4, taken)


def test_an_unknown_host_is_an_error() -> None:
    """In the resolver's words (RFC 6761: .invalid never exists)."""
    message = refused(IPV4, Address("no.such.host.invalid", 80))

    assert message.startswith("cannot listen on no.such.host.invalid:80: ")
    assert "\n" not in message


@pytest.mark.parametrize("host", ["two..dots", "x" * 64 + ".org", ".start"])
def test_a_name_that_cannot_be_one_is_an_error_too(host: str) -> None:
    """An empty label, or one that is too long: Python's IDNA codec refuses it before the resolver does."""
    assert refused(Address(host, 80)).startswith(f"cannot listen on {host}:80: ")


@linux_only
def test_a_low_port_without_the_right_is_an_error() -> None:
    """It says what the right is."""
    if Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip() == "0":
        pytest.skip("every port is free for all here")
    drop = [] if os.getuid() else [peer_program("setpriv"), "--bounding-set=-all", "--inh-caps=-all"]
    finished = run_script(
        """
        from stdserve.addresses import Address
        from stdserve.errors import StartError
        from stdserve.listeners import open_listeners

        try:
            open_listeners([Address("127.0.0.1", 1)])
        except StartError as error:
            print(error)
        """,
        before=drop,
    )

    reason = "permission denied (a port below 1024 needs root or CAP_NET_BIND_SERVICE)"
    assert (f"cannot listen on 127.0.0.1:1: {reason}\n", "") == (finished.stdout, finished.stderr)


def test_a_listener_that_cannot_be_opened_leaves_nothing_open() -> None:
    """The plain error of the system, for callers that have a socket address of their own."""
    before = descriptors()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        open_listener(socket.AF_INET, ("192.0.2.1", 0))

    assert errno.EADDRNOTAVAIL == caught.value.errno
    assert before == descriptors()


def test_a_port_in_its_closing_wait_is_taken_over_at_once() -> None:
    """A server can be started again right after it was stopped with clients connected."""
    with listening(IPV4) as (listener,):
        address = listener.getsockname()
        client = connect(address)
        listener.settimeout(DEADLINE)
        listener.accept()[0].close()  # the side that closes first has the wait
        client.close()
    with listening(Address(*address)) as (listener,):
        assert address == listener.getsockname()


def run_in_namespaces(script: str, setup: str, *kinds: str) -> str:
    """Run a script where we may change the network or the mounts; return what it printed. Skip without the right."""
    unshare = [peer_program("unshare"), "--map-root-user", *kinds, "sh", "-c"]
    if run_script("", before=[*unshare, f'({setup}) 2>/dev/null && exec "$@"', "sh"]).returncode:
        pytest.skip("no right to a namespace of our own")
    finished = run_script(script, before=[*unshare, f'{setup} && exec "$@"', "sh"])
    assert "" == finished.stderr
    return finished.stdout


@needs_ipv6
@linux_only
def test_a_name_with_several_addresses_is_one_server(tmp_path: Path) -> None:
    """A listener for each of them, on one port; for one that is listed twice only one; on failure none is left."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 several\n127.0.0.2 several\n127.0.0.1 several\n::1 several\n")
    printed = run_in_namespaces(
        """
        import os
        from stdserve.addresses import Address
        from stdserve.errors import StartError
        from stdserve.listeners import close_listeners, open_listeners

        listeners = open_listeners([Address("several", 0)])
        print(*sorted(listener.getsockname()[0] for listener in listeners))
        ports = {listener.getsockname()[1] for listener in listeners}
        print(len(ports))
        close_listeners(listeners[:-1])
        before = os.listdir("/dev/fd")
        try:
            open_listeners([Address("several", *ports)])
        except StartError as error:
            print(str(error).partition(": ")[2], os.listdir("/dev/fd") == before)
        close_listeners(listeners)
        """,
        f"mount --bind {hosts} /etc/hosts",
        "--mount",
    )

    assert ["127.0.0.1 127.0.0.2 ::1", "1", "address already in use True"] == printed.splitlines()
