"""The check of the bench: what a server printed is what was sent to it, or it is told what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stdserve.bench_load import line_of, lines_per_block, session_line
from stdserve.bench_output import check_bulk, check_sessions, has_lines

#: So long that a client begins again after a few lines.
LENGTH = 65536
BLOCK = lines_per_block(LENGTH)

#: What two clients sent in two runs.
SENT = [[1, 0], [BLOCK + 2, 3]]

LINES = [
    line_of(client, number % BLOCK, LENGTH)
    for run in SENT
    for client, count in enumerate(run)
    for number in range(count)
]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Give a file."""
    return tmp_path / "output"


def test_every_line_once_is_right(output: Path) -> None:
    """In any order."""
    output.write_bytes(b"".join(reversed(LINES)))
    assert "" == check_bulk(output, SENT, LENGTH)


@pytest.mark.parametrize(
    ("ruin", "complaint"),
    [
        (lambda lines: lines[1:], "of 10 lines 1 lost"),
        (lambda lines: [*lines, lines[0], lines[-1]], "of 10 lines 2 doubled"),
        (lambda lines: [*lines, b"what is this?\n"], "of 10 lines 1 torn or unknown"),
        (lambda lines: [*lines[1:], lines[0][:99], b"\n", lines[0][99:]], "of 10 lines 1 lost, 2 torn or unknown"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "of 10 lines 1 lost, 1 torn or unknown"),
        (lambda lines: [*lines, line_of(1, 3, LENGTH)], "of 10 lines 1 torn or unknown"),
        (lambda lines: [], "of 10 lines 10 lost"),
    ],
    ids=["lost", "doubled", "unknown", "torn", "no LF", "never sent", "nothing"],
)
def test_what_is_wrong_is_told(output: Path, ruin: Callable[[list[bytes]], list[bytes]], complaint: str) -> None:
    """Counted."""
    output.write_bytes(b"".join(ruin(LINES)))
    assert complaint == check_bulk(output, SENT, LENGTH)


def test_sessions(output: Path) -> None:
    """Each has printed its line."""
    lines = [session_line(number) for number in range(3)]
    output.write_bytes(b"".join(lines))
    assert "" == check_sessions(output, 3)
    assert "of 4 lines 1 lost" == check_sessions(output, 4)
    assert "of 2 lines 1 torn or unknown" == check_sessions(output, 2)


def test_lines_that_are_there(output: Path) -> None:
    """Whole ones, among others."""
    output.write_bytes(b"a\nb\nc\n")
    assert has_lines(output, [b"c\n", b"a\n"])
    assert not has_lines(output, [b"a\n", b"d\n"])
