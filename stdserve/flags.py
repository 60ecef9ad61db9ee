"""What an option is: one field of a dataclass, whose metadata make its flag, its help, its limits, its error messages.

Nothing here knows which options there are; ``options`` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import Field, field
from math import isfinite

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

__all__ = [
    "COUNT",
    "TIME",
    "add_flag",
    "check",
    "flag_of",
    "grouped",
    "option",
    "parse_count",
    "parse_duration",
    "parse_mode",
    "parse_switch",
    "parse_text",
    "parse_workers",
    "show_value",
    "usage_of",
]

#: The longest of all durations, 23 days: poll(2) counts its milliseconds in an int.
LONGEST_SECONDS = 2_000_000

_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}

#: configparser's words, which git and systemd take as well.
_SWITCH = {"yes": True, "on": True, "true": True, "1": True, "no": False, "off": False, "false": False, "0": False}

#: What takes back a limit that another source has set: the value of an option whose default is that there is none.
NO_LIMIT = "none"


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


#: What options have in common that are times, or how many of something.
TIME: dict[str, Any] = {"metavar": "TIME", "parse": parse_duration, "above": 0}
COUNT: dict[str, Any] = {"metavar": "N", "parse": parse_count, "least": 1}


def parse_workers(text: str) -> int:
    """Return a whole number; ``auto`` is the number of CPUs that this process may use."""
    if text.strip() != "auto":
        return parse_count(text)
    import os  # here, for few ask

    if hasattr(os, "process_cpu_count"):  # pragma: no cover - Python 3.13 and later; it heeds PYTHON_CPU_COUNT too
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_mode(text: str) -> int:
    """Return the file mode in ``600``, ``0660`` or ``0o666``, in octal digits as chmod takes them; else ConfigError."""
    digits = text.removeprefix("0o")
    if re.fullmatch("0?[0-7]{1,3}", digits) is None:
        raise ConfigError(f"must be a file mode in octal, such as 600, not {text!r}")
    return int(digits, 8)


def parse_switch(text: str) -> bool:
    """Return what ``yes`` or ``no`` says, in any of the words for them; raise ConfigError for anything else."""
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise ConfigError(f"must be yes or no, not {text!r}") from None


def option(default: Any, *flags: str, help: str, metavar: str = "", **rules: Any) -> Any:
    """Make a field of a dataclass of options.

    ``rules``: parse (text -> value), least, most, above (limits), choices, repeat (it may be given more than once),
    heads (the name of the group that begins with this option; the others go with the one before them).
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


def grouped(options: Iterable[Field[Any]]) -> list[tuple[str, list[Field[Any]]]]:
    """Part ``options`` into groups: each begins with the one that heads it. The first has to head one."""
    groups: list[tuple[str, list[Field[Any]]]] = []
    for one in options:
        if "heads" in one.metadata:
            groups.append((one.metadata["heads"], []))
        groups[-1][1].append(one)
    return groups


def usage_of(option: Field[Any]) -> tuple[str, str]:
    """Return what stands for a value of ``option``, empty for a switch, and its help with the default filled in."""
    rules = option.metadata
    words = "" if isinstance(option.default, bool) else rules["metavar"] or "{" + ",".join(rules["choices"]) + "}"
    return words, rules["help"].replace("%(default)s", str(option.default))


def add_flag(parser: argparse._ActionsContainer, option: Field[Any]) -> None:
    """Give ``parser``, or a group of one, the argument for ``option``. Values stay text; ``parse_text`` reads them.

    The parser is to be made with ``argument_default=argparse.SUPPRESS``, so that absent options stay absent. A switch
    also has its opposite, ``--no-NAME``, which help leaves out.
    """
    from argparse import SUPPRESS  # whoever has a parser has imported it

    metavar, help = usage_of(option)
    flags = option.metadata["flags"]
    if isinstance(option.default, bool):
        parser.add_argument(*flags, dest=option.name, action="store_true", help=help)
        opposite = "--no-" + flags[-1].removeprefix("--")
        parser.add_argument(opposite, dest=option.name, action="store_false", help=SUPPRESS)
    elif flags:
        action = "append" if option.metadata.get("repeat") else "store"
        parser.add_argument(*flags, dest=option.name, action=action, metavar=metavar, help=help)
    else:
        parser.add_argument(option.name, nargs="?", metavar=metavar, help=help)


def parse_text(option: Field[Any], text: Any) -> Any:
    """Return the value that ``text`` gives ``option``; ConfigError names the flag at fault.

    A switch is given by a word for yes or no, or as what it is; a repeatable option by a list of texts.
    """
    parse = option.metadata.get("parse")
    if isinstance(option.default, bool):
        parse = None if isinstance(text, bool) else parse_switch
    elif option.default is None and parse is not None and text == NO_LIMIT:
        return None
    try:
        return text if parse is None else parse(text)
    except ConfigError as error:
        # A positional's own message names it already.
        raise ConfigError(f"{flag_of(option)} {error}" if option.metadata["flags"] else str(error)) from None


def show_value(option: Field[Any], value: Any) -> str | None:
    """Return the text that ``parse_text`` reads as ``value``, of an option that is not repeatable.

    None if there is no such text: no text stands for a file that is not given.
    """
    parse = option.metadata.get("parse")
    if value is None:
        return NO_LIMIT if parse is not None else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if parse is parse_duration:
        from decimal import Decimal  # here, for few starts show their settings

        # repr has the fewest digits that mean this very number, but writes small ones as 1e-05.
        return f"{Decimal(repr(float(value))):f}".removesuffix(".0") + "s"
    return f"{value:o}" if parse is parse_mode else str(value)
