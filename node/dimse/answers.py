"""The Identifiers of C-FIND answers, written straight from DICOM JSON: some thousand of them are sent in a second.

Text goes in the request's own character sets where they suffice, else in UTF-8 (ISO_IR 192).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.charset import encode_string, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.uid import UID
from pydicom.valuerep import format_number_as_ds

from node.dimse.searches import Asked, Wanted

__all__ = ["AnswerWriter"]

_UTF8 = "ISO_IR 192"
_CHARACTER_SET, _LEVEL, _RETRIEVE_AE_TITLE = "00080005", "00080052", "00080054"
_LEVEL_NAMES = ("PATIENT", "STUDY", "SERIES", "IMAGE")
_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
#: Their length has four bytes in explicit VR (PS3.5 7.1.2).
_LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_LONGEST_SHORT = 0xFFFE

_Encode = Callable[[str, str], bytes]


@dataclass(frozen=True, slots=True)
class _Field:
    """One attribute that every answer has: what its bytes begin with, and what they are where it has no value."""

    tag: str
    vr: str
    within: Wanted
    head: bytes
    #: What is the same in every answer, whole.
    constant: bytes | None
    empty: bytes


class AnswerWriter:
    """Writes the answers to one request.

    Parameters
    ----------
    asked
        The request.
    syntax
        The transfer syntax that was agreed on.
    ae_title
        Ours: whence what is found can be retrieved.
    """

    def __init__(self, asked: Asked, syntax: UID, ae_title: str) -> None:
        self._order = "<" if syntax.is_little_endian else ">"
        self._implicit = syntax.is_implicit_VR
        self._deflated = syntax.is_deflated
        self._short = struct.Struct(f"{self._order}H").pack
        self._long = struct.Struct(f"{self._order}L").pack
        constants = {_LEVEL: _LEVEL_NAMES[asked.level], _RETRIEVE_AE_TITLE: ae_title}
        self._fields = [
            self._field(tag, within, constants.get(tag))
            for tag, within in sorted({**asked.wanted, _LEVEL: {}, _RETRIEVE_AE_TITLE: {}}.items())
        ]
        own = _encoder(asked.character_sets)
        ways = [(asked.character_sets, own) if own else ((), _plain("ascii")), ((_UTF8,), _plain("utf-8"))]
        self._ways = [
            (self._element(_CHARACTER_SET, "CS", "\\".join(terms).encode("ascii")) if terms else b"", encode)
            for terms, encode in ways
        ]

    def write(self, answer: Mapping[str, Any]) -> bytes:
        """Return one answer's Identifier."""
        for terms, encode in self._ways[:-1]:
            try:
                return self._written(answer, terms, encode)
            except UnicodeEncodeError:
                continue
        return self._written(answer, *self._ways[-1])

    def _field(self, tag: str, within: Wanted, constant: str | None) -> _Field:
        vr = dictionary_VR(int(tag, 16)).split(" ")[0]
        return _Field(
            tag=tag,
            vr=vr,
            within=within,
            head=self._head(tag, vr),
            constant=None if constant is None else self._element(tag, vr, constant.encode("ascii")),
            empty=self._element(tag, vr, b""),
        )

    def _written(self, answer: Mapping[str, Any], terms: bytes, encode: _Encode) -> bytes:
        pieces = [terms]
        for field in self._fields:
            if field.constant is not None:
                pieces.append(field.constant)
                continue
            element: Mapping[str, Any] = answer.get(field.tag) or {}
            values = element.get("Value")
            if not values:
                pieces.append(field.empty)
            elif len(values) == 1 and type(values[0]) is str and element["vr"] == field.vr:
                # Most are so: one text.
                value = encode(field.vr, values[0])
                if len(value) & 1:
                    value += b"\0" if field.vr == "UI" else b" "
                pieces += (field.head, self._length(field.vr, value), value)
            else:
                pieces.append(self._element(field.tag, element["vr"], self._value(element, field.within, encode)))
        content = b"".join(pieces)
        if not self._deflated:
            return content
        deflating = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = deflating.compress(content) + deflating.flush()
        return content + b"\0" * (len(content) % 2)

    def _value(self, element: Mapping[str, Any], within: Wanted, encode: _Encode) -> bytes:
        values = element.get("Value")
        if not values:
            return b""
        vr = element["vr"]
        if vr == "SQ":
            return b"".join(self._item(one, within, encode) for one in values if isinstance(one, Mapping))
        if vr in _BINARY:
            code = self._order + _BINARY[vr]
            return b"".join(struct.pack(code, one) for one in values if one is not None)
        return encode(vr, "\\".join([_said(vr, one) for one in values]))

    def _item(self, item: Mapping[str, Any], within: Wanted, encode: _Encode) -> bytes:
        tags = sorted(item) if not within else sorted(within)
        content = b"".join(
            self._element(tag, item[tag]["vr"], self._value(item[tag], within.get(tag, {}), encode))
            if tag in item
            else self._element(tag, dictionary_VR(int(tag, 16)).split(" ")[0], b"")
            for tag in tags
        )
        return struct.pack(f"{self._order}HHL", 0xFFFE, 0xE000, len(content)) + content

    def _element(self, tag: str, vr: str, value: bytes) -> bytes:
        if len(value) % 2:
            value += b"\0" if vr == "UI" else b" "
        if len(value) > _LONGEST_SHORT and not self._implicit and vr not in _LONG:
            value = value[:_LONGEST_SHORT]
        return self._head(tag, vr) + self._length(vr, value) + value

    def _head(self, tag: str, vr: str) -> bytes:
        group, number = int(tag[:4], 16), int(tag[4:], 16)
        if self._implicit:
            return struct.pack(f"{self._order}HH", group, number)
        return struct.pack(f"{self._order}HH2s", group, number, vr.encode()) + (b"\0\0" if vr in _LONG else b"")

    def _length(self, vr: str, value: bytes) -> bytes:
        return self._long(len(value)) if self._implicit or vr in _LONG else self._short(len(value))


