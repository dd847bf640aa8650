"""Keeps what is valid of a source's attributes: invalid type 3 ones are left out, type 2 ones emptied.

Identifiers (PS3.3 C.7.1.1, C.7.2.1) stay as they were sent, valid or not: with another one the document would lie in
another study or under another patient.
"""

from __future__ import annotations

import re
import struct
from datetime import datetime
from typing import Any, Final

from pydicom import Dataset
from pydicom.config import IGNORE, RAISE
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.valuerep import validate_value

#: What pydicom raises when it is asked for a value whose bytes make none.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    NotImplementedError,
    OverflowError,
    struct.error,
    RecursionError,
)

IDENTIFIERS: Final = ("PatientID", "AccessionNumber", "StudyID")
TYPE_2: Final = (
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
#: Type 3 of the modules Patient, General Study and Patient Study.
TYPE_3: Final = (
    "IssuerOfPatientID",
    "PatientBirthTime",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientComments",
    "ReferencedPatientSequence",
    "StudyDescription",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "ReferencedStudySequence",
    "ProcedureCodeSequence",
    "IssuerOfAccessionNumberSequence",
    "AdmittingDiagnosesDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "Occupation",
    "AdditionalPatientHistory",
    "AdmissionID",
)
#: Taken whole or not at all, since each of them requires the others.
TOGETHER: Final = (
    (("PatientIdentityRemoved", "DeidentificationMethod"), ()),
    (
        ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID"),
        ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName"),
    ),
    (
        ("PatientSpeciesDescription",),
        ("PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson"),
    ),
)
#: What each item of a sequence must have, and what it may have.
_ITEMS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "ReferencedPatientSequence": (("ReferencedSOPClassUID", "ReferencedSOPInstanceUID"), ()),
    "ReferencedStudySequence": (("ReferencedSOPClassUID", "ReferencedSOPInstanceUID"), ()),
    "ProcedureCodeSequence": (("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), ("CodingSchemeVersion",)),
    "IssuerOfAccessionNumberSequence": (("LocalNamespaceEntityID",), ()),
    "PatientBreedCodeSequence": (("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), ("CodingSchemeVersion",)),
    "BreedRegistrationSequence": (("BreedRegistrationNumber",), ()),
}
_ENUMERATED: Final = {"PatientSex": {"M", "F", "O"}, "PatientIdentityRemoved": {"YES"}}
_TIME: Final = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
#: -1200 to +1400, and -0000 is none (PS3.5 Table 6.2-1, the offset of DT).
_OFFSET: Final = re.compile(r"\+(0\d|1[0-3])[0-5]\d|\+1400|(?!-0000)-(0\d|1[01])[0-5]\d|-1200")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LINES: Final = {"LT", "ST", "UT"}


def raw_text(dataset: Dataset, keyword: str) -> str:
    """Return an attribute as one text, as it was sent; empty where it is absent or makes no text."""
    try:
        value = dataset.get(keyword)
        return "" if value is None else "\\".join(value) if _is_list(value) else str(value)
    except UNREADABLE:
        return ""


def valid_offset(text: str) -> str | None:
    """Return Timezone Offset From UTC (0008,0201) without padding, or None where it is no offset."""
    offset = text.strip(" \0")
    return offset if _OFFSET.fullmatch(offset) else None


def valid_value(dataset: Dataset, keyword: str) -> Any:
    """Return an attribute's value as text, list of texts or list of items; None where it is absent, empty or invalid.

    Valid is what PS3.5 Section 6.2 allows for the value representation, with the multiplicity of PS3.6.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return None
    try:
        element = dataset[tag]
        value = element.value
    except UNREADABLE:
        return None
    vr = dictionary_VR(tag)
    if vr == "SQ":
        return _valid_items(value, keyword) if element.VR == "SQ" else None
    if element.VR == "SQ" or value is None or isinstance(value, bytes):
        return None
    values = [str(one) for one in value] if _is_list(value) else [str(value)]
    if (len(values) > 1 and dictionary_VM(tag) == "1") or not all(_is_valid(vr, one, keyword) for one in values):
        return None
    return values if len(values) > 1 else values[0] or None


def copy_patient_and_study(source: Dataset) -> Dataset:
    """Return the patient's and the study's attributes that a document in the source's study repeats.

    Text values are plain ``str``; the character set is chosen later, for the whole document.
    """
    target = Dataset()
    target.StudyInstanceUID = str(source.StudyInstanceUID)
    for keyword in IDENTIFIERS:
        _set(target, keyword, raw_text(source, keyword))
    for keyword in TYPE_2:
        _set(target, keyword, valid_value(source, keyword) or "")
    for keyword in TYPE_3:
        value = valid_value(source, keyword)
        if value:
            _set(target, keyword, value)
    for required, beside in TOGETHER:
        values = [valid_value(source, keyword) for keyword in required]
        if all(values):
            for keyword, value in zip(required, values, strict=True):
                _set(target, keyword, value)
            for keyword in beside:
                empty: Any = [] if keyword.endswith("Sequence") else ""
                _set(target, keyword, valid_value(source, keyword) or empty)
    return target


def _set(target: Dataset, keyword: str, value: Any) -> None:
    """Set without pydicom's own check, which would warn about identifiers that must stay as they are."""
    from pydicom.dataelem import DataElement

    tag = tag_for_keyword(keyword)
    assert tag is not None
    target.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))


def _valid_items(items: Any, keyword: str) -> list[Dataset] | None:
    required, optional = _ITEMS[keyword]
    kept = []
    for item in items:
        values = {name: valid_value(item, name) for name in required + optional}
        if any(not isinstance(values[name], str) for name in required):
            continue
        clean = Dataset()
        for name, value in values.items():
            if isinstance(value, str):
                _set(clean, name, value)
        kept.append(clean)
    return kept or None


def _is_list(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) and hasattr(value, "__iter__") and not hasattr(value, "components")


def _is_valid(vr: str, value: str, keyword: str) -> bool:
    if keyword in _ENUMERATED and value not in _ENUMERATED[keyword]:
        return False
    if "\ufffd" in value or (_UNPRINTABLE.search(value) and vr not in _LINES):
        return False
    try:
        validate_value(vr, value, RAISE)
        if value and vr == "DA":
            datetime.strptime(value, "%Y%m%d")
        if value and vr == "UI":
            return len(value) <= 64 and all(part == "0" or part[:1] != "0" for part in value.split("."))
    except ValueError:
        return False
    if value and vr == "TM":
        return bool(_TIME.fullmatch(value.strip()))
    if vr == "PN":
        groups = value.split("=")
        return len(groups) <= 3 and all(len(group) <= 64 and group.count("^") <= 4 for group in groups)
    return True
