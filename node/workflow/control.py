"""What operators do: retry, cancel, rerun, exclude, pause and resume.

Every action may be given twice: the second time finds nothing to do and says so. Every move goes through
``storage.lifecycle`` or the change feed with the operator's name in its reason, which is the audit trail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from sqlalchemy import Connection, select

from inference.registry import parted
from node.errors import NotConfigured
from node.settings import Settings
from node.workflow.status import Item, Refused, Status, status
from node.workflow.targets import Target, open_of, parked_of, resolve, state_of
from storage import control as holds
from storage import lifecycle, outbox, receiving, schema, studies, worklist
from storage.database import Database
from storage.errors import Unknown
from storage.records import Study, Workitem

__all__ = [
    "Done",
    "Item",
    "Refused",
    "Status",
    "cancel",
    "complete",
    "exclude",
    "pause",
    "rerun",
    "resume",
    "retry",
    "status",
]

_OUTGOING = ("delivery", "notification", "commitment", "availability")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an action came to, one line each: what was changed, what there was to leave as it is, what to look at."""

    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hint: str = ""


def retry(database: Database, target: str, *, by: str) -> Done:
    """Try again what is parked: a study, a workitem, a delivery, a notification, or everything parked of a study.

    A study is judged anew after a full quiet period. A workitem is replaced by a new one that names it. A
    delivery sends the stored bytes, a notification the stored message under its control id. A commitment is weighed
    anew and reported.

    Raises
    ------
    Unknown
        When there is no such target.
    """
    reason = f"retry asked for by {by}"
    done = Done()
    with database.write() as connection:
        found = resolve(connection, target)
        for one in parked_of(connection, found) if found.kind == "study" else [found]:
            _RETRY[one.kind](connection, one, reason, done)
        if found.kind == "study" and not done.changed and not done.unchanged:
            done.unchanged.append(f"nothing of study:{found.id} is parked")
    return done


def cancel(database: Database, target: str, *, by: str) -> Done:
    """Stop what is open: a workitem is CANCELED for good; a delivery or notification is parked and can be retried.

    A workitem that is parked is canceled already; it waits for an operator no longer. Given a study, everything open of
    it. A result that comes after the cancelling is not taken.

    Raises
    ------
    Unknown
        When there is no such target.
    """
    reason = f"cancelled by operator {by}"
    done = Done()
    with database.write() as connection:
        found = resolve(connection, target)
        targets = open_of(connection, found) if found.kind == "study" else [found]
        for one in targets:
            state = state_of(connection, one)
            if one.kind == "workitem" and state in (lifecycle.SCHEDULED, lifecycle.IN_PROGRESS):
                worklist.cancel(connection, worklist.get(connection, one.id), reason)
                done.changed.append(f"{one}: {state} -> {lifecycle.CANCELED}")
            elif one.kind in _OUTGOING and state == lifecycle.PENDING:
                outbox.park(connection, cast(outbox.Kind, one.kind), one.id, study_id=one.study_id, answer=reason)
                done.changed.append(f"{one}: {state} -> {lifecycle.PARKED}")
            elif one.kind == "workitem" and (item := worklist.get(connection, one.id)).parked:
                worklist.set_parked(connection, item, False, reason)
                done.changed.append(f"{one}: left {state}, and waits for nobody any more")
            else:
                done.unchanged.append(f"{one} is {state}: nothing to cancel")
        if not targets:
            done.unchanged.append(f"nothing of {found} is open")
    return done


def rerun(database: Database, study_instance_uid: str, *, by: str) -> Done:
    """Route a study anew, with the routes and models as they are now, and perform again what they want.

    Given a study, a further revision opens by the operator's word; given a workitem's UID, that one is replaced.
    What is still open is left alone, so that asking twice runs it once.

    Raises
    ------
    Unknown
        When the study was never received.
    """
    reason = f"rerun asked for by {by}"
    done = Done()
    with database.write() as connection:
        found = resolve(connection, study_instance_uid)
        if found.study_id is None:
            done.unchanged.append(f"{found} belongs to no one study: nothing to run again")
            return done
        study = studies.get(connection, found.study_id)
        if study.historical:
            studies.take_up(connection, study, reason)
            done.changed.append(f"study:{study.id}: no longer historical; judged after a quiet period")
            return done
        revision = studies.last_revision(connection, found.study_id)
        if revision is None or study.state != lifecycle.COMPLETE:
            done.unchanged.append(f"study:{study.id} is {study.state}: it is not judged complete yet")
            return done
        current = {item.id: item for _use, item in worklist.current_workitems(connection, revision.id)}
        if found.kind == "workitem":
            if found.id in current:
                _replace(connection, current[found.id], reason, done)
            else:
                done.unchanged.append(f"{found} was replaced already, or belongs to an earlier revision")
            return done
        open_ones = [item for item in current.values() if item.state not in (lifecycle.COMPLETED, lifecycle.CANCELED)]
        if revision.state == lifecycle.OPEN or open_ones:
            done.unchanged.append(f"revision {revision.number} of study:{study.id} is still being performed")
            return done
        lifecycle.transition(connection, "study", study.id, lifecycle.RECEIVING, study_id=study.id, reason=reason)
        opened = studies.open_revision(
            connection,
            study,
            last_instance_id=max((one.id for one in studies.evidence(connection, study.id)), default=0),
            verdict={"rerun": True, "by": by},
            reason=reason,
        )
        done.changed.append(f"study:{study.id}: revision {opened.number} is routed anew")
    return done


