"""What is installed is what was built: the package's metadata, and the files that only an installation can lose."""

from __future__ import annotations

import os
from importlib import metadata, resources
from pathlib import Path

import pytest

import stdserve


@pytest.fixture(scope="module")
def distribution() -> metadata.Distribution:
    """Give the metadata of the very package that is imported; skip where a checkout is imported.

    Under tox that is a failure: the tests would be running on the checkout instead of the wheel.
    """
    imported = Path(stdserve.__file__).resolve()
    for found in metadata.distributions(name="stdserve"):
        if any(Path(str(found.locate_file(file))).resolve() == imported for file in found.files or []):
            return found
    reason = f"{imported.parent} is not an installed package"
    if "TOX_ENV_NAME" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


def test_version_is_the_metadatas(distribution: metadata.Distribution) -> None:
    """The version that the package tells is the one that pip tells."""
    assert distribution.version == stdserve.__version__


def test_python_floor_is_declared(distribution: metadata.Distribution) -> None:
    """Installers are told that the package needs Python 3.10."""
    assert ">=3.10" == distribution.metadata["Requires-Python"]


def test_nothing_else_is_required(distribution: metadata.Distribution) -> None:
    """Without an extra, nothing is installed beside the package."""
    assert [] == [requirement for requirement in distribution.requires or [] if "extra ==" not in requirement]


def test_pytest_finds_the_fixture(distribution: metadata.Distribution) -> None:
    """By an entry point, and nobody else finds anything."""
    assert [("pytest11", "stdserve.pytest_plugin")] == [
        (entry.group, entry.value) for entry in distribution.entry_points
    ]


def test_types_are_announced(distribution: metadata.Distribution) -> None:
    """Type checkers find the mark that the package is typed, also after installation (PEP 561)."""
    assert resources.files("stdserve").joinpath("py.typed").is_file()
    assert "stdserve/py.typed" in {file.as_posix() for file in distribution.files or []}
