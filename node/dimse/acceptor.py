"""The acceptor's side of one association on pynetdicom: datasets go straight to disk, and nothing is polled.

What differs from pynetdicom's own classes, and why:

- only the dataset of a C-STORE request may be large; what else there is must fit into little memory;
- a dataset is written to a file as it arrives, so that its size costs no memory; a full disk answers with a
  status instead of ending the association;
- both threads of an association sleep until something happens instead of waking every millisecond;
- an object is stored and answered by the thread that has read it: each change of threads costs a wait on a busy
  machine, and the peer has nothing else to say before the answer (we negotiate no asynchronous operations).
"""

from __future__ import annotations

import queue
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import structlog
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import (
    C_FIND_RQ,
    C_GET_RQ,
    C_MOVE_RQ,
    C_STORE_RQ,
    N_ACTION_RQ,
    N_CREATE_RQ,
    N_EVENT_REPORT_RQ,
    N_SET_RQ,
    DIMSEMessage,
)
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_P_ABORT, P_DATA

from node.dimse.commands import StoreRequest, data_pdus, read_store_request, store_response
from node.dimse.foreign import belongs
from node.dimse.invoking import Invocations
from node.dimse.partten import file_head
from node.dimse.received import Received
from node.dimse.status import Status
from node.dimse.transport import CONNECTION_CLOSED, IDLE_SECONDS, QuickSocket, TooLong
from storage.space import Room

__all__ = ["Messages", "UpperLayer"]

_log = structlog.get_logger(__name__)
_INVALID_PDU = "Evt19"
_CANCELLABLE = (C_FIND_RQ, C_GET_RQ, C_MOVE_RQ)
_DATA_TRANSFER = "Sta6"
#: No connection, or one that is only waited for to close.
_ENDED = frozenset({"Sta1", "Sta13"})
#: The association's own thread still waits for a request, and takes whatever it is told for one.
_NOT_ASKED = frozenset({"Sta1", "Sta2"})
_ENDING = "Sta13"
_DATA_MAY_BE_SENT = (_DATA_TRANSFER, "Sta8")
_P_DATA_TF = 0x04
_PDU_HEAD_LENGTH = 6
#: Length, context and message control header (PS3.8 9.3.5.1, E.2) of what stands in a data PDU.
_PDV = struct.Struct(">LBB")
#: A command set has some hundred bytes; a query is hardly longer.
_LONGEST_COMMAND_SET = 64 * 1024
_LONGEST_DATASET_IN_MEMORY = 1 << 20
#: We negotiate one operation at a time: more than some ahead of their answers are no dialogue.
_MOST_WAITING = 16
#: What lists instances, each with some 140 bytes: a commitment, its report, a procedure step of 100,000 instances.
_LONGEST_LIST_IN_MEMORY = 16 << 20
_LISTS = (N_ACTION_RQ, N_CREATE_RQ, N_EVENT_REPORT_RQ, N_SET_RQ)


