"""Judging that a study is complete: DICOM never says so, and every verdict keeps its evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from sqlalchemy import Connection

from storage import lifecycle, studies
from storage.records import Instance, Study

__all__ = ["Verdict", "carry_out", "identities_in_conflict", "weigh"]

_IDENTITY_FIELDS = ("patient_id", "name", "birth_date", "sex")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to become of a study whose quiet period is over, and on what evidence.

    ``evidence`` and ``last_instance_id`` stand for the outcome ``revision`` only.
    """

    outcome: Literal["revision", "unchanged", "parked"]
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    last_instance_id: int = 0


def weigh(
    connection: Connection,
    study: Study,
    quiet_seconds: float,
    selectable: Callable[[Study, Sequence[Instance]], bool],
) -> Verdict:
    """Weigh the evidence for a study whose quiet period is over; changes nothing.

    Parameters
    ----------
    selectable
        Whether some route could select one of these instances: only such open a further revision.
    """
    evidence = studies.evidence(connection, study.id)
    trouble = _trouble(evidence)
    if trouble:
        return Verdict(outcome="parked", reason=trouble)
    if not evidence:
        return Verdict(outcome="unchanged", reason="nothing in it counts as evidence: made here, or excluded")
    last = studies.last_revision(connection, study.id)
    fresh = [one for one in evidence if last is None or one.id > last.last_instance_id]
    news = last is None or (fresh and selectable(study, fresh))
    if not news and study.evidence_changed:
        news = selectable(study, evidence)
    if not news:
        return Verdict(outcome="unchanged", reason="what came since the last revision can be selected by no route")
    return Verdict(
        outcome="revision",
        reason=f"quiet for {quiet_seconds:g} s after the last of {len(evidence)} instances",
        evidence=_evidence_of(study, evidence, fresh, quiet_seconds),
        last_instance_id=evidence[-1].id,
    )


def carry_out(connection: Connection, study: Study, verdict: Verdict) -> None:
    """Do what a verdict says, in the caller's write transaction."""
    if verdict.outcome == "parked":
        lifecycle.transition(connection, "study", study.id, lifecycle.PARKED, study_id=study.id, reason=verdict.reason)
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


def identities_in_conflict(instances: Sequence[Instance]) -> tuple[str, ...]:
    """Return which of id, name, birth date and sex differ beyond encoding; what is absent contradicts nothing."""
    return tuple(
        field
        for field in _IDENTITY_FIELDS
        if len({str(one.identity.get(field, "")) for one in instances if one.identity.get(field)}) > 1
    )


def _trouble(evidence: Sequence[Instance]) -> str:
    fields = identities_in_conflict(evidence)
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


def _evidence_of(
    study: Study, evidence: Sequence[Instance], fresh: Sequence[Instance], quiet_seconds: float
) -> dict[str, Any]:
    longest = max(((b.received_at - a.received_at).total_seconds() for a, b in pairwise(evidence)), default=0.0)
    return {
        "quiet_seconds": quiet_seconds,
        "quiet_from": study.quiet_from.isoformat(),
        "last_instance_at": evidence[-1].received_at.isoformat(),
        "instances": len(evidence),
        "instances_since_last_revision": len(fresh),
        "series": len({one.series_id for one in evidence}),
        "longest_pause_seconds": round(longest, 3),
        "senders": sorted({one.calling_ae_title for one in evidence if one.calling_ae_title}),
    }
