"""The text that Prometheus scrapes, read back by the official parser of prometheus_client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from stdserve.backlog import Backlog
from stdserve.exposition import format_metrics
from stdserve.metrics import Metrics, Snapshot, WorkerRecord
from stdserve.rows import BOUNDS, END_WORDS, REJECT_WORDS

EMPTY = Metrics(1, 1).snapshot()

BUSY = replace(
    EMPTY,
    uptime=12.5,
    draining=True,
    restarts=3,
    accept_errors=4,
    open=5,
    total=2**60 + 1,
    ended={**EMPTY.ended, "eof": 6},
    rejected={**EMPTY.rejected, "tls": 7},
    received=8,
    sent=9,
    lines_in=10,
    lines_out=11,
    durations=(1, 2, *[0] * (len(BOUNDS) - 2), 4),
    seconds=1e-06,
    workers=(WorkerRecord(1, 4711, "serving", 0.25, 5),),
    backlogs=(Backlog("[::]:80", 12, 13, 14),),
)


def samples(text: str) -> Iterator[tuple[str, float]]:
    """Yield the samples that the official parser finds, as name{label values} and value."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            yield sample.name + (f"{{{labels}}}" if labels else ""), sample.value


def test_every_number_is_read_back_as_it_was() -> None:
    """By name, reason, worker and listener."""
    told = dict(samples(format_metrics(BUSY)))

    for name, value in {
        "stdserve_sessions_open": 5,
        "stdserve_sessions_total": 2**60 + 1,
        "stdserve_sessions_ended_total{eof}": 6,
        "stdserve_sessions_ended_total{exit}": 0,
        "stdserve_rejected_total{tls}": 7,
        "stdserve_received_bytes_total": 8,
        "stdserve_sent_bytes_total": 9,
        "stdserve_received_lines_total": 10,
        "stdserve_sent_lines_total": 11,
        "stdserve_session_seconds_bucket{0.01}": 1,
        "stdserve_session_seconds_bucket{0.1}": 3,
        "stdserve_session_seconds_bucket{86400.0}": 3,
        "stdserve_session_seconds_bucket{+Inf}": 7,
        "stdserve_session_seconds_count": 7,
        "stdserve_session_seconds_sum": 1e-06,
        "stdserve_workers": 1,
        "stdserve_worker_restarts_total": 3,
        "stdserve_worker_heartbeat_age_seconds{1}": 0.25,
        "stdserve_worker_sessions_open{1}": 5,
        "stdserve_accept_errors_total": 4,
        "stdserve_draining": 1,
        "stdserve_uptime_seconds": 12.5,
        "stdserve_listen_queue_length{[::]:80}": 12,
        "stdserve_listen_queue_limit{[::]:80}": 13,
        "stdserve_listen_drops_total{[::]:80}": 14,
    }.items():
        assert value == told[name], name
    assert f"stdserve_sessions_total {2**60 + 1}\n" in format_metrics(BUSY)


def test_every_family_has_a_help_and_a_type_and_is_there_from_the_beginning() -> None:
    """As are all reasons: a counter that appears with its first count hides that from rate()."""

    def families(snapshot: Snapshot) -> list[tuple[str, str, bool]]:
        parsed = text_string_to_metric_families(format_metrics(snapshot))
        return [(family.name, family.type, bool(family.documentation)) for family in parsed]

    assert families(EMPTY) == families(BUSY)
    assert {True} == {documented for _, _, documented in families(EMPTY)}
    assert {"counter", "gauge", "histogram"} == {kind for _, kind, _ in families(EMPTY)}
    names = [name for name, _ in samples(format_metrics(EMPTY))]
    assert len(names) == len(set(names))
    assert {f"stdserve_sessions_ended_total{{{word}}}" for word in END_WORDS} < set(names)
    assert {f"stdserve_rejected_total{{{word}}}" for word in REJECT_WORDS} < set(names)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_can_be_a_label(address: str) -> None:
    """A UNIX listener's path holds whatever it likes."""
    text = format_metrics(replace(EMPTY, backlogs=(Backlog(address, 1, 2, 3),)))

    (drops,) = [family for family in text_string_to_metric_families(text) if family.name == "stdserve_listen_drops"]
    assert [({"listener": address}, 3)] == [(sample.labels, sample.value) for sample in drops.samples]
