"""What words name: modules, names in them, calls; and what is said of those that name nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stdserve import ConfigError, EchoHandler
from stdserve.targets import find_target

SOURCE = """
class Outer:
    class Inner:
        word = "here"
    @property
    def broken(self):
        raise LookupError("not today")

outer = Outer()
def make(): return Outer.Inner
def fail(): raise LookupError("no luck")
def leave(): raise SystemExit(3)
NOTHING = None
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's, and a package with one in it."""
    (tmp_path / "target_module.py").write_text(SOURCE)
    (tmp_path / "target_package").mkdir()
    (tmp_path / "target_package" / "__init__.py").write_text("")
    (tmp_path / "target_package" / "shop.py").write_text("word = 'here'\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_names_are_found() -> None:
    """In a module, in a class in it, in a package's module, and by what a call returns."""
    assert find_target("stdserve:EchoHandler", "--handler") is EchoHandler
    assert "here" == find_target("target_module:Outer.Inner.word", "--handler")
    assert "here" == find_target("target_package.shop:word", "--handler")
    assert "here" == find_target("target_module:make()", "--handler").word
    assert "here" == find_target("target_module:Outer.Inner()", "--handler").word
    assert find_target("target_module:NOTHING", "--handler") is None


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("", "--wsgi must be module:app, not ''"),
        ("nonsense", "--wsgi must be module:app, not 'nonsense'"),
        (":app", "--wsgi must be module:app, not ':app'"),
        ("target_module:", "--wsgi must be module:app, not 'target_module:'"),
        ("target_module:make()()", "--wsgi must be module:app, not 'target_module:make()()'"),
        ("target_module:Outer..Inner", "--wsgi must be module:app, not 'target_module:Outer..Inner'"),
        ("target_module:make(1)", "not 'target_module:make(1)'; a call takes no arguments here"),
        (
            "target_module:Outre",
            "--wsgi target_module:Outre: module 'target_module' has no 'Outre'; did you mean 'Outer'?",
        ),
        ("target_module:Outer.iner", "Outer has no 'iner'; did you mean 'Inner'?"),
        ("target_module:Outer.Inner.wrod", "Outer.Inner has no 'wrod'; did you mean 'word'?"),
        ("target_module:qqq", "module 'target_module' has no 'qqq'"),
        ("target_module:outer.broken", "outer has no 'broken': LookupError('not today')"),
        ("target_module:fail()", "--wsgi target_module:fail(): fail() raised LookupError('no luck')"),
        ("target_module:leave()", "leave() raised SystemExit(3)"),
        ("target_module:NOTHING()", "NOTHING cannot be called: it is None"),
        ("target_module:Outer.Inner.word()", "Outer.Inner.word cannot be called: it is of type str"),
    ],
)
def test_the_part_that_is_wrong_is_named(target: str, reason: str) -> None:
    """With the nearest name where one is near."""
    with pytest.raises(ConfigError, match=re.escape(reason) + "$"):
        find_target(target, "--wsgi", "module:app")


@pytest.mark.parametrize(
    ("target", "near"),
    [
        ("target_modul:x", "; did you mean 'target_module'?"),
        ("target_packge.shop:x", "; did you mean 'target_package.shop'?"),
        ("target_package.shpo:x", "; did you mean 'target_package.shop'?"),
        ("htp.server:x", "; did you mean 'http.server'?"),
        ("http.serevr:x", "; did you mean 'http.server'?"),
        ("target_module.shop:x", ""),
        ("qqqqqqqq:x", ""),
    ],
)
def test_a_module_that_is_not_there(target: str, near: str) -> None:
    """The nearest is told: of the current folder, the standard library, the package."""
    name = target.partition(":")[0]
    with pytest.raises(ConfigError) as told:
        find_target(target, "--handler")
    assert str(told.value).startswith(f"--handler {target}: cannot import '{name}': ModuleNotFoundError(")
    assert near == str(told.value).rpartition(")")[2]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0\n", "ZeroDivisionError('division by zero')"),
        ("raise SystemExit(0)\n", "SystemExit(0)"),
        ("import qqqqqqqq\n", "ModuleNotFoundError(\"No module named 'qqqqqqqq'\")"),
    ],
)
def test_a_module_that_fails_while_it_is_imported_is_named_with_its_error(
    source: str, reason: str, tmp_path: Path
) -> None:
    """What it raised is the reason, be it the end of the program; no other module is proposed for it."""
    (tmp_path / "failing_module.py").write_text(source)
    with pytest.raises(ConfigError, match=re.escape(f"cannot import 'failing_module': {reason}") + "$"):
        find_target("failing_module:Handler", "--handler")
