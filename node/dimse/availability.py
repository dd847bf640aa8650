"""Instance Availability Notification as SCU (PS3.4 Annex R): tells a peer which instances it can retrieve here."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    InstanceAvailabilityNotification,
    ModalityPerformedProcedureStep,
)

from node.dimse.requestor import Entity
from node.dimse.scu import is_final, name_of, why_not
from node.peers import Address
from storage.records import Instance

__all__ = ["Announced", "announce", "compose"]

_SUCCESS = 0x0000
_DUPLICATE = 0x0111


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What became of a notification: acknowledged, or else whether the peer was there and refused."""

    acknowledged: bool
    refused: bool
    answer: str


def compose(
    study_instance_uid: str,
    instances: Sequence[tuple[str, Instance]],
    procedure_steps: Sequence[str],
    *,
    retrieve_ae_title: str,
    is_online: Callable[[str], bool],
) -> Dataset:
    """Compose what a notification says (PS3.4 Table R.3.2-1).

    Parameters
    ----------
    instances
        With the Series Instance UID of each.
    procedure_steps
        SOP Instance UIDs of the steps that made them, as far as modalities have told.
    is_online
        Whether the bytes of a blob can be read.
    """
    by_series: dict[str, list[Dataset]] = {}
    for series_instance_uid, one in instances:
        item = Dataset()
        item.ReferencedSOPClassUID = one.sop_class_uid
        item.ReferencedSOPInstanceUID = one.sop_instance_uid
        item.InstanceAvailability = "ONLINE" if is_online(one.blob) else "UNAVAILABLE"
        item.RetrieveAETitle = retrieve_ae_title
        by_series.setdefault(series_instance_uid, []).append(item)
    series = []
    for series_instance_uid, items in by_series.items():
        item = Dataset()
        item.SeriesInstanceUID = series_instance_uid
        item.ReferencedSOPSequence = Items(items)
        series.append(item)
    steps = []
    for uid in procedure_steps:
        item = Dataset()
        item.ReferencedSOPClassUID = ModalityPerformedProcedureStep
        item.ReferencedSOPInstanceUID = uid
        item.PerformedWorkitemCodeSequence = Items([])
        steps.append(item)
    dataset = Dataset()
    dataset.ReferencedPerformedProcedureStepSequence = Items(steps)
    dataset.StudyInstanceUID = study_instance_uid
    dataset.ReferencedSeriesSequence = Items(series)
    return dataset


def announce(
    peer: Address, calling_ae_title: str, sop_instance_uid: str, dataset: Dataset, *, timeout: float = 30
) -> Announced:
    """Send one notification by N-CREATE; never raises for what the peer does.

    A peer that has it already (0111) has been told.
    """
    try:
        socket.getaddrinfo(peer.host, peer.port)
    except OSError as error:
        return Announced(acknowledged=False, refused=False, answer=f"{peer.host} is no known host: {error.strerror}")
    entity = Entity(calling_ae_title, timeout)
    with entity.association(peer, [build_context(InstanceAvailabilityNotification)]) as association:
        if not association.is_established:
            return Announced(acknowledged=False, refused=is_final(association), answer=why_not(association, peer))
        try:
            status, _ = association.send_n_create(dataset, InstanceAvailabilityNotification, UID(sop_instance_uid))
        except RuntimeError:
            answer = f"{name_of(peer)} ended the association before the notification"
            return Announced(acknowledged=False, refused=False, answer=answer)
    if "Status" not in status:
        return Announced(acknowledged=False, refused=False, answer=f"{name_of(peer)} gave no answer to N-CREATE")
    code = int(status.Status)
    told = code in (_SUCCESS, _DUPLICATE)
    return Announced(acknowledged=told, refused=not told, answer=f"{name_of(peer)} answered 0x{code:04X}")
