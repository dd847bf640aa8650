"""Judging whether planes make one stack: what does not is refused with a reason of its own, in words for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import InputRefused
from inference.frames import MARKS, Mark, Plane

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Lie", "lie_of", "require_uniform", "without_localizers"]

#: Two orientations are the same when no direction cosine differs by more (about half a degree).
ORIENTATION_TOLERANCE = 0.01
#: Pixel spacing may differ by this fraction within a series.
PIXEL_SPACING_TOLERANCE = 0.001
#: Distances between neighbours may differ from their median by this fraction (or 0.05 mm where that is more).
SPACING_TOLERANCE = 0.1
#: A distance of this many medians is a missing slice rather than an irregular one.
GAP = 1.5
#: Below this many medians (or 0.01 mm) apart, two images lie in the same place.
SAME_PLACE = 0.05
#: A stack that leans from its normal by more than this angle, in degrees, is a tilted gantry's and is resampled.
TILT_TOLERANCE_DEGREES = 1.0
#: No gantry tilts further than about 30 degrees: a stack that leans by more than this is not believed.
TILT_LIMIT_DEGREES = 35.0
#: An image may lie off the stack's line by this many mm across it.
SHIFT_TOLERANCE_MM = 1.0
#: Planes of one value of a mark, at least this share of all and over more than half of the stack, are a volume of their
#: own beside others of the kind; fewer are strays of a messy header.
_VOLUME_SHARE = 0.1
#: One volume of MR is acquired in passes, each over all of the stack: what counts or times them tells no volumes apart.
_PASSES = frozenset({"TriggerTime", "AcquisitionNumber", "AcquisitionTime"})
#: One volume is of one phase: planes of another are refused behind its own as well as among them.
_PHASES = frozenset({"TemporalPositionIdentifier", "NominalPercentageOfRespiratoryPhase", "ContrastBolusAgent"})
#: So many values are named in a refusal; more are counted.
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Lie:
    """How a stack of planes, sorted along their normal, lies: LPS, mm.

    Attributes
    ----------
    step
        From one plane's first pixel to the next one's.
    spacing
        The distance of neighbouring planes along the normal.
    tilt_degrees
        Between ``step`` and the normal where that is a tilted gantry's, else 0.
    """

    row: npt.NDArray[np.float64]
    column: npt.NDArray[np.float64]
    normal: npt.NDArray[np.float64]
    step: npt.NDArray[np.float64]
    spacing: float
    tilt_degrees: float


def without_localizers(planes: list[Plane]) -> tuple[list[Plane], list[Plane]]:
    """Keep the planes of one orientation; those of another may only be localizers, which are left out.

    Raises
    ------
    InputRefused
        ``several-stacks`` or ``mixed-orientations``.
    """
    groups: list[list[Plane]] = []
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
        return groups[0], sorted(others, key=lambda plane: (plane.index, plane.frame))
    counts = ", ".join(str(len(group)) for group in sorted(groups, key=len, reverse=True)[:8])
    stacks = {plane.mark(MARKS[0]) for plane in planes if plane.frame}
    reason = "several-stacks" if len(stacks - {""}) > 1 else "mixed-orientations"
    raise InputRefused(reason, f"the series holds {len(groups)} orientations ({counts} images each); one is needed")


def require_uniform(planes: list[Plane]) -> None:
    """Refuse planes that are not of one kind.

    Raises
    ------
    InputRefused
        ``mixed-modalities``, ``mixed-frames-of-reference``, ``missing-rescale``, ``mixed-units``, ``varying-matrix`` or
        ``varying-pixel-spacing``.
    """
    modalities = {plane.modality for plane in planes}
    if len(modalities) > 1:
        raise InputRefused("mixed-modalities", f"the images are of {len(modalities)} modalities; one is needed")
    frames = {plane.frame_of_reference for plane in planes}
    if len(frames) > 1:
        raise InputRefused(
            "mixed-frames-of-reference", f"the images lie in {len(frames)} frames of reference; one is needed"
        )
    bare = sum(not plane.values.given for plane in planes)
    if bare and not all(plane.values.as_stored for plane in planes):
        raise InputRefused(
            "missing-rescale",
            f"{bare} of {len(planes)} images have no Rescale Slope and Intercept, and the others have: two scales in "
            "one volume",
        )
    units = {plane.values.unit for plane in planes}
    if len(units) > 1:
        raise InputRefused(
            "mixed-units",
            f"the images' values are in {len(units)} units (Rescale Type, Modality LUT Type or Units); one is needed",
        )
    matrices = sorted({plane.matrix for plane in planes})
    if len(matrices) > 1:
        shown = ", ".join(f"{rows} x {columns}" for rows, columns in matrices[:_NAMED])
        raise InputRefused("varying-matrix", f"the images have {len(matrices)} sizes ({shown}); one is needed")
    spacings = np.array([plane.pixel_spacing for plane in planes])
    if (np.ptp(spacings, axis=0) > PIXEL_SPACING_TOLERANCE * spacings.min(axis=0)).any():
        low, high = spacings.min(axis=0), spacings.max(axis=0)
        raise InputRefused(
            "varying-pixel-spacing",
            f"Pixel Spacing varies from {low[0]:g} x {low[1]:g} to {high[0]:g} x {high[1]:g} mm within the series",
        )


def lie_of(planes: list[Plane]) -> Lie:
    """Sort planes along their normal, in place, and return how they lie.

    Raises
    ------
    InputRefused
        ``several-stacks``, ``several-phases``, ``several-acquisitions``, ``several-echoes`` and the other reasons of
        :data:`inference.frames.MARKS`, ``several-volumes``, ``duplicate-positions``, ``gap-in-series``,
        ``irregular-spacing`` or ``gantry-tilt``.
    """
    row, column = planes[0].orientation[:3], planes[0].orientation[3:]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    planes.sort(key=lambda plane: float(plane.position @ normal))
    spacing = _slice_spacing(planes, normal)
    step, tilt = _step(planes, normal)
    return Lie(row=row, column=column, normal=normal, step=step, spacing=spacing, tilt_degrees=tilt)


def _slice_spacing(planes: list[Plane], normal: npt.NDArray[np.float64]) -> float:
    """Return the distance of neighbours in mm; refuse a gap, a doubled place and an irregular stack."""
    places = np.array([float(plane.position @ normal) for plane in planes])
    distances = np.diff(places)
    apart = distances[distances > 0.01]
    median = float(np.median(apart)) if apart.size else 0.0
    # Places are told as a reader of the images knows them: growing towards the head, the back or the left.
    sign = 1.0 if normal[int(np.abs(normal).argmax())] > 0 else -1.0
    told = places * sign
    same = distances <= max(0.01, SAME_PLACE * median)
    doubled = np.flatnonzero(same)
    if doubled.size:
        _tell_apart(planes, np.concatenate([[0], np.cumsum(~same)]))
        raise InputRefused(
            "duplicate-positions",
            f"{doubled.size} images lie in the place of another (the first at {told[doubled[0]]:.1f} mm along the "
            "normal), and nothing in them says why",
        )
    _require_one_volume(planes, places)
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
    # Distances that are each near their median may still add up: every voxel behind would be told in a wrong place.
    spacing = float(distances.mean())
    astray = float(np.abs(places - (places[0] + spacing * np.arange(len(places)))).max())
    if astray > spacing / 2:
        raise InputRefused(
            "irregular-spacing",
            f"a slice lies {astray:.1f} mm from where one distance of {spacing:.2f} mm would have it; the slices lie "
            f"between {distances.min():.2f} and {distances.max():.2f} mm apart",
        )
    return spacing


def _tell_apart(planes: list[Plane], places: npt.NDArray[np.intp]) -> None:
    """Refuse planes of which several lie in one place by what tells these apart; return where nothing does."""
    varying = []
    for mark in MARKS:
        # Each volume in a series holds many places: what differs from plane to plane tells no volumes apart.
        values = [plane.mark(mark) for plane in planes]
        different = sorted(set(values), key=_as_number)
        if not 1 < len(different) <= len(planes) // 2:
            continue
        varying.append(mark)
        if max(Counter(zip(values, places.tolist(), strict=True)).values()) == 1:
            raise _several(mark, different, "in one place")
    if len(varying) > 1:
        named = ", ".join(mark.words for mark in varying[:_NAMED])
        raise InputRefused(
            "several-volumes", f"the series holds several volumes in one place, which differ in their {named}"
        )


def _require_one_volume(planes: list[Plane], places: npt.NDArray[np.float64]) -> None:
    """Refuse volumes of which the planes lie between each other's, and those of another phase or stack behind.

    ``places`` are along the normal, mm, one a plane, ascending.
    """
    extent = places[-1] - places[0]
    for mark in MARKS:
        if mark.keyword in _PASSES and planes[0].modality == "MR":
            continue
        values = [plane.mark(mark) for plane in planes]
        counts = Counter(values)
        if len(counts) == 1:
            continue
        first = {value: places[values.index(value)] for value in counts}
        last = dict(zip(values, places, strict=True))
        many = [value for value, count in counts.items() if count >= max(2, _VOLUME_SHARE * len(planes))]
        spread = [value for value in many if last[value] - first[value] > extent / 2]
        if len(spread) > 1:
            raise _several(mark, sorted(spread, key=_as_number), "of which the images lie between each other's")
        if mark.keyword == "StackID" and "" not in counts:
            raise _several(mark, sorted(counts, key=_as_number), "one behind the other")
        if mark.keyword in _PHASES and len(many) > 1:
            raise _several(mark, sorted(many, key=_as_number), "one behind the other")


def _several(mark: Mark, different: list[str], lie: str) -> InputRefused:
    shown = ", ".join(value or "none" for value in different[:_NAMED] if _may_be_shown(value, mark.keyword))
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    return InputRefused(
        mark.reason,
        f"the series holds {len(different)} volumes {lie}, told apart by their {mark.words} "
        f"({f'{mark.keyword} {shown}{more}'.strip()}); one is needed",
    )


def _may_be_shown(value: str, keyword: str) -> bool:
    """Whether a value is a number or one of the standard's own terms: nobody knows what was typed into the others."""
    return not value or _as_number(value)[0] == 0 or keyword in ("ImageType", "ConvolutionKernel")