class UpperLayer(DULServiceProvider):
    """The upper layer's thread, which sleeps until the peer or this node has something to say."""

    def __init__(self, association: Association) -> None:
        super().__init__(association)
        self._run_loop_delay = 0
        # A peer that hangs must not keep the process from ending.
        self.daemon = True
        self.to_user_queue = _Announcing(association)
        self.state_machine = _States(self)

    def _process_recv_primitive(self) -> bool:
        """Take what this node has to say, once what has come is dealt with, and while there is someone to say it to.

        PS3.8 Table 9-10 has no place for a request of ours once the association is ending: an answer that was ready
        just when the peer was refused is said to nobody.
        """
        if self.event_queue.queue:
            return False
        if self.state_machine.current_state in _ENDED:
            while self.to_provider_queue.queue:
                self.to_provider_queue.get_nowait()
            return False
        return super()._process_recv_primitive()

    def send_pdu(self, primitive: Any) -> None:
        """Send data at once, from whichever thread has it; hand what else there is to the reading thread and wake it.

        That is action DT-2 of PS3.8 Table 9-10 (AR-7 once the peer has asked for release) without the way through a
        queue, which has no bound and costs a change of threads each way.
        """
        if isinstance(primitive, P_DATA):
            if self.state_machine.current_state in _DATA_MAY_BE_SENT:
                self._send(P_DATA_TF(primitive))
            return
        super().send_pdu(primitive)
        cast(QuickSocket, self.socket).wake()

    def _read_pdu_data(self) -> None:
        """Read PDUs and put what each is as an event of PS3.8 Table 9-10; a bad one is one line in the log.

        Data PDUs of an established association are dealt with at once, as action DT-2 does it, and one after the
        other for as long as nothing else is to be done.
        """
        connection = cast(QuickSocket, self.socket)
        if self.state_machine.current_state == _ENDING:
            # Rejected, aborted or released: only the end of the connection is of interest (PS3.8 Sta13, AA-6).
            if not connection.drain():
                self.event_queue.put(CONNECTION_CLOSED)
            return
        while True:
            try:
                data = self._next_pdu(connection)
            except TooLong as error:
                _log.warning("invalid PDU", peer=self._peer_address, error=type(error).__name__, reason=str(error))
                self.event_queue.put(_INVALID_PDU)
                return
            if data is None:
                self.event_queue.put(CONNECTION_CLOSED)
                return
            if data[0] != _P_DATA_TF or self.state_machine.current_state != _DATA_TRANSFER:
                self._announce(data)
                return
            cast(Messages, self.assoc.dimse).receive_data(data[_PDU_HEAD_LENGTH:])
            self._idle_timer.restart()
            if self._kill_thread or self.event_queue.queue or self.to_provider_queue.queue or not connection.ready:
                return

    def _next_pdu(self, connection: QuickSocket) -> memoryview | None:
        try:
            return connection.read_pdu()
        except OSError as error:
            if not isinstance(error, ConnectionError):
                reason = error.strerror or str(error)
                _log.warning("connection given up", peer=self._peer_address, reason=reason)
            return None

    def _announce(self, data: memoryview) -> None:
        try:
            pdu, event = self._decode_pdu(bytearray(data))
            if isinstance(pdu, A_ASSOCIATE_RQ):
                _check_request(pdu)
        except Exception as error:  # noqa: BLE001 - whatever the bytes were, they are no PDU
            _log.warning("invalid PDU", peer=self._peer_address, error=type(error).__name__)
            self.event_queue.put(_INVALID_PDU)
            return
        self.event_queue.put(event)
        self._recv_pdu.put(pdu)

    @property
    def _peer_address(self) -> str:
        peer = self.assoc.requestor.address_info
        return peer.address if peer is not None else ""

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """Return what came for the association; do not wait for a peer that has hung up."""
        if not wait or timeout is None:
            return super().receive_pdu(wait, timeout)
        deadline = time.monotonic() + timeout
        gone = 0
        while (left := deadline - time.monotonic()) > 0 and gone < 2:
            primitive = super().receive_pdu(wait=True, timeout=min(IDLE_SECONDS, left))
            if primitive is not None:
                return primitive
            # Ended, or in its first state with nothing to do: the connection was closed before it asked for anything.
            idle = self.state_machine.current_state == "Sta1" and self.event_queue.empty()
            gone = gone + 1 if idle or not self.is_alive() else 0
        return None


def _check_request(pdu: A_ASSOCIATE_RQ) -> None:
    """Make an association request what pynetdicom takes for granted.

    Raises
    ------
    ValueError
        Where a presentation context has no abstract syntax (PS3.8 9.3.2.2: it has exactly one).
    """
    # Of the protocol versions only bit 0 is tested (PS3.8 9.3.2); pynetdicom compares all of them.
    pdu.protocol_version &= 1
    if any(not one.abstract_syntax for one in pdu.presentation_context):
        raise ValueError("a presentation context without an abstract syntax")


class _States(StateMachine):
    """The upper layer's states, where a PDU that no action can deal with ends the association and nothing else."""

    def do_action(self, event: str) -> None:
        """Do what PS3.8 Table 9-10 has for an event; hang up where that cannot be done."""
        try:
            super().do_action(event)
        except Exception as error:  # noqa: BLE001 - a value that pynetdicom does not know, an event out of place
            state, self.current_state = self.current_state, "Sta1"
            _log.warning("association given up", error=type(error).__name__, event_id=event, state=state)
            cast(QuickSocket, self.dul.socket).close()
            if state not in _NOT_ASKED:
                ended = A_P_ABORT()
                ended.provider_reason = 0x00
                self.dul.to_user_queue.put(ended)
            self.dul.kill_dul()


class _Announcing(queue.Queue[Any]):
    """What the upper layer has for the association; wakes the association's thread, which waits for messages."""

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._association.dimse.msg_queue.put((None, None))


class _Unexpected(ValueError):
    """A message that is none, or is longer than any of ours; its text quotes nothing."""


