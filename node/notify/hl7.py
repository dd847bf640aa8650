"""Builds the HL7 v2.5.1 result message (ORU^R01) of a report, and validates it before anyone may send it.

One ORDER_OBSERVATION group per result, each under our own filler order number and procedure code, so that no order
of the RIS is ever overwritten: its numbers only link. Statuses say "entered, not verified" unless configured otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import category

from node.errors import InvalidMessage, kind_and_place
from node.evidence.attributes import valid_offset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from node.notify.report import Report, Result

__all__ = ["CODING_SCHEME", "Profile", "build_message", "escape", "filler_order_number", "xpn_repetitions"]

CODING_SCHEME = "99OVERREAD"
RESEARCH_USE = "Result of software, for research use only; not a medical device. Not verified by a physician."
DEMONSTRATION = "Demonstration: trained on synthetic images. Without any clinical meaning."

# DICOM's coding scheme designators are HL7 table 0396's names, except for these.
_HL7_SCHEMES = {"SRT": "SNM3", "RADLEX": "RadLex", "LN": "LN"}
_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"})
_ST_LENGTH = 199  # HL7 v2.5.1, 2A.74
_PRESENT = ("52101004", "Present", "SCT")
_ABSENT = ("272519000", "Absent", "SCT")
_NOT_ATTEMPTED = ("111225", "Not Attempted", "DCM")
_FAILED = ("111224", "Failed", "DCM")
_KINDS = ("segments", "classifications", "measurements", "detections")
_PROBABILITY = {"value": "122157", "meaning": "Probability", "scheme": "DCM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a receiver's configuration says about its messages.

    ``result_status`` is OBR-25 and OBX-11 of what was found: R (entered, not verified), P (preliminary) or F (final).
    """

    sending_application: str = "OVERREAD"
    sending_facility: str = ""
    receiving_application: str = ""
    receiving_facility: str = ""
    processing_id: Literal["P", "T", "D"] = "P"
    result_status: Literal["R", "P", "F"] = "R"


def escape(text: str, limit: int | None = None) -> str:
    """Return text that holds no delimiter (HL7 v2.5.1, 2.7.1).

    Control characters and lone surrogates, which no field may hold, become spaces; every other code point stays,
    ideographic spaces and joiners included. With ``limit`` the escaped text is cut to that many characters, never
    inside an escape sequence.
    """
    # An escaped text is never shorter than its own: what is beyond the limit need not be looked at.
    kept = text if limit is None else text.lstrip(" ")[: 2 * limit]
    clean = "".join(" " if category(c) in {"Cc", "Cs"} else c for c in kept).strip(" ")
    escaped = clean.translate(_ESCAPES)
    if limit is not None and len(escaped) > limit:
        clean = clean[:limit]
        while len(escaped := clean.translate(_ESCAPES)) > limit:
            clean = clean[:-1]
    return escaped


def filler_order_number(study_uid: str, model_name: str) -> str:
    """Return our order number for one model on one study: the same in every message about it, 16 characters."""
    return "OR" + sha256(f"{study_uid}\n{model_name}".encode()).hexdigest()[:14].upper()


def xpn_repetitions(patient_name: str) -> str:
    """Return a DICOM person name as repetitions of XPN, one for each component group that is filled.

    The groups are alphabetic, ideographic, phonetic (PS3.5 6.2.1): name representation codes A, I, P (table 0465).
    PN orders family, given, middle, prefix, suffix; XPN has the suffix before the prefix.
    """
    repetitions = []
    for group, representation in zip(patient_name.split("="), "AIP", strict=False):
        parts = [escape(part, _ST_LENGTH) for part in [*group.split("^"), "", "", "", "", ""][:5]]
        if not any(parts):
            continue
        family, given, middle, prefix, suffix = parts
        repetitions.append("^".join((family, given, middle, suffix, prefix, "", "", representation)))
    return "~".join(repetitions)


