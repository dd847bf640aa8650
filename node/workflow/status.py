"""What waits and what is parked, everywhere in the node, with what an operator can do about each."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, exists, func, literal, select

from storage import attempts, control, damage, flags, lifecycle, priority, schema
from storage.damage import Damaged
from storage.records import Pause

__all__ = ["TABLES", "Flagged", "Item", "Refused", "Status", "later_message", "status"]


#: The tables of all that has a state, by what their rows are called.
TABLES = {
    "study": schema.study,
    "revision": schema.revision,
    "workitem": schema.workitem,
    "delivery": schema.delivery,
    "notification": schema.notification,
    "commitment": schema.commitment,
    "availability": schema.availability,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that waits or is parked; ``target`` is what the actions take, ``todo`` what can be done about it."""

    target: str
    study_instance_uid: str
    state: str
    what: str
    reason: str
    since: datetime
    next_at: datetime | None = None
    todo: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Bytes that were refused, by the number that ``overread quarantine`` takes and the name of their file."""

    id: int
    blob: str
    size: int
    reason: str
    calling_ae_title: str
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Flagged:
    """Something about a study that somebody should look at, although nothing waits for it."""

    study_instance_uid: str
    kind: str
    reason: str
    raised_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the node holds (states and how many of each), what waits, what is parked, paused, flagged and refused."""

    counts: dict[str, dict[str, int]]
    waiting: list[Item] = field(default_factory=list)
    parked: list[Item] = field(default_factory=list)
    paused: list[Pause] = field(default_factory=list)
    flagged: list[Flagged] = field(default_factory=list)
    flagged_in_all: int = 0
    refused: list[Refused] = field(default_factory=list)
    refused_in_all: int = 0
    #: Files that are missing, changed or unreadable: how many of each kind, and the first of them.
    damaged_in_all: dict[str, int] = field(default_factory=dict)
    damaged: list[Damaged] = field(default_factory=list)


def status(connection: Connection, limit: int = 200) -> Status:
    """Return what waits and what is parked, oldest first, with what to do about each.

    Parameters
    ----------
    limit
        How many of each kind are listed; ``counts`` counts them all.
    """
    counts = {
        kind: dict(
            sorted((row[0], row[1]) for row in connection.execute(select(t.c.state, func.count()).group_by(t.c.state)))
        )
        for kind, t in TABLES.items()
    }
    parked = [
        *_parked_studies(connection, limit),
        *_revision_items(connection, lifecycle.PARKED, limit),
        *_workitem_items(connection, limit, parked=True),
        *_delivery_items(connection, lifecycle.PARKED, limit),
        *_notification_items(connection, lifecycle.PARKED, limit),
        *_commitment_items(connection, lifecycle.PARKED, limit),
        *_availability_items(connection, lifecycle.PARKED, limit),
    ]
    waiting = [
        *_receiving_studies(connection, limit),
        *_revision_items(connection, lifecycle.OPEN, limit),
        *_workitem_items(connection, limit, parked=False),
        *_delivery_items(connection, lifecycle.PENDING, limit),
        *_notification_items(connection, lifecycle.PENDING, limit),
        *_commitment_items(connection, lifecycle.PENDING, limit),
        *_availability_items(connection, lifecycle.PENDING, limit),
    ]
    q = schema.quarantine.c
    refused = connection.execute(select(schema.quarantine).order_by(q.id.desc()).limit(20)).all()
    return Status(
        counts=counts,
        waiting=waiting,
        parked=parked,
        paused=control.pauses(connection),
        flagged=[
            Flagged(study_instance_uid=uid, kind=one.kind, reason=one.reason, raised_at=one.raised_at)
            for one, uid in flags.latest(connection)
        ],
        flagged_in_all=flags.count(connection),
        refused=[
            Refused(
                id=row.id,
                blob=row.blob,
                size=row.size,
                reason=row.reason,
                calling_ae_title=row.calling_ae_title,
                received_at=row.received_at,
            )
            for row in refused
        ],
        damaged_in_all=damage.counts(connection),
        damaged=damage.listed(connection),
        refused_in_all=connection.execute(select(func.count()).select_from(schema.quarantine)).scalar_one(),
    )


def later_message() -> Any:
    """Whether a later message about the same study went to the same receiver: the older one must not follow it."""
    later, of_later = schema.notification.alias("later"), schema.revision.alias("of_later")
    return exists().where(
        later.c.revision_id == of_later.c.id,
        of_later.c.study_id == schema.revision.c.study_id,
        later.c.receiver == schema.notification.c.receiver,
        later.c.id > schema.notification.c.id,
    )


