"""Handlers by their name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE

from stdserve import ConfigError, EchoHandler
from stdserve.targets import load_handler


def test_handlers_load_by_name() -> None:
    """module:Class."""
    assert load_handler("stdserve:EchoHandler") is EchoHandler


def test_a_module_that_fails_while_it_is_imported_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it raised is the reason."""
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ConfigError, match="cannot import 'broken_module': ZeroDivisionError"):
        load_handler("broken_module:Handler")


def test_a_module_that_would_end_the_program_is_at_fault_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sys.exit as it is imported."""
    (tmp_path / "leaving_module.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot import 'leaving_module': SystemExit\(0\)"):
        load_handler("leaving_module:Handler")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0\n", "--handler tried:Handler: cannot import 'tried': ZeroDivisionError('division by zero')"),
        ("", "--handler tried:Handler: module 'tried' has no 'Handler'"),
        ("import os\nos._exit(5)\n", "--handler tried:Handler: the process that imported it for a try .* status 5"),
        ("from stdserve import EchoHandler as Handler\n", ""),
    ],
)
def test_a_handler_can_be_checked_without_a_trace_of_it(source: str, reason: str, tmp_path: Path) -> None:
    """What is wrong with it is told all the same."""
    (tmp_path / "tried.py").write_text(source)
    code = (
        "import os, sys\n"
        "from stdserve.errors import ConfigError\n"
        "from stdserve.targets import check_handler\n"
        "try:\n"
        "    check_handler('tried:Handler')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
        "print('tried' in sys.modules, len(os.listdir('/proc/self/fd')))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
    )
    *told, last = result.stdout.splitlines()
    assert ("False 4", "") == (last, result.stderr)
    assert re.match(reason.replace("(", r"\(").replace(")", r"\)") + "$", "".join(told))
