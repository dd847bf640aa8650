"""Operators see what waits or is parked and act on it; asking twice does it once, and the feed says who asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from node.errors import NotConfigured
from node.ops.health import Readiness
from node.settings import Settings
from node.workflow import control
from storage import attempts, changefeed, lifecycle, outbox, schema, studies, worklist
from storage import control as holds
from storage.errors import Unknown
from storage.records import Notification
from storage.space import Room
from tests.dicom_factory import ct_series
from tests.work import Holding

SETTINGS = Settings(
    destinations={"pacs": {"kind": "folder", "path": "out"}},  # type: ignore[dict-item]
    routes=[{"name": "chest-ct", "match": {"Modality": "CT"}, "models": ["lung-ct"], "deliver": ["pacs"]}],  # type: ignore[arg-type]
)


def park(holding: Holding, kind: outbox.Kind, object_id: int, study_id: int, answer: str = "0xA700") -> None:
    with holding.database.write() as connection:
        outbox.park(connection, kind, object_id, study_id=study_id, answer=answer)


def reasons(holding: Holding, study_id: int) -> str:
    with holding.database.read() as connection:
        return "\n".join(one.reason for one in changefeed.of_study(connection, study_id))


def parked_workitem(holding: Holding, folder: Path) -> tuple[str, int]:
    study = holding.study(folder)
    holding.schedule(study, holding.judge(study))
    workitem, attempt = holding.claim()
    with holding.database.write() as connection:
        attempts.fail(connection, workitem, attempt, "the engine was killed", tries=1)
    return study.study_instance_uid, workitem.id


def test_status_of_an_empty_node_has_nothing_to_do(embedded: Holding) -> None:
    with embedded.database.read() as connection:
        status = control.status(connection)
    assert (status.waiting, status.parked, status.refused_in_all) == ([], [], 0)


def test_status_lists_what_waits_and_what_is_parked_with_what_to_do(holding: Holding, tmp_path: Path) -> None:
    uid, workitem_id = parked_workitem(holding, tmp_path)
    study, revision, _, document = holding.finished(tmp_path)
    message = holding.message(study, revision)
    with holding.database.read() as connection:
        (delivery,) = outbox.deliveries_of(connection, document.id)
    park(holding, "delivery", delivery.id, study.id)
    with holding.database.read() as connection:
        status = control.status(connection)
    parked = {one.target: one for one in status.parked}
    assert set(parked) == {f"workitem:{workitem_id}", f"delivery:{delivery.id}"}
    assert parked[f"workitem:{workitem_id}"].study_instance_uid == uid
    assert "the engine was killed" in parked[f"workitem:{workitem_id}"].reason
    assert "0xA700" in parked[f"delivery:{delivery.id}"].reason
    assert parked[f"delivery:{delivery.id}"].todo.endswith(f"overread retry delivery:{delivery.id}")
    assert [one.target for one in status.waiting] == [f"notification:{message.id}"]
    assert status.counts["workitem"] == {"CANCELED": 1, "COMPLETED": 1}


def test_what_waits_for_something_paused_says_so(holding: Holding, tmp_path: Path) -> None:
    holding.finished(tmp_path)
    with holding.database.write() as connection:
        holds.pause(connection, "destination", "pacs")
        (item,) = control.status(connection).waiting
    assert (item.reason, item.todo) == ("destination pacs is paused", "overread resume destination pacs")


def test_retry_replaces_a_parked_workitem_once_however_often_it_is_asked(holding: Holding, tmp_path: Path) -> None:
    uid, workitem_id = parked_workitem(holding, tmp_path)
    first = control.retry(holding.database, f"workitem:{workitem_id}", by="ann")
    again = control.retry(holding.database, f"workitem:{workitem_id}", by="ann")
    of_study = control.retry(holding.database, uid, by="ann")
    assert first.changed == [f"workitem:{workitem_id}: replaced by workitem:{workitem_id + 1}"]
    assert (again.changed, of_study.changed) == ([], [])
    assert holding.states("workitem") == ["CANCELED", "SCHEDULED"]
    with holding.database.read() as connection:
        assert worklist.get(connection, workitem_id + 1).replaces_id == workitem_id
    assert "retry asked for by ann" in reasons(holding, holding.again(uid).id)


def test_retry_of_a_delivery_sends_the_stored_document_and_has_the_study_reported_again(
    holding: Holding, tmp_path: Path
) -> None:
    study, revision, workitem, document = holding.finished(tmp_path)
    with holding.database.read() as connection:
        (delivery,) = outbox.deliveries_of(connection, document.id)
    park(holding, "delivery", delivery.id, study.id)
    holding.message(study, revision)
    done = control.retry(holding.database, f"delivery:{delivery.id}", by="ann")
    assert done.changed == [f"delivery:{delivery.id}: PARKED -> PENDING"]
    assert control.retry(holding.database, f"delivery:{delivery.id}", by="ann").changed == []
    with holding.database.read() as connection:
        assert studies.revision(connection, revision.id).state == "ROUTED"
        assert worklist.documents(connection, workitem.id) == [document], "no document is made anew"


def test_retry_of_a_study_takes_up_everything_of_it_that_is_parked(holding: Holding, tmp_path: Path) -> None:
    study, revision, _, document = holding.finished(tmp_path)
    message = holding.message(study, revision)
    with holding.database.write() as connection:
        (delivery,) = outbox.deliveries_of(connection, document.id)
        studies.reopen(connection, study, "for the test")
        lifecycle.transition(connection, "study", study.id, "PARKED", study_id=study.id, reason="two patients")
    park(holding, "delivery", delivery.id, study.id)
    park(holding, "notification", message.id, study.id)
    done = control.retry(holding.database, study.study_instance_uid, by="ann")
    assert len(done.changed) == 3
    assert holding.again(study.study_instance_uid).state == "RECEIVING"
    assert (holding.states("delivery"), holding.states("notification")) == (["PENDING"], ["PENDING"])


def test_an_older_message_does_not_follow_a_later_one(holding: Holding, tmp_path: Path) -> None:
    study, revision, *_ = holding.finished(tmp_path)

    def parked(says: bytes) -> Notification:
        made = holding.message(study, revision, says)
        park(holding, "notification", made.id, study.id, "AR")
        return made

    older, later = parked(b"one"), parked(b"two")
    with holding.database.read() as connection:
        assert [one.target for one in control.status(connection).parked] == [f"notification:{later.id}"]
    done = control.retry(holding.database, study.study_instance_uid, by="ann")
    assert done.changed == [f"notification:{later.id}: PARKED -> PENDING"]
    assert older.id != later.id


def test_cancel_stops_what_is_open_and_can_be_asked_twice(holding: Holding, tmp_path: Path) -> None:
    study, _, _, _ = holding.finished(tmp_path)
    other = holding.study(tmp_path)
    holding.schedule(other, holding.judge(other))
    holding.claim()
    assert control.cancel(holding.database, other.study_instance_uid, by="ann").changed == [
        "workitem:2: IN PROGRESS -> CANCELED"
    ]
    assert control.cancel(holding.database, study.study_instance_uid, by="ann").changed == [
        "delivery:1: PENDING -> PARKED"
    ]
    for one in (study, other):
        assert control.cancel(holding.database, one.study_instance_uid, by="ann").changed == []
    assert holding.states("attempt") == ["SUCCEEDED", "LOST"]
    assert "cancelled by operator ann" in reasons(holding, other.id)


def test_status_and_health_say_why_a_workitem_is_given_back_again_and_again(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    holding.schedule(study, holding.judge(study))
    readiness = Readiness(holding.database, tmp_path, Room(()))
    for tries in range(1, 4):
        workitem, attempt = holding.claim()
        with holding.database.write() as connection:
            attempts.release(connection, workitem, attempt, "the model's server does not answer")
            [waiting] = control.status(connection).waiting
        assert waiting.reason == "waits: the model's server does not answer"
        told = {"models": "lung-ct waits with 1: the model's server does not answer"} if tries == 3 else {}
        assert readiness.warnings() == told
    study = holding.again(study.study_instance_uid)
    workitem, attempt = holding.claim()
    holding.complete(tmp_path, study, workitem, attempt)
    assert readiness.warnings() == {}


def test_a_parked_workitem_waits_no_longer_once_the_same_series_were_read_after_it(
    holding: Holding, tmp_path: Path
) -> None:
    uid, first = parked_workitem(holding, tmp_path)
    with holding.database.read() as connection:
        assert f"overread rerun {uid}" in control.status(connection).parked[0].todo
    study = holding.reopened(holding.again(uid))
    holding.schedule(study, holding.judge(study), inputs="with one image more")
    workitem, attempt = holding.claim()
    holding.complete(tmp_path, study, workitem, attempt)
    with holding.database.read() as connection:
        assert control.status(connection).parked == []
        assert worklist.get(connection, first).state == "CANCELED"
    assert f"workitem {workitem.uid} of lung-ct 1.0 has read the same series" in reasons(holding, study.id)


def test_an_operator_may_leave_a_parked_workitem_as_it_is(holding: Holding, tmp_path: Path) -> None:
    _, first = parked_workitem(holding, tmp_path)
    done = control.cancel(holding.database, f"workitem:{first}", by="ann")
    assert done.changed == [f"workitem:{first}: left CANCELED, and waits for nobody any more"]
    with holding.database.read() as connection:
        assert control.status(connection).parked == []
    assert control.cancel(holding.database, f"workitem:{first}", by="ann").changed == []


def test_a_cancelled_workitem_can_be_asked_for_again(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    workitem = holding.schedule(study, holding.judge(study))
    control.cancel(holding.database, workitem.uid, by="ann")
    assert len(control.retry(holding.database, workitem.uid, by="ann").changed) == 1


def test_rerun_opens_a_revision_by_the_operators_word_and_asking_twice_opens_one(
    holding: Holding, tmp_path: Path
) -> None:
    study, revision, *_ = holding.finished(tmp_path)
    holding.message(study, revision)
    assert control.rerun(holding.database, study.study_instance_uid, by="ann").changed == [
        f"study:{study.id}: revision 2 is routed anew"
    ]
    assert control.rerun(holding.database, study.study_instance_uid, by="ann").changed == []
    assert holding.states("revision")[-1] == "OPEN"
    assert holding.states("study") == ["COMPLETE"]
    assert "rerun asked for by ann" in str(reasons(holding, study.id))


def test_rerun_of_one_workitem_replaces_it_and_its_documents_go_where_the_old_ones_went(
    holding: Holding, tmp_path: Path
) -> None:
    study, revision, *_ = holding.finished(tmp_path)
    holding.message(study, revision)
    with holding.database.read() as connection:
        (uid,) = connection.execute(select(schema.workitem.c.uid)).scalars()
    assert len(control.rerun(holding.database, uid, by="ann").changed) == 1
    assert holding.states("workitem") == ["COMPLETED", "SCHEDULED"]
    workitem, attempt = holding.claim()
    holding.complete(tmp_path, study, workitem, attempt)
    assert holding.states("delivery") == ["PENDING", "PENDING"]


def test_a_study_that_was_not_judged_has_nothing_to_rerun(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    assert control.rerun(holding.database, study.study_instance_uid, by="ann").changed == []


def test_excluding_a_series_has_a_complete_study_judged_anew_without_it(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    extra = ct_series(tmp_path / "extra", np.zeros((2, 4, 4)), study_uid=study.study_instance_uid)
    holding.receive(extra)
    holding.judge(study)
    with holding.database.read() as connection:
        series = studies.series_of(connection, study.id)[1].series_instance_uid
    for _ in range(2):
        control.exclude(holding.database, study.study_instance_uid, by="ann", series_instance_uid=series)
    assert holding.again(study.study_instance_uid).state == "RECEIVING"
    with holding.database.read() as connection:
        assert len(studies.evidence(connection, study.id)) == 3
        said = [one for one in changefeed.of_study(connection, study.id) if one.after == "EXCLUDED"]
    assert [one.reason for one in said] == [f"{series}, by ann"], "asked twice, said once"
    control.exclude(holding.database, study.study_instance_uid, by="ann", series_instance_uid=series, undo=True)
    with holding.database.read() as connection:
        assert len(studies.evidence(connection, study.id)) == 5


def test_excluding_part_of_a_parked_study_leaves_it_parked_and_names_the_next_step(
    holding: Holding, tmp_path: Path
) -> None:
    study = holding.study(tmp_path)
    with holding.database.write() as connection:
        lifecycle.transition(connection, "study", study.id, "PARKED", study_id=study.id, reason="two patients")
        instance = studies.evidence(connection, study.id)[0].sop_instance_uid
    done = control.exclude(holding.database, study.study_instance_uid, by="ann", sop_instance_uid=instance)
    assert done.hint == f"overread retry {study.study_instance_uid}"
    assert holding.again(study.study_instance_uid).state == "PARKED"


def test_excluding_what_is_not_there_is_an_error_and_leaves_no_trace(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    with pytest.raises(Unknown):
        control.exclude(holding.database, study.study_instance_uid, by="ann", series_instance_uid="1.2.3")
    assert "1.2.3, by ann" not in reasons(holding, study.id)


@pytest.mark.parametrize(
    "target",
    ["delivery:77", "deliveries:1", "delivery:x", "1.2.3.4", "", f"delivery:{'9' * 20}", f"workitem:{'9' * 5000}"],
)
def test_a_target_that_is_not_there_is_named_in_the_error(embedded: Holding, target: str) -> None:
    for act in (control.retry, control.cancel):
        with pytest.raises(Unknown):
            act(embedded.database, target, by="ann")


def test_pause_and_resume_are_of_what_is_configured_and_can_be_asked_twice(holding: Holding) -> None:
    for kind, name in (("destination", "pacs"), ("route", "chest-ct"), ("model", "lung-ct")):
        assert control.pause(holding.database, SETTINGS, kind, name, by="ann").changed
        assert not control.pause(holding.database, SETTINGS, kind, name, by="ann").changed
    with holding.database.read() as connection:
        assert {one.kind for one in holds.pauses(connection)} == {"destination", "route", "model"}
    assert control.resume(holding.database, SETTINGS, "model", "lung-ct", by="ann").changed
    assert not control.resume(holding.database, SETTINGS, "model", "lung-ct", by="ann").changed
    with holding.database.read() as connection:
        said = [one.reason for one in changefeed.since(connection, 0) if one.kind == "pause"]
    assert said[0] == "destination pacs, by ann"
    for kind, name, named in (
        ("destination", "nowhere", "pacs"),
        ("planet", "mars", "route"),
        ("notifier", "x", "none"),
    ):
        for act in (control.pause, control.resume):
            with pytest.raises(NotConfigured, match=named):
                act(holding.database, SETTINGS, kind, name, by="ann")


def test_what_was_paused_and_is_no_longer_configured_can_be_resumed(holding: Holding) -> None:
    with holding.database.write() as connection:
        holds.pause(connection, "destination", "gone")
    assert control.resume(holding.database, SETTINGS, "destination", "gone", by="ann").changed