def _parked_studies(connection: Connection, limit: int) -> list[Item]:
    s, c = schema.study.c, schema.change.c
    rows = connection.execute(select(schema.study).where(s.state == lifecycle.PARKED).order_by(s.id).limit(limit)).all()
    items = []
    for row in rows:
        change = connection.execute(
            select(c.at, c.reason)
            .where(c.study_id == row.id, c.kind == "study", c.after == lifecycle.PARKED)
            .order_by(c.sequence.desc())
            .limit(1)
        ).one_or_none()
        items.append(
            Item(
                target=f"study:{row.id}",
                study_instance_uid=row.study_instance_uid,
                state=row.state,
                what="study",
                reason="" if change is None else change.reason,
                since=row.last_received_at if change is None else change.at,
                todo=f"remove the cause, or exclude what does not belong; then overread retry study:{row.id}",
            )
        )
    return items


def _receiving_studies(connection: Connection, limit: int) -> list[Item]:
    s = schema.study.c
    rows = connection.execute(
        select(schema.study).where(s.state == lifecycle.RECEIVING).order_by(s.quiet_from).limit(limit)
    ).all()
    return [
        Item(
            target=f"study:{row.id}",
            study_instance_uid=row.study_instance_uid,
            state=row.state,
            what="study",
            reason=_received_for(row),
            since=row.quiet_from,
            todo=f"overread exclude --undo {row.study_instance_uid}"
            if row.excluded
            else f"overread complete {row.study_instance_uid}"
            if row.waiting_for
            else "",
        )
        for row in rows
    ]


def _received_for(row: Any) -> str:
    if row.excluded:
        return "excluded by an operator"
    if row.waiting_for:
        return f"quiet since the time shown, and waited on: {row.waiting_for}"
    return "being received; quiet since the time shown"


def _revision_items(connection: Connection, state: str, limit: int) -> list[Item]:
    """Revisions that are not routed yet (a paused route may hold them), or that were set aside."""
    r, s, c = schema.revision.c, schema.study.c, schema.change.c
    rows = connection.execute(
        select(schema.revision, s.study_instance_uid)
        .select_from(schema.revision.join(schema.study))
        .where(r.state == state)
        .order_by(r.id)
        .limit(limit)
    ).all()
    items = []
    for row in rows:
        change = connection.execute(
            select(c.at, c.reason)
            .where(c.kind == "revision", c.object_id == row.id, c.after == state)
            .order_by(c.sequence.desc())
            .limit(1)
        ).one_or_none()
        parked = state == lifecycle.PARKED
        held = ", ".join(sorted(control.paused(connection, "route")))
        waiting = f"not routed yet; paused routes: {held}" if held else "not routed yet"
        items.append(
            Item(
                target=f"revision:{row.id}",
                study_instance_uid=row.study_instance_uid,
                state=state,
                what=f"revision {row.number}",
                reason=(change.reason if change else "") if parked else waiting,
                since=change.at if change else row.opened_at,
                todo=_todo(f"revision:{row.id}", parked, ""),
            )
        )
    return items


def _workitem_items(connection: Connection, limit: int, *, parked: bool) -> list[Item]:
    w, s = schema.workitem.c, schema.study.c
    wanted = w.parked.is_(True) if parked else w.state.in_((lifecycle.SCHEDULED, lifecycle.IN_PROGRESS))
    rows = connection.execute(
        select(schema.workitem, s.study_instance_uid)
        .select_from(schema.workitem.join(schema.study))
        .where(wanted)
        .order_by(*((w.id,) if parked else (w.priority, w.id)))
        .limit(limit)
    ).all()
    held = control.paused(connection, "model")
    given_back = {} if parked else attempts.given_back(connection, [row.id for row in rows])
    items = []
    for row in rows:
        paused = not parked and row.model in held
        items.append(
            Item(
                target=f"workitem:{row.id}",
                study_instance_uid=row.study_instance_uid,
                state="PARKED" if parked else row.state,
                what=f"{row.model} {row.model_version}" + _urgency(row.priority),
                reason=f"model {row.model} is paused" if paused else row.outcome or _waits(given_back.get(row.id)),
                since=(row.ended_at or row.created_at) if parked else (row.started_at or row.created_at),
                todo=_todo_of_workitem(row) if parked else (f"overread resume model {row.model}" if paused else ""),
            )
        )
    return items


