"""Tables and advice of the bench, from figures that nobody had to measure."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stdserve.bench_report import Measured, advice, amount, middle, span, table


def rates(*figures: float, cpu: float = 0.0, cores: float = 0.0) -> list[Measured]:
    """Rounds with these rates."""
    return [Measured(rate=figure, cpu=cpu, client_cores=cores) for figure in figures]


def sizes(*figures: float) -> list[Measured]:
    """Rounds with this memory."""
    return [Measured(memory=figure, p99=0.002) for figure in figures]


def command(name: str) -> str:
    """What to type."""
    return f"run {name}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.01234, "0.0123"),
        (1.5, "1.50"),
        (99.96, "100"),
        (123.4, "123"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (12345, "12.3k"),
        (999_600, "1.00M"),
        (5_432_100, "5.43M"),
        (1_234_000_000, "1.23G"),
    ],
)
def test_amounts_have_three_digits(value: float, text: str) -> None:
    """And a unit."""
    assert text == amount(value)


def test_the_middle_and_the_span_are_of_the_correct_rounds() -> None:
    """The speed of wrong answers says nothing."""
    rounds = [*rates(100, 300, 200), Measured(rate=9e9, problem="lost")]
    assert 200 == middle(rounds, lambda one: one.rate)
    assert "100-300" == span(rounds, lambda one: one.rate)
    assert "-" == span(rates(100), lambda one: one.rate)
    assert 0.0 == middle(rounds[3:], lambda one: one.rate)


def test_a_table_has_the_best_first_and_bars() -> None:
    """As long as the figures are large."""
    servers = {"fork": rates(1000, 1000), "thread, 2 workers": rates(4000, 3000, 2000, cpu=1e-6, cores=0.25)}
    assert [
        "server             lines/s       spread  MB/s  CPU s/M lines  server CPU  generator CPU",
        "thread, 2 workers    3.00k  2.00k-4.00k  0.00           1.00        0.00           0.25  " + "#" * 24,
        "fork                 1.00k  1.00k-1.00k  0.00           0.00        0.00           0.00  " + "#" * 8,
    ] == table("bulk", servers)


def test_a_table_of_memory_has_the_least_first() -> None:
    """Less is better there."""
    lines = table("idle", {"fork": sizes(1000), "thread": sizes(20)}, "=")
    assert ["server", "thread", "fork"] == [line.split()[0] for line in lines]
    assert ["20.0", "-", "0.00", "2.00", "0.00", "0.00"] == lines[1].split()[1:]
    assert lines[2].endswith("=" * 24)


def test_a_table_says_what_was_wrong() -> None:
    """Below it, with how often; a server that was never right has no bar."""
    wrong = [Measured(rate=5, problem="1 lost"), Measured(rate=6)]
    lines = table("echo", {"thread": wrong, "fork": [Measured(problem="reset")]})
    assert ["thread: NOT CORRECT in 1 of 2 rounds: 1 lost", "fork: NOT CORRECT in 1 of 1 rounds: reset"] == lines[3:]
    assert "#" not in lines[2]
    assert "#" not in "".join(table("echo", {"fork": [Measured(problem="reset")]}))


def test_advice_says_which_and_why() -> None:
    """Better first, then level, then worse."""
    results = {
        "bulk": {"thread": rates(100, 101, cpu=2), "fork": rates(200, 202, cpu=1)},
        "sessions": {"thread": rates(800, 810, cpu=1), "fork": rates(100, 110, cpu=4)},
        "echo": {"thread": rates(100, 140), "fork": rates(120, 130)},
        "idle": {"thread": sizes(20, 21), "fork": sizes(2000, 2100)},
    }
    assert [
        "Take thread: run thread",
        "Beside fork: 7.7 times the sessions (1/4 of the CPU for each), 1/100 of the memory for a silent connection;"
        " level in round trips; but 1/2 of the lines (2 times the CPU for each).",
    ] == advice(results, command)


def test_advice_says_whether_workers_pay() -> None:
    """Beside the same mode without them, too."""
    results = {
        "bulk": {
            "thread": rates(100, 101, cpu=1),
            "fork": rates(130, 131),
            "thread, 2 workers": rates(190, 191, cpu=1),
        }
    }
    assert [
        "Take thread, 2 workers: run thread, 2 workers",
        "Beside fork: 1.5 times the lines.",
        "Beside thread: 1.9 times the lines (the same CPU for each).",
    ] == advice(results, command)


@pytest.mark.parametrize(
    ("thread", "fork"),
    [(rates(100, 140), rates(120, 160)), (rates(100), rates(114)), (rates(100, 100.5), rates(103, 104))],
    ids=["overlap", "one round", "a few percent"],
)
def test_advice_is_modest(thread: Sequence[Measured], fork: Sequence[Measured]) -> None:
    """What may be chance decides nothing: the simplest server is the first."""
    told = advice({"bulk": {"thread": thread, "fork": fork}}, command)
    assert "Take any, thread is the simplest: they differ by less than the rounds of each do. run thread" == told[0]
    assert ["Beside fork: level in lines."] == told[1:]


def test_advice_prefers_less_where_more_does_not_help() -> None:
    """Workers that are level with none, while another is worse."""
    results = {"bulk": {"thread": rates(100, 110), "fork": rates(50, 51), "thread, 2 workers": rates(105, 112)}}
    assert "Take thread: run thread" == advice(results, command)[0]


def test_advice_takes_the_first_of_jobs_that_disagree() -> None:
    """By the product of what each reaches of the best."""
    results = {
        "bulk": {"thread": rates(100, 101), "fork": rates(300, 301)},
        "echo": {"thread": rates(200, 201), "fork": rates(100, 101)},
    }
    assert [
        "Take fork: run fork",
        "Beside thread: 3 times the lines; but 1/2 of the round trips.",
    ] == advice(results, command)


def test_advice_by_memory_alone() -> None:
    """Where nothing else was measured, silent connections decide."""
    results = {"idle": {"fork": sizes(1000, 1010), "thread": sizes(20, 21)}}
    told = ["Take thread: run thread", "Beside fork: 1/49 of the memory for a silent connection."]
    assert told == advice(results, command)
    results = {"idle": {"fork": sizes(10), "thread": sizes(12)}, "bulk": {"fork": rates(1), "thread": rates(9)}}
    sentence = "Beside fork: 9 times the lines; but 1.2 times the memory for a silent connection."
    assert sentence == advice(results, command)[1]


def test_advice_leaves_out_who_was_wrong() -> None:
    """However fast; and says so if nobody was right."""
    wrong = [Measured(rate=9e9, problem="lost")]
    assert ["Take fork: run fork"] == advice({"bulk": {"thread": wrong, "fork": rates(1)}}, command)
    results = {
        "echo": {"thread": wrong},
        "bulk": {"thread": rates(9), "single": rates(1), "single, 2 workers": rates(3)},
    }
    assert "Beside single: 3 times the lines." == advice(results, command)[1]
    (told,) = advice({"bulk": {"thread": wrong}}, command)
    assert told.startswith("No server was correct: ")


def test_advice_tells_of_servers_of_one_client_at_a_time() -> None:
    """They cannot do all jobs, and may be the fastest in some."""
    results = {
        "bulk": {"thread": rates(100), "single": rates(100), "single, 2 workers": [Measured(rate=9, problem="lost")]},
        "sessions": {"thread": rates(100), "single": rates(300)},
        "echo": {"thread": rates(100)},
    }
    assert [
        "Take thread: run thread",
        "single does 3 times the sessions, but one client at a time in each process.",
    ] == advice(results, command)
    alone = {"sessions": {"single": rates(100), "single, 2 workers": rates(300)}}
    told = ["Take single, 2 workers: run single, 2 workers", "Beside single: 3 times the sessions."]
    assert told == advice(alone, command)


def test_advice_tells_of_a_generator_that_was_busy() -> None:
    """Then the server may be faster than it looks."""
    told = advice({"echo": {"thread": rates(100, cores=0.97)}, "bulk": {"thread": rates(1)}}, command)
    assert "The generator was at its own limit in echo: thread may be able to do more." == told[-1]
