"""How much memory a program holds, also in files that lie in memory and that no process has mapped.

Resident memory (:func:`inference.processtree.tree_resident_bytes`) counts what is mapped. A file of memfd_create(2),
and one in the program's own ``/dev/shm``, takes memory as soon as it is written, and is in nobody's account. Here each
is counted once: the first by the descriptors that are open on it, the second by its file system. What a process hides
from proc(5) is not seen: a process that is not dumpable (PR_SET_DUMPABLE, prctl(2)) where the node is not root, a
descriptor on its way through a socket, one of a thread that has its own table, a file system of memory in a world of
its own making. A memory cgroup, set by whoever starts the node, sees that too.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from inference.processtree import resident_bytes, together_resident_bytes

__all__ = ["HeldMemory"]

_SHM = "/dev/shm"  # noqa: S108 - looked at, not written to
_BLOCK = 512
#: A mapping of proc(5), ``smaps``: addresses, rights, offset, device, inode.
_MAPPING = re.compile(rb"[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+)")

#: Device and inode.
_File = tuple[int, int]


class HeldMemory:
    """Tells again and again how much memory the processes of one program hold together.

    To look through all that they have open is dear. It is done every so many seconds, and in between whenever what lies
    in files in memory has grown by so much, in the whole system, that the program could be above its limit.

    Parameters
    ----------
    every_seconds
        How long what was found may stand.
    """

    def __init__(self, every_seconds: float = 1.0) -> None:
        self._every_seconds = every_seconds
        self._until = -math.inf
        self._files: dict[_File, int] = {}
        self._device: int | None = None
        self._filed = 0
        self._least = 0

    def bytes(self, pids: list[int], limit: int) -> int:
        """Return the memory that processes hold together, in bytes.

        A page that is in a file and mapped too counts twice, unless that would be above ``limit``: then the mappings
        are read, which is exact and dearer. The processes are given, and not looked up: a program that forks without an
        end has more of them each time that anybody looks.
        """
        resident = together_resident_bytes(pids, limit)
        filed_anywhere = _shmem()
        self._least = min(self._least, filed_anywhere)
        most = resident + self._filed + filed_anywhere - self._least
        if most > limit or time.monotonic() >= self._until:
            self._least = filed_anywhere
            self._look(pids)
        if self._filed and resident + self._filed > limit:
            resident = sum(_besides(one, set(self._files), self._device) for one in pids)
        return resident + self._filed

    def _look(self, pids: list[int]) -> None:
        self._files = _memfds(pids)
        self._device, shared = _own_shm(pids)
        self._filed = sum(self._files.values()) + shared
        self._until = time.monotonic() + self._every_seconds


def _shmem() -> int:
    """Return the bytes that lie in files in memory anywhere (proc(5), ``meminfo``); 0 where that is not told."""
    try:
        with open("/proc/meminfo", "rb") as lines:  # noqa: PTH123 - asked twenty times a second
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Shmem:")), 0)
    except (OSError, IndexError, ValueError):
        return 0


def _memfds(pids: list[int]) -> dict[_File, int]:
    """Return the bytes of each anonymous file that one of the processes has open."""
    found: dict[_File, int] = {}
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            numbers = os.listdir(folder)  # noqa: PTH208 - thousands of names, and no need of a Path for each
        except OSError:
            continue
        for number in numbers:
            place = f"{folder}/{number}"
            with contextlib.suppress(OSError):
                if os.readlink(place).startswith("/memfd:"):  # noqa: PTH115
                    status = os.stat(place)  # noqa: PTH116
                    found[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK
    return found


def _own_shm(pids: list[int]) -> tuple[int | None, int]:
    """Return the device and the bytes used of ``/dev/shm``, where the processes have one of their own."""
    try:
        outer: int | None = os.stat(_SHM).st_dev  # noqa: PTH116
    except OSError:
        outer = None
    for pid in reversed(pids):
        place = f"/proc/{pid}/root{_SHM}"
        with contextlib.suppress(OSError):
            device, usage = os.stat(place).st_dev, os.statvfs(place)  # noqa: PTH116
            if device != outer:
                return device, (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    return None, 0


def _besides(pid: int, files: set[_File], device: int | None) -> int:
    """Return a process's share (Pss) of what it has mapped, but for these files and for all files of a device.

    One look tells both: a process that ends between two would be counted with what it has no more.
    """
    try:
        return sum(size for file, size in _mappings(pid) if file not in files and file[0] != device)
    except OSError:
        return resident_bytes(pid)


def _mappings(pid: int) -> Iterator[tuple[_File, int]]:
    file: _File = (0, 0)
    with Path(f"/proc/{pid}/smaps").open("rb") as lines:
        for line in lines:
            if line.startswith(b"Pss:"):
                yield file, int(line.split()[1]) * 1024
            elif (mapping := _MAPPING.match(line)) is not None:
                major, minor, inode = mapping.groups()
                file = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
