"""Storage Commitment both ways: what the node owes the peers that have asked it, and what it asks of destinations."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from pydicom.uid import generate_uid

from node.delivery.port import Committing, Destination
from node.dimse.commitment_messages import Report, failure_meaning
from node.dimse.commitment_scp import report
from node.peers import Peer
from node.workflow import retry
from node.workflow.reporting import record
from node.workflow.way import Way
from storage import commitments, delivery_commitments, outbox
from storage.commitments import Reference
from storage.records import Commitment, Delivery, Document

__all__ = ["Stored", "ask_to_commit", "report_commitment", "store"]

_log = structlog.get_logger("overread.workflow")

#: A delivery that its destination has, its document, and the study's row id.
Stored = tuple[Delivery, Document, int]


def report_commitment(way: Way, peer: Peer, commitment: Commitment) -> None:
    """Call a peer and tell it what of its request the node holds; what was found once is told at every try."""
    assert peer.address is not None
    references = commitments.weigh(way.database, way.blobs, commitment)
    said = report(
        peer.address,
        way.settings.dimse.ae_title,
        commitment.transaction_uid,
        references,
        timeout=peer.timeout_seconds,
    )
    with way.database.read() as connection:
        if commitments.is_reported(connection, commitment.id):
            return  # acknowledged on its own association in the meantime
    record(way, "commitment", commitment, None, arrived=said.acknowledged, refused=said.refused, answer=said.answer)
    failed = sum(one.failure_reason is not None for one in references)
    _log.info(
        "commitment reported",
        peer=peer.ae_title,
        committed=len(references) - failed,
        failed=failed,
        acknowledged=said.acknowledged,
        answer=said.answer,
    )


def store(way: Way, delivery: Delivery, study_id: int, answer: str) -> Delivery:
    """Record that a destination has taken a document and is still to commit to it; return the delivery as it is now."""
    with way.database.write() as connection:
        delivery_commitments.store(connection, delivery, study_id=study_id, answer=answer)
        return next(one for one in outbox.deliveries_of(connection, delivery.document_id) if one.id == delivery.id)


def ask_to_commit(way: Way, destination: Destination, stored: Sequence[Stored]) -> None:
    """Ask a destination to commit to what it has taken; weigh first what became of asking before.

    What it has reported as failed is sent again; what it has not reported in time is asked about again. Either counts
    as a refusal, so that a destination that never commits ends with the delivery parked.
    """
    if not isinstance(destination, Committing):
        # It no longer has to commit: what it has taken is delivered.
        for delivery, _, study_id in stored:
            record(way, "delivery", delivery, study_id, arrived=True, refused=False, answer=delivery.answer)
        return
    to_ask = [one for one in stored if _may_be_asked(way, destination, one)]
    if not to_ask:
        return
    transaction_uid = generate_uid(prefix=None)
    with way.database.write() as connection:
        delivery_commitments.ask(
            connection,
            [delivery.id for delivery, _, _ in to_ask],
            transaction_uid,
            wait_seconds=destination.commit_seconds,
        )
    asked = destination.commit(
        transaction_uid,
        [Reference(document.sop_class_uid, document.sop_instance_uid) for _, document, _ in to_ask],
        lambda heard: _take(way, heard),
        accepted=lambda: _accepted(way, transaction_uid),
        is_answered=lambda: _is_answered(way, transaction_uid),
    )
    _log.info(
        "commitment asked for",
        destination=destination.name,
        documents=len(to_ask),
        accepted=asked.accepted,
        answer=asked.answer,
    )
    if asked.accepted:
        return
    if asked.refused:
        with way.database.write() as connection:
            delivery_commitments.withdraw(connection, transaction_uid)
    for delivery, _, study_id in to_ask:
        if _is_answered(way, transaction_uid) and not asked.refused:
            return  # the request had arrived after all
        record(way, "delivery", delivery, study_id, arrived=False, refused=asked.refused, answer=asked.answer)


def _may_be_asked(way: Way, destination: Committing, one: Stored) -> bool:
    delivery, _, study_id = one
    with way.database.read() as connection:
        last = delivery_commitments.last_asked(connection, delivery)
    if last is None or (last.answered_at is None and not last.accepted):
        return True
    if last.answered_at is None:
        # As with any other refusal, but asked again at once: it was waited for long enough.
        answer = f"it took the document and did not report within {destination.commit_seconds:g} s that it keeps it"
        verdict = retry.decide(way.settings.retry, tries=delivery.tries, refusals=delivery.refusals, refused=True)
        with way.database.write() as connection:
            if isinstance(verdict, retry.GiveUp):
                outbox.park(connection, "delivery", delivery.id, study_id=study_id, answer=answer)
                return False
            outbox.postpone(connection, "delivery", delivery.id, delay_seconds=0, answer=answer, refused=True)
        return True
    reason = failure_meaning(last.failure_reason or 0)
    with way.database.write() as connection:
        delivery_commitments.unstore(connection, delivery.id)
    answer = f"it took the document and does not commit to it ({reason})"
    record(way, "delivery", delivery, study_id, arrived=False, refused=True, answer=answer)
    return False


def _take(way: Way, heard: Report) -> bool:
    with way.database.write() as connection:
        return delivery_commitments.take_report(
            connection, heard.transaction_uid, committed=heard.committed, failed=heard.failed
        )


def _accepted(way: Way, transaction_uid: str) -> None:
    with way.database.write() as connection:
        delivery_commitments.accepted(connection, transaction_uid)


def _is_answered(way: Way, transaction_uid: str) -> bool:
    with way.database.read() as connection:
        return delivery_commitments.answered(connection, transaction_uid)
