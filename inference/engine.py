"""The port between a workitem and whatever runs a model: a job goes in, findings come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
    """What runs one model over input sets."""

    def run(self, job: Job) -> Findings:
        """Read the input set, run the model, and say what it found.

        Raises
        ------
        EngineFailure
            If there is no answer. Input that the model must not read is no failure: the findings say "not analysed".
        """
        ...


class Model(Protocol):
    """A loaded model: named tensors in, its one output out."""

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Run once.

        Raises
        ------
        EngineFailure
            If the model broke.
        """
        ...


def open_engine(card: Card) -> Engine:
    """Load a card's model on the engine that it names.

    Raises
    ------
    EngineFailure
        If the model's files cannot be loaded.
    """
    if card.engine == "onnx":
        from inference.engines.onnx import OnnxModel
        from inference.perform import CardEngine

        return CardEngine(card, OnnxModel(card))
    raise CardError(f"{card.path}: engine: no engine {card.engine!r}")
