"""Whether the output of a server in the bench is what was sent to it: every line whole, and exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .bench_load import line_of, lines_per_block, session_line

__all__ = ["check_bulk", "check_sessions", "has_lines"]

#: Bytes looked at in one go.
_READ = 4 << 20


def check_bulk(output: Path, sent: Sequence[Sequence[int]], length: int) -> str:
    """Return what is wrong with the output of bulk runs, nothing if nothing is.

    ``sent``: for each run, how many lines of ``length`` bytes each client sent. The order of lines is not looked at.
    """
    return _difference(Counter(_lines(output)), _bulk_lines(sent, length))


def check_sessions(output: Path, count: int) -> str:
    """Return what is wrong with the output of ``count`` sessions, nothing if nothing is."""
    return _difference(Counter(_lines(output)), ((session_line(number), 1) for number in range(count)))


def has_lines(output: Path, lines: Iterable[bytes]) -> bool:
    """Tell whether each of ``lines`` is in the output, as a line."""
    return set(lines) <= set(_lines(output))


def _bulk_lines(sent: Sequence[Sequence[int]], length: int) -> Iterator[tuple[bytes, int]]:
    block = lines_per_block(length)
    for client, runs in enumerate(zip(*sent, strict=True)):
        for line in range(min(block, max(runs))):
            yield line_of(client, line, length), sum((run + block - 1 - line) // block for run in runs)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines with their LF; a Counter takes them faster than anybody could look at them."""
    with path.open("rb", _READ) as file:
        yield from file


def _difference(found: Counter[bytes], expected: Iterable[tuple[bytes, int]]) -> str:
    lost = doubled = total = 0
    for line, count in expected:
        came = found.pop(line, 0)
        total += count
        lost += max(0, count - came)
        doubled += max(0, came - count)
    wrong = {"lost": lost, "doubled": doubled, "torn or unknown": sum(found.values())}
    text = ", ".join(f"{count} {word}" for word, count in wrong.items() if count)
    return text and f"of {total} lines {text}"
