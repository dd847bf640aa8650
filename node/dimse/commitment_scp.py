"""Storage Commitment as SCP (Push Model, PS3.4 Annex J): takes requests in and reports what the node holds.

The report goes over the association on which it was asked for where that is still open a moment later: many SCUs
close at once and listen for it, some wait for it. Else whoever walks the due commitments calls the peer
(:func:`report`), as SCP by role negotiation.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_role, evt
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]
from sqlalchemy.exc import SQLAlchemyError

from node.dimse import commitment_messages as messages
from node.dimse.invoking import Invocations
from node.dimse.operations import Answer, calling_ae_title, dataset_of
from node.dimse.requestor import Entity
from node.dimse.scu import is_final, name_of, why_not
from node.errors import OperationRefused, kind_and_place
from node.peers import Address, Peer, Service
from storage import commitments, outbox
from storage.blobs import Blobs
from storage.commitments import Reference
from storage.database import Database
from storage.errors import AlreadyThere, StorageError
from storage.records import Commitment

__all__ = ["CommitmentProvider", "Reported", "report", "reported_to"]

_log = structlog.get_logger(__name__)
#: How long an SCU has to close the association before the report goes over it.
_SHORTLY_SECONDS = 1.0
#: How long the response to a report on the same association may take before another way is tried.
_HOLD_SECONDS = 30.0
_SUCCESS = 0x0000


class CommitmentProvider:
    """Answers N-ACTION requests of Storage Commitment.

    Parameters
    ----------
    database, blobs
        What the node holds.
    peers
        By name; by them it is known who can be called.
    ae_title
        Ours, by which the instances can be retrieved.
    """

    def __init__(self, database: Database, blobs: Blobs, peers: Mapping[str, Peer], ae_title: str) -> None:
        self._database = database
        self._blobs = blobs
        self._peers = {peer.ae_title.strip(): peer for peer in peers.values()}
        self._callable = {peer.ae_title.strip() for peer in reported_to(peers).values()}
        self._ae_title = ae_title

    def requested(self, event: evt.Event) -> Answer:
        """Record what is asked for before it is answered; then see to the report (PS3.4 J.3.2)."""
        request = cast(N_ACTION, event.request)
        if str(request.RequestedSOPClassUID) != StorageCommitmentPushModel:
            raise OperationRefused(0x0118, "N-ACTION is for Storage Commitment Push Model only")
        if str(request.RequestedSOPInstanceUID) != messages.INSTANCE_UID:
            raise OperationRefused(0x0112, f"the SOP Instance is {messages.INSTANCE_UID}")
        if request.ActionTypeID != messages.REQUEST_COMMITMENT:
            raise OperationRefused(0x0123, "the only action is 1, request storage commitment")
        transaction_uid, references = messages.read_request(dataset_of(event, "action_information"))
        calling = calling_ae_title(event)
        peer = self._peers.get(calling)
        reachable = calling in self._callable
        same = peer is None or peer.commitment_report != "new"
        try:
            with self._database.write() as connection:
                commitment = commitments.record(
                    connection,
                    calling_ae_title=calling,
                    transaction_uid=transaction_uid,
                    references=references,
                    hold_seconds=_SHORTLY_SECONDS + _HOLD_SECONDS if same else 0,
                )
        except AlreadyThere as error:
            raise OperationRefused(0x0115, str(error)) from None
        _log.info("commitment asked for", calling_ae_title=calling, instances=len(references))
        if same:
            _OnSameAssociation(self, event, commitment).later(_SHORTLY_SECONDS if reachable else 0)
        return _SUCCESS, None

    def compose(self, commitment: Commitment) -> tuple[int, Dataset]:
        """Return the event type and what is to be reported."""
        found = commitments.weigh(self._database, self._blobs, commitment)
        return messages.compose_report(commitment.transaction_uid, found, self._ae_title)

    def end_of(self, commitment: Commitment, answer: str | None) -> None:
        """Write down that the peer has acknowledged, or (None) leave it to whoever can call the peer."""
        with self._database.write() as connection:
            if answer is None:
                commitments.make_due(connection, commitment.id)
                commitments.park_unreachable(connection, self._callable)
            elif not commitments.is_reported(connection, commitment.id):
                outbox.succeed(connection, "commitment", commitment.id, study_id=None, answer=answer)


def reported_to(peers: Mapping[str, Peer]) -> dict[str, Peer]:
    """Return the peers that can be called with a report, by name."""
    return {name: one for name, one in peers.items() if one.address is not None and Service.COMMIT in one.services}


@dataclass(frozen=True, slots=True)
class _OnSameAssociation:
    """One report over the association on which it was asked for."""

    provider: CommitmentProvider
    event: evt.Event
    commitment: Commitment

    def later(self, seconds: float) -> None:
        self._invocations.later(seconds, self._report, self._lost)

    def _report(self) -> None:
        try:
            event_type, dataset = self.provider.compose(self.commitment)
            syntax = UID(self.event.context.transfer_syntax)
            encoded = encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        except (SQLAlchemyError, StorageError, OSError) as error:
            _log.warning("commitment not weighed", error=kind_and_place(error))
            self._lost()
            return
        request = N_EVENT_REPORT()
        request.AffectedSOPClassUID = StorageCommitmentPushModel
        request.AffectedSOPInstanceUID = UID(messages.INSTANCE_UID)
        request.EventTypeID = event_type
        request.EventInformation = BytesIO(encoded or b"")
        self._invocations.request(request, self.event.context.context_id, self._answered, self._lost)

    def _answered(self, status: int) -> None:
        if status == _SUCCESS:
            self._end("acknowledged on the same association")
        else:
            self._lost()

    def _lost(self) -> None:
        self._end(None)

    def _end(self, answer: str | None) -> None:
        try:
            self.provider.end_of(self.commitment, answer)
        except (SQLAlchemyError, StorageError) as error:
            # It is due again by itself a little later.
            _log.warning("commitment not written down", error=kind_and_place(error))

    @property
    def _invocations(self) -> Invocations:
        found = self.event.assoc.dimse.invocations  # type: ignore[attr-defined]
        assert isinstance(found, Invocations)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What became of a report: acknowledged, or else whether the peer was there and refused."""

    acknowledged: bool
    refused: bool
    answer: str


