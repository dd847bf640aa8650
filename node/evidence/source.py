"""Reads the headers of the source images: what their documents repeat, refer to and are measured in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from inference.findings import Code
from node.errors import EvidenceError, kind_and_place
from node.evidence import attributes
from node.evidence.attributes import (
    TOGETHER,
    TYPE_2,
    TYPE_3,
    UNREADABLE,
    copy_patient_and_study,
    raw_text,
    valid_offset,
    valid_value,
)

_IMAGE_TAGS: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PatientOrientation",
    "PixelSpacing",
    "SliceThickness",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "TimezoneOffsetFromUTC",
    "SpecificCharacterSet",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_TAGS: Final = [
    *_IMAGE_TAGS,
    *attributes.IDENTIFIERS,
    *TYPE_2,
    *TYPE_3,
    *(keyword for required, beside in TOGETHER for keyword in (*required, *beside)),
]


#: A direction by up to three letters (PS3.3 C.7.6.1.1.1).
_DIRECTION: Final = re.compile(r"[AFHLPR]{1,3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a single-frame image, or one frame of a multi-frame one, lies: what its header says (LPS, mm)."""

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    slice_thickness: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """One source image: its identity, and where it, or each of its frames, lies.

    ``patient_orientation`` is where rows and columns run to (0020,0020), None where that is not told.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    modality: str
    rows: int
    columns: int
    frame_of_reference_uid: str | None
    place: Place
    patient_orientation: tuple[str, str] | None
    frames: tuple[Place, ...]
    lossy: tuple[str, str | list[str] | None, str | list[str] | None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStudy:
    """The images that were read, in the order of the findings, and what their documents repeat of the study."""

    study_instance_uid: str
    images: tuple[SourceImage, ...]
    attributes: Dataset
    character_set: tuple[str, ...]
    timezone: str | None
    procedures: tuple[Code, ...]

    @property
    def by_uid(self) -> dict[str, SourceImage]:
        """The images by SOP Instance UID."""
        return {image.sop_instance_uid: image for image in self.images}


def read_sources(paths: Sequence[Path], wanted: Sequence[str]) -> SourceStudy:
    """Read the headers of the ``wanted`` SOP Instances, whatever the order of the files.

    Raises
    ------
    EvidenceError
        A file cannot be read, an image is missing, or the images are of more than one study.
    """
    found: dict[str, Dataset] = {}
    with warnings.catch_warnings():
        # Whatever is wrong with a source was judged when it was received; what is invalid is left out below.
        warnings.simplefilter("ignore")
        for path in paths:
            header = _header(path)
            uid = raw_text(header, "SOPInstanceUID")
            if uid in wanted:
                found.setdefault(uid, header)
        missing = [uid for uid in wanted if uid not in found]
        if missing or not wanted:
            name = missing[0] if missing else "any image"
            raise EvidenceError(f"the source file of {name} is not among those given ({len(missing)} missing)")
        headers = [found[uid] for uid in wanted]
        studies = {raw_text(header, "StudyInstanceUID") for header in headers}
        if len(studies) != 1 or "" in studies:
            raise EvidenceError(f"the source images are of {len(studies)} studies, expected one: {sorted(studies)}")
        first = headers[0]
        copied = copy_patient_and_study(first)
        return SourceStudy(
            study_instance_uid=studies.pop(),
            images=tuple(_image(header) for header in headers),
            attributes=copied,
            character_set=_character_set(first),
            timezone=valid_offset(raw_text(first, "TimezoneOffsetFromUTC")),
            procedures=tuple(
                Code(
                    value=str(item.CodeValue),
                    scheme=str(item.CodingSchemeDesignator),
                    meaning=str(item.CodeMeaning),
                )
                for item in copied.get("ProcedureCodeSequence", ())
            ),
        )


def _header(path: Path) -> Dataset:
    try:
        return dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
    except (OSError, EOFError, InvalidDicomError, *UNREADABLE) as error:
        raise EvidenceError(f"source file {path.name} cannot be read: {kind_and_place(error)}") from None


def _image(header: Dataset) -> SourceImage:
    uid = raw_text(header, "SOPInstanceUID")
    values = {name: raw_text(header, name) for name in ("SOPClassUID", "SeriesInstanceUID")}
    for name, value in values.items():
        if not value:
            raise EvidenceError(f"source image {uid} has no {name}: nothing can refer to it")
    lossy = valid_value(header, "LossyImageCompression")
    return SourceImage(
        sop_class_uid=values["SOPClassUID"],
        sop_instance_uid=uid,
        series_instance_uid=values["SeriesInstanceUID"],
        modality=str(valid_value(header, "Modality") or ""),
        rows=_count(header, "Rows"),
        columns=_count(header, "Columns"),
        frame_of_reference_uid=raw_text(header, "FrameOfReferenceUID") or None,
        place=_place((header,)),
        patient_orientation=_directions(header),
        frames=_frames(header),
        lossy=(
            "01",
            valid_value(header, "LossyImageCompressionRatio"),
            valid_value(header, "LossyImageCompressionMethod"),
        )
        if lossy == "01"
        else None,
    )


def _directions(header: Dataset) -> tuple[str, str] | None:
    value = valid_value(header, "PatientOrientation")
    if not isinstance(value, list) or len(value) != 2 or not all(_DIRECTION.fullmatch(one) for one in value):
        return None
    return value[0], value[1]


def _frames(header: Dataset) -> tuple[Place, ...]:
    """Return where each frame lies: by its own functional groups, else by the shared ones (PS3.3 C.7.6.16)."""
    try:
        own = header.get("PerFrameFunctionalGroupsSequence") or ()
        shared = header.get("SharedFunctionalGroupsSequence") or ()
        return tuple(_place((groups, *shared[:1])) for groups in own)
    except UNREADABLE:
        return ()


def _place(holders: Sequence[Dataset]) -> Place:
    def found(sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
        for holder in holders:
            items = holder.get(sequence) or [holder]
            numbers = _numbers(items[0], keyword, count)
            if numbers:
                return numbers
        return None

    thickness = found("PixelMeasuresSequence", "SliceThickness", 1)
    return Place(
        position=found("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=found("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        pixel_spacing=found("PixelMeasuresSequence", "PixelSpacing", 2),
        slice_thickness=thickness[0] if thickness and thickness[0] > 0 else None,
    )


def _count(header: Dataset, keyword: str) -> int:
    try:
        return int(header.get(keyword) or 0)
    except UNREADABLE:
        return 0


def _numbers(header: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        value: Any = header.get(keyword)
        if value is None:
            return None
        numbers = tuple(float(one) for one in value) if count > 1 else (float(value),)
    except UNREADABLE:
        return None
    return numbers if len(numbers) == count and all(abs(one) < 1e9 for one in numbers) else None


def _character_set(header: Dataset) -> tuple[str, ...]:
    value = raw_text(header, "SpecificCharacterSet")
    return tuple(value.split("\\")) if value else ()
