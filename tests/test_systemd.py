"""systemd's side of a service: sockets passed by the real systemd-socket-activate, words sent to a real socket."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import (
    DEADLINE,
    ServerProcess,
    connect,
    eventually,
    exchange,
    free_port,
    peer_program,
    read_all,
)
from test_children import run_script
from test_listeners import needs_ipv6

from stdserve.errors import StartError
from stdserve.systemd import listen_fds, notify, watchdog_seconds

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, as paths of sockets must be short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Sockets that are passed.


def test_without_the_variables_nothing_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere but under systemd."""
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert [] == listen_fds()


def test_what_is_passed_to_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent's variables, inherited; they go all the same, for no child is who they mean either."""
    for pid in ("1", "", "x"):
        monkeypatch.setenv("LISTEN_PID", pid)
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", "web")
        assert [] == listen_fds()
        assert not [name for name in os.environ if name.startswith("LISTEN_")]


@pytest.mark.parametrize("count", ["", "x", "-1", "٣", "1000000000"])
def test_a_count_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    """It cannot come from systemd."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(StartError, match=f"^LISTEN_FDS must be a number, not '{count}'$"):
        listen_fds()


def test_descriptors_come_with_their_names_and_close_on_exec() -> None:
    """From 3 on; one without a name is unknown, as in sd_listen_fds_with_names(3); one that is missing is told."""
    finished = run_script(
        """
        import os
        from stdserve.errors import StartError
        from stdserve.systemd import listen_fds

        os.closerange(3, 100)
        for fd in (3, 4, 5):
            os.dup2(0, fd)
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:a.socket"}
        print(listen_fds(), [os.get_inheritable(fd) for fd in (3, 4, 5)], listen_fds())
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        print(listen_fds())
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "4"}
        try:
            listen_fds()
        except StartError as error:
            print(error)
        """
    )
    assert "" == finished.stderr
    assert [
        "[(3, 'web'), (4, 'a.socket'), (5, 'unknown')] [False, False, False] []",
        "[(3, 'unknown')]",
        "descriptor 6 is not open, but LISTEN_FDS=4 says that it was passed",
    ] == finished.stdout.splitlines()


def activated(*words: str, listen: list[str], names: str = "") -> ServerProcess:
    """A server that systemd-socket-activate starts, as soon as the first client comes."""
    activate = [peer_program("systemd-socket-activate"), *(f"--listen={address}" for address in listen)]
    activate += [f"--setenv={name}" for name in [*os.environ, "STDSERVE_LOG_FORMAT"]]
    activate += [f"--fdname={names}"] if names else []
    return ServerProcess(*words, port=None, command=[*activate, sys.executable, "-m", "stdserve"])


def eventually_connect(address: object) -> socket.socket:
    """Connect as soon as somebody listens."""
    connected: list[socket.socket] = []

    def listened() -> bool:
        with contextlib.suppress(OSError):
            connected.append(connect(address))
        return bool(connected)

    eventually(listened)
    return connected[0]


@linux_only
@pytest.mark.parametrize("words", [["--mode", "thread"], ["--mode", "fork", "--workers", "2"]], ids=" ".join)
def test_systemd_passes_sockets_of_both_kinds(folder: Path, words: list[str]) -> None:
    """The first client waits in the backlog until the server is there; the socket's file is systemd's to remove."""
    port, path = free_port(), folder / "sock"
    with activated("--bind", "systemd", *words, listen=[f"127.0.0.1:{port}", str(path)]) as server:
        with eventually_connect(("127.0.0.1", port)) as client:
            client.sendall(b"one\nexit\n")
            assert b"" == read_all(client)
        server.wait_for_log(f"^listening on 127.0.0.1:{port} ")
        server.wait_for_log(f"^listening on unix:{path} ")
        exchange(f"unix:{path}", b"two\n")
        assert 0 == server.stop()
        assert b"one\ntwo\n" == server.output
        assert path.is_socket()


@linux_only
def test_sockets_are_chosen_by_name(folder: Path) -> None:
    """Two of one name, and one that is left out; a name that nobody passed is told with those that were."""
    paths = [folder / name for name in "abc"]
    listen = [str(path) for path in paths]
    with activated("--bind", "systemd:web", listen=listen, names="web:admin:web") as server:
        with eventually_connect(f"unix:{paths[0]}"):
            server.wait_for_log(f"^listening on unix:{paths[0]} ")
            server.wait_for_log(f"^listening on unix:{paths[2]} ")
            server.wait_for_log("^open")
        assert 0 == server.stop()
        assert not [line for line in server.log if line.startswith(f"listening on unix:{paths[1]} ")]
    with activated("--bind", "systemd:api", listen=[str(folder / "d")], names="web") as server:
        eventually_connect(f"unix:{folder}/d").close()
        assert 3 == server.wait()
        told = "stdserve: cannot listen on systemd:api: the sockets that were passed are named 'web'"
        assert told == server.log[-1]


@linux_only
@needs_ipv6
def test_a_client_of_ipv4_has_an_ipv4_address_on_a_socket_for_both(folder: Path) -> None:
    """systemd's ListenStream=PORT is one socket for both families."""
    port = free_port()
    with activated("--bind", "systemd", listen=[f"[::]:{port}"]) as server:
        with eventually_connect(("127.0.0.1", port)) as client:
            server.wait_for_log(f"^open 127.0.0.1:{client.getsockname()[1]}$")
        with connect(("::1", port)) as client:
            server.wait_for_log(rf"^open \[::1\]:{client.getsockname()[1]}$")


@linux_only
def test_a_datagram_socket_is_refused(folder: Path) -> None:
    """In one line that says which."""
    port = free_port()
    activate = [peer_program("systemd-socket-activate"), "--datagram", f"--listen=127.0.0.1:{port}"]
    command = [*activate, *(f"--setenv={name}" for name in os.environ), sys.executable, "-m", "stdserve"]
    with ServerProcess("--bind", "systemd", port=None, command=command) as server:
        server.wait_for_log("Listening on")
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("127.0.0.1", port))
        assert 3 == server.wait()
        assert "stdserve: cannot listen on systemd, descriptor 3: it is no stream socket" == server.log[-1]


# What is told.


@contextlib.contextmanager
def told(address: str) -> Iterator[socket.socket]:
    """The socket that systemd would listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(DEADLINE)
        yield manager


@linux_only
@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_states_are_sent_as_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    """A line each; a reload is told with the time (sd_notify(3))."""
    name = f"\0stdserve-notify-{os.getpid()}" if abstract else str(folder / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
    with told(name) as manager:
        notify("READY=1", "STATUS=zwölf")
        assert "READY=1\nSTATUS=zwölf" == manager.recv(1000).decode()
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notify("RELOADING=1")
        sent = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", manager.recv(1000).decode())
        assert sent is not None
        assert before <= int(sent[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_nobody_to_tell_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable, a socket of another kind, none that is there, one that takes no more."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    for name in ("", "vsock:2:1234", "relative", str(folder / "gone"), "/" + "x" * 200):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
    with told(str(folder / "notify")):
        for _ in range(2000):
            notify("WATCHDOG=1")


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "ours"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
    ids=str,
)
def test_the_watchdog_is_ours_or_nobodys(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], seconds: float | None
) -> None:
    """In seconds; nonsense is no watchdog."""
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("ours", str(os.getpid())))
    assert seconds == watchdog_seconds()
