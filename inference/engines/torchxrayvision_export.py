"""Writes torchxrayvision's networks down: as ONNX, or as weights alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor
    from torch.nn import Module

__all__ = ["answers_of", "export", "save_weights"]


def answers_of(network: Module, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what a network answers about images, float32 (images, 1, rows, columns), in one run."""
    import torch

    with torch.inference_mode():
        answers: npt.NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
    return answers


def save_weights(weights: Mapping[str, Tensor], target: Path) -> None:
    """Write a state dict that loads with ``weights_only=True``."""
    import torch

    torch.save(dict(weights), target)


def export(network: Module, linear: tuple[Module, Module] | None, resolution: int, target: Path) -> None:
    """Write the network as ONNX: scores before any activation, and the maps that a linear last layer averages."""
    import torch

    kept: list[Any] = []
    handle = None if linear is None else linear[0].register_forward_hook(lambda _m, _i, output: kept.append(output))

    class Bare(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Any) -> Any:
            kept.clear()
            scores = self.network(image)
            return (scores, kept[0].relu()) if kept else scores

    points = getattr(network, "op_threshs", None)
    names = ["score"] + (["features"] if linear is not None else [])
    image = torch.zeros(1, 1, resolution, resolution)
    try:
        # Without operating points the library's networks answer scores; the card's steps do the rest.
        if points is not None:
            network.op_threshs = None
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Bare().eval(),
                (image,),
                str(target),
                input_names=["image"],
                output_names=names,
                dynamic_axes={one: {0: "batch"} for one in ["image", *names]},
                opset_version=17,
                dynamo=False,
            )
    finally:
        if points is not None:
            network.op_threshs = points
        if handle is not None:
            handle.remove()
