"""The port between a workitem and whatever runs a model: a job goes in, findings come out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from inference.errors import CardError

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.findings import Findings

__all__ = ["Engine", "ImageFile", "Job", "Model", "open_engine"]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image: the key that findings name it by (the node gives its SOP Instance UID), and where its bytes lie."""

    key: str
    path: Path


@dataclass(frozen=True, slots=True)
class Job:
    """One input set for one model: role to the images that fill it."""

    card_path: Path
    input_set: dict[str, tuple[ImageFile, ...]]


class Engine(Protocol):
    """What runs one model over input sets, from several threads at once where its card says so."""

    def run(self, job: Job) -> Findings:
        """Read the input set, run the model, and say what it found.

        Raises
        ------
        EngineFailure
            If there is no answer. Input that the model must not read is no failure: the findings say "not analysed".
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Model(Protocol):
    """A loaded model: named tensors in, its outputs out.

    ``provider`` and ``precision`` say what really runs it (``onnxruntime:CPU``, ``fp32``).
    """

    @property
    def provider(self) -> str: ...  # noqa: D102

    @property
    def precision(self) -> str: ...  # noqa: D102

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run once.

        Parameters
        ----------
        feeds
            By the tensors' own names, as the card's ``tensors`` has them.

        Returns
        -------
        dict
            By role: ``output``, and ``features``, ``boxes``, ``scores``, ``classes`` where the card names them.

        Raises
        ------
        EngineFailure
            If the model broke.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


#: Engine to its module in :mod:`inference.engines`: it has ``open_model`` where it runs tensors, else ``open_engine``.
_MODULES = {
    "onnx": "onnx",
    "openvino": "openvino",
    "torchxrayvision": "torchxrayvision",
    "kserve": "kserve",
    "monai-bundle": "monai_bundle",
    "command": "command",
}


def open_engine(card: Card) -> Engine:
    """Load a card's model on the engine that it names.

    Raises
    ------
    CardError
        If what the engine needs is not installed.
    EngineFailure
        If the model's files cannot be loaded.
    """
    from inference.batching import shared
    from inference.card import TENSOR_ENGINES
    from inference.extras import lacking
    from inference.perform import CardEngine, GatedEngine

    try:
        module = importlib.import_module(f"inference.engines.{_MODULES[card.engine]}")
        if card.engine in TENSOR_ENGINES:
            model = cast("Model", module.open_model(card))
            # A server takes what comes, and joins it itself.
            return CardEngine(card, model) if card.engine == "kserve" else shared(card, model)
        return GatedEngine(card, cast("Engine", module.open_engine(card)))
    except ModuleNotFoundError as absent:
        raise CardError(f"{card.path}: engine: {card.engine} {lacking(absent)}") from absent
