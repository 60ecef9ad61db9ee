"""One session of the client's command line, with servers that misbehave: each test is a process, or a Transfer."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import (
    die_at_the_end,
    echo,
    end_after_line,
    ended,
    read_until,
    run,
    running,
    serving,
    shout,
    terminal,
)
from processes import DEADLINE, read_all, reset

from stdserve.errors import SendError, SendTimeout
from stdserve.transfer import Transfer

#: More than the kernel's buffers between two processes hold.
LARGE = 50_000_000

#: The client's end of a connection and the server's.
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that no buffer between client and server swallows, with lines as texts have them."""
    path = tmp_path_factory.mktemp("client") / "large"
    line = b"Twas brillig, and the slithy toves did gyre and gimble in the wabe\n"
    path.write_bytes((line * (LARGE // len(line) + 1))[:LARGE])
    return path


# Sending


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
