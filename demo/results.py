"""Finds out what became of a study, by asking the PACS and reading what the EMR received; imports nothing of the node.

Each answer is what an outsider sees: QIDO-RS and WADO-RS at the PACS, and the messages in the MLLP receiver's log.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import pydicom
from dicomweb_client.api import DICOMwebClient

from demo.messages import Segment, read_message

__all__ = ["Holding", "Message", "Pacs", "Reading", "read_log"]

DOCUMENT_MODALITIES = ("SR", "SEG")


@dataclass(kw_only=True)
class Reading:
    """What one order group of a message says: one model on one study.

    ``volumes_ml`` and ``present`` are keyed by our local names; ``refusal`` is the reason where there is no finding.
    """

    model: str = ""
    title: str = ""
    version: str = ""
    route: str = ""
    route_reason: str = ""
    volumes_ml: dict[str, float] = field(default_factory=dict)
    present: dict[str, bool] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)
    refusal: str = ""
    parked: bool = False
    demonstration: bool = False
    documents: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Message:
    """One ORU by its MSH-10.

    ``copies`` counts how often it arrived, ``identical`` says whether it was always the same bytes.
    """

    control_id: str
    study_uid: str
    acknowledgement: str
    received_at: datetime
    readings: list[Reading]
    copies: int = 1
    identical: bool = True


def read_log(records: Iterable[dict[str, Any]]) -> list[Message]:
    """Read the receiver's log into messages, repeats folded into the first."""
    messages: dict[str, Message] = {}
    first_bytes: dict[str, str] = {}
    for record in records:
        if not record["message_type"].startswith("ORU^R01"):
            continue
        known = messages.get(record["control_id"])
        if known is not None:
            known.copies += 1
            known.identical &= record["raw"] == first_bytes[record["control_id"]]
            known.acknowledgement = record["acknowledgement"]
            continue
        first_bytes[record["control_id"]] = record["raw"]
        study_uid, readings = _readings(read_message(base64.b64decode(record["raw"])))
        messages[record["control_id"]] = Message(
            control_id=record["control_id"],
            study_uid=study_uid,
            acknowledgement=record["acknowledgement"],
            received_at=datetime.fromisoformat(record["received_at"]),
            readings=readings,
        )
    return list(messages.values())


def _readings(segments: Iterable[Segment]) -> tuple[str, list[Reading]]:
    study_uid, readings = "", []
    last_refusal: Reading | None = None
    for segment in segments:
        if segment.name == "OBR":
            readings.append(Reading(model=segment.field(4, 1), title=segment.field(4, 2)))
            readings[-1].parked = segment.field(25) == "X"
        if not readings:
            continue
        reading = readings[-1]
        if segment.name == "NTE":
            reading.demonstration |= "Demonstration" in segment.field(3)
            if last_refusal is reading and not reading.refusal:
                reading.refusal = segment.field(3)
        if segment.name != "OBX":
            continue
        code, name, value = segment.field(3, 1), segment.field(3, 4), segment.field(5)
        if segment.field(11) == "X":
            reading.refusal, last_refusal = segment.field(5, 5) or segment.field(5, 2), reading
        elif code == "110180":
            study_uid = value
        elif code == "111003":
            reading.version = value
        elif code == "route":
            reading.route = value
        elif code == "route-reason":
            reading.route_reason = value
        elif code.endswith("-uid"):
            reading.documents[value] = code.removesuffix("-uid").upper()
        elif segment.field(2) == "NM" and segment.field(6) == "mL":
            reading.volumes_ml[name] = float(value)
        elif segment.field(2) == "NM" and name.endswith(" probability"):
            reading.probabilities[name.removesuffix(" probability")] = float(value)
        elif segment.field(2) == "CWE":
            reading.present[name] = segment.field(5, 2) == "Present"
    return study_uid, readings


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What the PACS holds of a study: documents by SOP Instance UID with their modality, and the number of images."""

    documents: dict[str, str]
    images: int


@dataclass(frozen=True)
class Pacs:
    """A DICOMweb archive, asked as any viewer would."""

    url: str

    def holding(self, study_uid: str) -> Holding:
        """Ask which documents and how many images the archive has of a study."""
        documents: dict[str, str] = {}
        images = 0
        for series in self._ask(f"/studies/{study_uid}/series", "NumberOfSeriesRelatedInstances"):
            modality = _value(series, "00080060")
            if modality in DOCUMENT_MODALITIES:
                path = f"/studies/{study_uid}/series/{_value(series, '0020000E')}/instances"
                documents |= {_value(instance, "00080018"): modality for instance in self._ask(path)}
            else:
                images += int(_value(series, "00201209") or 0)
        return Holding(documents=documents, images=images)

    def volumes_in_report(self, study_uid: str, sop_instance_uid: str) -> list[float]:
        """Retrieve an SR by WADO-RS and return every volume in mL that its content tree states."""
        [series_uid] = {
            _value(found, "0020000E")
            for found in self._ask(f"/studies/{study_uid}/instances?SOPInstanceUID={sop_instance_uid}")
        }
        client = DICOMwebClient(self.url)
        report = client.retrieve_instance(study_uid, series_uid, sop_instance_uid)
        return list(_millilitres(report))

    def _ask(self, path: str, field_name: str | None = None) -> list[dict[str, Any]]:
        parameters = {"includefield": field_name} if field_name else None
        answer = httpx.get(self.url + path, params=parameters, headers={"Accept": "application/dicom+json"}, timeout=30)
        if answer.status_code in {204, 404}:
            return []
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found


def _value(dataset: dict[str, Any], tag: str) -> str:
    values = dataset.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _millilitres(item: pydicom.Dataset) -> Iterable[float]:
    for child in item.get("ContentSequence", []):
        for measured in child.get("MeasuredValueSequence", []):
            if measured.MeasurementUnitsCodeSequence[0].CodeValue == "mL":
                yield float(measured.NumericValue)
        yield from _millilitres(child)
