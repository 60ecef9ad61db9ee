"""Handlers by their name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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
