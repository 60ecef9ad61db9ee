"""A snapshot of the counters in the text format that Prometheus scrapes, version 0.0.4. Pure.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from .metrics import Snapshot
from .rows import BOUNDS
from .version import __version__

__all__ = ["CONTENT_TYPE", "format_metrics"]

#: What the text is, to HTTP.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: One family: name, type, help, and its samples: (what follows the name, labels, value).
_Sample = tuple[str, dict[str, str], float]
_Family = tuple[str, str, str, Iterable[_Sample]]


def format_metrics(snapshot: Snapshot) -> str:
    """Return ``snapshot`` as text, each family with its HELP and TYPE.

    Every reason is there from the beginning, with 0: a counter that appears with its first count hides it from
    ``rate()``.
    """
    families = (*_sessions(snapshot), *_traffic(snapshot), *_workers(snapshot), *_backlogs(snapshot))
    return "".join(line for family in families for line in _format_family(*family))


def _sessions(snapshot: Snapshot) -> Iterator[_Family]:
    yield "sessions_open", "gauge", "Sessions that are open now.", _one(snapshot.open)
    yield "sessions_total", "counter", "Sessions that have been opened.", _one(snapshot.total)
    yield "sessions_ended_total", "counter", "Sessions that have ended, by reason.", _by_reason(snapshot.ended)
    help = "Connections that were refused or failed before they became a session, by reason."
    yield "rejected_total", "counter", help, _by_reason(snapshot.rejected)
    yield "session_seconds", "histogram", "How long the sessions that have ended had lasted.", _histogram(snapshot)


def _traffic(snapshot: Snapshot) -> Iterator[_Family]:
    yield "received_bytes_total", "counter", "Bytes received in sessions.", _one(snapshot.received)
    yield "sent_bytes_total", "counter", "Bytes sent in sessions.", _one(snapshot.sent)
    yield "received_lines_total", "counter", "Lines (or messages) received.", _one(snapshot.lines_in)
    yield "sent_lines_total", "counter", "Lines sent as replies.", _one(snapshot.lines_out)


def _workers(snapshot: Snapshot) -> Iterator[_Family]:
    def each(values: Iterable[float]) -> list[_Sample]:
        numbers = (str(worker.number) for worker in snapshot.workers)
        return [("", {"worker": number}, value) for number, value in zip(numbers, values, strict=True)]

    workers = snapshot.workers
    yield "workers", "gauge", "Worker processes.", _one(len(workers))
    yield "worker_restarts_total", "counter", "Workers started in the place of one that died.", _one(snapshot.restarts)
    help = "Seconds since the accept loop of a worker last turned."
    yield "worker_heartbeat_age_seconds", "gauge", help, each(worker.heartbeat for worker in workers)
    help = "Sessions open in a worker."
    yield "worker_sessions_open", "gauge", help, each(worker.open for worker in workers)
    help = "Clients that could not be accepted, for lack of descriptors or memory above all."
    yield "accept_errors_total", "counter", help, _one(snapshot.accept_errors)
    yield "draining", "gauge", "1 while the server ends its sessions in order to stop.", _one(int(snapshot.draining))
    yield "uptime_seconds", "gauge", "Seconds since the server began.", _one(snapshot.uptime)
    yield "build_info", "gauge", "The version of stdserve, as a label; always 1.", [("", {"version": __version__}, 1)]


def _backlogs(snapshot: Snapshot) -> Iterator[_Family]:
    def each(values: Iterable[float]) -> list[_Sample]:
        addresses = (backlog.address for backlog in snapshot.backlogs)
        return [("", {"listener": address}, value) for address, value in zip(addresses, values, strict=True)]

    backlogs = snapshot.backlogs
    yield "listen_queue_length", "gauge", "Clients that wait to be accepted.", each(one.waiting for one in backlogs)
    yield "listen_queue_limit", "gauge", "Clients that may wait to be accepted.", each(one.limit for one in backlogs)
    help = "Clients that the kernel turned away because the queue was full, each time they tried."
    yield "listen_drops_total", "counter", help, each(one.drops for one in backlogs)


def _one(value: float) -> list[_Sample]:
    return [("", {}, value)]


def _by_reason(counts: dict[str, int]) -> list[_Sample]:
    return [("", {"reason": reason}, count) for reason, count in counts.items()]


def _histogram(snapshot: Snapshot) -> Iterator[_Sample]:
    # Prometheus's buckets hold all that are smaller, too.
    for bound, count in zip((*BOUNDS, "+Inf"), accumulate(snapshot.durations), strict=True):
        yield "_bucket", {"le": str(bound)}, count
    yield "_sum", {}, snapshot.seconds
    yield "_count", {}, sum(snapshot.durations)


def _format_family(name: str, kind: str, help: str, samples: Iterable[_Sample]) -> Iterator[str]:
    yield f"# HELP stdserve_{name} {help}\n# TYPE stdserve_{name} {kind}\n"
    for suffix, labels, value in samples:
        inside = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
        yield f"stdserve_{name}{suffix}{'{' + inside + '}' if inside else ''} {value!r}\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
