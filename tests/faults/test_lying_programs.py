"""What a program leaves as NIfTI, SEG or SR is believed only where it is about the images that it was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel
import numpy as np
import pytest
from highdicom.sr import (
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from inference.card import Card
from inference.deidentify import Pseudonyms, write_copy
from inference.engine import ImageFile
from inference.engines.command_dicom import labels_of_seg, planes_of, read_sr
from inference.engines.command_outputs import Images, labels_of_nifti
from inference.errors import EngineFailure
from inference.marking import Marking
from inference.volume import Volume, read_volume
from tests.dicom_factory import ct_series, radiograph
from tests.integration.test_command import EXPECTED, HU, finding_card, mask_card, program
from tests.model_factory import code


@dataclass
class Given:
    """What a program was given, and how its answer is taken back."""

    volume: Volume
    copies: list[Dataset]
    planes: dict[tuple[str, int], Any]
    ours: Pseudonyms


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    files = [ImageFile(path.stem, path) for path in ct_series(folder / "ct", HU)]
    ours = Pseudonyms()
    copies, planes = [], {}
    for number, file in enumerate(files):
        write_copy(file, folder / f"{number}.dcm", ours)
        copies.append(dcmread(folder / f"{number}.dcm"))
        planes |= {(file.key, frame): plane for frame, plane in planes_of(copies[-1], (24, 20))}
    return Given(read_volume(files), copies, planes, ours)


def made(given: Given, kind: str, path: Path, mask: np.ndarray | None = None) -> bytes:
    """A true SEG of the images that were given, as bytes."""

    def segment(number: int, value: str) -> Any:
        return hd.seg.SegmentDescription(
            number, f"s{number}", codes.SCT.Organ, CodedConcept(value, "SCT", "x"), "AUTOMATIC",
            hd.AlgorithmIdentificationSequence("test", codes.DCM.ArtificialIntelligence, "1"),
        )  # fmt: skip

    hd.seg.Segmentation(
        given.copies, EXPECTED.astype(np.uint8) if mask is None else mask, kind,
        [segment(1, "3341006"), segment(2, "44029006")],
        hd.UID(), 1, hd.UID(), 1, "Maker", "M", "1", "1",
    ).save_as(path)  # fmt: skip
    return path.read_bytes()


@pytest.fixture(scope="module")
def seg(given: Given, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(given, "BINARY", tmp_path_factory.mktemp("seg") / "seg.dcm")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return program(tmp_path_factory.mktemp("masks"), mask_card(), "", output="seg")


@pytest.fixture(scope="module")
def niftis(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return program(tmp_path_factory.mktemp("niftis"), mask_card(), "", output="nifti", input="nifti")


def first(dataset: Dataset) -> Any:
    return dataset.PerFrameFunctionalGroupsSequence[0]


def reference(dataset: Dataset) -> Any:
    return first(dataset).DerivationImageSequence[0].SourceImageSequence[0]


def moved(dataset: Dataset) -> None:
    place = first(dataset).PlanePositionSequence[0]
    place.ImagePositionPatient = [float(one) + 0.5 for one in place.ImagePositionPatient]


def coarser(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [2.0, 2.0]


def turned(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def unnamed(dataset: Dataset) -> None:
    item = dataset.SegmentSequence[0]
    item.SegmentedPropertyTypeCodeSequence[0].CodeValue, item.SegmentNumber = "1234", 9


def again(dataset: Dataset) -> None:
    frames = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [frames[0], *frames[:-1]]


def few(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:-1]


def other_image(dataset: Dataset) -> None:
    reference(dataset).ReferencedSOPInstanceUID = generate_uid()


def smaller(dataset: Dataset) -> None:
    dataset.Rows = 12


LIES: dict[str, tuple[Callable[[Dataset], Any], str]] = {
    "another patient": (lambda d: setattr(d, "PatientID", "MRN1"), "another patient or study"),
    "another study": (lambda d: setattr(d, "StudyInstanceUID", generate_uid()), "another patient or study"),
    "another frame of reference": (lambda d: setattr(d, "FrameOfReferenceUID", generate_uid()), "frame of reference"),
    "another image": (other_image, "refers to an image that it was not given"),
    "another place": (moved, "lies on none of its images"),
    "another spacing": (coarser, "another grid than its image"),
    "another orientation": (turned, "another grid than its image"),
    "another size": (smaller, "12 x 20 pixels; its images have 24 x 20"),
    "another segment": (unnamed, "segment .9. that its card does not name"),
    "a frame twice": (again, "two frames of one segment"),
    "fewer frames": (few, "frames, which its images and segments cannot have"),
    "another kind": (lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "no DICOM Segmentation"),
    "no pixels": (lambda d: d.pop("PixelData"), "cannot be read"),
}


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_true_seg_is_believed(tmp_path: Path, masks: Card, given: Given, kind: str) -> None:
    made(given, kind, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(
        labels_of_seg(masks, tmp_path / "seg.dcm", given.planes, given.ours, Marking((1, 2), "keep")), EXPECTED
    )


@pytest.mark.parametrize("lie", LIES)
def test_a_seg_that_lies_is_not(tmp_path: Path, masks: Card, given: Given, seg: bytes, lie: str) -> None:
    change, told = LIES[lie]
    path = tmp_path / "seg.dcm"
    path.write_bytes(seg)
    dataset = dcmread(path)
    change(dataset)
    dataset.save_as(path)
    with pytest.raises(EngineFailure, match=told):
        labels_of_seg(masks, path, given.planes, given.ours, Marking((1, 2), "keep"))


def test_bytes_that_are_no_dicom_are_said_to_be_none(tmp_path: Path, masks: Card, given: Given, seg: bytes) -> None:
    for data in (b"<html>", seg[: len(seg) // 2]):
        (tmp_path / "seg.dcm").write_bytes(data)
        with pytest.raises(EngineFailure, match=r"no DICOM object|cannot be read|frames"):
            labels_of_seg(masks, tmp_path / "seg.dcm", given.planes, given.ours, Marking((1, 2), "keep"))


def nifti(given: Given, mask: np.ndarray, affine: np.ndarray | None = None) -> nibabel.Nifti1Image:
    lps = given.volume.affine[:, [2, 1, 0, 3]] if affine is None else affine
    return nibabel.Nifti1Image(mask.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ lps)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda g, m: nifti(g, m[:-1]), "another grid"),
        (lambda g, m: nifti(g, m, g.volume.affine[:, [2, 1, 0, 3]] + np.eye(4)[:, [3, 0, 1, 2]] * 0.5), "another grid"),
        (lambda g, m: nifti(g, m, g.volume.affine[:, [2, 1, 0, 3]] @ np.diag([1, 1, 1.2, 1])), "another grid"),
        (lambda g, m: nifti(g, m * 7), "label 7|label 14"),
        (lambda g, m: nifti(g, m * np.float32(0.5)), "no labels"),
        (lambda g, m: nifti(g, m.astype(np.float32) - 1), "no labels"),
        (lambda g, m: nifti(g, np.where(m > 0, np.nan, 0).astype(np.float32)), "no labels"),
    ],
    ids=["fewer slices", "elsewhere", "another spacing", "a label", "fractions", "below zero", "not a number"],
)
def test_a_nifti_mask_that_lies_is_not_believed(
    tmp_path: Path, niftis: Card, given: Given, make: Callable[..., nibabel.Nifti1Image], told: str
) -> None:
    mask = given.volume.array > 200
    nibabel.save(make(given, mask.astype(np.uint8)), tmp_path / "m.nii.gz")
    with pytest.raises(EngineFailure, match=told):
        labels_of_nifti(niftis, tmp_path, given.volume, 1 << 30, Marking((1, 2), "last"))


def test_masks_of_one_structure_each_become_labels_where_the_later_one_stands(tmp_path: Path, given: Given) -> None:
    card = program(tmp_path / "c", mask_card(), "", output="nifti", input="nifti", masks={"a.nii.gz": 1, "b.nii.gz": 2})
    out = tmp_path / "out"
    out.mkdir()
    for name, above in (("a", 200), ("b", 1200)):
        nibabel.save(nifti(given, (given.volume.array > above).astype(np.uint8)), out / f"{name}.nii.gz")
    labels = labels_of_nifti(card, out, given.volume, 1 << 30, Marking((1, 2), "last"))
    np.testing.assert_array_equal(given.volume.to_source(labels), EXPECTED)
    (out / "raw").mkdir()
    nibabel.save(nifti(given, np.zeros(given.volume.grid.shape, np.uint8)), out / "raw" / "b.nii.gz")
    with pytest.raises(EngineFailure, match=r"left 2 files for command\.masks\.b\.nii\.gz"):
        labels_of_nifti(card, out, given.volume, 1 << 30, Marking((1, 2), "last"))
    (out / "raw" / "b.nii.gz").unlink()
    (out / "b.nii.gz").unlink()
    with pytest.raises(EngineFailure, match=r"left no result .b\.nii\.gz."):
        labels_of_nifti(card, out, given.volume, 1 << 30, Marking((1, 2), "last"))


def test_structures_that_a_program_lays_over_one_another_are_kept_or_refused_as_the_card_says(
    tmp_path: Path, niftis: Card, masks: Card, given: Given
) -> None:
    """Two files, two channels of one file in either axis, and a SEG: the second structure lies in the first."""
    outer, inner = given.volume.array > 200, given.volume.array > 1200
    several = program(tmp_path / "c", mask_card(), "", output="nifti", input="nifti", masks={"a.nii": 1, "b.nii": 2})
    assert (several.command and several.command.overlap) == "refuse", "nothing is cut unless a card says so"
    files, channels, vector = (tmp_path / name for name in ("files", "channels", "vector"))
    for folder in (files, channels, vector):
        folder.mkdir()
    one, other = (nifti(given, where.astype(np.uint8)) for where in (outer, inner))
    nibabel.save(one, files / "a.nii")
    nibabel.save(other, files / "b.nii")
    both = np.stack([np.asarray(one.dataobj), np.asarray(other.dataobj)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(both, one.affine), channels / "m.nii.gz")
    nibabel.save(nibabel.Nifti1Image(both[:, :, :, None], one.affine), vector / "m.nii.gz")
    for card, folder in ((several, files), (niftis, channels), (niftis, vector)):
        marking = Marking((1, 2), "keep")
        labels = labels_of_nifti(card, folder, given.volume, 1 << 30, marking)
        np.testing.assert_array_equal(marking.of(labels, 1), outer)
        np.testing.assert_array_equal(marking.of(labels, 2), inner)
        with pytest.raises(EngineFailure, match=r"command\.overlap: keep"):
            labels_of_nifti(card, folder, given.volume, 1 << 30, Marking((1, 2), "refuse", key="command.overlap"))
    stack = np.stack([EXPECTED > 0, EXPECTED == 2], axis=-1)
    made(given, "BINARY", tmp_path / "seg.dcm", stack)
    marking = Marking((1, 2), "keep")
    labels = labels_of_seg(masks, tmp_path / "seg.dcm", given.planes, given.ours, marking)
    np.testing.assert_array_equal(marking.of(labels, 1), EXPECTED > 0)
    np.testing.assert_array_equal(marking.of(labels, 2), EXPECTED == 2)
    last = labels_of_seg(masks, tmp_path / "seg.dcm", given.planes, given.ours, Marking((1, 2), "last"))
    np.testing.assert_array_equal(last, EXPECTED)
    refusing = Marking((1, 2), "refuse", key="command.overlap")
    with pytest.raises(EngineFailure, match=r"command\.overlap: keep"):
        labels_of_seg(masks, tmp_path / "seg.dcm", given.planes, given.ours, refusing)


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda one: one * 2, "more than 0 and 1"), (lambda one: one[..., [0, 1, 1]], "nor 2 channels")],
    ids=["a label in a channel", "a channel more"],
)
def test_channels_that_are_no_structures_are_not_believed(
    tmp_path: Path, niftis: Card, given: Given, change: Callable[[np.ndarray], np.ndarray], told: str
) -> None:
    one = nifti(given, (given.volume.array > 200).astype(np.uint8))
    both = np.stack([np.asarray(one.dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(change(both), one.affine), tmp_path / "m.nii.gz")
    with pytest.raises(EngineFailure, match=told):
        labels_of_nifti(niftis, tmp_path, given.volume, 1 << 30, Marking((1, 2), "keep"))


RATIO = {
    "index": 0, "name": "ratio", "code": code("RATIO", "Ratio", "99TEST"), "unit": code("mm", "millimeter", "UCUM")
}  # fmt: skip


def concept(value: str, scheme: str = "SCT") -> CodedConcept:
    return CodedConcept(value, scheme, "x")


@pytest.mark.parametrize(
    ("answer", "probability", "unit", "told"),
    [
        ("52101004", 0.2, "mm", "contradicts its probability"),
        ("272519000", 0.9, "mm", "contradicts its probability"),
        ("52101004", None, "mm", "no probability"),
        ("261665006", 0.9, "mm", "neither that it is present nor"),
        ("52101004", 0.9, "cm", "another unit"),
        ("52101004", 0.9, "mm", ""),
        ("52101004", (0.9, 0.1), "mm", "2 probabilities of nodule"),
    ],
    ids=["present", "absent", "no probability", "unknown", "unit", "true", "two probabilities"],
)
def test_an_sr_that_contradicts_itself_or_its_card_is_not_believed(
    tmp_path: Path, answer: str, probability: float | tuple[float, ...] | None, unit: str, told: str
) -> None:
    path = radiograph(tmp_path / "i", np.full((8, 9), 7))
    ours = Pseudonyms()
    image = write_copy(ImageFile("k", path), tmp_path / "copy.dcm", ours)
    images = Images()
    images.add(str(image.SOPInstanceUID), "k", (8, 9))
    said = [Measurement(concept("RATIO", "99TEST"), 12.5, concept(unit, "UCUM"))]
    for one in probability if isinstance(probability, tuple) else (probability,):
        if one is not None:
            said.append(Measurement(concept("122157", "DCM"), one, concept("1", "UCUM")))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=hd.UID(), identifier="x"),
        measurements=said,
        qualitative_evaluations=[QualitativeEvaluation(concept("27925004"), concept(answer))],
        source_images=[SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )
    observer = ObserverContext(codes.DCM.Device, DeviceObserverIdentifyingAttributes(uid=hd.UID()))
    for groups, name in (([group], "sr"), ([group, group], "twice")):
        report = MeasurementReport(observer, concept("43468-8", "LN"), imaging_measurements=groups)
        ComprehensiveSR([image], report, hd.UID(), 1, hd.UID(), 1, "Maker").save_as(tmp_path / f"{name}.dcm")
    task = finding_card(task="measurement", outputs=[RATIO]) if unit == "cm" else finding_card()
    card = program(tmp_path / "m", task, "", output="sr")
    if told:
        with pytest.raises(EngineFailure, match=told):
            read_sr(card, tmp_path / "sr.dcm", images, ours)
        return
    assert read_sr(card, tmp_path / "sr.dcm", images, ours).classifications[0].probability == 0.9
    measuring = program(tmp_path / "n", finding_card(task="measurement", outputs=[RATIO]), "", output="sr")
    (one,) = read_sr(measuring, tmp_path / "sr.dcm", images, ours).measurements
    assert (one.value, one.image) == (12.5, "k")
    with pytest.raises(EngineFailure, match="answered nodule 2 times"):
        read_sr(card, tmp_path / "twice.dcm", images, ours)
    with pytest.raises(EngineFailure, match="another patient or study"):
        read_sr(card, tmp_path / "sr.dcm", images, Pseudonyms())
