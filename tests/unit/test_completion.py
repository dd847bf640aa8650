"""Evidence for and against a study's being complete is weighed, kept and told, on both databases."""

from __future__ import annotations

import shutil
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import generate_uid
from sqlalchemy import select, update

from inference.registry import Registry
from node.settings import Settings
from node.workflow import completion, control, judging, steps, story
from node.workflow.models import Models, register
from node.workflow.way import Way
from storage import changefeed, flags, inquiries, lifecycle, procedure_steps, receiving, schema, studies
from storage.database import now
from storage.records import Study
from tests.dicom_factory import ct_series
from tests.work import Holding

ROUTE: dict[str, Any] = {"name": "chest-ct", "match": {"Modality": "CT"}, "models": ["lung-ct"]}


@cache
def shipped() -> Registry:
    return Registry.from_folder(Path(__file__).resolve().parents[2] / "conf" / "models")


def way_of(holding: Holding, routes: list[dict[str, Any]] | None = None, **sections: Any) -> Way:
    settings = Settings(routes=[ROUTE] if routes is None else routes, **sections)  # type: ignore[arg-type]
    store = holding.root / "models"
    with holding.database.write() as connection:
        register(connection, shipped(), store)
    return Way(
        settings=settings,
        database=holding.database,
        blobs=holding.blobs,
        incoming=holding.incoming,
        scratch=holding.root / "scratch",
        models=Models(shipped(), store),
    )


def aged(holding: Holding, study: Study, seconds: float) -> Study:
    """Move everything that has happened to a study into the past."""
    s = schema.study
    with holding.database.write() as connection:
        row = connection.execute(select(s).where(s.c.id == study.id)).mappings().one()
        by = timedelta(seconds=seconds)
        names = ("quiet_from", "receiving_from", "released_at", "looked_at", "look_at", "first_received_at")
        connection.execute(
            update(s).where(s.c.id == study.id).values({one: row[one] - by for one in names if row[one] is not None})
        )
        i = schema.instance.c
        connection.execute(
            update(schema.instance).where(i.study_id == study.id).values(received_at=row["quiet_from"] - by)
        )
        q = schema.inquiry.c
        for asked in connection.execute(select(schema.inquiry).where(q.study_id == study.id)).mappings().all():
            values = {one: asked[one] - by for one in ("due_at", "asked_at") if asked[one] is not None}
            connection.execute(update(schema.inquiry).where(q.id == asked["id"]).values(values))
    return holding.again(study.study_instance_uid)


def looked_at(holding: Holding, way: Way, study: Study, *, ago: float) -> Study:
    """Let so many seconds pass, and have the node look at what is due."""
    aged(holding, study, ago)
    steps.complete(way)
    return holding.again(study.study_instance_uid)


def revisions(holding: Holding, study: Study) -> list[Any]:
    with holding.database.read() as connection:
        return studies.revisions(connection, study.id)


def flagged(holding: Holding, study: Study) -> list[tuple[str, str]]:
    with holding.database.read() as connection:
        return [(one.kind, one.reason) for one in flags.of_study(connection, study.id)]


def released(holding: Holding, study: Study, *, alone: bool = True) -> None:
    uids = [study.study_instance_uid]
    with holding.database.write() as connection:
        receiving.association_ended(connection, uids, uids if alone else ())


def stepped(holding: Holding, study: Study, names: list[str], *, state: str = "COMPLETED", sender: str = "CT1") -> str:
    uid = generate_uid()
    with holding.database.write() as connection:
        procedure_steps.create(
            connection,
            sop_instance_uid=uid,
            study_instance_uid=study.study_instance_uid,
            performed_series={},
            attributes={},
            calling_ae_title=sender,
        )
        if state != lifecycle.IN_PROGRESS:
            procedure_steps.update(connection, uid, state=state, performed_series={"1.2": names})
    return uid


def uids_of(holding: Holding, study: Study) -> list[str]:
    with holding.database.read() as connection:
        return [one.sop_instance_uid for one in studies.evidence(connection, study.id)]


