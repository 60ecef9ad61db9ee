"""The one writer to the output: whole lines, in order, across threads and forked processes.

``print()`` would lose lines in a forked child and tear them between threads. Here a block of lines is one
``os.write``. To a regular file that is enough: the kernel keeps writes through one open file apart (f_pos_lock,
or O_APPEND). A pipe or a terminal takes a large block in parts, between which even a small one could slip in,
so there every write holds a lock: one between threads, and one between processes that dies with its holder.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import select
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from .errors import OutputError, StartError
from .logs import reopen_file

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no fork, and so no other process to exclude
    fcntl = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .protocol import Chunk, Lines

__all__ = ["Sink", "open_sink"]

STDOUT = 1

#: Bytes that a sink which gathers holds at most.
MOST_HELD = 64 * 1024

_C1 = re.compile("[\x7f-\x9f]")


def open_sink(path: str | None = None, *, format: str = "text", raw: bool = False) -> Sink:
    """Return a sink that appends to ``path``, or writes to standard output; raise StartError if it is not there.

    Where standard output was closed from the start, its number has gone to another file, maybe a client's socket:
    Python remembers.
    """
    name = "standard output" if path is None else path
    try:
        if path is None and sys.__stdout__ is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if path is None:
            return Sink(STDOUT, name, format=format, raw=raw)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        sink = Sink(fd, name, format=format, raw=raw)
        sink.path = path
        return sink
    except OSError as error:
        raise StartError(f"cannot write to {name}: {error.strerror}") from None


class Sink:
    """Writes what sessions received to a file descriptor.

    ``format``: "text" writes the lines, "peer" puts the client's address before each, "json" writes an object a
    line with time, peer and line. Control characters are made visible unless ``raw``; JSON has its own way.
    Make it before forking: children share its lock and its memory of failure.
    """

    def __init__(self, fd: int, name: str = "the output", *, format: str = "text", raw: bool = False) -> None:
        """Write to ``fd``, called ``name`` in messages; raises OSError if it is not open."""
        self.name = name
        #: The file that the sink opened by its name, if it did.
        self.path: str | None = None
        self._fd = fd
        self._format = {"text": _as_text, "peer": _as_peer, "json": _as_json}[format]
        self._raw = raw
        self._plain = format == "text" and not raw
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._lock_fd = None if regular or fcntl is None else _open_lock()
        self._thread_lock = threading.Lock()
        # errno of the first failure, seen by every process that shares the sink.
        self._failed = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("i")
        #: What the thread that gathers has written and ``put_out`` has not; the same list for ever.
        self.held: list[bytes] = []
        self._held_size = 0
        self._gatherer = 0

    def write(self, event: Lines | Chunk, peer: object) -> None:
        """Write one run of lines, or one message, that ``peer`` sent; return when the system has taken all of it.

        In a thread that gathers, it is held until ``put_out``. Of ``peer`` the text is written, if the format has it.
        Raises OutputError when the output takes no more, and from then on at every call.
        """
        if self._failed[0]:
            raise self._error_of(self._failed[0])
        block = event.visible() if self._plain else self._format(event, peer, self._raw)
        if self._gatherer and self._gatherer == get_ident():
            self._hold(block)
        else:
            self._put(block)

    @contextmanager
    def gathering(self) -> Iterator[list[bytes]]:
        """Hold what this thread writes in the block, MOST_HELD bytes at most, until ``put_out`` or the end.

        For a thread that serves many: what they say at a time costs one write. Yields the list of what is held; one
        that stays empty where another thread gathers already, for only one can. Other threads write as ever, and so do
        processes that are forked meanwhile.
        """
        if self._gatherer:
            yield []
            return
        self._gatherer = get_ident()
        _gathering.add(self)
        try:
            yield self.held
        finally:
            _gathering.discard(self)
            self._gatherer = 0
            if self.held:
                self.put_out()

    def put_out(self) -> None:
        """Write what is held; raise OutputError when the output takes no more, or has taken no more meanwhile."""
        taken = self.held[:]
        del self.held[: len(taken)]
        self._held_size = 0
        if error := self.error:
            raise error
        if taken:
            self._put(b"".join(taken))

    def let_go(self) -> None:
        """Hold nothing, in a process forked from one that does: what is held is the parent's to write."""
        self._gatherer = self._held_size = 0
        self.held.clear()

    @property
    def error(self) -> OutputError | None:
        """Why the output takes no more, whichever process found out; None while it works."""
        code = self._failed[0]
        return self._error_of(code) if code else None

    @property
    def prompt(self) -> bool:
        """Whether a write never waits for a reader: the output is a regular file."""
        return self._lock_fd is None

    def reopen(self) -> None:
        """Go on in the file that has the name now, after a rotation renamed this one; each process for itself."""
        if self.path is not None and self._fd >= 0:
            reopen_file(self._fd, self.path)

    def close(self) -> None:
        """Give back what the sink opened; standard output stays open."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
        if self._fd > 2:
            os.close(self._fd)
            self._fd = -1

    def _hold(self, block: bytes) -> None:
        self._held_size += len(block)
        self.held.append(block)
        if self._held_size > MOST_HELD:
            try:
                self.put_out()
            except BaseException:
                self.held.append(b"")  # whoever waits for what was held finds out that it is lost
                raise

    def _put(self, block: bytes) -> None:
        try:
            if self._lock_fd is None:
                self._write_all(block)
            else:
                self._write_alone(block, self._lock_fd)
        except OSError as error:
            code = self._failed[0] = error.errno or errno.EIO
            raise self._error_of(code) from None

    def _write_alone(self, block: bytes, lock_fd: int) -> None:
        with self._thread_lock:
            # Not flock: a forked child inherits that lock and is not excluded by it.
            fcntl.lockf(lock_fd, fcntl.LOCK_EX)
            try:
                self._write_all(block)
            finally:
                fcntl.lockf(lock_fd, fcntl.LOCK_UN)

    def _write_all(self, block: bytes) -> None:
        rest: bytes | memoryview = block
        while True:
            try:
                written = os.write(self._fd, rest)
            except BlockingIOError:
                # Whoever made our end of a pipe or terminal non-blocking shares it; the flag is theirs to keep.
                select.select([], [self._fd], [])
                continue
            if written == len(rest):
                return
            rest = memoryview(rest)[written:]

    def _error_of(self, code: int) -> OutputError:
        reason = "its reader has gone" if code == errno.EPIPE else os.strerror(code)
        return OutputError(f"cannot write to {self.name}: {reason}")


#: Those that hold something for a thread of this process.
_gathering: set[Sink] = set()


def _let_go_in_child() -> None:
    for sink in _gathering:
        sink.let_go()
    _gathering.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_let_go_in_child)


def _open_lock() -> int:
    # A file of our own: a lock on a terminal or /dev/null would be shared with strangers, and closing any
    # other descriptor of the file would drop it (fcntl(2), "traditional" record locks).
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stdserve lock")
    import tempfile  # pragma: no cover - not Linux; here, because it brings half the standard library along

    with tempfile.TemporaryFile() as file:  # pragma: no cover - not Linux
        return os.dup(file.fileno())


def _as_text(event: Lines | Chunk, peer: object, raw: bool) -> bytes:
    return event.data if raw else event.visible()


def _as_peer(event: Lines | Chunk, peer: object, raw: bool) -> bytes:
    prefix = str(peer).encode() + b" "
    lines = (event.data if raw else event.visible()).removesuffix(b"\n")
    return prefix + lines.replace(b"\n", b"\n" + prefix) + b"\n"


def _as_json(event: Lines | Chunk, peer: object, raw: bool) -> bytes:
    import json
    from datetime import datetime, timezone

    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    name = str(peer)
    rows = (json.dumps({"time": now, "peer": name, "line": line}, ensure_ascii=False) for line in event)
    # JSON escapes the C0 controls itself; these may stand in it as they are, but drive terminals.
    return _C1.sub(lambda control: f"\\u{ord(control[0]):04x}", "\n".join(rows) + "\n").encode()
