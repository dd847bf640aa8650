"""Perceptual hashes of pictures, and which pictures look nearly the same: told, never made use of.

A hash of 256 bits is kept with its 16 pieces of 16 bits. Two that differ in no more than 15 bits have at least one
piece in common, so they are found by 16 exact look-ups in an index, however many there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from storage import schema
from storage.database import now

__all__ = ["MOST_DIFFERENT", "Likeness", "add", "alike", "distance", "forget", "newest"]

#: Pictures whose hashes differ in no more bits are nearly the same. What finds them holds up to 15.
MOST_DIFFERENT = 12
_PIECES = 16
#: So many candidates are compared, the latest: a piece that many pictures share says little.
_COMPARED = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """An instance of another study whose picture is nearly the same, and in how many of 256 bits it differs."""

    study_instance_uid: str
    sop_instance_uid: str
    different: int


def add(connection: Connection, study_id: int, kind: str, hashes: Mapping[str, str]) -> None:
    """Keep hashes by SOP Instance UID, in the caller's transaction; one that is known already stays.

    Parameters
    ----------
    kind
        How they were made: only hashes of one kind are compared.
    hashes
        64 hexadecimal digits each.
    """
    f = schema.fingerprint.c
    for uid, value in hashes.items():
        if connection.execute(select(f.id).where(f.sop_instance_uid == uid, f.kind == kind)).first() is not None:
            continue
        key = connection.execute(
            insert(schema.fingerprint).values(
                study_id=study_id, sop_instance_uid=uid, kind=kind, value=value, created_at=now(connection)
            )
        ).inserted_primary_key
        assert key is not None
        connection.execute(
            insert(schema.fingerprint_piece),
            [{"piece": piece, "fingerprint_id": int(key[0])} for piece in _pieces(kind, value)],
        )


def newest(connection: Connection) -> int:
    """Return the number of the hash that was kept last; 0 where there is none."""
    return connection.execute(select(func.max(schema.fingerprint.c.id))).scalar() or 0


def alike(connection: Connection, study_id: int, kind: str, value: str, *, after: int = 0) -> Likeness | None:
    """Return the picture of another study that is nearest to this one, if any is nearly the same.

    Parameters
    ----------
    after
        Only hashes that were kept after the one of this number are looked at.
    """
    f, p = schema.fingerprint.c, schema.fingerprint_piece.c
    near = select(p.fingerprint_id).where(p.piece.in_(_pieces(kind, value)), p.fingerprint_id > after).distinct()
    rows = connection.execute(
        select(f.value, f.sop_instance_uid, schema.study.c.study_instance_uid)
        .select_from(schema.fingerprint.join(schema.study, f.study_id == schema.study.c.id))
        .where(f.id.in_(near), f.kind == kind, f.study_id != study_id)
        .order_by(f.id.desc())
        .limit(_COMPARED)
    ).all()
    found = min(((distance(value, row.value), row) for row in rows), key=lambda one: one[0], default=None)
    if found is None or found[0] > MOST_DIFFERENT:
        return None
    different, row = found
    return Likeness(
        study_instance_uid=row.study_instance_uid, sop_instance_uid=row.sop_instance_uid, different=different
    )


def forget(connection: Connection, sop_instance_uid: str) -> None:
    """Forget an instance's hashes, in the caller's transaction."""
    f, p = schema.fingerprint.c, schema.fingerprint_piece.c
    ids = select(f.id).where(f.sop_instance_uid == sop_instance_uid)
    connection.execute(delete(schema.fingerprint_piece).where(p.fingerprint_id.in_(ids)))
    connection.execute(delete(schema.fingerprint).where(f.sop_instance_uid == sop_instance_uid))


def distance(first: str, second: str) -> int:
    """Return in how many bits two hashes differ."""
    return (int(first, 16) ^ int(second, 16)).bit_count()


def _pieces(kind: str, value: str) -> list[int]:
    """Number each piece by the kind of the hash, its place in it and its bits: 20, 4 and 16 bits of one integer."""
    family = zlib.crc32(kind.encode()) & 0xFFFFF
    return [family << 20 | place << 16 | int(value[4 * place : 4 * place + 4], 16) for place in range(_PIECES)]
