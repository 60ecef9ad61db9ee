"""UNIX sockets: their files made and removed, their clients told apart (unix(7)).

A file stays behind a server that was killed, and looks like that of one that lives. Which it is, is found out by
connecting; two servers that find out at once are kept apart by a lock file beside it, for as long as they start.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["UnixListener", "client_of", "listen_unix"]

#: Bytes of a path that a socket address holds: sun_path less its NUL.
MOST_BYTES = 107 if sys.platform == "linux" else 103


class UnixListener(socket.socket):
    """A listening UNIX socket; to close it removes its file, in the process that made it and in no other.

    The file is removed before the socket is closed: one that nobody serves could be taken over by another server
    between our look at it and its removal. ``socket.socket.close(listener)`` closes it and lets the file be.
    """

    _made: tuple[str, int, tuple[int, ...]] | None = None

    @property
    def path(self) -> str | None:
        """The file that was made for this listener; None for one that has none, as an abstract one."""
        return self._made[0] if self._made is not None else None

    def own(self, path: str) -> None:
        """Remember that the file at ``path`` is ours, wherever this process goes."""
        self._made = os.path.abspath(path), os.getpid(), _identity(path)

    def close(self) -> None:
        """Remove the file, if it is still the one that was made here, and close."""
        if self._made is not None:
            path, pid, identity = self._made
            try:
                if pid == os.getpid() and identity == _identity(path):
                    os.unlink(path)
            except OSError:
                pass  # it has gone, or is no longer ours to remove
            self._made = None
        super().close()


def listen_unix(name: str, mode: int, backlog: int) -> UnixListener:
    """Return a listener at a path, or at an abstract name that begins with "@"; raise OSError.

    The file has ``mode`` from the moment it exists. One that a server left behind is taken over; where a server
    lives, or something is that is no socket, nothing is touched.
    """
    if not hasattr(socket, "AF_UNIX"):  # pragma: no cover - Windows
        raise OSError(errno.EAFNOSUPPORT, "this system has no UNIX sockets")
    abstract = name.startswith("@")
    if abstract and sys.platform != "linux":  # pragma: no cover - not Linux
        raise OSError(errno.EAFNOSUPPORT, "only Linux has abstract UNIX sockets")
    size = len(os.fsencode(name))
    if size > MOST_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"its {size} bytes are more than the {MOST_BYTES} of a socket address")
    listener = UnixListener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if abstract:
            listener.bind("\0" + name[1:])
            listener.listen(backlog)
        else:
            _listen_at(name, listener, mode, backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def client_of(connection: socket.socket) -> tuple[str, int]:
    """Return ("unix:uid=1000", pid), by the kernel's word, for the peer of an accepted connection.

    A pair, as handlers expect of a client's address. The first part is the same for all clients of a user; that
    a client's own name, where it has one, is not in it, is as it should be: it could be any. ("local", 0) where
    the system does not tell.
    """
    if sys.platform != "linux":  # pragma: no cover - not Linux
        return "local", 0
    from struct import (  # here, for the other families have no use for it
        calcsize,
        unpack,
    )

    layout = "iII"  # struct ucred: pid, uid, gid
    pid, uid, _ = unpack(layout, connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, calcsize(layout)))
    return f"unix:uid={uid}", pid


def _identity(path: str | int) -> tuple[int, ...]:
    found = os.stat(path, follow_symlinks=False) if isinstance(path, str) else os.stat(path)
    # The number of an inode is given to the next file as soon as it is free; chmod and chown change neither of these.
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _listen_at(path: str, listener: UnixListener, mode: int, backlog: int) -> None:
    # Under the lock until it listens: a socket that is bound and does not yet listen looks like one left behind.
    with _starting(path):
        _clear(path)
        # The mask is the whole process's, but nothing else runs in one that starts; fchmod would come too late.
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.own(path)
        listener.listen(backlog)


@contextmanager
def _starting(path: str) -> Iterator[None]:
    """Keep other starters at ``path`` out; OSError if one is in, or if the folder takes no files of ours."""
    import fcntl  # here, since Windows has none

    lock = path + ".stdserve-lock"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it after we opened it: then a third one may hold the next.
            if _identity(fd) != _identity(lock):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise OSError(errno.EADDRINUSE, "another server is starting there") from None
        try:
            yield
        finally:
            os.unlink(lock)
    finally:
        os.close(fd)


def _clear(path: str) -> None:
    """Remove the file of a server that is no more; raise OSError if something else is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "what is there is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server whose backlog is full lives
        answer = probe.connect_ex(path)
    if answer in (errno.EACCES, errno.EPERM):
        raise OSError(answer, "permission denied: whether a server lives there cannot be found out")
    if answer != errno.ECONNREFUSED:
        raise OSError(errno.EADDRINUSE, "address already in use")
    os.unlink(path)
