"""Where the settings of a command line come from: a file, the environment, its own words, each over the one before.

Every source gives texts by the name of an option, with where each stood; ``options`` makes values of them, and what is
wrong with one is told with its place. Nothing here lists options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, fields

from .errors import ConfigError, StartError
from .flags import add_flag, flag_of, grouped, option, parse_text, show_value
from .options import Options, option_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

__all__ = [
    "Request",
    "Settings",
    "add_all_flags",
    "add_flags",
    "did_you_mean",
    "option_groups",
    "parse_options",
    "read_settings",
    "setting_groups",
    "show_settings",
]

#: The section of a settings file, and how the names of variables begin.
SECTION, PREFIX = "stdserve", "STDSERVE_"

COMMAND_LINE, DEFAULT = "the command line", "default"

#: What Kubernetes sets in every container beside a service that is called "stdserve", as Docker's links did
#: (kubernetes.io, "Service", environment variables): none of our business, the port least of all, a URL there.
_SERVICE = r"STDSERVE_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)="
_SERVICE_URL = r"STDSERVE_PORT=(tcp|udp|sctp)://"


# A dataclass for the sake of its fields; what else one may have costs every start some of a millisecond.
@dataclass(kw_only=True, eq=False, repr=False)
class Request:
    """What a command line may ask for that is no option of a server; only ``config`` may come from elsewhere."""

    config: str | None = option(
        None,
        "-c",
        "--config",
        heads="settings",
        help="read options from FILE: INI, section [stdserve], the long flags without their dashes as keys",
        metavar="FILE",
    )
    check_config: bool = option(
        False, "--check-config", help="check the options, load the handler, then end; bind nothing"
    )
    print_config: bool = option(
        False, "--print-config", help="print all options as a FILE for --config, each with where it came from, then end"
    )


def option_groups() -> list[tuple[str, list[Field[Any]]]]:
    """Return the options in groups, each with its name, in the order of the dataclass."""
    return grouped(option_fields())


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` one argument for each option, group by group, as ``flags.add_flag`` does."""
    for title, options in option_groups():
        group = parser.add_argument_group(title)
        for field in options:
            add_flag(group, field)


def parse_options(texts: Mapping[str, Any]) -> Options:
    """Make Options from texts by option name, as a command line gives them; ConfigError names the flag at fault."""
    given = (field for field in option_fields() if field.name in texts)
    return Options(**{field.name: parse_text(field, texts[field.name]) for field in given})


class Settings:
    """The options of a server, and where each that is not a default was set, by name."""

    def __init__(self, options: Options, origins: Mapping[str, str]) -> None:
        self.options = options
        self.origins = origins

    @contextmanager
    def placing_errors(self) -> Iterator[None]:
        """Add to each ConfigError out of the block where the options that it names were set."""
        with _placing_errors(self.origins):
            yield


