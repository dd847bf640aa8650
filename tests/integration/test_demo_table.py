"""The demonstration's table believes the PACS and the EMR only, and its judgement can fail."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest

from demo.results import Pacs, Reading, read_log
from demo.studies import Study, find_studies
from demo.table import judge
from node.notify.hl7 import Profile, build_message
from node.notify.report import DocumentReference
from phantoms.dicom import write_radiograph
from tests.peers import Orthanc
from tests.unit.test_hl7 import LUNGS, NODULE, a_report, a_result

SENT_AT = datetime(2026, 11, 21, 8, 30, 55, tzinfo=UTC).timestamp()


def logged(message: bytes, control_id: str = "M1", acknowledgement: str = "AA") -> dict[str, Any]:
    return {
        "control_id": control_id,
        "message_type": "ORU^R01^ORU_R01",
        "acknowledgement": acknowledgement,
        "received_at": "2026-11-21T08:31:00+00:00",
        "raw": base64.b64encode(message).decode(),
    }


def test_everything_the_table_shows_is_read_out_of_the_message() -> None:
    both = {**LUNGS, "classifications": NODULE["classifications"]}
    parked = a_result(model_name="m2", state="parked", reason="it died", findings=None, documents=())
    declined = a_result(
        model_name="m3",
        state="not-analysed",
        reason="no lungs",
        findings={"not_analysed": {"reason": "n", "text": "t"}},
    )
    message = build_message(
        a_report(results=(a_result(findings=both, demonstration=True), parked, declined)), Profile(), "M1"
    )
    [read] = read_log([logged(message)])
    first, second, third = read.readings
    assert first == Reading(
        model="lung-ct",
        title="Lungs on chest CT",
        version="1.0.0",
        route="chest-ct",
        route_reason="Modality is CT and StudyDescription matches *CHEST*",
        volumes_ml={"right lung": 2511.0, "left lung": 0.0},
        present={"nodule": True, "pneumothorax": False},
        probabilities={"nodule": 0.9123, "pneumothorax": 0.0},
        demonstration=True,
        documents={"1.2.3.4": "SR", "1.2.3.5": "SEG"},
    )
    assert (second.parked, second.refusal) == (True, "it died")
    assert (third.parked, third.refusal) == (False, "no lungs")
    assert not second.demonstration


def test_a_repeat_is_one_message_and_other_bytes_under_the_same_id_are_noticed() -> None:
    message = build_message(a_report(), Profile(), "M1")
    [same] = read_log([logged(message, acknowledgement="AE"), logged(message)])
    assert (same.copies, same.identical, same.acknowledgement) == (2, True, "AA")
    [other] = read_log([logged(message), logged(message.replace(b"2511", b"2512"))])
    assert not other.identical


@pytest.fixture(scope="module")
def situation(tmp_path_factory: pytest.TempPathFactory, orthanc_of_module: Orthanc) -> Callable[..., tuple[str, ...]]:
    """A radiograph in a real PACS, and a judge of messages about it."""
    tmp_path, orthanc = tmp_path_factory.mktemp("situation"), orthanc_of_module
    phantom = write_radiograph(tmp_path / "images", 1, ("nodule",))
    httpx.post(f"{orthanc.http_url}/instances", content=phantom.files[0].read_bytes()).raise_for_status()
    document = pydicom.dcmread(phantom.files[0])
    document.Modality, document.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.34"
    document.SOPInstanceUID, document.SeriesInstanceUID = "1.2.3.4.5", "1.2.3.4"
    document.file_meta.MediaStorageSOPClassUID = document.SOPClassUID
    document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    del document.PixelData
    document.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    httpx.post(f"{orthanc.http_url}/instances", content=(tmp_path / "sr.dcm").read_bytes()).raise_for_status()
    study = Study(
        uid=phantom.study_instance_uid,
        title="radiograph",
        folder=tmp_path,
        images=1,
        model="lung-ct",
        documents=("SR",),
        findings={"nodule": True, "pneumothorax": False},
    )
    cited = DocumentReference("SR", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.4.5", True, "delivered")

    def complaints(*, copies: int = 1, acknowledgement: str = "AA", **changes: Any) -> tuple[str, ...]:
        expected = {key: changes.pop(key) for key in ("documents", "findings", "model", "images") if key in changes}
        result = a_result(**{"findings": NODULE, "documents": (cited,), **changes.pop("result", {})})
        message = build_message(a_report(study_uid=study.uid, results=(result,)), Profile(), "M1")
        records = [logged(message, f"M{number}", acknowledgement) for number in range(copies)]
        rows = judge(dataclasses.replace(study, **expected), read_log(records), Pacs(orthanc.dicomweb_url), SENT_AT)
        assert {row.seconds for row in rows} <= {5.0, None}
        return tuple(complaint for row in rows for complaint in row.complaints)

    return complaints


def test_what_is_all_there_has_no_complaint(situation: Callable[..., tuple[str, ...]]) -> None:
    assert situation() == ()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"copies": 0}, "0 messages instead of one"),
        ({"copies": 2}, "2 messages instead of one"),
        ({"acknowledgement": "AE"}, "answered AE"),
        ({"documents": ("SR", "SEG")}, "instead of SR and SEG"),
        ({"model": "another"}, "instead of one of another"),
        ({"images": 3}, "1 of 3 images"),
        ({"findings": {"nodule": False}}, "nodule: present, in truth not so"),
        ({"findings": {"effusion": True}}, "effusion: absent, in truth not so"),
        ({"result": {"documents": (DocumentReference("SR", "1", "9.9.9", True, ""),)}}, "SR of the message is not in"),
        ({"result": {"state": "parked", "reason": "it died", "findings": None}}, "parked: it died"),
        ({"result": {"state": "not-analysed", "reason": "no", "findings": {}}}, "not analysed"),
    ],
)
def test_what_is_wrong_is_said(
    change: dict[str, Any], complaint: str, situation: Callable[..., tuple[str, ...]]
) -> None:
    assert any(complaint in said for said in situation(**change))


def test_a_folder_of_files_becomes_studies_and_what_is_no_dicom_is_passed_over(tmp_path: Path) -> None:
    phantom = write_radiograph(tmp_path / "a", 1)
    (tmp_path / "notes.txt").write_text("no DICOM")
    [study] = find_studies(tmp_path)
    assert (study.uid, study.images, study.model) == (phantom.study_instance_uid, 1, None)
