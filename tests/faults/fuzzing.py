"""The fuzzer: sends hostile inputs to the code that takes in objects and to running receivers, and watches both.

    python -m tests.faults.fuzzing datasets --seed 7 --inputs 50000     in this process, quick
    python -m tests.faults.fuzzing conversations --seed 7 --inputs 50000  over the wire, to receivers of its own
    python -m tests.faults.fuzzing datasets --file failing.bin           one saved input again
    python -m tests.faults.fuzzing conversations --seed 7 --number 123   one input again by its number

An input is made by its seed and number alone. A failing one is saved and printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import select
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from demo.peers import wait_until
from node.dimse.scu import echo
from node.peers import Peer, Service
from storage.database import Database, migrate
from storage.errors import NotDicom
from storage.headers import Header, Written, _dataset_start, read_header
from storage.index import Origin
from storage.quickread import BEGINNING
from storage.reconcile import reconcile
from tests.faults.hostile_conversations import hostile_conversation
from tests.faults.hostile_datasets import corpus, hostile_file
from tests.faults.wire import RELEASE, Line, associate_request
from tests.receiver import Receiver, receiving
from tests.work import Holding

__all__ = ["Report", "fuzz_conversations", "fuzz_datasets"]

#: CPU seconds; the worst of them is some megabytes of empty elements behind a few kilobytes.
_LONGEST = 8.0
_HANG_SECONDS = 20
_AT_ONCE = 32
_BATCH = 128
_ASSOCIATIONS = 64
_RECEIVERS = 2
_SETTLED_SECONDS = 1.0
_GROWTH_ALLOWED = 64 << 20
_SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass
class Report:
    """What became of the inputs; ``failures`` are what must not be."""

    kind: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    grown: int = 0

    @property
    def inputs(self) -> int:
        return sum(self.outcomes.values())

    def fail(self, what: str, data: bytes | None, number: int | None) -> None:
        """Note a failure, save its input and say how to have it again."""
        told = what
        if number is not None:
            told += f"\n  again: python -m tests.faults.fuzzing {self.kind} --seed {self.seed} --number {number}"
        if data is not None:
            path = Path(tempfile.gettempdir()) / f"overread-{self.kind}-{self.seed}-{number}.bin"
            path.write_bytes(data)
            told += f"\n  saved: {path} (again with --file {path})"
        self.failures.append(told)


def fuzz_datasets(seed: int, numbers: Iterable[int], shared: Path | None = None, file: bytes | None = None) -> Report:
    """Take hostile files in, as the receivers do: only NotDicom may be raised, and files and rows stay in agreement."""
    report = Report("datasets", seed)
    files = corpus(shared)
    began = time.monotonic()
    with _quick_folder() as folder:
        url = f"sqlite:///{folder / 'overread.sqlite'}"
        migrate(url)
        database = Database(url)
        holding = Holding.at(folder / "var", database)
        grown = _peak()
        for number in numbers:
            data = hostile_file(seed, number, files) if file is None else file
            path = holding.incoming / "input"
            path.write_bytes(data)
            cpu = time.process_time()
            try:
                outcome = str(holding.archive.receive(path, Origin(calling_ae_title="FUZZ")).outcome)
            except NotDicom as refused:
                outcome = f"refused: {str(refused).split('(')[0].strip()}"
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                outcome = "failed"
                report.fail(f"{type(error).__name__}: {error}", data, number)
            if (cpu := time.process_time() - cpu) > _LONGEST:
                report.fail(f"{cpu:.1f} s of CPU for {len(data)} bytes", data, number)
            path.write_bytes(data)
            if (difference := _two_readings(path, data)) is not None:
                report.fail(f"the quick reading and the thorough one differ: {difference}", data, number)
            path.unlink()
            report.outcomes[outcome] += 1
        report.grown = _peak() - grown
        holding.close()
        if report.grown > 4 * _GROWTH_ALLOWED:
            report.fail(f"the process grew by {report.grown >> 20} MB", None, None)
        found = reconcile(database, holding.blobs, holding.refused, holding.incoming)
        if found.missing or found.adopted or found.quarantined or found.removed:
            report.fail(f"files and rows do not agree: {found}", None, None)
        database.close()
    report.seconds = time.monotonic() - began
    return report


def _two_readings(path: Path, data: bytes) -> str | None:
    """Read a file as a receiver does that has just written it, and as everybody else does; return a difference."""
    try:
        with path.open("rb") as file:
            start = _dataset_start(file)
        written = Written(
            beginning=data[:BEGINNING],
            size=len(data),
            digest=hashlib.sha256(data[start:]).hexdigest(),
            dataset_start=start,
        )
        quick = read_header(path, written)
    except NotDicom:
        return None
    try:
        thorough = read_header(path)
    except NotDicom as refused:
        return f"only one refuses: {refused}"
    for name in (*Header.__dataclass_fields__, "study", "series", "instance"):
        if name != "source" and getattr(quick, name) != getattr(thorough, name):
            return name
    return None


def fuzz_conversations(
    seed: int, numbers: Sequence[int], folder: Path, conversation: list[bytes] | None = None
) -> Report:
    """Hold hostile conversations with receivers, and see that they end, are forgotten, and disturb nobody."""
    report = Report("conversations", seed)
    began = time.monotonic()
    options = {
        "receivers": _RECEIVERS,
        "maximum_associations": _ASSOCIATIONS,
        "network_timeout_seconds": 5,
        "strangers": [str(one) for one in Service],
    }
    with receiving(folder, options=options) as receiver, ThreadPoolExecutor(_AT_ONCE) as pool:
        watch = _Watch(receiver)
        for start in range(0, len(numbers), _BATCH):
            batch = numbers[start : start + _BATCH]
            said = [conversation or hostile_conversation(seed, one, receiver.ae_title) for one in batch]
            for number, pdus, outcome in zip(
                batch, said, pool.map(lambda one: _hold(receiver.port, one), said), strict=True
            ):
                report.outcomes[outcome] += 1
                if outcome == "hung":
                    report.fail("the receiver neither answered nor closed", _packed(pdus), number)
            for trouble in watch.troubles():
                report.fail(f"{trouble}\n  within the inputs {batch[0]} to {batch[-1]}", None, None)
            if start == 0:
                watch.settle()
        report.failures += watch.leaks()
        report.grown = watch.grown()
    report.seconds = time.monotonic() - began
    return report


def _hold(port: int, conversation: Sequence[bytes]) -> str:
    """Hold one conversation; returns how it ended."""
    request, *rest = conversation
    try:
        with Line(port, _HANG_SECONDS) as line:
            line.send(request)
            # What is not one whole PDU is not answered at once: what follows is waited for, and may make it so.
            whole = len(request) >= 6 and len(request) == 6 + struct.unpack_from(">L", request, 2)[0]
            ready, _, _ = select.select([line.socket], [], [], _HANG_SECONDS if whole else 0.02)
            answer = line.answer() if ready else None
            line.send(*rest)
            kinds = [0 if answer is None else answer[0]]
            if rest and rest[-1] == RELEASE:
                # Its answer is worth a moment; then the end of the connection says that nothing more comes.
                line.socket.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    kinds += [kind for kind, _ in line.answers()]
                line.socket.settimeout(_HANG_SECONDS)
            line.hang_up()
            kinds += [kind for kind, _ in line.answers()]
    except TimeoutError:
        return "hung"
    except ConnectionError:
        return "reset"
    if kinds[0] != 2:
        return {3: "rejected", 7: "aborted before it was accepted"}.get(kinds[0], "never accepted")
    return {6: "released", 7: "aborted"}.get(kinds[-1], "closed")


class _Watch:
    """Looks at the receivers from outside."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._seen = 0
        parent = psutil.Process(receiver.process.pid)
        wait_until(lambda: len(parent.children()) == _RECEIVERS, 30, "the receivers")
        self._processes = {one.pid: one for one in parent.children()}
        self._idle: dict[int, int] = {}
        self._before: dict[int, tuple[int, int]] = {}
        self._size: dict[int, int] = {}
        self._peer = Peer(ae_title=receiver.ae_title, host="127.0.0.1", port=receiver.port)
        # Whatever a process makes once is there.
        for _ in range(8):
            echo(self._peer, "TEST")
        self.settle()

    def settle(self) -> None:
        """Take what there is once nothing changes for what there ought to be."""
        since, seen = time.monotonic(), {}
        while time.monotonic() - since < _SETTLED_SECONDS:
            threads = {pid: one.num_threads() for pid, one in self._processes.items()}
            if threads != seen or any(count > self._idle.get(pid, count) for pid, count in threads.items()):
                since, seen = time.monotonic(), threads
            time.sleep(0.02)
        self._idle = seen
        self._before = {pid: (one.num_fds(), one.num_threads()) for pid, one in self._processes.items()}
        self._size = {pid: one.memory_info().rss for pid, one in self._processes.items()}

    def troubles(self) -> list[str]:
        """Return what has gone wrong since it was last asked."""
        found = []
        with self._receiver.process.log_path.open("rb") as log:
            log.seek(self._seen)
            text = log.read().rpartition(b"\n")[0]
            self._seen += len(text)
        for line in filter(None, text.decode(errors="replace").split("\n")):
            if not line.startswith("{") or _is_trouble(json.loads(line)):
                found.append(line)
        now = {one.pid for one in psutil.Process(self._receiver.process.pid).children()}
        if now != self._processes.keys():
            found.append("a receiver died")
        began = time.monotonic()
        if not echo(self._peer, "TEST").reached:
            found.append("C-ECHO was not answered")
        if time.monotonic() - began > 1.0:
            found.append(f"C-ECHO took {time.monotonic() - began:.1f} s")
        return found[:5]

    def grown(self) -> int:
        return max(one.memory_info().rss - self._size[pid] for pid, one in self._processes.items())

    def leaks(self) -> list[str]:
        """Return what is still held now that nobody is connected."""

        def held() -> list[str]:
            found = []
            for pid, one in self._processes.items():
                for what, before, now in zip(
                    ("descriptors", "threads"), self._before[pid], (one.num_fds(), one.num_threads()), strict=True
                ):
                    # A database connection more or less is kept by each thread that needed one at the same time.
                    if now > before + (6 * _AT_ONCE if what == "descriptors" else 0):
                        found.append(f"{now} {what} are held, before it were {before}")
            found += [f"{path.name} is left" for path in self._receiver.incoming.glob("*.part")]
            return found

        try:
            wait_until(lambda: not held(), 10, "everything to be let go")
        except TimeoutError:
            return held()
        found = []
        if self.grown() > _GROWTH_ALLOWED:
            found.append(f"a receiver grew by {self.grown() >> 20} MB")
        lines = [Line(self._receiver.port) for _ in range(_ASSOCIATIONS)]
        try:
            for line in lines:
                line.associate(associate_request(self._receiver.ae_title))
        except AssertionError as refused:
            found.append(f"an association's place was not given back: {refused}")
        finally:
            for line in lines:
                line.socket.close()
        return found


