"""Bytes that were refused: what there is, taking them in after all, and letting them go."""

from __future__ import annotations

from pathlib import Path

from pydicom.filereader import read_file_meta_info
from sqlalchemy import Connection, delete, insert, select, update

from storage import changefeed, schema
from storage.blobs import Blobs
from storage.database import Database, now
from storage.errors import NotDicom, Unknown
from storage.headers import read_header
from storage.index import Origin
from storage.intake import Archive, Receipt, compare
from storage.records import Quarantined

__all__ = ["drop", "get", "listed", "retry"]


def listed(connection: Connection, *, limit: int = 100, after: int = 0) -> list[Quarantined]:
    """Return what is in quarantine, a page at a time, the oldest first: those whose id is above ``after``."""
    q = schema.quarantine.c
    rows = connection.execute(select(schema.quarantine).where(q.id > after).order_by(q.id).limit(limit))
    return [Quarantined(**row) for row in rows.mappings()]


def get(connection: Connection, quarantine_id: int) -> Quarantined:
    """Return one by its number.

    Raises
    ------
    Unknown
        When there is none.
    """
    row = (
        connection.execute(select(schema.quarantine).where(schema.quarantine.c.id == quarantine_id))
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise Unknown(f"nothing in quarantine has the number {quarantine_id}; see overread quarantine list")
    return Quarantined(**row)


def retry(
    database: Database,
    archive: Archive,
    refused: Blobs,
    incoming: Path,
    item: Quarantined,
    *,
    by: str,
    as_it_is: bool = False,
) -> Receipt:
    """Offer refused bytes to the intake once more, in the name of who sent them.

    Parameters
    ----------
    as_it_is
        Take an object although it is another one than its sender had announced.

    Notes
    -----
    A crash in between leaves them in quarantine as well as in the archive; a further try then finds a duplicate.

    Raises
    ------
    NotDicom
        When they are refused again; they stay where they are, with the reason of now.
    Unknown
        When the file is gone.
    """
    path = refused.path(item.blob)
    if not path.is_file():
        raise Unknown(f"the bytes of quarantine {item.id} are gone ({item.blob[:2]}/{item.blob})")
    try:
        # Asked here first: what the archive refuses, it puts into quarantine once more.
        header = read_header(path)
        if not as_it_is and not item.calling_ae_title.startswith("STOW-RS"):
            compare(header, _announced(path))
    except NotDicom as error:
        with database.write() as connection:
            connection.execute(
                update(schema.quarantine).where(schema.quarantine.c.id == item.id).values(reason=str(error))
            )
        raise
    offered = incoming / f"retry-{item.blob}.part"
    offered.unlink(missing_ok=True)
    offered.hardlink_to(path)
    receipt = archive.receive(offered, Origin(calling_ae_title=item.calling_ae_title))
    with database.write() as connection:
        _forget(connection, item)
        reason = f"taken in ({receipt.outcome}), asked for by {by}; it had been refused: {item.reason}"
        changefeed.append(connection, "quarantine", item.id, study_id=None, after="TAKEN IN", reason=reason)
    refused.delete(item.blob)
    return receipt


def _announced(path: Path) -> tuple[str, str]:
    """Return the SOP Class and SOP Instance UID of the request, which are in the file meta information."""
    meta = read_file_meta_info(path)
    return str(meta.get("MediaStorageSOPClassUID", "")), str(meta.get("MediaStorageSOPInstanceUID", ""))


def drop(database: Database, refused: Blobs, item: Quarantined, *, by: str) -> None:
    """Delete refused bytes for good: commit a tombstone and forget the row, then unlink."""
    with database.write() as connection:
        connection.execute(
            insert(schema.tombstone).values(
                blob=item.blob, sop_instance_uid="", reason=f"dropped by {by}", deleted_at=now(connection)
            )
        )
        _forget(connection, item)
        reason = f"deleted, asked for by {by}; it had been refused: {item.reason}"
        changefeed.append(connection, "quarantine", item.id, study_id=None, after="DROPPED", reason=reason)
    refused.delete(item.blob)


def _forget(connection: Connection, item: Quarantined) -> None:
    connection.execute(delete(schema.quarantine).where(schema.quarantine.c.id == item.id))
