#!/usr/bin/env python3
"""What socketserver gets wrong, side by side with stdserve: the same few lines of code, run on the class of each.

    python examples/faults.py            all rows, half a minute
    python examples/faults.py 9 20       some of them
    python examples/faults.py --json     all, for a program to read

A row is one function, which makes a server of the class it is given, does to it what happens to servers, and returns
a number, the less the better. It runs twice, in a process of its own each time: some of these servers never come back,
and are killed when the row's deadline has passed. The exit code is 0 if stdserve keeps to the bar of every row.
Needs nothing but Python; rows that need fork or /proc show "-" where there is none.

The rows keep the numbers that the tests know the faults by; gh-N is an issue of github.com/python/cpython.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import dataclasses
import http.client
import http.server
import importlib.util
import io
import json
import multiprocessing
import os
import platform
import signal
import socket
import socketserver
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if importlib.util.find_spec("stdserve") is None:  # a fresh clone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import stdserve

LINUX = sys.platform == "linux"
FORKS = hasattr(os, "fork")

SIDES = ("socketserver", "stdserve")
#: The classes of both sides by mode.
CLASSES: dict[str, dict[str, Any]] = {
    "socketserver": {
        "thread": socketserver.ThreadingTCPServer,
        "fork": getattr(socketserver, "ForkingTCPServer", None),
    },
    "stdserve": {
        "thread": stdserve.ThreadServer,
        "fork": getattr(stdserve, "ForkServer", None) if FORKS else None,
    },
}

NEVER, CRASHED, NOT_HERE = "never", "crashed", "-"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row: what happens, how it is counted, what stdserve must not exceed, and the function that measures it.

    The deadline (seconds) is the same for both sides.
    """

    row: int
    what: str
    unit: str
    bar: float
    mode: str
    deadline: float
    runs_here: bool
    measure: Callable[[Any], float]


FAULTS: dict[int, Fault] = {}


def shows(
    row: int, what: str, unit: str, bar: float, mode: str = "thread", deadline: float = 20, runs_here: bool = True
) -> Callable[[Callable[[Any], float]], Callable[[Any], float]]:
    """Enter the decorated function in FAULTS."""

    def enter(measure: Callable[[Any], float]) -> Callable[[Any], float]:
        FAULTS[row] = Fault(row, what, unit, bar, mode, deadline, runs_here, measure)
        return measure

    return enter


# What the rows share. Nothing here waits with a timeout: a row that hangs is killed from outside.


class Greeter(socketserver.StreamRequestHandler):
    """A handler of two lines, as anyone might write it."""

    def handle(self) -> None:
        """Say hello, then wait until the client leaves."""
        self.wfile.write(b"hello\n")
        self.rfile.read()


def make(server_class: Any, handler: Any, max_conns: int | None = None) -> Any:
    """Make a server on a free port, with at most ``max_conns`` sessions where the class knows such a bound."""
    # Rows 1 and 4, the short backlog and the port that stays taken, would get into the way of the others.
    attributes: dict[str, Any] = {"request_queue_size": 128, "allow_reuse_address": os.name == "posix"}
    if max_conns is not None:
        attributes["max_children"] = max_conns  # what ForkingMixIn calls it; ThreadingMixIn has none
    tuned: Any = type(server_class.__name__, (server_class,), attributes)
    if issubclass(server_class, stdserve.ServerMixin):
        return tuned(("127.0.0.1", 0), handler, options=stdserve.Options(max_conns=max_conns))
    return tuned(("127.0.0.1", 0), handler)


def start(server: Any) -> Any:
    """Let the server serve in a thread."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def connect(server: Any) -> socket.socket:
    """Return a connection that the server may not have accepted yet."""
    return socket.create_connection(server.server_address)


def greet(server: Any) -> socket.socket:
    """Connect, and return when the server has said hello: there is a session now."""
    client = connect(server)
    client.recv(6)
    return client


def milliseconds_since(began: float) -> float:
    """Return the time since ``began``, a reading of the monotonic clock."""
    return 1000 * (time.monotonic() - began)


def settled(count: Callable[[], float]) -> float:
    """Return ``count()`` once it has been the same for half a second."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if (now := count()) != last:
            last, since = now, time.monotonic()
    return last


