"""Whose fault it is when a session ends with an exception, and the words for that in the log and in metrics."""

from __future__ import annotations

from .errors import PeerError
from .protocol import EndReason
from .streams import LineTooLong

__all__ = ["reason_for", "refusal_for"]

#: What a peer makes a handler raise, and what the log calls it.
_PEERS_FAULTS = (
    (LineTooLong, EndReason.LINE_TOO_LONG),
    (TimeoutError, EndReason.IDLE_TIMEOUT),
    (ConnectionError, EndReason.RESET),
)


def reason_for(error: BaseException | None) -> EndReason:
    """Return why a session is over that raised ``error``; EndReason.ERROR if that is no fault of its peer's."""
    return next((reason for kind, reason in _PEERS_FAULTS if isinstance(error, kind)), EndReason.ERROR)


def refusal_for(error: BaseException | None) -> str:
    """Return why a connection became no session, for ``error`` came before that (``rows.REJECT_WORDS``)."""
    if isinstance(error, PeerError):
        return error.reason
    return "broken" if reason_for(error) is EndReason.RESET else "error"
