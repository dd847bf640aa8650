"""Studies, the evidence for their completion, their revisions and the decisions about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydicom.uid import generate_uid
from sqlalchemy import Connection, func, insert, select, update

from storage import changefeed, lifecycle, schema
from storage.database import now
from storage.errors import Unknown
from storage.records import Instance, Revision, Series, Study

__all__ = [
    "by_uid",
    "decisions",
    "device_uid",
    "evidence",
    "exclude",
    "get",
    "held",
    "judge_anew",
    "last_revision",
    "lock",
    "open_revision",
    "park",
    "record_decision",
    "reopen",
    "report_again",
    "revision",
    "revisions",
    "revisions_in",
    "series_of",
    "settle_without_revision",
    "take_up",
]

#: What one period of receiving has left is not for the next.
_NOT_LOOKED_AT: Final[Mapping[str, Any]] = {"looked_at": None, "look_at": None, "waiting_for": "", "asked_by": ""}


def device_uid(connection: Connection) -> str:
    """Return this node's own Device UID, made when it is first asked for."""
    n = schema.node_identity.c
    found = connection.execute(select(n.value).where(n.key == "device_uid")).scalar_one_or_none()
    if found is None:
        found = str(generate_uid(prefix=None))
        connection.execute(insert(schema.node_identity).values(key="device_uid", value=found))
    return str(found)


def get(connection: Connection, study_id: int) -> Study:
    """Return a study by its row id."""
    row = connection.execute(select(schema.study).where(schema.study.c.id == study_id)).mappings().one_or_none()
    if row is None:
        raise Unknown(f"no study {study_id}")
    return Study(**row)


