"""Whose files are that are made in somebody's folder: those of its owner, also where root makes them.

An administrator's command may run as root beside a node that runs as a user of its own, who has to be able to read
what it leaves, and to write beside it.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

__all__ = ["hand_over", "make_folder", "write_whole"]


def make_folder(path: Path) -> None:
    """Make a folder in one that is there, as far as it is not."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    hand_over(path)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, in place of what stands there, for all whom the umask lets read it."""
    coming = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        coming.write_text(text, encoding="utf-8")
        hand_over(coming)
        coming.replace(path)
    finally:
        coming.unlink(missing_ok=True)


def hand_over(path: Path) -> None:
    """Give a file, or a folder with all that is in it, to the owner of the folder that it lies in; only root can."""
    owner = path.parent.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for one in (path, *path.rglob("*")):
        # No link may lead to what is somebody else's.
        os.chown(one, owner.st_uid, owner.st_gid, follow_symlinks=False)
