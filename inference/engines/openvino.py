"""Runs ONNX files and OpenVINO's own IR on the CPU with OpenVINO.

Only the front end of the card's own format reads the file: left to itself, OpenVINO tries every front end that it has,
those for TensorFlow and PyTorch among them, on bytes that are no ONNX.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.engines.machine import cache_folder, computes_bf16
from inference.engines.modelfile import check_file, failure, model_file
from inference.engines.tensors import Tensor, check_tensors, output_roles
from inference.errors import EngineFailure
from inference.sizing import threads_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engines.choice import Precision

__all__ = ["OpenVinoModel", "open_model"]

_HINTS = {"fp32": "f32", "int8": "f32", "bf16": "bf16", "fp16": "f16"}
_PRECISIONS = {"f32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16", "f16": "fp16", "float16": "fp16"}


class OpenVinoModel:
    """One compiled model on the CPU; see :class:`inference.engine.Model`.

    Parameters
    ----------
    card
        Names the file (one ``.onnx``, or one ``.xml`` with its ``.bin``) and its tensors.
    precision
        How precisely it may compute. bf16 and fp16 need a processor that has them; int8 is a matter of the file.
    streams
        How many runs the threads are divided among; 1 gives each run all threads.

    Raises
    ------
    EngineFailure
        ``broke``, if the file cannot be loaded, or is not what the card says.
    """

    def __init__(self, card: Card, precision: Precision, *, streams: int = 1) -> None:
        import openvino

        is_onnx = any(name.endswith(".onnx") for name in card.files)
        self._name = model_file(card, ".onnx" if is_onnx else ".xml")
        core = openvino.Core()
        try:
            model = _read_onnx(card, self._name) if is_onnx else _read_ir(card, self._name, core)
        except EngineFailure:
            raise
        except Exception as problem:  # OpenVINO's errors share no public base class
            raise failure(f"{self._name} cannot be loaded", problem) from problem
        check_tensors(card, self._name, _tensors(model.inputs), _tensors(model.outputs))
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads_of(card),
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,
        }
        kept = cache_folder()
        if kept is not None:
            settings["CACHE_DIR"] = str(kept / "openvino")
        try:
            self._compiled = core.compile_model(model, "CPU", settings)
            hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
            #: How many runs there may really be at once.
            self.streams = int(self._compiled.get_property("NUM_STREAMS"))
        except Exception as problem:  # OpenVINO's errors share no public base class
            raise failure(f"{self._name} cannot be compiled", problem) from problem
        self.provider = "openvino:CPU"
        self.precision = "int8" if precision == "int8" else _PRECISIONS.get(hint, hint)
        ports = {name: port for port in self._compiled.outputs for name in port.get_names()}
        self._outputs = {role: ports[tensor] for role, tensor in output_roles(card).items()}
        self._types = {
            name: port.get_element_type().to_dtype() for port in self._compiled.inputs for name in port.get_names()
        }
        self._own = threading.local()

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run once; see :class:`inference.engine.Model`. Each thread that calls has a request of its own."""
        try:
            request = getattr(self._own, "request", None)
            if request is None:
                request = self._own.request = self._compiled.create_infer_request()
            given = {
                name: np.ascontiguousarray(value, dtype=self._types.get(name, value.dtype))
                for name, value in feeds.items()
            }
            answers = request.infer(given, share_inputs=True, share_outputs=True)
            # The request's own memory is written anew by its next run.
            return {role: np.array(answers[port]) for role, port in self._outputs.items()}
        except Exception as problem:  # OpenVINO's errors share no public base class
            raise failure(f"{self._name} broke", problem) from problem

    def close(self) -> None:
        """Let go of the compiled model."""
        self._own = threading.local()
        self._outputs.clear()
        del self._compiled


def open_model(card: Card) -> OpenVinoModel:
    """Load a card's model on OpenVINO, as precisely as its ``openvino`` section says.

    Raises
    ------
    EngineFailure
        ``broke``, if the file cannot be loaded, or is not what the card says.
    """
    from inference.options import OpenVino

    options = card.openvino or OpenVino()
    precision: Precision = "fp32" if options.precision == "auto" else options.precision
    if any(name.endswith(".onnx") for name in card.files):
        file = model_file(card, ".onnx")
        contents = check_file(card, file, options.precision)
        if contents.integers == "asymmetric":
            raise EngineFailure(
                "broke",
                f"{card.path}: {file} is quantised with unsigned or asymmetric integers, which may end OpenVINO's "
                "process: quantise it with symmetric int8 activations, or use the engine onnx",
            )
        if contents.integers:
            precision = "int8"
    if precision == "bf16" and not computes_bf16():
        precision = "fp32"
    return OpenVinoModel(card, precision, streams=options.streams)


def _read_onnx(card: Card, name: str) -> Any:
    from openvino.frontend import FrontEndManager

    end = FrontEndManager().load_by_framework("onnx")
    return end.convert(end.load(str(card.directory / name)))


def _read_ir(card: Card, name: str, core: Any) -> Any:
    weights = model_file(card, ".bin")
    if weights != name.removesuffix(".xml") + ".bin":
        raise EngineFailure("broke", f"{card.path}: files: {name} goes with a .bin of the same name, found {weights}")
    with (card.directory / name).open("rb") as stream:
        if stream.read(5) not in (b"<?xml", b"<net "):
            raise EngineFailure("broke", f"{name} is no OpenVINO IR: export the model again")
    return core.read_model(str(card.directory / name), str(card.directory / weights))


def _tensors(ports: Any) -> dict[str, Tensor]:
    found = {}
    for port in ports:
        partial = port.get_partial_shape()
        shape = None
        if not partial.rank.is_dynamic:
            shape = tuple(None if one.is_dynamic else one.get_length() for one in partial)
        dtype = np.dtype(port.get_element_type().to_dtype()).name
        for name in port.get_names():
            found[name] = Tensor(name=name, dtype=dtype, shape=shape)
    return found
