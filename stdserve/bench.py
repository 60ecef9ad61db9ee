"""Processes or threads? ``python -m stdserve.bench`` measures it, on this machine and for the handler at hand.

It starts servers as real processes in the modes asked for, loads them round by round, one after the other, checks that
each has done all of its work, and prints a table for each job and what follows from them.

Exit codes: 0 measured, 1 a server did not start or was not correct, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from shlex import quote

from .bench_load import SHORTEST_LINE
from .bench_report import NOUNS, Measured, advice, table
from .bench_runs import Plan, Traits, can_serve, measure, own_handler, probe
from .bench_servers import Choice
from .errors import ConfigError, StdserveError
from .flags import parse_count, parse_duration, parse_workers
from .settings import did_you_mean
from .terminal import say, settle
from .version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

__all__ = ["main"]

_DESCRIPTION = """\
Processes or threads? Measures it on this machine: starts servers in the modes asked for, loads them with lines and
sessions, checks that nothing was lost, and says which to take. Without --handler it measures the lines that stdserve
prints (bulk, sessions) and echoes (echo, idle).
"""

_EPILOG = """\
jobs:
  bulk      few clients send lines as fast as they can
  sessions  clients connect, send one line and its end, wait for the server's end
  echo      clients send a line and wait for its reply, again and again
  idle      silent connections: what memory each takes, how long an active client's replies take meanwhile

A handler of your own is first tried with two lines: what it prints is then checked in bulk and sessions, what it
replies in all jobs; one that does not reply leaves out echo. A server is left out where it has no way to do a job:
mode single serves one session at a time, fork has processes without workers, event serves no handler of others.

