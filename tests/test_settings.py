"""Where settings come from: file, environment, command line; each over the one before, each error with its place."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st
from processes import DEADLINE, ServerProcess
from test_options import NEEDS, SETTINGS

from stdserve.errors import ConfigError, StartError
from stdserve.options import Options, option_fields
from stdserve.settings import (
    Request,
    Settings,
    add_all_flags,
    did_you_mean,
    read_settings,
    setting_groups,
    show_settings,
)

OPTIONS = {option.name: option for option in option_fields()}


def words(*line: str) -> dict[str, Any]:
    """What a parser makes of a command line."""
    parser = argparse.ArgumentParser(prog="prog", argument_default=argparse.SUPPRESS, allow_abbrev=False)
    add_all_flags(parser)
    return vars(parser.parse_args(line))


def texts_of(name: str) -> list[str]:
    """The texts that give an option its value in test_options: what stands there less the flags."""
    return [word for word in SETTINGS[name][0] if not word.startswith("-")] or ["yes"]


def variable(name: str) -> str:
    """The variable that sets an option."""
    return "STDSERVE_" + name.upper()


def written(folder: Path, *lines: str) -> str:
    """Write a settings file and return its path."""
    path = folder / "server.ini"
    path.write_text("[stdserve]\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def run(*line: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line that is expected to end by itself."""
    command = [sys.executable, "-m", "stdserve", *line]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, **popen)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_can_be_set_in_every_source(name: str, tmp_path: Path) -> None:
    """A file, with either spelling of its key; the environment; the command line."""
    names = [name, *NEEDS.get(name, [])]
    texts = {one: texts_of(one) for one in names}
    expected = Options(**{one: SETTINGS[one][1] for one in names})

    for spell in (str, str.upper, lambda key: key.replace("_", "-")):
        path = written(tmp_path, *(f"{spell(one)} = " + "\n    ".join(texts[one]) for one in names))
        settings, _ = read_settings({"config": path}, {})
        assert (expected, f"{path}:2") == (settings.options, settings.origins[name])
    settings, _ = read_settings({}, {variable(one): " ".join(texts[one]) for one in names})
    origins = {one: f"environment {variable(one)}" for one in names}
    assert (expected, origins) == (settings.options, settings.origins)
    settings, _ = read_settings(words(*(word for one in names for word in SETTINGS[one][0])), {})
    assert (expected, dict.fromkeys(names, "the command line")) == (settings.options, settings.origins)


@pytest.mark.parametrize(
    ("file", "environment", "line", "value"),
    [
        (None, None, None, None),
        ("2", None, None, 2),
        (None, "3", None, 3),
        (None, None, "4", 4),
        ("2", "3", None, 3),
        ("2", None, "4", 4),
        (None, "3", "4", 4),
        ("2", "3", "4", 4),
    ],
)
def test_each_source_is_over_the_one_before(
    file: str | None, environment: str | None, line: str | None, value: int | None, tmp_path: Path
) -> None:
    """Defaults, file, environment, command line."""
    path = written(tmp_path, *([f"workers = {file}"] if file else []))
    settings, _ = read_settings(
        words("-c", path, *(["-w", line] if line else [])), {"STDSERVE_WORKERS": environment} if environment else {}
    )

    assert Options(workers=value) == settings.options


def test_a_repeatable_option_of_one_source_takes_the_place_of_the_others(tmp_path: Path) -> None:
    """They do not add up: else nothing could be taken back."""
    path = written(tmp_path, "bind =", "    localhost:1", "    # not this one", "", "    localhost:2")

    assert ("localhost:1", "localhost:2") == read_settings(words("-c", path), {})[0].options.bind
    environment = {"STDSERVE_BIND": " localhost:3  localhost:4 "}
    assert ("localhost:3", "localhost:4") == read_settings(words("-c", path), environment)[0].options.bind
    line = words("-c", path, "-b", "localhost:5", "-b", "localhost:6")
    assert ("localhost:5", "localhost:6") == read_settings(line, environment)[0].options.bind


def test_the_environment_names_the_file_and_the_command_line_another(tmp_path: Path) -> None:
    """STDSERVE_CONFIG is not read when there is a -c."""
    path = written(tmp_path, "workers = 7")

    assert 7 == read_settings({}, {"STDSERVE_CONFIG": path})[0].options.workers
    assert 7 == read_settings(words("-c", path), {"STDSERVE_CONFIG": "/nowhere"})[0].options.workers


