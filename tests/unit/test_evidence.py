"""What evidence documents say, who they say made it, and what must not leave."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from inference.findings import Findings, NotAnalysed
from node.errors import EvidenceError
from node.evidence.check import check_documents
from node.evidence.provenance import Context, local_time
from node.evidence.source import read_sources
from storage.headers import read_header
from storage.index import is_made_here
from tests.dicom_factory import ct_series, radiograph
from tests.evidence_factory import DEMO, LUNG_CT, NODE, NOW, classified, content, documents_of, make, segmented, uids_of

SHAPE = (6, 16, 12)


def labels() -> Any:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 2:9, 1:4] = 1
    mask[2:5, 3:8, 7:11] = 2
    return mask


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return ct_series(tmp_path_factory.mktemp("ct"), np.zeros(SHAPE))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return radiograph(tmp_path_factory.mktemp("cr"), np.zeros((16, 16)))


@pytest.fixture(scope="module")
def lungs(ct: list[Path]) -> dict[str, Dataset]:
    return make(segmented(ct, labels()), ct)


def value_of(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeMeaning)


def value_of_text(report: Dataset, name: str) -> list[str]:
    return [str(one.TextValue) for one in content(report, name)]


def listed(report: Dataset) -> set[str]:
    return {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def test_documents_lie_in_the_sources_study_in_new_series_that_sort_last(
    ct: list[Path], lungs: dict[str, Dataset]
) -> None:
    source = pydicom.dcmread(ct[0])
    for document in lungs.values():
        assert document.StudyInstanceUID == source.StudyInstanceUID
        assert document.PatientID == source.PatientID
        assert document.AccessionNumber == source.AccessionNumber
        assert document.SeriesNumber > 99_999
        assert document.SeriesDescription.startswith("AI")
        assert "research use" in document.SeriesDescription
    assert len({source.SeriesInstanceUID, *(one.SeriesInstanceUID for one in lungs.values())}) == 3


def test_the_algorithm_is_identified_by_its_device_uid_in_both(lungs: dict[str, Dataset]) -> None:
    for document in lungs.values():
        (item,) = document.ContributingEquipmentSequence
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert (item.ManufacturerModelName, item.SoftwareVersions, item.DeviceUID) == ("lung-ct", "1.0.0", "2.25.1001")
    assert [item.SegmentAlgorithmType for item in lungs["SEG"].SegmentSequence] == ["AUTOMATIC", "AUTOMATIC"]
    groups = content(lungs["SR"], "Measurement Group")
    assert [[one.TextValue for one in group.ContentSequence if one.ConceptNameCodeSequence[0].CodeValue == "111001"]
            for group in groups] == [["lung-ct"], ["lung-ct"]]  # fmt: skip


def test_a_report_is_preliminary_and_unverified_and_its_observer_is_a_device(lungs: dict[str, Dataset]) -> None:
    report = lungs["SR"]
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert [value_of(one) for one in content(report, "Observer Type")] == ["Device"]
    assert content(report, "Device Observer UID")[0].UID == "2.25.1001"


def test_a_report_lists_every_image_and_the_segmentation(ct: list[Path], lungs: dict[str, Dataset]) -> None:
    assert listed(lungs["SR"]) == {*uids_of(ct), lungs["SEG"].SOPInstanceUID}
    referenced = lungs["SEG"].ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in referenced} >= set(uids_of(ct)[1:5])


def test_volumes_are_in_ucum_millilitres_and_tracked_as_in_the_segmentation(lungs: dict[str, Dataset]) -> None:
    measured = [item.MeasuredValueSequence[0] for item in content(lungs["SR"], "Volume")]
    assert [float(item.NumericValue) for item in measured] == [12.3, 9.5]
    assert {item.MeasurementUnitsCodeSequence[0].CodeValue for item in measured} == {"mL"}
    tracked = [item.UID for item in content(lungs["SR"], "Tracking Unique Identifier")]
    assert tracked == [item.TrackingUID for item in lungs["SEG"].SegmentSequence]
    assert len(set(tracked)) == 2


def test_a_report_states_what_was_covered(lungs: dict[str, Dataset]) -> None:
    said = " ".join(item.TextValue for item in content(lungs["SR"], "Comment"))
    assert "6 images, 2.000 mm apart, 12.0 mm" in said
    assert "cannot be seen" in said


def test_findings_are_present_or_absent_with_their_probability_and_threshold(film: Path) -> None:
    report = make(classified(film), [film], DEMO)["SR"]
    assert value_of(content(report, "Pneumothorax")[0]) == "Present"
    assert value_of(content(report, "Pleural effusion")[0]) == "Absent"
    assert [float(item.MeasuredValueSequence[0].NumericValue) for item in content(report, "Probability")] == [
        0.91,
        0.02,
    ]
    assert "threshold = 0.5" in {item.TextValue for item in content(report, "Algorithm Parameters")}
    assert [value_of(item) for item in content(report, "Summary of Analyses")] == ["Succeeded"]


def test_nothing_present_is_said_as_absent_and_not_by_silence(film: Path) -> None:
    report = make(classified(film, 0.1, 0.2), [film], DEMO)["SR"]
    assert [value_of(content(report, name)[0]) for name in ("Pneumothorax", "Pleural effusion")] == ["Absent", "Absent"]
    assert any("none of the findings" in item.TextValue for item in content(report, "Comment"))


def test_not_analysed_is_coded_with_its_reason_and_holds_no_finding(ct: list[Path]) -> None:
    refused = Findings(images=uids_of(ct), not_analysed=NotAnalysed(reason="no-lungs", text="no lungs in the volume"))
    documents = make(refused, ct)
    assert list(documents) == ["SR"]
    assert {value_of(item) for item in content(documents["SR"], "Summary of Analyses")} == {"Not Attempted"}
    assert any("no lungs in the volume" in item.TextValue for item in content(documents["SR"], "Comment"))
    everything = str(documents["SR"])
    assert "Absent" not in everything
    assert "Succeeded" not in everything


def test_a_demonstration_model_says_so_wherever_it_is_read(film: Path, ct: list[Path]) -> None:
    report = make(classified(film), [film], DEMO)["SR"]
    assert "demonstration, trained on synthetic images" in report.SeriesDescription
    assert any("trained on synthetic images" in item.TextValue for item in content(report, "Comment"))
    assert any("trained on synthetic images" in item.TextValue for item in content(report, "Algorithm Parameters"))
    segmentation = make(segmented(ct, labels()), ct, replace(LUNG_CT, demonstration=True))["SEG"]
    assert "demonstration, trained on synthetic images" in segmentation.SeriesDescription
    assert "trained on synthetic images" in segmentation.ContributingEquipmentSequence[0].ContributionDescription


def test_the_procedure_reported_is_the_imaging_procedure(tmp_path: Path, film: Path) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399208008", "SCT", "Plain chest X-ray"
    named = radiograph(tmp_path, np.zeros((16, 16)), ProcedureCodeSequence=[code])
    report = make(classified(named), [named], DEMO)["SR"]
    assert value_of(content(report, "Procedure Reported")[0]) == "Plain chest X-ray"
    report = make(classified(film), [film], DEMO)["SR"]
    assert value_of(content(report, "Procedure Reported")[0]) == "XR unspecified body region"


def test_times_are_in_the_sources_offset_where_it_states_one(tmp_path: Path, film: Path) -> None:
    report = make(classified(film), [film], DEMO)["SR"]
    assert (report.ContentTime[:6], report.TimezoneOffsetFromUTC) == ("050607", "+0000")
    stated = radiograph(tmp_path, np.zeros((16, 16)), TimezoneOffsetFromUTC="-0330")
    report = make(classified(stated), [stated], DEMO)["SR"]
    assert (report.ContentTime[:6], report.TimezoneOffsetFromUTC) == ("013607", "-0330")
    with pytest.raises(EvidenceError, match="offset"):
        local_time(datetime(2026, 1, 1), None)


def test_later_revisions_sort_later_and_track_the_same_findings(film: Path) -> None:
    first, second = (make(classified(film), [film], DEMO, revision=number)["SR"] for number in (1, 2))
    assert first.SeriesNumber < second.SeriesNumber
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert [one.UID for one in content(first, "Tracking Unique Identifier")] == [
        one.UID for one in content(second, "Tracking Unique Identifier")
    ]


def test_a_missing_source_is_named(ct: list[Path]) -> None:
    with pytest.raises(EvidenceError, match=uids_of(ct)[0]):
        documents_of(segmented(ct, labels()), ct[1:])


def test_images_of_two_studies_are_refused(ct: list[Path], film: Path) -> None:
    with pytest.raises(EvidenceError, match="2 studies"):
        documents_of(
            Findings(images=uids_of([ct[0], film]), not_analysed=NotAnalysed(reason="x", text="x")), [*ct, film]
        )


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (np.ones((6, 16, 13), np.uint8), "16 x 12"),
        (np.full(SHAPE, 9, np.uint8), "no segment describes"),
        (np.ones((5, 16, 12), np.uint8), "6 images"),
        (np.ones(SHAPE, np.int32), "uint8"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(ct: list[Path], mask: Any, why: str) -> None:
    with pytest.raises(EvidenceError, match=why):
        documents_of(segmented(ct, mask), ct)


def test_a_mask_on_images_without_position_is_refused(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE), ImagePositionPatient=None)
    with pytest.raises(EvidenceError, match="no mask can be placed"):
        documents_of(segmented(paths, labels()), paths)


def test_findings_that_say_nothing_are_refused(film: Path) -> None:
    with pytest.raises(EvidenceError, match="neither say anything"):
        documents_of(Findings(images=uids_of([film])), [film])


def test_findings_about_an_image_that_was_not_read_are_refused(film: Path) -> None:
    with pytest.raises(EvidenceError, match="not among those read"):
        documents_of(replace(classified(film), images=("2.25.8",)), [film])


def test_a_file_that_is_no_dicom_is_refused_without_its_content(tmp_path: Path, film: Path) -> None:
    junk = tmp_path / "junk.dcm"
    junk.write_bytes(b"PATIENT SECRET " * 40)
    with pytest.raises(EvidenceError) as refusal:
        documents_of(classified(film), [junk])
    assert "SECRET" not in str(refusal.value)


DEFECTS: dict[str, Any] = {
    "StudyInstanceUID": lambda one: setattr(one, "StudyInstanceUID", "2.25.5"),
    "PatientName": lambda one: setattr(one, "PatientName", "Other^Patient"),
    "private": lambda one: one.private_block(0x0011, "X", create=True).add_new(1, "LO", "x"),
    "Contributing Equipment": lambda one: delattr(one, "ContributingEquipmentSequence"),
    "flags": lambda one: setattr(one, "VerificationFlag", "VERIFIED"),
    "neither source nor document": lambda one: setattr(
        content(one, "Source")[0].ReferencedSOPSequence[0], "ReferencedSOPInstanceUID", "2.25.6"
    ),
    "no evidence sequence lists": lambda one: one.CurrentRequestedProcedureEvidenceSequence.clear(),
    "research use": lambda one: setattr(one, "SeriesDescription", "Report"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_document_with_a_defect_does_not_leave(film: Path, defect: str) -> None:
    (document,) = documents_of(classified(film), [film], DEMO)
    source = read_sources([film], uids_of([film]))
    context = Context(source=source, model=DEMO, node=NODE, revision=1, predecessors=(), now=NOW)
    check_documents([document], context)
    dataset = pydicom.dcmread(BytesIO(document.data))
    DEFECTS[defect](dataset)
    buffer = BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(EvidenceError, match=defect) as refusal:
        check_documents([replace(document, data=buffer.getvalue())], context)
    assert "Phantom" not in str(refusal.value)


def test_a_mask_that_cannot_be_written_is_told_without_the_texts_of_libraries(
    ct: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Hidden^Name is no valid PN")

    # The one place where a library's own words come in: what it refuses depends on its version.
    monkeypatch.setattr("highdicom.seg.Segmentation.__init__", refuse)
    with pytest.raises(
        EvidenceError, match=r"no SEG can be written .*: ValueError at test_evidence.py:\d+$"
    ) as refusal:
        documents_of(segmented(ct, labels()), ct)
    assert refusal.value.__suppress_context__


def test_truncated_bytes_do_not_leave(film: Path) -> None:
    (document,) = documents_of(classified(film), [film], DEMO)
    source = read_sources([film], uids_of([film]))
    context = Context(source=source, model=DEMO, node=NODE, revision=1, predecessors=(), now=NOW)
    with pytest.raises(EvidenceError):
        check_documents([replace(document, data=document.data[:600])], context)


def test_a_model_of_another_maker_is_named_as_theirs_and_its_documents_are_known_as_the_nodes(
    ct: list[Path], tmp_path: Path
) -> None:
    theirs = replace(LUNG_CT, manufacturer="Ann's Workshop")
    report, mask = (made := make(segmented(ct, labels()), ct, theirs))["SR"], made["SEG"]
    assert value_of_text(report, "Device Observer Manufacturer") == ["Ann's Workshop"]
    assert set(value_of_text(report, "Algorithm Manufacturer")) == {"Ann's Workshop"}
    (source,) = {item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmSource for item in mask.SegmentSequence}
    assert source == "Ann's Workshop"
    for kind, document in made.items():
        assert document.Manufacturer == "Overread"
        assert [one.Manufacturer for one in document.ContributingEquipmentSequence] == ["Ann's Workshop", "Overread"]
        document.save_as(tmp_path / f"{kind}.dcm")
        assert is_made_here(read_header(tmp_path / f"{kind}.dcm"), ())


def test_whoever_takes_a_document_in_again_knows_it_and_its_model(ct: list[Path], tmp_path: Path) -> None:
    for number, document in enumerate(documents_of(segmented(ct, labels()), ct)):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(document.data)
        assert is_made_here(read_header(path), ())
        assert LUNG_CT.device_uid in read_header(path).device_uids
    assert not is_made_here(read_header(ct[0]), {LUNG_CT.device_uid})