def build_message(report: Report, profile: Profile, control_id: str) -> bytes:
    """Build and validate the ORU^R01 of a report.

    Parameters
    ----------
    report
        What is to be said.
    profile
        The parties and the result status.
    control_id
        MSH-10, 1 to 20 characters; the caller keeps it with the bytes and uses both again on every retry.

    Returns
    -------
    bytes
        The message in UTF-8, segments ended by carriage returns, without MLLP framing.

    Raises
    ------
    InvalidMessage
        When no valid message can be made of the report; its text holds no patient's data.
    """
    if not re.fullmatch(r"[ -~]{1,20}", control_id):
        raise InvalidMessage("MSH-10 has to be 1 to 20 printable ASCII characters")
    if not report.results:
        raise InvalidMessage(f"the report on study {report.study_uid} has no results: there is nothing to say")

    from hl7apy.consts import VALIDATION_LEVEL
    from hl7apy.core import Message
    from hl7apy.parser import parse_message

    try:
        message = Message("ORU_R01", version="2.5.1", validation_level=VALIDATION_LEVEL.STRICT)
        _fill(message.msh, _header(report, profile, control_id))
        patient_result = message.add_group("ORU_R01_PATIENT_RESULT")
        _fill(patient_result.add_group("ORU_R01_PATIENT").add_segment("PID"), _patient(report))
        for number, result in enumerate(report.results, 1):
            group = patient_result.add_group("ORU_R01_ORDER_OBSERVATION")
            _fill(group.add_segment("ORC"), _order(report, result))
            _fill(group.add_segment("OBR"), _request(report, result, profile, number))
            for index, text in enumerate(_remarks(report, result), 1):
                _fill(group.add_segment("NTE"), {1: str(index), 2: "L", 3: escape(text)})
            for index, (fields, note) in enumerate(_observations(report, result, profile), 1):
                observation = group.add_group("ORU_R01_OBSERVATION")
                _fill(observation.add_segment("OBX"), {1: str(index), **fields})
                if note:
                    _fill(observation.add_segment("NTE"), {1: "1", 2: "L", 3: escape(note)})
        message.validate()
        text = message.to_er7()
        parse_message(text, validation_level=VALIDATION_LEVEL.STRICT, find_groups=True).validate()
    except Exception as error:  # noqa: BLE001 - one study that cannot be told must not hold up the next
        # hl7apy raises more than its own errors and quotes values, a patient's name too: only the kind may leave.
        raise InvalidMessage(
            f"the message about study {report.study_uid} (MSH-10 {control_id}) is no valid ORU^R01 2.5.1: "
            f"{kind_and_place(error)}"
        ) from None
    encoded: bytes = (text.rstrip("\r") + "\r").encode("utf-8")
    return encoded


def _fill(segment: Any, fields: dict[int, str]) -> None:
    """Set fields of a segment, in the order of their numbers; what is empty stays absent."""
    for number, value in sorted(fields.items()):
        # Escaped text holds no "~", so what does is repetitions; hl7apy takes those one by one.
        first, *more = value.split("~")
        if first:
            setattr(segment, f"{segment.name.lower()}_{number}", first)
        for repetition in more:
            segment.add_field(f"{segment.name}_{number}").value = repetition


def _header(report: Report, profile: Profile, control_id: str) -> dict[int, str]:
    return {
        3: escape(profile.sending_application, 20),
        4: escape(profile.sending_facility, 20),
        5: escape(profile.receiving_application, 20),
        6: escape(profile.receiving_facility, 20),
        7: _timestamp(report.produced_at),
        9: "ORU^R01^ORU_R01",
        10: escape(control_id),
        11: profile.processing_id,
        12: "2.5.1",
        18: "UNICODE UTF-8",
    }


def _patient(report: Report) -> dict[int, str]:
    sex = report.sex.strip().upper()
    # PID-3 and PID-5 are required; the explicit null "" says that there is nothing, without inventing anything.
    identifier = escape(report.patient_id, _ST_LENGTH)
    issuer = escape(report.issuer, 20)
    return {
        1: "1",
        3: (f"{identifier}^^^{issuer}" if issuer else identifier) if identifier else '""',
        5: xpn_repetitions(report.patient_name) or '""',
        7: _date(report.birth_date),
        8: sex if sex in {"M", "F", "O"} else ("U" if sex else ""),
    }


def _order(report: Report, result: Result) -> dict[int, str]:
    return {
        1: "RE",
        2: escape(report.placer_order_number, _ST_LENGTH),
        3: f"{filler_order_number(report.study_uid, result.model_name)}^OVERREAD",
        9: _timestamp(report.produced_at),
    }


