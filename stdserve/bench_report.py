"""What the bench has measured, as a table with bars, and as advice: pure functions of the measurements.

A server is as fast as the median of its rounds. Two of them differ only where their rounds do not overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

__all__ = ["COLUMNS", "NOUNS", "Measured", "Results", "advice", "amount", "middle", "span", "table"]

#: A difference that shows with one round only may be chance up to this ratio, one between many rounds up to the other.
CHANCE_OF_ONE, CHANCE_OF_MANY = 1.15, 1.05

#: Cores of the generator from which on the server may not have been what was measured.
BUSY = 0.85

BAR = 24


@dataclass(frozen=True)
class Measured:
    """One round of one server: ``rate`` in units a second, ``p50`` and ``p99`` in seconds, CPU in seconds a unit.

    ``server_cores`` and ``client_cores``: CPU seconds a second of the server and of the generator. ``memory``: KiB for
    each silent connection. ``problem``: what was not as it should be, empty if nothing.
    """

    rate: float = 0.0
    megabytes: float = 0.0
    cpu: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    server_cores: float = 0.0
    client_cores: float = 0.0
    memory: float = 0.0
    problem: str = ""


#: By job and server, its rounds.
Results = Mapping[str, Mapping[str, Sequence[Measured]]]

#: What a unit of each job is called.
NOUNS = {"bulk": "lines", "sessions": "sessions", "echo": "round trips", "idle": "silent connections"}


def amount(value: float) -> str:
    """Return a number for people: three digits, then k, M or G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            return f"{value / limit:#.3g}".rstrip(".") + unit
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"


#: The columns of each job after the first, which is what the servers are ordered by: title, and how to get its figure.
_LATENCY: list[tuple[str, Callable[[Measured], float]]] = [
    ("p50 ms", lambda one: one.p50 * 1e3),
    ("p99 ms", lambda one: one.p99 * 1e3),
]
COLUMNS: dict[str, list[tuple[str, Callable[[Measured], float]]]] = {
    "bulk": [("MB/s", lambda one: one.megabytes), ("CPU s/M lines", lambda one: one.cpu * 1e6)],
    "sessions": [*_LATENCY, ("CPU us each", lambda one: one.cpu * 1e6)],
    "echo": [*_LATENCY, ("CPU us each", lambda one: one.cpu * 1e6)],
    "idle": [("active p50 ms", lambda one: one.p50 * 1e3), ("active p99 ms", lambda one: one.p99 * 1e3)],
}


def _figure(job: str) -> Callable[[Measured], float]:
    return (lambda one: one.memory) if job == "idle" else (lambda one: one.rate)


def middle(rounds: Sequence[Measured], figure: Callable[[Measured], float]) -> float:
    """Return the median of a figure over the rounds that were correct; 0 where none was."""
    return median([figure(one) for one in rounds if not one.problem] or [0.0])


def span(rounds: Sequence[Measured], figure: Callable[[Measured], float]) -> str:
    """Return the least and the most of a figure; of one round there is nothing to say."""
    figures = [figure(one) for one in rounds if not one.problem]
    return f"{amount(min(figures))}-{amount(max(figures))}" if len(figures) > 1 else "-"


def table(job: str, servers: Mapping[str, Sequence[Measured]], full: str = "#") -> list[str]:
    """Return the lines of a job's table, the best server first; ``full`` is what bars are drawn with.

    Below it stands what was wrong with any of the servers.
    """
    figure = _figure(job)
    first = "KiB each" if job == "idle" else f"{NOUNS[job]}/s"
    titles = ["server", first, "spread", *(title for title, _ in COLUMNS[job]), "server CPU", "generator CPU"]
    order = sorted(servers, key=lambda name: middle(servers[name], figure), reverse=job != "idle")
    most = max((middle(rounds, figure) for rounds in servers.values()), default=0.0)
    rows, bars, notes = [titles], [""], []
    for name in order:
        rounds = servers[name]
        value = middle(rounds, figure)
        cells = [amount(middle(rounds, one)) for _, one in COLUMNS[job]]
        cores = [f"{middle(rounds, one):.2f}" for one in (lambda m: m.server_cores, lambda m: m.client_cores)]
        rows.append([name, amount(value), span(rounds, figure), *cells, *cores])
        bars.append(full * round(BAR * value / most) if most else "")
        wrong = [one.problem for one in rounds if one.problem]
        if wrong:
            notes.append(f"{name}: NOT CORRECT in {len(wrong)} of {len(rounds)} rounds: {wrong[0]}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines = []
    for row, bar in zip(rows, bars, strict=True):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:], bar]).rstrip())
    return lines + notes


def _ratio(job: str, ours: Sequence[Measured], theirs: Sequence[Measured]) -> float | None:
    """Return how many times better the median of ours is (below 1: worse); None where that may be chance."""
    if job == "idle":
        ours, theirs = theirs, ours
    figure = _figure(job)
    mine, other = ([figure(one) for one in rounds] for rounds in (ours, theirs))
    ratio = median(mine) / max(median(other), 1e-9)
    chance = CHANCE_OF_ONE if min(len(mine), len(other)) == 1 else CHANCE_OF_MANY
    apart = min(mine) > max(other) or max(mine) < min(other)
    return ratio if apart and not 1 / chance < ratio < chance else None


