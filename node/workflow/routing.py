"""Weighing routes over a study and choosing its input sets, with the reasons for every verdict.

Nothing here touches the database or the network: rules can be tried on any study, at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import isfinite
from statistics import median
from typing import Any

from inference.card import Card
from inference.inputs import InputRole
from inference.matching import evaluate
from node.settings import Route
from storage import priority
from storage.attributes import INSTANCE_KEYWORDS, SERIES_KEYWORDS, STUDY_KEYWORDS, attribute_value
from storage.records import Instance, Series, Study

__all__ = [
    "Candidate",
    "Decision",
    "InputSet",
    "candidates_of",
    "could_select",
    "unmet",
    "unserved",
    "urgency",
    "weigh",
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
class InputSet:
    """Role to series, for one workitem, and why these series."""

    roles: Mapping[str, Candidate]
    reason: str

    @property
    def digest(self) -> str:
        """SHA-256 over roles, UIDs and dataset digests, whatever the order the instances came in."""
        lines = sorted(
            f"{role}\t{one.sop_instance_uid}\t{one.digest}"
            for role, candidate in self.roles.items()
            for one in candidate.instances
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return what a workitem keeps of it."""
        return {
            role: {
                "series_instance_uid": candidate.series.series_instance_uid,
                "sop_instance_uids": [one.sop_instance_uid for one in candidate.instances],
            }
            for role, candidate in self.roles.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one route decided about one model: whether it matched, why, and what is to be read.

    ``not_analysed`` stands where the route matched and the model can read nothing of the study.
    """

    route: Route
    model: str
    matched: bool
    reasons: tuple[str, ...]
    input_sets: tuple[InputSet, ...] = ()
    not_analysed: Mapping[str, str] | None = None
    #: Which version is to read it, and whether anything of it may leave.
    card: Card | None = None
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class _Ranked:
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


def weigh(candidates: Sequence[Candidate], route: Route, card: Card | None, *, demonstrations: bool) -> Decision:
    """Weigh one route, for one of its models, over a study.

    Parameters
    ----------
    card
        The model's card; None where no such model is there.
    demonstrations
        Whether demonstration models may run.
    """
    model = card.name if card else "?"
    matched, reasons = _matching(candidates, route)
    if not matched:
        return Decision(route=route, model=model, matched=False, reasons=reasons)
    assert card is not None
    if card.demonstration and not demonstrations:
        reasons += (f"{card.name} is a demonstration model and demonstration_models is false: it does not run",)
        return Decision(route=route, model=model, matched=False, reasons=reasons)
    reasons += tuple(f"expected series did not come: {one}" for one in unmet(candidates, route))
    role = card.inputs[0]
    readable, refused = _readable(matched, role)
    reasons += refused
    if not readable:
        text = "; ".join(refused) or f"no series that {card.name} can read"
        return Decision(
            route=route,
            model=model,
            matched=True,
            reasons=reasons,
            not_analysed={"reason": "no-suitable-series", "text": text},
        )
    if (route.select or role.select) == "each":
        chosen = tuple(InputSet({role.role: one}, f"each: {one.title}") for one in readable)
        return Decision(route=route, model=model, matched=True, reasons=reasons, input_sets=chosen)
    best, why = _best(readable, role)
    return Decision(
        route=route,
        model=model,
        matched=True,
        reasons=(*reasons, *why),
        input_sets=(InputSet({role.role: best}, why[0]),),
    )


def unserved(candidates: Sequence[Candidate], route: Route, model: str, why: str) -> Decision:
    """Weigh one route for a model of which no version can read the study: where it matches, that has to be said."""
    matched, reasons = _matching(candidates, route)
    not_analysed = {"reason": "no-version", "text": why} if matched else None
    return Decision(route=route, model=model, matched=bool(matched), reasons=(*reasons, why), not_analysed=not_analysed)


def could_select(candidate: Candidate, routes: Sequence[Route], serving: Callable[[str], Sequence[Card]]) -> bool:
    """Whether some route and a model of it could select this series at all, whatever its number of instances.

    Parameters
    ----------
    serving
        Gives the cards that may read a study for what a route names.
    """
    return any(
        evaluate(route.match, candidate.attributes).matched
        and any(
            evaluate(role.match, candidate.attributes).matched
            for model in route.models
            for card in serving(model)
            for role in card.inputs
        )
        for route in routes
    )


def unmet(candidates: Sequence[Candidate], route: Route) -> list[str]:
    """Return what a route expects of the study's series and no series is, in the words of its conditions.

    A condition may look at the number of instances of the series, as Number of Series Related Instances (0020,1209).
    """
    series = [{**one.attributes, "NumberOfSeriesRelatedInstances": len(one.instances)} for one in candidates]
    return [
        _said(condition)
        for condition in route.expect
        if not any(evaluate(condition, attributes).matched for attributes in series)
    ]


def urgency(route: Route, input_set: InputSet) -> str:
    """Return how urgent the work on an input set is: as its route says, else as was requested, else MEDIUM.

    What was requested stands as Requested Procedure Priority (0040,1003), by itself or in the Request Attributes
    Sequence (0040,0275); of several the most urgent counts.
    """
    if route.priority is not None:
        return route.priority.upper()
    said: list[str] = []
    for candidate in input_set.roles.values():
        requests = candidate.attributes.get("RequestAttributesSequence")
        values = [candidate.attributes.get("RequestedProcedurePriority")]
        values += [attribute_value(one, "RequestedProcedurePriority") for one in _list(requests) if one]
        said += [known for one in values for known in [priority.from_requested(one)] if known is not None]
    return min(said, key=priority.rank_of, default=priority.MEDIUM)


def _said(condition: Any) -> str:
    """Write a condition on one line, as its file has it."""
    if isinstance(condition, Mapping):
        return ", ".join(f"{key} {_said(value)}" for key, value in condition.items())
    if isinstance(condition, (list, tuple)):
        return " or ".join(_said(one) for one in condition)
    return str(condition)


def _matching(candidates: Sequence[Candidate], route: Route) -> tuple[list[Candidate], tuple[str, ...]]:
    matched: list[Candidate] = []
    reasons: list[str] = []
    for one in candidates:
        verdict = evaluate(route.match, one.attributes)
        if verdict.matched:
            matched.append(one)
        reasons.append(f"{one.title}: {'matches' if verdict.matched else 'no'}: {', '.join(verdict.reasons)}")
    return matched, tuple(reasons)


def _readable(candidates: Sequence[Candidate], role: InputRole) -> tuple[list[Candidate], tuple[str, ...]]:
    """Part the series that a role can read from those that it cannot, with the reason for each of these."""
    readable: list[Candidate] = []
    refused: list[str] = []
    for offered in candidates:
        one = _own_images(offered, role) if role.kind == "radiograph" else offered
        verdict = evaluate(role.match, one.attributes)
        count = sum(_frames(instance) for instance in one.instances)
        spacing = _slice_spacing(one) if role.kind == "volume" else None
        defective = [instance.defect for instance in one.instances if instance.defect]
        if not verdict.matched:
            refused.append(f"{one.title}: not for role {role.role}: {', '.join(verdict.reasons)}")
        elif defective:
            refused.append(
                f"{one.title}: not for role {role.role}: {len(defective)} of {len(one.instances)} images cannot be "
                f"analysed: {defective[0]}"
            )
        elif role.kind == "volume" and _is_localizer(one):
            refused.append(f"{one.title}: not for role {role.role}: a localizer")
        elif count < role.minimum_instances:
            refused.append(
                f"{one.title}: not for role {role.role}: {count} of at least {role.minimum_instances} images"
            )
        elif (
            role.slice_spacing_mm is not None
            and spacing is not None
            and not role.slice_spacing_mm[0] <= spacing <= role.slice_spacing_mm[1]
        ):
            low, high = role.slice_spacing_mm
            refused.append(
                f"{one.title}: not for role {role.role}: slices {spacing:g} mm apart, not {low:g} to {high:g}"
            )
        else:
            readable.append(one)
    return readable, tuple(refused)


def _own_images(candidate: Candidate, role: InputRole) -> Candidate:
    """Keep the images of a radiograph series that the role wants: a lateral may lie beside a frontal one."""
    wanted = []
    for instance in candidate.instances:
        own = {keyword: attribute_value(instance.attributes, keyword) for keyword in INSTANCE_KEYWORDS}
        attributes = {**candidate.attributes, **{key: value for key, value in own.items() if value is not None}}
        if evaluate(role.match, attributes).matched:
            wanted.append((instance, attributes))
    if not wanted:
        return candidate
    return replace(candidate, instances=tuple(one for one, _ in wanted), attributes=wanted[0][1])


def _best(candidates: Sequence[Candidate], role: InputRole) -> tuple[Candidate, tuple[str, ...]]:
    """Rank by the card's preferences, one after the other; the UID breaks what ties are left, so that it is stable."""
    scorers: dict[str, Callable[[Candidate], tuple[float, str]]] = {
        "axial": _axial,
        "original": _original,
        "thinnest": _thinnest,
        "most_slices": _most_slices,
        "kernel": lambda one: _kernel(one, role.kernel_preference),
    }
    ranked = sorted(
        (_Ranked(one, {name: scorers[name](one) for name in role.prefer}) for one in candidates),
        key=lambda one: (
            *(-one.scores[name][0] for name in role.prefer),
            one.candidate.series.series_instance_uid,
        ),
    )
    winner = ranked[0]
    described = ", ".join(winner.scores[name][1] for name in role.prefer) or "the only rule is its UID"
    if len(ranked) == 1:
        return winner.candidate, (f"best: {winner.candidate.title}, the only one that can be read: {described}",)
    lines = [f"best of {len(ranked)}: {winner.candidate.title}: {described}"]
    for other in ranked[1:]:
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
    image_type = [str(part).upper() for part in _list(one.attributes.get("ImageType"))]
    original = image_type[:1] == ["ORIGINAL"]
    return float(original), "original" if original else "derived"


def _thinnest(one: Candidate) -> tuple[float, str]:
    spacing = _slice_spacing(one)
    if spacing is None:
        return -1000.0, "slice spacing unknown"
    # A hundredth of a millimetre is rounding, not a thinner series.
    return -round(spacing, 2), f"slices {spacing:.4g} mm apart"


def _most_slices(one: Candidate) -> tuple[float, str]:
    count = sum(_frames(instance) for instance in one.instances)
    return float(count), f"{count} slices"


def _kernel(one: Candidate, preference: Sequence[str]) -> tuple[float, str]:
    kernel = "\\".join(str(part) for part in _list(one.attributes.get("ConvolutionKernel"))) or "unknown"
    for rank, wanted in enumerate(preference):
        if evaluate({"ConvolutionKernel": wanted}, one.attributes).matched:
            return float(-rank), f"kernel {kernel}"
    return float(-len(preference)), f"kernel {kernel}"


def _is_localizer(one: Candidate) -> bool:
    return all(
        "LOCALIZER" in [str(part).upper() for part in _list(attribute_value(instance.attributes, "ImageType"))]
        for instance in one.instances
    )


def _slice_spacing(one: Candidate) -> float | None:
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


def _frames(instance: Instance) -> int:
    numbers = _numbers(attribute_value(instance.attributes, "NumberOfFrames"))
    return int(numbers[0]) if numbers and numbers[0] >= 1 else 1


def _numbers(value: Any) -> list[float]:
    """Return values as finite numbers; none where one of them is no such number."""
    try:
        numbers = [float(one) for one in _list(value)]
    except (TypeError, ValueError, OverflowError):
        return []
    return numbers if all(map(isfinite, numbers)) else []


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
