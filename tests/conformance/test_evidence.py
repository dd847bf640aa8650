"""Evidence documents are valid DICOM, lie on the right patient points, and say exactly what was found."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import Dataset

from inference.findings import Code, Coverage, Detection, Findings, Measurement, NotAnalysed
from node.evidence.documents import EvidenceDocument, Predecessor
from tests.dicom_factory import AXIAL, ct_series, radiograph
from tests.evidence_factory import (
    DEMO,
    EFFUSION,
    RIGHT,
    classified,
    content,
    documents_of,
    errors_of,
    labels_by_point,
    make,
    masks_by_point,
    segmented,
    uids_of,
)
from tests.peers import need_program

SHAPE = (9, 24, 20)
#: Columns run to the patient's left, rows to the back and the feet: no axis of the patient is one of the grid.
OBLIQUE = tuple(np.linalg.qr(np.array([[0.9, 0.3, -0.1], [-0.2, 0.8, 0.5], [0.1, 0.2, 1.0]]).T)[0].T[:2].ravel() * -1)


def asymmetric_labels() -> npt.NDArray[np.uint8]:
    """Two blocks that no flip, turn or exchange of axes maps onto themselves or on each other."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:7, 3:15, 2:8] = 1
    labels[1:3, 15:20, 2:4] = 1
    labels[3:8, 4:12, 12:18] = 2
    labels[7, 4:6, 12:14] = 2
    return labels


def test_documents_of_a_segmentation_have_no_error(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE))
    documents = documents_of(segmented(paths, asymmetric_labels()), paths)
    assert [one.kind for one in documents] == ["SEG", "SR"]
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]


@pytest.mark.parametrize("modality", ["CR", "DX"])
def test_the_document_of_a_classification_has_no_error(tmp_path: Path, modality: str) -> None:
    path = radiograph(tmp_path, np.zeros((32, 32)), modality=modality)
    (document,) = documents_of(classified(path), [path], DEMO)
    assert errors_of(document, tmp_path) == []


def test_a_measured_value_stands_in_its_unit_beside_its_image(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.zeros((32, 32)))
    (uid,) = uids_of([path])
    ratio = Measurement(
        name="cardiothoracic ratio",
        code=Code(value="CTR", scheme="99TEST", meaning="Cardiothoracic ratio"),
        value=0.52123456789,
        unit=Code(value="1", scheme="UCUM", meaning="no units"),
        image=uid,
    )
    model = replace(DEMO, demonstration=False, task="measurement")
    (document,) = documents_of(Findings(images=(uid,), measurements=(ratio,)), [path], model)
    assert errors_of(document, tmp_path) == []
    (item,) = content(pydicom.dcmread(BytesIO(document.data)), "Cardiothoracic ratio")
    measured = item.MeasuredValueSequence[0]
    assert float(measured.NumericValue) == 0.5212346
    assert measured.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    (source,) = content(pydicom.dcmread(BytesIO(document.data)), "Source of Measurement")
    assert source.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == uid


def detections(uid: str, *boxes: tuple[float, float, float, float]) -> Findings:
    return Findings(
        images=(uid,),
        detections=tuple(
            Detection(name="nodule", code=NODULE, probability=0.75, threshold=0.5, image=uid, box=box) for box in boxes
        ),
    )


NODULE = Code(value="27925004", scheme="SCT", meaning="Nodule")
DETECTOR = replace(DEMO, demonstration=False, task="detection", sought=(NODULE, EFFUSION))


def test_boxes_are_regions_on_their_image_and_what_was_not_found_is_absent(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.zeros((32, 40)))
    (uid,) = uids_of([path])
    (document,) = documents_of(detections(uid, (2.5, 4, 10, 12), (0, 0, 32, 40)), [path], DETECTOR)
    assert errors_of(document, tmp_path) == []
    dataset = pydicom.dcmread(BytesIO(document.data))
    regions = content(dataset, "Image Region")
    assert [one.GraphicType for one in regions] == ["POLYLINE", "POLYLINE"]
    # Column before row, around the box and back to its beginning.
    assert list(regions[0].GraphicData) == [4, 2.5, 12, 2.5, 12, 10, 4, 10, 4, 2.5]
    assert regions[0].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == uid
    assert [float(one.MeasuredValueSequence[0].NumericValue) for one in content(dataset, "Probability")] == [0.75, 0.75]
    assert [one.ConceptCodeSequence[0].CodeMeaning for one in content(dataset, "Pleural effusion")] == ["Absent"]
    assert content(dataset, "Nodule") == []


