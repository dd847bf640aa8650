"""Boxes that a model found in a radiograph, brought back to the pixels of the image as it stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import EngineFailure
from inference.findings import Detection
from inference.postprocess import as_probabilities

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.explain import Frame

__all__ = ["box_on_input", "box_on_source", "detections_of", "edges_on_input", "in_padding"]


def detections_of(
    card: Card, answers: Mapping[str, npt.NDArray[Any]], size: int, frame: Frame, image: str
) -> tuple[list[Detection], int]:
    """Return what reaches its output's threshold, the likeliest first; overlapping boxes are the model's own affair.

    Parameters
    ----------
    answers
        ``boxes`` (n, 4) over the input, in the card's form; ``scores`` (n,), 0 to 1; ``classes`` (n,), each the
        ``index`` of an output. A leading axis of one image is allowed.
    size
        Of the square input, in pixels.
    frame
        Where the input lies in the image.

    Returns
    -------
    list of Detection
        On the pixels of the image as it stores them.
    int
        How many more boxes reach their threshold and lie wholly in the padding around the picture.

    Raises
    ------
    EngineFailure
        ``broke``, if the shapes do not fit, a value is not a number, a class has no output, or a box that reaches its
        threshold is none of the form that the card means, or lies outside the input.
    """
    boxes, scores, classes = (_without_batch(answers[role], rank) for role, rank in RANKS.items())
    if boxes.shape != (len(scores), 4) or classes.shape != scores.shape:
        raise EngineFailure(
            "broke",
            f"the model answered boxes {boxes.shape}, scores {scores.shape} and classes {classes.shape}; its card "
            "means (n, 4), (n,) and (n,)",
        )
    if not np.isfinite(boxes).all():
        raise EngineFailure("broke", "the model answered boxes that are not numbers")
    if not np.array_equal(classes, np.rint(classes)):
        raise EngineFailure("broke", "the model answered classes that are no whole numbers")
    scores = as_probabilities(scores.astype(np.float64))
    outputs = {output.index: output for output in card.outputs}
    found, padding = [], 0
    for number in np.argsort(-scores, kind="stable"):
        output = outputs.get(int(classes[number]))
        if output is None:
            raise EngineFailure(
                "broke", f"the model answered class {int(classes[number])}, which its card does not name"
            )
        assert output.threshold is not None
        if scores[number] < output.threshold:
            continue
        box = box_on_source(box_on_input(card, boxes[number].astype(np.float64), size), size, frame)
        if box is None:
            padding += 1
            continue
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
    return found, padding


def in_padding(count: int) -> tuple[str, ...]:
    """Say how many boxes were left out, since there is nothing but padding in them; nothing where there are none."""
    if not count:
        return ()
    which = "a box that lies" if count == 1 else f"{count} boxes that lie"
    return (f"The model answered {which} wholly in the padding around the picture: that is no finding.",)


#: The axes of a detector's answers for one image.
RANKS = {"boxes": 2, "scores": 1, "classes": 1}


def _without_batch(answer: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
    return answer[0] if answer.ndim == rank + 1 and len(answer) == 1 else answer


def box_on_input(card: Card, box: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Return a box as left, top, right, bottom in pixels of the input, cut at its edges, from the card's form.

    A box of another form than the card's would lie, plausible, in the wrong place; so what shows it is refused: corners
    that are reversed, edges far beyond the input, and a box that is no pixel large where the others count in shares.

    Parameters
    ----------
    box
        Four numbers, as the model answered them.
    size
        Of the square input, in pixels.

    Raises
    ------
    EngineFailure
        ``broke``, if the box has no area, lies outside the input, or reaches beyond it by more than a tenth of it.
    """
    form = card.boxes
    edges: npt.NDArray[np.float64] = edges_on_input(card, box[None], size)[0]
    first, second, third, fourth = edges
    unit = "in shares of the input" if form.normalised else "in pixels of the input"
    said = f"a box ({', '.join(f'{one:.6g}' for one in box)})"
    meant = f"the card means {_FORMS[form.form]}, {unit} (boxes.form, boxes.normalised)"
    if third <= first or fourth <= second:
        raise EngineFailure("broke", f"the model answered {said} whose corners are reversed or the same; {meant}")
    outside = third <= 0 or fourth <= 0 or first >= size or second >= size
    if outside or edges.min() < -_BEYOND * size or edges.max() > (1 + _BEYOND) * size:
        raise EngineFailure(
            "broke", f"the model answered {said} that lies outside its input of {size} x {size} pixels; {meant}"
        )
    if not form.normalised and max(third, fourth) <= 1 + _BEYOND:
        raise EngineFailure(
            "broke", f"the model answered {said} within the first pixel of its input, as shares of it would; {meant}"
        )
    edges.clip(0, size, out=edges)
    return edges


def edges_on_input(card: Card, boxes: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Return boxes as left, top, right, bottom in pixels of the input, from the card's form; none is refused or cut.

    Parameters
    ----------
    boxes
        As the model answered them: (n, 4).
    size
        Of the square input, in pixels.
    """
    form = card.boxes
    near, far = np.split(boxes * (size if form.normalised else 1), 2, axis=1)
    if form.form == "cxcywh":
        near = near - far / 2
    if form.form != "xyxy":
        far = near + far
    edges: npt.NDArray[np.float64] = np.concatenate([near, far], axis=1)
    return edges


_FORMS = {
    "xyxy": "left, top, right, bottom",
    "xywh": "left, top, width, height",
    "cxcywh": "middle across, middle down, width, height",
}
#: A box is guessed, not measured, and may reach beyond the input by this share of it.
_BEYOND = 0.1


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
        Top, left, bottom, right in stored pixels, cut at the image's edges; None where nothing of it is left, as it
        lies in the padding around the picture.
    """
    square, (rows, columns) = frame.square, frame.radiograph.pixels.shape
    left, top, right, bottom = box * (square.edge / size)
    top, bottom = np.clip((top + square.row, bottom + square.row), 0, rows)
    left, right = np.clip((left + square.column, right + square.column), 0, columns)
    turn = frame.radiograph.turn
    if turn.rows_mirrored:
        top, bottom = rows - bottom, rows - top
    if turn.columns_mirrored:
        left, right = columns - right, columns - left
    if turn.transposed:
        top, left, bottom, right = left, top, right, bottom
    return (float(top), float(left), float(bottom), float(right)) if bottom > top and right > left else None
