"""Where a classifier looked: class activation maps and occlusion, on the pixels of the image as it was received.

*Class activation map* (Zhou et al., CVPR 2016): where the last layer is linear over the average of its feature maps,
the weighted sum of those maps, taken before the average, says exactly how much each place adds to the finding's score.
*Occlusion* (Zeiler and Fergus, ECCV 2014): a square of the input is covered, and what the finding's probability loses
by it belongs to that square. It needs nothing of the model, and as many runs as there are squares.

A map says what moved this model, not where the disease is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import EngineFailure
from inference.findings import HeatMap

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card, Output
    from inference.engine import Model
    from inference.preprocess import Square
    from inference.radiograph import Radiograph

__all__ = ["Frame", "activation_maps", "heat_maps", "occlusion_maps"]

#: From a model's raw answers, shape (images, outputs), to probabilities of the same shape.
Probabilities = Callable[["npt.NDArray[Any]"], "npt.NDArray[np.float64]"]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a model's square input lies: the square, in displayed pixels, and the radiograph as it was turned."""

    radiograph: Radiograph
    square: Square

    def on_source(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Bring a map over the input back to the pixels of the image as it stores them.

        Parameters
        ----------
        values
            Shape (n, n), over the whole input, any n: each value stands for the middle of its n-th part.

        Returns
        -------
        numpy.ndarray
            uint8, (rows, columns) of the source: the largest value becomes 255; what is not above 0, and what the input
            did not show, is 0.
        """
        # Interpolated before the negative part is cut, as the map would be looked at, were it finer.
        shown = self.interpolated(values)
        largest = float(shown.max())
        if largest <= 0:
            return np.zeros(self.radiograph.turn.to_source(self.radiograph.pixels).shape, np.uint8)
        return self.placed(np.clip(shown * (255 / largest), 0, 255).round().astype(np.uint8))

    def interpolated(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return a map over the input on the displayed pixels that the input shows, linear between the map's values.

        Parameters
        ----------
        values
            As in :meth:`on_source`.

        Returns
        -------
        numpy.ndarray
            float32: the displayed image, cropped to the square; :meth:`placed` brings it to the source.
        """
        from PIL import Image

        square = self.square
        whole = Image.fromarray(np.asarray(values, np.float32))
        fine = np.asarray(whole.resize((square.edge, square.edge), Image.Resampling.BILINEAR))
        top, left, bottom, right = self._shown()
        return fine[top - square.row : bottom - square.row, left - square.column : right - square.column]

    def placed(self, shown: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Put what :meth:`interpolated` covers in its place on the source's pixels, uint8 (rows, columns); 0 around."""
        top, left, bottom, right = self._shown()
        displayed = np.zeros(self.radiograph.pixels.shape, np.uint8)
        displayed[top:bottom, left:right] = shown
        return np.ascontiguousarray(self.radiograph.turn.to_source(displayed))

    def _shown(self) -> tuple[int, int, int, int]:
        """Return top, left, bottom, right of what the input shows of the displayed image."""
        square, (rows, columns) = self.square, self.radiograph.pixels.shape
        bottom, right = min(square.row + square.edge, rows), min(square.column + square.edge, columns)
        return max(square.row, 0), max(square.column, 0), bottom, right


def heat_maps(
    card: Card,
    model: Model,
    pixels: npt.NDArray[np.float32],
    answer: Mapping[str, npt.NDArray[Any]],
    probabilities: Probabilities,
    frame: Frame,
    image: str,
) -> list[HeatMap]:
    """Explain one image's findings as the card asks: those that are present, the likeliest first.

    Parameters
    ----------
    pixels
        What the model read, float32 (size, size).
    answer
        What it answered, by role.
    probabilities
        How its answers become probabilities.
    frame
        Where ``pixels`` lie in the image.
    image
        The image's key.

    Raises
    ------
    EngineFailure
        If the model broke, or its feature maps are not what its card says.
    """
    asked = card.explain
    if asked is None:
        return []
    found = probabilities(answer["output"])[0]
    present = [o for o in card.outputs if o.index is not None and found[o.index] >= (o.threshold or 0.0)]
    present = sorted(present, key=lambda output: -float(found[output.index or 0]))[: asked.most]
    if not present:
        return []
    if asked.method == "cam":
        maps = activation_maps(answer["features"], _weights_of(card), [output.index or 0 for output in present])
    else:
        maps = _occluded(card, model, pixels, probabilities, present)
    return [
        HeatMap(name=output.name, code=output.code, image=image, values=frame.on_source(values))
        for output, values in zip(present, maps, strict=True)
    ]


def activation_maps(
    features: npt.NDArray[Any], weights: npt.NDArray[Any] | None, outputs: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return the class activation maps of some outputs.

    Parameters
    ----------
    features
        What the last layer takes the average of, shape (1, channels, rows, columns).
    weights
        Of the last layer, (outputs, channels or more); None where ``features`` hold one map for each output already.
    outputs
        Indices of outputs.

    Returns
    -------
    numpy.ndarray
        float32, (outputs asked for, rows, columns); the mean of each map is its output's score without the bias.

    Raises
    ------
    EngineFailure
        ``broke``, if shapes do not fit or a value is not finite.
    """
    if features.ndim != 4 or features.shape[0] != 1:
        raise EngineFailure("broke", f"the model's features have the shape {features.shape}; expected (1, n, h, w)")
    maps = features[0].astype(np.float32, copy=False)
    if weights is not None:
        if weights.ndim != 2 or weights.shape[0] <= max(outputs) or weights.shape[1] != maps.shape[0]:
            raise EngineFailure(
                "broke", f"explain: weights of the shape {weights.shape} do not fit {maps.shape[0]} feature maps"
            )
        chosen = np.tensordot(weights[list(outputs)].astype(np.float32), maps, axes=1)
    elif maps.shape[0] > max(outputs):
        chosen = maps[list(outputs)]
    else:
        raise EngineFailure("broke", f"the model has {maps.shape[0]} feature maps, and no weights to join them by")
    if not np.isfinite(chosen).all():
        raise EngineFailure("broke", "the model's features are not numbers")
    return np.asarray(chosen, np.float32)


def occlusion_maps(
    infer: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]],
    pixels: npt.NDArray[np.float32],
    size: int,
    batch: int = 1,
) -> npt.NDArray[np.float32]:
    """Return what each output's probability loses where a square of the input is covered by its mean.

    Parameters
    ----------
    infer
        From inputs (n, 1, rows, columns) to probabilities (n, outputs).
    pixels
        The input, float32 (rows, columns).
    size
        Edge of the square in pixels; its places overlap by half.
    batch
        How many inputs go into one run.

    Returns
    -------
    numpy.ndarray
        float32, (outputs, rows, columns): the mean over all squares that cover a pixel.
    """
    rows, columns = pixels.shape
    size = min(size, rows, columns)
    whole = infer(pixels[None, None])[0]
    places = [(top, left) for top in _starts(rows, size) for left in _starts(columns, size)]
    lost = np.zeros((len(whole), rows, columns), np.float32)
    covered = np.zeros((rows, columns), np.float32)
    filling = pixels.mean()
    for chunk in _chunks(places, batch):
        inputs = np.repeat(pixels[None, None], len(chunk), axis=0)
        for one, (top, left) in zip(inputs, chunk, strict=True):
            one[0, top : top + size, left : left + size] = filling
        for answer, (top, left) in zip(infer(inputs), chunk, strict=True):
            lost[:, top : top + size, left : left + size] += (whole - answer).astype(np.float32)[:, None, None]
            covered[top : top + size, left : left + size] += 1
    return lost / covered


def _occluded(
    card: Card, model: Model, pixels: npt.NDArray[np.float32], probabilities: Probabilities, present: Sequence[Output]
) -> npt.NDArray[np.float32]:
    assert card.explain is not None

    def infer(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return probabilities(model.infer({card.tensors["image"]: inputs})["output"])

    maps = occlusion_maps(infer, pixels, card.explain.size, card.batch.maximum)
    return maps[[output.index or 0 for output in present]]


def _weights_of(card: Card) -> npt.NDArray[np.float32] | None:
    """Return the weights of the card's last layer, or None where its features need none."""
    if card.explain is None or card.explain.weights is None:
        return None
    return _loaded(card.directory / card.explain.weights)


@lru_cache(maxsize=8)
def _loaded(path: Path) -> npt.NDArray[np.float32]:
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError) as problem:
        raise EngineFailure("broke", f"explain: {path.name} is no array of weights") from problem


def _starts(length: int, size: int) -> list[int]:
    """Return where squares begin along one axis: every half square, the last one at the edge."""
    return [*range(0, length - size, max(size // 2, 1)), length - size]


def _chunks(places: list[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    for first in range(0, len(places), most):
        yield places[first : first + most]
