"""Every setting of the server, once: name, default, flag, help and limits are the metadata of one dataclass.

The command line's flags and ``--help`` are made from :class:`Options`; nothing else lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from .addresses import DEFAULT_PORT, LOOPBACK, Address, parse_address, parse_port
from .errors import ConfigError

if TYPE_CHECKING:
    import argparse

__all__ = ["Options", "add_flags", "flag_of", "option_fields", "parse_duration", "parse_options"]

#: The longest of all durations, 23 days: poll(2) counts its milliseconds in an int.
LONGEST_SECONDS = 2_000_000

_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Return the seconds in ``500ms``, ``5s``, ``2m``, ``1h`` or plain ``5`` (as ncat writes them).

    Raises ConfigError for anything else, negative durations included.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|s|m|h|)", text.strip())
    if found is None:
        raise ConfigError(f"must be a duration above 0 such as 500ms, 5s, 2m or 1h, not {text!r}")
    seconds = float(found[1]) * _UNITS[found[2]]
    if not isfinite(seconds):
        raise ConfigError(f"must be a duration of this world, not {text!r}")
    return seconds


def _parse_count(text: str) -> int:
    """Return a whole number, its sign kept so that the limits of the option can name it."""
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"must be a whole number, not {text!r}") from None


def _option(default: Any, *flags: str, help: str, metavar: str = "", **rules: Any) -> Any:
    """Make a field; ``rules``: parse (text -> value), least, most, above (limits), choices, repeat."""
    return field(default=default, metadata={"flags": flags, "help": help, "metavar": metavar, **rules})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a server is told, checked when it is made: a wrong value raises ConfigError that names the flag.

    Sizes are in bytes, times in seconds. ``None`` means no limit, or that the mode has its own default.
    """

    port: int = _option(
        DEFAULT_PORT,
        help="TCP port, 0 for any free one (default: %(default)s)",
        metavar="PORT",
        parse=parse_port,
        least=0,
        most=65535,
    )
    bind: tuple[str, ...] = _option(
        (),
        "-b",
        "--bind",
        help="address to listen on: HOST, HOST:PORT or [V6]:PORT; repeatable (default: loopback, IPv4 and IPv6)",
        metavar="ADDRESS",
        repeat=True,
    )
    mode: str = _option("thread", "--mode", help="single, thread or fork (default: %(default)s)", metavar="MODE")
    workers: int = _option(
        1,
        "-w",
        "--workers",
        help="processes that share the listening sockets, each in the chosen mode (default: %(default)s)",
        metavar="N",
        parse=_parse_count,
        least=1,
    )
    handler: str = _option(
        "stdserve:PrintHandler",
        "--handler",
        help="the request handler to run, as module:Class (default: %(default)s)",
        metavar="TARGET",
    )
    framing: str = _option(
        "line",
        "--framing",
        help="line: lines end at LF; chunk: each read is one message, the lecture's rule (default: %(default)s)",
        choices=("line", "chunk"),
    )
    format: str = _option(
        "text",
        "--format",
        help="text: the line; peer: the client's address before it; json: one object a line (default: %(default)s)",
        choices=("text", "peer", "json"),
    )
    output: str | None = _option(
        None, "-o", "--output", help="append what clients send to FILE instead of standard output", metavar="FILE"
    )
    raw: bool = _option(False, "--raw", help="pass control characters and undecodable bytes through as they came")
    once: bool = _option(False, "--once", help="serve one client, then end")
    max_line: int = _option(
        65536,
        "--max-line",
        help="longest line in bytes; a longer one ends its session (default: %(default)s)",
        metavar="BYTES",
        parse=_parse_count,
        least=1,
    )
    max_conns: int | None = _option(
        None,
        "-m",
        "--max-conns",
        help="sessions at a time in each process; more wait in the backlog (default: thread 1000, fork 200)",
        metavar="N",
        parse=_parse_count,
        least=1,
    )
    max_conns_per_ip: int | None = _option(
        None,
        "--max-conns-per-ip",
        help="sessions at a time from one address; more are refused (default: no limit)",
        metavar="N",
        parse=_parse_count,
        least=1,
    )
    overflow: str = _option(
        "wait",
        "--overflow",
        help="what clients beyond --max-conns get: wait in the backlog, close, or reply with --overflow-message"
        " (default: %(default)s)",
        choices=("wait", "close", "reply"),
    )
    overflow_message: str = _option(
        "busy, try again later",
        "--overflow-message",
        help="what a refused client can read (default: %(default)s)",
        metavar="TEXT",
    )
    idle_timeout: float | None = _option(
        None,
        "-i",
        "--idle-timeout",
        help="end a session that is silent for this long: 500ms, 5s, 2m, 1h (default: never)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    session_timeout: float | None = _option(
        None,
        "--session-timeout",
        help="end a session that has lasted this long, whatever it does (default: never)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    linger_timeout: float = _option(
        2.0,
        "--linger-timeout",
        help="how long a session that is over waits for its client to read the last reply and close (default: 2s)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    graceful_timeout: float = _option(
        30.0,
        "--graceful-timeout",
        help="how long a stop waits for sessions to end before it cuts them (default: 30s)",
        metavar="TIME",
        parse=parse_duration,
        above=0,
    )
    log_level: str = _option(
        "info",
        "--log-level",
        help="least level to log on standard error (default: %(default)s)",
        choices=("debug", "info", "warning", "error"),
    )

    def __post_init__(self) -> None:
        bind: Any = self.bind
        # From code, one address may come as it is typed, several as a list.
        object.__setattr__(self, "bind", (bind,) if isinstance(bind, str) else tuple(bind))
        for option in option_fields():
            _check(option, getattr(self, option.name))
        try:
            _ = self.addresses
        except ConfigError as error:
            raise ConfigError(f"--bind {error}") from None
        if self.raw and self.format == "json":
            raise ConfigError("--raw and --format json exclude each other: JSON cannot carry bytes as they came")
        if self.once and self.workers > 1:
            raise ConfigError("--once and --workers exclude each other: one client needs one process")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to listen; a ``bind`` without a port takes ``port``, no ``bind`` at all means loopback."""
        if not self.bind:
            return tuple(replace(address, port=self.port) for address in LOOPBACK)
        return tuple(parse_address(text, self.port) for text in self.bind)


def option_fields() -> Iterator[Field[Any]]:
    """Yield the options in the order of the dataclass, which is that of ``--help``."""
    yield from fields(Options)


def flag_of(option: Field[Any]) -> str:
    """Return the name an option goes by in messages: its long flag, or its own name if it is a positional."""
    flags: tuple[str, ...] = option.metadata["flags"]
    return flags[-1] if flags else option.name


def _check(option: Field[Any], value: Any) -> None:
    rules, flag = option.metadata, flag_of(option)
    if value is None and option.default is None:
        return
    if "choices" in rules and value not in rules["choices"]:
        raise ConfigError(f"{flag} must be one of {', '.join(rules['choices'])}, not {value!r}")
    if "least" in rules:
        if not isinstance(value, int):
            raise ConfigError(f"{flag} must be a whole number, not {value!r}")
        if not rules["least"] <= value <= rules.get("most", value):
            most = f" and at most {rules['most']}" if "most" in rules else ""
            raise ConfigError(f"{flag} must be at least {rules['least']}{most}, not {value}")
    if "above" in rules:
        if not isinstance(value, int | float) or value != value:  # a NaN
            raise ConfigError(f"{flag} must be a number of seconds, not {value!r}")
        if not rules["above"] < value <= LONGEST_SECONDS:
            limit = f"above {rules['above']}" if value <= rules["above"] else f"at most {LONGEST_SECONDS} seconds"
            raise ConfigError(f"{flag} must be {limit}, not {value}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` one argument for each option. Values stay text; ``parse_options`` reads them.

    The parser is to be made with ``argument_default=argparse.SUPPRESS``, so that absent options stay absent.
    """
    for option in option_fields():
        rules = option.metadata
        help_text = rules["help"].replace("%(default)s", str(option.default))
        arguments: dict[str, Any] = {"help": help_text}
        if isinstance(option.default, bool):
            arguments["action"] = "store_true"
        else:
            arguments["metavar"] = rules["metavar"] or "{" + ",".join(rules["choices"]) + "}"
            arguments["action"] = "append" if rules.get("repeat") else "store"
        if rules["flags"]:
            parser.add_argument(*rules["flags"], dest=option.name, **arguments)
        else:
            parser.add_argument(option.name, nargs="?", **arguments)


def parse_options(texts: Mapping[str, Any]) -> Options:
    """Make Options from texts by option name, as a command line gives them; ConfigError names the flag at fault."""
    values = {}
    for option in option_fields():
        if option.name not in texts:
            continue
        text = texts[option.name]
        parse: Callable[[str], Any] | None = option.metadata.get("parse")
        try:
            values[option.name] = text if parse is None else parse(text)
        except ConfigError as error:
            # A positional's own message names it already.
            raise ConfigError(f"{flag_of(option)} {error}" if option.metadata["flags"] else str(error)) from None
    return Options(**values)
