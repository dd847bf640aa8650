"""Storage Commitment as SCU (PS3.4 Annex J): asks a peer to commit to what it has taken, and hears its reports.

A report may come while the association is still open, or later over an association that the peer requests of the
node's own SCP. Both are heard by :func:`hear`, which writes it down before it is acknowledged.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import structlog
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.dimse_messages import N_EVENT_REPORT_RSP
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from node.dimse import commitment_messages as messages
from node.dimse.commitment_messages import Report
from node.dimse.operations import Answer, answering, dataset_of
from node.dimse.requestor import Entity
from node.dimse.scu import is_final, name_of, why_not
from node.errors import OperationRefused
from node.peers import Address
from storage.commitments import Reference

__all__ = ["Requested", "hear", "request_commitment"]

_log = structlog.get_logger(__name__)
_SUCCESS = 0x0000
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """What became of a request: taken, or else whether the peer was there and refused."""

    accepted: bool
    refused: bool
    answer: str


def hear(event: evt.Event, take: Callable[[Report], bool]) -> Answer:
    """Serve N-EVENT-REPORT: hand the report on and acknowledge it once it is kept.

    Parameters
    ----------
    take
        Keeps a report for good; False where the node knows nothing of the transaction.

    Raises
    ------
    OperationRefused
        Where it is no report, or one about a transaction that is not ours.
    """
    request = cast(N_EVENT_REPORT, event.request)
    if str(request.AffectedSOPClassUID) != StorageCommitmentPushModel:
        raise OperationRefused(0x0118, "N-EVENT-REPORT is for Storage Commitment Push Model only")
    if str(request.AffectedSOPInstanceUID) != messages.INSTANCE_UID:
        raise OperationRefused(0x0112, f"the SOP Instance is {messages.INSTANCE_UID}")
    if request.EventTypeID not in (messages.ALL_COMMITTED, messages.SOME_FAILED):
        raise OperationRefused(0x0113, "the event types are 1 and 2")
    report = messages.read_report(dataset_of(event, "event_information"))
    if not take(report):
        raise OperationRefused(0x0115, "the node has asked nothing under this Transaction UID")
    _log.info("commitment reported", committed=len(report.committed), failed=len(report.failed))
    return _SUCCESS, None


def request_commitment(
    peer: Address,
    calling_ae_title: str,
    transaction_uid: str,
    references: Sequence[Reference],
    take: Callable[[Report], bool],
    *,
    accepted: Callable[[], None] = lambda: None,
    is_answered: Callable[[], bool] = lambda: False,
    timeout: float = 30,
    wait_seconds: float = 1.0,
) -> Requested:
    """Ask a peer to commit to instances that it has been sent; never raises for what the peer does.

    Parameters
    ----------
    transaction_uid
        Not used before, and known to whoever takes reports.
    take
        For a report on this association, see :func:`hear`.
    accepted
        Called once the peer has taken the request, before its report is waited for.
    is_answered
        Whether nothing is left to wait for: the report may come by another way.
    timeout
        Seconds that each answer may take.
    wait_seconds
        How long the association stays open for a report.
    """
    try:
        socket.getaddrinfo(peer.host, peer.port)
    except OSError as error:
        return Requested(accepted=False, refused=False, answer=f"{peer.host} is no known host: {error.strerror}")
    known, answered, heard = threading.Event(), threading.Event(), threading.Event()

    def taken(report: Report) -> bool:
        if not take(report):
            return False
        known.set()
        return True

    def responded(event: evt.Event) -> None:
        if known.is_set() and isinstance(event.message, N_EVENT_REPORT_RSP):
            answered.set()

    def sent(event: evt.Event) -> None:
        # Nothing may be sent after a request to release (PS3.8 9.2.3): the report's response has to be out by then.
        if answered.is_set() and isinstance(event.pdu, P_DATA_TF):
            heard.set()

    handlers: list[tuple[evt.EventType, Callable[[evt.Event], Any]]] = [
        (evt.EVT_N_EVENT_REPORT, answering("N-EVENT-REPORT", lambda event: hear(event, taken))),
        (evt.EVT_DIMSE_SENT, responded),
        (evt.EVT_PDU_SENT, sent),
    ]
    entity = Entity(calling_ae_title, timeout)
    contexts = [build_context(StorageCommitmentPushModel)]
    with entity.association(peer, contexts, handlers=handlers) as association:
        if not association.is_established:
            return Requested(accepted=False, refused=is_final(association), answer=why_not(association, peer))
        try:
            status, _ = association.send_n_action(
                messages.compose_request(transaction_uid, references),
                messages.REQUEST_COMMITMENT,
                StorageCommitmentPushModel,
                UID(messages.INSTANCE_UID),
            )
        except RuntimeError:
            answer = f"{name_of(peer)} ended the association before the request"
            return Requested(accepted=False, refused=False, answer=answer)
        if "Status" not in status:
            return Requested(accepted=False, refused=False, answer=f"{name_of(peer)} gave no answer to N-ACTION")
        code = int(status.Status)
        if code != _SUCCESS:
            comment = str(status.get("ErrorComment", "") or "").strip()
            answer = f"{name_of(peer)} refused to commit: 0x{code:04X}" + (f" ({comment})" if comment else "")
            return Requested(accepted=False, refused=True, answer=answer)
        accepted()
        deadline = time.monotonic() + wait_seconds
        while association.is_established and time.monotonic() < deadline:
            if heard.wait(_LOOK_SECONDS) or (not known.is_set() and is_answered()):
                break
    return Requested(accepted=True, refused=False, answer=f"{name_of(peer)} was asked to commit")
