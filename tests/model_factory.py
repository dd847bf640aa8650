"""Makes small models with their cards for tests: real ONNX graphs that segment, classify, hang, grow or break."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from onnx import TensorProto, helper
from onnx.onnx_ml_pb2 import GraphProto, ModelProto

SCT = "SCT"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def code(value: str, meaning: str, scheme: str = SCT) -> dict[str, str]:
    return {"value": value, "scheme": scheme, "meaning": meaning}


def segmentation_card(name: str = "blobs", **changes: Any) -> dict[str, Any]:
    """A card that calls label 1 what is above 200 HU and label 2 what is above 1200 HU."""
    return {
        "name": name,
        "version": "1.0.0",
        "title": "Bright blobs",
        "task": "segmentation",
        "engine": "onnx",
        "intended_use": "tests",
        "limits": ["tests only"],
        "licence": "Apache-2.0",
        "training_data": "none",
        "performance": "exact",
        "made_by": "tests/model_factory.py",
        "inputs": [{"role": "ct", "kind": "volume", "match": {"Modality": "CT"}, "minimum_instances": 2}],
        "tensors": {"image": "hu", "spacing": "spacing", "output": "labels"},
        "slab": {"slices": 8, "overlap": 2},
        "postprocess": [
            {"keep_components": {"minimum_ml": 0.0}},
            {"require_volume": {"minimum_ml": 0.01, "otherwise": "nothing-bright"}},
        ],
        "outputs": [
            {
                "label": 1,
                "name": "right lung",
                "code": code("3341006", "Right lung"),
                "category": code("123037004", "Anatomical Structure"),
                "measure": "volume",
            },
            {
                "label": 2,
                "name": "left lung",
                "code": code("44029006", "Left lung"),
                "category": code("123037004", "Anatomical Structure"),
                "measure": "volume",
            },
        ],
        "not_analysed": {"nothing-bright": {"meaning": "nothing bright in the volume"}},
        "resources": {"seconds": 30, "memory_mb": 2048, "threads": 1},
    } | changes


def classification_card(name: str = "levels", **changes: Any) -> dict[str, Any]:
    """A card whose one finding is how bright a radiograph is on average."""
    return {
        "name": name,
        "version": "1.0.0",
        "title": "Mean brightness",
        "task": "classification",
        "engine": "onnx",
        "intended_use": "tests",
        "limits": "tests only",
        "licence": "Apache-2.0",
        "training_data": "none",
        "performance": "exact",
        "made_by": "tests/model_factory.py",
        "inputs": [
            {
                "role": "radiograph",
                "kind": "radiograph",
                "match": {"Modality": ["CR", "DX"], "not": {"ViewPosition": "LL"}},
                "select": "each",
            }
        ],
        "tensors": {"image": "image", "output": "probability"},
        "preprocess": [{"radiograph_input": {"size": 64}}],
        "outputs": [{"index": 0, "name": "nodule", "code": code("27925004", "Nodule"), "threshold": 0.5}],
        "resources": {"seconds": 30, "memory_mb": 2048, "threads": 1},
    } | changes


def finding(index: int) -> dict[str, Any]:
    """An output of a classification, with a code of its own."""
    return {"index": index, "name": f"finding {index}", "code": code(f"F{index}", "Finding", "99T"), "threshold": 0.5}


def write_model(folder: Path, card: dict[str, Any], model: ModelProto | bytes) -> Path:
    """Write ``<folder>/<name>/card.yaml`` with its model, and return the card's path."""
    place = folder / card["name"]
    place.mkdir(parents=True, exist_ok=True)
    payload = model if isinstance(model, bytes) else model.SerializeToString()
    (place / "model.onnx").write_bytes(payload)
    files = {"model.onnx": {"sha256": hashlib.sha256(payload).hexdigest()}}
    path = place / "card.yaml"
    path.write_text(yaml.safe_dump({"files": files} | card, sort_keys=False), encoding="utf-8")
    return path


