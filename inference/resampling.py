"""The arithmetic of bringing values from one lattice to another; which lattices those are is :mod:`inference.grid`'s.

A mapping is 4 x 4 and takes a target's index to the source's. Both lattices are counted in voxels, with centres at
whole indices; a source's field reaches from -0.5 to count - 0.5.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["PIECE", "Taps", "aligned", "by_axis", "by_voxel", "corners", "in_pieces", "taps_of"]

#: Index steps that differ by less than this, over the whole width of a grid, are the same (in voxels).
_SAME = 1e-3
#: So many source values at most are read for one piece of work: memory is bounded by it, not by the volume.
PIECE = 1 << 23


def corners(shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the eight outermost indices of an array, shape (8, 3)."""
    return np.array(list(itertools.product(*((0, count - 1) for count in shape))), np.float64)


def aligned(mapping: npt.NDArray[np.float64], target: Sequence[int]) -> tuple[int, int, int] | None:
    """Return the source axis of each target axis where the grids' axes run along each other, else None."""
    steps = np.abs(mapping[:3, :3])
    order = [int(axis) for axis in steps.argmax(axis=0)]
    if sorted(order) != [0, 1, 2]:
        return None
    # How far each source index strays over the whole of the axes that it should not depend on.
    astray = steps * np.array([max(count - 1, 1) for count in target])
    astray[order, range(3)] = 0
    return (order[0], order[1], order[2]) if float(astray.max()) < _SAME else None


@dataclass(frozen=True, slots=True)
class Taps:
    """What each target index along one axis reads: source indices and weights, shape (taps, targets); where it may."""

    indices: npt.NDArray[np.intp]
    weights: npt.NDArray[np.float32] | None
    inside: npt.NDArray[np.bool_] | None
    run: slice | None


def taps_of(scale: float, offset: float, count: int, targets: int, interpolation: str, antialias: bool) -> Taps:
    """Return what each of ``targets`` indices reads along an axis of ``count``, at ``index * scale + offset``."""
    places = np.arange(targets) * scale + offset
    whole = np.rint(places)
    # A lattice that is the same but for rounding reads its own voxels, untouched.
    exact = bool(np.abs(places - whole).max() < _SAME)
    inside = (places >= -0.5 - _SAME) & (places <= count - 0.5 + _SAME)
    held = None if inside.all() else inside
    if interpolation == "nearest" or (exact and not (antialias and abs(scale) > 1 + _SAME)):
        indices = (whole if exact else np.floor(places + 0.5)).clip(0, count - 1).astype(np.intp)
        return Taps(indices[None], None, held, _as_run(indices))
    if antialias and abs(scale) > 1 + _SAME:
        reach = int(np.ceil(abs(scale)))
        steps = np.arange(-reach, reach + 2)
        indices = np.floor(places)[None].astype(np.intp) + steps[:, None]
        weights = np.maximum(0, 1 - np.abs(indices - places) / abs(scale))
        weights[(indices < 0) | (indices >= count)] = 0
        total = weights.sum(axis=0)
        weights[:, total == 0] = 0
        weights = weights / np.where(total == 0, 1, total)
        kept = weights.any(axis=1)
        return Taps(indices[kept].clip(0, count - 1), weights[kept].astype(np.float32), held, None)
    first = np.floor(places)
    share = places - first
    indices = np.stack([first, first + 1]).clip(0, count - 1).astype(np.intp)
    return Taps(indices, np.stack([1 - share, share]).astype(np.float32), held, None)


def _as_run(indices: npt.NDArray[np.intp]) -> slice | None:
    """Return the slice that reads these indices, where there is one: it costs no copy."""
    if len(indices) == 1:
        return slice(int(indices[0]), int(indices[0]) + 1)
    step = int(indices[1] - indices[0])
    if step == 0 or (np.diff(indices) != step).any():
        return None
    stop = int(indices[-1]) + (1 if step > 0 else -1)
    return slice(int(indices[0]), None if stop < 0 else stop, step)


