"""The check before anything leaves: reads a document's bytes back and holds them against their sources."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Final

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from node.errors import EvidenceError, kind_and_place
from node.evidence.attributes import UNREADABLE
from node.evidence.provenance import elements

if TYPE_CHECKING:
    from collections.abc import Iterable

    from node.evidence.documents import EvidenceDocument
    from node.evidence.provenance import Context

_IDENTITY: Final = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
_REQUIRED: Final = ("SeriesDescription", "SeriesNumber", "TimezoneOffsetFromUTC", "Manufacturer", "InstanceNumber")


def check_documents(documents: Iterable[EvidenceDocument], context: Context) -> None:
    """Check each document as a receiver would see it.

    Raises
    ------
    EvidenceError
        Names document and defect, and nothing of the patient.
    """
    made = list(documents)
    known = {image.sop_instance_uid: image.sop_class_uid for image in context.source.images}
    known |= {document.sop_instance_uid: document.sop_class_uid for document in made}
    known |= {one.sop_instance_uid: one.sop_class_uid for one in context.predecessors}
    for document in made:
        defect = _defect(document, context, known)
        if defect:
            raise EvidenceError(f"{document.kind} {document.sop_instance_uid} must not leave: {defect}")


def _defect(document: EvidenceDocument, context: Context, known: dict[str, str]) -> str | None:
    try:
        with warnings.catch_warnings():
            # A source's own invalid identifiers are kept, and reading them back warns.
            warnings.simplefilter("ignore")
            dataset = dcmread(BytesIO(document.data))
            return next(_defects(document, dataset, context, known), None)
    except UNREADABLE as error:
        return f"its bytes cannot be read back ({kind_and_place(error)})"


def _defects(document: EvidenceDocument, dataset: Dataset, context: Context, known: dict[str, str]) -> Iterator[str]:
    source, meta = context.source, dataset.file_meta
    if meta.TransferSyntaxUID != ExplicitVRLittleEndian:
        yield f"its transfer syntax is {meta.TransferSyntaxUID}"
    for keyword, expected in (
        ("SOPClassUID", document.sop_class_uid),
        ("SOPInstanceUID", document.sop_instance_uid),
        ("SeriesInstanceUID", document.series_instance_uid),
        ("StudyInstanceUID", source.study_instance_uid),
    ):
        if dataset.get(keyword) != expected:
            yield f"{keyword} is {dataset.get(keyword)}, expected {expected}"
    if document.sop_instance_uid in {image.sop_instance_uid for image in source.images}:
        yield "it has the SOP Instance UID of a source"
    if document.series_instance_uid in {image.series_instance_uid for image in source.images}:
        yield "it lies in the series of a source"
    for keyword in _IDENTITY:
        if str(dataset.get(keyword) or "").rstrip() != str(source.attributes.get(keyword) or "").rstrip():
            yield f"{keyword} is not the source's, by code point"
    for keyword in _REQUIRED:
        if not dataset.get(keyword) and dataset.get(keyword) != 0:
            yield f"{keyword} is absent"
    yield from _provenance(document, dataset, context)
    yield from _references(dataset, known)


def _provenance(document: EvidenceDocument, dataset: Dataset, context: Context) -> Iterator[str]:
    equipment = dataset.get("ContributingEquipmentSequence") or []
    if context.model.device_uid not in {item.get("DeviceUID") for item in equipment}:
        yield "its model is not named in Contributing Equipment"
    if "research use" not in dataset.SeriesDescription:
        yield "its Series Description does not say research use"
    if document.kind == "SR":
        flags = (dataset.CompletionFlag, dataset.VerificationFlag, dataset.PreliminaryFlag)
        if flags != ("COMPLETE", "UNVERIFIED", "PRELIMINARY"):
            yield f"its flags are {flags}"
        if dataset.ContentTemplateSequence[0].TemplateIdentifier != "1500":
            yield "it is not of TID 1500"


def _references(dataset: Dataset, known: dict[str, str]) -> Iterator[str]:
    """Every instance that is pointed at is a source, a document of this make or a predecessor, and is listed."""
    copied = {"ReferencedStudySequence", "ReferencedPatientSequence"}
    listed: set[str] = set()
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "ReferencedSeriesSequence"):
        for item in dataset.get(keyword) or []:
            listed |= {str(uid) for uid in _pointed_at(item)}
    for element in dataset:
        if element.tag.is_private:
            yield f"it holds the private element {element.tag}"
        if element.VR != "SQ" or element.keyword in copied:
            continue
        for item in element.value:
            for uid in _pointed_at(item):
                if uid not in known:
                    yield f"{element.keyword} refers to {uid}, which is neither source nor document"
                elif element.keyword != "PredecessorDocumentsSequence" and uid not in listed:
                    yield f"{element.keyword} refers to {uid}, which no evidence sequence lists"


def _pointed_at(dataset: Dataset) -> Iterator[str]:
    for element in elements(dataset):
        if element.tag.is_private:
            yield f"private element {element.tag}"
        elif element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)
