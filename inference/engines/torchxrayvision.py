"""Runs torchxrayvision's models natively, on torch: the answers are the library's own, bit by bit on a CPU.

A card names the model and holds its weights as a state dict (``.pt``), which is loaded with ``weights_only=True``;
``overread models pull torchxrayvision:NAME --native`` makes both.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.engines.checkpoint import read_checkpoint
from inference.engines.device import require_room
from inference.engines.torchxrayvision_catalogue import build, head_of
from inference.errors import EngineFailure
from inference.sizing import threads_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card

__all__ = ["TorchXRayVisionModel", "open_model"]


class TorchXRayVisionModel:
    """One of the library's networks with a card's weights.

    A classifier's ``output`` is what the library answers: probabilities, stretched by its operating points where it has
    them, or scores where the card's postprocessing makes probabilities of them. ``features`` are the maps that its last
    layer takes the average of.

    Raises
    ------
    EngineFailure
        ``broke``, if the card's weights are not those of its model.
    """

    def __init__(self, card: Card) -> None:
        import torch

        assert card.torchxrayvision is not None
        files = [name for name in card.files if name.endswith(".pt")]
        if len(files) != 1:
            raise EngineFailure("broke", f"{card.path}: files: expected exactly one .pt file, found {len(files)}")
        torch.set_num_threads(threads_of(card))
        self._torch = torch
        self._image = card.tensors["image"]
        self._device = torch.device(card.torchxrayvision.device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise EngineFailure("broke", f"{card.path}: torchxrayvision.device: there is no CUDA device here")
        if self._device.type == "cuda":
            require_room(card)
        self._network = build(card.torchxrayvision.model, read_checkpoint(card.directory / files[0])).to(self._device)
        self._features: Any = None
        self._one_at_a_time = threading.Lock()
        if "features" in card.tensors:
            head = head_of(self._network)
            if head is None:
                raise EngineFailure(
                    "broke", f"{card.path}: tensors.features: {card.torchxrayvision.model} has no linear last layer"
                )
            head[0].register_forward_hook(self._keep)
        self.provider = f"torch:{self._device.type.upper()}"
        self.precision = "fp32"

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run once; see :class:`inference.engine.Model`."""
        try:
            image = self._torch.from_numpy(np.ascontiguousarray(feeds[self._image], np.float32)).to(self._device)
            with self._one_at_a_time, self._torch.inference_mode():
                answers = {"output": self._network(image).cpu().numpy()}
                if self._features is not None:
                    answers["features"] = self._features.relu().cpu().numpy()
                    self._features = None
        except RuntimeError as problem:
            text = " ".join(str(problem).split())[:300]
            starved = "memory" in text.lower()
            raise EngineFailure("overran-memory" if starved else "broke", f"torchxrayvision: {text}") from problem
        return answers

    def close(self) -> None:
        """Let go of the network."""
        del self._network

    def _keep(self, _module: object, _inputs: object, output: Any) -> None:
        self._features = output


def open_model(card: Card) -> TorchXRayVisionModel:
    """Load a card's model; see :class:`TorchXRayVisionModel`."""
    return TorchXRayVisionModel(card)
