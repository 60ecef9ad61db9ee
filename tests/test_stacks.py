"""Where the threads are (that a server tells of them when asked is tested in test_supervisor)."""

from __future__ import annotations

import sys
import threading

from processes import DEADLINE

from stdserve.stacks import MOST_FRAMES, stacks_of


def descend(depth: int, at_the_bottom: threading.Event, end: threading.Event) -> None:
    """Wait at the bottom of a recursion."""
    if depth:
        descend(depth - 1, at_the_bottom, end)
        return
    at_the_bottom.set()
    end.wait(DEADLINE)


def test_every_thread_has_its_name_and_its_calls() -> None:
    """From the outermost to the innermost, of the main thread from where it was interrupted."""
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=descend, args=(2, ready, end), name="diver")
    thread.start()
    assert ready.wait(DEADLINE)
    stacks = dict(stacks_of(sys._getframe()))
    end.set()
    thread.join(DEADLINE)

    calls = [call.split() for call in stacks["diver"].split(" > ")]
    assert ["descend"] * 3 == [function for _, function in calls if function == "descend"]
    assert "threading:" in stacks["diver"].partition(" > ")[0]
    assert stacks["MainThread"].endswith(" test_every_thread_has_its_name_and_its_calls")


def test_of_an_endless_recursion_the_end_is_shown() -> None:
    """And a frame that is not there is nothing."""
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=descend, args=(200, ready, end), name="diver")
    thread.start()
    assert ready.wait(DEADLINE)
    stacks = dict(stacks_of(None))
    end.set()
    thread.join(DEADLINE)

    assert MOST_FRAMES == len(stacks["diver"].split(" > "))
    assert "threading:" in stacks["diver"].rpartition(" > ")[2]
    assert "" == stacks["MainThread"]
