"""Workitems: what is to be done, for which revisions and routes, and what stands for it now.

A workitem's key is (study, model digest, input digest). Its UPS state only goes forward; tries at it are attempts,
rows under it (:mod:`storage.attempts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.uid import generate_uid
from sqlalchemy import Connection, exists, func, insert, select, update

from storage import changefeed, lifecycle, outbox, priority, schema, studies
from storage.database import now
from storage.errors import Unknown
from storage.records import Document, Workitem, WorkitemUse

__all__ = [
    "Key",
    "by_uid",
    "cancel",
    "current_workitems",
    "documents",
    "earlier_documents",
    "get",
    "read_before",
    "replace",
    "schedule",
    "set_parked",
    "supersede",
    "shadows_of",
    "standing",
    "uses",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What makes a workitem the same workitem."""

    study_id: int
    model: str
    model_version: str
    model_digest: str
    device_uid: str
    input_digest: str


def get(connection: Connection, workitem_id: int) -> Workitem:
    """Return a workitem by its row id."""
    row = connection.execute(select(schema.workitem).where(schema.workitem.c.id == workitem_id)).mappings().one()
    return Workitem(**row)


def by_uid(connection: Connection, uid: str) -> Workitem:
    """Return a workitem by its SOP Instance UID.

    Raises
    ------
    Unknown
        When there is none.
    """
    row = connection.execute(select(schema.workitem).where(schema.workitem.c.uid == uid)).mappings().one_or_none()
    if row is None:
        raise Unknown(f"no workitem {uid}")
    return Workitem(**row)


def schedule(
    connection: Connection,
    key: Key,
    *,
    input_set: Mapping[str, Any],
    revision_id: int,
    route: str,
    reason: str,
    deliver: Sequence[str],
    notify: Sequence[str],
    urgency: str = priority.MEDIUM,
    anew: bool = False,
    shadow: bool = False,
) -> tuple[Workitem, bool]:
    """Find or make the workitem of a key, and note that a revision wants it by a route.

    Where the work is done already, its documents are put on their way to any destination that is new to them; with
    ``anew`` a workitem that replaces the final one is made instead. What a shadow has done has no documents, so that a
    workitem of its own is made where the same is wanted in earnest; the other way round the work is done already. Where
    it waits already and is more urgent now, it goes further to the front.

    Parameters
    ----------
    urgency
        Its Scheduled Procedure Step Priority: HIGH, MEDIUM or LOW.

    Returns
    -------
    Workitem, bool
        And whether it was made now.
    """
    w = schema.workitem.c
    rows = (
        connection.execute(
            select(schema.workitem)
            .where(w.study_id == key.study_id, w.model_digest == key.model_digest, w.input_digest == key.input_digest)
            .order_by(w.generation.desc())
        )
        .mappings()
        .all()
    )
    generation = rows[0]["generation"] + 1 if rows else 0
    rank = priority.rank_of(urgency)
    last = next((Workitem(**row) for row in rows if row["shadow"] == shadow), None)
    if last is None and shadow and rows and not anew:
        last = Workitem(**rows[0])
    if last is None:
        workitem = _insert(connection, key, input_set, generation, None, rank=rank, shadow=shadow)
    elif anew and last.state in (lifecycle.COMPLETED, lifecycle.CANCELED):
        if last.parked:
            set_parked(connection, last, False, reason)
        workitem = _insert(connection, key, input_set, generation, last.id, reason, rank=rank, shadow=shadow)
    else:
        workitem = last
        if rank < last.priority and last.state in (lifecycle.SCHEDULED, lifecycle.IN_PROGRESS):
            _raise_priority(connection, last, rank, f"route {route}")
    created = workitem is not last
    _use(connection, workitem, revision_id, route, reason, deliver, notify)
    return workitem, created


def cancel(connection: Connection, workitem: Workitem, reason: str) -> None:
    """Cancel a workitem that is not final; a running attempt is lost, and its result will not be taken."""
    a = schema.attempt.c
    for attempt_id in connection.execute(
        select(a.id).where(a.workitem_id == workitem.id, a.state == lifecycle.RUNNING)
    ).scalars():
        lifecycle.end(connection, "attempt", attempt_id, lifecycle.LOST, study_id=workitem.study_id, outcome=reason)
    lifecycle.end(
        connection,
        "workitem",
        workitem.id,
        lifecycle.CANCELED,
        study_id=workitem.study_id,
        outcome=reason,
        parked=False,
    )


