"""The house rules that a machine can hold: floors, sizes, manners, names. One checker and one test for each.

A checker takes a module's name and its source and gives back what is wrong with it, as text; the tests run every
checker over the package as it is imported (the wheel, under tox) and over small bad snippets, so that each has been
seen to fail.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stdserve

TESTS = Path(__file__).parent
SOURCES = {path.stem: path for path in sorted(Path(stdserve.__file__).parent.glob("*.py"))}

#: Which room is on which floor; a room imports from lower floors only. Rooms that are not built yet have their place.
FLOORS = {
    name: floor
    for floor, names in enumerate(
        [
            "errors escaping affinity browser rows status_page steps tally version terminal waiting interrupts",
            "protocol proxyheader networks addresses systemd flags logs streams replies unix privileges pidfile",
            "proxy listeners backlog descriptors certificates tls_stream sink sessions threads children stacks blame",
            "session_options seats tls worker metrics driver fairness",
            "options accepting",
            "handlers access settings hints exposition connection stopping rolling companion hooks",
            "preamble transfer status supervisor targets detaching pieces events",
            "client handler_run life",
            "mixin stalls",
            "servers heartbeat composing wsgi ledger",
            "factory status_server bench_load",
            "observing loading reloading bench_output bench_report bench_servers",
            "running bench_runs",
            "runner testing bench",
            "cli pytest_plugin",
            "__init__ __main__",
        ]
    )
    for name in names.split()
}

#: Programs, the only rooms that may print and choose the exit code.
PROGRAMS = {"bench", "cli", "client", "__main__"}

#: Rooms that have no ``tests/test_<module>.py``, and why.
UNTESTED = {
    "__init__": "only re-exports; the public names are checked here",
    "__main__": "three lines, run by every test that starts the server as a process",
    "driver": "one session of the loop of events, tested with it",
    "errors": "types without behaviour, raised and caught in the tests of every other room",
    "flags": "the machinery of options, tested with them",
    "life": "the part of the mix-in that takes a session through its steps, tested with it",
    "rolling": "the part of the supervisor that reloads, tested in test_reload",
    "rows": "the memory of metrics, tested with it",
    "session_options": "the first part of options, tested with them",
    "status_page": "text; tested with status, in a browser",
    "hooks": "names of what the supervisor calls, tested with it",
    "worker": "the two ends of the pipes between the supervisor and a worker, tested with both",
    "version": "one constant; that it is the built one is a test of the packaging",
}

#: Rooms that import what is not in the standard library, what that is, and why.
FOREIGN = {"pytest_plugin": ({"pytest"}, "only pytest imports it, by its entry point")}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50

Function = ast.FunctionDef | ast.AsyncFunctionDef
Checker = Callable[[str, str], list[str]]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module) for each import anywhere in the tree, the lazy ones inside functions too.

    ``from . import x`` is an import of the room x where there is one, otherwise of the package root.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"stdserve.{node.module or ''}".rstrip(".") if node.level else str(node.module)
            if module == "stdserve":
                for alias in node.names:
                    yield node.lineno, f"{module}.{alias.name}" if alias.name in FLOORS else module
            else:
                yield node.lineno, module


def check_place(name: str, source: str) -> list[str]:
    """A room has a floor."""
    return [] if name in FLOORS else [f"{name} is on no floor: give it one in FLOORS, and in the design"]


def check_floors(name: str, source: str) -> list[str]:
    """A room imports from lower floors only, and from the package root never; so there are no cycles."""
    floor, wrong = FLOORS.get(name, 0), []
    for line, module in imports(ast.parse(source)):
        root, _, room = module.partition(".")
        if root != "stdserve" or name == "__init__" and not room:
            continue
        if not room:
            wrong += [f"{name}:{line} imports from the package root: import from the room itself"]
        elif room not in FLOORS:
            wrong += [f"{name}:{line} imports {module}, which is on no floor"]
        elif FLOORS[room] >= floor:
            wrong += [f"{name} (floor {floor}):{line} imports {room} (floor {FLOORS[room]}), not from a lower floor"]
    return wrong


def check_standard_library(name: str, source: str) -> list[str]:
    """Nothing is needed but Python."""
    allowed = FOREIGN[name][0] if name in FOREIGN else set()
    return [
        f"{name}:{line} imports {module}, which is not in the standard library"
        for line, module in imports(ast.parse(source))
        if module.partition(".")[0] not in {"stdserve", *sys.stdlib_module_names, *allowed}
    ]


def check_file_length(name: str, source: str) -> list[str]:
    """A long file is two rooms."""
    lines = len(source.splitlines())
    return [f"{name} has {lines} lines, more than {MAX_FILE_LINES}: make it two"] if lines > MAX_FILE_LINES else []


def check_function_length(name: str, source: str) -> list[str]:
    """A function fits one screen, its docstring included."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    lengths = {node: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    return [
        f"{name}:{node.lineno} {node.name}() has {length} lines, more than {MAX_FUNCTION_LINES}"
        for node, length in lengths.items()
        if length > MAX_FUNCTION_LINES
    ]


