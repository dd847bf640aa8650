"""Reading the Identifier of a retrieve request: what is asked for, by the rules of its SOP Class.

PS3.4 C.4.2 and C.4.3; what no rule of them speaks of (further attributes, keys below the level) is passed over.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pynetdicom.dsutils import decode

from node.errors import BadIdentifier, UnreadableIdentifier
from storage.keys import Level
from storage.retrieval import Wanted

__all__ = ["ROOTS", "read_wanted"]

_PATIENT_ROOT = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE)
_STUDY_ROOT = _PATIENT_ROOT[1:]
_PATIENT_STUDY_ONLY = _PATIENT_ROOT[:2]

#: The levels of each SOP Class that retrieves: C-MOVE's, then C-GET's (PS3.4 Table C.6.1.3-1 and its siblings).
ROOTS: Mapping[str, tuple[Level, ...]] = {
    "1.2.840.10008.5.1.4.1.2.1.2": _PATIENT_ROOT,
    "1.2.840.10008.5.1.4.1.2.2.2": _STUDY_ROOT,
    "1.2.840.10008.5.1.4.1.2.3.2": _PATIENT_STUDY_ONLY,
    "1.2.840.10008.5.1.4.1.2.1.3": _PATIENT_ROOT,
    "1.2.840.10008.5.1.4.1.2.2.3": _STUDY_ROOT,
    "1.2.840.10008.5.1.4.1.2.3.3": _PATIENT_STUDY_ONLY,
}
_NAMES = {"PATIENT": Level.PATIENT, "STUDY": Level.STUDY, "SERIES": Level.SERIES, "IMAGE": Level.INSTANCE}
_UNIQUE_KEYS = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.INSTANCE: "SOPInstanceUID",
}
_LONGEST = 1 << 20
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class _Asked:
    level: str
    keys: Mapping[Level, tuple[str, ...]]


def read_wanted(identifier: bytes, transfer_syntax_uid: str, sop_class_uid: str, *, relational: bool) -> Wanted:
    """Read what is asked for.

    Parameters
    ----------
    identifier
        As it came.
    transfer_syntax_uid
        Of its presentation context.
    sop_class_uid
        One of :data:`ROOTS`.
    relational
        Whether relational retrieval was agreed (PS3.4 C.5.2.1): the keys of the levels above may then be missing or
        have several values.

    Raises
    ------
    UnreadableIdentifier
        When it is no dataset.
    BadIdentifier
        When it does not match the SOP Class.
    """
    asked = _read(identifier, UID(transfer_syntax_uid))
    levels = ROOTS[sop_class_uid]
    level = _NAMES.get(asked.level)
    if level is None or level not in levels:
        raise BadIdentifier("(0008,0052) is no level of this SOP Class")
    keys: dict[Level, tuple[str, ...]] = dict.fromkeys(Level, ())
    for one in levels:
        if one > level:
            # What is below the level says nothing about it.
            break
        values = asked.keys[one]
        if not values and (one is level or not relational):
            raise BadIdentifier(f"{_UNIQUE_KEYS[one]} has no value")
        single = one is Level.PATIENT or (one is not level and not relational)
        if single and len(values) > 1:
            raise BadIdentifier(f"{_UNIQUE_KEYS[one]} has several values")
        if one is not Level.PATIENT and not all(_UID.fullmatch(value) for value in values):
            raise BadIdentifier(f"{_UNIQUE_KEYS[one]} is no UID")
        keys[one] = values
    return Wanted(
        level=level,
        patient_ids=keys[Level.PATIENT],
        study_instance_uids=keys[Level.STUDY],
        series_instance_uids=keys[Level.SERIES],
        sop_instance_uids=keys[Level.INSTANCE],
    )


def _read(identifier: bytes, syntax: UID) -> _Asked:
    try:
        if syntax.is_deflated:
            # A few bytes can stand for many.
            identifier = zlib.decompressobj(-zlib.MAX_WBITS).decompress(identifier, _LONGEST)
        dataset = decode(BytesIO(identifier), syntax.is_implicit_VR, syntax.is_little_endian)
        keys = {level: _values(dataset, keyword) for level, keyword in _UNIQUE_KEYS.items()}
        return _Asked(level="\\".join(_values(dataset, "QueryRetrieveLevel")), keys=keys)
    except Exception:  # noqa: BLE001 - hostile bytes raise anything
        raise UnreadableIdentifier("the identifier cannot be read") from None


def _values(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    value = dataset.get(keyword)
    values = value if isinstance(value, (MultiValue, list)) else [value]
    texts = (str(one).strip(" \0") for one in values if one is not None)
    return tuple(one for one in texts if one)
