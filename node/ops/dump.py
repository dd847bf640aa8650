"""Shows what can be read of any bytes, however wrong they are, for the terminal of whoever has to look at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.filereader import data_element_generator, read_preamble
from pydicom.tag import BaseTag

__all__ = ["dump"]

_LINES = 400
_CHARACTERS = 120
_HEX_BYTES = 256
#: A value that is longer is told of by its length alone.
_LONGEST_VALUE = 1024
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"


def dump(path: Path, lines: int = _LINES) -> Iterator[str]:
    """Give a file as lines: its elements as far as they can be read, or its first bytes where none can.

    No line holds a control character: what was refused may have been made for somebody's terminal.
    """
    found = 0
    with path.open("rb") as file:
        for line in _elements(file):
            yield _printable(line)
            found += line.startswith("(")
            if found == lines:
                yield f"(only the first {lines} elements are shown)"
                return
        file.seek(0)
        head = file.read(_HEX_BYTES)
        # What has no prefix may be anything, whatever elements it seems to have.
        if not found or head[128:132] != b"DICM":
            yield from _hexadecimal(head)


def _elements(file: BinaryIO) -> Iterator[str]:
    syntax = ""
    try:
        # pydicom goes back to the start where there is no prefix.
        read_preamble(file, force=True)
        for element in data_element_generator(file, False, True, stop_when=_is_behind_meta, defer_size=_LONGEST_VALUE):
            line = _line(element)
            if element.tag == 0x00020010:
                syntax = line.rpartition(" ")[2].strip("'")
            yield line
        implicit = syntax == _IMPLICIT if syntax else not _looks_explicit(file)
        for element in data_element_generator(
            file, implicit, syntax != _BIG_ENDIAN, stop_when=_is_pixels, defer_size=_LONGEST_VALUE
        ):
            yield _line(element)
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything; what could be read has been given
        yield f"... cannot be read further ({type(error).__name__})"


def _line(element: RawDataElement | DataElement) -> str:
    if isinstance(element, RawDataElement):
        if element.value is None and element.length:
            return f"{element.tag} {element.VR or '??'}: {element.length} bytes"
        try:
            element = convert_raw_data_element(element)
        except Exception:  # noqa: BLE001 - a value that its VR does not allow is shown as it was sent
            return f"{element.tag} {element.VR or '??'}: {element.value!r}"
    if element.VR == "SQ":
        return f"{element.tag} {element.name} SQ: {len(element.value or ())} items"
    return f"{element.tag} {element.name} {element.VR}: {element.repval}"


def _is_behind_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag.group != 0x0002


def _is_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag.group >= 0x7FE0


def _looks_explicit(file: BinaryIO) -> bool:
    at = file.tell()
    head = file.read(6)
    file.seek(at)
    return head[4:6].isalpha() and head[4:6].isupper()


def _printable(line: str) -> str:
    line = "".join(one if one.isprintable() else "\N{MIDDLE DOT}" for one in line)
    return line if len(line) <= _CHARACTERS else line[: _CHARACTERS - 3] + "..."


def _hexadecimal(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        text = "".join(chr(one) if 0x20 <= one < 0x7F else "\N{MIDDLE DOT}" for one in part)
        yield f"{start:08x}  {part.hex(' '):<47}  {text}"
