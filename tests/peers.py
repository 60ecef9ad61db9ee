"""Servers of a test's own, one session in a thread, most of them badly behaved; and the client as a real process."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from processes import DEADLINE, read_all, reset

from stdserve.addresses import Address
from stdserve.proxy import ProxyHeader, ProxyParser

CLIENT = [sys.executable, "-bb", "-W", "error", "-m", "stdserve.client"]

Session = Callable[[socket.socket], object]

#: Exit code, output, errors; None for what went elsewhere.
Result = tuple[int, Any, Any]


@contextlib.contextmanager
def serving(session: Session, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve one client with ``session`` in a thread; yield the address, at the end raise what went wrong there.

    ``host`` is numeric, or the whole address of a UNIX socket.
    """
    with listening(host) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(DEADLINE)

        def serve() -> None:
            with listener.accept()[0] as peer:
                peer.settimeout(DEADLINE)
                session(peer)

        served = pool.submit(serve)
        yield host if host.startswith("unix:") else str(Address(*listener.getsockname()[:2]))
        served.result(DEADLINE)


def listening(host: str, backlog: int | None = None) -> socket.socket:
    """Return a listener at any port of ``host``, or at a UNIX socket."""
    if not host.startswith("unix:"):
        return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(host.removeprefix("unix:").replace("@", "\0", host.startswith("unix:@")))
    listener.listen(10 if backlog is None else backlog)
    return listener


def over_tls(context: ssl.SSLContext, session: Session) -> Session:
    """Make a session one over TLS, for a server that is strict about how the client ends it."""

    def secured(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True, suppress_ragged_eofs=False) as stream:
            session(stream)
            with contextlib.suppress(OSError, ValueError):  # the client, or the session itself, may have closed
                stream.unwrap()

    return secured


def behind_proxy(headers: list[ProxyHeader], session: Session) -> Session:
    """Make a session one that begins with a header of the PROXY protocol, which is put into ``headers``."""

    def told(peer: socket.socket) -> None:
        parser = ProxyParser()
        while (header := parser.receive_data(peer.recv(parser.wanted))) is None:
            pass
        headers.append(header)
        session(peer)

    return told


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


@contextlib.contextmanager
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


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(Address(*listener.getsockname()))
