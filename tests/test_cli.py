"""The command line as its users meet it: first words, exit codes, one line for each mistake."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE, ServerProcess, exchange, free_port

from stdserve import cli
from stdserve.version import __version__


def run(*words: str, **popen: object) -> subprocess.CompletedProcess[str]:
    """Run a command line that is expected to end by itself."""
    command = [sys.executable, "-m", "stdserve", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, **popen)  # type: ignore[call-overload, no-any-return]


def test_the_first_word_is_listening_and_every_address_has_its_line(tmp_path: Path) -> None:
    """Both loopback addresses, on one port, and then how to try it."""
    with ServerProcess() as server:
        assert server.wait_for_log("^listening on 127.0.0.1:%d .*mode thread" % server.port)
        if has_ipv6():
            assert server.wait_for_log(r"^listening on \[::1\]:%d " % server.port)
        for way in ("telnet", "socket.create_connection", "stdserve.client", "http://"):
            server.wait_for_log(re.escape(way))
        assert server.log[0].startswith("listening on 127.0.0.1:")
        assert b"" == server.output


def has_ipv6() -> bool:
    """Whether this machine has ::1."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def test_without_words_it_listens_on_port_10001() -> None:
    """The lecture's port; where another process of this machine has it, the message names it."""
    with ServerProcess(port=None) as server:
        line = server.wait_for_log(".")[0] and server.log[0]
        assert "127.0.0.1:10001" in line


def test_bind_is_repeatable_and_takes_the_port_that_was_given() -> None:
    """A HOST without a port uses the positional one."""
    with ServerProcess("-b", "127.0.0.1", "--bind", "127.0.0.2:0") as server:
        first = int(server.wait_for_log(r"^listening on 127\.0\.0\.1:(\d+) ")[1])
        second = int(server.wait_for_log(r"^listening on 127\.0\.0\.2:(\d+) ")[1])
        exchange(("127.0.0.1", first), b"one")
        exchange(("127.0.0.2", second), b"two")
        assert 0 == server.stop()
        assert b"one\ntwo\n" == server.output


def test_an_empty_host_means_all_interfaces() -> None:
    """As in the lecture's bind(('', 10001)); the hint names an address that can be connected to."""
    with ServerProcess("--bind", ":0", port=None) as server:
        port = int(server.wait_for_log(r"^listening on 0\.0\.0\.0:(\d+) ")[1])
        server.wait_for_log(f"telnet 127.0.0.1 {port}")
        exchange(("127.0.0.1", port), b"ping")


