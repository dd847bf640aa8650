"""The list of studies says in one word what came of each."""

from __future__ import annotations

from pathlib import Path

from node.workflow import control, listing
from storage import attempts, lifecycle, outbox, studies
from tests.work import Holding


def outcome(holding: Holding) -> str:
    with holding.database.read() as connection:
        (one,) = listing.latest(connection)
    return one.outcome


def test_the_outcome_follows_a_study_from_its_first_image_to_its_message(embedded: Holding, tmp_path: Path) -> None:
    study = embedded.study(tmp_path)
    assert outcome(embedded) == "receiving"
    revision = embedded.judge(study)
    assert outcome(embedded) == "running"
    embedded.schedule(study, revision)
    workitem, attempt = embedded.claim()
    (document,) = embedded.complete(tmp_path, study, workitem, attempt)
    message = embedded.message(study, revision)
    assert outcome(embedded) == "waiting"
    with embedded.database.write() as connection:
        (delivery,) = outbox.deliveries_of(connection, document.id)
        outbox.park(connection, "delivery", delivery.id, study_id=study.id, answer="refused")
    assert outcome(embedded) == "parked"
    control.retry(embedded.database, study.study_instance_uid, by="ann")
    with embedded.database.write() as connection:
        outbox.succeed(connection, "delivery", delivery.id, study_id=study.id, answer="0x0000")
        outbox.succeed(connection, "notification", message.id, study_id=study.id, answer="AA")
        lifecycle.transition(connection, "revision", revision.id, "REPORTED", study_id=study.id)
    assert outcome(embedded) == "reported"
    control.exclude(embedded.database, study.study_instance_uid, by="ann")
    assert outcome(embedded) == "excluded"


def test_a_study_that_no_route_took_is_unrouted_and_a_replaced_workitem_no_longer_counts(
    embedded: Holding, tmp_path: Path
) -> None:
    study = embedded.study(tmp_path)
    revision = embedded.judge(study)
    with embedded.database.write() as connection:
        for state in ("ROUTED", "REPORTED"):
            lifecycle.transition(connection, "revision", revision.id, state, study_id=study.id)
    assert outcome(embedded) == "unrouted"
    embedded.schedule(study, revision)
    workitem, attempt = embedded.claim()
    with embedded.database.write() as connection:
        attempts.fail(connection, workitem, attempt, "the engine was killed", tries=1)
    assert outcome(embedded) == "parked"
    control.retry(embedded.database, study.study_instance_uid, by="ann")
    assert outcome(embedded) == "running"


def test_the_newest_come_first_and_no_more_than_asked_for(embedded: Holding, tmp_path: Path) -> None:
    uids = [embedded.study(tmp_path / name).study_instance_uid for name in ("a", "b", "c")]
    with embedded.database.read() as connection:
        assert [one.study_instance_uid for one in listing.latest(connection, 2)] == [uids[2], uids[1]]
        assert studies.by_uid(connection, uids[0]).state == "RECEIVING"