def _candidates(results: Results) -> list[str]:
    """Return the servers that did the most of the jobs, all of them without a fault.

    Those of one client at a time only where there is nothing else: one silent client, and everybody waits.
    """
    names = list(dict.fromkeys(name for servers in results.values() for name in servers))
    jobs = {name: [servers[name] for servers in results.values() if name in servers] for name in names}
    right = [name for name in names if not any(one.problem for rounds in jobs[name] for one in rounds)]
    right = [name for name in right if not name.startswith("single")] or right
    most = max((len(jobs[name]) for name in right), default=0)
    return [name for name in right if len(jobs[name]) == most]


def _score(results: Results, names: Sequence[str], name: str) -> float:
    """Return the product of what share of the best of ``names`` a server reaches in each job."""
    shares = []
    for job, servers in results.items():
        if name in servers and (job != "idle" or len(results) == 1):
            speeds = {one: middle(servers[one], _figure(job)) or 1e-9 for one in names if one in servers}
            best = min(speeds.values()) if job == "idle" else max(speeds.values())
            shares.append(best / speeds[name] if job == "idle" else speeds[name] / best)
    return prod(shares)


def _times(ratio: float, noun: str) -> str:
    """Say a ratio: "2.1 times the", "1/3 of the", "the same"."""
    if 0.95 < ratio < 1.05:
        return f"the same {noun}"
    if ratio > 0.55:
        return f"{_two_digits(ratio)} times the {noun}"
    return f"1/{_two_digits(1 / ratio)} of the {noun}"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


def _against(results: Results, best: str, rival: str) -> str:
    """Return a sentence about ``best`` beside a rival: what it is better in, what is level, what it is worse in."""
    better: list[str] = []
    worse: list[str] = []
    level = []
    for job, servers in results.items():
        if best not in servers:
            continue
        ratio = _ratio(job, servers[best], servers[rival])
        if ratio is None:
            level.append(NOUNS[job])
        elif job == "idle":
            (better if ratio > 1 else worse).append(_times(1 / ratio, "memory for a silent connection"))
        else:
            ours, theirs = (middle(servers[name], lambda one: one.cpu) for name in (best, rival))
            cpu = f" ({_times(ours / theirs, 'CPU')} for each)" if theirs and ours else ""
            (better if ratio > 1 else worse).append(_times(ratio, NOUNS[job]) + cpu)
    parts = [", ".join(better)] * bool(better) + [f"level in {', '.join(level)}"] * bool(level)
    parts += [f"but {', '.join(worse)}"] * bool(worse)
    return f"Beside {rival}: {'; '.join(parts)}."


def _one_by_one(results: Results, best: str) -> list[str]:
    """Say where a server that takes one client after the other is better than ``best``, which takes many at once."""
    if best.startswith("single"):
        return []
    said = []
    for job, servers in results.items():
        for name, rounds in servers.items():
            ratio = _ratio(job, rounds, servers[best]) if best in servers and name.startswith("single") else None
            if ratio is not None and ratio > 1 and not any(one.problem for one in rounds):
                said.append(f"{name} does {_times(ratio, NOUNS[job])}, but one client at a time in each process.")
    return said


def advice(results: Results, command: Callable[[str], str]) -> list[str]:
    """Return sentences: which server to take, ``command(its name)``, and why; modest where the rounds overlap.

    A name is its mode, for workers followed by a comma and how many. Silent connections decide only where nothing
    else was measured.
    """
    names = _candidates(results)
    if not names:
        return ["No server was correct: mend the handler first, the speed of wrong answers says nothing."]
    best = max(names, key=lambda name: _score(results, names, name))
    simple = [name for name in names if not _is_beaten(results, name, best)]
    best = (simple or [best])[0]
    others = sorted((name for name in names if name != best), key=lambda name: -_score(results, names, name))
    mode = best.partition(",")[0]
    rivals = [name for name in others if name.partition(",")[0] != mode][:1]
    rivals += [name for name in others if name.partition(",")[0] == mode][:1]
    said = [f"Take {best}: {command(best)}"]
    if len(simple) == len(names) > 1:
        said = [f"Take any, {best} is the simplest: they differ by less than the rounds of each do. {command(best)}"]
    said += [_against(results, best, rival) for rival in rivals]
    said += _one_by_one(results, best)
    if mode == "event":
        said.append("A hook that waits for anything keeps all of its sessions waiting: then it is not the one to take.")
    rated = [job for job in results if job != "idle" and best in results[job]]
    busy = [job for job in rated if middle(results[job][best], lambda one: one.client_cores) > BUSY]
    if busy:
        said.append(f"The generator was at its own limit in {' and '.join(busy)}: {best} may be able to do more.")
    return said


def _is_beaten(results: Results, name: str, best: str) -> bool:
    """Tell whether ``best`` is clearly better than ``name`` in any job that decides."""
    jobs = [job for job in results if name in results[job] and best in results[job]]
    deciding = [job for job in jobs if job != "idle" or len(results) == 1]
    return any((_ratio(job, results[job][best], results[job][name]) or 0) > 1 for job in deciding)
