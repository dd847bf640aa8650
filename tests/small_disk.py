"""A small disk of its own for a test: a tmpfs, which only root may mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers import need

__all__ = ["fill", "small_disk"]


@contextmanager
def small_disk(folder: Path, *, size: str, inodes: int = 100_000) -> Iterator[Path]:
    """Mount a disk of so many bytes and inodes on a new folder for a while; skip where that is not allowed."""
    folder.mkdir(parents=True)
    options = f"size={size},nr_inodes={inodes},mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    need(mounted.returncode == 0, f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path, size: int) -> None:
    """Write a file of so many bytes; what does not fit is left out."""
    with path.open("wb", buffering=0) as file:
        try:
            while size > 0:
                size -= file.write(bytes(min(size, 1 << 20)))
        except OSError:
            return
