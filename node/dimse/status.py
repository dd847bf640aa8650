"""The one table that says which DIMSE status answers what: exceptions on the way out, categories on the way in.

Sources: PS3.4 Table B.2-1 (C-STORE response status values), Tables C.4-2 and C.4-3 (C-MOVE and C-GET), PS3.7 Annex C
(general status codes), PS3.7 C.4.2 for the Error Comment (0000,0902), which is LO and so at most 64 characters. No
comment quotes a dataset.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum

from pydicom.dataset import Dataset
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from node.errors import BadIdentifier, OperationRefused, TooManyMatches, UnknownDestination, UnreadableIdentifier
from storage.errors import AlreadyThere, IllegalTransition, InvalidQuery, Mismatch, NotDicom, Unknown

__all__ = [
    "CANCELED",
    "MISSING_DATASET",
    "NOT_AUTHORIZED",
    "PENDING",
    "PENDING_UNSUPPORTED",
    "SOME_FAILED",
    "SUCCESS",
    "TOO_BUSY",
    "UNABLE_TO_PERFORM",
    "WRONG_CONTEXT",
    "Category",
    "Status",
    "category",
    "find_status_for",
    "meaning",
    "operation_status_for",
    "retrieve_status_for",
    "status_for",
    "status_of",
]

_COMMENT_LENGTH = 64
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Status:
    """A status to answer with.

    ``code`` is (0000,0900), ``comment`` (0000,0902), already short enough, and ``error_id`` (0000,0903).
    """

    code: int
    comment: str = ""
    error_id: int | None = None

    @property
    def dataset(self) -> Dataset:
        """As pynetdicom takes it from a handler."""
        dataset = Dataset()
        dataset.Status = self.code
        if self.comment:
            dataset.ErrorComment = self.comment
        if self.error_id is not None:
            dataset.ErrorID = self.error_id
        return dataset


class Category(StrEnum):
    """What a status received from a peer means for whoever sent the object."""

    SUCCESS = "success"
    WARNING = "warning"
    #: The peer will say the same again.
    FAILURE = "failure"
    #: The peer cannot now, and may be able to later.
    BUSY = "busy"


SUCCESS = Status(0x0000)
#: Stored, and nothing will be analysed on it (PS3.4 Table B.2-1: Data Set does not match SOP Class, a warning).
STORED_WITH_DEFECT = 0xB007
WRONG_CONTEXT = Status(0x0122, "SOP Class is not the one of the presentation context")
NOT_AUTHORIZED = Status(0x0124, "the role of SCU was not agreed for this context")
MISSING_DATASET = Status(0xC000, "the request announced no dataset")

#: Of a search or a retrieve.
PENDING = Status(0xFF00)
CANCELED = Status(0xFE00)
#: Of a search: some of what was asked for there is not (PS3.4 Table C.4-1).
PENDING_UNSUPPORTED = Status(0xFF01)
#: Of a retrieve.
SOME_FAILED = Status(0xB000)
UNABLE_TO_PERFORM = Status(0xA702)
TOO_BUSY = Status(0xA702, "as many retrieves run as may; ask again later")

_OUT_OF_RESOURCES = Status(0xA700, "no room to store the object")
_DATABASE_BUSY = Status(0xA700, "the index cannot take the object now; send it again")
_PROCESSING_FAILURE = Status(0x0110, "the object could not be stored")

#: In this order: the first that fits answers.
_TABLE: tuple[tuple[type[BaseException], int], ...] = (
    (Mismatch, 0xA900),
    (NotDicom, 0xC000),
)

#: What answers a DIMSE-N request: status and Error ID. A710 is of PS3.4 Table F.7.2-2.
_OPERATIONS: tuple[tuple[type[BaseException], int, int | None], ...] = (
    (AlreadyThere, 0x0111, None),
    (Unknown, 0x0112, None),
    (IllegalTransition, 0x0110, 0xA710),
)


#: What answers a retrieve request that comes to no sub-operation.
_RETRIEVE_TABLE: tuple[tuple[type[BaseException], int], ...] = (
    (TooManyMatches, 0xA701),
    (UnknownDestination, 0xA801),
    (BadIdentifier, 0xA900),
    (UnreadableIdentifier, 0xC000),
)

#: What answers a search that comes to nothing (PS3.4 Table C.4-1).
_FIND_TABLE: tuple[tuple[type[BaseException], int], ...] = (
    (BadIdentifier, 0xA900),
    (UnreadableIdentifier, 0xC000),
    (InvalidQuery, 0xC002),
)
_SEARCH_BUSY = Status(0xA700, "the index cannot be searched now; ask again later")
_NOT_COUNTED = Status(0xA701, "the index cannot be asked now; ask again later")
_NOT_PROCESSED = Status(0xC001, "the request could not be processed")


def status_for(error: BaseException) -> Status:
    """Choose the status that answers an exception met while storing an object."""
    for kind, code in _TABLE:
        if isinstance(error, kind):
            return Status(code, _short(str(error)))
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _FULL):
        return _OUT_OF_RESOURCES
    if isinstance(error, OperationalError):
        # Locked, full, or not to be reached: what may pass, and the sender tries again.
        return _DATABASE_BUSY
    return _PROCESSING_FAILURE


def find_status_for(error: BaseException) -> Status:
    """Choose the status that answers an exception met while searching."""
    for kind, code in _FIND_TABLE:
        if isinstance(error, kind):
            return Status(code, _short(str(error)))
    return _SEARCH_BUSY if isinstance(error, (OperationalError, MemoryError)) else _NOT_PROCESSED


def retrieve_status_for(error: BaseException) -> Status:
    """Choose the status that answers an exception met before the first sub-operation of a C-MOVE or C-GET."""
    for kind, code in _RETRIEVE_TABLE:
        if isinstance(error, kind):
            return Status(code, _short(str(error)))
    if isinstance(error, (SQLAlchemyError, MemoryError, OSError)):
        return _NOT_COUNTED
    return _NOT_PROCESSED


def operation_status_for(error: BaseException) -> Status:
    """Choose the status that answers an exception met in an N-ACTION, N-CREATE, N-EVENT-REPORT or N-SET request."""
    if isinstance(error, OperationRefused):
        return Status(error.code, _short(str(error)))
    for kind, code, error_id in _OPERATIONS:
        if isinstance(error, kind):
            return Status(code, _short(str(error)), error_id)
    if isinstance(error, (MemoryError, OperationalError)) or (isinstance(error, OSError) and error.errno in _FULL):
        return Status(0x0213, "no room, or the database is busy; ask again")
    return Status(0x0110, "the request could not be processed")


def status_of(defect: str) -> Status:
    """Choose the status that answers an object that was stored: a warning where it is truncated, say."""
    return Status(STORED_WITH_DEFECT, _short(defect)) if defect else SUCCESS


def category(code: int) -> Category:
    """Sort a C-STORE response status by what it asks of the sender (PS3.4 Table B.2-1).

    0000 is success; B000 (coercion), B006 (elements discarded), B007 (does not match SOP Class) and 0001 are
    warnings: the peer has stored the object. A7xx (out of resources) and 0213 (resource limitation) may pass;
    everything else is a refusal.
    """
    if code == 0x0000:
        return Category.SUCCESS
    if code in (0x0001, 0x0107, 0x0116) or 0xB000 <= code <= 0xBFFF:
        return Category.WARNING
    if 0xA700 <= code <= 0xA7FF or code == 0x0213:
        return Category.BUSY
    return Category.FAILURE


def meaning(code: int) -> str:
    """Say a C-STORE response status in words, with its number."""
    known = {
        0x0000: "stored",
        0x0105: "no such attribute",
        0x0106: "invalid attribute value",
        0x0107: "attribute list error",
        0x0110: "processing failure",
        0x0111: "duplicate SOP Instance UID",
        0x0112: "no such SOP Instance",
        0x0115: "invalid argument value",
        0x0116: "attribute value out of range",
        0x0117: "invalid SOP Instance UID",
        0x0118: "no such SOP Class",
        0x0122: "SOP Class not supported",
        0x0124: "not authorized",
        0x0210: "duplicate invocation",
        0x0211: "unrecognized operation",
        0x0212: "mistyped argument",
        0x0213: "resource limitation",
        0xB000: "stored, with elements coerced",
        0xB006: "stored, with elements discarded",
        0xB007: "stored, though the dataset does not match its SOP Class",
    }
    text = known.get(code)
    if text is None:
        for first, last, words in (
            (0xA700, 0xA7FF, "out of resources"),
            (0xA900, 0xA9FF, "the dataset does not match its SOP Class"),
            (0xB000, 0xBFFF, "stored, with a warning"),
            (0xC000, 0xCFFF, "cannot understand"),
        ):
            if first <= code <= last:
                text = words
                break
        else:
            text = "a status that the standard does not define for C-STORE"
    return f"0x{code:04X}: {text}"


def _short(text: str) -> str:
    return text if len(text) <= _COMMENT_LENGTH else text[: _COMMENT_LENGTH - 3] + "..."