exit codes: 0 measured, 1 a server did not start or was not correct, 2 wrong usage
"""

_DEFAULT_MODES, _DEFAULT_WORKERS = "thread,fork,single,event", "0,2"
if not hasattr(os, "fork"):  # pragma: no cover - Windows
    _DEFAULT_MODES, _DEFAULT_WORKERS = "thread,single,event", "0"


@dataclass(frozen=True)
class _Given:
    """The command line, read."""

    jobs: tuple[str, ...]
    choices: tuple[Choice, ...]
    rounds: int
    plan: Plan
    handler: str | None
    json: bool


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are errors like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def _parse(argv: Sequence[str] | None) -> _Given:
    parser = _Parser(
        "python -m stdserve.bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    plan, quick = Plan(), "with --quick "
    add = parser.add_argument
    add("--version", action="version", version=f"stdserve {__version__}")
    add("--handler", metavar="TARGET", help="the request handler to measure, as module:Class (stdserve's own)")
    add("--jobs", metavar="JOB,...", default=",".join(NOUNS), help="what to measure (%(default)s)")
    add("--modes", metavar="MODE,...", default=_DEFAULT_MODES, help="modes of the server (%(default)s)")
    add("--workers", metavar="N,...", default=_DEFAULT_WORKERS, help="0 for none, auto: as many as CPUs (%(default)s)")
    add("--rounds", metavar="N", help=f"how often each is measured (3, {quick}1)")
    add("--seconds", metavar="TIME", help=f"how long each time: 500ms, 2s (1s, {quick}300ms)")
    add("--clients", metavar="N", help=f"clients at a time in sessions and echo ({plan.clients})")
    add("--streams", metavar="N", help=f"clients at a time in bulk ({plan.streams})")
    add("--idle", metavar="N", help=f"silent connections ({plan.idle}, {quick}50)")
    add("--length", metavar="BYTES", help=f"of a line, its LF included ({plan.length})")
    add("--quick", action="store_true", help="a rough answer in some ten seconds")
    add("--json", action="store_true", help="print all figures as JSON")
    given = parser.parse_args(argv)
    plan = replace(
        plan,
        clients=_count("--clients", given.clients, plan.clients),
        streams=_count("--streams", given.streams, plan.streams),
        idle=_count("--idle", given.idle, 50 if given.quick else plan.idle),
        length=_count("--length", given.length, plan.length, SHORTEST_LINE + 1),
        seconds=_seconds(given.seconds, 0.3 if given.quick else plan.seconds),
        warmup=0.05 if given.quick else plan.warmup,
    )
    jobs = _words("--jobs", given.jobs, NOUNS)
    modes = _words("--modes", given.modes, _DEFAULT_MODES.split(","))
    choices = _choices(modes, given.workers)
    rounds = _count("--rounds", given.rounds, 1 if given.quick else 3)
    return _Given(jobs, choices, rounds, plan, given.handler, given.json)


def _words(flag: str, text: str, known: Sequence[str] | dict[str, str]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(text.split(",")))
    for word in words:
        if word not in known:
            raise ConfigError(f"{flag}: {word!r} is none of {', '.join(known)}{did_you_mean(word, known)}")
    return words


def _count(flag: str, text: str | None, default: int, least: int = 1) -> int:
    return default if text is None else _number(flag, text, parse_count, least)


def _number(flag: str, text: str, parse: Callable[[str], int], least: int) -> int:
    try:
        number = parse(text)
    except ConfigError as error:
        raise ConfigError(f"{flag} {error}") from None
    if number < least:
        raise ConfigError(f"{flag} must be at least {least}, not {number}")
    return number


def _seconds(text: str | None, default: float) -> float:
    try:
        seconds = default if text is None else parse_duration(text)
    except ConfigError as error:
        raise ConfigError(f"--seconds {error}") from None
    if not 0 < seconds <= 60:
        raise ConfigError(f"--seconds must be above 0 and at most 60 seconds, not {text}")
    return seconds


def _choices(modes: Sequence[str], workers: str) -> tuple[Choice, ...]:
    """Return the servers, those without workers first; fork has none: processes of processes answer no question."""
    counts = sorted({_number("--workers", text, parse_workers, 0) for text in workers.split(",")})
    found = [Choice(mode, 0 if mode == "fork" else count) for count in counts for mode in modes]
    return tuple(dict.fromkeys(found))


def _fitting(given: _Given) -> _Given:
    """Leave out the mode that refuses the handler."""
    choices = tuple(choice for choice in given.choices if choice.mode != "event")
    if given.handler is None or choices == given.choices or can_serve(given.handler, "event"):
        return given
    return replace(given, choices=choices)


def _runs(given: _Given, traits: Traits | None) -> Iterator[tuple[int, str, Choice]]:
    """Yield what there is to do: each round goes through all servers, so that a slow moment meets all of them."""
    for turn in range(1, given.rounds + 1):
        for job in given.jobs:
            if job == "echo" and traits is not None and traits.replies == "none":
                continue
            yield from (
                (turn, job, choice) for choice in given.choices if choice.mode != "single" or job in _ONE_BY_ONE
            )


#: The jobs that a server can do that serves one session at a time.
_ONE_BY_ONE = ("bulk", "sessions")


def _measure_all(given: _Given, traits: Traits | None) -> dict[str, dict[str, list[Measured]]]:
    results: dict[str, dict[str, list[Measured]]] = {}
    runs = list(_runs(given, traits))
    if not given.choices:
        raise ConfigError("there is nothing to measure: mode event serves handlers that derive from LineHandler")
    if not runs:
        raise ConfigError("there is nothing to measure: single does bulk and sessions only, echo needs replies")
    terminal = sys.stderr is not None and sys.stderr.isatty()
    try:
        for number, (turn, job, choice) in enumerate(runs, 1):
            if terminal:
                say(f"\r\x1b[K[{number}/{len(runs)}] round {turn} of {given.rounds}: {job}, {choice}")
            handler, does = own_handler(job) if traits is None else (given.handler or "", traits)
            command = choice.command(handler, given.plan.at_a_time(job))
            results.setdefault(job, {}).setdefault(str(choice), []).append(measure(job, command, does, given.plan))
    finally:
        if terminal:
            say("\r\x1b[K")
    return results


def _command(given: _Given, name: str) -> str:
    (choice,) = (choice for choice in given.choices if str(choice) == name)
    handler = f" --handler {quote(given.handler)}" if given.handler else ""
    return f"python -m stdserve {choice.flags}{handler}"


def _show(given: _Given, results: dict[str, dict[str, list[Measured]]], seconds: float) -> None:
    said = advice(results, lambda name: _command(given, name))
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": parse_workers("auto"),
        "python": platform.python_version(),
        "stdserve": __version__,
    }
    if given.json:
        rounds = {
            job: {name: [asdict(one) for one in rounds] for name, rounds in servers.items()}
            for job, servers in results.items()
        }
        told: dict[str, Any] = {"machine": machine, "plan": asdict(given.plan), "results": rounds, "advice": said}
        print(json.dumps(told, indent=2))
        return
    try:
        "█".encode(getattr(sys.stdout, "encoding", None) or "ascii")  # no stdout at all, if it is closed
        full = "█"
    except UnicodeEncodeError:
        full = "#"
    print(", ".join(f"{key} {value}" for key, value in machine.items()) + f"; {seconds:.0f} s")
    for job, servers in results.items():
        print(f"\n{_title(job, given.plan)}")
        print("\n".join(table(job, servers, full)))
    if given.handler is None or "echo" in results or "echo" not in given.jobs:
        print()
    else:
        print("\necho was left out: the handler does not reply.\n")
    print("\n".join(said), flush=True)  # here, where it can still be said that it cannot be written


def _title(job: str, plan: Plan) -> str:
    return {
        "bulk": f"bulk: {plan.streams} clients send lines of {plan.length} bytes",
        "sessions": f"sessions: of one line, {plan.clients} at a time",
        "echo": f"echo: {plan.clients} clients send lines of {plan.length} bytes, and wait for the reply to each",
        "idle": f"idle: {plan.idle} silent connections, and one active client (the less memory the better)",
    }[job]


def _run(given: _Given) -> bool:
    """Measure and show; tell whether all was correct."""
    started = time.monotonic()
    traits = None if given.handler is None else probe(given.handler)
    fitting = _fitting(given)
    results = _measure_all(fitting, traits)
    _show(fitting, results, time.monotonic() - started)
    if fitting != given and not given.json:
        print("event was left out: it serves handlers that derive from LineHandler.", flush=True)
    return not any(one.problem for servers in results.values() for rounds in servers.values() for one in rounds)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench's command line (``sys.argv`` by default) and return its exit code; errors go to stderr."""
    try:
        return 0 if _run(_parse(argv)) else 1
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells count
    except (StdserveError, OSError) as error:  # OSError: the reader of the tables has gone, no processes are left
        say(f"stdserve.bench: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        settle()


if __name__ == "__main__":
    raise SystemExit(main())