def replace(connection: Connection, workitem: Workitem, reason: str) -> Workitem:
    """Make a new workitem that names this final one (Replaced Procedure Step), wanted by the same routes."""
    if workitem.state not in (lifecycle.COMPLETED, lifecycle.CANCELED):
        raise Unknown(f"workitem {workitem.uid} is {workitem.state}: only a final one can be replaced")
    w = schema.workitem.c
    generation = (
        1
        + connection.execute(
            select(func.max(w.generation)).where(
                w.study_id == workitem.study_id,
                w.model_digest == workitem.model_digest,
                w.input_digest == workitem.input_digest,
            )
        ).scalar_one()
    )
    key = Key(
        study_id=workitem.study_id,
        model=workitem.model,
        model_version=workitem.model_version,
        model_digest=workitem.model_digest,
        device_uid=workitem.device_uid,
        input_digest=workitem.input_digest,
    )
    if workitem.parked:
        set_parked(connection, workitem, False, reason)
    made = _insert(
        connection,
        key,
        workitem.input_set,
        generation,
        workitem.id,
        reason,
        rank=workitem.priority,
        shadow=workitem.shadow,
    )
    for use in uses(connection, workitem.id):
        _use(connection, made, use.revision_id, use.route, use.reason, use.deliver, use.notify)
        studies.report_again(connection, use.revision_id, reason)
    return made


def supersede(connection: Connection, workitem: Workitem) -> None:
    """Have nothing wait for an operator that this completed workitem has done: the same model, over the same series."""
    w = schema.workitem.c
    rows = connection.execute(
        select(schema.workitem).where(
            w.study_id == workitem.study_id,
            w.model == workitem.model,
            w.parked.is_(True),
            w.shadow.is_(workitem.shadow),
            w.id < workitem.id,
        )
    ).mappings()
    for row in rows.all():
        earlier = Workitem(**row)
        if _series_of(earlier) == _series_of(workitem):
            reason = f"workitem {workitem.uid} of {workitem.model} {workitem.model_version} has read the same series"
            set_parked(connection, earlier, False, reason)


def read_before(connection: Connection, workitem: Workitem) -> bool:
    """Whether the same version of the model has read the very same images already, and was asked for them anew."""
    w = schema.workitem.c
    query = select(w.id).where(
        w.study_id == workitem.study_id,
        w.model_digest == workitem.model_digest,
        w.input_digest == workitem.input_digest,
        w.generation < workitem.generation,
        w.state == lifecycle.COMPLETED,
    )
    return connection.execute(query.limit(1)).first() is not None


def _series_of(workitem: Workitem) -> dict[str, str]:
    return {role: chosen["series_instance_uid"] for role, chosen in workitem.input_set.items()}


def set_parked(connection: Connection, workitem: Workitem, parked: bool, reason: str) -> None:
    """Note that a final workitem waits for an operator, or no longer does."""
    connection.execute(update(schema.workitem).where(schema.workitem.c.id == workitem.id).values(parked=parked))
    changefeed.append(
        connection,
        "workitem",
        workitem.id,
        study_id=workitem.study_id,
        after=lifecycle.PARKED if parked else "UNPARKED",
        reason=reason,
    )


def uses(connection: Connection, workitem_id: int) -> list[WorkitemUse]:
    """Return which revisions and routes want a workitem."""
    u = schema.workitem_use.c
    rows = connection.execute(select(schema.workitem_use).where(u.workitem_id == workitem_id).order_by(u.id))
    return [WorkitemUse(**row) for row in rows.mappings()]


def current_workitems(connection: Connection, revision_id: int) -> list[tuple[WorkitemUse, Workitem]]:
    """Return what a revision wants, each with the workitem that stands for it now (not one that was replaced)."""
    u, w = schema.workitem_use.c, schema.workitem.c
    newer = schema.workitem.alias("newer")
    rows = connection.execute(
        select(schema.workitem_use, schema.workitem)
        .select_from(schema.workitem_use.join(schema.workitem))
        .where(u.revision_id == revision_id, ~exists().where(newer.c.replaces_id == w.id))
        .order_by(u.id)
    ).all()
    use_columns = len(schema.workitem_use.columns)
    return [
        (
            WorkitemUse(**dict(zip(schema.workitem_use.columns.keys(), row[:use_columns], strict=True))),
            Workitem(**dict(zip(schema.workitem.columns.keys(), row[use_columns:], strict=True))),
        )
        for row in rows
    ]


def shadows_of(connection: Connection, model: str, version: str) -> list[str]:
    """Return the UIDs of the workitems that a version has had as a shadow."""
    w = schema.workitem.c
    query = select(w.uid).where(w.model == model, w.model_version == version, w.shadow.is_(True))
    return list(connection.execute(query).scalars())


