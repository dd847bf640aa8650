"""Makes small, valid DICOM files for tests: CT series of any geometry, radiographs, and single oddities.

Everything is synthetic. Any attribute can be set, replaced or removed (value ``None``) by keyword, so that a test
says only what it is about::

    ct_series(folder, hu, spacing=(2, 0.8, 0.7), PatientID="A1", ConvolutionKernel=None)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def ct_series(
    folder: Path,
    hu: npt.ArrayLike,
    *,
    spacing: Sequence[float] = (2.0, 0.8, 0.8),
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-100.0, -100.0, -300.0),
    step: Sequence[float] | None = None,
    study_uid: str | None = None,
    series_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    transfer_syntax: str = ExplicitVRLittleEndian,
    order: Sequence[int] | None = None,
    **attributes: Any,
) -> list[Path]:
    """Write one single-frame CT series and return its files, plane by plane.

    Parameters
    ----------
    folder
        Made if it is absent. Files are named by their SOP Instance UID.
    hu
        Shape (slices, rows, columns), in Hounsfield units.
    spacing
        (between slices, between rows, between columns), in mm.
    orientation
        Image Orientation (Patient): direction of a row, direction of a column, in LPS.
    origin
        Image Position (Patient) of plane 0, LPS, mm.
    step
        From one plane to the next, LPS, mm; the default is ``spacing[0]`` along the normal. A step that is not along
        the normal makes a tilted gantry.
    signed
        Stored values as 16-bit two's complement.
    transfer_syntax
        Explicit or implicit little endian, or one that pydicom can encode (RLE, JPEG 2000, JPEG-LS).
    order
        Instance Number of each plane (default 1, 2, ...): readers must not sort by it.
    **attributes
        By keyword, for every image; ``None`` removes the attribute.
    """
    planes = np.asarray(hu)
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    stride = np.cross(row, column) * spacing[0] if step is None else np.array(step, float)
    common = _composite(CTImageStorage, "CT", study_uid, series_uid)
    common.update(
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "FrameOfReferenceUID": frame_of_reference_uid or generate_uid(),
            "PositionReferenceIndicator": "",
            "SeriesDescription": "CHEST 2.0 Br40",
            "BodyPartExamined": "CHEST",
            "StudyDescription": "CT CHEST",
            "ProtocolName": "Thorax",
            "ConvolutionKernel": "Br40",
            "PatientPosition": "HFS",
            "SliceThickness": f"{spacing[0]:.6g}",
            "KVP": "120",
            "AcquisitionNumber": "1",
            "ImageOrientationPatient": [_ds(v) for v in orientation],
            "PixelSpacing": [_ds(spacing[1]), _ds(spacing[2])],
            "RescaleSlope": _ds(slope),
            "RescaleIntercept": _ds(intercept),
            "RescaleType": "HU",
            "WindowCenter": "-600",
            "WindowWidth": "1500",
        }
    )
    paths = []
    for index, plane in enumerate(planes):
        values = dict(common)
        values["SOPInstanceUID"] = generate_uid()
        values["InstanceNumber"] = str(order[index] if order is not None else index + 1)
        values["ImagePositionPatient"] = [_ds(v) for v in np.array(origin, float) + index * stride]
        stored = np.rint((plane - intercept) / slope)
        limits = (-32768, 32767) if signed else (0, 65535)
        pixels = np.clip(stored, *limits).astype("<i2" if signed else "<u2")
        paths.append(write(folder, values | attributes, pixels, transfer_syntax=transfer_syntax))
    return paths


def radiograph(
    folder: Path,
    pixels: npt.ArrayLike,
    *,
    modality: str = "CR",
    photometric: str = "MONOCHROME2",
    bits_stored: int = 12,
    spacing: Sequence[float] = (0.4, 0.4),
    view: str = "PA",
    study_uid: str | None = None,
    series_uid: str | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **attributes: Any,
) -> Path:
    """Write one frontal radiograph (``modality`` CR or DX) and return its file.

    ``pixels`` are stored values, shape (rows, columns); see :func:`ct_series` for ``attributes``.
    """
    values = np.asarray(pixels)
    folder.mkdir(parents=True, exist_ok=True)
    sop_class = DigitalXRayImageStorageForPresentation if modality == "DX" else ComputedRadiographyImageStorage
    dataset = _composite(sop_class, modality, study_uid, series_uid)
    dataset.update(
        {
            "SOPInstanceUID": generate_uid(),
            "InstanceNumber": "1",
            "ImageType": ["ORIGINAL", "PRIMARY"],
            "StudyDescription": "XR CHEST",
            "SeriesDescription": f"CHEST {view}",
            "BodyPartExamined": "CHEST",
            "ViewPosition": view,
            "PatientOrientation": ["L", "F"],
            "PhotometricInterpretation": photometric,
            "BitsStored": bits_stored,
            "HighBit": bits_stored - 1,
            "ImagerPixelSpacing": [_ds(v) for v in spacing],
        }
    )
    if modality == "DX":
        dataset.update(_dx_attributes(photometric, bits_stored))
    else:
        dataset.update({"PlateID": "1", "RescaleSlope": None, "RescaleIntercept": None})
    return write(folder, dataset | attributes, values.astype("<u2"), transfer_syntax=transfer_syntax)


def write(
    folder: Path,
    attributes: dict[str, Any],
    pixels: npt.NDArray[Any],
    *,
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> Path:
    """Write one image from its attributes (``None`` leaves one out) and its stored values, and return its file."""
    dataset = Dataset()
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if transfer_syntax in ("1.2.840.10008.1.2", ExplicitVRLittleEndian):
        dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    elif "PixelData" in dataset:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def _composite(sop_class: str, modality: str, study_uid: str | None, series_uid: str | None) -> dict[str, Any]:
    """Patient, study, series, equipment and SOP common modules (PS3.3 C.7, C.12.1), types 1 and 2."""
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": sop_class,
        "PatientName": "Phantom^Test",
        "PatientID": "PHANTOM-1",
        "PatientBirthDate": "19600101",
        "PatientSex": "O",
        "StudyInstanceUID": study_uid or generate_uid(),
        "StudyDate": "20260102",
        "StudyTime": "101112",
        "StudyID": "1",
        "AccessionNumber": "ACC1",
        "ReferringPhysicianName": "",
        "Modality": modality,
        "SeriesInstanceUID": series_uid or generate_uid(),
        "SeriesNumber": "2",
        "SeriesDate": "20260102",
        "SeriesTime": "101200",
        "ContentDate": "20260102",
        "ContentTime": "101300",
        "AcquisitionDate": "20260102",
        "AcquisitionTime": "101230",
        "Manufacturer": "Phantom Works",
        "ManufacturerModelName": "Generator",
        "PatientOrientation": None,
    }


def _dx_attributes(photometric: str, bits_stored: int) -> dict[str, Any]:
    """What the DX IOD wants beyond CR (PS3.3 A.26)."""

    def code(value: str, scheme: str, meaning: str) -> Dataset:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        return item

    anatomy = code("51185008", "SCT", "Chest")
    view = code("399348003", "SCT", "postero-anterior")
    return {
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "PresentationIntentType": "FOR PRESENTATION",
        "ImageLaterality": "U",
        "AnatomicRegionSequence": [anatomy],
        "ViewCodeSequence": [view],
        "PatientOrientation": ["L", "F"],
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": 1 if photometric == "MONOCHROME1" else -1,
        "RescaleSlope": "1",
        "RescaleIntercept": "0",
        "RescaleType": "US",
        "PresentationLUTShape": "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY",
        "WindowCenter": str(2 ** (bits_stored - 1)),
        "WindowWidth": str(2**bits_stored),
        "AcquisitionContextSequence": [],
        "DetectorType": "",
        "PositionerType": "",
    }


def _ds(value: float) -> str:
    """A number within the 16 characters of a Decimal String (PS3.5 Section 6.2)."""
    for digits in range(15, 4, -1):
        text = f"{float(value):.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{float(value):.5g}"
