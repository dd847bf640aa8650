"""The requestor's side of associations on pynetdicom: what a peer may send, and which message was heard last."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import structlog
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import (
    A_ABORT,
    A_P_ABORT,
    A_RELEASE,
    SCP_SCU_RoleSelectionNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from node.dimse import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dimse.transport import CONNECTION_CLOSED, timeval, write_pdu
from node.errors import ConfigurationError
from node.peers import Address, Login
from node.security.channel import Channel
from node.security.tls import PeerTls, caller_context, why_failed

__all__ = ["Entity", "Heard", "ended"]

_log = structlog.get_logger(__name__)
_MAXIMUM_PDU = 131072
#: A-ASSOCIATE-AC with 128 contexts takes some 20 KB; the answers to C-STORE and C-ECHO some hundred bytes.
_LONGEST_ANSWER = 1 << 20
_ENDING_SECONDS = 2.0
_PAUSE_SECONDS = 0.001
_PAUSED_SECONDS = 0.0001


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

    @property
    def ready(self) -> bool:
        """Whether there is something to read; the pause between two looks ends when something comes.

        pynetdicom looks once a millisecond, so that each answer would come that much later.
        """
        dul = self.assoc.dul
        if dul.to_provider_queue.empty() and dul.event_queue.empty():
            waited_for = [self.socket] if self.socket is not None and self._is_connected else []
            with suppress(OSError, ValueError):  # closed meanwhile, which the question itself finds out
                select.select(waited_for, [], [], _PAUSE_SECONDS)
        return bool(super().ready)

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
        self._taken += nr_bytes
        if self._taken > _LONGEST_ANSWER:
            _log.warning("connection given up", reason=f"an answer of more than {_LONGEST_ANSWER} bytes")
            return bytearray()
        deadline = time.monotonic() + self._timeout
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        filled = 0
        while filled < nr_bytes:
            try:
                count = self._receive(view[filled:], deadline)
            except TimeoutError:
                _log.warning("connection given up", reason="an answer did not come in time")
                return buffer[:filled]
            if not count:
                return buffer[:filled]
            filled += count
        return buffer

    def _receive(self, room: memoryview, deadline: float) -> int:
        """Read what comes next by then; 0 where the connection has ended."""
        connection = cast(socket.socket, self.socket)
        readable = select.poll()
        readable.register(connection, select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0 or not readable.poll(left * 1000):
            raise TimeoutError
        return connection.recv_into(room)


class _SecureSocket(_BoundedSocket):
    """Such a connection over TLS.

    Parameters
    ----------
    association, address, timeout
        As for a plain one.
    tls
        What to show, and whom to believe.
    host
        Whom the certificate has to be for.
    entity
        Told in words what fails, and of the socket that takes the place of the plain one.
    """

    def __init__(
        self,
        association: Association,
        address: AddressInformation,
        timeout: float,
        tls: PeerTls,
        host: str,
        entity: Entity,
    ) -> None:
        super().__init__(association, address, timeout)
        self._tls = tls
        self._host = tls.server_name or host
        self._entity = entity
        self._channel: Channel | None = None

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect and agree on keys, within the time to connect."""
        assert self.socket is not None
        deadline = time.monotonic() + self._timeout
        try:
            context = caller_context(self._tls)
            self.socket.settimeout(self._timeout)
            self.socket.connect(primitive.address_info.as_tuple)
            secured = context.wrap_socket(self.socket, server_hostname=self._host, do_handshake_on_connect=False)
            self.socket = secured
            self._channel = Channel(secured)
            self._entity.opened(self._channel)
            self._channel.handshake(deadline)
        except (OSError, ConfigurationError, ValueError) as error:
            self._entity.failure = why_failed(error) if isinstance(error, OSError) else str(error)
            (self._channel or self.socket).close()
            self.socket = None
            primitive.result = "Evt17"
        else:
            self.assoc.requestor.address_info = AddressInformation.from_tuple(self.socket.getsockname())
            self._is_connected = True
            primitive.result = "Evt2"
        self.provider_queue.put(primitive)
        self._ready.set()

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        if self.socket is not None and self._is_connected and self._channel is not None and self._channel.pending():
            return True
        return super().ready

    def write_pdu(self, pdu: bytes | memoryview) -> None:
        """Send a PDU as a whole, and allow the answer its length anew.

        Raises
        ------
        OSError
            When the connection has ended, or the peer did not take it in time.
        """
        self._taken = 0
        channel = self._channel
        if channel is None or self.socket is None:
            raise ConnectionError("not connected")
        with self._writing:
            channel.send(pdu, time.monotonic() + self._timeout)

    def _shutdown_socket(self) -> None:
        if self._channel is not None:
            self._channel.close()
        else:
            super()._shutdown_socket()

    def _receive(self, room: memoryview, deadline: float) -> int:
        assert self._channel is not None
        try:
            return self._channel.receive(room, deadline)
        except ssl.SSLError as error:
            # A peer that does not accept our certificate says so only now (RFC 8446 4.4.2.4).
            self._entity.failure = why_failed(error)
            raise


def _release(association: Association) -> None:
    """Release, as pynetdicom does, which waits without end where the association's own thread does not pause."""
    deadline = time.monotonic() + _ENDING_SECONDS
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        if not association.is_alive() or time.monotonic() > deadline:
            return
        time.sleep(_PAUSED_SECONDS)
    if association.is_established:
        association.acse.negotiate_release()
    association._reactor_checkpoint.set()


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
        #: In words, why a connection over TLS failed; empty where none has.
        self.failure = ""
        self._peer: Address | None = None
        self._sockets: list[socket.socket | Channel] = []

    def _create_socket(self, assoc: Association, address: AddressInformation, _tls: Any) -> AssociationSocket:
        # The socket waits in its place.
        assoc.dul._run_loop_delay = 0
        timeout = cast(float, self.network_timeout)
        peer = self._peer
        transport = (
            _BoundedSocket(assoc, address, timeout)
            if peer is None or peer.tls is None
            else _SecureSocket(assoc, address, timeout, peer.tls, peer.host, self)
        )
        assert transport.socket is not None
        # Nagle's algorithm would keep the last, small segment back until the peer's delayed acknowledgement.
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that does not read must not keep the sender for ever.
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(timeout))
        self._sockets.append(transport.socket)
        return transport

    def opened(self, connection: Channel) -> None:
        """Take note of a connection that is to be closed at the end."""
        self._sockets.append(connection)

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
        self._peer = peer
        self.failure = ""
        try:
            association = self.associate(
                peer.host,
                peer.port,
                contexts=contexts,
                ae_title=peer.ae_title,
                max_pdu=_MAXIMUM_PDU,
                ext_neg=[*roles, *([_user(peer.login)] if peer.login is not None else [])],
                evt_handlers=[(evt.EVT_DIMSE_RECV, self._hear), *handlers],
            )
            yield association
            if association.is_established and ended(association):
                # Its own thread notes it.
                association.join(_ENDING_SECONDS)
            if association.is_established:
                _release(association)
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


def _user(login: Login) -> UserIdentityNegotiation:
    """Name ourselves to a peer; no answer is asked for: who does not know the item leaves it out."""
    item = UserIdentityNegotiation()
    item.primary_field = login.username.encode()
    item.user_identity_type = 1
    if login.passcode is not None:
        item.user_identity_type = 2
        item.secondary_field = login.passcode.get_secret_value().encode()
    return item
