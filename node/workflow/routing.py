"""Weighing routes over a study and choosing its input sets, with the reasons for every verdict.

Nothing here touches the database or the network: rules can be tried on any study, at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inference.card import Card
from inference.inputs import InputRole
from inference.matching import evaluate, keywords
from node.settings import Route
from node.workflow.candidates import (
    Candidate,
    best,
    candidates_of,
    frames,
    is_localizer,
    ranked,
    slice_spacing,
    values_of,
)
from node.workflow.filling import fill_roles
from storage import priority
from storage.attributes import INSTANCE_KEYWORDS, attribute_value

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
    readable = {role.role: _readable(matched, role) for role in card.inputs}
    reasons += tuple(dict.fromkeys(line for _, refused in readable.values() for line in refused))
    sets, why, lacking = (_one_role if len(card.inputs) == 1 else _several_roles)(card, route, readable)
    return Decision(
        route=route, model=model, matched=True, reasons=(*reasons, *why), input_sets=sets, not_analysed=lacking
    )


_Readable = Mapping[str, tuple[list[Candidate], tuple[str, ...]]]
#: Input sets, the reasons for them, and the statement that stands in their place where there are none.
_Chosen = tuple[tuple[InputSet, ...], tuple[str, ...], Mapping[str, str] | None]


def _one_role(card: Card, route: Route, readable: _Readable) -> _Chosen:
    role = card.inputs[0]
    candidates, refused = readable[role.role]
    if not candidates:
        text = "; ".join(refused) or f"no series that {card.name} can read"
        return (), (), {"reason": "no-suitable-series", "text": text}
    if (route.select or role.select) == "each":
        return tuple(InputSet({role.role: one}, f"each: {one.title}") for one in candidates), (), None
    winner, why = best(candidates, role)
    return (InputSet({role.role: winner}, why[0]),), why, None


def _several_roles(card: Card, _: Route, readable: _Readable) -> _Chosen:
    """Make one input set of a series for each role, as :func:`node.workflow.filling.fill_roles` shares them out."""
    by_uid = {one.series.series_instance_uid: one for candidates, _refused in readable.values() for one in candidates}
    ranks = {
        role.role: [one.candidate.series.series_instance_uid for one in ranked(readable[role.role][0], role)]
        for role in card.inputs
    }
    optional = [role.role for role in card.inputs if role.optional]
    # Of two rules that one series alone fulfils, the one that asks for more means it.
    demanding = sorted(card.inputs, key=lambda role: -len(keywords(role.match)))
    filled, missing = fill_roles({role.role: ranks[role.role] for role in demanding}, optional)
    if missing:
        missing = [role for role in ranks if role in missing]
        refused = [line for role in missing for line in readable[role][1]]
        taken = [f"{by_uid[uid].title} is needed for role {role}" for role, uid in filled.items()]
        text = f"no series for {', '.join(missing)}: " + ("; ".join([*taken, *refused]) or "none matches")
        return (), (), {"reason": "missing-role", "text": text}
    holders = {uid: role for role, uid in filled.items()}
    why: list[str] = []
    for role, uids in ranks.items():
        if role not in filled:
            why.append(f"role {role}: no series; it may be absent")
            continue
        why.append(f"role {role}: {by_uid[filled[role]].title}, of {len(uids)} that can be read")
        why.extend(
            f"not {by_uid[uid].title} for role {role}: it is role {holders[uid]}"
            for uid in uids
            if holders.get(uid, role) != role
        )
    # What was judged is the role's own view of the series: of radiographs it may hold some of the images only.
    own = {
        role: next(one for one in readable[role][0] if one.series.series_instance_uid == filled[role])
        for role in ranks
        if role in filled
    }
    return (InputSet(own, "; ".join(f"{role}: {one.title}" for role, one in own.items())),), tuple(why), None


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
        values += [attribute_value(one, "RequestedProcedurePriority") for one in values_of(requests) if one]
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
        count = sum(frames(instance) for instance in one.instances)
        spacing = slice_spacing(one) if role.kind == "volume" else None
        defective = [instance.defect for instance in one.instances if instance.defect]
        if not verdict.matched:
            refused.append(f"{one.title}: not for role {role.role}: {', '.join(verdict.reasons)}")
        elif defective:
            refused.append(
                f"{one.title}: not for role {role.role}: {len(defective)} of {len(one.instances)} images cannot be "
                f"analysed: {defective[0]}"
            )
        elif role.kind == "volume" and is_localizer(one):
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
