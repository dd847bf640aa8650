"""What a search asks: its level, its keys, and what is to be told of each answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from storage.attributes import INSTANCE_KEYWORDS, SERIES_KEYWORDS, STUDY_KEYWORDS
from storage.errors import InvalidQuery
from storage.matching import EMPTY, combined_matcher, is_universal, matcher

__all__ = ["COMPUTED", "KNOWN", "Key", "Level", "Query", "Test", "compiled", "key_vr", "parse_key", "parse_tag"]


class Level(IntEnum):
    """What is looked for: the levels of the Patient Root model (PS3.4 C.6.1.1); Study Root has the last three."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    INSTANCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One attribute that answers must match.

    Parameters
    ----------
    path
        Tags of eight hexadecimal digits; more than one leads into a sequence's items.
    value
        As PS3.4 C.2.2.2 writes it: a value, a list, a range, with wildcards; empty matches everything.
    """

    path: tuple[str, ...]
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to find, what to tell of it, and which stretch of the answers to give.

    Parameters
    ----------
    keys
        All of them must match; those that lead into one sequence must match in one and the same item.
    include
        The tags to tell; None tells everything that is indexed.
    limit, offset
        How many answers to give, and how many to pass over before them.
    combined_times
        A date and its time are one range, not two (combined date-time matching).
    empty_values
        Two quotation marks ask for what has no value (Empty Value Matching).
    """

    keys: tuple[Key, ...] = ()
    include: frozenset[str] | None = None
    limit: int | None = None
    offset: int = 0
    combined_times: bool = False
    empty_values: bool = False


def _tags(keywords: Iterable[str]) -> frozenset[str]:
    return frozenset(f"{tag:08X}" for tag in map(tag_for_keyword, keywords) if tag is not None)


_PATIENT_KEYWORDS = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
_PATIENT_COUNTS = _tags(
    ("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances")
)
_STUDY_SUMMARIES = _tags(
    ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "ModalitiesInStudy", "SOPClassesInStudy")
)
_SERIES_SUMMARIES = _tags(("NumberOfSeriesRelatedInstances",))
#: What every answer has: the character set is the reader's affair.
_ALWAYS = _tags(("InstanceAvailability",))

#: What is counted or listed when it is asked for, at each level.
COMPUTED: Mapping[Level, frozenset[str]] = {
    Level.PATIENT: _PATIENT_COUNTS,
    Level.STUDY: _PATIENT_COUNTS | _STUDY_SUMMARIES,
    Level.SERIES: _PATIENT_COUNTS | _STUDY_SUMMARIES | _SERIES_SUMMARIES,
    Level.INSTANCE: _PATIENT_COUNTS | _STUDY_SUMMARIES | _SERIES_SUMMARIES,
}

#: What may be asked for at each level: that level's attributes and those above it.
KNOWN: Mapping[Level, frozenset[str]] = {
    Level.PATIENT: _tags(_PATIENT_KEYWORDS) | COMPUTED[Level.PATIENT] | _ALWAYS,
    Level.STUDY: _tags(STUDY_KEYWORDS) | COMPUTED[Level.STUDY] | _ALWAYS,
    Level.SERIES: _tags((*STUDY_KEYWORDS, *SERIES_KEYWORDS)) | COMPUTED[Level.SERIES] | _ALWAYS,
    Level.INSTANCE: _tags((*STUDY_KEYWORDS, *SERIES_KEYWORDS, *INSTANCE_KEYWORDS, "AvailableTransferSyntaxUID"))
    | COMPUTED[Level.INSTANCE]
    | _ALWAYS,
}

#: Dates and the times that go with them, where both are read as one range.
_TIME_OF_DATE = {
    f"{tag_for_keyword(f'{name}Date'):08X}": f"{tag_for_keyword(f'{name}Time'):08X}"
    for name in ("Study", "Series", "Acquisition", "Content", "PerformedProcedureStepStart")
}


