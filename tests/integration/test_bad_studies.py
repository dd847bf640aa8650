"""Studies that are wrong: each gets a precise word, makes no finding, and the node goes on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from demo.messages import read_message
from demo.peers import wait_until
from phantoms.thorax import make_thorax
from tests.dicom_factory import ct_series, radiograph
from tests.system import Site, chest_ct, push, results_in

SPACING = (10.0, 3.6, 3.6)


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    return make_thorax(4, shape=(26, 96, 96), spacing=SPACING).hu


def _says_not_analysed(site: Site, study_uid: str, *words: str) -> None:
    (message,) = site.wait_for_report(study_uid)
    for word in words:
        assert word in message["text"]
    assert results_in(site.pacs, study_uid) == {"SR": 1, "SEG": 0}


def test_a_gap_inside_a_series_is_not_analysed(site: Site, tmp_path: Path, hu: np.ndarray) -> None:
    study_uid = generate_uid()
    files = ct_series(tmp_path, hu, spacing=SPACING, study_uid=study_uid)
    push(files[:9] + files[10:], site.node.dimse_port)
    _says_not_analysed(site, study_uid, "gap")


def test_two_orientations_in_one_series_are_not_analysed(site: Site, tmp_path: Path, hu: np.ndarray) -> None:
    study_uid, series_uid = generate_uid(), generate_uid()
    shared = {"study_uid": study_uid, "series_uid": series_uid, "frame_of_reference_uid": generate_uid()}
    files = ct_series(tmp_path / "a", hu, spacing=SPACING, **shared)
    files += ct_series(tmp_path / "b", hu[:6], spacing=SPACING, orientation=(1, 0, 0, 0, 0, -1), **shared)
    push(files, site.node.dimse_port)
    _says_not_analysed(site, study_uid, "orientation")


def test_two_patients_in_one_study_are_parked_until_an_operator_takes_one_out(
    site: Site, tmp_path: Path, hu: np.ndarray
) -> None:
    study_uid, stranger = generate_uid(), generate_uid()
    # The one that does not belong comes first.
    files = ct_series(
        tmp_path / "b", hu[:10], spacing=SPACING, study_uid=study_uid, series_uid=stranger, PatientID="P2"
    )
    files += ct_series(tmp_path / "a", hu, spacing=SPACING, study_uid=study_uid, PatientID="P1")
    push(files, site.node.dimse_port)
    wait_until(lambda: "two patients" in str(site.node.story(study_uid)), 60, "the study to be parked", interval=0.3)
    assert results_in(site.pacs, study_uid) == {"SR": 0, "SEG": 0}
    told = site.node.run("status").stdout
    assert study_uid in told
    assert "P1" not in told
    site.node.run("exclude", study_uid, "--series", stranger)
    site.node.run("retry", study_uid)
    (message,) = site.wait_for_report(study_uid)
    (pid,) = [one for one in read_message(message["text"].encode()) if one.name == "PID"]
    assert pid.field(3) == "P1"
    assert results_in(site.pacs, study_uid) == {"SR": 1, "SEG": 1}
    (raw,) = site.pacs.instances_of(study_uid, "SR")
    assert dcmread(io.BytesIO(raw)).PatientID == "P1"


def test_what_the_first_instance_leaves_out_the_others_say(site: Site, tmp_path: Path, hu: np.ndarray) -> None:
    study_uid, series_uid = generate_uid(), generate_uid()
    shared = {"study_uid": study_uid, "series_uid": series_uid, "frame_of_reference_uid": generate_uid()}
    empty = {"PatientID": "", "PatientName": "", "StudyDescription": "", "AccessionNumber": ""}
    say = {"PatientID": "P7", "PatientName": "Carla^C", "StudyDescription": "CT CHEST", "AccessionNumber": "A7"}
    common = {"spacing": SPACING, "BodyPartExamined": None, "ProtocolName": None, "SeriesDescription": None}
    files = ct_series(tmp_path / "a", hu, **common, **shared, **say)
    blank = ct_series(tmp_path / "b", hu, **common, **shared, **empty)[:1]
    push(blank + files[1:], site.node.dimse_port)
    (message,) = site.wait_for_report(study_uid)
    (pid,) = [one for one in read_message(message["text"].encode()) if one.name == "PID"]
    assert pid.field(3) == "P7"
    assert "A7" in message["text"]


def test_odd_values_of_one_study_hold_up_no_other(site: Site, tmp_path: Path, hu: np.ndarray) -> None:
    odd: list[dict[str, object]] = [
        {"PatientBirthDate": "00010101", "TimezoneOffsetFromUTC": "+9999"},
        {"StudyDate": "00010101"},
        {"IssuerOfPatientID": "I" * 60, "NumberOfFrames": "99999999999999999999999"},
    ]
    for number, attributes in enumerate(odd):
        _, files = chest_ct(tmp_path / f"odd-{number}", seed=40, **attributes)
        push(files, site.node.dimse_port)
    study_uid, files = chest_ct(tmp_path / "healthy", seed=41)
    push(files, site.node.dimse_port)
    site.wait_for_report(study_uid)
    assert "a step failed" not in site.node.log


def test_one_patient_spelled_in_two_ways_is_one_patient(site: Site, tmp_path: Path, hu: np.ndarray) -> None:
    study_uid = generate_uid()
    shared = {"spacing": SPACING, "study_uid": study_uid, "frame_of_reference_uid": generate_uid()}
    files = ct_series(tmp_path / "a", hu, PatientName="Müller^Anna", SpecificCharacterSet="ISO_IR 100", **shared)
    files += ct_series(tmp_path / "b", hu[:4], PatientName="MÜLLER^ANNA^^", SpecificCharacterSet="ISO_IR 192", **shared)
    push(files, site.node.dimse_port)
    site.wait_for_report(study_uid)
    assert results_in(site.pacs, study_uid) == {"SR": 1, "SEG": 1}


def test_a_radiograph_with_no_rows_is_not_analysed(site: Site, tmp_path: Path) -> None:
    study_uid = generate_uid()
    file = radiograph(tmp_path, np.zeros((16, 16)), modality="DX", study_uid=study_uid, Rows=0)
    push([file], site.node.dimse_port)
    _says_not_analysed(site, study_uid, "0 rows")


def test_truncated_pixels_are_not_analysed(site: Site, tmp_path: Path, hu: np.ndarray) -> None:
    study_uid = generate_uid()
    files = ct_series(tmp_path, hu, spacing=SPACING, study_uid=study_uid, PixelData=b"\0" * 100)
    push(files, site.node.dimse_port)
    _says_not_analysed(site, study_uid, "truncated")


def test_an_instance_that_stands_in_two_studies_runs_nothing_and_is_found_in_both(site: Site, tmp_path: Path) -> None:
    first_uid, files = chest_ct(tmp_path / "a", seed=21)
    second_uid = generate_uid()
    moved = []
    for file in files:
        dataset = dcmread(file)
        dataset.StudyInstanceUID = second_uid
        path = tmp_path / f"moved-{file.name}"
        dataset.save_as(path)
        moved.append(path)
    push(files + moved, site.node.dimse_port)
    for study_uid in (first_uid, second_uid):
        wait_until(
            lambda study_uid=study_uid: "stands under another" in str(site.node.story(study_uid)),  # type: ignore[misc]
            60,
            "the study to be parked",
            interval=0.3,
        )
        assert results_in(site.pacs, study_uid) == {"SR": 0, "SEG": 0}


def test_the_coverage_stands_in_the_report_since_a_missing_end_cannot_be_seen(site: Site, tmp_path: Path) -> None:
    study_uid, files = chest_ct(tmp_path, seed=22)
    push(files[:-3], site.node.dimse_port)
    (message,) = site.wait_for_report(study_uid)
    assert "23" in message["text"]
    assert results_in(site.pacs, study_uid) == {"SR": 1, "SEG": 1}
