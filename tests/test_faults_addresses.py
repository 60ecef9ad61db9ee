"""The faults of socketserver that have to do with addresses, by their number, as test_faults has the others."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import socketserver
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import (
    DEADLINE,
    ServerProcess,
    children_of,
    connect,
    eventually,
    exchange,
)
from test_listeners import descriptors, made, needs_ipv6

from stdserve import LineHandler, ThreadServer, create_server, serving
from stdserve.listeners import BACKLOG, effective_backlog, open_listener

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")

MODES = {
    "single": ["--mode", "single"],
    "thread": ["--mode", "thread"],
    "event": ["--mode", "event"],
    "fork": ["--mode", "fork"],
    "thread_workers": ["--workers", "2"],
    "fork_workers": ["--mode", "fork", "--workers", "2"],
}


class Tell(LineHandler):
    """Replies with the client's host as the handler has it."""

    def line_received(self, line: str) -> str:
        return str(self.client_address[0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, as paths of sockets must be short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def run(server: Any) -> Iterator[Any]:
    """A server that serves in a thread of this process."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(DEADLINE)


class UnixThreads(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The standard library's."""

    daemon_threads = True


# 1, 5: a burst of clients, a port that is shared.


def connected_at_once(path: str, count: int) -> int:
    """How many clients of a UNIX socket find room while nobody accepts; beyond, the system says EAGAIN."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for client in clients:
            client.setblocking(False)
        return [client.connect_ex(path) for client in clients].count(0)


@linux_only
def test_01_a_burst_of_clients_finds_room_in_the_backlog_of_a_unix_socket(folder: Path) -> None:
    """200 while nobody accepts; the standard library's backlog of 5 takes a handful (fixed in 3.15)."""
    if effective_backlog(BACKLOG) < 200:
        pytest.skip("the kernel's own limit is below 200")
    if sys.version_info < (3, 15):
        with UnixThreads("stock", Tell):
            assert connected_at_once("stock", 40) < 20
    with create_server(Tell, bind="unix:ours"):
        assert 200 == connected_at_once("ours", 200)


def test_05_a_shared_port_is_for_tcp_and_on_request(folder: Path) -> None:
    """Linux 6.12.9 and later refuse it to UNIX sockets (cpython gh-128916): they are not asked, and stay exclusive."""
    words = ["--bind", "unix:sock", "--bind", "127.0.0.1:0", "--reuse-port"]
    with ServerProcess(*words, port=None, cwd=folder) as first:
        first.wait_for_log("^listening on unix:sock ")
        again = ["--reuse-port", "--bind", f"127.0.0.1:{first.port}"]
        with ServerProcess(*again, port=None) as second:
            assert first.port == second.port
            assert 0 == second.stop()
        with ServerProcess("--bind", f"127.0.0.1:{first.port}", port=None) as third:
            assert 3 == third.wait()
            assert third.log[-1].endswith("address already in use")
        with ServerProcess(*again, "--bind", "unix:sock", port=None, cwd=folder) as fourth:
            assert 3 == fourth.wait()
            assert "stdserve: cannot listen on unix:sock: address already in use" == fourth.log[-1]
        exchange(f"unix:{folder}/sock", b"here\n")
        first.wait_for_output(b"here\n")


# 3: IPv6.


@needs_ipv6
def test_03_an_ipv6_address_can_be_listened_on() -> None:
    """The standard library takes every address for one of IPv4."""
    with pytest.raises(socket.gaierror):
        socketserver.ThreadingTCPServer(("::1", 0), Tell)
    for host in ("::1", "::"):
        with run(ThreadServer((host, 0), Tell)) as server:
            assert b"::1\n" == exchange(("::1", server.server_address[1]), b"who\n")
    with run(ThreadServer(("::", 0), Tell)) as server, contextlib.suppress(ConnectionRefusedError):
        # Whether it is for both families is the system's choice here, as in the standard library (bindv6only).
        assert b"127.0.0.1\n" == exchange(("127.0.0.1", server.server_address[1]), b"who\n")


@needs_ipv6
@pytest.mark.parametrize(
    ("bind", "hosts"),
    [
        ("[::1]:0", ["::1"]),
        ("[::]:0", ["::1"]),
        ("localhost:0", sorted({info[4][0] for info in socket.getaddrinfo("localhost", 0)})),
        ("*:0", ["127.0.0.1", "::1"]),
    ],
    ids=["::1", "::", "localhost", "*"],
)
def test_03_clients_of_both_families_have_addresses_of_their_own(bind: str, hosts: list[str]) -> None:
    """One of IPv4 is 127.0.0.1, never ::ffff:127.0.0.1; what is of one family is not reached by the other."""
    with serving(Tell, bind=bind) as server:
        port = server.addresses[0][1]
        for host in hosts:
            assert f"{host}\n".encode() == exchange((host, port), b"who\n")
        if "127.0.0.1" not in hosts:
            with pytest.raises(ConnectionRefusedError):
                connect(("127.0.0.1", port))


# 6: the file of a UNIX socket.


def test_06_the_file_goes_when_the_server_does(folder: Path) -> None:
    """The standard library leaves it, and cannot start again."""
    UnixThreads("stock", Tell).server_close()
    with pytest.raises(OSError, match="in use"):
        UnixThreads("stock", Tell)
    with create_server(Tell, bind="unix:ours"):
        assert stat.S_ISSOCK(os.stat("ours").st_mode)
    assert not Path("ours").exists()


@pytest.mark.parametrize("mode", MODES)
def test_06_a_file_left_behind_is_taken_over_and_a_live_one_never(folder: Path, mode: str) -> None:
    """kill -9, start again; start a second one meanwhile; stop. In every mode, and with workers."""
    words = ["--bind", "unix:sock", "--unix-mode", "660", *MODES[mode]]
    with ServerProcess(*words, port=None, cwd=folder) as killed:
        killed.wait_for_log("^listening on unix:sock ")
        exchange(f"unix:{folder}/sock", b"one\n")
        for pid in (*children_of(killed.pid), killed.pid):
            os.kill(pid, signal.SIGKILL)
        killed.wait()
    assert Path("sock").is_socket()
    with ServerProcess(*words, port=None, cwd=folder) as server:
        server.wait_for_log("^listening on unix:sock ")
        assert 0o660 == stat.S_IMODE(os.stat("sock").st_mode)
        with ServerProcess(*words, port=None, cwd=folder) as second:
            assert 3 == second.wait()
            assert "stdserve: cannot listen on unix:sock: address already in use" == second.log[-1]
        exchange(f"unix:{folder}/sock", b"two\n")
        assert 0 == server.stop()
        assert b"two\n" == server.output
    assert [] == os.listdir()


def test_06_a_file_that_is_no_socket_is_never_removed(folder: Path) -> None:
    """One clear line, exit code 3."""
    Path("notes").write_text("precious")
    with ServerProcess("--bind", "unix:notes", port=None, cwd=folder) as server:
        assert 3 == server.wait()
        assert ["stdserve: cannot listen on unix:notes: what is there is no socket"] == server.log
    assert "precious" == Path("notes").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_06_a_server_beside_a_test_cleans_up_too(folder: Path, workers: int) -> None:
    """Also where it runs in a process of its own; its address is the text that a client takes."""
    code = (
        "import os, stdserve, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from processes import exchange\n"
        "class Hello(stdserve.LineHandler):\n"
        "    def line_received(self, line):\n"
        "        return 'hello'\n"
        f"with stdserve.serving(Hello, bind='unix:sock', workers={workers}) as server:\n"
        "    print(server.address, exchange(server.address, b'one\\n'), os.listdir())\n"
        "print(os.listdir())\n"
    )
    command = (sys.executable, "-c", code, str(Path(__file__).parent))
    with ServerProcess(port=None, command=command, cwd=folder) as script:
        assert 0 == script.wait()
        assert b"unix:sock b'hello\\n' ['sock']\n[]\n" == script.output


# 7: http.server over a UNIX socket.


def get(address: str) -> bytes:
    """Ask for the folder's list."""
    return exchange(address, b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n", half_close=False)


def test_07_the_standard_library_answers_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its handler takes the first character of an address that is empty."""
    with run(UnixThreads("stock", http.server.SimpleHTTPRequestHandler)):
        assert b"" == get("unix:stock")
    assert "IndexError" in capfd.readouterr().err


@linux_only
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "event"])
def test_07_the_same_handler_serves_files_over_a_unix_socket(folder: Path, mode: str) -> None:
    """Unmodified: 200, the file, and a log line that says whose request it was."""
    Path("file").write_text("hello")
    words = ["--bind", "unix:sock", "--handler", "http.server:SimpleHTTPRequestHandler", *MODES[mode]]
    with ServerProcess(*words, port=None, cwd=folder) as server:
        server.wait_for_log("^listening on unix:sock ")
        reply = get(f"unix:{folder}/sock")
        assert reply.startswith(b"HTTP/1.0 200 OK\r\n")
        assert reply.endswith(b"\r\n\r\nhello")
        server.wait_for_log(rf'^unix:uid={os.getuid()} - - \[.*\] "GET /file HTTP/1.1" 200 -$')
        server.wait_for_log(rf"^close unix:uid={os.getuid()},pid={os.getpid()} reason=closed ")
        assert 0 == server.stop()
        assert not [line for line in server.log if "Traceback" in line]


def test_07_what_handlers_ask_of_the_server_is_there(folder: Path) -> None:
    """A name and a number, as HTTPServer has them; the drop-in constructor takes a path too."""
    with create_server(Tell, bind="unix:sock") as server, ThreadServer("path", Tell) as constructed:
        assert ("localhost", 0) == (server.server_name, server.server_port)
        assert "sock" == str(server.server_address)
        assert socket.AF_UNIX == server.address_family == constructed.address_family


@linux_only
def test_07_the_cap_on_one_address_is_one_on_a_user(folder: Path) -> None:
    """All that a UNIX socket knows of its clients that they cannot choose."""
    words = ["--bind", "unix:sock", "--max-conns-per-ip", "1", "--overflow", "reply"]
    with ServerProcess(*words, port=None, cwd=folder) as server:
        server.wait_for_log("^listening")
        with connect(f"unix:{folder}/sock"):
            server.wait_for_log("^open")
            assert b"busy, try again later\n" == exchange(f"unix:{folder}/sock", b"")


# 8: a socket that is there already, a second address.


def test_08_a_listener_that_is_there_is_served_and_none_is_leaked(folder: Path) -> None:
    """The standard library makes one of its own first, which is to be replaced, and closed by nobody."""
    stock = socketserver.TCPServer(("127.0.0.1", 0), Tell, bind_and_activate=False)
    with pytest.warns(ResourceWarning, match="unclosed"):
        stock.socket = socket.socket(fileno=made())
    stock.server_close()

    fd = made()
    before = descriptors()
    with create_server(Tell, bind=f"fd://{fd}") as server:
        assert fd == server.socket.fileno()
        with run(server):
            assert b"127.0.0.1\n" == exchange(server.server_address, b"who\n")
    assert len(before) - 1 == len(descriptors())

    listener = open_listener(socket.AF_INET, ("127.0.0.1", 0))
    before = descriptors()
    with ThreadServer(listener.getsockname(), Tell, listeners=[listener]) as server, run(server):
        assert b"127.0.0.1\n" == exchange(server.server_address, b"who\n")
    assert len(before) - 1 == len(descriptors())


@linux_only
@pytest.mark.parametrize("mode", MODES)
def test_08_one_process_serves_many_addresses(folder: Path, mode: str) -> None:
    """An inherited one, IPv4 twice, a path, an abstract name: each has its line, each is served."""
    fd = made()
    name = f"@stdserve-{os.getpid()}-{mode}"
    binds = [f"fd://{fd}", "127.0.0.1:0", "127.0.0.2:0", "unix:sock", f"unix:{name}"]
    words = [word for bind in binds for word in ("--bind", bind)]
    with socket.socket(fileno=fd) as mine:
        inherited = mine.getsockname()
        with ServerProcess(*words, *MODES[mode], port=None, cwd=folder, pass_fds=[fd]) as server:
            eventually(lambda: len([line for line in server.log if line.startswith("listening on ")]) == 5)
            first = int(server.wait_for_log(r"^listening on 127\.0\.0\.1:(\d+) ", 2)[1])
            second = int(server.wait_for_log(r"^listening on 127\.0\.0\.2:(\d+) ")[1])
            addresses: list[Any] = [inherited, ("127.0.0.1", first), ("127.0.0.2", second)]
            addresses += [f"unix:{folder}/sock", f"unix:{name}"]
            for number, address in enumerate(addresses):
                exchange(address, b"client %d\n" % number)
                server.wait_for_output(b"client %d\n" % number)
            assert 0 == server.stop()