def _request(report: Report, result: Result, profile: Profile, number: int) -> dict[int, str]:
    procedure = report.requested_procedure
    if procedure is not None:
        performed = _code(procedure.value, procedure.meaning, procedure.scheme)
    else:
        performed = f"^{escape(report.study_description, _ST_LENGTH)}" if report.study_description.strip() else ""
    return {
        1: str(number),
        2: escape(report.placer_order_number, _ST_LENGTH),
        3: f"{filler_order_number(report.study_uid, result.model_name)}^OVERREAD",
        4: _code(result.model_name, result.model_title, CODING_SCHEME),
        7: _study_time(report),
        # OBR-18 carries the accession number, as in IHE Radiology's order messages (RAD TF-2, 4.2 and 4.4).
        18: escape(report.accession_number, _ST_LENGTH),
        22: _timestamp(report.produced_at),
        24: "RAD",
        25: "X" if result.state == "parked" else profile.result_status,
        44: performed,
    }


def _remarks(report: Report, result: Result) -> Iterator[str]:
    yield RESEARCH_USE
    if result.demonstration:
        yield DEMONSTRATION
    yield from (f"Caution: {one}" for one in report.cautions)


def _observations(report: Report, result: Result, profile: Profile) -> Iterator[tuple[dict[int, str], str]]:
    """Yield the fields of every OBX but its number, and a note for it. (OBX-3, OBX-4) is unique in a group."""
    status = profile.result_status
    performed_at = _timestamp(result.ended_at) if result.ended_at else ""
    method = _code(result.model_name, f"{result.model_title} {result.model_version}", CODING_SCHEME)

    def obx(kind: str, identifier: str, value: str, **more: str) -> dict[int, str]:
        named = {"sub_id": 4, "units": 6, "normal": 7, "abnormal": 8}
        return {
            2: kind,
            3: identifier,
            5: value,
            11: more.pop("status", status),
            14: _study_time(report),
            17: method,
            19: performed_at,
            **{named[key]: text for key, text in more.items()},
        }

    def text(identifier: str, meaning: str, value: str, scheme: str = CODING_SCHEME) -> dict[int, str]:
        return obx("TX", _code(identifier, meaning, scheme), escape(value))

    yield obx("ST", _code("110180", "Study Instance UID", "DCM"), escape(report.study_uid)), ""
    yield text("111001", "Algorithm Name", f"{result.model_title} ({result.model_name})", "DCM"), ""
    yield text("111003", "Algorithm Version", result.model_version, "DCM"), ""
    yield text("route", "Route", result.route), ""
    yield text("route-reason", "Reason of the route", result.route_reason), ""

    findings = result.findings or {}
    if result.state != "analysed":
        outcome = _FAILED if result.state == "parked" else _NOT_ATTEMPTED
        stated = findings.get("not_analysed") or {}
        reason = result.reason or str(stated.get("text") or "no reason was recorded")
        coded = str(stated.get("reason") or result.state)
        value = f"{_code(*outcome)}^{_code(coded, reason, CODING_SCHEME)}"
        identifier = _code(result.model_name, result.model_title, CODING_SCHEME)
        word = "Parked, an operator has to look" if result.state == "parked" else "Not analysed"
        yield obx("CWE", identifier, value, status="X"), f"{word}: {reason}"
    else:
        for number, segment in enumerate(findings.get("segments", ()), 1):
            yield _segment(segment, str(number), obx), _PLANES.get(segment.get("plane") or "", "")
        for number, finding in enumerate(findings.get("classifications", ()), 1):
            name = finding["name"]
            identifier = _with_local(finding["code"], name, name)
            present = bool(finding["present"])
            value = _code(*(_PRESENT if present else _ABSENT))
            yield obx("CWE", identifier, value, sub_id=str(number), abnormal="A" if present else ""), ""
            yield (
                obx(
                    "NM",
                    _with_local(_PROBABILITY, f"{name} probability", f"Probability of {name}"),
                    _number(finding["probability"], 4),
                    sub_id=str(number),
                    units=_code("1", "no units", "UCUM"),
                    normal=f"<{_number(finding['threshold'], 4)}",
                ),
                "",
            )
        for number, measured in enumerate(findings.get("measurements", ()), 1):
            identifier = _with_local(measured["code"], measured["name"], measured["name"])
            unit = measured["unit"]
            units = _code(unit["value"], unit["meaning"], unit["scheme"])
            yield obx("NM", identifier, _measured(measured["value"]), sub_id=str(number), units=units), ""
        yield from _detections(findings, obx)
        if findings and not any(findings.get(kind) for kind in _KINDS):
            yield text("nothing-found", "Result", "Analysed; nothing that the model looks for was found"), ""
    coverage = findings.get("coverage")
    if coverage:
        extent = (
            f"{coverage['images']} images, {_number(coverage['spacing_mm'], 2)} mm apart, "
            f"{_number(coverage['extent_mm'], 1)} mm in all; nothing is said about what lies outside"
        )
        yield text("coverage", "Coverage", extent), ""
    for number, document in enumerate(result.documents, 1):
        identifier = _code(f"{document.kind.lower()}-uid", f"{document.kind} SOP Instance UID", CODING_SCHEME)
        yield obx("ST", identifier, escape(document.sop_instance_uid), sub_id=str(number)), document.note


