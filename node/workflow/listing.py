"""Lists the studies that were received last, each with one word of what came of it: ``overread studies``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select

from node.workflow.status import later_message
from storage import lifecycle, schema

__all__ = ["StudyListed", "latest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyListed:
    """A study that was received; ``instances`` and ``modalities`` leave out what a node made itself."""

    study_instance_uid: str
    state: str
    modalities: list[str]
    instances: int
    last_received_at: datetime
    #: excluded, historical, receiving, parked, running, waiting, reported, analysed, unanalysed or unrouted.
    outcome: str


def latest(connection: Connection, limit: int = 20) -> list[StudyListed]:
    """Return the most recently received studies, newest first; 'overread explain' has the whole story of each."""
    s = schema.study.c
    rows = connection.execute(select(schema.study).order_by(s.last_received_at.desc(), s.id.desc()).limit(limit))
    return [_listed(connection, row) for row in rows.mappings().all()]


def _listed(connection: Connection, study: RowMapping) -> StudyListed:
    i, e = schema.instance.c, schema.series.c
    received = (i.study_id == study["id"], i.made_here.is_(False))
    return StudyListed(
        study_instance_uid=study["study_instance_uid"],
        state=study["state"],
        modalities=sorted(
            filter(
                None,
                connection.execute(
                    select(e.modality).distinct().select_from(schema.instance.join(schema.series)).where(*received)
                ).scalars(),
            )
        ),
        instances=connection.execute(select(func.count()).select_from(schema.instance).where(*received)).scalar_one(),
        last_received_at=study["last_received_at"],
        outcome=_outcome(connection, study),
    )


def _outcome(connection: Connection, study: RowMapping) -> str:
    if study["excluded"]:
        return "excluded"
    if study["historical"]:
        return "historical"
    if study["state"] == lifecycle.RECEIVING:
        return "receiving"
    w, d, r, n = schema.workitem.c, schema.delivery.c, schema.revision.c, schema.notification.c
    newer = schema.workitem.alias("newer").c
    replaced = select(newer.replaces_id).where(newer.study_id == study["id"], newer.replaces_id.is_not(None))
    # What only a shadow says or fails at is no matter of the study.
    current = (w.study_id == study["id"], w.shadow.is_(False), w.id.not_in(replaced))
    works = connection.execute(select(w.state, w.parked).where(*current)).all()
    deliveries = _states(
        connection,
        select(d.state)
        .distinct()
        .select_from(schema.delivery.join(schema.document).join(schema.workitem))
        .where(*current),
    )
    revisions = _states(connection, select(r.state).distinct().where(r.study_id == study["id"]))
    messages = _states(
        connection,
        select(n.state)
        .distinct()
        .select_from(schema.notification.join(schema.revision))
        .where(r.study_id == study["id"], ~later_message()),
    )
    if lifecycle.PARKED in {study["state"]} | deliveries | revisions | messages or any(one.parked for one in works):
        return "parked"
    states = {one.state for one in works}
    if {lifecycle.OPEN, lifecycle.ROUTED} & revisions or {lifecycle.SCHEDULED, lifecycle.IN_PROGRESS} & states:
        return "running"
    if lifecycle.PENDING in deliveries | messages:
        return "waiting"
    if lifecycle.ACKNOWLEDGED in messages or lifecycle.DELIVERED in deliveries:
        return "reported"
    if lifecycle.COMPLETED in states:
        return "analysed"
    c = schema.decision.c
    matched = (
        select(c.id)
        .select_from(schema.decision.join(schema.revision))
        .where(r.study_id == study["id"], c.matched.is_(True))
    )
    return "unanalysed" if connection.execute(matched.limit(1)).first() else "unrouted"


def _states(connection: Connection, query: Any) -> set[str]:
    return set(connection.execute(query).scalars())
