"""How urgent a workitem is: Scheduled Procedure Step Priority (0074,1200), PS3.3 C.30.1, and its order in the queue."""

from __future__ import annotations

from typing import Final

__all__ = ["HIGH", "LOW", "MEDIUM", "from_requested", "name_of", "rank_of"]

HIGH: Final = "HIGH"
MEDIUM: Final = "MEDIUM"
LOW: Final = "LOW"

_RANKS: Final = {HIGH: 1, MEDIUM: 2, LOW: 3}
_NAMES: Final = {rank: name for name, rank in _RANKS.items()}
#: Requested Procedure Priority (0040,1003), PS3.3 C.4.11.
_REQUESTED: Final = {"STAT": HIGH, "HIGH": HIGH, "ROUTINE": MEDIUM, "MEDIUM": MEDIUM, "LOW": LOW}


def rank_of(name: str) -> int:
    """Return the place of a priority in the queue, the first being 1."""
    return _RANKS[name]


def name_of(rank: int) -> str:
    """Undo :func:`rank_of`."""
    return _NAMES.get(rank, MEDIUM)


def from_requested(value: object) -> str | None:
    """Return the priority of a workitem by what was requested; None for a value that says nothing."""
    return _REQUESTED.get(str(value).strip().upper())
