"""Reading an ordinary object's elements from its first bytes; whatever is unusual is left to the general way.

A received object costs a receiver more in reading its header than in anything else: the general way, which copes with
anything, takes ten times as long. This says only what that would say: where a byte is out of the ordinary (another
encoding than little endian, an unknown VR, a length beyond what is there, a character outside ASCII), it gives up, for
the object or for the element. A test holds the two together on every file there is and on damaged ones.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from functools import cache, cached_property
from typing import Any

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

__all__ = ["BEGINNING", "Elements", "read_elements"]

#: So many of an object's first bytes are looked at.
BEGINNING = 64 * 1024

_PREAMBLE = b"DICM"
_EXPLICIT = struct.Struct("<HH2sH").unpack_from
_IMPLICIT = struct.Struct("<HHL").unpack_from
_LONG = struct.Struct("<L").unpack_from
_LONG_VRS = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"UT", b"UC", b"UR", b"SQ", b"SV", b"UV"})
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN"}
    | {b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xE000, 0xE00D, 0xE0DD
_DEEPEST = 8
#: Where reading stops (PS3.3 C.7.6.3, C.7.6.24): Float, Double Float and Pixel Data.
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_TRANSFER_SYNTAX = 0x00020010
_SPECIFIC_CHARACTER_SET = 0x00080005
#: What no ordinary value of those that the index asks for reaches.
_LONGEST = 10_240
_MANY = 16

_PLAIN = re.compile(rb"[ -~]*\0?").fullmatch
_INTEGER = re.compile(r"-?[0-9]{1,12}").fullmatch
_DECIMAL = re.compile(r"-?[0-9]{1,16}(\.[0-9]{0,16})?([eE][-+]?[0-9]{1,2})?").fullmatch
_vr_of = cache(dictionary_VR)
_CODES = frozenset({"AS", "CS", "DA", "TM", "UI"})
_TEXTS = frozenset({"LO", "SH"})
_SAID = _CODES | _TEXTS | {"IS", "DS", "US", "PN"}

#: An element's VR, and where its value begins and ends.
_Place = tuple[str, int, int]


class Elements:
    """Some elements of an object, read where they lie.

    Parameters
    ----------
    data
        The object's first bytes.
    transfer_syntax_uid, start
        From its File Meta Information: the syntax, and where the dataset begins.
    places
        Of the elements, by tag.
    """

    def __init__(self, data: bytes, transfer_syntax_uid: str, start: int, places: dict[int, _Place]) -> None:
        self.transfer_syntax_uid = transfer_syntax_uid
        self.start = start
        self._data = data
        self._places = places

    def __contains__(self, tag: int) -> bool:
        return tag in self._places

    def text(self, tag: int) -> str | None:
        """Return a value in plain ASCII without its padding, empty where absent; None where it is not so plain."""
        place = self._places.get(tag)
        if place is None:
            return ""
        value = self._data[place[1] : place[2]]
        if not _PLAIN(value) or b"\\" in value:
            return None
        return value.decode("ascii").rstrip("\0 ")

    def plain(self, tag: int) -> dict[str, Any] | None:
        """Return an element as DICOM JSON (PS3.18 F.2.2); None where only pydicom can say it, or it is not there."""
        place = self._places.get(tag)
        if place is None:
            return None
        vr, first, last = place
        if first == last:
            return {"vr": vr} if vr in _SAID else None
        value = self._data[first:last]
        if vr == "US":
            return {"vr": vr, "Value": [int.from_bytes(value, "little")]} if len(value) == 2 else None
        if not _PLAIN(value):
            return None
        pieces = value.decode("ascii").rstrip("\0 ").split("\\")
        found = _values(vr, pieces)
        return None if found is None else {"vr": vr, "Value": found}

    def is_empty(self, tag: int) -> bool:
        """Whether an element is absent or has no value."""
        place = self._places.get(tag)
        return place is None or place[1] == place[2]

    @cached_property
    def dataset(self) -> Dataset:
        """The same elements for pydicom to make values of."""
        implicit = self.transfer_syntax_uid == ImplicitVRLittleEndian
        raw: dict[BaseTag, DataElement | RawDataElement] = {}
        for number, (vr, first, last) in self._places.items():
            tag, value = BaseTag(number), self._data[first:last] or None
            known = None if implicit and vr != "SQ" else vr
            raw[tag] = RawDataElement(tag, known, last - first, value, first, implicit, True)
        dataset = Dataset(raw)
        dataset.set_original_encoding(implicit, True, dataset._character_set)
        return dataset


def read_elements(data: bytes, size: int, wanted: Collection[int]) -> Elements | None:
    """Find the wanted elements in the first bytes of a Part 10 file of so many bytes; None for the general way."""
    if data[128:132] != _PREAMBLE:
        return None
    try:
        syntax, start = _file_meta(data)
        if syntax in ("", ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
            return None
        places = _walk(data, start, size, wanted, explicit=syntax != ImplicitVRLittleEndian)
    except (struct.error, RecursionError):
        return None
    if places is None:
        return None
    elements = Elements(data, syntax, start, places)
    return elements if _is_charset_known(elements) else None


def _is_charset_known(elements: Elements) -> bool:
    charset = elements.plain(_SPECIFIC_CHARACTER_SET) if _SPECIFIC_CHARACTER_SET in elements else {}
    return charset is not None and all(one in python_encoding for one in charset.get("Value", ()))


def _values(vr: str, pieces: list[str]) -> list[Any] | None:
    if not all(pieces) or len(pieces) > _MANY:
        return None
    if vr in _CODES:
        return list(pieces)
    if vr in _TEXTS:
        pieces = [one.rstrip(" ") for one in pieces]
        return list(pieces) if all(pieces) else None
    if vr == "IS" and all(map(_INTEGER, pieces)):
        return [int(one) for one in pieces]
    if vr == "DS" and all(map(_DECIMAL, pieces)):
        return [float(one) for one in pieces]
    return None


def _file_meta(data: bytes) -> tuple[str, int]:
    """Return the Transfer Syntax UID, empty where it is not plain, and where group 0002 ends."""
    syntax = ""
    at = 132
    while data[at : at + 2] == b"\x02\x00":
        group, number, vr, length = _EXPLICIT(data, at)
        value = at + 8
        if vr in _LONG_VRS:
            (length,) = _LONG(data, value)
            value += 4
        elif vr not in _SHORT_VRS:
            return "", at
        if group << 16 | number == _TRANSFER_SYNTAX:
            text = data[value : value + length]
            syntax = text.decode("ascii").rstrip("\0 ") if _PLAIN(text) and vr == b"UI" else ""
        at = value + length
    return syntax, at


def _walk(data: bytes, at: int, size: int, wanted: Collection[int], *, explicit: bool) -> dict[int, _Place] | None:
    if not explicit and data[at + 4 : at + 6].isalpha():
        return None  # explicit all the same
    places: dict[int, _Place] = {}
    end = len(data)
    # Without a VR, what is of undefined length can be nothing but a sequence.
    vr = b"SQ"
    while at < end:
        if explicit:
            group, number, vr, length = _EXPLICIT(data, at)
        else:
            group, number, length = _IMPLICIT(data, at)
        at += 8
        if explicit and vr in _LONG_VRS:
            (length,) = _LONG(data, at)
            at += 4
        elif explicit and vr not in _SHORT_VRS:
            return None
        tag = group << 16 | number
        if group >= 0x7FE0:
            whole = length == _UNDEFINED or at + length <= size
            return places if tag in _PIXELS and whole else None
        value = at
        if length != _UNDEFINED:
            at += length
        elif vr != b"SQ" or not (at := _after_sequence(data, at, explicit=explicit)):
            return None
        if at > end or group < 0x0008:
            return None
        if tag in wanted:
            if at - value > _LONGEST or tag in places:
                return None
            places[tag] = (vr.decode("ascii") if explicit else _vr_of(tag), value, at)
    return places if at == size else None


def _after_sequence(data: bytes, at: int, *, explicit: bool, depth: int = 0) -> int:
    """Return where a sequence of undefined length ends (PS3.5 7.5); 0 where that is not clear."""
    while depth < _DEEPEST:
        group, number, length = _IMPLICIT(data, at)
        at += 8
        if group != 0xFFFE:
            return 0
        if number == _END_OF_SEQUENCE:
            return at
        if number != _ITEM:
            return 0
        if length != _UNDEFINED:
            at += length
        elif not (at := _after_item(data, at, explicit=explicit, depth=depth)):
            return 0
    return 0


def _after_item(data: bytes, at: int, *, explicit: bool, depth: int) -> int:
    """Return where an item of undefined length ends; 0 where that is not clear."""
    while True:
        group, number, length = _IMPLICIT(data, at)
        if group == 0xFFFE:
            return at + 8 if number == _END_OF_ITEM else 0
        vr = b"SQ"
        if explicit:
            _, _, vr, length = _EXPLICIT(data, at)
        at += 8
        if explicit and vr in _LONG_VRS:
            (length,) = _LONG(data, at)
            at += 4
        elif explicit and vr not in _SHORT_VRS:
            return 0
        if length != _UNDEFINED:
            at += length
        elif vr != b"SQ" or not (at := _after_sequence(data, at, explicit=explicit, depth=depth + 1)):
            return 0
