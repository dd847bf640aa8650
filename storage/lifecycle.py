"""The states of everything that has states, the moves between them, and the one function that makes a move.

Workitem states are those of the Unified Procedure Step (PS3.4 Table CC.1.1-1) and only go forward. Every move
is written to the change feed in the same transaction, so that the story of a study can be told from the feed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Table, select, update

from storage import changefeed, schema
from storage.database import now
from storage.errors import IllegalTransition, Unknown

__all__ = ["STATES", "TRANSITIONS", "end", "record_creation", "transition"]

# Study
RECEIVING: Final = "RECEIVING"
COMPLETE: Final = "COMPLETE"
PARKED: Final = "PARKED"
# Revision
OPEN: Final = "OPEN"
ROUTED: Final = "ROUTED"
REPORTED: Final = "REPORTED"
# Workitem (PS3.4 CC.1.1)
SCHEDULED: Final = "SCHEDULED"
IN_PROGRESS: Final = "IN PROGRESS"
COMPLETED: Final = "COMPLETED"
CANCELED: Final = "CANCELED"
# Attempt
RUNNING: Final = "RUNNING"
SUCCEEDED: Final = "SUCCEEDED"
FAILED: Final = "FAILED"
LOST: Final = "LOST"
RELEASED: Final = "RELEASED"
# Delivery, notification, commitment and availability
PENDING: Final = "PENDING"
DELIVERED: Final = "DELIVERED"
ACKNOWLEDGED: Final = "ACKNOWLEDGED"
# Modality Performed Procedure Step (PS3.4 Table F.7.2-1; PS3.3 C.4.14): IN PROGRESS and COMPLETED as above
DISCONTINUED: Final = "DISCONTINUED"

# Version of a model: only one is live, a canary reads a share of the studies, of a shadow nothing leaves
CANDIDATE: Final = "candidate"
SHADOW: Final = "shadow"
CANARY: Final = "canary"
LIVE: Final = "live"
RETIRED: Final = "retired"
#: Its files are gone; its number, its Device UID and its history stay.
REMOVED: Final = "removed"

#: kind -> state -> the states that may follow. A state with nothing behind it is final.
TRANSITIONS: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "study": {
        RECEIVING: frozenset({COMPLETE, PARKED}),
        COMPLETE: frozenset({RECEIVING}),
        PARKED: frozenset({RECEIVING}),
    },
    "revision": {
        OPEN: frozenset({ROUTED, PARKED}),
        ROUTED: frozenset({REPORTED, PARKED}),
        PARKED: frozenset({OPEN}),
        REPORTED: frozenset({ROUTED}),  # a retried or shared workitem brings something new to say
    },
    "workitem": {
        SCHEDULED: frozenset({IN_PROGRESS, CANCELED}),
        IN_PROGRESS: frozenset({COMPLETED, CANCELED}),
        COMPLETED: frozenset(),
        CANCELED: frozenset(),
    },
    "attempt": {
        RUNNING: frozenset({SUCCEEDED, FAILED, LOST, RELEASED}),
        SUCCEEDED: frozenset(),
        FAILED: frozenset(),
        LOST: frozenset(),
        RELEASED: frozenset(),
    },
    "delivery": {
        PENDING: frozenset({DELIVERED, PARKED}),
        DELIVERED: frozenset(),
        # Parked by an operator while it was under way, it may have arrived all the same.
        PARKED: frozenset({PENDING, DELIVERED}),
    },
    "notification": {
        PENDING: frozenset({ACKNOWLEDGED, PARKED}),
        ACKNOWLEDGED: frozenset(),
        PARKED: frozenset({PENDING, ACKNOWLEDGED}),
    },
    "commitment": {
        PENDING: frozenset({ACKNOWLEDGED, PARKED}),
        ACKNOWLEDGED: frozenset({PENDING}),  # the same transaction is asked for again
        PARKED: frozenset({PENDING, ACKNOWLEDGED}),
    },
    "availability": {
        PENDING: frozenset({ACKNOWLEDGED, PARKED}),
        ACKNOWLEDGED: frozenset(),
        PARKED: frozenset({PENDING, ACKNOWLEDGED}),
    },
    "procedure_step": {
        IN_PROGRESS: frozenset({COMPLETED, DISCONTINUED}),
        COMPLETED: frozenset(),
        DISCONTINUED: frozenset(),
    },
    "model": {
        CANDIDATE: frozenset({SHADOW, CANARY, LIVE, RETIRED, REMOVED}),
        SHADOW: frozenset({CANDIDATE, CANARY, LIVE, RETIRED}),
        CANARY: frozenset({CANDIDATE, SHADOW, LIVE, RETIRED}),
        LIVE: frozenset({CANDIDATE, RETIRED}),
        RETIRED: frozenset({CANDIDATE, REMOVED}),  # taken back it has to be promoted like any other
        REMOVED: frozenset({CANDIDATE}),  # the same bytes were added again
    },
}

STATES: Final[Mapping[str, tuple[str, ...]]] = {kind: tuple(moves) for kind, moves in TRANSITIONS.items()}

_TABLES: Final[Mapping[str, Table]] = {
    "study": schema.study,
    "revision": schema.revision,
    "workitem": schema.workitem,
    "attempt": schema.attempt,
    "delivery": schema.delivery,
    "notification": schema.notification,
    "commitment": schema.commitment,
    "availability": schema.availability,
    "procedure_step": schema.procedure_step,
    "model": schema.model_version,
}


def transition(
    connection: Connection,
    kind: str,
    object_id: int,
    to: str,
    *,
    study_id: int | None,
    reason: str = "",
    detail: Mapping[str, Any] | None = None,
    **values: Any,
) -> None:
    """Move one object to another state and write the move to the change feed.

    Parameters
    ----------
    kind
        One of ``TRANSITIONS``.
    study_id
        None where nothing of the study has been received yet.
    values
        Further columns to set in the same statement.

    Raises
    ------
    IllegalTransition
        When the state it is in, as the database has it now, does not lead there.
    Unknown
        When there is no such row.
    """
    table = _TABLES[kind]
    current = connection.execute(select(table.c.state).where(table.c.id == object_id)).scalar_one_or_none()
    if current is None:
        raise Unknown(f"no {kind} {object_id}")
    if to not in TRANSITIONS[kind][current]:
        raise IllegalTransition(f"{kind} {object_id} is {current}, which does not lead to {to}")
    moved = connection.execute(
        update(table).where(table.c.id == object_id, table.c.state == current).values(state=to, **values)
    )
    if moved.rowcount != 1:
        raise IllegalTransition(f"{kind} {object_id} left {current} while it was being moved to {to}")
    changefeed.append(
        connection, kind, object_id, study_id=study_id, before=current, after=to, reason=reason, detail=detail
    )


def end(
    connection: Connection, kind: str, object_id: int, to: str, *, study_id: int, outcome: str, **values: Any
) -> None:
    """Move an attempt or a workitem to a final state, with its outcome and the time."""
    transition(
        connection,
        kind,
        object_id,
        to,
        study_id=study_id,
        reason=outcome,
        outcome=outcome,
        ended_at=now(connection),
        **values,
    )


def record_creation(
    connection: Connection,
    kind: str,
    object_id: int,
    state: str,
    *,
    study_id: int | None,
    reason: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Write the birth of an object to the change feed, which is the first of its moves."""
    if state not in TRANSITIONS[kind]:
        raise IllegalTransition(f"a {kind} has no state {state}")
    changefeed.append(
        connection, kind, object_id, study_id=study_id, before=None, after=state, reason=reason, detail=detail
    )
