"""The requestor's side of associations on pynetdicom: what a peer may send, and which message was heard last."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import structlog
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT, A_RELEASE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from node.dimse import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dimse.transport import CONNECTION_CLOSED, timeval, write_pdu
from node.peers import Address

__all__ = ["Entity", "Heard", "ended"]

_log = structlog.get_logger(__name__)
_MAXIMUM_PDU = 131072
#: A-ASSOCIATE-AC with 128 contexts takes some 20 KB; the answers to C-STORE and C-ECHO some hundred bytes.
_LONGEST_ANSWER = 1 << 20
_ENDING_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a message says that it is about."""

    kind: str
    message_id: int | None
    sop_instance_uid: str


class _BoundedSocket(AssociationSocket):
    """A connection whose peer can neither fill the memory nor keep a reader for ever."""

    def __init__(self, association: Association, address: AddressInformation, timeout: float) -> None:
        super().__init__(association, address=address)
        self._timeout = timeout
        self._taken = 0
        self._writing = threading.Lock()

    def send(self, bytestream: bytes) -> None:
        """Send a PDU; a connection that cannot take it has ended."""
        try:
            self.write_pdu(bytestream)
        except OSError:
            self.event_queue.put(CONNECTION_CLOSED)

    def write_pdu(self, pdu: bytes | memoryview) -> None:
        """Send a PDU as a whole, and allow the answer its length anew.

        Raises
        ------
        OSError
            When the connection has ended, or the peer did not take it in time.
        """
        self._taken = 0
        with self._writing:
            write_pdu(self.socket, pdu, self._timeout)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly so many bytes, or what came in time; fewer end the connection."""
        connection = cast(socket.socket, self.socket)
        self._taken += nr_bytes
        if self._taken > _LONGEST_ANSWER:
            _log.warning("connection given up", reason=f"an answer of more than {_LONGEST_ANSWER} bytes")
            return bytearray()
        deadline = time.monotonic() + self._timeout
        readable = select.poll()
        readable.register(connection, select.POLLIN)
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        filled = 0
        while filled < nr_bytes:
            left = deadline - time.monotonic()
            if left <= 0 or not readable.poll(left * 1000):
                _log.warning("connection given up", reason="an answer did not come in time")
                return buffer[:filled]
            count = connection.recv_into(view[filled:])
            if not count:
                return buffer[:filled]
            filled += count
        return buffer


def ended(association: Association) -> bool:
    """Whether an association has ended, or its peer asks for its release; for its own thread may not know yet."""
    if association._kill or association._sent_abort or not association.dul.is_alive():
        return True
    return isinstance(association.dul.peek_next_pdu(), (A_ABORT, A_P_ABORT, A_RELEASE))


class Entity(AE):
    """Our side of associations; keeps hold of its sockets, which pynetdicom leaves open where a connection fails."""

    def __init__(self, calling_ae_title: str, timeout: float) -> None:
        super().__init__(ae_title=calling_ae_title)
        self.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self.acse_timeout = timeout
        self.connection_timeout = timeout
        self.dimse_timeout = timeout
        self.network_timeout = timeout
        #: The last message that came.
        self.heard: Heard | None = None
        self._sockets: list[socket.socket] = []

    def _create_socket(self, assoc: Association, address: AddressInformation, _tls: Any) -> AssociationSocket:
        transport = _BoundedSocket(assoc, address, cast(float, self.network_timeout))
        assert transport.socket is not None
        # Nagle's algorithm would keep the last, small segment back until the peer's delayed acknowledgement.
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that does not read must not keep the sender for ever.
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(cast(float, self.network_timeout)))
        self._sockets.append(transport.socket)
        return transport

    @contextmanager
    def association(
        self,
        peer: Address,
        contexts: list[PresentationContext],
        *,
        roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
        handlers: Sequence[tuple[evt.EventType, Callable[[evt.Event], Any]]] = (),
    ) -> Iterator[Association]:
        """Give an association, established or not; released at the end, aborted when the block ends by an error.

        Parameters
        ----------
        roles
            What is proposed beside the contexts, where we are to be the SCP (PS3.7 D.3.3.4).
        handlers
            For what the peer asks of us on it.

        Raises
        ------
        OSError
            When the host's name is not known.
        """
        association: Association | None = None
        try:
            association = self.associate(
                peer.host,
                peer.port,
                contexts=contexts,
                ae_title=peer.ae_title,
                max_pdu=_MAXIMUM_PDU,
                ext_neg=list(roles),
                evt_handlers=[(evt.EVT_DIMSE_RECV, self._hear), *handlers],
            )
            yield association
            if association.is_established and ended(association):
                # Its own thread notes it.
                association.join(_ENDING_SECONDS)
            if association.is_established:
                association.release()
        finally:
            if association is not None and association.is_established:
                association.abort()
            while self._sockets:
                self._sockets.pop().close()

    def _hear(self, event: evt.Event) -> None:
        command = event.message.command_set
        self.heard = Heard(
            kind=type(event.message).__name__,
            message_id=command.get("MessageIDBeingRespondedTo"),
            sop_instance_uid=str(command.get("AffectedSOPInstanceUID") or "").strip(" \0"),
        )