def counted(holding: Holding, peer: str, count: int | None, answer: str = "said so") -> None:
    """Answer for a peer whatever it is to be asked now."""
    with holding.database.write() as connection:
        ((inquiry, _),) = inquiries.due(connection, peer)
        inquiries.answered(connection, inquiry, asked_at=now(connection), count=count, answer=answer)


def more(holding: Holding, folder: Path, study: Study, *, slices: int = 1, sender: str = "CT1", **more: Any) -> None:
    files = ct_series(folder / generate_uid(), np.zeros((slices, 4, 4)), study_uid=study.study_instance_uid, **more)
    holding.receive(files, sender=sender)


def test_a_study_is_judged_once_it_has_been_quiet_and_the_verdict_says_so(holding: Holding, tmp_path: Path) -> None:
    way, study = way_of(holding), holding.study(tmp_path)
    assert looked_at(holding, way, study, ago=59).state == "RECEIVING"
    assert looked_at(holding, way, study, ago=2).state == "COMPLETE"
    (revision,) = revisions(holding, study)
    assert revision.verdict["because"] == "quiet"
    assert (revision.verdict["quiet_seconds"], revision.verdict["quiet_by"]) == (60, "completion")
    assert revision.verdict["missing"] == []
    assert flagged(holding, study) == []


@pytest.mark.parametrize(
    ("peers", "routes", "seconds", "by"),
    [
        ({"ct1": 5}, {}, 5, "peer ct1"),
        ({"ct1": 90}, {}, 90, "peer ct1"),
        ({"ct1": 5, "mr1": 40}, {}, 5, "peer ct1"),
        ({"ct1": 90}, {"chest-ct": 7}, 7, "route chest-ct"),
        ({}, {"chest-ct": 7, "of-heads": 200}, 7, "route chest-ct"),
        ({}, {"chest-ct": 7, "of-all": 200}, 200, "route of-all"),
    ],
)
def test_the_quiet_period_is_that_of_the_sender_or_of_the_routes_that_match(
    embedded: Holding, tmp_path: Path, peers: dict[str, float], routes: dict[str, float], seconds: float, by: str
) -> None:
    matches = {"chest-ct": {"Modality": "CT"}, "of-heads": {"BodyPartExamined": "HEAD"}, "of-all": {"PatientID": "*"}}
    rules = [
        {**ROUTE, "name": name, "match": matches[name], "quiet_seconds": value} for name, value in routes.items()
    ] or [ROUTE]
    way = way_of(
        embedded,
        rules,
        peers={name: {"ae_title": name.upper(), "quiet_seconds": value} for name, value in peers.items()},
    )
    study = embedded.study(tmp_path)
    assert looked_at(embedded, way, study, ago=seconds - 1).state == "RECEIVING"
    assert looked_at(embedded, way, study, ago=2).state == "COMPLETE"
    (revision,) = revisions(embedded, study)
    assert (revision.verdict["quiet_seconds"], revision.verdict["quiet_by"]) == (seconds, by)


def test_of_two_modalities_that_send_one_study_the_slower_counts_and_one_revision_opens(
    holding: Holding, tmp_path: Path
) -> None:
    way = way_of(holding, peers={"ct1": {"ae_title": "CT1", "quiet_seconds": 5}})
    study = holding.study(tmp_path)
    more(holding, tmp_path, study, sender="CT2")
    assert looked_at(holding, way, study, ago=30).state == "RECEIVING", "CT2 has the period of all"
    more(holding, tmp_path, study, sender="CT2")
    assert looked_at(holding, way, study, ago=31).state == "RECEIVING", "and it was started anew"
    assert looked_at(holding, way, study, ago=30).state == "COMPLETE"
    (revision,) = revisions(holding, study)
    assert revision.verdict["senders"] == ["CT1", "CT2"]