def status(field: str) -> int:
    """Return a number from /proc/self/status; sizes are in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0])


def end_of(server: Any, run: Callable[[], None], idle_clients: int, signum: int) -> float:
    """Run the server in a process of its own; return the milliseconds from the signal to the end of that process."""
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    greet(server).close()
    clients = [greet(server) for _ in range(idle_clients)]
    began = time.monotonic()
    assert process.pid is not None
    os.kill(process.pid, signum)
    process.join()
    for client in clients:
        client.close()
    return milliseconds_since(began)


# The rows.


@shows(9, "no descriptor left while a client waits", "accepts/s", bar=50, runs_here=os.name == "posix")
def out_of_descriptors(server_class: Any) -> float:
    """accept() fails at once, the listener stays readable, and serve_forever() does it again, silently, on a full core.

    Evidence: ``except OSError: return`` in BaseServer._handle_request_noblock; the same fault in libuv #690, ranch #36.
    """
    import resource

    server: Any = make(server_class, Greeter)
    accept, attempts = server.get_request, 0

    def counted() -> Any:
        nonlocal attempts
        attempts += 1
        return accept()

    server.get_request = counted
    waiting = connect(server)
    lowest_free = os.dup(waiting.fileno())
    os.close(lowest_free)
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, most))
    start(server)
    time.sleep(1)
    in_a_second = attempts
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    return in_a_second


@shows(14, "shutdown() of an idle server, median", "ms", bar=50)
def slow_shutdown(server_class: Any) -> float:
    """serve_forever() looks twice a second whether it is to stop: every test that uses a server waits for that.

    Evidence: gh-88932 (open); the test suite of web-platform-tests took 101 s with it, 37 s without.
    """

    def one() -> float:
        server = start(make(server_class, Greeter))
        greet(server).close()
        began = time.monotonic()
        server.shutdown()
        return milliseconds_since(began)

    return statistics.median(one() for _ in range(5))


@shows(18, "150 silent clients (stdserve: max_conns=50)", "threads", bar=60, runs_here=LINUX)
def unbounded_threads(server_class: Any) -> float:
    """Every client that connects costs a thread, and there is no limit to set.

    Evidence: odoo PR #42021, hermes-webui #5210 (2,385 threads, load 19).
    """
    server = start(make(server_class, Greeter, max_conns=50))
    clients = [connect(server) for _ in range(150)]
    threads = settled(lambda: status("Threads"))
    for client in clients:
        client.close()
    return threads


@shows(20, "a thread dies as it starts: next client served in", "ms", bar=1000, deadline=3)
def stillborn_thread(server_class: Any) -> float:
    """Thread.start() waits for a sign of life of the new thread, in the accept loop, for ever.

    It takes a moment without memory, which is played here.
    Evidence: gh-140746 (open), found at Odoo; patroni #3474 has it every few months.
    """
    server = start(make(server_class, Greeter))
    busy = greet(server)
    the_next_thread_dies()
    connect(server).close()
    began = time.monotonic()
    greet(server).close()
    served_in = milliseconds_since(began)
    busy.close()
    return served_in


def the_next_thread_dies() -> None:
    """Make the next thread raise MemoryError in the place of its first step, whoever starts it."""

    def die(*_: Any) -> None:
        raise MemoryError

    doom = [die]
    for module, name in (
        (_thread, "start_new_thread"),
        (threading, "_start_new_thread"),  # to 3.12
        (threading, "_start_joinable_thread"),  # from 3.13
    ):
        real: Any = getattr(module, name, None)

        def begin(first_step: Any, *args: Any, real: Any = real, **more: Any) -> Any:
            return real(doom.pop() if doom else first_step, *args, **more)

        setattr(module, name, begin)


@shows(22, "Ctrl-C while a client is idle: ended in", "ms", bar=500, deadline=3, runs_here=FORKS)
def endless_ctrl_c(server_class: Any) -> float:
    """server_close() waits for the threads of all clients, for as long as these please.

    Evidence: gh-75416, aws/chalice PR #687.
    """
    server = make(server_class, Greeter)

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt), server:
            server.serve_forever()

    return end_of(server, run, idle_clients=1, signum=signal.SIGINT)


@shows(25, "fork server at its limit: exit statuses", "lost of 5", bar=0, mode="fork", runs_here=FORKS)
def stolen_exit_status(server_class: Any) -> float:
    """At max_children the server calls waitpid(-1): it collects every child that ends, other people's too.

    Evidence: the comment in ForkingMixIn.collect_children admits it.
    """
    server = start(make(server_class, Greeter, max_conns=1))
    greet(server)
    programs = [subprocess.Popen(["sh", "-c", "exit 7"], stdout=subprocess.PIPE) for _ in range(5)]
    for program in programs:
        assert program.stdout is not None
        program.stdout.read()  # until it ends
    time.sleep(0.2)  # a thief needs a moment
    return sum(program.wait() != 7 for program in programs)


@shows(27, "fork server killed with -9: its port free in", "ms", bar=500, mode="fork", deadline=3, runs_here=FORKS)
def kept_port(server_class: Any) -> float:
    """The child of a session keeps the listener: the server cannot be started again until the last client has left.

    Evidence: ForkingMixIn.process_request, where the child closes nothing.
    """
    server = make(server_class, Greeter)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever)
    process.start()
    server.socket.close()
    client = greet(server)
    process.kill()
    process.join()
    began = time.monotonic()
    while not can_listen(server.server_address):
        time.sleep(0.01)
    client.close()
    return milliseconds_since(began)


def can_listen(address: Any) -> bool:
    """Tell whether a server could be started there."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()
        except OSError:
            return False
        return True


