"""A segmented radiograph goes through a performer: its documents are stored, and the same picture is remembered."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pydicom

from inference.registry import Registry
from node.settings import Settings
from node.workflow.models import Models, register
from node.workflow.way import Way
from node.workflow.workers import run_performer
from storage import studies, worklist
from storage.records import Workitem
from tests.dicom_factory import radiograph
from tests.model_factory import write_model
from tests.peers import wait_until
from tests.unit.test_segment2d import card_of, levels, picture
from tests.work import Holding


def test_masks_that_overlap_are_stored_and_come_out_of_the_cache_as_they_were(
    embedded: Holding, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    write_model(models, card_of(), levels())
    registry = Registry.from_folder(models)
    with embedded.database.write() as connection:
        register(connection, registry, embedded.root / "models")
        studies.device_uid(connection)
    routes = [{"name": "all", "match": {"Modality": "CR"}, "models": ["levels"]}]
    way = Way(
        settings=Settings.model_validate({"data_dir": embedded.root, "models": models, "routes": routes}),
        database=embedded.database,
        blobs=embedded.blobs,
        incoming=embedded.incoming,
        scratch=embedded.root / "scratch",
        models=Models(registry, embedded.root / "models"),
    )
    with embedded.database.read() as connection:
        [card] = way.models.view(connection).cards.values()
    receipt = embedded.receive([radiograph(tmp_path / "cr", picture())])[0]
    study = embedded.again(receipt.study_instance_uid)
    stop = threading.Event()
    performer = threading.Thread(target=run_performer, args=(way, 0, stop))

    def done(number: int) -> Workitem:
        with embedded.database.read() as connection:
            return worklist.get(connection, number)

    results = []
    try:
        first = embedded.schedule_all(study, card).id
        performer.start()
        for number in (first, None):
            item = number or embedded.schedule_all(embedded.reopened(study), card).id
            wait_until(lambda item=item: done(item).state in ("COMPLETED", "PARKED"), 60, "it is performed")
            results.append(done(item))
    finally:
        stop.set()
        performer.join(30)
        shutil.rmtree(way.scratch, ignore_errors=True)
    assert [one.state for one in results] == ["COMPLETED", "COMPLETED"]
    assert [bool((one.findings or {})["cached"]) for one in results] == [False, True]
    masks = []
    for one in results:
        with embedded.database.read() as connection:
            [document] = [each for each in worklist.documents(connection, one.id) if each.kind == "SEG"]
        masks.append(pydicom.dcmread(way.blobs.path(document.blob)).pixel_array)
    assert masks[0].shape == (2, 120, 200)
    assert (masks[0] == masks[1]).all()
    assert np.count_nonzero(masks[0][0] & masks[0][1]) > 500
