"""How much of the disk stays free: below it nothing more is taken in, so that what is held can still be worked on."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["MINIMUM_FREE_BYTES", "has_room"]

#: The database grows with every step of work, and documents are written before they are sent.
MINIMUM_FREE_BYTES = 256 * 1024 * 1024


def has_room(folder: Path, minimum_free: int = MINIMUM_FREE_BYTES, length: int = 0) -> bool:
    """Whether the disk under a folder keeps its reserve when so many bytes more are written to it.

    Raises
    ------
    OSError
        When the disk cannot be asked.
    """
    return shutil.disk_usage(folder).free >= minimum_free + length
