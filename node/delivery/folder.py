"""Delivers as files in a folder."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import uuid
from pathlib import Path

from node.delivery.port import Delivered, Outcome, ProbeResult, Refused, Unreachable
from node.dimse.scu import identify
from node.settings import FolderDestination
from storage.blobs.files import fsync_directory

__all__ = ["FolderAdapter"]

_UID = re.compile(r"[0-9.]{1,64}")


class FolderAdapter:
    """A folder that takes documents as ``<SOP Instance UID>.dcm``; whoever watches it sees only whole files.

    Parameters
    ----------
    name
        In the configuration.
    settings
        The folder; made where it is missing.
    """

    def __init__(self, name: str, settings: FolderDestination) -> None:
        self.name = name
        self._folder = settings.path

    def deliver(self, document: Path) -> Outcome:
        """Copy one document: written under another name, fsynced, renamed, the folder fsynced."""
        found = identify(document)
        if isinstance(found, str):
            return Refused(f"the document {found}")
        if not _UID.fullmatch(found.sop_instance_uid):
            return Refused("the document's SOP Instance UID cannot be the name of a file")
        target = self._folder / f"{found.sop_instance_uid}.dcm"
        part = self._folder / f".{uuid.uuid4().hex}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if target.exists():
                if filecmp.cmp(document, target, shallow=False):
                    return Delivered(f"{target} is there already")
                return Refused(f"{target} is there already and differs; remove it to have the document written")
            try:
                with document.open("rb") as source, part.open("xb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                    copy.flush()
                    os.fsync(copy.fileno())
                part.rename(target)
            finally:
                part.unlink(missing_ok=True)
            fsync_directory(self._folder)
        except OSError as error:
            return Unreachable(f"{self._folder} cannot be written: {error.strerror}")
        return Delivered(f"written to {target}")

    def probe(self) -> ProbeResult:
        """Try whether a file could be made in the folder."""
        trial = self._folder / f".{uuid.uuid4().hex}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trial.touch()
            trial.unlink()
        except OSError as error:
            return ProbeResult(False, f"{self._folder} cannot be written: {error.strerror}")
        return ProbeResult(True, f"{self._folder} can be written")
