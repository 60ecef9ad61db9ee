"""The command line, ``python -m stdserve``: words in, exit codes out; all else is done below.

Exit codes: 0 stopped as asked, 1 failed while running, 2 wrong usage or configuration, 3 could not start.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from . import runner
from .errors import ConfigError, OutputError, StartError, StdserveError
from .interrupts import spare_stops, stop_listening
from .logs import Event, log_to
from .options import Options
from .settings import (
    Request,
    Settings,
    add_all_flags,
    did_you_mean,
    read_settings,
    setting_groups,
    show_settings,
)
from .terminal import fill_descriptors, say, settle
from .version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["main", "run"]

_log = logging.getLogger("stdserve")

_DESCRIPTION = """\
Run any socketserver request handler, and keep it running. Without a handler of yours it is a server of lines:
it prints what clients send on standard output, until a client sends an empty line or "exit".
"""

_EXIT_CODES = "exit codes: 0 stopped as asked, 1 failed while running, 2 wrong usage, 3 could not start"

#: Seconds that standard output gets to take what is left in its buffer where a session may hold it for ever.
_PATIENCE = 1.0

#: What hands that know another tool type, and what to type here.
_HABITS = {
    "-l": "listening is all it does; leave -l out",
    "-k": "it serves one client after the other by itself; leave -k out (for one client only: --once)",
    "-p": "the port is a plain word: python -m stdserve 9000 (and for a pid file: --pid FILE)",
    "-e": "to run code for each client, write a request handler: --handler module:Class",
    "-t": "times have long names: --idle-timeout, --session-timeout, --graceful-timeout, --linger-timeout",
    "--timeout": "say which: --idle-timeout (a silent client), --session-timeout (a whole session),"
    " --graceful-timeout (a stop), --linger-timeout (a last reply)",
    "-D": "it stays in the foreground; systemd and the like take it from there",
    "--daemon": "it stays in the foreground; systemd and the like take it from there",
    "--host": "addresses go with the port: --bind HOST:PORT",
    "--port": "the port is a plain word: python -m stdserve 9000",
    "--threads": "threads come with --mode thread and are bounded by --max-conns",
}


def main(argv: Sequence[str] | None = None, running: Callable[[], None] | None = None) -> int:
    """Run the command line and return the exit code; ``argv`` is without the program's name.

    ``running()`` is called once clients can connect.
    """
    fill_descriptors()
    try:
        settings, request = read_settings(_parse(argv), os.environ)
        with settings.placing_errors():
            _dispatch(settings, request, running)
    except StdserveError as error:
        say(f"stdserve: {error}\n")
        if isinstance(error, ConfigError):
            return 2
        return 3 if isinstance(error, StartError) else 1
    finally:
        settle(_PATIENCE if _sessions_left() else None)
    return 0


def run() -> NoReturn:
    """Run the command line of this process, and end it.

    Where sessions were cut and their threads go on, the interpreter is not brought to its end, which fails if one
    of them happens to print (cpython gh-129536: "Fatal Python error: _enter_buffered_busy").
    """
    status = main(running=spare_stops())
    stop_listening()
    if _sessions_left():
        os._exit(status)
    raise SystemExit(status)


def _sessions_left() -> bool:
    threads = sys.modules.get("stdserve.threads")
    return threads is not None and bool(threads.at_work())


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are errors like any other."""

    #: Columns. Every formatter, also one that is only to check an option, asks for the terminal's unless it is told,
    #: and imports shutil for that: 3 ms of a start, and five libraries that a server then has in its memory for good.
    _width: int | None = 80

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, formatter_class=lambda prog: argparse.HelpFormatter(prog, width=self._width))

    def format_help(self) -> str:
        """Return the page of help, as wide as the terminal is."""
        self._width = None
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of leaving with a page of usage."""
        raise ConfigError(message)


def _parse(argv: Sequence[str] | None) -> dict[str, Any]:
    parser = _Parser(
        prog="python -m stdserve",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stdserve {__version__}")
    add_all_flags(parser)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(_hint(unknown[0].partition("=")[0]))
    return vars(known)


def _hint(word: str) -> str:
    """Say what to type in the place of a word that is unknown."""
    if hint := _HABITS.get(word) or _HABITS.get(word[:2] if not word.startswith("--") else ""):
        return f"{hint} ({word} is unknown)"
    flags = [flag for _, options in setting_groups() for option in options for flag in option.metadata["flags"]]
    names = [flag[2:] for flag in flags if flag.startswith("--")]
    near = did_you_mean(word[2:], names, "--{}") if word.startswith("--") else ""
    return f"unknown argument {word!r}{near or '; --help lists all'}"


def _dispatch(settings: Settings, request: Request, running: Callable[[], None] | None) -> None:
    options = settings.options
    if request.check_config:
        runner.check(options)
    if request.print_config:
        _show(show_settings(settings))
    elif request.check_config:
        _show("stdserve: these settings are fine\n")
    else:
        with runner.umask_of(options), log_to(options.log_file, options.log_format, options.log_level) as plain:
            runner.serve(options=options, ready=lambda addresses: _explain(options, addresses, plain, running))


def _show(text: str) -> None:
    """Write on standard output, in UTF-8 whatever a terminal speaks; raise OutputError if it takes nothing."""
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except (AttributeError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is closed"
        raise OutputError(f"cannot write to standard output: {reason}") from None


def _explain(options: Options, addresses: Sequence[str], plain: bool, running: Callable[[], None] | None) -> None:
    """Tell how to try the server; only where it speaks for itself, not for a handler of the user's."""
    if running is not None:
        running()
    if options.foreign or options.log_level in ("warning", "error"):
        return
    from .hints import ways_to_try  # here, when clients can connect already

    ways = ways_to_try(addresses[0], options)
    if plain:
        say("try it from another terminal (an empty line or exit ends a session, Ctrl-C this server):\n")
        say("".join(f"  {way}\n" for way in ways))
    else:
        _log.info(Event("try", "it: " + "; ".join(ways), data={"ways": ways}))
