"""The accept loop alone: when it looks at the listeners, and what it makes of errors."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from processes import connect

from stdserve.accepting import AcceptLoop
from stdserve.listeners import close_listeners, open_listeners
from stdserve.options import Options


class Owner:
    """What a server is to its loop."""

    def __init__(self) -> None:
        self.listeners = open_listeners(Options(bind=("127.0.0.1:0", "127.0.0.2:0")).addresses)
        self.room = 100
        self.errors: list[Exception] = []
        self.tries = self.crowds = 0
        self.admitted: list[Any] = []
        self.loop = AcceptLoop(lambda: self.listeners, self.has_room, self.take, self.admit, self.crowd)

    def has_room(self) -> bool:
        return len(self.admitted) < self.room

    def take(self, listener: socket.socket) -> tuple[Any, Any]:
        self.tries += 1
        if self.errors:
            raise self.errors.pop()
        return listener.accept()

    def admit(self, request: Any, client_address: Any) -> None:
        self.admitted.append(request)

    def crowd(self) -> None:
        self.crowds += 1


@pytest.fixture
def owner() -> Iterator[Owner]:
    """A loop with two listeners; everything is closed afterwards."""
    owner = Owner()
    yield owner
    owner.loop.shut()
    owner.loop.waiter.close()
    close_listeners([*owner.listeners, *owner.admitted])


def clients(owner: Owner, count: int) -> contextlib.ExitStack:
    """Connections to the listeners in turn."""
    stack = contextlib.ExitStack()
    for number in range(count):
        stack.enter_context(connect(owner.listeners[number % 2].getsockname()))
    return stack


def test_all_that_wait_are_taken_in_one_turn_from_every_listener(owner: Owner) -> None:
    """Each listener until it has no more."""
    with clients(owner, 7):
        owner.loop.turn(1)
        assert 7 == len(owner.admitted)


def test_a_full_owner_is_told_once_that_clients_wait(owner: Owner) -> None:
    """And then the listeners are left alone until there is room."""
    owner.room = 2
    with clients(owner, 4):
        for _ in range(5):
            owner.loop.turn(0)
        assert (2, 1) == (len(owner.admitted), owner.crowds)
        owner.room = 4
        owner.loop.turn(1)
        assert 4 == len(owner.admitted)


def test_being_full_exactly_is_no_crowd(owner: Owner) -> None:
    """Nobody waits."""
    owner.room = 2
    with clients(owner, 2):
        for _ in range(5):
            owner.loop.turn(0)
    assert (2, 0) == (len(owner.admitted), owner.crowds)


def test_a_listener_rests_after_a_failure_and_so_does_the_other(owner: Owner, caplog: pytest.LogCaptureFixture) -> None:
    """One try a rest, one line a failure, one when it is over."""
    owner.errors = [OSError(errno.EMFILE, "Too many open files")] * 3
    with clients(owner, 2):
        while owner.errors:
            owner.loop.turn()
        assert 3 == owner.tries
        while len(owner.admitted) < 2:
            owner.loop.turn()
        while "accept works again" not in caplog.text:
            owner.loop.turn()
    assert 2 == len(caplog.records)


def test_a_broken_client_is_passed_over(owner: Owner, caplog: pytest.LogCaptureFixture) -> None:
    """The next one is taken at once."""
    owner.errors = [OSError(errno.ECONNABORTED, "Software caused connection abort")]
    with clients(owner, 1):
        owner.loop.turn(1)
        assert 1 == len(owner.admitted)
    assert [] == caplog.records


def test_one_listener_does_not_keep_the_others_waiting(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn takes so many from each, and the rest in the next."""
    monkeypatch.setattr("stdserve.accepting.ACCEPTS_PER_TURN", 2)
    with clients(owner, 10):
        owner.loop.turn(1)
        assert 4 == len(owner.admitted)
        owner.loop.turn(1)
        assert 8 == len(owner.admitted)
