"""What peers ask the node to commit to (Storage Commitment, PS3.4 Annex J), what it holds of it, and the report owed.

A commitment is recorded before its request is answered, weighed once, and reported until the peer has acknowledged
the report. What an unreported one names is not deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, exists, insert, select, update

from storage import lifecycle, outbox, schema
from storage.blobs import Blobs
from storage.database import Database, now
from storage.errors import AlreadyThere
from storage.records import Commitment

__all__ = [
    "CLASS_INSTANCE_CONFLICT",
    "NO_SUCH_INSTANCE",
    "PROCESSING_FAILURE",
    "Reference",
    "are_unreachable",
    "due",
    "get",
    "is_needed",
    "is_reported",
    "make_due",
    "park_unreachable",
    "record",
    "weigh",
]

#: Failure Reason (0008,1197), PS3.3 C.14.1.1.
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_INSTANCE_CONFLICT: Final = 0x0119
#: So many parameters a statement of either database takes for certain.
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance that a peer asked about; ``failure_reason`` where the node does not commit to it."""

    sop_class_uid: str
    sop_instance_uid: str
    failure_reason: int | None = None


def record(
    connection: Connection,
    *,
    calling_ae_title: str,
    transaction_uid: str,
    references: Sequence[Reference],
    hold_seconds: float,
) -> Commitment:
    """Keep what a peer asks for, in the caller's write transaction.

    The same transaction with the same references again is the same commitment: it is weighed and reported anew.

    Parameters
    ----------
    hold_seconds
        For so long nobody but the caller reports it.

    Raises
    ------
    AlreadyThere
        When the peer has used the Transaction UID for other references.
    """
    c, r = schema.commitment.c, schema.commitment_reference.c
    at = now(connection)
    clock = {"next_at": at + timedelta(seconds=hold_seconds)}
    reason = f"{calling_ae_title} asks about {len(references)} instances"
    known = connection.execute(
        select(c.id, c.state).where(c.calling_ae_title == calling_ae_title, c.transaction_uid == transaction_uid)
    ).one_or_none()
    if known is not None:
        if sorted(_pair(one) for one in references) != sorted(
            _pair(one) for one in _references(connection, known.id).values()
        ):
            raise AlreadyThere("the Transaction UID stands for other references already")
        anew: dict[str, Any] = {"tries": 0, "refusals": 0, "weighed_at": None, "ended_at": None, **clock}
        if known.state == lifecycle.PENDING:
            connection.execute(update(schema.commitment).where(c.id == known.id).values(anew))
        else:
            lifecycle.transition(
                connection, "commitment", known.id, lifecycle.PENDING, study_id=None, reason=f"{reason} again", **anew
            )
        return get(connection, known.id)
    key = connection.execute(
        insert(schema.commitment).values(
            calling_ae_title=calling_ae_title,
            transaction_uid=transaction_uid,
            state=lifecycle.PENDING,
            created_at=at,
            **clock,
        )
    ).inserted_primary_key
    assert key is not None
    commitment_id = int(key[0])
    connection.execute(
        insert(schema.commitment_reference),
        [
            {
                r.commitment_id.name: commitment_id,
                r.sop_class_uid.name: one.sop_class_uid,
                r.sop_instance_uid.name: one.sop_instance_uid,
            }
            for one in references
        ],
    )
    lifecycle.record_creation(connection, "commitment", commitment_id, lifecycle.PENDING, study_id=None, reason=reason)
    return get(connection, commitment_id)


def get(connection: Connection, commitment_id: int) -> Commitment:
    """Return a commitment by its row id."""
    row = connection.execute(select(schema.commitment).where(schema.commitment.c.id == commitment_id)).mappings().one()
    return Commitment(**row)


def due(connection: Connection, calling_ae_title: str, limit: int = 20) -> list[Commitment]:
    """Return what is due to be reported to one peer, oldest first."""
    c = schema.commitment.c
    rows = connection.execute(
        select(schema.commitment)
        .where(c.calling_ae_title == calling_ae_title, c.state == lifecycle.PENDING, c.next_at <= now(connection))
        .order_by(c.next_at, c.id)
        .limit(limit)
    ).mappings()
    return [Commitment(**row) for row in rows]


def make_due(connection: Connection, commitment_id: int) -> None:
    """Let a commitment be reported at once by whoever reports next: the caller cannot."""
    c = schema.commitment.c
    connection.execute(
        update(schema.commitment)
        .where(c.id == commitment_id, c.state == lifecycle.PENDING)
        .values(next_at=now(connection))
    )


def are_unreachable(connection: Connection, reachable: Collection[str]) -> bool:
    """Whether something is due to AEs that nobody can call."""
    return connection.execute(_unreachable(connection, reachable).limit(1)).first() is not None


