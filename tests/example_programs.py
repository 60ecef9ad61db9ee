"""The examples as their reader has them: the commands of a docstring, a folder to run them in, a terminal."""

from __future__ import annotations

import ast
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from processes import DEADLINE, ServerProcess

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = {path.stem: path for path in sorted((REPOSITORY / "examples").glob("*.py")) if path.name != "faults.py"}


def blocks(name: str) -> list[str]:
    """The indented blocks of an example's docstring, in their order."""
    docstring = ast.get_docstring(ast.parse(SOURCES[name].read_text()))
    assert docstring is not None
    found = re.findall(r"::\n\n((?:    .*\n)+)", docstring + "\n")
    return [textwrap.dedent(block).replace("\\\n", " ") for block in found]


def server_commands(name: str) -> list[str]:
    """The commands that start it, for the folder of the examples."""
    lines = [" ".join(line.split()) for block in blocks(name) for line in block.splitlines()]
    return [line.removeprefix("cd examples && ") for line in lines if line.startswith("cd examples && ")]


class Folder:
    """The folder of the examples, copied: what they write is written there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for source in SOURCES.values():
            shutil.copy(source, path)

    def serve(self, name: str, *more: str, which: int = 0) -> ServerProcess:
        """Run the server by its docstring's command, on a free port; ``more`` options come last and so prevail."""
        words = shlex.split(server_commands(name)[which])
        assert ["python", "-m", "stdserve"] == words[:3]
        own_port = words[3:4] if words[3].isdigit() else []
        return ServerProcess(*words[3 + len(own_port) :], *more, cwd=self.path)

    def run(self, command: str, port: int = 0, **popen: Any) -> subprocess.CompletedProcess[bytes]:
        """Run what the docstring says in a shell; the port is that of the server that runs."""
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", re.sub(r"\b(10001|6379|9020)\b", str(port), command)],
            capture_output=True,
            cwd=self.path,
            env={**os.environ, "PATH": path},
            timeout=DEADLINE,
            **popen,
        )


class Terminal:
    """A program at a terminal, ``seen`` is what it has shown there."""

    def __init__(self, *command: str) -> None:
        self._terminal, side = pty.openpty()
        self._process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env={**os.environ, "TERM": "dumb"}
        )
        os.close(side)
        self.seen = bytearray()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(DEADLINE)
        os.close(self._terminal)

    def type(self, line: bytes) -> None:
        """Type a line."""
        os.write(self._terminal, line + b"\n")

    def wait_for(self, text: bytes) -> None:
        """Return when it shows ``text``."""
        until = time.monotonic() + DEADLINE
        while text not in self.seen:
            ready = select.select([self._terminal], [], [], max(0.0, until - time.monotonic()))[0]
            assert ready, f"no {text!r} in {bytes(self.seen)!r}"
            try:
                self.seen += os.read(self._terminal, 4096)
            except OSError:  # how a terminal says that everybody has left
                pytest.fail(f"no {text!r} in {bytes(self.seen)!r}")

    def wait(self) -> None:
        """Return when the program has ended."""
        self._process.wait(DEADLINE)