def by_uid(connection: Connection, study_instance_uid: str) -> Study:
    """Return a study by its Study Instance UID.

    Raises
    ------
    Unknown
        When nothing of it was ever received.
    """
    row = (
        connection.execute(select(schema.study).where(schema.study.c.study_instance_uid == study_instance_uid))
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise Unknown(f"no study {study_instance_uid} has been received")
    return Study(**row)


def evidence(connection: Connection, study_id: int, *, after: int = 0, up_to: int | None = None) -> list[Instance]:
    """Return the instances that count: neither made here nor excluded, in the order they came."""
    i = schema.instance.c
    query = select(schema.instance).where(i.study_id == study_id, i.made_here.is_(False), i.excluded.is_(False))
    if after:
        query = query.where(i.id > after)
    if up_to is not None:
        query = query.where(i.id <= up_to)
    return [Instance(**row) for row in connection.execute(query.order_by(i.id)).mappings()]


def held(connection: Connection, study_id: int) -> set[str]:
    """Return the SOP Instance UIDs of all that is held of a study, whether it counts or not."""
    i = schema.instance.c
    return set(connection.execute(select(i.sop_instance_uid).where(i.study_id == study_id)).scalars())


def series_of(connection: Connection, study_id: int) -> list[Series]:
    """Return the study's series."""
    rows = connection.execute(select(schema.series).where(schema.series.c.study_id == study_id).order_by("id"))
    return [Series(**row) for row in rows.mappings()]


def revisions(connection: Connection, study_id: int) -> list[Revision]:
    """Return the study's revisions, first to last."""
    r = schema.revision.c
    rows = connection.execute(select(schema.revision).where(r.study_id == study_id).order_by(r.number))
    return [Revision(**row) for row in rows.mappings()]


def revision(connection: Connection, revision_id: int) -> Revision:
    """Return a revision by its row id."""
    row = connection.execute(select(schema.revision).where(schema.revision.c.id == revision_id)).mappings().one()
    return Revision(**row)


def lock(connection: Connection, study_id: int) -> None:
    """Hold a study's row until the transaction ends, so that no instance of it comes in between."""
    connection.execute(select(schema.study.c.id).where(schema.study.c.id == study_id).with_for_update())


def revisions_in(connection: Connection, state: str, *, after: int = 0, limit: int = 50) -> list[Revision]:
    """Return revisions in a state, oldest first, a page at a time: those whose id is above ``after``."""
    r = schema.revision.c
    rows = connection.execute(select(schema.revision).where(r.state == state, r.id > after).order_by(r.id).limit(limit))
    return [Revision(**row) for row in rows.mappings()]


def last_revision(connection: Connection, study_id: int) -> Revision | None:
    """Return the study's last revision, if it has one."""
    found = revisions(connection, study_id)
    return found[-1] if found else None


def open_revision(
    connection: Connection, study: Study, *, last_instance_id: int, verdict: Mapping[str, Any], reason: str
) -> Revision:
    """Judge a study complete: it goes to COMPLETE and a new revision opens, with the reason why."""
    number = 1 + (
        connection.execute(
            select(func.coalesce(func.max(schema.revision.c.number), 0)).where(schema.revision.c.study_id == study.id)
        ).scalar_one()
    )
    key = connection.execute(
        insert(schema.revision).values(
            study_id=study.id,
            number=number,
            state=lifecycle.OPEN,
            last_instance_id=last_instance_id,
            verdict=dict(verdict),
            opened_at=now(connection),
        )
    ).inserted_primary_key
    assert key is not None
    revision_id = int(key[0])
    settle_without_revision(connection, study, reason)
    lifecycle.record_creation(
        connection,
        "revision",
        revision_id,
        lifecycle.OPEN,
        study_id=study.id,
        reason=f"revision {number}: {reason}",
        detail=verdict,
    )
    return revision(connection, revision_id)


def settle_without_revision(connection: Connection, study: Study, reason: str) -> None:
    """Judge that what came since the last revision changes nothing for any route."""
    lifecycle.transition(
        connection,
        "study",
        study.id,
        lifecycle.COMPLETE,
        study_id=study.id,
        reason=reason,
        evidence_changed=False,
        **_NOT_LOOKED_AT,
    )


def park(connection: Connection, study: Study, reason: str) -> None:
    """Set a study aside, with the reason; ``overread retry`` has it judged anew."""
    lifecycle.transition(
        connection, "study", study.id, lifecycle.PARKED, study_id=study.id, reason=reason, **_NOT_LOOKED_AT
    )


def reopen(connection: Connection, study: Study, reason: str) -> None:
    """Let a study be judged anew, after a full quiet period (an operator asked for it)."""
    at = now(connection)
    if study.state == lifecycle.RECEIVING:
        connection.execute(
            update(schema.study)
            .where(schema.study.c.id == study.id)
            .values(quiet_from=at, receiving_from=at, **_NOT_LOOKED_AT)
        )
        return
    lifecycle.transition(
        connection,
        "study",
        study.id,
        lifecycle.RECEIVING,
        study_id=study.id,
        reason=reason,
        quiet_from=at,
        receiving_from=at,
        **_NOT_LOOKED_AT,
    )


def take_up(connection: Connection, study: Study, reason: str) -> None:
    """Let a historical study be judged like any other, after a full quiet period (an operator asked for it)."""
    connection.execute(
        update(schema.study).where(schema.study.c.id == study.id).values(historical=False, evidence_changed=True)
    )
    reopen(connection, study, reason)


def report_again(connection: Connection, revision_id: int, reason: str) -> None:
    """Let a revision be reported once more: something about it is new."""
    found = revision(connection, revision_id)
    if found.state == lifecycle.REPORTED:
        lifecycle.transition(
            connection, "revision", revision_id, lifecycle.ROUTED, study_id=found.study_id, reason=reason
        )


def record_decision(
    connection: Connection,
    revision_: Revision,
    *,
    route: str,
    model: str,
    matched: bool,
    reasons: Sequence[str],
    not_analysed: Mapping[str, str] | None,
    deliver: Sequence[str],
    notify: Sequence[str],
) -> None:
    """Store what a route decided about a revision, for one of its models."""
    connection.execute(
        insert(schema.decision).values(
            revision_id=revision_.id,
            route=route,
            model=model,
            matched=matched,
            reasons=list(reasons),
            not_analysed=None if not_analysed is None else dict(not_analysed),
            deliver=list(deliver),
            notify=list(notify),
            decided_at=now(connection),
        )
    )


def decisions(connection: Connection, revision_id: int) -> list[Mapping[str, Any]]:
    """Return the decisions about a revision, in the order of the routes."""
    d = schema.decision.c
    rows = connection.execute(select(schema.decision).where(d.revision_id == revision_id).order_by(d.id))
    return [dict(row) for row in rows.mappings()]


def judge_anew(connection: Connection, study_id: int) -> None:
    """Let the next verdict open a revision although nothing new has come."""
    connection.execute(update(schema.study).where(schema.study.c.id == study_id).values(evidence_changed=True))


def exclude(
    connection: Connection,
    study: Study,
    *,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    excluded: bool = True,
    by: str = "",
) -> int:
    """Take a study, one of its series or one of its instances out of all judging, or back in, in an operator's name.

    Returns
    -------
    int
        How many instances changed; for a whole study, 0: its own flag stands instead.

    Raises
    ------
    Unknown
        When the study has no such series or instance.
    """
    what = (sop_instance_uid or series_instance_uid or "the whole study") + (f", by {by}" if by else "")
    changefeed.append(
        connection, "study", study.id, study_id=study.id, after="EXCLUDED" if excluded else "INCLUDED", reason=what
    )
    judge_anew(connection, study.id)
    # Whoever is just judging the study sees by it that this came in between.
    connection.execute(update(schema.study).where(schema.study.c.id == study.id).values(quiet_from=now(connection)))
    if series_instance_uid is None and sop_instance_uid is None:
        connection.execute(update(schema.study).where(schema.study.c.id == study.id).values(excluded=excluded))
        return 0
    i = schema.instance.c
    statement = update(schema.instance).where(i.study_id == study.id)
    if series_instance_uid is not None:
        s = schema.series.c
        statement = statement.where(
            i.series_id.in_(select(s.id).where(s.study_id == study.id, s.series_instance_uid == series_instance_uid))
        )
    if sop_instance_uid is not None:
        statement = statement.where(i.sop_instance_uid == sop_instance_uid)
    changed = connection.execute(statement.values(excluded=excluded)).rowcount
    if not changed:
        raise Unknown(f"study {study.study_instance_uid} has no such series or instance")
    return changed
