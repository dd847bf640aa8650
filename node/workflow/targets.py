"""What an operator's action may be about: how a row is named, found, and what of a study is parked or open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from sqlalchemy import Connection, null, select

from node.workflow.status import TABLES, later_message
from storage import lifecycle, schema
from storage.errors import Unknown

__all__ = ["Target", "open_of", "parked_of", "resolve", "state_of"]

TargetKind = Literal["study", "revision", "workitem", "delivery", "notification", "commitment", "availability"]
#: So many digits a database's integer holds for certain.
_DIGITS = 18
_STUDY_ROWS: Mapping[str, Any] = {
    "study": select(schema.study.c.id, schema.study.c.id.label("study_id")),
    "revision": select(schema.revision.c.id, schema.revision.c.study_id),
    "workitem": select(schema.workitem.c.id, schema.workitem.c.study_id),
    "delivery": select(schema.delivery.c.id, schema.workitem.c.study_id).select_from(
        schema.delivery.join(schema.document).join(schema.workitem)
    ),
    "notification": select(schema.notification.c.id, schema.revision.c.study_id).select_from(
        schema.notification.join(schema.revision)
    ),
    "commitment": select(schema.commitment.c.id, null().label("study_id")),
    "availability": select(schema.availability.c.id, schema.revision.c.study_id).select_from(
        schema.availability.join(schema.revision)
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an action is about: a row, and the study that it belongs to; a commitment may be about many."""

    kind: TargetKind
    id: int
    study_id: int | None

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


def resolve(connection: Connection, target: str) -> Target:
    """Find what an operator means: ``delivery:12`` as ``status`` prints it, a study's UID or a workitem's.

    Raises
    ------
    Unknown
        With what a target looks like.
    """
    kind, colon, number = target.partition(":")
    if colon:
        if kind not in get_args(TargetKind) or not number.isdecimal():
            raise Unknown(
                f"{target!r} is no target: expected {', '.join(get_args(TargetKind))} and a number, as 'delivery:12'"
            )
        if len(number) > _DIGITS:
            raise Unknown(f"there is no {kind} of a number with {len(number)} digits")
        row = connection.execute(_STUDY_ROWS[kind].where(TABLES[kind].c.id == int(number))).one_or_none()
        if row is None:
            raise Unknown(f"there is no {kind} {number}")
        return Target(kind=cast(TargetKind, kind), id=int(number), study_id=row.study_id)
    s, w = schema.study.c, schema.workitem.c
    study_id = connection.execute(select(s.id).where(s.study_instance_uid == target)).scalar_one_or_none()
    if study_id is not None:
        return Target(kind="study", id=study_id, study_id=study_id)
    row = connection.execute(select(w.id, w.study_id).where(w.uid == target)).one_or_none()
    if row is not None:
        return Target(kind="workitem", id=row.id, study_id=row.study_id)
    raise Unknown(f"{target} is neither a study that was received nor a workitem; 'overread status' lists targets")


def state_of(connection: Connection, target: Target) -> str:
    """Read the state of a row, as ``storage.lifecycle`` names it."""
    table = TABLES[target.kind]
    return str(connection.execute(select(table.c.state).where(table.c.id == target.id)).scalar_one())


def parked_of(connection: Connection, study: Target) -> list[Target]:
    """Find what is parked of a study, the study itself first."""
    found = [study] if state_of(connection, study) == lifecycle.PARKED else []
    w, d, n = schema.workitem.c, schema.delivery.c, schema.notification.c
    conditions: dict[TargetKind, Any] = {
        "revision": schema.revision.c.state == lifecycle.PARKED,
        "workitem": w.parked.is_(True),
        "delivery": d.state == lifecycle.PARKED,
        "notification": (n.state == lifecycle.PARKED) & ~later_message(),
        "availability": schema.availability.c.state == lifecycle.PARKED,
    }
    return found + _rows_of(connection, study, conditions)


def open_of(connection: Connection, study: Target) -> list[Target]:
    """Find what of a study is still to be done or sent."""
    conditions: dict[TargetKind, Any] = {
        "workitem": schema.workitem.c.state.in_((lifecycle.SCHEDULED, lifecycle.IN_PROGRESS)),
        "delivery": schema.delivery.c.state == lifecycle.PENDING,
        "notification": schema.notification.c.state == lifecycle.PENDING,
        "availability": schema.availability.c.state == lifecycle.PENDING,
    }
    return _rows_of(connection, study, conditions)


def _rows_of(connection: Connection, study: Target, conditions: Mapping[TargetKind, Any]) -> list[Target]:
    found = []
    for kind, condition in conditions.items():
        of_revision = kind in ("revision", "notification", "availability")
        study_column = schema.revision.c.study_id if of_revision else schema.workitem.c.study_id
        query = _STUDY_ROWS[kind].where(study_column == study.study_id, condition).order_by(TABLES[kind].c.id)
        found += [Target(kind=kind, id=row.id, study_id=study.study_id) for row in connection.execute(query)]
    return found
