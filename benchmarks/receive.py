"""How fast objects are received, beside a tuned Orthanc and dcmtk's storescp in the same run on the same disk.

Run it as ``python -m benchmarks.receive``; ``--quick`` for a first look, ``--only ct,small,memory,million`` for parts.
The senders are dcmtk's ``storescu``, one process an association, with Nagle's algorithm on (its default) and off.
Every run meets an empty receiver. What Overread has acknowledged is durable: bytes and directory fsynced, row
committed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.objects import write_multiframe, write_objects
from benchmarks.preload import million
from benchmarks.receivers import RECEIVERS, Running, start_node

STORESCU = "/usr/bin/storescu"
#: Rows and columns of 16 bits a pixel, and how many objects one association and all of sixteen send.
SIZES = {"ct": (512, {1: 200, 4: 600, 16: 600}), "small": (128, {1: 200, 4: 1000, 16: 2000})}
PARTS = ("ct", "small", "memory", "million")
_CONSOLE = Console(width=130)


@dataclass(frozen=True, kw_only=True)
class Push:
    """One measured push of many objects."""

    seconds: float
    objects: int
    bytes: int
    sender_cpu: float
    receiver_cpu: float

    @property
    def rate(self) -> float:
        """Objects a second."""
        return self.objects / self.seconds

    @property
    def sender_cpu_per_gb(self) -> float:
        """Processor seconds of the senders for each GB."""
        return self.sender_cpu / self.bytes * 1e9

    @property
    def receiver_cpu_per_gb(self) -> float:
        """Processor seconds of the receiver for each GB."""
        return self.receiver_cpu / self.bytes * 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one run, a quarter of the objects, 20,000 rows preloaded")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)}")
    parser.add_argument("--associations", default="1,4,16")
    parser.add_argument("--nagle", default="on,off", help="the senders' Nagle's algorithm")
    parser.add_argument("--receivers", default=",".join(RECEIVERS), help=f"of {','.join(RECEIVERS)}")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary folder where not given")
    options = parser.parse_args(arguments)
    runs = 1 if options.quick else options.runs
    share = 4 if options.quick else 1
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        _CONSOLE.print(f"{psutil.cpu_count()} cores; fsync of 4 KB on this disk: {_fsync_latency(folder)}")
        for size in (part for part in parts if part in SIZES):
            cells = list(product(map(int, options.associations.split(",")), options.nagle.split(",")))
            _compare(folder, size, cells, options.receivers.split(","), runs, share)
        if "memory" in parts:
            _memory(folder, (1 << 31) // share)
        if "million" in parts:
            million(folder, _CONSOLE, runs, 20_000 if options.quick else 1_000_000, push)
    return 0


def _compare(
    folder: Path, size: str, cells: Sequence[tuple[int, str]], names: Sequence[str], runs: int, share: int
) -> None:
    side, counts = SIZES[size]
    table = Table(title=f"C-STORE, {side * side // 512} KB objects, {runs} runs, interleaved")
    for column in (
        "associations",
        "Nagle",
        "receiver",
        "objects/s",
        "least",
        "most",
        "x Orthanc",
        "CPU s/GB",
        "sender",
    ):
        table.add_column(column, justify="left" if column in ("Nagle", "receiver") else "right")
    for associations, nagle in cells:
        folders = [
            write_objects(folder / f"send-{n}", counts[associations] // share // associations, side)
            for n in range(associations)
        ]
        os.sync()
        found: dict[str, list[Push]] = {name: [] for name in names}
        for _ in range(runs):
            for name in names:
                with _receiving(folder / "receiver", name) as running:
                    found[name].append(push(running, folders, nagle=nagle == "on"))
        for name in names:
            _add(table, (str(associations), nagle, name), found[name], found.get("orthanc", ()))
        for one in folders:
            shutil.rmtree(one)
    _CONSOLE.print(table)


def _add(table: Table, head: tuple[str, ...], pushes: Sequence[Push], beside: Sequence[Push]) -> None:
    rates = [one.rate for one in pushes]
    ratios = [a.rate / b.rate for a, b in zip(pushes, beside, strict=False)]
    table.add_row(
        *head,
        f"{statistics.median(rates):.0f}",
        f"{min(rates):.0f}",
        f"{max(rates):.0f}",
        f"{statistics.median(ratios):.2f}" if ratios else "",
        f"{statistics.median(one.receiver_cpu_per_gb for one in pushes):.1f}",
        f"{statistics.median(one.sender_cpu_per_gb for one in pushes):.1f}",
    )


@contextmanager
def _receiving(folder: Path, name: str) -> Iterator[Running]:
    running = RECEIVERS[name](folder)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def push(running: Running, folders: Sequence[Path], *, nagle: bool = False) -> Push:
    """Let one storescu a folder send all its files at once, and weigh both sides."""
    environment = dict(os.environ)
    environment.pop("TCP_NODELAY", None)
    if not nagle:
        environment["TCP_NODELAY"] = "1"
    sizes = [file.stat().st_size for folder in folders for file in folder.iterdir()]
    before = running.cpu_seconds()
    begin = time.perf_counter()
    senders = [
        subprocess.Popen(
            [STORESCU, "-R", "-pdu", "131072", "-aec", "OVERREAD", "+sd", "127.0.0.1", str(running.port), str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for folder in folders
    ]
    cpu = 0.0
    for sender in senders:
        _, status, usage = os.wait4(sender.pid, 0)
        sender.returncode = os.waitstatus_to_exitcode(status)
        cpu += usage.ru_utime + usage.ru_stime
    seconds = time.perf_counter() - begin
    # The receiver's own end of the last association is a part of the work.
    time.sleep(0.1)
    after = running.cpu_seconds()
    assert not any(sender.returncode for sender in senders), running.process.log_tail()
    return Push(seconds=seconds, objects=len(sizes), bytes=sum(sizes), sender_cpu=cpu, receiver_cpu=after - before)


def _memory(folder: Path, size: int) -> None:
    """Send one huge object and find the most memory that all receivers together took beyond what they had."""
    sending = folder / "huge"
    sending.mkdir()
    write_multiframe(sending / "huge.dcm", size)
    running = start_node(folder / "receiver")
    try:
        idle = {one.pid: _peak(one, reset=True) for one in running.family()}
        took = push(running, [sending])
        more = sum(max(0, _peak(one) - idle[one.pid]) for one in running.family() if one.pid in idle)
    finally:
        running.stop()
        shutil.rmtree(folder / "receiver")
        shutil.rmtree(sending)
    _CONSOLE.print(
        f"One multi-frame object of {size >> 20} MB: {more / 1e6:.1f} MB above idle (sum of every process's peak), "
        f"{took.seconds:.1f} s, {took.bytes / took.seconds / 1e6:.0f} MB/s, {took.receiver_cpu_per_gb:.2f} CPU s/GB"
    )


def _peak(process: psutil.Process, *, reset: bool = False) -> int:
    """Return the most resident memory since the last reset (proc(5): clear_refs, VmHWM), in bytes."""
    if reset:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="ascii")
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _fsync_latency(folder: Path) -> str:
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(b"\0" * 4096)
            begin = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - begin) * 1000)
    tenths = statistics.quantiles(times, n=10)
    return f"median {statistics.median(times):.2f} ms, 9 of 10 under {tenths[-1]:.2f} ms"


if __name__ == "__main__":
    sys.exit(main())
