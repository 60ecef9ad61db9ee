"""Fixtures that several test files use."""

from __future__ import annotations

import signal

import pytest
from authority import Authority
from hypothesis import settings

# How long an example takes says something about the machine, and what else it does.
settings.register_profile("stdserve", deadline=None)
settings.load_profile("stdserve")


# Ignored where a shell has started the tests in the background; servers would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA that clients trust, and that signs whatever a test needs."""
    return Authority(tmp_path_factory.mktemp("authority"))
