"""What ``storage`` gives out: frozen rows in the standard's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = [
    "Attempt",
    "Availability",
    "Change",
    "Commitment",
    "Delivery",
    "Document",
    "Flag",
    "Inquiry",
    "Instance",
    "ModelChange",
    "ModelVersion",
    "Notification",
    "Pause",
    "ProcedureStep",
    "Quarantined",
    "Revision",
    "Series",
    "Study",
    "Variant",
    "Workitem",
    "WorkitemUse",
]

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study as indexed; ``attributes`` is DICOM JSON (PS3.18 Annex F) of its study-level elements."""

    id: int
    study_instance_uid: str
    state: str
    patient_id: str
    patient_name: str
    patient_name_folded: str
    patient_birth_date: str
    patient_sex: str
    accession_number: str
    study_date: str
    study_time: str
    study_description: str
    attributes: Json
    excluded: bool
    historical: bool
    evidence_changed: bool
    first_received_at: datetime
    last_received_at: datetime
    quiet_from: datetime
    receiving_from: datetime | None = None
    released_at: datetime | None = None
    looked_at: datetime | None = None
    waiting_for: str = ""
    look_at: datetime | None = None
    asked_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series as indexed; ``attributes`` is DICOM JSON of its series-level elements."""

    id: int
    study_id: int
    series_instance_uid: str
    modality: str
    series_number: str
    series_description: str
    attributes: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An instance as indexed; ``blob`` names its bytes, ``digest`` is SHA-256 of its dataset without file meta."""

    id: int
    study_id: int
    series_id: int
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    instance_number: str
    attributes: Json
    identity: Json
    digest: str
    size: int
    blob: str
    made_here: bool
    conflicting: bool
    defect: str
    excluded: bool
    calling_ae_title: str
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A later object under the UID of an instance that is kept: other bytes, recorded and set aside."""

    id: int
    instance_id: int
    transfer_syntax_uid: str
    digest: str
    blob: str
    difference: str
    calling_ae_title: str
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """Bytes that were refused, kept where an operator can look."""

    id: int
    blob: str
    size: int
    digest: str | None
    reason: str
    calling_ae_title: str
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A study as it stood when it was judged complete; ``verdict`` says why."""

    id: int
    study_id: int
    number: int
    state: str
    last_instance_id: int
    verdict: Json
    opened_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Workitem:
    """One model on one input set (a UPS, PS3.4 Annex CC)."""

    id: int
    uid: str
    study_id: int
    model: str
    model_version: str
    model_digest: str
    device_uid: str
    input_digest: str
    generation: int
    replaces_id: int | None
    input_set: Json
    shadow: bool
    state: str
    priority: int
    transaction_uid: str | None
    parked: bool
    outcome: str
    findings: Json | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkitemUse:
    """That a revision wants a workitem, by which route, why, and where the results go."""

    id: int
    workitem_id: int
    revision_id: int
    route: str
    reason: str
    deliver: list[str]
    notify: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a workitem, under a lease."""

    id: int
    workitem_id: int
    number: int
    state: str
    owner: str
    lease_until: datetime
    outcome: str
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """An evidence document: its bytes are stored once and never rebuilt."""

    id: int
    workitem_id: int
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    blob: str
    digest: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One evidence document to one destination; ``stored_at`` where that has it and is still to commit to it."""

    id: int
    document_id: int
    destination: str
    state: str
    tries: int
    refusals: int
    next_at: datetime
    answer: str
    created_at: datetime
    ended_at: datetime | None
    stored_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """What a peer asked the node to commit to, under the peer's Transaction UID, and the report that it is owed."""

    id: int
    calling_ae_title: str
    transaction_uid: str
    state: str
    tries: int
    refusals: int
    next_at: datetime
    answer: str
    weighed_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """One Instance Availability Notification about a revision to one peer."""

    id: int
    revision_id: int
    peer: str
    sop_instance_uid: str
    state: str
    tries: int
    refusals: int
    next_at: datetime
    answer: str
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One message to one receiver; the bytes that are sent are these, every time."""

    id: int
    revision_id: int
    receiver: str
    number: int
    state: str
    control_id: str
    message: bytes
    content_digest: str
    tries: int
    refusals: int
    next_at: datetime
    answer: str
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One event of the change feed."""

    sequence: int
    at: datetime
    kind: str
    object_id: int | None
    study_id: int | None
    before: str | None
    after: str | None
    reason: str
    detail: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a model: what it is by its digests, its stage (``state``), and its last test."""

    id: int
    model: str
    version: str
    digest: str
    device_uid: str
    card_sha256: str
    origin: str
    state: str
    share: float | None
    chosen: bool
    instead_of: str | None
    added_at: datetime
    tested_at: datetime | None
    tested_digest: str | None
    test_passed: bool | None
    test: Json | None

    @property
    def name(self) -> str:
        """How routes and commands name it."""
        return f"{self.model}@{self.version}"

    @property
    def is_tested(self) -> bool:
        """Whether what it is now has passed its test."""
        return self.test_passed is True and self.tested_digest == self.digest

    @property
    def has_failed(self) -> bool:
        """Whether what it is now has not passed its test."""
        return self.test_passed is False and self.tested_digest == self.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChange:
    """One line of the audit trail of models: who has changed which version, when, from what to what, and why."""

    id: int
    at: datetime
    model: str
    version: str
    action: str
    before: str | None
    after: str | None
    by: str
    why: str
    detail: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A route, model or destination that an operator holds still."""

    kind: str
    name: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcedureStep:
    """A Modality Performed Procedure Step; ``performed_series`` names the instances that the modality has made.

    ``attributes`` is DICOM JSON of what the modality has set (PS3.18 Annex F).
    """

    id: int
    sop_instance_uid: str
    study_instance_uid: str | None
    state: str
    performed_series: Mapping[str, Sequence[str]]
    attributes: Json
    calling_ae_title: str
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """What a sender was asked about a study, and its last answer.

    ``count`` is its Number of Study Related Instances (0020,1208); None where it gave none, and ``answer`` says why.
    """

    id: int
    study_id: int
    peer: str
    due_at: datetime | None
    asked_at: datetime | None
    asked: int
    failures: int
    count: int | None
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """Something about a study that somebody should look at; names no patient."""

    id: int
    study_id: int
    kind: str
    subject: str
    reason: str
    raised_at: datetime
