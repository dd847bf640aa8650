"""Boxes lie on the same pixels of the stored image that the model saw, however it was turned, padded and scaled."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.onnx_ml_pb2 import ModelProto

from inference.card import load_card
from inference.detect import box_on_source
from inference.engine import ImageFile, Job, open_engine
from inference.errors import EngineFailure
from inference.explain import Frame
from inference.findings import Findings
from inference.preprocess import centre_crop, padded_square
from inference.radiograph import Radiograph, Turn
from tests.dicom_factory import radiograph
from tests.model_factory import classification_card, code, write_model


def detector(boxes: list[list[float]], scores: list[float], classes: list[int]) -> ModelProto:
    """Answer these, whatever it is shown."""
    given = [
        helper.make_tensor("b", TensorProto.FLOAT, [len(boxes), 4], np.ravel(boxes).tolist()),
        helper.make_tensor("s", TensorProto.FLOAT, [len(scores)], scores),
        helper.make_tensor("c", TensorProto.INT64, [len(classes)], classes),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["b", "nothing"], ["boxes"]),
        helper.make_node("Add", ["s", "nothing"], ["scores"]),
        helper.make_node("Identity", ["c"], ["classes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 64, 64])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [len(boxes), 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [len(scores)]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, [len(classes)]),
        ],
        [*given, helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(
    tmp_path: Path, model: ModelProto, pixels: np.ndarray, boxes: dict[str, Any] | None = None, **attributes: Any
) -> Findings:
    card = classification_card(
        task="detection",
        boxes=boxes or {},
        tensors={"image": "image", "boxes": "boxes", "scores": "scores", "classes": "classes"},
        outputs=[{"index": 1, "name": "nodule", "code": code("27925004", "Nodule"), "threshold": 0.5}],
    )
    path = write_model(tmp_path / "models", card, model)
    file = radiograph(tmp_path / "image", pixels, **attributes)
    engine = open_engine(load_card(path))
    try:
        return engine.run(Job(path, {"radiograph": (ImageFile("one", file),)}))
    finally:
        engine.close()


def picture(rows: int = 100, columns: int = 200) -> np.ndarray:
    return np.arange(rows * columns).reshape(rows, columns) % 4000


def test_boxes_that_reach_their_threshold_come_back_on_the_stored_pixels(tmp_path: Path) -> None:
    # 100 x 200 is padded by 50 rows at both ends to 200 x 200 and brought to 64 x 64.
    model = detector([[16, 24, 32, 40], [0, 0, 64, 64]], [0.6, 0.9], [1, 1])
    found = run(tmp_path, model, picture()).detections
    assert [one.probability for one in found] == pytest.approx([0.9, 0.6])
    assert found[0].box == pytest.approx((0, 0, 100, 200))
    assert found[1].box == pytest.approx((25, 50, 75, 100))
    assert (found[0].image, found[0].name) == ("one", "nodule")


def test_what_is_not_likely_enough_is_no_finding_and_what_lies_in_the_padding_is_told(tmp_path: Path) -> None:
    model = detector([[16, 24, 32, 40], [0, 0, 64, 10], [0, 55, 64, 66]], [0.4, 0.9, 0.8], [1, 1, 1])
    findings = run(tmp_path, model, picture())
    assert findings.detections == ()
    assert [words for words in findings.warnings if "padding" in words] == [
        "The model answered 2 boxes that lie wholly in the padding around the picture: that is no finding."
    ]


@pytest.mark.parametrize(
    ("form", "box"),
    [
        ({"form": "xywh"}, [16, 24, 16, 16]),
        ({"form": "cxcywh"}, [24, 32, 16, 16]),
        ({"normalised": True}, [0.25, 0.375, 0.5, 0.625]),
        ({"form": "cxcywh", "normalised": True}, [0.375, 0.5, 0.25, 0.25]),
    ],
)
def test_boxes_are_read_in_the_form_that_the_card_says(tmp_path: Path, form: dict[str, Any], box: list[float]) -> None:
    found = run(tmp_path, detector([box], [1 + 1e-7], [1]), picture(), boxes=form).detections
    assert found[0].box == pytest.approx((25, 50, 75, 100), abs=1e-3)
    # What rounding put above 1 is 1.
    assert found[0].probability == 1


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "words"),
    [
        ([[0, 0, 1, float("nan")]], [0.9], [1], "not numbers"),
        ([[0, 0, 9, 9]], [1.5], [1], "not 0 to 1"),
        ([[0, 0, 9, 9]], [0.9], [7], "class 7, which its card does not name"),
        ([[32, 24, 16, 40]], [0.9], [1], "reversed"),
        ([[16, 40, 32, 24]], [0.9], [1], "reversed"),
        ([[16, 24, 16, 40]], [0.9], [1], "the same"),
        ([[70, 24, 74, 40]], [0.9], [1], "lies outside its input of 64 x 64"),
        ([[-5, 24, -1, 40]], [0.9], [1], "card means left, top, right, bottom, in pixels"),
        ([[-1e9, -1e9, 1e9, 1e9]], [0.9], [1], "lies outside"),
        ([[0.1, 0.4, 0.5, 0.6]], [0.9], [1], "as shares of it"),
    ],
)
def test_an_answer_that_makes_no_sense_is_the_models_failure(
    tmp_path: Path, boxes: list[list[float]], scores: list[float], classes: list[int], words: str
) -> None:
    with pytest.raises(EngineFailure, match=words):
        run(tmp_path, detector(boxes, scores, classes), picture())


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("square_of", [padded_square, centre_crop])
def test_a_box_covers_what_it_covered_in_the_input(flags: tuple[bool, bool, bool], square_of: Any) -> None:
    stored = np.zeros((90, 60), np.float32)
    stored[30:40, 20:45] = 1
    turn = Turn(*flags)
    displayed = turn.to_display(stored)
    square = square_of(*displayed.shape)
    frame = Frame(Radiograph(displayed, 0, 1, turn), square)
    where = np.argwhere(displayed)
    top, left = where.min(0) - (square.row, square.column)
    bottom, right = where.max(0) + 1 - (square.row, square.column)
    scale = 32 / square.edge
    box = box_on_source(np.array([left, top, right, bottom]) * scale, 32, frame)
    assert box == pytest.approx((30, 20, 40, 45))
