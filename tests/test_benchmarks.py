"""The comparison with peers: it runs, with what every Python has, and the README's section is what it writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from processes import DEADLINE

REPOSITORY = Path(__file__).resolve().parent.parent
COMPARE = Path(__file__).resolve().parent / "benchmarks" / "compare.py"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")

#: A title and what follows; the markers around the section.
BEFORE, AFTER = "# Title\n\n", "\nThe end.\n"
BEGIN, END = "<!-- generated: benchmark -->\n", "<!-- end: benchmark -->\n"


def rows_of(section: str) -> list[list[str]]:
    """The cells of a table's rows, its titles first."""
    lines = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_it_runs_and_replaces_the_section(tmp_path: Path) -> None:
    """Stock socketserver beside ours; all figures there, nothing outside of the markers touched."""
    readme, svg = tmp_path / "README.md", tmp_path / "results.svg"
    readme.write_text(BEFORE + BEGIN + "what was there\n" + END + AFTER)
    words = ["--servers", "stdserve thread", "ThreadingTCPServer", "--rounds", "1", "--seconds", "0.05"]
    words += ["--clients", "2", "--idle", "4", "--readme", str(readme), "--svg", str(svg)]
    result = subprocess.run(
        [sys.executable, str(COMPARE), *words], capture_output=True, text=True, timeout=2 * DEADLINE
    )
    assert (0, "") == (result.returncode, result.stdout), result.stderr

    before, _, rest = readme.read_text().partition(BEGIN)
    section, _, after = rest.partition(END)
    assert (BEFORE, AFTER) == (before, after)
    assert f"![the table as bars]({svg})" in section
    titles, ours, stock = rows_of(section)
    assert ("**stdserve thread**", "ThreadingTCPServer") == (ours[0], stock[0])
    assert len(titles) == len(ours) == len(stock) == 9
    assert all(re.fullmatch(r"-?[\d.]+[kMG]?", cell) for cell in ours[1:] + stock[1:]), section

    drawn = ElementTree.fromstring(svg.read_text())
    assert 8 == len(drawn.findall("{http://www.w3.org/2000/svg}rect"))
    assert "prefers-color-scheme: dark" in svg.read_text()


def test_a_file_without_markers_is_left_alone(tmp_path: Path) -> None:
    """And that is said."""
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    words = ["--servers", "TCPServer", "--rounds", "0", "--readme", str(readme)]
    result = subprocess.run([sys.executable, str(COMPARE), *words], capture_output=True, text=True, timeout=DEADLINE)
    assert 1 == result.returncode
    assert f"{readme} has no <!-- generated: benchmark --> ... <!-- end: benchmark -->" in result.stderr
    assert "nothing here\n" == readme.read_text()


def test_the_section_of_the_readme_is_what_it_writes() -> None:
    """Same columns, every server of ours and of the standard library, and the chart is there."""
    section = README.partition(BEGIN)[2].partition(END)[0]
    names = [row[0] for row in rows_of(section)[1:]]
    source = COMPARE.read_text()
    assert {"TCPServer", "ThreadingTCPServer", "ForkingTCPServer", "**stdserve thread**", "asyncio"} <= set(names)
    assert all(f'"{name.strip("*")}": ' in source for name in names)
    assert "wrong" not in section
    picture = re.search(r"!\[[^]]*\]\(([^)]+)\)", section)
    assert picture and (REPOSITORY / picture[1]).is_file()
    assert "`tox -e benchmark`" in README
