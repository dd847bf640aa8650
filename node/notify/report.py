"""What one message to one receiver says about a study, in domain terms: no HL7 in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from inference.findings import Code

__all__ = ["DocumentReference", "Report", "Result", "ResultState"]


ResultState = Literal["analysed", "not-analysed", "parked"]


class DocumentReference(NamedTuple):
    """An evidence document that a result cites, and what became of it.

    ``kind`` is SR or SEG; ``note`` says in plain words where it went ("delivered to pacs") or why it did not.
    """

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    delivered: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one model said about the study, or why it said nothing.

    ``findings`` is :meth:`inference.findings.Findings.summary`; None where the workitem was parked. ``reason`` says in
    plain words why there is no finding; it is not given for ``analysed``.
    """

    model_name: str
    model_version: str
    model_title: str
    demonstration: bool
    state: ResultState
    reason: str | None
    findings: dict[str, Any] | None
    documents: tuple[DocumentReference, ...]
    started_at: datetime | None
    ended_at: datetime | None
    route: str
    route_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One revision of a study as one receiver is told of it.

    Dates and times of the study are DICOM DA and TM as received; ``timezone_offset`` is Timezone Offset From UTC
    (0008,0201) where the study has it. ``patient_name`` is the decoded PN with its component groups. ``produced_at``
    carries an offset. ``message_number`` counts the messages about this revision to this receiver from 1: a later
    success of what was parked is a further message under the same order numbers. ``cautions`` say in plain words, and
    without the patient's data, what is doubtful about the study as it was judged, such as images that had not come.
    """

    study_uid: str
    accession_number: str
    placer_order_number: str
    patient_id: str
    issuer: str
    patient_name: str
    birth_date: str
    sex: str
    study_date: str
    study_time: str
    study_description: str
    requested_procedure: Code | None
    revision: int
    message_number: int
    produced_at: datetime
    results: tuple[Result, ...]
    timezone_offset: str = ""
    cautions: tuple[str, ...] = ()