def check_manners(name: str, source: str) -> list[str]:
    """The library does not print, exit, sleep, or measure time by a clock that people set."""
    banned = {
        "time.sleep": "wait for an event with a deadline",
        "time.time": "use time.monotonic for durations",
    }
    if name not in PROGRAMS:
        raising = "raise an error of stdserve.errors; a program chooses the exit code"
        banned |= {"print": "output is the sink's, logs are logging's"}
        banned |= dict.fromkeys(["sys.exit", "SystemExit", "exit", "quit", "os.abort"], raising)
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            used = [ast.unparse(node.func)]
        elif isinstance(node, ast.Raise) and node.exc:
            used = [ast.unparse(node.exc)]
        elif isinstance(node, ast.ImportFrom):
            used = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        wrong += [f"{name}:{node.lineno} uses {word}: {banned[word]}" for word in used if word in banned]
    return wrong


def check_docstrings(name: str, source: str) -> list[str]:
    """Every public module, class, function and method says what it promises."""

    def undocumented(node: ast.Module | ast.ClassDef | Function, title: str) -> Iterator[str]:
        if not ast.get_docstring(node):
            yield f"{name}: {title} has no docstring"
        if isinstance(node, Function):
            return
        for child in node.body:
            if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_"):
                yield from undocumented(child, f"{title}.{child.name}")

    return list(undocumented(ast.parse(source), name))


def check_exports(name: str, source: str) -> list[str]:
    """A room says what is public in it, as one literal list of strings."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            try:
                names = ast.literal_eval(node.value)
            except ValueError:
                return [f"{name}.__all__ is not a literal list"]
            return [] if len(set(names)) == len(names) else [f"{name}.__all__ has a name twice"]
    return [] if name in {"__main__", "cli"} else [f"{name} has no __all__"]


def check_tested(name: str, source: str) -> list[str]:
    """A room has a test file of its own name."""
    if name in UNTESTED or (TESTS / f"test_{name}.py").is_file():
        return []
    return [f"{name} has no tests/test_{name}.py, and no reason for that in UNTESTED"]


CHECKERS: list[Checker] = [
    check_place,
    check_floors,
    check_standard_library,
    check_file_length,
    check_function_length,
    check_manners,
    check_docstrings,
    check_exports,
    check_tested,
]


def rule(checker: Checker) -> str:
    """Name a checker in a test's id."""
    return checker.__name__.removeprefix("check_")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("checker", CHECKERS, ids=rule)
def test_every_room_keeps_the_rule(checker: Checker, name: str) -> None:
    """Each room of the package keeps each rule of the house."""
    wrong = checker(name, SOURCES[name].read_text(encoding="utf-8"))

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "__main__"])
def test_every_exported_name_exists(name: str) -> None:
    """What ``__all__`` promises can be imported."""
    module = importlib.import_module("stdserve" if name == "__init__" else f"stdserve.{name}")

    assert [] == [export for export in getattr(module, "__all__", []) if not hasattr(module, export)]