def _is_trouble(line: dict[str, Any]) -> bool:
    """Whether a line of the log tells of an error that nobody foresaw."""
    if line["logger"].startswith("pynetdicom"):
        # It tells of what it does not understand by exceptions, and of what it did not foresee by this one.
        return str(line["event"]).startswith("Exception in DUL")
    return "exception" in line or line.get("error") == "InvalidEventError"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _quick_folder() -> _AsPath:
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None, prefix="overread-fuzz-")
    return _AsPath(folder)


class _AsPath:
    def __init__(self, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._folder = folder

    def __enter__(self) -> Path:
        return Path(self._folder.__enter__())

    def __exit__(self, *exception: Any) -> None:
        self._folder.__exit__(*exception)


def _packed(conversation: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack(">L", len(one)) + one for one in conversation)


def _unpacked(data: bytes) -> list[bytes]:
    found = []
    while data:
        (length,) = struct.unpack_from(">L", data)
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("datasets", "conversations"))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--number", type=int, help="only this input")
    parser.add_argument("--file", type=Path, help="a saved input")
    arguments = parser.parse_args()
    numbers = range(arguments.inputs) if arguments.number is None else range(arguments.number, arguments.number + 1)
    saved = arguments.file.read_bytes() if arguments.file else None
    if saved is not None:
        numbers = range(1)
    if arguments.kind == "datasets":
        report = fuzz_datasets(arguments.seed, numbers, _SHARED if _SHARED.is_dir() else None, saved)
    else:
        with _quick_folder() as folder:
            conversation = _unpacked(saved) if saved is not None else None
            report = fuzz_conversations(arguments.seed, numbers, folder / "receiver", conversation)  # type: ignore[operator]
    print(
        f"{report.kind}, seed {report.seed}: {report.inputs} inputs in {report.seconds:.1f} s, +{report.grown >> 20} MB"
    )
    for outcome, count in report.outcomes.most_common():
        print(f"  {count:7} {outcome}")
    for failure in report.failures:
        print(f"FAILED {failure}")
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