def _along(values: npt.NDArray[Any], taps: Taps, axis: int) -> npt.NDArray[Any]:
    if taps.run is not None:
        part: npt.NDArray[Any] = values[(slice(None),) * axis + (taps.run,)]
        return part
    if taps.weights is None:
        taken: npt.NDArray[Any] = values.take(taps.indices[0], axis=axis)
        return taken
    shape = [1] * values.ndim
    shape[axis] = -1
    total: npt.NDArray[Any] = values.take(taps.indices[0], axis=axis) * taps.weights[0].reshape(shape)
    for indices, weights in zip(taps.indices[1:], taps.weights[1:], strict=True):
        more = values.take(indices, axis=axis)
        if more.dtype == np.float32:
            more *= weights.reshape(shape)
        else:
            more = more * weights.reshape(shape)
        total += more
    return total


def by_axis(
    view: npt.NDArray[Any], taps: Sequence[Taps], result: npt.NDArray[Any], outside: float
) -> Callable[[int, int], None]:
    """Return what fills ``result[start:stop]`` from a view whose axes are the result's, axis after axis."""

    def work(start: int, stop: int) -> None:
        first = taps[0]
        indices = first.indices[:, start:stop]
        low, high = int(indices.min()), int(indices.max()) + 1
        # Planes that lie across memory are brought together once, not read voxel by voxel from afar.
        read = np.ascontiguousarray(view[low:high])
        if any(tap.weights is not None for tap in taps):
            read = read.astype(np.float32, copy=False)
        weights = None if first.weights is None else first.weights[:, start:stop]
        values = _along(read, Taps(indices - low, weights, None, None), 0)
        values = _along(_along(values, taps[1], 1), taps[2], 2)
        piece = result[start:stop]
        piece[...] = values
        for axis, tap in enumerate(taps):
            if tap.inside is not None:
                beyond = ~(tap.inside[start:stop] if axis == 0 else tap.inside)
                piece[(slice(None),) * axis + (beyond,)] = outside

    return work


def by_voxel(
    array: npt.NDArray[Any],
    mapping: npt.NDArray[np.float64],
    result: npt.NDArray[Any],
    interpolation: str,
    outside: float,
) -> Callable[[int, int], None]:
    """Return what fills ``result[start:stop]`` where the axes of both lattices cross at any angle."""
    from scipy.ndimage import affine_transform

    matrix, origin = mapping[:3, :3], mapping[:3, 3]
    limits = np.array(array.shape) - 0.5

    def work(start: int, stop: int) -> None:
        piece = result[start:stop]
        offset = origin + matrix[:, 0] * start
        affine_transform(
            array,
            matrix,
            offset=offset,
            output_shape=piece.shape,
            output=piece,
            order=0 if interpolation == "nearest" else 1,
            mode="nearest",
            prefilter=False,
        )
        places = corners(piece.shape) @ matrix.T + offset
        for axis in range(3):
            if places[:, axis].min() >= -0.5 and places[:, axis].max() <= limits[axis]:
                continue
            steps = [np.arange(count) * matrix[axis, number] for number, count in enumerate(piece.shape)]
            place = steps[0][:, None, None] + steps[1][:, None] + steps[2] + offset[axis]
            piece[(place < -0.5 - _SAME) | (place > limits[axis] + _SAME)] = outside

    return work


def in_pieces(work: Callable[[int, int], None], count: int, step: int, threads: int | None) -> None:
    """Do ``work(start, stop)`` for every ``step`` of ``count``, on as many threads as the process may use."""
    pieces = list(_pieces(count, step))
    workers = min(threads or len(os.sched_getaffinity(0)), len(pieces))
    if workers <= 1:
        for start, stop in pieces:
            work(start, stop)
        return
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work, start, stop) for start, stop in pieces]:
            done.result()


def _pieces(count: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, step):
        yield start, min(start + step, count)
