"""What a modality says of its work (Modality Performed Procedure Step, PS3.4 Annex F) is kept, checked and final."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import ModalityPerformedProcedureStep  # type: ignore[attr-defined]

from storage import procedure_steps
from storage.database import Database
from storage.records import ProcedureStep
from tests.commitment import references
from tests.receiver import Receiver

STUDY = generate_uid()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        running = Receiver(folder=Path(folder) / "node").start()
        yield running
        running.stop()


@contextmanager
def modality(receiver: Receiver) -> Iterator[Association]:
    association = AE(ae_title="CT1").associate(
        "127.0.0.1", receiver.port, contexts=[build_context(ModalityPerformedProcedureStep)], ae_title="OVERREAD"
    )
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def beginning(**change: Any) -> Dataset:
    scheduled = Dataset()
    scheduled.StudyInstanceUID = STUDY
    scheduled.AccessionNumber = "A1"
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 144"
    dataset.ScheduledStepAttributesSequence = Items([scheduled])
    dataset.PatientName = "Иванов^Иван"
    dataset.PatientID = "P1"
    dataset.PerformedProcedureStepID = "PPS1"
    dataset.PerformedStationAETitle = "CT1"
    dataset.PerformedProcedureStepStartDate = "20260101"
    dataset.PerformedProcedureStepStartTime = "120000"
    dataset.PerformedProcedureStepStatus = "IN PROGRESS"
    dataset.PerformedProcedureStepDescription = "Грудь"
    dataset.Modality = "CT"
    dataset.PerformedSeriesSequence = Items([])
    return changed(dataset, change)


def ending(state: str = "COMPLETED", series: dict[str, list[str]] | None = None, **change: Any) -> Dataset:
    dataset = Dataset()
    dataset.PerformedProcedureStepStatus = state
    dataset.PerformedProcedureStepEndDate = "20260101"
    dataset.PerformedProcedureStepEndTime = "121500"
    if series is not None:
        dataset.PerformedSeriesSequence = performed(series)
    return changed(dataset, change)


def performed(series: dict[str, list[str]]) -> Items[Dataset]:
    items = []
    for uid, instances in series.items():
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ProtocolName = "Thorax"
        item.ReferencedImageSequence = references([(str(CTImageStorage), one) for one in instances[:-1]])
        item.ReferencedNonImageCompositeSOPInstanceSequence = references([("1.2.3", one) for one in instances[-1:]])
        items.append(item)
    return Items(items)


def changed(dataset: Dataset, change: dict[str, Any]) -> Dataset:
    with config.disable_value_validation():
        for keyword, value in change.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
    return dataset


def create(association: Association, dataset: Dataset, uid: str | None) -> Dataset:
    status, answer = association.send_n_create(dataset, ModalityPerformedProcedureStep, uid)  # type: ignore[arg-type]
    if answer is not None and "AffectedSOPInstanceUID" in answer:
        status.AffectedSOPInstanceUID = answer.AffectedSOPInstanceUID
    return status


def change_step(association: Association, dataset: Dataset, uid: str) -> Dataset:
    status, _ = association.send_n_set(dataset, ModalityPerformedProcedureStep, uid)  # type: ignore[arg-type]
    return status


def kept(receiver: Receiver, uid: str) -> ProcedureStep:
    database = Database(receiver.url)
    try:
        with database.read() as connection:
            return procedure_steps.get(connection, uid)
    finally:
        database.close()


def test_a_step_lives_from_its_beginning_to_its_end_over_a_restart(receiver: Receiver) -> None:
    uid, series = generate_uid(), {generate_uid(): [generate_uid(), generate_uid(), generate_uid()]}
    with modality(receiver) as association:
        assert create(association, beginning(), uid).Status == 0x0000
    begun = kept(receiver, uid)
    assert (begun.state, begun.study_instance_uid, begun.calling_ae_title) == ("IN PROGRESS", STUDY, "CT1")
    assert begun.attributes["00400254"]["Value"] == ["Грудь"]
    receiver.stop()
    receiver.start()
    with modality(receiver) as association:
        step = Dataset()
        step.SpecificCharacterSet = "ISO_IR 192"
        step.PerformedProcedureStepDescription = "胸部"
        assert change_step(association, step, uid).Status == 0x0000
        assert kept(receiver, uid).state == "IN PROGRESS"
        assert change_step(association, ending(series=series), uid).Status == 0x0000
    ended = kept(receiver, uid)
    assert (ended.state, ended.performed_series) == ("COMPLETED", series)
    assert ended.ended_at is not None
    said = Dataset.from_json(dict(ended.attributes))
    assert str(said.PatientName) == "Иванов^Иван"
    assert said.PerformedProcedureStepDescription == "胸部"
    assert said.PerformedProcedureStepStatus == "COMPLETED"


@pytest.mark.parametrize("final", ["COMPLETED", "DISCONTINUED"])
def test_what_has_ended_may_no_longer_be_updated(receiver: Receiver, final: str) -> None:
    uid = generate_uid()
    with modality(receiver) as association:
        create(association, beginning(), uid)
        assert change_step(association, ending(final, {generate_uid(): [generate_uid()]}), uid).Status == 0x0000
        before = kept(receiver, uid)
        for again in (ending("DISCONTINUED"), ending("COMPLETED", {}), ending("IN PROGRESS")):
            status = change_step(association, again, uid)
            # PS3.4 Table F.7.2-2
            assert (status.Status, status.ErrorID) == (0x0110, 0xA710)
            assert status.ErrorComment == "Performed Procedure Step Object may no longer be updated"
    assert kept(receiver, uid) == before


def test_a_discontinued_step_need_not_have_made_anything(receiver: Receiver) -> None:
    uid = generate_uid()
    with modality(receiver) as association:
        create(association, beginning(), uid)
        assert change_step(association, ending("DISCONTINUED"), uid).Status == 0x0000
    assert (kept(receiver, uid).state, kept(receiver, uid).performed_series) == ("DISCONTINUED", {})


def test_a_step_that_is_there_is_a_duplicate_and_one_that_was_never_begun_is_unknown(receiver: Receiver) -> None:
    uid = generate_uid()
    with modality(receiver) as association:
        assert change_step(association, ending(series={"1.2": ["1.2.3"]}), uid).Status == 0x0112
        assert create(association, beginning(), uid).Status == 0x0000
        assert create(association, beginning(), uid).Status == 0x0111


def test_a_step_without_a_uid_is_given_one(receiver: Receiver) -> None:
    with modality(receiver) as association:
        status = create(association, beginning(), None)
        assert status.Status == 0x0000
    made = receiver.rows("SELECT sop_instance_uid FROM procedure_step ORDER BY id DESC LIMIT 1")[0]["sop_instance_uid"]
    assert kept(receiver, made).state == "IN PROGRESS"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"PerformedProcedureStepStatus": "COMPLETED"}, 0x0106),
        ({"PerformedProcedureStepStatus": None}, 0x0120),
        ({"PerformedProcedureStepID": ""}, 0x0121),
        ({"PerformedProcedureStepStartTime": None}, 0x0120),
        ({"PerformedStationAETitle": ""}, 0x0121),
        ({"Modality": None}, 0x0120),
        ({"ScheduledStepAttributesSequence": []}, 0x0121),
        ({"ScheduledStepAttributesSequence": [Dataset()]}, 0x0120),
    ],
    ids=["begins completed", "no status", "no id", "no time", "no station", "no modality", "no items", "no study"],
)
def test_a_wrong_beginning_is_refused_with_the_status_that_says_why(
    receiver: Receiver, change: dict[str, Any], status: int
) -> None:
    uid = generate_uid()
    with modality(receiver) as association:
        assert create(association, beginning(**change), uid).Status == status
        assert create(association, beginning(), uid).Status == 0x0000, "nothing of it was kept"


@pytest.mark.parametrize(
    ("dataset", "status"),
    [
        (ending("FINISHED"), 0x0106),
        (ending(series={"1.2": ["1.2.3"]}, PerformedProcedureStepEndDate=None), 0x0120),
        (ending(series={"1.2": ["1.2.3"]}, PerformedProcedureStepEndTime=""), 0x0121),
        (ending(), 0x0121),
        (ending(series={}), 0x0121),
        (ending(series={"": ["1.2.3"]}), 0x0121),
        (ending(series={"1.2": [""]}), 0x0121),
    ],
    ids=["unknown state", "no date", "no time", "no series", "empty series", "no series uid", "no instance uid"],
)
def test_a_wrong_ending_is_refused_and_the_step_goes_on(receiver: Receiver, dataset: Dataset, status: int) -> None:
    uid = generate_uid()
    with modality(receiver) as association:
        create(association, beginning(), uid)
        assert change_step(association, dataset, uid).Status == status
        assert kept(receiver, uid).state == "IN PROGRESS"
        assert change_step(association, ending(series={"1.2": ["1.2.3"]}), uid).Status == 0x0000


def test_who_the_patient_is_cannot_be_changed_and_the_rest_is_taken(receiver: Receiver) -> None:
    uid = generate_uid()
    with modality(receiver) as association:
        create(association, beginning(), uid)
        status = change_step(association, ending(series={"1.2": ["1.2.3"]}, PatientID="P2", Modality="CT"), uid)
    assert (status.Status, status.ErrorComment) == (0x0107, "not changed: PatientID")
    step = kept(receiver, uid)
    assert (step.state, step.attributes["00100020"]["Value"]) == ("COMPLETED", ["P1"])


def test_ten_thousand_instances_fit_into_a_step(receiver: Receiver) -> None:
    uid, series = generate_uid(), {generate_uid(): [generate_uid() for _ in range(10_000)]}
    with modality(receiver) as association:
        create(association, beginning(), uid)
        assert change_step(association, ending(series=series), uid).Status == 0x0000
    assert kept(receiver, uid).performed_series == series


def test_nothing_of_the_patient_is_logged(receiver: Receiver) -> None:
    with modality(receiver) as association:
        create(association, beginning(PatientID="VERY-SECRET", Modality=""), generate_uid())
        create(association, beginning(PatientID="VERY-SECRET"), generate_uid())
    written = receiver.process.log_path.read_text()
    assert "VERY-SECRET" not in written
    assert "request refused" in written
