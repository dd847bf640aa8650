"""How far long work in the background has come: one row each, for health, metrics and whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from storage import schema
from storage.database import now

__all__ = ["Chore", "begin", "chores", "end", "get", "step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chore:
    """Work by its name: so much is done of so much, and what was found on the way."""

    name: str
    done: int
    total: int
    found: Mapping[str, Any]
    began_at: datetime
    ended_at: datetime | None


def begin(connection: Connection, name: str, total: int) -> None:
    """Start anew."""
    connection.execute(delete(schema.chore).where(schema.chore.c.name == name))
    connection.execute(
        insert(schema.chore).values(name=name, done=0, total=total, found={}, began_at=now(connection), ended_at=None)
    )


def step(connection: Connection, name: str, done: int, found: Mapping[str, Any]) -> None:
    """Say how far it has come."""
    connection.execute(update(schema.chore).where(schema.chore.c.name == name).values(done=done, found=dict(found)))


def end(connection: Connection, name: str, found: Mapping[str, Any]) -> None:
    """Say that it has come to its end."""
    c = schema.chore.c
    connection.execute(
        update(schema.chore).where(c.name == name).values(done=c.total, found=dict(found), ended_at=now(connection))
    )


def get(connection: Connection, name: str) -> Chore | None:
    """Return one, if it was ever begun."""
    row = connection.execute(select(schema.chore).where(schema.chore.c.name == name)).mappings().one_or_none()
    return None if row is None else Chore(**row)


def chores(connection: Connection) -> list[Chore]:
    """Return all of them."""
    return [Chore(**row) for row in connection.execute(select(schema.chore).order_by("name")).mappings()]
