"""stdserve beside its peers, in one run with one generator: ``python tests/benchmarks/compare.py``.

Prints a table (markdown); ``--readme FILE`` writes it between the two markers of that file instead, ``--svg FILE``
draws it. Peers that are not installed are left out. ``tox -e benchmark`` does it all for the README.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chart import Panel, chart

from stdserve.bench_report import Measured, amount, middle, span
from stdserve.bench_runs import Plan, measure, own_handler
from stdserve.bench_servers import Choice

PEERS = Path(__file__).parent / "peers"
BEGIN, END = "<!-- generated: benchmark -->\n", "<!-- end: benchmark -->\n"

Results = Mapping[str, Mapping[str, Sequence[Measured]]]


@dataclass(frozen=True)
class Server:
    """One to compare: ``command(job, clients)``; which package it needs; whether it serves one client at a time."""

    command: Callable[[str, int], list[str]]
    package: str = "socketserver"
    one_by_one: bool = False
    ours: bool = False


def _ours(mode: str, workers: int = 0) -> Server:
    choice = Choice(mode, workers)
    return Server(lambda job, clients: choice.command(own_handler(job)[0], clients), "stdserve", mode == "single", True)


def _peer(script: str, *words: str, package: str = "socketserver", one_by_one: bool = False) -> Server:
    def command(job: str, clients: int) -> list[str]:
        what = "echo" if own_handler(job)[1].replies == "echo" else "print"
        return [sys.executable, str(PEERS / script), what, *words]

    return Server(command, package, one_by_one)


SERVERS = {
    "stdserve single": _ours("single"),
    "stdserve thread": _ours("thread"),
    "stdserve thread, 2 workers": _ours("thread", 2),
    "stdserve event": _ours("event"),
    "stdserve event, 2 workers": _ours("event", 2),
    "stdserve fork": _ours("fork"),
    "TCPServer": _peer("stock.py", "TCPServer", one_by_one=True),
    "ThreadingTCPServer": _peer("stock.py", "ThreadingTCPServer"),
    "ForkingTCPServer": _peer("stock.py", "ForkingTCPServer"),
    "asyncio": _peer("loops.py", "asyncio", package="asyncio"),
    "uvloop": _peer("loops.py", "uvloop", package="uvloop"),
    "gevent": _peer("green.py", package="gevent"),
    "Twisted": _peer("reactor.py", package="twisted"),
}

JOBS = ("bulk", "sessions", "echo", "idle")

#: The columns: title, job, how to get a figure, and whether it is what the chart shows, by what name.
COLUMNS: list[tuple[str, str, Callable[[Measured], float], str]] = [
    ("lines/s", "bulk", lambda one: one.rate, "lines a second"),
    ("CPU s/M lines", "bulk", lambda one: one.cpu * 1e6, ""),
    ("sessions/s", "sessions", lambda one: one.rate, "sessions a second"),
    ("p99 ms", "sessions", lambda one: one.p99 * 1e3, ""),
    ("CPU us each", "sessions", lambda one: one.cpu * 1e6, ""),
    ("round trips/s", "echo", lambda one: one.rate, "round trips a second"),
    ("p99 ms", "echo", lambda one: one.p99 * 1e3, ""),
    ("KiB each", "idle", lambda one: one.memory, "KiB for each silent connection (less is better)"),
]


def run(names: Sequence[str], rounds: int, plan: Plan) -> dict[str, dict[str, list[Measured]]]:
    """Measure: in each round every job of every server."""
    results: dict[str, dict[str, list[Measured]]] = {job: {name: [] for name in names} for job in JOBS}
    for turn in range(rounds):
        for job in JOBS:
            for name in names:
                server = SERVERS[name]
                if server.one_by_one and job in ("echo", "idle"):
                    continue
                print(f"round {turn + 1} of {rounds}: {job}, {name}", file=sys.stderr)
                command = server.command(job, plan.at_a_time(job))
                results[job][name].append(measure(job, command, own_handler(job)[1], plan))
    return results


def markdown(results: Results, plan: Plan, rounds: int) -> str:
    """Return the table, with what was measured above it and what was wrong below."""
    names = list(results[JOBS[0]])
    lines = [
        f"Medians (least-most) of {rounds} rounds of {plan.seconds:g} s, each of which had every server in turn; Python"
        f" {platform.python_version()}, {platform.system()}, {os.cpu_count()} CPUs shared with the generator. `bulk`:"
        f" {plan.streams} clients, lines of {plan.length} bytes. `sessions` (of one line) and `echo`: {plan.clients}"
        f" clients at a time. `idle`: {plan.idle} silent connections. stdserve keeps its log, as it does by default; of"
        " `socketserver` the backlog is raised. Memory is PSS, where pages that processes share count once.",
        "",
        "| | " + " | ".join(f"`{job}`: {title}" for title, job, _, _ in COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    notes = []
    for name in names:
        cells = []
        for _, job, figure, drawn in COLUMNS:
            rounds_of = results[job][name]
            wrong = [one.problem for one in rounds_of if one.problem]
            note = f"{name}, {job}: {len(wrong)} of {len(rounds_of)} rounds were not correct: {wrong[:1]}"
            if wrong and drawn:
                notes.append(note)
            right = len(wrong) < len(rounds_of)
            cell = amount(middle(rounds_of, figure)) if right else "wrong" if wrong else "-"
            cells.append(cell + (f" ({span(rounds_of, figure)})" if right and drawn and rounds > 1 else ""))
        shown = f"**{name}**" if SERVERS[name].ours else name
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def draw(results: Results) -> str:
    """Return the chart."""
    panels = []
    for _, job, figure, title in COLUMNS:
        if title:
            values = {name: middle(rounds, figure) for name, rounds in results[job].items() if rounds}
            panels.append(Panel(title, values))
    return chart(panels, {name for name in SERVERS if SERVERS[name].ours})


def replace_section(readme: Path, text: str) -> None:
    """Put ``text`` between the markers of a file."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{readme} has no {BEGIN.strip()} ... {END.strip()}")
    readme.write_text(before + begin + text + end + after, encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--idle", type=int, default=100)
    parser.add_argument("--readme", type=Path, help="the file whose section is to be replaced")
    parser.add_argument("--svg", type=Path, help="the file to draw to")
    given = parser.parse_args()
    asked = [name for name in SERVERS if name in given.servers]
    names = [name for name in asked if importlib.util.find_spec(SERVERS[name].package)]
    plan = replace(Plan(), clients=given.clients, idle=given.idle, seconds=given.seconds)
    results = run(names, given.rounds, plan)
    text = markdown(results, plan, given.rounds)
    if given.svg:
        given.svg.write_text(draw(results), encoding="utf-8")
    if given.readme:
        picture = f"![the table as bars]({given.svg})\n\n" if given.svg else ""
        replace_section(given.readme, picture + text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
