"""The way of a segmentation: a volume read, brought to the model's grid, labelled piece by piece, and brought back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.findings import Findings, NotAnalysed, Segment, Segmentation
from inference.imagefile import open_image
from inference.labelling import label_by_slab, label_by_window, marking_of
from inference.outgoing import keeps_text
from inference.postprocess import fill_holes, keep_components, marked_ml, volumes_ml
from inference.roles import read_roles
from inference.statistics import of_volume

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import ImageFile, Model
    from inference.marking import Marking
    from inference.volume import Volume

    Labels = npt.NDArray[np.uint8]

__all__ = ["segment"]


def segment(card: Card, model: Model, input_set: Mapping[str, Sequence[ImageFile]]) -> Findings:
    """Segment one input set by a card.

    Raises
    ------
    InputRefused
        If the images are not what the card means.
    EngineFailure
        If the model broke, or answered what its card does not say.
    """
    read = read_roles(card.inputs, input_set, textless=keeps_text(card))
    volume = read.reference
    first = next(role.role for role in card.inputs if not role.optional)
    inputs = [of_volume(open_image(input_set[first][0]), volume.array, volume.coverage)]
    timed = _Timed(model)
    images = (*read.images, *read.left_out)
    marking = marking_of(card)
    if card.layout == "zyx":
        labels = label_by_slab(card, timed.infer, volume.array, volume.spacing_mm)
    else:
        channels = [read.arrays.get(role.role) for role in card.inputs]
        fields = [read.fields.get(role.role) for role in card.inputs]
        labels = label_by_window(card, timed.infer, channels, volume.grid, marking, fields)
    volume.clear_unscanned(labels)
    refused = _finished(card, labels, volume, marking)
    if refused is not None:
        return Findings(
            images=images,
            coverage=volume.coverage,
            not_analysed=refused,
            warnings=read.unknown,
            statistics={"inputs": inputs},
            seconds=timed.seconds,
        )
    wanted = [output.label for output in card.outputs if output.label is not None]
    volumes = volumes_ml(labels, volume.spacing_mm, wanted, marking)
    segments = tuple(
        Segment(
            label=output.label,
            name=output.name,
            code=output.code,
            category=output.category,
            volume_ml=volumes[output.label],
        )
        for output in card.outputs
        if output.label is not None and output.category is not None
    )
    return Findings(
        images=images,
        segmentation=Segmentation(
            segments=segments,
            images=volume.keys,
            frames=volume.frames,
            labels=volume.to_source(labels),
            together=marking.together,
        ),
        coverage=volume.coverage,
        warnings=(*read.unknown, *read.warnings),
        statistics={"inputs": inputs},
        seconds=timed.seconds,
    )


class _Timed:
    """A model with a watch on it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.seconds = 0.0

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        began = time.perf_counter()
        try:
            return self._model.infer(feeds)["output"]
        finally:
            self.seconds += time.perf_counter() - began


def _finished(card: Card, labels: Labels, volume: Volume, marking: Marking) -> NotAnalysed | None:
    """Do what the card declares for the mask, in place; return the statement that stands in place of it, if any."""
    wanted = [output.label for output in card.outputs if output.label is not None]
    for step in card.postprocess:
        if step.fill_holes:
            fill_holes(np.moveaxis(labels, volume.stack_axis, 0), step.fill_holes.labels or wanted, marking)
        elif step.keep_components:
            rule = step.keep_components
            keep_components(labels, volume.spacing_mm, rule.minimum_ml, rule.minimum_fraction, marking)
        elif step.require_volume and marked_ml(labels, volume.spacing_mm) < step.require_volume.minimum_ml:
            reason = step.require_volume.otherwise
            statement = card.not_analysed[reason]
            return NotAnalysed(reason=reason, text=statement.meaning, code=statement.code)
    return None
