"""Bytes as files: written elsewhere on the same file system, fsynced, renamed into place, the directory fsynced."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["FileBlobs", "fsync_directory"]


class FileBlobs:
    """A folder of files, spread over 256 subfolders.

    Parameters
    ----------
    root
        The folder; made, with its subfolders, where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        if not (root / "ff").is_dir():
            root.mkdir(parents=True, exist_ok=True)
            for number in range(256):
                (root / f"{number:02x}").mkdir(exist_ok=True)
            fsync_directory(root)

    def adopt(self, path: Path) -> str:
        """Make a written file durable, move it into the folder and return its name.

        The order is the promise: fsync of the file, rename, fsync of the directory. A crash in between leaves
        either the old name or an orphan that the next start finds; never a name without its bytes.
        """
        name = uuid.uuid4().hex
        target = self.path(name)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.rename(target)
        fsync_directory(target.parent)
        return name

    def path(self, name: str) -> Path:
        """Return the file of a name."""
        return self._root / name[:2] / name

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        self.path(name).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """Go through every file's name."""
        for folder in sorted(self._root.iterdir()):
            if folder.is_dir():
                for entry in os.scandir(folder):
                    yield entry.name


def fsync_directory(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2): a rename is not, until its directory is)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
