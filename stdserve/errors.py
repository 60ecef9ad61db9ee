"""The exceptions of stdserve. Who is at fault is the type; what a program does about it is its own affair.

The command line turns each type into one line on stderr and an exit code (see ``cli``); library code only raises.

======================  ==========================================  =========
type                    whose fault                                 exit code
======================  ==========================================  =========
``ConfigError``         the caller's: a wrong option or handler     2
``StartError``          the surroundings': the server cannot start  3
``OutputError``         the output's: it is full or was closed      1
``PeerError``           a client's: its session ends, no other      -
``SendError`` and kin   the network's, seen by the client           1
``SessionError``        a handler's, told to the test that ran it   -
======================  ==========================================  =========
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ConfigError",
    "ConnectError",
    "ConnectTimeout",
    "OutputError",
    "PeerError",
    "SendError",
    "SendTimeout",
    "SessionError",
    "StartError",
    "StdserveError",
]


class StdserveError(Exception):
    """Every error that stdserve raises on purpose; its text is one line that says what and why.

    A SessionError's has as many as it takes.
    """


class ConfigError(StdserveError, ValueError):
    """An option, an address or a handler is not what it should be; no retry will help."""


class StartError(StdserveError):
    """The options are fine, but the server cannot start: an address in use, a file that cannot be opened."""


class OutputError(StdserveError):
    """The output takes no more: its reader has gone, its disk is full. The server stops on it."""


class PeerError(StdserveError):
    """A peer broke the rules: its session ends with one line in the log, no other notices.

    ``reason`` is the word for it in logs and counters.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class SessionError(StdserveError):
    """Sessions of a server under test failed, or did not end: the text has each peer, and what its handler raised.

    ``sessions`` are pairs of the peer and what became of its session, a traceback at the end of it if there is one.
    """

    def __init__(self, sessions: Sequence[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"the session with {peer} {what}" for peer, what in sessions))
        self.sessions = tuple(sessions)


class ConnectError(StdserveError):
    """The client could not connect: refused, unreachable, unknown host."""


class ConnectTimeout(ConnectError, TimeoutError):
    """The client could not connect within its connect timeout."""


class SendError(StdserveError):
    """The connection broke, or the server ended the session, before everything was sent and finished."""


class SendTimeout(SendError, TimeoutError):
    """The server took nothing, or did not finish, within the client's read timeout."""
