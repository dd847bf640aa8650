"""The requestor's side of a retrieve: what it is told of the sub-operations, and whether it still listens."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_GET, C_MOVE
from pynetdicom.dsutils import encode

from node.dimse import status
from node.dimse.commands import data_pdus, retrieve_pending
from node.dimse.requestor import ended
from node.dimse.status import Category, Status
from node.dimse.storing import Sent
from node.dimse.transport import QuickSocket

__all__ = ["Conversation", "Tally"]

#: A requestor that hears nothing for some half a minute gives up; so often it is told that work goes on.
_REASSURE_SECONDS = 5.0


@dataclass(slots=True)
class Tally:
    """The sub-operations of one retrieve, counted as PS3.4 C.4.2.1.5 to C.4.2.1.9 want it."""

    remaining: int
    completed: int = 0
    failed: int = 0
    warning: int = 0
    #: For Failed SOP Instance UID List (0008,0058).
    failed_uids: list[str] = field(default_factory=list)

    def count(self, sent: Sent) -> None:
        """Count what became of one object."""
        self.remaining -= 1
        if sent.category is Category.SUCCESS:
            self.completed += 1
        elif sent.category is Category.WARNING:
            self.warning += 1
        else:
            self.failed += 1
            self.failed_uids.append(sent.sop_instance_uid)

    def fail(self, sop_instance_uids: Iterable[str]) -> None:
        """Count objects that nothing became of."""
        for uid in sop_instance_uids:
            self.remaining -= 1
            self.failed += 1
            self.failed_uids.append(uid)

    @property
    def conclusion(self) -> Status:
        """The status that says what became of all of them."""
        if not self.failed and not self.warning:
            return status.SUCCESS
        return status.SOME_FAILED if self.completed or self.warning else status.UNABLE_TO_PERFORM


class Conversation:
    """One C-MOVE or C-GET request and its responses.

    Parameters
    ----------
    event
        pynetdicom's, with ``request`` and ``context``.
    """

    def __init__(self, event: evt.Event) -> None:
        self.association = event.assoc
        self.request = cast(C_MOVE | C_GET, event.request)
        self.sop_class_uid = str(event.context.abstract_syntax)
        self.transfer_syntax_uid = str(event.context.transfer_syntax)
        self._context_id = event.context.context_id
        self._told = time.monotonic()

    @property
    def calling(self) -> str:
        """The requestor's AE title."""
        return str(self.association.requestor.ae_title).strip()

    @property
    def relational(self) -> bool:
        """Whether relational retrieval was agreed (PS3.4 C.5.2.1, C.5.3.1: the first byte)."""
        return bool(self.association.acceptor.sop_class_extended.get(UID(self.sop_class_uid), b"")[:1] == b"\1")

    def cancelled(self) -> bool:
        """Whether C-CANCEL came for this request."""
        return self.request.MessageID in self.association.dimse.cancel_req

    def over(self) -> bool:
        """Whether nobody is there to be answered any more."""
        return ended(self.association)

    def pending(self, tally: Tally) -> None:
        """Tell how far it has come."""
        # One goes with every object: past pynetdicom, which makes some objects of each.
        command = retrieve_pending(
            self.request.MessageID or 0,
            self.sop_class_uid,
            move=isinstance(self.request, C_MOVE),
            remaining=tally.remaining,
            completed=tally.completed,
            failed=tally.failed,
            warning=tally.warning,
        )
        self._told = time.monotonic()
        if not self.over():
            for pdu in data_pdus(self._context_id, command, self.association.dimse.maximum_pdu_size):
                cast(QuickSocket, self.association.dul.socket).send(pdu)

    def reassure(self, tally: Tally) -> None:
        """Tell how far it has come, where nothing was told for a while."""
        if time.monotonic() - self._told > _REASSURE_SECONDS:
            self.pending(tally)

    def end(self, answer: Status, tally: Tally | None) -> None:
        """Give the final response: with the counts and what has failed, where there were sub-operations."""
        response = self._response(answer, tally)
        if answer.comment:
            response.ErrorComment = answer.comment
        if tally is not None and answer.code == status.CANCELED.code:
            response.NumberOfRemainingSuboperations = tally.remaining
        if tally is not None and answer.code != status.SUCCESS.code:
            response.Identifier = self._failed(tally.failed_uids)
        self._send(response)

    def _response(self, answer: Status, tally: Tally | None) -> Any:
        response: Any = type(self.request)()
        response.MessageIDBeingRespondedTo = self.request.MessageID
        response.AffectedSOPClassUID = self.request.AffectedSOPClassUID
        response.Status = answer.code
        if tally is not None:
            response.NumberOfCompletedSuboperations = tally.completed
            response.NumberOfFailedSuboperations = tally.failed
            response.NumberOfWarningSuboperations = tally.warning
        return response

    def _failed(self, uids: list[str]) -> BytesIO:
        syntax = UID(self.transfer_syntax_uid)
        dataset = Dataset()
        dataset.FailedSOPInstanceUIDList = uids
        with warnings.catch_warnings():
            # Of more than 64 kB, Explicit VR makes it UN, and says so (PS3.5 6.2.2).
            warnings.simplefilter("ignore")
            encoded = encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        return BytesIO(encoded or b"")

    def _send(self, response: Any) -> None:
        self.association.dimse.send_msg(response, self._context_id)
