"""Every setting of the server, once: name, default, flag, help and limits are the metadata of one dataclass.

The command line's flags and ``--help`` are made from :class:`Options`; nothing else lists them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace

from .addresses import DEFAULT_PORT, LOOPBACK, Address, parse_address, parse_port
from .errors import ConfigError
from .flags import add_flag, check, option, parse_count, parse_duration, parse_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

__all__ = ["BUILT_IN_MODES", "Options", "add_flags", "make_options", "option_fields", "parse_options"]

#: The modes that need not be registered; ``factory.MODES`` has their classes.
BUILT_IN_MODES = ("single", "thread", "fork") if hasattr(os, "fork") else ("single", "thread")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a server is told, checked when it is made: a wrong value raises ConfigError that names the flag.

    Sizes are in bytes, times in seconds. ``None`` means no limit, or that the mode has its own default.
    """

    port: int = option(
        DEFAULT_PORT,
        help="TCP port, 0 for any free one (default: %(default)s)",
        metavar="PORT",
        parse=parse_port,
        least=0,
        most=65535,
    )
    bind: tuple[str, ...] = option(
        (),
        "-b",
        "--bind",
        help="address to listen on: HOST, HOST:PORT or [V6]:PORT; repeatable (default: loopback, IPv4 and IPv6)",
        metavar="ADDRESS",
        repeat=True,
    )
    mode: str = option("thread", "--mode", help="single, thread or fork (default: %(default)s)", metavar="MODE")
    workers: int = option(
        1,
        "-w",
        "--workers",
        help="processes that share the listening sockets, each in the chosen mode (default: %(default)s)",
        metavar="N",
        parse=parse_count,
        least=1,
    )
    handler: str = option(
        "stdserve:PrintHandler",
        "--handler",
        help="the request handler to run, as module:Class (default: %(default)s)",
        metavar="TARGET",
    )
    framing: str = option(
        "line",
        "--framing",
        help="line: lines end at LF; chunk: each read is one message, the lecture's rule (default: %(default)s)",
        choices=("line", "chunk"),
    )
    format: str = option(
        "text",
        "--format",
        help="text: the line; peer: the client's address before it; json: one object a line (default: %(default)s)",
        choices=("text", "peer", "json"),
    )
    output: str | None = option(
        None, "-o", "--output", help="append what clients send to FILE instead of standard output", metavar="FILE"
    )
    raw: bool = option(False, "--raw", help="pass control characters and undecodable bytes through as they came")
    once: bool = option(False, "--once", help="serve one client, then end")
    max_line: int = option(
        65536,
        "--max-line",
        help="longest line in bytes; a longer one ends its session (default: %(default)s)",
        metavar="BYTES",
        parse=parse_count,
        least=1,
    )
    max_conns: int | None = option(
        None,
        "-m",
        "--max-conns",
        help="sessions at a time in each process; more wait in the backlog (default: thread 1000, fork 200)",
        metavar="N",
        parse=parse_count,
        least=1,
    )
    max_conns_per_ip: int | None = option(
        None,
        "--max-conns-per-ip",
        help="sessions at a time from one address; more are refused (default: no limit)",
        metavar="N",
        parse=parse_count,
        least=1,
    )
    overflow: str = option(
        "wait",
        "--overflow",
        help="what clients beyond --max-conns get: wait in the backlog, close, or reply with --overflow-message"
        " (default: %(default)s)",
        choices=("wait", "close", "reply"),
    )
    overflow_message: str = option(
        "busy, try again later",
        "--overflow-message",
        help="what a refused client can read (default: %(default)s)",
        metavar="TEXT",
    )
    idle_timeout: float | None = option(
        None,
        "-i",
        "--idle-timeout",
        help="end a session that is silent for this long: 500ms, 5s, 2m, 1h (default: never)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    session_timeout: float | None = option(
        None,
        "--session-timeout",
        help="end a session that has lasted this long, whatever it does (default: never)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    linger_timeout: float = option(
        2.0,
        "--linger-timeout",
        help="how long a session that is over waits for its client to read the last reply and close (default: 2s)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    graceful_timeout: float = option(
        30.0,
        "--graceful-timeout",
        help="how long a stop waits for sessions to end before it cuts them (default: 30s)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    tls_cert: str | None = option(
        None,
        "--tls-cert",
        help="speak TLS, with the certificate in FILE (PEM), its chain after it",
        metavar="FILE",
    )
    tls_key: str | None = option(
        None, "--tls-key", help="the certificate's key (PEM; default: in the same file)", metavar="FILE"
    )
    tls_password_file: str | None = option(
        None, "--tls-password-file", help="file whose first line is the key's password", metavar="FILE"
    )
    tls_client_ca: str | None = option(
        None,
        "--tls-client-ca",
        help="serve only clients with a certificate that one of the CAs in FILE (PEM) has signed",
        metavar="FILE",
    )
    tls_min_version: str = option(
        "1.2", "--tls-min-version", help="oldest TLS version to speak (default: %(default)s)", choices=("1.2", "1.3")
    )
    tls_reload: bool = option(
        False, "--tls-reload", help="read the TLS files again when one of them changes; if they are bad, keep the old"
    )
    handshake_timeout: float = option(
        10.0,
        "--handshake-timeout",
        help="how long a client may take, all in all, before its session begins (default: 10s)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    log_level: str = option(
        "info",
        "--log-level",
        help="least level to log on standard error (default: %(default)s)",
        choices=("debug", "info", "warning", "error"),
    )

    def __post_init__(self) -> None:
        bind: Any = self.bind
        # From code, one address may come as it is typed, several as a list.
        object.__setattr__(self, "bind", (bind,) if isinstance(bind, str) else tuple(bind))
        for field in option_fields():
            check(field, getattr(self, field.name))
        try:
            _ = self.addresses
        except ConfigError as error:
            raise ConfigError(f"--bind {error}") from None
        if self.raw and self.format == "json":
            raise ConfigError("--raw and --format json exclude each other: JSON cannot carry bytes as they came")
        if self.once and self.workers > 1:
            raise ConfigError("--once and --workers exclude each other: one client needs one process")
        for name in ("tls_key", "tls_password_file", "tls_client_ca", "tls_reload"):
            if getattr(self, name) and self.tls_cert is None:
                raise ConfigError(f"--{name.replace('_', '-')} is of no use without --tls-cert")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to listen; a ``bind`` without a port takes ``port``, no ``bind`` at all means loopback."""
        if not self.bind:
            return tuple(replace(address, port=self.port) for address in LOOPBACK)
        return tuple(parse_address(text, self.port) for text in self.bind)


def option_fields() -> Iterator[Field[Any]]:
    """Yield the options in the order of the dataclass, which is that of ``--help``."""
    yield from fields(Options)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` one argument for each option, as ``flags.add_flag`` does."""
    for field in option_fields():
        add_flag(parser, field)


def parse_options(texts: Mapping[str, Any]) -> Options:
    """Make Options from texts by option name, as a command line gives them; ConfigError names the flag at fault."""
    given = (field for field in option_fields() if field.name in texts)
    return Options(**{field.name: parse_text(field, texts[field.name]) for field in given})


def make_options(options: Options | None, settings: dict[str, Any]) -> Options:
    """Return ``options`` (default: all defaults) with ``settings`` changed; ConfigError names an unknown one."""
    try:
        return replace(options or Options(), **settings)
    except TypeError as error:
        raise ConfigError(str(error)) from None
