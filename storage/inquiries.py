"""What senders are asked about the studies that they have sent, and what they answered (C-FIND)."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, func, insert, select, update

from storage import lifecycle, schema
from storage.database import now
from storage.records import Inquiry

__all__ = ["answered", "ask", "due", "held_for", "of_study"]


def of_study(connection: Connection, study_id: int) -> list[Inquiry]:
    """Return what was asked about a study, peer by peer."""
    q = schema.inquiry.c
    rows = connection.execute(select(schema.inquiry).where(q.study_id == study_id).order_by(q.peer))
    return [Inquiry(**row) for row in rows.mappings()]


def ask(connection: Connection, study_id: int, peer: str, after_seconds: float, *, anew: bool) -> None:
    """Have a peer be asked about a study, in the caller's write transaction; what is to be asked sooner stays so.

    Parameters
    ----------
    anew
        Whether the count of tries and failures starts again: something came since.
    """
    q = schema.inquiry.c
    due_at = now(connection) + timedelta(seconds=after_seconds)
    found = connection.execute(select(q.id, q.due_at).where(q.study_id == study_id, q.peer == peer)).one_or_none()
    if found is None:
        connection.execute(insert(schema.inquiry).values(study_id=study_id, peer=peer, due_at=due_at))
        return
    values = {"asked": 0, "failures": 0} if anew else {}
    if found.due_at is None or found.due_at > due_at:
        values["due_at"] = due_at  # type: ignore[assignment]
    if values:
        connection.execute(update(schema.inquiry).where(q.id == found.id).values(values))


def due(connection: Connection, peer: str, limit: int = 20) -> list[tuple[Inquiry, str]]:
    """Return what a peer is to be asked now, with the Study Instance UID; nothing about a study that is judged."""
    q = schema.inquiry.c
    rows = connection.execute(
        select(schema.inquiry, schema.study.c.study_instance_uid)
        .select_from(schema.inquiry.join(schema.study))
        .where(q.peer == peer, q.due_at <= now(connection), schema.study.c.state == lifecycle.RECEIVING)
        .order_by(q.due_at)
        .limit(limit)
    ).mappings()
    return [(Inquiry(**{key: row[key] for key in schema.inquiry.c.keys()}), row["study_instance_uid"]) for row in rows]  # noqa: SIM118 - a column collection


def answered(connection: Connection, inquiry: Inquiry, *, asked_at: datetime, count: int | None, answer: str) -> None:
    """Keep what a peer answered, in the caller's write transaction, and have the study looked at again at once.

    Parameters
    ----------
    asked_at
        Before the request went out: what came in since then is not in the count.
    count
        None where it gave no number; ``answer`` says why.
    """
    connection.execute(
        update(schema.inquiry)
        .where(schema.inquiry.c.id == inquiry.id)
        .values(
            due_at=None,
            asked_at=asked_at,
            asked=schema.inquiry.c.asked + 1,
            failures=0 if count is not None else schema.inquiry.c.failures + 1,
            count=count,
            answer=answer,
        )
    )
    connection.execute(
        update(schema.study)
        .where(schema.study.c.id == inquiry.study_id, schema.study.c.state == lifecycle.RECEIVING)
        .values(look_at=now(connection))
    )


def held_for(connection: Connection, study_id: int, calling_ae_title: str, destinations: frozenset[str]) -> int:
    """Return how many instances of a study this node holds that a peer may hold too.

    Of what the node made itself only what went to the peer counts, or came back from it: else a document that is
    still on its way would stand for an image that is missing.

    Parameters
    ----------
    calling_ae_title
        The peer's.
    destinations
        By which the node delivers to that peer.
    """
    i, d = schema.instance.c, schema.document.c
    held = connection.execute(
        select(func.count(func.distinct(i.sop_instance_uid))).where(
            i.study_id == study_id, i.made_here.is_(False) | (i.calling_ae_title == calling_ae_title)
        )
    ).scalar_one()
    if not destinations:
        return held
    delivered = (
        select(d.sop_instance_uid)
        .select_from(schema.delivery.join(schema.document).join(schema.workitem))
        .where(
            schema.workitem.c.study_id == study_id,
            schema.delivery.c.destination.in_(sorted(destinations)),
            schema.delivery.c.state == lifecycle.DELIVERED,
        )
    )
    there = connection.execute(
        select(func.count(func.distinct(i.sop_instance_uid))).where(
            i.study_id == study_id,
            i.made_here.is_(True),
            i.calling_ae_title != calling_ae_title,
            i.sop_instance_uid.in_(delivered),
        )
    ).scalar_one()
    return held + there
