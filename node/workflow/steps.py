"""The way of a study, one function an arrow: complete, route, perform (and document), deliver, notify, send.

::

    receive -> complete -> route -> perform -> document -> deliver -> notify -> send

Receiving is ``storage.index.Archive.receive``, behind C-STORE and STOW-RS alike. Every step reads what is due
from the database, does it, and commits what became of it; each may be killed at any line and run again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from inference.card import Card
from inference.engine import ImageFile, Job
from inference.errors import EngineFailure
from node.delivery.port import Delivered, Destination
from node.delivery.port import Refused as DeliveryRefused
from node.errors import EvidenceError, InvalidMessage, WorkitemUnfit
from node.notify.mllp import Accepted, Unreachable
from node.notify.receivers import Receiver
from node.settings import Route, Settings
from node.workflow import completion, report, retry, routing
from storage import attempts, control, lifecycle, outbox, studies, worklist
from storage.blobs import Blobs
from storage.database import Database, now
from storage.errors import LeaseLost
from storage.headers import read_header
from storage.records import Attempt, Instance, Revision, Study, Workitem

if TYPE_CHECKING:
    from inference.findings import Findings
    from node.evidence.documents import EvidenceDocument, Predecessor

__all__ = ["Way", "complete", "deliver", "notify", "perform", "route", "send"]

_log = structlog.get_logger("overread.workflow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What the steps stand on; made once a process, after the fork."""

    settings: Settings
    database: Database
    blobs: Blobs
    incoming: Path
    scratch: Path
    cards: Mapping[str, Card]

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes, in their order."""
        return self.settings.route_list


def complete(way: Way) -> int:
    """Judge every study whose quiet period is over. Returns how many were judged."""
    with way.database.read() as connection:
        due = studies.due_for_verdict(connection, way.settings.completion.quiet_seconds)
    for study in due:
        with way.database.write() as connection:
            current = studies.get(connection, study.id)
            if current.state != lifecycle.RECEIVING or current.quiet_from != study.quiet_from:
                continue  # an instance came in between: a full quiet period anew
            verdict = completion.judge(
                connection,
                current,
                way.settings.completion.quiet_seconds,
                lambda one, fresh, connection=connection: _selectable(way, connection, one, fresh),  # type: ignore[misc]
            )
        _log.info("study judged", study=study.study_instance_uid, outcome=verdict.outcome)
    return len(due)


def route(way: Way) -> int:
    """Weigh every route over every open revision and schedule what they ask for. Returns how many were routed."""
    with way.database.read() as connection:
        revisions = studies.revisions_in(connection, lifecycle.OPEN)
    routed = 0
    for revision in revisions:
        with way.database.write() as connection:
            routed += _route_revision(way, connection, revision)
    return routed


def perform(
    way: Way,
    owner: str,
    run: Callable[[Card, Job, Callable[[], None]], Findings],
) -> bool:
    """Take one workitem, run its model, document what it found and commit all of it together.

    Parameters
    ----------
    owner
        Who holds the lease.
    run
        Runs a job on a card's engine, calling its last argument about once a second.

    Returns
    -------
    bool
        Whether there was anything to do.
    """
    lease = way.settings.perform.lease_seconds
    with way.database.write() as connection:
        paused = control.paused(connection, "model")
        claimed = attempts.claim(connection, owner, lease, paused_models=paused)
        job = None if claimed is None else _job(way, connection, claimed[0])
    if claimed is None:
        return False
    workitem, attempt = claimed
    with structlog.contextvars.bound_contextvars(workitem=workitem.uid, model=workitem.model):
        _log.info("attempt began", attempt=attempt.number)
        try:
            if job is None:
                raise WorkitemUnfit(_unavailable(way, workitem))
            findings = run(way.cards[workitem.model], job, lambda: _renew(way, attempt, lease))
            documents = _document(way, workitem, findings)
            _commit(way, workitem, attempt, findings, documents)
        except EngineFailure as failure:
            _failed(way, workitem, attempt, str(failure), tries=way.settings.perform.tries)
        except (WorkitemUnfit, EvidenceError) as failure:
            # The next try would fail in the same way.
            _failed(way, workitem, attempt, str(failure), tries=1)
        except LeaseLost:
            _log.warning("attempt was taken away; its result is dropped", attempt=attempt.number)
        except (SQLAlchemyError, OSError):
            raise  # the node's own trouble, a full disk say: no try is lost, the lease runs out
        except Exception as error:  # noqa: BLE001 - whatever a study can make go wrong must end as a parked row
            _log.exception("attempt broke")
            _failed(way, workitem, attempt, f"broke: {type(error).__name__}", tries=way.settings.perform.tries)
    return True


def deliver(way: Way, destination: Destination) -> int:
    """Send every document that is due at one destination. Returns how many were tried."""
    with way.database.read() as connection:
        if destination.name in control.paused(connection, "destination"):
            return 0
        due = outbox.due_deliveries(connection, destination.name)
    for delivery, document, study_id in due:
        outcome = destination.deliver(way.blobs.path(document.blob))
        with way.database.write() as connection:
            if isinstance(outcome, Delivered):
                outbox.succeed(connection, "delivery", delivery.id, study_id=study_id, answer=outcome.answer)
            else:
                _again(
                    way,
                    connection,
                    "delivery",
                    delivery,
                    study_id,
                    refused=isinstance(outcome, DeliveryRefused),
                    answer=outcome.answer,
                )
        _log.info(
            "delivery tried",
            document=document.sop_instance_uid,
            destination=destination.name,
            outcome=type(outcome).__name__,
            answer=outcome.answer,
        )
    return len(due)


def notify(way: Way, receivers: Mapping[str, Receiver]) -> int:
    """Compose one message for each receiver of every revision that is settled. Returns how many were composed."""
    with way.database.read() as connection:
        settled = [one for one in studies.revisions_in(connection, lifecycle.ROUTED) if report.settled(connection, one)]
    composed = 0
    for revision in settled:
        with way.database.write() as connection:
            if studies.revision(connection, revision.id).state != lifecycle.ROUTED:
                continue
            study = studies.get(connection, revision.study_id)
            for name in report.receivers_of(connection, revision):
                if name in receivers:
                    composed += _compose(way, connection, study, revision, name, receivers[name])
            lifecycle.transition(
                connection, "revision", revision.id, lifecycle.REPORTED, study_id=study.id, reason="nothing is open"
            )
    return composed


def send(way: Way, name: str, receiver: Receiver) -> int:
    """Send every message that is due at one receiver, with the bytes that are stored. Returns how many were tried."""
    with way.database.read() as connection:
        if name in control.paused(connection, "notifier"):
            return 0
        due = outbox.due_notifications(connection, name)
    for notification, study_id in due:
        outcome = receiver.send(notification.message, notification.control_id)
        with way.database.write() as connection:
            if isinstance(outcome, Accepted):
                outbox.succeed(connection, "notification", notification.id, study_id=study_id, answer=outcome.text)
            else:
                _again(
                    way,
                    connection,
                    "notification",
                    notification,
                    study_id,
                    refused=not isinstance(outcome, Unreachable),
                    answer=outcome.summary,
                )
        _log.info("notification tried", control_id=notification.control_id, receiver=name, outcome=outcome.name)
    return len(due)


def _selectable(way: Way, connection: Connection, study: Study, instances: Sequence[Instance]) -> bool:
    candidates = routing.candidates_of(study, studies.series_of(connection, study.id), instances)
    return any(routing.could_select(one, way.routes, way.cards) for one in candidates)


def _route_revision(way: Way, connection: Connection, revision: Revision) -> int:
    """Decide what is not decided yet; a paused route that matches waits, and the revision with it."""
    if studies.revision(connection, revision.id).state != lifecycle.OPEN:
        return 0
    study = studies.get(connection, revision.study_id)
    evidence = studies.evidence(connection, study.id, up_to=revision.last_instance_id)
    candidates = routing.candidates_of(study, studies.series_of(connection, study.id), evidence)
    decided = {(one["route"], one["model"]) for one in studies.decisions(connection, revision.id)}
    paused = control.paused(connection, "route")
    waiting = False
    scheduled = 0
    for rule in way.routes:
        for model in rule.models:
            if (rule.name, model) in decided:
                continue
            decision = routing.weigh(
                candidates, rule, way.cards[model], demonstrations=way.settings.demonstration_models
            )
            if decision.matched and rule.name in paused:
                waiting = True
                continue
            scheduled += _schedule(connection, revision, decision, way.cards[model])
    if waiting:
        return 0
    lifecycle.transition(
        connection,
        "revision",
        revision.id,
        lifecycle.ROUTED,
        study_id=study.id,
        reason=f"{scheduled} workitems scheduled",
    )
    _log.info("revision routed", study=study.study_instance_uid, revision=revision.number, workitems=scheduled)
    return 1


def _schedule(connection: Connection, revision: Revision, decision: routing.Decision, card: Card) -> int:
    studies.record_decision(
        connection,
        revision,
        route=decision.route.name,
        model=card.name,
        matched=decision.matched,
        reasons=decision.reasons,
        not_analysed=decision.not_analysed,
        deliver=decision.route.deliver,
        notify=decision.route.notify,
    )
    made = 0
    for input_set in decision.input_sets:
        _, created = worklist.schedule(
            connection,
            worklist.Key(
                study_id=revision.study_id,
                model=card.name,
                model_version=card.version,
                model_digest=card.digest,
                device_uid=card.device_uid,
                input_digest=input_set.digest,
            ),
            input_set=input_set.as_json(),
            revision_id=revision.id,
            route=decision.route.name,
            reason=input_set.reason,
            deliver=decision.route.deliver,
            notify=decision.route.notify,
        )
        made += created
    return made


def _job(way: Way, connection: Connection, workitem: Workitem) -> Job | None:
    """Return the job of a workitem; None where the model or an instance of it is no longer what was scheduled."""
    card = way.cards.get(workitem.model)
    if card is None or card.digest != workitem.model_digest:
        return None
    by_uid = {one.sop_instance_uid: one for one in studies.evidence(connection, workitem.study_id)}
    input_set: dict[str, tuple[ImageFile, ...]] = {}
    for role, chosen in workitem.input_set.items():
        if any(uid not in by_uid for uid in chosen["sop_instance_uids"]):
            return None
        input_set[role] = tuple(ImageFile(uid, way.blobs.path(by_uid[uid].blob)) for uid in chosen["sop_instance_uids"])
    return Job(card_path=card.path, input_set=input_set)


def _unavailable(way: Way, workitem: Workitem) -> str:
    card = way.cards.get(workitem.model)
    if card is None:
        return f"model {workitem.model} is not installed any more"
    if card.digest != workitem.model_digest:
        return f"model {workitem.model} has changed since this was scheduled; rerun the study to use the new one"
    return "an instance of its input set was deleted or excluded"


def _renew(way: Way, attempt: Attempt, lease_seconds: float) -> None:
    with way.database.write() as connection:
        attempts.renew(connection, attempt, lease_seconds)


def _document(way: Way, workitem: Workitem, findings: Findings) -> tuple[EvidenceDocument, ...]:
    """Make the evidence documents of findings, in the source study, naming the ones that they follow."""
    from node.evidence.documents import make_documents, model_of, node_identity

    with way.database.read() as connection:
        sources = [
            way.blobs.path(one.blob)
            for one in studies.evidence(connection, workitem.study_id)
            if one.sop_instance_uid in set(findings.images)
        ]
        revision = studies.revision(connection, worklist.uses(connection, workitem.id)[-1].revision_id)
        predecessors = _predecessors(connection, workitem)
        identity = node_identity(device_uid=studies.device_uid(connection), ae_title=way.settings.dimse.ae_title)
        at = now(connection)
    try:
        return make_documents(
            findings,
            model_of(way.cards[workitem.model]),
            sources,
            node=identity,
            revision=revision.number,
            predecessors=predecessors,
            now=at.astimezone(),
        )
    except EvidenceError:
        raise
    except Exception as error:
        # Headers of any vendor end here; one study that cannot be documented must not stop the others.
        _log.exception("documents could not be made")
        raise EvidenceError(f"documents could not be made: {type(error).__name__}: {error}") from error


def _predecessors(connection: Connection, workitem: Workitem) -> tuple[Predecessor, ...]:
    from node.evidence.documents import Predecessor

    study = studies.get(connection, workitem.study_id)
    return tuple(
        Predecessor(
            study_instance_uid=study.study_instance_uid,
            series_instance_uid=one.series_instance_uid,
            sop_class_uid=one.sop_class_uid,
            sop_instance_uid=one.sop_instance_uid,
        )
        for one in worklist.earlier_documents(connection, workitem)
    )


def _commit(
    way: Way, workitem: Workitem, attempt: Attempt, findings: Findings, documents: Sequence[EvidenceDocument]
) -> None:
    """Make the bytes durable, then commit everything about them at once."""
    new: list[attempts.NewDocument] = []
    try:
        for document in documents:
            path = way.incoming / f"{uuid.uuid4().hex}.evidence"
            path.write_bytes(document.data)
            header = read_header(path)
            new.append(attempts.NewDocument(kind=document.kind, header=header, blob=way.blobs.adopt(path)))
        with way.database.write() as connection:
            attempts.complete(
                connection,
                workitem,
                attempt,
                findings=findings.summary(),
                new_documents=new,
                outcome=_outcome(findings),
            )
    except BaseException:
        for one in new:
            way.blobs.delete(one.blob)
        raise
    _log.info("workitem completed", outcome=_outcome(findings), documents=len(new), seconds=round(findings.seconds, 3))


def _outcome(findings: Findings) -> str:
    if findings.not_analysed is not None:
        return f"not analysed: {findings.not_analysed.text}"
    if findings.segmentation is not None:
        return ", ".join(f"{one.name} {one.volume_ml:.0f} mL" for one in findings.segmentation.segments)
    present = [one.name for one in findings.classifications if one.present]
    return "present: " + ", ".join(present) if present else "none of its findings present"


def _failed(way: Way, workitem: Workitem, attempt: Attempt, reason: str, *, tries: int) -> None:
    with way.database.write() as connection:
        parked = attempts.fail(connection, workitem, attempt, reason, tries=tries)
    _log.warning("attempt failed", attempt=attempt.number, reason=reason, parked=parked)


def _again(
    way: Way,
    connection: Connection,
    kind: outbox.Kind,
    row: outbox.Outgoing,
    study_id: int,
    *,
    refused: bool,
    answer: str,
) -> None:
    verdict = retry.decide(way.settings.retry, tries=row.tries, refusals=row.refusals, refused=refused)
    if isinstance(verdict, retry.GiveUp):
        outbox.park(connection, kind, row.id, study_id=study_id, answer=answer)
    else:
        outbox.postpone(connection, kind, row.id, delay_seconds=verdict.seconds, answer=answer, refused=refused)


def _compose(way: Way, connection: Connection, study: Study, revision: Revision, name: str, receiver: Receiver) -> int:
    """Store a message for a receiver, unless the last one about this study said the same."""
    at: datetime = now(connection).astimezone()
    number = 1 + len([one for one in outbox.notifications_of(connection, revision.id) if one.receiver == name])
    told = report.build_report(connection, study, revision, name, way.cards, message_number=number, produced_at=at)
    content = report.says(told)
    last = outbox.last_notification(connection, study.id, name)
    if last is not None and last.message and last.content_digest == outbox.content_digest(content):
        return 0
    control_id = f"OR{uuid.uuid4().hex[:18]}"
    try:
        message, trouble = receiver.compose(told, control_id), ""
    except InvalidMessage as error:
        message, trouble = b"", f"the message could not be composed: {error}"
    stored = outbox.add_notification(
        connection, study.id, revision.id, name, control_id=control_id, message=message, says=content
    )
    if trouble:
        outbox.park(connection, "notification", stored.id, study_id=study.id, answer=trouble)
    _log.info("notification composed", study=study.study_instance_uid, receiver=name, control_id=control_id)
    return 1
