"""The client against real servers, most of them badly behaved: each test is a process, or a Client, and one session."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

from stdserve.addresses import Address, parse_address
from stdserve.client import Client, Transfer, main
from stdserve.errors import ConfigError, ConnectError, ConnectTimeout, SendError, SendTimeout

#: Seconds that nothing here comes near; past it a test has failed.
DEADLINE = 20.0

#: More than the kernel's buffers between two processes hold.
LARGE = 50_000_000

CLIENT = [sys.executable, "-bb", "-W", "error", "-m", "stdserve.client"]

Session = Callable[[socket.socket], object]

#: The client's end of a connection and the server's.
Pair = tuple[socket.socket, socket.socket]

#: Exit code, output, errors; None for what went elsewhere.
Result = tuple[int, Any, Any]


@contextlib.contextmanager
def serving(session: Session, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve one client with ``session`` in a thread; yield the address, at the end raise what went wrong there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(DEADLINE)

        def serve() -> None:
            with listener.accept()[0] as peer:
                peer.settimeout(DEADLINE)
                session(peer)

        served = pool.submit(serve)
        yield str(Address(*listener.getsockname()[:2]))
        served.result(DEADLINE)


def read_all(peer: socket.socket) -> bytes:
    """Return what the client sends until its end."""
    data = bytearray()
    while block := peer.recv(1 << 16):
        data += block
    return bytes(data)


def echo(peer: socket.socket) -> None:
    """Send everything back as it comes, blocking in both directions, as a simple server does."""
    while block := peer.recv(1 << 16):
        peer.sendall(block)


def shout(peer: socket.socket) -> None:
    """Answer each line in capitals, hang up on "exit"."""
    with peer.makefile("rb") as lines:
        for line in lines:
            if line == b"exit\n":
                break
            peer.sendall(line.upper())


def reset(peer: socket.socket) -> None:
    """Close with a RST, as a server that dies does: SO_LINGER with a time of 0, see socket(7)."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def die_at_the_end(peer: socket.socket) -> None:
    """Read everything, and die instead of ending the session."""
    read_all(peer)
    reset(peer)


def end_after_line(peer: socket.socket) -> None:
    """End the session (FIN) after the first line, and take no notice of the rest."""
    with peer.makefile("rb") as lines:
        lines.readline()
    peer.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        read_all(peer)


def run(*arguments: str, command: list[str] = CLIENT, **options: Any) -> Result:
    """Run the client to its end; return its exit code, output and errors."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": DEADLINE, **options}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run([*command, *arguments], **options)
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def running(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the client beside the test; it is killed if the test leaves it behind."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen([*CLIENT, *arguments], **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def ended(process: subprocess.Popen[bytes]) -> Result:
    """Wait for a client that runs beside the test."""
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output, errors


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Open a pseudo-terminal: (the user's end, the program's end)."""
    user, program = pty.openpty()
    try:
        yield user, program
    finally:
        os.close(user)
        with contextlib.suppress(OSError):  # a test may have closed it to see the end of its output
            os.close(program)


def read_until(source: int | IO[bytes] | None, wanted: bytes) -> bytes:
    """Read until ``wanted`` has come, or to the end when it is empty (EIO is a pseudo-terminal's end)."""
    assert source is not None
    number = source if isinstance(source, int) else source.fileno()
    data, deadline = b"", time.monotonic() + DEADLINE
    while not wanted or wanted not in data:
        assert select.select([number], [], [], max(0, deadline - time.monotonic()))[0], f"only {data!r} came"
        block = b""
        with contextlib.suppress(OSError):
            block = os.read(number, 1 << 16)
        if not block:
            assert not wanted, f"only {data!r} came"
            break
        data += block
    return data


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that no buffer between client and server swallows, with lines as texts have them."""
    path = tmp_path_factory.mktemp("client") / "large"
    line = b"Twas brillig, and the slithy toves did gyre and gimble in the wabe\n"
    path.write_bytes((line * (LARGE // len(line) + 1))[:LARGE])
    return path


@pytest.fixture
def full_listener() -> Iterator[str]:
    """A listener that never accepts and whose backlog is full, so that the kernel drops further SYNs (listen(2))."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        waiting = True
        while waiting:
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            waiting = bool(select.select([], [filler], [], 0.2)[1])
        yield str(Address(*listener.getsockname()))


