"""Attempts at workitems: who is at it, until when, and what came of it.

An attempt is held by a lease on the database's clock. A result is committed only where its attempt is still running
and still its owner's. A try counts when the engine lost it while the node lived; deaths of the node have a limit of
their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydicom.uid import generate_uid
from sqlalchemy import Connection, Select, and_, exists, func, insert, or_, select, update

from storage import lifecycle, outbox, schema, worklist
from storage.database import now
from storage.errors import LeaseLost
from storage.headers import Header
from storage.index import Origin, insert_instance
from storage.records import Attempt, Document, Workitem

__all__ = [
    "Choice",
    "NewDocument",
    "claim",
    "claimable",
    "complete",
    "fail",
    "given_back",
    "held_up",
    "lose",
    "lose_expired",
    "of_workitem",
    "release",
    "renew",
]

#: So often may a workitem be given back before that is worth a warning.
_AGAIN_AND_AGAIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDocument:
    """An evidence document whose bytes are durable already."""

    kind: str
    header: Header
    blob: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a worker may take, and in which order.

    Parameters
    ----------
    paused_models, full_digests
        None of these models, and no version with one of these digests.
    own_models
        These at once, others only once they have waited for ``others_after_seconds``; None for any model at once.
    oldest
        What has waited longest, whatever its priority: a worker that chooses so now and then lets nothing starve.
    """

    paused_models: Collection[str] = ()
    full_digests: Collection[str] = ()
    own_models: Collection[str] | None = None
    others_after_seconds: float = 0.0
    oldest: bool = False


def claimable(connection: Connection, choice: Choice = Choice()) -> bool:
    """Whether there is a workitem that nobody is at; a look that takes no lock."""
    return connection.execute(_claimable(connection, choice)).first() is not None


def claim(
    connection: Connection, owner: str, lease_seconds: float, choice: Choice = Choice()
) -> tuple[Workitem, Attempt] | None:
    """Take the most urgent workitem that nobody is at, the oldest of several, shadows last; begin an attempt at it."""
    a = schema.attempt.c
    query = _claimable(connection, choice).with_for_update(of=schema.workitem, skip_locked=True)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    # PostgreSQL: another claim may have committed between this statement's view and its lock; a new statement sees it.
    if connection.execute(select(a.id).where(a.workitem_id == row["id"], a.state == lifecycle.RUNNING)).first():
        return None
    workitem = worklist.get(connection, row["id"])
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
    return worklist.get(connection, workitem.id), _attempt(connection, int(key[0]))


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
    lifecycle.end(connection, "attempt", attempt.id, lifecycle.SUCCEEDED, study_id=workitem.study_id, outcome=outcome)
    lifecycle.end(
        connection,
        "workitem",
        workitem.id,
        lifecycle.COMPLETED,
        study_id=workitem.study_id,
        outcome=outcome,
        findings=dict(findings),
    )
    worklist.supersede(connection, workitem)
    for use in worklist.uses(connection, workitem.id):
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
    lifecycle.end(connection, "attempt", attempt.id, lifecycle.FAILED, study_id=workitem.study_id, outcome=reason)
    failed = _count(connection, workitem.id, lifecycle.FAILED)
    if failed < tries:
        return False
    _park(connection, workitem, f"given up after {failed} tries; the last one: {reason}")
    return True


def release(connection: Connection, workitem: Workitem, attempt: Attempt, reason: str) -> None:
    """Give an attempt back: the node's own trouble or its orderly end, which counts as nothing."""
    if _still_owned(connection, attempt):
        lifecycle.end(connection, "attempt", attempt.id, lifecycle.RELEASED, study_id=workitem.study_id, outcome=reason)


def given_back(connection: Connection, workitems: Sequence[int]) -> dict[int, str]:
    """Say of workitems why their last try was given back: the model's server is down, say, or memory is short."""
    a = schema.attempt.c
    last = select(func.max(a.id)).where(a.workitem_id.in_(workitems), a.ended_at.is_not(None)).group_by(a.workitem_id)
    rows = connection.execute(select(a.workitem_id, a.outcome).where(a.id.in_(last), a.state == lifecycle.RELEASED))
    return {row.workitem_id: row.outcome for row in rows}


def held_up(connection: Connection) -> dict[str, tuple[int, str]]:
    """Return each model whose open workitems were given back again and again: how many, and why the first of them was.

    Once or twice is nothing: a node that stops, another model that has the memory. An attempt's number tells how often
    there was one, so that the last of each is looked at and not all of them.
    """
    w, a = schema.workitem.c, schema.attempt.c
    later = schema.attempt.alias("later").c
    given = (
        select(w.model, func.count().label("waiting"), func.min(a.id).label("first"))
        .select_from(schema.workitem.join(schema.attempt))
        .where(
            w.state.in_((lifecycle.SCHEDULED, lifecycle.IN_PROGRESS)),
            a.state == lifecycle.RELEASED,
            a.number >= _AGAIN_AND_AGAIN,
            ~exists().where(later.workitem_id == a.workitem_id, later.number > a.number, later.ended_at.is_not(None)),
        )
        .group_by(w.model)
        .subquery()
    )
    rows = connection.execute(
        select(given.c.model, given.c.waiting, a.outcome).select_from(given.join(schema.attempt, given.c.first == a.id))
    )
    return {row.model: (row.waiting, row.outcome) for row in rows}


def lose(connection: Connection, owner_prefix: str, *, limit: int, reason: str) -> int:
    """End the running attempts of workers known to be gone: deaths of the node, which do not count as tries."""
    a = schema.attempt.c
    return _lose(connection, a.owner.startswith(owner_prefix, autoescape=True), limit, reason)


def lose_expired(connection: Connection, *, limit: int) -> int:
    """End the running attempts whose lease has run out."""
    return _lose(connection, schema.attempt.c.lease_until < now(connection), limit, "its lease ran out")


def of_workitem(connection: Connection, workitem_id: int) -> list[Attempt]:
    """Return the attempts at a workitem, first to last."""
    a = schema.attempt.c
    rows = connection.execute(select(schema.attempt).where(a.workitem_id == workitem_id).order_by(a.number))
    return [Attempt(**row) for row in rows.mappings()]


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
        lifecycle.end(connection, "attempt", row.id, lifecycle.LOST, study_id=row.study_id, outcome=reason)
        lost = _count(connection, row.workitem_id, lifecycle.LOST)
        workitem = worklist.get(connection, row.workitem_id)
        if lost >= limit and workitem.state == lifecycle.IN_PROGRESS:
            _park(connection, workitem, f"the node died {lost} times while at it; it may be what kills it")
    return len(rows)


def _claimable(connection: Connection, choice: Choice) -> Select[Any]:
    w, a = schema.workitem.c, schema.attempt.c
    running = exists().where(a.workitem_id == w.id, a.state == lifecycle.RUNNING)
    query = (
        select(schema.workitem)
        .where(schema.OPEN_WORKITEM, w.model.not_in(list(choice.paused_models)), ~running)
        .order_by(w.shadow, *((w.id,) if choice.oldest else (w.priority, w.id)))
        .limit(1)
    )
    if choice.full_digests:
        query = query.where(w.model_digest.not_in(list(choice.full_digests)))
    if choice.own_models is not None:
        long_ago = now(connection) - timedelta(seconds=choice.others_after_seconds)
        query = query.where(or_(w.model.in_(list(choice.own_models)), w.created_at <= long_ago))
    return query


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
    lifecycle.end(
        connection, "workitem", workitem.id, lifecycle.CANCELED, study_id=workitem.study_id, outcome=reason, parked=True
    )
