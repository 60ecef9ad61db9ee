"""The rights of root, given up for good for those of a user; and the permissions that new files do not get.

As gunicorn and nginx do it: bind and open as root, then become somebody else, then run what strangers can reach.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import ConfigError, StartError

__all__ = ["Identity", "become", "find_identity", "give_files", "masked"]

#: One more is (uid_t)-1, which means "leave it as it is" to setresuid(2) and chown(2).
LARGEST_ID = 2**32 - 2


@dataclass(frozen=True)
class Identity:
    """Who a process is to be: the ids, and the name of the user whose supplementary groups it gets, if any."""

    uid: int
    gid: int
    name: str | None


def find_identity(user: str | None, group: str | None) -> Identity:
    """Look up ``user`` (default: who runs this) and ``group`` (default: the user's), each a name or a number.

    A name made of digits is a name first, as in chown(1). Raises ConfigError for one that is unknown, and for the
    number of a user whom the system does not know where no group is given: root's would be left.
    """
    try:
        import grp  # here, for few servers need them and Windows has none
        import pwd
    except ImportError:  # pragma: no cover - Windows
        raise ConfigError("--user and --group are not to be had on this system") from None
    uid = os.geteuid() if user is None else _find(user, lambda name: pwd.getpwnam(name).pw_uid, "--user", "user")
    gid = None if group is None else _find(group, lambda name: grp.getgrnam(name).gr_gid, "--group", "group")
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        if gid is None:
            raise ConfigError(f"--user {user} is the number of no user here; it needs a --group") from None
        return Identity(uid, gid, None)
    # Two names may share a number; the groups are those of the one that was asked for.
    name = entry.pw_name if user is None or user.isdecimal() else user
    return Identity(uid, entry.pw_gid if gid is None else gid, name)


def _find(word: str, look_up: Callable[[str], int], flag: str, what: str) -> int:
    try:
        return look_up(word)
    except (KeyError, ValueError):  # the latter for what cannot be a name
        pass
    if word.isascii() and word.isdecimal() and int(word) <= LARGEST_ID:
        return int(word)
    raise ConfigError(f"{flag}: there is no {what} {word!r}")


def become(identity: Identity) -> None:
    """Take on ``identity``, with its supplementary groups and no others, and make sure that there is no way back.

    To be called before any other thread runs. Nothing happens to a process that has these ids already. Raises
    StartError if the system does not allow it, or leaves a way back; what has changed by then stays changed.
    """
    if _ids() == (identity.uid, identity.gid):
        return
    who = f"user {identity.name or identity.uid} (uid {identity.uid}, gid {identity.gid})"
    try:
        if identity.name is None:
            os.setgroups([identity.gid])
        else:
            os.initgroups(identity.name, identity.gid)
        _set_ids(identity)
    except OSError as error:
        needs = "; it needs root" if isinstance(error, PermissionError) else ""
        raise StartError(f"cannot become {who}: {error.strerror}{needs}") from None
    # Capabilities can outlive the uid (capabilities(7), SECBIT_NO_SETUID_FIXUP), and with them all can be undone.
    back = identity.uid != 0 and (_succeeds(os.setuid) or identity.gid != 0 and _succeeds(os.setgid))
    if back or _ids() != (identity.uid, identity.gid):
        raise StartError(f"became {who}, but this process could become root again")


def _ids() -> tuple[int, int] | None:
    """Return uid and gid where the real, effective and saved ones agree, else None."""
    if hasattr(os, "getresuid"):
        uids, gids = set(os.getresuid()), set(os.getresgid())
    else:  # pragma: no cover - macOS
        uids, gids = {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}
    return (uids.pop(), gids.pop()) if len(uids) == len(gids) == 1 else None


def _set_ids(identity: Identity) -> None:
    if hasattr(os, "setresuid"):
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    else:  # pragma: no cover - macOS, where these set all three for root (setuid(2))
        os.setgid(identity.gid)
        os.setuid(identity.uid)


def _succeeds(set_id: Callable[[int], None]) -> bool:
    try:
        set_id(0)
    except OSError:
        return False
    return True


def give_files(identity: Identity, paths: Iterable[str]) -> None:
    """Give the server's own files to ``identity``, who has to reopen or remove them; raise StartError.

    Only what can be nothing else is given away: a file or socket of our own that has no other name. Where somebody
    else may write in the folder, it could have become another file's by now.
    """
    for path in paths:
        try:
            found = os.lstat(path)
            if found.st_uid == os.geteuid() and found.st_nlink == 1 and _is_plain(found.st_mode):
                os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
        except OSError as error:
            raise StartError(f"cannot give {path} to uid {identity.uid}: {error.strerror}") from None


def _is_plain(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


@contextmanager
def masked(umask: int | None) -> Iterator[None]:
    """Keep the permissions in ``umask`` from every file that is made in the block; None changes nothing.

    The mask is the whole process's: no other thread is to make files meanwhile.
    """
    if umask is None:
        yield
        return
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)
