"""Judging that a study is complete: DICOM never says so, and every verdict keeps its evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection

from storage import lifecycle, studies
from storage.records import Instance, Study

__all__ = ["Verdict", "identities_in_conflict", "judge"]

_IDENTITY_FIELDS = ("patient_id", "name", "birth_date", "sex")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a study whose quiet period was over: ``revision``, ``unchanged`` or ``parked``."""

    outcome: str
    reason: str


def judge(
    connection: Connection,
    study: Study,
    quiet_seconds: float,
    selectable: Callable[[Study, Sequence[Instance]], bool],
) -> Verdict:
    """Judge one study whose quiet period is over.

    Parameters
    ----------
    selectable
        Whether some route could select one of these instances: only such open a further revision.
    """
    evidence = studies.evidence(connection, study.id)
    trouble = _trouble(evidence)
    if trouble:
        lifecycle.transition(connection, "study", study.id, lifecycle.PARKED, study_id=study.id, reason=trouble)
        return Verdict("parked", trouble)
    last = studies.last_revision(connection, study.id)
    fresh = [one for one in evidence if last is None or one.id > last.last_instance_id]
    news = last is None or (fresh and selectable(study, fresh))
    if not news and last is not None and studies.excluded_since_revision(connection, study.id, last.last_instance_id):
        news = selectable(study, evidence)
    if not news:
        reason = (
            "nothing counts in it" if not evidence else "what came since the last revision can be selected by no route"
        )
        studies.settle_without_revision(connection, study, reason)
        return Verdict("unchanged", reason)
    if not evidence:
        reason = "nothing in it counts as evidence: made here, or excluded"
        studies.settle_without_revision(connection, study, reason)
        return Verdict("unchanged", reason)
    reason = f"quiet for {quiet_seconds:g} s after the last of {len(evidence)} instances"
    verdict = _evidence_of(study, evidence, fresh, quiet_seconds)
    studies.open_revision(connection, study, last_instance_id=evidence[-1].id, verdict=verdict, reason=reason)
    return Verdict("revision", reason)


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
