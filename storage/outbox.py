"""What is to leave: deliveries, notifications, reports of commitment and availability, each with its own retry clock.

The bytes are stored before the first try and are the same at every try.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, insert, select, update

from storage import changefeed, lifecycle, schema
from storage.database import now
from storage.records import Availability, Commitment, Delivery, Document, Notification, Revision

__all__ = [
    "Kind",
    "Outgoing",
    "add_deliveries",
    "add_notification",
    "content_digest",
    "deliveries_of",
    "deliveries_of_revision",
    "due_deliveries",
    "due_notifications",
    "is_settled",
    "last_notification",
    "notifications_of",
    "park",
    "park_unconfigured",
    "postpone",
    "retry",
    "settled_revisions",
    "succeed",
]

Kind = Literal["delivery", "notification", "commitment", "availability"]
Outgoing = Delivery | Notification | Commitment | Availability
_TABLES: dict[str, Table] = {
    "delivery": schema.delivery,
    "notification": schema.notification,
    "commitment": schema.commitment,
    "availability": schema.availability,
}
#: Which column says whom it is for.
_ADDRESSEE: dict[str, str] = {
    "delivery": "destination",
    "notification": "receiver",
    "availability": "peer",
}


def add_deliveries(
    connection: Connection, study_id: int, documents: Sequence[Document], destinations: Iterable[str]
) -> None:
    """Put documents on their way to destinations; a pair that is on its way already stays as it is."""
    d = schema.delivery.c
    at = now(connection)
    for destination in destinations:
        for document in documents:
            known = connection.execute(
                select(d.id).where(d.document_id == document.id, d.destination == destination)
            ).first()
            if known is not None:
                continue
            key = connection.execute(
                insert(schema.delivery).values(
                    document_id=document.id,
                    destination=destination,
                    state=lifecycle.PENDING,
                    next_at=at,
                    created_at=at,
                )
            ).inserted_primary_key
            assert key is not None
            lifecycle.record_creation(
                connection,
                "delivery",
                int(key[0]),
                lifecycle.PENDING,
                study_id=study_id,
                reason=f"{document.kind} to {destination}",
            )


def due_deliveries(connection: Connection, destination: str, limit: int = 20) -> list[tuple[Delivery, Document, int]]:
    """Return what is due at one destination: the delivery, its document and the study's row id."""
    d = schema.delivery.c
    rows = connection.execute(
        select(schema.delivery)
        .where(d.destination == destination, d.state == lifecycle.PENDING, d.next_at <= now(connection))
        .order_by(d.next_at, d.id)
        .limit(limit)
    ).mappings()
    found = []
    for row in list(rows):
        document = Document(
            **connection.execute(select(schema.document).where(schema.document.c.id == row["document_id"]))
            .mappings()
            .one()
        )
        study_id = connection.execute(
            select(schema.workitem.c.study_id).where(schema.workitem.c.id == document.workitem_id)
        ).scalar_one()
        found.append((Delivery(**row), document, int(study_id)))
    return found


def deliveries_of(connection: Connection, document_id: int) -> list[Delivery]:
    """Return the deliveries of a document."""
    d = schema.delivery.c
    rows = connection.execute(select(schema.delivery).where(d.document_id == document_id).order_by(d.id))
    return [Delivery(**row) for row in rows.mappings()]


def deliveries_of_revision(connection: Connection, revision_id: int) -> list[Delivery]:
    """Return every delivery of every workitem that a revision wants."""
    wanted = (
        select(schema.document.c.id)
        .select_from(schema.document.join(schema.workitem).join(schema.workitem_use))
        .where(schema.workitem_use.c.revision_id == revision_id)
    )
    d = schema.delivery.c
    rows = connection.execute(select(schema.delivery).where(d.document_id.in_(wanted)).order_by(d.id))
    return [Delivery(**row) for row in rows.mappings()]


def settled_revisions(connection: Connection, limit: int = 50) -> list[Revision]:
    """Return routed revisions about which nothing is open: workitems final, deliveries delivered or parked."""
    r = schema.revision.c
    rows = connection.execute(select(schema.revision).where(_settled()).order_by(r.id).limit(limit))
    return [Revision(**row) for row in rows.mappings()]


