"""C-STORE's command sets as bytes: the request read and the response written without objects in between.

Every other message is pynetdicom's. A receiver spends most of its time on these two, and taking the general way
through data elements and PDU objects costs more than receiving the dataset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pynetdicom.dimse_primitives import C_STORE

__all__ = [
    "Originator",
    "StoreRequest",
    "data_pdu_head",
    "data_pdus",
    "find_response",
    "read_store_request",
    "retrieve_pending",
    "store_request",
    "store_response",
]

_ELEMENT = struct.Struct("<HHL")
_VALUE = struct.Struct("<H")
_PDV = struct.Struct(">BxLLBB")
#: PS3.7 Annex E.
_AFFECTED_SOP_CLASS_UID = 0x0002
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
_PRIORITY = 0x0700
_COMMAND_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID = 0x1000
#: Number of Remaining Sub-operations; completed, failed and warning ones follow it.
_REMAINING = 0x1020
_MOVE_ORIGINATOR_AE_TITLE = 0x1030
_MOVE_ORIGINATOR_MESSAGE_ID = 0x1031

_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_C_GET_RSP, _C_MOVE_RSP = 0x8010, 0x8021
_PENDING = 0xFF00
_C_FIND_RSP = 0x8020
_NO_DATA_SET = 0x0101
_DATA_SET = 0x0001
_NUMBERS = frozenset({_COMMAND_FIELD, _MESSAGE_ID, _COMMAND_DATA_SET_TYPE})
_UIDS = frozenset({_AFFECTED_SOP_CLASS_UID, _AFFECTED_SOP_INSTANCE_UID})
_P_DATA_TF = 0x04
_LAST_OF_COMMAND = 0x03
_COMMAND = 0x01
_LAST_OF_DATA_SET = 0x02
_OF_DATA_SET = 0x00
#: What stands before a fragment in a P-DATA-TF PDU of one item: its length, context and control header (PS3.8 9.3.5).
_PDV_HEAD = 6


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What a C-STORE request says of the dataset that follows (PS3.7 9.3.1.1)."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str

    @classmethod
    def of(cls, primitive: C_STORE) -> StoreRequest:
        """Take it from pynetdicom's object."""
        return cls(
            primitive.MessageID or 0,
            str(primitive.AffectedSOPClassUID or ""),
            str(primitive.AffectedSOPInstanceUID or ""),
        )

    def answered(self, code: int, comment: str) -> C_STORE:
        """Return pynetdicom's object of a response."""
        response = C_STORE()
        response.MessageIDBeingRespondedTo = self.message_id
        response.AffectedSOPClassUID = self.sop_class_uid
        response.AffectedSOPInstanceUID = self.sop_instance_uid
        response.Status = code
        if comment:
            response.ErrorComment = comment  # type: ignore[assignment]
        return response


@dataclass(frozen=True, slots=True)
class Originator:
    """Who asked for the object with C-MOVE, and in which of its messages (PS3.7 9.1.1.1.6, 9.1.1.1.7)."""

    ae_title: str
    message_id: int


def read_store_request(command: memoryview) -> StoreRequest | None:
    """Read a whole command set; None where it is no C-STORE request with a dataset, or in any way unusual."""
    values: dict[int, memoryview] = {}
    at, end = 0, len(command)
    while at + 8 <= end:
        group, element, length = _ELEMENT.unpack_from(command, at)
        at += 8
        if group or at + length > end:
            return None
        values[element] = command[at : at + length]
        at += length
    if at != end or not values.keys() >= _NUMBERS | _UIDS or any(len(values[one]) != 2 for one in _NUMBERS):
        return None
    (field,) = _VALUE.unpack(values[_COMMAND_FIELD])
    (data_set,) = _VALUE.unpack(values[_COMMAND_DATA_SET_TYPE])
    if field != _C_STORE_RQ or data_set == _NO_DATA_SET:
        return None
    try:
        sop_class, instance = (str(values[one], "ascii").rstrip("\0 ") for one in sorted(_UIDS))
    except UnicodeDecodeError:
        return None
    return StoreRequest(_VALUE.unpack(values[_MESSAGE_ID])[0], sop_class, instance)


