"""A series as one volume in the patient's axes, and masks back on the very pixels of its images.

Planes are ordered by their position along the normal (PS3.3 C.7.6.2), never by Instance Number, and turned by whole
axis permutations and flips only: nothing is resampled, so a mask returns to the source grid exactly. The one exception
is the stack of a tilted gantry, which no box of voxels holds: it is resampled to upright axes, and a mask is brought
back by looking up, for each source pixel, the voxel that it lies in. What cannot be stacked without guessing is refused
with a reason of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import InputRefused
from inference.findings import Coverage
from inference.frames import Plane, read_planes
from inference.grid import Grid, labels_on, resample, turned
from inference.imagefile import decoded, padding_mask
from inference.stack import Lie, lie_of, require_uniform, without_localizers

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.engine import ImageFile

__all__ = ["AXES", "Volume", "coverage_of", "read_volume", "stacked"]

#: The axes of every volume: slices towards the head, rows towards the back, columns towards the patient's left.
AXES = "SPL"
#: What padding, anything below it and what lies beyond a tilted stack become in a CT: air.
AIR_HU = -1024
#: The largest value that a CT's volume holds. Metal seldom reaches it: where more than this share of a plane's pixels
#: lies beyond, the header lies about their sign or their scale.
_MOST_HU, _BEYOND_SHARE = 32767, 0.01

#: In pixels: far above what rounding makes, far below what anybody sees.
_NEXT_TO_NOTHING = 1e-4


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume in the axes nearest to the patient's.

    Attributes
    ----------
    array
        Shape (slices, rows, columns): slices towards the head, rows towards the back (+y), columns towards the
        patient's left (+x). CT: int16 HU, -1024 outside the scanner's field. Anything else: float32, what the stored
        values measure (rescale or Modality LUT applied, no window ever), 0 where padded.
    grid
        Where the voxels of ``array`` lie (LPS, mm).
    source_grid
        Where the source's planes lie: axis 0 along the stack (for a tilted gantry not at right angles to the planes),
        then rows and columns as stored.
    keys, frames
        For each plane that makes the volume, in the order in which the images were given: its image, and the number
        of its frame from 1, or 0 where the image is a single-frame one.
    left_out
        Localizers that lay in the same series and are no part of the volume.
    coverage
        Of the source series along its own normal.
    modality
        (0008,0060).
    tilt_degrees
        Of a tilted gantry whose stack was resampled; else 0.
    frame_of_reference
        (0020,0052), or "" where the series names none.
    scanned
        Of a tilted gantry: which voxels of ``array`` a plane of the source holds; the others are wedges of the upright
        box, of which nothing is known. None where all are.
    """

    array: npt.NDArray[Any]
    grid: Grid
    source_grid: Grid
    keys: tuple[str, ...]
    frames: tuple[int, ...]
    left_out: tuple[str, ...]
    coverage: Coverage
    modality: str
    tilt_degrees: float
    frame_of_reference: str
    scanned: npt.NDArray[np.bool_] | None
    _places: npt.NDArray[np.intp] = field(repr=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(slice, row, column)."""
        return self.grid.spacing_mm

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4: (slice, row, column, 1) to LPS in mm."""
        return self.grid.affine

    @property
    def images(self) -> tuple[str, ...]:
        """The images that make the volume, each once, in the order in which they were given."""
        return tuple(dict.fromkeys(self.keys))

    @property
    def stack_axis(self) -> int:
        """The axis of ``array`` along which the source's planes are stacked: 0 only where these are axial."""
        normal = np.cross(self.source_grid.affine[:3, 1], self.source_grid.affine[:3, 2])
        along = normal @ (self.grid.affine[:3, :3] / self.grid.spacing_mm)
        return int(np.abs(along).argmax())

    def clear_unscanned(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Clear, in place, what a mask of this volume marks where nothing was scanned; and return it.

        What is left has as many voxels as :meth:`to_source` brings back: none is counted that no image shows.
        """
        if self.scanned is not None:
            labels *= self.scanned
        return labels

    def to_source(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Bring a mask of this volume back to its images.

        Parameters
        ----------
        labels
            uint8, the shape of ``array``.

        Returns
        -------
        numpy.ndarray
            uint8, (planes, rows, columns): plane ``i`` lies on the stored pixels of frame ``frames[i]`` of image
            ``keys[i]``.
        """
        if labels.shape != self.array.shape:
            raise ValueError(f"a mask of shape {labels.shape} is not on a volume of shape {self.array.shape}")
        if self.tilt_degrees:
            stack = labels_on(labels, self.grid, _off_ties(self.source_grid))
        else:
            stack = turned(labels, self.grid, self.source_grid)
        return np.ascontiguousarray(stack[self._places])


Hold = Callable[["Dataset"], None]


def stacked(
    files: Sequence[ImageFile], *, minimum: int = 2, hold: Hold | None = None
) -> tuple[list[Plane], list[Plane], Lie]:
    """Read the headers of images of one series and order them as a volume; no pixel is decoded.

    Parameters
    ----------
    files
        In any order.
    minimum
        The least number of planes that make a volume; never below 2.
    hold
        Called with each image that is part of the volume, and refuses those that it must not be made of.

    Returns
    -------
    list of Plane, list of Plane, Lie
        Those of the volume along their normal, the localizers that are no part of it, and how they lie.

    Raises
    ------
    InputRefused
        ``too-few-slices``, and the reasons of ``hold``, of :func:`inference.frames.read_planes` and of
        :mod:`inference.stack`.
    """
    everything = [plane for index, file in enumerate(files) for plane in read_planes(index, file)]
    planes, left_out = without_localizers(everything)
    if hold is not None:
        for dataset in {plane.index: plane.groups[-1] for plane in planes}.values():
            hold(dataset)
    if len(planes) < max(minimum, 2):
        raise InputRefused(
            "too-few-slices", f"{len(planes)} images make no volume: at least {max(minimum, 2)} are needed"
        )
    require_uniform(planes)
    return planes, left_out, lie_of(planes)


def coverage_of(planes: Sequence[Plane], lie: Lie) -> Coverage:
    """Return what a stack covers of the patient along its normal."""
    return Coverage(images=len(planes), spacing_mm=lie.spacing, extent_mm=lie.spacing * len(planes))


def read_volume(files: Sequence[ImageFile], *, minimum: int = 2, hold: Hold | None = None) -> Volume:
    """Read images of one series, single-frame or enhanced multi-frame, as a volume; see :func:`stacked`.

    Raises
    ------
    InputRefused
        ``no-pixels``, ``not-hounsfield``, and the reasons of :func:`stacked`.
    """
    planes, left_out, lie = stacked(files, minimum=minimum, hold=hold)
    source = _source_grid(planes, lie)
    given = sorted(range(len(planes)), key=lambda place: (planes[place].index, planes[place].frame))
    keys = tuple(planes[place].key for place in given)
    modality = planes[0].modality
    scanned = None
    if lie.tilt_degrees:
        array, grid, scanned = _upright(planes, lie, source)
    else:
        array, grid = _filled(planes, source)
    return Volume(
        array=array,
        grid=grid,
        source_grid=source,
        keys=keys,
        frames=tuple(planes[place].frame for place in given),
        left_out=tuple(dict.fromkeys(plane.key for plane in left_out if plane.key not in set(keys))),
        coverage=coverage_of(planes, lie),
        modality=modality,
        tilt_degrees=lie.tilt_degrees,
        frame_of_reference=planes[0].frame_of_reference,
        scanned=scanned,
        _places=np.array(given, dtype=np.intp),
    )


def _source_grid(planes: Sequence[Plane], lie: Lie) -> Grid:
    affine = np.eye(4)
    affine[:3, 0] = lie.step
    affine[:3, 1] = lie.column * planes[0].pixel_spacing[0]
    affine[:3, 2] = lie.row * planes[0].pixel_spacing[1]
    affine[:3, 3] = planes[0].position
    return Grid((len(planes), *planes[0].matrix), affine)


def _filled(planes: Sequence[Plane], source: Grid) -> tuple[npt.NDArray[Any], Grid]:
    """Decode planes into an array in the volume's axes: each pixel is written once, where it belongs."""
    grid = source.oriented(AXES)
    array = np.empty(grid.shape, dtype=_dtype(planes[0].modality))
    stack = turned(array, grid, source)
    _fill(stack, planes)
    return array, grid


def _upright(planes: Sequence[Plane], lie: Lie, source: Grid) -> tuple[npt.NDArray[Any], Grid, npt.NDArray[np.bool_]]:
    """Bring a leaning stack to upright axes: the same planes, moved within themselves, in a box that holds them all.

    Returns
    -------
    numpy.ndarray, Grid, numpy.ndarray
        The values, where they lie, and which of them a plane holds.
    """
    spacing = planes[0].pixel_spacing
    drift = lie.step * (len(planes) - 1)
    along = np.array([float(drift @ lie.column), float(drift @ lie.row)])
    more = [math.ceil(abs(shift) / mm - 1e-6) for shift, mm in zip(along, spacing, strict=True)]
    affine = source.affine.copy()
    affine[:3, 0] = lie.normal * lie.spacing
    affine[:3, 3] += lie.column * min(along[0], 0.0) + lie.row * min(along[1], 0.0)
    upright = Grid((len(planes), source.shape[1] + more[0], source.shape[2] + more[1]), affine)
    stack = np.empty(source.shape, dtype=_dtype(planes[0].modality))
    _fill(stack, planes)
    hounsfield = stack.dtype == np.int16
    values = resample(stack, source, upright, outside=AIR_HU if hounsfield else 0.0)
    if hounsfield:
        values = np.rint(values, out=values).astype(np.int16)
    grid = upright.oriented(AXES)
    held = _held(source, upright)
    return np.ascontiguousarray(turned(values, upright, grid)), grid, np.ascontiguousarray(turned(held, upright, grid))


def _held(source: Grid, upright: Grid) -> npt.NDArray[np.bool_]:
    """Return which voxels of the upright box a leaning stack holds: as many as it has itself."""
    mapping = np.linalg.inv(_off_ties(source).affine) @ upright.affine
    inside = []
    for axis in (1, 2):
        # Planes are moved within themselves: where a row or a column lies hangs on the plane and on itself alone.
        steps = mapping[axis, 0] * np.arange(upright.shape[0])[:, None] + mapping[axis, axis] * np.arange(
            upright.shape[axis]
        )
        places = steps + mapping[axis, 3]
        inside.append((places > -0.5) & (places <= source.shape[axis] - 0.5))
    held: npt.NDArray[np.bool_] = inside[0][:, :, None] & inside[1][:, None, :]
    return held


def _off_ties(source: Grid) -> Grid:
    """Move a leaning stack by next to nothing within its planes, so that each pixel has one nearest voxel.

    Where planes lean by half a pixel, rounding alone would say which of two it is, for each pixel anew.
    """
    affine = source.affine.copy()
    affine[:3, 3] += _NEXT_TO_NOTHING * (affine[:3, 1] + affine[:3, 2])
    return Grid(source.shape, affine)


def _dtype(modality: str) -> type[np.int16] | type[np.float32]:
    return np.int16 if modality == "CT" else np.float32


def _fill(stack: npt.NDArray[Any], planes: Sequence[Plane]) -> None:
    """Decode planes into (plane along the normal, row, column), image by image; each image's bytes are then let go."""
    order = sorted(range(len(planes)), key=lambda place: (planes[place].index, planes[place].frame))
    for _, together in groupby(order, key=lambda place: planes[place].index):
        places = list(together)
        dataset = planes[places[0]].groups[-1]
        frames = [max(planes[place].frame - 1, 0) for place in places]
        for place, stored in zip(places, decoded(dataset, frames), strict=True):
            values = planes[place].values.of(stored)
            outside = padding_mask(dataset, stored)
            if stack.dtype == np.int16:
                _require_hounsfield(values, outside)
                if values.dtype != np.int32:
                    np.rint(values, out=values)
                np.clip(values, AIR_HU, _MOST_HU, out=values)
            if outside is not None:
                values[outside] = AIR_HU if stack.dtype == np.int16 else 0
            stack[place] = values
            planes[place].groups = ()
        del dataset


def _require_hounsfield(values: npt.NDArray[Any], outside: npt.NDArray[np.bool_] | None) -> None:
    """Refuse a plane of which much lies beyond any Hounsfield unit, padding aside: clipped, it would pass for metal."""
    if values.max() <= _MOST_HU:
        return
    beyond = values > _MOST_HU
    if outside is not None:
        beyond &= ~outside
    inside = values.size if outside is None else values.size - int(outside.sum())
    if int(beyond.sum()) > _BEYOND_SHARE * inside:
        raise InputRefused(
            "not-hounsfield",
            f"more than {_BEYOND_SHARE:.0%} of an image's values lie above {_MOST_HU} HU: its Pixel Representation or "
            "its rescale is not that of its pixels",
        )
