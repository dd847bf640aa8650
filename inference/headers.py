"""What an image's header tells of what limits and drift ask: its matrix, geometry, contrast, side and patient's age."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.imagefile import texts_of, value_of

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Seen", "age_years", "seen"]

_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_NO_AGENT = {"NONE", "NO", "N", "NO CONTRAST", "WITHOUT"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the headers of an input tell; None, or an empty text, where they do not.

    ``spacing_mm`` is the distance of pixels, rows and columns, at the detector for a radiograph that knows no better;
    ``orientation`` the plane of the images; ``contrast`` "with", "without" or empty.
    """

    rows: int | None
    columns: int | None
    spacing_mm: tuple[float, float] | None
    photometric: str
    orientation: str
    laterality: str
    contrast: str
    age_years: float | None


def seen(dataset: Dataset) -> Seen:
    """Read what the limits ask for from one image's header, single- or multi-frame."""
    return Seen(
        rows=_whole(dataset, "Rows"),
        columns=_whole(dataset, "Columns"),
        spacing_mm=_spacing(dataset),
        photometric=next(iter(texts_of(dataset, "PhotometricInterpretation")), ""),
        orientation=_orientation(dataset),
        laterality=_laterality(dataset),
        contrast=_contrast(dataset),
        age_years=age_years(dataset),
    )


def age_years(dataset: Dataset) -> float | None:
    """Return the patient's age at the study, in years, or None where it is not known.

    Patient's Age (0010,1010) with its unit (PS3.5 Table 6.2-1, AS) comes first, then Birth Date and Study Date.
    """
    told = re.fullmatch(r"(\d{1,3})([DWMY])", next(iter(texts_of(dataset, "PatientAge")), ""))
    if told:
        return float(told[1]) * _DAYS[told[2]] / _DAYS["Y"]
    born, examined = _date(dataset, "PatientBirthDate"), _date(dataset, "StudyDate")
    if born is None or examined is None or examined < born:
        return None
    years = (examined - born).astype(int) / _DAYS["Y"]
    return float(years) if years < 150 else None


def _nested(dataset: Dataset, sequence: str, keyword: str) -> Any:
    """Return an attribute's value: the image's own, or that of its (first) frame's functional groups."""
    own = value_of(dataset, keyword)
    if own is not None:
        return own
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in list(value_of(dataset, groups) or ())[:1]:
            for inner in list(value_of(item, sequence) or ())[:1]:
                found = value_of(inner, keyword)
                if found is not None:
                    return found
    return None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(one) for one in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and all(math.isfinite(one) for one in numbers) else None


def _whole(dataset: Dataset, keyword: str) -> int | None:
    numbers = _numbers([value_of(dataset, keyword)], 1)
    return int(numbers[0]) if numbers else None


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    spacing = _numbers(_nested(dataset, "PixelMeasuresSequence", "PixelSpacing"), 2)
    spacing = spacing or _numbers(value_of(dataset, "ImagerPixelSpacing"), 2)
    return (spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None


def _orientation(dataset: Dataset) -> str:
    cosines = _numbers(_nested(dataset, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    if cosines is None:
        return ""
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    # Within about 45 degrees of an axis; an oblique plane in between is none of the three.
    axis = int(normal.argmax())
    return ("sagittal", "coronal", "axial")[axis] if normal[axis] > 0.71 * np.linalg.norm(normal) > 0 else "oblique"


def _laterality(dataset: Dataset) -> str:
    for value in (
        _nested(dataset, "FrameAnatomySequence", "FrameLaterality"),
        value_of(dataset, "ImageLaterality"),
        value_of(dataset, "Laterality"),
    ):
        text = str(value or "").strip().upper()
        if text in ("L", "R", "B", "U"):
            return text
    return ""


def _contrast(dataset: Dataset) -> str:
    """Contrast/Bolus is there where contrast was used (PS3.3 C.7.6.4); there and empty, it says nothing."""
    if value_of(dataset, "ContrastBolusAgentSequence"):
        return "with"
    agent = " ".join(texts_of(dataset, "ContrastBolusAgent"))
    if agent:
        return "without" if agent in _NO_AGENT else "with"
    return "" if "ContrastBolusAgent" in dataset else "without"


def _date(dataset: Dataset, keyword: str) -> np.datetime64 | None:
    text = next(iter(texts_of(dataset, keyword)), "")
    if not re.fullmatch(r"\d{8}", text):
        return None
    try:
        return np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}")
    except ValueError:
        return None
