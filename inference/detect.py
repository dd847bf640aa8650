"""Boxes that a model found in a radiograph, brought back to the pixels of the image as it stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import EngineFailure
from inference.findings import Detection

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.explain import Frame

__all__ = ["box_on_source", "detections_of"]


def detections_of(
    card: Card, answers: Mapping[str, npt.NDArray[Any]], size: int, frame: Frame, image: str
) -> list[Detection]:
    """Return what reaches its output's threshold, the likeliest first; overlapping boxes are the model's own affair.

    Parameters
    ----------
    answers
        ``boxes`` (n, 4) as left, top, right, bottom in pixels of the input, from its outer edge on; ``scores`` (n,),
        0 to 1; ``classes`` (n,), each the ``index`` of an output. A leading axis of one image is allowed.
    size
        Of the square input, in pixels.
    frame
        Where the input lies in the image.

    Raises
    ------
    EngineFailure
        ``broke``, if the shapes do not fit, a value is not a number, or a class has no output.
    """
    boxes, scores, classes = (_without_batch(answers[role], rank) for role, rank in _RANKS.items())
    if boxes.shape != (len(scores), 4) or classes.shape != scores.shape:
        raise EngineFailure(
            "broke",
            f"the model answered boxes {boxes.shape}, scores {scores.shape} and classes {classes.shape}; its card "
            "means (n, 4), (n,) and (n,)",
        )
    if not (np.isfinite(boxes).all() and ((scores >= 0) & (scores <= 1)).all()):
        raise EngineFailure("broke", "the model answered boxes or scores that are not numbers, or scores beyond 0 to 1")
    outputs = {output.index: output for output in card.outputs}
    found = []
    for number in np.argsort(-scores, kind="stable"):
        output = outputs.get(int(classes[number]))
        if output is None:
            raise EngineFailure(
                "broke", f"the model answered class {int(classes[number])}, which its card does not name"
            )
        assert output.threshold is not None
        if scores[number] < output.threshold:
            continue
        box = box_on_source(boxes[number].astype(np.float64), size, frame)
        if box is not None:
            found.append(
                Detection(
                    name=output.name,
                    code=output.code,
                    probability=float(scores[number]),
                    threshold=output.threshold,
                    image=image,
                    box=box,
                )
            )
    return found


_RANKS = {"boxes": 2, "scores": 1, "classes": 1}


def _without_batch(answer: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
    return answer[0] if answer.ndim == rank + 1 and len(answer) == 1 else answer


def box_on_source(box: npt.NDArray[np.float64], size: int, frame: Frame) -> tuple[float, float, float, float] | None:
    """Bring a box over a square input back to the image.

    Parameters
    ----------
    box
        Left, top, right, bottom, in pixels of the input.
    size
        Of the input.
    frame
        Where the input lies in the displayed image, and how that was turned.

    Returns
    -------
    tuple of float or None
        Top, left, bottom, right in stored pixels, cut at the image's edges; None where nothing of it is left.
    """
    square, (rows, columns) = frame.square, frame.radiograph.pixels.shape
    left, top, right, bottom = box * (square.edge / size)
    top, bottom = np.clip(sorted((top + square.row, bottom + square.row)), 0, rows)
    left, right = np.clip(sorted((left + square.column, right + square.column)), 0, columns)
    turn = frame.radiograph.turn
    if turn.rows_mirrored:
        top, bottom = rows - bottom, rows - top
    if turn.columns_mirrored:
        left, right = columns - right, columns - left
    if turn.transposed:
        top, left, bottom, right = left, top, right, bottom
    return (float(top), float(left), float(bottom), float(right)) if bottom > top and right > left else None
