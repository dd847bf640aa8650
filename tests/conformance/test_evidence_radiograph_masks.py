"""The documents of a segmented radiograph: a SEG on one image whose segments may overlap, and an SR with areas."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from inference.findings import Findings, Plane, Segmentation
from node.evidence.documents import Model
from tests.dicom_factory import radiograph
from tests.evidence_factory import LEFT, RIGHT, content, documents_of, errors_of, uids_of

ANATOMY = Model(
    name="anatomy",
    version="1.0.0",
    title="Anatomy of a chest radiograph",
    device_uid="2.25.1003",
    demonstration=False,
    intended_use="Research use.",
    task="segmentation",
)
ROWS, COLUMNS = 30, 22


def overlapping() -> npt.NDArray[np.uint8]:
    """Two structures that share some pixels, in a picture that no flip or turn maps onto itself."""
    labels = np.zeros((2, ROWS, COLUMNS), np.uint8)
    labels[0, 4:20, 3:11] = 1
    labels[0, 20:24, 3:5] = 1
    labels[1, 10:26, 8:17] = 2
    return labels


def marked(
    path: Path, labels: npt.NDArray[np.uint8], area: float | None = 0.16, plane: Plane | None = "detector"
) -> Findings:
    (uid,) = uids_of([path])
    segments = []
    for segment, mask in zip((RIGHT, LEFT), labels, strict=True):
        pixels = int(np.count_nonzero(mask))
        sizes: dict[str, Any] = {"area_mm2": None if area is None else pixels * area, "plane": plane}
        segments.append(
            type(segment)(
                label=segment.label,
                name=segment.name,
                code=segment.code,
                category=segment.category,
                pixels=pixels,
                **sizes,
            )
        )
    return Findings(
        images=(uid,), segmentation=Segmentation(segments=tuple(segments), images=(uid, uid), labels=labels)
    )


@pytest.mark.parametrize("modality", ["CR", "DX"])
def test_masks_that_overlap_lie_on_the_pixels_of_their_image_as_two_readers_see_them(
    tmp_path: Path, modality: str
) -> None:
    path = radiograph(tmp_path, np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS), modality=modality)
    labels = overlapping()
    documents = documents_of(marked(path, labels), [path], ANATOMY)
    assert [one.kind for one in documents] == ["SEG", "SR"]
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    dataset = pydicom.dcmread(BytesIO(documents[0].data))
    assert (dataset.Rows, dataset.Columns, dataset.SegmentsOverlap) == (ROWS, COLUMNS, "YES")
    assert "FrameOfReferenceUID" not in dataset
    assert list(dataset.PatientOrientation) == ["L", "F"]
    (uid,) = uids_of([path])
    for frame, groups in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert (frame == (labels[number - 1] > 0)).all()
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == uid
        assert source.SpatialLocationsPreserved == "YES"
        assert "PlanePositionSequence" not in groups
    read = hd.seg.segread(BytesIO(documents[0].data)).get_pixels_by_source_instance([uid])
    assert (read[0] == np.moveaxis(labels > 0, 0, -1)).all()


def test_each_area_stands_with_the_plane_where_it_holds_beside_its_frame_of_the_mask(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS))
    labels = overlapping()
    seg, report = documents_of(marked(path, labels), [path], ANATOMY)
    dataset = pydicom.dcmread(BytesIO(report.data))
    areas = content(dataset, "Area")
    assert [float(one.MeasuredValueSequence[0].NumericValue) for one in areas] == pytest.approx(
        [0.16 * np.count_nonzero(mask) for mask in labels]
    )
    units = {one.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue for one in areas}
    assert units == {"mm2"}
    methods = {content(one, "Measurement Method")[0].ConceptCodeSequence[0].CodeValue for one in areas}
    assert methods == {"AREADETECTOR"}
    assert not content(dataset, "Volume")
    cited = [one.ReferencedSOPSequence[0] for one in content(dataset, "Referenced Segmentation Frame")]
    assert {one.ReferencedSOPInstanceUID for one in cited} == {seg.sop_instance_uid}
    assert [int(one.ReferencedSegmentNumber) for one in cited] == [1, 2]
    sources = [one.ReferencedSOPSequence[0] for one in content(dataset, "Source Image for Segmentation")]
    assert {one.ReferencedSOPInstanceUID for one in sources} == set(uids_of([path]))


def test_where_no_pixel_spacing_is_known_nothing_is_measured_and_what_was_not_marked_is_said(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS), ImagerPixelSpacing=None)
    labels = overlapping()
    labels[0] = 0
    documents = documents_of(marked(path, labels, None, None), [path], ANATOMY)
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    seg, report = (pydicom.dcmread(BytesIO(one.data)) for one in documents)
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["left lung"]
    assert (np.squeeze(seg.pixel_array) == (labels[1] > 0)).all()
    assert not content(report, "Area")
    assert not content(report, "Volume")
    assert len(content(report, "Referenced Segmentation Frame")) == 1
    assert [one.TextValue for one in content(report, "Comment")].count("Not marked in the image.") == 1


def test_a_real_radiograph_is_documented_without_error(shared_data: Path, tmp_path: Path) -> None:
    path = sorted((shared_data / "cxr_dicom").glob("*.dcm"))[0]
    header = pydicom.dcmread(path, stop_before_pixels=True)
    labels = np.zeros((2, header.Rows, header.Columns), np.uint8)
    labels[0, 100:400, 50:300] = 1
    labels[1, 200:500, 200:450] = 2
    documents = documents_of(marked(path, labels), [path], ANATOMY)
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    read = hd.seg.segread(BytesIO(documents[0].data)).get_pixels_by_source_instance(list(uids_of([path])))
    assert (read[0] == np.moveaxis(labels > 0, 0, -1)).all()
