"""The options: one dataclass, checked when it is made, from which flags and help come."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdserve.addresses import Address
from stdserve.errors import ConfigError
from stdserve.flags import parse_duration, parse_mode
from stdserve.options import Options, make_options, option_fields
from stdserve.settings import add_flags, parse_options

#: A value other than the default for each option: as words of a command line, and as it is then.
SETTINGS: dict[str, tuple[list[str], Any]] = {
    "port": (["9000"], 9000),
    "bind": (["--bind", "localhost", "-b", "[::1]:80"], ("localhost", "[::1]:80")),
    "mode": (["--mode", "fork"], "fork"),
    "unix_mode": (["--unix-mode", "660"], 0o660),
    "reuse_port": (["--reuse-port"], True),
    "pin": (["--pin"], True),
    "workers": (["-w", "3"], 3),
    "handler": (["--handler", "module:Class"], "module:Class"),
    "wsgi": (["--wsgi", "module:app"], "module:app"),
    "framing": (["--framing", "chunk"], "chunk"),
    "format": (["--format", "json"], "json"),
    "output": (["-o", "file"], "file"),
    "raw": (["--raw"], True),
    "once": (["--once"], True),
    "max_line": (["--max-line", "100"], 100),
    "max_conns": (["-m", "5"], 5),
    "max_conns_per_ip": (["--max-conns-per-ip", "2"], 2),
    "overflow": (["--overflow", "close"], "close"),
    "overflow_message": (["--overflow-message", "come back"], "come back"),
    "session_timeout": (["--session-timeout", "1h"], 3600.0),
    "linger_timeout": (["--linger-timeout", "0.5"], 0.5),
    "idle_timeout": (["-i", "500ms"], 0.5),
    "handshake_timeout": (["--handshake-timeout", "3s"], 3.0),
    "proxy_protocol": (["--proxy-protocol"], True),
    "proxy_allow_from": (["--proxy-allow-from", "10.0.0.0/8"], ("10.0.0.0/8",)),
    "allow": (["--allow", "10.0.0.0/8", "--allow", "::1"], ("10.0.0.0/8", "::1")),
    "allowfile": (["--allowfile", "friends"], ("friends",)),
    "deny": (["--deny", "10.6.6.6"], ("10.6.6.6",)),
    "denyfile": (["--denyfile", "foes"], ("foes",)),
    "graceful_timeout": (["--graceful-timeout", "2m"], 120.0),
    "tls_cert": (["--tls-cert", "cert.pem"], "cert.pem"),
    "tls_key": (["--tls-key", "key.pem"], "key.pem"),
    "tls_password_file": (["--tls-password-file", "password"], "password"),
    "tls_client_ca": (["--tls-client-ca", "ca.pem"], "ca.pem"),
    "tls_min_version": (["--tls-min-version", "1.3"], "1.3"),
    "tls_reload": (["--tls-reload"], True),
    "status": (["--status", "127.0.0.1:0"], "127.0.0.1:0"),
    "worker_timeout": (["--worker-timeout", "10s"], 10.0),
    "max_sessions": (["--max-sessions", "1000"], 1000),
    "max_sessions_jitter": (["--max-sessions-jitter", "50"], 50),
    "reload": (["--reload"], True),
    "log_level": (["--log-level", "debug"], "debug"),
    "log_format": (["--log-format", "json"], "json"),
    "log_file": (["--log-file", "log"], "log"),
    "pid": (["--pid", "file"], "file"),
    "user": (["-u", "nobody"], "nobody"),
    "group": (["-g", "65534"], "65534"),
    "umask": (["--umask", "027"], 0o27),
}

#: What an option must not be without.
NEEDS = {
    **dict.fromkeys(["tls_key", "tls_password_file", "tls_client_ca", "tls_reload"], ["tls_cert"]),
    "max_sessions": ["workers"],
    "max_sessions_jitter": ["max_sessions", "workers"],
}


def make_parser() -> argparse.ArgumentParser:
    """Return a parser with the flags, made as add_flags asks for."""
    parser = argparse.ArgumentParser(prog="prog", argument_default=argparse.SUPPRESS)
    add_flags(parser)
    return parser


def parse(*words: str) -> Options:
    """Read a command line."""
    return parse_options(vars(make_parser().parse_args(words)))


def test_no_words_are_the_defaults() -> None:
    """An empty command line, no texts and no arguments are the same."""
    assert Options() == parse() == parse_options({})
    with pytest.raises(TypeError):
        Options(10001)  # type: ignore[call-arg]


def test_the_defaults_are_those_of_the_documentation() -> None:
    """One process, a thread for each client, lines of 64 KiB, no limit of time, half a minute to stop."""
    options = Options()

    assert ((), 10001, None, None) == (options.bind, options.port, options.mode, options.workers)
    assert ("line", "text", None, False) == (options.framing, options.format, options.output, options.raw)
    assert (65536, None, None, 30.0) == (
        *(options.max_line, options.max_conns, options.idle_timeout, options.graceful_timeout),
    )
    assert ("wait", None, None, 2.0) == (
        *(options.overflow, options.max_conns_per_ip, options.session_timeout, options.linger_timeout),
    )
    assert ("stdserve:PrintHandler", False, "info") == (options.handler, options.once, options.log_level)
    assert (None, "1.2", 10.0) == (options.tls_cert, options.tls_min_version, options.handshake_timeout)


@pytest.mark.parametrize("name", [option.name for option in option_fields()])
def test_each_option_is_set_by_its_flag_and_nothing_else_is(name: str) -> None:
    """The words of a command line become one value, which from code is the same."""
    words, value = SETTINGS[name]
    settings = {name: value}
    for need in NEEDS.get(name, []):
        more, settings[need] = SETTINGS[need]
        words = words + more

    assert value == getattr(parse(*words), name)
    assert Options(**settings) == parse(*words)
    assert value != getattr(Options(), name)


def test_auto_are_as_many_workers_as_there_are_usable_cpus() -> None:
    """One fewer if one may not be used."""
    code = (
        "import os\n"
        "from stdserve.settings import parse_options\n"
        "cpus = os.sched_getaffinity(0)\n"
        "print(parse_options({'workers': 'auto'}).workers == len(cpus))\n"
        "os.sched_setaffinity(0, [min(cpus)])\n"
        "print(parse_options({'workers': 'auto'}).workers)\n"
        "del os.sched_getaffinity\n"
        "vars(os).pop('process_cpu_count', None)\n"
        "print(parse_options({'workers': 'auto'}).workers == os.cpu_count())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ("True\n1\nTrue\n", "") == (result.stdout, result.stderr)


def test_options_can_be_set_together() -> None:
    """A whole command line."""
    assert Options(port=0, mode="single", idle_timeout=5.0) == parse("--mode", "single", "--idle-timeout", "5", "0")


def test_help_names_every_flag_and_default() -> None:
    """What --help shows is made from the options: no flag is missing, every placeholder is filled in."""
    text = " ".join(make_parser().format_help().split())

    for option in option_fields():
        before, placeholder, _ = option.metadata["help"].partition("%(default)s")
        assert before + (f"{option.default})" if placeholder else "") in text
        assert [] == [flag for flag in option.metadata["flags"] if flag not in text]
    for choice in ("{line,chunk}", "{text,peer,json}", "{debug,info,warning,error}", "--bind ADDRESS", "[PORT]"):
        assert choice in text


def test_defaults_that_help_spells_out_are_true() -> None:
    """A duration reads better as 30s than as 30.0; it is the same."""
    texts = {option.name: option.metadata["help"] for option in option_fields()}

    assert "(default: 600," in texts["unix_mode"]
    assert 0o600 == Options().unix_mode
    assert "(default: 30s)" in texts["graceful_timeout"]
    assert parse_duration("30s") == Options().graceful_timeout
    assert "(default: 2s)" in texts["linger_timeout"]
    assert parse_duration("2s") == Options().linger_timeout
    assert "(default: 10s)" in texts["handshake_timeout"]
    assert parse_duration("10s") == Options().handshake_timeout
    assert "(default: never)" in texts["idle_timeout"]
    assert Options().idle_timeout is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "--workers must be at least 1, not 0"),
        ({"workers": -1}, "--workers must be at least 1, not -1"),
        ({"max_line": 0}, "--max-line must be at least 1, not 0"),
        ({"max_conns": 0}, "--max-conns must be at least 1, not 0"),
        ({"max_conns_per_ip": 0}, "--max-conns-per-ip must be at least 1, not 0"),
        ({"overflow": "drop"}, "--overflow must be one of wait, close, reply, not 'drop'"),
        ({"session_timeout": 0}, "--session-timeout must be above 0, not 0"),
        ({"linger_timeout": 0}, "--linger-timeout must be above 0, not 0"),
        ({"idle_timeout": 0}, "--idle-timeout must be above 0, not 0"),
        ({"idle_timeout": -1.5}, "--idle-timeout must be above 0, not -1.5"),
        ({"idle_timeout": math.nan}, "--idle-timeout must be a number of seconds, not nan"),
        ({"graceful_timeout": 0}, "--graceful-timeout must be above 0, not 0"),
        ({"framing": "word"}, "--framing must be one of line, chunk, not 'word'"),
        ({"format": "xml"}, "--format must be one of text, peer, json, not 'xml'"),
        ({"log_level": "loud"}, "--log-level must be one of debug, info, warning, error, not 'loud'"),
        ({"port": -1}, "port must be at least 0 and at most 65535, not -1"),
        ({"port": 65536}, "port must be at least 0 and at most 65535, not 65536"),
        ({"port": None}, "port must be a whole number, not None"),
        ({"bind": "[::1"}, "--bind address must be HOST:PORT, [V6]:PORT, *:PORT, unix:PATH, unix:@NAME, "),
        ({"unix_mode": 0o1000}, "--unix-mode must be at least 0 and at most 511, not 512"),
        ({"reuse_port": True, "bind": ["unix:a", "fd://3"]}, "--reuse-port is for TCP: no --bind is a host"),
        ({"bind": ["localhost", "localhost:x"]}, "--bind port must be a number from 0 to 65535, not 'x'"),
        ({"raw": True, "format": "json"}, "--raw and --format json exclude each other"),
        ({"once": True, "workers": 2}, "--once and --workers exclude each other"),
        ({"max_sessions": 5}, "--max-sessions is of no use without --workers"),
        ({"workers": 2, "max_sessions_jitter": 5}, "--max-sessions-jitter is of no use without --max-sessions"),
        ({"tls_min_version": "1.1"}, "--tls-min-version must be one of 1.2, 1.3, not '1.1'"),
        ({"handshake_timeout": 0}, "--handshake-timeout must be above 0, not 0"),
        ({"tls_key": "key.pem"}, "--tls-key is of no use without --tls-cert"),
        ({"tls_password_file": "password"}, "--tls-password-file is of no use without --tls-cert"),
        ({"tls_client_ca": "ca.pem"}, "--tls-client-ca is of no use without --tls-cert"),
        ({"tls_reload": True}, "--tls-reload is of no use without --tls-cert"),
    ],
)
def test_a_wrong_value_is_a_config_error_that_says_where(values: dict[str, Any], message: str) -> None:
    """Options are checked when they are made, wherever they come from."""
    with pytest.raises(ConfigError) as caught:
        Options(**values)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "two"], "--workers must be a whole number, not 'two'"),
        (["--workers", "1.5"], "--workers must be a whole number, not '1.5'"),
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["-m", ""], "--max-conns must be a whole number, not ''"),
        (["-i", "soon"], "--idle-timeout must be a duration above 0 such as 500ms, 5s, 2m or 1h, not 'soon'"),
        (["-i=-5"], "--idle-timeout must be a duration above 0 such as 500ms, 5s, 2m or 1h, not '-5'"),
        (["-i", "0"], "--idle-timeout must be above 0, not 0.0"),
        (["http"], "port must be a number from 0 to 65535, not 'http'"),
        (["--framing", "word"], "--framing must be one of line, chunk, not 'word'"),
    ],
)
def test_a_wrong_word_is_a_config_error_that_names_its_flag(words: list[str], message: str) -> None:
    """By the long name of the flag, however it was typed."""
    with pytest.raises(ConfigError) as caught:
        parse(*(part for word in words for part in word.split("=", 1)) if "=" in words[0] else words)

    assert message == str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        *({"idle_timeout": "5s"}, {"workers": "2"}, {"worker_timeout": None}, {"workers": 1.5}, {"port": "80"}),
        *({"max_line": None}, {"graceful_timeout": None}, {"idle_timeout": math.inf}, {"graceful_timeout": math.inf}),
    ],
    ids=repr,
)
def test_a_value_of_the_wrong_kind_is_a_config_error(values: dict[str, Any]) -> None:
    """From code too, a wrong value is told when the options are made, not by a traceback in the first session."""
    with pytest.raises(ConfigError):
        Options(**values)


@pytest.mark.parametrize("words", [["-b", "[::1"], ["-b", "localhost:x"]], ids=repr)
def test_a_wrong_address_names_its_flag(words: list[str]) -> None:
    """As every other wrong value does."""
    with pytest.raises(ConfigError, match="^--bind "):
        parse(*words)


def test_a_duration_beyond_all_measure_is_a_config_error() -> None:
    """No socket waits for infinity."""
    with pytest.raises(ConfigError):
        parse("--idle-timeout", "9" * 400)


@pytest.mark.parametrize("seconds", [2 * threading.TIMEOUT_MAX, 10**400], ids=["584 years", "no float"])
def test_a_duration_that_nothing_can_wait_for_is_a_config_error(seconds: float) -> None:
    """Else it is an OverflowError when the server stops: the system counts nanoseconds in 64 bits."""
    with pytest.raises(ConfigError):
        Options(graceful_timeout=seconds)


def test_without_a_change_they_are_the_same_options() -> None:
    """With the files that they have loaded, which cannot be read any more once root's rights are given up."""
    options = Options(deny="192.0.2.0/24")  # type: ignore[arg-type]
    options.load()

    assert options.rules is make_options(options, {}).rules
    assert 5 == make_options(options, {"workers": 5}).workers
    assert Options() == make_options(None, {})


