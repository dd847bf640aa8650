"""A CT series as one volume in the patient's axes, and masks back on the very pixels of its images.

Images are ordered by their position along the normal (PS3.3 C.7.6.2), never by Instance Number, and turned by whole
axis permutations and flips only: nothing is resampled, so a mask returns to the source grid exactly. What cannot be
stacked without guessing is refused with a reason of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from inference.errors import InputRefused
from inference.findings import Coverage
from inference.imagefile import (
    count_of,
    hounsfield_rescale,
    open_image,
    padding_mask,
    require_pixels,
    stored_values,
    texts_of,
    value_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.engine import ImageFile

__all__ = ["Volume", "read_volume"]

T = TypeVar("T", bound=np.generic)

#: Two orientations are the same when no direction cosine differs by more (about half a degree).
ORIENTATION_TOLERANCE = 0.01
#: Direction cosines are unit vectors at right angles within this.
COSINE_TOLERANCE = 0.01
#: Pixel spacing may differ by this fraction within a series.
PIXEL_SPACING_TOLERANCE = 0.001
#: Distances between neighbours may differ from their median by this fraction (or 0.05 mm where that is more).
SPACING_TOLERANCE = 0.1
#: A distance of this many medians is a missing slice rather than an irregular one.
GAP = 1.5
#: Below this many medians (or 0.01 mm) apart, two images lie in the same place.
SAME_PLACE = 0.05
#: The stack may lean from the normal by this angle in degrees; more is a tilted gantry.
TILT_TOLERANCE_DEGREES = 1.0
#: An image may lie off the stack's line by this many mm across it.
SHIFT_TOLERANCE_MM = 1.0
#: What padding and anything below it becomes: air.
AIR_HU = -1024


@dataclass(slots=True)
class _Plane:
    """One image and where it lies: LPS, mm."""

    index: int
    key: str
    dataset: Dataset | None
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    pixel_spacing: tuple[float, float]
    matrix: tuple[int, int]
    rescale: tuple[float, float]
    localizer: bool
    frame_of_reference: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A CT volume in the axes nearest to the patient's.

    Attributes
    ----------
    array
        int16 HU, shape (slices, rows, columns): slices towards the head, rows towards the back (+y), columns towards
        the patient's left (+x). -1024 outside the scanner's field.
    spacing_mm
        (slice, row, column).
    affine
        4 x 4: (slice, row, column, 1) to LPS in mm.
    keys
        The images that make the volume, in the order in which they were given.
    left_out
        Localizers that lay in the same series and are no part of the volume.
    coverage
        Of the source series along its own normal.
    """

    array: npt.NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    affine: npt.NDArray[np.float64]
    keys: tuple[str, ...]
    left_out: tuple[str, ...]
    coverage: Coverage
    _axes: tuple[int, int, int] = field(repr=False)
    _flips: tuple[bool, bool, bool] = field(repr=False)
    _places: npt.NDArray[np.intp] = field(repr=False)

    def to_source(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Bring a mask of this volume back to its images.

        Parameters
        ----------
        labels
            uint8, the shape of ``array``.

        Returns
        -------
        numpy.ndarray
            uint8, (images, rows, columns): plane ``i`` lies on the stored pixels of image ``keys[i]``.
        """
        if labels.shape != self.array.shape:
            raise ValueError(f"a mask of shape {labels.shape} is not on a volume of shape {self.array.shape}")
        stack = _source_view(labels, self._axes, self._flips)
        return np.ascontiguousarray(stack[self._places])


def read_volume(files: Sequence[ImageFile], *, minimum: int = 2) -> Volume:
    """Read single-frame CT images of one series as a volume.

    Parameters
    ----------
    files
        In any order.
    minimum
        The least number of images that make a volume; never below 2.

    Raises
    ------
    InputRefused
        ``unreadable``, ``no-pixels``, ``multi-sample``, ``unsupported-photometric``, ``multi-frame``,
        ``missing-geometry``, ``mixed-frames-of-reference``, ``mixed-orientations``, ``varying-matrix``,
        ``varying-pixel-spacing``, ``duplicate-positions``, ``gap-in-series``, ``irregular-spacing``,
        ``gantry-tilt``, ``missing-rescale``, ``not-hounsfield`` or ``too-few-slices``.
    """
    everything = [_read_plane(index, file) for index, file in enumerate(files)]
    planes, left_out = _without_localizers(everything)
    if len(planes) < max(minimum, 2):
        raise InputRefused(
            "too-few-slices", f"{len(planes)} images make no volume: at least {max(minimum, 2)} are needed"
        )
    _require_uniform(planes)
    row, column = planes[0].orientation[:3], planes[0].orientation[3:]
    normal = np.cross(row, column)
    planes.sort(key=lambda plane: float(plane.position @ normal))
    spacing = _slice_spacing(planes, normal)
    step = _require_straight(planes, normal)

    directions = np.stack([normal, column, row], axis=1)
    axes, flips = _nearest_axes(directions)
    rows, columns = planes[0].matrix
    array: npt.NDArray[np.int16] = np.empty(tuple((len(planes), rows, columns)[axis] for axis in axes), dtype=np.int16)
    stack = _source_view(array, axes, flips)
    for place, plane in enumerate(planes):
        _fill(stack[place], plane)

    vectors = np.stack([step, column * planes[0].pixel_spacing[0], row * planes[0].pixel_spacing[1]], axis=1)
    source_spacing = (spacing, *planes[0].pixel_spacing)
    given = sorted(range(len(planes)), key=lambda place: planes[place].index)
    return Volume(
        array=array,
        spacing_mm=(source_spacing[axes[0]], source_spacing[axes[1]], source_spacing[axes[2]]),
        affine=_affine(vectors, planes[0].position, (len(planes), rows, columns), axes, flips),
        keys=tuple(planes[place].key for place in given),
        left_out=tuple(plane.key for plane in left_out),
        coverage=Coverage(images=len(planes), spacing_mm=spacing, extent_mm=spacing * len(planes)),
        _axes=axes,
        _flips=flips,
        _places=np.array(given, dtype=np.intp),
    )


def _read_plane(index: int, file: ImageFile) -> _Plane:
    dataset = open_image(file)
    matrix = require_pixels(dataset)
    if count_of(dataset, "NumberOfFrames", default=1) > 1 or "PerFrameFunctionalGroupsSequence" in dataset:
        raise InputRefused("multi-frame", "a multi-frame image is in the series; single-frame CT images are needed")
    position = _numbers(dataset, "ImagePositionPatient", 3)
    orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    spacing = _numbers(dataset, "PixelSpacing", 2)
    row, column = orientation[:3], orientation[3:]
    lengths_off = max(abs(float(np.linalg.norm(row)) - 1), abs(float(np.linalg.norm(column)) - 1))
    if lengths_off > COSINE_TOLERANCE or abs(float(row @ column)) > COSINE_TOLERANCE:
        raise InputRefused(
            "missing-geometry", "Image Orientation (Patient) is not two unit vectors at right angles to each other"
        )
    if not (spacing > 0).all():
        raise InputRefused("missing-geometry", "Pixel Spacing is not above 0")
    return _Plane(
        index=index,
        key=file.key,
        dataset=dataset,
        position=position,
        orientation=orientation,
        pixel_spacing=(float(spacing[0]), float(spacing[1])),
        matrix=matrix,
        rescale=hounsfield_rescale(dataset),
        localizer="LOCALIZER" in texts_of(dataset, "ImageType"),
        frame_of_reference="".join(texts_of(dataset, "FrameOfReferenceUID")),
    )


def _numbers(dataset: Dataset, keyword: str, count: int) -> npt.NDArray[np.float64]:
    try:
        values = np.array([float(value) for value in value_of(dataset, keyword)], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as problem:
        raise InputRefused("missing-geometry", f"{keyword} is absent or is not {count} numbers") from problem
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputRefused("missing-geometry", f"{keyword} is absent or is not {count} numbers")
    return values


def _without_localizers(planes: list[_Plane]) -> tuple[list[_Plane], list[_Plane]]:
    """Keep the images of one orientation; images of another may only be localizers, which are left out."""
    groups: list[list[_Plane]] = []
    for plane in planes:
        for group in groups:
            if np.abs(plane.orientation - group[0].orientation).max() <= ORIENTATION_TOLERANCE:
                group.append(plane)
                break
        else:
            groups.append([plane])
    if len(groups) <= 1:
        return list(planes), []
    groups.sort(key=lambda group: sum(not plane.localizer for plane in group), reverse=True)
    others = [plane for group in groups[1:] for plane in group]
    if all(plane.localizer for plane in others) and not all(plane.localizer for plane in groups[0]):
        return groups[0], sorted(others, key=lambda plane: plane.index)
    counts = ", ".join(str(len(group)) for group in sorted(groups, key=len, reverse=True)[:8])
    raise InputRefused(
        "mixed-orientations", f"the series holds {len(groups)} orientations ({counts} images each); one is needed"
    )


def _require_uniform(planes: list[_Plane]) -> None:
    frames = {plane.frame_of_reference for plane in planes}
    if len(frames) > 1:
        raise InputRefused(
            "mixed-frames-of-reference", f"the images lie in {len(frames)} frames of reference; one is needed"
        )
    matrices = sorted({plane.matrix for plane in planes})
    if len(matrices) > 1:
        shown = ", ".join(f"{rows} x {columns}" for rows, columns in matrices[:4])
        raise InputRefused("varying-matrix", f"the images have {len(matrices)} sizes ({shown}); one is needed")
    spacings = np.array([plane.pixel_spacing for plane in planes])
    if (np.ptp(spacings, axis=0) > PIXEL_SPACING_TOLERANCE * spacings.min(axis=0)).any():
        low, high = spacings.min(axis=0), spacings.max(axis=0)
        raise InputRefused(
            "varying-pixel-spacing",
            f"Pixel Spacing varies from {low[0]:g} x {low[1]:g} to {high[0]:g} x {high[1]:g} mm within the series",
        )


def _slice_spacing(planes: list[_Plane], normal: npt.NDArray[np.float64]) -> float:
    """Return the distance of neighbours in mm; refuse a gap, a doubled place and an irregular stack."""
    places = np.array([float(plane.position @ normal) for plane in planes])
    distances = np.diff(places)
    apart = distances[distances > 0.01]
    median = float(np.median(apart)) if apart.size else 0.0
    # Places are told as a reader of the images knows them: growing towards the head, the back or the left.
    sign = 1.0 if normal[int(np.abs(normal).argmax())] > 0 else -1.0
    told = places * sign
    doubled = np.flatnonzero(distances <= max(0.01, SAME_PLACE * median))
    if doubled.size:
        raise InputRefused(
            "duplicate-positions",
            f"{doubled.size} images lie in the place of another (the first at {told[doubled[0]]:.1f} mm along the "
            "normal): more than one acquisition or phase is in the series",
        )
    gaps = np.flatnonzero(distances >= GAP * median)
    if gaps.size:
        first, second = sorted((told[gaps[0]], told[gaps[0] + 1]))
        raise InputRefused(
            "gap-in-series",
            f"slices are missing between {first:.1f} and {second:.1f} mm along the normal, where the others lie "
            f"{median:.2f} mm apart ({gaps.size} such gaps)",
        )
    irregular = np.abs(distances - median) > max(SPACING_TOLERANCE * median, 0.05)
    if irregular.any():
        raise InputRefused(
            "irregular-spacing",
            f"the slices lie between {distances.min():.2f} and {distances.max():.2f} mm apart; one distance is needed",
        )
    return float(distances.mean())


def _require_straight(planes: list[_Plane], normal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean step from one plane to the next (LPS, mm); refuse a stack that leans or wanders."""
    positions = np.stack([plane.position for plane in planes])
    step: npt.NDArray[np.float64] = (positions[-1] - positions[0]) / (len(planes) - 1)
    along = float(step @ normal)
    across = step - along * normal
    angle = float(np.degrees(np.arctan2(np.linalg.norm(across), along)))
    drift = float(np.linalg.norm(across)) * (len(planes) - 1)
    if angle > TILT_TOLERANCE_DEGREES and drift > min(planes[0].pixel_spacing) / 2:
        raise InputRefused(
            "gantry-tilt",
            f"the slices are stacked {angle:.1f} degrees off their normal (a tilted gantry); at most "
            f"{TILT_TOLERANCE_DEGREES:g} is read",
        )
    residual = positions - positions[0] - np.arange(len(planes))[:, None] * step
    residual -= (residual @ normal)[:, None] * normal
    furthest = float(np.linalg.norm(residual, axis=1).max())
    if furthest > SHIFT_TOLERANCE_MM:
        raise InputRefused(
            "gantry-tilt", f"a slice lies {furthest:.1f} mm aside of the stack; at most {SHIFT_TOLERANCE_MM:g} is read"
        )
    return step


def _nearest_axes(directions: npt.NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which source axis (plane, row, column) runs along each of z, y, x, and which of them run backwards.

    ``directions`` holds the source axes' unit vectors in LPS as columns.
    """
    wanted = (2, 1, 0)
    best = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(float(directions[wanted[i], axes[i]])) for i in range(3)),
    )
    axes = (best[0], best[1], best[2])
    backwards = [bool(directions[wanted[i], axes[i]] < 0) for i in range(3)]
    return axes, (backwards[0], backwards[1], backwards[2])


def _source_view(
    canonical: npt.NDArray[T], axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> npt.NDArray[T]:
    """View an array in canonical axes as (plane along the normal, row, column) of the source; nothing is copied."""
    turned = canonical[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return turned.transpose(tuple(axes.index(axis) for axis in range(3)))


def _affine(
    vectors: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    shape: tuple[int, int, int],
    axes: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, 3] = origin
    for canonical, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[:3, canonical] = -vectors[:, axis] if flip else vectors[:, axis]
        if flip:
            affine[:3, 3] += vectors[:, axis] * (shape[axis] - 1)
    return affine


def _fill(target: npt.NDArray[np.int16], plane: _Plane) -> None:
    """Decode one image into its plane of the volume, as HU; its bytes are let go."""
    assert plane.dataset is not None
    stored = stored_values(plane.dataset)
    slope, intercept = plane.rescale
    if slope == 1.0 and intercept == int(intercept):
        values = stored.astype(np.int32)
        values += int(intercept)
    else:
        scaled = stored.astype(np.float32)
        scaled *= np.float32(slope)
        scaled += np.float32(intercept)
        values = np.rint(scaled, out=scaled)
    np.clip(values, AIR_HU, 32767, out=values)
    outside = padding_mask(plane.dataset, stored)
    if outside is not None:
        values[outside] = AIR_HU
    target[...] = values
    plane.dataset = None
