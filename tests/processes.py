"""What the tests share: the server as a real process, clients on real sockets, waits with a deadline."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

#: Seconds after which a wait has failed; generous, for a machine that does other things too.
DEADLINE = 60.0


def eventually(condition: Callable[[], object], what: str = "", deadline: float = DEADLINE) -> None:
    """Return as soon as ``condition()`` is true; fail the test after ``deadline`` seconds."""
    until = time.monotonic() + deadline
    pause = threading.Event()
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"not within {deadline} s: {what or condition}")
        pause.wait(0.01)


def peer_program(name: str) -> str:
    """Return the path of another program to test against; skip without it, but fail in CI."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed, and this is CI")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def free_port() -> int:
    """A port that nobody has, below those that the kernel gives away: it stays free while its node is down."""
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", random.randrange(10_000, 32_000)))
            except OSError:
                continue
            return int(probe.getsockname()[1])


class ServerProcess:
    """``python -m stdserve`` on a free port, in a folder of its own, so that the installed package runs.

    Standard output goes to a file unless ``stdout`` says otherwise; standard error is read line by line.
    """

    def __init__(
        self,
        *arguments: str,
        port: str | None = "0",
        stdout: int | None = None,
        env: dict[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "stdserve"),
        **popen: Any,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stdserve-"))
        self._output = (self.folder / "stdout").open("wb")
        self.log: list[str] = []
        self._news = threading.Condition()
        words = [*command, *([] if port is None else [port]), *arguments]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=self._output if stdout is None else stdout,
            stderr=popen.pop("stderr", subprocess.PIPE),
            cwd=popen.pop("cwd", self.folder),
            # Lines to look for, as on a terminal.
            env={**os.environ, "STDSERVE_LOG_FORMAT": "text", **(env or {})},
            **popen,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(AssertionError):
                self.stop()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(DEADLINE)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._reader.join(DEADLINE)
        if self.process.stderr is not None:
            self.process.stderr.close()
        self._output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_log(self) -> None:
        for line in self.process.stderr or ():
            with self._news:
                self.log.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for_log(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Return the match in the ``count``-th line of the log that has ``pattern``."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.log if (match := re.search(pattern, line))]

        with self._news:
            arrived = self._news.wait_for(lambda: len(found()) >= count or not self._reader.is_alive(), DEADLINE)
            if not arrived or len(found()) < count:
                pytest.fail(f"no {pattern!r} in the log:\n" + "\n".join(self.log))
            return found()[count - 1]

    @property
    def pipe(self) -> IO[bytes]:
        """The reading end of its standard output, where that is a pipe."""
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def port(self) -> int:
        """The port the server says it listens on."""
        return int(self.wait_for_log(r"^listening on \S*:(\d+) ")[1])

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: IPv4 loopback and the port."""
        return "127.0.0.1", self.port

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> bytes:
        """What it has written to standard output so far."""
        return (self.folder / "stdout").read_bytes()

    def wait_for_output(self, data: bytes) -> None:
        """Return when ``data`` is in the output."""
        eventually(lambda: data in self.output, f"{data!r} in the output; log: {self.log}")

    def wait(self) -> int:
        """Return the exit code, once it has ended and its log is read to the end."""
        code = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return code

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(signum)
        return self.wait()


def connect(address: Any) -> socket.socket:
    """Return a connection, to (host, port) or the text ``unix:PATH``, whose every wait has a deadline."""
    if not isinstance(address, str):
        return socket.create_connection(address, DEADLINE)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    try:
        client.connect(address.removeprefix("unix:").replace("@", "\0", address.startswith("unix:@")))
    except BaseException:
        client.close()
        raise
    return client


def read_all(client: socket.socket) -> bytes:
    """Return what comes until EOF."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def exchange(address: Any, data: bytes, *, half_close: bool = True) -> bytes:
    """Send ``data``, say that it was all, and return the reply up to EOF."""
    with connect(address) as client:
        client.sendall(data)
        if half_close:
            with contextlib.suppress(OSError):  # a server that has closed already is told by what follows
                client.shutdown(socket.SHUT_WR)
        return read_all(client)


def reset(client: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def children_of(pid: int) -> list[int]:
    """Return the pids of the child processes of ``pid``, none if it has gone (Linux)."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    return [int(word) for word in found]


def descendants_of(pid: int) -> list[int]:
    """Return the pids of all processes below ``pid`` (Linux)."""
    found = []
    for child in children_of(pid):
        found += [child, *descendants_of(child)]
    return found


@contextlib.contextmanager
def stdin_of(data: bytes) -> Iterator[int]:
    """Give a descriptor from which ``data`` can be read."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()
