"""The Retrieve SCP: C-MOVE sends to a peer, C-GET on the association that it came by (PS3.4 C.4.2, C.4.3).

pynetdicom's own service is not used: it wants every object as a dataset in memory and encodes it anew, names itself as
the originator of a move, looks for a cancel only between objects, and leaves the requestor waiting for as long as a
destination does not answer.

A move's sub-operations run in a thread of their own, so that the requestor is heard and told meanwhile. All of it
is in the receiver's process, beside the associations that store: what is sent goes from file to socket in large
pieces, outside the interpreter's lock, decoders run elsewhere (:mod:`node.transcoder`), and how many retrieves may
run at the same time is limited.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

import structlog
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_MOVE

from node.dimse import status
from node.dimse.commands import Originator
from node.dimse.conversation import Conversation, Tally
from node.dimse.identifiers import read_wanted
from node.dimse.objects import Identity
from node.dimse.scu import sending
from node.dimse.slots import Slots
from node.dimse.status import Status
from node.dimse.storing import Sent, Storing
from node.errors import NodeError, TooManyMatches, UnknownDestination, UnreadableIdentifier, kind_and_place
from node.peers import Address
from node.settings import Settings
from node.transcoder import Transcoders
from storage.blobs import Blobs, file_size
from storage.database import Database
from storage.retrieval import Stored, find_stored

__all__ = ["TRANSCODED", "Retriever"]

#: The folder, in the data directory, of what is transcoded while it is sent; nothing in it outlives a start.
TRANSCODED = "transcoded"

_log = structlog.get_logger(__name__)
#: The counts are US (PS3.7 Annex E).
_MOST = 65535
_RETRIEVES = "retrieves"
_LOOK_SECONDS = 0.1
#: So long may the object that is being sent when a cancel comes still be answered for.
_LAST_OUTCOME_SECONDS = 1.5
_COMMENT_LENGTH = 64

#: Performs the sub-operations of a request; None where nobody is there to be answered.
_Perform = Callable[[Conversation, Sequence[Identity], Tally, int], Status | None]


class Retriever:
    """Answers the C-MOVE and C-GET requests of one process.

    Parameters
    ----------
    settings
        The peers, our AE title and the limits.
    database, blobs
        What is stored; opened in this process.
    """

    def __init__(self, settings: Settings, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs
        self._own_title = settings.dimse.ae_title
        self._network_timeout = settings.dimse.network_timeout_seconds
        self._destinations: dict[str, tuple[str, Address, float]] = {
            peer.ae_title.strip(): (name, peer.address, peer.timeout_seconds)
            for name, peer in settings.peers.items()
            if peer.address is not None
        }
        root = settings.data_dir.absolute()
        self._folder = root / TRANSCODED
        self._folder.mkdir(exist_ok=True)
        self._slots = Slots(root / "incoming" / ".retrieves", {_RETRIEVES: settings.dimse.maximum_retrieves})
        self._transcoders = Transcoders()

    def move(self, event: evt.Event) -> None:
        """Serve a C-MOVE request."""
        self._serve(Conversation(event), "C-MOVE", self._move)

    def get(self, event: evt.Event) -> None:
        """Serve a C-GET request."""
        self._serve(Conversation(event), "C-GET", self._get)

    def _serve(self, talk: Conversation, kind: str, perform: _Perform) -> None:
        began = time.monotonic()
        tally: Tally | None = None
        try:
            if isinstance(talk.request, C_MOVE):
                self._destination(talk)
            objects = self._objects(talk)
            tally = Tally(remaining=len(objects))
            answer = self._in_turn(talk, objects, tally, perform)
        except Exception as error:  # noqa: BLE001 - this is the edge: every error becomes a status
            answer = status.retrieve_status_for(error)
            known = isinstance(error, NodeError)
            _log.warning("retrieve refused", kind=kind, error=str(error) if known else kind_and_place(error))
        if answer is not None:
            talk.end(answer, tally)
        _log.info(
            "retrieve ended",
            kind=kind,
            calling_ae_title=talk.calling,
            status=f"0x{answer.code:04X}" if answer is not None else "the requestor has gone",
            seconds=round(time.monotonic() - began, 3),
            **({} if tally is None else {"completed": tally.completed, "failed": tally.failed}),
            **({} if tally is None else {"warning": tally.warning, "remaining": tally.remaining}),
        )

    def _destination(self, talk: Conversation) -> tuple[str, Address, float]:
        title = str(cast(C_MOVE, talk.request).MoveDestination or "").strip()
        found = self._destinations.get(title)
        if found is None:
            raise UnknownDestination("the move destination is no peer with an address")
        return found

    def _objects(self, talk: Conversation) -> list[Identity]:
        if talk.request.Identifier is None:
            raise UnreadableIdentifier("the request has no identifier")
        wanted = read_wanted(
            talk.request.Identifier.getvalue(),
            talk.transfer_syntax_uid,
            talk.sop_class_uid,
            relational=talk.relational,
        )
        with self._database.read() as connection:
            found = find_stored(connection, wanted, _MOST + 1)
        if len(found) > _MOST:
            raise TooManyMatches(f"more than {_MOST} objects match; ask for fewer")
        return [self._identity(one) for one in found]

    def _identity(self, one: Stored) -> Identity:
        path = self._blobs.path(one.blob)
        size = file_size(path)
        changed = one.damage not in (None, "missing") or size not in (None, one.size)
        if changed:
            _log.error("bytes are not what was received", blob=one.blob)
        return Identity(
            path,
            one.sop_class_uid,
            one.sop_instance_uid,
            one.transfer_syntax_uid,
            wrong="the stored bytes are not what was received" if changed else "",
        )

    def _in_turn(
        self, talk: Conversation, objects: Sequence[Identity], tally: Tally, perform: _Perform
    ) -> Status | None:
        """Wait until another retrieve may run, and perform the sub-operations."""
        if not objects:
            return status.SUCCESS
        patience = time.monotonic() + self._network_timeout
        while (slot := self._slots.acquire(_RETRIEVES)) is None:
            if talk.over():
                return None
            if talk.cancelled():
                return status.CANCELED
            if time.monotonic() > patience:
                tally.fail(one.sop_instance_uid for one in objects)
                return status.TOO_BUSY
            talk.reassure(tally)
            time.sleep(_LOOK_SECONDS)  # a place is given back by another process, which cannot wake this one
        return perform(talk, objects, tally, slot)

    def _get(self, talk: Conversation, objects: Sequence[Identity], tally: Tally, slot: int) -> Status | None:
        storing = Storing(
            talk.association,
            talk.calling,
            timeout=self._network_timeout,
            transcoders=self._transcoders,
            folder=self._folder,
            priority=talk.request.Priority,
            given_up=lambda: talk.cancelled() or talk.over(),
            # What is begun on this association has to be ended, or there is none to answer on.
            break_off=False,
        )
        why = ""
        try:
            for one in objects:
                if talk.over():
                    return None
                if talk.cancelled():
                    return status.CANCELED
                sent = storing.send(one)
                if talk.over():
                    return None
                if sent.status is None and talk.cancelled():
                    return status.CANCELED
                tally.count(sent)
                why = why or self._noted(sent)
                talk.pending(tally)
        finally:
            self._slots.release(slot)
            for asked in storing.deferred:
                talk.association.dimse.msg_queue.put(asked)
        return _because(tally.conclusion, why)

    def _move(self, talk: Conversation, objects: Sequence[Identity], tally: Tally, slot: int) -> Status | None:
        outcomes: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        stop = threading.Event()
        worker = threading.Thread(
            target=self._send_all, args=(talk, objects, outcomes, stop, slot), name="sub-operations", daemon=True
        )
        try:
            worker.start()
        except RuntimeError:
            # No further thread can be had: nobody else gives the slot back.
            self._slots.release(slot)
            raise
        why = ""
        try:
            talk.pending(tally)
            while tally.remaining:
                try:
                    sent = outcomes.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    talk.reassure(tally)
                else:
                    if sent is None:
                        # Nothing became of the rest.
                        tally.fail(one.sop_instance_uid for one in objects[len(objects) - tally.remaining :])
                        break
                    tally.count(sent)
                    why = why or self._noted(sent)
                    talk.pending(tally)
                if talk.over():
                    return None
                if talk.cancelled() and tally.remaining:
                    stop.set()
                    _count_last(outcomes, tally)
                    return status.CANCELED
        finally:
            stop.set()
        return _because(tally.conclusion, why)

    def _send_all(
        self,
        talk: Conversation,
        objects: Sequence[Identity],
        outcomes: queue.SimpleQueue[Sent | None],
        stop: threading.Event,
        slot: int,
    ) -> None:
        """Send everything to the destination; runs in a thread of its own."""
        try:
            _, address, timeout = self._destination(talk)
            for sent in sending(
                objects,
                address,
                self._own_title,
                timeout=timeout,
                transcoders=self._transcoders,
                given_up=stop.is_set,
                folder=self._folder,
                priority=talk.request.Priority,
                originator=Originator(talk.calling, talk.request.MessageID or 0),
            ):
                outcomes.put(sent)
        except Exception as error:  # noqa: BLE001 - the requestor has to hear of it, whatever it was
            _log.error("sub-operations failed", error=kind_and_place(error))
        finally:
            outcomes.put(None)
            self._slots.release(slot)

    def _noted(self, sent: Sent) -> str:
        """Return why an object was not sent, in words of ours; bytes that are missing are told in the log."""
        if sent.stored or sent.status is not None:
            return ""
        if not sent.path.exists():
            _log.error("bytes are missing", blob=sent.path.name)
        return sent.answer


def _count_last(outcomes: queue.SimpleQueue[Sent | None], tally: Tally) -> None:
    """Count what still became of objects after nobody wanted more; what was broken off remains."""
    deadline = time.monotonic() + _LAST_OUTCOME_SECONDS
    while tally.remaining and (left := deadline - time.monotonic()) > 0:
        try:
            sent = outcomes.get(timeout=left)
        except queue.Empty:
            return
        if sent is None:
            return
        if sent.status is not None:
            tally.count(sent)


def _because(answer: Status, why: str) -> Status:
    if answer.code == status.SUCCESS.code or not why:
        return answer
    return Status(answer.code, why if len(why) <= _COMMENT_LENGTH else why[: _COMMENT_LENGTH - 3] + "...")
