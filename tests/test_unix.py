"""UNIX sockets: their files, whose they are and what becomes of them, and who is at the other end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import (
    DEADLINE,
    ServerProcess,
    connect,
    descendants_of,
    eventually,
    exchange,
    peer_program,
)
from test_children import run_script

from stdserve.addresses import Address
from stdserve.errors import StartError
from stdserve.listeners import close_listeners, leave_listeners, open_listeners
from stdserve.unix import MOST_BYTES, client_of, listen_unix

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, as paths of sockets must be short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def listening(path: str, mode: int = 0o600) -> Iterator[socket.socket]:
    """A server's socket, and in the end none of it."""
    (listener,) = open_listeners([Address(path, kind="unix")], unix_mode=mode)
    try:
        yield listener
    finally:
        close_listeners([listener])


def refusal(path: str) -> str:
    """Return why nothing can listen at a path; nothing is left open, nor of the lock."""
    before = os.listdir("/dev/fd")
    with pytest.raises(StartError) as caught:
        open_listeners([Address(path, kind="unix")])
    assert before == os.listdir("/dev/fd")
    if not path.startswith("@"):
        assert [] == list(Path(path).absolute().parent.glob("*lock*"))
    start = f"cannot listen on unix:{path}: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def leave_stale(path: str) -> None:
    """Leave a file behind, as a server that is killed does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)


def test_a_listener_takes_clients_and_its_file_goes_with_it(folder: Path) -> None:
    """Nothing else is left in the folder, neither before nor after."""
    with listening("sock") as listener:
        assert ["sock"] == os.listdir()
        assert not listener.getblocking()
        assert "sock" == listener.getsockname()
        connect("unix:sock").close()
        listener.settimeout(DEADLINE)
        listener.accept()[0].close()
    assert [] == os.listdir()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o000])
def test_the_mode_is_what_was_asked_for_whatever_the_umask(folder: Path, mode: int) -> None:
    """And the umask is as it was."""
    before = os.umask(0o027)
    try:
        with listening("sock", mode):
            assert mode == stat.S_IMODE(os.stat("sock").st_mode)
        assert 0o027 == os.umask(0o027)
    finally:
        os.umask(before)


@linux_only
def test_the_mode_holds_from_the_first_instant(folder: Path) -> None:
    """Right after the call that makes the file; nothing changes it later."""
    script = (
        "import os, socket\n"
        "from stdserve import unix\n"
        "class Watched(unix.UnixListener):\n"
        "    def bind(self, name):\n"
        "        super().bind(name)\n"
        "        print(oct(os.stat(name).st_mode & 0o777))\n"
        "unix.UnixListener = Watched\n"
        "unix.listen_unix('sock', 0o620, 5).close()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE)
    assert ("0o620\n", "") == (result.stdout, result.stderr)


def test_a_file_that_a_server_left_behind_is_taken_over(folder: Path) -> None:
    """Nobody answers there; the mode is the new server's."""
    leave_stale("sock")
    os.chmod("sock", 0o666)
    with listening("sock"):
        connect("unix:sock").close()
        assert 0o600 == stat.S_IMODE(os.stat("sock").st_mode)
    assert [] == os.listdir()


def test_a_live_server_is_left_alone(folder: Path) -> None:
    """Also one whose backlog is full, and one of datagrams."""
    with listening("sock"):
        assert "address already in use" == refusal("sock")
        connect("unix:sock").close()
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket(socket.AF_UNIX))
        full.bind("full")
        full.listen(0)
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        client.connect("full")
        assert "address already in use" == refusal("full")
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind("datagrams")
        assert "address already in use" == refusal("datagrams")
    assert ["datagrams", "full"] == sorted(os.listdir())


