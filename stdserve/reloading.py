"""What ``--reload`` adds to a server of workers: they are replaced when a source file of what they imported changes.

The supervisor imports no handler, so the workers tell it where theirs came from, and it looks there: at times of change
and sizes, for the standard library has nothing that is told of changes on every system.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from .hooks import Hooks
from .logs import Event
from .worker import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Reloader"]

_log = logging.getLogger("stdserve")

#: Seconds between two looks at the files. A change counts once two looks find the same: whoever makes it, an editor or
#: git, may be in the middle of it.
LOOK_SECONDS = 0.25

#: Nanoseconds by which the time of a file may lie behind the clock when it is written (a tick of the kernel).
TICK = 10_000_000

#: Time of change in nanoseconds, and size, of each file.
_State = dict[str, tuple[int, int]]


class Reloader:
    """Calls ``reload()`` in the supervisor when files change beside those that workers have imported.

    That is ``*.py`` in their folders, and packages that appear there, outside the standard library, site-packages and
    stdserve itself. A worker that cannot import its handler tells, too: what is to be mended may lie where no other
    worker has been. To be made before anything is forked; ``live`` is for workers, ``hooked`` gives the hooks of the
    supervisor, which runs in the block of a ``with``.
    """

    def __init__(self, reload: Callable[[], None]) -> None:
        self._reload = reload
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._text = b""
        self._folders: set[str] = set()
        # As the workers have found them, or will when the reload is done that was asked for.
        self._known: _State = {}
        self._last: _State = {}
        self._due = 0.0

    def __enter__(self) -> Reloader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def hooked(self, hooks: Hooks) -> Hooks:
        """Return ``hooks`` for the supervisor that also look at the files."""
        return replace(hooks, turned=partial(self._turn, hooks.turned), turn_seconds=LOOK_SECONDS)

    def live(self, link: Link, run: Callable[[], None]) -> None:
        """Be a worker by calling ``run()``; tell with each beat of ``link`` what is new, and what was in the way."""
        # A file of bytecode is told from a newer source by whole seconds and the size.
        sys.dont_write_bytecode = True
        born, told, beat = time.time_ns() - TICK, set[str](), link.beat

        def tell(folders: Iterable[str] = ()) -> None:
            for folder in {*folders, *_imported_from()} - told:
                told.add(folder)
                self._tell(folder, born)

        def tell_and_beat() -> None:
            tell()
            beat()

        link.beat = tell_and_beat  # type: ignore[method-assign]
        try:
            run()
        except BaseException as error:
            tell(_raised_in(error))
            raise

    def _tell(self, folder: str, born: int) -> None:
        try:
            os.write(self._writer, b"%d %s\0" % (born, os.fsencode(folder)))
        except OSError:
            pass  # full, and nobody reads: there is no supervisor

    def _turn(self, turned: Callable[[Collection[int]], None], numbers: Collection[int]) -> None:
        turned(numbers)
        if time.monotonic() >= self._due:
            self._look()
            self._due = time.monotonic() + LOOK_SECONDS

    def _look(self) -> None:
        self._hear()
        now = _state_of(self._folders)
        changed = [path for path in now | self._known if now.get(path) != self._known.get(path)]
        if changed and now == self._last:
            self._known = now
            others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            _log.info(Event("changed", min(changed) + others, data={"files": sorted(changed)}))
            self._reload()
        self._last = now

    def _hear(self) -> None:
        """Take note of folders that workers tell: what changed there since the first of them began is a change."""
        try:
            self._text += os.read(self._reader, 1 << 20)
        except BlockingIOError:
            return
        *rows, self._text = self._text.split(b"\0")
        for row in rows:
            born, _, name = row.partition(b" ")
            folder = os.fsdecode(name)
            if folder not in self._folders:
                self._folders.add(folder)
                state = _state_of([folder])
                self._known |= {path: (time, size) for path, (time, size) in state.items() if time < int(born)}


def _state_of(folders: Iterable[str]) -> _State:
    state: _State = {}
    for folder in folders:
        for path in _sources_in(folder):
            try:
                found = os.stat(path)
            except OSError:
                continue  # no package, or gone by now
            state[path] = found.st_mtime_ns, found.st_size
    return state


def _sources_in(folder: str) -> Iterator[str]:
    """Yield modules, and what would make packages of the folders there."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    yield entry.path
                elif entry.name.isidentifier() and entry.is_dir():
                    yield os.path.join(entry.path, "__init__.py")
    except OSError:
        pass  # an archive, or gone


def _imported_from() -> set[str]:
    """Return the folders of all that this process has imported, but for what is installed."""
    folders = set()
    for module in list(sys.modules.values()):
        names: Mapping[str, object] = getattr(module, "__dict__", {})
        file, path = names.get("__file__"), names.get("__path__")
        if isinstance(file, str):
            folders.add(os.path.dirname(os.path.abspath(file)))
        elif isinstance(path, Iterable):  # a package without __init__.py
            folders.update(map(str, path))
    return _own(folders)


def _raised_in(error: BaseException | None) -> set[str]:
    """Return the folders of the files in which an error came up, or what it was made of."""
    folders: set[str] = set()
    while error is not None:
        files = [frame.tb_frame.f_code.co_filename for frame in _frames(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            files.append(error.filename)
        folders.update(os.path.dirname(file) for file in files if os.path.isabs(file))
        error = error.__cause__ or error.__context__
    return _own(folders)


def _frames(first: TracebackType | None) -> Iterator[TracebackType]:
    while first is not None:
        yield first
        first = first.tb_next


def _own(folders: Iterable[str]) -> set[str]:
    """Return those of the folders in which somebody may be at work."""
    from sysconfig import get_paths  # here, for workers of a server in development

    paths = get_paths()
    installed = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed = {os.path.realpath(path) for path in (*installed, os.path.dirname(__file__))}
    own = set()
    for folder in folders:
        real = os.path.realpath(folder)
        below = any(real == path or real.startswith(path + os.sep) for path in installed)
        if not below and {"site-packages", "dist-packages"}.isdisjoint(real.split(os.sep)):
            own.add(folder)
    return own