@pytest.fixture
def closed_port() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(Address(*listener.getsockname()))


# Sending


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_messages_are_lines_and_replies_are_shown(host: str) -> None:
    """Each MESSAGE goes out as one line, options may stand between them; the reply is the output."""
    with serving(lambda peer: peer.sendall(b"got " + read_all(peer)), host) as address:
        result = run(address, "one", "--read-timeout", "9s", "two 2", "я", "")

    assert (0, b"got one\ntwo 2\n\xd1\x8f\n\n", b"") == result


def test_undecodable_arguments_go_out_as_they_are() -> None:
    """An argument that is no UTF-8 arrives byte for byte."""
    with serving(echo) as address:
        assert (0, b"a\xff\xfe\n", b"") == run(address, b"a\xff\xfe")  # type: ignore[arg-type]


def test_a_message_may_look_like_an_option() -> None:
    """What follows ``--`` is a message."""
    with serving(echo) as address:
        assert (0, b"--help\n", b"") == run(address, "--", "--help")


@pytest.mark.parametrize("text", [b"", b"one", b"one\ntwo\n", bytes(range(256)) * 1000])
def test_standard_input_goes_out_unaltered(text: bytes, tmp_path: Path) -> None:
    """A pipe and a file arrive as they are, with and without a last LF."""
    path = tmp_path / "input"
    path.write_bytes(text)
    with serving(echo) as address:
        assert (0, text, b"") == run(address, input=text)
    with path.open("rb") as file, serving(echo) as address:
        assert (0, text, b"") == run(address, stdin=file)


def test_large_input_through_an_echo_server_flows(large: Path, tmp_path: Path) -> None:
    """50 MB go out and come back at the same time: no deadlock, memory flat."""
    peaks = []

    def measured_echo(peer: socket.socket) -> None:
        peer.sendall(peer.recv(1 << 16))
        peaks.append(peak_memory(process.pid))
        echo(peer)
        peaks.append(peak_memory(process.pid))

    output = tmp_path / "output"
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(measured_echo))
        source, replies = stack.enter_context(large.open("rb")), stack.enter_context(output.open("wb"))
        process = stack.enter_context(running(address, stdin=source, stdout=replies))
        assert (0, None, b"") == ended(process)

    assert hashlib.sha256(large.read_bytes()).digest() == hashlib.sha256(output.read_bytes()).digest()
    assert peaks[1] - peaks[0] < 8_000_000


def peak_memory(pid: int) -> int:
    """Return the most memory a process has had, in bytes; 0 where there is no /proc to tell (proc(5))."""
    with contextlib.suppress(FileNotFoundError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return 0


def test_typed_lines_go_out_at_once() -> None:
    """At a terminal each line is answered before the next is typed; Ctrl-D ends the session."""
    with terminal() as (user, program), serving(shout) as address, running(address, stdin=program) as process:
        for line in (b"hello\n", b"again\n"):
            os.write(user, line)
            assert line.upper() == read_until(process.stdout, line.upper())
        os.write(user, b"\x04")

        assert (0, b"", b"") == ended(process)


def test_a_session_ended_by_its_user_is_in_order() -> None:
    """When the server hangs up on a typed ``exit`` the client ends too, without waiting for another key."""
    with terminal() as (user, program), serving(shout) as address, running(address, stdin=program) as process:
        os.write(user, b"hello\nexit\n")

        assert (0, b"HELLO\n", b"") == ended(process)


def test_a_pipe_may_end_just_after_the_server() -> None:
    """The shell behind ``(echo exit; cleanup) | client`` needs a moment to end; that is no error."""
    slow = subprocess.Popen(["sh", "-c", "echo exit; sleep 0.3"], stdout=subprocess.PIPE)
    with slow as shell, serving(shout) as address:
        assert (0, b"", b"") == run(address, stdin=shell.stdout)


def test_replies_wait_for_a_slow_reader_who_made_the_pipe_non_blocking() -> None:
    """Nothing is lost when the output is full, even if EAGAIN is how it says so."""
    text = os.urandom(1 << 20) * 16
    stuck = threading.Event()

    def flood(peer: socket.socket) -> None:
        read_all(peer)
        peer.settimeout(0.3)
        left, deadline = memoryview(text), time.monotonic() + DEADLINE
        while left and time.monotonic() < deadline:
            try:
                left = left[peer.send(left[: 1 << 16]) :]
            except TimeoutError:
                stuck.set()

    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, fcntl.fcntl(writer, fcntl.F_GETFL) | os.O_NONBLOCK)
    with serving(flood) as address, running(address, "go", stdout=writer) as process, open(reader, "rb") as replies:
        os.close(writer)
        assert stuck.wait(DEADLINE)
        shown = replies.read()

        assert (0, None, b"") == ended(process)
        assert hashlib.sha256(text).digest() == hashlib.sha256(shown).digest()