def standing(connection: Connection, uids: Sequence[str]) -> tuple[set[str], set[str]]:
    """Say of workitems by their UIDs what became of what they have read and said.

    Returns
    -------
    set of str, set of str
        Those that are open, or completed with every image of their input sets still here; and those of which an image
        was deleted. One that was canceled, or that nobody knows, is in neither.
    """
    w, i = schema.workitem.c, schema.instance.c
    rows = connection.execute(select(w.uid, w.study_id, w.state, w.input_set).where(w.uid.in_(uids))).all()
    studies = {row.study_id for row in rows}
    here: dict[int, set[str]] = {study: set() for study in studies}
    for study, uid in connection.execute(select(i.study_id, i.sop_instance_uid).where(i.study_id.in_(studies))):
        here[study].add(uid)
    whole: set[str] = set()
    bereft: set[str] = set()
    for row in rows:
        read = {uid for chosen in row.input_set.values() for uid in chosen["sop_instance_uids"]}
        if row.state in (lifecycle.SCHEDULED, lifecycle.IN_PROGRESS):
            whole.add(row.uid)
        elif not read <= here[row.study_id]:
            bereft.add(row.uid)
        elif row.state == lifecycle.COMPLETED:
            whole.add(row.uid)
    return whole, bereft


def documents(connection: Connection, workitem_id: int) -> list[Document]:
    """Return the evidence documents of a workitem."""
    d = schema.document.c
    rows = connection.execute(select(schema.document).where(d.workitem_id == workitem_id).order_by(d.id))
    return [Document(**row) for row in rows.mappings()]


def earlier_documents(connection: Connection, workitem: Workitem) -> list[Document]:
    """Return the documents that those of a workitem follow: of the same model, of its last completed workitem."""
    w = schema.workitem.c
    earlier = connection.execute(
        select(w.id)
        .where(
            w.study_id == workitem.study_id,
            w.model == workitem.model,
            w.state == lifecycle.COMPLETED,
            w.shadow.is_(False),
            w.id < workitem.id,
        )
        .order_by(w.id.desc())
    ).scalars()
    for workitem_id in earlier:
        if _series_of(get(connection, workitem_id)) == _series_of(workitem):
            return documents(connection, workitem_id)
    return []


def _raise_priority(connection: Connection, workitem: Workitem, rank: int, reason: str) -> None:
    connection.execute(update(schema.workitem).where(schema.workitem.c.id == workitem.id).values(priority=rank))
    changefeed.append(
        connection,
        "workitem",
        workitem.id,
        study_id=workitem.study_id,
        after="PRIORITY",
        reason=f"{priority.name_of(rank)} by {reason}",
    )


def _insert(
    connection: Connection,
    key: Key,
    input_set: Mapping[str, Any],
    generation: int,
    replaces_id: int | None,
    reason: str = "",
    *,
    rank: int,
    shadow: bool = False,
) -> Workitem:
    inserted = connection.execute(
        insert(schema.workitem).values(
            uid=generate_uid(prefix=None),
            study_id=key.study_id,
            model=key.model,
            model_version=key.model_version,
            model_digest=key.model_digest,
            device_uid=key.device_uid,
            input_digest=key.input_digest,
            generation=generation,
            replaces_id=replaces_id,
            input_set=dict(input_set),
            shadow=shadow,
            state=lifecycle.SCHEDULED,
            priority=rank,
            created_at=now(connection),
        )
    ).inserted_primary_key
    assert inserted is not None
    workitem = get(connection, int(inserted[0]))
    lifecycle.record_creation(
        connection,
        "workitem",
        workitem.id,
        lifecycle.SCHEDULED,
        study_id=key.study_id,
        reason=reason or f"{key.model} {key.model_version}{', a shadow' if shadow else ''}",
        detail={"uid": workitem.uid},
    )
    return workitem


def _use(
    connection: Connection,
    workitem: Workitem,
    revision_id: int,
    route: str,
    reason: str,
    deliver: Sequence[str],
    notify: Sequence[str],
) -> None:
    u = schema.workitem_use.c
    known = connection.execute(
        select(u.id).where(u.workitem_id == workitem.id, u.revision_id == revision_id, u.route == route)
    ).first()
    if known is not None:
        return
    connection.execute(
        insert(schema.workitem_use).values(
            workitem_id=workitem.id,
            revision_id=revision_id,
            route=route,
            reason=reason,
            deliver=list(deliver),
            notify=list(notify),
        )
    )
    outbox.add_deliveries(connection, workitem.study_id, documents(connection, workitem.id), deliver)
