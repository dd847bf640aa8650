"""Runs ONNX files on ONNX Runtime's CPU provider."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import EngineFailure

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card

__all__ = ["OnnxModel", "open_model"]

#: Roles of a card's ``tensors`` that a model answers with.
OUTPUTS = frozenset({"output", "features", "boxes", "scores", "classes"})


class OnnxModel:
    """One ONNX Runtime session over the card's ``.onnx`` file; tensors are checked against the card when it opens.

    Raises
    ------
    EngineFailure
        ``broke``, if the file cannot be loaded or lacks a tensor that the card names.
    """

    def __init__(self, card: Card) -> None:
        import onnxruntime

        files = [name for name in card.files if name.endswith(".onnx")]
        if len(files) != 1:
            raise EngineFailure("broke", f"{card.path}: files: expected exactly one .onnx file, found {len(files)}")
        self._name = files[0]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = card.resources.threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between slabs starve the receivers of a small machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(card.directory / self._name), options, providers=["CPUExecutionProvider"]
            )
        except Exception as problem:  # onnxruntime's errors share no public base class
            raise _failure(f"{self._name} cannot be loaded", problem) from problem
        inputs = [tensor.name for tensor in self._session.get_inputs()]
        outputs = [tensor.name for tensor in self._session.get_outputs()]
        for role, tensor in card.tensors.items():
            kind, there = ("output", outputs) if role in OUTPUTS else ("input", inputs)
            if tensor not in there:
                raise EngineFailure(
                    "broke",
                    f"{card.path}: tensors.{role}: {self._name} has no {kind} {tensor!r} "
                    f"(its {kind}s: {', '.join(there) or 'none'})",
                )
        unfed = [tensor for tensor in inputs if tensor not in card.tensors.values()]
        if unfed:
            raise EngineFailure(
                "broke", f"{card.path}: tensors: {self._name} wants an input {unfed[0]!r} that no key of it names"
            )
        self._roles = [role for role in card.tensors if role in OUTPUTS]
        self._outputs = [card.tensors[role] for role in self._roles]
        self.provider = "onnxruntime:CPU"
        self.precision = "fp32"

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run once; see :class:`inference.engine.Model`."""
        try:
            answers = self._session.run(self._outputs, dict(feeds))
        except Exception as problem:  # onnxruntime's errors share no public base class
            raise _failure(f"{self._name} broke", problem) from problem
        return {role: np.asarray(answer) for role, answer in zip(self._roles, answers, strict=True)}

    def close(self) -> None:
        """Let go of the session."""
        del self._session


def open_model(card: Card) -> OnnxModel:
    """Load a card's ONNX file."""
    return OnnxModel(card)


def _failure(what: str, problem: Exception) -> EngineFailure:
    text = " ".join(str(problem).split())[:300]
    starved = isinstance(problem, MemoryError) or any(
        sign in text.lower() for sign in ("allocate memory", "bad_alloc", "bad allocation")
    )
    return EngineFailure("overran-memory" if starved else "broke", f"{what}: {text or type(problem).__name__}")