@pytest.mark.parametrize(("yes", "no"), [("yes", "no"), ("on", "off"), ("true", "false"), ("1", "0"), ("Yes", "NO")])
def test_a_switch_is_thrown_by_any_word_for_it(yes: str, no: str, tmp_path: Path) -> None:
    """Those of configparser."""
    path = written(tmp_path, f"raw = {yes}", f"once = {no}")
    options = read_settings(words("-c", path), {})[0].options

    assert (True, False) == (options.raw, options.once)
    assert not read_settings(words("-c", path), {"STDSERVE_RAW": no})[0].options.raw


def test_what_a_file_has_set_can_be_taken_back(tmp_path: Path) -> None:
    """A switch by its opposite, a limit by "none"."""
    path = written(tmp_path, "raw = yes", "idle-timeout = 5s", "max-conns = 9")
    options = read_settings(words("-c", path, "--no-raw", "-i", "none", "-m", "none"), {})[0].options

    assert Options() == options


def test_none_is_a_word_for_limits_only() -> None:
    """Not for one that there has to be, nor for a file."""
    with pytest.raises(ConfigError, match="--max-line must be a whole number, not 'none'"):
        read_settings(words("--max-line", "none"), {})
    assert "none" == read_settings(words("-o", "none"), {})[0].options.output


@pytest.mark.parametrize(
    "environment",
    [
        {"STDSERVE_WORKERS": "", "STDSERVE_CONFIG": "", "STDSERVE_NONSENSE": ""},
        {"stdserve_workers": "5", "XSTDSERVE_WORKERS": "5", "STDSERVER": "5", "STDSERVE": "5"},
        {"STDSERVE_PORT": "tcp://10.0.0.1:80", "STDSERVE_SERVICE_HOST": "10.0.0.1", "STDSERVE_SERVICE_PORT": "80"},
        {"STDSERVE_SERVICE_PORT_LINES": "80", "STDSERVE_PORT_80_TCP": "tcp://10.0.0.1:80"},
        {f"STDSERVE_PORT_80_TCP_{part}": "80" for part in ("PROTO", "PORT", "ADDR")},
    ],
    ids=lambda environment: str(list(environment)[0]),
)
def test_variables_that_set_nothing(environment: dict[str, str]) -> None:
    """Empty ones, other programs', and those that Kubernetes makes for a service that has our name."""
    assert Options() == read_settings({}, environment)[0].options


FILE_ERRORS = [
    (["idle-timout = 5s"], "2: there is no option 'idle-timout'; did you mean idle-timeout?"),
    (["", "Max_Con = 5"], "3: there is no option 'max-con'; did you mean max-conns?"),
    (["xyzzy = 5"], "2: there is no option 'xyzzy'"),
    (["config = other.ini"], "2: there is no option 'config'"),
    (["check-config = yes"], "2: there is no option 'check-config'"),
    (["workers = 2", "workers = 3"], "3: there is a second 'workers'"),
    (["idle-timeout = 5", "idle_timeout = 6"], "3: there is a second 'idle-timeout'"),
    (["[stdserve]"], "2: there is a second section [stdserve]"),
    (["[stdserver]"], " there is no section [stdserver] of ours; the only one is [stdserve]"),
    (["[DEFAULT]"], " there is no section [DEFAULT] of ours; the only one is [stdserve]"),
    (["workers"], "2: neither KEY = VALUE nor a section nor a comment"),
    (["output = here", "  raw = yes"], "2: output takes one line; the next one must not be indented"),
    (['output = "here" or "there"'], '2: what begins and ends with a quote must be a JSON string, not "here" or'),
    (["", "idle-timeout = soon"], "3: --idle-timeout must be a duration above 0 such as"),
    (["idle-timeout = 0"], "2: --idle-timeout must be above 0, not 0.0"),
    (["raw = maybe"], "2: --raw must be yes or no, not 'maybe'"),
    (["raw ="], "2: --raw must be yes or no, not ''"),
    (["port = http"], "2: port must be a number from 0 to 65535, not 'http'"),
    (["bind = localhost:x"], "2: --bind port must be a number from 0 to 65535, not 'x'"),
    (["max-conns = 5%(port)s"], "2: --max-conns must be a whole number, not '5%(port)s'"),
]