def test_the_release_of_the_last_association_shortens_the_quiet_period_where_asked(
    holding: Holding, tmp_path: Path
) -> None:
    without, way = way_of(holding), way_of(holding, completion={"after_release_seconds": 3})
    study = holding.study(tmp_path)
    released(holding, study)
    assert looked_at(holding, without, study, ago=4).state == "RECEIVING"
    assert looked_at(holding, way, study, ago=0).state == "COMPLETE"
    (revision,) = revisions(holding, study)
    assert revision.verdict["because"] == "release"
    assert "last association" in str(revision.verdict["weighed"])


@pytest.mark.parametrize("then", ["another association goes on", "an instance comes", "it never ends"])
def test_nothing_is_shortened_while_anything_may_still_be_sending(embedded: Holding, tmp_path: Path, then: str) -> None:
    way = way_of(embedded, completion={"after_release_seconds": 3})
    study = embedded.study(tmp_path)
    if then == "another association goes on":
        released(embedded, study, alone=False)
    elif then == "an instance comes":
        released(embedded, study)
        more(embedded, tmp_path, study, sender="CT2")
    assert looked_at(embedded, way, study, ago=10).state == "RECEIVING"
    assert looked_at(embedded, way, study, ago=51).state == "COMPLETE"
    assert revisions(embedded, study)[0].verdict["because"] == "quiet"


@pytest.mark.parametrize("state", ["COMPLETED", "DISCONTINUED"])
def test_a_procedure_step_that_has_ended_and_names_what_is_here_completes_a_study_at_once(
    holding: Holding, tmp_path: Path, state: str
) -> None:
    way, study = way_of(holding), holding.study(tmp_path)
    stepped(holding, study, uids_of(holding, study), state=state)
    assert looked_at(holding, way, study, ago=0).state == "COMPLETE"
    (revision,) = revisions(holding, study)
    assert revision.verdict["because"] == "procedure step"
    assert f"CT1 {state}, 3 instances; 3 of 3 named instances are here" in str(revision.verdict["weighed"])


def test_a_procedure_step_that_ended_before_its_last_image_came_completes_the_study_with_that_image(
    embedded: Holding, tmp_path: Path
) -> None:
    way, uid = way_of(embedded), generate_uid()
    files = ct_series(tmp_path, np.zeros((3, 4, 4)), study_uid=uid)
    embedded.receive(files[:2])
    study = embedded.again(uid)
    stepped(embedded, study, [one.stem for one in files])
    assert looked_at(embedded, way, study, ago=0).state == "RECEIVING"
    embedded.receive(files[2:])
    assert looked_at(embedded, way, study, ago=2.5).state == "COMPLETE"


def test_a_procedure_step_that_is_in_progress_or_names_more_holds_a_study_up_and_not_for_ever(
    holding: Holding, tmp_path: Path
) -> None:
    way = way_of(holding, completion={"mpps_seconds": 100})
    running, short = holding.study(tmp_path / "1"), holding.study(tmp_path / "2")
    stepped(holding, running, [], state=lifecycle.IN_PROGRESS)
    stepped(holding, short, [*uids_of(holding, short), "1.2.3"])
    for study, why in ((running, "has not ended"), (short, "1 of 4 instances that procedure steps name have not come")):
        waiting = looked_at(holding, way, study, ago=61)
        assert waiting.state == "RECEIVING"
        assert why in waiting.waiting_for
        with holding.database.read() as connection:
            assert why in story.tell(connection, study.study_instance_uid).summary
            assert any(why in one.reason for one in control.status(connection).waiting)
        assert looked_at(holding, way, study, ago=40).state == "COMPLETE"
        ((kind, reason),) = flagged(holding, study)
        assert kind == "incomplete"
        assert why in reason


def test_a_step_of_one_modality_does_not_speak_for_what_another_sends(embedded: Holding, tmp_path: Path) -> None:
    way, study = way_of(embedded), embedded.study(tmp_path)
    names = uids_of(embedded, study)
    more(embedded, tmp_path, study, sender="CT2")
    stepped(embedded, study, names)
    assert looked_at(embedded, way, study, ago=30).state == "RECEIVING"
    assert looked_at(embedded, way, study, ago=31).state == "COMPLETE"


