"""One run of the bench: a server started, loaded, measured, stopped, and what it has done checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from .bench_load import SHORTEST_LINE, Load, Task, line_of
from .bench_output import check_bulk, check_sessions, has_lines
from .bench_report import Measured
from .bench_servers import PATIENCE, Choice, RunningServer
from .connection import Client
from .errors import ConfigError, StartError, StdserveError
from .interrupts import hold_interrupts

__all__ = ["Plan", "Traits", "can_serve", "measure", "own_handler", "probe"]


@dataclass(frozen=True)
class Traits:
    """What a handler does with a line: whether it prints it, and what it replies: "none", "line" or "echo"."""

    prints: bool
    replies: str


@dataclass(frozen=True)
class Plan:
    """How much load: ``clients`` at a time in sessions and echo, ``streams`` in bulk, ``idle`` silent connections.

    ``length``: bytes of a line with its LF. ``seconds`` are measured, after ``warmup`` seconds that are not.
    """

    clients: int = 16
    streams: int = 4
    idle: int = 100
    length: int = 64
    seconds: float = 1.0
    warmup: float = 0.1
    deadline: float = PATIENCE

    def task(self, job: str, port: int, traits: Traits) -> Task:
        """Return the load of a job."""
        return Task(
            job, port, self.at_a_time(job), self.length, self.seconds, self.warmup, traits.replies, self.deadline
        )

    def at_a_time(self, job: str) -> int:
        """Return the number of connections of a job."""
        return {"bulk": self.streams, "idle": self.idle}.get(job, self.clients)


def own_handler(job: str) -> tuple[str, Traits]:
    """Return which of our own handlers does a job where no other is asked for."""
    if job in ("bulk", "sessions"):
        return "stdserve:PrintHandler", Traits(prints=True, replies="none")
    return "stdserve:EchoHandler", Traits(prints=True, replies="echo")


def probe(handler: str) -> Traits:
    """Run a handler for one session of two lines, and see what it does with them.

    Raises StartError where it does not start, or does not end its session at the end of its input.
    """
    lines = [line_of(0, number, 4 * SHORTEST_LINE) for number in range(2)]
    with _folder() as folder, RunningServer(Choice("thread").command(handler, 1), folder) as server:
        try:
            with Client(("127.0.0.1", server.port), read_timeout=PATIENCE) as client:
                client.sock.sendall(b"".join(lines))
                reply = client.finish()
        except (StdserveError, OSError) as error:
            raise StartError(f"--handler {handler} does not answer two lines and their end: {error}") from None
        server.stop()
        replies = "echo" if reply == b"".join(lines) else "line" if reply.count(b"\n") == len(lines) else "none"
        return Traits(has_lines(server.output, lines), replies)


def can_serve(handler: str, mode: str) -> bool:
    """Tell whether a server of ``mode`` takes the handler; raise StartError where it does not start all the same."""
    try:
        with _folder() as folder, RunningServer(Choice(mode).command(handler, 1), folder):
            return True
    except ConfigError:
        return False


def measure(job: str, command: Sequence[str], traits: Traits, plan: Plan) -> Measured:
    """Start the server of ``command``, give it the load of a job, and return what it did.

    Raises StartError where it does not start.
    """
    with _folder() as folder, RunningServer(command, folder) as server:
        load, cpu, memory = _loaded(server, job, traits, plan)
        life = server.stop()
        problems = [*load.problems, server.problem, _check(job, server.output, load, traits, plan)]
    if cpu is None:  # no /proc: that of its whole life, the start included
        cpu = life * plan.seconds / (plan.seconds + plan.warmup)
    seconds = load.seconds or 1.0
    return Measured(
        rate=load.units / seconds,
        megabytes=load.units * plan.length / seconds / 1e6,
        cpu=cpu / max(1, load.units),
        p50=load.p50,
        p99=load.p99,
        server_cores=cpu / seconds,
        client_cores=load.cpu / seconds,
        memory=memory,
        problem="; ".join(filter(None, problems)),
    )


def _loaded(server: RunningServer, job: str, traits: Traits, plan: Plan) -> tuple[Load, float | None, float]:
    """Return the load that a generator has put on the server, its CPU seconds, its KiB for each silent connection."""
    words = json.dumps(asdict(plan.task(job, server.port, traits)))
    command = [sys.executable, "-m", "stdserve.bench_load", words]
    with ExitStack() as ended:
        with hold_interrupts():
            generator = ended.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            ended.push(partial(_break_off, generator))
        said, told = generator.stdout, generator.stdin
        assert said is not None and told is not None
        sizes: list[float] = []
        before = None
        while (text := said.readline()) == "ready\n":
            if job == "idle":
                if traits.replies == "none":
                    server.wait_for_sessions(plan.idle if sizes else plan.idle // 2)
                sizes.append(server.memory())
            before = server.cpu()
            told.write("go\n")
            told.flush()
        after = server.cpu()
    cpu = None if before is None or after is None else after - before
    memory = (sizes[-1] - sizes[0]) / (plan.idle - plan.idle // 2) if sizes else 0.0
    return (Load(**json.loads(text)) if text else Load(problems=["the generator broke off"])), cpu, memory


def _break_off(process: subprocess.Popen[str], kind: type[BaseException] | None, *_: object) -> None:
    if kind is not None:
        process.kill()


def _check(job: str, output: Path, load: Load, traits: Traits, plan: Plan) -> str:
    """Return what is wrong with the output; of a handler that prints nothing only the replies were checked."""
    if not traits.prints or job not in ("bulk", "sessions") or not load.sent:
        return ""
    if job == "bulk":
        return check_bulk(output, load.sent, plan.length)
    return check_sessions(output, sum(count for (count,) in load.sent))


@contextmanager
def _folder() -> Iterator[Path]:
    """Give a folder for the server's files, in memory where the system has one there: a disk is not the question."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(
        prefix="stdserve-bench-", dir=memory if os.access(memory, os.W_OK) else None
    ) as name:
        yield Path(name)
