"""A SEG of a multi-frame image is valid, names the frames that it was drawn on, and is read back in place by others."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread

from inference.engine import ImageFile
from inference.findings import Findings, Segmentation
from inference.volume import read_volume
from inference.wire import findings_from, findings_to
from node.errors import EvidenceError
from tests.enhanced_factory import enhanced
from tests.evidence_factory import LEFT, RIGHT, documents_of, errors_of, masks_by_point

SHAPE = (9, 24, 20)


def found_on(paths: list[Path]) -> tuple[Findings, dict[int, set[tuple[float, ...]]]]:
    """Two blocks that no flip or turn maps on themselves, drawn on the volume; and the patient points of each."""
    volume = read_volume([ImageFile(str(dcmread(path).SOPInstanceUID), path) for path in paths])
    labels = np.zeros(volume.array.shape, np.uint8)
    labels[1:7, 3:15, 2:8] = 1
    labels[1:3, 15:20, 2:4] = 1
    labels[3:8, 4:12, 12:18] = 2
    points = {
        label: {tuple(point) for point in np.round(volume.grid.to_lps(np.argwhere(labels == label)), 2) + 0.0}
        for label in (1, 2)
    }
    return (
        Findings(
            images=volume.images,
            segmentation=Segmentation(
                segments=(RIGHT, LEFT), images=volume.keys, frames=volume.frames, labels=volume.to_source(labels)
            ),
            coverage=volume.coverage,
        ),
        points,
    )


def shuffled_positions(step: tuple[float, float, float] = (0.0, 0.0, 2.0)) -> np.ndarray:
    places = np.array((-10.0, -9.0, -30.0)) + np.arange(SHAPE[0])[:, None] * np.array(step)
    return np.random.default_rng(3).permutation(places)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_mask_on_an_enhanced_image_is_valid_and_lies_on_its_patient_points(tmp_path: Path, modality: str) -> None:
    path = enhanced(tmp_path, np.zeros(SHAPE), shuffled_positions(), modality=modality, pixel_spacing=(0.7, 0.9))
    findings, points = found_on([path])
    documents = documents_of(findings, [path])
    assert [one.kind for one in documents] == ["SEG", "SR"]
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    written = dcmread(BytesIO(documents[0].data))
    source = dcmread(path)
    assert {label: set(found) for label, found in masks_by_point(written).items()} == points
    for groups in written.PerFrameFunctionalGroupsSequence:
        item = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
        frame = source.PerFrameFunctionalGroupsSequence[int(item.ReferencedFrameNumber) - 1]
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(np.array(position, float), groups.PlanePositionSequence[0].ImagePositionPatient)
    (series,) = written.ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence] == [source.SOPInstanceUID]


def test_highdicom_finds_the_mask_on_the_frames_that_it_was_drawn_on(tmp_path: Path) -> None:
    path = enhanced(tmp_path, np.zeros(SHAPE), shuffled_positions())
    findings, _ = found_on([path])
    assert findings.segmentation is not None
    document = documents_of(findings, [path])[0]
    read = hd.seg.segread(BytesIO(document.data))
    back = read.get_pixels_by_source_frame(
        source_sop_instance_uid=str(dcmread(path).SOPInstanceUID),
        source_frame_numbers=list(range(1, SHAPE[0] + 1)),
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert (back == findings.segmentation.labels).all()


def test_a_mask_over_two_enhanced_images_names_each_with_its_own_frames(tmp_path: Path) -> None:
    places = sorted(shuffled_positions().tolist(), key=lambda one: one[2])
    same = {"FrameOfReferenceUID": "2.25.5", "StudyInstanceUID": "2.25.6", "SeriesInstanceUID": "2.25.7"}
    paths = [
        enhanced(tmp_path, np.zeros((5, *SHAPE[1:])), places[:5], **same),
        enhanced(tmp_path, np.zeros((4, *SHAPE[1:])), places[5:], **same),
    ]
    findings, points = found_on(paths)
    document = documents_of(findings, paths)[0]
    assert errors_of(document, tmp_path) == []
    written = dcmread(BytesIO(document.data))
    assert {label: set(found) for label, found in masks_by_point(written).items()} == points
    assert len(written.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 2


def test_a_mask_on_a_frame_that_is_not_there_is_not_written(tmp_path: Path) -> None:
    path = enhanced(tmp_path, np.zeros(SHAPE), shuffled_positions())
    findings, _ = found_on([path])
    assert findings.segmentation is not None
    wrong = Segmentation(
        segments=findings.segmentation.segments,
        images=findings.segmentation.images,
        frames=(*findings.segmentation.frames[:-1], 10),
        labels=findings.segmentation.labels,
    )
    with pytest.raises(EvidenceError, match="frames that its images do not have"):
        documents_of(Findings(images=findings.images, segmentation=wrong, coverage=findings.coverage), [path])


def test_frames_pass_between_processes(tmp_path: Path) -> None:
    path = enhanced(tmp_path, np.zeros(SHAPE), shuffled_positions())
    findings, _ = found_on([path])
    back = findings_from(findings_to(findings, tmp_path / "mask.npy"), tmp_path / "mask.npy")
    assert findings.segmentation is not None
    assert back.segmentation is not None
    assert back.segmentation.frames == findings.segmentation.frames
