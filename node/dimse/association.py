"""One association that is served: its requests answered, its objects taken in, nothing left behind at its end.

The way of one object is :meth:`Intake._store`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE, C_STORE
from pynetdicom.transport import AddressInformation
from sqlalchemy.exc import SQLAlchemyError

from node.dimse import status
from node.dimse.acceptor import Messages, UpperLayer
from node.dimse.access import EVERYONE, Access, Admitted, Rejected, Request
from node.dimse.carried import Carried
from node.dimse.commands import StoreRequest
from node.dimse.contexts import Rules
from node.dimse.foreign import belongs, unrecognized
from node.dimse.inlets import Inlet
from node.dimse.negotiation import LOCAL_LIMIT_EXCEEDED, TEMPORARY_CONGESTION, Negotiation
from node.dimse.received import Received
from node.dimse.secure import SecureSocket
from node.dimse.slots import Slots
from node.dimse.transport import QuickSocket
from node.security.tls import why_failed
from node.settings import DimseSettings
from storage.errors import NotDicom, StorageError
from storage.index import Origin
from storage.intake import Archive
from storage.space import Room

__all__ = ["Handlers", "Intake", "Reception"]

#: Who answers the messages of the services beside Verification and Storage.
Handlers = Sequence[tuple[evt.EventType, Callable[[evt.Event], Any]]]

#: Requests whose handlers give every response themselves: pynetdicom's own procedure is passed over.
_WHOLE: dict[type, evt.EventType] = {
    C_FIND: evt.EVT_C_FIND,
    C_MOVE: evt.EVT_C_MOVE,
    C_GET: evt.EVT_C_GET,
}

_log = structlog.get_logger(__name__)
#: A-ASSOCIATE-RQ with 128 contexts and all transfer syntaxes takes some 200 KB, whatever the maximum for P-DATA.
_LONGEST_PDU = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reception:
    """What all associations of one receiver share; :func:`node.dimse.scp.run_receiver` says what each part is."""

    ae: AE
    address: AddressInformation
    settings: DimseSettings
    rules: Rules
    access: Access
    handlers: Handlers
    archive: Archive
    incoming: Path
    slots: Slots
    carried: Carried
    room: Room
    stop: threading.Event


class Intake(Association):
    """One association that objects come in by."""

    dul: UpperLayer
    dimse: Messages

    def __init__(self, reception: Reception, inlet: Inlet, connection: socket.socket, peer: AddressInformation) -> None:
        ae = reception.ae
        super().__init__(ae, MODE_ACCEPTOR)
        self.name = f"AcceptorThread@{peer.address}:{peer.port}"
        self._reception = reception
        self._archive = reception.archive
        self._slots: list[int] = []
        self.began = time.monotonic()
        self.given_up = False
        self.address = peer.address
        self._outcomes: Counter[str] = Counter()
        self._bytes = 0
        self._studies: set[str] = set()
        self.dul = UpperLayer(self)
        self.dimse = Messages(self, reception.incoming, self._store, reception.room)
        self.acse = Negotiation(self, self, self._tell_refused)
        self.acse_timeout = ae.acse_timeout
        self.dimse_timeout = ae.dimse_timeout
        self.network_timeout = ae.network_timeout
        longest_data = reception.settings.maximum_pdu
        longest = max(longest_data, _LONGEST_PDU)
        seconds = reception.settings.network_timeout_seconds
        certificates = inlet.certificates
        self._quick = (
            QuickSocket(self, connection, seconds, longest_data, longest)
            if certificates is None
            else SecureSocket(self, connection, seconds, longest_data, longest, certificates.context())
        )
        self.set_socket(self._quick)
        self.acceptor.maximum_length = ae.maximum_pdu_size
        self.acceptor.ae_title = ae.ae_title
        self.acceptor.address_info = reception.address
        self.acceptor.implementation_class_uid = ae.implementation_class_uid
        self.acceptor.implementation_version_name = ae.implementation_version_name
        self.requestor.address_info = peer
        for event, handler in reception.handlers:
            self.bind(event, handler)

    @property
    def rules(self) -> Rules:
        """What the configuration says of contexts."""
        return self._reception.rules

    @property
    def certificate(self) -> frozenset[str] | None:
        """The names of the certificate that the peer has shown."""
        return self._quick.names() if isinstance(self._quick, SecureSocket) else None

    def give_up(self) -> None:
        """Have the connection end, from another thread than those that use it."""
        self.given_up = True
        self._quick.hang_up()

    def admit(self, request: Request) -> Admitted | Rejected:
        """Refuse who may not associate and what is one too many."""
        reception = self._reception
        admitted = reception.access.admit(request)
        if isinstance(admitted, Rejected):
            return admitted
        if reception.stop.is_set():
            return Rejected(diagnostic=TEMPORARY_CONGESTION, why="the node is about to stop")
        for limit in (admitted.name, EVERYONE):
            if limit is None or not reception.slots.limited(limit):
                continue
            slot = reception.slots.acquire(limit)
            if slot is None:
                self._free_slots()
                whose = f"peer {limit}" if limit else "the node"
                return Rejected(diagnostic=LOCAL_LIMIT_EXCEEDED, why=f"{whose} has as many associations as it may")
            self._slots.append(slot)
        return admitted

    def _free_slots(self) -> None:
        while self._slots:
            self._reception.slots.release(self._slots.pop())

    def _tell_refused(self, rejected: Rejected) -> None:
        _log.warning("association refused", calling_ae_title=self._calling, reason=rejected.why)

    def run_reactor(self) -> None:
        """Serve the association, and leave nothing behind however it ends."""
        try:
            if not isinstance(self._quick, SecureSocket) or self._agree_on_keys(self._quick):
                super().run_reactor()
        except Exception:  # noqa: BLE001 - an error that nobody foresaw must not leave the peer waiting
            _log.exception("association failed", calling_ae_title=self._calling)
        finally:
            self._end()

    def _agree_on_keys(self, connection: SecureSocket) -> bool:
        try:
            connection.handshake()
        except OSError as error:
            if not self.given_up:
                _log.warning("TLS handshake failed", peer=self.address, reason=why_failed(error))
            connection.close()
            return False
        return True

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """Serve a message and those that follow it at once: pynetdicom's loop sleeps a millisecond before each."""
        while msg is not None:
            self._serve_one(msg, context_id)
            # Whoever sends requests on this association needs the loop to pause where it does.
            if self._kill or not self.is_established or not self._reactor_checkpoint.is_set():
                return
            context_id, msg = self.dimse.get_msg()

    def _serve_one(self, msg: Any, context_id: int) -> None:
        event = _WHOLE.get(type(msg))
        if callable(msg):
            msg()
        elif self.dimse.invocations.take(msg):
            return
        elif (foreign := self._unrecognized(msg, context_id)) is not None:
            self.dimse.send_msg(foreign, context_id)
        elif isinstance(msg, C_STORE) and context_id in self._accepted_cx:
            self._answer_missing(msg, context_id)
        elif event is not None and context_id in self._accepted_cx and self._has_handler(event):
            context = self._accepted_cx[context_id]
            evt.trigger(self, event, {"request": msg, "context": context.as_tuple})
        else:
            super()._serve_request(msg, context_id)
        # What took long was no idleness of the peer's.
        self.dul._idle_timer.restart()

    def _unrecognized(self, msg: Any, context_id: int) -> Any:
        """Return the answer to an operation that is none of its context's service; None where it is one."""
        context = self._accepted_cx.get(context_id)
        if context is None or belongs(type(msg), str(context.abstract_syntax)):
            return None
        return unrecognized(msg)

    def _has_handler(self, event: evt.EventType) -> bool:
        return any(one == event for one, _ in self._reception.handlers)

    def _answer_missing(self, request: C_STORE, context_id: int) -> None:
        answer = self._refused(status.MISSING_DATASET)
        self.dimse.send_msg(StoreRequest.of(request).answered(answer.code, answer.comment), context_id)

    def _store(self, request: StoreRequest, context_id: int, received: Received) -> status.Status:
        """Make the object durable and say what to answer."""
        context = self._accepted_cx[context_id]
        self._bytes += received.size
        origin = Origin(calling_ae_title=self._calling)
        try:
            if received.error is not None:
                raise received.error
            if not context.as_scp:
                # It was accepted for what the requestor gets by C-GET.
                return self._refused(status.NOT_AUTHORIZED)
            if not belongs(C_STORE, str(context.abstract_syntax)):
                return self._refused(status.WRONG_CONTEXT)
            if request.sop_class_uid != context.abstract_syntax:
                self._archive.refuse(received.path, status.WRONG_CONTEXT.comment, origin)
                return self._refused(status.WRONG_CONTEXT)
            receipt = self._archive.receive(
                received.path,
                origin,
                (request.sop_class_uid, request.sop_instance_uid),
                received.written,
                received.descriptor,
            )
        except Exception as error:  # noqa: BLE001 - this is the edge: every error becomes a status
            return self._refused(status.status_for(error), error)
        self._outcomes[receipt.outcome] += 1
        # What a node made says nothing about the study's coming to its end, however it comes back.
        if not receipt.made_here and receipt.study_instance_uid not in self._studies:
            self._studies.add(receipt.study_instance_uid)
            self._reception.carried.begin(receipt.study_instance_uid)
        return status.status_of(receipt.defect)

    def _refused(self, answer: status.Status, error: BaseException | None = None) -> status.Status:
        self._outcomes["refused"] += 1
        known = error is None or isinstance(error, (NotDicom, OSError, SQLAlchemyError, StorageError))
        _log.warning(
            "object refused",
            calling_ae_title=self._calling,
            status=f"0x{answer.code:04X}",
            reason=answer.comment,
            error=type(error).__name__ if error is not None else None,
            # An error that nobody foresaw needs its place in the code to be found.
            exc_info=None if known else error,
        )
        return answer

    @property
    def _calling(self) -> str:
        return str(self.requestor.ae_title).strip()

    def _end(self) -> None:
        self.dul.kill_dul()
        self._quick.wake()
        if self._started_dul:
            self.dul.join()
        # Where all went well it is closed already.
        self._quick.close()
        self._quick.end()
        self.dimse.discard()
        self.dimse.invocations.end()
        self._free_slots()
        try:
            alone = self._reception.carried.end(self._studies)
            self._archive.association_ended(self._studies, alone if self.is_released else ())
        except (SQLAlchemyError, StorageError) as error:
            # The quiet period then runs from the last instance, a little earlier.
            _log.warning("release not recorded", error=type(error).__name__)
        if self.requestor.primitive is None or self.requestor.address_info is None:
            return  # a probe: connected, and hung up without a request
        _log.info(
            "association ended",
            calling_ae_title=self._calling,
            peer=self.requestor.address_info.address,
            how=self._how(),
            seconds=round(time.monotonic() - self.began, 3),
            bytes=self._bytes,
            studies=len(self._studies),
            **{str(key): count for key, count in self._outcomes.items()},
        )

    def _how(self) -> str:
        for how, it_did in (
            ("rejected", self.is_rejected),
            ("released", self.is_released),
            ("aborted", self.is_aborted),
        ):
            if it_did:
                return how
        return "connection lost"
