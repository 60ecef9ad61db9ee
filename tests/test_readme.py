"""Every command, example and table of the README, run or compared."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from authority import Authority
from processes import (
    DEADLINE,
    ServerProcess,
    children_of,
    connect,
    eventually,
    exchange,
    peer_program,
    read_all,
)

from stdserve import cli
from stdserve.flags import usage_of
from stdserve.options import Options
from stdserve.settings import read_settings, setting_groups

README = Path(__file__).resolve().parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def block(name: str) -> str:
    """The fenced block after the comment of that name."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w*\n(.*?)```\n", TEXT, re.DOTALL)
    assert found, name
    return found[1]


def lecture_commands() -> list[list[str]]:
    """The commands of the lecture's table, in its order."""
    table = TEXT.partition("## For a learner")[2].partition("\n\nThe client also")[0]
    return [shlex.split(command) for command in re.findall(r"\| `python (-m [^`]*)` \|", table)]


def test_the_first_line_is_the_command() -> None:
    """Before anything else."""
    assert TEXT.startswith("# `python3 -m stdserve`\n")


def test_the_session_is_what_one_sees() -> None:
    """Server, telnet, output: pasted, with ports and times of this run in place of the README's."""
    telnet = peer_program("telnet")
    with ServerProcess() as server:
        promised = block("session: server").splitlines()[1:]
        server.wait_for_log("a browser")
        assert [normal(line) for line in promised] == [normal(line) for line in server.log]

        command, *lines = block("session: client").splitlines()
        assert ["$", "telnet", "127.0.0.1", "10001"] == command.split()
        terminal, side = pty.openpty()
        client = subprocess.Popen([telnet, "127.0.0.1", str(server.port)], stdin=side, stdout=side, stderr=side)
        os.close(side)
        seen = bytearray()

        def sees(text: bytes) -> bool:
            try:
                seen.extend(os.read(terminal, 4096))
            except OSError:
                return True
            return text in seen

        eventually(lambda: sees(b"Escape character"))
        typed = lines[3:-1]
        for line in typed:
            os.write(terminal, line.encode() + b"\n")
        eventually(lambda: sees(lines[-1].encode()))
        client.wait(DEADLINE)
        os.close(terminal)
        for line in [*lines[:3], lines[-1]]:
            assert line.encode() in seen

        first, *printed, last = block("session: result").splitlines()
        assert "".join(line + "\n" for line in printed).encode() == server.output
        server.wait_for_log("^close")
        assert [normal(first), normal(last)] == [normal(line) for line in server.log if line[:5] in ("open ", "close")]


def normal(line: str) -> str:
    """A line without what differs from run to run: ports, pid, seconds."""
    line = re.sub(r"(127\.0\.0\.1|\[::1\]):\d+", r"\1:PORT", line)
    line = re.sub(r"backlog \d+|pid \d+|seconds=[\d.]+", "N", line)
    return re.sub(r"(127\.0\.0\.1'?,? )\d+", r"\1PORT", line)


def serve(words: list[str]) -> ServerProcess:
    """One of the table's servers, on a free port."""
    assert ["-m", "stdserve"] == words[:2]
    return ServerProcess(*words[2:])


def client(words: list[str], address: tuple[str, int], **popen: object) -> subprocess.CompletedProcess[bytes]:
    """One of the table's clients, with this address in the place of the lecture's."""
    words = [word.replace("127.0.0.1:10001", "%s:%d" % address) for word in words]
    return subprocess.run([sys.executable, *words], capture_output=True, timeout=DEADLINE, **popen)  # type: ignore[call-overload, no-any-return]


def test_one_client_then_the_server_ends() -> None:
    """The lecture's first program."""
    with serve(lecture_commands()[0]) as server:
        exchange(server.address, b"ffff\naaaa\nexit\n")
        assert 0 == server.wait()
        assert b"ffff\naaaa\n" == server.output


def test_one_client_after_the_other() -> None:
    """The second: the context manager."""
    with serve(lecture_commands()[1]) as server:
        for _ in range(3):
            exchange(server.address, b"ping from client")
        server.wait_for_output(b"ping from client\n" * 3)


