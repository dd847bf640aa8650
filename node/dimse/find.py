"""The C-FIND SCP of Patient Root and Study Root (PS3.4 C.4.1): answers are sent while they are found."""

from __future__ import annotations

import time
from typing import cast

import structlog
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_FIND
from sqlalchemy.exc import SQLAlchemyError

from node.dimse import status
from node.dimse.acceptor import Messages
from node.dimse.answers import AnswerWriter
from node.dimse.commands import data_pdus, find_response
from node.dimse.models import FIND_MODELS, negotiated
from node.dimse.searches import Asked, read_search
from node.errors import NodeError
from storage.database import Database
from storage.errors import StorageError
from storage.query import search

__all__ = ["Finder"]

_log = structlog.get_logger(__name__)
#: So many bytes of answers are sent in one go; the first go at once.
_TOGETHER = 32 << 10
_MOST_SECONDS = 0.05


class Finder:
    """Answers the C-FIND requests of one process.

    Parameters
    ----------
    database
        Opened in this process.
    ae_title
        Ours, told as Retrieve AE Title.
    """

    def __init__(self, database: Database, ae_title: str) -> None:
        self._database = database
        self._ae_title = ae_title

    def find(self, event: evt.Event) -> None:
        """Answer one request, in the thread of its association, with all its responses."""
        began = time.monotonic()
        request = cast(C_FIND, event.request)
        uid = str(request.AffectedSOPClassUID)
        responses = _Responses(event, request.MessageID or 0, uid)
        level = ""
        failed: Exception | None = None
        try:
            if uid not in FIND_MODELS or uid != event.context.abstract_syntax:
                answer = status.WRONG_CONTEXT
            else:
                agreed = negotiated(event.assoc.requestor.sop_class_extended, uid)
                syntax = UID(event.context.transfer_syntax)
                identifier = request.Identifier.getvalue() if request.Identifier else b""
                asked = read_search(identifier, syntax, FIND_MODELS[uid], agreed)
                level = asked.level.name
                answer = self._answer(asked, AnswerWriter(asked, syntax, self._ae_title), responses)
        except Exception as error:  # noqa: BLE001 - this is the edge: every error becomes a status
            answer, failed = status.find_status_for(error), error
        responses.end(answer)
        foreseen = failed is None or isinstance(failed, (NodeError, StorageError, SQLAlchemyError))
        tell = _log.info if failed is None else _log.warning
        tell(
            "search answered" if failed is None else "search refused",
            calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
            model=FIND_MODELS[uid].name if uid in FIND_MODELS else None,
            level=level,
            answers=responses.count,
            seconds=round(time.monotonic() - began, 4),
            status=f"0x{answer.code:04X}",
            reason=answer.comment or None,
            error=type(failed).__name__ if failed is not None else None,
            exc_info=None if foreseen else failed,
        )

    def _answer(self, asked: Asked, writer: AnswerWriter, responses: _Responses) -> status.Status:
        responses.begin(status.PENDING_UNSUPPORTED if asked.unsupported else status.PENDING)
        for found in search(self._database, asked.level, asked.query, responses.stopped):
            responses.add(writer.write(found))
        return status.CANCELED if responses.cancelled else status.SUCCESS


class _Responses:
    """The responses to one request, sent past pynetdicom, which would make some objects of each."""

    def __init__(self, event: evt.Event, message_id: int, sop_class_uid: str) -> None:
        self.count = 0
        self._association = event.assoc
        self._context = event.context.context_id
        self._message_id = message_id
        self._sop_class_uid = sop_class_uid
        self._longest = event.assoc.dimse.maximum_pdu_size
        self._command = b""
        self._held: list[bytes] = []
        self._size = 0
        self._flushed = time.monotonic()

    def begin(self, pending: status.Status) -> None:
        """Say what the answers are sent with."""
        command = find_response(self._message_id, self._sop_class_uid, pending.code, identifier=True)
        self._command = b"".join(data_pdus(self._context, command, self._longest))

    @property
    def cancelled(self) -> bool:
        """Whether the peer wants no more."""
        return self._message_id in self._association.dimse.cancel_req

    def stopped(self) -> bool:
        """Tell whether the peer wants no more, or is gone."""
        return self.cancelled or not self._association.is_established

    def add(self, identifier: bytes) -> None:
        """Send one answer, some of them together."""
        self.count += 1
        self._held.append(self._command)
        self._held += data_pdus(self._context, identifier, self._longest, dataset=True)
        self._size += len(identifier) + len(self._command)
        if self._size >= _TOGETHER or time.monotonic() - self._flushed > _MOST_SECONDS:
            self._flush()

    def end(self, answer: status.Status) -> None:
        """Send what is held and the last response."""
        command = find_response(self._message_id, self._sop_class_uid, answer.code, answer.comment)
        self._held += data_pdus(self._context, command, self._longest)
        self._flush()

    def _flush(self) -> None:
        if self._association.is_established:
            cast(Messages, self._association.dimse).send_pdus(b"".join(self._held))
        self._held, self._size, self._flushed = [], 0, time.monotonic()
