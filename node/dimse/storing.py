"""Sending stored objects by C-STORE over an association that is there, whichever side has asked for it.

Bytes go out as they are stored, in pieces from the disk, so that their size costs no memory; only where the peer
accepts nothing else does an object go out in an uncompressed transfer syntax. pynetdicom's own way holds a whole
object in an unbounded queue, takes a transfer of some minutes for one send, and waits without looking whether anyone
still wants the object.
"""

from __future__ import annotations

import os
import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from node.dimse.commands import Originator, StoreRequest, data_pdu_head, data_pdus, store_request
from node.dimse.objects import Identity, dataset_offset
from node.dimse.requestor import ended
from node.dimse.status import Category, category, meaning
from node.errors import NotTranscoded
from node.transcoder import Transcoders
from node.transcoding import UNCOMPRESSED

__all__ = ["Sent", "Storing", "not_reached", "not_stored", "on_its_own"]

#: The longest PDU that is sent, whatever the peer would take.
_LONGEST_PDU = 262144
_PDV_HEAD = 6
_PDU_HEAD = 12
_WAIT_SECONDS = 0.05
#: So long may a peer still answer for the object that was being sent when nobody wanted it any more.
_LAST_ANSWER_SECONDS = 1.0
_MEDIUM = 0x0000
_ENDED = "ended the association during this object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of one object.

    ``status`` is the peer's (0000,0900), None when no answer came; ``answer`` says it in words, with the peer's own
    Error Comment where it gave one.
    """

    path: Path
    sop_instance_uid: str
    category: Category
    status: int | None
    answer: str
    #: Whether the peer was there at all.
    reached: bool = True
    transcoded: bool = False

    @property
    def stored(self) -> bool:
        """Whether the peer said that it has stored the object."""
        return self.category in (Category.SUCCESS, Category.WARNING)


def not_stored(one: Identity, answer: str) -> Sent:
    """Say that an object cannot be sent to this peer, now or later."""
    return Sent(
        path=one.path, sop_instance_uid=one.sop_instance_uid, category=Category.FAILURE, status=None, answer=answer
    )


def not_reached(one: Identity, answer: str, *, reached: bool = False) -> Sent:
    """Say that an object could not be sent now."""
    return Sent(
        path=one.path,
        sop_instance_uid=one.sop_instance_uid,
        category=Category.BUSY,
        status=None,
        answer=answer,
        reached=reached,
    )


class _Connection(Protocol):
    """What an association's socket has beside what pynetdicom wants of it."""

    def write_pdu(self, pdu: bytes | memoryview) -> None:
        """Send a PDU as a whole."""


class _Over(Exception):
    """The association cannot go on; says why, after the peer's name."""