@pytest.mark.parametrize(("lines", "message"), FILE_ERRORS, ids=[message for _, message in FILE_ERRORS])
def test_what_is_wrong_in_a_file_is_told_with_its_line(lines: list[str], message: str, tmp_path: Path) -> None:
    """As compilers do, so that editors find it; and what was meant, where that is plain."""
    path = written(tmp_path, *lines)

    with pytest.raises(ConfigError) as caught:
        read_settings(words("-c", path), {})
    assert str(caught.value).startswith(f"{path}:{message}")
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_told(tmp_path: Path) -> None:
    """No section, no text, no file."""
    path = tmp_path / "file"
    path.write_bytes(b"\nworkers = 5\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}:2: the section [stdserve] has to begin before this line")):
        read_settings(words("-c", str(path)), {})
    path.write_bytes(b"[stdserve]\noutput = \xff\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: is not text in UTF-8")):
        read_settings(words("-c", str(path)), {})
    with pytest.raises(StartError, match=re.escape(f"cannot read {tmp_path}: Is a directory")):
        read_settings(words("-c", str(tmp_path)), {})
    with pytest.raises(StartError, match="cannot read /nowhere/file: No such file"):
        read_settings(words("-c", "/nowhere/file"), {})


def test_a_file_may_be_empty_or_begin_with_a_mark_of_order(tmp_path: Path) -> None:
    """The latter as editors of Windows write it."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert Options() == read_settings(words("-c", str(path)), {})[0].options
    path.write_bytes(b"\xef\xbb\xbf[stdserve]\r\nworkers: 5\r\n; the end\r\n")
    assert Options(workers=5) == read_settings(words("-c", str(path)), {})[0].options


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"STDSERVE_IDLE_TIMOUT": "5s"}, "there is no such variable; did you mean STDSERVE_IDLE_TIMEOUT?"),
        ({"STDSERVE_CONF": "file"}, "there is no such variable; did you mean STDSERVE_CONFIG?"),
        ({"STDSERVE_Workers": "5"}, "there is no such variable; did you mean STDSERVE_WORKERS?"),
        ({"STDSERVE_XYZZY": "5"}, "there is no such variable"),
        ({"STDSERVE_WORKERS": "two"}, "--workers must be a whole number, not 'two'"),
        ({"STDSERVE_PORT": "tcp"}, "port must be a number from 0 to 65535, not 'tcp'"),
        ({"STDSERVE_FRAMING": "word"}, "--framing must be one of line, chunk, not 'word'"),
        ({"STDSERVE_RAW": "2"}, "--raw must be yes or no, not '2'"),
    ],
    ids=lambda value: str(*value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_in_the_environment_is_told_by_its_variable(environment: dict[str, str], message: str) -> None:
    """And what was meant."""
    with pytest.raises(ConfigError) as caught:
        read_settings({}, environment)

    assert f"environment {', '.join(environment)}: {message}" == str(caught.value)


def test_options_that_exclude_each_other_are_told_with_both_places(tmp_path: Path) -> None:
    """Whose author may be two."""
    path = written(tmp_path, "raw = yes")

    with pytest.raises(ConfigError) as caught:
        read_settings(words("-c", path), {"STDSERVE_FORMAT": "json"})
    assert str(caught.value).startswith(f"environment STDSERVE_FORMAT, {path}:2: --raw and --format json exclude")


def test_what_the_command_line_got_wrong_needs_no_place(tmp_path: Path) -> None:
    """Nor is the one named that it has taken the place of."""
    path = written(tmp_path, "workers = 2", "port = 9")

    with pytest.raises(ConfigError) as caught:
        read_settings(words("-c", path, "-w", "two"), {"STDSERVE_WORKERS": "3"})
    assert "--workers must be a whole number, not 'two'" == str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read_settings(words("-c", path, "-b", "localhost:x"), {})
    assert "--bind port must be a number from 0 to 65535, not 'x'" == str(caught.value)


def test_the_nearest_word_is_named_or_none() -> None:
    """One, in the form it is to be typed in."""
    assert "; did you mean --workers?" == did_you_mean("worker", ["port", "workers"], "--{}")
    assert "" == did_you_mean("xyzzy", ["port", "workers"])


def test_requests_are_no_options() -> None:
    """They say what to do with the options, and come from the command line alone."""
    _, request = read_settings(words("--check-config"), {})
    assert (None, True, False) == (request.config, request.check_config, request.print_config)
    _, request = read_settings(words("--print-config", "-c", "/dev/null"), {})
    assert ("/dev/null", False, True) == (request.config, request.check_config, request.print_config)
    assert not {field.name for field in dataclasses.fields(Request)} & set(OPTIONS)
    with pytest.raises(ConfigError, match="STDSERVE_PRINT_CONFIG: there is no such variable"):
        read_settings({}, {"STDSERVE_PRINT_CONFIG": "1"})


def test_all_that_has_a_flag_is_in_one_group() -> None:
    """In the order of the dataclass; the requests come last."""
    groups = setting_groups()
    names = [option.name for _, options in groups for option in options]

    assert [*OPTIONS, "config", "check_config", "print_config"] == names
    assert ("addresses", "settings") == (groups[0][0], groups[-1][0])
    assert len({title for title, _ in groups}) == len(groups)


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Values that an option can have, most of them never typed by anyone."""
    option = OPTIONS[name]
    rules = option.metadata
    if name == "bind":
        values: st.SearchStrategy[Any] = st.lists(st.from_regex(r"[a-z#;\"]{1,5}(:[0-9]{1,4})?", fullmatch=True))
    elif rules.get("repeat"):
        values = st.lists(st.text() | st.text(alphabet='"#; \\a\n'))
    elif isinstance(option.default, bool):
        values = st.booleans()
    elif "choices" in rules:
        values = st.sampled_from(rules["choices"])
    elif "least" in rules:
        values = st.integers(rules["least"], rules.get("most"))
    elif "above" in rules:
        values = st.floats(0, 2_000_000, exclude_min=True) | st.integers(1, 2_000_000)
    else:
        values = st.text() | st.text(alphabet="\"#;= \\a\n\t\r\u2028\udcff\u0430'")
    return st.none() | values if option.default is None else values