def test_options_do_not_change() -> None:
    """They are shared by threads and processes; a change is a new value."""
    options = Options(bind=["localhost"])  # type: ignore[arg-type]

    with pytest.raises(dataclasses.FrozenInstanceError):
        options.port = 1  # type: ignore[misc]
    assert hash(Options(bind=("localhost",))) == hash(options)
    assert ("localhost", 1) == (dataclasses.replace(options, port=1).bind[0], dataclasses.replace(options, port=1).port)


@pytest.mark.parametrize(
    ("values", "addresses"),
    [
        ({}, [Address("127.0.0.1", 10001), Address("::1", 10001, optional=True)]),
        ({"port": 0}, [Address("127.0.0.1", 0), Address("::1", 0, optional=True)]),
        ({"bind": "localhost"}, [Address("localhost", 10001)]),
        ({"bind": ":80", "port": 9000}, [Address("0.0.0.0", 80)]),
        ({"bind": ["localhost", "[::1]:80"], "port": 9000}, [Address("localhost", 9000), Address("::1", 80)]),
        ({"bind": ["*", "unix:x"], "port": 9000}, [Address("*", 9000), Address("x", kind="unix")]),
    ],
)
def test_addresses_are_the_bound_ones_or_loopback(values: dict[str, Any], addresses: list[Address]) -> None:
    """The port fills in where an address has none of its own; one address may stand without a list."""
    assert tuple(addresses) == Options(**values).addresses


