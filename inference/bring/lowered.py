"""Rewrites an ONNX file so that it computes with 8-bit integers, or holds its weights in halves.

int8 is static quantisation in the QDQ form: every convolution and matrix product computes with 8-bit integers, whose
scales come from what flows through the model on calibration images (Jacob et al., CVPR 2018). Activations are
symmetric: OpenVINO's process dies of asymmetric ones. fp16 halves the weights, for GPUs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy.typing as npt

    Feeds = dict[str, npt.NDArray[Any]]

__all__ = ["PLANS", "Plan", "halve_file", "has_layers", "quantise_file"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to quantise: how ranges are found, and whether the first and the last layer stay as they are."""

    method: Literal["minmax", "percentile"]
    keep_ends: bool

    def __str__(self) -> str:
        return f"{self.method}{', first and last layer exact' if self.keep_ends else ''}"


#: From the fastest to the most careful.
PLANS = (Plan("minmax", False), Plan("minmax", True), Plan("percentile", True))
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
#: What lies between layers and would else turn every value back to floating point and again to an integer.
_BETWEEN = {
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "GlobalAveragePool",
    "MaxPool",
    "Pad",
    "Relu",
    "Resize",
    "Transpose",
}


def has_layers(path: Path) -> bool:
    """Return whether a file has any layer that can be quantised outside its subgraphs."""
    import onnx

    return any(node.op_type in _LAYERS for node in onnx.load(path, load_external_data=False).graph.node)


def quantise_file(source: Path, target: Path, feeds: Sequence[Feeds], plan: Plan = PLANS[0]) -> None:
    """Write a file that computes with 8-bit integers.

    Parameters
    ----------
    source
        An ONNX file in fp32.
    target
        Beside it, for a moment, lies a folder of what is made on the way.
    feeds
        Inputs of the model by its tensors' names, in which the ranges of the integers are found.
    plan
        The fastest by default.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        # Folds batch normalisation into the convolutions before they are quantised.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        onnx.save(model, prepared)
        layers = [node.name for node in model.graph.node if node.op_type in _LAYERS]
        method = CalibrationMethod.MinMax if plan.method == "minmax" else CalibrationMethod.Percentile
        quantize_static(
            prepared,
            target,
            _reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(_LAYERS | _BETWEEN),
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=method,
            nodes_to_exclude=[layers[0], layers[-1]] if plan.keep_ends else [],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )


def _reader(feeds: Sequence[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives the feeds one after the other, and None at their end."""

        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> Feeds | None:
            return next(self._left, None)

    return Reader()


def halve_file(source: Path, target: Path) -> None:
    """Write a file in fp16, whose inputs and outputs stay fp32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        # Inputs and outputs stay fp32: what the card says of them stays true.
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the tools tell their own developers out of the user's sight."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
