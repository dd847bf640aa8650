"""Runs a program within limits: its time, its memory, its processes, and what it may write.

::

    run_program(argv, environment={}, folder=work, watched=[work], limits=Limits(seconds=600, memory_bytes=8 << 30))
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from inference.errors import EngineFailure
from inference.heldmemory import HeldMemory
from inference.processtree import children, kill_marked, kill_tree

__all__ = ["Limits", "run_program"]

_CONFINE = Path(__file__).with_name("confine.py")
_MARK = "OVERREAD_RUN"
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.5
_TAIL = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may take: wall time, memory of all its processes together, their number, and what it writes.

    ``address_space_bytes`` limits each process's addresses (RLIMIT_AS): programs that use a GPU reserve far more than
    they hold, so it is off unless it is asked for. ``file_bytes`` is the most in one file, ``output_bytes`` and
    ``output_files`` in all of the watched folders.
    """

    seconds: float
    memory_bytes: int
    threads: int = 1
    processes: int = 512
    address_space_bytes: int | None = None
    file_bytes: int = 8 << 30
    output_bytes: int = 8 << 30
    output_files: int = 10_000


def run_program(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    watched: Sequence[Path],
    limits: Limits,
    network: bool = False,
    writable: Sequence[str] = (),
) -> str:
    """Run a program to its end, and see to it that nothing of it is left.

    Parameters
    ----------
    argv
        The program and its arguments; no shell reads them.
    environment
        All that it gets.
    folder
        Its working directory.
    watched
        The folders that it may write to, and no other where the system allows that; bytes and files in them count.
    writable
        Further folders that it may write to, without a count.
    network
        Whether it may reach the network. Where it may not and the system cannot keep it from it, it is not run.

    Returns
    -------
    str
        The end of what it wrote to its standard output and error, as printable text.

    Raises
    ------
    EngineFailure
        ``died`` (a status other than 0, or a signal), ``overran-time``, ``overran-memory``, ``broke`` (it cannot be
        started, or wrote more than it may).
    """
    mark = secrets.token_hex(16)
    read_status, write_status = os.pipe()
    spec = folder / f".run-{mark[:8]}.json"
    spec.write_text(
        json.dumps(
            {
                "argv": list(argv),
                "environment": {**environment, _MARK: mark},
                "folder": str(folder),
                "limits": _resource_limits(limits),
                "network": network,
                "memory_bytes": limits.memory_bytes,
                "processes": limits.processes,
                "writable": [*map(str, watched), *writable],
                "status": write_status,
            }
        ),
        encoding="utf-8",
    )
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_CONFINE), str(spec)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), _MARK: mark},
            pass_fds=(write_status,),
            process_group=0,
        )
        os.close(write_status)
        write_status = -1
        with os.fdopen(read_status, "rb") as status:
            read_status = -1
            tail = _watch(process, watched, limits)
            return _judged(status.read(4096).decode(errors="replace").strip(), tail)
    finally:
        if process is not None:
            if process.poll() is None:
                kill_tree(process.pid)
            process.wait()
            kill_marked(f"{_MARK}={mark}")
            assert process.stdout is not None
            process.stdout.close()
        for left in (read_status, write_status):
            if left >= 0:
                os.close(left)
        spec.unlink(missing_ok=True)


def _resource_limits(limits: Limits) -> dict[str, int]:
    chosen = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": limits.file_bytes,
        # For each process: one that got away from the wall time would end by itself.
        "RLIMIT_CPU": int(limits.seconds * max(limits.threads, 1)) + 5,
    }
    if limits.address_space_bytes is not None:
        chosen["RLIMIT_AS"] = limits.address_space_bytes
    return chosen


def _watch(process: subprocess.Popen[bytes], watched: Sequence[Path], limits: Limits) -> str:
    """Stay with a program until it has ended or went beyond a limit; return the end of what it said."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    tail = bytearray()
    deadline = time.monotonic() + limits.seconds
    look = 0.0
    memory = HeldMemory()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            open_ = bool(selector.get_map())
            if open_ and selector.select(0 if ended else _POLL_SECONDS):
                if not _take(process.stdout, tail):
                    selector.unregister(process.stdout)
            elif not open_ and not ended:
                # Whoever closes its output is no less watched.
                time.sleep(_POLL_SECONDS)
            if ended:
                return _printable(tail)
            now = time.monotonic()
            if now > deadline:
                raise EngineFailure("overran-time", f"the program did not end within {limits.seconds:g} s")
            # Counted before they are measured: a program that only forks is soon too many to measure.
            below = children(process.pid, most=limits.processes)
            if len(below) > limits.processes:
                raise EngineFailure("broke", f"the program started more than {limits.processes} processes")
            held = memory.bytes([process.pid, *below], limits.memory_bytes)
            if held > limits.memory_bytes:
                raise EngineFailure(
                    "overran-memory",
                    f"the program held {held >> 20} MB; its limit is {limits.memory_bytes >> 20} MB",
                )
            if now >= look:
                look = now + _LOOK_SECONDS
                require_small(watched, limits)


def _take(stream: IO[bytes], tail: bytearray) -> bool:
    try:
        chunk = os.read(stream.fileno(), 1 << 16)
    except BlockingIOError:
        return True
    tail += chunk
    del tail[:-_TAIL]
    return bool(chunk)


def _printable(tail: bytes | bytearray) -> str:
    text = tail.decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def require_small(watched: Sequence[Path], limits: Limits) -> None:
    """Count what lies in folders, without following a link.

    Raises
    ------
    EngineFailure
        ``broke``, if it is more than a program may write, or a folder of it cannot be looked at.
    """
    total = files = 0
    front = [str(one) for one in watched]
    while front:
        try:
            with os.scandir(front.pop()) as entries:
                for entry in entries:
                    files += 1
                    if entry.is_dir(follow_symlinks=False):
                        front.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
                    if files > limits.output_files or total > limits.output_bytes:
                        raise EngineFailure(
                            "broke",
                            f"the program wrote more than {limits.output_files} files or "
                            f"{limits.output_bytes >> 20} MB",
                        )
        except FileNotFoundError:
            continue
        except OSError as problem:
            words = f"the program left a folder that cannot be looked at ({problem.strerror})"
            raise EngineFailure("broke", words) from problem


def _judged(status: str, tail: str) -> str:
    kind, _, value = status.partition(" ")
    last = f"; it said last: {tail[-300:]}" if tail else ""
    if kind == "exit" and value == "0":
        return tail
    if kind == "exit":
        raise EngineFailure("died", f"the program ended with status {value}{last}")
    if kind == "signal":
        raise EngineFailure("died", f"the program was ended by signal {value}{last}")
    if kind == "refused":
        raise EngineFailure("broke", value)
    raise EngineFailure("died", f"the program's supervisor died{last}")