def test_a_detector_that_finds_nothing_says_so_for_all_that_it_looks_for(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.zeros((32, 40)))
    (uid,) = uids_of([path])
    (document,) = documents_of(detections(uid), [path], DETECTOR)
    assert errors_of(document, tmp_path) == []
    dataset = pydicom.dcmread(BytesIO(document.data))
    for one in DETECTOR.sought:
        assert [item.ConceptCodeSequence[0].CodeMeaning for item in content(dataset, one.meaning)] == ["Absent"]
    assert any("nothing that the model looks for" in one.TextValue for one in content(dataset, "Comment"))


def test_the_document_of_a_refusal_has_no_error(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE))
    refused = Findings(
        images=uids_of(paths),
        coverage=Coverage(images=9, spacing_mm=2.0, extent_mm=18.0),
        not_analysed=NotAnalysed(reason="no-lungs", text="no lungs in the volume"),
    )
    (document,) = documents_of(refused, paths)
    assert document.kind == "SR"
    assert errors_of(document, tmp_path) == []


def test_a_document_that_follows_others_has_no_error_and_names_them(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.zeros((32, 32)))
    study = str(pydicom.dcmread(path).StudyInstanceUID)
    earlier = Predecessor(
        study_instance_uid=study,
        series_instance_uid="2.25.31",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid="2.25.32",
    )
    (document,) = documents_of(classified(path), [path], DEMO, predecessors=[earlier], revision=2)
    assert errors_of(document, tmp_path) == []
    item = pydicom.dcmread(BytesIO(document.data)).PredecessorDocumentsSequence[0]
    assert item.StudyInstanceUID == study
    assert item.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "2.25.32"


GEOMETRIES: dict[str, dict[str, Any]] = {
    "axial": {},
    "anisotropic": {"spacing": (5.0, 0.5, 1.25)},
    "oblique": {"orientation": OBLIQUE, "spacing": (3.0, 0.7, 0.9)},
    "feet first": {"orientation": (-1, 0, 0, 0, 1, 0), "PatientPosition": "FFS"},
    "prone": {"orientation": (-1, 0, 0, 0, -1, 0), "PatientPosition": "HFP"},
    "sagittal": {"orientation": (0, 1, 0, 0, 0, -1)},
    "downwards": {"step": (0.0, 0.0, -2.0)},
    "tilted gantry": {"orientation": AXIAL, "step": (0.0, 0.4, 2.0)},
}


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_voxel_lies_on_the_patient_point_of_its_label(tmp_path: Path, geometry: str, shuffled: bool) -> None:
    labels = asymmetric_labels()
    order = np.random.default_rng(5).permutation(len(labels)) if shuffled else np.arange(len(labels))
    paths = ct_series(tmp_path, np.zeros(SHAPE), order=[int(n) + 1 for n in order], **GEOMETRIES[geometry])
    given = [paths[i] for i in order]
    documents = documents_of(segmented(given, labels[order]), paths[::-1])
    segmentation = pydicom.dcmread(BytesIO(documents[0].data))
    assert masks_by_point(segmentation) == labels_by_point(paths, labels)
    assert errors_of(documents[0], tmp_path) == []


def test_the_right_lung_lies_on_the_patients_right(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE))
    segmentation = make(segmented(paths, asymmetric_labels()), paths)["SEG"]
    described = {item.SegmentedPropertyTypeCodeSequence[0].CodeValue: item for item in segmentation.SegmentSequence}
    points = masks_by_point(segmentation)
    right = np.mean([x for x, _, _ in points[described["3341006"].SegmentNumber]])
    left = np.mean([x for x, _, _ in points[described["44029006"].SegmentNumber]])
    assert right < left  # LPS: x grows to the patient's left


