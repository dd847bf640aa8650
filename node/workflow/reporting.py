"""What leaves about a settled revision, and what becomes of whatever has tried to leave."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from node.errors import InvalidMessage
from node.notify.receivers import Receiver
from node.workflow import report, retry
from node.workflow.judging import park_revision
from node.workflow.way import Way
from storage import lifecycle, outbox, studies
from storage.database import now
from storage.records import Revision

__all__ = ["record", "report_revision"]

_log = structlog.get_logger("overread.workflow")


def report_revision(way: Way, revision: Revision, receivers: Mapping[str, Receiver]) -> int:
    """Compose what a settled revision has to say, then store it and close the revision together."""
    try:
        with way.database.read() as connection:
            messages = [
                message
                for name in report.receivers_of(connection, revision)
                if (message := _compose(way, connection, revision, name, receivers.get(name))) is not None
            ]
    except SQLAlchemyError:
        raise
    except Exception as error:  # noqa: BLE001 - one revision that cannot be reported must not hold up the others
        _log.exception("revision could not be reported", revision=revision.id)
        park_revision(way, revision, f"it could not be reported: {type(error).__name__}")
        return 0
    with way.database.write() as connection:
        if not outbox.is_settled(connection, revision.id):
            return 0
        for one in messages:
            stored = outbox.add_notification(
                connection,
                revision.study_id,
                revision.id,
                one.receiver,
                control_id=one.control_id,
                message=one.content,
                says=one.says,
            )
            if one.trouble:
                outbox.park(connection, "notification", stored.id, study_id=revision.study_id, answer=one.trouble)
        lifecycle.transition(
            connection,
            "revision",
            revision.id,
            lifecycle.REPORTED,
            study_id=revision.study_id,
            reason=f"{len(messages)} messages composed",
        )
    for one in messages:
        _log.info("notification composed", revision=revision.id, receiver=one.receiver, control_id=one.control_id)
    return len(messages)


def record(
    way: Way,
    kind: outbox.Kind,
    row: outbox.Outgoing,
    study_id: int | None,
    *,
    arrived: bool,
    refused: bool,
    answer: str,
) -> None:
    """Write down what became of a try: it arrived, waits for the next one, or is parked with the peer's answer."""
    with way.database.write() as connection:
        if arrived:
            outbox.succeed(connection, kind, row.id, study_id=study_id, answer=answer)
            return
        verdict = retry.decide(way.settings.retry, tries=row.tries, refusals=row.refusals, refused=refused)
        if isinstance(verdict, retry.GiveUp):
            outbox.park(connection, kind, row.id, study_id=study_id, answer=answer)
        else:
            outbox.postpone(connection, kind, row.id, delay_seconds=verdict.seconds, answer=answer, refused=refused)


@dataclass(frozen=True, slots=True)
class _Message:
    """A message for one receiver, ready to be stored; ``trouble`` says why there are no bytes."""

    receiver: str
    control_id: str
    content: bytes
    says: bytes
    trouble: str = ""


def _compose(
    way: Way, connection: Connection, revision: Revision, name: str, receiver: Receiver | None
) -> _Message | None:
    """Compose a message for a receiver; None where the last one about this study said the same."""
    study = studies.get(connection, revision.study_id)
    at: datetime = now(connection).astimezone()
    number = 1 + len([one for one in outbox.notifications_of(connection, revision.id) if one.receiver == name])
    models = way.models.view(connection)
    told = report.build_report(connection, study, revision, name, models, message_number=number, produced_at=at)
    says = report.says(told)
    last = outbox.last_notification(connection, study.id, name)
    if last is not None and last.message and last.content_digest == outbox.content_digest(says):
        return None
    control_id = f"OR{uuid.uuid4().hex[:18]}"
    if receiver is None:
        return _Message(name, control_id, b"", says, f"{name} is no longer configured; configure it again and retry")
    try:
        return _Message(name, control_id, receiver.compose(told, control_id), says)
    except InvalidMessage as error:
        return _Message(name, control_id, b"", says, f"the message could not be composed: {error}")
