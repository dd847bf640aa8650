"""Whether receiving becomes slower as the archive grows: the rate with many instances held beside the rate with few."""

from __future__ import annotations

import itertools
import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.progress import track

from benchmarks.objects import unique_uid, write_objects
from benchmarks.receivers import Running
from storage.database import Database, Writer, migrate
from storage.headers import Header, read_header
from storage.index import Arrival, Origin, insert_group
from tests.receiver import Receiver

__all__ = ["million"]

_FEW = 1000
_GROUP = 1000
_SERIES, _STUDY = 200, 400
_SENT = 1000


def million(folder: Path, console: Console, runs: int, rows: int, push: Callable[..., Any]) -> None:
    """Preload two archives through the function that receiving inserts with, without files, and push to both in turn.

    Receivers alone are measured: a whole node would start by looking for the files of all the rows.
    """
    held = {_FEW: folder / "few", rows: folder / "many"}
    for count, root in held.items():
        _preload(root, count)
    rates: dict[int, list[float]] = {count: [] for count in held}
    for _ in range(runs):
        for count, root in held.items():
            receiver = Receiver(folder=root).start()
            running = Running(port=receiver.port, process=receiver.process)
            sending = [write_objects(folder / f"send-{n}", _SENT // 4, 128) for n in range(4)]
            try:
                rates[count].append(push(running, sending).rate)
            finally:
                running.stop()
                for one in sending:
                    shutil.rmtree(one)
    for count, found in rates.items():
        console.print(
            f"{count:>9,} instances held: {statistics.median(found):.0f} objects/s of 32 KB over 4 associations"
            f" ({min(found):.0f} to {max(found):.0f})"
        )
    ratios = [many / few for few, many in zip(rates[_FEW], rates[rows], strict=True)]
    console.print(f"the rates' ratio, run by run: {statistics.median(ratios):.2f}")
    for root in held.values():
        with suppress(FileNotFoundError):
            shutil.rmtree(root)


def _preload(data_dir: Path, rows: int) -> None:
    data_dir.mkdir(parents=True)
    (template,) = write_objects(data_dir / "template", 1, 16).iterdir()
    header = read_header(template)
    shutil.rmtree(data_dir / "template")
    url = f"sqlite:///{data_dir / 'overread.sqlite'}"
    migrate(url)
    database = Database(url)
    writer = Writer(database)
    headers = _headers(header)
    for first in track(range(0, rows, _GROUP), f"preloading {rows:,} instances"):
        arrivals = [
            Arrival(header=one, blob=uuid4().hex, origin=Origin(calling_ae_title="PRELOAD"), made_here=False)
            for one in itertools.islice(headers, min(_GROUP, rows - first))
        ]
        with writer.transaction() as connection:
            insert_group(connection, arrivals)
    writer.close()
    database.close()


def _headers(template: Header) -> Any:
    """Make headers without end: studies of 400 instances in two series, each with UIDs of its own."""
    instance = template.instance
    for number in itertools.count():
        if number % _STUDY == 0:
            study = unique_uid()
        if number % _SERIES == 0:
            series = unique_uid()
        one = replace(template, study_instance_uid=study, series_instance_uid=series, sop_instance_uid=unique_uid())
        said: dict[str, Sequence[Any] | dict[str, Any]] = {
            "00080018": {"vr": "UI", "Value": [one.sop_instance_uid]},
            "00200013": {"vr": "IS", "Value": [number % _SERIES + 1]},
        }
        # What a header says is made when it is first asked for: here it is known.
        one.__dict__["instance"] = {**instance, **said}
        yield one
