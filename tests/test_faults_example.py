"""The README's proof, ``examples/faults.py``, run as its reader runs it; every row's figure on either side."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "faults.py"

#: Seconds that all rows may take together; the promise is under a minute.
MINUTE = 60.0


def never(number: object) -> bool:
    """Tell that the server did not come back and was killed."""
    return number == "never"


def at_least(least: float) -> Callable[[object], bool]:
    """Make a check for a number, with room below what an idle machine shows."""
    return lambda number: isinstance(number, float) and number >= least


#: What socketserver shows on Linux, by row; no Python up to 3.15 is known to have mended one of these.
FAULTS = {
    9: at_least(1000),
    14: at_least(100),
    18: at_least(150),
    20: never,
    22: never,
    25: at_least(1),
    27: never,
    31: never,
    39: at_least(5),
    43: at_least(20),
    44: at_least(40),
    45: at_least(10),
}


def run(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the script with the Python of the tests, and so with the stdserve that is installed there."""
    command = [sys.executable, *flags, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=MINUTE)


@pytest.fixture
def script() -> ModuleType:
    """The script as a module, to be changed by one test."""
    spec = importlib.util.spec_from_file_location("faults", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # dataclasses looks it up there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["faults"]
    return module


def test_socketserver_has_every_fault_and_stdserve_none() -> None:
    """One run of all rows; where there is no fork or no /proc, a row may be missing.

    One test and no fixture for many, since each process of pytest-xdist would make the run for itself.
    """
    done = run("--json")
    assert (0, "") == (done.returncode, done.stderr)
    report = {row["row"]: row for row in json.loads(done.stdout)}
    assert list(FAULTS) == list(report)
    here = {number: row for number, row in report.items() if row["stdserve"] != "-" or sys.platform == "linux"}
    assert [] == [row for row in here.values() if not (row["holds"] and row["stdserve"] <= row["bar"])]
    if sys.platform == "linux":  # whose figures these are; a row without a fault shows nothing and is to go
        assert [] == [row for number, row in here.items() if not FAULTS[number](row["socketserver"])]


def test_the_table_has_the_rows_asked_for() -> None:
    """Plain text, a line for each row, within 100 columns, and the Python it was."""
    done = run("45", "39")
    assert (0, "") == (done.returncode, done.stderr)
    head, *rows, foot = done.stdout.splitlines()
    assert ["socketserver", "stdserve"] == head.split()[-2:]
    assert [["45", "0"], ["39", "0"]] == [[row.split()[0], row.split()[-1]] for row in rows]
    assert f"Python {sys.version.split()[0]}, {sys.platform}" == foot
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_an_unknown_row_is_named() -> None:
    """Together with those there are."""
    done = run("9", "999")
    assert (2, "") == (done.returncode, done.stdout)
    assert done.stderr.endswith(f"no such row: 999; there are {', '.join(map(str, FAULTS))}\n")


def test_a_fresh_clone_needs_no_installation() -> None:
    """Without the installed packages (-S) the script finds stdserve beside its own folder."""
    done = run("--help", flags=("-S", "-E"))
    assert (0, "") == (done.returncode, done.stderr)


def test_a_row_above_its_bar_fails_the_run(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is a check, too: exit code 1, and the row is named."""
    monkeypatch.setitem(script.FAULTS, 39, dataclasses.replace(script.FAULTS[39], bar=-1))
    assert 1 == script.main(["39"])
    assert "row 39: stdserve does not keep to its bar, -1 log lines\n" == capsys.readouterr().err


def test_a_server_that_hangs_is_a_result(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Past its deadline a row is killed and says so, whichever side it is."""
    monkeypatch.setitem(script.FAULTS, 14, dataclasses.replace(script.FAULTS[14], deadline=0.01))
    assert 1 == script.main(["14"])
    row = capsys.readouterr().out.splitlines()[1]
    assert 2 == row.count("never, killed after 0.01 s")


def test_a_row_that_cannot_run_here_says_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dash on both sides, which is no failure."""
    monkeypatch.setitem(script.FAULTS, 25, dataclasses.replace(script.FAULTS[25], runs_here=False))
    assert 0 == script.main(["25"])
    assert ["-", "-"] == capsys.readouterr().out.splitlines()[1].split()[-2:]


def test_a_row_that_crashes_says_why(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What the process of a row wrote to standard error is kept for that."""
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no such thing')")
    monkeypatch.setattr(script, "__file__", str(broken))
    assert 1 == script.main(["39"])
    out, err = capsys.readouterr()
    assert ["crashed", "crashed"] == out.splitlines()[1].split()[-2:]
    assert err.startswith("no such thing\nno such thing\nrow 39: ")
