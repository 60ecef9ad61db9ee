"""A session in steps: its life is told once, for who waits for one peer and for who waits for thousands.

What may have to wait is not called but yielded: ``data = yield sock, READS, sock.recv, 1024`` asks for
``sock.recv(1024)`` to be called when that makes sense, and for what it returns. :func:`run` calls it at once, on a
socket that waits by itself, in the session's own thread or child. An event loop, whose sockets never wait, calls it
when the socket is ready, and serves others until then. What the call raises, the ``yield`` raises: TimeoutError when
the socket's own timeout is over.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, TypeVar

    Result = TypeVar("Result")

    #: A socket, what its call waits for, the call, and its argument.
    Step = tuple[Any, int, Callable[[Any], Any], Any]
    #: What takes its steps one after the other and returns a result.
    Steps = Generator[Step, Any, Result]
    #: The same where there may be none.
    SomeSteps = Steps[None] | tuple[()]

__all__ = ["READS", "WRITES", "run", "wanted"]

#: What a call waits for: bytes that come, or room for those that go (selectors.EVENT_READ and EVENT_WRITE).
READS, WRITES = 1, 2

#: By their names, for few servers import ``ssl``.
_TLS_WANTS = {"SSLWantReadError": READS, "SSLWantWriteError": WRITES}


def run(steps: Steps[Result]) -> Result:
    """Take the steps, each when the one before is done, and return their result; raise what they raise."""
    try:
        step = next(steps)
        while True:
            try:
                while True:
                    step = steps.send(step[2](step[3]))
            except StopIteration:
                raise
            except BaseException as error:  # a Ctrl-C between two steps included; one of the steps' own comes back
                step = steps.throw(error)
    except StopIteration as end:
        result: Result = end.value
        return result


def wanted(error: BaseException, waits: int) -> int:
    """Return what a call that ``waits`` for something has to wait for, after ``error``; 0 if it has failed."""
    if isinstance(error, BlockingIOError):
        return waits
    return _TLS_WANTS.get(type(error).__name__, 0)
