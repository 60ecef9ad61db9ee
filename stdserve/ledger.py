"""What becomes of the sessions of a server under test: who is still there, and what handlers raised, in any process."""

from __future__ import annotations

import itertools
import json
import os
import socketserver
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .addresses import format_peer
from .blame import reason_for
from .errors import OutputError, PeerError, SessionError
from .interrupts import breaks_off
from .mixin import ServerMixin
from .protocol import EndReason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import FileIO
    from typing import Any

    from .steps import Steps

__all__ = ["Ledger"]

#: Seconds between two looks whether all sessions have ended.
LOOK_SECONDS = 0.005

#: The key of the row that is about no session.
_READY = "ready"

#: Whose frames a traceback may begin without: of interest is where a handler's own code begins.
_OURS = (os.path.dirname(__file__) + os.sep, socketserver.__file__)


@dataclass
class _Entry:
    """A session: whose it is, since when (time.monotonic), in which process; whether it has ended, by which failure."""

    peer: str
    since: float
    pid: int
    ended: bool = False
    failure: str | None = None

    @property
    def open(self) -> bool:
        """Whether it goes on; not where its process has gone."""
        return not self.ended and (self.pid == os.getpid() or _runs(self.pid))


class Ledger:
    """Follows servers, in this process and in those that are forked from it later.

    They all write to ``file``, a temporary one that is the ledger's alone, without a buffer: each row is one ``write``
    in append mode, so none is torn; it is never full, as a pipe would be, and what stands in it outlives a process that
    is killed. Methods may be called in any thread.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        if os.name == "posix":  # pragma: no branch - elsewhere there is one process, whose threads take turns
            import fcntl

            fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._told: set[str] = set()

    def follow(self, server: ServerMixin) -> None:
        """Write down the sessions of ``server`` from now on, each from the call of its handler to its return."""
        taken = server.handler_steps

        def handler_steps(request: Any, client_address: Any) -> Steps[None]:
            with self._session(format_peer(client_address)):
                yield from taken(request, client_address)

        server.handler_steps = handler_steps  # type: ignore[method-assign]

    def tell_ready(self) -> None:
        """Write down that the server serves, and can be told to stop."""
        self._write(_READY)

    def await_ready(self, seconds: float) -> None:
        """Wait until the server has said so, for ``seconds`` at most."""
        deadline = time.monotonic() + seconds
        while _READY not in self._rows() and time.monotonic() < deadline:
            threading.Event().wait(LOOK_SECONDS)

    def overdue(self, seconds: float) -> dict[str, str]:
        """Wait until no session is open, for ``seconds`` at most; return those that still are, and what to say of each.

        To be called when all clients have gone. A session whose process has gone is not open, see ``settle``.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = {key: entry for key, entry in self._read().items() if entry.open}
            now = time.monotonic()
            if not left or now >= deadline:
                late = f"is still open {seconds:g} s after all clients have gone; it is"
                return {key: f"{late} {now - entry.since:.1f} s old" for key, entry in left.items()}
            threading.Event().wait(LOOK_SECONDS)

    def check(self) -> None:
        """Raise SessionError if a handler has raised since the last time; sessions may still be open."""
        self._raise(self._failures())

    def settle(self, overdue: Mapping[str, str]) -> None:
        """Raise SessionError also for sessions that were ``overdue``, or have no end though the server has stopped."""
        told = self._failures()
        for key, entry in self._read().items():
            if key in overdue:
                told.append((entry.peer, overdue[key]))
            elif not entry.ended:
                gone = f"did not end: its process, {entry.pid}, is gone"
                told.append((entry.peer, "goes on after the server's stop" if entry.open else gone))
        self._raise(told)

    @contextmanager
    def _session(self, peer: str) -> Iterator[None]:
        key, failure = f"{os.getpid()}.{next(self._numbers)}", None
        self._write(key, peer=peer, since=time.monotonic(), pid=os.getpid())
        try:
            yield
        except BaseException as error:
            if _is_bug(error):
                failure = _traceback(error)
            raise
        finally:
            self._write(key, ended=True, failure=failure)

    def _write(self, key: str, **row: object) -> None:
        line = json.dumps([key, row]).encode() + b"\n"
        with self._lock:
            self._file.seek(0, os.SEEK_END)
            self._file.write(line)

    def _rows(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            self._file.seek(0)
            lines = self._file.read().splitlines()
        rows: dict[str, dict[str, Any]] = {}
        for key, row in map(json.loads, lines):
            rows.setdefault(key, {}).update(row)
        return rows

    def _read(self) -> dict[str, _Entry]:
        return {key: _Entry(**row) for key, row in self._rows().items() if key != _READY}

    def _failures(self) -> list[tuple[str, str]]:
        entries = self._read()
        new = [key for key, entry in entries.items() if entry.failure and key not in self._told]
        self._told.update(new)
        return [(entries[key].peer, f"failed:\n{entries[key].failure}") for key in new]

    @staticmethod
    def _raise(told: Sequence[tuple[str, str]]) -> None:
        if told:
            raise SessionError(told)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_bug(error: BaseException) -> bool:
    """Tell what the server's log calls an error from what peers, a full output and Ctrl-C do to a handler."""
    return not (
        breaks_off(error) or isinstance(error, PeerError | OutputError) or reason_for(error) is not EndReason.ERROR
    )


def _traceback(error: BaseException) -> str:
    """Return the traceback as text, from the handler's own code on."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_OURS):
        first = first.tb_next
    return "".join(traceback.format_exception(type(error), error, first or error.__traceback__)).rstrip()
