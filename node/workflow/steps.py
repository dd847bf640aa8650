"""The way of a study, one function an arrow: complete, route, perform (and document), deliver, notify, send.

Beside it: commit, what peers are owed about what they have stored, and announce, that a study is there.

::

    receive -> complete -> route -> perform -> document -> deliver -> notify -> send

Receiving is ``storage.intake.Archive.receive``, behind C-STORE and STOW-RS alike. Every step reads what is due
from the database, does it, and commits what became of it; each may be killed at any line and run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import structlog
from sqlalchemy.exc import SQLAlchemyError

from node.delivery.port import Committing, Delivered, Destination
from node.delivery.port import Refused as DeliveryRefused
from node.dimse.finder import Counted, count_instances
from node.notify.mllp import Accepted, Silent, Unreachable
from node.notify.receivers import Receiver
from node.peers import Peer
from node.workflow import completion
from node.workflow.announcing import announce_revision
from node.workflow.committing import ask_to_commit, report_commitment, store
from node.workflow.judging import judge, route_revision
from node.workflow.performing import Identity, Run, attempt_workitem, unknown
from node.workflow.reporting import record, report_revision
from node.workflow.way import Way
from storage import attempts, availability, commitments, control, inquiries, lifecycle, outbox, receiving, studies
from storage.database import now
from storage.records import Attempt, Workitem

__all__ = ["announce", "commit", "complete", "count", "deliver", "notify", "perform", "route", "send", "take"]

_log = structlog.get_logger("overread.workflow")


def complete(way: Way) -> int:
    """Look at every study that may be complete and judge those that are. Returns how many were judged."""
    with way.database.read() as connection:
        due = receiving.due_for_verdict(
            connection, completion.shortest_quiet_seconds(way), way.settings.completion.maximum_seconds
        )
    return judge(way, due)


def count(way: Way, name: str) -> int:
    """Ask one peer how many instances it has of the studies that wait for its answer. Returns how many were asked."""
    with way.database.read() as connection:
        due = inquiries.due(connection, name)
    peer = way.settings.peers[name]
    assert peer.address is not None
    for inquiry, study_instance_uid in due:
        with way.database.read() as connection:
            asked_at = now(connection)
        try:
            counted = count_instances(
                peer.address, way.settings.dimse.ae_title, study_instance_uid, timeout=peer.timeout_seconds
            )
        except Exception as error:  # noqa: BLE001 - one answer that cannot be read must not hold up the others
            _log.exception("count broke", peer=name)
            counted = Counted(count=None, answer=f"it could not be asked: {type(error).__name__}")
        with way.database.write() as connection:
            inquiries.answered(connection, inquiry, asked_at=asked_at, count=counted.count, answer=counted.answer)
        _log.info("peer counted", peer=name, study=study_instance_uid, count=counted.count)
    return len(due)


def route(way: Way) -> int:
    """Weigh every route over every open revision and schedule what they ask for. Returns how many were routed."""
    routed, after = 0, 0
    while True:
        with way.database.read() as connection:
            revisions = studies.revisions_in(connection, lifecycle.OPEN, after=after)
        if not revisions:
            return routed
        routed += sum(route_revision(way, revision) for revision in revisions)
        after = revisions[-1].id


def take(way: Way, owner: str, choice: attempts.Choice) -> tuple[Workitem, Attempt] | None:
    """Take one workitem that is due, to perform it; None where there is none for this worker.

    Parameters
    ----------
    owner
        Who holds the lease.
    choice
        What this worker can take; models that an operator has paused are left out beside.
    """
    with way.database.read() as connection:
        paused = control.paused(connection, "model")
        choice = replace(choice, paused_models=frozenset(choice.paused_models) | frozenset(paused))
        if not attempts.claimable(connection, choice):
            return None
    with way.database.write() as connection:
        return attempts.claim(connection, owner, way.settings.perform.lease_seconds, choice)


def perform(way: Way, taken: tuple[Workitem, Attempt], run: Run, identity: Identity = unknown) -> None:
    """Run the model of a workitem, document what it found and commit all of it together."""
    attempt_workitem(way, *taken, run, identity)


def deliver(way: Way, destination: Destination) -> int:
    """Send every document that is due at one destination. Returns how many were tried."""
    with way.database.read() as connection:
        if destination.name in control.paused(connection, "destination"):
            return 0
        due = outbox.due_deliveries(connection, destination.name)
    stored = []
    for delivery, document, study_id in due:
        if delivery.stored_at is not None:
            stored.append((delivery, document, study_id))
            continue
        try:
            outcome = destination.deliver(way.blobs.path(document.blob))
        except Exception as error:  # noqa: BLE001 - one document must not hold up the others
            _log.exception("delivery broke", document=document.sop_instance_uid)
            outcome = DeliveryRefused(f"it could not be sent: {type(error).__name__}")
        if isinstance(outcome, Delivered) and isinstance(destination, Committing):
            stored.append((store(way, delivery, study_id, outcome.answer), document, study_id))
        else:
            record(
                way,
                "delivery",
                delivery,
                study_id,
                arrived=isinstance(outcome, Delivered),
                refused=isinstance(outcome, DeliveryRefused),
                answer=outcome.answer,
            )
        _log.info(
            "delivery tried",
            document=document.sop_instance_uid,
            destination=destination.name,
            outcome=type(outcome).__name__,
            answer=outcome.summary,
        )
    if stored:
        ask_to_commit(way, destination, stored)
    return len(due)


def commit(way: Way, peer: Peer) -> int:
    """Report to one peer what of it the node holds that it has asked about. Returns how many reports were tried."""
    with way.database.read() as connection:
        due = commitments.due(connection, peer.ae_title.strip())
    for one in due:
        try:
            report_commitment(way, peer, one)
        except SQLAlchemyError:
            raise
        except Exception as error:  # noqa: BLE001 - one report must not hold up the others
            _log.exception("report of commitment broke", commitment=one.id)
            answer = f"it could not be reported: {type(error).__name__}"
            record(way, "commitment", one, None, arrived=False, refused=True, answer=answer)
    return len(due)


def announce(way: Way, name: str, peer: Peer) -> int:
    """Tell one peer of every study that has come in. Returns how many notifications were tried."""
    with way.database.read() as connection:
        due = availability.due(connection, name)
    for one, study_id in due:
        try:
            announce_revision(way, peer, one, study_id)
        except SQLAlchemyError:
            raise
        except Exception as error:  # noqa: BLE001 - one notification must not hold up the others
            _log.exception("notification of availability broke", availability=one.id)
            answer = f"it could not be sent: {type(error).__name__}"
            record(way, "availability", one, study_id, arrived=False, refused=True, answer=answer)
    return len(due)


def notify(way: Way, receivers: Mapping[str, Receiver]) -> int:
    """Compose one message for each receiver of every revision that is settled. Returns how many were composed."""
    with way.database.read() as connection:
        settled = outbox.settled_revisions(connection)
    return sum(report_revision(way, revision, receivers) for revision in settled)


def send(way: Way, name: str, receiver: Receiver) -> int:
    """Send every message that is due at one receiver, with the bytes that are stored. Returns how many were tried."""
    with way.database.read() as connection:
        if name in control.paused(connection, "notifier"):
            return 0
        due = outbox.due_notifications(connection, name)
    for notification, study_id in due:
        try:
            outcome = receiver.send(notification.message, notification.control_id)
        except Exception as error:  # noqa: BLE001 - one message must not hold up the others
            _log.exception("notification broke", control_id=notification.control_id)
            outcome = Silent(f"it could not be sent: {type(error).__name__}")
        record(
            way,
            "notification",
            notification,
            study_id,
            arrived=isinstance(outcome, Accepted),
            refused=not isinstance(outcome, Unreachable),
            answer=outcome.text,
        )
        _log.info("notification tried", control_id=notification.control_id, receiver=name, outcome=outcome.name)
    return len(due)
