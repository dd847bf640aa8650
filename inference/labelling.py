"""A volume through a model, piece by piece: labels on the volume's own grid, whatever grid the model works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import EngineFailure
from inference.grid import Grid, Interpolation, labels_on, resample
from inference.intensity import changes
from inference.marking import Marking
from inference.postprocess import probabilities_of
from inference.steps import GEOMETRIC
from inference.volume import AIR_HU
from inference.window import slide

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.steps import Over

    Infer = Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[Any]]
    Scores = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.uint8]

__all__ = ["label_by_slab", "label_by_window", "marking_of", "slabs"]

#: So many planes of the model's grid are interpolated at once.
_PLANES = 32
#: Labels of a coarser grid are brought back smoothly up to so many of them: each costs a pass.
_SMOOTH_LABELS = 8


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
    begins = [*range(0, total - slices, slices - overlap), total - slices]
    kept = 0
    for number, start in enumerate(begins):
        end = total if number == len(begins) - 1 else (begins[number + 1] + start + slices) // 2
        yield slice(start, start + slices), slice(kept, end)
        kept = end


def marking_of(card: Card) -> Marking:
    """Return what writes a card's structures into a mask."""
    step = next((step.threshold for step in card.postprocess if step.threshold), None)
    # Where the largest score decides, no voxel is marked twice.
    overlap = "refuse" if step is None or step.overlap == "largest" else step.overlap
    return Marking(
        (output.label for output in card.outputs if output.label is not None), overlap, key="threshold.overlap"
    )


def label_by_slab(card: Card, infer: Infer, array: npt.NDArray[Any], spacing_mm: tuple[float, float, float]) -> Labels:
    """Label a volume slab by slab, as it is; memory is bounded by the slab, not by the series.

    Parameters
    ----------
    infer
        The model: tensors by name to its output.
    array
        int16 HU, (slices, rows, columns).
    spacing_mm
        In the same order.

    Raises
    ------
    EngineFailure
        If the model answers what its card does not say.
    """
    slab = card.slab
    spacing = np.array(spacing_mm, dtype=np.float32)
    known = _known(card)
    labels: Labels = np.zeros(array.shape, dtype=np.uint8)
    for read, keep in slabs(len(array), slab.slices if slab else len(array), slab.overlap if slab else 0):
        feeds: dict[str, npt.NDArray[Any]] = {card.tensors["image"]: array[read]}
        if "spacing" in card.tensors:
            feeds[card.tensors["spacing"]] = spacing
        answer = infer(feeds)
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
    return labels


