"""The same input is not computed again, whatever is wrong with what was kept, and similar pictures are told apart."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, select, update

from inference.card import Card, load_card
from inference.engine import Job
from inference.findings import Classification, Code, Findings, HeatMap, Segment, Segmentation
from inference.registry import Registry
from node.ops.verify import verify
from node.settings import Settings
from node.workflow import heatmaps, soundness, steps
from node.workflow.leftovers import remove_leftovers
from node.workflow.models import Models, register
from node.workflow.remembering import _kind, key_of, recalled, remember
from node.workflow.way import Way
from storage import attempts, damage, drift, fingerprints, flags, results, schema, studies, worklist
from storage.records import Instance, Study, Workitem
from tests.dicom_factory import radiograph
from tests.model_factory import classification_card, mean_brightness, segmentation_card, thresholding, write_model
from tests.work import Holding

#: No way was measured to run the fastest.
NOWHERE = Path("/nonexistent")
CODE = Code(value="1", scheme="99T", meaning="one")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, classification_card("levels"), mean_brightness())
    write_model(folder, classification_card("brighter"), mean_brightness(0.1))
    write_model(folder, segmentation_card("blobs"), thresholding())
    return folder


@pytest.fixture
def way(holding: Holding, models: Path) -> Way:
    settings = Settings.model_validate({"data_dir": holding.root, "models": models})
    registry = Registry.from_folder(models)
    with holding.database.write() as connection:
        register(connection, registry, holding.root / "models")
    (holding.root / "scratch").mkdir()
    return Way(
        settings=settings,
        database=holding.database,
        blobs=holding.blobs,
        incoming=holding.incoming,
        scratch=holding.root / "scratch",
        models=Models(registry, holding.root / "models"),
    )


def card(models: Path, name: str) -> Card:
    return load_card(models / name)


def received(holding: Holding, folder: Path, seed: int = 0, smooth: bool = True) -> Study:
    pixels = np.random.default_rng(seed).integers(0, 4096, (8, 8)).astype(np.uint16)
    picture = np.kron(pixels, np.ones((8, 8), np.uint16)) if smooth else pixels
    path = radiograph(folder / uuid.uuid4().hex, picture)
    (receipt,) = holding.receive([path])
    return holding.again(receipt.study_instance_uid)


def instances(holding: Holding, study: Study) -> dict[str, tuple[Instance, ...]]:
    with holding.database.read() as connection:
        return {"radiograph": tuple(studies.evidence(connection, study.id))}


def findings(image: str, probability: float = 0.25) -> Findings:
    one = Classification(name="nodule", code=CODE, probability=probability, threshold=0.5, image=image)
    return Findings(images=(image,), classifications=(one,), provider="onnxruntime:CPU", precision="fp32", seconds=0.5)


def masked(image: str) -> Findings:
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[0, 8:20, 8:20] = 1
    labels[0, 10:14, 10:14] = 3
    segments = tuple(
        Segment(label=label, name=name, code=CODE, category=CODE, volume_ml=3.5)
        for label, name in ((1, "tumour"), (2, "its core"))
    )
    return Findings(
        images=(image,),
        segmentation=Segmentation(segments=segments, images=(image,), labels=labels, together={3: (1, 2)}),
        provider="onnxruntime:CPU",
        precision="fp32",
    )


def test_what_was_found_is_found_again_across_processes_with_its_mask(
    holding: Holding, way: Way, models: Path, tmp_path: Path
) -> None:
    of = card(models, "blobs")
    study = received(holding, tmp_path)
    work = holding.schedule_all(study, of)
    inputs = instances(holding, study)
    first = masked(inputs["radiograph"][0].sop_instance_uid)
    key = key_of(of, inputs, NOWHERE)
    assert recalled(way, key, inputs) is None
    remember(way, work, of, key, first)
    again = recalled(replace(way), key, inputs)
    assert again is not None
    assert again.segmentation is not None
    assert again.cached
    np.testing.assert_array_equal(again.segmentation.labels, first.segmentation.labels)  # type: ignore[union-attr]
    assert again.segmentation.segments == first.segmentation.segments  # type: ignore[union-attr]
    assert again.segmentation.together == {3: (1, 2)}
    assert (again.provider, again.precision) == ("onnxruntime:CPU", "fp32")
    assert recalled(way, key, inputs, ("onnxruntime:CPU", "fp32")) is not None
    assert recalled(way, key, inputs, ("onnxruntime:CUDA", "fp32")) is None
    assert not list(way.scratch.iterdir())
    assert not list(holding.incoming.iterdir())


def test_a_result_stands_for_its_input_its_model_and_its_way_of_reading_alone(
    holding: Holding, models: Path, tmp_path: Path
) -> None:
    of = card(models, "levels")
    inputs = instances(holding, received(holding, tmp_path))
    (one,) = inputs["radiograph"]
    keys = [
        key_of(of, inputs, NOWHERE),
        key_of(card(models, "brighter"), inputs, NOWHERE),
        key_of(of, {"other": (one,)}, NOWHERE),
        key_of(of, {"radiograph": (one, one)}, NOWHERE),
        key_of(of, {"radiograph": (replace(one, digest="0" * 64),)}, NOWHERE),
        key_of(of, {"radiograph": (replace(one, transfer_syntax_uid="1.2.840.10008.1.2.4.70"),)}, NOWHERE),
        key_of(of, {"radiograph": (replace(one, sop_instance_uid="1.2.3"),)}, NOWHERE),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(of, inputs, NOWHERE) == keys[0]
    (tmp_path / "choices").mkdir()
    (tmp_path / "choices" / f"{of.files['model.onnx'].sha256[:32]}-2-x.json").write_text("openvino")
    assert key_of(of, inputs, tmp_path) not in keys
    assert key_of(of.model_copy(update={"engine": "kserve"}), inputs, NOWHERE) is None


@pytest.mark.parametrize("harm", ["row", "file cut", "file gone", "digest", "no json"])
def test_a_damaged_result_is_a_miss_and_is_forgotten(
    holding: Holding, way: Way, models: Path, tmp_path: Path, harm: str
) -> None:
    of = card(models, "blobs")
    study = received(holding, tmp_path)
    inputs = instances(holding, study)
    key = key_of(of, inputs, NOWHERE)
    work = holding.schedule_all(study, of)
    remember(way, work, of, key, masked(inputs["radiograph"][0].sop_instance_uid))
    with holding.database.read() as connection:
        row = connection.execute(select(schema.result)).one()
    file = way.results.path(row.blob)
    with holding.database.write() as connection:
        if harm == "row":
            connection.execute(update(schema.result).values(findings=row.findings[:-20]))
        elif harm == "digest":
            connection.execute(update(schema.result).values(digest="0" * 64))
        elif harm == "no json":
            connection.execute(update(schema.result).values(findings=b"\xff"))
    if harm == "file cut":
        os.truncate(file, 10)
    elif harm == "file gone":
        file.unlink()
    assert recalled(way, key, inputs) is None
    with holding.database.read() as connection:
        assert results.totals(connection).results == 0
    assert not file.exists()
    remember(way, work, of, key, masked(inputs["radiograph"][0].sop_instance_uid))
    assert recalled(way, key, inputs) is not None


def test_results_are_bounded_swept_emptied_and_go_with_their_study(
    holding: Holding, way: Way, models: Path, tmp_path: Path
) -> None:
    of = card(models, "blobs")
    keys = []
    for seed in range(4):
        study = received(holding, tmp_path, seed)
        inputs = instances(holding, study)
        keys.append((key_of(of, inputs, NOWHERE), inputs))
        work = holding.schedule_all(study, of)
        remember(way, work, of, keys[-1][0], masked(inputs["radiograph"][0].sop_instance_uid))
    with holding.database.read() as connection:
        total = results.totals(connection)
    assert total.results == 4
    assert results.evict(holding.database, way.results, total.size * 0.6) == 2
    assert [recalled(way, key, inputs) is not None for key, inputs in keys] == [False, False, True, True]
    assert len(list(way.results.names())) == 2
    with holding.database.write() as connection:
        results.forget_study(connection, work.study_id)
    assert results.sweep(holding.database, way.results, 0) == 0
    assert results.sweep(holding.database, way.results, 2**63) == 1
    assert recalled(way, *keys[3]) is None
    assert results.empty(holding.database, way.results).results == 1
    assert not list(way.results.names())


def test_the_engine_is_not_asked_about_what_it_has_answered(
    holding: Holding, way: Way, models: Path, tmp_path: Path
) -> None:
    of = card(models, "levels")
    study = received(holding, tmp_path)
    asked: list[Job] = []

    def run(_card: Card, job: Job, _heartbeat: object) -> Findings:
        asked.append(job)
        observed = {"observations": ({"mean": 0.5},)}
        return replace(findings(job.input_set["radiograph"][0].key), statistics=observed)

    made = []
    for _ in range(2):
        holding.schedule_all(holding.reopened(study) if made else study, of)
        taken = steps.take(way, "worker", attempts.Choice())
        assert taken is not None
        steps.perform(way, taken, run)
        with holding.database.read() as connection:
            made.append(worklist.get(connection, taken[0].id))
    assert [one.state for one in made] == ["COMPLETED", "COMPLETED"]
    assert len(asked) == 1
    with holding.database.read() as connection:
        assert [one.count for one in drift.observed(connection)] == [1]  # what is said again is no further input
    assert [one.findings["cached"] for one in made if one.findings] == [False, True]
    first, second = (one.findings for one in made)
    assert first is not None
    assert second is not None
    assert first["classifications"] == second["classifications"]


@pytest.mark.parametrize("remembered", [False, True])
def test_pixels_that_changed_on_the_disk_are_not_analysed_nor_answered_for_and_can_be_sent_again(
    holding: Holding, way: Way, models: Path, tmp_path: Path, remembered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if remembered:  # also what was found right before, which else is not asked of a file as young as this one
        monkeypatch.setattr(soundness, "_SETTLED_NS", -1)
    of = card(models, "levels")
    paths = [radiograph(tmp_path / "sent", np.full((8, 8), 1000))]
    study = holding.again(holding.receive(paths)[0].study_instance_uid)
    asked: list[Job] = []

    def run(_card: Card, job: Job, _heartbeat: object) -> Findings:
        asked.append(job)
        return findings(job.input_set["radiograph"][0].key)

    def performed() -> Workitem:
        holding.schedule_all(study, of)
        taken = steps.take(way, "worker", attempts.Choice())
        assert taken is not None
        steps.perform(way, taken, run)
        with holding.database.read() as connection:
            return worklist.get(connection, taken[0].id)

    def kept() -> int:
        with holding.database.read() as connection:
            return results.totals(connection).results

    assert performed().state == "COMPLETED"
    assert (len(asked), kept()) == (1, 1)
    file = holding.blobs.path(instances(holding, study)["radiograph"][0].blob)
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    study = holding.reopened(study)
    parked = performed()
    assert (parked.state, parked.parked, len(asked), kept()) == ("CANCELED", True, 1, 0)
    assert "1 of 1 images are not what was received (1 changed on the disk; overread verify)" in parked.outcome
    with holding.database.read() as connection:
        assert damage.counts(connection)["changed"] == 1
    assert [one.outcome for one in holding.receive(paths)] == ["restored"]
    study = holding.reopened(study)
    again = performed()
    assert (again.state, len(asked), kept()) == ("COMPLETED", 2, 1)
    file = holding.blobs.path(instances(holding, study)["radiograph"][0].blob)
    file.unlink()
    verify(holding.database, holding.blobs, holding.refused)
    assert kept() == 0
    # What opens and cannot be read.
    file.mkdir()
    study = holding.reopened(study)
    assert "(1 unreadable on the disk; overread verify)" in performed().outcome


def test_heat_maps_and_masks_go_with_their_images_and_with_the_attempt_that_was_lost(
    holding: Holding, way: Way, models: Path, tmp_path: Path
) -> None:
    of = card(models, "levels")

    def run(_card: Card, job: Job, _heartbeat: object) -> Findings:
        uid = job.input_set["radiograph"][0].key
        seen = HeatMap(name="nodule", code=CODE, image=uid, values=np.zeros((8, 8), np.uint8))
        return replace(findings(uid), heat_maps=(seen,))

    def performed(study: Study) -> Workitem:
        holding.schedule_all(study, of)
        taken = steps.take(way, "worker", attempts.Choice())
        assert taken is not None
        steps.perform(way, taken, run)
        return taken[0]

    def there() -> set[str]:
        return {file.name for file in way.heat_maps.iterdir()}

    gone, stays = (received(holding, tmp_path, seed) for seed in (0, 1))
    deleted, kept = (f"{performed(study).uid}.npz" for study in (gone, stays))
    waiting = f"{holding.schedule_all(received(holding, tmp_path, 2), of).uid}.npz"
    for name in (waiting, "2.25.1.npz", "0a.partial"):
        (way.heat_maps / name).write_bytes(b"")
    assert remove_leftovers(holding.database, way.heat_maps, 0) == 0
    with holding.database.write() as connection:
        connection.execute(delete(schema.result).where(schema.result.c.study_id == gone.id))
        connection.execute(delete(schema.instance).where(schema.instance.c.study_id == gone.id))
    assert remove_leftovers(holding.database, way.heat_maps, 0) == 1
    assert there() == {kept, waiting, "2.25.1.npz", "0a.partial"}
    assert remove_leftovers(holding.database, way.heat_maps, 2**63) == 2
    assert there() == {kept, waiting}
    assert deleted not in there()
    assert remove_leftovers(holding.database, way.shadows, 2**63) == 0  # where there is no such folder
    heatmaps.keep(way.heat_maps, waiting.removesuffix(".npz"), findings("1.2"))
    assert there() == {kept}  # what a lost attempt has written does not stand for one that found nothing


def test_trouble_with_keeping_a_result_costs_no_findings(
    holding: Holding, way: Way, models: Path, tmp_path: Path
) -> None:
    of = card(models, "blobs")
    study = received(holding, tmp_path)
    inputs = instances(holding, study)
    work = holding.schedule_all(study, of)
    uid = inputs["radiograph"][0].sop_instance_uid
    remember(way, work, of, None, replace(findings(uid), fingerprints={uid: "no hash at all"}))
    way.scratch.rmdir()
    remember(way, work, of, key_of(of, inputs, NOWHERE), masked(inputs["radiograph"][0].sop_instance_uid))
    assert recalled(way, key_of(of, inputs, NOWHERE), inputs) is None


def test_nearly_the_same_picture_of_another_study_is_pointed_out_and_one_that_only_resembles_is_not(
    holding: Holding, way: Way, models: Path, tmp_path: Path
) -> None:
    of = card(models, "levels")
    value = "0f" * 32
    near = f"{int(value, 16) ^ 0b10101:064x}"
    far = f"{int(value, 16) ^ int('0001' * 16, 16):064x}"
    told = []
    for number, one in enumerate((value, value, near, far)):
        study = received(holding, tmp_path, number)
        uid = instances(holding, study)["radiograph"][0].sop_instance_uid
        shown = replace(findings(uid), fingerprints={uid: one})
        remember(way, holding.schedule_all(study, of), of, f"{number:064d}", shown)
        with holding.database.read() as connection:
            told.append([(flag.kind, flag.subject) for flag in flags.of_study(connection, study.id)])
        if number == 0:
            first = study.study_instance_uid
        if number == 1:
            second = study.study_instance_uid
    assert told == [[], [("likeness", first)], [("likeness", second)], []]
    with holding.database.read() as connection:
        last = fingerprints.newest(connection)
        found = [fingerprints.alike(connection, 0, _kind(of), far, after=after) for after in (0, last - 1, last)]
    assert [one is not None for one in found] == [True, True, False]


def test_pictures_that_differ_by_little_share_a_piece_of_their_hash() -> None:
    rng = np.random.default_rng(1)
    value = "a5" * 32
    for _ in range(50):
        flipped = int(value, 16)
        for bit in rng.choice(256, fingerprints.MOST_DIFFERENT, replace=False):
            flipped ^= 1 << int(bit)
        other = f"{flipped:064x}"
        assert fingerprints.distance(value, other) == fingerprints.MOST_DIFFERENT
        assert set(fingerprints._pieces("k", value)) & set(fingerprints._pieces("k", other))
