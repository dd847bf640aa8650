"""Modality Performed Procedure Step as SCP (PS3.4 Annex F): N-CREATE begins a step, N-SET changes and ends it.

What a modality must say is checked as PS3.4 Table F.7.2-1 has it, for what is of type 1: modalities leave out
attributes of type 2, and refusing would lose what they have to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import structlog
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_CREATE, N_SET
from pynetdicom.sop_class import ModalityPerformedProcedureStep  # type: ignore[attr-defined]

from node.dimse.operations import Answer, calling_ae_title, dataset_of
from node.errors import OperationRefused
from storage import lifecycle, procedure_steps
from storage.database import Database
from storage.errors import IllegalTransition
from storage.records import ProcedureStep

__all__ = ["create_step", "set_step"]

_log = structlog.get_logger(__name__)
_SUCCESS = 0x0000
_LIST_ERROR = 0x0107
_INVALID_VALUE, _MISSING, _EMPTY, _NO_INSTANCE, _NO_CLASS = 0x0106, 0x0120, 0x0121, 0x0117, 0x0118
_FINAL = (lifecycle.COMPLETED, lifecycle.DISCONTINUED)
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

#: Type 1 of N-CREATE (PS3.4 Table F.7.2-1).
_AT_START = (
    "ScheduledStepAttributesSequence",
    "PerformedProcedureStepID",
    "PerformedStationAETitle",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepStatus",
    "Modality",
)
#: Type 1 of the final state.
_AT_END = ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")
#: What N-SET may not change.
_FIXED = frozenset(
    {
        *_AT_START,
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
        "ReferencedPatientSequence",
        "PerformedStationName",
        "PerformedLocation",
        "StudyID",
        "SpecificCharacterSet",
        "SOPClassUID",
        "SOPInstanceUID",
    }
) - {"PerformedProcedureStepStatus"}


def create_step(event: evt.Event, database: Database) -> Answer:
    """Keep a step that has begun, before it is answered (PS3.4 F.7.2.1).

    Raises
    ------
    OperationRefused
        With 0106, 0120 or 0121 for what is wrong, missing or empty.
    AlreadyThere
        For a SOP Instance UID that is taken (0111).
    """
    request = cast(N_CREATE, event.request)
    if str(request.AffectedSOPClassUID) != ModalityPerformedProcedureStep:
        raise OperationRefused(_NO_CLASS, "N-CREATE is for Modality Performed Procedure Step only")
    given = request.AffectedSOPInstanceUID
    uid = generate_uid(prefix=None) if given is None else _instance_uid(given)
    dataset = dataset_of(event, "attribute_list")
    _require(dataset, _AT_START)
    if _text(dataset, "PerformedProcedureStepStatus") != lifecycle.IN_PROGRESS:
        raise OperationRefused(_INVALID_VALUE, "PerformedProcedureStepStatus: a step begins as IN PROGRESS")
    for item in _items(dataset, "ScheduledStepAttributesSequence"):
        _require(item, ("StudyInstanceUID",))
    with database.write() as connection:
        step = procedure_steps.create(
            connection,
            sop_instance_uid=uid,
            study_instance_uid=_study(dataset),
            performed_series=_performed_series(dataset),
            attributes=dataset.to_json_dict(suppress_invalid_tags=True),
            calling_ae_title=calling_ae_title(event),
        )
    _log.info("procedure step begun", calling_ae_title=step.calling_ae_title, step=uid)
    if given is not None:
        return _SUCCESS, None
    answer = Dataset()
    answer.AffectedSOPInstanceUID = uid
    return _SUCCESS, answer


def set_step(event: evt.Event, database: Database) -> Answer:
    """Take over what a modality changes, before it is answered (PS3.4 F.7.2.2).

    What may not be changed stays as it was said at the start; where the modality says otherwise now, the rest is taken
    and the answer is the warning 0107.

    Raises
    ------
    OperationRefused
        With 0106, 0120 or 0121 for what is wrong, missing or empty.
    Unknown
        For a step that was never begun (0112).
    IllegalTransition
        For one that has ended (0110 with Error ID A710, PS3.4 Table F.7.2-2).
    """
    request = cast(N_SET, event.request)
    if str(request.RequestedSOPClassUID) != ModalityPerformedProcedureStep:
        raise OperationRefused(_NO_CLASS, "N-SET is for Modality Performed Procedure Step only")
    uid = _instance_uid(request.RequestedSOPInstanceUID)
    changes = dataset_of(event, "modification_list")
    with database.write() as connection:
        # What two associations say of one step is taken over one after the other.
        before = procedure_steps.get(connection, uid, for_update=True)
        dataset, refused = _changed(before, changes)
        state = _text(dataset, "PerformedProcedureStepStatus")
        step = procedure_steps.update(
            connection,
            uid,
            state=None if state == before.state else state,
            performed_series=_performed_series(dataset),
            attributes=dataset.to_json_dict(suppress_invalid_tags=True),
        )
    _log.info("procedure step changed", calling_ae_title=calling_ae_title(event), step=uid, state=step.state)
    if not refused:
        return _SUCCESS, None
    answer = Dataset()
    answer.Status = _LIST_ERROR
    answer.ErrorComment = f"not changed: {', '.join(refused)}"[:64]
    return answer, None


def _changed(before: ProcedureStep, changes: Dataset) -> tuple[Dataset, list[str]]:
    """Return what a step is after an N-SET, and the keywords of what may not be changed and would have been."""
    if before.state in _FINAL:
        raise IllegalTransition("Performed Procedure Step Object may no longer be updated")
    dataset = Dataset.from_json(dict(before.attributes))
    refused = []
    for element in changes:
        keyword = keyword_for_tag(element.tag)
        if keyword not in _FIXED:
            dataset[element.tag] = element
        elif keyword not in ("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID") and (
            element.tag not in dataset or dataset[element.tag].value != element.value
        ):
            refused.append(keyword)
    state = _text(dataset, "PerformedProcedureStepStatus")
    if state not in (lifecycle.IN_PROGRESS, *_FINAL):
        raise OperationRefused(_INVALID_VALUE, "PerformedProcedureStepStatus is none of the three")
    if state in _FINAL:
        _require(dataset, _AT_END)
    if state == lifecycle.COMPLETED:
        _require(dataset, ("PerformedSeriesSequence",))
    return dataset, refused


def _require(dataset: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        if keyword not in dataset:
            raise OperationRefused(_MISSING, f"{keyword} is missing")
        value = dataset[keyword].value
        if value is None or (isinstance(value, (str, Items)) and not len(value)) or not str(value).strip():
            raise OperationRefused(_EMPTY, f"{keyword} has no value")


def _performed_series(dataset: Dataset) -> dict[str, list[str]]:
    """Return the instances that a step has made, by series: images and what is none."""
    found: dict[str, list[str]] = {}
    for item in _items(dataset, "PerformedSeriesSequence"):
        _require(item, ("SeriesInstanceUID",))
        made = found.setdefault(_text(item, "SeriesInstanceUID"), [])
        for keyword in ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence"):
            for reference in _items(item, keyword):
                _require(reference, ("ReferencedSOPInstanceUID",))
                made.append(_text(reference, "ReferencedSOPInstanceUID"))
    return found


def _study(dataset: Dataset) -> str | None:
    return next((_text(item, "StudyInstanceUID") for item in _items(dataset, "ScheduledStepAttributesSequence")), None)


def _items(dataset: Dataset, keyword: str) -> Iterable[Dataset]:
    value: Any = dataset.get(keyword)
    if value is None:
        return ()
    if not isinstance(value, Items):
        raise OperationRefused(_INVALID_VALUE, f"{keyword} is no sequence")
    return value


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip(" \0")


def _instance_uid(value: Any) -> str:
    text = str(value or "").strip(" \0")
    if len(text) > 64 or not _UID.fullmatch(text):
        raise OperationRefused(_NO_INSTANCE, "the SOP Instance UID is no UID")
    return text