def _as_number(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _step(planes: list[Plane], normal: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """Return the mean step from one plane to the next (LPS, mm) and the tilt; refuse a stack that wanders."""
    positions = np.stack([plane.position for plane in planes])
    step: npt.NDArray[np.float64] = (positions[-1] - positions[0]) / (len(planes) - 1)
    along = float(step @ normal)
    across = step - along * normal
    angle = float(np.degrees(np.arctan2(np.linalg.norm(across), along)))
    drift = float(np.linalg.norm(across)) * (len(planes) - 1)
    residual = positions - positions[0] - np.arange(len(planes))[:, None] * step
    residual -= (residual @ normal)[:, None] * normal
    furthest = float(np.linalg.norm(residual, axis=1).max())
    if furthest > SHIFT_TOLERANCE_MM:
        raise InputRefused(
            "slices-aside",
            f"a slice lies {furthest:.1f} mm aside of the stack; at most {SHIFT_TOLERANCE_MM:g} is read",
        )
    if angle <= TILT_TOLERANCE_DEGREES or drift <= min(planes[0].pixel_spacing) / 2:
        return step, 0.0
    if angle > TILT_LIMIT_DEGREES:
        raise InputRefused(
            "gantry-tilt",
            f"the slices are stacked {angle:.1f} degrees off their normal; no gantry tilts by more than "
            f"{TILT_LIMIT_DEGREES:g}",
        )
    return step, angle
