"""Room for many sessions: the limit of descriptors, raised where that can be done."""

from __future__ import annotations

import subprocess
import sys

import pytest
from processes import DEADLINE

resource = pytest.importorskip("resource")

CODE = """
import resource, sys
from stdserve.descriptors import make_room
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
make_room(1000)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "after", "told"),
    [
        (128, 4096, "1064 4096", ""),
        (2000, 4096, "2000 4096", ""),
        (128, 512, "512 512", "limit of 512 descriptors (ulimit -Hn): not enough for 1000 sessions\n"),
    ],
    ids=["raised", "enough", "not enough"],
)
def test_the_soft_limit_is_raised_as_far_as_the_hard_one(soft: int, hard: int, after: str, told: str) -> None:
    """Never lowered; what cannot be had is told."""
    command = [sys.executable, "-c", CODE, str(soft), str(hard)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (f"{after}\n", told) == (result.stdout, result.stderr)
