"""Who is told that a study's instances are there (Instance Availability Notification, PS3.4 Annex R).

One notification for each revision and peer, committed with the revision; what it says is read when it is sent, under
the SOP Instance UID that it was given then, so that a peer knows a second try as the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.uid import generate_uid
from sqlalchemy import Connection, insert, select

from storage import lifecycle, schema
from storage.database import now
from storage.records import Availability, Revision

__all__ = ["add", "due"]


def add(connection: Connection, revision: Revision, peers: Iterable[str]) -> None:
    """Have peers told of a revision, in the write transaction that opens it; those who are told already stay so."""
    a = schema.availability.c
    at = now(connection)
    known = set(connection.execute(select(a.peer).where(a.revision_id == revision.id)).scalars())
    for peer in dict.fromkeys(peers):
        if peer in known:
            continue
        key = connection.execute(
            insert(schema.availability).values(
                revision_id=revision.id,
                peer=peer,
                sop_instance_uid=generate_uid(prefix=None),
                state=lifecycle.PENDING,
                next_at=at,
                created_at=at,
            )
        ).inserted_primary_key
        assert key is not None
        lifecycle.record_creation(
            connection,
            "availability",
            int(key[0]),
            lifecycle.PENDING,
            study_id=revision.study_id,
            reason=f"revision {revision.number} to {peer}",
        )


def due(connection: Connection, peer: str, limit: int = 20) -> list[tuple[Availability, int]]:
    """Return what is due to one peer, oldest first, each with the study's row id."""
    a = schema.availability.c
    rows = connection.execute(
        select(schema.availability, schema.revision.c.study_id)
        .select_from(schema.availability.join(schema.revision))
        .where(a.peer == peer, a.state == lifecycle.PENDING, a.next_at <= now(connection))
        .order_by(a.next_at, a.id)
        .limit(limit)
    ).all()
    return [(Availability(**dict(zip(a.keys(), row[:-1], strict=True))), int(row[-1])) for row in rows]
