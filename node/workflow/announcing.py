"""Telling peers that a study's instances are there, once a revision of it is open."""

from __future__ import annotations

import structlog

from node.dimse.availability import announce, compose
from node.peers import Peer
from node.workflow.reporting import record
from node.workflow.way import Way
from storage import procedure_steps, studies
from storage.records import Availability

__all__ = ["announce_revision"]

_log = structlog.get_logger("overread.workflow")


def announce_revision(way: Way, peer: Peer, availability: Availability, study_id: int) -> None:
    """Tell one peer of one revision, and write down what became of it."""
    assert peer.address is not None
    with way.database.read() as connection:
        revision = studies.revision(connection, availability.revision_id)
        study = studies.get(connection, study_id)
        series = {one.id: one.series_instance_uid for one in studies.series_of(connection, study_id)}
        instances = studies.evidence(connection, study_id, up_to=revision.last_instance_id)
        steps = procedure_steps.for_study(connection, study.study_instance_uid)
    dataset = compose(
        study.study_instance_uid,
        [(series[one.series_id], one) for one in instances],
        [one.sop_instance_uid for one in steps],
        retrieve_ae_title=way.settings.dimse.ae_title,
        is_online=lambda blob: way.blobs.path(blob).is_file(),
    )
    said = announce(
        peer.address,
        way.settings.dimse.ae_title,
        availability.sop_instance_uid,
        dataset,
        timeout=peer.timeout_seconds,
    )
    record(
        way,
        "availability",
        availability,
        study_id,
        arrived=said.acknowledged,
        refused=said.refused,
        answer=said.answer,
    )
    _log.info("availability notified", peer=availability.peer, acknowledged=said.acknowledged, answer=said.answer)
