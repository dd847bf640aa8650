"""What the node holds survives, stays consistent, and moves only as the lifecycle allows: on both databases."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydicom.uid import generate_uid
from sqlalchemy import delete, event, func, insert, select, text, update
from sqlalchemy.exc import DatabaseError

from storage import attempts, changefeed, lifecycle, namesearch, outbox, receiving, schema, studies, worklist
from storage.blobs import FileBlobs
from storage.database import Database, Watch, migrate, now, schema_versions
from storage.errors import IllegalTransition, LeaseLost, NotDicom, StillNeeded, StorageError, Unknown
from storage.index import Origin, Outcome
from storage.intake import Archive
from storage.reconcile import reconcile
from storage.retention import delete_instance
from tests.dicom_factory import ct_series, radiograph
from tests.peers import wait_until
from tests.work import Holding

NOT_LEGAL = [
    ("workitem", lifecycle.IN_PROGRESS, lifecycle.SCHEDULED),
    ("workitem", lifecycle.COMPLETED, lifecycle.CANCELED),
    ("attempt", lifecycle.FAILED, lifecycle.SUCCEEDED),
    ("delivery", lifecycle.DELIVERED, lifecycle.PENDING),
    ("notification", lifecycle.ACKNOWLEDGED, lifecycle.PENDING),
]


@pytest.mark.parametrize(("kind", "state", "to"), NOT_LEGAL)
def test_a_move_that_the_lifecycle_does_not_have_is_refused(
    holding: Holding, tmp_path: Path, kind: str, state: str, to: str
) -> None:
    study, revision, *_ = holding.finished(tmp_path)
    holding.message(study, revision)
    table = schema.metadata.tables[kind]
    with holding.database.write() as connection:
        connection.execute(update(table).values(state=state))
        object_id = connection.execute(select(table.c.id)).scalars().first()
        with pytest.raises(IllegalTransition, match=kind):
            lifecycle.transition(connection, kind, object_id, to, study_id=study.id)


def test_every_move_stands_in_the_change_feed_in_the_order_it_was_made(holding: Holding, tmp_path: Path) -> None:
    study, *_ = holding.finished(tmp_path)
    with holding.database.read() as connection:
        changes = changefeed.of_study(connection, study.id)
    moves = [(one.kind, one.before, one.after) for one in changes if one.kind in ("workitem", "attempt")]
    assert moves == [
        ("workitem", None, "SCHEDULED"),
        ("workitem", "SCHEDULED", "IN PROGRESS"),
        ("attempt", None, "RUNNING"),
        ("attempt", "RUNNING", "SUCCEEDED"),
        ("workitem", "IN PROGRESS", "COMPLETED"),
    ]
    assert [one.sequence for one in changes] == sorted({one.sequence for one in changes})


def test_two_routes_that_reach_the_same_key_share_a_workitem_and_each_gets_the_documents(
    holding: Holding, tmp_path: Path
) -> None:
    study = holding.study(tmp_path)
    revision = holding.judge(study)
    first = holding.schedule(study, revision, route="one", deliver=("pacs",))
    second = holding.schedule(study, revision, route="two", deliver=("pacs", "archive"))
    assert first.id == second.id
    assert holding.schedule(study, revision, route="three", inputs="another series").id != first.id
    workitem, attempt = holding.claim()
    document = holding.complete(tmp_path, study, workitem, attempt)[0]
    with holding.database.read() as connection:
        destinations = [one.destination for one in outbox.deliveries_of(connection, document.id)]
    assert sorted(destinations) == ["archive", "pacs"]


def test_scheduling_the_same_key_in_a_later_revision_makes_no_work_and_no_second_delivery(
    holding: Holding, tmp_path: Path
) -> None:
    study, _, workitem, document = holding.finished(tmp_path)
    holding.receive(ct_series(tmp_path / "more", np.zeros((1, 4, 4)), study_uid=study.study_instance_uid))
    second = holding.judge(study)
    again = holding.schedule(study, second, deliver=("pacs", "late"))
    assert again.id == workitem.id
    with holding.database.read() as connection:
        destinations = [one.destination for one in outbox.deliveries_of(connection, document.id)]
    assert destinations == ["pacs", "late"], "only the new destination gets a delivery"


def test_a_workitem_is_given_to_one_worker_only(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    revision = holding.judge(study)
    for number in range(4):
        holding.schedule(study, revision, route=f"route-{number}", inputs=str(number))
    barrier = threading.Barrier(8)

    def claim(number: int) -> int | None:
        barrier.wait()
        for _ in range(20):
            with holding.database.write() as connection:
                claimed = attempts.claim(connection, f"worker-{number}", 30)
            if claimed is not None:
                return claimed[0].id
        return None

    with ThreadPoolExecutor(8) as pool:
        found = [one for one in pool.map(claim, range(8)) if one is not None]
    assert sorted(found) == sorted(set(found))
    assert len(found) == 4
    with holding.database.read() as connection:
        running = connection.execute(select(schema.attempt.c.workitem_id)).scalars().all()
    assert sorted(running) == sorted(found)


def test_a_workitem_whose_attempt_was_lost_is_taken_up_by_one_worker_only(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    holding.claim("dead-1")
    with holding.database.write() as connection:
        assert attempts.lose(connection, "dead-", limit=50, reason="the node died") == 1
    barrier = threading.Barrier(6)

    def claim(number: int) -> bool:
        barrier.wait()
        with holding.database.write() as connection:
            return attempts.claim(connection, f"worker-{number}", 30) is not None

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(claim, range(6))) == 1
    assert sorted(holding.states("attempt")) == ["LOST", "RUNNING"]


def test_a_paused_model_is_not_claimed(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    with holding.database.write() as connection:
        assert attempts.claim(connection, "worker", 30, attempts.Choice(paused_models={"lung-ct"})) is None


def test_the_result_of_an_attempt_that_was_taken_away_is_refused_and_leaves_nothing(
    holding: Holding, tmp_path: Path
) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    workitem, lost = holding.claim("slow", lease_seconds=-1)
    with holding.database.write() as connection:
        assert attempts.lose_expired(connection, limit=50) == 1
    _, second = holding.claim("quick")
    with holding.database.write() as connection, pytest.raises(LeaseLost):
        attempts.renew(connection, lost, 30)
    with pytest.raises(LeaseLost):
        holding.complete(tmp_path, study, workitem, lost)
    assert holding.states("delivery") == []
    assert second.number == 2
    holding.complete(tmp_path, study, workitem, second)
    assert holding.states("attempt") == ["LOST", "SUCCEEDED"]


def test_a_lease_that_is_renewed_does_not_run_out(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    _, attempt = holding.claim(lease_seconds=-1)
    with holding.database.write() as connection:
        attempts.renew(connection, attempt, 30)
        assert attempts.lose_expired(connection, limit=50) == 0


def test_three_failed_tries_park_a_workitem_with_the_reason(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    parked = []
    for _ in range(3):
        workitem, attempt = holding.claim()
        with holding.database.write() as connection:
            parked.append(attempts.fail(connection, workitem, attempt, "the engine was killed", tries=3))
    assert parked == [False, False, True]
    with holding.database.read() as connection:
        found = worklist.get(connection, workitem.id)
    assert (found.state, found.parked) == ("CANCELED", True)
    assert "3 tries" in found.outcome
    assert "the engine was killed" in found.outcome


def test_twenty_deaths_of_the_node_park_nothing_and_its_limit_parks(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    for number in range(21):
        workitem, _ = holding.claim(f"node-{number}:1")
        with holding.database.write() as connection:
            assert attempts.lose(connection, f"node-{number}:", limit=21, reason="the node died") == 1
            state = worklist.get(connection, workitem.id)
        assert state.parked is (number == 20)
    assert state.state == "CANCELED"


def test_losses_are_of_the_named_owner_only_and_do_not_count_as_tries(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    holding.claim("performer-1:77")
    with holding.database.write() as connection:
        assert attempts.lose(connection, "performer_1:", limit=50, reason="died") == 0
        assert attempts.lose(connection, "performer-1:", limit=50, reason="died") == 1
    workitem, attempt = holding.claim()
    with holding.database.write() as connection:
        assert attempts.fail(connection, workitem, attempt, "broke", tries=2) is False


def test_a_result_commits_whole_or_not_at_all(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    workitem, attempt = holding.claim()
    twice = holding.document(tmp_path, study)
    with pytest.raises(Exception, match=r"(?i)unique"), holding.database.write() as connection:
        attempts.complete(connection, workitem, attempt, findings={}, new_documents=[twice, twice], outcome="x")
    with holding.database.read() as connection:
        assert worklist.get(connection, workitem.id).state == "IN PROGRESS"
        assert worklist.documents(connection, workitem.id) == []
        made = connection.execute(select(func.count()).where(schema.instance.c.made_here.is_(True))).scalar_one()
    assert (made, holding.states("delivery")) == (0, [])
    with holding.database.write() as connection:
        attempts.complete(connection, workitem, attempt, findings={}, new_documents=[twice], outcome="x")
    assert holding.states("delivery") == ["PENDING"]


def test_what_the_node_made_is_findable_but_no_evidence_and_opens_nothing(holding: Holding, tmp_path: Path) -> None:
    study, *_, document = holding.finished(tmp_path)
    assert study.state == "COMPLETE"
    back = holding.receive([holding.blobs.path(document.blob)], sender="PACS")
    assert back[0].outcome is Outcome.DUPLICATE
    assert holding.again(study.study_instance_uid).state == "COMPLETE"
    with holding.database.read() as connection:
        counted = studies.evidence(connection, study.id)
    assert document.sop_instance_uid not in {one.sop_instance_uid for one in counted}
    assert len(counted) == 3


def test_a_replacement_names_the_old_workitem_is_wanted_by_the_same_routes_and_reported_again(
    holding: Holding, tmp_path: Path
) -> None:
    study, revision, old, _ = holding.finished(tmp_path)
    holding.message(study, revision)
    with holding.database.write() as connection:
        new = worklist.replace(connection, worklist.get(connection, old.id), "rerun")
        assert studies.revision(connection, revision.id).state == "ROUTED"
        assert [one.route for one in worklist.uses(connection, new.id)] == ["chest-ct"]
        assert [item.id for _, item in worklist.current_workitems(connection, revision.id)] == [new.id]
        with pytest.raises(Unknown, match="final"):
            worklist.replace(connection, new, "rerun")
        assert [worklist.read_before(connection, one) for one in (old, new)] == [False, True]
    assert (new.replaces_id, new.generation, new.state) == (old.id, 1, "SCHEDULED")
    assert holding.schedule(study, holding.judge(holding.reopened(study)), route="later").id == new.id


def test_cancelling_takes_the_running_attempt_away(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    workitem, attempt = holding.claim()
    with holding.database.write() as connection:
        worklist.cancel(connection, workitem, "an operator asked for it")
    with pytest.raises(LeaseLost):
        holding.complete(tmp_path, study, workitem, attempt)
    assert (holding.states("workitem"), holding.states("attempt")) == (["CANCELED"], ["LOST"])


def test_an_outgoing_row_waits_for_its_own_clock_parks_and_is_tried_again(holding: Holding, tmp_path: Path) -> None:
    study, revision, _, document = holding.finished(tmp_path)
    holding.message(study, revision)
    with holding.database.write() as connection:
        ((delivery, found, study_id),) = outbox.due_deliveries(connection, "pacs")
        assert (found, study_id) == (document, study.id)
        assert outbox.due_deliveries(connection, "elsewhere") == []
        outbox.postpone(connection, "delivery", delivery.id, delay_seconds=60, answer="refused", refused=False)
    with holding.database.write() as connection:
        assert outbox.due_deliveries(connection, "pacs") == []
        assert len(outbox.due_notifications(connection, "emr")) == 1, "another row's clock is its own"
        outbox.postpone(connection, "delivery", delivery.id, delay_seconds=-1, answer="again", refused=True)
    with holding.database.write() as connection:
        ((delivery, _, _),) = outbox.due_deliveries(connection, "pacs")
        assert (delivery.tries, delivery.refusals, delivery.answer) == (2, 1, "again")
        outbox.park(connection, "delivery", delivery.id, study_id=study.id, answer="given up")
        assert outbox.due_deliveries(connection, "pacs") == []
        outbox.retry(connection, "delivery", delivery.id, study_id=study.id, reason="an operator")
        ((delivery, _, _),) = outbox.due_deliveries(connection, "pacs")
        assert (delivery.tries, delivery.ended_at) == (0, None)
        outbox.succeed(connection, "delivery", delivery.id, study_id=study.id, answer="0x0000")
        with pytest.raises(IllegalTransition):
            outbox.retry(connection, "delivery", delivery.id, study_id=study.id, reason="twice")


def test_a_retry_of_a_message_sends_the_same_bytes_under_the_same_control_id(holding: Holding, tmp_path: Path) -> None:
    study, revision, *_ = holding.finished(tmp_path)
    before = holding.message(study, revision)
    with holding.database.write() as connection:
        outbox.park(connection, "notification", before.id, study_id=study.id, answer="AR")
        outbox.retry(connection, "notification", before.id, study_id=study.id, reason="an operator")
        ((after, _),) = outbox.due_notifications(connection, "emr")
    assert (after.message, after.control_id) == (before.message, before.control_id)


def test_a_study_is_due_only_after_a_full_quiet_period_and_every_start_gives_a_new_one(
    holding: Holding, tmp_path: Path
) -> None:
    study = holding.study(tmp_path)
    with holding.database.write() as connection:
        assert receiving.due_for_verdict(connection, 3600) == []
        assert [one.id for one in receiving.due_for_verdict(connection, 0)] == [study.id]
        studies.exclude(connection, study)
        assert receiving.due_for_verdict(connection, 0) == []
        studies.exclude(connection, study, excluded=False)
        assert receiving.restart_quiet_periods(connection) == 1
        assert studies.get(connection, study.id).quiet_from > study.quiet_from


def test_an_object_that_comes_again_changes_nothing_and_its_bytes_are_kept_once(
    holding: Holding, tmp_path: Path
) -> None:
    path = radiograph(tmp_path / "one", np.zeros((4, 4)))
    outcomes = [receipt.outcome for receipt in holding.receive([path, path, path])]
    assert outcomes == [Outcome.STORED, Outcome.DUPLICATE, Outcome.DUPLICATE]
    assert len(list(holding.blobs.names())) == 1


def test_other_bytes_under_a_known_uid_are_a_variant_that_opens_no_revision(holding: Holding, tmp_path: Path) -> None:
    uids = {"study_uid": generate_uid(), "series_uid": generate_uid(), "SOPInstanceUID": generate_uid()}
    first = radiograph(tmp_path / "one", np.zeros((4, 4)), **uids)
    study_uid = holding.receive([first])[0].study_instance_uid
    holding.judge(holding.again(study_uid))
    coerced = radiograph(tmp_path / "two", np.zeros((4, 4)), **uids, PatientID="COERCED")
    implicit = radiograph(tmp_path / "three", np.zeros((4, 4)), **uids, transfer_syntax="1.2.840.10008.1.2")
    assert {one.outcome for one in holding.receive([coerced, implicit])} == {Outcome.VARIANT}
    assert holding.again(study_uid).state == "COMPLETE"
    with holding.database.read() as connection:
        differences = set(connection.execute(select(schema.variant.c.difference)).scalars())
    assert differences == {"patient identity", "transfer syntax 1.2.840.10008.1.2"}


def test_the_same_uid_under_another_study_is_findable_in_both_and_flagged_in_both(
    holding: Holding, tmp_path: Path
) -> None:
    uid = generate_uid()
    paths = [radiograph(tmp_path / str(n), np.zeros((4, 4)), SOPInstanceUID=uid) for n in range(2)]
    receipts = holding.receive(paths)
    assert [one.outcome for one in receipts] == [Outcome.STORED, Outcome.CONFLICT]
    for receipt in receipts:
        study = holding.again(receipt.study_instance_uid)
        with holding.database.read() as connection:
            (instance,) = studies.evidence(connection, study.id)
            events = [one.after for one in changefeed.of_study(connection, study.id)]
        assert (instance.sop_instance_uid, instance.conflicting) == (uid, True)
        assert "CONFLICT" in events


def test_eight_threads_share_commits_and_lose_nothing(holding: Holding, tmp_path: Path) -> None:
    study_uid = generate_uid()
    groups = [ct_series(tmp_path / str(n), np.zeros((12, 4, 4)), study_uid=study_uid) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        receipts = [one for group in pool.map(holding.receive, groups) for one in group]
    assert {one.outcome for one in receipts} == {Outcome.STORED}
    with holding.database.read() as connection:
        study = studies.by_uid(connection, study_uid)
        assert len(studies.evidence(connection, study.id)) == 96
        assert len(studies.series_of(connection, study.id)) == 8
        blobs = set(connection.execute(select(schema.instance.c.blob)).scalars())
    assert blobs == set(holding.blobs.names())


def test_two_receivers_of_the_same_new_study_make_one_study(
    holding: Holding, tmp_path: Path, database: Database
) -> None:
    other_database = Database(database.url)
    other = Holding.at(holding.root, other_database)
    try:
        for number in range(5):
            study_uid = generate_uid()
            both = [ct_series(tmp_path / f"{number}{n}", np.zeros((4, 4, 4)), study_uid=study_uid) for n in range(2)]
            with ThreadPoolExecutor(2) as pool:
                receipts = list(pool.map(lambda one: one[0].receive(one[1]), zip((holding, other), both, strict=True)))
            assert {one.outcome for group in receipts for one in group} == {Outcome.STORED}
            with holding.database.read() as connection:
                assert len(studies.evidence(connection, studies.by_uid(connection, study_uid).id)) == 8
    finally:
        other.close()
        other_database.close()


def test_bytes_that_are_no_dicom_are_kept_with_the_reason(holding: Holding) -> None:
    path = holding.incoming / "letter"
    path.write_bytes(b"dear colleague" * 100)
    with pytest.raises(NotDicom, match="no DICM prefix"):
        holding.archive.receive(path, Origin(calling_ae_title="PRINTER"))
    with holding.database.read() as connection:
        row = connection.execute(select(schema.quarantine)).one()
    assert (row.size, row.calling_ae_title) == (1400, "PRINTER")
    assert holding.refused.path(row.blob).read_bytes().startswith(b"dear")


def test_overlong_and_odd_values_do_not_keep_an_object_out(holding: Holding, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(33, 126, 40_000, dtype=np.uint8).tobytes().decode()
    path = radiograph(tmp_path / "one", np.zeros((4, 4)), PatientID=noise.replace("\\", "/"), StudyDate="not a date")
    assert holding.receive([path])[0].outcome is Outcome.STORED


def test_an_overlong_transfer_syntax_uid_is_refused_as_no_dicom(holding: Holding, tmp_path: Path) -> None:
    content = bytearray(radiograph(tmp_path / "one", np.zeros((4, 4))).read_bytes())
    at = content.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    wrong = b"1." * 50
    content[at + 6 : at + 8 + length] = len(wrong).to_bytes(2, "little") + wrong
    path = holding.incoming / "wrong"
    path.write_bytes(content)
    with pytest.raises(NotDicom):
        holding.archive.receive(path, Origin(calling_ae_title="X"))


def test_start_up_adopts_orphans_and_removes_half_written_and_deleted_files(holding: Holding, tmp_path: Path) -> None:
    kept, deleted = (radiograph(tmp_path / name, np.zeros((4, 4))) for name in ("kept", "deleted"))
    receipts = holding.receive([kept, deleted])
    holding.judge(holding.again(receipts[1].study_instance_uid))
    with holding.database.write() as connection:
        row = connection.execute(
            select(schema.instance.c.blob).where(schema.instance.c.sop_instance_uid == receipts[1].sop_instance_uid)
        ).one()
        connection.execute(update(schema.revision).values(state="REPORTED"))
    bytes_of_deleted = holding.blobs.path(row.blob).read_bytes()
    delete_instance(holding.database, holding.blobs, receipts[1].sop_instance_uid, "asked for")
    assert not holding.blobs.path(row.blob).exists()
    # The crash came between tombstone and unlink; between rename and commit; within a write.
    holding.blobs.path(row.blob).write_bytes(bytes_of_deleted)
    (orphan,) = ct_series(holding.incoming, np.zeros((1, 4, 4)))
    orphan_uid = orphan.stem
    orphaned = holding.blobs.adopt(orphan)
    (holding.incoming / "half").write_bytes(b"\0" * 100)
    junk = holding.incoming / "junk"
    junk.write_bytes(b"no dicom")
    holding.blobs.adopt(junk)
    again = holding.incoming / "again"
    again.write_bytes(kept.read_bytes())
    twin = holding.blobs.adopt(again)

    found = reconcile(holding.database, holding.blobs, holding.refused, holding.incoming)

    assert (found.adopted, found.quarantined, found.removed, found.missing) == (1, 1, 3, [])
    assert list(holding.incoming.iterdir()) == []
    assert not holding.blobs.path(row.blob).exists(), "a tombstoned file does not come back"
    assert not holding.blobs.path(twin).exists()
    with holding.database.read() as connection:
        blob = connection.execute(
            select(schema.instance.c.blob).where(schema.instance.c.sop_instance_uid == orphan_uid)
        ).scalar_one()
    assert blob == orphaned
    second = reconcile(holding.database, holding.blobs, holding.refused, holding.incoming)
    assert (second.adopted, second.quarantined, second.removed) == (0, 0, 0), "a second start finds nothing to do"


def test_start_up_names_rows_whose_bytes_are_gone(holding: Holding, tmp_path: Path) -> None:
    holding.study(tmp_path, slices=1)
    (blob,) = holding.blobs.names()
    holding.blobs.delete(blob)
    found = reconcile(holding.database, holding.blobs, holding.refused, holding.incoming)
    assert found.missing == [blob]


def test_deletion_refuses_what_open_work_needs(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path, slices=1)
    with holding.database.read() as connection:
        uid = studies.evidence(connection, study.id)[0].sop_instance_uid

    def refused(uid: str, why: str) -> None:
        with pytest.raises(StillNeeded, match=why):
            delete_instance(holding.database, holding.blobs, uid, "retention")

    refused(uid, "still being received")
    revision = holding.judge(study)
    refused(uid, "revision")
    holding.schedule(study, revision)
    refused(uid, "workitem")
    workitem, attempt = holding.claim()
    document = holding.complete(tmp_path, study, workitem, attempt)[0]
    message = holding.message(study, revision)
    refused(document.sop_instance_uid, "not delivered")
    with holding.database.write() as connection:
        (delivery,) = outbox.deliveries_of(connection, document.id)
        outbox.succeed(connection, "delivery", delivery.id, study_id=study.id, answer="0x0000")
    refused(document.sop_instance_uid, "notification")
    with holding.database.write() as connection:
        outbox.succeed(connection, "notification", message.id, study_id=study.id, answer="AA")
    for one in (uid, document.sop_instance_uid):
        assert delete_instance(holding.database, holding.blobs, one, "retention") == 1
        with pytest.raises(Unknown):
            delete_instance(holding.database, holding.blobs, one, "retention")
    assert list(holding.blobs.names()) == []


def test_the_migrations_make_the_schema_that_the_code_declares(empty_url: str) -> None:
    assert schema_versions(empty_url)[0] is None
    migrate(empty_url)
    current, ours = schema_versions(empty_url)
    assert current == ours
    opened = Database(empty_url)
    try:
        with opened.engine.connect() as connection:
            # What names are searched by is made from the rows, whatever the migrations did.
            options = {
                "compare_type": True,
                "include_name": lambda name, *_: not str(name).startswith(namesearch.TABLE),
            }
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, schema.metadata) == []
    finally:
        opened.close()


def test_migrating_twice_changes_nothing(holding: Holding, tmp_path: Path) -> None:
    holding.finished(tmp_path)
    database = holding.database
    with database.read() as connection:
        before = changefeed.since(connection, 0)
    migrate(database.url)
    with database.read() as connection:
        assert changefeed.since(connection, 0) == before


def test_a_database_of_a_newer_version_is_refused_and_left_alone(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="9999"):
        migrate(database.url)
    assert schema_versions(database.url)[0] == "9999"


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            connection.execute(insert(schema.pause).values(kind="route", name="x", since=now(connection)))
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.pause)).scalar_one() == 0


def test_an_object_whose_kept_bytes_are_gone_takes_their_place_when_it_comes_again(
    holding: Holding, tmp_path: Path
) -> None:
    path = radiograph(tmp_path / "one", np.zeros((4, 4)))
    (first,) = holding.receive([path])
    (gone,) = holding.blobs.names()
    holding.blobs.delete(gone)
    (again,) = holding.receive([path])
    assert again.outcome is Outcome.RESTORED
    with holding.database.read() as connection:
        study = studies.by_uid(connection, first.study_instance_uid)
        (instance,) = studies.evidence(connection, study.id)
        assert changefeed.of_study(connection, study.id)[-1].after == "RESTORED"
    assert holding.blobs.path(instance.blob).read_bytes() == path.read_bytes()
    assert reconcile(holding.database, holding.blobs, holding.refused, holding.incoming).missing == []
    assert holding.receive([path])[0].outcome is Outcome.DUPLICATE


def test_a_variant_whose_kept_bytes_are_gone_takes_their_place_too(holding: Holding, tmp_path: Path) -> None:
    uids = {"study_uid": generate_uid(), "series_uid": generate_uid(), "SOPInstanceUID": generate_uid()}
    first = radiograph(tmp_path / "one", np.zeros((4, 4)), **uids)
    other = radiograph(tmp_path / "two", np.zeros((4, 4)), **uids, PatientID="COERCED")
    holding.receive([first])
    before = set(holding.blobs.names())
    holding.receive([other])
    (gone,) = set(holding.blobs.names()) - before
    holding.blobs.delete(gone)
    assert holding.receive([other])[0].outcome is Outcome.RESTORED
    assert reconcile(holding.database, holding.blobs, holding.refused, holding.incoming).missing == []


def test_start_up_gives_an_orphan_to_the_row_whose_bytes_are_gone(holding: Holding, tmp_path: Path) -> None:
    path = radiograph(tmp_path / "one", np.zeros((4, 4)))
    holding.receive([path])
    (gone,) = holding.blobs.names()
    holding.blobs.delete(gone)
    orphan = holding.incoming / "orphan"
    orphan.write_bytes(path.read_bytes())
    holding.blobs.adopt(orphan)
    found = reconcile(holding.database, holding.blobs, holding.refused, holding.incoming)
    assert (found.adopted, found.missing) == (1, [])


def test_bytes_stay_when_nobody_heard_how_their_commit_ended(holding: Holding, tmp_path: Path) -> None:
    path = radiograph(tmp_path / "one", np.zeros((4, 4)))

    def lose_the_answer(connection: Any) -> None:
        # The connection breaks just after the database has committed.
        connection.connection.driver_connection.commit()
        raise ConnectionResetError

    event.listen(holding.database.engine, "commit", lose_the_answer)
    with pytest.raises(ConnectionResetError):
        holding.receive([path])
    event.remove(holding.database.engine, "commit", lose_the_answer)
    assert holding.receive([path])[0].outcome is Outcome.DUPLICATE
    found = reconcile(holding.database, holding.blobs, holding.refused, holding.incoming)
    assert (found.missing, found.adopted, found.removed) == ([], 0, 0)
    (blob,) = holding.blobs.names()
    assert holding.blobs.path(blob).read_bytes() == path.read_bytes()


def test_bytes_stay_when_a_shared_commit_was_not_heard_of_and_the_database_then_goes_away(
    holding: Holding, tmp_path: Path, database: Database
) -> None:
    study = holding.study(tmp_path)
    files = ct_series(tmp_path / "more", np.zeros((3, 4, 4)), study_uid=study.study_instance_uid)
    commits = 0

    def lose_the_second_answer(connection: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == 2:
            connection.connection.driver_connection.commit()
            raise ConnectionResetError

    def be_away(_connection: Any) -> None:
        if commits >= 2:
            raise ConnectionRefusedError

    engine = holding.database.engine
    holder = Database(database.url)
    event.listen(engine, "commit", lose_the_second_answer)
    event.listen(engine, "begin", be_away)
    with ThreadPoolExecutor(3) as pool:
        with holder.write() as connection:
            studies.lock(connection, study.id)
            sent = [pool.submit(holding.receive, files[:1])]
            # The first waits for its transaction; the others share the next.
            wait_until(lambda: holding.archive._is_led and not holding.archive._entries, 20, "one")
            sent += [pool.submit(holding.receive, [one]) for one in files[1:]]
            wait_until(lambda: len(holding.archive._entries) == 2, 20, "two that wait")
        answers = [one.exception(30) for one in sent]
    event.remove(engine, "commit", lose_the_second_answer)
    event.remove(engine, "begin", be_away)
    holder.close()
    assert [type(one) for one in answers] == [type(None), ConnectionRefusedError, ConnectionRefusedError]
    assert reconcile(holding.database, holding.blobs, holding.refused, holding.incoming).missing == []
    assert [one.outcome for one in holding.receive(files)] == [Outcome.DUPLICATE] * 3


class _Stuck(FileBlobs):
    """A folder that has become read-only: nothing can be removed from it."""

    def delete(self, name: str) -> None:
        raise PermissionError(name)


def test_whoever_waits_for_a_commit_that_fails_learns_of_it_even_if_nothing_can_be_cleared_away(
    holding: Holding, tmp_path: Path
) -> None:
    archive = Archive(holding.database, _Stuck(holding.root / "blobs"), holding.refused)
    with holding.database.write() as connection:
        connection.execute(text("DROP TABLE change"))
    answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def offer() -> None:
        copy = holding.incoming / generate_uid()
        copy.write_bytes(radiograph(tmp_path / "one", np.zeros((4, 4))).read_bytes())
        try:
            archive.receive(copy, Origin(calling_ae_title="X"))
        except (OSError, DatabaseError) as error:
            answers.put(error)

    for _ in range(2):
        threading.Thread(target=offer, daemon=True).start()
        assert isinstance(answers.get(timeout=20), PermissionError)
    archive.close()


def test_an_archive_that_has_ended_refuses_at_once_and_keeps_nothing(holding: Holding, tmp_path: Path) -> None:
    archive = Archive(holding.database, holding.blobs, holding.refused)
    archive.close()
    copy = holding.incoming / "copy"
    copy.write_bytes(radiograph(tmp_path / "one", np.zeros((4, 4))).read_bytes())
    with ThreadPoolExecutor(1) as pool, pytest.raises(StorageError, match="restart"):
        pool.submit(archive.receive, copy, Origin(calling_ae_title="X")).result(20)
    assert list(holding.blobs.names()) == []


def test_our_own_document_is_no_evidence_under_another_study_even_without_its_marks(
    holding: Holding, tmp_path: Path
) -> None:
    *_, document = holding.finished(tmp_path)
    stripped = pydicom.dcmread(holding.blobs.path(document.blob))
    assert "ContributingEquipmentSequence" not in stripped
    stripped.StudyInstanceUID = generate_uid()
    stripped.save_as(tmp_path / "stripped.dcm")
    (receipt,) = holding.receive([tmp_path / "stripped.dcm"], sender="PACS")
    assert (receipt.outcome, receipt.made_here) == (Outcome.CONFLICT, True)
    other = holding.again(receipt.study_instance_uid)
    assert other.state == "COMPLETE", "it is not waited for"
    with holding.database.read() as connection:
        assert studies.evidence(connection, other.id) == []


def test_more_watches_than_a_pool_keeps_and_still_a_transaction_at_once(database: Database) -> None:
    watches = [Watch(database) for _ in range(60)]
    try:
        with database.read() as connection:
            assert connection.execute(select(func.count()).select_from(schema.study)).scalar_one() == 0
    finally:
        for watch in watches:
            watch.close()


def test_nothing_comes_into_a_study_while_it_is_judged(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    more = ct_series(tmp_path / "more", np.zeros((1, 4, 4)), study_uid=study.study_instance_uid)
    stored = threading.Event()

    def send() -> None:
        holding.receive(more)
        stored.set()

    sender = threading.Thread(target=send)
    with holding.database.write() as connection:
        studies.lock(connection, study.id)
        locked = studies.get(connection, study.id)
        sender.start()
        assert not stored.wait(0.5)
        evidence = studies.evidence(connection, study.id)
        studies.open_revision(connection, locked, last_instance_id=evidence[-1].id, verdict={}, reason="quiet")
    sender.join(30)
    assert stored.is_set()
    assert holding.again(study.study_instance_uid).state == "RECEIVING", "what came meanwhile is judged next"


@pytest.mark.parametrize(("kind", "state"), [("delivery", "DELIVERED"), ("notification", "ACKNOWLEDGED")])
def test_what_arrived_although_it_was_parked_on_its_way_has_arrived(
    holding: Holding, tmp_path: Path, kind: outbox.Kind, state: str
) -> None:
    study, revision, *_ = holding.finished(tmp_path)
    message = holding.message(study, revision)
    object_id = 1 if kind == "delivery" else message.id
    with holding.database.write() as connection:
        outbox.park(connection, kind, object_id, study_id=study.id, answer="cancelled by operator")
        outbox.succeed(connection, kind, object_id, study_id=study.id, answer="done")
    assert holding.states(kind) == [state]


def test_each_failed_try_stands_in_the_story_with_its_answer(holding: Holding, tmp_path: Path) -> None:
    study, revision, *_ = holding.finished(tmp_path)
    message = holding.message(study, revision)
    kinds: list[tuple[outbox.Kind, int]] = [("delivery", 1), ("notification", message.id)]
    with holding.database.write() as connection:
        for kind, object_id in kinds:
            for answer in ("no answer", "0xA700"):
                outbox.postpone(connection, kind, object_id, delay_seconds=5, answer=answer, refused=False)
        tried = [one for one in changefeed.of_study(connection, study.id) if one.after == "TRIED"]
    assert [(one.kind, one.reason) for one in tried] == [
        ("delivery", "no answer"),
        ("delivery", "0xA700"),
        ("notification", "no answer"),
        ("notification", "0xA700"),
    ]


def test_parking_a_workitem_and_replacing_it_stand_in_the_change_feed(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    workitem = holding.schedule(study, holding.judge(study))
    with holding.database.write() as connection:
        worklist.cancel(connection, workitem, "restored")
        worklist.set_parked(connection, workitem, True, "restored")
        assert worklist.get(connection, workitem.id).parked
        worklist.replace(connection, worklist.get(connection, workitem.id), "retry")
        assert not worklist.get(connection, workitem.id).parked
        moves = [
            (one.after, one.reason)
            for one in changefeed.of_study(connection, study.id)
            if (one.kind, one.object_id) == ("workitem", workitem.id)
        ]
    assert moves[-2:] == [("PARKED", "restored"), ("UNPARKED", "retry")]


def test_an_exclusion_counts_as_news_until_the_next_verdict(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.judge(study)

    def changed() -> bool:
        with holding.database.read() as connection:
            return studies.get(connection, study.id).evidence_changed

    assert not changed()
    with holding.database.write() as connection:
        uid = studies.evidence(connection, study.id)[0].sop_instance_uid
        studies.exclude(connection, study, sop_instance_uid=uid)
    assert changed()
    with holding.database.write() as connection:
        connection.execute(delete(schema.change))
    assert changed(), "the change feed tells the story and holds no state"
    holding.judge(holding.reopened(study))
    assert not changed()


def test_revisions_can_be_paged_through(holding: Holding, tmp_path: Path) -> None:
    made = [holding.judge(holding.study(tmp_path, slices=1)).id for _ in range(3)]
    with holding.database.read() as connection:
        first = studies.revisions_in(connection, "OPEN", limit=2)
        rest = studies.revisions_in(connection, "OPEN", limit=2, after=first[-1].id)
    assert [one.id for one in (*first, *rest)] == made
