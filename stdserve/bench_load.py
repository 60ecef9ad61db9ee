"""The load of the bench, from one process and one thread: lines, sessions, round trips, silent connections.

Run as a program of its own (``python -m stdserve.bench_load TASK``, a task as JSON) it warms the server up, says
``ready`` on standard output, waits for a line on standard input, does the work, and ends with its ``Load`` as JSON.
It promises nothing about speed and tells what it costs: compare its CPU seconds with the server's.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

__all__ = ["JOBS", "SHORTEST_LINE", "Load", "Task", "line_of", "lines_per_block", "perform", "session_line"]

#: Bytes of a client's lines that are made once and sent again and again.
BLOCK = 262144

#: The most bytes of one bulk run and the most sessions of one run: the output has room in memory, and no run takes all
#: of the ports that the client's side may use.
MOST_BYTES = 1 << 30
MOST_SESSIONS = 20_000

#: Bytes of a line's own mark ("007 00002a") and its LF.
SHORTEST_LINE = 11

_WORDS = b" ping from the client, a line like many others"


@dataclass(frozen=True)
class Task:
    """What to do: ``job`` against 127.0.0.1:``port`` with ``clients`` at a time for ``seconds``.

    ``length``: bytes of a line, its LF included. ``replies``: "none", "line" (one to each line, whatever it says) or
    "echo" (the line itself). ``deadline``: seconds to wait for what is still missing at the end.
    """

    job: str
    port: int
    clients: int = 4
    length: int = 64
    seconds: float = 1.0
    warmup: float = 0.1
    replies: str = "echo"
    deadline: float = 30.0


@dataclass
class Load:
    """What was done: ``units`` (lines, sessions or round trips) in ``seconds`` of wall time, ``cpu`` seconds of ours.

    ``sent``: for each stretch, the warm-up first, the lines that each client sent, or the number of sessions.
    ``p50`` and ``p99``: seconds of a session or a round trip. ``problems``: what was not as it should be.
    """

    seconds: float = 0.0
    units: int = 0
    cpu: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    sent: list[list[int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.latencies: list[float] = []

    def complain(self, problem: str) -> None:
        """Note a problem."""
        if problem not in self.problems:
            self.problems.append(problem)


def line_of(client: int, number: int, length: int) -> bytes:
    """Return a line that no other client and no other ``number`` has, of ``length`` bytes with its LF."""
    mark = b"%03x %06x" % (client, number)
    text = mark + _WORDS * (length // len(_WORDS) + 1)
    return text[: length - 1] + b"\n"


def session_line(number: int) -> bytes:
    """Return the line of the ``number``-th session."""
    return b"session %d says one line\n" % number


def lines_per_block(length: int) -> int:
    """Return how many lines a client sends before it begins again with its first."""
    return max(1, BLOCK // length)


class _Clients:
    """Open sockets and who waits for them."""

    def __init__(self, task: Task, load: Load, started: float, seconds: float) -> None:
        self.task, self.load = task, load
        self.end = started + seconds
        self.give_up = self.end + task.deadline
        self.selector = selectors.DefaultSelector()

    def __enter__(self) -> _Clients:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for key in list(self.selector.get_map().values()):
            self.drop(key.fileobj)  # type: ignore[arg-type]
        self.selector.close()

    def drop(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)
        sock.close()

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.task.port), self.task.deadline)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock

    def ready(self) -> Iterator[tuple[socket.socket, Any, int]]:
        """Yield who can go on: socket, what was registered with it, for what; until nobody is left, or the deadline."""
        while self.selector.get_map():
            left = self.give_up - time.monotonic()
            events = self.selector.select(max(0.0, min(left, 1.0)))
            yield from ((key.fileobj, key.data, mask) for key, mask in events)  # type: ignore[misc]
            if not events and left <= 0:
                self.load.complain(f"{len(self.selector.get_map())} sessions did not end in {self.task.deadline:g} s")
                return


@cache
def _block_of(client: int, length: int) -> memoryview:
    return memoryview(b"".join(line_of(client, line, length) for line in range(lines_per_block(length))))


class _Flow:
    """One client of the bulk job: sends its block again and again, counts the replies."""

    def __init__(self, number: int, length: int) -> None:
        self.length, self.block = length, _block_of(number, length)
        self.position = self.sent = self.replies = 0
        self.ended = False

    def send(self, sock: socket.socket, more: bool) -> bool:
        """Send what the socket takes; without ``more`` to come, tell whether the last line is whole."""
        end = len(self.block) if more else -(-self.position // self.length) * self.length
        count = sock.send(self.block[self.position : end]) if end > self.position else 0
        self.sent += count
        self.position = (self.position + count) % len(self.block)
        return not more and self.sent % self.length == 0

    def read(self, sock: socket.socket) -> bool:
        """Count replies; tell whether this was their end."""
        data = sock.recv(65536)
        self.replies += data.count(b"\n")
        return not data


def _bulk(task: Task, load: Load, seconds: float) -> int:
    """Send lines through a few connections; the time ends when the server has ended the last of them."""
    flows = [_Flow(number, task.length) for number in range(task.clients)]
    started = time.monotonic()
    most = MOST_BYTES // task.clients
    with _Clients(task, load, started, seconds) as clients:
        for flow in flows:
            sock = clients.connect()
            # A server that is slow shall not have minutes of work in the kernel when the time is over.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK)
            clients.selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, flow)
        for sock, flow, events in clients.ready():
            try:
                if events & selectors.EVENT_WRITE:
                    more = time.monotonic() < clients.end and flow.sent < most
                    if flow.send(sock, more):
                        flow.ended = True
                        sock.shutdown(socket.SHUT_WR)
                        clients.selector.modify(sock, selectors.EVENT_READ, flow)
                if events & selectors.EVENT_READ and flow.read(sock):
                    if not flow.ended:
                        load.complain("the server ended a session that was sending")
                    clients.drop(sock)
            except OSError as error:
                load.complain(f"a session broke off: {error.strerror}")
                clients.drop(sock)
    load.seconds = time.monotonic() - started
    load.sent.append([flow.sent // task.length for flow in flows])
    if task.replies != "none" and any(flow.replies != flow.sent // task.length for flow in flows):
        load.complain("the replies are not as many as the lines")
    return sum(load.sent[-1])


class _Call:
    """One session of the sessions job: a line, the end of input, and the server's own end."""

    def __init__(self, number: int) -> None:
        self.number, self.began, self.said = number, time.monotonic(), False
        self.replies = 0

    def speak(self, sock: socket.socket) -> bool:
        """Say it all at once, as soon as there is a connection; tell whether it could be said."""
        try:
            sock.send(session_line(self.number))
            sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return False
        self.said = True
        return True