def complete(database: Database, study_instance_uid: str, *, by: str) -> Done:
    """Have a study that is being received be judged now, whatever is still waited for.

    Two patients in it park it all the same. What comes afterwards opens the next revision.

    Raises
    ------
    Unknown
        When the study was never received.
    """
    done = Done()
    with database.write() as connection:
        found = resolve(connection, study_instance_uid)
        if found.kind != "study":
            raise Unknown(f"{found} is no study, and only studies are judged")
        study = studies.get(connection, found.id)
        name = f"study:{study.id}"
        if study.state == lifecycle.PARKED:
            done.unchanged.append(f"{name} is parked: remove the cause, then overread retry {name}")
        elif study.state == lifecycle.COMPLETE:
            done.unchanged.append(f"{name} is judged complete already; overread rerun routes it anew")
        elif study.excluded or study.historical:
            done.unchanged.append(
                f"{name} is {'excluded' if study.excluded else 'historical (overread rerun takes it up)'}: "
                "nothing runs on it"
            )
        elif study.asked_by:
            done.unchanged.append(f"{name}: a verdict was asked for by {study.asked_by} already")
        else:
            receiving.ask_for_verdict(connection, study, by)
            done.changed.append(f"{name} is judged now")
    return done


def exclude(
    database: Database,
    study_instance_uid: str,
    *,
    by: str,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    undo: bool = False,
) -> Done:
    """Take a study, one of its series or one of its instances out of all judging, or (``undo``) back in.

    The bytes stay where they are and stay findable. A complete study of which a part was taken out or in is judged
    anew after a quiet period; a parked one waits for ``retry``.

    Raises
    ------
    Unknown
        When there is no such study, series or instance.
    """
    word = "included again" if undo else "excluded"
    done = Done()
    with database.write() as connection:
        study = studies.by_uid(connection, study_instance_uid)
        part = sop_instance_uid or series_instance_uid
        name = f"study {study.study_instance_uid}" if part is None else part
        if _flags(connection, study, series_instance_uid, sop_instance_uid) == {not undo}:
            done.unchanged.append(f"{name} is {word} already")
            return done
        studies.exclude(
            connection,
            study,
            series_instance_uid=series_instance_uid,
            sop_instance_uid=sop_instance_uid,
            excluded=not undo,
            by=by,
        )
        done.changed.append(f"{name} {word}")
        if study.state == lifecycle.PARKED:
            return Done(changed=done.changed, hint=f"overread retry {study.study_instance_uid}")
        if study.state == lifecycle.COMPLETE and (undo or part is not None) and studies.evidence(connection, study.id):
            studies.reopen(connection, study, f"{name} {word} by {by}")
            done.changed.append(f"study:{study.id} is judged anew after a quiet period")
        still_open = open_of(connection, Target(kind="study", id=study.id, study_id=study.id))
    hint = (
        f"what is open of it goes on; to stop it: overread cancel {study_instance_uid}"
        if still_open and not undo
        else ""
    )
    return Done(changed=done.changed, hint=hint)


def pause(database: Database, settings: Settings, kind: str, name: str, *, by: str) -> Done:
    """Hold a route, model, destination or notifier still until it is resumed, across restarts.

    Raises
    ------
    NotConfigured
        When the configuration has nothing of that name, or nothing of that kind can be paused.
    """
    checked = _configured(settings, kind, name)
    with database.write() as connection:
        if holds.pause(connection, checked, name, by=by):
            return Done(changed=[f"{kind} {name} is paused"])
    return Done(unchanged=[f"{kind} {name} is paused already"])


def resume(database: Database, settings: Settings, kind: str, name: str, *, by: str) -> Done:
    """Let it move again. What is held although no longer configured can still be resumed.

    Raises
    ------
    NotConfigured
        When nothing of that name is configured nor held.
    """
    with database.write() as connection:
        if kind in holds.PAUSABLE and holds.resume(connection, kind, name, by=by):
            return Done(changed=[f"{kind} {name} is resumed"])
    _configured(settings, kind, name)
    return Done(unchanged=[f"{kind} {name} is not paused"])


