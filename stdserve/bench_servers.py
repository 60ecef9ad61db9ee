"""A server of the bench: a real process on a free port, its CPU seconds, its memory, and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError, StartError
from .interrupts import hold_interrupts

__all__ = ["Choice", "RunningServer"]

#: Seconds that a server may take to start, and to stop.
PATIENCE = 30.0

#: The exit code of a server whose handler or options are not what they should be.
_WRONG_USAGE = 2

#: How the names of variables begin that servers do not get: our settings, and what makes print() slow.
_NOT_TOLD = ("STDSERVE_", "PYTHONUNBUFFERED")


@dataclass(frozen=True)
class Choice:
    """A way to run the server: its mode, and how many workers (0: none, one process is all)."""

    mode: str
    workers: int = 0

    def __str__(self) -> str:
        return self.mode + (f", {self.workers} workers" if self.workers else "")

    @property
    def flags(self) -> str:
        """What to type for it."""
        return f"--mode {self.mode}" + (f" --workers {self.workers}" if self.workers else "")

    def command(self, handler: str, clients: int) -> list[str]:
        """Return the command that serves ``handler`` on a free port to that many clients at a time."""
        words = [sys.executable, "-m", "stdserve", "0", "--bind", "127.0.0.1", "--handler", handler]
        return [*words, *self.flags.split(), *(["--max-conns", str(clients + 8)] if clients > 190 else [])]


class RunningServer:
    """The process of ``command`` until the end of a ``with`` block; its log says "listening on ADDRESS:PORT".

    ``output`` is what it prints to, in ``folder``. Raises StartError where it does not start, ConfigError where
    its command is wrong.
    """

    def __init__(self, command: Sequence[str], folder: Path, proc: Path = Path("/proc")) -> None:
        self.output, self.log = folder / "output", folder / "log"
        self._proc = proc
        # What is measured is what the command says; where it listens is looked for in lines.
        told = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_TOLD)}
        told |= {"STDSERVE_LOG_FORMAT": "text"}
        with ExitStack() as undo:
            # A Ctrl-C in the middle of a start would leave a process that nobody knows.
            with hold_interrupts(), self.output.open("wb") as output, self.log.open("wb") as log:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=told)
                undo.callback(self.stop)
            self.port = self._port()
            undo.pop_all()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _port(self) -> int:
        found: list[str] = []

        def listening() -> bool:
            found.extend(re.findall(r"^listening on \S*:(\d+)", self.log.read_text(errors="replace"), re.MULTILINE))
            return bool(found) or self._process.poll() is not None

        wait_for(listening)
        if not found:
            wrong = ConfigError if self._process.poll() == _WRONG_USAGE else StartError
            raise wrong(f"the server does not start: {self.last_words or 'it says nothing'}")
        return int(found[0])

    @property
    def last_words(self) -> str:
        """The last line of its log."""
        return "".join(self.log.read_text(errors="replace").splitlines()[-1:])

    def wait_for_sessions(self, count: int) -> bool:
        """Wait until its log has told of ``count`` sessions; tell whether it has."""
        return wait_for(lambda: len(re.findall(r"^open ", self.log.read_text(errors="replace"), re.MULTILINE)) >= count)

    def cpu(self) -> float | None:
        """Return the CPU seconds of all of its processes so far, with those that have ended; None without /proc."""
        ticks = [self._stat(pid)[11:15] for pid in self._tree()]
        return sum(map(int, sum(ticks, []))) / os.sysconf("SC_CLK_TCK") if ticks else None

    def memory(self) -> float:
        """Return the KiB of all of its processes: PSS, where shared pages count once, or RSS without smaps_rollup."""
        pids = self._tree()
        try:
            texts = [(self._proc / str(pid) / "smaps_rollup").read_text() for pid in pids]
            sizes = [int(size) for text in texts for size in re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)]
        except OSError:
            sizes = []
        return float(sum(sizes) or resident(self._process.pid))

    def stop(self) -> float:
        """End it; return the CPU seconds of its whole life, those of its start and its children included.

        One that does not end in time, or ended with another exit code than 0, is noted in ``problem``.
        """
        before = os.times()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    @property
    def problem(self) -> str:
        """What was wrong with its end: nothing, for one that runs or has stopped as asked."""
        code = self._process.poll()
        return "" if not code else f"the server ended with {code}: {self.last_words}"

    def _stat(self, pid: int) -> list[str]:
        """Return the words of its stat after the name: state, parent, ...; of nobody if it has gone (proc(5))."""
        try:
            return (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ["X", "0", *["0"] * 50]

    def _tree(self) -> list[int]:
        """Return the pids of its processes; none where there is no /proc."""
        try:
            pids = [int(name) for name in os.listdir(self._proc) if name.isdigit()]
        except OSError:
            return []
        return tree_of(self._process.pid, {pid: int(self._stat(pid)[1]) for pid in pids})


def tree_of(root: int, parents: dict[int, int]) -> list[int]:
    """Return ``root`` and all below it, of a table of parents by pid."""
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def resident(root: int) -> int:
    """Return the KiB of RSS of a process and all below it, as ps(1) tells it; 0 where there is no ps."""
    try:
        command = ["ps", "-A", "-o", "pid=,ppid=,rss="]
        table = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    rows = {pid: (parent, size) for pid, parent, size in (map(int, line.split()) for line in table.splitlines())}
    pids = tree_of(root, {pid: parent for pid, (parent, _) in rows.items()})
    return sum(rows[pid][1] for pid in pids if pid in rows)


def wait_for(condition: Callable[[], bool]) -> bool:
    """Look at ``condition()`` until it is true; False if it is not in time."""
    pause, until = threading.Event(), time.monotonic() + PATIENCE
    while True:
        # A Ctrl-C in the wrong moment of Popen.poll() leaves a lock there, and whoever waits for the process hangs.
        with hold_interrupts():
            if condition():
                return True
        if time.monotonic() > until:
            return False
        pause.wait(0.01)
