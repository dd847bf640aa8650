"""Says who made a document, when, of which revision and in which characters: what SR and SEG have in common."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from io import BytesIO
from typing import Final

from pydicom import DataElement, Dataset, dcmwrite
from pydicom.charset import convert_encodings, decode_bytes, encode_string, python_encoding
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import PersonName

from inference.findings import Code
from node.dimse import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.errors import EvidenceError
from node.evidence import codes
from node.evidence.source import SourceStudy
from storage.index import MANUFACTURER

UTF_8: Final = "ISO_IR 192"
#: High, so that our series sort last; real ones seldom pass 9,999.
_SERIES_NUMBER: Final = 990_000
_TEXT: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_DELIMITERS: Final = {0x0D, 0x0A, 0x09, 0x0C}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a model's card tells about it; ``device_uid`` changes with the model's bytes and thresholds.

    ``manufacturer`` is who made the model, which need not be who made the node that runs it.
    ``sought`` is what a detector looks for, so that what it does not find is said too.
    """

    name: str
    version: str
    title: str
    device_uid: str
    demonstration: bool
    intended_use: str
    manufacturer: str = MANUFACTURER
    task: str = ""
    sought: tuple[Code, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Which node speaks: General Equipment (PS3.3 C.7.5.1) without station or institution."""

    manufacturer: str
    model_name: str
    software_version: str
    device_uid: str
    ae_title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """An evidence document of an earlier revision that a new one follows."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every document of one make shares."""

    source: SourceStudy
    model: Model
    node: NodeIdentity
    revision: int
    predecessors: tuple[Predecessor, ...]
    now: datetime

    def tracking_uid(self, what: str) -> str:
        """Return the Tracking Unique Identifier of one finding: the same in SR and SEG, and in every revision."""
        name = f"{self.source.study_instance_uid}|{self.model.device_uid}|{what}"
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def local_time(now: datetime, offset: str | None) -> datetime:
    """Return ``now`` in the source's offset where it states one, else in its own.

    (0008,0201) holds for every date and time of a dataset, the study's copied ones too.
    """
    if now.tzinfo is None:
        raise EvidenceError("the time of a document needs an offset from UTC")
    if offset is None:
        return now
    minutes = (int(offset[1:3]) * 60 + int(offset[3:])) * (-1 if offset[0] == "-" else 1)
    return now.astimezone(timezone(timedelta(minutes=minutes)))


def new_uid() -> str:
    """Return a new UUID-derived UID (PS3.5 Annex B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def series_number(revision: int, place: int) -> int:
    """Return the number of a new series: above any of the study's own; later revisions sort later."""
    return _SERIES_NUMBER + revision * 10 + place


def series_description(model: Model, kind: str) -> str:
    """Return what a worklist shows: AI and research use, and for a demonstration model what it is (LO, 64)."""
    if model.demonstration:
        return f"AI demonstration, trained on synthetic images, research use {kind}"
    return f"AI research use {kind}: {model.title}"[:64].rstrip()


def statements(model: Model) -> list[str]:
    """Return what every document says of itself in words."""
    said = ["Made by software for research use; not a medical device, not verified by a person."]
    if model.demonstration:
        said.append("Demonstration, trained on synthetic images: not to be used for any patient.")
    return said


def finish(document: Dataset, context: Context) -> bytes:
    """Complete a document's common modules and return it as a Part 10 file in Explicit VR Little Endian.

    Raises
    ------
    EvidenceError
        Nothing can encode its text.
    """
    for element in context.source.attributes:
        document.add(element)
    for keyword in ("ReferringPhysicianName", "StudyDate", "StudyTime"):
        if keyword not in document:
            setattr(document, keyword, "")
    _equipment(document, context)
    _times(document, context.now)
    _private_schemes(document)
    choose_character_set(document, context.source.character_set)
    return write(document, context.node.ae_title)


def _equipment(document: Dataset, context: Context) -> None:
    """General Equipment is the node; the algorithm stands in Contributing Equipment (PS3.3 C.12.1, IHE AIR).

    The node stands there too where somebody else made the model: by it nodes of this software know each other's work.
    """
    node, model = context.node, context.model
    document.Manufacturer = node.manufacturer
    document.ManufacturerModelName = node.model_name
    document.SoftwareVersions = node.software_version
    document.DeviceSerialNumber = node.device_uid
    document.DeviceUID = node.device_uid
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [codes.concept(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer = model.manufacturer
    item.ManufacturerModelName = model.name[:64]
    item.SoftwareVersions = model.version[:64]
    item.DeviceUID = model.device_uid
    item.ContributionDateTime = _date_time(context.now)
    item.ContributionDescription = " ".join(statements(model))
    document.ContributingEquipmentSequence = [item]
    if model.manufacturer != node.manufacturer:
        own = Dataset()
        own.PurposeOfReferenceCodeSequence = [codes.concept(codes.PROCESSING_EQUIPMENT)]
        own.Manufacturer = node.manufacturer
        own.ManufacturerModelName = node.model_name
        own.SoftwareVersions = node.software_version
        own.DeviceUID = node.device_uid
        own.ContributionDateTime = _date_time(context.now)
        document.ContributingEquipmentSequence.append(own)


def _times(document: Dataset, now: datetime) -> None:
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    for kind in ("InstanceCreation", "Content", "Series"):
        setattr(document, f"{kind}Date", date)
        setattr(document, f"{kind}Time", time)
    document.TimezoneOffsetFromUTC = now.strftime("%z")[:5]


def _date_time(now: datetime) -> str:
    return now.strftime("%Y%m%d%H%M%S.%f") + now.strftime("%z")[:5]


def _private_schemes(document: Dataset) -> None:
    """Name the coding schemes that are not the standard's (PS3.3 C.12.1, Coding Scheme Identification)."""
    used = {
        str(element.value)
        for element in elements(document)
        if element.keyword == "CodingSchemeDesignator" and str(element.value).startswith("99")
    }
    items = []
    for designator in sorted(used):
        item = Dataset()
        item.CodingSchemeDesignator = designator
        item.CodingSchemeName = "Overread" if designator == codes.PRIVATE_SCHEME else designator
        items.append(item)
    if items:
        document.CodingSchemeIdentificationSequence = items


def elements(dataset: Dataset) -> Iterator[DataElement]:
    """Yield every element, those of nested items too; pixels and per-frame items hold no text and are passed over."""
    for element in dataset:
        if element.keyword in ("PerFrameFunctionalGroupsSequence", "PixelData"):
            continue
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


def choose_character_set(document: Dataset, source: Sequence[str]) -> None:
    """Set the source's Specific Character Set where it holds all text of the document exactly, else ISO_IR 192.

    Exactly means that what is written decodes to the same code points (PS3.3 C.12.1.1.2, PS3.5 Section 6.1).
    """
    if "SpecificCharacterSet" in document:
        del document.SpecificCharacterSet
    texts: set[tuple[bool, str]] = set()
    for element in elements(document):
        if element.VR in _TEXT:
            value = element.value
            many = value if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]
            texts.update((element.VR == "PN", str(one)) for one in many if one)
    # ISO_IR 6 is the default repertoire, which is said by saying nothing.
    sensible = bool(source) and source != ("ISO_IR 6",) and all(not one or one in python_encoding for one in source)
    foreign = [text for text in texts if not text[1].isascii()]
    if sensible and (len(source) > 1 or source[0]) and all(_fits(text, person, source) for person, text in texts):
        document.SpecificCharacterSet = list(source) if len(source) > 1 else source[0]
    elif foreign:
        document.SpecificCharacterSet = UTF_8


def _fits(text: str, person: bool, character_set: Sequence[str]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            encodings = convert_encodings(list(character_set))
            if person:
                raw = PersonName(text).encode(encodings)
                return bool(str(PersonName(raw, encodings)) == text)
            return bool(decode_bytes(encode_string(text, encodings), encodings, _DELIMITERS) == text)
        except (UserWarning, ValueError, LookupError):
            return False


def write(document: Dataset, ae_title: str) -> bytes:
    """Return a dataset as a whole Part 10 file (PS3.10 Section 7)."""
    plain = Dataset()
    plain.update({element.tag: element for element in document})
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = document.SOPClassUID
    meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    if ae_title:
        meta.SourceApplicationEntityTitle = ae_title
    plain.file_meta = meta
    buffer = BytesIO()
    dcmwrite(buffer, plain, enforce_file_format=True)
    return buffer.getvalue()


def reference_to(source: SourceStudy, sop_class_uid: str, sop_instance_uid: str, series_instance_uid: str) -> Dataset:
    """Return an instance of the source's study with the attributes that highdicom's constructors ask for.

    Patient and study are neutral: the true ones are set by :func:`finish`, past highdicom's own checks, which log
    names and refuse what real studies contain.
    """
    item = Dataset()
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(item, keyword, "")
    item.StudyDate, item.StudyTime, item.ReferringPhysicianName = None, None, ""
    item.StudyInstanceUID, item.SeriesInstanceUID = source.study_instance_uid, series_instance_uid
    item.SOPClassUID, item.SOPInstanceUID = sop_class_uid, sop_instance_uid
    return item
