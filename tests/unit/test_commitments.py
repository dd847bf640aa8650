"""What is kept of commitments, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, generate_uid

from storage import commitments, lifecycle, outbox, studies
from storage.commitments import Reference
from storage.errors import AlreadyThere, StillNeeded
from storage.records import Commitment, Instance
from storage.retention import delete_instance
from tests.work import Holding

CT = str(CTImageStorage)


def evidence(holding: Holding, folder: Path, slices: int = 2) -> list[Instance]:
    study = holding.study(folder, slices)
    with holding.database.write() as connection:
        found = studies.evidence(connection, study.id)
        # Judged, and nothing of it is open.
        revision = studies.open_revision(
            connection, study, last_instance_id=found[-1].id, verdict={}, reason="quiet for 60 s"
        )
        for state in (lifecycle.ROUTED, lifecycle.REPORTED):
            lifecycle.transition(connection, "revision", revision.id, state, study_id=study.id)
    return found


def asked(
    holding: Holding, references: list[Reference], transaction: str | None = None, calling: str = "CT1"
) -> Commitment:
    with holding.database.write() as connection:
        return commitments.record(
            connection,
            calling_ae_title=calling,
            transaction_uid=transaction or generate_uid(),
            references=references,
            hold_seconds=0,
        )


def test_what_is_held_is_told_by_class_and_bytes_and_the_same_ever_after(holding: Holding, tmp_path: Path) -> None:
    first, second = evidence(holding, tmp_path)
    holding.blobs.path(second.blob).unlink()
    missing = generate_uid()
    commitment = asked(
        holding,
        [
            Reference(CT, first.sop_instance_uid),
            Reference("1.2.3", first.sop_instance_uid),
            Reference(CT, second.sop_instance_uid),
            Reference(CT, missing),
        ],
    )
    found = commitments.weigh(holding.database, holding.blobs, commitment)
    assert [one.failure_reason for one in found] == [None, 0x0119, 0x0110, 0x0112]
    holding.blobs.path(first.blob).unlink()
    with holding.database.read() as connection:
        again = commitments.get(connection, commitment.id)
    assert commitments.weigh(holding.database, holding.blobs, again) == found


def test_an_instance_that_stands_in_two_studies_is_held_where_either_is_whole(holding: Holding, tmp_path: Path) -> None:

    first, _ = evidence(holding, tmp_path)
    copy = dcmread(holding.blobs.path(first.blob))
    copy.StudyInstanceUID = generate_uid()
    copy.save_as(tmp_path / "copy.dcm")
    holding.receive([tmp_path / "copy.dcm"])
    holding.blobs.path(first.blob).unlink()
    commitment = asked(holding, [Reference(CT, first.sop_instance_uid)])
    assert commitments.weigh(holding.database, holding.blobs, commitment) == [Reference(CT, first.sop_instance_uid)]


def test_nothing_is_deleted_that_a_peer_waits_to_hear_about(holding: Holding, tmp_path: Path) -> None:
    first, second = evidence(holding, tmp_path)
    commitment = asked(holding, [Reference(CT, first.sop_instance_uid)])
    with pytest.raises(StillNeeded, match="storage commitment"):
        delete_instance(holding.database, holding.blobs, first.sop_instance_uid, "asked for")
    assert delete_instance(holding.database, holding.blobs, second.sop_instance_uid, "asked for") == 1
    with holding.database.write() as connection:
        outbox.succeed(connection, "commitment", commitment.id, study_id=None, answer="acknowledged")
    assert delete_instance(holding.database, holding.blobs, first.sop_instance_uid, "asked for") == 1


def test_a_parked_commitment_is_weighed_anew_when_it_is_retried(holding: Holding, tmp_path: Path) -> None:
    first, _ = evidence(holding, tmp_path)
    commitment = asked(holding, [Reference(CT, first.sop_instance_uid)])
    commitments.weigh(holding.database, holding.blobs, commitment)
    with holding.database.write() as connection:
        outbox.park(connection, "commitment", commitment.id, study_id=None, answer="no")
    # Parked, it no longer keeps anything.
    delete_instance(holding.database, holding.blobs, first.sop_instance_uid, "asked for")
    with holding.database.write() as connection:
        outbox.retry(connection, "commitment", commitment.id, study_id=None, reason="asked for")
        [again] = commitments.due(connection, "CT1")
    assert commitments.weigh(holding.database, holding.blobs, again)[0].failure_reason == 0x0112


def test_a_transaction_is_of_one_peer_and_of_one_set_of_references(holding: Holding) -> None:
    transaction, references = generate_uid(), [Reference(CT, "1.2.1"), Reference(CT, "1.2.2")]
    first = asked(holding, references, transaction)
    assert asked(holding, list(reversed(references)), transaction).id == first.id
    assert asked(holding, references[:1], transaction, calling="CT2").id != first.id
    with pytest.raises(AlreadyThere):
        asked(holding, references[:1], transaction)


def test_what_nobody_can_be_told_is_parked_with_what_to_do(holding: Holding) -> None:
    asked(holding, [Reference(CT, "1.2.1")], calling="CT1")
    asked(holding, [Reference(CT, "1.2.1")], calling="CT2")
    with holding.database.write() as connection:
        assert commitments.are_unreachable(connection, {"CT2"})
        assert commitments.park_unreachable(connection, {"CT2"}) == 1
        assert not commitments.are_unreachable(connection, {"CT2"})
    assert holding.states("commitment") == ["PARKED", "PENDING"]
