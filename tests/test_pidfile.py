"""The pid file: written, locked, removed by the one who made it; a dead server's is taken over, a living one's not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE, ServerProcess, children_of, exchange

from stdserve import pidfile
from stdserve.errors import StartError
from stdserve.pidfile import pid_file


@pytest.mark.parametrize("words", [[], ["--workers", "2"], ["--mode", "fork"]], ids=" ".join)
def test_the_file_has_the_pid_to_signal_and_goes_with_the_server(words: list[str], tmp_path: Path) -> None:
    """Not that of a worker or of a session; readable for all."""
    path = tmp_path / "pid"
    with ServerProcess("--pid", str(path), *words) as server:
        exchange(server.address, b"ping")
        assert f"{server.pid}\n" == path.read_text()
        assert 0o644 == path.stat().st_mode & 0o777
        assert 0 == server.stop()
    assert not path.exists()


def test_a_second_server_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    """Exit code 3, one line; the first goes on."""
    path = tmp_path / "pid"
    with ServerProcess("--pid", str(path)) as first:
        assert first.port
        command = [sys.executable, "-m", "stdserve", "0", "--pid", "pid"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=tmp_path)
        assert 3 == second.returncode
        assert f"stdserve: --pid {path}: a server runs already, pid {first.pid}\n" == second.stderr
        assert f"{first.pid}\n" == path.read_text()
        exchange(first.address, b"ping")
        assert 0 == first.stop()
    assert not path.exists()


@pytest.mark.parametrize("words", [[], ["--workers", "2"]], ids=" ".join)
def test_the_file_of_a_server_that_was_killed_is_taken_over(words: list[str], tmp_path: Path) -> None:
    """Whatever process may have that pid by now, and though workers live on: the lock has died with its holder."""
    path = tmp_path / "pid"
    with ServerProcess("--pid", str(path), *words) as first:
        assert first.port
        workers = children_of(first.pid)
        first.process.kill()
        assert -signal.SIGKILL == first.process.wait(DEADLINE)
        assert f"{first.pid}\n" == path.read_text()
        path.write_text(f"{os.getpid()}\n" + " " * 5)
        try:
            with ServerProcess("--pid", str(path)) as second:
                assert second.port
                assert f"{second.pid}\n" == path.read_text()
                assert 0 == second.stop()
            assert not path.exists()
        finally:
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)


def test_the_file_goes_when_the_start_fails(tmp_path: Path) -> None:
    """For whatever reason."""
    command = [sys.executable, "-m", "stdserve", "--pid", str(tmp_path / "pid"), "-b", "192.0.2.1:0"]
    assert 3 == subprocess.run(command, capture_output=True, timeout=DEADLINE).returncode
    assert [] == list(tmp_path.iterdir())


def test_what_cannot_be_a_pid_file_is_told_and_left_alone(tmp_path: Path) -> None:
    """No link is followed, nothing overwritten that is no pid: root writes there, and others may have made it."""
    target = tmp_path / "target"
    target.write_text("12")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "first").write_text("34")
    (tmp_path / "second").hardlink_to(tmp_path / "first")
    (tmp_path / "notes").write_text("1 or 2\n")
    os.mkfifo(tmp_path / "fifo")
    reasons = {
        "link": "it is a symbolic link",
        "second": "what is there is no file of its own",
        "fifo": "what is there is no file of its own",
        "notes": "what is there is no pid file",
        ".": "Is a directory",
        "nowhere/pid": "No such file or directory",
    }
    for name, reason in reasons.items():
        path = os.path.abspath(tmp_path / name)
        with pytest.raises(StartError, match=f"^{re.escape(f'--pid {path}: {reason}')}$"), pid_file(path):
            pytest.fail("it began")
    assert ("12", "34", "1 or 2\n") == tuple((tmp_path / name).read_text() for name in ("target", "first", "notes"))


def test_a_file_that_cannot_be_written_is_a_start_error() -> None:
    """Exit code 3, one line."""
    command = [sys.executable, "-m", "stdserve", "0", "--pid", "/proc/pid"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert 3 == result.returncode
    assert re.fullmatch("stdserve: --pid /proc/pid: (No such file or directory|Permission denied)\n", result.stderr)


def test_a_lock_without_a_pid_is_told_too(tmp_path: Path) -> None:
    """Of a server that has locked and not yet written."""
    path = tmp_path / "pid"
    with pid_file(str(path)):
        os.truncate(path, 0)
        with pytest.raises(subprocess.CalledProcessError) as caught:
            claim(path, check=True)
    assert "a server runs already, pid not written yet" in caught.value.stderr


def claim(path: Path, check: bool = False, then: str = "pass") -> subprocess.CompletedProcess[str]:
    """Let another process hold the file for a moment."""
    code = f"from stdserve.pidfile import pid_file\nwith pid_file({str(path)!r}):\n    {then}\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=check)


def test_only_the_process_that_made_the_file_removes_it(tmp_path: Path) -> None:
    """Not a child that leaves the block."""
    path = tmp_path / "pid"
    code = "import os\n    child = os.fork()\n    if child: os.waitpid(child, 0); assert os.path.exists(%r)" % str(path)
    result = claim(path, then=code)
    assert (0, "") == (result.returncode, result.stderr)
    assert not path.exists()


def test_a_file_that_is_not_ours_any_more_stays(tmp_path: Path) -> None:
    """Somebody has put his own there; and one that somebody has removed is no error."""
    path = tmp_path / "pid"
    with pid_file(str(path)):
        path.unlink()
        path.write_text("5\n")
    assert "5\n" == path.read_text()
    path.unlink()
    with pid_file(str(path)):
        path.unlink()


def test_a_file_that_is_removed_as_we_lock_it_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last holder ended between our opening and our locking: what we have locked is nobody's any more."""
    path = tmp_path / "pid"
    lock = pidfile._lock
    left = [True]

    def lock_late(fd: int) -> None:
        if left:
            left.clear()
            path.unlink()
        lock(fd)

    monkeypatch.setattr(pidfile, "_lock", lock_late)
    with pid_file(str(path)):
        assert f"{os.getpid()}\n" == path.read_text()
    assert not path.exists()


def test_there_is_one_holder_at_a_time(tmp_path: Path) -> None:
    """Four processes that come and go as fast as they can, each alone whenever it holds the file."""
    code = (
        "import os, sys\n"
        "from stdserve.errors import StartError\n"
        "from stdserve.pidfile import pid_file\n"
        "path, marker = sys.argv[1:]\n"
        "held = 0\n"
        "while held < 100:\n"
        "    try:\n"
        "        with pid_file(path):\n"
        "            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))\n"
        "            os.unlink(marker)\n"
        "            held += 1\n"
        "    except StartError as error:\n"
        "        assert 'a server runs already' in str(error), error\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "pid"), str(tmp_path / "marker")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    assert [(b"", 0)] * 4 == [(process.communicate(timeout=DEADLINE)[1], process.returncode) for process in processes]
    assert [] == list(tmp_path.iterdir())
