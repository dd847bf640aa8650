"""How much room is left on the disks that the node writes to, and what that means for what is offered to it.

Two marks: below the first an operator is told, below the second nothing more is taken in, so that what is held can
still be worked on: the database grows with every step, and documents are written before they are sent.
"""

from __future__ import annotations

import enum
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from storage.database import Database

__all__ = ["Disk", "Least", "Level", "Marks", "Reading", "Room", "disks_of"]

#: So long is one look at the disks relied upon: what may come in meanwhile is small beside any reserve.
_LOOK_SECONDS: Final = 0.1
_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS_OF_1024: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_LOCAL: Final = (None, "", "localhost", "127.0.0.1", "::1")


class Level(enum.IntEnum):
    """What the room on a disk means; the number is what the metric shows."""

    ENOUGH = 0
    #: Below the first mark: somebody should make room.
    SCARCE = 1
    #: Below the second: nothing is taken in.
    REFUSED = 2


@dataclass(frozen=True, slots=True)
class Least:
    """An amount that has to stay free: a number, or a share of the whole."""

    amount: int = 0
    share: float = 0.0

    @classmethod
    def parse(cls, written: str) -> Least:
        """Read ``512 MB``, ``2 GiB``, ``1000`` or ``5 %``.

        Raises
        ------
        ValueError
            When it is none of these.
        """
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[KMGT]i?B|)\s*", written)
        if found is None:
            raise ValueError("expected a number with or without a unit (KB, MB, GB, TB), or a share as in 5 %")
        number, unit = float(found[1]), found[2]
        if unit == "%":
            if number >= 100:
                raise ValueError("expected a share below 100 %")
            return cls(share=number / 100)
        return cls(amount=int(number * (_UNITS | _UNITS_OF_1024)[unit]))

    def of(self, total: int) -> int:
        """Return how much that is of so much in all."""
        return max(self.amount, int(self.share * total))


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What has to stay free on each disk, in bytes and in inodes: below ``warn`` and below ``refuse``."""

    warn: Least = Least(2 * 10**9)
    refuse: Least = Least(256 * 10**6)
    warn_inodes: Least = Least(20_000)
    refuse_inodes: Least = Least(2_000)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk by a name for people, and a folder that lies on it."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one disk has free. ``inodes`` is None where the file system makes them as it needs them.

    ``spare`` is how many bytes may be written before the second mark is reached; ``words`` says what is wrong.
    """

    disk: str
    free: int
    total: int
    inodes: int | None
    level: Level
    spare: int
    words: str


class Room:
    """Watches disks, at next to no cost for each object.

    Parameters
    ----------
    disks
        From :func:`disks_of`.
    clock
        Seconds that only grow.
    """

    def __init__(
        self, disks: Sequence[Disk], marks: Marks | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._disks = tuple(disks)
        self._marks = marks or Marks()
        self._clock = clock
        self._due = float("-inf")
        self._refusal = ""
        self._spare = 0

    def refusal(self, length: int = 0) -> str:
        """Say why so many bytes more are not taken now; empty when there is room.

        Raises
        ------
        OSError
            When a disk cannot be asked.
        """
        # Nobody is refused on an old look: room that came back counts at once.
        if self._clock() >= self._due or self._refusal or length > self._spare:
            readings = self.readings()
            self._refusal = "; ".join(one.words for one in readings if one.level is Level.REFUSED)
            self._spare = min(one.spare for one in readings)
            self._due = self._clock() + _LOOK_SECONDS
        if not self._refusal and length > self._spare:
            return f"{length} bytes are announced and {self._spare} may be taken"
        return self._refusal

    def readings(self) -> list[Reading]:
        """Look at every disk now.

        Raises
        ------
        OSError
            When one cannot be asked.
        """
        return [self._reading(one) for one in self._disks]

    def _reading(self, disk: Disk) -> Reading:
        found = os.statvfs(disk.folder)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        # btrfs and others count none: they make an inode where one is needed.
        inodes = found.f_favail if found.f_files else None
        marks = self._marks
        level, words = _judged("bytes", free, marks.warn.of(total), marks.refuse.of(total))
        if inodes is not None:
            other = _judged(
                "inodes", inodes, marks.warn_inodes.of(found.f_files), marks.refuse_inodes.of(found.f_files)
            )
            level, words = max((level, words), other, key=lambda one: one[0])
        return Reading(
            disk=disk.name,
            free=free,
            total=total,
            inodes=inodes,
            level=level,
            spare=max(0, free - marks.refuse.of(total)),
            words=f"{disk.name}: {words}" if words else "",
        )


def _judged(what: str, free: int, warn: int, refuse: int) -> tuple[Level, str]:
    if free < refuse:
        return Level.REFUSED, f"{free} {what} are free and {refuse} are needed: nothing is taken in; make room"
    if free < warn:
        return Level.SCARCE, f"{free} {what} are free, fewer than {warn}; below {refuse} nothing is taken in: make room"
    return Level.ENOUGH, ""


def disks_of(data_dir: Path, database: Database) -> list[Disk]:
    """Return the data directory's disk and the database's, where that is another one that can be seen from here."""
    disks = [Disk("data_dir", data_dir)]
    folder = _folder_of(database)
    try:
        if folder is not None and folder.stat().st_dev != data_dir.stat().st_dev:
            disks.append(Disk("database", folder))
    except OSError:
        return disks  # a server's folder that this user may not look into
    return disks


def _folder_of(database: Database) -> Path | None:
    """Return the folder that the database lies in; None for a server elsewhere, or one that does not say."""
    # Here and not above: the marks are part of the configuration, which every command reads.
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    url = database.engine.url
    if url.get_backend_name() == "sqlite":
        return Path(url.database).absolute().parent if url.database else None
    if url.host not in _LOCAL and not str(url.host).startswith("/"):
        return None
    try:
        with database.read() as connection:
            return Path(str(connection.execute(text("SHOW data_directory")).scalar_one()))
    except DBAPIError:
        return None  # only a superuser and members of pg_read_all_settings may know