def is_settled(connection: Connection, revision_id: int) -> bool:
    """Whether nothing is open about a routed revision now."""
    r = schema.revision.c
    return connection.execute(select(r.id).where(r.id == revision_id, _settled())).first() is not None


def _settled() -> ColumnElement[bool]:
    r, u, w = schema.revision.c, schema.workitem_use.c, schema.workitem.c
    document, delivery = schema.document.c, schema.delivery.c
    working = exists().where(
        u.revision_id == r.id,
        u.workitem_id == w.id,
        # Nobody waits for a shadow.
        w.shadow.is_(False),
        w.state.in_((lifecycle.SCHEDULED, lifecycle.IN_PROGRESS)),
    )
    leaving = exists().where(
        u.revision_id == r.id,
        document.workitem_id == u.workitem_id,
        delivery.document_id == document.id,
        delivery.state == lifecycle.PENDING,
    )
    return and_(r.state == lifecycle.ROUTED, ~working, ~leaving)


def park_unconfigured(connection: Connection, kind: Kind, known: Collection[str]) -> int:
    """Park what waits for a destination, receiver or peer that the configuration does not have. Returns how many."""
    table = _TABLES[kind]
    name = table.c[_ADDRESSEE[kind]]
    rows = connection.execute(
        select(table.c.id, name.label("name")).where(table.c.state == lifecycle.PENDING, name.not_in(list(known)))
    ).all()
    for row in rows:
        park(
            connection,
            kind,
            row.id,
            study_id=_study_of(connection, kind, row.id),
            answer=f"{row.name} is no longer configured; configure it again and retry",
        )
    return len(rows)


def add_notification(
    connection: Connection,
    study_id: int,
    revision_id: int,
    receiver: str,
    *,
    control_id: str,
    message: bytes,
    says: bytes,
) -> Notification:
    """Store a message before it is first sent.

    Parameters
    ----------
    says
        What the message says, apart from its own time and number: two messages that say the same are the same.
    """
    n = schema.notification.c
    at = now(connection)
    number = (
        1
        + connection.execute(
            select(func.count()).where(n.revision_id == revision_id, n.receiver == receiver)
        ).scalar_one()
    )
    key = connection.execute(
        insert(schema.notification).values(
            revision_id=revision_id,
            receiver=receiver,
            number=number,
            state=lifecycle.PENDING,
            control_id=control_id,
            message=message,
            content_digest=content_digest(says),
            next_at=at,
            created_at=at,
        )
    ).inserted_primary_key
    assert key is not None
    lifecycle.record_creation(
        connection,
        "notification",
        int(key[0]),
        lifecycle.PENDING,
        study_id=study_id,
        reason=f"message {number} to {receiver}, {control_id}",
    )
    row = connection.execute(select(schema.notification).where(n.id == key[0])).mappings().one()
    return Notification(**row)


def content_digest(says: bytes) -> str:
    """Return the digest by which two messages are known to say the same."""
    return hashlib.sha256(says).hexdigest()


