"""A process on one CPU."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from processes import ServerProcess, children_of, connect

from stdserve import ConfigError, Options
from stdserve.affinity import on_one_cpu

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let us choose")


def test_threads_stay_where_the_one_is_that_started_them() -> None:
    """On one CPU each number, one after the other and around; all of them afterwards."""
    usable = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    for number in range(len(usable) + 1):
        with on_one_cpu(number):
            thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
            thread.start()
            thread.join()
    assert [{cpu} for cpu in [*sorted(usable), min(usable)]] == seen
    assert usable == os.sched_getaffinity(0)


def cpus_of(pid: int) -> list[str]:
    """The CPUs that each thread of a process may use, as the system writes it."""
    statuses = (task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status"))
    return [status.partition("\nCpus_allowed_list:\t")[2].partition("\n")[0] for status in statuses]


def test_the_server_and_its_threads_are_on_one_cpu() -> None:
    """Which is what --pin asks for."""
    with ServerProcess("--pin") as server, connect(server.address):
        server.wait_for_log("^open")
        assert {str(min(os.sched_getaffinity(0)))} == set(cpus_of(server.pid))


def test_each_worker_has_a_cpu_of_its_own_and_the_supervisor_all() -> None:
    """As far as there are enough."""
    usable = sorted(os.sched_getaffinity(0))
    with ServerProcess("--pin", "--workers", "2") as server:
        server.wait_for_log("^listening")
        allowed = sorted(cpus_of(pid)[0] for pid in children_of(server.pid))
        assert sorted(str(usable[number % len(usable)]) for number in range(2)) == allowed
        assert cpus_of(os.getpid())[0] == cpus_of(server.pid)[0]


def test_a_mode_that_forks_is_not_to_be_kept_on_one_cpu() -> None:
    """Its children run at the same time."""
    with pytest.raises(ConfigError, match="--pin is for threads"):
        Options(pin=True, mode="fork")


def test_a_system_without_affinity_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have none."""
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(ConfigError, match="--pin needs sched_setaffinity"):
        Options(pin=True)
