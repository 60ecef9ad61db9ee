"""A stop and those who have just come: whom the kernel has connected is served, first words are waited for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import DEADLINE, ServerProcess, connect, descendants_of, read_all
from test_modes import MODES, peer_of

#: A minute in the place of 0.3 seconds, so that no test is too slow.
HANDLER = """
import stdserve, stdserve.stopping
stdserve.stopping.FIRST_SECONDS = 60.0
class Upper(stdserve.LineHandler):
    def line_received(self, line):
        return line.upper()
"""


@contextmanager
def serving(tmp_path: Path, mode: str, *words: str) -> Iterator[ServerProcess]:
    """A server that answers in capitals; it must end well once it was told to."""
    (tmp_path / "mine.py").write_text(HANDLER)
    with ServerProcess(*MODES[mode], "--handler", "mine:Upper", *words, cwd=tmp_path) as server:
        yield server
        assert 0 == server.wait()


def tell(pids: list[int], signum: int) -> None:
    """Send a signal to several processes."""
    for pid in pids:
        os.kill(pid, signum)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "single"])
def test_whoever_is_connected_when_a_stop_begins_is_served(tmp_path: Path, mode: str) -> None:
    """Not reset with the listening socket: a proxy that has connected cannot send its client elsewhere any more."""
    with serving(tmp_path, mode) as server:
        address = server.address
        # Stopped like this, none of its processes accepts; the kernel does.
        pids = [server.pid, *descendants_of(server.pid)]
        tell(pids, signal.SIGSTOP)
        clients = [connect(address) for _ in range(20)]
        for client in clients:
            client.sendall(b"one\n")
        server.process.send_signal(signal.SIGTERM)
        tell(pids, signal.SIGCONT)
        for client in clients:
            with client:
                assert b"ONE\n" == read_all(client)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "single"])
def test_a_stop_waits_for_the_first_words_of_whoever_has_just_come(tmp_path: Path, mode: str) -> None:
    """They are heard and answered; then the session ends, although the client has not."""
    with serving(tmp_path, mode) as server, connect(server.address) as client:
        server.wait_for_log("open " + peer_of(client))
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("^drain sessions=1")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(DEADLINE)
        client.sendall(b"one\n")
        assert b"ONE\n" == read_all(client)


def test_nobody_is_taken_beyond_the_most_sessions(tmp_path: Path) -> None:
    """Who is over --max-conns when a stop begins is reset, as ever."""
    with serving(tmp_path, "thread", "--max-conns", "1") as server, connect(server.address) as first:
        first.sendall(b"one\n")
        assert b"ONE\n" == first.recv(4)
        with connect(server.address) as second:
            second.sendall(b"two\n")
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                read_all(second)
        assert b"" == read_all(first)