@given(st.integers(0, 10**9), st.sampled_from([("ms", 0.001), ("s", 1), ("", 1), ("m", 60), ("h", 3600)]))
def test_durations_are_seconds(count: int, unit: tuple[str, float]) -> None:
    """Every unit is worth what it says, blanks around do not matter."""
    assert count * unit[1] == pytest.approx(parse_duration(f" {count}{unit[0]} "))
    assert (count + 0.25) * unit[1] == pytest.approx(parse_duration(f"{count}.25{unit[0]}"))


@pytest.mark.parametrize(("text", "seconds"), [(".5", 0.5), ("5.", 5.0), (".5m", 30.0), ("0", 0.0)])
def test_durations_may_begin_or_end_with_the_point(text: str, seconds: float) -> None:
    """Numbers as ncat and humans write them."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize("text", ["", ".", "s", "-5", "+5", "5 s", "5d", "5M", "1e3", "inf", "nan", "5s5", "٣", "0x5"])
def test_what_is_no_duration_is_quoted_back(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ConfigError, match="must be a duration") as caught:
        parse_duration(text)

    assert str(caught.value).endswith(repr(text))


@pytest.mark.parametrize(
    ("text", "mode"), [("600", 0o600), ("0660", 0o660), ("0o666", 0o666), ("0", 0), ("777", 0o777)]
)
def test_a_mode_is_octal_as_chmod_has_it(text: str, mode: int) -> None:
    """With or without Python's prefix."""
    assert mode == parse_mode(text)


@pytest.mark.parametrize("text", ["", "8", "-1", "1777", "u+rw", "0x1f", "6 0", "٦", "0o", "00600"])
def test_what_is_no_mode_is_quoted_back(text: str) -> None:
    """Nothing above 777: a socket has no use for the other bits."""
    with pytest.raises(ConfigError, match="must be a file mode in octal") as caught:
        parse_mode(text)

    assert str(caught.value).endswith(repr(text))


def test_status_needs_a_system_that_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that tells it stands beside the others."""
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ConfigError, match="--status needs os.fork"):
        Options(status="127.0.0.1:0")
