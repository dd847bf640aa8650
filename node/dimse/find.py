"""The C-FIND SCP of Patient Root and Study Root (PS3.4 C.4.1): answers are sent while they are found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_FIND
from sqlalchemy.exc import SQLAlchemyError

from node.dimse import status
from node.dimse.answers import AnswerWriter
from node.dimse.commands import data_pdus, find_response
from node.dimse.models import FIND_MODELS, negotiated
from node.dimse.searches import read_search
from node.dimse.transport import QuickSocket
from node.errors import NodeError
from storage.database import Database
from storage.errors import StorageError
from storage.query import search

__all__ = ["finder"]

_log = structlog.get_logger(__name__)
#: So many bytes of answers are sent in one go; the first go at once.
_TOGETHER = 32 << 10
_MOST_SECONDS = 0.05

_Answer = tuple[int | Dataset, None]


def finder(database: Database, ae_title: str) -> Callable[[evt.Event], Iterator[_Answer]]:
    """Return the handler of C-FIND in a receiver.

    Parameters
    ----------
    database
        Opened in this process.
    ae_title
        Ours, told as Retrieve AE Title.
    """

    def find(event: evt.Event) -> Iterator[_Answer]:
        return iter([(_answered(event, database, ae_title), None)])

    return find


def _answered(event: evt.Event, database: Database, ae_title: str) -> int | Dataset:
    """Send what is found and return the last status."""
    began = time.monotonic()
    request = cast(C_FIND, event.request)
    uid = str(request.AffectedSOPClassUID)
    sent = 0
    level = ""
    failed: Exception | None = None
    if uid not in FIND_MODELS or uid != event.context.abstract_syntax:
        return _as_dataset(status.WRONG_CONTEXT)
    try:
        agreed = negotiated(event.assoc.requestor.sop_class_extended, uid)
        syntax = UID(event.context.transfer_syntax)
        identifier = request.Identifier.getvalue() if request.Identifier else b""
        asked = read_search(identifier, syntax, FIND_MODELS[uid], agreed)
        level = asked.level.name
        pending = status.PENDING_UNSUPPORTED if asked.unsupported else status.PENDING
        sender = _Sender(event, find_response(request.MessageID or 0, uid, pending.code))
        writer = AnswerWriter(asked, syntax, ae_title)
        for found in search(database, asked.level, asked.query, sender.stopped):
            sender.send(writer.write(found))
            sent += 1
        sender.flush()
        answer = status.CANCELED if sender.cancelled else status.SUCCESS
    except Exception as error:  # noqa: BLE001 - this is the edge: every error becomes a status
        answer, failed = status.find_status_for(error), error
    foreseen = failed is None or isinstance(failed, (NodeError, StorageError, SQLAlchemyError))
    tell = _log.info if failed is None else _log.warning
    tell(
        "search answered" if failed is None else "search refused",
        calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
        model=FIND_MODELS[uid].name,
        level=level,
        answers=sent,
        seconds=round(time.monotonic() - began, 4),
        status=f"0x{answer.code:04X}",
        reason=answer.comment or None,
        error=type(failed).__name__ if failed is not None else None,
        exc_info=None if foreseen else failed,
    )
    return _as_dataset(answer)


class _Sender:
    """Sends pending answers past pynetdicom, which would make some objects of each."""

    def __init__(self, event: evt.Event, command: bytes) -> None:
        self.cancelled = False
        self._event = event
        self._association = event.assoc
        self._context = event.context.context_id
        self._longest = event.assoc.dimse.maximum_pdu_size
        self._command = b"".join(data_pdus(self._context, command, self._longest))
        self._held: list[bytes] = []
        self._size = 0
        self._flushed = time.monotonic()

    def stopped(self) -> bool:
        """Tell whether the peer wants no more, or is gone."""
        self.cancelled = self.cancelled or bool(self._event.is_cancelled)
        return self.cancelled or not self._association.is_established

    def send(self, identifier: bytes) -> None:
        """Send one answer, some of them together."""
        self._held.append(self._command)
        self._held += data_pdus(self._context, identifier, self._longest, dataset=True)
        self._size += len(identifier) + len(self._command)
        if self._size >= _TOGETHER or time.monotonic() - self._flushed > _MOST_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        if self._held and self._association.is_established:
            cast(QuickSocket, self._association.dul.socket).send(b"".join(self._held))
        self._held, self._size, self._flushed = [], 0, time.monotonic()


def _as_dataset(answer: status.Status) -> int | Dataset:
    if not answer.comment:
        return answer.code
    told = Dataset()
    told.Status = answer.code
    told.ErrorComment = answer.comment
    return told
