"""The parts of a study's story, as ``node.workflow.story`` tells it: the schema of ``overread explain --json``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = [
    "AttemptTold",
    "CountTold",
    "DecisionTold",
    "DeliveryTold",
    "DocumentTold",
    "Event",
    "FlagTold",
    "NotificationTold",
    "ProcedureStepTold",
    "Received",
    "RevisionTold",
    "SeriesTold",
    "Story",
    "TryTold",
    "UseTold",
    "WorkitemTold",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesTold:
    """One series of the study; ``made_here`` are evidence documents of this or another node."""

    series_instance_uid: str
    modality: str
    series_number: str
    instances: int
    made_here: int
    excluded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What came in. An object that came again unchanged leaves no trace; one that came again changed is a variant."""

    instances: int
    series: list[SeriesTold]
    calling_ae_titles: list[str]
    first_at: datetime
    last_at: datetime
    quiet_from: datetime
    variants: int
    conflicting: int
    #: Taken in although truncated or badly named; nothing is analysed on them.
    defective: int
    defects: list[str]
    excluded: int
    made_here: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTold:
    """What one route decided for one of its models, with a reason for every condition that was looked at.

    ``switched_off``: the study was right, but the model is a demonstration and demonstrations are off.
    """

    route: str
    model: str
    matched: bool
    switched_off: bool
    reasons: list[str]
    not_analysed: dict[str, Any] | None
    deliver: list[str]
    notify: list[str]
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TryTold:
    """What became of a delivery or notification at one time: the peer's answer, or what an operator asked."""

    at: datetime
    outcome: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationTold:
    """One message to one receiver; ``control_id`` is MSH-10 and the same at every try."""

    target: str
    receiver: str
    number: int
    control_id: str
    state: str
    tries: int
    answer: str
    created_at: datetime
    next_at: datetime | None
    ended_at: datetime | None
    history: list[TryTold]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionTold:
    """The study as it stood when it was judged complete, with the verdict and what the routes made of it.

    ``trouble`` says why a parked revision was parked.
    """

    target: str
    number: int
    state: str
    trouble: str
    opened_at: datetime
    instances: int
    verdict: dict[str, Any]
    decisions: list[DecisionTold]
    notifications: list[NotificationTold]


@dataclass(frozen=True, slots=True, kw_only=True)
class UseTold:
    """That a revision wants a workitem, by which route and why these series."""

    revision: int
    route: str
    reason: str
    deliver: list[str]
    notify: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTold:
    """One try at a workitem."""

    number: int
    state: str
    outcome: str
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTold:
    """One evidence document to one destination."""

    target: str
    destination: str
    state: str
    tries: int
    answer: str
    created_at: datetime
    next_at: datetime | None
    ended_at: datetime | None
    history: list[TryTold]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentTold:
    """One evidence document and where it went."""

    kind: str
    sop_instance_uid: str
    series_instance_uid: str
    created_at: datetime
    deliveries: list[DeliveryTold]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapTold:
    """One heat map: the finding that it explains, and the array of its file; on the pixels of one image."""

    array: str
    name: str
    code: dict[str, str]
    #: Its SOP Instance UID.
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapsTold:
    """The heat maps of a workitem, and the file (NumPy's .npz) that they lie in."""

    file: str
    maps: list[HeatMapTold]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkitemTold:
    """One model on one input set."""

    target: str
    uid: str
    model: str
    model_version: str
    #: It was only compared: nothing of it has left.
    shadow: bool
    state: str
    #: Scheduled Procedure Step Priority (0074,1200).
    priority: str
    parked: bool
    outcome: str
    replaces: str | None
    replaced_by: str | None
    input_set: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    uses: list[UseTold]
    attempts: list[AttemptTold]
    documents: list[DocumentTold]
    heat_maps: HeatMapsTold | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of the change feed."""

    sequence: int
    at: datetime
    object: str
    before: str | None
    after: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagTold:
    """Something about the study that somebody should look at; the same words stand in the change feed."""

    kind: str
    subject: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcedureStepTold:
    """What a modality has said of its work on the study (MPPS)."""

    sop_instance_uid: str
    calling_ae_title: str
    state: str
    series: int
    instances: int
    at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTold:
    """What a sender was asked about the study (C-FIND), and its last answer."""

    peer: str
    asked: int
    at: datetime | None
    count: int | None
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The whole way of one study, oldest first; ``summary`` says in a sentence where it stands.

    ``waiting_for`` is what holds up its verdict.
    """

    target: str
    study_instance_uid: str
    state: str
    summary: str
    excluded: bool
    historical: bool
    received: Received
    waiting_for: str
    flags: list[FlagTold]
    procedure_steps: list[ProcedureStepTold]
    counts: list[CountTold]
    revisions: list[RevisionTold]
    workitems: list[WorkitemTold]
    events: list[Event]
