"""A study's story is told from its rows: whole, with reasons, and without anything of the patient."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from rich.console import Console

from inference.card import load_card
from inference.findings import Code, Findings, HeatMap
from node.cli.terminal import show_status, show_story
from node.settings import Route
from node.workflow import control, heatmaps, routing, story
from storage import attempts, lifecycle, outbox, studies
from storage.errors import Unknown
from tests.dicom_factory import ct_series
from tests.work import Holding


def told(holding: Holding, study_instance_uid: str) -> story.Story:
    with holding.database.read() as connection:
        return story.tell(connection, study_instance_uid)


def shown(one: story.Story) -> str:
    out = io.StringIO()
    show_story(Console(file=out, width=300), one, events=True)
    return out.getvalue()


def test_a_study_that_never_came_is_unknown(embedded: Holding) -> None:
    with pytest.raises(Unknown, match=r"1\.2\.3"):
        told(embedded, "1.2.3")


def test_the_story_of_a_finished_study_is_whole(holding: Holding, tmp_path: Path) -> None:
    study, revision, workitem, document = holding.finished(tmp_path)
    message = holding.message(study, revision)
    with holding.database.write() as connection:
        (delivery,) = outbox.deliveries_of(connection, document.id)
        outbox.postpone(connection, "delivery", delivery.id, delay_seconds=0, answer="no answer", refused=False)
        outbox.succeed(connection, "delivery", delivery.id, study_id=study.id, answer="0x0000")
        outbox.succeed(connection, "notification", message.id, study_id=study.id, answer="AA")
    one = told(holding, study.study_instance_uid)
    assert one.summary == "complete: 1 workitem completed, 1 document delivered, 1 message acknowledged"
    assert (one.received.instances, one.received.made_here) == (3, 1)
    assert one.received.calling_ae_titles == ["CT1"]
    assert one.received.first_at <= one.received.last_at
    (judged,) = one.revisions
    assert (judged.number, judged.state, judged.instances) == (1, "REPORTED", 3)
    assert judged.verdict["quiet_seconds"] == 60
    assert judged.decisions[0].reasons == ["Modality is CT (CT)"]
    assert (judged.notifications[0].control_id, judged.notifications[0].answer) == (message.control_id, "AA")
    (item,) = one.workitems
    assert (item.uid, item.state, item.outcome) == (workitem.uid, "COMPLETED", "left lung 2000 mL")
    assert (item.uses[0].route, item.uses[0].reason) == ("chest-ct", "thinnest of 1 series")
    assert [(a.number, a.state) for a in item.attempts] == [(1, "SUCCEEDED")]
    assert item.attempts[0].ended_at is not None
    (sent,) = item.documents[0].deliveries
    assert (sent.destination, sent.state, sent.tries, sent.answer, sent.next_at) == (
        "pacs",
        "DELIVERED",
        2,
        "0x0000",
        None,
    )
    assert not any(event.after == "STORED" for event in one.events), "storing is summed up, not listed"


def test_a_story_lists_its_heat_maps_for_people_and_for_programs(embedded: Holding, tmp_path: Path) -> None:
    study, _, workitem, _ = embedded.finished(tmp_path)
    finding = HeatMap(
        name="nodule",
        code=Code(value="27925004", scheme="SCT", meaning="Nodule"),
        image="1.2.3",
        values=np.zeros((2, 2), np.uint8),
    )
    folder = tmp_path / "maps"
    heatmaps.keep(folder, workitem.uid, Findings(images=("1.2.3",), heat_maps=(finding,)))
    file = folder / f"{workitem.uid}.npz"
    with embedded.database.read() as connection:
        assert story.tell(connection, study.study_instance_uid, tmp_path / "none").workitems[0].heat_maps is None
        one = story.tell(connection, study.study_instance_uid, folder)
        file.write_bytes(b"damaged")
        damaged = story.tell(connection, study.study_instance_uid, folder)
    assert f"heat maps of nodule: {file}" in shown(one)
    told = json.loads(TypeAdapter(story.Story).dump_json(one))["workitems"][0]["heat_maps"]
    code = {"value": "27925004", "scheme": "SCT", "meaning": "Nodule"}
    assert told == {"file": str(file), "maps": [{"array": "map_0", "name": "nodule", "code": code, "image": "1.2.3"}]}
    assert damaged.workitems[0].heat_maps == story.HeatMapsTold(file=str(file), maps=[])


def test_a_story_is_json_and_back(holding: Holding, tmp_path: Path) -> None:
    study, *_ = holding.finished(tmp_path)
    one = told(holding, study.study_instance_uid)
    adapter = TypeAdapter(story.Story)
    assert adapter.validate_json(adapter.dump_json(one)) == one


def test_nothing_of_the_patient_is_told(holding: Holding, tmp_path: Path) -> None:
    uid = "1.2.826.0.1.99"
    holding.receive(
        ct_series(
            tmp_path / "secret",
            np.zeros((1, 4, 4)),
            study_uid=uid,
            PatientName="Geheim^Anna",
            PatientID="MRN-ZX47Q",
            PatientBirthDate="19530304",
            AccessionNumber="ACC-ZX48Q",
            SeriesDescription="Anna Geheim seated",
        )
    )
    study = holding.again(uid)
    holding.schedule(study, holding.judge(study))
    one = told(holding, uid)
    with holding.database.read() as connection:
        status = control.status(connection)
    out = io.StringIO()
    show_status(Console(file=out, width=300), status)
    everything = shown(one) + out.getvalue() + TypeAdapter(story.Story).dump_json(one).decode() + repr(status)
    for secret in ("Geheim", "Anna", "ZX47Q", "ZX48Q", "19530304"):
        assert secret not in everything


def test_variants_conflicts_and_exclusions_are_counted(holding: Holding, tmp_path: Path) -> None:
    uid = "1.2.826.0.1.98"
    (first,) = ct_series(tmp_path / "a", np.zeros((1, 4, 4)), study_uid=uid)
    sop = first.stem
    holding.receive([first])
    study = holding.again(uid)
    with holding.database.read() as connection:
        series = studies.series_of(connection, study.id)[0].series_instance_uid
    same = {"study_uid": uid, "series_uid": series, "SOPInstanceUID": sop}
    holding.receive(ct_series(tmp_path / "b", np.ones((1, 4, 4)), **same), sender="CT2")
    holding.receive(ct_series(tmp_path / "c", np.ones((1, 4, 4)), study_uid="1.2.826.0.1.97", SOPInstanceUID=sop))
    control.exclude(holding.database, uid, by="ann", sop_instance_uid=sop)
    received = told(holding, uid).received
    assert (received.variants, received.conflicting, received.excluded) == (1, 1, 1)
    assert received.calling_ae_titles == ["CT1", "CT2"]


def test_the_summary_says_where_a_study_stands(holding: Holding, tmp_path: Path) -> None:
    study = holding.study(tmp_path)
    uid = study.study_instance_uid
    assert told(holding, uid).summary.startswith("being received")
    revision = holding.judge(study)
    assert told(holding, uid).summary == "complete: about to be routed"
    with holding.database.write() as connection:
        studies.record_decision(
            connection,
            revision,
            route="mr",
            model="m",
            matched=False,
            reasons=["Modality is not MR (CT)"],
            not_analysed=None,
            deliver=[],
            notify=[],
        )
    assert told(holding, uid).summary == "complete: no route matched, so nothing ran"
    holding.schedule(study, revision)
    assert told(holding, uid).summary == "complete: 1 workitem open"
    workitem, attempt = holding.claim()
    with holding.database.write() as connection:
        attempts.fail(connection, workitem, attempt, "the engine was killed", tries=1)
    assert told(holding, uid).summary == "complete: 1 workitem parked"
    control.retry(holding.database, uid, by="ann")
    one = told(holding, uid)
    assert [(item.replaces, item.replaced_by) for item in one.workitems] == [
        (None, one.workitems[1].uid),
        (one.workitems[0].uid, None),
    ]
    with holding.database.write() as connection:
        studies.reopen(connection, holding.again(uid), "asked for")
        lifecycle.transition(connection, "study", study.id, "PARKED", study_id=study.id, reason="two patients")
    assert told(holding, uid).summary == "parked: two patients"
    control.exclude(holding.database, uid, by="ann")
    assert told(holding, uid).summary.startswith("excluded")


def test_a_route_that_matched_a_demonstration_that_is_off_is_not_called_unmatched(
    embedded: Holding, tmp_path: Path
) -> None:
    study = embedded.study(tmp_path)
    revision = embedded.judge(study)
    card = load_card(Path("conf/models/chest-radiograph-demo"))
    with embedded.database.write() as connection:
        series = studies.series_of(connection, study.id)
        candidates = routing.candidates_of(study, series, studies.evidence(connection, study.id))
        route = Route(name="chest-radiograph", match={"Modality": "CT"}, models=(card.name,))
        decision = routing.weigh(candidates, route, card, demonstrations=False)
        studies.record_decision(
            connection,
            revision,
            route=route.name,
            model=card.name,
            matched=decision.matched,
            reasons=decision.reasons,
            not_analysed=None,
            deliver=[],
            notify=[],
        )
    one = told(embedded, study.study_instance_uid)
    assert one.summary == (
        "complete: a route matched, but chest-radiograph-demo is a demonstration and switched off, so nothing ran"
    )
    assert "model chest-radiograph-demo: matched, and switched off" in shown(one)


def test_each_try_is_told_with_its_time_and_outcome(embedded: Holding, tmp_path: Path) -> None:
    study, revision, _, document = embedded.finished(tmp_path)
    message = embedded.message(study, revision)
    with embedded.database.write() as connection:
        (delivery,) = outbox.deliveries_of(connection, document.id)
        for answer, refused in (("no answer from PACS", False), ("0xA700 out of resources", True)):
            outbox.postpone(connection, "delivery", delivery.id, delay_seconds=9, answer=answer, refused=refused)
        outbox.park(connection, "delivery", delivery.id, study_id=study.id, answer="0xA900 mismatch")
        outbox.succeed(connection, "notification", message.id, study_id=study.id, answer="AA")
    control.retry(embedded.database, f"delivery:{delivery.id}", by="ann")
    one = told(embedded, study.study_instance_uid)
    history = one.workitems[0].documents[0].deliveries[0].history
    assert [(each.outcome, each.answer) for each in history] == [
        ("failed", "no answer from PACS"),
        ("refused", "0xA700 out of resources"),
        ("parked", "0xA900 mismatch"),
        ("asked for again", "retry asked for by ann"),
    ]
    assert [each.at for each in history] == sorted(each.at for each in history)
    tree = shown(one)
    assert "refused: 0xA700 out of resources" in tree
    assert f"notification:{message.id} to emr" in tree
    assert "acknowledged: AA" not in tree.lower(), "one try that worked needs no list"


def test_a_rerun_a_parked_revision_and_a_released_attempt_are_told(embedded: Holding, tmp_path: Path) -> None:
    study, revision, *_ = embedded.finished(tmp_path)
    uid = study.study_instance_uid
    with embedded.database.write() as connection:
        lifecycle.transition(connection, "revision", revision.id, "REPORTED", study_id=study.id)
    control.rerun(embedded.database, uid, by="ann")
    one = told(embedded, uid)
    assert one.summary.startswith("complete: revision 2 about to be routed, 1 workitem completed")
    assert "revision 2: rerun asked for by ann" in shown(one)
    with embedded.database.read() as connection:
        second = studies.revisions(connection, study.id)[-1]
    embedded.schedule(study, second, inputs="two")
    workitem, attempt = embedded.claim()
    with embedded.database.write() as connection:
        attempts.release(connection, workitem, attempt, "the disk is full")
        lifecycle.transition(connection, "revision", second.id, "PARKED", study_id=study.id, reason="it broke")
    one = told(embedded, uid)
    assert one.summary == "complete, and revision 2 is parked: it broke"
    tree = shown(one)
    assert "attempt 1  RELEASED" in tree
    assert "the disk is full, which counts as no try" in tree
    assert f"overread retry revision:{second.id}" in tree


def test_the_tree_shows_what_the_story_has(holding: Holding, tmp_path: Path) -> None:
    study, revision, workitem, document = holding.finished(tmp_path)
    message = holding.message(study, revision)
    text = shown(told(holding, study.study_instance_uid))
    for wanted in (
        study.study_instance_uid,
        "received 3 instances in 1 series",
        "from CT1",
        "why complete",
        "route chest-ct, model lung-ct: matched",
        "Modality is CT (CT)",
        "wanted by chest-ct: thinnest of 1 series",
        workitem.uid,
        "attempt 1  SUCCEEDED",
        document.sop_instance_uid,
        "delivery:1 to pacs  PENDING",
        message.control_id,
    ):
        assert wanted in text
