"""The change feed: every event in one monotonic sequence; outside tools, live pages and ``explain`` read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from storage import schema
from storage.database import now
from storage.prepared import Prepared
from storage.records import Change

__all__ = ["append", "append_stored", "of_study", "since"]


_INSERT = Prepared(
    insert(schema.change).inline(),
    ("at", "kind", "object_id", "study_id", "before", "after", "reason", "detail"),
)


def append(
    connection: Connection,
    kind: str,
    object_id: int | None,
    *,
    study_id: int | None,
    before: str | None = None,
    after: str | None = None,
    reason: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add one event, in the caller's transaction."""
    connection.execute(
        insert(schema.change).values(
            at=now(connection),
            kind=kind,
            object_id=object_id,
            study_id=study_id,
            before=before,
            after=after,
            reason=reason,
            detail=dict(detail or {}),
        )
    )


def append_stored(connection: Connection, instances: Sequence[tuple[int, int, bool]], at: datetime) -> None:
    """Add that instances were stored: each one's id, its study's id, and whether it was made here."""
    _INSERT.run_many(
        connection,
        [
            {
                "at": at,
                "kind": "instance",
                "object_id": instance_id,
                "study_id": study_id,
                "before": None,
                "after": "STORED",
                "reason": "",
                "detail": {"made_here": made_here},
            }
            for instance_id, study_id, made_here in instances
        ],
    )


def since(connection: Connection, sequence: int, limit: int = 500) -> list[Change]:
    """Return the events after a sequence number, oldest first."""
    c = schema.change.c
    rows = connection.execute(select(schema.change).where(c.sequence > sequence).order_by(c.sequence).limit(limit))
    return [Change(**row) for row in rows.mappings()]


def of_study(connection: Connection, study_id: int) -> list[Change]:
    """Return every event of a study, oldest first."""
    c = schema.change.c
    rows = connection.execute(select(schema.change).where(c.study_id == study_id).order_by(c.sequence))
    return [Change(**row) for row in rows.mappings()]
