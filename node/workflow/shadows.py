"""Masks that shadows have made: kept beside the archive, to be compared with what the live version has said."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from inference.samples import read_mask, write_mask

if TYPE_CHECKING:
    from inference.findings import Findings, Segmentation

__all__ = ["forget", "keep", "kept"]


def keep(folder: Path, workitem_uid: str, findings: Findings) -> None:
    """Write the mask of a shadow's findings, durable on return; without one nothing is written.

    A file that is there already was written by an attempt whose result was not committed: it is replaced or removed.
    """
    mask = findings.segmentation
    if mask is None:
        (folder / f"{workitem_uid}.npz").unlink(missing_ok=True)
        return
    # It is a patient's: for its owner only, like the data directory.
    folder.mkdir(mode=0o700, exist_ok=True)
    partial = folder / f"{uuid.uuid4().hex}.partial"
    try:
        with partial.open("wb") as file:
            write_mask(file, mask)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / f"{workitem_uid}.npz")
    finally:
        partial.unlink(missing_ok=True)


def forget(folder: Path, workitem_uids: Iterable[str]) -> None:
    """Remove the masks of shadows."""
    for uid in workitem_uids:
        (folder / f"{uid}.npz").unlink(missing_ok=True)


def kept(folder: Path, workitem_uid: str) -> Segmentation | None:
    """Return the mask of a shadow, if there is one: its images are SOP Instance UIDs, and it has no segments.

    What its labels mean stands in the workitem's findings.
    """
    try:
        return read_mask(folder / f"{workitem_uid}.npz")
    except FileNotFoundError:
        return None