# Progress


@pytest.mark.parametrize(("known", "percent"), [(True, r", \d+ %"), (False, "")], ids=["file", "pipe"])
def test_long_sending_shows_progress_on_a_terminal(known: bool, percent: str, large: Path) -> None:
    """After a second a line says how far it is, in percent when the size is known; at the end it is wiped."""
    go = threading.Event()

    def late(peer: socket.socket) -> None:
        assert go.wait(DEADLINE)
        assert len(read_all(peer)) == LARGE

    with contextlib.ExitStack() as stack:
        user, program = stack.enter_context(terminal())
        address = stack.enter_context(serving(late))
        source: Any = stack.enter_context(large.open("rb"))
        if not known:
            source = stack.enter_context(subprocess.Popen(["cat"], stdin=source, stdout=subprocess.PIPE)).stdout
        process = stack.enter_context(running(address, stdin=source, stderr=program))
        os.close(program)
        shown = read_until(user, b"MB/s")
        go.set()
        shown += read_until(user, b"")

        assert (0, b"", None) == ended(process)
        assert re.match(rf"\r[\d,]+ bytes sent{percent}, \d+\.\d MB/s", shown.decode())
        assert re.search(r"MB/s *\r +\r$", shown.decode())


def test_progress_leaves_the_screen_to_replies(large: Path) -> None:
    """Where both share a terminal the line is wiped before the first reply, and does not come back."""
    go, seen = threading.Event(), threading.Event()

    def late(peer: socket.socket) -> None:
        assert go.wait(DEADLINE)
        peer.sendall(b"reply\n")
        assert seen.wait(DEADLINE)
        read_all(peer)

    with contextlib.ExitStack() as stack:
        user, program = stack.enter_context(terminal())
        address, source = stack.enter_context(serving(late)), stack.enter_context(large.open("rb"))
        process = stack.enter_context(running(address, stdin=source, stdout=program, stderr=program))
        os.close(program)
        shown = read_until(user, b"MB/s")
        go.set()
        shown += read_until(user, b"reply\r\n")
        assert ([], [], []) == select.select([user], [], [], 0.5)
        seen.set()
        shown += read_until(user, b"")

        assert (0, None, None) == ended(process)
    assert re.fullmatch(r"(\r[^\r\n]+MB/s *)+\r +\rreply\r\n", shown.decode())


# What goes wrong


def test_nobody_listens(closed_port: str) -> None:
    """A closed port is ``connection refused``."""
    assert (1, b"", b"connection refused\n") == run(closed_port, "ping")


def test_a_server_that_does_not_accept(full_listener: str) -> None:
    """No answer to the connection attempt is ``connect timeout``, after the time asked for."""
    start = time.monotonic()

    assert (1, b"", b"connect timeout\n") == run(full_listener, "ping", "--connect-timeout", "300ms")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("no-such-host.invalid", "unknown host no-such-host.invalid: "),
        ("no..host", "unknown host no..host: "),
        ("255.255.255.255", "255.255.255.255: "),
    ],
)
def test_other_reasons_not_to_connect(address: str, reason: str) -> None:
    """An unknown host and an unreachable address are ``connect error``, with the reason in the same line."""
    # RES_OPTIONS (resolv.conf(5)): a machine without a name server shall not wait long for it.
    environment = {**os.environ, "RES_OPTIONS": "timeout:1 attempts:1"}
    code, output, errors = run(address, "ping", env=environment)

    assert (1, b"") == (code, output)
    assert re.fullmatch(f"connect error: {re.escape(reason)}.+\n", errors.decode())


