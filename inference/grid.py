"""Grids of voxels in the patient, and values brought from one grid to another.

Everything here is in DICOM's patient axes, LPS, in mm (PS3.3 C.7.6.2.1.1): +x to the patient's left, +y to the back,
+z to the head. NIfTI's RAS is met only in :mod:`inference.nifti`. Letters name where an array axis grows to: L or R,
P or A, S or I. "SPL" is slices to the head, rows to the back, columns to the left; in "RAS" the first axis grows to the
right, and so on.

A voxel is where its centre is. A grid's field reaches half a voxel beyond its outermost centres; within that half voxel
a value is the outermost one's, beyond it is ``outside``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from inference.resampling import PIECE, aligned, by_axis, by_voxel, corners, in_pieces, taps_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.marking import Marking

__all__ = ["Grid", "Interpolation", "labels_on", "reorient", "resample", "turned"]

T = TypeVar("T", bound=np.generic)
Interpolation = Literal["linear", "nearest"]

#: Where each letter points: which LPS axis, and which way along it.
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where the voxels of a three-dimensional array lie.

    Attributes
    ----------
    shape
        Of the array.
    affine
        4 x 4, float64, read-only: (index along axis 0, 1, 2, and 1) to LPS in mm.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check both, and keep an affine that nobody can write to.

        Raises
        ------
        ValueError
            A shape without voxels, or an affine that is not finite, not 4 x 4 or flattens space.
        """
        shape = tuple(int(count) for count in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three axes of at least one voxel, not {shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ValueError("a grid's affine is 4 x 4, finite, with (0, 0, 0, 1) as its last row")
        if abs(float(np.linalg.det(affine[:3, :3]))) < 1e-12:
            raise ValueError("a grid's affine flattens space")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distance in mm from one voxel to the next along each array axis."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in mL."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def axes(self) -> str:
        """Letters of the patient's directions that the array axes grow nearest to: "SPL", "RAS"."""
        axes, flips = _nearest(self.affine[:3, :3])
        letters = [""] * 3
        for lps, (axis, backwards) in enumerate(zip(axes, flips, strict=True)):
            letters[axis] = ("LPS", "RAI")[backwards][lps]
        return "".join(letters)

    def to_lps(self, indices: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Bring indices, shape (..., 3), to LPS in mm."""
        points: npt.NDArray[np.float64] = np.asarray(indices, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return points

    def to_index(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Bring points in LPS mm, shape (..., 3), to (fractional) indices."""
        away = np.asarray(points, np.float64) - self.affine[:3, 3]
        indices: npt.NDArray[np.float64] = away @ np.linalg.inv(self.affine[:3, :3]).T
        return indices

    def matches(self, other: Grid, *, tolerance: float = 0.01) -> bool:
        """Tell whether both grids have the same shape and no voxel differs by more than ``tolerance`` voxels."""
        if self.shape != other.shape:
            return False
        ends = corners(self.shape)
        return bool(np.abs(other.to_index(self.to_lps(ends)) - ends).max() <= tolerance)

    def share_within(self, other: Grid) -> float:
        """Return the share of this grid's voxels that lie in another's field, judged on a sparse lattice of them."""
        axes = (np.linspace(0, count - 1, min(count, 24)) for count in self.shape)
        lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        places = other.to_index(self.to_lps(lattice))
        inside = ((places >= -0.5) & (places <= np.array(other.shape) - 0.5)).all(axis=-1)
        return float(inside.mean())

    def oriented(self, axes: str) -> Grid:
        """Return the same voxels with the array axes growing (nearest) towards ``axes``: a permutation and flips.

        Raises
        ------
        ValueError
            If ``axes`` is not one letter for each of the patient's three axes.
        """
        order, flips = _turn(self, axes)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, list(order)]
        shape = tuple(self.shape[axis] for axis in order)
        for axis, flip in enumerate(flips):
            if flip:
                affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
                affine[:3, axis] *= -1
        return Grid((shape[0], shape[1], shape[2]), affine)

    def with_spacing(self, spacing_mm: Sequence[float]) -> Grid:
        """Return a grid of this spacing over the same field, both fields centred on the same point.

        The count of voxels is the nearest whole number that fills the field; what is left over is shared by both
        ends, so that nothing shifts by part of a voxel in one direction.
        """
        wanted = np.array(spacing_mm, np.float64)
        if wanted.shape != (3,) or not np.isfinite(wanted).all() or (wanted <= 0).any():
            raise ValueError(f"a spacing is three lengths above 0 mm, not {tuple(spacing_mm)}")
        present = np.array(self.spacing_mm)
        old = np.array(self.shape)
        new = np.maximum(np.rint(old * present / wanted).astype(int), 1)
        ratio = wanted / present
        affine = self.affine.copy()
        affine[:3, :3] *= ratio
        affine[:3, 3] = self.to_lps((old - 1) / 2 - ratio * (new - 1) / 2)
        return Grid((int(new[0]), int(new[1]), int(new[2])), affine)

    def cropped_or_padded(self, shape: Sequence[int]) -> Grid:
        """Return a grid of this shape on the same lattice, centred on this one.

        Where the difference is odd, a crop takes the voxel more from the beginning of an axis of even length, and
        padding puts the voxel more at the end: so do the tools that most networks are trained with.
        """
        start = [
            -((new - old) // 2) if new >= old else old // 2 - new // 2
            for old, new in zip(self.shape, shape, strict=True)
        ]
        affine = self.affine.copy()
        affine[:3, 3] = self.to_lps(start)
        return Grid((shape[0], shape[1], shape[2]), affine)

    def section(self, start: int, stop: int) -> Grid:
        """Return the grid of ``array[start:stop]``."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_lps((start, 0, 0))
        return Grid((stop - start, *self.shape[1:]), affine)


def reorient(array: npt.NDArray[T], source: Grid, axes: str) -> tuple[npt.NDArray[T], Grid]:
    """View an array with its axes growing towards ``axes``; nothing is copied. See :meth:`Grid.oriented`."""
    target = source.oriented(axes)
    return turned(array, source, target), target


def turned(array: npt.NDArray[T], source: Grid, target: Grid) -> npt.NDArray[T]:
    """View an array on a grid that holds the same voxels with other axes; nothing is copied.

    Raises
    ------
    ValueError
        If the grids do not hold the same voxels.
    """
    mapping = np.linalg.inv(source.affine) @ target.affine
    order = [int(axis) for axis in np.abs(mapping[:3, :3]).argmax(axis=0)]
    flips = [mapping[axis, number] < 0 for number, axis in enumerate(order)]
    if sorted(order) == [0, 1, 2]:
        view = array.transpose(order)[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
        # Where each corner of the target comes from, told by the view, against where the affines say that it does.
        ends = corners(target.shape)
        told = np.empty_like(ends)
        for number, axis in enumerate(order):
            told[:, axis] = (source.shape[axis] - 1 - ends[:, number]) if flips[number] else ends[:, number]
        if view.shape == target.shape and np.allclose(source.to_lps(told), target.to_lps(ends), atol=1e-3):
            return view
    raise ValueError("the grids do not hold the same voxels")


def resample(
    array: npt.NDArray[Any],
    source: Grid,
    target: Grid,
    *,
    interpolation: Interpolation = "linear",
    outside: float = 0.0,
    antialias: bool = False,
    as_float: bool = False,
    threads: int | None = None,
) -> npt.NDArray[Any]:
    """Bring values to another grid.

    Where the axes of both grids run along each other the work is done axis by axis; otherwise voxel by voxel. Either
    way it is done in pieces along axis 0, so that beside source and result only some tens of MB are held.

    Parameters
    ----------
    array
        On ``source``.
    interpolation
        ``linear`` gives float32; ``nearest`` gives the array's own type, and is what labels want.
    outside
        The value beyond the source's field.
    antialias
        Where an axis of the target is coarser, weigh all the source voxels that a target voxel covers (a triangle of
        twice its width) instead of the nearest two. Off by default, since networks are mostly trained without it. It
        needs grids whose axes run along each other; elsewhere it is not applied.
    as_float
        Give float32 also by ``nearest``: whole numbers have no value of their own for what lies ``outside``.
    threads
        Default: as many as this process may use.

    Returns
    -------
    numpy.ndarray
        C-contiguous, ``target.shape``.
    """
    if array.shape != source.shape:
        raise ValueError(f"an array of shape {array.shape} is not on a grid of {source.shape}")
    dtype = array.dtype if interpolation == "nearest" and not as_float else np.dtype(np.float32)
    result = np.empty(target.shape, dtype=dtype)
    mapping = np.linalg.inv(source.affine) @ target.affine
    order = aligned(mapping, target.shape)
    work: Callable[[int, int], None]
    if order is None:
        work = by_voxel(array, mapping, result, interpolation, outside)
        step = max(1, PIECE // (target.shape[1] * target.shape[2]))
    else:
        view = array.transpose(order)
        taps = [
            taps_of(
                mapping[axis, number],
                mapping[axis, 3],
                array.shape[axis],
                target.shape[number],
                interpolation,
                antialias,
            )
            for number, axis in enumerate(order)
        ]
        work = by_axis(view, taps, result, outside)
        reach = abs(float(mapping[order[0], 0])) * view.shape[1] * view.shape[2]
        step = max(1, min(16, int(PIECE // 2 // max(reach, 1))))
    in_pieces(work, target.shape[0], step, threads)
    return result


def labels_on(
    labels: npt.NDArray[np.uint8],
    model_grid: Grid,
    source_grid: Grid,
    *,
    smooth: bool = False,
    marking: Marking | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Bring a mask from a model's grid back to the source's.

    Parameters
    ----------
    labels
        uint8 on ``model_grid``; 0 is background, and whatever lies beyond the model's field.
    smooth
        Each voxel gets the label whose linearly interpolated share is the largest, which follows an edge between coarse
        voxels where the nearest voxel's label would leave steps. Costs one pass for each label.
    marking
        Where structures overlap: what the values stand for. Then, smoothed, each structure is for itself, and has the
        voxels of which its share is at least a half; what lies in another stays in it.
    """
    if not smooth:
        nearest: npt.NDArray[np.uint8] = resample(
            labels, model_grid, source_grid, interpolation="nearest", threads=threads
        )
        return nearest
    result = np.zeros(source_grid.shape, np.uint8)
    step = max(1, PIECE // (source_grid.shape[1] * source_grid.shape[2]))
    for start in range(0, source_grid.shape[0], step):
        stop = min(start + step, source_grid.shape[0])
        target = source_grid.section(start, stop)
        part, grid = _reached(labels, model_grid, target)
        if part is None or grid is None:
            continue
        found = np.flatnonzero(np.bincount(part.reshape(-1), minlength=1))
        if len(found) == 1:
            result[start:stop] = resample(part, grid, target, interpolation="nearest", threads=threads)
            continue
        if marking is not None:
            for one in marking.labels_in(part):
                share = resample(marking.of(part, one).view(np.uint8), grid, target, threads=threads)
                marking.put(result[start:stop], share >= 0.5, one)
            continue
        best = np.zeros(target.shape, np.float32)
        for label in found:
            share = resample((part == label).view(np.uint8), grid, target, threads=threads)
            better = share > best
            best[better] = share[better]
            result[start:stop][better] = label
    return result


def _reached(
    labels: npt.NDArray[np.uint8], grid: Grid, target: Grid
) -> tuple[npt.NDArray[np.uint8], Grid] | tuple[None, None]:
    """Return the planes of an array (along axis 0) that a target can reach, with a plane to spare; None without any."""
    places = grid.to_index(target.to_lps(corners(target.shape)))[:, 0]
    low, high = max(int(np.floor(places.min())) - 1, 0), min(int(np.ceil(places.max())) + 2, grid.shape[0])
    return (labels[low:high], grid.section(low, high)) if low < high else (None, None)


def _nearest(columns: npt.NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which array axis runs along each of L, P and S (x, y, z), and which of them run backwards."""
    directions = columns / np.linalg.norm(columns, axis=0)
    best = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(float(directions[lps, axes[lps]])) for lps in range(3)),
    )
    flips = [bool(directions[lps, best[lps]] < 0) for lps in range(3)]
    return (best[0], best[1], best[2]), (flips[0], flips[1], flips[2])


def _turn(grid: Grid, axes: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which array axis comes first, second and third, and which of those are then turned round."""
    wanted = [_LETTERS.get(letter, (-1, 0)) for letter in axes.upper()]
    if sorted(lps for lps, _ in wanted) != [0, 1, 2]:
        raise ValueError(f"{axes!r} does not name one of L/R, one of P/A and one of S/I: expected letters such as RAS")
    present, backwards = _nearest(grid.affine[:3, :3])
    order = [present[lps] for lps, _ in wanted]
    flips = [(sign < 0) != backwards[lps] for lps, sign in wanted]
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])