def add_all_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the arguments of the options and of Request, in groups."""
    add_flags(parser)
    for title, requests in grouped(fields(Request)):
        group = parser.add_argument_group(title)
        for field in requests:
            add_flag(group, field)


def setting_groups() -> list[tuple[str, list[Field[Any]]]]:
    """Return all that has a flag, in groups with their names, as ``--help`` and the README show it."""
    return [*option_groups(), *grouped(fields(Request))]


def read_settings(words: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[Settings, Request]:
    """Return what the ``words`` of a command line, the environment and a settings file come to.

    ``words`` are texts by name, as a parser with ``add_all_flags`` gives them. Raises ConfigError that says where what
    is wrong stood, StartError if the file cannot be read.
    """
    known = {field.name: field for field in option_fields()}
    variables = _read_environment(environment, known)
    config, _ = variables.pop("config", (None, ""))
    request = Request(**{"config": config} | {name: text for name, text in words.items() if name not in known})
    texts = _read_file(request.config, known) if request.config is not None else {}
    texts |= variables
    texts |= {name: (text, COMMAND_LINE) for name, text in words.items() if name in known}
    origins = {name: origin for name, (_, origin) in texts.items()}
    with _placing_errors(origins):
        options = parse_options({name: text for name, (text, _) in texts.items()})
    return Settings(options, origins), request


def show_settings(settings: Settings) -> str:
    """Return a settings file that makes the same options, with where each came from in a comment."""
    rows = [f"[{SECTION}]"]
    for title, options in option_groups():
        rows += ["", f"# {title}", ""]
        for field in options:
            origin = settings.origins.get(field.name, DEFAULT)
            rows.append(f"# {origin if origin.isprintable() else ascii(origin)}")
            rows += _rows_of(field, getattr(settings.options, field.name))
    return "\n".join(rows) + "\n"


def did_you_mean(word: str, names: Iterable[str], form: str = "{}") -> str:
    """Return "; did you mean ...?" with the nearest of ``names``, put into ``form``; empty if none is near."""
    from difflib import (
        get_close_matches,  # here, for it has no part in a start that goes well
    )

    return "".join(f"; did you mean {form.format(near)}?" for near in get_close_matches(word, names, 1))


def _key_of(name: str) -> str:
    return name.replace("_", "-")


def _read_environment(environment: Mapping[str, str], known: Mapping[str, Field[Any]]) -> dict[str, tuple[Any, str]]:
    """Return (text, origin) by name. An empty variable is none; a repeatable one is parted at its blanks."""
    found: dict[str, tuple[Any, str]] = {}
    ours = [variable for variable in environment if variable.startswith(PREFIX)]
    names = {name.upper(): name for name in [*known, "config"]} if ours else {}
    for variable in ours:
        text = environment[variable]
        if not text or re.match(f"{_SERVICE}|{_SERVICE_URL}", f"{variable}={text}"):
            continue
        name = names.get(variable[len(PREFIX) :], "")
        if not name:
            near = did_you_mean(variable[len(PREFIX) :].upper(), names, PREFIX + "{}")
            raise ConfigError(f"environment {variable}: there is no such variable{near}")
        repeat = name in known and known[name].metadata.get("repeat")
        found[name] = text.split() if repeat else text, f"environment {variable}"
    return found


def _read_file(path: str, known: Mapping[str, Field[Any]]) -> dict[str, tuple[Any, str]]:
    """Return (text, origin) by name; a repeatable option has one value a line."""
    found: dict[str, tuple[Any, str]] = {}
    for name, (text, line) in _read_ini(path).items():
        place = f"{path}:{line}"
        if name not in known:
            near = did_you_mean(_key_of(name), map(_key_of, known))
            raise ConfigError(f"{place}: there is no option {_key_of(name)!r}{near}")
        values = [_unquote(value, place) for value in text.split("\n") if value]
        if known[name].metadata.get("repeat"):
            found[name] = values, place
        elif len(values) > 1:
            raise ConfigError(f"{place}: {_key_of(name)} takes one line; the next one must not be indented")
        else:
            found[name] = values[0] if values else "", place
    return found


def _read_ini(path: str) -> dict[str, tuple[str, int]]:
    """Return (text, line number) by key, with ``_`` for ``-``."""
    import configparser  # here, for few starts name a file

    number = 0
    lines: dict[str, int] = {}

    def counted(file: Iterable[str]) -> Iterator[str]:
        nonlocal number
        for line in file:
            number += 1
            yield line

    def name_of(key: str) -> str:
        # The parser asks while it reads the line, and is the only one who knows what is a key and what a value.
        name = key.strip().lower().replace("-", "_")
        lines.setdefault(name, number)
        return name

    # No section has an empty name; without one for defaults, [DEFAULT] is a section like any other.
    parser = configparser.RawConfigParser(default_section="")
    parser.optionxform = name_of  # type: ignore[assignment, method-assign]
    try:
        with open(path, encoding="utf-8-sig") as file:
            parser.read_file(counted(file), path)
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text in UTF-8") from None
    except configparser.Error as error:
        raise ConfigError(f"{path}:{_complaint(error)}") from None
    for section in parser.sections():
        if section != SECTION:
            raise ConfigError(f"{path}: there is no section [{section}] of ours; the only one is [{SECTION}]")
    items = parser.items(SECTION) if parser.has_section(SECTION) else []
    return {name: (text, lines[name]) for name, text in items}


def _complaint(error: Any) -> str:
    """Say in one line, which begins with a line number, what configparser says in several."""
    if hasattr(error, "option"):
        return f"{error.lineno}: there is a second {_key_of(error.option)!r}"
    if hasattr(error, "section"):
        return f"{error.lineno}: there is a second section [{error.section}]"
    if hasattr(error, "lineno"):
        return f"{error.lineno}: the section [{SECTION}] has to begin before this line"
    number, _ = error.errors[0]  # the line itself is quoted by some versions of Python only
    return f"{number}: neither KEY = VALUE nor a section nor a comment"


def _unquote(text: str, place: str) -> str:
    """Return what a value in double quotes stands for; it is a JSON string. Any other is what it is."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    import json  # here, for few values are quoted

    try:
        return str(json.loads(text))
    except ValueError:
        raise ConfigError(f"{place}: what begins and ends with a quote must be a JSON string, not {text}") from None


def _quote(text: str) -> str:
    """Return ``text`` as a value in a file: as it is, unless the parser would change it or take it for a comment."""
    if text and text.isprintable() and text == text.strip() and text[0] not in '"#;':
        return text
    import json  # here, for few values need quotes

    return json.dumps(text)


def _rows_of(option: Field[Any], value: Any) -> list[str]:
    key = _key_of(option.name)
    if option.metadata.get("repeat"):
        return [f"{key} =", *(f"    {_quote(one)}" for one in value)]
    text = show_value(option, value)
    return [f"# {key} is not set" if text is None else f"{key} = {_quote(text)}"]


@contextmanager
def _placing_errors(origins: Mapping[str, str]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        places = dict.fromkeys(
            origins[field.name]
            for field in option_fields()
            if origins.get(field.name, COMMAND_LINE) != COMMAND_LINE and _names(str(error), field)
        )
        if not places:
            raise
        raise ConfigError(f"{', '.join(places)}: {error}") from error.__cause__


def _names(message: str, option: Field[Any]) -> bool:
    """Tell whether a message is about ``option``: by its long flag anywhere, by its bare name at the beginning."""
    flag = flag_of(option)
    return re.search(rf"(?<![\w-]){flag}(?![\w-])" if option.metadata["flags"] else rf"\A{flag} ", message) is not None
