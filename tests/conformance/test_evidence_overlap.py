"""The documents of a volume whose structures lie in one another: each has its frames and its whole volume."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread

from inference.engine import ImageFile
from inference.findings import Code, Coverage, Findings, Segment, Segmentation
from inference.marking import Marking, dice, planes_of
from inference.samples import read_mask, write_mask
from inference.volume import Volume, read_volume
from node.evidence.provenance import Context
from node.evidence.segmentation import write_segmentation
from node.evidence.source import read_sources
from node.workflow import comparing
from tests.dicom_factory import ct_series
from tests.enhanced_factory import enhanced
from tests.evidence_factory import (
    LUNG_CT,
    NODE,
    NOW,
    content,
    documents_of,
    errors_of,
    masks_by_point,
    uids_of,
)

SHAPE = (9, 24, 20)
ABNORMAL = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
#: As the outputs of a network for brain tumours are ordered: the core, all of it, the part that takes up contrast.
CODES = (
    Code(value="108369006", scheme="SCT", meaning="Neoplasm"),
    Code(value="126952004", scheme="SCT", meaning="Neoplasm of brain"),
    Code(value="113842", scheme="DCM", meaning="Enhancing Lesion"),
)


def nested() -> dict[int, np.ndarray]:
    """Blocks that no flip or turn maps on themselves; the third lies in the first, and that in the second."""
    found = {label: np.zeros(SHAPE, bool) for label in (1, 2, 3)}
    found[2][2:8, 3:18, 2:16] = True
    found[2][2:4, 18:22, 2:5] = True
    found[1][3:7, 5:15, 4:12] = True
    found[3][4:6, 6:10, 4:7] = True
    return found


def tumours_on(paths: list[Path]) -> tuple[Findings, Volume]:
    volume = read_volume([ImageFile(str(dcmread(path).SOPInstanceUID), path) for path in paths])
    marking = Marking((1, 2, 3), "keep")
    mask = np.zeros(SHAPE, np.uint8)
    for label, where in nested().items():
        marking.put(mask, where, label)
    sizes = marking.voxels(mask)
    segmentation = Segmentation(
        segments=tuple(
            Segment(label=label, name=name, code=one, category=ABNORMAL, volume_ml=sizes[label] * volume.grid.voxel_ml)
            for label, name, one in zip((1, 2, 3), ("tumour core", "whole tumour", "enhancing"), CODES, strict=True)
        ),
        images=volume.keys,
        frames=volume.frames,
        labels=volume.to_source(mask),
        together=marking.together,
    )
    return Findings(images=volume.images, segmentation=segmentation, coverage=volume.coverage), volume


def places() -> np.ndarray:
    steps = np.array((-10.0, -9.0, -30.0)) + np.arange(SHAPE[0])[:, None] * np.array((0.0, 0.0, 2.0))
    return np.random.default_rng(3).permutation(steps)


@pytest.mark.parametrize("kind", ["series", "enhanced"])
def test_structures_that_lie_in_one_another_have_their_own_frames_and_whole_volumes(tmp_path: Path, kind: str) -> None:
    paths = (
        ct_series(tmp_path, np.zeros(SHAPE)) if kind == "series" else [enhanced(tmp_path, np.zeros(SHAPE), places())]
    )
    findings, volume = tumours_on(paths)
    documents = documents_of(findings, paths)
    assert [one.kind for one in documents] == ["SEG", "SR"]
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    seg, report = (dcmread(BytesIO(one.data)) for one in documents)
    assert (seg.SegmentationType, seg.SegmentsOverlap) == ("BINARY", "YES")
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["tumour core", "whole tumour", "enhancing"]
    assert int(seg.NumberOfFrames) == 4 + 6 + 2, "no frame is empty"
    points = {
        label: {tuple(point) for point in np.round(volume.grid.to_lps(np.argwhere(where)), 2) + 0.0}
        for label, where in nested().items()
    }
    assert {number: set(found) for number, found in masks_by_point(seg).items()} == points
    volumes = [float(one.MeasuredValueSequence[0].NumericValue) for one in content(report, "Volume")]
    assert volumes == pytest.approx([where.sum() * volume.grid.voxel_ml for where in nested().values()], abs=6e-4)
    cited = [one.ReferencedSOPSequence[0] for one in content(report, "Referenced Segment")]
    assert [int(one.ReferencedSegmentNumber) for one in cited] == [1, 2, 3]
    if kind == "series":
        read = hd.seg.segread(BytesIO(documents[0].data)).get_pixels_by_source_instance(list(volume.keys))
        assert findings.segmentation is not None
        kept = [Marking(together=findings.segmentation.together).of(findings.segmentation.labels, n) for n in (1, 2, 3)]
        assert (np.moveaxis(read, -1, 0) == kept).all()


def test_structures_that_overlap_are_written_without_a_byte_for_each_of_them_and_each_voxel(tmp_path: Path) -> None:
    labels = range(1, 25)
    paths = ct_series(tmp_path, np.zeros((6, 512, 512)))
    uids = uids_of(paths)
    marking = Marking(labels, "keep")
    mask = np.zeros((6, 512, 512), np.uint8)
    for label in labels:
        where = np.zeros((512, 512), np.bool_)
        where[10 : 20 + label, 30:90] = True
        marking.put(mask[label // 5], where, label)
    segmentation = Segmentation(
        segments=tuple(
            Segment(label=label, name=f"part {label}", code=CODES[0], category=ABNORMAL, volume_ml=1.0)
            for label in labels
        ),
        images=uids,
        labels=mask,
        together=marking.together,
    )
    context = Context(source=read_sources(paths, uids), model=LUNG_CT, node=NODE, revision=1, predecessors=(), now=NOW)
    # Once before it is measured, since what is imported takes memory too.
    write_segmentation(segmentation, None, context)
    tracemalloc.start()
    try:
        written = write_segmentation(segmentation, None, context)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written is not None
    seg = dcmread(BytesIO(written.data))
    assert (seg.SegmentsOverlap, int(seg.NumberOfFrames)) == ("YES", len(labels))
    assert seg.pixel_array.sum(axis=(1, 2)).tolist() == [(10 + label) * 60 for label in labels]
    assert peak < mask.size * len(labels) / 2


@pytest.mark.parametrize("kind", ["series", "enhanced"])
def test_a_shadows_mask_and_the_stored_seg_agree_structure_by_structure(tmp_path: Path, kind: str) -> None:
    paths = (
        ct_series(tmp_path, np.zeros(SHAPE)) if kind == "series" else [enhanced(tmp_path, np.zeros(SHAPE), places())]
    )
    findings, _ = tumours_on(paths)
    (tmp_path / "seg.dcm").write_bytes(documents_of(findings, paths)[0].data)
    stored = comparing._read_seg(tmp_path / "seg.dcm")
    assert findings.segmentation is not None
    with (tmp_path / "mask.npz").open("wb") as file:
        write_mask(file, findings.segmentation)
    kept = read_mask(tmp_path / "mask.npz")
    for one in findings.segmentation.segments:
        assert dice(planes_of(kept, one.label), stored[one.name]) == 1.0
    assert 0 < (dice(planes_of(kept, 1), stored["whole tumour"]) or 0) < 0.9


def test_structures_that_could_overlap_and_do_not_are_written_as_such(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, np.zeros(SHAPE))
    findings, _ = tumours_on(paths)
    assert findings.segmentation is not None
    apart = replace(findings.segmentation, labels=np.where(findings.segmentation.labels == 2, 2, 0).astype(np.uint8))
    coverage = Coverage(images=9, spacing_mm=2.0, extent_mm=18.0)
    document = documents_of(Findings(images=findings.images, segmentation=apart, coverage=coverage), paths)[0]
    seg = dcmread(BytesIO(document.data))
    assert (seg.SegmentsOverlap, [one.SegmentLabel for one in seg.SegmentSequence]) == ("NO", ["whole tumour"])
