"""Which attributes the index keeps of a study, a series and an instance, as DICOM JSON (PS3.18 Annex F)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from storage.quickread import Elements

__all__ = ["INSTANCE_KEYWORDS", "SERIES_KEYWORDS", "STUDY_KEYWORDS", "WANTED", "as_json", "attribute_value"]

#: PS3.18 Tables 10.6.3-3 to 10.6.3-5, and what routes and cards commonly ask for.
STUDY_KEYWORDS = [
    "SpecificCharacterSet",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "StudyID",
    "InstitutionName",
    "ProcedureCodeSequence",
    "RequestedProcedurePriority",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
]
SERIES_KEYWORDS = [
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDate",
    "SeriesTime",
    "BodyPartExamined",
    "ProtocolName",
    "Laterality",
    "PatientPosition",
    "Manufacturer",
    "ManufacturerModelName",
    "StationName",
    "FrameOfReferenceUID",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepDescription",
    "RequestedProcedureDescription",
    "RequestAttributesSequence",
    "ContrastBolusAgent",
    "ConvolutionKernel",
    "SliceThickness",
    "ViewPosition",
    "DeviceSerialNumber",
    # What tells the series of an MR study apart: FLAIR, T1 and T2 weighting.
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "SequenceName",
    "MRAcquisitionType",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
]
INSTANCE_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceNumber",
    "ImageType",
    "AcquisitionNumber",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentDate",
    "ContentTime",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ConvolutionKernel",
    "ViewPosition",
    "ImageLaterality",
    "PatientOrientation",
    "BurnedInAnnotation",
    "CompletionFlag",
    "VerificationFlag",
    "ConceptNameCodeSequence",
    "ContentLabel",
    "ContentDescription",
    "SegmentationType",
]
_OTHER_KEYWORDS = ("ContributingEquipmentSequence",)

_NAMES: dict[int, str] = {
    tag: f"{tag:08X}"
    for keyword in (*STUDY_KEYWORDS, *SERIES_KEYWORDS, *INSTANCE_KEYWORDS, *_OTHER_KEYWORDS)
    if (tag := tag_for_keyword(keyword)) is not None
}
#: By their tags, and what else a header is made of.
WANTED: frozenset[Any] = frozenset(_NAMES)
_MAXIMUM_VALUES = 64
_MAXIMUM_TEXT = 10_240


def attribute_value(attributes: Any, keyword: str) -> Any:
    """Return one attribute of a DICOM JSON object: a value, a list of values, or None where absent or empty."""
    tag = tag_for_keyword(keyword)
    element = attributes.get(_NAMES.get(tag) or f"{tag:08X}") if tag is not None else None
    if element is None:
        return None
    values = element.get("Value", [])
    plain = [one.get("Alphabetic", "") if isinstance(one, dict) and element["vr"] == "PN" else one for one in values]
    if not plain:
        return None
    return plain[0] if len(plain) == 1 else plain


def as_json(source: Dataset | Elements, keywords: Sequence[str]) -> dict[str, Any]:
    """Return those of the attributes that an object has and that can be said; nothing wrong in one hides another."""
    found: dict[str, Any] = {}
    if isinstance(source, Dataset):
        for tag in _tags(tuple(keywords)):
            if (value := _element_as_json(source, tag)) is not None:
                found[f"{tag:08X}"] = value
        return found
    for tag in _tags(tuple(keywords)):
        if tag in source:
            value = source.plain(tag) or _element_as_json(source.dataset, tag)
            if value is not None:
                found[_NAMES[tag]] = value
    return found


def _element_as_json(dataset: Dataset, tag: int) -> dict[str, Any] | None:
    try:
        if tag not in dataset:
            return None
        element = dataset[tag]
        if element.VM > _MAXIMUM_VALUES or _is_endless(element.value):
            return None
        value: dict[str, Any] = element.to_json_dict(None, bulk_data_threshold=1 << 30)
    except Exception:  # noqa: BLE001 - one invalid value must not keep the object out of the index
        return None
    without: dict[str, Any] = _without_nan(value)
    return without


def _is_endless(value: Any) -> bool:
    """Whether a text is longer than any that the index is meant to hold (PS3.5 6.2: LT, 10,240 characters)."""
    return isinstance(value, str) and len(value) > _MAXIMUM_TEXT


@cache
def _tags(keywords: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(int(Tag(keyword)) for keyword in keywords)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN or infinity, and PostgreSQL no NUL in text."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    if isinstance(value, float) and (not math.isfinite(value)):
        return None
    return value.replace("\0", "") if isinstance(value, str) else value
