"""Findings, models and readers that the tests of evidence documents share."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread

from inference.findings import Classification, Code, Coverage, Findings, Segment, Segmentation
from node.evidence.documents import EvidenceDocument, Model, make_documents, node_identity
from tests.peers import need_program

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
NODE = node_identity(device_uid="2.25.777", ae_title="OVERREAD")
LUNG_CT = Model(
    name="lung-ct",
    version="1.0.0",
    title="Lung segmentation on chest CT",
    device_uid="2.25.1001",
    demonstration=False,
    intended_use="Research use. Marks right and left lung.",
)
DEMO = Model(
    name="chest-radiograph-demo",
    version="2.1.0",
    title="Chest radiograph findings",
    device_uid="2.25.1002",
    demonstration=True,
    intended_use="Demonstration only.",
)
ANATOMY = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
RIGHT = Segment(
    label=1,
    name="right lung",
    code=Code(value="3341006", scheme="SCT", meaning="Right lung"),
    category=ANATOMY,
    volume_ml=12.3,
)
LEFT = Segment(
    label=2,
    name="left lung",
    code=Code(value="44029006", scheme="SCT", meaning="Left lung"),
    category=ANATOMY,
    volume_ml=9.5,
)
PNEUMOTHORAX = Code(value="36118008", scheme="SCT", meaning="Pneumothorax")
EFFUSION = Code(value="60046008", scheme="SCT", meaning="Pleural effusion")


def segmented(
    paths: Sequence[Path], labels: npt.NDArray[np.uint8], segments: tuple[Segment, ...] = (RIGHT, LEFT)
) -> Findings:
    """A segmentation of a series, plane by plane of its files."""
    uids = uids_of(paths)
    return Findings(
        images=uids,
        segmentation=Segmentation(segments=segments, images=uids, labels=labels),
        coverage=Coverage(images=len(uids), spacing_mm=2.0, extent_mm=2.0 * len(uids)),
    )


def classified(path: Path, pneumothorax: float = 0.91, effusion: float = 0.02) -> Findings:
    """Two findings on one radiograph, at the threshold 0.5."""
    (uid,) = uids_of([path])
    return Findings(
        images=(uid,),
        classifications=tuple(
            Classification(name=code.meaning.lower(), code=code, probability=value, threshold=0.5, image=uid)
            for code, value in ((PNEUMOTHORAX, pneumothorax), (EFFUSION, effusion))
        ),
    )


def uids_of(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(str(dcmread(path, force=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in paths)


def make(findings: Findings, sources: Sequence[Path], model: Model = LUNG_CT, **options: Any) -> dict[str, Dataset]:
    """Make the documents and read them back with pydicom, by kind."""
    from io import BytesIO

    documents = documents_of(findings, sources, model, **options)
    return {document.kind: dcmread(BytesIO(document.data)) for document in documents}


def documents_of(
    findings: Findings, sources: Sequence[Path], model: Model = LUNG_CT, **options: Any
) -> tuple[EvidenceDocument, ...]:
    values = {"node": NODE, "revision": 1, "now": NOW} | options
    return make_documents(findings, model, sources, **values)


def errors_of(document: EvidenceDocument, folder: Path) -> list[str]:
    """What dciodvfy calls an error in a document; for an SR, what keeps dsrdump from reading it too."""
    path = folder / f"{document.sop_instance_uid}.dcm"
    path.write_bytes(document.data)
    program = need_program("/usr/bin/dciodvfy", "dicom3tools")
    done = subprocess.run([program, "-new", str(path)], capture_output=True, check=False)
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    assert any(line in ("Segmentation", "Comprehensive3DSR") for line in lines), lines
    errors = [line for line in lines if line.startswith("Error")]
    if document.kind == "SR":
        read = subprocess.run([need_program("/usr/bin/dsrdump", "dcmtk"), str(path)], capture_output=True, check=False)
        if read.returncode:
            errors.append(f"dsrdump: {read.stderr.decode(errors='replace')}")
    return errors


def masks_by_point(segmentation: Dataset) -> dict[int, dict[tuple[float, ...], str]]:
    """Read a BINARY SEG with pydicom alone: segment number -> patient point (LPS, 0.01 mm) -> source image.

    Every voxel is placed by its own frame's position and the shared orientation and spacing (PS3.3 C.7.6.2.1.1).
    """
    pixels = segmentation.pixel_array
    pixels = pixels[np.newaxis] if pixels.ndim == 2 else pixels
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found: dict[int, dict[tuple[float, ...], str]] = {}
    for frame, groups in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for r, c in np.argwhere(frame):
            point = origin + row * between_columns * c + column * between_rows * r
            found.setdefault(number, {})[tuple(np.round(point, 2) + 0.0)] = str(source)
    return found


def labels_by_point(paths: Sequence[Path], labels: npt.NDArray[np.uint8]) -> dict[int, dict[tuple[float, ...], str]]:
    """The same from the source files' own headers and the labels that were given for them."""
    found: dict[int, dict[tuple[float, ...], str]] = {}
    for path, plane in zip(paths, labels, strict=True):
        header = dcmread(path, stop_before_pixels=True)
        row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, header.PixelSpacing)
        origin = np.array(header.ImagePositionPatient, float)
        for r, c in np.argwhere(plane):
            point = origin + row * between_columns * c + column * between_rows * r
            found.setdefault(int(plane[r, c]), {})[tuple(np.round(point, 2) + 0.0)] = str(header.SOPInstanceUID)
    return found


def content(item: Dataset, meaning: str) -> list[Dataset]:
    """Every content item below ``item`` whose concept name has this meaning."""
    found = []
    for child in item.get("ContentSequence", []):
        if child.ConceptNameCodeSequence[0].CodeMeaning == meaning:
            found.append(child)
        found.extend(content(child, meaning))
    return found
