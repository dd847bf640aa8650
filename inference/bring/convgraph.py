"""Writes a chain of 3-D convolutions as an ONNX graph whose memory does not grow with its number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from inference.errors import CardError

if TYPE_CHECKING:
    from onnx.onnx_ml_pb2 import ModelProto

    from inference.bring.tfjs import Convolution

__all__ = ["chain_to_onnx"]

#: Classes that are scored at a time where the graph gives labels: eight volumes of scores instead of one a class.
CLASSES_AT_ONCE = 8
#: Of the normalisation that the exporter of such models leaves to the reader.
EPSILON = 1e-5
_OPERATORS = {"relu": "Relu", "elu": "Elu", "gelu": "Gelu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
#: The first in which Gelu is an operator of its own.
_OPSET = 20


def chain_to_onnx(layers: Sequence[Convolution], *, answer: Literal["labels", "scores"] = "labels") -> ModelProto:
    """Write the layers as an ONNX model; batch norms have no place in it, since the source has none left.

    Parameters
    ----------
    layers
        In order; the last one scores the classes, and is linear.
    answer
        ``labels``: uint8, (n, 1, x, y, z), the class with the highest score (the lowest of equal ones).
        ``scores``: float32, (n, classes, x, y, z).

    Returns
    -------
    onnx.ModelProto
        Input ``image``: float32, (n, 1, x, y, z), any size.

    Raises
    ------
    CardError
        If the channels of the layers do not fit, or there are more classes than a label can name.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    channels = 1
    for layer in layers:
        if layer.kernel.shape[1] != channels:
            raise CardError(f"{layer.name}: reads {layer.kernel.shape[1]} channels, where there are {channels}")
        channels = layer.kernel.shape[0]
    if channels > 256 or layers[-1].activation != "linear" or layers[-1].normalised:
        raise CardError(f"{layers[-1].name}: expected a linear layer of at most 256 classes at the end")
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    value = "image"
    for number, layer in enumerate(layers[:-1]):
        value = _layer(nodes, constant, layer, value, f"layer{number}")
    final = layers[-1]
    if answer == "scores":
        _layer(nodes, constant, final, value, "final", output="scores")
        output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", channels, "x", "y", "z"])
    else:
        _labels(nodes, constant, final, value)
        output = helper.make_tensor_value_info("labels", TensorProto.UINT8, ["n", 1, "x", "y", "z"])
    graph = helper.make_graph(
        nodes,
        "meshnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, "x", "y", "z"])],
        [output],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    checker.check_model(model, full_check=True)
    return model


def _layer(
    nodes: list[Any], constant: Any, layer: Convolution, value: str, name: str, output: str | None = None
) -> str:
    from onnx import helper

    steps = ["Conv", *(["InstanceNormalization"] if layer.normalised else [])]
    if layer.activation != "linear":
        steps.append(_OPERATORS[layer.activation])
    for place, step in enumerate(steps):
        result = output if output and place == len(steps) - 1 else f"{name}.{step}"
        if step == "Conv":
            inputs = [value, constant(f"{name}.kernel", layer.kernel), constant(f"{name}.bias", layer.bias)]
            nodes.append(helper.make_node(step, inputs, [result], **_same(layer)))
        elif step == "InstanceNormalization":
            ones = np.ones(layer.kernel.shape[0], np.float32)
            inputs = [value, constant(f"{name}.scale", ones), constant(f"{name}.shift", 0 * ones)]
            nodes.append(helper.make_node(step, inputs, [result], epsilon=EPSILON))
        else:
            nodes.append(helper.make_node(step, [value], [result]))
        value = result
    return value


def _same(layer: Convolution) -> dict[str, Any]:
    """Return the attributes of a convolution that keeps the grid ("same", the odd voxel of padding at the end)."""
    size = layer.kernel.shape[2:]
    total = [step * (length - 1) for step, length in zip(layer.dilation, size, strict=True)]
    before = [padding // 2 for padding in total]
    after = [padding - first for padding, first in zip(total, before, strict=True)]
    return {"kernel_shape": list(size), "dilations": list(layer.dilation), "pads": before + after}


def _labels(nodes: list[Any], constant: Any, final: Convolution, value: str) -> None:
    """Score some classes at a time, and keep the best score and its class so far.

    A runtime may compute all scores first, since nothing in them needs the best so far, and would hold them all. So
    each bias after the first has 0 added to it, which is what the sizes of the two results before differ by: these are
    known only once they have been computed.
    """
    from onnx import TensorProto, helper

    many = final.kernel.shape[0] > CLASSES_AT_ONCE
    axis = constant("class.axis", np.array([1], np.int64)) if many else ""
    best, label = "", ""
    for start in range(0, final.kernel.shape[0], CLASSES_AT_ONCE):
        name = f"classes{start}"
        some = slice(start, start + CLASSES_AT_ONCE)
        bias = constant(f"{name}.bias", final.bias[some])
        if best:
            for result in (best, label):
                nodes.append(helper.make_node("Shape", [result], [f"{name}.after.{result}"], start=0, end=1))
            sizes = [f"{name}.after.{result}" for result in (best, label)]
            nodes.append(helper.make_node("Sub", sizes, [f"{name}.nothing"]))
            nodes.append(helper.make_node("Cast", [f"{name}.nothing"], [f"{name}.zero"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Add", [bias, f"{name}.zero"], [f"{name}.waited"]))
            bias = f"{name}.waited"
        inputs = [value, constant(f"{name}.kernel", final.kernel[some]), bias]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.scores"], name=f"{name}.score", **_same(final)))
        nodes.append(helper.make_node("ArgMax", [f"{name}.scores"], [f"{name}.place"], axis=1, keepdims=1))
        nodes.append(helper.make_node("Cast", [f"{name}.place"], [f"{name}.small"], to=TensorProto.INT32))
        shift = constant(f"{name}.first", np.array(start, np.int32))
        nodes.append(helper.make_node("Add", [f"{name}.small", shift], [f"{name}.label"]))
        if many:
            nodes.append(helper.make_node("ReduceMax", [f"{name}.scores", axis], [f"{name}.best"], keepdims=1))
        if not best:
            best, label = f"{name}.best", f"{name}.label"
            continue
        nodes.append(helper.make_node("Greater", [f"{name}.best", best], [f"{name}.better"]))
        nodes.append(
            helper.make_node("Where", [f"{name}.better", f"{name}.label", label], [f"{name}.kept"], name=f"{name}.keep")
        )
        nodes.append(helper.make_node("Max", [f"{name}.best", best], [f"{name}.highest"]))
        best, label = f"{name}.highest", f"{name}.kept"
    nodes.append(helper.make_node("Cast", [label], ["labels"], to=TensorProto.UINT8))
