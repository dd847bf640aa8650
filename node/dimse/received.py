"""A dataset as it arrives: written to a file, digested, and its first bytes kept, so that nothing is read again."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from storage.headers import Written
from storage.quickread import BEGINNING
from storage.space import Room

__all__ = ["PART_SUFFIX", "Received"]

#: How the file of a dataset that is still arriving ends.
PART_SUFFIX = ".part"

_log = structlog.get_logger(__name__)
#: After so many bytes of one dataset, the disk is looked at again.
_LOOK_BYTES = 16 << 20


@dataclass(slots=True)
class Received:
    """One dataset as it came in: a Part 10 file, or the error that kept it from becoming one."""

    path: Path
    size: int = 0
    error: OSError | None = None
    #: Open for writing until ``end``.
    descriptor: int | None = None
    _room: Room | None = None
    _look_at: int = _LOOK_BYTES
    _head: bytes = b""
    _has_head: bool = False
    _beginning: bytearray = field(default_factory=bytearray)
    _digest: Any = field(default_factory=hashlib.sha256)

    @classmethod
    def begin(cls, folder: Path, head: bytes, room: Room) -> Received:
        """Open a file in the folder, to begin with this head; an error, or too little room, is kept for the answer."""
        received = cls(folder / f"{os.getpid()}-{uuid.uuid4().hex}{PART_SUFFIX}", _room=room, _head=head)
        received._beginning += head
        try:
            if refusal := room.refusal():
                raise OSError(errno.ENOSPC, refusal)
            received.descriptor = os.open(received.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            received._fail(error)
        return received

    @classmethod
    def passing_by(cls, folder: Path) -> Received:
        """Count what arrives, and keep nothing of it."""
        return cls(folder / f"{os.getpid()}-{uuid.uuid4().hex}{PART_SUFFIX}")

    def write(self, data: memoryview) -> None:
        """Add a fragment of the dataset; after an error the rest is only counted."""
        self.size += len(data)
        if self.size >= self._look_at:
            self._look()
        if self.descriptor is None:
            return
        self._digest.update(data)
        if (room := BEGINNING - len(self._beginning)) > 0:
            self._beginning += data[:room]
        try:
            if self._has_head:
                written = os.write(self.descriptor, data)
            else:
                written = os.writev(self.descriptor, (self._head, data)) - len(self._head)
                if written < 0:
                    raise OSError(errno.ENOSPC, "the head of the file could not be written")
                self._has_head = True
            while written < len(data):
                written += os.write(self.descriptor, data[written:])
        except OSError as error:
            self._fail(error)

    @property
    def written(self) -> Written:
        """What is known of the file from its writing."""
        return Written(
            beginning=bytes(self._beginning),
            size=len(self._head) + self.size,
            digest=self._digest.hexdigest(),
            dataset_start=len(self._head),
        )

    def end(self) -> None:
        """Close the file."""
        if self.descriptor is not None:
            descriptor, self.descriptor = self.descriptor, None
            try:
                os.close(descriptor)
            except OSError as error:
                self._fail(error)

    def discard(self) -> None:
        """Close the file, and remove it where it still is."""
        self.end()
        self.path.unlink(missing_ok=True)

    def _look(self) -> None:
        """See now and then whether there is room for what is so large."""
        self._look_at = self.size + _LOOK_BYTES
        try:
            refusal = self._room.refusal() if self._room is not None and self.descriptor is not None else ""
        except OSError as error:
            self._fail(error)
        else:
            if refusal:
                self._fail(OSError(errno.ENOSPC, refusal))

    def _fail(self, error: OSError) -> None:
        self.error = error
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError as closing:
                _log.warning("dataset file could not be closed", error=closing.strerror)
        self.path.unlink(missing_ok=True)
