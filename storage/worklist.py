"""Workitems and the attempts at them: what is to be done, by whom, until when, and what came of it.

A workitem's key is (study, model digest, input digest). Its UPS state only goes forward; tries are attempts,
rows under it, each held by a lease on the database's clock. A result is committed only where its attempt is
still running and still its owner's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydicom.uid import generate_uid
from sqlalchemy import Connection, and_, exists, func, insert, select, update

from storage import lifecycle, outbox, schema, studies
from storage.database import now
from storage.errors import LeaseLost, Unknown
from storage.headers import Header
from storage.index import Origin, insert_instance
from storage.records import Attempt, Document, Workitem, WorkitemUse

__all__ = [
    "Key",
    "NewDocument",
    "attempts",
    "by_uid",
    "cancel",
    "claim",
    "complete",
    "current_workitems",
    "documents",
    "earlier_documents",
    "fail",
    "get",
    "lose",
    "lose_expired",
    "renew",
    "replace",
    "schedule",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDocument:
    """An evidence document whose bytes are durable already."""

    kind: str
    header: Header
    blob: str


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
) -> tuple[Workitem, bool]:
    """Find or make the workitem of a key, and note that a revision wants it by a route.

    Where the work is done already, its documents are put on their way to any destination that is new to them.

    Returns
    -------
    Workitem, bool
        And whether it was made now.
    """
    w = schema.workitem.c
    row = (
        connection.execute(
            select(schema.workitem)
            .where(w.study_id == key.study_id, w.model_digest == key.model_digest, w.input_digest == key.input_digest)
            .order_by(w.generation.desc())
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    created = row is None
    workitem = _insert(connection, key, input_set, 0, None) if row is None else Workitem(**row)
    _use(connection, workitem, revision_id, route, reason, deliver, notify)
    return workitem, created


def claim(
    connection: Connection, owner: str, lease_seconds: float, *, paused_models: Collection[str] = ()
) -> tuple[Workitem, Attempt] | None:
    """Take the oldest workitem that nobody is at, and begin an attempt at it."""
    w, a = schema.workitem.c, schema.attempt.c
    running = exists().where(a.workitem_id == w.id, a.state == lifecycle.RUNNING)
    row = (
        connection.execute(
            select(schema.workitem)
            .where(
                w.state.in_((lifecycle.SCHEDULED, lifecycle.IN_PROGRESS)),
                w.model.not_in(list(paused_models)),
                ~running,
            )
            .order_by(w.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    # PostgreSQL: another claim may have committed between this statement's view and its lock; a new statement sees it.
    if connection.execute(select(a.id).where(a.workitem_id == row["id"], a.state == lifecycle.RUNNING)).first():
        return None
    workitem = get(connection, row["id"])
    at = now(connection)
    if workitem.state == lifecycle.SCHEDULED:
        lifecycle.transition(
            connection,
            "workitem",
            workitem.id,
            lifecycle.IN_PROGRESS,
            study_id=workitem.study_id,
            reason=f"performed here ({workitem.model} {workitem.model_version})",
            transaction_uid=generate_uid(prefix=None),
            started_at=at,
        )
    number = 1 + connection.execute(select(func.count()).where(a.workitem_id == workitem.id)).scalar_one()
    key = connection.execute(
        insert(schema.attempt).values(
            workitem_id=workitem.id,
            number=number,
            state=lifecycle.RUNNING,
            owner=owner,
            lease_until=at + timedelta(seconds=lease_seconds),
            started_at=at,
        )
    ).inserted_primary_key
    assert key is not None
    lifecycle.record_creation(
        connection, "attempt", int(key[0]), lifecycle.RUNNING, study_id=workitem.study_id, reason=f"attempt {number}"
    )
    return get(connection, workitem.id), _attempt(connection, int(key[0]))


def renew(connection: Connection, attempt: Attempt, lease_seconds: float) -> None:
    """Hold an attempt's lease for longer.

    Raises
    ------
    LeaseLost
        When the attempt has been taken away: stop working at it.
    """
    a = schema.attempt.c
    renewed = connection.execute(
        update(schema.attempt)
        .where(a.id == attempt.id, a.owner == attempt.owner, a.state == lifecycle.RUNNING)
        .values(lease_until=now(connection) + timedelta(seconds=lease_seconds))
    )
    if renewed.rowcount != 1:
        raise LeaseLost(f"attempt {attempt.id} was taken from {attempt.owner}")


def complete(
    connection: Connection,
    workitem: Workitem,
    attempt: Attempt,
    *,
    findings: Mapping[str, Any],
    new_documents: Sequence[NewDocument],
    outcome: str,
) -> list[Document]:
    """Commit a result: findings, documents, their index rows, their deliveries and COMPLETED, all together.

    Raises
    ------
    LeaseLost
        When the attempt is no longer its owner's; nothing of the result is kept.
    """
    if not _still_owned(connection, attempt):
        raise LeaseLost(f"attempt {attempt.id} was taken from {attempt.owner}")
    at = now(connection)
    made: list[Document] = []
    for one in new_documents:
        insert_instance(connection, one.header, one.blob, Origin(calling_ae_title=""), made_here=True)
        key = connection.execute(
            insert(schema.document).values(
                workitem_id=workitem.id,
                kind=one.kind,
                sop_class_uid=one.header.sop_class_uid,
                sop_instance_uid=one.header.sop_instance_uid,
                series_instance_uid=one.header.series_instance_uid,
                blob=one.blob,
                digest=one.header.digest,
                created_at=at,
            )
        ).inserted_primary_key
        assert key is not None
        row = connection.execute(select(schema.document).where(schema.document.c.id == key[0])).mappings().one()
        made.append(Document(**row))
    lifecycle.transition(
        connection,
        "attempt",
        attempt.id,
        lifecycle.SUCCEEDED,
        study_id=workitem.study_id,
        ended_at=at,
        outcome=outcome,
        reason=outcome,
    )
    lifecycle.transition(
        connection,
        "workitem",
        workitem.id,
        lifecycle.COMPLETED,
        study_id=workitem.study_id,
        reason=outcome,
        outcome=outcome,
        findings=dict(findings),
        ended_at=at,
    )
    for use in uses(connection, workitem.id):
        outbox.add_deliveries(connection, workitem.study_id, made, use.deliver)
    return made


def fail(connection: Connection, workitem: Workitem, attempt: Attempt, reason: str, *, tries: int) -> bool:
    """End an attempt that the engine lost while the node lived; after so many tries the workitem is parked.

    Returns
    -------
    bool
        Whether the workitem was parked by it.
    """
    if not _still_owned(connection, attempt):
        return False
    lifecycle.transition(
        connection,
        "attempt",
        attempt.id,
        lifecycle.FAILED,
        study_id=workitem.study_id,
        reason=reason,
        ended_at=now(connection),
        outcome=reason,
    )
    failed = _count(connection, workitem.id, lifecycle.FAILED)
    if failed < tries:
        return False
    _park(connection, workitem, f"given up after {failed} tries; the last one: {reason}")
    return True


def lose(connection: Connection, owner_prefix: str, *, limit: int, reason: str) -> int:
    """End the running attempts of workers known to be gone: deaths of the node, which do not count as tries."""
    a = schema.attempt.c
    return _lose(connection, a.owner.startswith(owner_prefix, autoescape=True), limit, reason)


def lose_expired(connection: Connection, *, limit: int) -> int:
    """End the running attempts whose lease has run out."""
    return _lose(connection, schema.attempt.c.lease_until < now(connection), limit, "its lease ran out")


def _lose(connection: Connection, condition: Any, limit: int, reason: str) -> int:
    a, w = schema.attempt.c, schema.workitem.c
    rows = connection.execute(
        select(a.id, a.workitem_id, w.study_id)
        .select_from(schema.attempt.join(schema.workitem))
        .where(a.state == lifecycle.RUNNING, condition)
        # One that is just being completed is not lost, and not waited for.
        .with_for_update(of=schema.attempt, skip_locked=True)
    ).all()
    for row in rows:
        lifecycle.transition(
            connection,
            "attempt",
            row.id,
            lifecycle.LOST,
            study_id=row.study_id,
            reason=reason,
            ended_at=now(connection),
            outcome=reason,
        )
        lost = _count(connection, row.workitem_id, lifecycle.LOST)
        workitem = get(connection, row.workitem_id)
        if lost >= limit and workitem.state == lifecycle.IN_PROGRESS:
            _park(connection, workitem, f"the node died {lost} times while at it; it may be what kills it")
    return len(rows)


def cancel(connection: Connection, workitem: Workitem, reason: str) -> None:
    """Cancel a workitem that is not final; a running attempt is lost, and its result will not be taken."""
    a = schema.attempt.c
    for attempt_id in connection.execute(
        select(a.id).where(a.workitem_id == workitem.id, a.state == lifecycle.RUNNING)
    ).scalars():
        lifecycle.transition(
            connection,
            "attempt",
            attempt_id,
            lifecycle.LOST,
            study_id=workitem.study_id,
            reason=reason,
            ended_at=now(connection),
            outcome=reason,
        )
    lifecycle.transition(
        connection,
        "workitem",
        workitem.id,
        lifecycle.CANCELED,
        study_id=workitem.study_id,
        reason=reason,
        outcome=reason,
        parked=False,
        ended_at=now(connection),
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
    connection.execute(update(schema.workitem).where(w.id == workitem.id).values(parked=False))
    made = _insert(connection, key, workitem.input_set, generation, workitem.id, reason)
    for use in uses(connection, workitem.id):
        _use(connection, made, use.revision_id, use.route, use.reason, use.deliver, use.notify)
        studies.report_again(connection, use.revision_id, reason)
    return made


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


def attempts(connection: Connection, workitem_id: int) -> list[Attempt]:
    """Return the attempts at a workitem, first to last."""
    a = schema.attempt.c
    rows = connection.execute(select(schema.attempt).where(a.workitem_id == workitem_id).order_by(a.number))
    return [Attempt(**row) for row in rows.mappings()]


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
            w.id < workitem.id,
        )
        .order_by(w.id.desc())
    ).scalars()
    roles = {role: chosen["series_instance_uid"] for role, chosen in workitem.input_set.items()}
    for workitem_id in earlier:
        before = get(connection, workitem_id).input_set
        if {role: chosen["series_instance_uid"] for role, chosen in before.items()} == roles:
            return documents(connection, workitem_id)
    return []


def _attempt(connection: Connection, attempt_id: int) -> Attempt:
    row = connection.execute(select(schema.attempt).where(schema.attempt.c.id == attempt_id)).mappings().one()
    return Attempt(**row)


def _count(connection: Connection, workitem_id: int, state: str) -> int:
    a = schema.attempt.c
    return connection.execute(
        select(func.count()).where(and_(a.workitem_id == workitem_id, a.state == state))
    ).scalar_one()


def _still_owned(connection: Connection, attempt: Attempt) -> bool:
    a = schema.attempt.c
    row = connection.execute(select(a.state, a.owner).where(a.id == attempt.id).with_for_update()).one()
    return bool(row.state == lifecycle.RUNNING and row.owner == attempt.owner)


def _park(connection: Connection, workitem: Workitem, reason: str) -> None:
    lifecycle.transition(
        connection,
        "workitem",
        workitem.id,
        lifecycle.CANCELED,
        study_id=workitem.study_id,
        reason=reason,
        outcome=reason,
        parked=True,
        ended_at=now(connection),
    )


def _insert(
    connection: Connection,
    key: Key,
    input_set: Mapping[str, Any],
    generation: int,
    replaces_id: int | None,
    reason: str = "",
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
            state=lifecycle.SCHEDULED,
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
        reason=reason or f"{key.model} {key.model_version}",
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