def test_what_is_no_socket_is_never_touched(folder: Path) -> None:
    """A file, a folder, a link to a socket that nobody serves, and one to nothing."""
    Path("file").write_text("precious")
    Path("folder").mkdir()
    leave_stale("stale")
    os.symlink("stale", "link")
    os.symlink("nothing", "dangling")
    for name in ("file", "folder", "link", "dangling"):
        assert "what is there is no socket" == refusal(name)
    assert "precious" == Path("file").read_text()
    assert {"dangling", "file", "folder", "link", "stale"} == set(os.listdir())


def test_a_path_that_is_too_long_is_told_with_both_numbers(folder: Path) -> None:
    """The longest that fits works; bytes count, not letters."""
    with listening("x" * MOST_BYTES):
        pass
    for name in ("x" * (MOST_BYTES + 1), "ж" * 100):
        size = len(name.encode())
        assert f"its {size} bytes are more than the {MOST_BYTES} of a socket address" == refusal(name)


def test_a_folder_that_is_not_there_or_not_ours_is_told(folder: Path) -> None:
    """In the system's words."""
    assert "No such file or directory" == refusal("nowhere/sock")
    Path("file").touch()
    assert "Not a directory" == refusal("file/sock")


def test_two_that_start_at_once_do_not_take_each_others_place(folder: Path) -> None:
    """Six processes, one stale file, again and again: one serves each time, and the file is its own."""
    script = (
        "import os, sys\n"
        "from stdserve.addresses import Address\n"
        "from stdserve.errors import StartError\n"
        "from stdserve.listeners import close_listeners, open_listeners\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        listeners = open_listeners([Address(line.strip(), kind='unix')])\n"
        "    except StartError:\n"
        "        print('no', flush=True)\n"
        "    else:\n"
        "        print(os.stat(line.strip()).st_ino, flush=True)\n"
    )
    starters = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    try:
        for number in range(50):
            path = f"sock{number}"
            leave_stale(path)
            for starter in starters:
                assert starter.stdin is not None
                starter.stdin.write(path + "\n")
                starter.stdin.flush()
            answers = [starter.stdout.readline().strip() for starter in starters if starter.stdout is not None]
            assert [str(os.stat(path).st_ino)] == [answer for answer in answers if answer != "no"]
            connect(f"unix:{path}").close()
    finally:
        for starter in starters:
            starter.communicate(timeout=DEADLINE)


