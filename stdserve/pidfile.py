"""The file with the process id of a server: for those who signal it, and a lock that keeps a second one out.

The lock is what counts, for it dies with its holder: a file that a killed server has left is taken over. It is a record
lock (fcntl(2)), which forked children do not inherit.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import StartError

__all__ = ["pid_file"]

#: The longest content that can be a pid with its newline.
_LONGEST = 32


@contextmanager
def pid_file(path: str) -> Iterator[None]:
    """Hold ``path`` with the pid of this process in it for the length of the block.

    At its end, the process that made the file removes it, and no child of it does; where it may no longer remove
    files there, having become another user, it leaves it empty. The file stays root's, since whoever can write in it
    chooses what is killed. Raises StartError with the pid of a server that runs already, or with why there is none.
    """
    owner, path = os.getpid(), os.path.abspath(path)
    with _telling(path):
        fd = _open_locked(path)
    try:
        with _telling(path):
            _write(fd, owner)
        yield
    finally:
        if os.getpid() == owner:
            _remove(path, fd)
        os.close(fd)


@contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise StartError(f"--pid {path}: {reason}") from None


def _open_locked(path: str) -> int:
    """Return a descriptor of the file that is at ``path`` and that we alone have locked; raise OSError."""
    while True:
        # What is there may be anything, put there by anyone: no link is followed, no FIFO waited for, nothing cut off.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            _lock(fd)
            if _is_at(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        # Its last holder has removed it between our opening and our locking it.
        os.close(fd)


def _lock(fd: int) -> None:
    import fcntl  # here, since Windows has none

    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise OSError(errno.EEXIST, "what is there is no file of its own")
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: POSIX allows both
        pid = os.pread(fd, _LONGEST, 0).decode("ascii", "replace").strip()
        raise OSError(errno.EAGAIN, f"a server runs already, pid {pid or 'not written yet'}") from None
    before = os.pread(fd, _LONGEST, 0).strip()
    if before and not before.isdigit():
        raise OSError(errno.EEXIST, "what is there is no pid file")


def _write(fd: int, pid: int) -> None:
    # In this order, so that a reader never finds less than a pid.
    written = os.pwrite(fd, b"%d\n" % pid, 0)
    os.ftruncate(fd, written)


def _remove(path: str, fd: int) -> None:
    try:
        if _is_at(path, fd):
            os.unlink(path)
    except OSError:
        # The folder is not ours any more; the descriptor still is.
        os.ftruncate(fd, 0)


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
