"""What the messages of Storage Commitment say (PS3.4 Table J.3-1 and J.3-2): read from datasets, and composed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from node.errors import OperationRefused
from storage.commitments import Reference

__all__ = [
    "ALL_COMMITTED",
    "INSTANCE_UID",
    "REQUEST_COMMITMENT",
    "SOME_FAILED",
    "Report",
    "compose_report",
    "compose_request",
    "failure_meaning",
    "read_report",
    "read_request",
]

#: The well-known SOP Instance (PS3.6 Table A-1).
INSTANCE_UID = "1.2.840.10008.1.20.1.1"
#: Action Type ID (PS3.4 J.3.2.1.2).
REQUEST_COMMITMENT = 1
#: Event Type IDs (PS3.4 J.3.3.1.2).
ALL_COMMITTED, SOME_FAILED = 1, 2

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_INVALID_ARGUMENT = 0x0115


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an SCP says of one transaction; instances by (SOP Class UID, SOP Instance UID)."""

    transaction_uid: str
    committed: frozenset[tuple[str, str]] = frozenset()
    #: SOP Instance UID to Failure Reason (0008,1197).
    failed: dict[str, int] = field(default_factory=dict)


def read_request(dataset: Dataset) -> tuple[str, list[Reference]]:
    """Return the Transaction UID of a request and what it asks about.

    Raises
    ------
    OperationRefused
        With 0115 (invalid argument value) where either is missing or malformed.
    """
    transaction_uid = _uid(dataset, "TransactionUID")
    references = [
        Reference(_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))
        for item in _items(dataset, "ReferencedSOPSequence")
    ]
    if not references:
        raise OperationRefused(_INVALID_ARGUMENT, "Referenced SOP Sequence names no instance")
    return transaction_uid, references


def read_report(dataset: Dataset) -> Report:
    """Return what a report says.

    Raises
    ------
    OperationRefused
        With 0115 where it is malformed, or names no instance at all.
    """
    committed = frozenset(
        (_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))
        for item in _items(dataset, "ReferencedSOPSequence")
    )
    failed = {_uid(item, "ReferencedSOPInstanceUID"): _reason(item) for item in _items(dataset, "FailedSOPSequence")}
    if not committed and not failed:
        raise OperationRefused(_INVALID_ARGUMENT, "the report names no instance")
    return Report(transaction_uid=_uid(dataset, "TransactionUID"), committed=committed, failed=failed)


def compose_request(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """Compose the Action Information of a request."""
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    dataset.ReferencedSOPSequence = Items([_item(one) for one in references])
    return dataset


def compose_report(
    transaction_uid: str, references: Sequence[Reference], retrieve_ae_title: str
) -> tuple[int, Dataset]:
    """Compose the Event Type ID and the Event Information of a report.

    Parameters
    ----------
    references
        With what was found of each.
    retrieve_ae_title
        By which the instances can be had (0008,0054).
    """
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    dataset.RetrieveAETitle = retrieve_ae_title
    committed = [_item(one) for one in references if one.failure_reason is None]
    failed = []
    for one in references:
        if one.failure_reason is not None:
            item = _item(one)
            item.FailureReason = one.failure_reason
            failed.append(item)
    if committed:
        dataset.ReferencedSOPSequence = Items(committed)
    if failed:
        dataset.FailedSOPSequence = Items(failed)
    return (SOME_FAILED if failed else ALL_COMMITTED), dataset


def failure_meaning(reason: int) -> str:
    """Say a Failure Reason in words, with its number (PS3.3 C.14.1.1)."""
    known = {
        0x0110: "processing failure",
        0x0112: "no such object instance",
        0x0119: "class and instance conflict",
        0x0122: "SOP Class not supported",
        0x0131: "duplicate Transaction UID",
        0x0213: "resource limitation",
    }
    return f"0x{reason:04X}: {known.get(reason, 'a reason that the standard does not define')}"


def _item(one: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = one.sop_class_uid
    item.ReferencedSOPInstanceUID = one.sop_instance_uid
    return item


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    value = dataset.get(keyword)
    if value is None:
        return ()
    if not isinstance(value, Items):
        raise OperationRefused(_INVALID_ARGUMENT, f"{keyword} is no sequence")
    return value


def _uid(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    text = str(value).strip(" \0") if value is not None else ""
    if not text:
        raise OperationRefused(_INVALID_ARGUMENT, f"{keyword} is missing")
    if len(text) > 64 or not _UID.fullmatch(text):
        raise OperationRefused(_INVALID_ARGUMENT, f"{keyword} is no UID")
    return text


def _reason(item: Dataset) -> int:
    value = item.get("FailureReason")
    return value if isinstance(value, int) else 0x0110
