"""Versions of models are brought in, tested, promoted and refused: nothing runs that is not what was tested."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import helper
from onnx.onnx_ml_pb2 import ModelProto
from rich.console import Console
from sqlalchemy import update

from demo.peers import wait_until
from inference.bring.meanings import foreign_meanings
from inference.card import load_card
from inference.cautions import logits as logits_of
from inference.errors import CardError
from inference.expected import expected_of
from inference.findings import Segmentation
from inference.registry import Registry
from inference.samples import write_mask
from node.app import prepare_database
from node.cli.modeltables import show_version
from node.errors import ConfigurationError, ModelRefused
from node.ops.backup import backup
from node.ops.check import check_route, why_idle
from node.ops.restore import MEMBER, restore
from node.settings import Route, Settings
from node.workflow import arriving, comparing, governing, leaving, overview
from node.workflow.models import Models, installed, register, store_of
from storage import models, schema, stages
from storage.blobs import FileBlobs
from storage.database import Database
from storage.errors import AlreadyThere, IllegalTransition
from tests.dicom_factory import ct_series
from tests.model_factory import (
    classification_card,
    constant_label,
    mean_brightness,
    segmentation_card,
    thresholding,
    write_model,
)
from tests.work import Holding

ANN = "ann"
#: The bright block of the sample: 2 x 5 x 8 voxels of 5 x 2 x 2 mm.
BLOCK_ML = 1.6


@pytest.fixture
def settings(embedded: Holding, tmp_path: Path) -> Settings:
    """A node with version 1.0.0 shipped, as after its first start."""
    shipped = tmp_path / "models"
    write_model(shipped, segmentation_card(), thresholding())
    made = Settings(data_dir=embedded.root, models=shipped, routes=())
    with embedded.database.write() as connection:
        register(connection, installed(made), store_of(made))
    return made


def version_in(
    folder: Path, version: str = "2.0.0", *, expect: float | None = BLOCK_ML, dice: float = 1.0, **changes: Any
) -> Path:
    """A folder with a version, and a sample case with the mask that it has to find."""
    place = write_model(folder, segmentation_card(version=version, **changes), thresholding()).parent
    if expect is None:
        return place
    hu = np.full((4, 16, 16), -1000)
    hu[1:3, 4:9, 4:12] = 500
    files = ct_series(place / "case", hu, spacing=(5.0, 2.0, 2.0))
    import pydicom

    planes = {
        str(header.SOPInstanceUID): float(header.ImagePositionPatient[2])
        for header in (pydicom.dcmread(one, stop_before_pixels=True) for one in files)
    }
    uids = sorted(planes, key=lambda uid: planes[uid])
    with (place / "block.npz").open("wb") as file:
        mask = (hu > 200).astype(np.uint8)
        write_mask(file, Segmentation(segments=(), images=tuple(uids), labels=mask))
    sample = {"name": "block", "images": "case", "expect": {"right lung": expect}, "mask": "block.npz", "dice": dice}
    card = place / "card.yaml"
    card.write_text(card.read_text() + yaml.safe_dump({"samples": [sample]}))
    return place


def stage_of(database: Database, version: str) -> str:
    with database.read() as connection:
        return models.get(connection, "blobs", version).state


def test_models_lie_flat_or_by_version_and_no_version_stands_twice(tmp_path: Path) -> None:
    write_model(tmp_path, segmentation_card(), thresholding())
    write_model(tmp_path / "more", segmentation_card(version="2.0.0"), thresholding()).parent.rename(
        tmp_path / "blobs" / "2.0.0"
    )
    (tmp_path / "more").rmdir()
    registry = Registry.from_folder(tmp_path)
    assert [card.version for card in registry.versions("blobs")] == ["1.0.0", "2.0.0"]
    assert registry.get("blobs@2.0.0").version == "2.0.0"
    assert "blobs@3.0.0" not in registry
    with pytest.raises(CardError, match=r"name one, as blobs@2\.0\.0"):
        registry.get("blobs")
    (tmp_path / "blobs" / "2.0.0").rename(tmp_path / "blobs" / "2.1.0")
    with pytest.raises(CardError, match=r"expected '2\.1\.0', the folder's name"):
        Registry.from_folder(tmp_path)
    card = tmp_path / "blobs" / "2.1.0" / "card.yaml"
    card.write_text(card.read_text().replace("2.0.0", "1.0.0"))
    card.parent.rename(tmp_path / "blobs" / "1.0.0")
    with pytest.raises(CardError, match="stands in"):
        Registry.from_folder(tmp_path)


def test_a_version_comes_from_a_folder_or_an_archive_once_and_never_with_other_bytes(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    source = version_in(tmp_path / "new", expect=None)
    archive = tmp_path / "new.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for file in source.iterdir():
            made.write(file, f"blobs-2/{file.name}")
    done = arriving.add(settings, embedded.database, archive, by=ANN)
    assert done.changed[0].startswith("blobs@2.0.0 is added as a candidate")
    assert load_card(store_of(settings) / "blobs" / "2.0.0").digest == load_card(source).digest
    assert arriving.add(settings, embedded.database, source, by=ANN).changed == []
    card = source / "card.yaml"
    card.write_text(card.read_text().replace("slices: 8", "slices: 9"))
    with pytest.raises(AlreadyThere, match="a version of its own"):
        arriving.add(settings, embedded.database, source, by=ANN)
    slab = load_card(store_of(settings) / "blobs" / "2.0.0").slab
    assert slab is not None
    assert slab.slices == 8


def test_samples_and_words_of_what_was_added_can_be_mended_and_have_to_be_passed_again(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    seen = Models(installed(settings), store_of(settings))
    wrong = version_in(tmp_path / "wrong", expect=BLOCK_ML * 2)
    arriving.add(settings, embedded.database, wrong, by=ANN)
    assert not governing.run_test(settings, embedded.database, "blobs@2.0.0", by=ANN)["passed"]
    right = version_in(tmp_path / "right", title="Brighter blobs")
    done = arriving.add(settings, embedded.database, right, by=ANN, why="the volume was wrong")
    assert "new words and samples" in done.changed[0]
    with embedded.database.read() as connection:
        newest = models.history(connection)[0]
        assert (newest.action, newest.why) == ("updated", "the volume was wrong")
        assert models.get(connection, "blobs", "2.0.0").has_failed
        assert seen.view(connection).cards["blobs", "2.0.0"].title == "Brighter blobs"
    assert governing.run_test(settings, embedded.database, "blobs@2.0.0", by=ANN)["passed"]
    other = version_in(tmp_path / "other", title="Bright")
    arriving.add(settings, embedded.database, other, by=ANN)
    with embedded.database.read() as connection:
        assert not models.get(connection, "blobs", "2.0.0").is_tested
        assert seen.view(connection).cards["blobs", "2.0.0"].title == "Bright"


def test_what_cannot_be_loaded_is_neither_added_nor_made_live(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    broken = write_model(tmp_path / "new", segmentation_card(version="2.0.0"), b"no ONNX").parent
    with pytest.raises(CardError, match="cannot be loaded, and was not added"):
        arriving.add(settings, embedded.database, broken, by=ANN, check=True)
    arriving.add(settings, embedded.database, broken, by=ANN)
    report = governing.run_test(settings, embedded.database, "blobs@2.0.0", by=ANN)
    assert "no samples; its model cannot be loaded" in report["summary"]
    with pytest.raises(ModelRefused, match="cannot be loaded"):
        governing.promote(settings, embedded.database, "blobs@2.0.0", by=ANN, untested=True, why="x")
    assert stage_of(embedded.database, "2.0.0") == "candidate"


@pytest.mark.parametrize(
    ("card", "model", "why"),
    [
        (classification_card(), mean_brightness(plus=float("nan")), "no probabilities"),
        (classification_card(), mean_brightness(plus=5.0), r"logits\? declare activation: sigmoid"),
        (segmentation_card(name="levels"), constant_label(6), "a label that its card does not name"),
    ],
    ids=["no number", "no probability", "no label"],
)
def test_what_answers_noise_otherwise_than_its_card_says_is_not_added(
    embedded: Holding, settings: Settings, tmp_path: Path, card: dict[str, Any], model: ModelProto, why: str
) -> None:
    folder = write_model(tmp_path / "new", card, model).parent
    with pytest.raises(CardError, match=f"on a made-up input, the model answered .*{why}"):
        arriving.add(settings, embedded.database, folder, by=ANN, check=True)


def test_a_known_code_that_is_called_something_else_is_pointed_out_and_its_synonyms_are_not(tmp_path: Path) -> None:
    def said(number: int, meaning: str, value: str = "8186001") -> tuple[str, ...]:
        [output] = classification_card()["outputs"]
        outputs = [output | {"code": {"value": value, "scheme": "SCT", "meaning": meaning}}]
        path = write_model(tmp_path / str(number), classification_card(outputs=outputs), mean_brightness())
        return foreign_meanings(load_card(path))

    assert said(1, "Nodule of lung") == (
        "nodule: 8186001 (SCT) is 'Cardiomegaly', and the card calls it 'Nodule of lung': look the code up",
    )
    assert said(2, "cardiomegaly (disorder)") == ()
    # Of PS3.16, and in no table of this project.
    assert "is 'Abdominal aorta'" in said(3, "Rib", "7832008")[0]
    assert said(4, "Aorta, abdominal", "7832008") == ()
    assert said(5, "Anything", "73211009") == ()


def test_words_that_were_copied_with_another_models_card_are_pointed_out_when_it_is_added(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    words = "Research use. Marks all that is bright in a volume."
    write_model(settings.models, segmentation_card("first", intended_use=words), thresholding())
    copied = write_model(tmp_path / "new", segmentation_card("second", intended_use=words), thresholding()).parent
    said = arriving.add(settings, embedded.database, copied, by=ANN).warnings
    assert "intended_use: word for word what first says of itself; say what is true of second" in said
    own = segmentation_card("third", intended_use="Research use. Marks air in a volume of the chest.")
    told = arriving.add(settings, embedded.database, write_model(tmp_path, own, thresholding()).parent, by=ANN).warnings
    assert not [line for line in told if "word for word" in line]


def test_what_a_card_leaves_open_is_said_when_it_is_added_and_shown(
    embedded: Holding, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [role] = classification_card()["inputs"]
    role.pop("match")
    folder = write_model(tmp_path / "new", classification_card(inputs=[role]), mean_brightness()).parent
    done = arriving.add(settings, embedded.database, folder, by=ANN, check=True)
    said, logits = done.warnings
    assert said.startswith("radiograph: no match: takes a series of any modality; no limits: reads any radiograph")
    assert logits.startswith("probability is made by Add, so these may be logits")
    assert done.hint == "no samples: add some to the card, or overread models promote levels@1.0.0 --untested --why"
    show_version(Console(width=200), overview.version(settings, embedded.database, "levels"))
    shown = capsys.readouterr().out
    assert "no match; no limits" in shown
    assert "nodule: 27925004, SCT, Nodule; index 0; threshold 0.5" in shown
    assert "look at        probability is made by Add" in shown
    assert re.search(r"file +model.onnx \(sha256 [0-9a-f]{12}\)", shown)
    assert all(f"\n{key}" in shown for key in ("made_by", "limits", "resources", "licence", "intended_use"))
    # With an activation, or a sigmoid in the graph whatever moves its values afterwards, nothing is said.
    calm = classification_card(version="2", postprocess=[{"activation": {"kind": "sigmoid"}}])
    assert logits_of(load_card(write_model(tmp_path / "calm", calm, mean_brightness()))) == ""
    model = mean_brightness()
    model.graph.node[-1].output[0] = "score"
    model.graph.node.extend(
        [helper.make_node("Sigmoid", ["score"], ["one"]), helper.make_node("Identity", ["one"], ["probability"])]
    )
    assert logits_of(load_card(write_model(tmp_path / "sigmoid", classification_card(), model))) == ""


def test_a_sample_whose_files_are_not_there_is_told_when_it_is_added_by_the_path_that_was_given(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    source = version_in(tmp_path / "new")
    (source / "block.npz").unlink()
    with pytest.raises(CardError, match=r"samples\.block\.mask") as refused:
        arriving.add(settings, embedded.database, source, by=ANN)
    assert str(refused.value).startswith(str(source))


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "blobs/../../escaped"])
def test_an_archive_writes_nothing_outside_its_folder(
    embedded: Holding, settings: Settings, tmp_path: Path, name: str
) -> None:
    source = version_in(tmp_path / "new", expect=None)
    archive = tmp_path / "hostile.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.write(source / "card.yaml", "card.yaml")
        made.write(source / "model.onnx", "model.onnx")
        made.writestr(name, "x")
    with pytest.raises(CardError):
        arriving.add(settings, embedded.database, archive, by=ANN)
    assert [one.name for one in store_of(settings).iterdir()] == [".lock"]
    assert list(tmp_path.rglob("escaped")) == list(embedded.root.rglob("escaped")) == []
    assert not Path("/escaped").exists()


def test_verifying_names_what_has_changed_and_adding_again_puts_back_what_was_lost(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    source = version_in(tmp_path / "new", expect=None)
    arriving.add(settings, embedded.database, source, by=ANN)
    assert [one.passed for one in governing.verify(settings, embedded.database)] == [True, True]
    weights = store_of(settings) / "blobs" / "2.0.0" / "model.onnx"
    weights.write_bytes(weights.read_bytes() + b"x")
    found = list(governing.verify(settings, embedded.database, "blobs@2.0.0"))
    assert (found[0].passed, "sha256" in found[0].found) == (False, True)
    with pytest.raises(CardError, match="sha256"):
        governing.promote(settings, embedded.database, "blobs@2.0.0", "shadow", by=ANN)
    # It holds up neither a start nor the other models.
    started = installed(settings)
    assert ([card.version for card in started], len(started.problems)) == (["1.0.0"], 1)
    arriving.add(settings, embedded.database, source, by=ANN)
    assert all(one.passed for one in governing.verify(settings, embedded.database))


def test_a_list_of_versions_reads_files_again_only_once_they_have_changed(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    arriving.add(settings, embedded.database, version_in(tmp_path / "new", expect=None), by=ANN)
    weights = store_of(settings) / "blobs" / "2.0.0" / "model.onnx"

    def hashed() -> int:
        before = overview._check_bytes.cache_info().misses
        found = overview.versions(settings, embedded.database)
        problems.append(["sha256" in one.problem for one in found])
        return overview._check_bytes.cache_info().misses - before

    problems: list[list[bool]] = []
    assert [hashed(), hashed()] == [2, 0]
    # Of the same length and with the old time of change, as a copy with its times kept would have it.
    was = weights.stat()
    weights.write_bytes(bytes(was.st_size))
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert hashed() == 1
    assert problems == [[False, False], [False, False], [False, True]]


def test_what_has_not_passed_its_own_samples_is_not_promoted(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    promote: Callable[..., Any] = lambda **more: governing.promote(  # noqa: E731
        settings, embedded.database, "blobs@2.0.0", by=ANN, **more
    )
    arriving.add(settings, embedded.database, version_in(tmp_path / "new"), by=ANN)
    with pytest.raises(ModelRefused, match="has not been tested"):
        promote()
    # Who answers for a card without samples does not for one that has them.
    with pytest.raises(ModelRefused, match="has not been tested"):
        promote(untested=True, why="I am sure")
    report = governing.run_test(settings, embedded.database, "blobs@2.0.0", by=ANN)
    assert (report["passed"], report["samples"][0]["said"]["right lung"]) == (True, pytest.approx(BLOCK_ML))
    beside = store_of(settings) / "blobs" / "2.0.0" / "report.json"
    files = {name: entry.sha256 for name, entry in load_card(beside.parent).files.items()}
    for content in (
        json.dumps({"passed": False, "summary": "it loses 3 %", "files": files}),
        json.dumps({}),
        "no JSON",
        json.dumps({"passed": True}),
        json.dumps({"passed": True, "files": {"other.onnx": "0" * 64}}),
    ):
        beside.write_text(content)
        with pytest.raises(ModelRefused, match=r"report\.json"):
            promote()
    beside.write_text(json.dumps({"passed": True, "files": files, "agreement": {"cases": 1}}))
    assert stage_of(embedded.database, "2.0.0") == "candidate"
    done = promote(why="tested")
    assert done.changed == ["blobs@2.0.0: candidate -> live", "blobs@1.0.0: live -> candidate"]
    assert done.warnings == ["compared with the exact model on 1 case only: take 20 or more, with and without findings"]


def test_of_two_who_move_a_version_at_once_the_second_is_told_that_it_is_no_longer_where_he_saw_it(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    arriving.add(settings, embedded.database, version_in(tmp_path / "new"), by=ANN)
    told: list[object] = []

    def promote() -> None:
        try:
            told.append(governing.promote(settings, embedded.database, "blobs@2.0.0", "shadow", by=ANN))
        except IllegalTransition as refusal:
            told.append(str(refusal))

    second = threading.Thread(target=promote)
    with embedded.database.write() as connection:
        second.start()
        # It has seen a candidate, and waits for the transaction that retires it.
        wait_until(lambda: _waits_to_write(second), 30, "the second waits to write")
        stages.move(connection, models.get(connection, "blobs", "2.0.0"), "retired", by=ANN)
    second.join()
    assert told == ["blobs@2.0.0 was candidate when it was looked at and is retired now; look again"]


def _waits_to_write(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    calls = [] if frame is None else [(Path(one.filename).name, one.name) for one in traceback.extract_stack(frame)]
    return ("database.py", "write") in calls


def test_a_mismatch_is_told_in_words_and_holds_a_version_back(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    source = version_in(tmp_path / "new", expect=BLOCK_ML * 1.2)
    with (source / "block.npz").open("wb") as file:
        headers = [one.name for one in (source / "case").iterdir()]
        nothing = np.zeros((len(headers), 16, 16), np.uint8)
        write_mask(file, Segmentation(segments=(), images=tuple(headers), labels=nothing))
    arriving.add(settings, embedded.database, source, by=ANN)
    report = governing.run_test(settings, embedded.database, "blobs@2.0.0", by=ANN)
    assert report["samples"][0]["mismatches"] == (
        "right lung: 1.6; expected 1.92 within 0.0384",
        "the mask lies on other images than the one expected",
    )
    for stage in ("live", "shadow"):
        with pytest.raises(ModelRefused, match="has not passed its test: 0 of 1"):
            governing.promote(settings, embedded.database, "blobs@2.0.0", stage, by=ANN)  # type: ignore[arg-type]


def test_what_a_model_says_of_a_case_can_stand_in_its_card_with_its_mask(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    source = version_in(tmp_path / "new", expect=BLOCK_ML * 9)
    (source / "block.npz").unlink()
    with pytest.raises(CardError, match="below its own folder"):
        expected_of(load_card(source), masks=tmp_path / "elsewhere")
    said = expected_of(load_card(source), masks=source / "masks")
    values = {
        "expect": {"right lung": BLOCK_ML, "left lung": 0.0},
        "tolerance": 0.03,
        "mask": "masks/block.npz",
        "dice": 0.97,
    }
    assert said == [{"name": "block", "images": "case"} | values]
    card = source / "card.yaml"
    card.write_text(yaml.safe_dump(yaml.safe_load(card.read_text()) | {"samples": said}))
    arriving.add(settings, embedded.database, source, by=ANN)
    assert governing.run_test(settings, embedded.database, "blobs@2.0.0", by=ANN)["passed"]


def test_a_card_without_samples_needs_somebody_who_answers_and_a_rollback_needs_the_files(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    arriving.add(settings, embedded.database, version_in(tmp_path / "new", expect=None), by=ANN)
    assert governing.run_test(settings, embedded.database, "blobs@2.0.0", by=ANN)["passed"] is False
    for words in ({}, {"untested": True}, {"why": "I am sure"}):
        with pytest.raises(
            ModelRefused, match="say why with --why" if "untested" in words else "somebody has to answer"
        ):
            governing.promote(settings, embedded.database, "blobs@2.0.0", by=ANN, **words)  # type: ignore[arg-type]
    governing.promote(settings, embedded.database, "blobs@2.0.0", by=ANN, untested=True, why="compared by hand")
    with embedded.database.read() as connection:
        assert models.history(connection)[0].why == "compared by hand"
    shipped = settings.models / "blobs" / "model.onnx"
    shipped.rename(tmp_path / "lost")
    with pytest.raises(CardError, match=r"model\.onnx"):
        governing.rollback(settings, embedded.database, "blobs", by=ANN)
    assert stage_of(embedded.database, "2.0.0") == "live"
    (tmp_path / "lost").rename(shipped)
    governing.rollback(settings, embedded.database, "blobs", by=ANN, retired=True)
    assert (stage_of(embedded.database, "1.0.0"), stage_of(embedded.database, "2.0.0")) == ("live", "retired")


def test_a_rollback_makes_no_candidate_live_and_ends_a_canary_whatever_became_of_the_live_files(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    arriving.add(settings, embedded.database, version_in(tmp_path / "new"), by=ANN)
    with pytest.raises(IllegalTransition, match="has never been live"):
        governing.rollback(settings, embedded.database, "blobs", by=ANN, to="2.0.0")
    governing.run_test(settings, embedded.database, "blobs@2.0.0", by=ANN)
    governing.promote(settings, embedded.database, "blobs@2.0.0", "canary", by=ANN, share=0.5)
    (settings.models / "blobs" / "model.onnx").unlink()
    done = governing.rollback(settings, embedded.database, "blobs", by=ANN)
    assert done.changed == ["blobs@2.0.0 is turned back, and candidate", "blobs@1.0.0 is live"]


def test_a_backup_holds_what_was_added_with_its_stage(
    embedded: Holding, settings: Settings, tmp_path: Path, quick_path: Path
) -> None:
    source = version_in(tmp_path / "new")
    # Bundles come with such files, and a card that was derived from one names them all.
    hidden = source / "configs" / ".gitattributes"
    hidden.parent.mkdir()
    hidden.write_text("*.pt filter=lfs")
    card = yaml.safe_load((source / "card.yaml").read_text())
    card["files"]["configs/.gitattributes"] = {"sha256": hashlib.sha256(hidden.read_bytes()).hexdigest()}
    (source / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    arriving.add(settings, embedded.database, source, by=ANN)
    governing.promote(settings, embedded.database, "blobs@2.0.0", "shadow", by=ANN)
    (embedded.root / "shadows").mkdir()
    (embedded.root / "shadows" / "1.2.3.npz").write_bytes(b"mask")
    (embedded.root / "heat-maps").mkdir()
    (embedded.root / "heat-maps" / "1.2.4.npz").write_bytes(b"map")
    backup(settings, quick_path / "node.tar")
    there = settings.model_copy(update={"data_dir": quick_path / "restored"})
    restore(there, quick_path / "node.tar")
    database = Database(there.database_url)
    try:
        assert stage_of(database, "2.0.0") == "shadow"
        assert all(one.passed for one in governing.verify(there, database))
    finally:
        database.close()
    assert (there.data_dir / "shadows" / "1.2.3.npz").read_bytes() == b"mask"
    assert (there.data_dir / "heat-maps" / "1.2.4.npz").read_bytes() == b"map"
    assert sorted(one.name for one in (there.data_dir / "models").iterdir()) == ["blobs"]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("models/blobs/2.0.0/.gitattributes", True),
        ("models/blobs/2.0.0/..a/...", True),
        ("models/blobs/../../escaped", False),
        ("models/./blobs", False),
        ("models/blobs/..", False),
        ("models/blobs//card.yaml", False),
        ("models/.lock", False),
        ("shadows/../escaped", False),
    ],
)
def test_a_restore_takes_hidden_files_of_models_and_no_name_that_leads_out(name: str, known: bool) -> None:
    assert (MEMBER.fullmatch(name) is not None) is known


def test_what_a_route_names_may_be_brought_after_it_and_a_model_without_a_live_version_is_told(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    routed = settings.model_copy(
        update={
            "routes": (
                Route(name="ct", match={"Modality": "CT"}, models=("blobs",)),
                Route(name="later", match={"Modality": "CT"}, models=("later",)),
            )
        }
    )
    with pytest.raises(ConfigurationError, match="no model 'later'"):
        installed(routed)
    prepare_database(routed)
    later = write_model(tmp_path / "new", segmentation_card("later", version="2.0.0"), thresholding()).parent
    arriving.add(routed, embedded.database, later, by=ANN)
    registry = installed(routed)
    idle = why_idle(routed, registry)
    assert idle == {"later": "no version of later is live"}
    ct, added = (check_route(route.name, route.models, registry, idle) for route in routed.route_list)
    assert (ct.todo, added.passed) == ("", True)
    assert "overread models promote later@2.0.0" in added.todo


def test_versions_of_two_models_are_not_compared(embedded: Holding, settings: Settings, tmp_path: Path) -> None:
    other = write_model(tmp_path / "new", segmentation_card("other"), thresholding()).parent
    arriving.add(settings, embedded.database, other, by=ANN)
    with embedded.database.read() as connection:
        first, second = models.get(connection, "blobs", "1.0.0"), models.get(connection, "other", "1.0.0")
    with pytest.raises(ModelRefused, match="not two versions of one model"):
        comparing.compare(embedded.database, FileBlobs(tmp_path), tmp_path, first, second)


def test_a_version_that_nothing_needs_is_removed_and_its_number_stays_taken(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    source = version_in(tmp_path / "new")
    place = store_of(settings) / "blobs" / "2.0.0"
    arriving.add(settings, embedded.database, source, by=ANN)
    with embedded.database.read() as connection:
        device = models.get(connection, "blobs", "2.0.0").device_uid
    done = leaving.remove(settings, embedded.database, "blobs@2.0.0", by=ANN, why="a trial")
    assert done.changed == ["blobs@2.0.0: candidate -> removed; its files are gone"]
    assert [one.name for one in store_of(settings).iterdir()] == [".lock"]
    with embedded.database.read() as connection:
        newest = models.history(connection)[0]
        assert (newest.action, newest.before, newest.after, newest.why) == (
            "removed",
            "candidate",
            "removed",
            "a trial",
        )
        # What it has made is still known for this node's own, and what is shipped later still becomes live.
        assert device in models.device_uids(connection)
        assert not any(one.chosen for one in models.versions(connection))
        seen = Models(installed(settings), store_of(settings)).view(connection)
    assert seen.chosen("blobs@2.0.0", "1.2")[1] == "blobs@2.0.0 is removed"
    assert [one.version for one in overview.versions(settings, embedded.database)] == ["1.0.0"]
    assert [one.idle for one in overview.versions(settings, embedded.database, removed=True)][1].startswith("removed")
    assert all(one.passed for one in governing.verify(settings, embedded.database))
    with pytest.raises(ModelRefused, match="was removed: overread models add"):
        governing.promote(settings, embedded.database, "blobs@2.0.0", "shadow", by=ANN)
    other = write_model(tmp_path / "other", segmentation_card(version="2.0.0", slab=None), thresholding()).parent
    with pytest.raises(AlreadyThere, match="a version of its own"):
        arriving.add(settings, embedded.database, other, by=ANN)
    arriving.add(settings, embedded.database, source, by=ANN)
    assert (stage_of(embedded.database, "2.0.0"), place.is_dir()) == ("candidate", True)
    # Killed after the row and before the files: both the next start and the same command end it.
    for finish in (
        lambda: prepare_database(settings),
        lambda: leaving.remove(settings, embedded.database, "blobs@2.0.0", by=ANN),
    ):
        with embedded.database.write() as connection:
            stages.remove(connection, models.get(connection, "blobs", "2.0.0"), by=ANN)
        assert place.is_dir()
        finish()
        assert (stage_of(embedded.database, "2.0.0"), place.exists()) == ("removed", False)
        arriving.add(settings, embedded.database, source, by=ANN)
    # A start waits for nobody who is adding a model, whether there is something to take away or not.
    with arriving.alone(store_of(settings)):
        assert leaving.sweep(settings, embedded.database) == 0
        with embedded.database.write() as connection:
            stages.remove(connection, models.get(connection, "blobs", "2.0.0"), by=ANN)
        assert (leaving.sweep(settings, embedded.database), place.is_dir()) == (0, True)
    assert (leaving.sweep(settings, embedded.database), place.is_dir()) == (1, False)


def test_what_is_told_of_a_candidate_is_what_a_route_that_names_it_does(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    arriving.add(settings, embedded.database, version_in(tmp_path / "new", expect=None), by=ANN)
    route = Route(name="pin", match={"Modality": "CT"}, models=("blobs@2.0.0",))
    pinned, process = settings.model_copy(update={"routes": (route,)}), Models(installed(settings), store_of(settings))

    def idle(asked: Settings) -> str:
        return next(one.idle for one in overview.versions(asked, embedded.database) if one.version == "2.0.0")

    untested = "a candidate that has not passed its test"
    for passed, told, unpinned in (
        (None, untested, untested),
        (True, "", "a candidate: not promoted"),
        (False, untested, untested),
    ):
        with embedded.database.write() as connection:
            if passed is not None:
                one = models.get(connection, "blobs", "2.0.0")
                models.record_test(connection, one, passed=passed, report={}, by=ANN)
            chosen, why = process.view(connection).chosen("blobs@2.0.0", "1.2")
        assert (idle(pinned), idle(settings), bool(chosen)) == (told, unpinned, not told)
        assert told in why


def test_what_is_needed_is_not_removed_and_it_is_said_what_to_do(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    def refused(reference: str, kind: type[Exception], routes: tuple[Route, ...] = ()) -> str:
        routed = settings.model_copy(update={"routes": routes})
        with pytest.raises(kind) as problem:
            leaving.remove(routed, embedded.database, reference, by=ANN)
        return str(problem.value)

    for version in ("2.0.0", "3.0.0"):
        source = version_in(tmp_path / version, version, expect=None)
        arriving.add(settings, embedded.database, source, by=ANN)
    other = write_model(tmp_path / "new", segmentation_card("other"), thresholding()).parent
    arriving.add(settings, embedded.database, other, by=ANN)
    assert "was not added" in refused("blobs@1.0.0", IllegalTransition)
    pinned = Route(name="pin", match={"Modality": "CT"}, models=("blobs@2.0.0",))
    assert "route pin names blobs@2.0.0" in refused("blobs@2.0.0", ModelRefused, (pinned,))
    last = Route(name="last", match={"Modality": "CT"}, models=("other",))
    assert "the only version of other" in refused("other@1.0.0", ModelRefused, (last,))
    for version in ("2.0.0", "3.0.0"):
        governing.promote(settings, embedded.database, f"blobs@{version}", by=ANN, untested=True, why="by hand")
    assert "retire blobs@3.0.0 first" in refused("blobs@3.0.0", IllegalTransition)
    assert "rollback blobs goes back to blobs@2.0.0" in refused("blobs@2.0.0", IllegalTransition)
    study = embedded.study(tmp_path / "study")
    item = embedded.schedule(study, embedded.judge(study))
    with embedded.database.write() as connection:
        connection.execute(
            update(schema.workitem).where(schema.workitem.c.id == item.id).values(model="other", model_version="1.0.0")
        )
    assert "1 workitems are scheduled for other@1.0.0" in refused("other@1.0.0", IllegalTransition)
    governing.retire(settings, embedded.database, "blobs@2.0.0", by=ANN)
    leaving.remove(settings, embedded.database, "blobs@2.0.0", by=ANN)
    with pytest.raises(IllegalTransition, match="was removed"):
        governing.rollback(settings, embedded.database, "blobs", by=ANN)