def _begin(clients: _Clients, number: int) -> None:
    """Begin a session; there is nothing to wait for before its line, unless the server's backlog is full."""
    call = _Call(number)
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", clients.task.port))  # what is wrong with it shows when it is used
    try:
        said = call.speak(sock)
    except OSError as error:
        clients.load.complain(f"a session broke off: {error.strerror}")
        sock.close()
    else:
        clients.selector.register(sock, selectors.EVENT_READ if said else selectors.EVENT_WRITE, call)


def _sessions(task: Task, load: Load, seconds: float) -> int:
    """Connect, say a line, half-close, read to EOF: as many at a time as there are clients, one after the other."""
    first = sum(stretch[0] for stretch in load.sent)
    begun = finished = 0
    started = time.monotonic()
    with _Clients(task, load, started, seconds) as clients:
        for begun in range(1, task.clients + 1):
            _begin(clients, first + begun - 1)
        for sock, call, _ in clients.ready():
            try:
                if not call.said:
                    call.speak(sock)
                    clients.selector.modify(sock, selectors.EVENT_READ, call)
                    continue
                if data := sock.recv(4096):
                    call.replies += data.count(b"\n")
                    continue
                load.latencies.append(time.monotonic() - call.began)
                finished += 1
                if task.replies != "none" and call.replies != 1:
                    load.complain("a session did not get its reply")
            except OSError as error:
                load.complain(f"a session broke off: {error.strerror}")
            clients.drop(sock)
            if time.monotonic() < clients.end and begun < MOST_SESSIONS:
                _begin(clients, first + begun)
                begun += 1
    load.seconds = time.monotonic() - started
    load.sent.append([begun])
    return finished


