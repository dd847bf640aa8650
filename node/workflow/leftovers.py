"""Removing files that were kept for a workitem, once nobody may ask for them: they show a patient."""

from __future__ import annotations

from pathlib import Path

from storage import worklist
from storage.database import Database

__all__ = ["remove_leftovers"]

_AT_ONCE = 64


def remove_leftovers(database: Database, folder: Path, before: int) -> int:
    """Remove files named after workitems whose images were deleted; and what an attempt that was lost has left.

    Parameters
    ----------
    before
        In nanoseconds, by the file system's clock: only what is older counts as left by an attempt that was lost.

    Returns
    -------
    int
        How many files were removed.
    """
    removed = 0
    there = sorted(folder.glob("*"))
    for first in range(0, len(there), _AT_ONCE):
        files = there[first : first + _AT_ONCE]
        with database.read() as connection:
            whole, bereft = worklist.standing(connection, [file.stem for file in files])
        for file in files:
            try:
                if file.stem in whole or (file.stem not in bereft and file.stat().st_mtime_ns >= before):
                    continue
                file.unlink()
            except FileNotFoundError:
                # It has taken its name, or a version's retirement was quicker.
                continue
            removed += 1
    return removed
