"""Finding the few elements that are wanted in a dataset, without building what else is in it.

A sequence that is passed over costs neither memory nor recursion, however many items it has and however deeply they
are nested: eight bytes a time would otherwise become a kilobyte. What is wanted is held as it was encoded, up to a
limit, so that reading it later is bounded as well.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from storage.errors import NotDicom, Truncated

__all__ = ["scan"]

_ITEM, _ITEM_ENDS, _SEQUENCE_ENDS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
#: Extended Offset Table Lengths, Extended Offset Table and Pixel Data: here the pixels begin.
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
#: VRs whose length has four bytes (PS3.5 Table 7.1-1).
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_MAXIMUM_ELEMENTS = 1 << 22
#: Outside sequences: a dictionary has some five thousand, and padding with zeros reads as empty ones.
_MAXIMUM_AT_THE_TOP = 1 << 17
_MAXIMUM_DEPTH = 1_000
#: Of a wanted value: what is longer can be no name, date or code.
_MAXIMUM_VALUE = 1 << 17

#: A frame of what is open: None for a sequence, else whether the item is implicit; 2 where that is to be seen yet.
_UNSEEN = 2


def scan(
    file: BinaryIO, wanted: frozenset[int], *, implicit: bool, big_endian: bool, size: int | None
) -> tuple[dict[BaseTag, RawDataElement], int, str]:
    """Go through a dataset up to its pixel data.

    Parameters
    ----------
    file
        At the dataset's first byte.
    wanted
        Tags of the elements to return. One that is longer than 128 KB is left out.
    implicit, big_endian
        How the transfer syntax says that it is encoded. Where the first element shows another VR encoding, that counts.
    size
        Where the file ends; None where that is not known and reading beyond raises by itself.

    Returns
    -------
    dict, int, str
        The elements, not converted; where the first byte lies that was not looked at; and where the bytes end within
        an element, that in words: what stands before it is returned all the same.

    Raises
    ------
    NotDicom
        When sequences are nested more than 1,000 deep, or when there are more than 4 million elements,
        131,072 of them outside sequences.
    """
    scanner = _Scan(file, big_endian=big_endian, size=size)
    found: dict[BaseTag, RawDataElement] = {}
    try:
        scanner.top(found, wanted, implicit=implicit)
    except Truncated as error:
        return found, scanner.at, str(error)
    return found, scanner.at, ""


class _Scan:
    def __init__(self, file: BinaryIO, *, big_endian: bool, size: int | None) -> None:
        self._file = file
        self._size = size
        self._little_endian = not big_endian
        order = ">" if big_endian else "<"
        self._tag_length = struct.Struct(order + "HHL").unpack
        self._tag_vr_length = struct.Struct(order + "HH2sH").unpack
        self._length = struct.Struct(order + "L").unpack
        self.at = file.tell()
        self._left = _MAXIMUM_ELEMENTS

    def top(self, found: dict[BaseTag, RawDataElement], wanted: frozenset[int], *, implicit: bool) -> None:
        first, passed = True, 0
        while len(head := self._read(8)) == 8:
            if first:
                implicit, first = not _is_vr(head[4:6]), False
            start = self.at - 8
            passed += 1
            if passed > _MAXIMUM_AT_THE_TOP:
                raise NotDicom(f"the dataset has more than {_MAXIMUM_AT_THE_TOP} elements outside sequences")
            tag, vr, length = self._element(head, implicit=implicit)
            if tag in _PIXELS:
                self._seek(start)
                break
            if tag == _ITEM_ENDS:
                break
            if length == _UNDEFINED:
                value_at = self.at
                self._pass_over()
                if tag in wanted and _is_sequence(tag, vr):
                    self._keep(found, tag, "SQ", value_at, self.at - value_at, implicit=implicit)
            elif tag in wanted:
                self._keep(found, tag, vr, self.at, length, implicit=implicit)
            else:
                self._seek(self.at + length)
        # Zeros are padding.
        if len(head) < 8 and head.strip(b"\0"):
            raise Truncated("truncated: the bytes end within an element")

    def _element(self, head: bytes, *, implicit: bool) -> tuple[int, str | None, int]:
        """Return tag, VR and length of the element of this head; the file stands at its value afterwards."""
        self._left -= 1
        if self._left < 0:
            raise NotDicom(f"the dataset has more than {_MAXIMUM_ELEMENTS} elements")
        if not implicit:
            group, element, vr, length = self._tag_vr_length(head)
            if vr in _LONG:
                length = self._length(self._read_all(4))[0]
                return group << 16 | element, vr.decode(), length
            if _is_vr(vr):
                return group << 16 | element, vr.decode(), length
            # Some writers change to implicit VR within an explicit dataset.
        group, element, length = self._tag_length(head)
        return group << 16 | element, None, length

    def _keep(
        self, found: dict[BaseTag, RawDataElement], tag: int, vr: str | None, at: int, length: int, *, implicit: bool
    ) -> None:
        if length <= _MAXIMUM_VALUE:
            self._seek(at)
            value = self._read_all(length) or None
            found[BaseTag(tag)] = RawDataElement(BaseTag(tag), vr, length, value, at, implicit, self._little_endian)
        self._seek(at + length)

    def _pass_over(self) -> None:
        """Pass over a value of undefined length: items, or the fragments of an encapsulated value (PS3.5 7.5, A.4)."""
        opened: list[int | None] = [None]
        while opened:
            if len(opened) > _MAXIMUM_DEPTH:
                raise NotDicom("sequences are nested too deeply to be read")
            head = self._read_all(8)
            implicit = opened[-1]
            if implicit is None:
                tag, length = self._item(head)
                if tag == _SEQUENCE_ENDS:
                    opened.pop()
                elif length == _UNDEFINED:
                    opened.append(_UNSEEN)
                else:
                    self._seek(self.at + length)
                continue
            if implicit == _UNSEEN:
                implicit = opened[-1] = not _is_vr(head[4:6])
            tag, _, length = self._element(head, implicit=bool(implicit))
            if tag == _ITEM_ENDS:
                opened.pop()
            elif length == _UNDEFINED:
                opened.append(None)
            else:
                self._seek(self.at + length)

    def _item(self, head: bytes) -> tuple[int, int]:
        tag, _, length = self._element(head, implicit=True)
        return tag, length

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        self.at += len(data)
        return data

    def _read_all(self, count: int) -> bytes:
        data = self._read(count)
        if len(data) < count:
            raise Truncated("truncated: the bytes end within an element")
        return data

    def _seek(self, target: int) -> None:
        if self._size is not None and target > self._size:
            raise Truncated("truncated: an element is longer than what is left")
        if target != self.at:
            self._file.seek(target)
            self.at = target


def _is_vr(two: bytes) -> bool:
    return 0x41 <= two[0] <= 0x5A and 0x41 <= two[1] <= 0x5A


def _is_sequence(tag: int, vr: str | None) -> bool:
    """Whether a value of undefined length is a sequence; UN stands for one (PS3.5 6.2.2)."""
    if vr not in (None, "UN"):
        return vr == "SQ"
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
