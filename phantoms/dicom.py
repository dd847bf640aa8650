"""Writes phantoms as DICOM studies such as a scanner or a radiography room sends them, with their truth.

Every call makes new UIDs. Names and numbers are invented; the images are drawn by the other modules of this package.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from phantoms.radiograph import FINDINGS, TRAINING, Style, make_radiograph
from phantoms.thorax import LEFT_LUNG, RIGHT_LUNG, ThoraxPhantom, make_head, make_thorax

__all__ = ["Patient", "PhantomStudy", "write_chest_ct", "write_head_ct", "write_radiograph", "write_small_ct"]

AIR = -1024
SLICE_MM, PIXEL_MM = 3.0, 1.4


@dataclass(frozen=True, kw_only=True)
class Patient:
    """An invented patient; ``name`` is a PN in any script."""

    name: str = "Phantom^Thora"
    number: str = "PHANTOM-1"
    birth_date: str = "19700101"
    sex: str = "O"


@dataclass(frozen=True, kw_only=True)
class PhantomStudy:
    """A study on disk and what is true of it.

    ``volumes_ml`` is keyed by "right lung" and "left lung"; ``findings`` has a boolean for every finding that the
    radiograph generator knows. Both are empty where they do not apply. ``best_series_uid`` is the series that a reader
    of lungs ought to choose: axial, original, thinnest, smooth kernel.
    """

    study_instance_uid: str
    kind: Literal["chest CT", "head CT", "radiograph"]
    description: str
    files: tuple[Path, ...]
    best_series_uid: str = ""
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    findings: Mapping[str, bool] = field(default_factory=dict)


def write_chest_ct(
    folder: Path, seed: int, *, patient: Patient | None = None, slices: int = 80, size: int = 256
) -> PhantomStudy:
    """Write a chest CT as it leaves a scanner: localizer, four reconstructions of one acquisition, and a dose page.

    The reconstructions are axial 3 mm with a smooth kernel and with a sharp one, axial 6 mm, and coronal reformats.
    BodyPartExamined is empty, as it often is in practice: only descriptions say chest.

    Parameters
    ----------
    folder
        Made when absent; one file an instance.
    seed
        Of :func:`phantoms.thorax.make_thorax`.
    slices, size
        Axial slices of 3 mm, and rows and columns of a field of view of 358 mm.
    """
    spacing = (SLICE_MM, PIXEL_MM * 256 / size, PIXEL_MM * 256 / size)
    phantom = make_thorax(seed, shape=(slices, size, size), spacing=spacing, disease=False, variation=0.5)
    description = "CT CHEST WITHOUT CONTRAST"
    study = _Study(folder, "CT", description, patient or Patient(), protocol="THORAX NATIVE 3.0")
    hu, thick = phantom.hu, _thicker(phantom.hu)
    axial = ["ORIGINAL", "PRIMARY", "AXIAL"]
    study.volume(
        1, "SCOUT", _localizer(phantom), (SLICE_MM, *spacing[1:]), ["ORIGINAL", "PRIMARY", "LOCALIZER"], "T20s"
    )
    best = study.volume(2, "CHEST 3.0 Br36", hu, spacing, axial, "Br36")
    study.volume(3, "CHEST 3.0 Br64", _sharper(hu), spacing, axial, "Br64")
    study.volume(4, "CHEST 6.0 Br36", thick, (2 * SLICE_MM, *spacing[1:]), axial, "Br36")
    study.volume(5, "CHEST COR MPR", hu, spacing, ["DERIVED", "SECONDARY", "REFORMATTED"], "Br36", coronal=True)
    study.page(999, "DOSE REPORT")
    return PhantomStudy(
        study_instance_uid=study.uid,
        kind="chest CT",
        description=description,
        files=tuple(study.files),
        best_series_uid=best,
        volumes_ml={"right lung": phantom.volumes_ml[RIGHT_LUNG], "left lung": phantom.volumes_ml[LEFT_LUNG]},
    )


def write_head_ct(folder: Path, seed: int, *, patient: Patient | None = None, slices: int = 36) -> PhantomStudy:
    """Write a head CT whose protocol says thorax by mistake: a lung model has to say that there are no lungs."""
    spacing = (5.0, 1.0, 1.0)
    phantom = make_head(seed, shape=(slices, 256, 256), spacing=spacing)
    study = _Study(folder, "CT", "CT HEAD", patient or Patient(), protocol="THORAX ROUTINE")
    best = study.volume(2, "HEAD 5.0 Hr40", phantom.hu, spacing, ["ORIGINAL", "PRIMARY", "AXIAL"], "Hr40")
    return PhantomStudy(
        study_instance_uid=study.uid,
        kind="head CT",
        description="CT HEAD (protocol says thorax)",
        files=tuple(study.files),
        best_series_uid=best,
    )


def write_small_ct(folder: Path, seed: int, *, head: bool = False) -> PhantomStudy:
    """Write one axial series of a chest or a head that is coarse and small on disk: a sample case of a model."""
    spacing = (8.0, 5.6, 5.6)
    make = make_head if head else make_thorax
    phantom = make(seed, shape=(26, 64, 64), spacing=spacing)
    study = _Study(folder, "CT", "CT HEAD" if head else "CT CHEST", Patient(), protocol="THORAX NATIVE 8.0")
    best = study.volume(2, "CHEST 8.0 Br36", phantom.hu, spacing, ["ORIGINAL", "PRIMARY", "AXIAL"], "Br36")
    return PhantomStudy(
        study_instance_uid=study.uid,
        kind="head CT" if head else "chest CT",
        description=study.description,
        files=tuple(study.files),
        best_series_uid=best,
    )


def write_radiograph(
    folder: Path,
    seed: int,
    findings: Collection[str] = (),
    *,
    modality: Literal["CR", "DX"] = "DX",
    patient: Patient | None = None,
    style: Style = TRAINING,
    shape: tuple[int, int] = (1024, 896),
) -> PhantomStudy:
    """Write one frontal chest radiograph with the given findings, as Computed Radiography or Digital X-Ray."""
    phantom = make_radiograph(seed, findings, shape=shape, style=style)
    study = _Study(folder, modality, "CHEST PA", patient or Patient(), protocol="CHEST PA")
    study.radiograph(phantom.pixels, phantom.spacing)
    return PhantomStudy(
        study_instance_uid=study.uid,
        kind="radiograph",
        description=", ".join(findings) or "no finding",
        files=tuple(study.files),
        findings={name: phantom.truth[name] is not None for name in FINDINGS},
    )


class _Study:
    """One study that is being written: shares patient, study and frame of reference among its instances."""

    def __init__(self, folder: Path, modality: str, description: str, patient: Patient, protocol: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.uid = str(generate_uid())
        self.modality = modality
        self.description = description
        self.patient = patient
        self.protocol = protocol
        self.frame_of_reference = str(generate_uid())
        self.files: list[Path] = []

    def volume(
        self,
        number: int,
        description: str,
        hu: npt.NDArray[np.int16],
        spacing: Sequence[float],
        image_type: list[str],
        kernel: str,
        *,
        coronal: bool = False,
    ) -> str:
        """Write a CT series from [slice, row, column] in LPS order (inferior to superior, to posterior, to left).

        Returns the Series Instance UID. Instances are numbered from head to feet, as scanners do, so the order of the
        numbers is not the order of the positions.
        """
        series = str(generate_uid())
        depth, rows, columns = hu.shape
        dz, dy, dx = spacing
        left, front, bottom = -columns * dx / 2, -rows * dy / 2, -depth * dz
        if coronal:
            # Rows from head to feet, planes from front to back in steps of two pixels.
            planes = hu[::-1].transpose(1, 0, 2)[::2]
            orientation, pixel, step = [1, 0, 0, 0, 0, -1], [dz, dx], 2 * dy
            positions = [[left, front + index * step, bottom + (depth - 1) * dz] for index in range(len(planes))]
        elif "LOCALIZER" in image_type:
            planes = hu
            orientation, pixel, step = [1, 0, 0, 0, 0, -1], [dz, dx], 1.0
            positions = [[left, 0.0, bottom + (rows - 1) * dz]]
        else:
            planes = hu[::-1]
            orientation, pixel, step = [1, 0, 0, 0, 1, 0], [dy, dx], dz
            positions = [[left, front, bottom + (depth - 1 - index) * dz] for index in range(depth)]
        for index, (plane, position) in enumerate(zip(planes, positions, strict=True), 1):
            image = self._instance(CTImageStorage, series, number, description, index)
            image.Modality = "CT"
            image.ImageType = image_type
            image.KVP, image.XRayTubeCurrent, image.ConvolutionKernel = "120", 120, kernel
            image.ScanOptions = "HELICAL MODE"
            image.SliceThickness = f"{step:g}"
            image.PatientPosition = "HFS"
            image.AcquisitionNumber = 1
            image.AcquisitionDate, image.AcquisitionTime = image.StudyDate, image.StudyTime
            image.FrameOfReferenceUID, image.PositionReferenceIndicator = self.frame_of_reference, ""
            image.ImageOrientationPatient = orientation
            image.ImagePositionPatient = [f"{value:.4f}" for value in position]
            image.PixelSpacing = [f"{value:.6g}" for value in pixel]
            image.RescaleIntercept, image.RescaleSlope = "-1024", "1"
            if "LOCALIZER" not in image_type:
                image.RescaleType = "HU"
            image.WindowCenter, image.WindowWidth = "-500", "1500"
            stored = np.clip(plane.astype(np.int32) - AIR, 0, 4095).astype(np.uint16)
            self._finish(image, stored, bits=12)
        return series

    def page(self, number: int, description: str) -> None:
        """Write a screen page of the scanner (Secondary Capture), as many scanners send their dose report."""
        rng = np.random.default_rng(number)
        pixels = np.zeros((256, 320), np.uint8)
        for row in range(24, 220, 16):
            for column in range(16, 16 + int(rng.integers(80, 260)), 8):
                pixels[row : row + 8, column : column + int(rng.integers(3, 7))] = 220
        image = self._instance(SecondaryCaptureImageStorage, str(generate_uid()), number, description, 1)
        image.Modality = "CT"
        image.ConversionType = "WSD"
        image.ImageType = ["DERIVED", "SECONDARY"]
        image.PatientOrientation = None
        self._finish(image, pixels, bits=8)

    def radiograph(self, pixels: npt.NDArray[np.uint16], spacing: float) -> None:
        """Write one frontal radiograph of 12 bits, bright where dense."""
        digital = self.modality == "DX"
        storage = DigitalXRayImageStorageForPresentation if digital else ComputedRadiographyImageStorage
        image = self._instance(storage, str(generate_uid()), 1, "CHEST PA", 1)
        image.Modality = self.modality
        image.BodyPartExamined = "CHEST"
        image.ViewPosition = "PA"
        image.PatientOrientation = ["L", "F"]
        image.ImagerPixelSpacing = [f"{spacing:.6g}"] * 2
        image.WindowCenter, image.WindowWidth = "2048", "4096"
        image.BurnedInAnnotation = "NO"
        if digital:
            image.ImageType = ["ORIGINAL", "PRIMARY", ""]
            image.PresentationIntentType = "FOR PRESENTATION"
            image.PixelIntensityRelationship, image.PixelIntensityRelationshipSign = "LOG", -1
            image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", "1", "US"
            image.PresentationLUTShape = "IDENTITY"
            image.LossyImageCompression = "00"
            image.ImageLaterality = "U"
            image.DetectorType, image.DetectorID = "DIRECT", "PHANTOM"
            image.PositionerType = "NONE"
            image.AcquisitionContextSequence = []
            image.AnatomicRegionSequence = [_code("43799004", "SCT", "Thorax")]
            image.ViewCodeSequence = [_code("399348003", "SCT", "postero-anterior")]
        else:
            image.ImageType = ["ORIGINAL", "PRIMARY"]
            image.SeriesDescription = "CHEST PA CR"
        self._finish(image, pixels, bits=12)

    def _instance(self, storage: UID, series: str, number: int, description: str, index: int) -> Dataset:
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SpecificCharacterSet = "ISO_IR 192"
        image.SOPClassUID, image.SOPInstanceUID = storage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = self.uid, series
        image.StudyDate, image.StudyTime = "20261120", "101500"
        image.SeriesDate, image.SeriesTime = image.StudyDate, image.StudyTime
        image.ContentDate, image.ContentTime = image.StudyDate, image.StudyTime
        image.AccessionNumber = "A" + self.uid[-8:]
        image.StudyID = "1"
        image.ReferringPhysicianName = ""
        image.StudyDescription, image.SeriesDescription = self.description, description
        image.ProtocolName = self.protocol
        image.Manufacturer, image.ManufacturerModelName = "Overread phantoms", "Synthetic"
        image.PatientName, image.PatientID = self.patient.name, self.patient.number
        image.PatientBirthDate, image.PatientSex = self.patient.birth_date, self.patient.sex
        image.SeriesNumber, image.InstanceNumber = number, index
        if self.modality == "CT":
            # Without BodyPartExamined nobody can tell whether a side is due (type 2C): present and empty.
            image.Laterality = ""
        return image

    def _finish(self, image: Dataset, pixels: npt.NDArray[Any], *, bits: int) -> None:
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns = pixels.shape
        image.BitsAllocated = 8 * pixels.itemsize
        image.BitsStored, image.HighBit, image.PixelRepresentation = bits, bits - 1, 0
        image.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
        path = self.folder / f"{image.SOPInstanceUID}.dcm"
        image.save_as(path, enforce_file_format=True)
        self.files.append(path)


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _thicker(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Average pairs of slices: a reconstruction of twice the thickness."""
    pairs = hu[: len(hu) // 2 * 2].reshape(-1, 2, *hu.shape[1:])
    thick: npt.NDArray[np.int16] = pairs.mean(axis=1).round().astype(np.int16)
    return thick


def _sharper(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Enhance edges within each slice, and its noise with them, as a lung kernel does."""
    image = hu.astype(np.float32)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbours = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return np.clip(image + 0.8 * (image - neighbours / 4), AIR, 3071).astype(np.int16)


def _localizer(phantom: ThoraxPhantom) -> npt.NDArray[np.int16]:
    """Project the volume from front to back; one image whose rows run from head to feet."""
    projected = phantom.hu.astype(np.float32).mean(axis=1)[::-1]
    image: npt.NDArray[np.int16] = projected[np.newaxis].round().astype(np.int16)
    return image
