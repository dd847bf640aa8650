"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.peers", "tests.databases", "tests.system", "tests.web"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real DICOM files beside the checkout; its files are read, never copied."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        reason = f"the folder of real DICOM files is absent ({folder.parent.name}/{folder.name} beside the checkout)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
