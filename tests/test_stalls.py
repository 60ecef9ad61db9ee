"""A hook that keeps an event loop is named; who is quick is not, and an idle loop is not looked at."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from processes import ServerProcess, connect, eventually

from stdserve import LineHandler, serving

SLEEPS = """
import time
from stdserve import LineHandler

class Sleeps(LineHandler):
    def line_received(self, line):
        self.doze(float(line))
        return "awake"

    def doze(self, seconds):
        time.sleep(seconds)
"""


def test_a_hook_that_waits_is_named_once_with_its_session_and_its_stack(tmp_path: Path) -> None:
    """All others wait with it, and then go on; one that waits for less than a second is not named."""
    (tmp_path / "mine.py").write_text(SLEEPS)
    with ServerProcess("--mode", "event", "--handler", "mine:Sleeps", cwd=tmp_path) as server:
        with connect(server.address) as sleeper, connect(server.address) as other:
            for seconds in (b"0.5\n", b"2.5\n"):
                sleeper.sendall(seconds)
                assert b"awake\n" == sleeper.recv(100)
                other.sendall(b"0\n")
                assert b"awake\n" == other.recv(100)
            peer = f"127.0.0.1:{sleeper.getsockname()[1]}"
        assert 0 == server.stop()
    (line,) = (line for line in server.log if line.startswith("stall"))
    assert re.match(
        rf"stall {peer}: a hook keeps all sessions waiting: stdserve.life:.* > mine:\d+ line_received > mine:\d+ doze$",
        line,
    )


def test_it_sleeps_while_nothing_happens_and_wakes_for_the_next_hook() -> None:
    """Not one look at an idle loop."""
    waits, go_on = threading.Event(), threading.Event()

    class Waits(LineHandler):
        def line_received(self, line: str) -> str:
            waits.set()
            go_on.wait(3.0)
            return line

    with serving(Waits, "event") as server:
        client = server.client()
        assert server.server is not None
        loop = server.server._events  # type: ignore[attr-defined]
        eventually(lambda: loop.unwatched, "asleep again")
        client.send("one")
        assert waits.wait(5.0)
        eventually(lambda: not loop.unwatched, "awake")
        go_on.set()
        assert "one" == client.receive_line()
        eventually(lambda: loop.unwatched, "asleep again")