class Messages(DIMSEServiceProvider):
    """DIMSE messages, the datasets of C-STORE requests as files.

    Parameters
    ----------
    association
        Its owner.
    incoming
        Folder on the file system of the blobs.
    store
        Called with each C-STORE request, the id of its context and its dataset, in the reading thread; says what to
        answer.
    room
        Where it says no, a dataset is let pass by and not written.
    """

    def __init__(
        self,
        association: Association,
        incoming: Path,
        store: Callable[[StoreRequest, int, Received], Status],
        room: Room,
    ) -> None:
        super().__init__(association)
        self._incoming = incoming
        self._room = room
        self._store = store
        self._arriving: Received | None = None
        self._request: StoreRequest | None = None
        self._context_id = 0
        self._sending = threading.Lock()
        self.invocations = Invocations(association)

    def get_msg(self, block: bool = False) -> Any:
        """Return the next request, or what is to be done now; where there is none, wait a moment for one."""
        if block:
            return super().get_msg(block=True)
        if (job := self.invocations.due()) is not None:
            return None, job
        try:
            return self.msg_queue.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            return None, None

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a message whole: no other thread's comes in between."""
        with self._sending:
            super().send_msg(primitive, context_id)

    def send_pdus(self, content: bytes) -> None:
        """Send the data PDUs of whole messages."""
        with self._sending:
            cast(QuickSocket, self.dul.socket).send(content)

    def receive_data(self, items: memoryview) -> None:
        """Take the items of a data PDU (PS3.8 9.3.5.1): commands to pynetdicom, C-STORE's datasets to disk."""
        try:
            at = 0
            while at < len(items):
                length, context_id, control = _PDV.unpack_from(items, at)
                end = at + 4 + length
                if length < 2 or end > len(items):
                    raise _Unexpected("an item that is longer than its PDU")
                self._receive_fragment(context_id, control, items[at + _PDV.size : end])
                at = end
        except Exception as error:  # noqa: BLE001 - whatever the bytes were, they are no DIMSE message
            reason = str(error) if isinstance(error, _Unexpected) else None
            _log.warning("invalid message", calling_ae_title=self._calling, error=type(error).__name__, reason=reason)
            self.message = None
            self.dul.event_queue.put(_INVALID_PDU)

    def discard(self) -> None:
        """Remove a dataset that has not arrived in full; both threads have ended."""
        if self._arriving is not None:
            self._arriving.discard()
            self._arriving = None

    @property
    def _calling(self) -> str:
        return str(self.assoc.requestor.ae_title).strip()

    def _receive_fragment(self, context_id: int, control: int, data: memoryview) -> None:
        # PS3.8 E.2: bit 0 command, bit 1 last fragment
        if self._arriving is not None:
            if control & 1:
                raise _Unexpected("a command within a dataset")
            if context_id != self._context_id:
                raise _Unexpected("a dataset in another context than its command")
            self._arriving.write(data)
            if control & 2:
                self._finish()
            return
        if not control & 1 and (self.message is None or type(self.message) is DIMSEMessage):
            raise _Unexpected("a dataset without a command")
        if not control & 1 and self.message is not None and self.message.context_id != context_id:
            raise _Unexpected("a dataset in another context than its command")
        if control & 1 and self.msg_queue.qsize() > _MOST_WAITING:
            raise _Unexpected("more requests than may wait for an answer")
        self._limit(control, len(data))
        if control & 3 == 3 and self.message is None and (request := read_store_request(data)):
            self._begin(request, context_id)
            return
        if isinstance(self.message, _CANCELLABLE):
            # A cancel that came before the request was meant for another.
            self.cancel_req.clear()
        one = P_DATA()
        one.presentation_data_value_list.append((context_id, bytes([control]) + data))
        super().receive_primitive(one)
        if isinstance(self.message, C_STORE_RQ):
            message, self.message = self.message, None
            self._begin(StoreRequest.of(cast(C_STORE, message.message_to_primitive())), context_id)

    def _limit(self, control: int, more: int) -> None:
        """Refuse what would fill the memory: what is held of a message is what no C-STORE request brings."""
        held = self.message
        if control & 1:
            size = held.encoded_command_set.tell() if held is not None else 0
            what, longest = "command set", _LONGEST_COMMAND_SET
        else:
            size = held.data_set.tell() if held is not None and held.data_set is not None else 0
            what = "dataset of a message that is no C-STORE request"
            longest = _LONGEST_LIST_IN_MEMORY if isinstance(held, _LISTS) else _LONGEST_DATASET_IN_MEMORY
        if size + more > longest:
            raise _Unexpected(f"a {what} of more than {longest} bytes")

    def _begin(self, request: StoreRequest, context_id: int) -> None:
        self._request, self._context_id = request, context_id
        context = self.assoc._accepted_cx[context_id]
        if not context.as_scp or not belongs(C_STORE, str(context.abstract_syntax)):
            # Nothing may be stored here: the bytes pass by, and not even quarantine keeps them.
            self._arriving = Received.passing_by(self._incoming)
            return
        self._arriving = Received.begin(
            self._incoming,
            file_head(
                sop_class_uid=request.sop_class_uid,
                sop_instance_uid=request.sop_instance_uid,
                transfer_syntax_uid=str(context.transfer_syntax[0]),
                source_ae_title=self._calling,
            ),
            self._room,
        )

    def _finish(self) -> None:
        received, self._arriving = self._arriving, None
        assert received is not None
        assert self._request is not None
        try:
            answer = self._store(self._request, self._context_id, received)
        finally:
            received.discard()
        response = store_response(self._request, answer.code, answer.comment)
        self.send_pdus(b"".join(data_pdus(self._context_id, response, self.maximum_pdu_size)))
