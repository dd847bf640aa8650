"""What happens after the model: scores become probabilities, small components leave a mask, volumes are taken.

Masks are uint8 of shape (slices, rows, columns), 0 is background; spacing is in mm in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from inference.errors import EngineFailure
from inference.marking import Marking

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "as_probabilities",
    "calibrated",
    "fill_holes",
    "keep_components",
    "marked_ml",
    "probabilities_of",
    "volumes_ml",
]

F = TypeVar("F", np.float32, np.float64)


def probabilities_of(scores: npt.NDArray[F], activation: str | None, axis: int) -> npt.NDArray[F]:
    """Return scores as probabilities: ``sigmoid`` of each, ``softmax`` along an axis, or as they are."""
    from scipy.special import expit, softmax

    if activation == "sigmoid":
        return cast("npt.NDArray[F]", expit(scores))
    return cast("npt.NDArray[F]", softmax(scores, axis=axis)) if activation == "softmax" else scores


def as_probabilities(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what a model answered as probabilities, without the rounding of its last steps.

    A softmax of 32-bit floats, or a sigmoid that a server computes in 16 bits, may end a step above 1 or below 0.

    Raises
    ------
    EngineFailure
        ``broke``, if a value is not a number, or beyond 0 to 1 by more than rounding.
    """
    if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
        raise EngineFailure(
            "broke",
            "the model answered values that are no probabilities (not a number, or not 0 to 1); "
            "logits? declare activation: sigmoid",
        )
    clipped: npt.NDArray[np.float64] = np.clip(values, 0.0, 1.0)
    return clipped


_ROUNDING = 1e-5


def calibrated(probabilities: npt.NDArray[np.float64], thresholds: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """Stretch each probability so that its operating point becomes 0.5; without one it says nothing: 0.5.

    Parameters
    ----------
    probabilities
        Shape (outputs,).
    thresholds
        As many operating points.

    Raises
    ------
    EngineFailure
        If there are not as many.
    """
    if len(thresholds) != len(probabilities):
        raise EngineFailure(
            "broke", f"the model answered {len(probabilities)} values; its card calibrates {len(thresholds)}"
        )
    points = np.array([np.nan if one is None else one for one in thresholds], np.float64)
    below = probabilities / (2 * points)
    above = 1 - (1 - probabilities) / (2 * (1 - points))
    stretched = np.where(probabilities < points, below, above)
    result: npt.NDArray[np.float64] = np.where(np.isnan(points) & np.isfinite(probabilities), 0.5, stretched)
    return result


def fill_holes(
    labels: npt.NDArray[np.uint8], wanted: Sequence[int], marking: Marking | None = None
) -> npt.NDArray[np.uint8]:
    """Give background that one label encloses within a plane that label, in place; and return the mask.

    Where structures are kept over one another, each is for itself: what it encloses is its own, whatever else is there.

    Parameters
    ----------
    labels
        uint8, (planes, rows, columns): it is looked at plane by plane, as the images are that it lies on.
    wanted
        The labels whose holes are filled, one after the other.
    marking
        What the values stand for; by default each for itself.
    """
    from scipy.ndimage import binary_fill_holes

    marking = marking or Marking()
    for plane in labels:
        for label in wanted:
            here = marking.of(plane, label)
            if here.any():
                held = binary_fill_holes(here) & (~here if marking.keeps else plane == 0)
                marking.put(plane, held, label, within=labels)
    return labels


def voxel_ml(spacing_mm: Sequence[float]) -> float:
    """Return the volume of one voxel in mL."""
    return float(np.prod(np.asarray(spacing_mm, float))) / 1000.0


def volumes_ml(
    labels: npt.NDArray[np.uint8], spacing_mm: Sequence[float], wanted: Sequence[int], marking: Marking | None = None
) -> dict[int, float]:
    """Return the volume of each wanted label in mL; what belongs to several counts for each of them."""
    voxel = voxel_ml(spacing_mm)
    held = (marking or Marking(wanted)).voxels(labels)
    return {label: held[label] * voxel for label in wanted}


def marked_ml(labels: npt.NDArray[np.uint8], spacing_mm: Sequence[float]) -> float:
    """Return the volume of all that is marked in mL, each voxel once."""
    return sum(int(np.count_nonzero(plane)) for plane in labels) * voxel_ml(spacing_mm)


def keep_components(
    labels: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    minimum_ml: float = 0.0,
    minimum_fraction: float = 0.0,
    marking: Marking | None = None,
) -> npt.NDArray[np.uint8]:
    """Clear, in place, the components of each label that are too small, and return the mask.

    Parameters
    ----------
    labels
        uint8, (slices, rows, columns).
    spacing_mm
        (slice, row, column), in mm.
    minimum_ml
        Components below this volume are cleared.
    minimum_fraction
        Components below this fraction of their label's largest component are cleared.
    marking
        What the values stand for; by default each for itself. Of what overlaps each structure is looked at for itself,
        and what is cleared of one is left to the others.

    Notes
    -----
    Voxels are connected through faces. The work is done on runs of voxels along a row, of which a lung has some
    hundred thousand where the volume has some hundred million voxels: exact, quick, and without a volume of its own.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _, rows, columns = labels.shape
    # One background voxel ends each row, so that no run passes into the next.
    width = columns + 1
    marking = marking or Marking()
    for label in marking.labels_in(labels):
        starts, ends = _runs(labels, label, marking)
        in_last_row = (starts // width) % rows == rows - 1
        below = _touching(starts, ends, np.flatnonzero(~in_last_row), width)
        behind = _touching(starts, ends, np.arange(len(starts)), rows * width)
        first, second = np.concatenate([below, behind], axis=1)
        graph = coo_matrix((np.ones(len(first), np.bool_), (first, second)), shape=(len(starts), len(starts)))
        found, component = connected_components(graph, directed=False)
        sizes = np.bincount(component, weights=ends - starts, minlength=found)
        least = max(minimum_ml / voxel_ml(spacing_mm), minimum_fraction * float(sizes.max()))
        small = (sizes < least)[component]
        places = _spread(starts[small], (ends - starts)[small])
        row_number, column = np.divmod(places, width)
        marking.take(labels, (row_number // rows, row_number % rows, column), label)
    return labels


def _runs(
    labels: npt.NDArray[np.uint8], label: int, marking: Marking
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each run of a label starts and ends, counting voxels with one more column than there is."""
    slices, rows, columns = labels.shape
    padded = np.zeros((rows, columns + 1), np.bool_)
    flat = padded.reshape(-1)
    edges = [np.zeros(0, np.int64)]
    for number in range(slices):
        padded[:, :columns] = marking.of(labels[number], label)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat[0]:
            changes = np.concatenate([[0], changes])
        edges.append(changes + number * flat.size)
    all_edges = np.concatenate(edges)
    return all_edges[0::2], all_edges[1::2]


def _touching(
    starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64], shift: int
) -> npt.NDArray[np.int64]:
    """Return pairs (2, n) of a chosen run and a run that it covers part of once it is moved by ``shift``."""
    low = np.searchsorted(ends, starts[chosen] + shift, side="right")
    high = np.searchsorted(starts, ends[chosen] + shift, side="left")
    counts = np.maximum(high - low, 0)
    return np.stack([np.repeat(chosen, counts), _spread(low, counts)])


def _spread(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return start, start + 1, ... of each run, one run after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