@st.composite
def some_options(draw: st.DrawFn) -> Options:
    """Options of which a few are not the default."""
    names = draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=6))
    names |= {need for name in names & set(NEEDS) for need in NEEDS[name]}
    try:
        return Options(**{name: draw(values_of(name)) for name in sorted(names)})
    except ConfigError:
        reject()


@given(options=some_options(), origin=st.text())
@example(options=Options(output='"x"', overflow_message="", pid="#1", user=";2"), origin="a\nb")
@example(options=Options(idle_timeout=1e-05, session_timeout=0.1 + 0.2, umask=0, unix_mode=0o7), origin="")
def test_what_is_shown_reads_back_as_the_same_options(
    tmp_path_factory: pytest.TempPathFactory, options: Options, origin: str
) -> None:
    """Whatever the values, and wherever they came from."""
    path = tmp_path_factory.getbasetemp() / "shown.ini"
    path.write_bytes(show_settings(Settings(options, dict.fromkeys(OPTIONS, origin))).encode())

    assert options == read_settings({"config": str(path)}, {})[0].options


@given(st.text() | st.lists(st.sampled_from(["[stdserve]", *OPTIONS, "=", ":", " ", "\n", "5", '"', "#"])).map("".join))
def test_no_file_is_more_than_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Of one line."""
    path = tmp_path_factory.getbasetemp() / "any.ini"
    path.write_bytes(text.encode("utf-8", "surrogateescape") if text.isprintable() else text.encode("utf-8", "replace"))
    try:
        read_settings({"config": str(path)}, {})
    except ConfigError as error:
        assert str(error).startswith(f"{path}:")
        assert "\n" not in str(error)


@given(st.sampled_from(sorted(OPTIONS)), st.text(min_size=1))
def test_no_variable_is_more_than_a_config_error(name: str, text: str) -> None:
    """That names it."""
    try:
        read_settings({}, {variable(name): text})
    except ConfigError as error:
        assert str(error).startswith(f"environment {variable(name)}: ")


def test_settings_are_shown_with_where_they_came_from(tmp_path: Path) -> None:
    """To be read by people: by group, the origin above each."""
    path = written(tmp_path, "idle-timeout = 90", "bind = localhost:1")
    shown = show_settings(
        read_settings(words("-c", path, "-o", " x"), {"STDSERVE_UMASK": "027", "STDSERVE_LINGER_TIMEOUT": "1ms"})[0]
    )

    assert shown.startswith("[stdserve]\n\n# addresses\n\n# default\nport = 10001\n")
    for part in (
        f"# {path}:3\nbind =\n    localhost:1\n",
        f"# {path}:2\nidle-timeout = 90s\n",
        '# the command line\noutput = " x"\n',
        "# environment STDSERVE_UMASK\numask = 27\n",
        "# environment STDSERVE_LINGER_TIMEOUT\nlinger-timeout = 0.001s\n",
        "# default\nmax-conns = none\n",
        "# default\nraw = no\n",
        "# default\n# pid is not set\n",
        "# default\nallow =\n",
    ):
        assert part in shown


def test_print_config_gives_a_file_for_config(tmp_path: Path) -> None:
    """Which then prints the same values."""
    line = ["9000", "-i", "5", "--overflow-message", "занято\n", "-b", "localhost", "--handler", "nowhere:Handler"]
    first = run("--print-config", *line, env={**os.environ, "STDSERVE_MODE": "fork"})
    path = tmp_path / "printed.ini"
    path.write_text(first.stdout, encoding="utf-8")
    second = run("--print-config", "-c", str(path))

    assert (0, "") == (first.returncode, first.stderr)
    assert 'overflow-message = "\\u0437\\u0430' in first.stdout
    assert (0, "") == (second.returncode, second.stderr)
    values = [re.sub("(?m)^#.*\n", "", result.stdout) for result in (first, second)]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("redirected", "reason"),
    [(">&-", "it is closed"), ("> /dev/full", "No space left on device")],
    ids=["closed", "full"],
)
def test_output_that_takes_nothing_is_told(redirected: str, reason: str) -> None:
    """Exit code 1, as for a server."""
    command = f'"{sys.executable}" -m stdserve --print-config {redirected}'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=DEADLINE)

    assert (1, f"stdserve: cannot write to standard output: {reason}\n") == (result.returncode, result.stderr)


def test_check_config_binds_nothing(tmp_path: Path) -> None:
    """It is fine beside the server that it is meant for, makes no file, and says so in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        files = ["-o", str(tmp_path / "output"), "--pid", str(tmp_path / "pid")]
        result = run("--check-config", "-b", f"127.0.0.1:{port}", *files)

    assert (0, "stdserve: these settings are fine\n", "") == (result.returncode, result.stdout, result.stderr)
    assert [] == list(tmp_path.iterdir())
    both = run("--check-config", "--print-config")
    assert (0, "[stdserve]", "") == (both.returncode, both.stdout.splitlines()[0], both.stderr)


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        (["handler = nowhere:Handler"], 2, "FILE:2: --handler nowhere:Handler: cannot import 'nowhere'"),
        (["handler = mine:Handler"], 2, "FILE:2: --handler mine:Handler: cannot import 'mine': ZeroDivisionError"),
        (["mode = threads"], 2, "FILE:2: --mode must be one of single, thread, fork, event, not 'threads'"),
        (["user = no-such-user"], 2, "FILE:2: --user: there is no user 'no-such-user'"),
        (["workers = 0"], 2, "FILE:2: --workers must be at least 1, not 0"),
        (["denyfile = /nowhere/file"], 3, "/nowhere/file"),
        (["tls-cert = /nowhere/file"], 3, "/nowhere/file"),
        (["tls-key = /nowhere/file"], 2, "FILE:2: --tls-key is of no use without --tls-cert"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_check_config_finds_what_would_keep_the_server_from_starting(
    lines: list[str], code: int, message: str, tmp_path: Path
) -> None:
    """With the same words and the same exit code as the start itself."""
    path = written(tmp_path, *lines, "port = 0")
    (tmp_path / "mine.py").write_text("1 / 0\n")
    for request in (["--check-config"], []):
        result = run("-c", path, *request, cwd=tmp_path)

        assert (code, "") == (result.returncode, result.stdout)
        assert message in result.stderr.replace(path, "FILE")
        assert 1 == result.stderr.count("\n")


def test_a_server_runs_on_a_file_and_the_environment(tmp_path: Path) -> None:
    """All of it at once, as a process."""
    path = written(tmp_path, "mode = single", "port = 1", "bind =", "    127.0.0.1:0")
    with ServerProcess("-c", path, port=None, env={"STDSERVE_LOG_LEVEL": "debug", "STDSERVE_MODE": "fork"}) as server:
        server.wait_for_log(r"^listening on 127\.0\.0\.1:\d+ \(mode fork")
        assert 0 == server.stop()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--idle-timout=5", "unknown argument '--idle-timout'; did you mean --idle-timeout?"),
        ("--worker", "unknown argument '--worker'; did you mean --workers?"),
        ("--chek-config", "unknown argument '--chek-config'; did you mean --check-config?"),
        ("--xyzzy", "unknown argument '--xyzzy'; --help lists all"),
        ("-x", "unknown argument '-x'; --help lists all"),
        ("--daemon", "it stays in the foreground"),
    ],
)
def test_an_unknown_flag_names_the_nearest(word: str, message: str) -> None:
    """On the command line too."""
    result = run(word)

    assert (2, "") == (result.returncode, result.stdout)
    assert message in result.stderr
    assert 1 == result.stderr.count("\n")


def test_a_start_without_a_file_imports_nothing_for_one() -> None:
    """Nor for errors that nobody made."""
    code = "import sys; from stdserve import cli; cli.main(['--check-config']); print(*sys.modules)"
    modules = run_code(code).split()

    assert "stdserve.settings" in modules
    unneeded = {"configparser", "decimal", "difflib", "grp", "json", "pwd", "stdserve.pidfile", "stdserve.privileges"}
    assert set() == unneeded & set(modules)


def run_code(code: str) -> str:
    """Run a program where nobody measures its coverage, which would import modules of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE, env=env).stdout
