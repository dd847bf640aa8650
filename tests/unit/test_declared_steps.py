"""Every step that a card declares is done, or the card is refused: none is read and forgotten."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.onnx_ml_pb2 import ModelProto

from inference.card import load_card
from inference.declared import POSTPROCESS
from inference.engine import ImageFile, Job, open_engine
from inference.errors import CardError
from inference.findings import Findings
from tests.dicom_factory import ct_series, radiograph
from tests.model_factory import classification_card, code, segmentation_card, write_model

STEPS: dict[str, dict[str, Any]] = {
    "activation": {"kind": "sigmoid"},
    "threshold": {"value": 0.9},
    "calibrate": {"thresholds": [0.9]},
    "keep_components": {"minimum_ml": 0.5},
    "fill_holes": {},
    "require_volume": {"minimum_ml": 1000, "otherwise": "too-little"},
}
COMBINATIONS = [(*way, step) for way in POSTPROCESS for step in STEPS]
OUTPUT = {
    "label": 1,
    "name": "box",
    "code": code("123456", "Box", "99TEST"),
    "category": code("123037004", "Body Structure"),
}
FLAT = {
    "classification": {"index": 0, "name": "x", "code": code("27925004", "Nodule"), "threshold": 0.5},
    "measurement": {"index": 0, "name": "x", "code": code("27925004", "Nodule"), "unit": code("1", "no units", "UCUM")},
    "detection": {"index": 0, "name": "x", "code": code("27925004", "Nodule"), "threshold": 0.5},
}


def graph(layout: str, task: str = "segmentation", channels: int = 1) -> ModelProto:
    """A box's brightness is the score: half of the image's values; of labels, 1 is what is above 200 HU."""
    number = TensorProto.FLOAT
    if layout == "zyx":
        nodes = [
            helper.make_node("Cast", ["image"], ["v"], to=number),
            helper.make_node("Greater", ["v", "k"], ["b"]),
            helper.make_node("Cast", ["b"], ["output"], to=TensorProto.UINT8),
        ]
        given, answer, kinds, k = ["d", "h", "w"], ["d", "h", "w"], (TensorProto.INT16, TensorProto.UINT8), 200.0
    elif task != "segmentation":
        nodes = [
            helper.make_node("GlobalAveragePool", ["image"], ["g"]),
            helper.make_node("Flatten", ["g"], ["f"], axis=1),
            helper.make_node("Mul", ["f", "k"], ["output"]),
        ]
        given, answer, kinds, k = ["n", 1, 64, 64], ["n", 1], (number, number), 0.5
    else:
        nodes = [helper.make_node("Mul", ["image", "k"], ["output"])]
        axes = ["d", "h", "w"] if layout == "ncdhw" else [64, 64]
        given, answer, kinds, k = ["n", 1, *axes], ["n", channels, *axes], (number, number), 0.7
    made = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("image", kinds[0], given)],
        [helper.make_tensor_value_info("output", kinds[1], answer)],
        [helper.make_tensor("k", number, [], [k])],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def card_of(task: str, layout: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    words = {"too-little": {"meaning": "too little"}}
    tensors = {"image": "image", "output": "output"}
    if layout == "nchw":
        card = classification_card(task=task, postprocess=steps, tensors=tensors, not_analysed=words)
        if task == "segmentation":
            return card | {"layout": "nchw", "outputs": [OUTPUT]}
        if task == "detection":
            card["tensors"] = {"image": "image", "boxes": "output", "scores": "s", "classes": "c"}
        return card | {"outputs": [FLAT[task]]}
    card = segmentation_card(tensors=tensors, postprocess=steps, outputs=[OUTPUT], not_analysed=words, layout=layout)
    if layout == "ncdhw":
        del card["slab"]
        card["preprocess"] = [{"scale": {"low": -1000, "high": 1000}}]
    return card


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ImageFile, ...]]:
    folder = tmp_path_factory.mktemp("images")
    hu = np.full((8, 20, 20), -1000.0)
    hu[2:6, 3:15, 3:15] = 1000
    hu[2:6, 7:9, 7:9] = -1000
    hu[3, 17:19, 17:19] = 1000
    pixels = np.zeros((64, 64))
    pixels[20:40, 20:40] = 4000
    series = ct_series(folder / "ct", hu, spacing=(2.5, 2.0, 2.0))
    return {
        "ct": tuple(ImageFile(path.stem, path) for path in series),
        "radiograph": (ImageFile("one", radiograph(folder / "x", pixels)),),
    }


def answer(folder: Path, task: str, layout: str, steps: list[dict[str, Any]], images: dict[str, Any]) -> Any:
    path = write_model(folder, card_of(task, layout, steps), graph(layout, task))
    engine = open_engine(load_card(path))
    role = "radiograph" if layout == "nchw" else "ct"
    try:
        findings: Findings = engine.run(Job(path, {role: images[role]}))
    finally:
        engine.close()
    if findings.segmentation is not None:
        return findings.segmentation.labels.tobytes()
    told = [c.probability for c in findings.classifications] + [m.value for m in findings.measurements]
    return findings.not_analysed and findings.not_analysed.reason, told


@pytest.mark.parametrize(("task", "layout", "step"), COMBINATIONS)
def test_a_declared_step_is_done_or_its_card_is_refused(
    tmp_path: Path, images: dict[str, Any], task: str, layout: str, step: str
) -> None:
    declared = [{step: STEPS[step]}]
    if step not in POSTPROCESS[task, layout]:
        path = write_model(tmp_path, card_of(task, layout, declared), graph(layout, task))
        with pytest.raises(CardError, match=f"postprocess: {step}: a {task} of .* has .*: its "):
            load_card(path)
        return
    # One channel of scores is decided on by a threshold, whatever else is done: 0.7 reaches it, its sigmoid does not.
    decided = [{"threshold": {"value": 0.68}}] if layout != "zyx" and task == "segmentation" else []
    after = {"activation": [*declared, *decided], "threshold": declared}.get(step, [*decided, *declared])
    assert answer(tmp_path, task, layout, after, images) != answer(tmp_path, task, layout, decided, images)


def mirrored(*axes: int) -> dict[str, Any]:
    return {"size": [16, 16, 16], "mirror": list(axes)}


VOLUME, LABELS = ("segmentation", "ncdhw"), ("segmentation", "zyx")
SIGMOID, SOFTMAX = ({"activation": {"kind": kind}} for kind in ("sigmoid", "softmax"))
RESAMPLED = [{"resample": {"spacing_mm": [edge] * 3}} for edge in (1, 2)]
TURNED = [{"orient": {"axes": "RAS"}}]
LUNGS = [OUTPUT, OUTPUT | {"label": 2, "name": "left_lung", "code": code("44029006", "Lung")}]
CODED = [OUTPUT | {"code": code("3341006", "RightLung")}]
SPACED = {"image": "image", "output": "output", "spacing": "s"}


@pytest.mark.parametrize(
    ("way", "changes", "words"),
    [
        (VOLUME, {"postprocess": [SOFTMAX, SIGMOID]}, "activation: stands 2 times"),
        (VOLUME, {"postprocess": [{"fill_holes": {}}, {"threshold": {}}]}, "expected activation first"),
        (
            ("classification", "nchw"),
            {"postprocess": [{"calibrate": {"thresholds": [0.1]}}, SIGMOID]},
            "expected activation first",
        ),
        (
            ("segmentation", "nchw"),
            {"postprocess": [{"threshold": {"overlap": "last"}}]},
            "threshold.overlap: in a radiograph",
        ),
        (LABELS, {"postprocess": [{"fill_holes": {"labels": [1, 7]}}]}, "fill_holes.labels: names a label"),
        (("classification", "nchw"), {"layout": "nchw"}, "layout: only a segmentation has one"),
        (("measurement", "nchw"), {"layout": "ncdhw"}, "layout: only a segmentation has one"),
        (("detection", "nchw"), {"layout": "nchw"}, "layout: only a segmentation has one"),
        (VOLUME, {"preprocess": RESAMPLED}, "resample: stands 2 times"),
        (VOLUME, {"tensors": SPACED}, "tensors.spacing: a graph of layout ncdhw"),
        (VOLUME, {"outputs": LUNGS, "window": mirrored(2)}, "window.mirror: axis 2 runs between .* 'left_lung'"),
        (VOLUME, {"outputs": CODED, "preprocess": TURNED, "window": mirrored(1, 0)}, "window.mirror: axis 0 runs"),
    ],
)
def test_what_would_be_done_in_part_is_refused_with_its_key(
    tmp_path: Path, way: tuple[str, str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CardError, match=words):
        load_card(write_model(tmp_path, card_of(*way, []) | changes, graph(way[1], way[0])))


@pytest.mark.parametrize(
    ("name", "sided"),
    [
        *[
            (name, True)
            for name in ("lung_l", "lung-R", "LungL", "leftlung", "LUNGRIGHT", "hippocampus_lh", "ctx-rh-v1")
        ],
        *[
            (name, False)
            for name in ("lungs", "vertebrae_L1", "cleft palate", "bright spots", "l_spine", "oral", "pR2")
        ],
    ],
)
def test_a_side_is_known_however_a_name_is_written(tmp_path: Path, name: str, sided: bool) -> None:
    changes = {"outputs": [OUTPUT | {"name": name}], "window": mirrored(2)}
    path = write_model(tmp_path, card_of(*VOLUME, []) | changes, graph("ncdhw"))
    with pytest.raises(CardError, match=f"and '{name}' is of one side") if sided else nullcontext():
        load_card(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": LUNGS, "window": mirrored(0, 1)},
        {"outputs": LUNGS, "preprocess": TURNED, "window": mirrored(1, 2)},
        {"window": mirrored(0, 1, 2)},
    ],
    ids=["not across", "not across when turned", "no side"],
)
def test_flips_are_taken_that_leave_each_side_its_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    card = load_card(write_model(tmp_path, card_of(*VOLUME, []) | changes, graph("ncdhw")))
    assert card.window is not None
    assert card.window.mirror