def report(
    peer: Address,
    calling_ae_title: str,
    transaction_uid: str,
    references: list[Reference],
    *,
    timeout: float = 30,
) -> Reported:
    """Report what the node holds over an association of its own, in the role of SCP (PS3.4 J.3.3, PS3.7 D.3.3.4)."""
    try:
        socket.getaddrinfo(peer.host, peer.port)
    except OSError as error:
        return _unreached(f"{peer.host} is no known host: {error.strerror}")
    event_type, dataset = messages.compose_report(transaction_uid, references, calling_ae_title)
    entity = Entity(calling_ae_title, timeout)
    roles = [build_role(StorageCommitmentPushModel, scp_role=True)]
    with entity.association(peer, [build_context(StorageCommitmentPushModel)], roles=roles) as association:
        if not association.is_established:
            return Reported(acknowledged=False, refused=is_final(association), answer=why_not(association, peer))
        if not any(context.as_scp for context in association.accepted_contexts):
            return Reported(
                acknowledged=False, refused=True, answer=f"{name_of(peer)} does not let the node be the SCP"
            )
        try:
            status, _ = association.send_n_event_report(
                dataset, event_type, StorageCommitmentPushModel, UID(messages.INSTANCE_UID)
            )
        except RuntimeError:
            return _unreached(f"{name_of(peer)} ended the association before the report")
    if "Status" not in status:
        return _unreached(f"{name_of(peer)} gave no answer to N-EVENT-REPORT")
    code = int(status.Status)
    answer = f"{name_of(peer)} answered 0x{code:04X}"
    return Reported(acknowledged=code == _SUCCESS, refused=code != _SUCCESS, answer=answer)


def _unreached(answer: str) -> Reported:
    return Reported(acknowledged=False, refused=False, answer=answer)
