"""The fixture ``stdserve_server`` for pytest, which finds this room by an entry point wherever stdserve is installed.

It is loaded as pytest starts, by everybody who has both: nothing of stdserve is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .testing import Serving

__all__ = ["Servers", "pytest_runtest_call", "stdserve_server"]


class Servers:
    """The servers of one test: called as ``stdserve.serving`` is, it returns a Serving, until the test ends."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._running: list[Serving] = []
        self._failure: BaseException | None = None

    def __call__(self, *arguments: Any, **settings: Any) -> Serving:
        """Start a server; raise what ``serving`` raises."""
        from .testing import serving

        server = self._stack.enter_context(serving(*arguments, **settings))
        self._running.append(server)
        return server

    def note(self, failure: BaseException) -> None:
        """Know that the test has failed, so that nothing else is held against it."""
        self._failure = failure

    def check(self) -> None:
        """Raise SessionError if a handler has raised so far."""
        for server in self._running:
            server.check()

    def stop(self) -> None:
        """End all of them, the last one first; raise what the end of ``serving`` raises, unless the test has failed."""
        failure = self._failure
        self._stack.__exit__(None if failure is None else type(failure), failure, None)


_SERVERS = pytest.StashKey[Servers]()


@pytest.fixture
def stdserve_server(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Start servers: ``server = stdserve_server(Handler, mode="thread", ...)``, with the arguments of stdserve.serving.

    ``server.address`` is where it listens, ``server.client()`` a connected client. All are stopped when the test ends,
    and a handler that raised, or a session that does not end, makes it fail.
    """
    servers = request.node.stash[_SERVERS] = Servers()
    yield servers
    servers.stop()


@pytest.hookimpl(hookwrapper=True)  # not wrapper=True, at which a pluggy from before 2023 would refuse to start
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """Let a test fail, not only its teardown, when a handler has raised in it."""
    outcome = yield
    servers = item.stash.get(_SERVERS, None)
    if servers is None:
        return
    if outcome.excinfo is None:
        try:
            servers.check()
        except Exception as error:
            outcome.force_exception(error)
    if outcome.excinfo is not None:
        servers.note(outcome.excinfo[1])
