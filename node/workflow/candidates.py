"""The series of a study as routes and cards see them, and which of several is best by a card's preferences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from statistics import median
from typing import Any

from inference.inputs import InputRole
from inference.matching import evaluate
from storage.attributes import INSTANCE_KEYWORDS, SERIES_KEYWORDS, STUDY_KEYWORDS, attribute_value
from storage.records import Instance, Series, Study

__all__ = [
    "Candidate",
    "Ranked",
    "best",
    "candidates_of",
    "frames",
    "is_localizer",
    "ranked",
    "slice_spacing",
    "values_of",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A series with the instances of it that count, and what routes and cards may look at."""

    series: Series
    instances: tuple[Instance, ...]
    attributes: Mapping[str, Any]

    @property
    def title(self) -> str:
        """How reasons name the series: number and description."""
        number = self.series.series_number or "?"
        description = self.series.series_description
        return f"series {number} ({description})" if description else f"series {number}"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A series and how it stands by each preference: a score, and the words for it."""

    candidate: Candidate
    scores: Mapping[str, tuple[float, str]] = field(default_factory=dict)


def candidates_of(study: Study, series: Sequence[Series], instances: Sequence[Instance]) -> list[Candidate]:
    """Group a study's counting instances by series, with the attributes that rules look at."""
    counting = {instance.series_id for instance in instances}
    # What was made here is in the study too, and must not steer what is decided about it.
    modalities = sorted({one.modality for one in series if one.modality and one.id in counting})
    found = []
    for one in series:
        members = tuple(instance for instance in instances if instance.series_id == one.id)
        if not members:
            continue
        attributes: dict[str, Any] = {}
        for source, keywords in (
            (members[0].attributes, INSTANCE_KEYWORDS),
            (one.attributes, SERIES_KEYWORDS),
            (study.attributes, STUDY_KEYWORDS),
        ):
            for keyword in keywords:
                value = attribute_value(source, keyword)
                if value is not None:
                    attributes[keyword] = value
        attributes["SOPClassUID"] = sorted({member.sop_class_uid for member in members})
        attributes["CallingAETitle"] = sorted({member.calling_ae_title for member in members})
        attributes["ModalitiesInStudy"] = modalities
        found.append(Candidate(one, members, attributes))
    return found


def ranked(candidates: Sequence[Candidate], role: InputRole) -> list[Ranked]:
    """Rank by the card's preferences, one after the other; the UID breaks what ties are left, so that it is stable."""
    scorers: dict[str, Callable[[Candidate], tuple[float, str]]] = {
        "axial": _axial,
        "original": _original,
        "thinnest": _thinnest,
        "most_slices": _most_slices,
        "kernel": lambda one: _kernel(one, role.kernel_preference),
    }
    return sorted(
        (Ranked(one, {name: scorers[name](one) for name in role.prefer}) for one in candidates),
        key=lambda one: (
            *(-one.scores[name][0] for name in role.prefer),
            one.candidate.series.series_instance_uid,
        ),
    )


def best(candidates: Sequence[Candidate], role: InputRole) -> tuple[Candidate, tuple[str, ...]]:
    """Return the best series for a role, and why it and none of the others."""
    order = ranked(candidates, role)
    winner = order[0]
    described = ", ".join(winner.scores[name][1] for name in role.prefer) or "the only rule is its UID"
    if len(order) == 1:
        return winner.candidate, (f"best: {winner.candidate.title}, the only one that can be read: {described}",)
    lines = [f"best of {len(order)}: {winner.candidate.title}: {described}"]
    for other in order[1:]:
        decided = next((name for name in role.prefer if other.scores[name][0] != winner.scores[name][0]), None)
        why = f"{decided}: {other.scores[decided][1]}" if decided else "equal in all; the UID decides"
        lines.append(f"not {other.candidate.title}: {why}")
    return winner.candidate, tuple(lines)


def _axial(one: Candidate) -> tuple[float, str]:
    normal = _normal(one.instances[0])
    if normal is None:
        return 0.0, "orientation unknown"
    axial = abs(normal[2]) > max(abs(normal[0]), abs(normal[1]))
    return float(axial), "axial" if axial else "not axial"


def _original(one: Candidate) -> tuple[float, str]:
    image_type = [str(part).upper() for part in values_of(one.attributes.get("ImageType"))]
    original = image_type[:1] == ["ORIGINAL"]
    return float(original), "original" if original else "derived"


def _thinnest(one: Candidate) -> tuple[float, str]:
    spacing = slice_spacing(one)
    if spacing is None:
        return -1000.0, "slice spacing unknown"
    # A hundredth of a millimetre is rounding, not a thinner series.
    return -round(spacing, 2), f"slices {spacing:.4g} mm apart"


def _most_slices(one: Candidate) -> tuple[float, str]:
    count = sum(frames(instance) for instance in one.instances)
    return float(count), f"{count} slices"


def _kernel(one: Candidate, preference: Sequence[str]) -> tuple[float, str]:
    kernel = "\\".join(str(part) for part in values_of(one.attributes.get("ConvolutionKernel"))) or "unknown"
    for rank, wanted in enumerate(preference):
        if evaluate({"ConvolutionKernel": wanted}, one.attributes).matched:
            return float(-rank), f"kernel {kernel}"
    return float(-len(preference)), f"kernel {kernel}"


def is_localizer(one: Candidate) -> bool:
    """Whether a series holds localizers only."""
    return all(
        "LOCALIZER" in [str(part).upper() for part in values_of(attribute_value(instance.attributes, "ImageType"))]
        for instance in one.instances
    )


def slice_spacing(one: Candidate) -> float | None:
    """Return the median distance of neighbouring slices along the normal, mm; else what the header says."""
    normal = _normal(one.instances[0])
    positions = [_numbers(attribute_value(instance.attributes, "ImagePositionPatient")) for instance in one.instances]
    if normal is not None and len(positions) > 1 and all(len(position) == 3 for position in positions):
        along = sorted(sum(a * b for a, b in zip(position, normal, strict=True)) for position in positions)
        gaps = [second - first for first, second in pairwise(along) if second - first > 1e-3]
        if gaps:
            return median(gaps)
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        numbers = _numbers(attribute_value(one.instances[0].attributes, keyword))
        if numbers and numbers[0] > 0:
            return numbers[0]
    return None


def _normal(instance: Instance) -> tuple[float, float, float] | None:
    """Return the slice normal in LPS: rows x columns of Image Orientation (Patient) (PS3.3 C.7.6.2.1.1)."""
    cosines = _numbers(attribute_value(instance.attributes, "ImageOrientationPatient"))
    if len(cosines) != 6:
        return None
    (a, b, c), (d, e, f) = cosines[:3], cosines[3:]
    return b * f - c * e, c * d - a * f, a * e - b * d


def frames(instance: Instance) -> int:
    """Return the number of frames of an instance."""
    numbers = _numbers(attribute_value(instance.attributes, "NumberOfFrames"))
    return int(numbers[0]) if numbers and numbers[0] >= 1 else 1


def _numbers(value: Any) -> list[float]:
    """Return values as finite numbers; none where one of them is no such number."""
    try:
        numbers = [float(one) for one in values_of(value)]
    except (TypeError, ValueError, OverflowError):
        return []
    return numbers if all(map(isfinite, numbers)) else []


def values_of(value: Any) -> list[Any]:
    """Return the values of an attribute: none, one or many."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
