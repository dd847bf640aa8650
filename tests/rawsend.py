"""Sends the dataset of any file as it is, by C-STORE: nothing is parsed, mended or encoded anew on the way.

What a request has to name (SOP Class, SOP Instance, Transfer Syntax) is taken from the file meta information, else
from the dataset, else guessed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context

from demo.peers import wait_until

__all__ = ["Answer", "Raw", "raw_of", "send_raw"]

#: A status, or why there was none: "no context", "aborted".
Answer = int | str

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CONTEXTS = 100


@dataclass(frozen=True, slots=True)
class Raw:
    """A file's dataset as bytes, and what a C-STORE request would say of it."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes


def raw_of(path: Path) -> Raw:
    """Take a file apart: preamble, prefix and group 0002 go, the rest stays byte for byte."""
    content = path.read_bytes()
    start = 132 if content[128:132] == b"DICM" else 0
    meta: dict[int, str] = {}
    while content[start : start + 2] == b"\x02\x00":
        element = struct.unpack_from("<H", content, start + 2)[0]
        long = content[start + 4 : start + 6] in (b"OB", b"OW", b"UN", b"SQ", b"UT", b"OF")
        length = (
            struct.unpack_from("<L", content, start + 8)[0] if long else struct.unpack_from("<H", content, start + 6)[0]
        )
        first = start + (12 if long else 8)
        meta[element] = content[first : first + length].decode("ascii", "replace").strip("\0 ")
        start = first + length
    syntax = meta.get(0x0010) or _guessed(content[start : start + 6])
    named = _named(path)
    return Raw(
        path,
        named.get("SOPClassUID") or meta.get(0x0002) or _SECONDARY_CAPTURE,
        named.get("SOPInstanceUID") or meta.get(0x0003) or generate_uid(),
        syntax,
        content[start:],
    )


def _guessed(head: bytes) -> str:
    if head[4:6].isalpha() and head[4:6].isupper():
        return ExplicitVRBigEndian if head[:1] == b"\0" else ExplicitVRLittleEndian
    return ImplicitVRLittleEndian


def _named(path: Path) -> dict[str, str]:
    try:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        return {one: str(dataset.get(one, "") or "") for one in ("SOPClassUID", "SOPInstanceUID")}
    except Exception:  # noqa: BLE001 - hostile bytes raise anything
        return {}


def send_raw(files: Sequence[Raw], port: int, called: str, calling: str = "RAW") -> dict[Path, Answer]:
    """Send each dataset; returns the status that answered it, or in a word why none did.

    Associations are shared; one that ends within an object is followed by another for the next.
    """
    found: dict[Path, Answer] = {}
    left = list(files)
    while left:
        pairs = list(dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in left))[:_CONTEXTS]
        now = [one for one in left if (one.sop_class_uid, one.transfer_syntax_uid) in pairs]
        association = AE(calling).associate("127.0.0.1", port, [build_context(*one) for one in pairs], ae_title=called)
        if not association.is_established:
            raise AssertionError(f"{called} on port {port} takes no association")
        try:
            _send_on(association, now, found)
        finally:
            association.release() if association.is_established else association.kill()
        left = [one for one in left if one.path not in found]
    return found


def _send_on(association: Any, files: Sequence[Raw], found: dict[Path, Answer]) -> None:
    accepted = {(one.abstract_syntax, one.transfer_syntax[0]): one.context_id for one in association.accepted_contexts}
    # pynetdicom's own thread would take the responses off the queue.
    association._reactor_checkpoint.clear()
    wait_until(lambda: association._is_paused, 10, "the requestor's thread to pause", interval=0.001)
    for number, one in enumerate(files, start=1):
        context = accepted.get((one.sop_class_uid, one.transfer_syntax_uid))
        if context is None:
            found[one.path] = "no context"
            continue
        request = C_STORE()
        request.MessageID = number % 65536
        request.Priority = 2
        request.AffectedSOPClassUID = one.sop_class_uid
        request.AffectedSOPInstanceUID = one.sop_instance_uid
        request.DataSet = BytesIO(one.data)
        association.dimse.send_msg(request, context)
        response = _response(association)
        if response is None:
            found[one.path] = "aborted"
            break
        found[one.path] = int(response.Status)
    association._reactor_checkpoint.set()


def _response(association: Any) -> Any:
    """Return the next response, None where the peer has ended the association instead."""

    def came() -> Any:
        ended = association.dul.peek_next_pdu() is not None or not association.dul.is_alive()
        if not association.dimse.msg_queue.empty():
            return association.dimse.msg_queue.get()
        return (None, None) if ended else None

    return wait_until(came, 60, "a response", interval=0.001)[1]
