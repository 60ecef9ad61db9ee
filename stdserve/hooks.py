"""What a supervisor calls as things happen to its workers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

__all__ = ["Hooks"]


def _nothing() -> None:
    """Do nothing."""


def _no_end(number: int, died: bool) -> None:
    """Do nothing."""


def _no_turn(numbers: Collection[int]) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Hooks:
    """What the supervisor calls: ``ready`` when all workers serve for the first time, ``stopping`` when a stop begins.

    ``reloading`` and ``reloaded`` as a reload begins and ends, be it in vain; ``alive`` every ``alive_seconds``, if
    they are given, while none of the workers has missed its time; ``reopen`` when files were rotated, in each worker
    too; ``turned(numbers)``, those of all workers, whenever it has looked after them, and every ``turn_seconds`` if
    they are given; ``ended(number, died)`` when one is no more: ``died`` if nobody had asked it to end.
    """

    ready: Callable[[], None] = _nothing
    stopping: Callable[[], None] = _nothing
    reloading: Callable[[], None] = _nothing
    reloaded: Callable[[], None] = _nothing
    alive: Callable[[], None] = _nothing
    alive_seconds: float | None = None
    reopen: Callable[[], None] = _nothing
    turned: Callable[[Collection[int]], None] = _no_turn
    turn_seconds: float | None = None
    ended: Callable[[int, bool], None] = _no_end
