"""The fixture ``stdserve_server``, in a pytest of its own: which tests fail, with which words, and what stays."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from processes import DEADLINE

pytest_plugins = ["pytester"]

HANDLERS = """
import socket, threading
import pytest
from stdserve import LineHandler, SessionError

class Upper(LineHandler):
    def line_received(self, line):
        return line.upper()

class Fails(Upper):
    def line_received(self, line):
        if line == "bad":
            raise ValueError("no such word")
        return super().line_received(line)

class Stays(Upper):
    def connection_lost(self, reason):
        threading.Event().wait(60)
"""

#: Where a checkout is imported, nobody has installed its entry point.
BY_NAME = [] if metadata.entry_points(group="pytest11", name="stdserve") else ["-p", "stdserve.pytest_plugin"]


def run(pytester: pytest.Pytester, tests: str, *words: str) -> pytest.RunResult:
    """Run these tests in a process of their own, where every warning is an error."""
    pytester.makepyfile(HANDLERS + tests)
    return pytester.runpytest_subprocess(*BY_NAME, "-W", "error", "-p", "no:cacheprovider", *words, timeout=DEADLINE)


def test_a_test_gets_a_server_of_each_mode(pytester: pytest.Pytester) -> None:
    """One or several; when it is over nobody listens any more."""
    tests = """
addresses = []

@pytest.mark.parametrize("settings", [{}, {"mode": "single"}, {"mode": "fork"}, {"workers": 2}], ids=str)
def test_it(stdserve_server, settings):
    first, second = stdserve_server(Upper, **settings), stdserve_server(Upper, **settings)
    assert first.address != second.address
    assert "ONE" == first.client().ask("one")
    assert "TWO" == second.client().ask("two")
    addresses.extend([first.address, second.address])

def test_they_are_gone():
    assert len(addresses) == 8
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
"""
    run(pytester, tests).assert_outcomes(passed=5)


def test_a_handler_that_raises_fails_its_test_and_no_other(pytester: pytest.Pytester) -> None:
    """In every mode; the report has the handler's traceback."""
    tests = """
@pytest.mark.parametrize("settings", [{}, {"mode": "single"}, {"mode": "fork"}, {"workers": 2}], ids=str)
@pytest.mark.parametrize("word", ["good", "bad", "fine"])
def test_it(stdserve_server, settings, word):
    client = stdserve_server(Fails, **settings).client()
    client.send(word)
    client.finish()
"""
    result = run(pytester, tests, "-v")
    result.assert_outcomes(passed=8, failed=4)
    result.stdout.fnmatch_lines(["*test_it?bad-*FAILED*", "*test_it?fine-*PASSED*"])
    result.stdout.fnmatch_lines(["*SessionError: the session with 127.0.0.1:* failed:", "*ValueError: no such word"])
    assert 4 == str(result.stdout).count(" FAILED ")


def test_a_session_that_does_not_end_fails_its_test(pytester: pytest.Pytester) -> None:
    """As its servers are stopped; its neighbours are none the worse."""
    tests = """
def test_before(stdserve_server):
    assert "A" == stdserve_server(Upper).client().ask("a")

def test_it(stdserve_server):
    assert "A" == stdserve_server(Stays, graceful_timeout=0.2).client().ask("a")

def test_after(stdserve_server):
    assert "A" == stdserve_server(Upper).client().ask("a")
"""
    result = run(pytester, tests)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_it*", "*is still open 0.2 s after all clients have gone; it*"]
    )


def test_what_is_meant_is_no_failure(pytester: pytest.Pytester) -> None:
    """Nor is what has been looked at already, nor what is expected to fail."""
    tests = """
def test_ignored(stdserve_server):
    stdserve_server(Fails, failures="ignore").client().send("bad")

def test_looked_at(stdserve_server):
    server = stdserve_server(Fails)
    client = server.client()
    client.send("bad")
    client.finish()
    with pytest.raises(SessionError, match="no such word"):
        server.check()

@pytest.mark.xfail(raises=SessionError, strict=True)
def test_expected(stdserve_server):
    client = stdserve_server(Fails).client()
    client.send("bad")
    client.finish()
"""
    run(pytester, tests).assert_outcomes(passed=2, xfailed=1)


def test_a_test_that_fails_itself_fails_once(pytester: pytest.Pytester) -> None:
    """Whatever it has left open, and whatever its handler has done."""
    tests = """
def test_it(stdserve_server):
    server = stdserve_server(Fails)
    kept = socket.create_connection(server.address)
    kept.sendall(b"good")
    server.client().ask("bad")

def test_skips(stdserve_server):
    stdserve_server(Stays)
    pytest.skip("after all")
"""
    result = run(pytester, tests, "-W", "ignore::pytest.PytestUnraisableExceptionWarning")
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*SendError: send data error: the server ended the session"])


def test_another_fixture_may_hold_a_client_longer(pytester: pytest.Pytester) -> None:
    """It is taken down before the servers are."""
    tests = """
@pytest.fixture
def client(stdserve_server):
    with socket.create_connection(stdserve_server(Upper).address) as client:
        yield client

def test_it(client):
    client.sendall(b"one\\n")
    assert b"ONE\\n" == client.recv(100)
"""
    run(pytester, tests).assert_outcomes(passed=1)


def test_wrong_arguments_are_told_where_they_stand(pytester: pytest.Pytester) -> None:
    """In the test, and nothing runs."""
    result = run(pytester, "def test_it(stdserve_server):\n    stdserve_server(Upper, mode='none')\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConfigError: --mode must be one of*"])


def test_it_is_in_the_list_of_fixtures(pytester: pytest.Pytester) -> None:
    """With what it is for."""
    result = run(pytester, "", "--fixtures")
    result.stdout.fnmatch_lines(["stdserve_server*", "*Start servers: *"])


def test_pytest_starts_without_the_rest_of_the_package(tmp_path: Path) -> None:
    """Of stdserve it loads the plugin alone, and coverage sees all that comes later."""
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    print('loaded', sorted(name for name in sys.modules if name.startswith('stdserve')))\n"
    )
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", *BY_NAME, "-q", "-s", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert "loaded ['stdserve', 'stdserve.pytest_plugin', 'stdserve.version']" in result.stdout
