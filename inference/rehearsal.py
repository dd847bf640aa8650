"""One run of a model on a made-up input: what cannot answer noise in its card's own form will answer no study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference.classify import probabilities
from inference.errors import EngineFailure, InputRefused
from inference.grid import Grid
from inference.labelling import label_by_slab, label_by_window
from inference.marking import Marking
from inference.segment2d import scores_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import Model

__all__ = ["rehearse"]

#: Of a volume whose size the card leaves open: planes, rows and columns.
_SHAPE = (64, 64, 64)
_SLICES = 32


def rehearse(card: Card, model: Model) -> None:
    """Run a model once on noise of the declared size, and hold what it answers against the card.

    Of a volume that is one window, or a small volume. What a mask looks like is not judged, nor where boxes lie: noise
    shows nothing.

    Raises
    ------
    EngineFailure
        ``broke``, if it breaks, or its answer has another shape, values that are no numbers, or no probabilities where
        those are meant.
    """
    try:
        if card.inputs[0].kind == "radiograph":
            _radiograph(card, model)
        else:
            _volume(card, model)
    except InputRefused:
        # The steps before the model take no noise; then nothing was learnt.
        return
    except EngineFailure as problem:
        raise EngineFailure(problem.reason, f"on a made-up input, {problem.text}") from problem


def _radiograph(card: Card, model: Model) -> None:
    step = card.preprocess[0]
    noise = np.random.default_rng(0).random
    if step.radiograph_input:
        image = noise((1, 1, step.radiograph_input.size, step.radiograph_input.size), np.float32)
    else:
        assert step.torchxrayvision_input is not None, "a card of radiographs has one of the two"
        size = step.torchxrayvision_input.size
        image = 2048 * noise((1, 1, size, size), np.float32) - 1024
    answers = model.infer({card.tensors["image"]: image})
    if card.task == "classification":
        probabilities(card, answers["output"])
    elif card.task == "segmentation":
        scores_of(card, answers["output"])
    elif any(not np.isfinite(answer).all() for answer in answers.values()):
        raise EngineFailure("broke", "the model answered values that are not numbers")


def _volume(card: Card, model: Model) -> None:
    def infer(feeds: Any) -> npt.NDArray[Any]:
        return model.infer(feeds)["output"]

    shape, spacing = _SHAPE, (1.5, 1.5, 1.5)
    for step in card.preprocess:
        shape = step.crop_or_pad.shape if step.crop_or_pad else shape
        spacing = step.resample.spacing_mm if step.resample else spacing
    if card.layout == "zyx":
        slices = min(_SLICES, card.slab.slices) if card.slab else _SLICES
        label_by_slab(card, infer, _noise((slices, *shape[1:])), spacing)
        return
    shape = card.window.size if card.window else shape
    volume = _noise(shape)
    labels = [output.label for output in card.outputs if output.label is not None]
    # Channels that noise wakes together say nothing against the card.
    marking = Marking(labels, "last", key="threshold.overlap")
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    label_by_window(card, infer, [volume] * len(card.inputs), grid, marking)


def _noise(shape: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    """Return values between air and soft tissue."""
    return np.random.default_rng(0).integers(-1000, 400, shape, dtype=np.int16)