def label_by_window(
    card: Card,
    infer: Infer,
    channels: Sequence[npt.NDArray[Any] | None],
    source: Grid,
    marking: Marking,
    fields: Sequence[npt.NDArray[np.bool_] | None] = (),
) -> Labels:
    """Label a volume on the model's own grid and bring the labels back to the volume's.

    Parameters
    ----------
    infer
        The model: tensors by name to its output.
    channels
        One array for each role, all on the volume's grid; None for a role that is absent, whose channel holds 0.
    source
        That grid.
    marking
        What writes the labels, and knows afterwards which values stand for several of them.
    fields
        Where each channel's values are of its images, on the volume's grid; None, or none at all, is everywhere.

    Returns
    -------
    numpy.ndarray
        uint8, ``source.shape``.

    Raises
    ------
    InputRefused
        If a declared step cannot be done on these values.
    EngineFailure
        If the model answers what its card does not say.
    """
    way = _way(card, source)
    target = way.target
    reads = [
        _Absent(target) if array is None else _Reader(card, array, source, way, field)
        for array, field in zip(channels, fields or [None] * len(channels), strict=True)
    ]

    def read(start: int, stop: int) -> Scores:
        if len(reads) == 1:
            return reads[0].prepared(start, stop)[None]
        return np.stack([one.prepared(start, stop) for one in reads])

    labels: Labels = np.zeros(target.shape, np.uint8)
    decide = _Deciding(card, marking)

    def predict(pieces: Scores) -> Scores:
        return scored(pieces, infer({card.tensors["image"]: pieces}))

    def scored(pieces: Scores, answer: npt.NDArray[Any]) -> Scores:
        if answer.ndim != 5 or answer.shape[0] != len(pieces) or answer.shape[2:] != pieces.shape[2:]:
            raise EngineFailure(
                "broke",
                f"the model answered shape {answer.shape} to {pieces.shape}; its card means scores on the same grid",
            )
        if not np.isfinite(answer).all():
            raise EngineFailure("broke", "the model answered values that are not numbers")
        return decide.scores(np.asarray(answer, np.float32))

    def write(start: int, scores: Scores) -> None:
        labels[start : start + scores.shape[1]] = decide.labels(scores)

    if card.window is not None:
        slide(target.shape, card.window, read=read, predict=predict, write=write)
    else:
        whole = read(0, target.shape[0])[None]
        answer = infer({card.tensors["image"]: whole})
        if answer.dtype == np.uint8 and answer.shape == (1, 1, *target.shape):
            # A graph that has chosen itself: many classes of a large volume are never held as scores all at once.
            labels = decide.given(answer[0, 0])
        else:
            write(0, scored(whole, answer)[0])
    if target.matches(source):
        return labels
    coarser = any(a > 1.2 * b for a, b in zip(sorted(target.spacing_mm), sorted(source.spacing_mm), strict=True))
    smooth = coarser and len(card.outputs) <= _SMOOTH_LABELS
    return labels_on(labels, target, source, smooth=smooth, marking=marking if marking.keeps else None)


@dataclass(frozen=True, slots=True)
class _Way:
    """From a volume's grid to the model's: the grid whose intensities are measured, then the model's own.

    ``outside`` is what lies beyond the images before the steps on intensities, None for their default; ``filled`` what
    lies there after them, None where it is changed with the rest.
    """

    measured: Grid
    target: Grid
    interpolation: Interpolation
    outside: float | None
    filled: float | None


def _way(card: Card, source: Grid) -> _Way:
    way = _Way(source, source, "linear", None, None)
    for number, step in enumerate(card.preprocess):
        if step.orient:
            grid = way.target.oriented(step.orient.axes)
            way = replace(way, measured=grid, target=grid)
        elif step.resample:
            grid = way.target.with_spacing(step.resample.spacing_mm)
            way = replace(way, measured=grid, target=grid, interpolation=step.resample.interpolation)
        elif step.crop_or_pad:
            grid, value = way.target.cropped_or_padded(step.crop_or_pad.shape), step.crop_or_pad.value
            if any(next(iter(before.model_fields_set)) not in GEOMETRIC for before in card.preprocess[:number]):
                way = replace(way, target=grid, filled=value or 0.0)
            else:
                way = replace(way, measured=grid, target=grid, outside=value)
    return way


class _Absent:
    """Stands for a channel whose role no series fills."""

    def __init__(self, target: Grid) -> None:
        self._shape = target.shape[1:]

    def prepared(self, start: int, stop: int) -> Scores:
        return np.zeros((stop - start, *self._shape), np.float32)