def thresholding() -> ModelProto:
    """``hu`` above 200 is 1, above 1200 is 2; ``spacing`` takes part without effect."""
    nodes = [
        helper.make_node("Cast", ["hu"], ["value"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["spacing"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["value", "nothing"], ["all"]),
        helper.make_node("Greater", ["all", "low"], ["first"]),
        helper.make_node("Greater", ["all", "high"], ["second"]),
        helper.make_node("Cast", ["first"], ["one"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["second"], ["two"], to=TensorProto.UINT8),
        helper.make_node("Add", ["one", "two"], ["labels"]),
    ]
    return _segmentation_model(nodes, _constants(zero=0.0, low=200.0, high=1200.0))


def constant_label(label: int) -> ModelProto:
    """The same label everywhere."""
    nodes = [
        helper.make_node("Shape", ["hu"], ["shape"]),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["some"], value=helper.make_tensor("v", TensorProto.UINT8, [1], [label])
        ),
        *_ignored_spacing("some", "labels"),
    ]
    return _segmentation_model(nodes, [])


def _turn(step: str, inputs: list[str], kind: int, shape: list[int | None]) -> GraphProto:
    """One turn of a loop without end: a step on its state, of this type and shape."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node(step, inputs, ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", kind, shape),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", kind, shape),
        ],
    )


def endless() -> ModelProto:
    """A loop of 10^15 turns in C, after which the answer would be zeros."""
    body = _turn("Add", ["state_in", "turn"], TensorProto.INT64, [])
    nodes = [
        helper.make_node("Loop", ["turns", "", "start"], ["end"], body=body),
        helper.make_node("Cast", ["end"], ["end_hu"], to=TensorProto.INT16),
        helper.make_node("Add", ["hu", "end_hu"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["some"], to=TensorProto.UINT8),
        *_ignored_spacing("some", "labels"),
    ]
    return _segmentation_model(
        nodes,
        [
            helper.make_tensor("turns", TensorProto.INT64, [], [10**15]),
            helper.make_tensor("start", TensorProto.INT64, [], [0]),
        ],
    )


def greedy(gigabytes: float) -> ModelProto:
    """Fills this much memory, again and again, before it would answer."""
    count = int(gigabytes * 2**30 / 4)
    body = _turn("Sin", ["state_in"], TensorProto.FLOAT, [None])
    # The size depends on an input, so that it is not folded into a constant when the model is loaded.
    nodes = [
        helper.make_node("Shape", ["spacing"], ["three"]),
        helper.make_node("Mul", ["three", "count"], ["size"]),
        helper.make_node(
            "ConstantOfShape", ["size"], ["block"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
        ),
        helper.make_node("Loop", ["turns", "", "block"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["most_hu"], to=TensorProto.INT16),
        helper.make_node("Add", ["hu", "most_hu"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["labels"], to=TensorProto.UINT8),
    ]
    return _segmentation_model(
        nodes,
        [
            helper.make_tensor("count", TensorProto.INT64, [1], [count // 3]),
            helper.make_tensor("turns", TensorProto.INT64, [], [10**6]),
        ],
    )


def poisoned(kind: str, turns: int = 2_000_000) -> ModelProto:
    """Calls 1 what is above 200 HU; where anything is above 2500 HU it ``hangs``, ``grows`` or ``breaks``.

    One that ``waits`` takes so many turns over whatever it reads, the most of a microsecond each.
    """
    first_turns, more_turns, more_floats, more_label = {
        "hangs": (0, 10**15, 0, 0),
        "grows": (0, 10**6, 250_000_000, 0),
        "breaks": (0, 0, 0, 6),
        "waits": (turns, 0, 0, 0),
    }[kind]
    body = _turn("Sin", ["state_in"], TensorProto.FLOAT, [None])
    nodes = [
        helper.make_node("Cast", ["hu"], ["value"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["value"], ["highest"], keepdims=0),
        helper.make_node("Greater", ["highest", "poison"], ["is_poison"]),
        helper.make_node("Cast", ["is_poison"], ["p"], to=TensorProto.INT64),
        helper.make_node("Mul", ["p", "more_turns"], ["added_turns"]),
        helper.make_node("Add", ["turns", "added_turns"], ["all_turns"]),
        helper.make_node("Mul", ["p", "more_floats"], ["added_floats"]),
        helper.make_node("Add", ["added_floats", "one"], ["size"]),
        helper.make_node(
            "ConstantOfShape", ["size"], ["block"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.0])
        ),
        helper.make_node("Loop", ["all_turns", "", "block"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end"], ["nothing_more"], keepdims=0),
        helper.make_node("Add", ["value", "nothing_more"], ["sum"]),
        helper.make_node("Greater", ["sum", "low"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["marked"], to=TensorProto.UINT8),
        helper.make_node("Mul", ["p", "more_label"], ["added_label"]),
        helper.make_node("Cast", ["added_label"], ["added"], to=TensorProto.UINT8),
        helper.make_node("Add", ["marked", "added"], ["some"]),
        *_ignored_spacing("some", "labels"),
    ]
    return _segmentation_model(
        nodes,
        [
            *_constants(poison=2500.0, low=200.0),
            helper.make_tensor("turns", TensorProto.INT64, [], [first_turns]),
            helper.make_tensor("more_turns", TensorProto.INT64, [], [more_turns]),
            helper.make_tensor("more_floats", TensorProto.INT64, [], [more_floats]),
            helper.make_tensor("more_label", TensorProto.INT64, [], [more_label]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        ],
    )


def mean_brightness(plus: float = 0.0) -> ModelProto:
    """The mean of each image, plus something (NaN, to break)."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "plus"], ["shifted"]),
        helper.make_node("Unsqueeze", ["shifted", "one"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, None, None])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            *_constants(plus=plus),
        ],
    )
    return _model(graph)


def _ignored_spacing(value: str, output: str) -> list[Any]:
    return [
        helper.make_node("ReduceSum", ["spacing"], ["sum_mm"], keepdims=0),
        helper.make_node("Sub", ["sum_mm", "sum_mm"], ["nothing_mm"]),
        helper.make_node("Cast", ["nothing_mm"], ["nothing"], to=TensorProto.UINT8),
        helper.make_node("Add", [value, "nothing"], [output]),
    ]


def _constants(**values: float) -> list[Any]:
    return [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in values.items()]


def _segmentation_model(nodes: list[Any], initializers: list[Any]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "labels",
        [
            helper.make_tensor_value_info("hu", TensorProto.INT16, ["s", "h", "w"]),
            helper.make_tensor_value_info("spacing", TensorProto.FLOAT, [3]),
        ],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, ["s", "h", "w"])],
        initializers,
    )
    return _model(graph)


def _model(graph: GraphProto) -> ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