def _said(vr: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if vr == "PN":
        return "=".join(str(value.get(group) or "") for group in _GROUPS).rstrip("=")
    if isinstance(value, float) and vr == "DS":
        return str(format_number_as_ds(value))
    return str(value)


def _plain(codec: str) -> _Encode:
    return lambda _vr, text: text.encode(codec)


def _encoder(terms: tuple[str, ...]) -> _Encode | None:
    """Return what encodes text in these character sets; None where one of them is not known."""
    encodings = [python_encoding.get(one) or "" for one in terms]
    if not encodings or not all(encodings):
        return None
    if len(encodings) == 1 and not terms[0].startswith("ISO 2022"):
        codec = encodings[0]
        single = terms[0] == "ISO_IR 13"

        def plain(vr: str, text: str) -> bytes:
            content = text.encode(codec if vr in _TEXT else "ascii")
            if single and len(content) != len(text):
                # Python's codec is Shift JIS, of which ISO_IR 13 has the single bytes only.
                raise UnicodeEncodeError("ISO_IR 13", text, 0, len(text), "more than single bytes")
            return content

        return plain

    def extended(vr: str, text: str) -> bytes:
        if text.isascii() or vr not in _TEXT:
            return text.encode("ascii")
        for one in text:
            if not any(_can(one, codec) for codec in encodings):
                raise UnicodeEncodeError("ISO 2022", text, 0, len(text), "beyond the character sets")
        # Delimiters set the repertoire back to the first (PS3.5 6.1.2.5.3).
        delimiters = r"([\\^=])" if vr == "PN" else r"([\\\r\n\t\f])"
        parts = re.split(delimiters, text)
        return b"".join(one.encode("ascii") if one.isascii() else encode_string(one, encodings) for one in parts)

    return extended


def _can(character: str, codec: str) -> bool:
    try:
        character.encode(codec)
    except UnicodeEncodeError:
        return False
    return True
