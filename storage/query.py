"""Finding studies, series and instances by their attributes: what C-FIND and QIDO-RS both stand on.

SQL narrows by the columns there are; every key is then checked against the indexed attributes (PS3.4 C.2.2.2),
row by row as they are read, so that a limit ends the reading. Answers are DICOM JSON (PS3.18 Annex F).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from sqlalchemy import ColumnElement, Connection, Select, false, func, select

from storage import schema
from storage.errors import InvalidQuery
from storage.headers import INSTANCE_KEYWORDS, SERIES_KEYWORDS, STUDY_KEYWORDS
from storage.matching import folded, is_universal, match_values, value_list

__all__ = ["Key", "Level", "Query", "find", "parse_key", "parse_tag"]

_BATCH = 400
_STARS = 3


class Level(IntEnum):
    """What is looked for: PS3.4 C.6.2.1, the Study Root model."""

    STUDY = 0
    SERIES = 1
    INSTANCE = 2


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

    ``include`` holds the tags to tell; None tells everything that is indexed.
    """

    keys: tuple[Key, ...] = ()
    include: frozenset[str] | None = None
    limit: int | None = None
    offset: int = 0


def _tags(keywords: Iterable[str]) -> frozenset[str]:
    return frozenset(f"{tag:08X}" for tag in map(tag_for_keyword, keywords) if tag is not None)


_STUDY_UID, _SERIES_UID, _SOP_UID, _SOP_CLASS = "0020000D", "0020000E", "00080018", "00080016"
_PATIENT_NAME = "00100010"
_CHARACTER_SET = "00080005"
_MODALITIES, _CLASSES = "00080061", "00080062"
_SERIES_COUNT, _INSTANCE_COUNT, _SERIES_INSTANCE_COUNT = "00201206", "00201208", "00201209"
_AVAILABILITY, _SYNTAXES = "00080056", "00083002"

#: What may be asked for at each level: that level's attributes and those above it.
_KNOWN = {
    Level.STUDY: _tags(STUDY_KEYWORDS) | {_MODALITIES, _CLASSES},
    Level.SERIES: _tags((*STUDY_KEYWORDS, *SERIES_KEYWORDS)) | {_MODALITIES, _CLASSES},
    Level.INSTANCE: _tags((*STUDY_KEYWORDS, *SERIES_KEYWORDS, *INSTANCE_KEYWORDS)) | {_MODALITIES, _CLASSES},
}