def test_while_another_starts_a_server_does_not(folder: Path) -> None:
    """It holds the lock, and both cannot be meant."""
    import fcntl

    lock = Path("sock.stdserve-lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StartError, match="another server is starting there"):
            open_listeners([Address("sock", kind="unix")])
    assert lock.exists()
    with listening("sock"):
        assert not lock.exists()


@pytest.mark.parametrize("third", [False, True], ids=["nobody", "a third"])
def test_a_lock_that_was_removed_before_it_was_had_is_none(folder: Path, third: bool) -> None:
    """Its holder was done between our opening it and our locking it; a third server may have the next one."""
    script = (
        "import fcntl, os\n"
        "from stdserve import unix\n"
        "flock = fcntl.flock\n"
        "def late(*arguments):\n"
        "    os.unlink('sock.stdserve-lock')\n"
        f"    if {third}: open('sock.stdserve-lock', 'w').close()\n"
        "    flock(*arguments)\n"
        "fcntl.flock = late\n"
        "try:\n"
        "    unix.listen_unix('sock', 0o600, 5)\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE)
    assert ("another server is starting there\n", "") == (result.stdout, result.stderr)
    assert third == bool(os.listdir())


def test_a_file_that_is_another_servers_by_now_is_not_removed(folder: Path) -> None:
    """Somebody removed ours, somebody else came."""
    with listening("sock"):
        os.unlink("sock")
        other = listen_unix("sock", 0o600, 5)
    assert ["sock"] == os.listdir()
    other.close()
    with listening("sock"):
        os.unlink("sock")
    assert [] == os.listdir()


def test_the_file_is_removed_from_where_it_was_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may go elsewhere meanwhile."""
    with listening("sock"):
        monkeypatch.chdir("/")
    assert [] == os.listdir(folder)


def test_what_is_left_to_another_process_is_removed_by_the_one_that_made_it(folder: Path) -> None:
    """Once it is told to close for good."""
    (listener,) = listeners = open_listeners([Address("sock", kind="unix")])
    leave_listeners(listeners)
    assert -1 == listener.fileno()
    assert ["sock"] == os.listdir()
    close_listeners(listeners)
    assert [] == os.listdir()


@linux_only
def test_a_forked_child_does_not_remove_the_file() -> None:
    """Nor do workers, nor the children of a session; the process that made it does, when it stops."""
    for words in (["--mode", "fork"], ["--workers", "2"], ["--mode", "fork", "--workers", "2"]):
        with ServerProcess("--bind", "unix:sock", *words, port=None) as server:
            server.wait_for_log("^listening on unix:sock ")
            address = f"unix:{server.folder}/sock"
            for _ in range(3):
                exchange(address, b"exit\n")
            eventually(lambda server=server: len([1 for line in server.log if line.startswith("close")]) == 3)  # type: ignore[misc]
            for pid in descendants_of(server.pid):
                os.kill(pid, signal.SIGTERM)
            exchange(address, b"still here\n")
            assert (server.folder / "sock").is_socket()
            assert 0 == server.stop()
            assert not (server.folder / "sock").exists()


@linux_only
def test_an_abstract_name_leaves_no_file(folder: Path) -> None:
    """It is gone with its last listener; a second server is refused."""
    name = f"@stdserve-test-{os.getpid()}"
    with listening(name) as listener:
        assert [] == os.listdir()
        assert b"\0" + name[1:].encode() == listener.getsockname()
        assert "address already in use" == refusal(name).lower()
        connect(f"unix:{name}").close()
    with listening(name):
        pass


@linux_only
def test_a_client_is_who_the_kernel_says() -> None:
    """The pid and uid of the process at the other end, as a pair; a name of its own makes no difference."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert (f"unix:uid={os.getuid()}", os.getpid()) == client_of(ours)
    script = (
        "import os, socket, sys\n"
        "client = socket.socket(socket.AF_UNIX)\n"
        "client.bind('\\0\\x1b[2J forged by %d' % os.getpid())\n"
        "client.connect(sys.argv[1])\n"
        "print(os.getpid())\n"
    )
    with ServerProcess("--bind", "unix:sock", "--format", "peer", port=None) as server:
        server.wait_for_log("^listening")
        path = str(server.folder / "sock")
        command = [sys.executable, "-c", script, path]
        pid = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE).stdout.strip()
        server.wait_for_log(f"^open unix:uid={os.getuid()},pid={pid}$")
        exchange(f"unix:{path}", b"one\n")
        server.wait_for_output(f"unix:uid={os.getuid()},pid={os.getpid()} one\n".encode())


def test_a_file_whose_folder_became_another_user_s_is_left(folder: Path) -> None:
    """A server that cannot remove it any more ends all the same; here the folder has gone."""
    Path("gone").mkdir()
    with listening("gone/sock"):
        os.rename("gone", "moved")
    assert ["sock"] == os.listdir("moved")


@linux_only
def test_a_server_that_we_may_not_ask_is_not_touched(folder: Path) -> None:
    """One that lets nobody in, and lets us not either: whether it lives cannot be known."""
    leave_stale("sock")
    os.chmod("sock", 0)
    drop = [] if os.getuid() else [peer_program("setpriv"), "--bounding-set=-all", "--inh-caps=-all"]
    finished = run_script(
        """
        from stdserve.unix import listen_unix

        try:
            listen_unix("sock", 0o600, 5)
        except OSError as error:
            print(error.strerror)
        """,
        before=drop,
    )

    words = "permission denied: whether a server lives there cannot be found out\n"
    assert (words, "") == (finished.stdout, finished.stderr)
    assert Path("sock").is_socket()


def test_the_main_thread_is_not_needed(folder: Path) -> None:
    """A server beside a test may be opened by any thread."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with listening("sock"):
                connect("unix:sock").close()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE)
    assert [] == failures
