"""What was found to be wrong with the bytes that are held: missing, changed or unreadable files, until they are right.

Found at a start, which compares files and rows, and by reading everything again (``overread verify``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import Connection, delete, func, insert, select

from storage import changefeed, schema
from storage.database import now

__all__ = ["KINDS", "Damaged", "Kind", "counts", "forget", "is_noted", "listed", "note"]

Kind = Literal["missing", "changed", "unreadable"]
KINDS: Final[tuple[Kind, ...]] = ("missing", "changed", "unreadable")
_MANY = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A file that is not what its row says; the UIDs are empty where the file is of quarantine."""

    blob: str
    kind: str
    study_instance_uid: str
    sop_instance_uid: str
    noticed_at: datetime


def note(connection: Connection, found: Mapping[str, Kind]) -> int:
    """Record what is wrong with these files. Returns how many of them were not known to be so."""
    d = schema.damage.c
    known: dict[str, str] = {}
    names = sorted(found)
    for start in range(0, len(names), _MANY):
        rows = connection.execute(select(d.blob, d.kind).where(d.blob.in_(names[start : start + _MANY])))
        known |= {row.blob: row.kind for row in rows}
    new = {blob: kind for blob, kind in found.items() if known.get(blob) != kind}
    forget(connection, new.keys() & known.keys())
    at = now(connection)
    if new:
        connection.execute(
            insert(schema.damage), [{"blob": blob, "kind": kind, "noticed_at": at} for blob, kind in new.items()]
        )
        changefeed.append(
            connection, "damage", None, study_id=None, after="NOTICED", reason=f"{len(new)} files are not as they were"
        )
    return len(new)


def forget(connection: Connection, blobs: Collection[str]) -> None:
    """Forget what was wrong with these files: they are right, or nothing names them any more."""
    names = sorted(blobs)
    for start in range(0, len(names), _MANY):
        connection.execute(delete(schema.damage).where(schema.damage.c.blob.in_(names[start : start + _MANY])))


def is_noted(connection: Connection, blob: str) -> bool:
    """Whether something is known to be wrong with a file."""
    return connection.execute(select(schema.damage.c.blob).where(schema.damage.c.blob == blob)).first() is not None


def counts(connection: Connection) -> dict[str, int]:
    """Return how many files are damaged, by kind; every kind is named."""
    d = schema.damage.c
    found = {row[0]: int(row[1]) for row in connection.execute(select(d.kind, func.count()).group_by(d.kind))}
    return {kind: found.get(kind, 0) for kind in KINDS}


def listed(connection: Connection, limit: int = 20) -> list[Damaged]:
    """Return damaged files with what they hold, the oldest first."""
    d, i, v, s = schema.damage.c, schema.instance.c, schema.variant.c, schema.study.c
    of_variant = schema.instance.alias("of_variant")
    rows = connection.execute(
        select(
            d.blob,
            d.kind,
            d.noticed_at,
            func.coalesce(i.sop_instance_uid, of_variant.c.sop_instance_uid, "").label("sop_instance_uid"),
            func.coalesce(s.study_instance_uid, "").label("study_instance_uid"),
        )
        .select_from(
            schema.damage.outerjoin(schema.instance, i.blob == d.blob)
            .outerjoin(schema.variant, v.blob == d.blob)
            .outerjoin(of_variant, of_variant.c.id == v.instance_id)
            .outerjoin(schema.study, s.id == func.coalesce(i.study_id, of_variant.c.study_id))
        )
        .order_by(d.noticed_at, d.blob)
        .limit(limit)
    )
    return [Damaged(**row) for row in rows.mappings()]