@shows(31, "SIGTERM handler that calls shutdown(): ended in", "ms", bar=500, deadline=3, runs_here=FORKS)
def deadlocked_shutdown(server_class: Any) -> float:
    """shutdown() waits for serve_forever(), which waits for the signal handler to return.

    Evidence: gh-83978; mrexodia/ida-pro-mcp PR #488 (774 processes that would not end, 28 GB of swap).
    """
    server = make(server_class, Greeter)

    def run() -> None:
        signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
        with server:
            server.serve_forever()

    return end_of(server, run, idle_clients=0, signum=signal.SIGTERM)


@shows(39, "a client resets its connection", "log lines", bar=0)
def noisy_disconnect(server_class: Any) -> float:
    """A peer that goes away is logged like a bug: a traceback on standard error.

    Evidence: 18 projects override handle_error for it, django PR #13743 among them.
    """
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        client = greet(start(make(server_class, Greeter)))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST
        client.close()
        return settled(lambda: len(stderr.getvalue().splitlines()))


@shows(43, "keep-alive reply of http.server, median", "ms", bar=5)
def delayed_reply(server_class: Any) -> float:
    """The body waits for the acknowledgement of the header (Nagle), which the client delays: 40 ms a reply.

    Evidence: gh-108736 (open).
    """

    class Hello(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"hello\n")

    client = http.client.HTTPConnection(*start(make(server_class, Hello)).server_address)

    def one() -> float:
        began = time.monotonic()
        client.request("GET", "/")
        client.getresponse().read()
        return milliseconds_since(began)

    return statistics.median(one() for _ in range(20))


@shows(44, "one line of 50 MB: memory", "MB more", bar=10, runs_here=LINUX)
def endless_line(server_class: Any) -> float:
    """rfile.readline() takes a line of any length into memory.

    Evidence: http.server passes a size to it everywhere; gh-119452 is a place that did not.
    """

    class ReadLine(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()

    megabyte = b"x" * 1_000_000
    with connect(start(make(server_class, ReadLine))) as client:
        before = status("VmHWM")
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                client.sendall(megabyte)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)  # until the handler is done
        return (status("VmHWM") - before) * 1024 / 1_000_000


@shows(45, "upload refused at its first line: replies", "lost of 20", bar=0)
def lost_reply(server_class: Any) -> float:
    """Closing a socket with unread input sends a reset: the client that is still sending gets that for a reply.

    Clients that report the failed write, as http.client does, never look for it.
    Evidence: RFC 7230, section 6.6; cherrypy #622, denoland/deno #21209.
    """

    class Refuse(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"too large\n")

    server = start(make(server_class, Refuse))

    def hears_why() -> bool:
        with connect(server) as client, contextlib.suppress(ConnectionError):
            client.sendall(b"upload\n")
            for _ in range(30):  # 3 MB in 30 ms, which is 100 MB a second
                client.sendall(bytes(100_000))
                time.sleep(0.001)
            return client.recv(10) == b"too large\n"
        return False

    return sum(not hears_why() for _ in range(20))


