"""What an engine's process writes: its words are kept to their tail, its folder to a size, and cleared between jobs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Set
from pathlib import Path

__all__ = ["clear", "cut", "files_in", "size_of"]

#: Words beyond so many bytes are cut down to so many.
_MOST_WORDS, _LAST_WORDS = 4 << 20, 64 << 10


def cut(words: Path) -> None:
    """Cut a file of words down to its tail where it is long; who writes to it appends, so goes on at the new end."""
    with contextlib.suppress(OSError):
        if words.stat().st_size <= _MOST_WORDS:
            return
        with words.open("r+b") as stream:
            stream.seek(-_LAST_WORDS, os.SEEK_END)
            tail = stream.read(_LAST_WORDS)
            stream.seek(0)
            stream.truncate()
            stream.write(tail)


def size_of(folder: Path, most: int) -> int:
    """Return how many bytes of the disk a folder takes, as far as ``most`` and no further; no link is followed."""
    total = 0
    for entry in _entries(folder):
        with contextlib.suppress(OSError):
            # What it takes, not what it says: a sparse file costs nothing.
            total += entry.stat(follow_symlinks=False).st_blocks * 512
        if total > most:
            break
    return total


def files_in(folder: Path) -> frozenset[str]:
    """Return the paths of the regular files in a folder and below it."""
    return frozenset(entry.path for entry in _entries(folder) if entry.is_file(follow_symlinks=False))


def clear(folder: Path, kept: Set[str]) -> None:
    """Remove the regular files of a folder but those to be kept; its sockets and folders are left to who made them."""
    for path in files_in(folder) - kept:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - a name as it was listed


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in a folder and below it; what goes away meanwhile is left out."""
    front = [str(folder)]
    while front:
        try:
            with os.scandir(front.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        front.append(entry.path)
        except OSError:
            continue
