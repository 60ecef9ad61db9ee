"""The client's command line: its arguments, exit codes and errors; each test is a process and one session."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
from peers import CLIENT, closed_port, echo, ended, full_listener, run, running, serving
from processes import DEADLINE, read_all

from stdserve.client import main


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


def test_the_header_of_a_proxy_comes_first() -> None:
    """``--proxy-protocol`` sends one, ``--proxy-source`` says whose the connection is said to be."""
    with serving(lambda peer: peer.sendall(read_all(peer))) as address:
        port = address.rpartition(":")[2]
        result = run(address, "ping", "--proxy-protocol", "v1", "--proxy-source", "192.0.2.1:4711")
    assert (0, f"PROXY TCP4 192.0.2.1 127.0.0.1 4711 {port}\r\nping\n".encode(), b"") == result


def test_nobody_listens() -> None:
    """A closed port is ``connection refused``."""
    assert (1, b"", b"connection refused\n") == run(closed_port(), "ping")


def test_a_server_that_does_not_accept() -> None:
    """No answer to the connection attempt is ``connect timeout``, after the time asked for."""
    with full_listener() as address:
        start = time.monotonic()

        assert (1, b"", b"connect timeout\n") == run(address, "ping", "--connect-timeout", "300ms")
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


@pytest.mark.parametrize(
    ("closed", "message", "code", "error"),
    [
        (">&-", "ping", 1, b"output error: standard output is closed\n"),
        ("<&-", None, 2, b"there is no MESSAGE to send, and standard input is closed\n"),
        ("2>&-", "--wait", 2, b""),
    ],
    ids=["stdout", "stdin", "stderr"],
)
def test_closed_descriptors(closed: str, message: str | None, code: int, error: bytes) -> None:
    """A standard stream that is closed is never mistaken for the socket that takes its number."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *CLIENT]

    assert (code, b"", error) == run(closed_port(), *filter(None, [message]), command=command)


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
        (["[::1"], "address must be HOST:PORT, "),
        (["127.0.0.1", "ping", "--wait"], "unrecognized arguments: --wait"),
        (["127.0.0.1", "ping", "--read-timeout", "soon"], "argument --read-timeout: must be a duration"),
        (["127.0.0.1", "ping", "--connect-timeout=-1"], "argument --connect-timeout: must be a duration"),
        (["127.0.0.1", "ping", "--connect-timeout", "0"], "connect_timeout must be above 0, not 0"),
        (["127.0.0.1", "ping", "--read-timeout", "0s"], "read_timeout must be above 0, not 0"),
        (["127.0.0.1", "ping", "--proxy-protocol", "v3"], "argument --proxy-protocol: invalid choice: 'v3'"),
        (["127.0.0.1", "ping", "--proxy-source", "127.0.0.1"], "--proxy-source needs --proxy-protocol"),
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


def test_main_returns_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line can be called as a function."""
    assert 1 == main([closed_port(), "ping"])
    assert ("", "connection refused\n") == capsys.readouterr()
