"""Judging that a study is complete: DICOM never says so, and every verdict keeps its evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

from sqlalchemy import Connection

from node.workflow import testimony
from node.workflow.models import View
from node.workflow.routing import candidates_of, could_select
from node.workflow.testimony import Ask, Testimony
from node.workflow.way import Way
from storage import flags, inquiries, receiving, studies
from storage.database import now
from storage.records import Instance, Revision, Study

__all__ = ["RaisedFlag", "Verdict", "carry_out", "put_off", "shortest_quiet_seconds", "weigh"]

#: The next look is that much later at least, so that no rounding makes it a loop.
_LEAST_WAIT = timedelta(seconds=0.1)
#: So many studies that collide with one are named.
_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RaisedFlag:
    """A flag that goes with a verdict."""

    study_id: int
    kind: str
    subject: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to become of a study that was looked at, and on what evidence.

    ``evidence`` and ``last_instance_id`` stand for the outcome ``revision`` only, ``until`` and ``asks`` for ``wait``.
    ``forced``: by an operator's word or because it grew for too long; then it need not stand still to be judged.
    """

    outcome: Literal["wait", "revision", "unchanged", "parked"]
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    last_instance_id: int = 0
    until: datetime | None = None
    asks: tuple[Ask, ...] = ()
    raised: tuple[RaisedFlag, ...] = ()
    forced: bool = False


@dataclass(frozen=True, slots=True)
class _Seen:
    """A study as one look has it."""

    study: Study
    at: datetime
    evidence: Sequence[Instance]
    #: What came since the last revision; all where there is none.
    fresh: Sequence[Instance]
    last: Revision | None
    told: Sequence[Testimony]


def shortest_quiet_seconds(way: Way) -> float:
    """Return the shortest quiet period that any study may have: before that, none is worth a look."""
    completion = way.settings.completion
    periods = [
        completion.quiet_seconds,
        completion.after_release_seconds,
        *(one.quiet_seconds for one in way.settings.peers.values()),
        *(one.quiet_seconds for one in way.routes),
    ]
    if any(one.count for one in way.settings.peers.values()):
        periods.append(completion.count_after_seconds)
    return min(one for one in periods if one is not None)


def weigh(connection: Connection, study: Study, way: Way) -> Verdict:
    """Weigh the evidence for a study; changes nothing.

    A study is ready once it has been quiet for long enough, or other evidence says earlier that nothing more is to
    come; then evidence that something is missing holds it up, for a limited time each.
    """
    at = now(connection)
    models = way.models.view(connection)
    evidence = studies.evidence(connection, study.id)
    if not evidence and not study.asked_by:
        until = study.quiet_from + timedelta(seconds=way.settings.completion.quiet_seconds)
        if at < until:
            return Verdict(outcome="wait", reason="", until=until)
    last = studies.last_revision(connection, study.id)
    fresh = [one for one in evidence if last is None or one.id > last.last_instance_id]
    candidates = candidates_of(study, studies.series_of(connection, study.id), evidence)
    routes = [one for one in testimony.matching(candidates, way.routes) if _may_run(way, models, one.models)]
    senders = sorted({one.calling_ae_title.strip() for one in fresh or evidence} - {""})
    settings = way.settings
    basis = [
        testimony.quiet(study, senders, routes, settings, len(evidence)),
        testimony.released(study, settings.completion),
        testimony.steps(connection, study, evidence, settings.completion, at),
    ]
    told = [one for one in basis if one is not None]
    told += testimony.counts(connection, study, senders, settings, at, now_due=_ready(told, at) is not None)
    told += testimony.expected(study, candidates, routes)
    seen = _Seen(study, at, evidence, fresh, last, told)
    limit = (study.receiving_from or study.first_received_at) + timedelta(seconds=settings.completion.maximum_seconds)
    if study.asked_by:
        because, reason = "operator", f"judged at the word of {study.asked_by}"
    elif at >= limit:
        because, reason = "maximum", f"still growing after {settings.completion.maximum_seconds:g} s"
    else:
        ready = _ready(told, at)
        if ready is None:
            return _wait(seen, limit)
        because, reason = ready.kind, ready.says
        if not _trouble(evidence) and any(one.hold_until is not None and one.hold_until > at for one in told):
            return _wait(seen, limit, held=True)
    return _judged(connection, seen, way, because, reason)


def put_off(connection: Connection, study: Study, verdict: Verdict) -> None:
    """Note that a study waits, and for what, in the caller's write transaction; nothing where it has changed since."""
    assert verdict.until is not None
    if receiving.wait(connection, study, verdict.until, verdict.reason):
        for one in verdict.asks:
            inquiries.ask(connection, study.id, one.peer, one.after_seconds, anew=one.anew)


def carry_out(connection: Connection, study: Study, verdict: Verdict) -> None:
    """Do what a verdict says, in the caller's write transaction."""
    if verdict.outcome == "parked":
        studies.park(connection, study, verdict.reason)
    elif verdict.outcome == "unchanged":
        studies.settle_without_revision(connection, study, verdict.reason)
    else:
        studies.open_revision(
            connection,
            study,
            last_instance_id=verdict.last_instance_id,
            verdict=verdict.evidence,
            reason=verdict.reason,
        )
    for one in verdict.raised:
        flags.raise_flag(connection, one.study_id, one.kind, one.subject, one.reason)
    if verdict.forced and verdict.outcome != "parked":
        receiving.reopen_if_grown(connection, study, verdict.last_instance_id)


def _ready(told: Sequence[Testimony], at: datetime) -> Testimony | None:
    """Return what lets the study be judged: of several, the one that spoke first."""
    spoken = [one for one in told if one.ready_at is not None and one.ready_at <= at]
    return min(spoken, key=lambda one: one.ready_at or at, default=None)


