"""Writing the head of a Part 10 file, so that a received dataset can follow it byte for byte."""

from __future__ import annotations

import struct

from node.dimse import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["file_head"]


def file_head(*, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae_title: str) -> bytes:
    """Return preamble, prefix and File Meta Information (PS3.10 Table 7.1-1).

    Parameters
    ----------
    sop_class_uid, sop_instance_uid
        As the C-STORE request names them.
    transfer_syntax_uid
        Of the presentation context that the dataset came in.
    source_ae_title
        The calling AE title (0002,0016); left out where it is empty.
    """
    elements = (
        struct.pack("<HH2sHLH", 0x0002, 0x0001, b"OB", 0, 2, 0x0100)  # File Meta Information Version 00\\01
        + _text(0x0002, b"UI", sop_class_uid)
        + _text(0x0003, b"UI", sop_instance_uid)
        + _text(0x0010, b"UI", transfer_syntax_uid)
        + _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID)
        + _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME)
        + (_text(0x0016, b"AE", source_ae_title) if source_ae_title else b"")
    )
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(elements)) + elements


def _text(element: int, vr: bytes, value: str) -> bytes:
    content = value.encode("ascii", "replace")
    if len(content) % 2:
        content += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, element, vr, len(content)) + content
