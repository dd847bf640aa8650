"""Structures of a radiograph: their masks lie on the stored pixels, may overlap, and have an area and no volume."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from onnx import TensorProto, helper
from onnx.onnx_ml_pb2 import ModelProto

from inference.card import Card, load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import CardError, EngineFailure
from inference.explain import Frame
from inference.findings import Findings, Segmentation
from inference.marking import planes_of
from inference.preprocess import centre_crop, padded_square
from inference.radiograph import Radiograph, Turn
from inference.samples import run_samples, values_of, write_mask
from inference.segment2d import masks_on_source
from inference.wire import findings_from, findings_to
from node.workflow import comparing
from tests.dicom_factory import radiograph
from tests.model_factory import classification_card, code, write_model

SIZE = 64
ANATOMY = code("123037004", "Body Structure")


def card_of(names: tuple[str, ...] = ("lung", "heart"), **changes: Any) -> dict[str, Any]:
    """A card whose structures are what is brighter than 0.3 and than 0.7: the second lies within the first."""
    return classification_card(
        task="segmentation",
        layout="nchw",
        tensors={"image": "image", "output": "scores"},
        postprocess=[{"activation": {"kind": "sigmoid"}}, {"threshold": {"value": 0.5}}],
        outputs=[
            {
                "label": n,
                "name": name,
                "code": code(f"{n}", name, "99T"),
                "category": code("123037004", "Body Structure"),
            }
            for n, name in enumerate(names, 1)
        ],
        **changes,
    )


def levels(*, at: tuple[float, ...] = (0.3, 0.7), plus: float = 0.0) -> ModelProto:
    """A score for each level: how far the image is above it."""
    nodes = [
        helper.make_node("Sub", ["image", "levels"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["steeply"]),
        helper.make_node("Add", ["steeply", "plus"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "levels",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(at), SIZE, SIZE])],
        [
            helper.make_tensor("levels", TensorProto.FLOAT, [1, len(at), 1, 1], at),
            helper.make_tensor("steep", TensorProto.FLOAT, [], [20.0]),
            helper.make_tensor("plus", TensorProto.FLOAT, [], [plus]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def picture() -> np.ndarray:
    """A dark field of 120 x 200 with a grey block, and a bright one within it."""
    pixels = np.zeros((120, 200))
    pixels[20:100, 40:120] = 2000
    pixels[40:60, 60:100] = 4000
    return pixels


def run(tmp_path: Path, card: dict[str, Any], model: ModelProto, *files: Path) -> Findings:
    path = write_model(tmp_path / "models", card, model)
    engine = open_engine(load_card(path))
    try:
        return engine.run(Job(path, {"radiograph": tuple(ImageFile(file.stem, file) for file in files)}))
    finally:
        engine.close()


def test_structures_that_overlap_are_both_kept_where_they_lie_in_the_stored_image(tmp_path: Path) -> None:
    # Shown turned: stored rows run to the patient's right and stored columns to the head.
    file = radiograph(tmp_path, picture(), PatientOrientation=["H", "R"])
    findings = run(tmp_path, card_of(), levels(), file)
    mask = findings.segmentation
    assert mask is not None
    assert mask.images == (file.stem, file.stem)
    assert mask.labels.shape == (2, 120, 200)
    for plane, block in zip(mask.labels, (picture() > 0, picture() > 2000), strict=True):
        marked = plane > 0
        # One of the model's pixels is three of the image's.
        assert np.argwhere(marked).min(0) == pytest.approx(np.argwhere(block).min(0), abs=2)
        assert np.argwhere(marked).max(0) == pytest.approx(np.argwhere(block).max(0), abs=2)
        assert np.argwhere(marked).mean(0) == pytest.approx(np.argwhere(block).mean(0), abs=0.5)
    assert (mask.labels[0][mask.labels[1] > 0] == 1).all()
    assert set(np.unique(mask.labels[1])) == {0, 2}


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("square_of", [padded_square, centre_crop])
def test_an_edge_comes_back_where_it_was_whatever_the_turn_and_the_square(
    tmp_path: Path, flags: tuple[bool, bool, bool], square_of: Any
) -> None:
    rows, columns = np.indices((90, 61)).astype(float)
    # How far a stored pixel's middle lies from a slanted line, in pixels.
    stored = (0.8 * (rows - 50) - 0.6 * (columns - 27)).astype(np.float32)
    turn = Turn(*flags)
    shown = turn.to_display(stored)
    square = square_of(*shown.shape)
    # The same distance at the middles of the model's pixels.
    at = (np.arange(24) + 0.5) * square.edge / 24 - 0.5
    down, across = shown[1, 0] - shown[0, 0], shown[0, 1] - shown[0, 0]
    scores = shown[0, 0] + down * (at[:, None] + square.row) + across * (at[None, :] + square.column)
    card = Card.model_validate(card_of(("lung",)) | {"files": {"m.onnx": {"sha256": "0" * 64}}})
    scores = (0.5 + scores[None] / 1000).astype(np.float32)
    [mask] = masks_on_source(card, scores, Frame(Radiograph(shown, 0, 1, turn), square))
    within = np.zeros(shown.shape, bool)
    # Beyond the middle of the model's outermost pixels there is nothing to interpolate.
    rim = square.edge / 48 + 1
    top, left = (max(int(edge + rim), 0) for edge in (square.row, square.column))
    within[top : int(square.row + square.edge - rim), left : int(square.column + square.edge - rim)] = True
    sure = turn.to_source(within) & (np.abs(stored) > 0.5)
    assert sure.sum() > 2000
    assert ((mask == 1) == (stored > 0))[sure].all()


@pytest.mark.parametrize(
    ("attributes", "area", "plane"),
    [
        ({}, 0.16, "detector"),
        ({"PixelSpacing": ["0.4", "0.4"]}, 0.16, "detector"),
        ({"PixelSpacing": ["0.3", "0.2"]}, 0.06, "calibrated"),
        (
            {"ImagerPixelSpacing": None, "PixelSpacing": ["0.3", "0.3"], "PixelSpacingCalibrationType": "FIDUCIAL"},
            0.09,
            "calibrated",
        ),
        ({"ImagerPixelSpacing": None, "PixelSpacing": ["0.3", "0.3"]}, 0.09, "unstated"),
        ({"ImagerPixelSpacing": None}, None, None),
        ({"ImagerPixelSpacing": ["0", "0.4"]}, None, None),
    ],
    ids=str,
)
def test_an_area_is_told_where_the_header_knows_it_with_the_plane_and_never_a_volume(
    tmp_path: Path, attributes: dict[str, Any], area: float | None, plane: str | None
) -> None:
    file = radiograph(tmp_path, picture(), **attributes)
    findings = run(tmp_path, card_of(), levels(), file)
    assert findings.segmentation is not None
    for one, mask in zip(findings.segmentation.segments, findings.segmentation.labels, strict=True):
        assert one.volume_ml is None
        assert one.pixels == np.count_nonzero(mask) > 0
        assert one.area_mm2 == (None if area is None else pytest.approx(one.pixels * area))
        assert one.plane == plane
        assert values_of(findings)[one.name] == (one.area_mm2 or one.pixels)


def test_without_a_threshold_the_largest_score_decides(tmp_path: Path) -> None:
    file = radiograph(tmp_path, picture())
    # The background's score is the highest below 0.5, where all are of one height only in the dark.
    model = levels(at=(0.3, 0.2, 0.9))
    findings = run(tmp_path, card_of() | {"postprocess": []}, model, file)
    assert findings.segmentation is not None
    assert [one.pixels for one in findings.segmentation.segments] == [120 * 200, 0]
    with pytest.raises(EngineFailure, match="3 or more channels"):
        run(tmp_path / "two", card_of() | {"postprocess": []}, levels(), file)
    with pytest.raises(EngineFailure, match="2 channels"):
        run(tmp_path / "three", card_of(), model, file)
    with pytest.raises(EngineFailure, match="not numbers"):
        run(tmp_path / "nan", card_of(), levels(plus=float("nan")), file)


def test_of_several_radiographs_the_first_that_the_card_means_is_marked_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    files = [radiograph(tmp_path / view, picture(), view=view) for view in ("LL", "PA", "AP")]
    findings = run(tmp_path, card_of(), levels(), *files)
    assert findings.images == (files[1].stem,)
    assert any("1 of 3 images" in one and "the first" in one for one in findings.warnings)
    assert any("view" in one for one in findings.warnings)


def test_a_mask_without_a_pixel_or_of_an_impossible_size_is_not_analysed(tmp_path: Path) -> None:
    file = radiograph(tmp_path, picture())
    nothing = run(tmp_path, card_of(), levels(plus=-100.0), file)
    assert nothing.not_analysed is not None
    assert nothing.not_analysed.reason == "empty-mask"
    card = card_of()
    card["outputs"][0]["limits"] = {"area_share": [0.5, 1]}
    small = run(tmp_path / "bounded", card, levels(), file)
    assert small.not_analysed is not None
    assert small.not_analysed.reason == "area-out-of-range"


def test_findings_on_a_radiograph_come_through_the_pipe_as_they_are(tmp_path: Path) -> None:
    findings = run(tmp_path, card_of(), levels(), radiograph(tmp_path, picture()))
    again = findings_from(findings_to(findings, tmp_path / "mask.npy"), tmp_path / "mask.npy")
    assert findings.segmentation is not None
    assert again.segmentation is not None
    assert (again.segmentation.labels == findings.segmentation.labels).all()
    assert replace(again.segmentation, labels=findings.segmentation.labels) == findings.segmentation
    assert 0.2 < findings.statistics["observations"][0]["area_share lung"] < 0.3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "zyx"}, "has nchw"),
        ({"postprocess": [{"keep_components": {"minimum_ml": 1}}]}, "activation and threshold alone"),
        ({"preprocess": [{"clip": {"low": 0, "high": 1}}]}, "exactly one step"),
        ({"tensors": {"image": "image", "output": "scores", "spacing": "spacing"}}, "of radiographs has none"),
    ],
)
def test_a_card_that_would_treat_a_radiograph_as_a_volume_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CardError, match=words):
        load_card(write_model(tmp_path, card_of() | changes, levels()))
    measured = card_of()
    measured["outputs"][0]["limits"] = {"volume_ml": [0, 1]}
    with pytest.raises(CardError, match="area_share in a radiograph"):
        load_card(write_model(tmp_path, measured, levels()))


def test_a_sample_with_overlapping_masks_is_judged_in_the_engines_own_process(tmp_path: Path) -> None:
    file = radiograph(tmp_path / "models" / "levels" / "case", picture())
    found = run(tmp_path, card_of(), levels(), file)
    assert found.segmentation is not None
    uid = str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)
    masks = {"as-before": found.segmentation.labels, "other": np.roll(found.segmentation.labels, 30, axis=2)}
    samples = []
    for name, labels in masks.items():
        with (file.parent.parent / f"{name}.npz").open("wb") as kept:
            write_mask(kept, Segmentation(segments=(), images=(uid, uid), labels=labels))
        area = found.segmentation.segments[0].area_mm2
        samples.append({"name": name, "images": "case", "expect": {"lung": area}, "mask": f"{name}.npz"})
    path = write_model(tmp_path / "models", card_of(samples=samples), levels())
    right, wrong = run_samples(load_card(path))
    assert right.mismatches == ()
    assert [one.partition(":")[0] for one in wrong.mismatches] == ["lung", "heart"]


def test_two_versions_are_compared_by_area_and_by_where_each_has_marked_a_structure() -> None:
    one = {"name": "lung", "volume_ml": None, "pixels": 10, "area_mm2": 1.6}
    assert comparing._sized(one) == ("area", "area_mm2")
    assert comparing._sized(one | {"area_mm2": None}) == ("pixels", "pixels")
    labels = np.zeros((2, 2, 3), np.uint8)
    labels[0, 0], labels[1, :, 0] = 1, 2
    marked = planes_of(Segmentation(segments=(), images=("x", "x"), labels=labels), 1)
    assert (marked["x", 0] == (labels[0] == 1)).all()