def test_a_server_that_never_finishes() -> None:
    """A server that reads but does not end its side is ``send data timeout``."""
    gone = threading.Event()

    def hang(peer: socket.socket) -> None:
        read_all(peer)
        assert gone.wait(DEADLINE)

    with serving(hang) as address:
        result = run(address, "ping", "--read-timeout", "0.3")
        gone.set()

    assert (1, b"", b"send data timeout: the server did not finish for 0.3 s\n") == result


def test_a_server_that_never_reads(large: Path) -> None:
    """A server that takes nothing is ``send data timeout``; without a terminal no progress is shown meanwhile."""
    gone = threading.Event()
    with serving(lambda peer: gone.wait(DEADLINE)) as address, large.open("rb") as source:
        result = run(address, "--read-timeout", "1.3", stdin=source)
        gone.set()

    assert (1, b"", b"send data timeout: the server took nothing for 1.3 s\n") == result


def test_a_silent_user_is_not_a_silent_server() -> None:
    """While nobody types the read timeout does not run, and no progress is reported."""
    with contextlib.ExitStack() as stack:
        user, keyboard = stack.enter_context(terminal())
        reader, screen = stack.enter_context(terminal())
        address = stack.enter_context(serving(shout))
        process = stack.enter_context(running(address, "--read-timeout", "0.2", stdin=keyboard, stderr=screen))
        os.write(user, b"one\n")
        assert b"ONE\n" == read_until(process.stdout, b"\n")
        assert process.stdout is not None
        assert ([], [], []) == select.select([process.stdout.fileno(), reader], [], [], 1.3)
        os.write(user, b"two\n\x04")

        assert (0, b"TWO\n", None) == ended(process)


def test_a_reset_while_sending(large: Path) -> None:
    """A server that dies while it is sent to is ``send data error`` with the system's reason."""

    def die(peer: socket.socket) -> None:
        peer.recv(1 << 16)
        reset(peer)

    with serving(die) as address, large.open("rb") as source:
        result = run(address, stdin=source)

    assert (1, b"", b"send data error: Connection reset by peer\n") == result


def test_a_reset_after_everything_was_sent() -> None:
    """A server that dies instead of ending its side has not finished: ``send data error``."""
    with serving(die_at_the_end) as address:
        assert (1, b"", b"send data error: Connection reset by peer\n") == run(address, "ping")


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A client's and a server's end of a TCP connection, with room for 1 MB that the client has not read."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.settimeout(DEADLINE)
        sock.connect(listener.getsockname())
        with listener.accept()[0] as peer:
            peer.settimeout(DEADLINE)
            yield sock, peer


@pytest.fixture
def null() -> Iterator[int]:
    """An output that nobody reads."""
    with open(os.devnull, "wb") as output:
        yield output.fileno()


def test_the_last_words_before_a_reset_are_shown(pair: Pair, tmp_path: Path) -> None:
    """Replies that came before a RST are passed on, also when sending is what runs into it."""
    sock, peer = pair
    text = b"too busy\n" * 20_000
    peer.sendall(text)
    # All of it has arrived; only then the RST, so that one step finds both.
    assert text == sock.recv(len(text), socket.MSG_PEEK | socket.MSG_WAITALL)
    reset(peer)

    with (tmp_path / "output").open("w+b") as output:
        with pytest.raises(SendError, match="^send data error: Connection reset by peer$"):
            Transfer(sock, output.fileno(), b"ping\n").run()
        output.seek(0)
        assert text == output.read()


def test_nothing_is_sent_to_a_server_that_has_ended(pair: Pair, null: int) -> None:
    """An end that was there before the first byte went out is seen first."""
    sock, peer = pair
    peer.shutdown(socket.SHUT_WR)
    assert b"" == sock.recv(1, socket.MSG_PEEK)

    with pytest.raises(SendError, match="^send data error: the server ended the session after 0 bytes$"):
        Transfer(sock, null, b"ping\n").run()
    sock.close()
    assert b"" == read_all(peer)