def parse_tag(name: str) -> str:
    """Return the tag, as eight hexadecimal digits, of a keyword or of a tag that is written so.

    Raises
    ------
    InvalidQuery
        When the data dictionary (PS3.6) does not know the name.
    """
    # Retired elements without a keyword all answer to the empty one.
    tag = tag_for_keyword(name) if name else None
    if tag is None and len(name) == 8:
        try:
            tag = int(name, 16)
            dictionary_VR(tag)
        except (ValueError, KeyError):
            tag = None
    if tag is None:
        raise InvalidQuery(f"{name[:64]!r} is neither a keyword nor a tag of the data dictionary")
    return f"{tag:08X}"


def parse_key(name: str, value: str) -> Key:
    """Make a key of a keyword, a tag, or a dotted path of them, and its value.

    Raises
    ------
    InvalidQuery
        When a part of the path is not in the data dictionary, or leads into what is no sequence.
    """
    if "\0" in value:
        raise InvalidQuery(f"the value for {name[:64]!r} holds a NUL character")
    path = tuple(parse_tag(part) for part in name.split("."))
    for tag in path[:-1]:
        if dictionary_VR(int(tag, 16)) != "SQ":
            raise InvalidQuery(f"{name[:64]!r} leads into {tag}, which is no sequence")
    if dictionary_VR(int(path[-1], 16)) == "SQ" and value:
        raise InvalidQuery(f"{name[:64]!r} is a sequence; ask for an attribute of its items")
    return Key(path=path, value=value)


def key_vr(key: Key) -> str:
    """Return the VR of the attribute that a key asks of; "US or SS" and the like are numbers either way."""
    return dictionary_VR(int(key.path[-1], 16)).split(" ")[0]


#: Tells of a dataset as DICOM JSON whether it, or an item in it, is as some keys want it.
Test = Callable[[Mapping[str, Any]], bool]


def compiled(keys: Iterable[Key], query: Query) -> list[Test]:
    """Read keys once, for many datasets; universal keys test nothing.

    Raises
    ------
    InvalidQuery
        When a key's value cannot be read.
    """
    return _compiled([(key.path, key) for key in keys if not is_universal(key.value)], query)


def _compiled(keys: list[tuple[tuple[str, ...], Key]], query: Query) -> list[Test]:
    within: dict[str, list[tuple[tuple[str, ...], Key]]] = {}
    plain: dict[str, list[Key]] = {}
    for path, key in keys:
        if len(path) > 1:
            within.setdefault(path[0], []).append((path[1:], key))
        else:
            plain.setdefault(path[0], []).append(key)
    tests: list[Test] = []
    if query.combined_times:
        for date, time in _TIME_OF_DATE.items():
            if _is_range_of_both(plain, date, time):
                tests.append(_combined(date, time, plain.pop(date)[0], plain.pop(time)[0]))
    for tag, those in plain.items():
        tests += [_plain(tag, key, query) for key in those]
    # One item has to be as all the keys want that lead into the sequence (PS3.4 C.2.2.2.6).
    tests += [_sequence(tag, _compiled(those, query)) for tag, those in within.items()]
    return tests


def _is_range_of_both(plain: Mapping[str, list[Key]], date: str, time: str) -> bool:
    pair = [*plain.get(date, []), *plain.get(time, [])]
    return date in plain and time in plain and len(pair) == 2 and all(one.value.strip() != EMPTY for one in pair)


def _plain(tag: str, key: Key, query: Query) -> Test:
    matches = matcher(key_vr(key), key.value, empty_values=query.empty_values)
    return lambda dataset: matches(_values(dataset, tag))


def _combined(date: str, time: str, dates: Key, times: Key) -> Test:
    matches = combined_matcher(dates.value, times.value)

    def test(dataset: Mapping[str, Any]) -> bool:
        of_date, of_time = _values(dataset, date), _values(dataset, time)
        return bool(of_date) and matches(str(of_date[0] or ""), str(of_time[0] or "") if of_time else "")

    return test


def _sequence(tag: str, tests: list[Test]) -> Test:
    def test(dataset: Mapping[str, Any]) -> bool:
        return any(isinstance(item, Mapping) and all(one(item) for one in tests) for item in _values(dataset, tag))

    return test


def _values(dataset: Mapping[str, Any], tag: str) -> list[Any]:
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return values if isinstance(values, list) else []
