"""Bytes as files: written elsewhere on the same file system, fsynced, renamed into place, the directory fsynced."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["FileBlobs", "file_size", "fsync_directory"]


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

    def settle(self, path: Path, descriptor: int | None = None) -> None:
        """Make a written file durable where it is."""
        if descriptor is not None:
            os.fsync(descriptor)
            return
        with path.open("rb+") as file:
            os.fsync(file.fileno())

    def adopt_settled(self, paths: Sequence[Path]) -> list[str]:
        """Move settled files into the folder and return their names.

        They come into one subfolder, so that one fsync makes all the names durable. A crash leaves either the old name
        or an orphan that the next start finds; never a name without its bytes.
        """
        folder = secrets.token_hex(1)
        # Later names sort behind earlier ones of their subfolder: an index of many names grows in few places.
        names = [f"{folder}{time.time_ns():016x}{secrets.token_hex(7)}" for _ in paths]
        moved: list[tuple[Path, Path]] = []
        try:
            for path, name in zip(paths, names, strict=True):
                target = self.path(name)
                path.rename(target)
                moved.append((path, target))
            fsync_directory(self._root / folder)
        except OSError:
            for path, target in moved:
                target.rename(path)
            raise
        return names

    def adopt(self, path: Path) -> str:
        """Make a written file durable, move it into the folder and return its name: fsync, rename, fsync."""
        self.settle(path)
        return self.adopt_settled([path])[0]

    def path(self, name: str) -> Path:
        """Return the file of a name."""
        return self._root / name[:2] / name

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        self.path(name).unlink(missing_ok=True)

    def names(self, shard: str | None = None) -> Iterator[str]:
        """Go through every file's name, or those of one subfolder."""
        folders = sorted(self._root.iterdir()) if shard is None else [self._root / shard]
        for folder in folders:
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    for entry in entries:
                        yield entry.name

    def shards(self) -> list[str]:
        """Return the subfolders, by the two digits that their names begin with, the one that changed last first."""
        found = [(folder.stat().st_mtime_ns, folder.name) for folder in self._root.iterdir() if folder.is_dir()]
        return [name for _, name in sorted(found, reverse=True)]

    def changed_at(self, name: str) -> int | None:
        """Return when a file was last renamed or written, in nanoseconds by the file system; None where it is gone."""
        try:
            return self.path(name).stat().st_ctime_ns
        except FileNotFoundError:
            return None


def fsync_directory(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2): a rename is not, until its directory is)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_size(path: Path) -> int | None:
    """Return how many bytes a file has; None where it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
