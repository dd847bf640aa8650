"""Runs ONNX files on ONNX Runtime, with the execution provider that the card prefers and this machine has.

``providers: auto`` means a GPU, where ONNX Runtime has one (CUDA), else the processor, and there what was measured to
be the fastest for this file on this machine (:mod:`inference.engines.choice`), OpenVINO among it; where nothing was
measured, ONNX Runtime's own CPU provider. TensorRT is taken only by name, since it compiles for minutes.

The GPU's options are those that ONNX Runtime documents for its execution providers (onnxruntime.ai/docs).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.engines.choice import Way, read_choice
from inference.engines.device import require_room
from inference.engines.machine import cache_folder, computes_bf16
from inference.engines.modelfile import check_file, failure, model_file
from inference.engines.tensors import Tensor, check_tensors, output_roles
from inference.errors import EngineFailure
from inference.sizing import threads_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import Model
    from inference.engines.onnxfile import OnnxContents

__all__ = ["OnnxModel", "open_model", "open_way"]

_EXECUTION = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_NAMES = {execution: name for name, execution in _EXECUTION.items()}
_AUTO = ("cuda", "openvino", "cpu")
_GPUS = {"cuda", "tensorrt"}
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
} | {f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class OnnxModel:
    """One ONNX Runtime session over the card's ``.onnx`` file; see :class:`inference.engine.Model`.

    Parameters
    ----------
    card
        Names the file and its tensors, which are held against it.
    providers
        Execution providers by preference (``cpu``, ``cuda``, ``tensorrt``, ``openvino``), all of which this build has.
    precision
        The file's own, or what TensorRT and OpenVINO may compute in instead.

    Raises
    ------
    EngineFailure
        ``broke``, if the file cannot be loaded or is not what the card says.
    """

    def __init__(self, card: Card, providers: Sequence[str] = ("cpu",), *, own: str = "fp32", wanted: str = "") -> None:
        import onnxruntime

        self._name = model_file(card, ".onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads_of(card)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between slabs starve the receivers of a small machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if _GPUS & set(providers) and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        try:
            self._session = onnxruntime.InferenceSession(
                str(card.directory / self._name),
                options,
                providers=[(_EXECUTION[name], _provider_options(card, name, wanted or own)) for name in providers],
            )
        except Exception as problem:  # onnxruntime's errors share no public base class
            raise failure(f"{self._name} cannot be loaded", problem) from problem
        check_tensors(card, self._name, _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs()))
        # A provider whose libraries are absent is passed over by ONNX Runtime without an error.
        self.used = _NAMES.get(self._session.get_providers()[0], "cpu")
        self.provider = f"onnxruntime:{self.used.upper()}"
        changes = self.used in ("tensorrt", "openvino") and own == "fp32"
        self.precision = wanted or own if changes else own
        roles = output_roles(card)
        self._roles, self._outputs = list(roles), list(roles.values())
        self._types = {one.name: _TYPES[one.type] for one in self._session.get_inputs() if one.type in _TYPES}

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run once; see :class:`inference.engine.Model`. Several threads may call it at the same time."""
        try:
            given = {
                name: np.ascontiguousarray(value, dtype=self._types.get(name, value.dtype))
                for name, value in feeds.items()
            }
            answers = self._session.run(self._outputs, given)
        except Exception as problem:  # onnxruntime's errors share no public base class
            raise failure(f"{self._name} broke", problem) from problem
        return {role: np.asarray(answer) for role, answer in zip(self._roles, answers, strict=True)}

    def close(self) -> None:
        """Let go of the session, and of a GPU's memory with it."""
        del self._session


def open_model(card: Card) -> Model:
    """Load a card's ONNX file as its ``onnx`` section says and this machine allows.

    Raises
    ------
    EngineFailure
        ``broke``, if the file cannot be loaded, is not what the card says, or none of the card's providers is here.
    """
    import onnxruntime

    from inference.options import Onnx

    options = card.onnx or Onnx()
    file = model_file(card, ".onnx")
    contents = check_file(card, file, options.precision)
    built = {_NAMES[name] for name in onnxruntime.get_available_providers() if name in _NAMES}
    wanted = _AUTO if options.providers == "auto" else options.providers
    on_gpu = _on_gpu(card, [name for name in wanted if name in built], contents)
    if on_gpu is not None:
        return on_gpu
    on_processor = [name for name in wanted if name == "cpu" or (name == "openvino" and _has_openvino(built, contents))]
    if not on_processor:
        raise EngineFailure(
            "broke",
            f"{card.path}: onnx.providers: none of {', '.join(wanted)} is here: install what is missing, or allow cpu",
        )
    if options.providers == "auto":
        choice = read_choice(card, file)
        if choice and choice.way.provider in on_processor and _allowed(choice.way, options.precision, contents):
            return open_way(card, choice.way, contents)
        return open_way(card, Way("cpu", contents.precision), contents)
    precision = contents.precision
    if options.precision in ("bf16", "fp16") and on_processor[0] == "openvino" and precision == "fp32":
        precision = options.precision
    return open_way(card, Way("openvino" if on_processor[0] == "openvino" else "cpu", precision), contents)


