"""Tells what became of a study and why, from the rows and the change feed alone: the answer of ``overread explain``.

Nothing in a story names a patient: UIDs, states, times, and the reasons that the node wrote down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy import Connection, func, select

from node.workflow import heatmaps
from node.workflow.told import (
    AttemptTold,
    CountTold,
    DecisionTold,
    DeliveryTold,
    DocumentTold,
    Event,
    FlagTold,
    HeatMapsTold,
    NotificationTold,
    ProcedureStepTold,
    Received,
    RevisionTold,
    SeriesTold,
    Story,
    TryTold,
    UseTold,
    WorkitemTold,
)
from storage import (
    attempts,
    changefeed,
    flags,
    inquiries,
    lifecycle,
    outbox,
    priority,
    procedure_steps,
    schema,
    studies,
    worklist,
)
from storage.records import Change, Document, Revision, Study, Workitem

__all__ = [
    "AttemptTold",
    "DecisionTold",
    "DeliveryTold",
    "DocumentTold",
    "Event",
    "HeatMapsTold",
    "NotificationTold",
    "Received",
    "RevisionTold",
    "SeriesTold",
    "Story",
    "TryTold",
    "UseTold",
    "WorkitemTold",
    "tell",
]


#: How routing says that a route matched and its model is a demonstration where demonstrations are off.
_SWITCHED_OFF = "demonstration_models is false"


def tell(connection: Connection, study_instance_uid: str, heat_maps: Path | None = None) -> Story:
    """Tell a study's story.

    Parameters
    ----------
    heat_maps
        The folder where heat maps are kept; without it the story is told without them.

    Raises
    ------
    storage.errors.Unknown
        When nothing of the study was ever received.
    """
    study = studies.by_uid(connection, study_instance_uid)
    changes = changefeed.of_study(connection, study.id)
    revisions = studies.revisions(connection, study.id)
    numbers = {one.id: one.number for one in revisions}
    histories = _histories(changes)
    workitems = _workitems(connection, study.id, numbers, histories, heat_maps)
    revisions_told = [_revision(connection, study, one, changes, histories) for one in revisions]
    return Story(
        target=f"study:{study.id}",
        study_instance_uid=study.study_instance_uid,
        state=study.state,
        summary=_summary(study, changes, revisions_told, workitems),
        excluded=study.excluded,
        historical=study.historical,
        received=_received(connection, study),
        waiting_for=study.waiting_for,
        flags=[
            FlagTold(kind=one.kind, subject=one.subject, reason=one.reason, at=one.raised_at)
            for one in flags.of_study(connection, study.id)
        ],
        procedure_steps=[
            ProcedureStepTold(
                sop_instance_uid=one.sop_instance_uid,
                calling_ae_title=one.calling_ae_title,
                state=one.state,
                series=len(one.performed_series),
                instances=sum(map(len, one.performed_series.values())),
                at=one.created_at,
                ended_at=one.ended_at,
            )
            for one in procedure_steps.for_study(connection, study_instance_uid)
        ],
        counts=[
            CountTold(peer=one.peer, asked=one.asked, at=one.asked_at, count=one.count, answer=one.answer)
            for one in inquiries.of_study(connection, study.id)
        ],
        revisions=revisions_told,
        workitems=workitems,
        events=_events(changes),
    )


def _received(connection: Connection, study: Study) -> Received:
    i, v, s = schema.instance.c, schema.variant.c, schema.series.c
    rows = connection.execute(
        select(i.series_id, i.made_here, i.excluded, i.conflicting, i.defect, i.calling_ae_title).where(
            i.study_id == study.id
        )
    ).all()
    variants = connection.execute(
        select(func.count()).select_from(schema.variant.join(schema.instance)).where(i.study_id == study.id)
    ).scalar_one()
    senders = {row.calling_ae_title for row in rows if not row.made_here}
    senders |= set(
        connection.execute(
            select(v.calling_ae_title).select_from(schema.variant.join(schema.instance)).where(i.study_id == study.id)
        ).scalars()
    )
    series = []
    for one in connection.execute(select(schema.series).where(s.study_id == study.id).order_by(s.id)):
        of_it = [row for row in rows if row.series_id == one.id]
        series.append(
            SeriesTold(
                series_instance_uid=one.series_instance_uid,
                modality=one.modality,
                series_number=one.series_number,
                instances=len(of_it),
                made_here=sum(row.made_here for row in of_it),
                excluded=sum(row.excluded for row in of_it),
            )
        )
    return Received(
        instances=sum(not row.made_here for row in rows),
        series=series,
        calling_ae_titles=sorted(senders - {""}),
        first_at=study.first_received_at,
        last_at=study.last_received_at,
        quiet_from=study.quiet_from,
        variants=variants,
        conflicting=sum(row.conflicting for row in rows),
        defective=sum(bool(row.defect) for row in rows),
        defects=sorted({row.defect for row in rows} - {""}),
        excluded=sum(row.excluded for row in rows),
        made_here=sum(row.made_here for row in rows),
    )


_Histories = Mapping[tuple[str, int], list[TryTold]]


def _histories(changes: Sequence[Change]) -> _Histories:
    """Collect what became of each delivery and notification, try by try, from the change feed."""
    found: dict[tuple[str, int], list[TryTold]] = defaultdict(list)
    for one in changes:
        if one.kind not in ("delivery", "notification") or one.object_id is None:
            continue
        if one.after == "TRIED":
            outcome = "refused" if one.detail.get("refused") else "failed"
        elif one.before is None or one.after is None:
            continue  # its birth
        else:
            outcome = "asked for again" if one.after == lifecycle.PENDING else one.after.lower()
        found[one.kind, one.object_id].append(TryTold(at=one.at, outcome=outcome, answer=one.reason))
    return found


def _revision(
    connection: Connection, study: Study, revision: Revision, changes: Sequence[Change], histories: _Histories
) -> RevisionTold:
    decisions = [
        DecisionTold(
            route=one["route"],
            model=one["model"],
            matched=one["matched"],
            switched_off=not one["matched"] and any(_SWITCHED_OFF in reason for reason in one["reasons"]),
            reasons=list(one["reasons"]),
            not_analysed=None if one["not_analysed"] is None else dict(one["not_analysed"]),
            deliver=list(one["deliver"]),
            notify=list(one["notify"]),
            at=one["decided_at"],
        )
        for one in studies.decisions(connection, revision.id)
    ]
    notifications = [
        NotificationTold(
            target=f"notification:{one.id}",
            receiver=one.receiver,
            number=one.number,
            control_id=one.control_id,
            state=one.state,
            tries=one.tries,
            answer=one.answer,
            created_at=one.created_at,
            next_at=one.next_at if one.state == lifecycle.PENDING else None,
            ended_at=one.ended_at,
            history=histories.get(("notification", one.id), []),
        )
        for one in outbox.notifications_of(connection, revision.id)
    ]
    parked = [
        one.reason
        for one in changes
        if one.kind == "revision" and one.object_id == revision.id and one.after == lifecycle.PARKED
    ]
    return RevisionTold(
        target=f"revision:{revision.id}",
        number=revision.number,
        state=revision.state,
        trouble=parked[-1] if revision.state == lifecycle.PARKED and parked else "",
        opened_at=revision.opened_at,
        instances=len(studies.evidence(connection, study.id, up_to=revision.last_instance_id)),
        verdict=dict(revision.verdict),
        decisions=decisions,
        notifications=notifications,
    )


def _workitems(
    connection: Connection,
    study_id: int,
    numbers: Mapping[int, int],
    histories: _Histories,
    heat_maps: Path | None,
) -> list[WorkitemTold]:
    w = schema.workitem.c
    rows = connection.execute(select(schema.workitem).where(w.study_id == study_id).order_by(w.id)).mappings()
    found = [Workitem(**row) for row in rows]
    uids = {one.id: one.uid for one in found}
    replaced_by = {one.replaces_id: one.uid for one in found if one.replaces_id is not None}
    return [
        WorkitemTold(
            target=f"workitem:{one.id}",
            uid=one.uid,
            model=one.model,
            model_version=one.model_version,
            shadow=one.shadow,
            state=one.state,
            priority=priority.name_of(one.priority),
            parked=one.parked,
            outcome=one.outcome,
            replaces=uids.get(one.replaces_id) if one.replaces_id is not None else None,
            replaced_by=replaced_by.get(one.id),
            input_set=dict(one.input_set),
            created_at=one.created_at,
            started_at=one.started_at,
            ended_at=one.ended_at,
            uses=[
                UseTold(
                    revision=numbers[use.revision_id],
                    route=use.route,
                    reason=use.reason,
                    deliver=use.deliver,
                    notify=use.notify,
                )
                for use in worklist.uses(connection, one.id)
            ],
            attempts=[
                AttemptTold(
                    number=attempt.number,
                    state=attempt.state,
                    outcome=attempt.outcome,
                    started_at=attempt.started_at,
                    ended_at=attempt.ended_at,
                )
                for attempt in attempts.of_workitem(connection, one.id)
            ],
            documents=[
                _document(connection, document, histories) for document in worklist.documents(connection, one.id)
            ],
            heat_maps=heatmaps.listed(heat_maps, one.uid) if heat_maps is not None else None,
        )
        for one in found
    ]


def _document(connection: Connection, document: Document, histories: _Histories) -> DocumentTold:
    return DocumentTold(
        kind=document.kind,
        sop_instance_uid=document.sop_instance_uid,
        series_instance_uid=document.series_instance_uid,
        created_at=document.created_at,
        deliveries=[
            DeliveryTold(
                target=f"delivery:{one.id}",
                destination=one.destination,
                state=one.state,
                tries=one.tries,
                answer=one.answer,
                created_at=one.created_at,
                next_at=one.next_at if one.state == lifecycle.PENDING else None,
                ended_at=one.ended_at,
                history=histories.get(("delivery", one.id), []),
            )
            for one in outbox.deliveries_of(connection, document.id)
        ],
    )


def _events(changes: Sequence[Change]) -> list[Event]:
    """Every event but the storing of each instance, which ``received`` sums up."""
    kept = [one for one in changes if not (one.kind == "instance" and one.after == "STORED")]
    return [
        Event(
            sequence=one.sequence,
            at=one.at,
            object=one.kind if one.object_id is None else f"{one.kind}:{one.object_id}",
            before=one.before,
            after=one.after,
            reason=one.reason,
        )
        for one in kept
    ]


def _summary(
    study: Study, changes: Sequence[Change], revisions: Sequence[RevisionTold], workitems: Sequence[WorkitemTold]
) -> str:
    if study.excluded:
        return "excluded by an operator: nothing runs on it"
    if study.historical:
        return "historical: taken in from an archive; nothing runs on it until an operator asks"
    if study.state == lifecycle.PARKED:
        reasons = [one.reason for one in changes if one.kind == "study" and one.after == lifecycle.PARKED]
        return f"parked: {reasons[-1] if reasons and reasons[-1] else 'no reason was recorded'}"
    if study.state == lifecycle.RECEIVING:
        if study.waiting_for:
            return f"being received, and waited on: {study.waiting_for}"
        return "being received: it is judged once nothing more has come for the quiet period"
    if not revisions:
        return "no image of it was received that could be read; only evidence documents"
    last = revisions[-1]
    if last.state == lifecycle.PARKED:
        return f"complete, and revision {last.number} is parked: {last.trouble or 'no reason was recorded'}"
    current = [one for one in workitems if one.replaced_by is None]
    deliveries = [one for item in current for document in item.documents for one in document.deliveries]
    messages = [one for revision in revisions for one in revision.notifications]
    parts = [
        f"revision {last.number} about to be routed" if last.state == lifecycle.OPEN and current else "",
        _counted(sum(one.state in (lifecycle.SCHEDULED, lifecycle.IN_PROGRESS) for one in current), "workitem open"),
        _counted(sum(one.parked for one in current), "workitem parked"),
        _counted(sum(one.state == lifecycle.COMPLETED for one in current), "workitem completed"),
        _counted(sum(one.state == lifecycle.DELIVERED for one in deliveries), "document delivered"),
        _counted(sum(one.state == lifecycle.PENDING for one in deliveries), "delivery waiting"),
        _counted(sum(one.state == lifecycle.PARKED for one in deliveries), "delivery parked"),
        _counted(sum(one.state == lifecycle.ACKNOWLEDGED for one in messages), "message acknowledged"),
        _counted(sum(one.state == lifecycle.PENDING for one in messages), "message waiting"),
        _counted(sum(one.state == lifecycle.PARKED for one in messages), "message parked"),
    ]
    said = ", ".join(part for part in parts if part)
    if said:
        return f"complete: {said}"
    if any(one.matched for one in last.decisions):
        return "complete: a route matched, and nothing could be analysed"
    off = sorted({one.model for one in last.decisions if one.switched_off})
    if off:
        return f"complete: a route matched, but {', '.join(off)} is a demonstration and switched off, so nothing ran"
    return "complete: no route matched, so nothing ran" if last.decisions else "complete: about to be routed"


def _counted(count: int, what: str) -> str:
    if count == 0:
        return ""
    noun, _, state = what.partition(" ")
    plural = {"delivery": "deliveries"}.get(noun, f"{noun}s")
    return f"{count} {noun if count == 1 else plural} {state}"
