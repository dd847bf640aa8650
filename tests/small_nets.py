"""Small convolutional networks as ONNX files, and their quantised twins: quick to load, real to every runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def convolutions(seed: int, size: int = 32, outputs: int = 3) -> onnx.ModelProto:
    """A classifier: ``image`` (n, 1, size, size) to ``probability`` (n, outputs), with ``maps`` (n, 8, size, size)."""
    rng = np.random.default_rng(seed)
    weights = {
        "first": rng.normal(0, 0.5, (8, 1, 3, 3)),
        "second": rng.normal(0, 0.2, (8, 8, 3, 3)),
        "head": rng.normal(0, 1.5, (8, outputs)),
        "bias": rng.normal(0, 0.5, outputs),
    }
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, size, size])],
        [
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", outputs]),
            helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["n", 8, size, size]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def labelling() -> onnx.ModelProto:
    """A segmentation of ncdhw: ``image`` in 0 to 1 to two channels of ``scores``, the second for what is above 0.6."""
    rng = np.random.default_rng(0)
    first = np.zeros((8, 1, 3, 3, 3))
    first[:, 0, 1, 1, 1] = rng.uniform(0.8, 1.2, 8)
    second = np.stack([np.zeros(8), np.full(8, 1 / first.sum())])[:, :, None, None, None]
    weights = {"first": first, "second": second, "bias": np.array([0.6, 0.0])}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], pads=[1] * 6),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second", "bias"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "labelling",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, "d", "h", "w"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, "d", "h", "w"])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantised(model: onnx.ModelProto, images: Sequence[np.ndarray[Any, Any]], *, symmetric: bool) -> bytes:
    """Quantise with ONNX Runtime's own tool: symmetric int8, or its default, asymmetric uint8."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [{"image": one} for one in images]

        def get_next(self) -> dict[str, Any] | None:
            return self._left.pop() if self._left else None

    kind = QuantType.QInt8 if symmetric else QuantType.QUInt8
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            Images(),
            quant_format=QuantFormat.QDQ,
            activation_type=kind,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        return target.read_bytes()