#: What an area on a radiograph is not.
_PLANES = {
    "detector": "Area at the detector's plane: magnification is not corrected",
    "calibrated": "Area at the depth that the image's pixel spacing was calibrated for",
    "unstated": "The image does not say at which plane its pixel spacing, and so this area, holds",
}


def _segment(segment: dict[str, Any], number: str, obx: Callable[..., dict[int, str]]) -> dict[int, str]:
    """Return a structure's volume, or on a radiograph its area; where neither is known, whether it was marked."""
    name, area = segment["name"], segment.get("area_mm2")
    if segment.get("pixels") is None:
        identifier = _with_local(segment["code"], name, f"Volume of {name}")
        units = _code("mL", "milliliter", "UCUM")
        return obx("NM", identifier, _number(segment["volume_ml"], 1), sub_id=number, units=units)
    if area is None:
        said = "marked; its size in mm is not known" if segment["pixels"] else "not marked"
        return obx("TX", _with_local(segment["code"], name, name), escape(said), sub_id=number)
    identifier = _with_local(segment["code"], name, f"Area of {name} in the image")
    units = _code("mm2", "square millimeter", "UCUM")
    return obx("NM", identifier, _number(area, 0), sub_id=number, units=units)


def _detections(findings: dict[str, Any], obx: Callable[..., dict[int, str]]) -> Iterator[tuple[dict[int, str], str]]:
    """Yield what was found and how sure the model is; where it lies stands in the SR."""
    for number, found in enumerate(findings.get("detections", ()), 1):
        name = found["name"]
        present = _code(*_PRESENT)
        yield obx("CWE", _with_local(found["code"], name, name), present, sub_id=f"box {number}", abnormal="A"), ""
        yield (
            obx(
                "NM",
                _with_local(_PROBABILITY, f"{name} probability", f"Probability of {name}"),
                _number(found["probability"], 4),
                sub_id=f"box {number}",
                units=_code("1", "no units", "UCUM"),
                normal=f"<{_number(found['threshold'], 4)}",
            ),
            "",
        )


def _measured(value: float) -> str:
    """Return an NM with as many digits as a model's floats have, and no exponent."""
    return f"{Decimal(f'{float(value):.7g}'):f}"


def _code(value: str, meaning: str, scheme: str) -> str:
    """Return the first three components of CE and CWE."""
    return "^".join((escape(value, _ST_LENGTH), escape(meaning, _ST_LENGTH), escape(_HL7_SCHEMES.get(scheme, scheme))))


def _with_local(code: dict[str, str], name: str, meaning: str) -> str:
    """Return all six components of CE: the standard's code, and our own name of the same thing as the alternate."""
    return f"{_code(code['value'], code['meaning'], code['scheme'])}^{_code(name, meaning, CODING_SCHEME)}"


def _number(value: float, digits: int) -> str:
    """Return an NM (decimal point, no exponent) with at most so many digits behind the point."""
    return f"{float(value):.{digits}f}".rstrip("0").rstrip(".") if digits else f"{float(value):.0f}"


def _timestamp(moment: datetime) -> str:
    """Return a DTM with its offset from UTC; a time without one is taken as UTC, as the node stores it."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return aware.strftime("%Y%m%d%H%M%S%z")


def _date(value: str) -> str:
    """Return a DICOM DA as a DTM, or nothing where it is no date."""
    date = value.strip()
    try:
        # strptime alone would also read 2026112, as the second.
        return date if re.fullmatch(r"\d{8}", date, re.ASCII) and datetime.strptime(date, "%Y%m%d") else ""
    except ValueError:
        return ""


def _study_time(report: Report) -> str:
    """Return the study's date and time as a DTM, as precise as they are; the offset only where the study states it."""
    date = _date(report.study_date)
    found = re.match(r"([01]\d|2[0-3])([0-5]\d)([0-5]\d)?", report.study_time.strip().replace(":", ""), re.ASCII)
    if not date or not found:
        return date
    return date + "".join(found.groups("")) + (valid_offset(report.timezone_offset) or "")