# Running them.


def measure_here(row: int, side: str) -> None:
    """Measure in this process, print the number, and leave whatever hangs or idles behind."""
    number = FAULTS[row].measure(CLASSES[side][FAULTS[row].mode])
    print(number, flush=True)
    os._exit(0)


def measure(fault: Fault, side: str) -> float | str:
    """Measure in a process of its own, which is killed at the deadline together with all that it has started."""
    if not fault.runs_here:
        return NOT_HERE
    command = [sys.executable, __file__, str(fault.row), "--measure", side]
    # Files, not pipes: an orphan that keeps a pipe open would keep us waiting.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, start_new_session=os.name == "posix")
        try:
            process.wait(fault.deadline)
        except subprocess.TimeoutExpired:
            return NEVER
        finally:
            end(process)
        output.seek(0)
        errors.seek(0)
        try:
            return float(output.read())
        except ValueError:
            sys.stderr.write(errors.read().decode(errors="replace"))
            return CRASHED


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it has started."""
    process.kill()
    if os.name == "posix":
        with contextlib.suppress(OSError):  # nothing is left of its group
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def keeps_to_bar(fault: Fault, number: float | str) -> bool:
    """Tell whether stdserve's number is as promised; a server that hung or crashed has none."""
    return number == NOT_HERE or (isinstance(number, float) and number <= fault.bar)


def shown(fault: Fault, number: float | str) -> str:
    """Return a number as the table has it."""
    if number == NEVER:
        return f"never, killed after {fault.deadline:g} s"
    if isinstance(number, str):
        return number
    return f"{number:,.1f}" if number < 10 and number % 1 else f"{number:,.0f}"


def line(*cells: object) -> str:
    """Return one line of the table, of at most 100 characters."""
    return "{:>3}  {:<48}  {:>10}  {:>23}  {:>8}".format(*cells)


def run(rows: list[int]) -> Iterator[tuple[Fault, float | str, float | str]]:
    """Yield each row with what either side has shown; say on a terminal what is going on."""
    for number in rows:
        fault = FAULTS[number]
        results = []
        for side in SIDES:
            if sys.stderr.isatty():
                sys.stderr.write(f"\r\x1b[Krow {fault.row}: {side} ...")
            results.append(measure(fault, side))
            if sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K")
        yield fault, results[0], results[1]


def main(argv: list[str] | None = None) -> int:
    """Print the rows; return 0 if stdserve keeps to the bar of each, otherwise 1."""
    parser = argparse.ArgumentParser(description="socketserver's faults, side by side with stdserve")
    parser.add_argument("rows", nargs="*", type=int, metavar="ROW", help=f"one of {', '.join(map(str, FAULTS))}")
    parser.add_argument("--json", action="store_true", help="print a list of rows, for a program to read")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.rows) - set(FAULTS):
        parser.error(f"no such row: {', '.join(map(str, unknown))}; there are {', '.join(map(str, FAULTS))}")
    if arguments.measure:
        measure_here(arguments.rows[0], arguments.measure)

    report, failed = [], []
    if not arguments.json:
        print(line("row", "what happens", "measured", *SIDES), flush=True)
    for fault, theirs, ours in run(arguments.rows or list(FAULTS)):
        if not keeps_to_bar(fault, ours):
            failed.append(f"row {fault.row}: stdserve does not keep to its bar, {fault.bar:g} {fault.unit}")
        if arguments.json:
            about = {"row": fault.row, "what": fault.what, "unit": fault.unit, "bar": fault.bar}
            report.append({**about, "socketserver": theirs, "stdserve": ours, "holds": keeps_to_bar(fault, ours)})
        else:
            print(line(fault.row, fault.what, fault.unit, shown(fault, theirs), shown(fault, ours)), flush=True)
    print(json.dumps(report, indent=1) if arguments.json else f"Python {platform.python_version()}, {sys.platform}")
    for failure in failed:
        print(failure, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
