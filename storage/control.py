"""What operators hold still: paused routes, models, destinations and receivers."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, delete, insert, select

from storage import changefeed, schema
from storage.database import now
from storage.records import Pause

__all__ = ["PAUSABLE", "Pausable", "pause", "paused", "pauses", "resume"]

Pausable = Literal["route", "model", "destination", "notifier"]
PAUSABLE: tuple[Pausable, ...] = ("route", "model", "destination", "notifier")


def pause(connection: Connection, kind: Pausable, name: str, *, by: str = "") -> bool:
    """Hold something still, in the name of an operator; returns whether it was moving."""
    if name in paused(connection, kind):
        return False
    connection.execute(insert(schema.pause).values(kind=kind, name=name, since=now(connection)))
    changefeed.append(connection, "pause", None, study_id=None, after="PAUSED", reason=_said(kind, name, by))
    return True


def resume(connection: Connection, kind: Pausable, name: str, *, by: str = "") -> bool:
    """Let something move again, in the name of an operator; returns whether it was held."""
    p = schema.pause.c
    held = connection.execute(delete(schema.pause).where(p.kind == kind, p.name == name)).rowcount > 0
    if held:
        changefeed.append(connection, "pause", None, study_id=None, after="RESUMED", reason=_said(kind, name, by))
    return held


def paused(connection: Connection, kind: Pausable) -> frozenset[str]:
    """Return the names of one kind that are held still."""
    p = schema.pause.c
    return frozenset(connection.execute(select(p.name).where(p.kind == kind)).scalars())


def pauses(connection: Connection) -> list[Pause]:
    """Return everything that is held still."""
    rows = connection.execute(select(schema.pause).order_by("kind", "name"))
    return [Pause(**row) for row in rows.mappings()]


def _said(kind: str, name: str, by: str) -> str:
    return f"{kind} {name}, by {by}" if by else f"{kind} {name}"