def _on_gpu(card: Card, providers: Sequence[str], contents: OnnxContents) -> OnnxModel | None:
    """Load the model on a GPU, or return None where there is none that works: the processor is next then.

    ONNX Runtime goes on without a provider whose libraries or device it cannot find, and fails on others.
    """
    if not _GPUS & set(providers):
        return None
    require_room(card)
    declared = card.onnx.precision if card.onnx else "auto"
    try:
        model = OnnxModel(
            card,
            [*providers, *({"cpu"} - set(providers))],
            own=contents.precision,
            wanted="" if declared == "auto" else declared,
        )
    except EngineFailure:
        # If the file is at fault, the processor will say so too.
        if "cpu" not in providers:
            raise
        return None
    if model.used in _GPUS:
        return model
    model.close()
    return None


def open_way(card: Card, way: Way, contents: OnnxContents) -> Model:
    """Load a card's ONNX file in one given way on the processor.

    OpenVINO is its own package, or the provider of a build of ONNX Runtime that has it; both are never installed
    together, since either overwrites the other's files.
    """
    if way.provider == "cpu":
        return OnnxModel(card, own=contents.precision)
    if importlib.util.find_spec("openvino") is None:
        return OnnxModel(card, ("openvino", "cpu"), own=contents.precision, wanted=way.precision)
    from inference.engines.openvino import OpenVinoModel

    precision = "fp32" if way.precision == "bf16" and not computes_bf16() else way.precision
    return OpenVinoModel(card, precision)


def _has_openvino(built: set[str], contents: OnnxContents) -> bool:
    # Asymmetric integers may end OpenVINO's process while it compiles them.
    there = "openvino" in built or importlib.util.find_spec("openvino") is not None
    return there and contents.integers != "asymmetric"


def _allowed(way: Way, declared: str, contents: OnnxContents) -> bool:
    """Return whether the card lets a measured way run: it may be less precise than the file only where that is said."""
    return way.precision in (contents.precision, declared) or (declared == "auto" and contents.precision == "fp32")


def _provider_options(card: Card, name: str, precision: str) -> dict[str, str]:
    """Return what one execution provider is told; ONNX Runtime takes texts alone."""
    device = str(card.onnx.device if card.onnx else 0)
    limit = card.resources.gpu_memory_mb
    kept = cache_folder()
    if name == "cuda":
        # Growing by what is asked for keeps within the limit what doubling would leave; a search over all algorithms
        # of each convolution costs seconds of every load and memory beyond the limit.
        chosen = {
            "device_id": device,
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0" if precision == "fp32" else "1",
        }
        return chosen | ({"gpu_mem_limit": str(limit * 2**20)} if limit else {})
    if name == "tensorrt":
        chosen = {
            "device_id": device,
            "trt_fp16_enable": str(int(precision == "fp16")),
            "trt_bf16_enable": str(int(precision == "bf16")),
            "trt_int8_enable": str(int(precision == "int8")),
        }
        if kept:
            chosen |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(kept / "tensorrt")}
        return chosen | ({"trt_max_workspace_size": str(limit * 2**20)} if limit else {})
    if name == "openvino":
        chosen = {"device_type": "CPU", "num_of_threads": str(threads_of(card))}
        return chosen | ({"cache_dir": str(kept / "openvino")} if kept else {})
    return {}


def _tensors(declared: Any) -> dict[str, Tensor]:
    return {
        one.name: Tensor(
            name=one.name,
            dtype=_TYPES.get(one.type, one.type),
            # A dimension's name stands for any size. ONNX Runtime gives an unknown rank as no dimensions at all.
            shape=tuple(size if isinstance(size, int) else None for size in one.shape) or None,
        )
        for one in declared
    }
