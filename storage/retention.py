"""Deliberate deletion: commit a tombstone and forget the row, then unlink."""

from __future__ import annotations

from sqlalchemy import Connection, delete, exists, insert, select

from storage import changefeed, commitments, fingerprints, lifecycle, results, schema
from storage.blobs import Blobs
from storage.database import Database, now
from storage.errors import StillNeeded, Unknown

__all__ = ["delete_instance"]


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
            # Their files are removed by the next sweep, as those of any result that has no row; so are heat maps and
            # masks of shadows, whose workitems have then read what is no more.
            results.forget_study(connection, row.study_id)
            connection.execute(delete(schema.instance).where(i.id == row.id))
            changefeed.append(connection, "instance", row.id, study_id=row.study_id, after="DELETED", reason=reason)
        fingerprints.forget(connection, sop_instance_uid)
    for blob in gone:
        blobs.delete(blob)
    return len(rows)


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