def test_exceptions_are_needed() -> None:
    """An exception from the rule of tests goes when its room gets a test file, or goes itself."""
    assert [] == [name for name in UNTESTED if name not in SOURCES or (TESTS / f"test_{name}.py").exists()]


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("checker", "name", "source", "complaint"),
    [
        (check_place, "attic", "", "attic is on no floor"),
        (check_floors, "errors", "from .cli import main", f"errors (floor 0):1 imports cli (floor {FLOORS['cli']})"),
        (check_floors, "handlers", "from .access import A", f"handlers (floor {FLOORS['handlers']}):1 imports access"),
        (check_floors, "sink", "def f():\n    from .cli import main", f"sink (floor {FLOORS['sink']}):2 imports cli"),
        (check_floors, "sink", "import stdserve.cli", f"sink (floor {FLOORS['sink']}):1 imports cli"),
        (check_floors, "sink", "from stdserve.cli import main", f"sink (floor {FLOORS['sink']}):1 imports cli"),
        (check_floors, "errors", "from . import cli", "errors (floor 0):1 imports cli"),
        (check_floors, "cli", "from . import serve", "cli:1 imports from the package root"),
        (check_floors, "cli", "import stdserve", "cli:1 imports from the package root"),
        (check_floors, "cli", "from .attic import x", "cli:1 imports stdserve.attic, which is on no floor"),
        (check_standard_library, "cli", "import pytest", "cli:1 imports pytest, which is not in the standard library"),
        (check_standard_library, "cli", "from pytest.x import y", "cli:1 imports pytest.x"),
        (check_standard_library, "pytest_plugin", "import pluggy", "pytest_plugin:1 imports pluggy"),
        (check_file_length, "cli", "\n" * (MAX_FILE_LINES + 1), "cli has 401 lines"),
        (check_function_length, "cli", LONG_FUNCTION, "cli:1 f() has 51 lines"),
        (check_function_length, "cli", "async " + LONG_FUNCTION, "cli:1 f() has 51 lines"),
        (check_manners, "sink", "print(1)", "sink:1 uses print"),
        (check_manners, "sink", "sys.exit(1)", "sink:1 uses sys.exit"),
        (check_manners, "sink", "raise SystemExit(1)", "sink:1 uses SystemExit"),
        (check_manners, "sink", "raise SystemExit", "sink:1 uses SystemExit"),
        (check_manners, "cli", "time.sleep(1)", "cli:1 uses time.sleep"),
        (check_manners, "cli", "from time import sleep, time", "cli:1 uses time.sleep"),
        (check_manners, "cli", "started = time.time()", "cli:1 uses time.time"),
        (check_docstrings, "cli", "x = 1", "cli: cli has no docstring"),
        (check_docstrings, "cli", "'D.'\ndef f(): pass", "cli: cli.f has no docstring"),
        (check_docstrings, "cli", "'D.'\nclass A: 'D.'\nclass B: pass", "cli: cli.B has no docstring"),
        (check_docstrings, "cli", "'D.'\nclass A:\n 'D.'\n async def m(self): pass", "cli: cli.A.m has no docstring"),
        (check_exports, "sink", "x = 1", "sink has no __all__"),
        (check_exports, "sink", "__all__ = [*names]", "sink.__all__ is not a literal list"),
        (check_exports, "sink", "__all__ = ['a', 'a']", "sink.__all__ has a name twice"),
        (check_tested, "attic", "", "attic has no tests/test_attic.py"),
    ],
    ids=lambda value: rule(value) if callable(value) else "",
)
def test_a_broken_rule_is_seen(checker: Checker, name: str, source: str, complaint: str) -> None:
    """Each checker complains about a bad room, first of all about what is wrong in it."""
    assert checker(name, source)[0].startswith(complaint)


@pytest.mark.parametrize(
    ("checker", "name", "source"),
    [
        (check_floors, "cli", "import os\nfrom . import sink\nfrom .errors import ConfigError"),
        (check_floors, "__main__", "from .cli import main"),
        (check_floors, "__init__", "from .factory import MODES"),
        (check_standard_library, "cli", "import os.path\nfrom . import sink\nfrom collections import abc"),
        (check_standard_library, "pytest_plugin", "import pytest"),
        (check_file_length, "cli", "\n" * MAX_FILE_LINES),
        (check_function_length, "cli", LONG_FUNCTION.removesuffix("    x = 1\n")),
        (check_manners, "cli", "print(1)\nraise SystemExit(main())"),
        (check_manners, "sink", "started = time.monotonic()\nraise\nprinted(exit_code)"),
        (check_docstrings, "cli", "'D.'\ndef _f(): pass\nclass _A: pass\ndef g():\n 'D.'\n def h(): pass"),
        (check_exports, "sink", "__all__ = ['Sink']"),
        (check_exports, "__main__", ""),
        (check_tested, "errors", ""),
    ],
    ids=lambda value: rule(value) if callable(value) else "",
)
def test_a_kept_rule_passes(checker: Checker, name: str, source: str) -> None:
    """No checker complains about a good room."""
    assert [] == checker(name, source)
