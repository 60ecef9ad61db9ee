"""Steps that are taken one after the other: what a call returns or raises reaches them, and so does a Ctrl-C."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from stdserve.steps import READS, WRITES, run


def adding(seen: list[Any]) -> Any:
    """Steps that ask for two numbers."""
    try:
        seen.append((yield None, READS, int, "1"))
        seen.append((yield None, WRITES, int, "no number"))
    except ValueError as error:
        seen.append(type(error))
        seen.append((yield None, READS, int, "3"))
    return sum(one for one in seen if isinstance(one, int))


def test_each_call_is_made_and_its_result_or_error_comes_back() -> None:
    """The steps may go on after an error."""
    seen: list[Any] = []
    assert 4 == run(adding(seen))
    assert [1, ValueError, 3] == seen


def test_an_error_that_ends_the_steps_comes_out() -> None:
    """Of the call's, or of the steps' own; also when an error has ended them in order."""

    def failing(call: Any) -> Any:
        yield None, READS, call, "x"
        raise KeyError("of the steps")

    with pytest.raises(ValueError, match="invalid literal"):
        run(failing(int))
    with pytest.raises(KeyError, match="of the steps") as told:
        run(failing(str))
    assert told.value.__context__ is None

    def content() -> Any:
        try:
            yield None, READS, int, "x"
        except ValueError:
            return "content"

    assert "content" == run(content())

    def nothing() -> Any:
        yield from ()

    assert run(nothing()) is None


def test_an_interrupt_between_two_steps_is_raised_in_them() -> None:
    """So that what is to be done at the end of a session is done; they may go on, too."""
    ended: list[str] = []

    def interrupted() -> Any:
        try:
            yield None, READS, signal.raise_signal, signal.SIGINT
        except KeyboardInterrupt:
            ended.append("once")
        try:
            yield None, READS, signal.raise_signal, signal.SIGINT
        finally:
            ended.append("twice")

    with pytest.raises(KeyboardInterrupt):
        run(interrupted())
    assert ["once", "twice"] == ended
