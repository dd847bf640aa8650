"""How far two runtimes' answers of one model lie apart, as the model gives them and by what its card makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.classify import probabilities
from inference.detect import edges_on_input
from inference.errors import EngineFailure
from inference.postprocess import probabilities_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card

    Arrays = Mapping[str, npt.NDArray[Any]]

__all__ = ["distance", "has_boxes"]


def distance(card: Card, one: Arrays, two: Arrays) -> float:
    """Return how far two answers to the same input lie apart.

    Parameters
    ----------
    one, two
        By the role of each tensor, as :meth:`inference.engine.Model.infer` returns them; ``one`` is the exact one.

    Returns
    -------
    float
        Of a classification the largest difference of a probability; of a segmentation the share of voxels with
        another label; of a measurement the largest difference of a value, as a share of it; of a detector the largest
        difference of a score, or of a box's edge as a share of the input's, where a box that the other way does not
        have counts 1. Infinite for answers that are not numbers or not of one shape.
    """
    numbers = all(np.isfinite(answer).all() for each in (one, two) for answer in each.values())
    if card.task == "detection":
        return _of_boxes(card, one, two) if numbers else float("inf")
    first, second = one["output"], two["output"]
    if not numbers or first.shape != second.shape:
        return float("inf")
    if card.task == "segmentation":
        return float(np.mean(_labels(card, first) != _labels(card, second)))
    if card.task == "classification":
        try:
            return float(np.abs(probabilities(card, first) - probabilities(card, second)).max())
        except EngineFailure:  # no probabilities
            return float("inf")
    declared = [output.index for output in card.outputs if output.index is not None]
    if first.ndim != 2 or first.shape[1] <= max(declared):
        return float("inf")
    first, second = (
        probabilities_of(each.astype(np.float64), _activation(card), axis=1)[:, declared] for each in (first, second)
    )
    return float((np.abs(first - second) / np.maximum(np.abs(first), 1e-6)).max())


def has_boxes(answer: Arrays) -> bool:
    """Return whether a detector has answered any box, however unlikely: without one there is nothing to compare."""
    return bool(answer["scores"].size)


def _of_boxes(card: Card, one: Arrays, two: Arrays) -> float:
    step = card.preprocess[0].radiograph_input or card.preprocess[0].torchxrayvision_input
    assert step is not None  # a card of a detector has one of them
    ways = [_boxes(card, each, step.size) for each in (one, two)]
    return max(_missed(card, *ways), _missed(card, *ways[::-1]))


def _boxes(card: Card, answer: Arrays, size: int) -> npt.NDArray[np.float64]:
    """Return rows of class, score, and the four edges as shares of the input's: (n, 6)."""
    # Where the boxes lie, whatever form the card says that they are written in.
    boxes = edges_on_input(card, answer["boxes"].reshape(-1, 4).astype(np.float64), size) / size
    return np.column_stack([answer["classes"].reshape(-1), answer["scores"].reshape(-1), boxes]).astype(np.float64)


def _missed(card: Card, boxes: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """Return the farthest that a box which counts lies from its like among the others.

    Those count that reach their threshold, or where none does the likeliest: the least likely come and go with the
    last digits of a score.
    """
    if not len(boxes):
        return 0.0
    thresholds = {output.index: output.threshold for output in card.outputs}
    counting = [box for box in boxes if box[1] >= (thresholds.get(int(box[0])) or 0.0)]
    farthest = 0.0
    for box in counting or [boxes[boxes[:, 1].argmax()]]:
        like = others[others[:, 0] == box[0]]
        farthest = max(farthest, min(1.0, np.abs(like[:, 1:] - box[1:]).max(axis=1).min()) if len(like) else 1.0)
    return float(farthest)


def _labels(card: Card, answer: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if answer.dtype.kind in "ui":
        return answer
    threshold = next((step.threshold.value for step in card.postprocess if step.threshold), None)
    if threshold is None:
        return np.asarray(answer.argmax(axis=1))
    return np.asarray(probabilities_of(answer.astype(np.float32), _activation(card), axis=1) >= threshold)


def _activation(card: Card) -> str | None:
    return next((step.activation.kind for step in card.postprocess if step.activation), None)
