"""Counting the sessions of an address, in one process and across children."""

from __future__ import annotations

import os
import socket

import pytest

from stdserve.seats import Seats, SharedSeats
from stdserve.sessions import Session


def session() -> Session:
    """A session; only who it is matters."""
    with socket.socket() as request:
        return Session(request, ("192.0.2.1", 1))


def test_an_address_has_so_many_seats() -> None:
    """A seat given back is free; what never had one gives none back."""
    seats = Seats(2)
    first, second, third = session(), session(), session()
    assert [True, True, False] == [seats.enter(each, "a") for each in (first, second, third)]
    assert seats.enter(session(), "b")
    seats.leave(third)
    assert not seats.enter(third, "a")
    seats.leave(first)
    seats.leave(second)
    assert [True, True] == [seats.enter(each, "a") for each in (first, third)]


def test_nobody_is_remembered_who_has_left() -> None:
    """Ten thousand addresses come and go."""
    seats = Seats(1)
    for number in range(10_000):
        one = session()
        assert seats.enter(one, f"address {number}")
        seats.leave(one)
    assert not seats._counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing to share without fork")
def test_children_count_together_and_the_parent_clears_their_seats() -> None:
    """One child after the other takes a seat and dies on it."""
    seats = SharedSeats(2, 3)

    def enter_in_child(one: Session, host: str) -> bool:
        pid = os.fork()
        if not pid:
            os._exit(seats.enter(one, host))
        return bool(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    sessions = [session() for _ in range(3)]
    for one in sessions:
        seats.reserve(one)
    assert [True, True, False] == [enter_in_child(one, "a") for one in sessions]
    for one in sessions:
        seats.leave(one)
    for one in sessions:
        seats.reserve(one)
    assert [True, True, True] == [enter_in_child(one, host) for one, host in zip(sessions, "bba", strict=True)]