def _configured(settings: Settings, kind: str, name: str) -> holds.Pausable:
    routes = settings.route_list
    known: dict[str, set[str]] = {
        "route": {route.name for route in routes},
        "model": {parted(model)[0] for route in routes for model in route.models},
        "destination": set(settings.destinations),
        "notifier": set(settings.notifiers),
    }
    if kind not in known:
        raise NotConfigured(f"{kind!r} cannot be paused; expected one of {', '.join(known)}")
    if name not in known[kind]:
        there = ", ".join(sorted(known[kind])) or "none"
        raise NotConfigured(f"no {kind} {name!r} is configured (there is: {there})")
    return cast(holds.Pausable, kind)


def _retry_study(connection: Connection, target: Target, reason: str, done: Done) -> None:
    study = studies.get(connection, target.id)
    if study.state != lifecycle.PARKED:
        done.unchanged.append(f"{target} is {study.state}, not parked")
        return
    studies.reopen(connection, study, reason)
    done.changed.append(f"{target}: judged anew after a quiet period")


def _retry_revision(connection: Connection, target: Target, reason: str, done: Done) -> None:
    state = state_of(connection, target)
    if state != lifecycle.PARKED:
        done.unchanged.append(f"{target} is {state}, not parked")
        return
    lifecycle.transition(connection, "revision", target.id, lifecycle.OPEN, study_id=target.study_id, reason=reason)
    done.changed.append(f"{target}: {lifecycle.PARKED} -> {lifecycle.OPEN}")


def _retry_workitem(connection: Connection, target: Target, reason: str, done: Done) -> None:
    item = worklist.get(connection, target.id)
    if item.state == lifecycle.CANCELED:
        _replace(connection, item, reason, done)
    else:
        done.unchanged.append(f"{target} is {item.state}, not parked")


def _retry_outgoing(connection: Connection, target: Target, reason: str, done: Done) -> None:
    state = state_of(connection, target)
    if state != lifecycle.PARKED:
        done.unchanged.append(f"{target} is {state}, not parked")
        return
    outbox.retry(connection, cast(outbox.Kind, target.kind), target.id, study_id=target.study_id, reason=reason)
    done.changed.append(f"{target}: {lifecycle.PARKED} -> {lifecycle.PENDING}")
    if target.kind == "delivery":
        # The message said that this document was parked; once it arrives there is something new to say.
        for revision_id in _revisions_of_delivery(connection, target.id):
            studies.report_again(connection, revision_id, reason)


def _retry_notification(connection: Connection, target: Target, reason: str, done: Done) -> None:
    n = schema.notification.c
    row = connection.execute(select(n.message, n.revision_id, n.state).where(n.id == target.id)).one()
    if row.state == lifecycle.PARKED and not row.message:
        # It could not be composed, so there is nothing to send again: a further message takes its place.
        studies.report_again(connection, row.revision_id, reason)
        done.changed.append(f"{target}: composed anew as a further message")
        return
    _retry_outgoing(connection, target, reason, done)


_RETRY: Mapping[str, Callable[[Connection, Target, str, Done], None]] = {
    "study": _retry_study,
    "revision": _retry_revision,
    "workitem": _retry_workitem,
    "delivery": _retry_outgoing,
    "notification": _retry_notification,
    "commitment": _retry_outgoing,
    "availability": _retry_outgoing,
}


def _replace(connection: Connection, item: Workitem, reason: str, done: Done) -> None:
    newer = connection.execute(
        select(schema.workitem.c.id).where(schema.workitem.c.replaces_id == item.id)
    ).scalar_one_or_none()
    if newer is not None:
        done.unchanged.append(f"workitem:{item.id} is replaced by workitem:{newer} already")
    elif item.state not in (lifecycle.COMPLETED, lifecycle.CANCELED):
        done.unchanged.append(f"workitem:{item.id} is {item.state}: it will run without being asked")
    else:
        made = worklist.replace(connection, item, reason)
        done.changed.append(f"workitem:{item.id}: replaced by workitem:{made.id}")


def _revisions_of_delivery(connection: Connection, delivery_id: int) -> Sequence[int]:
    u = schema.workitem_use.c
    return (
        connection.execute(
            select(u.revision_id)
            .distinct()
            .select_from(schema.delivery.join(schema.document).join(schema.workitem).join(schema.workitem_use))
            .where(schema.delivery.c.id == delivery_id)
            .order_by(u.revision_id)
        )
        .scalars()
        .all()
    )


def _flags(
    connection: Connection, study: Study, series_instance_uid: str | None, sop_instance_uid: str | None
) -> set[bool]:
    if series_instance_uid is None and sop_instance_uid is None:
        return {study.excluded}
    i, s = schema.instance.c, schema.series.c
    query = select(i.excluded).select_from(schema.instance.join(schema.series)).where(i.study_id == study.id)
    if series_instance_uid is not None:
        query = query.where(s.series_instance_uid == series_instance_uid)
    if sop_instance_uid is not None:
        query = query.where(i.sop_instance_uid == sop_instance_uid)
    return set(connection.execute(query).scalars())
