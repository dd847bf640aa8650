"""The Identifier of a C-FIND request, read: what is asked, of which level, in which character sets.

Everything may be wrong in it. What is unlike its information model is a ``BadIdentifier`` (A900), what cannot be
read at all an ``UnreadableIdentifier`` (C000).
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from node.dimse.models import Model, Negotiated
from node.errors import BadIdentifier, UnreadableIdentifier
from storage.keys import KNOWN, Key, Level, Query
from storage.matching import has_wildcard, is_universal, value_list

__all__ = ["Asked", "Wanted", "read_search"]

#: What is told of a sequence's items: their attributes by tag, or nothing in particular, that is all of it.
Wanted = Mapping[str, "Wanted"]

_CHARACTER_SET, _LEVEL, _RETRIEVE_AE_TITLE, _TIMEZONE = "00080005", "00080052", "00080054", "00080201"
_LEVELS = {"PATIENT": Level.PATIENT, "STUDY": Level.STUDY, "SERIES": Level.SERIES, "IMAGE": Level.INSTANCE}
_UNIQUE = {
    Level.PATIENT: ("00100020", "Patient ID"),
    Level.STUDY: ("0020000D", "Study Instance UID"),
    Level.SERIES: ("0020000E", "Series Instance UID"),
}
_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_NUMBERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "US or SS"})
_LONGEST = 16 << 20
_DEEPEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks.

    ``wanted`` are the attributes to answer with; ``unsupported`` says that others were asked for that there are not.
    ``character_sets`` are the request's own defined terms (PS3.3 C.12.1.1.2).
    """

    level: Level
    query: Query
    wanted: Wanted
    unsupported: bool
    character_sets: tuple[str, ...]