def test_an_ipv6_address_is_shown_with_the_brackets_each_tool_wants() -> None:
    """telnet takes it bare, a URL in brackets."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with ServerProcess("--bind", "[::]:0", port=None) as server:
        port = int(server.wait_for_log(r"^listening on \[::\]:(\d+) ")[1])
        server.wait_for_log(f"telnet ::1 {port}")
        server.wait_for_log(re.escape(f"http://[::1]:{port}"))
        exchange(("::1", port), b"ping")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["x"], 2, "port must be a number from 0 to 65535, not 'x'"),
        (["65536"], 2, "port must be a number from 0 to 65535, not '65536'"),
        (["--mode", "threads"], 2, "--mode must be one of single, thread, fork, event, not 'threads'"),
        (["--workers", "0"], 2, "--workers must be at least 1, not 0"),
        (["--workers", "two"], 2, "--workers must be a whole number, not 'two'"),
        (
            ["--idle-timeout", "-5"],
            2,
            "--idle-timeout must be a duration above 0 such as 500ms, 5s, 2m or 1h, not '-5'",
        ),
        (["--idle-timeout", "0"], 2, "--idle-timeout must be above 0, not 0.0"),
        (["--idle-timeout"], 2, "argument -i/--idle-timeout: expected one argument"),
        (["--framing", "word"], 2, "--framing must be one of line, chunk, not 'word'"),
        (["--handler", "nowhere:Handler"], 2, "--handler nowhere:Handler: cannot import 'nowhere'"),
        (["--handler", "json:Handler"], 2, "--handler json:Handler: module 'json' has no 'Handler'"),
        (["--handler", "json:JSONDecoder"], 2, "JSONDecoder is not a subclass of socketserver.BaseRequestHandler"),
        (["--handler", "json"], 2, "--handler must be module:Class, not 'json'"),
        (["--bind", "[::1"], 2, "systemd:NAME, not '[::1'"),
        (["--bind", "unix:"], 2, "--bind address must be HOST:PORT, [V6]:PORT, *:PORT, unix:PATH, "),
        (["--bind", "fd://99"], 3, "cannot listen on fd://99: it is not open"),
        (["--bind", "fd://0"], 3, "cannot listen on fd://0: it is no socket"),
        (["--bind", "systemd"], 3, "cannot listen on systemd: no sockets were passed to this process"),
        (["--bind", "unix:/nowhere/sock"], 3, "cannot listen on unix:/nowhere/sock: No such file or directory"),
        (["--bind", "unix:" + "x" * 200], 3, ": its 200 bytes are more than the "),
        (["--unix-mode", "rw"], 2, "--unix-mode must be a file mode in octal, such as 600, not 'rw'"),
        (["--bind", "unix:sock", "--reuse-port"], 2, "--reuse-port is for TCP: no --bind is a host"),
        (["--raw", "--format", "json"], 2, "--raw and --format json exclude each other"),
        (["--once", "--workers", "2"], 2, "--once and --workers exclude each other"),
        (["--bind", "no-such-host.invalid:0"], 3, "cannot listen on no-such-host.invalid:0: "),
        (["--bind", "192.0.2.1:0"], 3, "cannot listen on 192.0.2.1:0: no such address on this machine"),
        (["0", "-o", "/nowhere/file"], 3, "cannot write to /nowhere/file: No such file or directory"),
        (["-k"], 2, "leave -k out"),
        (["-l", "-p", "9000"], 2, "leave -l out"),
        (["-p", "9000"], 2, "python -m stdserve 9000"),
        (["--timeout", "5"], 2, "--idle-timeout"),
        (["--timeout=5"], 2, "--idle-timeout"),
        (["-p9000"], 2, "python -m stdserve 9000"),
        (["--nonsense"], 2, "unknown argument '--nonsense'; --help lists all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_in_one_line(words: list[str], code: int, message: str) -> None:
    """What and why, the exit code, never a traceback."""
    result = run(*words)

    assert code == result.returncode
    assert "" == result.stdout
    assert message in result.stderr
    assert 1 == result.stderr.count("\n"), result.stderr
    assert result.stderr.startswith("stdserve: ")


def test_a_port_in_use_is_told_with_its_address() -> None:
    """Exit code 3: the options are fine, the machine is not ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("--bind", f"127.0.0.1:{port}")

    assert 3 == result.returncode
    assert f"stdserve: cannot listen on 127.0.0.1:{port}: address already in use\n" == result.stderr