def test_a_mask_with_one_segment_is_written_and_cited(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE))
    labels = asymmetric_labels()
    labels[labels == 2] = 0
    documents = documents_of(segmented(paths, labels, (RIGHT,)), paths)
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    report = pydicom.dcmread(BytesIO(documents[1].data))
    (cited,) = content(report, "Referenced Segment")
    assert cited.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == documents[0].sop_instance_uid
    assert cited.ReferencedSOPSequence[0].ReferencedSegmentNumber == 1


def test_a_mask_on_a_single_image_is_valid(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros((1, 24, 20)))
    labels = asymmetric_labels()[4:5]
    documents = documents_of(segmented(paths, labels), paths)
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    assert masks_by_point(pydicom.dcmread(BytesIO(documents[0].data))) == labels_by_point(paths, labels)


def test_a_segment_without_a_voxel_is_left_out_of_the_mask_and_reported_with_its_volume(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE))
    labels = asymmetric_labels()
    labels[labels == 1] = 0
    documents = documents_of(segmented(paths, labels), paths)
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    segmentation, report = (pydicom.dcmread(BytesIO(one.data)) for one in documents)
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == ["left lung"]
    assert masks_by_point(segmentation)[1] == labels_by_point(paths, labels)[2]
    assert len(content(report, "Volume")) == 2
    assert len(content(report, "Referenced Segment")) == 1


def test_a_mask_without_any_voxel_gives_a_report_alone(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE))
    (document,) = documents_of(segmented(paths, np.zeros(SHAPE, np.uint8)), paths)
    assert document.kind == "SR"
    assert errors_of(document, tmp_path) == []


def test_a_mask_on_a_series_without_a_frame_of_reference_is_valid(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE), FrameOfReferenceUID=None, SliceThickness=None)
    labels = asymmetric_labels()
    documents = documents_of(segmented(paths, labels), paths)
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    assert masks_by_point(pydicom.dcmread(BytesIO(documents[0].data))) == labels_by_point(paths, labels)


