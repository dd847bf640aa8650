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

import errno
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import structlog
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from node.dimse.partten import file_head
from node.dimse.transport import CONNECTION_CLOSED, IDLE_SECONDS, QuickSocket
from storage.space import has_room

__all__ = ["PART_SUFFIX", "Messages", "Received", "UpperLayer"]

#: How the file of a dataset that is still arriving ends.
PART_SUFFIX = ".part"

_log = structlog.get_logger(__name__)
_INVALID_PDU = "Evt19"
#: A command set has some hundred bytes; no message but C-STORE-RQ that we serve has a dataset at all.
_LONGEST_COMMAND_SET = 64 * 1024
_LONGEST_DATASET_IN_MEMORY = 1 << 20


@dataclass(slots=True)
class Received:
    """One dataset as it came in: a Part 10 file, or the error that kept it from becoming one."""

    path: Path
    size: int = 0
    error: OSError | None = None
    _file: BinaryIO | None = None

    @classmethod
    def begin(cls, folder: Path, head: bytes, minimum_free: int) -> Received:
        """Open a file in the folder and write its head; an error, or too little room, is kept for the answer."""
        received = cls(folder / f"{os.getpid()}-{uuid.uuid4().hex}{PART_SUFFIX}")
        try:
            if not has_room(folder, minimum_free):
                raise OSError(errno.ENOSPC, "the disk's reserve is reached")
            received._file = received.path.open("xb", buffering=0)
            received._file.write(head)
        except OSError as error:
            received._fail(error)
        return received

    def write(self, data: memoryview) -> None:
        """Add a fragment of the dataset; after an error the rest is only counted."""
        self.size += len(data)
        while self._file is not None and len(data):
            try:
                data = data[self._file.write(data) :]
            except OSError as error:
                self._fail(error)

    def end(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                self._fail(error)

    def discard(self) -> None:
        """Close and remove the file."""
        self.end()
        self.path.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self.error = error
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as closing:
                _log.warning("dataset file could not be closed", error=closing.strerror)
        self.path.unlink(missing_ok=True)


class UpperLayer(DULServiceProvider):
    """The upper layer's thread, which sleeps until the peer or this node has something to say."""

    def __init__(self, association: Association) -> None:
        super().__init__(association)
        self._run_loop_delay = 0
        # A peer that hangs must not keep the process from ending.
        self.daemon = True
        self.to_user_queue = _Announcing(association)

    def send_pdu(self, primitive: Any) -> None:
        """Hand a primitive to the thread and wake it; what the thread itself has to say, it says at once.

        That is action DT-2 of PS3.8 Table 9-10 without the way through the queue: send, and stay in Sta6.
        """
        if isinstance(primitive, P_DATA) and threading.current_thread() is self:
            self._send(P_DATA_TF(primitive))
            return
        super().send_pdu(primitive)
        cast(QuickSocket, self.socket).wake()

    def _read_pdu_data(self) -> None:
        """Read one PDU and put what it is as an event of PS3.8 Table 9-10; a bad one is one line in the log."""
        connection = cast(QuickSocket, self.socket)
        peer = self.assoc.requestor.address_info
        address = peer.address if peer is not None else ""
        # Aborted already: what still comes is not told of.
        ending = self.state_machine.current_state == "Sta13"
        try:
            data = connection.read_pdu()
        except OSError as error:
            if not isinstance(error, ConnectionError) and not ending:
                _log.warning("connection given up", peer=address, reason=error.strerror or str(error))
            data = None
        if data is None:
            self.event_queue.put(CONNECTION_CLOSED)
            return
        try:
            pdu, event = self._decode_pdu(bytearray(data))
        except Exception as error:  # noqa: BLE001 - whatever the bytes were, they are no PDU
            if not ending:
                _log.warning("invalid PDU", peer=address, error=type(error).__name__)
            self.event_queue.put(_INVALID_PDU)
            return
        self.event_queue.put(event)
        self._recv_pdu.put(pdu)

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
            # Back in its first state with nothing to do: the connection was closed before it asked for anything.
            gone = gone + 1 if self.state_machine.current_state == "Sta1" and self.event_queue.empty() else 0
        return None


class _Announcing(queue.Queue[Any]):
    """What the upper layer has for the association; wakes the association's thread, which waits for messages."""

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._association.dimse.msg_queue.put((None, None))


class _TooMuch(ValueError):
    """A message that is longer than any of ours."""


class Messages(DIMSEServiceProvider):
    """DIMSE messages, the datasets of C-STORE requests as files.

    Parameters
    ----------
    association
        Its owner.
    incoming
        Folder on the file system of the blobs.
    store
        Called with each C-STORE request, the id of its context and its dataset, in the reading thread; answers it.
    minimum_free
        So many bytes of the disk stay free: below that, a dataset is let pass by and not written.
    """

    def __init__(
        self,
        association: Association,
        incoming: Path,
        store: Callable[[C_STORE, int, Received], None],
        minimum_free: int,
    ) -> None:
        super().__init__(association)
        self._incoming = incoming
        self._minimum_free = minimum_free
        self._store = store
        self._arriving: Received | None = None

    def get_msg(self, block: bool = False) -> Any:
        """Return the next request; where none is there, wait a moment for one."""
        if block:
            return super().get_msg(block=True)
        try:
            return self.msg_queue.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            return None, None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take a P-DATA primitive apart: commands to pynetdicom, the datasets of C-STORE requests to disk."""
        try:
            for context_id, data in primitive.presentation_data_value_list:
                self._receive_fragment(context_id, data)
        except Exception as error:  # noqa: BLE001 - whatever the bytes were, they are no DIMSE message
            reason = str(error) if isinstance(error, _TooMuch) else None
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

    def _receive_fragment(self, context_id: int, data: bytes) -> None:
        control = data[0]  # PS3.8 E.2: bit 0 command, bit 1 last fragment
        if self._arriving is not None and not control & 1:
            self._arriving.write(memoryview(data)[1:])
            if control & 2:
                self._finish()
            return
        if self._arriving is not None:
            raise ValueError("a command within a dataset")
        self._limit(control, len(data) - 1)
        one = P_DATA()
        one.presentation_data_value_list.append((context_id, data))
        super().receive_primitive(one)
        if isinstance(self.message, C_STORE_RQ):
            self._begin(self.message, context_id)

    def _limit(self, control: int, more: int) -> None:
        """Refuse what would fill the memory: what is held of a message is what no C-STORE request brings."""
        held = self.message
        if control & 1:
            size = held.encoded_command_set.tell() if held is not None else 0
            what, longest = "command set", _LONGEST_COMMAND_SET
        else:
            size = held.data_set.tell() if held is not None and held.data_set is not None else 0
            what, longest = "dataset of a message that is no C-STORE request", _LONGEST_DATASET_IN_MEMORY
        if size + more > longest:
            raise _TooMuch(f"a {what} of more than {longest} bytes")

    def _begin(self, message: C_STORE_RQ, context_id: int) -> None:
        command = message.command_set
        self._arriving = Received.begin(
            self._incoming,
            file_head(
                sop_class_uid=str(command.AffectedSOPClassUID),
                sop_instance_uid=str(command.AffectedSOPInstanceUID),
                transfer_syntax_uid=str(self.assoc._accepted_cx[context_id].transfer_syntax[0]),
                source_ae_title=self._calling,
            ),
            self._minimum_free,
        )

    def _finish(self) -> None:
        received, self._arriving = self._arriving, None
        message, self.message = self.message, None
        assert received is not None
        assert message is not None
        received.end()
        try:
            self._store(cast(C_STORE, message.message_to_primitive()), cast(int, message.context_id), received)
        finally:
            received.path.unlink(missing_ok=True)
