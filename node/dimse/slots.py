"""Counts the associations of all receivers of a node together."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

__all__ = ["Slots"]


class Slots:
    """Counts associations over processes by locks on the bytes of a file, which the death of a process frees.

    Parameters
    ----------
    path
        The file; the same for all receivers. Record locks belong to a process: open it once in each.
    count
        How many associations there may be.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._file = path.open("ab")
        self._count = count
        self._held: set[int] = set()
        self._lock = threading.Lock()

    def acquire(self) -> int | None:
        """Return a slot, or None where all are taken."""
        with self._lock:
            for slot in range(self._count):
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
