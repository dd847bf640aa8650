"""QIDO-RS: the keys, the names in every character set, and what is told of what is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from tests.dicom_factory import ct_series, radiograph
from tests.web import WebNode, running_web

PIXELS = np.full((16, 16), 7)
A, B, C = (f"1.2.3.{number}" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebNode]:
    """Three studies: two radiographs and a CT of two series, of different days and patients."""
    with running_web(tmp_path_factory.mktemp("searched")) as web:
        _fill(web, tmp_path_factory.mktemp("sources"))
        yield web


def _fill(web: WebNode, folder: Path) -> None:
    request = Dataset()
    request.ScheduledProcedureStepID, request.RequestedProcedureID = "SPS-7", "RP-7"
    studies = [
        {"study_uid": A, "PatientID": "A-1", "PatientName": "Doe^Jane", "StudyDate": "20250630", "StudyTime": "0830"},
        {"study_uid": B, "PatientID": "B_1", "PatientName": "Doe^John", "StudyDate": "20260102", "StudyTime": "1200"},
    ]
    for one in studies:
        web.take_in(radiograph(folder / "cr", PIXELS, RequestAttributesSequence=[request], **one))
    for number in ("1", "2"):
        for path in ct_series(
            folder / "ct",
            [PIXELS, PIXELS],
            study_uid=C,
            PatientID="C1",
            PatientName="Иванов^Иван",
            StudyDate="20260301",
            StudyDescription="CT THORAX 100%",
            AccessionNumber="ACC7",
            SeriesNumber=number,
        ):
            web.take_in(path)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [A, B, C]),
        ({"PatientID": "A-1"}, [A]),
        ({"00100020": "A-1"}, [A]),
        ({"PatientID": "a-1"}, []),
        ({"PatientID": "?_1"}, [B]),
        ({"PatientID": "*1"}, [A, B, C]),
        ({"PatientName": "doe*"}, [A, B]),
        ({"PatientName": "DOE^JANE"}, [A]),
        ({"PatientName": "иванов*"}, [C]),
        ({"PatientName": "*"}, [A, B, C]),
        ({"PatientName": ""}, [A, B, C]),
        ({"StudyDate": "20260102"}, [B]),
        ({"StudyDate": "20260101-"}, [B, C]),
        ({"StudyDate": "-20260102"}, [A, B]),
        ({"StudyDate": "20250630-20260102", "StudyTime": "09-"}, [B]),
        ({"StudyDescription": "*100%"}, [C]),
        ({"AccessionNumber": "ACC7"}, [C]),
        ({"ModalitiesInStudy": "CT"}, [C]),
        ({"ModalitiesInStudy": "CR,CT"}, [A, B, C]),
        ({"ModalitiesInStudy": "M?"}, []),
        ({"StudyInstanceUID": f"{A},{C}"}, [A, C]),
        ({"StudyInstanceUID": f"{A}\\{C}"}, [A, C]),
        ({"StudyInstanceUID": "1.2.3"}, []),
        ({"PatientName": "doe*", "limit": "1"}, [A]),
        ({"PatientName": "doe*", "limit": "1", "offset": "1"}, [B]),
        ({"limit": "0"}, []),
        ({"offset": "5"}, []),
    ],
)
def test_studies_are_found_by_their_keys(searched: WebNode, parameters: dict[str, str], expected: list[str]) -> None:
    answer = searched.http.get("/dicom-web/studies", params=parameters)
    if not expected:
        assert (answer.status_code, answer.content) == (204, b"")
        return
    assert answer.status_code == 200, answer.text
    assert [one["0020000D"]["Value"][0] for one in answer.json()] == expected


@pytest.mark.parametrize(
    ("path", "parameters", "count"),
    [
        ("series", {}, 4),
        ("series", {"Modality": "CT"}, 2),
        ("series", {"Modality": "CT", "SeriesNumber": "2"}, 1),
        ("series", {"PatientID": "A-1"}, 1),
        ("series", {"RequestAttributesSequence.ScheduledProcedureStepID": "SPS-*"}, 2),
        ("series", {"00400275.00401001": "RP-8"}, 0),
        (f"studies/{C}/series", {"SeriesNumber": "1"}, 1),
        (f"studies/{A}/series", {"Modality": "CT"}, 0),
        ("instances", {}, 6),
        ("instances", {"Rows": "16", "Modality": "CR"}, 2),
        ("instances", {"Rows": "17"}, 0),
        (f"studies/{C}/instances", {"InstanceNumber": "1"}, 2),
        ("studies/1.2.9/instances", {}, 0),
    ],
)
def test_series_and_instances_are_found_by_theirs_and_their_studys(
    searched: WebNode, path: str, parameters: dict[str, str], count: int
) -> None:
    answer = searched.http.get(f"/dicom-web/{path}", params=parameters)
    assert answer.status_code == (200 if count else 204)
    assert len(answer.json() if count else []) == count


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("studies", {"PatientTaste": "sweet"}),
        ("studies", {"Modality": "CT"}),
        ("series", {"Rows": "16"}),
        ("studies", {"StudyDate": "yesterday"}),
        ("studies", {"limit": "-1"}),
        ("studies", {"offset": "many"}),
        ("studies", {"includefield": "Nothing"}),
        ("studies", {"PatientID.PatientName": "x"}),
    ],
)
def test_a_key_that_nothing_can_be_found_by_is_400_and_repeats_no_value(
    searched: WebNode, path: str, parameters: dict[str, str]
) -> None:
    answer = searched.http.get(f"/dicom-web/{path}", params=parameters)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "sweet" not in answer.text
    assert "yesterday" not in answer.text


def test_more_is_told_where_it_is_asked_for(searched: WebNode) -> None:
    def told(*fields: str) -> set[str]:
        answer = searched.http.get(
            "/dicom-web/studies", params=[("PatientID", "C1"), *(("includefield", field) for field in fields)]
        )
        return set(answer.json()[0])

    usual = told()
    assert {"00081190", "00080056", "00201206", "00201208", "00080061"} <= usual
    assert "00080062" not in usual
    assert told("SOPClassesInStudy", "00081030") == usual | {"00080062"}
    assert told("SOPClassesInStudy,InstitutionName") == usual | {"00080062"}
    assert told("all") >= usual


def test_what_is_found_can_be_fetched_from_where_it_says(searched: WebNode) -> None:
    for level in ("studies", "series", "instances"):
        for found in searched.http.get(f"/dicom-web/{level}").json():
            assert found["00080005"]["Value"] == ["ISO_IR 192"]
            assert found["00080056"]["Value"] == ["ONLINE"]
            assert searched.http.get(found["00081190"]["Value"][0]).status_code == 200


def test_matching_that_is_not_done_is_said_so(searched: WebNode) -> None:
    answer = searched.http.get("/dicom-web/studies", params={"PatientName": "Doe*", "fuzzymatching": "true"})
    assert answer.status_code == 200
    assert answer.headers["warning"].startswith(f"299 {searched.dicomweb}")
    assert "fuzzymatching" in answer.headers["warning"]


def test_the_answer_comes_as_xml_where_xml_is_asked_for(searched: WebNode) -> None:
    answer = searched.http.get(
        "/dicom-web/studies", headers={"Accept": 'multipart/related; type="application/dicom+xml"'}
    )
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    documents = [part.partition(b"\r\n\r\n")[2] for part in answer.content.split(b"--" + boundary)[1:-1]]
    names = [ET.fromstring(one).findtext(".//PersonName/Alphabetic/FamilyName") for one in documents]
    assert names == ["Doe", "Doe", "Иванов"]


def test_names_of_every_character_set_are_found_by_code_point(web: WebNode, shared_data: Path) -> None:
    tried = 0
    for path in sorted((shared_data / "charset").glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        dataset.decode()
        if not dataset.get("StudyInstanceUID") or not dataset.get("PatientName"):
            continue
        web.take_in(path)
        for group in (dataset.PatientName.alphabetic, dataset.PatientName.ideographic, dataset.PatientName.phonetic):
            if not group:
                continue
            for wanted in (group, group[:3] + "*", f"*{group[-2:]}", group.upper(), f"{group[0]}?{group[2:]}"):
                answer = web.http.get(
                    "/dicom-web/studies", params={"PatientName": wanted, "StudyInstanceUID": dataset.StudyInstanceUID}
                )
                assert answer.status_code == 200, (path.name, wanted)
            [found] = answer.json()
            assert group in found["00100010"]["Value"][0].values()
            tried += 1
        other = web.http.get("/dicom-web/studies", params={"PatientName": "Ящ*"})
        assert other.status_code == 204
    assert tried >= 10


def test_a_cyrillic_name_is_found_whatever_its_case_and_form(web: WebNode, tmp_path: Path) -> None:
    # й is one code point or two: both are the same letter.
    web.take_in(radiograph(tmp_path, PIXELS, PatientName="Достоевски\u0438\u0306^Федор"))
    for wanted in ("достоевский^федор", "ДОСТОЕВСКИ\u0419*", "*евск*"):
        assert web.http.get("/dicom-web/studies", params={"PatientName": wanted}).status_code == 200, wanted
    assert web.http.get("/dicom-web/studies", params={"PatientName": "достоевски^*"}).status_code == 204


def test_health_metrics_and_documentation_are_there(start_web: Callable[..., WebNode], tmp_path: Path) -> None:
    web = start_web()
    web.take_in(radiograph(tmp_path, PIXELS, PatientName="Secret^Name", PatientID="SECRET-7", study_uid=generate_uid()))
    assert web.http.get("/health/live").json()["status"] == "live"
    told = web.http.get("/health/ready").json()
    assert (told["status"], told["complaints"], told["warnings"]) == ("ready", {}, {})
    text = web.http.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['overread_studies{state="RECEIVING"}']) == 1
    assert float(lines["overread_instances"]) == 1
    assert float(lines["overread_wal_bytes"]) > 0
    assert float(lines['overread_workitems{state="IN PROGRESS"}']) == 0
    assert "ecret" not in text.lower()
    assert "/dicom-web/studies" in web.http.get("/openapi.json").json()["paths"]
    assert web.http.get("/docs").status_code == 200
    web.services.incoming.rename(web.folder / "gone")
    ready = web.http.get("/health/ready")
    assert ready.status_code == 503
    assert "data_dir" in ready.json()["complaints"]