class Storing:
    """Sends objects over one association, one after the other.

    Parameters
    ----------
    association
        Established; our role as SCU of the storage services was agreed. Where we have asked for it, within
        :func:`on_its_own`.
    name
        The peer, in words.
    timeout
        Seconds that the peer may take for each answer.
    transcoders
        For what the peer does not take as it is stored.
    folder
        Where what is transcoded lies meanwhile; without it, where the system keeps temporary files.
    priority, originator
        Of the C-MOVE that the objects are sent for.
    given_up
        Asked meanwhile: whether nobody wants the objects any more.
    break_off
        Whether an object may then be left half sent, which ends the association.
    """

    def __init__(
        self,
        association: Association,
        name: str,
        *,
        timeout: float,
        transcoders: Transcoders,
        folder: Path | None = None,
        priority: int = _MEDIUM,
        originator: Originator | None = None,
        given_up: Callable[[], bool] = lambda: False,
        break_off: bool = True,
    ) -> None:
        self._association = association
        self._name = name
        self._timeout = timeout
        self._transcoders = transcoders
        self._folder = folder
        self._priority = priority
        self._originator = originator
        self._given_up = given_up
        self._break_off = break_off
        self._message_id = 0
        #: What the peer asks in between; kept for whoever serves the association.
        self.deferred: list[tuple[int, Any]] = []
        self._contexts: dict[str, dict[str, int]] = {}
        for context in association.accepted_contexts:
            if context.as_scu:
                syntaxes = self._contexts.setdefault(str(context.abstract_syntax), {})
                syntaxes.setdefault(str(context.transfer_syntax[0]), cast(int, context.context_id))

    def send(self, one: Identity) -> Sent:
        """Send an object and say what became of it."""
        if one.wrong:
            return not_stored(one, one.wrong)
        syntaxes = self._contexts.get(one.sop_class_uid, {})
        if (context_id := syntaxes.get(one.transfer_syntax_uid)) is not None:
            return self._send(one, one.path, context_id)
        target = next((uid for uid in UNCOMPRESSED if uid in syntaxes), None)
        if target is None:
            return not_stored(
                one, f"{self._name} takes no {UID(one.sop_class_uid).name} in any transfer syntax we have"
            )
        if not one.path.exists():
            return not_stored(one, "the file cannot be read: No such file or directory")
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".transcoded") as file, self._transcoders.one() as it:
            try:
                it.uncompressed(one.path, target, Path(file.name), self._given_up)
            except NotTranscoded as error:
                syntax = UID(one.transfer_syntax_uid).name
                return not_stored(one, f"{self._name} does not take {syntax}, and it cannot be decoded ({error})")
            return self._send(one, Path(file.name), syntaxes[target], transcoded=True)

    def _send(self, one: Identity, path: Path, context_id: int, *, transcoded: bool = False) -> Sent:
        self._message_id = self._message_id % 65535 + 1
        request = StoreRequest(self._message_id, one.sop_class_uid, one.sop_instance_uid)
        try:
            offset = dataset_offset(path)
        except OSError as error:
            return not_stored(one, f"the file cannot be read: {error.strerror}")
        except ValueError as error:
            return not_stored(one, f"the file cannot be read: {error}")
        try:
            self._transmit(request, context_id, path, offset)
            response = self._response()
        except (_Over, OSError) as error:
            self._abort()
            return not_reached(one, f"{self._name} {error if isinstance(error, _Over) else _ENDED}")
        if not _is_answer_to(request, response):
            # Which answer belongs to which object cannot be told from here on.
            self._abort()
            return not_reached(one, f"{self._name} answered for something else than this object", reached=True)
        code = cast(int, response.Status)
        comment = str(response.ErrorComment or "").strip()
        return Sent(
            path=one.path,
            sop_instance_uid=one.sop_instance_uid,
            category=category(code),
            status=code,
            answer=meaning(code) + (f" ({comment})" if comment else ""),
            transcoded=transcoded,
        )

    def _transmit(self, request: StoreRequest, context_id: int, path: Path, offset: int) -> None:
        connection = cast(_Connection, self._association.dul.socket)
        longest = self._association.dimse.maximum_pdu_size
        piece = max(1, min(longest or _LONGEST_PDU, _LONGEST_PDU) - _PDV_HEAD)
        with path.open("rb", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size - offset
            file.seek(offset)
            buffer = memoryview(bytearray(_PDU_HEAD + min(piece, left)))
            for pdu in data_pdus(context_id, store_request(request, self._priority, self._originator), longest):
                connection.write_pdu(pdu)
            while True:
                if self._break_off and self._given_up():
                    raise _Over("was sent only a part of the object: nobody wants it any more")
                count = _read(file, buffer[_PDU_HEAD:][:left])
                left -= count
                buffer[:_PDU_HEAD] = data_pdu_head(context_id, count, last=not left)
                connection.write_pdu(buffer[: _PDU_HEAD + count])
                if not left:
                    return

    def _response(self) -> Any:
        """Wait for the next response; requests that come meanwhile are kept."""
        messages = self._association.dimse.msg_queue
        deadline = time.monotonic() + self._timeout
        given_up = False
        while True:
            try:
                context_id, message = messages.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                context_id, message = None, None
            if message is not None and message.is_valid_request:
                self.deferred.append((cast(int, context_id), message))
            elif message is not None:
                return message
            elif messages.empty():
                if ended(self._association):
                    raise _Over(_ENDED)
                if self._break_off and not given_up and self._given_up():
                    given_up = True
                    deadline = min(deadline, time.monotonic() + _LAST_ANSWER_SECONDS)
                if time.monotonic() > deadline:
                    raise _Over("gave no answer to C-STORE")

    def _abort(self) -> None:
        if not ended(self._association):
            self._association.abort()


@contextmanager
def on_its_own(association: Association) -> Iterator[None]:
    """Keep pynetdicom's own thread of an association that we have asked for from taking what comes.

    It is told once for all objects, and seen to have stopped: it does not look again before it takes a message.
    """
    association._reactor_checkpoint.clear()
    seen = 0
    while association.is_alive() and seen < 2:
        time.sleep(0.003)
        seen = seen + 1 if association._is_paused else 0
    try:
        yield
    finally:
        association._reactor_checkpoint.set()


def _read(file: BinaryIO, into: memoryview) -> int:
    try:
        count: int = file.readinto(into)  # type: ignore[attr-defined]
    except OSError as error:
        raise _Over(f"got only a part of the object: {error.strerror}") from None
    if not count and len(into):
        raise _Over("got only a part of the object: the file has become shorter")
    return count


def _is_answer_to(request: StoreRequest, response: Any) -> bool:
    """Whether a message is C-STORE-RSP to this request (PS3.7 9.3.1.2: it need not name the instance)."""
    return (
        isinstance(response, C_STORE)
        and response.Status is not None
        and response.MessageIDBeingRespondedTo == request.message_id
        and str(response.AffectedSOPInstanceUID or "").strip(" \0") in ("", request.sop_instance_uid)
    )