class _Reader:
    """Gives one channel of the model's grid, some planes at a time."""

    def __init__(
        self, card: Card, array: npt.NDArray[Any], source: Grid, way: _Way, field: npt.NDArray[np.bool_] | None
    ) -> None:
        self._array = array
        self._source = source
        self._way = way
        self._field = field
        # Only a CT is kept as int16, in HU.
        self._outside = way.outside if way.outside is not None else float(AIR_HU) if array.dtype == np.int16 else 0.0
        self._change = changes(card.preprocess, self._pieces)

    def prepared(self, start: int, stop: int) -> Scores:
        section = self._way.target.section(start, stop)
        if self._way.filled is None:
            return self._change(self._plain(section, self._outside))
        values = self._change(self._plain(section, float("nan")))
        values[np.isnan(values)] = self._way.filled
        return values

    def _plain(self, section: Grid, outside: float) -> Scores:
        way = self._way.interpolation
        return resample(self._array, self._source, section, interpolation=way, outside=outside, as_float=True)

    def _pieces(self, over: Over) -> Iterator[Scores]:
        grid = self._way.measured
        for start in range(0, grid.shape[0], _PLANES):
            section = grid.section(start, min(start + _PLANES, grid.shape[0]))
            if over == "grid":
                yield self._plain(section, self._outside)
                continue
            values = self._plain(section, float("nan"))
            inside = ~np.isnan(values)
            if self._field is not None:
                held = resample(self._field.view(np.uint8), self._source, section, interpolation="nearest")
                inside &= held.view(np.bool_)
            if inside.all():
                yield values
            elif inside.any():
                yield values[inside]


class _Deciding:
    """Turns a model's scores into labels, by the card's activation and threshold."""

    def __init__(self, card: Card, marking: Marking) -> None:
        self._marking = marking
        self._activation = next((s.activation.kind for s in card.postprocess if s.activation), None)
        step = next((s.threshold for s in card.postprocess if s.threshold), None)
        self._threshold = None if step is None else step.value
        self._largest = step is not None and step.overlap == "largest"
        self._labels = np.array([output.label for output in card.outputs], np.uint8)
        self._known = _known(card)

    def scores(self, answer: Scores) -> Scores:
        """Return what may be averaged over windows: probabilities where the card declares them."""
        channels = answer.shape[1]
        if self._threshold is not None and channels != len(self._labels):
            raise EngineFailure(
                "broke", f"the model answered {channels} channels; its card names {len(self._labels)} outputs"
            )
        if self._threshold is None and channels <= self._labels.max():
            # A structure that the graph cannot see would be reported as not there.
            raise EngineFailure(
                "broke", f"the model answered {channels} channels; its card names label {self._labels.max()}"
            )
        return probabilities_of(answer, self._activation, axis=1)

    def given(self, labels: Labels) -> Labels:
        """Return labels that the model has chosen itself, once the card names them all."""
        if self._activation is not None or self._threshold is not None:
            raise EngineFailure("broke", "the model answered labels; its card declares steps for scores")
        if not self._known[np.flatnonzero(np.bincount(labels.ravel(), minlength=256))].all():
            raise EngineFailure("broke", "the model answered a label that its card does not name")
        return labels

    def labels(self, scores: Scores) -> Labels:
        """Return the labels of float32 (scores, planes, rows, columns)."""
        labels: Labels = np.empty(scores.shape[1:], np.uint8)
        for plane, into in enumerate(labels):
            # Plane by plane: an index of the best is eight times as large as a label.
            into[:] = self._plane(scores[:, plane])
        return labels

    def _plane(self, scores: Scores) -> Labels:
        if self._threshold is not None:
            return self._reached(scores, self._threshold)
        best = scores.argmax(axis=0)
        # The channel's number is the label, and 0 the background.
        if not self._known[best].all():
            raise EngineFailure("broke", "the model answered a label that its card does not name")
        chosen: Labels = best.astype(np.uint8)
        return chosen

    def _reached(self, scores: Scores, threshold: float) -> Labels:
        reached = scores >= threshold
        if self._largest:
            best = scores.argmax(axis=0)
            # Where any channel reaches the threshold, the largest does.
            found: Labels = np.where(reached.any(axis=0), self._labels[best], 0).astype(np.uint8)
            return found
        return self._marking.painted(reached, self._labels)


def _known(card: Card) -> npt.NDArray[np.bool_]:
    known = np.zeros(256, dtype=bool)
    known[[0, *(output.label for output in card.outputs if output.label is not None)]] = True
    return known