def test_a_read_timeout_of_five_seconds() -> None:
    """The third: after 5 s of silence, and not much before."""
    with serve(lecture_commands()[2]) as server, connect(server.address) as silent:
        silent.sendall(b"ping")
        silent.settimeout(4)
        with pytest.raises(TimeoutError):
            silent.recv(1)
        silent.settimeout(DEADLINE)
        assert b"" == read_all(silent)
        server.wait_for_log("close .* reason=idle_timeout")
        assert b"ping\n" == server.output


def test_a_thread_for_each_client() -> None:
    """The fourth: ten clients at once, in one process."""
    with serve(lecture_commands()[3]) as server:
        together(server)
        assert [] == children_of(server.pid)


def test_three_processes_and_threads() -> None:
    """The fifth: three workers (that each of them serves is shown in test_supervisor)."""
    with serve(lecture_commands()[4]) as server:
        together(server)
        assert 3 == len(children_of(server.pid))


def test_a_process_for_each_client() -> None:
    """The owner's card."""
    with serve(lecture_commands()[5]) as server:
        together(server, lambda: 10 == len(children_of(server.pid)))


def together(server: ServerProcess, meanwhile: object = lambda: True) -> None:
    """Ten clients are connected at once; the last is served first."""
    clients = [connect(server.address) for _ in range(10)]
    for number, connection in reversed(list(enumerate(clients))):
        connection.sendall(b"client %d\n" % number)
        server.wait_for_output(b"client %d\n" % number)
    eventually(meanwhile)  # type: ignore[arg-type]
    for connection in clients:
        connection.close()


def test_the_clients_of_the_table() -> None:
    """Connect, send, close; and with timeouts."""
    plain, timed = lecture_commands()[6:]
    with ServerProcess() as server:
        for words, line in ((plain, b"ping 1\n"), (timed, b"ping\n")):
            result = client(words, server.address)
            assert (0, b"", b"") == (result.returncode, result.stdout, result.stderr)
            server.wait_for_output(line)
        address = server.address
        assert 0 == server.stop()
    result = client(timed, address)
    assert (1, b"") == (result.returncode, result.stdout)
    assert b"connection refused" in result.stderr


def test_the_client_sends_its_standard_input(tmp_path: Path) -> None:
    """`< file`."""
    words = ["-m", "stdserve.client", "127.0.0.1:10001"]
    assert "`python " + " ".join(words) + " < file`" in TEXT
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\nthree")
    with ServerProcess() as server, path.open("rb") as stdin:
        assert 0 == client(words, server.address, stdin=stdin).returncode
        server.wait_for_output(b"one\ntwo\nthree\n")


def client_section() -> str:
    """What the README says of the client."""
    return TEXT.partition("\n\nThe client also")[2].partition("\n\nA line ends")[0]


def test_every_option_of_the_client_is_explained() -> None:
    """Those of its help, and no others."""
    told = client(["-m", "stdserve.client", "--help"], ("", 0)).stdout.decode()
    options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", told, re.MULTILINE)) - {"--help"}
    assert {"--tls", "--proxy-source"} <= options
    assert options == set(re.findall(r"`(--[a-z-]+)`", client_section()))


def test_the_client_is_the_proxy_in_front() -> None:
    """The server logs the client that the header tells of."""
    words = re.search(r"`python (-m stdserve.client \S+ ping --proxy-protocol [^`]*)`", client_section())
    assert words is not None
    with ServerProcess("--proxy-protocol") as server:
        result = client(words[1].split(), server.address)
        assert (0, b"", b"") == (result.returncode, result.stdout, result.stderr)
        server.wait_for_log("^open 192.0.2.1:4711")
        server.wait_for_output(b"ping\n")


def test_what_the_server_prints_pipes() -> None:
    """`python3 -m stdserve | grep ERROR`."""
    assert "`python3 -m stdserve | grep ERROR`" in TEXT
    with ServerProcess(stdout=subprocess.PIPE) as server:
        grep = subprocess.Popen(["grep", "ERROR"], stdin=server.process.stdout, stdout=subprocess.PIPE)
        exchange(server.address, b"fine\nERROR 1\nfine\n")
        assert 0 == server.stop()
        assert b"ERROR 1\n" == grep.communicate(timeout=DEADLINE)[0]