class _Talk:
    """One client of the echo job: a line, its reply, the next line."""

    def __init__(self, number: int, task: Task) -> None:
        self.number, self.task = number, task
        self.line, self.reply, self.count, self.since = b"", b"", 0, 0.0

    def speak(self, sock: socket.socket) -> None:
        self.line, self.reply = line_of(self.number, self.count, self.task.length), b""
        self.since = time.monotonic()
        sock.send(self.line)

    def listen(self, sock: socket.socket) -> bool:
        """Read; tell whether the reply is there. Raises ConnectionError at the end of the session."""
        data = sock.recv(65536)
        if not data:
            raise ConnectionError(0, "the server ended a session that was talking")
        self.reply += data
        if not self.reply.endswith(b"\n"):
            return False
        self.count += 1
        return True


def _talk(task: Task, load: Load, talks: list[_Talk], seconds: float) -> int:
    """Send lines and wait for their replies; the number of round trips."""
    started = time.monotonic()
    with _Clients(task, load, started, seconds) as clients:
        for talk in talks:
            sock = clients.connect()
            clients.selector.register(sock, selectors.EVENT_READ, talk)
            talk.speak(sock)
        for sock, talk, _ in clients.ready():
            try:
                if not talk.listen(sock):
                    continue
                now = time.monotonic()
                load.latencies.append(now - talk.since)
                if task.replies == "echo" and talk.reply != talk.line:
                    load.complain("a reply is not the line that was sent")
                if now < clients.end:
                    talk.speak(sock)
                    continue
            except OSError as error:
                load.complain(f"a session broke off: {error.strerror}")
            clients.drop(sock)
    load.seconds = time.monotonic() - started
    return sum(talk.count for talk in talks)


def _echo(task: Task, load: Load, seconds: float) -> int:
    return _talk(task, load, [_Talk(number, task) for number in range(task.clients)], seconds)


def _active(task: Task, load: Load, seconds: float) -> int:
    """Be the one client that is not silent; where the server does not reply, nobody is."""
    return 0 if task.replies == "none" else _talk(task, load, [_Talk(0, task)], seconds)


def _silent(task: Task, load: Load, count: int, stack: ExitStack) -> None:
    """Open connections that say nothing more; each is known to be served if the server replies."""
    for number in range(count):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", task.port), task.deadline))
        if task.replies != "none":
            sock.sendall(line_of(number, 0, task.length))
            if not sock.recv(65536):
                load.complain("the server ended a silent session")


#: What each job does for some seconds; it returns how many units it did.
JOBS: dict[str, Callable[[Task, Load, float], int]] = {
    "bulk": _bulk,
    "sessions": _sessions,
    "echo": _echo,
    "idle": _active,
}


def perform(task: Task, ready: Callable[[], None]) -> Load:
    """Do ``task``: warm up, call ``ready()``, do the work that is measured.

    Of the silent connections of "idle" half are open at a first ``ready()``, all at a second: what the first session
    of a process costs is not the price of a connection. Raises OSError where nobody listens.
    """
    work, load = JOBS[task.job], Load()
    with ExitStack() as stack:
        if task.warmup:
            work(task, load, task.warmup)
        if task.job == "idle":
            _silent(task, load, task.clients // 2, stack)
            ready()
            _silent(task, load, task.clients - task.clients // 2, stack)
        load.latencies = []
        ready()
        before = time.process_time()
        load.units = work(task, load, task.seconds)
        load.cpu = time.process_time() - before
    if latencies := sorted(load.latencies):
        load.p50, load.p99 = (latencies[int(part * (len(latencies) - 1))] for part in (0.5, 0.99))
    return load


def main(arguments: list[str], said: IO[str], told: IO[str]) -> None:
    """Perform the task that is the only argument; ``said`` is read, ``told`` is written."""

    def ready() -> None:
        told.write("ready\n")
        told.flush()
        said.readline()

    try:
        load = perform(Task(**json.loads(arguments[0])), ready)
    except OSError as error:
        load = Load(problems=[f"the server could not be reached: {error.strerror or error}"])
    told.write(json.dumps(asdict(load)) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is the bench's affair, and it ends us
    main(sys.argv[1:], sys.stdin, sys.stdout)