def read_search(data: bytes, syntax: UID, model: Model, negotiated: Negotiated) -> Asked:
    """Read an Identifier.

    Raises
    ------
    BadIdentifier
        When it has no level of the model, or not one value of each unique key above its level.
    UnreadableIdentifier
        When its bytes are no dataset.
    """
    try:
        dataset = _decoded(data, syntax)
        character_sets = _character_sets(dataset)
        found = list(_elements(dataset, character_sets, 0))
    except (BadIdentifier, UnreadableIdentifier):
        raise
    except RecursionError:
        raise UnreadableIdentifier("the Identifier's sequences are nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything; all of it means the same here
        raise UnreadableIdentifier(f"the Identifier cannot be read ({type(error).__name__})") from None
    values = {tag: value for tag, value in found if isinstance(value, str)}
    level = _level(values.get(_LEVEL), model)
    known = KNOWN[level]
    keys: list[Key] = []
    wanted: dict[str, Wanted] = {}
    unsupported = False
    for tag, value in found:
        if tag in (_CHARACTER_SET, _LEVEL, _RETRIEVE_AE_TITLE) or tag.endswith("0000"):
            continue  # none of them is a key (PS3.4 C.2.2.2); group lengths are retired
        if tag not in known:
            unsupported = True
            continue
        if isinstance(value, str):
            wanted[tag] = {}
            # The offset tells how the request's times are meant; it is never matched.
            keys.append(Key(path=(tag,), value="" if tag == _TIMEZONE else value))
        else:
            wanted[tag] = {path[0]: {} for path, _ in value}
            keys += [Key(path=(tag, *path), value=one) for path, one in value]
    if not negotiated.relational:
        _check_unique_keys(level, model, values)
    return Asked(
        level=level,
        query=Query(
            keys=tuple(keys),
            include=frozenset(wanted),
            combined_times=negotiated.combined_times,
            empty_values=negotiated.empty_values,
        ),
        wanted=wanted,
        unsupported=unsupported,
        character_sets=character_sets,
    )


def _level(text: str | None, model: Model) -> Level:
    if not text:
        raise BadIdentifier("Query/Retrieve Level (0008,0052) is missing")
    level = _LEVELS.get(text)
    if level is None or level not in model.levels:
        raise BadIdentifier("Query/Retrieve Level is none of the information model")
    return level


def _check_unique_keys(level: Level, model: Model, values: Mapping[str, str]) -> None:
    """Hold a hierarchical search to its rules (PS3.4 C.4.1.3.1.1): above its level, one value of each unique key."""
    for above in model.levels:
        if above >= level:
            return
        tag, name = _UNIQUE[above]
        value = values.get(tag, "")
        if is_universal(value):
            raise BadIdentifier(f"{name} is missing above the level of the search")
        if len(value_list(value)) > 1 or (above is Level.PATIENT and has_wildcard(value)):
            raise BadIdentifier(f"{name} must have one value above the level")


def _decoded(data: bytes, syntax: UID) -> Dataset:
    if syntax.is_deflated:
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflating.decompress(data, _LONGEST)
        if inflating.unconsumed_tail:
            raise UnreadableIdentifier("the Identifier is too long")
    stream = io.BytesIO(data)
    dataset = read_dataset(stream, syntax.is_implicit_VR, syntax.is_little_endian)
    if stream.tell() < len(data):
        raise UnreadableIdentifier("the Identifier's bytes end within an element")
    return dataset


def _elements(
    dataset: Dataset, character_sets: tuple[str, ...], depth: int
) -> Iterator[tuple[str, str | list[tuple[tuple[str, ...], str]]]]:
    """Give each element's tag and text, or the keys within a sequence: their paths and texts."""
    if depth > _DEEPEST:
        raise UnreadableIdentifier("the Identifier's sequences are nested too deeply")
    for number in dataset.keys():  # noqa: SIM118 - a Dataset's iterator reads its elements
        tag = BaseTag(number)
        name = f"{tag:08X}"
        raw: Any = dataset.get_item(tag)
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            yield name, ""
            continue
        if vr == "SQ":
            yield name, _keys_within(dataset[tag].value or [], character_sets, depth)
            continue
        if raw.VR == "SQ" or (raw.value and not isinstance(raw.value, bytes)):
            raise UnreadableIdentifier("an attribute of the Identifier is sent as a sequence and is none")
        if isinstance(raw, RawDataElement) and len(raw.value or b"") < raw.length:
            raise UnreadableIdentifier("the Identifier's bytes end within an element")
        yield name, _text(vr, raw, dataset, character_sets)


def _keys_within(items: Any, character_sets: tuple[str, ...], depth: int) -> list[tuple[tuple[str, ...], str]]:
    """Return the keys in a sequence's item, of which a key has at most one (PS3.4 C.2.2.2.6)."""
    if len(items) > 1:
        raise BadIdentifier("a sequence in the Identifier has more than one item")
    keys: list[tuple[tuple[str, ...], str]] = []
    for item in items:
        for tag, value in _elements(item, character_sets, depth + 1):
            if isinstance(value, str):
                keys.append(((tag,), value))
            else:
                keys += [((tag, *path), one) for path, one in value]
    return keys


def _text(vr: str, raw: RawDataElement, dataset: Dataset, character_sets: tuple[str, ...]) -> str:
    value = raw.value or b""
    if vr in _NUMBERS and len(value):
        number = dataset[raw.tag].value
        return "\\".join(map(str, number)) if isinstance(number, (list, tuple)) else str(number)
    return decoded_text(vr, bytes(value), character_sets).strip("\0 ")


def decoded_text(vr: str, value: bytes, character_sets: tuple[str, ...]) -> str:
    """Decode a text; what cannot be decoded stands for anything, as PS3.4 C.2.2.2 suggests."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    encodings = [python_encoding.get(one) or "" for one in character_sets] if vr in _TEXT else []
    if vr in _TEXT and not encodings:
        # Nothing was said, though it had to be: what happens to be UTF-8 is UTF-8.
        encodings = ["utf8"]
    if encodings and all(encodings):
        try:
            if b"\x1b" in value:
                return decode_bytes(value, encodings, PN_DELIMS if vr == "PN" else TEXT_VR_DELIMS)
            return value.decode(encodings[0])
        except (LookupError, UnicodeError, UserWarning):
            pass
    return re.sub("[\ufffd\x1b]+", "*", value.decode("ascii", "replace"))


def _character_sets(dataset: Dataset) -> tuple[str, ...]:
    raw: Any = dataset.get_item(BaseTag(0x00080005)) if 0x00080005 in dataset else None
    if raw is None or not isinstance(raw.value, bytes) or not raw.value:
        return ()
    # An empty first value means the default repertoire (PS3.3 C.12.1.1.2).
    return tuple(one.strip("\0 ") for one in raw.value.decode("ascii", "replace").split("\\"))