def test_the_handler_in_six_lines_and_its_test_in_six(tmp_path: Path) -> None:
    """Counted, and run as their reader would: the test by pytest, the handler by itself and under the runner."""
    handler, test = block("example: handler"), block("example: test")
    assert 6 >= len([line for line in handler.splitlines() if line])
    assert 6 >= len([line for line in test.splitlines() if line])
    (tmp_path / "upper.py").write_text(handler)
    (tmp_path / "test_upper.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # or pytest would look for one in the folders above

    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_upper.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert 0 == result.returncode, result.stdout

    words = re.search(r"`python -m stdserve (--handler upper:Upper --workers 4)`", TEXT)
    assert words is not None
    with ServerProcess(*words[1].split(), cwd=tmp_path) as server:
        assert b"PING\n" == exchange(server.address, b"ping")
        assert 4 == len(children_of(server.pid))


def test_your_own_tests_are_run_by_pytest(tmp_path: Path) -> None:
    """Three ways, each as it stands."""
    (tmp_path / "upper.py").write_text(block("example: handler"))
    (tmp_path / "test_own.py").write_text(block("example: tests"))
    # Measured, with others on the machine, an example may take more than hypothesis's fifth of a second.
    patient = (
        "from hypothesis import settings\nsettings.register_profile('x', deadline=None)\nsettings.load_profile('x')\n"
    )
    (tmp_path / "conftest.py").write_text(patient)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    plugin = [] if metadata.entry_points(group="pytest11", name="stdserve") else ["-p", "stdserve.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", *plugin, "-q", "-W", "error", "-p", "no:cacheprovider", "test_own.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert 0 == result.returncode, result.stdout
    assert "3 passed" in result.stdout


def test_changes_are_served_while_you_write(tmp_path: Path) -> None:
    """By the README's own words but for the port."""
    words = re.search(r"`python -m stdserve (--handler upper:Upper --reload)`", TEXT)
    assert words is not None
    handler = block("example: handler")
    (tmp_path / "upper.py").write_text(handler)
    with ServerProcess(*words[1].split(), cwd=tmp_path) as server:
        assert b"PING\n" == exchange(server.address, b"ping")
        (tmp_path / "upper.py").write_text(handler.replace("upper()", "title()"))
        eventually(lambda: b"Ping\n" == exchange(server.address, b"ping"))


def test_any_other_handler_too(tmp_path: Path) -> None:
    """http.server's, by the README's own words but for the port."""
    words = re.search(r"`python -m stdserve (--handler http\S+) 8000`", TEXT)
    assert words is not None
    (tmp_path / "file").write_text("hello")
    with ServerProcess(*words[1].split(), cwd=tmp_path) as server:
        assert exchange(server.address, b"GET /file HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nhello")


def test_what_the_readme_says_there_is_to_use_is_there() -> None:
    """Every name of the table; what is written as an attribute of a handler is one."""
    import stdserve

    table = TEXT.partition("| to use |")[2].partition("\n\n")[0]
    names = {name for row in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    assert {"LineHandler", "serve", "serving", "Client", "ForkServer"} <= names
    attributes = set(re.findall(r"^\| `(?:self\.)?(raw_line_received|peer)\b", table, re.MULTILINE))
    assert {"raw_line_received", "peer"} == attributes
    assert all(hasattr(stdserve.LineHandler, name) for name in attributes)
    assert names - attributes - {"self"} <= set(stdserve.__all__)


def test_what_the_readme_says_of_many_machines_leads_somewhere() -> None:
    """Its links to files that are there, its flags to options that there are."""
    section = TEXT.partition("### From one machine to many")[2].partition("\n## ")[0]
    links = re.findall(r"\]\(([^)]*)\)", section)
    assert 3 == len(links)
    assert all((README.parent / link).exists() for link in links)
    flags = {flag for _, options in setting_groups() for option in options for flag in option.metadata["flags"]}
    assert {"--proxy-protocol", "--workers"} <= set(re.findall(r"`(--[a-z-]+)`", section)) <= flags


def option_table() -> str:
    """The README's table of options, in their groups, from the dataclass."""
    rows = ["| option | what it does |", "|---|---|"]
    for title, options in setting_groups():
        rows.append(f"| **{title}** | |")
        for option in options:
            words, text = usage_of(option)
            flags = ", ".join(f"`{flag}`" for flag in option.metadata["flags"])
            name = (f"{flags} {words}" if flags else f"`{words}`").strip()
            rows.append(f"| {name} | " + text.replace("|", "\\|") + " |")
    return "\n".join(rows) + "\n"


def test_the_table_of_options_is_generated() -> None:
    """To write it anew: `python tests/test_readme.py`."""
    table = TEXT.partition("<!-- generated: options -->\n")[2].partition("<!-- end -->")[0]
    assert option_table() == table


def test_the_settings_file_and_its_like_are_what_the_readme_says(tmp_path: Path) -> None:
    """The example is read, and does what stands beside it."""
    path = tmp_path / "server.ini"
    path.write_text(block("example: settings"))
    options = read_settings({"config": str(path)}, {})[0].options
    assert (("127.0.0.1:9000", "[::1]:9000"), 300.0) == (options.bind, options.idle_timeout)
    assert (True, " back soon ") == (options.raw, options.overflow_message)
    assert "`STDSERVE_IDLE_TIMEOUT=5s`" in TEXT
    assert 5.0 == read_settings({}, {"STDSERVE_IDLE_TIMEOUT": "5s"})[0].options.idle_timeout


def test_the_table_of_faults_is_what_the_script_prints() -> None:
    """The same rows in the same words; figures are those of some machine, and tested in test_faults_example."""
    script = README.parent / "examples" / "faults.py"
    assert "`python examples/faults.py`" in TEXT
    printed = subprocess.run(
        [sys.executable, str(script), "14", "31"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines()
    table = block("generated: faults").splitlines()

    def words(line: str) -> list[str]:
        return re.split(r" {2,}", line.strip())[:3]

    assert words(printed[0]) == words(table[0])
    for row in printed[1:3]:
        assert words(row) in [words(line) for line in table[1:]]
    numbers = [line.split()[0] for line in table[1:-1]]
    listed = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60).stdout
    assert 12 == len(numbers)
    assert all(number in listed for number in ("9", "20"))


def test_the_exit_codes_are_those_of_the_help() -> None:
    """Two places, one truth."""
    rows = dict(re.findall(r"^\| (\d) \| ([^:|]*)", TEXT, re.MULTILINE))
    told = dict(re.findall(r"(\d) ([a-z ]+)", cli._EXIT_CODES))
    assert sorted(told) == sorted(rows) == ["0", "1", "2", "3"]
    assert all(rows[code].startswith(meaning.strip()) for code, meaning in told.items())
    assert Options().port == 10001


@pytest.mark.parametrize("words", [["--workers", "2"], []], ids=["workers", "alone"])
def test_every_signal_of_the_table_does_what_it_says(words: list[str], authority: Authority) -> None:
    """Each is sent, and the log says what came of it; what is not used is left to the system."""
    table = TEXT.partition("| signal | with `--workers` | without |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`SIG.*) \| (.*) \| (.*) \|$", table, re.MULTILINE)
    told = {name: row[1 if words else 2] for row in rows for name in re.findall(r"`(SIG\w+)`", row[0])}
    assert {"SIGTERM", "SIGINT", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2"} == set(told)
    does = {
        "SIGHUP": "^reloaded workers=2" if words else "^reload certificate=",
        "SIGTTIN": "^workers count=3",
        "SIGTTOU": "^workers count=2",
        "SIGUSR1": "^stack pid=.* thread=MainThread: ",
        "SIGUSR2": "^reopened files of ",
    }
    pair = authority.pair()
    tls = ["--tls-cert", pair.certfile, "--tls-key", str(pair.keyfile)]
    for stop in ("SIGTERM", "SIGINT"):
        with ServerProcess(*words, *tls, "--log-level", "debug") as server:
            server.wait_for_log("^listening")
            for name, line in does.items():
                if told[name] != "not used":
                    server.process.send_signal(signal.Signals[name])
                    server.wait_for_log(line)
            assert 0 == server.stop(signal.Signals[stop])


def test_the_test_command_is_marked_for_ci() -> None:
    """CI runs what the README says."""
    assert "tox" in block("test command")


if __name__ == "__main__":
    start, _, rest = TEXT.partition("<!-- generated: options -->\n")
    README.write_text(
        start + "<!-- generated: options -->\n" + option_table() + "<!-- end -->" + rest.partition("<!-- end -->")[2]
    )
