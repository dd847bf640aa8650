"""What destinations were asked to commit to after they took a document, and what they have answered.

A delivery that is to be committed stays PENDING with ``stored_at`` until a report says that the destination keeps the
document. Every Transaction UID that was ever used stays valid: a report may come late, twice, or in any process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, select, update

from storage import changefeed, lifecycle, outbox, schema, studies
from storage.database import now
from storage.records import Delivery

__all__ = ["Asked", "accepted", "answered", "ask", "last_asked", "store", "take_report", "unstore", "withdraw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request: whether the destination took it, and what it has reported."""

    accepted: bool
    asked_at: datetime
    answered_at: datetime | None
    failure_reason: int | None


def store(connection: Connection, delivery: Delivery, *, study_id: int, answer: str) -> None:
    """Record that the destination has the document and is to be asked to commit to it, at once."""
    d = schema.delivery.c
    at = now(connection)
    stored = connection.execute(
        update(schema.delivery)
        .where(d.id == delivery.id, d.state == lifecycle.PENDING)
        .values(stored_at=at, next_at=at, answer=answer)
    ).rowcount
    if stored:
        changefeed.append(
            connection,
            "delivery",
            delivery.id,
            study_id=study_id,
            before=lifecycle.PENDING,
            after="STORED",
            reason=answer,
        )


def last_asked(connection: Connection, delivery: Delivery) -> Asked | None:
    """Return the last request about a delivery since the destination took the document."""
    q = schema.delivery_commitment.c
    row = connection.execute(
        select(q.accepted, q.asked_at, q.answered_at, q.failure_reason)
        .where(q.delivery_id == delivery.id, q.asked_at >= delivery.stored_at)
        .order_by(q.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    return Asked(
        accepted=row.accepted, asked_at=row.asked_at, answered_at=row.answered_at, failure_reason=row.failure_reason
    )


def ask(connection: Connection, delivery_ids: Sequence[int], transaction_uid: str, *, wait_seconds: float) -> None:
    """Record that a destination is being asked, before it is: the report may be quicker than the response.

    Parameters
    ----------
    wait_seconds
        After so long without a report the deliveries are due again.
    """
    d = schema.delivery.c
    at = now(connection)
    connection.execute(
        insert(schema.delivery_commitment),
        [{"delivery_id": one, "transaction_uid": transaction_uid, "asked_at": at} for one in delivery_ids],
    )
    connection.execute(
        update(schema.delivery)
        .where(d.id.in_(list(delivery_ids)), d.state == lifecycle.PENDING)
        .values(next_at=at + timedelta(seconds=wait_seconds))
    )


def accepted(connection: Connection, transaction_uid: str) -> None:
    """Record that the destination has taken a request."""
    q = schema.delivery_commitment.c
    connection.execute(
        update(schema.delivery_commitment).where(q.transaction_uid == transaction_uid).values(accepted=True)
    )


def withdraw(connection: Connection, transaction_uid: str) -> None:
    """Forget a request that the destination has refused."""
    q = schema.delivery_commitment.c
    connection.execute(
        delete(schema.delivery_commitment).where(q.transaction_uid == transaction_uid, q.answered_at.is_(None))
    )


def answered(connection: Connection, transaction_uid: str) -> bool:
    """Whether nothing of a request is left to be reported."""
    q = schema.delivery_commitment.c
    return (
        connection.execute(
            select(q.id).where(q.transaction_uid == transaction_uid, q.answered_at.is_(None)).limit(1)
        ).first()
        is None
    )


def unstore(connection: Connection, delivery_id: int) -> None:
    """Let a document be sent anew: the destination does not have it after all."""
    connection.execute(update(schema.delivery).where(schema.delivery.c.id == delivery_id).values(stored_at=None))


def take_report(
    connection: Connection,
    transaction_uid: str,
    *,
    committed: Collection[tuple[str, str]],
    failed: Mapping[str, int],
) -> bool:
    """Take what a destination reports (N-EVENT-REPORT), in the caller's write transaction.

    A document counts as delivered only where its own SOP Class and Instance UID are among those committed to; what the
    report does not name stays as it is. A report that came before changes nothing.

    Parameters
    ----------
    committed
        (SOP Class UID, SOP Instance UID).
    failed
        SOP Instance UID to Failure Reason (0008,1197).

    Returns
    -------
    bool
        Whether the node has ever used this Transaction UID.
    """
    q, d, doc = schema.delivery_commitment.c, schema.delivery.c, schema.document.c
    rows = connection.execute(
        select(
            q.id,
            q.answered_at,
            d.id.label("delivery_id"),
            d.state,
            doc.sop_class_uid,
            doc.sop_instance_uid,
            schema.workitem.c.study_id,
        )
        .select_from(schema.delivery_commitment.join(schema.delivery).join(schema.document).join(schema.workitem))
        .where(q.transaction_uid == transaction_uid)
        .order_by(q.id)
    ).all()
    for row in rows:
        reason = failed.get(row.sop_instance_uid)
        is_committed = (row.sop_class_uid, row.sop_instance_uid) in committed
        if row.answered_at is not None or (reason is None and not is_committed):
            continue
        connection.execute(
            update(schema.delivery_commitment)
            .where(q.id == row.id)
            # A document that is reported both ways is not safe.
            .values(accepted=True, answered_at=now(connection), failure_reason=reason)
        )
        if reason is not None:
            connection.execute(
                update(schema.delivery)
                .where(d.id == row.delivery_id, d.state == lifecycle.PENDING)
                .values(next_at=now(connection))
            )
        elif row.state != lifecycle.DELIVERED:
            outbox.succeed(
                connection, "delivery", row.delivery_id, study_id=row.study_id, answer="stored and committed"
            )
            if row.state == lifecycle.PARKED:
                _tell_again(connection, row.delivery_id)
    return bool(rows)


def _tell_again(connection: Connection, delivery_id: int) -> None:
    """Let the revisions be reported once more whose message said that the document was parked."""
    u = schema.workitem_use.c
    query = (
        select(u.revision_id)
        .distinct()
        .select_from(schema.delivery.join(schema.document).join(schema.workitem).join(schema.workitem_use))
        .where(schema.delivery.c.id == delivery_id)
    )
    for revision_id in connection.execute(query).scalars().all():
        studies.report_again(connection, revision_id, "the destination has committed to a document after all")
