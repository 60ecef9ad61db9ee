"""What the package exports."""

from __future__ import annotations

import pytest

import stdserve


def test_every_public_name_is_there_when_asked_for() -> None:
    """They are imported at their first use, and listed before."""
    assert set(stdserve.__all__) <= set(dir(stdserve))
    for name in stdserve.__all__:
        assert getattr(stdserve, name) is not None


def test_other_names_are_not() -> None:
    """As with any module."""
    with pytest.raises(AttributeError, match="module 'stdserve' has no attribute 'nothing'"):
        stdserve.nothing  # noqa: B018