def park_unreachable(connection: Connection, reachable: Collection[str]) -> int:
    """Park what is due to AEs that nobody can call. Returns how many."""
    rows = connection.execute(_unreachable(connection, reachable)).all()
    for row in rows:
        outbox.park(
            connection,
            "commitment",
            row.id,
            study_id=None,
            answer=f"the association is over, and {row.calling_ae_title} is no peer with a host, a port and the "
            "service commit; configure it, restart, and retry",
        )
    return len(rows)


def _unreachable(connection: Connection, reachable: Collection[str]) -> Select[tuple[int, str]]:
    c = schema.commitment.c
    return select(c.id, c.calling_ae_title).where(
        c.state == lifecycle.PENDING, c.next_at <= now(connection), c.calling_ae_title.not_in(list(reachable))
    )


def weigh(database: Database, blobs: Blobs, commitment: Commitment) -> list[Reference]:
    """Look what is held of a commitment, once; return its references with what was found.

    An instance is held where it is indexed under that SOP Class and all its bytes are on disk. What was found is
    stored before it is told, so that every try tells the same.
    """
    if commitment.weighed_at is not None:
        with database.read() as connection:
            return list(_references(connection, commitment.id).values())
    with database.read() as connection:
        references = _references(connection, commitment.id)
        held = _held(connection, references.values())
    whole = {blob for rows in held.values() for _, blob, size in rows if _is_whole(blobs, blob, size)}
    with database.write() as connection:
        # Rows that were found are locked, so that a deletion that did not see this commitment is over by now.
        still = _held(connection, references.values())
        found = {
            key: Reference(
                one.sop_class_uid, one.sop_instance_uid, _failure(one, still.get(one.sop_instance_uid, ()), whole)
            )
            for key, one in references.items()
        }
        _store(connection, commitment.id, found)
    return list(found.values())


def is_needed(connection: Connection, sop_instance_uid: str) -> bool:
    """Whether a report about an instance is still owed to a peer."""
    c, r = schema.commitment.c, schema.commitment_reference.c
    owed = exists().where(r.sop_instance_uid == sop_instance_uid, c.id == r.commitment_id, c.state == lifecycle.PENDING)
    return bool(connection.execute(select(owed)).scalar_one())


def is_reported(connection: Connection, commitment_id: int) -> bool:
    """Whether the peer has acknowledged the report."""
    return get(connection, commitment_id).state == lifecycle.ACKNOWLEDGED


def _pair(one: Reference) -> tuple[str, str]:
    return one.sop_class_uid, one.sop_instance_uid


def _references(connection: Connection, commitment_id: int) -> dict[int, Reference]:
    """Return what a commitment names, by row, in the order of the request."""
    r = schema.commitment_reference.c
    rows = connection.execute(
        select(r.id, r.sop_class_uid, r.sop_instance_uid, r.failure_reason)
        .where(r.commitment_id == commitment_id)
        .order_by(r.id)
    )
    return {row[0]: Reference(*row[1:]) for row in rows}


#: (SOP Class UID, blob, size) of what is indexed under a SOP Instance UID.
_Held = dict[str, list[tuple[str, str, int]]]


def _held(connection: Connection, references: Iterable[Reference]) -> _Held:
    i = schema.instance.c
    found: _Held = {}
    for uids in _some(sorted({one.sop_instance_uid for one in references})):
        query = select(i.sop_instance_uid, i.sop_class_uid, i.blob, i.size).where(i.sop_instance_uid.in_(uids))
        for uid, sop_class, blob, size in connection.execute(query.with_for_update(read=True)):
            found.setdefault(uid, []).append((sop_class, blob, size))
    return found


def _some(uids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(uids), _AT_ONCE):
        yield uids[start : start + _AT_ONCE]


def _is_whole(blobs: Blobs, blob: str, size: int) -> bool:
    try:
        return blobs.path(blob).stat().st_size == size
    except OSError:
        return False


def _failure(one: Reference, rows: Sequence[tuple[str, str, int]], whole: Collection[str]) -> int | None:
    if not rows:
        return NO_SUCH_INSTANCE
    of_class = [blob for sop_class, blob, _ in rows if sop_class == one.sop_class_uid]
    if not of_class:
        return CLASS_INSTANCE_CONFLICT
    return None if any(blob in whole for blob in of_class) else PROCESSING_FAILURE


def _store(connection: Connection, commitment_id: int, found: Mapping[int, Reference]) -> None:
    c, r = schema.commitment.c, schema.commitment_reference.c
    connection.execute(
        update(schema.commitment_reference).where(r.commitment_id == commitment_id).values(failure_reason=None)
    )
    failed = [
        {"row": key, "reason": one.failure_reason} for key, one in found.items() if one.failure_reason is not None
    ]
    if failed:
        connection.execute(
            update(schema.commitment_reference)
            .where(r.id == bindparam("row"))
            .values(failure_reason=bindparam("reason")),
            failed,
        )
    connection.execute(update(schema.commitment).where(c.id == commitment_id).values(weighed_at=now(connection)))
