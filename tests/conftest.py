"""Fixtures that several test files use."""

from __future__ import annotations

import pytest
from authority import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA that clients trust, and that signs whatever a test needs."""
    return Authority(tmp_path_factory.mktemp("authority"))
