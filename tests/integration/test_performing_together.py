"""One performer has several models and several studies under way at once, the urgent ones first."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from inference.registry import Registry
from node.settings import Settings
from node.workflow.models import Models, register
from node.workflow.way import Way
from node.workflow.workers import run_performer
from storage import schema, studies
from tests.dicom_factory import ct_series, radiograph
from tests.model_factory import classification_card, mean_brightness, poisoned, segmentation_card, write_model
from tests.peers import wait_until
from tests.work import Holding


@pytest.fixture
def way(embedded: Holding, tmp_path: Path) -> Way:
    models = tmp_path / "models"
    write_model(models, segmentation_card("slow-ct"), poisoned("waits", 1_000_000))
    resources = {"seconds": 30, "memory_mb": 2048, "threads": 1, "concurrency": 4}
    write_model(models, classification_card("levels", resources=resources), mean_brightness())
    routes = [{"name": "all", "match": {"Modality": ["CT", "DX"]}, "models": ["slow-ct", "levels"]}]
    registry = Registry.from_folder(models)
    with embedded.database.write() as connection:
        register(connection, registry, embedded.root / "models")
        studies.device_uid(connection)
    return Way(
        settings=Settings.model_validate({"data_dir": embedded.root, "models": models, "routes": routes}),
        database=embedded.database,
        blobs=embedded.blobs,
        incoming=embedded.incoming,
        scratch=embedded.root / "scratch",
        models=Models(registry, embedded.root / "models"),
    )


@pytest.fixture
def performing(way: Way) -> Iterator[threading.Event]:
    """A performer that begins when the event is set, and is ended with the test."""
    begin, stop = threading.Event(), threading.Event()

    def perform() -> None:
        begin.wait()
        if not stop.is_set():
            run_performer(way, 0, stop)

    thread = threading.Thread(target=perform)
    thread.start()
    yield begin
    stop.set()
    begin.set()
    thread.join(30)
    assert not thread.is_alive()
    shutil.rmtree(way.scratch, ignore_errors=True)


def test_radiographs_run_beside_each_other_and_wait_behind_no_ct(
    embedded: Holding, way: Way, performing: threading.Event, tmp_path: Path
) -> None:
    with embedded.database.read() as connection:
        view = way.models.view(connection)
    slow, levels = (
        next(card for (name, _), card in view.cards.items() if name == wanted) for wanted in ("slow-ct", "levels")
    )
    hu = np.full((4, 16, 16), -1000)
    hu[:, 4:8, 4:8] = 500
    cts = []
    for number in range(3):
        receipt = embedded.receive(ct_series(tmp_path / f"ct{number}", hu + number))[0]
        cts.append(embedded.schedule_all(embedded.again(receipt.study_instance_uid), slow).id)
    pictures = []
    rng = np.random.default_rng(1)
    for number in range(6):
        pixels = rng.integers(0, 4096, (64, 64)).astype(np.uint16)
        (receipt,) = embedded.receive([radiograph(tmp_path / f"cr{number}", pixels)])
        urgency = "HIGH" if number == 5 else "MEDIUM"
        pictures.append(embedded.schedule_all(embedded.again(receipt.study_instance_uid), levels, urgency).id)
    performing.set()

    def done() -> bool:
        with embedded.database.read() as connection:
            states = connection.execute(select(schema.workitem.c.state)).scalars().all()
        return all(state == "COMPLETED" for state in states)

    wait_until(done, 90, "everything is performed")
    with embedded.database.read() as connection:
        rows = connection.execute(select(schema.attempt).order_by(schema.attempt.c.id)).all()
    attempts = {row.workitem_id: row for row in rows}
    assert len(rows) == 9, "each took one try"
    assert rows[0].workitem_id == pictures[5], "the urgent one is taken first"
    of_cts = sorted((attempts[one] for one in cts), key=lambda row: row.started_at)
    assert all(a.ended_at <= b.started_at for a, b in itertools.pairwise(of_cts)), "one CT at a time"
    assert max(attempts[one].ended_at for one in pictures) < of_cts[-1].started_at, "no radiograph waits for the CTs"
    of_pictures = [attempts[one] for one in pictures]
    at_once = max(
        sum(other.started_at <= one.started_at < other.ended_at for other in of_pictures) for one in of_pictures
    )
    assert 1 < at_once <= 4
