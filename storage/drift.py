"""What inputs and answers of each model were like: the first as a reference, the last as the window that is weighed.

An observation is a mapping of features to numbers or short words; which those are is the model's affair. Between the
reference and the window nothing is kept, so that a table stays small however long a model runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from storage import schema
from storage.database import now

__all__ = ["Observed", "between", "observed", "record"]

_PRUNE_EVERY = 64


@dataclass(frozen=True, slots=True)
class Observed:
    """A version of a model of which there are observations: how many there ever were, and when the last came."""

    model: str
    version: str
    digest: str
    count: int
    last_at: datetime


def record(
    connection: Connection,
    *,
    model: str,
    version: str,
    digest: str,
    observations: Sequence[Mapping[str, Any]],
    reference: int,
    window: int,
) -> None:
    """Keep observations of a model; of those there are already, the first ``reference`` and the last ``window`` stay.

    Parameters
    ----------
    digest
        Of the model's behaviour: what answers differently has a history of its own.
    """
    if not observations:
        return
    table = schema.observation
    last = connection.execute(select(func.max(table.c.number)).where(table.c.digest == digest)).scalar() or 0
    at = now(connection)
    connection.execute(
        insert(table),
        [
            {
                "model": model,
                "version": version,
                "digest": digest,
                "number": last + place,
                "at": at,
                "features": dict(one),
            }
            for place, one in enumerate(observations, 1)
        ],
    )
    newest = last + len(observations)
    if newest // _PRUNE_EVERY != last // _PRUNE_EVERY:
        c = table.c
        connection.execute(delete(table).where(c.digest == digest, c.number > reference, c.number <= newest - window))


def observed(connection: Connection) -> list[Observed]:
    """Return every version that there are observations of, by name, the last observed first."""
    c = schema.observation.c
    newest = func.max(c.at)
    rows = connection.execute(
        select(c.model, c.version, c.digest, func.max(c.number), newest)
        .group_by(c.model, c.version, c.digest)
        .order_by(c.model, newest.desc(), c.version, c.digest)
    )
    return [Observed(*row) for row in rows]


def between(connection: Connection, digest: str, first: int, last: int) -> list[dict[str, Any]]:
    """Return the observations of a model with the numbers ``first`` to ``last`` that are still there, oldest first."""
    c = schema.observation.c
    return list(
        connection.execute(
            select(c.features).where(c.digest == digest, c.number >= first, c.number <= last).order_by(c.number, c.id)
        ).scalars()
    )
