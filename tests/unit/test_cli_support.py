"""What the commands share holds in surroundings that are less than complete."""

from __future__ import annotations

import os

import pytest

from node.cli.support import asker


def test_whoever_asks_is_named_even_in_a_container_whose_user_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert asker("") == "uid 54321"
    assert asker("ward 7") == "ward 7"
    monkeypatch.setenv("LOGNAME", "ann")
    assert asker("") == "ann"
