"""Deliberate deletion, and putting files and rows in agreement at start-up.

Delete is: commit a tombstone and forget the row, then unlink. A file without a row is either deleted already
(its tombstone says so), or was never acknowledged: it is adopted, since its sender may not come again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, exists, insert, select

from storage import changefeed, commitments, lifecycle, schema
from storage.blobs import Blobs
from storage.database import Database, now
from storage.errors import NotDicom, StillNeeded, Unknown
from storage.headers import read_header
from storage.index import Origin, Outcome, insert_instance, is_made_here, quarantine_blob

__all__ = ["Reconciled", "delete_instance", "reconcile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What start-up found: files adopted, refused and removed, and rows whose file is gone."""

    adopted: int
    quarantined: int
    removed: int
    missing: tuple[str, ...]


def delete_instance(database: Database, blobs: Blobs, sop_instance_uid: str, reason: str) -> int:
    """Delete every object under a SOP Instance UID, for good.

    Returns
    -------
    int
        How many objects were deleted (more than one where the UID stood under several studies).

    Raises
    ------
    Unknown
        When there is none.
    StillNeeded
        When open work reads it, it is a document on its way, or a peer waits to hear whether it is kept.
    """
    i, v = schema.instance.c, schema.variant.c
    with database.write() as connection:
        # Locked, so that a commitment that is being weighed either finds them gone or is seen below.
        rows = connection.execute(
            select(i.id, i.study_id, i.blob).where(i.sop_instance_uid == sop_instance_uid).with_for_update()
        ).all()
        if not rows:
            raise Unknown(f"no instance {sop_instance_uid}")
        gone: list[str] = []
        for row in rows:
            _refuse_if_needed(connection, row.study_id, sop_instance_uid)
            variants = connection.execute(select(v.blob).where(v.instance_id == row.id)).scalars().all()
            for blob in (row.blob, *variants):
                connection.execute(
                    insert(schema.tombstone).values(
                        blob=blob, sop_instance_uid=sop_instance_uid, reason=reason, deleted_at=now(connection)
                    )
                )
                gone.append(blob)
            connection.execute(delete(schema.variant).where(v.instance_id == row.id))
            connection.execute(delete(schema.instance).where(i.id == row.id))
            changefeed.append(connection, "instance", row.id, study_id=row.study_id, after="DELETED", reason=reason)
    for blob in gone:
        blobs.delete(blob)
    return len(rows)


def reconcile(
    database: Database, blobs: Blobs, refused: Blobs, incoming: Path, device_uids: Collection[str] = ()
) -> Reconciled:
    """Put files and rows in agreement. Only while nothing else writes: before the first receiver starts.

    Half-written files were never acknowledged and are removed. Orphans are adopted, except what this node had
    made and not yet committed: that work is done again.
    """
    half_written = [path for path in incoming.iterdir() if path.is_file()]
    for path in half_written:
        path.unlink()
    with database.read() as connection:
        known = _named(connection)
        deleted = set(connection.execute(select(schema.tombstone.c.blob)).scalars())
    adopted, quarantined, removed = 0, 0, len(half_written)
    for blob in sorted(set(blobs.names()) - known):
        outcome = None if blob in deleted else _adopt(database, blobs, refused, blob, device_uids)
        if outcome is None:
            blobs.delete(blob)
            removed += 1
        elif outcome:
            adopted += 1
        else:
            quarantined += 1
    # Asked only now: what was refused just above has its row already, and what was gone may have been found again.
    with database.read() as connection:
        missing = _named(connection) - set(blobs.names())
        refused_rows = set(connection.execute(select(schema.quarantine.c.blob)).scalars())
    for blob in sorted(set(refused.names()) - refused_rows):
        with database.write() as connection:
            size = refused.path(blob).stat().st_size
            quarantine_blob(connection, blob, size, "found without a record at start-up", Origin(calling_ae_title=""))
        quarantined += 1
    return Reconciled(adopted=adopted, quarantined=quarantined, removed=removed, missing=tuple(sorted(missing)))


def _named(connection: Connection) -> set[str]:
    """Return the blobs that rows name."""
    named = set(connection.execute(select(schema.instance.c.blob)).scalars())
    return named | set(connection.execute(select(schema.variant.c.blob)).scalars())


def _adopt(database: Database, blobs: Blobs, refused: Blobs, blob: str, device_uids: Collection[str]) -> bool | None:
    """Index an orphan: True when it was taken in, False when it went to quarantine, None when it must go."""
    origin = Origin(calling_ae_title="")
    path = blobs.path(blob)
    try:
        header = read_header(path)
    except NotDicom as error:
        size = path.stat().st_size
        kept = refused.adopt(path)
        with database.write() as connection:
            quarantine_blob(connection, kept, size, str(error), origin)
        return False
    made_here = is_made_here(header, device_uids)
    i = schema.instance.c
    with database.write() as connection:
        if (
            made_here
            and not connection.execute(
                select(exists().where(i.sop_instance_uid == header.sop_instance_uid))
            ).scalar_one()
        ):
            return None
        indexed = insert_instance(
            connection,
            header,
            blob,
            origin,
            made_here=made_here,
            holds=lambda kept: blobs.path(kept).is_file(),
        )
    return None if indexed.outcome is Outcome.DUPLICATE else True


def _refuse_if_needed(connection: Connection, study_id: int, sop_instance_uid: str) -> None:
    w, d, r, n = schema.workitem.c, schema.document.c, schema.revision.c, schema.notification.c
    open_work = connection.execute(
        select(w.uid).where(w.study_id == study_id, w.state.in_((lifecycle.SCHEDULED, lifecycle.IN_PROGRESS)))
    ).first()
    if open_work is not None:
        raise StillNeeded(f"workitem {open_work.uid} may still read {sop_instance_uid}; cancel it or wait")
    if commitments.is_needed(connection, sop_instance_uid):
        raise StillNeeded(f"a peer has asked for storage commitment of {sop_instance_uid} and is not answered yet")
    undelivered = exists().where(schema.delivery.c.document_id == d.id, schema.delivery.c.state == lifecycle.PENDING)
    waiting = connection.execute(select(d.id).where(d.sop_instance_uid == sop_instance_uid, undelivered)).first()
    if waiting is not None:
        raise StillNeeded(f"{sop_instance_uid} is an evidence document that is not delivered yet")
    open_state = connection.execute(
        select(schema.study.c.id).where(schema.study.c.id == study_id, schema.study.c.state == lifecycle.RECEIVING)
    ).first()
    if open_state is not None:
        raise StillNeeded(f"the study of {sop_instance_uid} is still being received")
    unreported = connection.execute(
        select(r.number).where(r.study_id == study_id, r.state != lifecycle.REPORTED).limit(1)
    ).first()
    if unreported is not None:
        raise StillNeeded(f"revision {unreported.number} of the study of {sop_instance_uid} is not reported yet")
    unsent = connection.execute(
        select(n.control_id)
        .select_from(schema.notification.join(schema.revision))
        .where(r.study_id == study_id, n.state == lifecycle.PENDING)
        .limit(1)
    ).first()
    if unsent is not None:
        raise StillNeeded(f"notification {unsent.control_id} about the study of {sop_instance_uid} is not sent yet")