def last_notification(connection: Connection, study_id: int, receiver: str) -> Notification | None:
    """Return the last message about a study to a receiver, whatever revision it was about."""
    n = schema.notification.c
    row = (
        connection.execute(
            select(schema.notification)
            .select_from(schema.notification.join(schema.revision))
            .where(schema.revision.c.study_id == study_id, n.receiver == receiver)
            .order_by(n.id.desc())
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else Notification(**row)


def notifications_of(connection: Connection, revision_id: int) -> list[Notification]:
    """Return the messages about a revision."""
    n = schema.notification.c
    rows = connection.execute(select(schema.notification).where(n.revision_id == revision_id).order_by(n.id))
    return [Notification(**row) for row in rows.mappings()]


def due_notifications(connection: Connection, receiver: str, limit: int = 20) -> list[tuple[Notification, int]]:
    """Return the messages due at one receiver, oldest first, each with the study's row id."""
    n = schema.notification.c
    rows = connection.execute(
        select(schema.notification, schema.revision.c.study_id)
        .select_from(schema.notification.join(schema.revision))
        .where(n.receiver == receiver, n.state == lifecycle.PENDING, n.next_at <= now(connection), ~_waits_behind())
        .order_by(n.next_at, n.id)
        .limit(limit)
    ).all()
    return [(Notification(**dict(zip(n.keys(), row[:-1], strict=True))), int(row[-1])) for row in rows]


def _waits_behind() -> ColumnElement[bool]:
    """An earlier message about the same study waits too: what is older must not arrive after what is newer."""
    earlier, its_revision = schema.notification.alias("earlier"), schema.revision.alias("its_revision")
    return exists().where(
        earlier.c.revision_id == its_revision.c.id,
        its_revision.c.study_id == schema.revision.c.study_id,
        earlier.c.receiver == schema.notification.c.receiver,
        earlier.c.state == lifecycle.PENDING,
        earlier.c.id < schema.notification.c.id,
    )


def succeed(connection: Connection, kind: Kind, object_id: int, *, study_id: int | None, answer: str) -> None:
    """Record that it arrived, with the peer's answer; also of one that was parked while it was under way."""
    table = _TABLES[kind]
    lifecycle.transition(
        connection,
        kind,
        object_id,
        lifecycle.DELIVERED if kind == "delivery" else lifecycle.ACKNOWLEDGED,
        study_id=study_id,
        reason=answer,
        answer=answer,
        tries=table.c.tries + 1,
        ended_at=now(connection),
    )


def postpone(
    connection: Connection, kind: Kind, object_id: int, *, delay_seconds: float, answer: str, refused: bool
) -> None:
    """Record a try that failed, whether the peer had refused it, and when the next one is due."""
    table = _TABLES[kind]
    postponed = connection.execute(
        update(table)
        .where(table.c.id == object_id, table.c.state == lifecycle.PENDING)
        .values(
            tries=table.c.tries + 1,
            refusals=table.c.refusals + int(refused),
            answer=answer,
            next_at=now(connection) + timedelta(seconds=delay_seconds),
        )
    ).rowcount
    if postponed:
        changefeed.append(
            connection,
            kind,
            object_id,
            study_id=_study_of(connection, kind, object_id),
            after="TRIED",
            reason=answer,
            detail={"refused": refused, "next_try_in_seconds": delay_seconds},
        )


def _study_of(connection: Connection, kind: Kind, object_id: int) -> int | None:
    """Return the study that it is about; a commitment may be about many."""
    table = _TABLES[kind]
    if kind == "commitment":
        return None
    if kind == "delivery":
        query = select(schema.workitem.c.study_id).select_from(table.join(schema.document).join(schema.workitem))
    else:
        query = select(schema.revision.c.study_id).select_from(table.join(schema.revision))
    return int(connection.execute(query.where(table.c.id == object_id)).scalar_one())


def park(connection: Connection, kind: Kind, object_id: int, *, study_id: int | None, answer: str) -> None:
    """Give up for now, with the peer's last answer; an operator can try again."""
    table = _TABLES[kind]
    lifecycle.transition(
        connection,
        kind,
        object_id,
        lifecycle.PARKED,
        study_id=study_id,
        reason=answer,
        answer=answer,
        tries=table.c.tries + 1,
        ended_at=now(connection),
    )


def retry(connection: Connection, kind: Kind, object_id: int, *, study_id: int | None, reason: str) -> None:
    """Try a parked one again, from the first pause on: a document is sent anew, a commitment is weighed anew."""
    anew: dict[str, Any] = {"delivery": {"stored_at": None}, "commitment": {"weighed_at": None}}.get(kind, {})
    lifecycle.transition(
        connection,
        kind,
        object_id,
        lifecycle.PENDING,
        study_id=study_id,
        reason=reason,
        tries=0,
        refusals=0,
        next_at=now(connection),
        ended_at=None,
        **anew,
    )
