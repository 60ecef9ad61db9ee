"""Root's rights, given up: when, for whom, for good; and the umask."""

from __future__ import annotations

import contextlib
import copy
import grp
import importlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from processes import (
    DEADLINE,
    ServerProcess,
    descendants_of,
    eventually,
    exchange,
    peer_program,
)

from stdserve.errors import ConfigError, StartError
from stdserve.privileges import (
    LARGEST_ID,
    Identity,
    become,
    find_identity,
    give_files,
    masked,
)

ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")

needs_root = pytest.mark.skipif(not ROOT, reason="only root can become somebody else")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can use. What is measured there of a server that is nobody goes where all else goes."""
    path = Path(tempfile.mkdtemp(prefix="stdserve-", dir="/tmp"))
    path.chmod(0o777)
    try:
        yield path
        for measured in path.glob(".coverage.*"):
            shutil.move(measured, Path(measurement().config.data_file).parent)
    finally:
        shutil.rmtree(path)


def measurement() -> Any:
    """The measuring of coverage that is under way, if any; unknown to the type checker, whose environment lacks it."""
    return importlib.import_module("coverage").Coverage.current()


def environment(folder: Path) -> dict[str, str]:
    """What a process needs to be told whose user changes: where to leave its coverage."""
    if measurement() is None:
        return {}
    config = copy.copy(measurement().config)
    config.data_file = str(folder / ".coverage")
    return {"COVERAGE_PROCESS_CONFIG": config.serialize()}


def unprivileged() -> list[str]:
    """Begin a command that is run without rights: as nobody, but that Python's own files are read wherever they are."""
    if not ROOT:
        return []
    ids = ["--reuid", str(NOBODY.pw_uid), "--regid", str(NOBODY.pw_gid), "--clear-groups"]
    return [peer_program("setpriv"), *ids, *(f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient"))]


def run(folder: Path, *words: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command line that is expected to end by itself."""
    return subprocess.run(
        [*before, sys.executable, "-m", "stdserve", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=folder,
        env={**os.environ, **environment(folder)},
    )


def serve(folder: Path, *words: str, **popen: Any) -> ServerProcess:
    """Start a server that is to be somebody else."""
    return ServerProcess(*words, env=environment(folder), **popen)


def ids_of(pid: int) -> tuple[set[int], set[int], set[int]]:
    """The uids, gids and supplementary groups of a process (Linux)."""
    rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    uids, gids, groups = ({int(word) for word in rows[name].split()} for name in ("Uid", "Gid", "Groups"))
    return uids, gids, groups


@needs_root
@pytest.mark.parametrize("words", [[], ["--workers", "2"], ["--mode", "fork"], ["--mode", "single"]], ids=" ".join)
def test_the_server_and_all_its_processes_are_the_user(words: list[str], folder: Path) -> None:
    """Real, effective, saved, for files; with the user's own groups and no others of root's."""
    expected = {NOBODY.pw_uid}, {NOBODY.pw_gid}, set(os.getgrouplist("nobody", NOBODY.pw_gid))
    with serve(folder, "-u", "nobody", *words) as server, socket.create_connection(server.address) as client:
        client.sendall(b"ping\n")
        server.wait_for_output(b"ping\n")
        processes = [server.pid, *descendants_of(server.pid)]
        assert (2 if words else 1) <= len(processes) or words == ["--mode", "single"]
        assert [expected] * len(processes) == [ids_of(pid) for pid in processes]
        client.close()
        assert 0 == server.stop()


@needs_root
@pytest.mark.parametrize(
    ("words", "uid", "gid", "groups"),
    [
        (["-u", "nobody", "-g", "daemon"], NOBODY.pw_uid, 1, set(os.getgrouplist("nobody", 1))),
        (["-u", str(NOBODY.pw_uid), "-g", "1"], NOBODY.pw_uid, 1, set(os.getgrouplist("nobody", 1))),
        (["-u", "54321", "-g", "54322"], 54321, 54322, {54322}),
        (["-g", "daemon"], 0, 1, set(os.getgrouplist("root", 1))),
        (["-u", "root"], 0, 0, None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_users_and_groups_are_names_or_numbers(
    words: list[str], uid: int, gid: int, groups: set[int] | None, folder: Path
) -> None:
    """A number need not be anybody's; who one is already can be named."""
    with serve(folder, *words) as server:
        exchange(server.address, b"ping\n")
        assert ({uid}, {gid}, ids_of(os.getpid())[2] if groups is None else groups) == ids_of(server.pid)


@needs_root
def test_addresses_and_files_are_opened_with_the_rights_of_root(folder: Path) -> None:
    """A port below 1024, an output and a pid file where only root can write, a list that only root can read."""
    closed = folder / "closed"
    closed.mkdir(0o700)
    (closed / "deny").write_text("192.0.2.0/24\n")
    files = ["--denyfile", str(closed / "deny"), "-o", str(closed / "output"), "--pid", str(closed / "pid")]
    for port in range(1023, 700, -1):  # pragma: no branch - one of them is free
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            break
    with serve(folder, "-u", "nobody", "-b", f"127.0.0.1:{port}", *files, port=None) as server:
        exchange(server.address, b"ping\n")
        assert port == server.port
        assert b"ping\n" == (closed / "output").read_bytes()
        assert f"{server.pid}\n" == (closed / "pid").read_text()
        assert (NOBODY.pw_uid, 0) == ((closed / "output").stat().st_uid, (closed / "pid").stat().st_uid)
        assert 0 == server.stop()
        # The folder is root's: the file cannot be removed, but says that nobody is there.
        assert "" == (closed / "pid").read_text()
    with serve(folder, "--pid", str(closed / "pid")) as server:
        assert server.port
        assert f"{server.pid}\n" == (closed / "pid").read_text()


@needs_root
def test_a_unix_socket_is_the_users(folder: Path) -> None:
    """Who connects is a matter of its mode; it goes with the server where the user may remove it."""
    closed = folder / "closed"
    closed.mkdir(0o700)
    for path in (folder / "socket", closed / "socket"):
        with serve(folder, "-u", "nobody", "-b", f"unix:{path}", port=None) as server:
            server.wait_for_log(f"^listening on unix:{path} ")
            assert (NOBODY.pw_uid, NOBODY.pw_gid) == (path.stat().st_uid, path.stat().st_gid)
            assert 0o600 == stat.S_IMODE(path.stat().st_mode)
            assert 0 == server.stop()
    # The other folder is root's. What is left there is taken over by the next server.
    assert [True, False] == [path.exists() for path in (closed / "socket", folder / "socket")]
    with serve(folder, "-b", f"unix:{closed / 'socket'}", port=None) as server:
        server.wait_for_log("^listening on unix:")


#: A server that says at its end what it has imported since it took on its user.
LATE = (
    "import sys\n"
    "from stdserve import cli, privileges\n"
    "become, seen = privileges.become, set()\n"
    "def remember(identity):\n"
    "    become(identity)\n"
    "    seen.update(sys.modules)\n"
    "privileges.become = remember\n"
    "cli.main(sys.argv[1:])\n"
    "print('late:', *sorted(set(sys.modules) - seen), file=sys.stderr)\n"
)


@pytest.mark.parametrize(
    "words",
    [
        *([], ["--mode", "fork"], ["--mode", "single"], ["--workers", "2"], ["--format", "json"]),
        *(["--max-conns-per-ip", "5"], ["--proxy-protocol"], ["--deny", "192.0.2.0/24"], ["--idle-timeout", "9"]),
        ["-b", "unix:socket"],
        *(["--mode", "event"], ["--mode", "event", "--session-timeout", "9"]),
    ],
    ids=" ".join,
)
def test_sessions_find_everything_imported(words: list[str], tmp_path: Path) -> None:
    """The user may be unable to read Python, as where it is installed under /root."""
    me = pwd.getpwuid(os.geteuid()).pw_name
    env = {name: "" for name in os.environ if name.startswith("COVERAGE_")}
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" if "--proxy-protocol" in words else b""
    command = ["env", *(f"-u{name}" for name in env), sys.executable, "-c", LATE, "-u", me]
    with ServerProcess(*words, command=command, cwd=tmp_path) as server:
        unix = server.wait_for_log(r"^listening on (unix:)?\S+ ")[1]
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as client:
            client.settimeout(DEADLINE)
            client.connect(str(tmp_path / "socket") if unix else server.address)
            client.sendall(header + b"ping\n")
            server.wait_for_output(b"ping")
        assert 0 == server.stop()
        assert "late:" == server.log[-1]


@needs_root
def test_the_log_file_is_the_users_to_reopen(folder: Path) -> None:
    """Whether it was there or not."""
    log = folder / "log"
    for _ in range(2):
        with serve(folder, "-u", "nobody", "--log-file", str(log)) as server:
            eventually(lambda: log.exists() and "listening" in log.read_text())
            assert 0 == server.stop()
        assert NOBODY.pw_uid == log.stat().st_uid
        os.chown(log, 0, 0)
        os.truncate(log, 0)


@needs_root
def test_an_output_that_was_there_keeps_its_owner(folder: Path) -> None:
    """Only what this start has made is given away."""
    output = folder / "output"
    output.write_text("before\n")
    with serve(folder, "-u", "nobody", "-o", str(output)) as server:
        exchange(server.address, b"ping\n")
        assert 0 == server.stop()
    assert ("before\nping\n", 0) == (output.read_text(), output.stat().st_uid)


HANDLER = (
    "import os, stdserve\n"
    "class Tell(stdserve.LineHandler):\n"
    "    imported = os.geteuid()\n"
    "    def line_received(self, line):\n"
    "        try:\n"
    "            return open(line).read()\n"
    "        except OSError as error:\n"
    "            return f'{self.imported} {os.geteuid()} {error.strerror}'\n"
)


@needs_root
def test_a_handler_of_the_users_own_never_has_the_rights_of_root(folder: Path) -> None:
    """Not even when it is imported; a file that root alone can read is closed to it."""
    (folder / "tell.py").write_text(HANDLER)
    secret = folder / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    with serve(folder, "-u", "nobody", "--handler", "tell:Tell", cwd=folder) as server:
        reply = exchange(server.address, str(secret).encode())
        assert f"{NOBODY.pw_uid} {NOBODY.pw_uid} Permission denied\n".encode() == reply


@needs_root
def test_a_handler_that_the_user_cannot_read_is_told(folder: Path) -> None:
    """Python takes a folder that it cannot read for an empty one."""
    closed = folder / "closed"
    closed.mkdir(0o700)
    (closed / "tell.py").write_text(HANDLER)
    command = [sys.executable, "-m", "stdserve", "0", "-u", "nobody", "--handler", "tell:Tell"]
    env = {**os.environ, **environment(folder)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=closed, env=env)

    reason = "cannot import 'tell': ModuleNotFoundError(\"No module named 'tell'\")"
    assert f"stdserve: --handler tell:Tell: {reason}; this user cannot read the current folder\n" == result.stderr
    assert 2 == result.returncode


@needs_root
def test_a_way_back_to_root_keeps_the_server_from_starting(folder: Path) -> None:
    """Capabilities that outlive the change of the uid are one."""
    setpriv = peer_program("setpriv")
    command = [setpriv, "--securebits", "+no_setuid_fixup", sys.executable, "-m", "stdserve", "0"]
    for words in (["-u", "nobody"], ["-u", "nobody", "-g", "root"]):
        env = {**os.environ, **environment(folder)}
        result = subprocess.run([*command, *words], capture_output=True, text=True, timeout=DEADLINE, env=env)

        assert result.stderr.startswith(f"stdserve: became user nobody (uid {NOBODY.pw_uid}, gid ")
        assert result.stderr.endswith("), but this process could become root again\n")
        assert 3 == result.returncode


def test_without_root_nobody_can_become_somebody_else(folder: Path) -> None:
    """Exit code 3, and what it needs."""
    result = run(folder, "0", "-u", "root", before=unprivileged())

    assert "stdserve: cannot become user root (uid 0, gid 0): Operation not permitted; it needs root\n" == result.stderr
    assert 3 == result.returncode


def test_without_root_one_can_be_who_one_is(folder: Path) -> None:
    """So that the same settings do for both."""
    me = "nobody" if ROOT else pwd.getpwuid(os.geteuid()).pw_name
    with serve(folder, "-u", me, command=[*unprivileged(), sys.executable, "-m", "stdserve"], cwd=folder) as server:
        exchange(server.address, b"ping\n")
        assert ({pwd.getpwnam(me).pw_uid}, b"ping\n") == (ids_of(server.pid)[0], server.output)
        assert 0 == server.stop(signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-u", "no-such-user"], "--user: there is no user 'no-such-user'"),
        (["-u", ""], "--user: there is no user ''"),
        (["-u", "-1"], "--user: there is no user '-1'"),
        (["-u", str(LARGEST_ID + 1), "-g", "0"], f"--user: there is no user '{LARGEST_ID + 1}'"),
        (["-u", "54321"], "--user 54321 is the number of no user here; it needs a --group"),
        (["-u", "nobody", "-g", "no-such-group"], "--group: there is no group 'no-such-group'"),
        (["-g", "5 5"], "--group: there is no group '5 5'"),
        (["--umask", "888"], "--umask must be a file mode in octal, such as 600, not '888'"),
        (["--umask", "1777"], "--umask must be a file mode in octal, such as 600, not '1777'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_who_is_unknown_is_told(words: list[str], message: str, folder: Path) -> None:
    """Exit code 2, whoever asks, and before anything is opened."""
    result = run(folder, "0", "-o", "output", *words)

    assert (2, "", f"stdserve: {message}\n") == (result.returncode, result.stdout, result.stderr)
    assert not (folder / "output").exists()


def test_identities_are_looked_up() -> None:
    """A name, its number, another group, nobody's number, and who runs this."""
    root, uid, gid = pwd.getpwuid(0), NOBODY.pw_uid, NOBODY.pw_gid
    me = pwd.getpwuid(os.geteuid())

    assert Identity(0, root.pw_gid, root.pw_name) == find_identity("0", None) == find_identity(root.pw_name, None)
    assert Identity(uid, gid, "nobody") == find_identity("nobody", None)
    assert Identity(uid, 0, "nobody") == find_identity("nobody", grp.getgrgid(0).gr_name)
    assert Identity(54321, 54322, None) == find_identity("54321", "54322")
    assert Identity(me.pw_uid, 54322, me.pw_name) == find_identity(None, "54322")
    with pytest.raises(ConfigError, match="there is no user"):
        find_identity("a\0b", None)


def test_becoming_who_one_is_changes_nothing() -> None:
    """And needs no rights."""
    groups = os.getgroups()
    become(Identity(os.geteuid(), os.getegid(), None))

    assert groups == os.getgroups()


@needs_root
def test_only_plain_files_of_our_own_are_given_away(tmp_path: Path) -> None:
    """What somebody may have put in their place is not."""
    for name in ("file", "linked", "target", "other"):
        (tmp_path / name).write_text("")
    os.link(tmp_path / "linked", tmp_path / "link")
    (tmp_path / "symlink").symlink_to(tmp_path / "target")
    os.chown(tmp_path / "other", 54321, 54321)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    names = ("file", "linked", "symlink", "other", "socket", ".")
    give_files(Identity(NOBODY.pw_uid, NOBODY.pw_gid, "nobody"), [str(tmp_path / name) for name in names])

    owners = {path.name: path.lstat().st_uid for path in tmp_path.iterdir()}
    assert {"file", "socket"} == {name for name, uid in owners.items() if uid == NOBODY.pw_uid}
    assert (0, 0, 54321) == (tmp_path.stat().st_uid, owners["target"], owners["other"])
    with pytest.raises(StartError, match="cannot give /nowhere/file to uid 54321: No such file or directory"):
        give_files(Identity(54321, 54321, None), ["/nowhere/file"])


def test_the_umask_holds_for_all_files_and_ends_with_the_block(tmp_path: Path) -> None:
    """None leaves the one that was inherited."""
    before = os.umask(0o022)
    try:
        with masked(None):
            (tmp_path / "a").touch()
        with masked(0o077):
            (tmp_path / "b").touch()
        (tmp_path / "c").touch()
    finally:
        os.umask(before)
    assert [0o644, 0o600, 0o644] == [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abc"]


def test_the_umask_of_the_command_line_holds_for_what_the_server_makes(tmp_path: Path) -> None:
    """Its output, its pid file, its log."""
    output, pid, log = (tmp_path / name for name in ("output", "pid", "log"))
    words = ["--umask", "077", "-o", str(output), "--pid", str(pid), "--log-file", str(log)]
    with ServerProcess(*words):
        eventually(lambda: log.exists() and "listening" in log.read_text())
        assert [0o600] * 3 == [stat.S_IMODE(path.stat().st_mode) for path in (output, pid, log)]