def _wait(seen: _Seen, limit: datetime, *, held: bool = False) -> Verdict:
    """Say what is waited for, and when to look again."""
    if held:
        until = max(one.hold_until for one in seen.told if one.hold_until is not None)
        reason = "; ".join(one.missing or one.says for one in seen.told if one.hold_until and one.hold_until > seen.at)
    else:
        until = min(one.ready_at for one in seen.told if one.ready_at is not None)
        reason = ""
    looks = [until, limit, *(one.look_at for one in seen.told if one.look_at is not None)]
    return Verdict(
        outcome="wait",
        reason=reason,
        until=max(min(looks), seen.at + _LEAST_WAIT),
        asks=tuple(ask for one in seen.told for ask in one.asks),
    )


def _judged(connection: Connection, seen: _Seen, way: Way, because: str, reason: str) -> Verdict:
    study, evidence = seen.study, seen.evidence
    forced = because in ("operator", "maximum")
    trouble = _trouble(evidence)
    if trouble:
        return Verdict(outcome="parked", reason=trouble, forced=forced)
    if not evidence:
        why = "nothing in it counts as evidence: made here, or excluded"
        return Verdict(outcome="unchanged", reason=why, forced=forced)
    last_instance_id = evidence[-1].id
    collided = _collided(connection, study)
    models = way.models.view(connection)

    def selectable(instances: Sequence[Instance]) -> bool:
        candidates = candidates_of(study, studies.series_of(connection, study.id), instances)
        return any(could_select(one, way.routes, models.serving) for one in candidates)

    if not _has_news(seen, selectable):
        return Verdict(
            outcome="unchanged",
            reason="what came since the last revision can be selected by no route",
            last_instance_id=last_instance_id,
            raised=collided,
            forced=forced,
        )
    missing = [one.missing for one in seen.told if one.missing]
    if because == "maximum":
        missing.insert(0, reason)
    number = 1 if seen.last is None else seen.last.number + 1
    lacking = [
        RaisedFlag(
            study_id=study.id,
            kind=flags.INCOMPLETE,
            subject=f"revision {number}",
            reason=f"revision {number} was opened although {'; '.join(missing)}",
        )
    ]
    raised = (*collided, *(lacking if missing else []))
    return Verdict(
        outcome="revision",
        reason=reason,
        evidence={
            **_evidence_of(seen, because, reason),
            "missing": missing,
            "flags": [one.reason for one in raised if one.study_id == study.id],
        },
        last_instance_id=last_instance_id,
        raised=raised,
        forced=forced,
    )


def _has_news(seen: _Seen, selectable: Callable[[Sequence[Instance]], bool]) -> bool:
    """Whether there is anything that no revision has: a further one opens only for what some route could select."""
    if seen.last is None or (seen.fresh and selectable(seen.fresh)):
        return True
    return seen.study.evidence_changed and selectable(seen.evidence)


def _may_run(way: Way, models: View, names: Sequence[str]) -> bool:
    """Whether some model of a route runs here: what no model will read is not waited for."""
    cards = [card for one in names for card in models.serving(one)]
    return any(way.settings.demonstration_models or not card.demonstration for card in cards)


def _collided(connection: Connection, study: Study) -> tuple[RaisedFlag, ...]:
    """Flag both sides of a collision: which of them is wrong, the node cannot know."""
    found = flags.collisions(connection, study)
    raised = []
    for one in found[:_NAMED]:
        for study_id, other in ((study.id, one.study_instance_uid), (one.study_id, study.study_instance_uid)):
            raised.append(
                RaisedFlag(
                    study_id=study_id,
                    kind=flags.PATIENT,
                    subject=other,
                    reason=f"study {other} has the same Patient ID and another {flags.spoken(one.fields)}",
                )
            )
    return tuple(raised)


def _trouble(evidence: Sequence[Instance]) -> str:
    fields = flags.contradicting([one.identity for one in evidence])
    if fields:
        senders = ", ".join(sorted({one.calling_ae_title for one in evidence if one.calling_ae_title})) or "unknown"
        return (
            f"two patients in one Study Instance UID: {', '.join(fields)} differ between its instances "
            f"(sent by {senders}); exclude the series or instances that do not belong, then retry the study"
        )
    conflicting = [one.sop_instance_uid for one in evidence if one.conflicting]
    if conflicting:
        return (
            f"SOP Instance UID {conflicting[0]} (and {len(conflicting) - 1} more) stands under another Study or "
            "Series Instance UID as well; exclude what does not belong, then retry the study"
        )
    return ""


def _evidence_of(seen: _Seen, because: str, reason: str) -> dict[str, Any]:
    evidence = seen.evidence
    longest = max(((b.received_at - a.received_at).total_seconds() for a, b in pairwise(evidence)), default=0.0)
    (quiet,) = (one for one in seen.told if one.kind == "quiet")
    return {
        "because": because,
        "reason": reason,
        "asked_by": seen.study.asked_by,
        **quiet.kept,
        "quiet_from": seen.study.quiet_from.isoformat(),
        "judged_at": seen.at.isoformat(),
        "last_instance_at": evidence[-1].received_at.isoformat(),
        "instances": len(evidence),
        "instances_since_last_revision": len(seen.fresh),
        "series": len({one.series_id for one in evidence}),
        "longest_pause_seconds": round(longest, 3),
        "senders": sorted({one.calling_ae_title for one in evidence if one.calling_ae_title}),
        "weighed": [{"kind": one.kind, "says": one.says, **one.kept} for one in seen.told if one.kind != "quiet"],
    }