def _waits(why: str | None) -> str:
    return f"waits: {why}" if why else ""


def _todo_of_workitem(row: Any) -> str:
    return (
        f"remove the cause, then overread retry workitem:{row.id} ({row.model}@{row.model_version} again), or overread "
        f"rerun {row.study_instance_uid} (the version that is live now)"
    )


def _urgency(rank: int) -> str:
    """Say a priority that is not the usual one."""
    name = priority.name_of(rank)
    return "" if name == priority.MEDIUM else f", priority {name}"


def _delivery_items(connection: Connection, state: str, limit: int) -> list[Item]:
    d, s, doc = schema.delivery.c, schema.study.c, schema.document.c
    rows = connection.execute(
        select(schema.delivery, doc.kind, s.study_instance_uid)
        .select_from(schema.delivery.join(schema.document).join(schema.workitem).join(schema.study))
        .where(d.state == state)
        .order_by(d.id)
        .limit(limit)
    ).all()
    held = control.paused(connection, "destination")
    return [
        _outgoing(
            "delivery",
            row,
            f"{row.kind} to {row.destination}" + (", stored there and not committed yet" if row.stored_at else ""),
            row.answer,
            "destination",
            row.destination,
            held,
        )
        for row in rows
    ]


def _notification_items(connection: Connection, state: str, limit: int) -> list[Item]:
    n, s = schema.notification.c, schema.study.c
    rows = connection.execute(
        select(
            n.id,
            n.state,
            n.receiver,
            n.control_id,
            n.tries,
            n.answer,
            n.created_at,
            n.next_at,
            n.ended_at,
            s.study_instance_uid,
        )
        .select_from(schema.notification.join(schema.revision).join(schema.study))
        .where(n.state == state, *([~later_message()] if state == lifecycle.PARKED else []))
        .order_by(n.id)
        .limit(limit)
    ).all()
    held = control.paused(connection, "notifier")
    return [
        _outgoing(
            "notification", row, f"{row.control_id} to {row.receiver}", row.answer, "notifier", row.receiver, held
        )
        for row in rows
    ]  # fmt: skip


def _commitment_items(connection: Connection, state: str, limit: int) -> list[Item]:
    """Reports that peers are owed; a commitment may be about many studies, so none is named."""
    c, r = schema.commitment.c, schema.commitment_reference.c
    count = select(func.count()).where(r.commitment_id == c.id).scalar_subquery().label("references")
    rows = connection.execute(
        select(schema.commitment, literal("").label("study_instance_uid"), count)
        .where(c.state == state)
        .order_by(c.id)
        .limit(limit)
    ).all()
    return [
        _outgoing("commitment", row, f"{row.references} instances for {row.calling_ae_title}", row.answer)
        for row in rows
    ]


def _availability_items(connection: Connection, state: str, limit: int) -> list[Item]:
    a, r, s = schema.availability.c, schema.revision.c, schema.study.c
    rows = connection.execute(
        select(schema.availability, r.number, s.study_instance_uid)
        .select_from(schema.availability.join(schema.revision).join(schema.study))
        .where(a.state == state)
        .order_by(a.id)
        .limit(limit)
    ).all()
    return [_outgoing("availability", row, f"revision {row.number} to {row.peer}", row.answer) for row in rows]


def _outgoing(
    kind: str,
    row: Any,
    what: str,
    answer: str,
    peer_kind: str = "",
    peer: str = "",
    held: frozenset[str] = frozenset(),
) -> Item:
    parked = row.state == lifecycle.PARKED
    paused = not parked and peer in held
    tried = f"tried {row.tries} times" if row.tries != 1 else "tried once"
    reason = f"{peer_kind} {peer} is paused" if paused else f"{tried}; {answer}" if answer else tried
    return Item(
        target=f"{kind}:{row.id}",
        study_instance_uid=row.study_instance_uid,
        state=row.state,
        what=what,
        reason=reason,
        since=row.ended_at if parked and row.ended_at else row.created_at,
        next_at=None if parked or paused else row.next_at,
        todo=_todo(f"{kind}:{row.id}", parked, f"overread resume {peer_kind} {peer}" if paused else ""),
    )


def _todo(target: str, parked: bool, otherwise: str) -> str:
    return f"remove the cause, then overread retry {target}" if parked else otherwise