@contextmanager
def as_they_are() -> Iterator[None]:
    """Let pydicom write and read invalid values without a warning: the test is about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _referenced(item: Dataset) -> Dataset:
    item.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    return item


def test_invalid_attributes_of_the_source_are_left_out_or_emptied(tmp_path: Path) -> None:
    broken: dict[str, Any] = {
        "PatientName": "",
        "PatientBirthDate": None,
        "PatientSex": "X",
        "StudyDate": "20261399",
        "StudyTime": "25:61",
        "StudyID": None,
        "AccessionNumber": None,
        "ReferringPhysicianName": "A" * 70,
        "StudyDescription": "x" * 80,
        "PatientAge": "45",
        "EthnicGroup": "Z" * 20,
        "AdmissionID": ["A", "B"],
        "PatientIdentityRemoved": "YES",
        "ReferencedPatientSequence": [_referenced(Dataset())],
        "ProcedureCodeSequence": [Dataset()],
        "PatientComments": "two\r\nlines",
    }
    with as_they_are():
        paths = ct_series(tmp_path, np.zeros(SHAPE), **broken)
    documents = documents_of(segmented(paths, asymmetric_labels()), paths)
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    for document in documents:
        dataset = pydicom.dcmread(BytesIO(document.data))
        for keyword in ("StudyDescription", "PatientAge", "EthnicGroup", "AdmissionID", "PatientIdentityRemoved"):
            assert keyword not in dataset
        for keyword in ("PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "PatientBirthDate"):
            assert dataset[keyword].is_empty, keyword
        assert dataset.PatientComments == "two\r\nlines"


def test_the_only_errors_are_the_sources_own_invalid_uids_and_identifiers(tmp_path: Path) -> None:
    with as_they_are():
        path = radiograph(
            tmp_path, np.zeros((32, 32)), study_uid="4.05.6", PatientID="P" * 70, AccessionNumber="A" * 20
        )
    (document,) = documents_of(classified(path), [path], DEMO)
    named = {line.split("</")[1].split("(")[0] for line in errors_of(document, tmp_path) if "dsrdump" not in line}
    assert named <= {"StudyInstanceUID", "PatientID", "AccessionNumber", "CurrentRequestedProcedureEvidenceSequence"}
    with as_they_are():
        dataset = pydicom.dcmread(BytesIO(document.data))
        kept = (dataset.StudyInstanceUID, dataset.PatientID, dataset.AccessionNumber)
    assert kept == ("4.05.6", "P" * 70, "A" * 20)


NAMES = {
    "ISO_IR 192": "Ива́нов^Пётр",
    "ISO_IR 144": "Люкceмбypг",
    "ISO_IR 126": "Διονυσιος",
    "ISO_IR 100": "Buc^Jérôme",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "ISO 2022 IR 13\\ISO 2022 IR 87": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    "GB18030": "Wang^XiaoDong=王^小东",
}


@pytest.mark.parametrize("character_set", NAMES)
def test_names_keep_their_code_points_and_character_set(tmp_path: Path, character_set: str) -> None:
    name = NAMES[character_set]
    path = radiograph(tmp_path, np.zeros((32, 32)), SpecificCharacterSet=character_set.split("\\"), PatientName=name)
    (document,) = documents_of(classified(path), [path], DEMO)
    assert errors_of(document, tmp_path) == []
    dataset = pydicom.dcmread(BytesIO(document.data))
    assert str(dataset.PatientName) == name
    written = dataset.SpecificCharacterSet
    assert (written if isinstance(written, str) else "\\".join(written)) == character_set
    assert _by_dcmtk(document, tmp_path) == _by_dcmtk_of(path)


def _by_dcmtk(document: EvidenceDocument, folder: Path) -> bytes:
    path = folder / "document.dcm"
    path.write_bytes(document.data)
    return _by_dcmtk_of(path)


def _by_dcmtk_of(path: Path) -> bytes:
    """The name as dcmtk, an independent reader, finds it."""
    program = need_program("/usr/bin/dcmdump", "dcmtk")
    done = subprocess.run([program, "+P", "PatientName", str(path)], capture_output=True, check=True)
    return done.stdout.split(b"[")[1].split(b"]")[0]


def test_text_beyond_the_sources_character_set_makes_the_document_utf_8(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.zeros((32, 32)), SpecificCharacterSet="ISO_IR 100", PatientName="Buc^Jérôme")
    title = "Находки на рентгенограмме"
    dataset = make(classified(path), [path], replace(DEMO, title=title))["SR"]
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert str(dataset.PatientName) == "Buc^Jérôme"
    assert content(dataset, "Device Observer Model Name")[0].TextValue == title


def test_real_sources_of_every_character_set_are_documented_by_code_point(shared_data: Path, tmp_path: Path) -> None:
    names = []
    for path in sorted((shared_data / "charset").glob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if not header.get("SOPInstanceUID") or not header.get("StudyInstanceUID"):
            continue
        (document,) = documents_of(classified(path), [path], DEMO)
        assert errors_of(document, tmp_path) == [], path.name
        assert str(pydicom.dcmread(BytesIO(document.data)).PatientName) == str(header.PatientName), path.name
        names.append(path.name)
    assert len(names) >= 10


def test_real_radiographs_are_documented_without_error(shared_data: Path, tmp_path: Path) -> None:
    for path in sorted((shared_data / "cxr_dicom").glob("*.dcm")):
        (document,) = documents_of(classified(path), [path], DEMO)
        assert errors_of(document, tmp_path) == [], path.name


def test_a_real_ct_is_documented_without_error_on_its_own_points(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "ct_thorax_series" / "Lung_Dx-A0002_B40f").glob("*.dcm"))
    labels = np.zeros((len(paths), 512, 512), np.uint8)
    labels[3:9, 200:230, 100:120] = 1
    labels[5:20, 210:220, 300:340] = 2
    documents = documents_of(segmented(paths, labels), paths[::-1])
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    assert masks_by_point(pydicom.dcmread(BytesIO(documents[0].data))) == labels_by_point(paths, labels)


def test_private_elements_of_a_source_do_not_come_along(shared_data: Path, tmp_path: Path) -> None:
    for path in sorted((shared_data / "private_tags").glob("*.dcm")):
        (document,) = documents_of(classified(path), [path], DEMO)
        assert errors_of(document, tmp_path) == [], path.name
        assert not any(element.tag.is_private for element in pydicom.dcmread(BytesIO(document.data)))
