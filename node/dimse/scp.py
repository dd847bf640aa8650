"""The Storage and Verification SCP: takes objects in and answers only once they are durable.

One process binds the ports (:mod:`node.dimse.inlets`); any number of processes forked from it accept on the same
sockets (:func:`run_receiver`). The way of one association is
:class:`node.dimse.association.Intake`.
"""

from __future__ import annotations

import errno
import gc
import select
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
from pynetdicom import AE, _config
from pynetdicom.transport import AddressInformation, AssociationServer, RequestHandler

from node.dimse import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dimse.access import Access
from node.dimse.association import Handlers, Intake, Reception
from node.dimse.carried import Carried
from node.dimse.contexts import Rules
from node.dimse.inlets import Inlet
from node.dimse.slots import Slots
from node.settings import DimseSettings
from storage.intake import Archive
from storage.space import Room

__all__ = ["run_receiver"]

_log = structlog.get_logger(__name__)
_ACCEPT_SECONDS = 0.2
#: How long associations may go on after the receiver was told to stop.
_GRACE_SECONDS = 3.0


def run_receiver(
    inlets: Sequence[Inlet],
    archive: Archive,
    settings: DimseSettings,
    access: Access,
    incoming: Path,
    room: Room,
    stop: threading.Event,
    *,
    handlers: Handlers = (),
) -> None:
    """Accept associations until told to stop; then let those that run end, for a moment.

    One call a process.

    Parameters
    ----------
    inlets
        From :func:`node.dimse.inlets.bound`, shared with the sibling receivers.
    archive
        Opened in this process.
    settings
        AE title and limits; the limit on associations counts over all receivers of ``incoming``.
    access
        Who may associate, and for which services.
    incoming
        Existing folder on the file system of the blobs.
    room
        Where it says no, objects are answered "out of resources" (A700).
    stop
        Ends the call.
    handlers
        For the messages of services that have some; each runs in the thread of its association.
    """
    # What was imported is never garbage: looking through it would stop every association for some 50 ms.
    gc.collect()
    gc.freeze()
    # pynetdicom's own log handlers format every message and quote datasets.
    _config.LOG_HANDLER_LEVEL = "none"
    ae = AE(ae_title=settings.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = settings.maximum_pdu
    # pynetdicom's name for the time in which nothing at all comes.
    ae.network_timeout = settings.idle_timeout_seconds
    ae.dimse_timeout = settings.network_timeout_seconds
    ae.acse_timeout = settings.artim_timeout_seconds
    # The limit is counted over all processes, by Slots.
    ae.maximum_associations = 1 << 30
    slots = Slots(incoming / ".associations", access.limits)
    carried = Carried(incoming / ".carried")
    reception = Reception(
        ae=ae,
        address=AddressInformation.from_tuple(inlets[0].listening.getsockname()),
        settings=settings,
        rules=Rules(transfer_syntaxes=settings.transfer_syntaxes, private=settings.private_sop_classes),
        access=access,
        handlers=handlers,
        archive=archive,
        incoming=incoming,
        slots=slots,
        carried=carried,
        room=room,
        stop=stop,
    )
    server = _Server(reception, inlets[0])
    ports = [one.listening.getsockname()[1] for one in inlets]
    _log.info("receiver started", ae_title=settings.ae_title, ports=ports)
    waiting = select.poll()
    by_descriptor = {one.listening.fileno(): one for one in inlets}
    for descriptor in by_descriptor:
        waiting.register(descriptor, select.POLLIN)
    while not stop.is_set():
        for descriptor, _ in waiting.poll(_ACCEPT_SECONDS * 1000):
            server.accept(by_descriptor[descriptor])
    _finish(server)
    slots.close()
    carried.close()
    _log.info("receiver stopped")


def _finish(server: _Server) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    for association in server.established():
        association.join(max(0.0, deadline - time.monotonic()))
    late = server.established()
    for association in late:
        association.abort(block=False)
    for association in late:
        association.join(1.0)


class _Server(AssociationServer):
    """Accepts on a socket that belongs to the parent."""

    def __init__(
        self,
        reception: Reception,
        inlet: Inlet,
    ) -> None:
        self._listening = inlet.listening
        #: Where the connection came in that is being made an association.
        self.inlet = inlet
        self.reception = reception
        self._running: set[Intake] = set()
        super().__init__(
            reception.ae,
            self._listening.getsockname(),
            reception.ae.ae_title,
            [],
            request_handler=_Connection,
        )

    def server_bind(self) -> None:
        """Take the shared socket in place of one of its own."""
        assert self.socket is not None
        self.socket.close()
        self.socket = self._listening
        self.server_address = self._listening.getsockname()

    def server_activate(self) -> None:
        """Do nothing: it listens already."""

    def accept(self, inlet: Inlet) -> None:
        """Make a waiting connection an association; a receiver that has much to do lets its siblings go first."""
        if busy := len(self.established()):
            time.sleep(min(0.002 * busy, 0.01))
        try:
            connection, address = inlet.listening.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                _log.error("connection not accepted", error=error.strerror)
                time.sleep(_ACCEPT_SECONDS)  # out of descriptors, say: it will not be better at once
            return
        self.inlet = inlet
        try:
            self.process_request(connection, address)
        except Exception:  # noqa: BLE001 - one connection must not end the receiver
            _log.exception("connection failed")
            self.shutdown_request(connection)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close a connection so that a thread that reads from it wakes up."""
        assert isinstance(request, socket.socket)
        try:
            # The socket's own, past OpenSSL's: the thread that reads would go on without encryption.
            socket.socket.shutdown(request, socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                raise
        request.close()

    def running(self) -> list[Intake]:
        """Return the associations whose threads are alive."""
        self._running = {one for one in self._running if one.is_alive()}
        return list(self._running)

    def established(self) -> list[Intake]:
        """Return the associations that were accepted and have not ended."""
        return [one for one in self.running() if one.is_established]

    def started(self, association: Intake) -> None:
        """Note a new association."""
        self._running.add(association)


class _Connection(RequestHandler):
    """Makes an accepted connection an association."""

    server: _Server

    def handle(self) -> None:
        """Start the association's threads."""
        server = self.server
        running = server.running()
        if len(running) >= 2 * server.reception.settings.maximum_associations:
            _hang_up_on_oldest(running)
        peer = AddressInformation.from_tuple(self.client_address)
        association = Intake(server.reception, server.inlet, self.request, peer)
        association.start()
        server.started(association)


def _hang_up_on_oldest(running: Sequence[Intake]) -> None:
    """Make room: who has been connected the longest and has asked for nothing goes, not who comes now."""
    waiting = [one for one in running if not one.is_established and not one.given_up]
    if waiting:
        oldest = min(waiting, key=lambda one: one.began)
        _log.warning("connection given up", peer=oldest.address, reason="too many have asked for nothing")
        oldest.give_up()
