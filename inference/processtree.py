"""A process and all that it has started: how much memory they hold together, and how none of them survives it.

Linux, by ``/proc``; elsewhere a process is taken for a tree of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "children",
    "descendants",
    "end_with",
    "kill_marked",
    "kill_tree",
    "resident_bytes",
    "together_resident_bytes",
    "tree_resident_bytes",
]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST_ROUNDS = 200
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory in bytes; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        pass
    if Path("/proc/self/statm").exists():
        return 0
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=False)
    return int(shown.stdout.strip() or 0) * 1024


def tree_resident_bytes(pid: int, limit: int | None = None) -> int:
    """Return the memory that a process and its descendants hold, in bytes.

    What several of them share would count for each. So where there are several and the plain sum is above ``limit``,
    each page is counted for the share of it that a process has (Pss), which is exact and dearer to ask for.
    """
    return together_resident_bytes([pid, *children(pid)], limit)


def together_resident_bytes(pids: list[int], limit: int | None = None) -> int:
    """Return the memory that these processes hold together, in bytes; see :func:`tree_resident_bytes`."""
    total = sum(map(resident_bytes, pids))
    if len(pids) > 1 and limit is not None and total > limit:
        total = sum(map(_proportional_bytes, pids))
    return total


def descendants(pid: int) -> list[int]:
    """Return all processes below ``pid``, zombies left out, from one look at the whole table."""
    below: dict[int, list[int]] = {}
    for process, parent, state in _table():
        if state not in "ZX":
            below.setdefault(parent, []).append(process)
    found: list[int] = []
    front = [pid]
    while front:
        front = [child for one in front for child in below.get(one, ())]
        found += front
    return found


def end_with(parent: int) -> None:
    """Have this process die with its parent: by the kernel's signal on Linux, and by watching on any system.

    Parameters
    ----------
    parent
        The process that started this one, by whose own account: it may be gone by now.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # What a program of ours has orphaned stays below this process, where its supervisor finds and kills it.
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def kill_tree(pid: int) -> None:
    """Kill a process and everything below it, also what forks while it is being killed.

    The first process of a namespace is killed at once: the kernel ends all others of it in the same moment. The rest is
    stopped first, and the top one is killed last: what is orphaned meanwhile is adopted by it where it is a subreaper
    (prctl(2)), and found in the next round.
    """
    for _ in range(_MOST_ROUNDS):
        _signal(pid, signal.SIGSTOP)
        for one in children(pid, depth=3):
            if _is_first(one):
                _signal(one, signal.SIGKILL)
        stopped: set[int] = set()
        while fresh := set(descendants(pid)) - stopped:
            for one in fresh:
                _signal(one, signal.SIGSTOP)
            stopped |= fresh
        if not stopped:
            break
        for one in stopped:
            _signal(one, signal.SIGKILL)
        # A killed process leaves the table of the living at its next moment on a processor.
        time.sleep(0.002)
    _signal(pid, signal.SIGKILL)


def kill_marked(mark: str) -> None:
    """Kill every process whose environment holds ``mark``: what got away from its tree still carries it."""
    wanted = mark.encode()
    for process, _, state in _table():
        if process == os.getpid() or state in "ZX":
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                _signal(process, signal.SIGKILL)
                # Ours to bury only where this process adopts; elsewhere this raises, and init does it.
                os.waitpid(process, 0)


def children(pid: int, depth: int = 1000, most: int = 100_000) -> list[int]:
    """Return the processes down to ``depth`` below ``pid``, as a cheap look finds them; it ends above ``most``."""
    found: list[int] = []
    front = [pid]
    while front and depth and len(found) <= most:
        depth -= 1
        lower: list[int] = []
        for one in front:
            try:
                for task in os.listdir(f"/proc/{one}/task"):  # noqa: PTH208 - asked twenty times a second
                    with contextlib.suppress(OSError):
                        lower += map(int, Path(f"/proc/{one}/task/{task}/children").read_bytes().split())
            except OSError:
                continue
        found += lower
        front = lower
    return found


def _is_first(pid: int) -> bool:
    """Whether a process is the first one of a namespace below ours (pid_namespaces(7))."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                numbers = line.split()[1:]
                return len(numbers) > 1 and numbers[-1] == "1"
    except OSError:
        pass
    return False


def _proportional_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return resident_bytes(pid)


def _table() -> Iterator[tuple[int, int, str]]:
    """Yield (process, parent, state) of all there are (proc(5), ``stat``)."""
    try:
        entries = os.listdir("/proc")  # noqa: PTH208 - thousands of names, and no need of a Path for each
    except OSError:
        return
    for entry in entries:
        if entry.isdigit():
            try:
                # The name may hold blanks and brackets; what follows its last bracket does not.
                rest = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
                yield int(entry), int(rest[1]), rest[0]
            except (OSError, IndexError, ValueError):
                continue


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