def test_sending_never_blocks(pair: Pair, null: int) -> None:
    """However much there is to send at once, the read timeout holds."""
    pair[0].settimeout(None)  # as a Client without a read timeout has it

    with pytest.raises(SendTimeout, match="^send data timeout: the server took nothing for 0.2 s$"):
        Transfer(pair[0], null, bytes(LARGE), read_timeout=0.2).run()


def test_a_server_that_ends_early(large: Path) -> None:
    """A session that ends before everything was sent is an error that says how far it came."""
    with serving(end_after_line) as address, large.open("rb") as source:
        code, output, errors = run(address, stdin=source)

    assert (1, b"") == (code, output)
    assert re.fullmatch(rb"send data error: the server ended the session after \d+ bytes\n", errors)


@pytest.mark.parametrize("later", ["cat", "sleep 2; echo more"], ids=["silent", "goes-on"])
def test_a_server_that_ends_before_a_pipe(later: str) -> None:
    """``tail -f log | client`` without a server is an error, whether or not the log grows."""
    with subprocess.Popen(["sh", "-c", f"echo one; {later}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        with serving(end_after_line) as address:
            result = run(address, stdin=shell.stdout)

        assert (1, b"", b"send data error: the server ended the session after 4 bytes\n") == result
        shell.communicate(timeout=DEADLINE)


def test_an_input_that_cannot_be_read(tmp_path: Path) -> None:
    """An input that fails is an error, not its end."""
    with (tmp_path / "unreadable").open("wb") as write_only, serving(echo) as address:
        result = run(address, stdin=write_only)

    assert (1, b"", b"send data error: cannot read the input: Bad file descriptor\n") == result


def test_output_without_a_reader() -> None:
    """``client ... | head -1`` ends with one line and code 1 when head has gone."""

    def talk(peer: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                peer.sendall(b"news\n" * 1000)

    with serving(talk) as address, running(address, "go") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.stderr is not None
        assert b"output error: Broken pipe\n" == process.stderr.read()
        assert 1 == process.wait(DEADLINE)


@pytest.mark.parametrize(
    ("closed", "message", "code", "error"),
    [
        (">&-", "ping", 1, b"output error: standard output is closed\n"),
        ("<&-", None, 2, b"there is no MESSAGE to send, and standard input is closed\n"),
        ("2>&-", "--wait", 2, b""),
    ],
    ids=["stdout", "stdin", "stderr"],
)
def test_closed_descriptors(closed: str, message: str | None, code: int, error: bytes, closed_port: str) -> None:
    """A standard stream that is closed is never mistaken for the socket that takes its number."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *CLIENT]

    assert (code, b"", error) == run(closed_port, *filter(None, [message]), command=command)


def test_errors_without_a_reader() -> None:
    """When even stderr has gone the exit code still tells."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as broken:
        assert (2, b"", None) == run("--wait", stderr=broken)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "the following arguments are required: ADDRESS ("),
        (["127.0.0.1:http"], "port must be a number from 0 to 65535, not 'http'"),
        (["[::1"], "address must be HOST:PORT or [V6]:PORT, not '[::1'"),
        (["127.0.0.1", "ping", "--wait"], "unrecognized arguments: --wait"),
        (["127.0.0.1", "ping", "--read-timeout", "soon"], "argument --read-timeout: must be a duration"),
        (["127.0.0.1", "ping", "--connect-timeout=-1"], "argument --connect-timeout: must be a duration"),
        (["127.0.0.1", "ping", "--connect-timeout", "0"], "connect_timeout must be above 0, not 0"),
        (["127.0.0.1", "ping", "--read-timeout", "0s"], "read_timeout must be above 0, not 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(arguments: list[str], error: str) -> None:
    """A wrong command line is one line on stderr that names the fault, and exit code 2."""
    code, output, errors = run(*arguments)

    assert (2, b"") == (code, output)
    assert errors.decode().startswith(error)
    assert 1 == errors.count(b"\n")


@pytest.mark.parametrize("messages", [["ping"], []], ids=["message", "input"])
def test_ctrl_c_ends_quietly(messages: list[str]) -> None:
    """SIGINT ends the client with 130, the code of shells, and without a word, whatever it waits for."""
    arrived, gone = threading.Event(), threading.Event()

    def hang(peer: socket.socket) -> None:
        assert b"ping\n" == peer.recv(100)
        arrived.set()
        assert gone.wait(DEADLINE)

    # A test run in the background ignores SIGINT, and its children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with serving(hang) as address, running(address, *messages, stdin=subprocess.PIPE) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdin is not None
        process.stdin.write(b"ping\n")
        process.stdin.flush()
        assert arrived.wait(DEADLINE)
        process.send_signal(signal.SIGINT)

        assert 130 == process.wait(DEADLINE)
        gone.set()
        assert (130, b"", b"") == ended(process)


# For programs


def test_ask_and_receive_line_by_line() -> None:
    """A program asks, and reads further lines; CR LF and LF end one, and so does the server's end."""

    def answer(peer: socket.socket) -> None:
        with peer.makefile("rb") as lines:
            assert b"one\n" == lines.readline()
            peer.sendall(b"1\r\nmore\r\r\n\n\xff")
            assert b"two\n" == lines.readline()

    with serving(answer) as address, Client(address, read_timeout=DEADLINE) as client:
        assert "1" == client.ask("one")
        assert "more\r" == client.receive_line()
        assert "" == client.receive_line()
        client.send(b"two\n")
        assert "\udcff" == client.receive_line()
        with pytest.raises(SendError, match="^send data error: the server ended the session$"):
            client.receive_line()


def test_finish_returns_the_rest() -> None:
    """After the last line a program half-closes and gets all that the server still has to say."""

    def summarize(peer: socket.socket) -> None:
        peer.sendall(b"hello\n")
        peer.sendall(b"%d bytes\nbye\n" % len(read_all(peer)))

    with serving(summarize) as address, Client(address, read_timeout=DEADLINE) as client:
        assert "hello" == client.receive_line()
        client.send("ping")
        assert b"5 bytes\nbye\n" == client.finish()
        assert b"" == client.finish()


def test_a_timeout_loses_nothing() -> None:
    """Half a line that came before a timeout is there for the next call."""
    go = threading.Event()

    def hesitate(peer: socket.socket) -> None:
        peer.sendall(b"tick ")
        assert go.wait(DEADLINE)
        peer.sendall(b"tock\n")

    with serving(hesitate) as address, Client(address, read_timeout=0.2) as client:
        with pytest.raises(SendTimeout, match="^send data timeout: timed out$"):
            client.receive_line()
        go.set()
        client.sock.settimeout(DEADLINE)
        assert "tick tock" == client.receive_line()


def test_addresses_of_every_kind() -> None:
    """Text, an Address and a pair are all understood; no timeout, and one longer than sockets can wait, are too."""
    for convert in (str, parse_address, lambda text: (parse_address(text).host, parse_address(text).port)):
        with serving(echo) as text, Client(convert(text), connect_timeout=None, read_timeout=1e99) as client:
            assert "ping" == client.ask("ping")


def test_errors_are_told_apart_by_type(closed_port: str, full_listener: str) -> None:
    """A program catches what it can do something about."""
    with pytest.raises(ConnectError, match="^connection refused$"):
        Client(closed_port)
    with pytest.raises(ConnectTimeout, match="^connect timeout$"):
        Client(full_listener, connect_timeout=0.2)
    with pytest.raises(ConfigError, match="^port must be a number from 0 to 65535, not '70000'$"):
        Client(("127.0.0.1", 70000))
    with pytest.raises(ConfigError, match="^read_timeout must be above 0, not nan$"):
        Client(closed_port, read_timeout=float("nan"))
    broken = pytest.raises(SendError, match="^send data error: Connection reset by peer$")
    with serving(die_at_the_end) as address, Client(address, read_timeout=DEADLINE) as client, broken:
        client.finish()


def test_connecting_takes_no_longer_than_in_the_lecture() -> None:
    """Who says nothing waits 5 seconds for a connection, on the command line too, and for ever afterwards."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(Client).parameters.items()}

    assert (5.0, None) == (defaults["connect_timeout"], defaults["read_timeout"])
    assert b"(5; also" in run("--help")[1]


def test_main_returns_the_exit_code(closed_port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line can be called as a function."""
    assert 1 == main([closed_port, "ping"])
    assert ("", "connection refused\n") == capsys.readouterr()