_COLUMNS: Mapping[str, Any] = {
    _STUDY_UID: schema.study.c.study_instance_uid,
    _PATIENT_NAME: schema.study.c.patient_name,
    "00100020": schema.study.c.patient_id,
    "00100030": schema.study.c.patient_birth_date,
    "00100040": schema.study.c.patient_sex,
    "00080050": schema.study.c.accession_number,
    "00080020": schema.study.c.study_date,
    "00081030": schema.study.c.study_description,
    _SERIES_UID: schema.series.c.series_instance_uid,
    "00080060": schema.series.c.modality,
    "0008103E": schema.series.c.series_description,
    _SOP_UID: schema.instance.c.sop_instance_uid,
    _SOP_CLASS: schema.instance.c.sop_class_uid,
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


def find(connection: Connection, level: Level, query: Query) -> list[dict[str, Any]]:
    """Return what matches every key, as DICOM JSON, in the order in which it came.

    Sources and results, and objects in conflict, are found alike.

    Raises
    ------
    InvalidQuery
        When a key is not indexed at this level, or its value cannot be read.
    """
    conditions: list[ColumnElement[bool]] = []
    checks: list[Key] = []
    for key in query.keys:
        if key.path[0] not in _KNOWN[level]:
            raise InvalidQuery(f"{'.'.join(key.path)} cannot be searched by at {level.name.lower()} level")
        if is_universal(key.value):
            continue
        condition, exact = _narrowed(connection, key)
        if condition is not None:
            conditions.append(condition)
        if not exact:
            match_values(_vr(key), [], key.value)  # a value that cannot be read is refused, rows or no rows
            checks.append(key)
    # Attributes are read for every row only where a key needs them: they are most of a row's bytes.
    statement = _base(level, deep=any(_column(key) is None for key in checks)).where(*conditions)
    if not checks:
        statement = statement.offset(query.offset)
        # SQLite has no OFFSET without a LIMIT.
        statement = statement.limit(query.limit if query.limit is not None else 2**62)
    rows = connection.execution_options(yield_per=_BATCH).execute(statement)
    matching: Iterator[Any] = (row for row in rows if _matches(row, level, checks))
    if checks:
        stop = None if query.limit is None else query.offset + query.limit
        matching = islice(matching, query.offset, stop)
    found = list(matching)
    rows.close()
    return list(_told(connection, level, found, query.include))


def _base(level: Level, *, deep: bool) -> Select[Any]:
    study, series, instance = schema.study, schema.series, schema.instance
    columns: list[Any] = [study.c.id.label("study_id"), *(one for one in _COLUMNS.values() if one.table is study)]
    columns += [study.c.attributes.label("study")] if deep else []
    if level is Level.STUDY:
        return select(*columns).order_by(study.c.id)
    columns += [series.c.id.label("series_id"), *(one for one in _COLUMNS.values() if one.table is series)]
    columns += [series.c.attributes.label("series")] if deep else []
    if level is Level.SERIES:
        return select(*columns).select_from(series.join(study)).order_by(series.c.id)
    columns += [instance.c.id.label("instance_id"), instance.c.transfer_syntax_uid]
    columns += [one for one in _COLUMNS.values() if one.table is instance]
    columns += [instance.c.attributes.label("instance")] if deep else []
    joined = instance.join(series, instance.c.series_id == series.c.id).join(study, instance.c.study_id == study.c.id)
    return select(*columns).select_from(joined).order_by(instance.c.id)


def _column(key: Key) -> Any:
    """Return the column that holds a key's attribute, if one does."""
    return _COLUMNS.get(key.path[0]) if len(key.path) == 1 else None


def _vr(key: Key) -> str:
    # "US or SS" and the like are numbers either way.
    return dictionary_VR(int(key.path[-1], 16)).split(" ")[0]


def _narrowed(connection: Connection, key: Key) -> tuple[ColumnElement[bool] | None, bool]:
    """Say a key in SQL as far as it can be, and whether that says all of it."""
    tag, value = key.path[0], key.value
    if tag in (_MODALITIES, _CLASSES):
        of = schema.series if tag == _MODALITIES else schema.instance
        held = schema.series.c.modality if tag == _MODALITIES else schema.instance.c.sop_class_uid
        wanted = value_list(value)
        if _has_wildcard(value):
            # There are few different ones; which of them match is not left to two databases' ideas of LIKE.
            wanted = [
                one
                for one in connection.execute(select(held).distinct()).scalars()
                if match_values(_vr(key), [one], value)
            ]
        return schema.study.c.id.in_(select(of.c.study_id).where(held.in_(wanted))), True
    if tag == _PATIENT_NAME:
        # Through the index, which is much smaller than the rows.
        name = schema.study.c.patient_name
        plain = func.lower(name).like(_name_pattern(value), escape="\\")
        return schema.study.c.id.in_(select(schema.study.c.id).where(plain | _beyond_ascii(connection, name))), False
    column = _COLUMNS.get(tag)
    if len(key.path) > 1 or column is None:
        return None, False
    vr = _vr(key)
    if vr == "UI":
        return column.in_(value_list(value)), True
    if vr == "DA":
        first, hyphen, last = value.partition("-")
        if not hyphen:
            return column == value.strip(), False
        bounds = [column >= first.strip()] if first.strip() else []
        bounds += [column <= last.strip()] if last.strip() else []
        return (bounds[0] if len(bounds) == 1 else bounds[0] & bounds[1]) if bounds else false(), False
    if vr == "CS":
        return _any_of(column, value), False
    if _has_wildcard(value):
        return column.like(_pattern(value), escape="\\"), False
    return column == value.strip(), False


def _any_of(column: Any, value: str) -> ColumnElement[bool]:
    parts = value_list(value)
    condition: ColumnElement[bool] = column.in_([one for one in parts if not _has_wildcard(one)])
    for one in parts:
        if _has_wildcard(one):
            condition = condition | column.like(_pattern(one), escape="\\")
    return condition


def _has_wildcard(value: str) -> bool:
    return "*" in value or "?" in value


def _beyond_ascii(connection: Connection, column: Any) -> ColumnElement[bool]:
    """Whether a text has other than ASCII characters: what those stand for (full width, ligatures), SQL cannot tell."""
    if connection.dialect.name == "sqlite":
        beyond: ColumnElement[bool] = column.op("GLOB", is_comparison=True)("*[^\x01-\x7f]*")
        return beyond
    return func.octet_length(column) != func.char_length(column)


def _pattern(value: str) -> str:
    if value.count("*") > _STARS:
        # LIKE backtracks: many stars could keep it busy for hours. The longest piece narrows well enough.
        value = f"*{max(re.split(r'[*?]', value), key=len)}*"
    escaped = value.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def _name_pattern(value: str) -> str:
    """Make a pattern that no matching name of ASCII characters escapes; groups may end in further delimiters."""
    kept = "".join(one if one.isascii() and one != "=" else "*" for one in folded(value).strip(" ^="))
    return f"%{_pattern(kept)}%"


def _matches(row: Any, level: Level, checks: list[Key]) -> bool:
    for key in checks:
        column = _column(key)
        if column is not None:
            text = getattr(row, column.name)
            # What has several values stands joined by backslashes.
            if not match_values(_vr(key), text.split("\\") if text else [], key.value):
                return False
            continue
        elements: list[Mapping[str, Any]] = [
            getattr(row, name) for name in ("study", "series", "instance")[: level + 1]
        ]
        # The lowest level's own word stands over that of its parents.
        holder = next((one for one in reversed(elements) if key.path[0] in one), None)
        if holder is None or not match_values(_vr(key), list(_values(holder, key.path)), key.value):
            return False
    return True


def _values(dataset: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Any]:
    element = dataset.get(path[0])
    if not isinstance(element, Mapping):
        return
    values = element.get("Value", [])
    if len(path) == 1:
        yield from values
        return
    for item in values:
        if isinstance(item, Mapping):
            yield from _values(item, path[1:])


def _told(
    connection: Connection, level: Level, rows: list[Any], include: frozenset[str] | None
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        summaries = _study_summaries(connection, {row.study_id for row in batch}, include, level)
        counts = _series_counts(connection, {row.series_id for row in batch}) if level is Level.SERIES else {}
        attributes = _attributes(connection, level, batch)
        for row in batch:
            told = _merged(row, level, attributes)
            told.update(summaries.get(row.study_id, {}))
            if level is Level.SERIES:
                told[_SERIES_INSTANCE_COUNT] = {"vr": "IS", "Value": [counts.get(row.series_id, 0)]}
            if include is not None:
                told = {tag: element for tag, element in told.items() if tag in include}
            yield dict(sorted(told.items()))


def _attributes(connection: Connection, level: Level, batch: list[Any]) -> dict[str, dict[int, Mapping[str, Any]]]:
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for table in (schema.study, schema.series, schema.instance)[: level + 1]:
        ids = {getattr(row, f"{table.name}_id") for row in batch}
        rows = connection.execute(select(table.c.id, table.c.attributes).where(table.c.id.in_(ids)))
        found[table.name] = {row.id: row.attributes for row in rows}
    return found


def _merged(row: Any, level: Level, attributes: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, of_id in attributes.items():
        # Between two reads an object may have been deleted: then only its UIDs are told.
        told.update(of_id.get(getattr(row, f"{name}_id"), {}))
    told[_STUDY_UID] = {"vr": "UI", "Value": [row.study_instance_uid]}
    if level >= Level.SERIES:
        told[_SERIES_UID] = {"vr": "UI", "Value": [row.series_instance_uid]}
    if level is Level.INSTANCE:
        told[_SOP_UID] = {"vr": "UI", "Value": [row.sop_instance_uid]}
        told[_SOP_CLASS] = {"vr": "UI", "Value": [row.sop_class_uid]}
        told[_SYNTAXES] = {"vr": "UI", "Value": [row.transfer_syntax_uid]}
    # DICOM JSON is UTF-8, whatever the object was (PS3.18 F.2.2).
    told[_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    told[_AVAILABILITY] = {"vr": "CS", "Value": ["ONLINE"]}
    return told


def _study_summaries(
    connection: Connection, study_ids: set[int], include: frozenset[str] | None, level: Level
) -> dict[int, dict[str, Any]]:
    """Count and list what the studies hold, as far as it is wanted: by default for studies only."""
    wanted = {_MODALITIES, _SERIES_COUNT, _INSTANCE_COUNT, _CLASSES}
    wanted = (wanted if level is Level.STUDY else set()) if include is None else wanted & include
    summaries: dict[int, dict[str, Any]] = {one: {} for one in study_ids}
    i, s = schema.instance.c, schema.series.c
    if wanted & {_MODALITIES, _SERIES_COUNT}:
        modalities: dict[int, set[str]] = {}
        series_counts: dict[int, int] = {}
        rows = connection.execute(
            select(s.study_id, s.modality, func.count())
            .where(s.study_id.in_(study_ids))
            .group_by(s.study_id, s.modality)
        )
        for study_id, modality, count in rows:
            modalities.setdefault(study_id, set()).update({modality} - {""})
            series_counts[study_id] = series_counts.get(study_id, 0) + count
        for study_id, found in modalities.items():
            summaries[study_id][_MODALITIES] = {"vr": "CS", "Value": sorted(found)} if found else {"vr": "CS"}
            summaries[study_id][_SERIES_COUNT] = {"vr": "IS", "Value": [series_counts[study_id]]}
    if _INSTANCE_COUNT in wanted:
        rows = connection.execute(
            select(i.study_id, func.count()).where(i.study_id.in_(study_ids)).group_by(i.study_id)
        )
        for study_id, count in rows:
            summaries[study_id][_INSTANCE_COUNT] = {"vr": "IS", "Value": [count]}
    if _CLASSES in wanted:
        classes: dict[int, list[str]] = {}
        pairs = connection.execute(
            select(i.study_id, i.sop_class_uid).distinct().where(i.study_id.in_(study_ids)).order_by(i.sop_class_uid)
        )
        for study_id, sop_class in pairs:
            classes.setdefault(study_id, []).append(sop_class)
        for study_id, uids in classes.items():
            summaries[study_id][_CLASSES] = {"vr": "UI", "Value": uids}
    return summaries


def _series_counts(connection: Connection, series_ids: set[int]) -> dict[int, int]:
    i = schema.instance.c
    rows = connection.execute(
        select(i.series_id, func.count()).where(i.series_id.in_(series_ids)).group_by(i.series_id)
    )
    return {int(row[0]): int(row[1]) for row in rows}
