"""How long a node takes to be ready after a crash, and to find what the crash has left, however much it holds.

Run it as ``python -m benchmarks.start --rows 1000000 --keep FOLDER``. An archive of so many instances, with an empty
file each, stands beside a small one; in both lie some objects without a row, as a crash leaves them, and some rows
without a file. Prints, for each: start to ready, start to the last orphan adopted, and start to
everything compared. The file system needs an inode and a block of its directory for each row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import func, select

from demo.peers import Process, free_port, wait_until
from storage import chores, schema
from storage.blobs import FileBlobs
from storage.database import Database, migrate
from storage.headers import Header, read_header
from storage.index import Arrival, Origin, insert_group
from tests.dicom_factory import ct_series
from tests.system import OVERREAD

_SMALL = 1000
_GROUP = 1000
_STUDY, _SERIES = 400, 200
_ORPHANS = _LOST = 5


@dataclass(frozen=True)
class Took:
    """Seconds from the start of one node."""

    ready: float
    adopted: float
    compared: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="Keep the archives here, and use those that are here.")
    options = parser.parse_args(arguments)
    console = Console()
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found: dict[int, list[Took]] = {}
        for rows in (_SMALL, options.rows):
            data_dir = folder / f"start-{rows}"
            if not (data_dir / "whole").exists():
                _fill(data_dir, rows)
                (data_dir / "whole").touch()
            found[rows] = []
        for _ in range(options.runs):
            for rows, taken in found.items():
                taken.append(_start(folder / f"start-{rows}"))
    _print(console, found)
    return 0


def _fill(data_dir: Path, rows: int) -> None:
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir(parents=True)
    template = read_header(ct_series(data_dir / "template", np.zeros((1, 8, 8)))[0])
    shutil.rmtree(data_dir / "template")
    blobs = FileBlobs(data_dir / "blobs")
    url = f"sqlite:///{data_dir / 'overread.sqlite'}"
    migrate(url)
    database = Database(url)
    headers = _headers(template)
    origin = Origin(calling_ae_title="PRELOAD")
    for first in track(range(0, rows, _GROUP), f"{rows:,} instances with an empty file each"):
        arrivals = [
            Arrival(header=one, blob=uuid4().hex, origin=origin, made_here=False)
            for one in itertools.islice(headers, min(_GROUP, rows - first))
        ]
        for one in arrivals:
            blobs.path(one.blob).touch()
        with database.write() as connection:
            insert_group(connection, arrivals)
    with database.write() as connection:
        # Judged long ago: only files and rows are to be compared.
        connection.execute(schema.study.update().values(state="COMPLETE"))
    database.close()


def _headers(template: Header) -> Iterator[Header]:
    for number in itertools.count():
        if number % _STUDY == 0:
            study = f"2.25.{uuid4().int}"
        if number % _SERIES == 0:
            series = f"2.25.{uuid4().int}"
        yield replace(
            template,
            study_instance_uid=study,
            series_instance_uid=series,
            sop_instance_uid=f"2.25.{uuid4().int}",
            digest=uuid4().hex * 2,
        )


def _start(data_dir: Path) -> Took:
    """Leave what a crash leaves, start, and wait until all of it is found."""
    database = Database(f"sqlite:///{data_dir / 'overread.sqlite'}")
    blobs = FileBlobs(data_dir / "blobs")
    for path in ct_series(data_dir / "orphans", np.zeros((_ORPHANS, 8, 8)), study_uid=f"2.25.{uuid4().int}"):
        blobs.adopt(path)
    shutil.rmtree(data_dir / "orphans")
    with database.read() as connection:
        held = _count(database)
        somewhere = int(held * 0.6)
        i = schema.instance.c
        lost = connection.execute(select(i.blob).where(i.id > somewhere).order_by(i.id).limit(_LOST)).scalars().all()
        noted = int(connection.execute(select(func.count()).select_from(schema.damage)).scalar_one())
    for blob in lost:
        blobs.delete(blob)
    http = free_port()
    config = data_dir / "node.yaml"
    values = {"data_dir": str(data_dir), "routes": [], "dimse": {"port": free_port()}, "http": {"port": http}}
    config.write_text(json.dumps(values), encoding="utf-8")
    node = Process(command=[OVERREAD, "serve", "--config", str(config)], log_path=data_dir / "node.log")
    began = time.monotonic()
    node.start()
    try:

        def ready() -> bool:
            return httpx.get(f"http://127.0.0.1:{http}/health/ready", timeout=5).status_code == 200

        wait_until(ready, 600, "the node to answer", interval=0.01)
        at_ready = time.monotonic() - began
        wait_until(lambda: _count(database) == held + _ORPHANS, 600, "the orphans to be adopted", interval=0.02)
        adopted = time.monotonic() - began

        def compared() -> bool:
            with database.read() as connection:
                chore = chores.get(connection, "reconcile")
            return chore is not None and chore.ended_at is not None and int(chore.found["adopted"]) == _ORPHANS

        wait_until(compared, 600, "everything to be compared", interval=0.02)
        took = Took(at_ready, adopted, time.monotonic() - began)
    finally:
        # As a crash would.
        node.stop(0.0)
    with database.read() as connection:
        now = int(connection.execute(select(func.count()).select_from(schema.damage)).scalar_one())
    for blob in lost:
        blobs.path(blob).touch()
    database.close()
    assert now - noted in (_LOST, 0), "the rows without a file are found"
    return took


def _count(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(schema.instance)).scalar_one())


def _print(console: Console, found: dict[int, list[Took]]) -> None:
    table = Table(title="seconds from the start, median (least to most)", title_justify="left")
    for heading in ("instances held", "ready", "last orphan adopted", "everything compared"):
        table.add_column(heading)
    for rows, taken in found.items():
        cells = []
        for name in ("ready", "adopted", "compared"):
            seconds = [float(getattr(one, name)) for one in taken]
            cells.append(f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})")
        table.add_row(f"{rows:,}", *cells)
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