PACS = {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": 4242, "count": True}}


def from_pacs(holding: Holding, folder: Path, slices: int = 3) -> Study:
    uid = generate_uid()
    holding.receive(ct_series(folder / uid, np.zeros((slices, 4, 4)), study_uid=uid), sender="PACS")
    return holding.again(uid)


def test_a_study_of_which_the_pacs_has_more_waits_is_asked_about_again_and_completes_with_the_rest(
    holding: Holding, tmp_path: Path
) -> None:
    way, study = way_of(holding, peers=PACS), from_pacs(holding, tmp_path)
    waiting = looked_at(holding, way, study, ago=61)
    assert "was not heard" in waiting.waiting_for
    counted(holding, "pacs", 4)
    waiting = looked_at(holding, way, study, ago=0)
    assert waiting.waiting_for == "peer pacs has 4 instances, of which 3 are here"
    with holding.database.read() as connection:
        assert inquiries.due(connection, "pacs") == [], "not before the interval is over"
    looked_at(holding, way, study, ago=31)
    counted(holding, "pacs", 4)
    assert looked_at(holding, way, study, ago=0).state == "RECEIVING"
    more(holding, tmp_path, study, sender="PACS")
    assert looked_at(holding, way, study, ago=61).state == "RECEIVING", "the answer is older than the instance"
    counted(holding, "pacs", 4)
    assert looked_at(holding, way, study, ago=0).state == "COMPLETE"
    (revision,) = revisions(holding, study)
    assert "peer pacs has 4 instances, 4 are here" in str(revision.verdict["weighed"])
    assert flagged(holding, study) == []


def test_instances_that_the_pacs_has_and_never_sends_are_waited_for_to_a_limit_and_flagged(
    holding: Holding, tmp_path: Path
) -> None:
    way, study = way_of(holding, peers=PACS, completion={"count_seconds": 200}), from_pacs(holding, tmp_path)
    looked_at(holding, way, study, ago=61)
    counted(holding, "pacs", 9)
    assert looked_at(holding, way, study, ago=100).state == "RECEIVING"
    assert looked_at(holding, way, study, ago=40).state == "COMPLETE"
    (revision,) = revisions(holding, study)
    assert revision.verdict["missing"] == ["peer pacs has 9 instances, of which 3 are here"]
    assert flagged(holding, study) == [
        ("incomplete", "revision 1 was opened although peer pacs has 9 instances, of which 3 are here")
    ]


def test_a_pacs_that_can_not_be_asked_is_given_up_on_after_three_tries(embedded: Holding, tmp_path: Path) -> None:
    way, study = way_of(embedded, peers=PACS), from_pacs(embedded, tmp_path)
    looked_at(embedded, way, study, ago=61)
    for tries in range(3):
        counted(embedded, "pacs", None, answer="no answer from PACS")
        state = looked_at(embedded, way, study, ago=0).state
        assert state == ("RECEIVING" if tries < 2 else "COMPLETE")
        aged(embedded, study, 31)
    (revision,) = revisions(embedded, study)
    assert "gave no count of its instances: no answer from PACS" in str(revision.verdict["weighed"])


def test_an_equal_count_completes_a_study_early_where_asked(embedded: Holding, tmp_path: Path) -> None:
    way = way_of(embedded, peers=PACS, completion={"count_after_seconds": 5})
    study = from_pacs(embedded, tmp_path)
    assert looked_at(embedded, way, study, ago=6).state == "RECEIVING"
    counted(embedded, "pacs", 3)
    assert looked_at(embedded, way, study, ago=0).state == "COMPLETE"
    assert revisions(embedded, study)[0].verdict["because"] == "count"


def test_a_sender_that_does_not_count_is_not_asked(embedded: Holding, tmp_path: Path) -> None:
    way, study = way_of(embedded, peers=PACS), embedded.study(tmp_path)
    assert looked_at(embedded, way, study, ago=61).state == "COMPLETE"


def test_documents_of_our_own_stand_for_no_image_that_is_missing(holding: Holding, tmp_path: Path) -> None:
    study, *_, document = holding.finished(tmp_path)
    with holding.database.write() as connection:
        assert inquiries.held_for(connection, study.id, "PACS", frozenset({"pacs"})) == 3, "it is on its way"
        connection.execute(update(schema.delivery).values(state=lifecycle.DELIVERED))
        assert inquiries.held_for(connection, study.id, "PACS", frozenset({"pacs"})) == 4
        assert inquiries.held_for(connection, study.id, "PACS", frozenset()) == 3
    assert document.sop_instance_uid


THIN = {**ROUTE, "expect": [{"SliceThickness": {"max": 1.5}, "NumberOfSeriesRelatedInstances": {"min": 2}}]}


def test_a_study_waits_for_the_series_that_a_route_expects(holding: Holding, tmp_path: Path) -> None:
    way, study = way_of(holding, [THIN]), holding.study(tmp_path)
    waiting = looked_at(holding, way, study, ago=61)
    assert waiting.state == "RECEIVING"
    assert "expected series did not come: SliceThickness max 1.5" in waiting.waiting_for
    more(holding, tmp_path, study, slices=2, spacing=(1.0, 0.8, 0.8))
    assert looked_at(holding, way, study, ago=61).state == "COMPLETE"
    (revision,) = revisions(holding, study)
    assert "every expected series is here" in str(revision.verdict["weighed"])


def test_expected_series_that_never_come_are_said_in_verdict_flag_and_decision(
    holding: Holding, tmp_path: Path
) -> None:
    way, study = way_of(holding, [{**THIN, "expect_seconds": 100}]), holding.study(tmp_path)
    assert looked_at(holding, way, study, ago=61).state == "RECEIVING"
    assert looked_at(holding, way, study, ago=40).state == "COMPLETE"
    steps.route(way)
    with holding.database.read() as connection:
        told = story.tell(connection, study.study_instance_uid)
    assert "expected series did not come" in told.flags[0].reason
    assert "expected series did not come" in str(told.revisions[0].decisions[0].reasons)


def test_a_route_that_can_not_run_is_not_waited_for(embedded: Holding, tmp_path: Path) -> None:
    off = {**THIN, "models": ["chest-radiograph-demo"]}
    heads = {**THIN, "name": "heads", "match": {"BodyPartExamined": "HEAD"}}
    way, study = way_of(embedded, [off, heads, {**ROUTE, "name": "all"}]), embedded.study(tmp_path)
    assert looked_at(embedded, way, study, ago=61).state == "COMPLETE"


def test_an_operators_word_ends_every_wait_and_stands_in_the_verdict(holding: Holding, tmp_path: Path) -> None:
    way, study = way_of(holding, [THIN]), holding.study(tmp_path)
    done = control.complete(holding.database, study.study_instance_uid, by="ann")
    assert done.changed == [f"study:{study.id} is judged now"]
    again = control.complete(holding.database, study.study_instance_uid, by="bob")
    assert "asked for by ann already" in again.unchanged[0]
    assert looked_at(holding, way, study, ago=0).state == "COMPLETE"
    (revision,) = revisions(holding, study)
    assert (revision.verdict["because"], revision.verdict["asked_by"]) == ("operator", "ann")
    late = control.complete(holding.database, study.study_instance_uid, by="ann")
    assert "complete already" in late.unchanged[0]
    assert holding.again(study.study_instance_uid).asked_by == ""


def test_a_parked_or_excluded_study_is_not_judged_by_an_operators_word(embedded: Holding, tmp_path: Path) -> None:
    parked, excluded = embedded.study(tmp_path / "1"), embedded.study(tmp_path / "2")
    with embedded.database.write() as connection:
        lifecycle.transition(connection, "study", parked.id, lifecycle.PARKED, study_id=parked.id)
    control.exclude(embedded.database, excluded.study_instance_uid, by="ann")
    for study, why in ((parked, "parked"), (excluded, "excluded")):
        done = control.complete(embedded.database, study.study_instance_uid, by="ann")
        assert not done.changed
        assert why in done.unchanged[0]


def test_an_operators_word_is_not_kept_for_the_next_time(holding: Holding, tmp_path: Path) -> None:
    way, study = way_of(holding), holding.study(tmp_path)
    more(holding, tmp_path, study, PatientName="Another^One")
    control.complete(holding.database, study.study_instance_uid, by="ann")
    assert looked_at(holding, way, study, ago=0).state == "PARKED", "two patients are no matter of patience"
    with holding.database.read() as connection:
        series = studies.series_of(connection, study.id)[-1].series_instance_uid
    control.exclude(holding.database, study.study_instance_uid, by="ann", series_instance_uid=series)
    control.retry(holding.database, study.study_instance_uid, by="ann")
    assert looked_at(holding, way, study, ago=30).state == "RECEIVING", "a full quiet period anew"
    assert looked_at(holding, way, study, ago=31).state == "COMPLETE"
    assert revisions(holding, study)[0].verdict["because"] == "quiet"


def test_a_study_that_keeps_growing_is_judged_at_last_and_the_rest_opens_the_next_revision(
    holding: Holding, tmp_path: Path
) -> None:
    way = way_of(holding, completion={"maximum_seconds": 500})
    study = holding.study(tmp_path)
    for _ in range(9):
        more(holding, tmp_path, study)
        assert looked_at(holding, way, study, ago=50).state == "RECEIVING"
    more(holding, tmp_path, study)
    assert looked_at(holding, way, study, ago=51).state == "COMPLETE"
    assert revisions(holding, study)[0].verdict["because"] == "maximum"
    assert "still growing after 500 s" in flagged(holding, study)[0][1]
    more(holding, tmp_path, study)
    assert looked_at(holding, way, study, ago=50).state == "RECEIVING", "it may grow as long again"
    assert looked_at(holding, way, study, ago=11).state == "COMPLETE"
    assert [one.verdict["instances"] for one in revisions(holding, study)] == [13, 14]


def test_what_comes_while_a_growing_study_is_judged_is_not_left_behind(
    holding: Holding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, study = way_of(holding, completion={"maximum_seconds": 500}), holding.study(tmp_path)
    weigh = completion.weigh

    def slowly(*arguments: Any) -> Any:
        verdict = weigh(*arguments)
        more(holding, tmp_path, study)
        return verdict

    with monkeypatch.context() as patched:
        patched.setattr(completion, "weigh", slowly)
        found = looked_at(holding, way, study, ago=501)
    assert found.state == "RECEIVING"
    assert revisions(holding, study)[0].verdict["instances"] == 3
    assert looked_at(holding, way, study, ago=61).state == "COMPLETE"
    assert [one.verdict["instances"] for one in revisions(holding, study)] == [3, 4]


def test_what_comes_while_a_quiet_study_is_judged_starts_its_period_anew(
    embedded: Holding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, study = way_of(embedded), embedded.study(tmp_path)
    weigh = completion.weigh

    def slowly(*arguments: Any) -> Any:
        verdict = weigh(*arguments)
        more(embedded, tmp_path, study)
        return verdict

    with monkeypatch.context() as patched:
        patched.setattr(completion, "weigh", slowly)
        assert looked_at(embedded, way, study, ago=61).state == "RECEIVING"
    assert looked_at(embedded, way, study, ago=61).state == "COMPLETE"
    assert [one.verdict["instances"] for one in revisions(embedded, study)] == [4]


def test_the_same_study_again_opens_nothing(holding: Holding, tmp_path: Path) -> None:
    way, uid = way_of(holding), generate_uid()
    files = ct_series(tmp_path, np.zeros((3, 4, 4)), study_uid=uid)
    holding.receive(files)
    study = holding.again(uid)
    looked_at(holding, way, study, ago=61)
    holding.receive(files, sender="CT2")
    released(holding, study)
    assert looked_at(holding, way, study, ago=61).state == "COMPLETE"
    assert len(revisions(holding, study)) == 1


def test_instances_that_move_to_another_study_run_nothing_twice_and_flag_both(holding: Holding, tmp_path: Path) -> None:
    way, uid, other = way_of(holding), generate_uid(), generate_uid()
    files = ct_series(tmp_path / "a", np.zeros((3, 4, 4)), study_uid=uid)
    holding.receive(files)
    first = looked_at(holding, way, holding.again(uid), ago=61)
    for file in files:
        moved = ct_series(tmp_path / "b", np.zeros((1, 4, 4)), study_uid=other, SOPInstanceUID=file.stem)
        holding.receive(moved)
    second = looked_at(holding, way, holding.again(other), ago=61)
    assert (holding.again(uid).state, len(revisions(holding, first))) == ("COMPLETE", 1)
    assert (second.state, revisions(holding, second)) == ("PARKED", [])
    assert [one for one, _ in flagged(holding, first)] == ["conflict"], "one for all its instances"
    assert other in flagged(holding, first)[0][1]
    assert uid in flagged(holding, second)[0][1]


def test_one_patient_id_of_two_patients_flags_both_studies_and_parks_none(holding: Holding, tmp_path: Path) -> None:
    way = way_of(holding)
    found = []
    for name in ("Doe^Jane", "Roe^Richard", "DOE^JANE"):
        uid = generate_uid()
        holding.receive(ct_series(tmp_path / uid, np.zeros((1, 4, 4)), study_uid=uid, PatientName=name))
        found.append(looked_at(holding, way, holding.again(uid), ago=61))
    assert [one.state for one in found] == ["COMPLETE"] * 3
    jane, richard, again = found
    assert [one.study_instance_uid in str(flagged(holding, richard)) for one in (jane, again)] == [True, True]
    assert flagged(holding, jane) == [
        ("patient", f"study {richard.study_instance_uid} has the same Patient ID and another name")
    ]
    with holding.database.read() as connection:
        status = control.status(connection)
        feed = changefeed.since(connection, 0)
    assert (status.parked, status.flagged_in_all) == ([], 4)
    raised = [one for one in feed if one.kind == "flag"]
    assert {one.study_id for one in raised} == {jane.id, richard.id, again.id}
    for text in (str(status), str(feed), str(revisions(holding, richard))):
        assert "doe" not in text.lower()
        assert "roe" not in text.lower()


@pytest.mark.parametrize(
    "attributes",
    [
        {"PatientName": "Roe^Richard", "IssuerOfPatientID": "OTHER"},
        {"PatientName": "PHANTOM^TEST^"},
        {"PatientBirthDate": "", "PatientSex": ""},
        {"PatientName": "Roe^Richard", "PatientID": ""},
    ],
    ids=["another issuer", "another case", "absent", "no id"],
)
def test_what_does_not_contradict_is_no_collision(
    embedded: Holding, tmp_path: Path, attributes: dict[str, Any]
) -> None:
    way = way_of(embedded)
    for number, more_attributes in enumerate(({"IssuerOfPatientID": "OURS"}, attributes)):
        uid = generate_uid()
        files = ct_series(tmp_path / str(number), np.zeros((1, 4, 4)), study_uid=uid, **more_attributes)
        embedded.receive(files)
        study = looked_at(embedded, way, embedded.again(uid), ago=61)
    assert study.state == "COMPLETE"
    with embedded.database.read() as connection:
        assert flags.count(connection) == 0


def test_real_studies_that_share_a_patient_id_are_flagged(embedded: Holding, shared_data: Path) -> None:
    folder = shared_data / "patient_id_collision"
    way = way_of(embedded)
    receipts = embedded.receive(sorted(folder.glob("orthanc-tests__Image*.dcm")))
    found = [looked_at(embedded, way, embedded.again(one.study_instance_uid), ago=61) for one in receipts]
    assert [one.state for one in found] == ["COMPLETE"] * 3
    for one in found:
        others = {each.study_instance_uid for each in found} - {one.study_instance_uid}
        with embedded.database.read() as connection:
            assert {flag.subject for flag in flags.of_study(connection, one.id)} == others
    two = embedded.receive(sorted(folder.glob("orthanc-tests__Issue131-*.dcm")))
    parked = looked_at(embedded, way, embedded.again(two[0].study_instance_uid), ago=61)
    assert parked.state == "PARKED", "two patients in one Study Instance UID"


def test_demographics_that_change_within_instances_sent_again_are_flagged_once(
    holding: Holding, tmp_path: Path
) -> None:
    way, uid, series = way_of(holding), generate_uid(), generate_uid()
    files = ct_series(tmp_path, np.zeros((3, 4, 4)), study_uid=uid, series_uid=series)
    holding.receive(files)
    study = looked_at(holding, way, holding.again(uid), ago=61)
    for file in files:
        changed = {
            "SOPInstanceUID": file.stem,
            "PatientBirthDate": "19700101",
            "PatientName": "Roe^Richard",
        }
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        holding.receive(
            ct_series(tmp_path / "again", np.zeros((1, 4, 4)), study_uid=uid, series_uid=series, **changed),
            sender="RIS",
        )
    assert flagged(holding, study) == [
        ("demographics", "instances came again from RIS with another name, birth date; the first are kept")
    ]
    with holding.database.read() as connection:
        told = story.tell(connection, uid)
    assert told.received.variants == 3
    assert holding.again(uid).state == "COMPLETE"
    assert len(revisions(holding, study)) == 1


def test_a_restart_of_the_receiver_gives_a_full_period_although_it_was_released(
    embedded: Holding, tmp_path: Path
) -> None:
    way = way_of(embedded, completion={"after_release_seconds": 3, "maximum_seconds": 100})
    study = embedded.study(tmp_path)
    released(embedded, study)
    aged(embedded, study, 200)
    with embedded.database.write() as connection:
        receiving.restart_quiet_periods(connection)
    assert looked_at(embedded, way, study, ago=59).state == "RECEIVING"
    assert looked_at(embedded, way, study, ago=2).state == "COMPLETE"


def test_a_study_that_waits_is_not_looked_at_again_before_anything_has_changed(
    holding: Holding, tmp_path: Path
) -> None:
    way, study = way_of(holding, [THIN]), holding.study(tmp_path)
    waiting = looked_at(holding, way, study, ago=61)
    assert waiting.look_at is not None
    for _ in range(3):
        assert steps.complete(way) == 0
    assert holding.again(study.study_instance_uid).looked_at == waiting.looked_at
    with holding.database.write() as connection:
        receiving.look_again(connection, study.study_instance_uid)
    steps.complete(way)
    assert holding.again(study.study_instance_uid).looked_at != waiting.looked_at


def test_what_is_excluded_while_a_study_is_judged_has_it_judged_anew(holding: Holding, tmp_path: Path) -> None:
    way = way_of(holding)
    uid = generate_uid()
    wrong = ct_series(tmp_path / "wrong", np.zeros((1, 4, 4)), study_uid=uid, PatientName="Wrong^Patient")
    right = ct_series(tmp_path / "right", np.zeros((2, 4, 4)), study_uid=uid, PatientName="Right^Patient")
    holding.receive([*wrong, *right])
    due = aged(holding, holding.again(uid), 600)
    control.exclude(holding.database, uid, by="tester", sop_instance_uid=wrong[0].stem)
    verdict = judging._weighed(way, due)
    assert verdict.outcome == "revision", "the view that was read before does not know of what was excluded"
    assert judging._settle(way, due, verdict) == 0
    assert holding.again(uid).state == lifecycle.RECEIVING
    aged(holding, holding.again(uid), 600)
    assert steps.complete(way) == 1
    study = holding.again(uid)
    assert (study.state, study.patient_name) == (lifecycle.COMPLETE, "Right^Patient")
