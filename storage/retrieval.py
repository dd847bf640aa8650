"""Finding what a retrieve request names: instances and their bytes by the unique keys of the hierarchy.

Everything that is stored is given out: what the node made, what an operator took out of judging, and, where one SOP
Instance UID stands in two studies, each study's own object. Of an object that came again with other bytes it is the
one that was kept, never a variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from storage import schema
from storage.keys import Level

__all__ = ["Stored", "Wanted", "find_stored"]

#: Values in one condition: databases bound how many parameters a statement may have.
_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be retrieved (PS3.4 C.4.2.1.4.1): the level, and the unique keys; one without values asks nothing."""

    level: Level
    patient_ids: tuple[str, ...] = ()
    study_instance_uids: tuple[str, ...] = ()
    series_instance_uids: tuple[str, ...] = ()
    sop_instance_uids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance and where its bytes are."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    blob: str
    size: int
    #: What is known to be wrong with the bytes; None where nothing is.
    damage: str | None


def find_stored(connection: Connection, wanted: Wanted, limit: int) -> list[Stored]:
    """Return what is wanted, in the order in which it came, at most ``limit`` instances."""
    *others, (longest, asked) = sorted(_keys(wanted), key=lambda pair: len(pair[1]))
    values = list(dict.fromkeys(asked))
    found: list[tuple[int, Stored]] = []
    for start in range(0, len(values), _AT_ONCE):
        part = (longest, tuple(values[start : start + _AT_ONCE]))
        found += _part(connection, (*others, part), limit - len(found))
        if len(found) >= limit:
            break
    return [one for _, one in sorted(found, key=lambda row: row[0])]


_Keys = Sequence[tuple[Any, tuple[str, ...]]]


def _keys(wanted: Wanted) -> _Keys:
    return (
        (schema.study.c.patient_id, wanted.patient_ids),
        (schema.study.c.study_instance_uid, wanted.study_instance_uids),
        (schema.series.c.series_instance_uid, wanted.series_instance_uids),
        (schema.instance.c.sop_instance_uid, wanted.sop_instance_uids),
    )


def _part(connection: Connection, keys: _Keys, limit: int) -> list[tuple[int, Stored]]:
    t, s, i = schema.study.c, schema.series.c, schema.instance.c
    statement = (
        select(i.id, i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.blob, i.size, schema.damage.c.kind)
        .select_from(
            schema.instance.join(schema.study, i.study_id == t.id)
            .join(schema.series, i.series_id == s.id)
            .outerjoin(schema.damage, schema.damage.c.blob == i.blob)
        )
        .where(*(column.in_(values) for column, values in keys if values))
    )
    rows = connection.execute(statement.order_by(i.id).limit(limit))
    return [(row[0], Stored(*row[1:])) for row in rows]
