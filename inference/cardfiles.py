"""The files of a model: their bytes are those that its card describes when it is loaded, and still are when it runs.

A program or a bundle is code that is read again, or late; a file that is replaced under a running node would answer
under the digest of the one that was tested.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from inference.errors import CardError, EngineFailure

__all__ = ["Stamp", "checked_file", "require_unchanged"]

#: Device, inode, size, and when content and inode were last changed (ns; nobody but the clock sets the last).
Stamp = tuple[int, int, int, int, int]


def checked_file(card_path: Path, name: str, expected: str | None) -> Stamp:
    """Read a file of a card to its end and compare it; without a digest it has to be there, no more.

    Returns
    -------
    tuple of int
        What changes with the file.

    Raises
    ------
    CardError
        Naming the card, the key, and what was found.
    """
    folder = card_path.parent.resolve()
    file = (folder / name).resolve()
    if not file.is_relative_to(folder):
        raise CardError(f"{card_path}: files.{name}: leads out of the card's folder")
    try:
        with file.open("rb") as stream:
            # Taken before: what is written while it is read differs afterwards.
            stamp = _stamp(os.fstat(stream.fileno()))
            found = hashlib.file_digest(stream, "sha256").hexdigest() if expected else None
    except FileNotFoundError as problem:
        raise CardError(f"{card_path}: files.{name}: no such file in {folder}") from problem
    except OSError as problem:
        raise CardError(f"{card_path}: files.{name}: cannot be read ({type(problem).__name__})") from problem
    if found != expected:
        raise CardError(f"{card_path}: files.{name}.sha256: expected {expected}, the file has {found}")
    return stamp


def require_unchanged(card_path: Path, digests: Mapping[str, str], stamps: dict[str, Stamp]) -> None:
    """Compare each file with what it was; one that looks otherwise is read again, and passes where its bytes are right.

    Parameters
    ----------
    digests
        Name to hex SHA-256, as the card has them.
    stamps
        What the files looked like when they were read last; brought up to date.

    Raises
    ------
    EngineFailure
        ``broke``, naming the file.
    """
    for name, digest in digests.items():
        try:
            if name in stamps and _stamp((card_path.parent / name).stat()) == stamps[name]:
                continue
            stamps[name] = checked_file(card_path, name, digest)
        except (OSError, CardError) as problem:
            told = str(problem) if isinstance(problem, CardError) else f"files.{name} is gone"
            raise EngineFailure("broke", f"a file was changed since the model was loaded: {told}") from problem


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
