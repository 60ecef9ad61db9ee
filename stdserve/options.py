"""Every setting of the server, once: name, default, flag, help and limits are the metadata of one dataclass.

The flags of the command line, ``--help``, the keys of a settings file, the variables of the environment and the table
of the README are made from :class:`Options`; nothing else lists them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, replace

from .addresses import Address, parse_address
from .errors import ConfigError
from .flags import COUNT, TIME, check, option, parse_mode
from .session_options import SessionOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = [
    "Options",
    "make_options",
    "option_fields",
]

#: The port of ``--status`` where the address has none.
DEFAULT_STATUS_PORT = 10002


@dataclass(frozen=True, kw_only=True)
class Options(SessionOptions):
    """What a server is told, checked when it is made: a wrong value raises ConfigError that names the flag.

    Sizes are in bytes, times in seconds. ``None`` means no limit, or that the mode has its own default.
    """

    graceful_timeout: float = option(
        30.0,
        "--graceful-timeout",
        heads="operation",
        help="how long a stop waits for sessions to end before it cuts them (default: 30s)",
        **TIME,
    )
    status: str | None = option(
        None,
        "--status",
        help="serve health, metrics and a page with live numbers by HTTP at this address (default: nowhere)",
        metavar="ADDRESS",
    )
    worker_timeout: float = option(
        60.0,
        "--worker-timeout",
        help="how long a worker's start may take, or its accept loop stand still, before it is replaced (default: 60s)",
        **TIME,
    )
    max_sessions: int | None = option(
        None, "--max-sessions", help="replace a worker that has had N sessions (default: never)", **COUNT
    )
    max_sessions_jitter: int = option(
        0,
        "--max-sessions-jitter",
        help="let each worker have up to N sessions more, at random, lest all end at once (default: %(default)s)",
        **{**COUNT, "least": 0},
    )
    reload: bool = option(
        False,
        "--reload",
        help="for development: replace the workers (one, without --workers) when a source file beside those that they"
        " imported changes",
    )
    log_level: str = option(
        "info",
        "--log-level",
        help="least level to log on standard error (default: %(default)s)",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str | None = option(
        None,
        "--log-format",
        help="text: a line for people; json: an object a line (default: text on a terminal, json elsewhere)",
        choices=("text", "json"),
    )
    log_file: str | None = option(
        None, "--log-file", help="append the log to FILE instead of standard error", metavar="FILE"
    )
    pid: str | None = option(
        None,
        "--pid",
        help="write the process id to FILE, locked so that a second server with the same FILE does not start",
        metavar="FILE",
    )
    user: str | None = option(
        None,
        "-u",
        "--user",
        help="become this user, a name or number, once the addresses are bound and the files are open (needs root)",
        metavar="USER",
    )
    group: str | None = option(
        None,
        "-g",
        "--group",
        help="become this group, a name or number (default: that of --user)",
        metavar="GROUP",
    )
    umask: int | None = option(
        None,
        "--umask",
        help="file permissions not to give, in octal, for all files that are made (default: what the server inherits)",
        metavar="MODE",
        parse=parse_mode,
        least=0,
        most=0o777,
    )

    def __post_init__(self) -> None:
        for field in option_fields():
            if field.metadata.get("repeat"):
                # From code, one value may come as it is typed, several as a list.
                value = getattr(self, field.name)
                object.__setattr__(self, field.name, (value,) if isinstance(value, str) else tuple(value))
            check(field, getattr(self, field.name))
        try:
            addresses = self.addresses
        except ConfigError as error:
            raise ConfigError(f"--bind {error}") from None
        if self.reuse_port and all(address.kind != "tcp" for address in addresses):
            raise ConfigError("--reuse-port is for TCP: no --bind is a host")
        if self.raw and self.format == "json":
            raise ConfigError("--raw and --format json exclude each other: JSON cannot carry bytes as they came")
        if self.workers is not None and not hasattr(os, "fork"):
            raise ConfigError("--workers needs os.fork, which this system does not have; one process is all it can be")
        if self.pin and not hasattr(os, "sched_setaffinity"):
            raise ConfigError("--pin needs sched_setaffinity, which this system does not have")
        if self.pin and self.mode == "fork":
            raise ConfigError("--pin is for threads: the children of --mode fork run at the same time")
        if self.once and self.workers is not None:
            raise ConfigError("--once and --workers exclude each other: one client needs one process")
        self._check_status()
        if self.reload and not hasattr(os, "fork"):
            raise ConfigError("--reload needs os.fork, which this system does not have")
        if self.reload and self.once:
            raise ConfigError("--once and --reload exclude each other: one client needs one process")
        if self.max_sessions is not None and self.workers is None:
            raise ConfigError("--max-sessions is of no use without --workers: nobody would start the next one")
        if self.max_sessions_jitter and self.max_sessions is None:
            raise ConfigError("--max-sessions-jitter is of no use without --max-sessions")
        if self.wsgi is not None and self.handler != type(self).handler:
            raise ConfigError("--wsgi and --handler exclude each other: the application has a handler of its own")
        for name in ("tls_key", "tls_password_file", "tls_client_ca", "tls_reload"):
            if getattr(self, name) and self.tls_cert is None:
                raise ConfigError(f"--{name.replace('_', '-')} is of no use without --tls-cert")

    def _check_status(self) -> None:
        try:
            _ = self.status_addresses
        except ConfigError as error:
            raise ConfigError(f"--status {error}") from None
        if self.status is not None and not hasattr(os, "fork"):
            raise ConfigError("--status needs os.fork, which this system does not have")
        if self.status is not None and self.once:
            raise ConfigError("--once and --status exclude each other: nobody would be there to ask")

    @property
    def status_addresses(self) -> tuple[Address, ...]:
        """Where the status server is to listen, if at all."""
        return () if self.status is None else (parse_address(self.status, DEFAULT_STATUS_PORT),)

    @property
    def foreign(self) -> bool:
        """Whether what is to run is not ours, and has yet to be found and imported."""
        return self.handler != type(self).handler or self.wsgi is not None

    def with_mode(self, mode: str) -> Options:
        """Return the same options, with the files that they have loaded, for a mode that was found out since."""
        if mode == self.mode:
            return self
        changed = copy.copy(self)
        object.__setattr__(changed, "mode", mode)
        return changed

    @property
    def supervised(self) -> bool:
        """Whether sessions run in workers, be it one, with a supervisor."""
        return self.workers is not None or self.status is not None or self.reload


def option_fields() -> Iterator[Field[Any]]:
    """Yield the options in the order of the dataclass, which is that of ``--help``."""
    yield from fields(Options)


def make_options(options: Options | None, settings: dict[str, Any]) -> Options:
    """Return ``options`` (default: all defaults) with ``settings`` changed; ConfigError names an unknown one.

    Without settings they stay the same object, with the files that it has loaded: by now it may not read them.
    """
    if options is not None and not settings:
        return options
    try:
        return replace(options or Options(), **settings)
    except TypeError as error:
        raise ConfigError(str(error)) from None
