"""Studies that are being received: when each is to be looked at, and what restarts its quiet period."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, func, or_, select, update

from storage import changefeed, lifecycle, schema, studies
from storage.database import now
from storage.records import Study

__all__ = [
    "ask_for_verdict",
    "association_ended",
    "due_for_verdict",
    "look_again",
    "reopen_if_grown",
    "restart_quiet_periods",
    "wait",
]


def due_for_verdict(
    connection: Connection, shortest_seconds: float, maximum_seconds: float = math.inf, limit: int = 20
) -> list[Study]:
    """Return the studies to look at, those that have been quiet longest first.

    A study is looked at once it has been quiet for a while and nothing has come since the last look, at the time that
    the last look has set, and when it has been growing for too long.

    Parameters
    ----------
    shortest_seconds
        The shortest quiet period that any study may have.
    maximum_seconds
        So long may a study grow.
    """
    s = schema.study.c
    at = now(connection)
    quiet = and_(
        s.quiet_from <= at - timedelta(seconds=shortest_seconds),
        or_(s.looked_at.is_(None), s.looked_at < s.quiet_from),
    )
    reasons = [quiet, s.look_at <= at]
    if math.isfinite(maximum_seconds):
        reasons.append(func.coalesce(s.receiving_from, s.first_received_at) <= at - timedelta(seconds=maximum_seconds))
    rows = connection.execute(
        select(schema.study)
        .where(
            s.state == lifecycle.RECEIVING,
            s.excluded.is_(False),
            s.historical.is_(False),
            or_(*reasons),
        )
        .order_by(s.quiet_from)
        .limit(limit)
    )
    return [Study(**row) for row in rows.mappings()]


def wait(connection: Connection, study: Study, until: datetime, waiting_for: str) -> bool:
    """Note that a study was looked at and is to be looked at again; returns whether it still stood as it was seen."""
    s = schema.study.c
    return (
        connection.execute(
            update(schema.study)
            .where(
                s.id == study.id,
                s.state == lifecycle.RECEIVING,
                s.quiet_from == study.quiet_from,
                s.asked_by == study.asked_by,
            )
            .values(looked_at=now(connection), look_at=until, waiting_for=waiting_for)
        ).rowcount
        == 1
    )


def look_again(connection: Connection, study_instance_uid: str) -> None:
    """Have a study that is being received be looked at at once: there is new evidence."""
    s = schema.study.c
    connection.execute(
        update(schema.study)
        .where(s.study_instance_uid == study_instance_uid, s.state == lifecycle.RECEIVING)
        .values(look_at=now(connection))
    )


def ask_for_verdict(connection: Connection, study: Study, by: str) -> None:
    """Have a study that is being received be judged now, whatever the evidence, in an operator's name."""
    connection.execute(
        update(schema.study)
        .where(schema.study.c.id == study.id, schema.study.c.state == lifecycle.RECEIVING)
        .values(asked_by=by, look_at=now(connection))
    )
    changefeed.append(
        connection, "study", study.id, study_id=study.id, after="ASKED", reason=f"a verdict now is asked for by {by}"
    )


def restart_quiet_periods(connection: Connection) -> int:
    """Give every open study a full quiet period anew: receiving was interrupted. Returns how many there were."""
    at = now(connection)
    return connection.execute(
        update(schema.study)
        .where(schema.study.c.state == lifecycle.RECEIVING)
        .values(quiet_from=at, receiving_from=at, released_at=None)
    ).rowcount


def association_ended(
    connection: Connection, study_instance_uids: Sequence[str], released: Collection[str] = ()
) -> None:
    """Start the quiet period of studies anew: an association that carried them has ended.

    Parameters
    ----------
    released
        Those of them that no other association carries, where this one was released in order (PS3.8 7.2): evidence
        that nothing more is to come.
    """
    at = now(connection)
    s = schema.study.c
    for uids, released_at in (
        ([uid for uid in study_instance_uids if uid not in released], None),
        ([uid for uid in study_instance_uids if uid in released], at),
    ):
        if uids:
            connection.execute(
                update(schema.study)
                .where(s.study_instance_uid.in_(uids), s.state == lifecycle.RECEIVING)
                .values(quiet_from=at, released_at=released_at)
            )


def reopen_if_grown(connection: Connection, study: Study, last_instance_id: int) -> None:
    """Open a study again of which instances came that the verdict just carried out had not seen."""
    if studies.evidence(connection, study.id, after=last_instance_id):
        reason = "further instances came while it was judged"
        lifecycle.transition(
            connection,
            "study",
            study.id,
            lifecycle.RECEIVING,
            study_id=study.id,
            reason=reason,
            receiving_from=now(connection),
        )
