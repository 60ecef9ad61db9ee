"""Errors and the words for them."""

from __future__ import annotations

import pytest

from stdserve.blame import reason_for, refusal_for
from stdserve.errors import PeerError
from stdserve.protocol import EndReason
from stdserve.streams import LineTooLong


@pytest.mark.parametrize(
    ("error", "reason", "refusal"),
    [
        (LineTooLong("long"), "line_too_long", "error"),
        (TimeoutError(), "idle_timeout", "error"),
        (ConnectionResetError(), "reset", "broken"),
        (PeerError("tls", "no TLS"), "error", "tls"),
        (ValueError(), "error", "error"),
        (None, "error", "error"),
    ],
)
def test_errors_are_told_apart_by_whose_fault_they_are(error: BaseException | None, reason: str, refusal: str) -> None:
    """In a session, and before it."""
    assert (EndReason(reason), refusal) == (reason_for(error), refusal_for(error))
