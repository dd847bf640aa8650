"""A real node weighs what real peers say: what Orthanc counts, what associations carry, and an operator's word."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ModalityPerformedProcedureStep,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind as StudyRootFind,
)

from demo.peers import MllpReceiver, Orthanc, free_port, wait_until
from node.dimse.carried import Carried
from node.dimse.finder import count_instances
from node.peers import Address
from tests.dicom_factory import ct_series
from tests.receiver import Receiver, receiving
from tests.system import Node, chest_ct, push


def address(pacs: Orthanc) -> Address:
    return Address(pacs.ae_title, "127.0.0.1", pacs.dimse_port)


@contextmanager
def sending(port: int, called: str = "OVERREAD") -> Iterator[Association]:
    """Hold an association open that can carry CT images."""
    ae = AE(ae_title="CT1")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    ae.add_requested_context(ModalityPerformedProcedureStep)
    association = ae.associate("127.0.0.1", port, ae_title=called)
    assert association.is_established
    try:
        yield association
    finally:
        if association.is_established:
            association.abort()


def stored(association: Association, *files: Path) -> None:
    for file in files:
        assert association.send_c_store(pydicom.dcmread(file)).Status == 0


def performing(association: Association, study_uid: str) -> str:
    """Begin a procedure step (N-CREATE); returns its SOP Instance UID."""
    scheduled, begun, uid = pydicom.Dataset(), pydicom.Dataset(), generate_uid()
    scheduled.StudyInstanceUID = study_uid
    begun.ScheduledStepAttributesSequence = [scheduled]
    begun.PerformedProcedureStepID = "1"
    begun.PerformedStationAETitle = "CT1"
    begun.PerformedProcedureStepStartDate, begun.PerformedProcedureStepStartTime = "20260102", "101112"
    begun.PerformedProcedureStepStatus = "IN PROGRESS"
    begun.Modality = "CT"
    begun.PerformedSeriesSequence = []
    status, _ = association.send_n_create(begun, ModalityPerformedProcedureStep, uid)
    assert status.Status == 0
    return uid


def performed(association: Association, step: str, files: Sequence[Path]) -> None:
    """End a procedure step (N-SET COMPLETED) that has made these images."""
    series, ended = pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID = pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID
    series.PerformingPhysicianName = series.OperatorsName = series.SeriesDescription = series.RetrieveAETitle = ""
    series.ProtocolName = "CHEST"
    series.ReferencedNonImageCompositeSOPInstanceSequence = []
    series.ReferencedImageSequence = []
    for file in files:
        image = pydicom.Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = CTImageStorage, file.stem
        series.ReferencedImageSequence.append(image)
    ended.PerformedProcedureStepStatus = "COMPLETED"
    ended.PerformedProcedureStepEndDate, ended.PerformedProcedureStepEndTime = "20260102", "101212"
    ended.PerformedSeriesSequence = [series]
    status, _ = association.send_n_set(ended, ModalityPerformedProcedureStep, step)
    assert status.Status == 0


def story_of(node: Node, uid: str) -> dict[str, Any]:
    """Ask the node what became of a study: quicker than the command."""
    told: dict[str, Any] = httpx.get(f"{node.url}/api/v1/studies/{uid}/story", timeout=10).raise_for_status().json()
    return told


# what a PACS counts


def test_a_pacs_tells_how_many_instances_it_has_and_that_it_does_not_know_a_study(
    orthanc_of_module: Orthanc, tmp_path: Path
) -> None:
    uid = generate_uid()
    files = ct_series(tmp_path, np.zeros((3, 4, 4)), study_uid=uid)
    push(files, orthanc_of_module.dimse_port, called=orthanc_of_module.ae_title)
    peer = address(orthanc_of_module)
    assert count_instances(peer, "OVERREAD", uid, 10).count == 3
    unknown = count_instances(peer, "OVERREAD", generate_uid(), 10)
    assert unknown.count is None
    assert "does not know the study" in unknown.answer


def test_a_peer_that_is_not_there_or_takes_no_query_gives_no_number(tmp_path: Path) -> None:
    nobody = count_instances(Address("PACS", "127.0.0.1", free_port()), "OVERREAD", "1.2.3", 2)
    assert (nobody.count, nobody.answer.startswith("no answer")) == (None, True)
    unknown = count_instances(Address("PACS", "no-such-host.invalid", 104), "OVERREAD", "1.2.3", 2)
    assert "no known host" in unknown.answer
    with receiving(tmp_path / "r", options={"strangers": ["store"], "receivers": 1}) as receiver:
        refused = count_instances(Address("OVERREAD", "127.0.0.1", receiver.port), "X", "1.2.3", 5)
    assert (refused.count, "takes no query" in refused.answer) == (None, True)


Answers = Callable[[evt.Event], Iterator[tuple[int, pydicom.Dataset | None]]]


@contextmanager
def answering(find: Answers) -> Iterator[Address]:
    """Run a Query SCP that answers as it is told to: no real PACS lies on demand."""
    ae = AE(ae_title="LIAR")
    ae.add_supported_context(StudyRootFind)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    try:
        assert server is not None
        yield Address("LIAR", "127.0.0.1", server.socket.getsockname()[1])
    finally:
        assert server is not None
        server.shutdown()


def _match(**attributes: Any) -> pydicom.Dataset:
    found = pydicom.Dataset()
    for key, value in attributes.items():
        setattr(found, key, value)
    return found


def test_a_pacs_without_the_number_is_asked_for_its_series() -> None:
    def find(event: evt.Event) -> Iterator[tuple[int, pydicom.Dataset | None]]:
        level = event.identifier.QueryRetrieveLevel
        for number in (2, 5) if level == "SERIES" else (0,):
            found = _match(QueryRetrieveLevel=level, StudyInstanceUID="1.2.3")
            if level == "SERIES":
                found.SeriesInstanceUID = f"1.2.3.{number}"
                found.NumberOfSeriesRelatedInstances = number
            yield 0xFF00, found

    with answering(find) as peer:
        assert count_instances(peer, "OVERREAD", "1.2.3", 5).count == 7


@pytest.mark.parametrize(
    ("matches", "last", "says"),
    [
        ([{"StudyInstanceUID": "1.2.4", "NumberOfStudyRelatedInstances": 7}], None, "does not know"),
        ([{"StudyInstanceUID": "1.2.3"}], None, "does not say how many"),
        ([], 0xA700, "0xA700"),
    ],
    ids=["another study", "no number", "refused"],
)
def test_an_answer_that_is_none_is_not_believed(matches: list[dict[str, Any]], last: int | None, says: str) -> None:
    def find(_event: evt.Event) -> Iterator[tuple[int, pydicom.Dataset | None]]:
        for one in matches:
            yield 0xFF00, _match(**one)
        if last is not None:
            yield last, None

    with answering(find) as peer:
        counted = count_instances(peer, "OVERREAD", "1.2.3", 5)
    assert counted.count is None
    assert says in counted.answer


# what associations carry


def study_row(receiver: Receiver) -> dict[str, Any]:
    (study,) = receiver.rows("SELECT quiet_from, last_received_at, released_at FROM study")
    return dict(study)


def ended(receiver: Receiver, count: int) -> Callable[[], bool]:
    """Whether so many associations have ended, and the node has written it down."""
    return lambda: sum(one["event"] == "association ended" for one in receiver.log()) >= count


def test_only_the_release_of_the_last_association_that_carried_a_study_is_evidence(tmp_path: Path) -> None:
    files = ct_series(tmp_path / "ct", np.zeros((4, 4, 4)))
    with receiving(tmp_path / "r", options={"receivers": 3}) as receiver:
        with sending(receiver.port) as first, sending(receiver.port) as second, sending(receiver.port) as third:
            stored(first, files[0])
            stored(second, files[1])
            stored(third, files[2])
            second.release()
            wait_until(ended(receiver, 1), 10, "the second to end")
            assert study_row(receiver)["released_at"] is None, "two go on"
            third.abort()
            wait_until(ended(receiver, 2), 10, "the third to end")
            assert study_row(receiver)["released_at"] is None, "an abort says nothing"
            first.release()
            wait_until(ended(receiver, 3), 10, "the first to end")
            row = study_row(receiver)
            assert row["released_at"] == row["quiet_from"] > row["last_received_at"]
        with sending(receiver.port) as alone:
            stored(alone, files[3])
            assert study_row(receiver)["quiet_from"] > study_row(receiver)["released_at"], "it counts no more"
            alone.abort()
            wait_until(ended(receiver, 4), 10, "the abort")
        assert study_row(receiver)["released_at"] is None


def test_what_a_process_carried_that_died_is_carried_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "carried"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        theirs = Carried(path)
        theirs.begin("1.2.3")
        theirs.begin("1.2.4")
        os.write(writing, b"x")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"
        ours = Carried(path)
        for uid in ("1.2.3", "1.2.4", "1.2.5"):
            ours.begin(uid)
        assert ours.end(["1.2.3", "1.2.5"]) == {"1.2.5"}, "the other process carries 1.2.3"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    assert ours.end(["1.2.4"]) == {"1.2.4"}
    ours.close()
    assert ours.end(["1.2.4"]) == set(), "closed: it cannot know"


def test_more_studies_than_a_record_holds_are_taken_for_any(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        theirs = Carried(tmp_path / "carried")
        for number in range(1100):
            theirs.begin(f"1.2.{number}")
        os.write(writing, b"x")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"
        ours = Carried(tmp_path / "carried")
        ours.begin("1.3")
        assert ours.end(["1.3"]) == set()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


# the whole node


def test_the_node_weighs_counts_releases_and_an_operators_word(
    start_orthanc: Callable[..., Orthanc],
    start_mllp_receiver: Callable[..., MllpReceiver],
    start_node: Callable[..., Node],
    tmp_path: Path,
) -> None:
    pacs, emr = start_orthanc(), start_mllp_receiver()
    node = start_node(
        pacs=pacs,
        emr=emr,
        options={
            "completion": {"quiet_seconds": 300, "after_release_seconds": 0.5, "count_every_seconds": 0.3},
            "peers": {
                "pacs": {
                    "ae_title": pacs.ae_title,
                    "host": "127.0.0.1",
                    "port": pacs.dimse_port,
                    "count": True,
                    "timeout_seconds": 10,
                }
            },
        },
    )

    def reported(uid: str) -> bool:
        revisions = story_of(node, uid)["revisions"]
        return len(revisions) == 1 and revisions[0]["state"] == "REPORTED"

    # The PACS forwards a study in two parts, of which neither is long enough after the other for the quiet period.
    uid, files = chest_ct(tmp_path / "a", seed=21)
    push(files, pacs.dimse_port, called=pacs.ae_title)
    push(files[:20], node.dimse_port, calling=pacs.ae_title)
    waited = f"peer pacs has {len(files)} instances, of which 20 are here"
    wait_until(lambda: story_of(node, uid)["waiting_for"] == waited, 30, "the count", interval=0.2)
    assert waited in node.run("status").stdout
    assert story_of(node, uid)["revisions"] == []
    push(files[20:], node.dimse_port, calling=pacs.ae_title)
    wait_until(lambda: reported(uid), 60, "the report", interval=0.3)
    (revision,) = story_of(node, uid)["revisions"]
    assert revision["verdict"]["because"] == "release"
    assert revision["instances"] == len(files)
    told = node.run("explain", uid).stdout
    for words in (f"peer pacs has {len(files)} instances, {len(files)} are here", "the last association", "asked"):
        assert words in told
    assert "missing" not in told

    # An association that never ends holds up nothing for ever; an operator need not wait for it.
    other, more = chest_ct(tmp_path / "b", seed=22)
    with sending(node.dimse_port) as association:
        stored(association, *more)
        began = time.monotonic()
        answer = httpx.post(f"{node.url}/api/v1/studies/{other}/complete", json={"by": "ann"}, timeout=10)
        assert answer.json()["changed"], answer.text
        wait_until(lambda: reported(other), 60, "the report", interval=0.3)
        assert time.monotonic() - began < 60
        assert association.is_established
        assert "judged at the word of ann" in node.run("explain", other, "--events").stdout
        association.release()
    again = node.run("complete", other)
    assert "complete already" in again.stdout
    assert len(story_of(node, other)["revisions"]) == 1

    # A modality says what it has made while its association goes on, and nothing more is waited for.
    third, images = chest_ct(tmp_path / "c", seed=24)
    with sending(node.dimse_port) as association:
        step = performing(association, third)
        stored(association, *images)
        wait_until(lambda: story_of(node, third)["procedure_steps"], 10, "the step")
        assert story_of(node, third)["revisions"] == []
        performed(association, step, images)
        wait_until(lambda: reported(third), 60, "the report", interval=0.3)
        assert association.is_established
        association.release()
    (revision,) = story_of(node, third)["revisions"]
    assert revision["verdict"]["because"] == "procedure step"
    assert f"{len(images)} of {len(images)} named instances are here" in node.run("explain", third).stdout


def test_a_study_that_keeps_growing_is_read_as_it_stands_and_again_when_it_is_whole_and_nothing_runs_twice(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node(options={"completion": {"quiet_seconds": 4, "maximum_seconds": 4.5}})
    uid, files = chest_ct(tmp_path, seed=23)

    def states() -> list[str]:
        return [one["state"] for one in story_of(node, uid)["revisions"]]

    with sending(node.dimse_port) as association:
        stored(association, *files[:10])
        rest = iter(files[10:22])

        def opened() -> bool:
            if (file := next(rest, None)) is not None:
                stored(association, file)
            return bool(story_of(node, uid)["revisions"])

        # One more with every look, so that it is never quiet.
        wait_until(opened, 30, "a revision although it grows", interval=0.35)
        assert story_of(node, uid)["revisions"][0]["verdict"]["because"] == "maximum"
        stored(association, *rest, *files[22:])

        def whole() -> bool:
            last = story_of(node, uid)["revisions"][-1]
            return bool(last["instances"] == len(files) and set(states()) == {"REPORTED"})

        wait_until(whole, 60, "the last revision", interval=0.3)
        assert association.is_established, "it never ended"
    told = story_of(node, uid)
    inputs = [str(one["input_set"]) for one in told["workitems"]]
    assert len(inputs) == len(set(inputs)) == len(told["revisions"])
    assert all(len(one["attempts"]) == 1 for one in told["workitems"])
    assert [told["flags"][0][one] for one in ("kind", "subject")] == ["incomplete", "revision 1"]
