"""DICOM JSON written as the Native DICOM Model in XML (PS3.19 A.1), which says the same in other words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag

__all__ = ["to_xml"]

# XML 1.0 knows no other control characters, not even escaped.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def to_xml(dataset: Mapping[str, Any]) -> bytes:
    """Return a DICOM JSON object as an ``application/dicom+xml`` document, UTF-8."""
    body = "".join(_attributes(dataset))
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xml:space="preserve">{body}</NativeDicomModel>'
    return text.encode()


def _attributes(dataset: Mapping[str, Any]) -> Iterable[str]:
    for tag, element in sorted(dataset.items()):
        vr = element["vr"]
        keyword = keyword_for_tag(int(tag, 16))
        named = f" keyword={quoteattr(keyword)}" if keyword else ""
        yield f"<DicomAttribute tag={quoteattr(tag)} vr={quoteattr(vr)}{named}>"
        if "BulkDataURI" in element:
            yield f"<BulkData uri={quoteattr(element['BulkDataURI'])}/>"
        elif "InlineBinary" in element:
            yield f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
        for number, value in enumerate(element.get("Value", []), start=1):
            yield from _value(vr, number, value)
        yield "</DicomAttribute>"


def _value(vr: str, number: int, value: Any) -> Iterable[str]:
    if value is None:
        return
    if vr == "SQ":
        yield f'<Item number="{number}">'
        yield from _attributes(value)
        yield "</Item>"
    elif vr == "PN":
        yield f'<PersonName number="{number}">'
        for group in ("Alphabetic", "Ideographic", "Phonetic"):
            if group in value:
                parts = zip(_NAME_PARTS, str(value[group]).split("^"), strict=False)
                inside = "".join(f"<{name}>{_text(part)}</{name}>" for name, part in parts if part)
                yield f"<{group}>{inside}</{group}>"
        yield "</PersonName>"
    else:
        yield f'<Value number="{number}">{_text(str(value))}</Value>'


def _text(text: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", text))
