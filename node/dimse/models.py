"""The information models of Query/Retrieve, and what of extended negotiation holds for them (PS3.4 C.5, C.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.uid import UID

from storage.keys import Level

__all__ = ["FIND_MODELS", "FIND_OPTIONS", "Model", "Negotiated", "negotiated"]


@dataclass(frozen=True, slots=True)
class Model:
    """An information model: its name and its levels, from the top."""

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiated:
    """What goes beyond the baseline of the FIND SOP Classes on an association (PS3.4 Table C.5-1)."""

    relational: bool = False
    combined_times: bool = False
    empty_values: bool = False


#: By the UID of the FIND SOP Class; Patient/Study Only is retired, and asked for still.
FIND_MODELS: Mapping[str, Model] = {
    "1.2.840.10008.5.1.4.1.2.1.1": Model("Patient Root", tuple(Level)),
    "1.2.840.10008.5.1.4.1.2.2.1": Model("Study Root", (Level.STUDY, Level.SERIES, Level.INSTANCE)),
    "1.2.840.10008.5.1.4.1.2.3.1": Model("Patient/Study Only", (Level.PATIENT, Level.STUDY)),
}

#: What an acceptor may say to extended negotiation (PS3.4 Table C.5-2), byte by byte: relational queries, combined
#: date-time matching, and, none of which there is here, fuzzy names, time zones and conversion of frames; then Empty
#: Value Matching and Multiple Value Matching.
FIND_OPTIONS = bytes((1, 1, 0, 0, 0, 1, 1))
_RELATIONAL, _COMBINED_TIMES, _EMPTY_VALUES = 0, 1, 5


def negotiated(proposals: Mapping[UID, bytes], sop_class_uid: str) -> Negotiated:
    """Return what was agreed on for a SOP Class, from all that the requestor proposed."""
    proposed = bytes(proposals.get(UID(sop_class_uid), b"")).ljust(len(FIND_OPTIONS), b"\0")

    def agreed(option: int) -> bool:
        return bool(proposed[option] & FIND_OPTIONS[option])

    return Negotiated(
        relational=agreed(_RELATIONAL), combined_times=agreed(_COMBINED_TIMES), empty_values=agreed(_EMPTY_VALUES)
    )
