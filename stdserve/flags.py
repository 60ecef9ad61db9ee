"""What an option is: one field of a dataclass, whose metadata make its flag, its help, its limits, its error messages.

Nothing here knows which options there are; ``options`` does.
"""

from __future__ import annotations

import re
from dataclasses import Field, field
from math import isfinite

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

__all__ = ["add_flag", "check", "flag_of", "option", "parse_count", "parse_duration", "parse_mode", "parse_text"]

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


def parse_count(text: str) -> int:
    """Return a whole number, its sign kept so that the limits of the option can name it."""
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"must be a whole number, not {text!r}") from None


def parse_mode(text: str) -> int:
    """Return the file mode in ``600``, ``0660`` or ``0o666``, in octal digits as chmod takes them; else ConfigError."""
    digits = text.removeprefix("0o")
    if re.fullmatch("0?[0-7]{1,3}", digits) is None:
        raise ConfigError(f"must be a file mode in octal, such as 600, not {text!r}")
    return int(digits, 8)


def option(default: Any, *flags: str, help: str, metavar: str = "", **rules: Any) -> Any:
    """Make a field of a dataclass of options.

    ``rules``: parse (text -> value), least, most, above (limits), choices, repeat (it may be given more than once).
    """
    return field(default=default, metadata={"flags": flags, "help": help, "metavar": metavar, **rules})


def flag_of(option: Field[Any]) -> str:
    """Return the name an option goes by in messages: its long flag, or its own name if it is a positional."""
    flags: tuple[str, ...] = option.metadata["flags"]
    return flags[-1] if flags else option.name


def check(option: Field[Any], value: Any) -> None:
    """Raise ConfigError that names the flag if ``value`` breaks the rules of ``option``."""
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


def add_flag(parser: argparse.ArgumentParser, option: Field[Any]) -> None:
    """Give ``parser`` one argument for ``option``. Values stay text; ``parse_text`` reads them.

    The parser is to be made with ``argument_default=argparse.SUPPRESS``, so that absent options stay absent.
    """
    rules = option.metadata
    arguments: dict[str, Any] = {"help": rules["help"].replace("%(default)s", str(option.default))}
    if isinstance(option.default, bool):
        arguments["action"] = "store_true"
    else:
        arguments["metavar"] = rules["metavar"] or "{" + ",".join(rules["choices"]) + "}"
        arguments["action"] = "append" if rules.get("repeat") else "store"
    if rules["flags"]:
        parser.add_argument(*rules["flags"], dest=option.name, **arguments)
    else:
        parser.add_argument(option.name, nargs="?", **arguments)


def parse_text(option: Field[Any], text: Any) -> Any:
    """Return the value that ``text`` gives ``option``; ConfigError names the flag at fault."""
    parse = option.metadata.get("parse")
    try:
        return text if parse is None else parse(text)
    except ConfigError as error:
        # A positional's own message names it already.
        raise ConfigError(f"{flag_of(option)} {error}" if option.metadata["flags"] else str(error)) from None