def test_a_low_port_without_the_right_is_told() -> None:
    """The message says what the right is called."""
    start = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not start.exists() or int(start.read_text()) <= 1:
        pytest.skip("every port is free for all on this machine")
    words: list[str] = []
    if os.getuid() == 0:
        words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    command = [*words, sys.executable, "-m", "stdserve", "-b", "127.0.0.1:1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)

    assert 3 == result.returncode
    reason = "permission denied (a port below 1024 needs root or CAP_NET_BIND_SERVICE)"
    assert f"stdserve: cannot listen on 127.0.0.1:1: {reason}\n" == result.stderr


def test_help_and_version_go_to_standard_output() -> None:
    """And are no errors."""
    result = run("--help")
    assert (0, "") == (result.returncode, result.stderr)
    assert "--max-conns" in result.stdout
    result = run("--version")
    assert (0, f"stdserve {__version__}\n") == (result.returncode, result.stdout)


def test_warnings_only_means_silence_when_all_is_well() -> None:
    """--log-level warning leaves standard error empty."""
    port = free_port()
    with ServerProcess("--bind", f"127.0.0.1:{port}", "--log-level", "warning", port=None) as server:
        assert b"" == read_when_up(("127.0.0.1", port), server)
        assert 0 == server.stop()
        assert [] == server.log


def read_when_up(address: tuple[str, int], server: ServerProcess) -> bytes:
    """Send exit as soon as the server takes connections."""
    from processes import eventually

    def up() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(address, DEADLINE).close()
            return True
        return False

    eventually(up)
    return exchange(address, b"exit\n")


def test_a_handler_of_the_users_own_runs_from_the_current_folder(tmp_path: Path) -> None:
    """module:Class, importable where the command is typed; it gets no hints about telnet."""
    (tmp_path / "mine.py").write_text(
        "from stdserve import LineHandler\n"
        "class Upper(LineHandler):\n"
        "    def line_received(self, line):\n"
        "        return line.upper()\n"
    )
    with ServerProcess("--handler", "mine:Upper", cwd=tmp_path) as server:
        assert b"PING\n" == exchange(server.address, b"ping\n")
        assert 0 == server.stop()
        assert b"" == server.output
        assert not [line for line in server.log if "telnet" in line]


def test_a_handler_of_the_standard_librarys_runs_unmodified(tmp_path: Path) -> None:
    """python -m stdserve --handler http.server:SimpleHTTPRequestHandler, with workers."""
    (tmp_path / "page.txt").write_text("hello")
    words = ["--handler", "http.server:SimpleHTTPRequestHandler", "--workers", "2"]
    with ServerProcess(*words, cwd=tmp_path) as server:
        reply = exchange(server.address, b"GET /page.txt HTTP/1.0\r\n\r\n")
        assert reply.startswith(b"HTTP/1.0 200 OK\r\n")
        assert reply.endswith(b"hello")


@pytest.mark.parametrize("closed", [(2,), (0, 2)])
def test_closed_standard_descriptors_are_survived(closed: tuple[int, ...]) -> None:
    """Neither the hints nor the log may end the server, and no socket takes the number of standard error."""
    port = free_port()
    close = "; ".join(f"os.close({fd})" for fd in closed)
    code = f"import os, sys; {close}; os.execv(sys.executable, [sys.executable, '-m', 'stdserve', '{port}'])"
    with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
        read_when_up(("127.0.0.1", port), server)
        assert {os.devnull} == {os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in closed}
        assert 0 == server.stop()


def test_closed_output_and_error_are_told_by_the_exit_code() -> None:
    """There is nowhere to say more."""
    code = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, [sys.executable, '-m', 'stdserve', '0'])"
    with ServerProcess(port=None, command=(sys.executable, "-c", code)) as server:
        assert 3 == server.wait()


def test_starting_imports_nothing_that_waits_for_its_use() -> None:
    """Until it listens it needs no more time than http.server, which imports all of email."""
    code = (
        "import os, sys; before = set(sys.modules); import stdserve.cli, stdserve.runner\n"
        "def ready(addresses): print(*set(sys.modules) - before); os.kill(os.getpid(), 15)\n"
        "stdserve.runner.serve(port=0, ready=ready)\n"
    )
    # Measuring the coverage of the process would bring modules of its own.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", code]
    modules = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=DEADLINE).stdout
    assert "stdserve.runner" in modules
    unneeded = {"asyncio", "datetime", "email", "http", "ipaddress", "json", "queue", "socketserver", "ssl", "typing"}
    unneeded |= {f"stdserve.{room}" for room in ("connection", "handlers", "metrics", "protocol", "rows", "servers")}
    unneeded |= {f"stdserve.{room}" for room in ("status", "status_server", "supervisor")}
    assert set() == unneeded & set(modules.split())


def test_main_returns_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs that call it."""
    assert 2 == cli.main(["--mode", "none"])
    assert "stdserve: --mode must be one of" in capsys.readouterr().err
