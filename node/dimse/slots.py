"""Counts the associations, or the retrieves, of all receivers of a node together."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Slots"]

#: Each limit has a range of the file for itself.
_RANGE = 1 << 20


class Slots:
    """Counts associations over processes by locks on the bytes of a file, which the death of a process frees.

    Parameters
    ----------
    path
        The file; the same for all receivers. Record locks belong to a process: open it once in each.
    limits
        How many associations there may be, by name; the same for all receivers.
    """

    def __init__(self, path: Path, limits: Mapping[str, int]) -> None:
        self._file = path.open("ab")
        self._limits = dict(limits)
        self._ranges = {name: number * _RANGE for number, name in enumerate(sorted(limits))}
        self._held: set[int] = set()
        self._lock = threading.Lock()

    def limited(self, name: str) -> bool:
        """Whether there is a limit of this name."""
        return name in self._limits

    def acquire(self, name: str) -> int | None:
        """Return a slot under the limit of this name, or None where all are taken."""
        first = self._ranges[name]
        with self._lock:
            for slot in range(first, first + self._limits[name]):
                if slot in self._held:
                    continue
                try:
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
                except OSError:
                    continue
                self._held.add(slot)
                return slot
        return None

    def release(self, slot: int) -> None:
        """Give a slot back."""
        with self._lock:
            self._held.discard(slot)
            if not self._file.closed:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, slot)

    def close(self) -> None:
        """Give all slots back."""
        with self._lock:
            self._file.close()
