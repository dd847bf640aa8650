"""The way of one input set through a model: read, prepare, infer, clean up, and say what was found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import EngineFailure, InputRefused
from inference.findings import Classification, Findings, NotAnalysed, Segment, Segmentation
from inference.matching import evaluate, keywords

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import ImageFile, Job, Model
    from inference.volume import Volume

__all__ = ["CardEngine", "slabs"]


class CardEngine:
    """An engine (:class:`inference.engine.Engine`) that follows one card over one loaded model."""

    def __init__(self, card: Card, model: Model) -> None:
        self._card = card
        self._model = model

    def run(self, job: Job) -> Findings:
        """Run one job; input that must not be read becomes "not analysed", with its reason.

        Raises
        ------
        EngineFailure
            If the model broke or answered what its card does not say.
        """
        role = self._card.inputs[0].role
        files = job.input_set.get(role, ())
        try:
            if set(job.input_set) != {role}:
                raise InputRefused("missing-role", f"the model reads the role {role!r}, and no other")
            if self._card.task == "segmentation":
                return _segment(self._card, self._model, files)
            return _classify(self._card, self._model, files)
        except InputRefused as refusal:
            return Findings(
                images=tuple(file.key for given in job.input_set.values() for file in given),
                not_analysed=NotAnalysed(reason=refusal.reason, text=refusal.text),
            )


def slabs(total: int, slices: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``total`` slices into slabs of ``slices`` that share at least ``overlap`` with their neighbours.

    Yields
    ------
    tuple of slice
        What the model reads, and which of those slices are kept: each slice is kept once, from the slab in which it
        lies furthest from a cut. The last slab is moved back so that it is whole.
    """
    if total <= slices:
        yield slice(0, total), slice(0, total)
        return
    starts = [*range(0, total - slices, slices - overlap), total - slices]
    kept = 0
    for number, start in enumerate(starts):
        end = total if number == len(starts) - 1 else (starts[number + 1] + start + slices) // 2
        yield slice(start, start + slices), slice(kept, end)
        kept = end


def _segment(card: Card, model: Model, files: Sequence[ImageFile]) -> Findings:
    from inference.postprocess import keep_components, volumes_ml
    from inference.volume import read_volume

    role = card.inputs[0]
    volume = read_volume(files, minimum=role.minimum_instances)
    spacing = volume.coverage.spacing_mm
    if role.slice_spacing_mm and not role.slice_spacing_mm[0] <= spacing <= role.slice_spacing_mm[1]:
        low, high = role.slice_spacing_mm
        raise InputRefused(
            "slice-spacing", f"the slices lie {spacing:.2f} mm apart; this model reads {low:g} to {high:g} mm"
        )
    labels, seconds = _infer_labels(card, model, volume)
    wanted = [output.label for output in card.outputs if output.label is not None]
    images = (*volume.keys, *volume.left_out)
    for step in card.postprocess:
        if step.keep_components:
            rule = step.keep_components
            keep_components(labels, volume.spacing_mm, rule.minimum_ml, rule.minimum_fraction)
        if step.require_volume:
            total = sum(volumes_ml(labels, volume.spacing_mm, wanted).values())
            if total < step.require_volume.minimum_ml:
                reason = step.require_volume.otherwise
                return Findings(
                    images=images,
                    coverage=volume.coverage,
                    not_analysed=NotAnalysed(reason=reason, text=card.not_analysed[reason].meaning),
                    seconds=seconds,
                )
    volumes = volumes_ml(labels, volume.spacing_mm, wanted)
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
        segmentation=Segmentation(segments=segments, images=volume.keys, labels=volume.to_source(labels)),
        coverage=volume.coverage,
        seconds=seconds,
    )


def _infer_labels(card: Card, model: Model, volume: Volume) -> tuple[npt.NDArray[np.uint8], float]:
    """Run the model slab by slab; memory is bounded by the slab, not by the series."""
    array = volume.array
    slab = card.slab
    spacing = np.array(volume.spacing_mm, dtype=np.float32)
    known = np.zeros(256, dtype=bool)
    known[[0, *(output.label for output in card.outputs if output.label is not None)]] = True
    labels: npt.NDArray[np.uint8] = np.zeros(array.shape, dtype=np.uint8)
    seconds = 0.0
    for read, keep in slabs(len(array), slab.slices if slab else len(array), slab.overlap if slab else 0):
        feeds: dict[str, npt.NDArray[Any]] = {card.tensors["image"]: array[read]}
        if "spacing" in card.tensors:
            feeds[card.tensors["spacing"]] = spacing
        began = time.perf_counter()
        answer = model.infer(feeds)
        seconds += time.perf_counter() - began
        if answer.shape != array[read].shape or answer.dtype != np.uint8:
            raise EngineFailure(
                "broke",
                f"the model answered {answer.dtype} of shape {answer.shape}; its card means uint8 labels of shape "
                f"{array[read].shape}",
            )
        kept = answer[keep.start - read.start : keep.stop - read.start]
        # The largest label tells it all where the card's labels are 1, 2, ... without a hole.
        if not known[: int(kept.max()) + 1].all() and not known[kept].all():
            raise EngineFailure("broke", "the model answered a label that its card does not name")
        labels[keep] = kept
    return labels, seconds


def _classify(card: Card, model: Model, files: Sequence[ImageFile]) -> Findings:
    from inference.imagefile import open_image, value_of
    from inference.preprocess import radiograph_input
    from inference.radiograph import radiograph_pixels

    role = card.inputs[0]
    size = next(step.radiograph_input.size for step in card.preprocess if step.radiograph_input)
    classifications: list[Classification] = []
    images: list[str] = []
    seconds = 0.0
    for file in files:
        dataset = open_image(file)
        attributes = {key: value_of(dataset, key) for key in keywords(role.match)}
        # One series may hold a frontal and a lateral view: only what the card means is read.
        if not evaluate(role.match, attributes).matched:
            continue
        pixels = radiograph_input(radiograph_pixels(dataset), size=size)
        began = time.perf_counter()
        answer = model.infer({card.tensors["image"]: np.asarray(pixels, np.float32).reshape(1, 1, size, size)})
        seconds += time.perf_counter() - began
        probabilities = _probabilities(card, answer)
        images.append(file.key)
        classifications.extend(
            Classification(
                name=output.name,
                code=output.code,
                probability=float(probabilities[output.index]),
                threshold=output.threshold,
                image=file.key,
            )
            for output in card.outputs
            if output.index is not None and output.threshold is not None
        )
    if len(images) < role.minimum_instances:
        raise InputRefused(
            "outside-intended-use",
            f"{len(images)} of {len(files)} images are what the model's card means; it needs {role.minimum_instances}",
        )
    return Findings(images=tuple(images), classifications=tuple(classifications), seconds=seconds)


def _probabilities(card: Card, answer: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    highest = max(output.index for output in card.outputs if output.index is not None)
    if answer.ndim != 2 or answer.shape[0] != 1 or answer.shape[1] <= highest:
        raise EngineFailure(
            "broke", f"the model answered shape {answer.shape}; its card means (1, {highest + 1} or more)"
        )
    probabilities: npt.NDArray[np.float64] = answer[0].astype(np.float64)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise EngineFailure(
            "broke", "the model answered values that are no probabilities (not a number, or not 0 to 1)"
        )
    return probabilities