def store_request(request: StoreRequest, priority: int, originator: Originator | None) -> bytes:
    """Write the command set of C-STORE-RQ with a dataset (PS3.7 Table 9.3-1)."""
    elements = (
        _text(_AFFECTED_SOP_CLASS_UID, request.sop_class_uid, b"\0")
        + _number(_COMMAND_FIELD, _C_STORE_RQ)
        + _number(_MESSAGE_ID, request.message_id)
        + _number(_PRIORITY, priority)
        + _number(_COMMAND_DATA_SET_TYPE, _DATA_SET)
        + _text(_AFFECTED_SOP_INSTANCE_UID, request.sop_instance_uid, b"\0")
    )
    if originator is not None:
        elements += _text(_MOVE_ORIGINATOR_AE_TITLE, originator.ae_title, b" ")
        elements += _number(_MOVE_ORIGINATOR_MESSAGE_ID, originator.message_id)
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(elements)) + elements


def store_response(request: StoreRequest, status: int, comment: str = "") -> bytes:
    """Write the command set of C-STORE-RSP (PS3.7 Table 9.3-2)."""
    elements = (
        _text(_AFFECTED_SOP_CLASS_UID, request.sop_class_uid, b"\0")
        + _number(_COMMAND_FIELD, _C_STORE_RSP)
        + _number(_MESSAGE_ID_BEING_RESPONDED_TO, request.message_id)
        + _number(_COMMAND_DATA_SET_TYPE, _NO_DATA_SET)
        + _number(_STATUS, status)
        + (_text(_ERROR_COMMENT, comment, b" ") if comment else b"")
        + _text(_AFFECTED_SOP_INSTANCE_UID, request.sop_instance_uid, b"\0")
    )
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(elements)) + elements


def find_response(
    message_id: int, sop_class_uid: str, status: int, comment: str = "", *, identifier: bool = False
) -> bytes:
    """Write the command set of C-FIND-RSP (PS3.7 Table 9.3-4); ``identifier`` says whether one follows."""
    elements = (
        _text(_AFFECTED_SOP_CLASS_UID, sop_class_uid, b"\0")
        + _number(_COMMAND_FIELD, _C_FIND_RSP)
        + _number(_MESSAGE_ID_BEING_RESPONDED_TO, message_id)
        + _number(_COMMAND_DATA_SET_TYPE, _DATA_SET if identifier else _NO_DATA_SET)
        + _number(_STATUS, status)
        + (_text(_ERROR_COMMENT, comment, b" ") if comment else b"")
    )
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(elements)) + elements


def retrieve_pending(
    message_id: int, sop_class_uid: str, *, move: bool, remaining: int, completed: int, failed: int, warning: int
) -> bytes:
    """Write the command set of a pending C-MOVE-RSP or C-GET-RSP (PS3.7 Tables 9.3-7, 9.3-10), with its counts."""
    elements = (
        _text(_AFFECTED_SOP_CLASS_UID, sop_class_uid, b"\0")
        + _number(_COMMAND_FIELD, _C_MOVE_RSP if move else _C_GET_RSP)
        + _number(_MESSAGE_ID_BEING_RESPONDED_TO, message_id)
        + _number(_COMMAND_DATA_SET_TYPE, _NO_DATA_SET)
        + _number(_STATUS, _PENDING)
        + b"".join(_number(_REMAINING + i, count) for i, count in enumerate((remaining, completed, failed, warning)))
    )
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(elements)) + elements


def data_pdus(context_id: int, content: bytes, maximum_length: int, *, dataset: bool = False) -> Iterator[bytes]:
    """Write a command set, or a dataset, as P-DATA-TF PDUs (PS3.8 9.3.5).

    None is longer than the peer takes; 0 means any length.
    """
    last, other = (_LAST_OF_DATA_SET, _OF_DATA_SET) if dataset else (_LAST_OF_COMMAND, _COMMAND)
    most = max(1, maximum_length - _PDV_HEAD) if maximum_length else len(content)
    for at in range(0, len(content), most):
        piece = content[at : at + most]
        control = last if at + most >= len(content) else other
        yield _PDV.pack(_P_DATA_TF, len(piece) + _PDV_HEAD, len(piece) + 2, context_id, control) + piece


def data_pdu_head(context_id: int, length: int, *, last: bool) -> bytes:
    """Write what stands before a fragment of a dataset, of so many bytes, in a PDU of its own."""
    return _PDV.pack(
        _P_DATA_TF, length + _PDV_HEAD, length + 2, context_id, _LAST_OF_DATA_SET if last else _OF_DATA_SET
    )


def _number(element: int, value: int) -> bytes:
    return _ELEMENT.pack(0, element, 2) + _VALUE.pack(value)


def _text(element: int, value: str, padding: bytes) -> bytes:
    content = value.encode("ascii", "replace")
    if len(content) % 2:
        content += padding
    return _ELEMENT.pack(0, element, len(content)) + content
