"""Rows told as DICOM JSON (PS3.18 Annex F): their attributes, and what is counted or listed of them when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

from storage.keys import COMPUTED, KNOWN, Level
from storage.narrowing import run

__all__ = ["JOINED", "PatientKey", "patient_key", "told"]

#: What tells one patient from another: the id, or the name and birth date of one without an id.
PatientKey = tuple[str, str, str]

JOINED: Mapping[Level, str] = {
    Level.PATIENT: "study",
    Level.STUDY: "study",
    Level.SERIES: "series JOIN study ON series.study_id = study.id",
    Level.INSTANCE: (
        "instance JOIN series ON instance.series_id = series.id JOIN study ON instance.study_id = study.id"
    ),
}
_TABLES = {Level.PATIENT: "study", Level.STUDY: "study", Level.SERIES: "series", Level.INSTANCE: "instance"}
_UIDS = (
    (Level.STUDY, "0020000D", "study.study_instance_uid"),
    (Level.SERIES, "0020000E", "series.series_instance_uid"),
    (Level.INSTANCE, "00080018", "instance.sop_instance_uid"),
    (Level.INSTANCE, "00080016", "instance.sop_class_uid"),
    (Level.INSTANCE, "00083002", "instance.transfer_syntax_uid"),
)
_PATIENT_STUDIES, _PATIENT_SERIES, _PATIENT_INSTANCES = "00201200", "00201202", "00201204"
_SERIES_COUNT, _INSTANCE_COUNT, _SERIES_INSTANCE_COUNT = "00201206", "00201208", "00201209"
_MODALITIES, _CLASSES = "00080061", "00080062"
_CHARACTER_SET, _AVAILABILITY = "00080005", "00080056"

_LISTS = frozenset({_MODALITIES, _CLASSES})
_decode = json.JSONDecoder().raw_decode

_SUMMARIES = {
    _SERIES_COUNT: "(SELECT count(*) FROM series AS s WHERE s.study_id = study.id)",
    _INSTANCE_COUNT: "(SELECT count(*) FROM instance AS i WHERE i.study_id = study.id)",
    _SERIES_INSTANCE_COUNT: "(SELECT count(*) FROM instance AS i WHERE i.series_id = series.id)",
    _MODALITIES: "(SELECT {list}(DISTINCT s.modality) FROM series AS s WHERE s.study_id = study.id)",
    _CLASSES: "(SELECT {list}(DISTINCT i.sop_class_uid) FROM instance AS i WHERE i.study_id = study.id)",
}
_PATIENT_COUNTS = {
    _PATIENT_STUDIES: "count(*)",
    _PATIENT_SERIES: f"sum({_SUMMARIES[_SERIES_COUNT]})",
    _PATIENT_INSTANCES: f"sum({_SUMMARIES[_INSTANCE_COUNT]})",
}
#: What is told of these without being asked for.
_USUAL = {
    Level.PATIENT: frozenset[str](),
    Level.STUDY: frozenset({_SERIES_COUNT, _INSTANCE_COUNT, _MODALITIES, _CLASSES}),
    Level.SERIES: frozenset({_SERIES_INSTANCE_COUNT}),
    Level.INSTANCE: frozenset[str](),
}


def patient_key(patient_id: str, name_folded: str, birth_date: str) -> PatientKey:
    """Return what stands for a patient."""
    return (patient_id, "", "") if patient_id else ("", name_folded, birth_date)


def told(
    connection: Connection,
    level: Level,
    ids: Sequence[int],
    wanted: frozenset[str] | None,
    also: frozenset[str] = frozenset(),
) -> list[tuple[PatientKey, dict[str, Any]]]:
    """Return each row's patient and what there is to tell of it, in the order of the ids.

    A row that is gone by now is left out. Of what is counted or listed, only what is ``wanted`` is told, and what is
    in ``also``; None wants what is usual at the level.
    """
    computed = (_USUAL[level] if wanted is None else wanted & COMPUTED[level]) | also & COMPUTED[level]
    of_row = tuple(sorted(computed & _SUMMARIES.keys()))
    sql = _statement(level, of_row, connection.dialect.name)
    sqlite = connection.dialect.name == "sqlite"
    rows = {row[0]: row for row in run(connection, sql, (json.dumps(ids) if sqlite else ids,))}
    found: list[tuple[PatientKey, dict[str, Any]]] = []
    for one in ids:
        if one in rows:
            row = rows[one]
            found.append((patient_key(*row[1:4]), _merged(level, row[4:], of_row)))
    if of_patient := computed & _PATIENT_COUNTS.keys():
        _count_patients(connection, found, sorted(of_patient))
    return found


@lru_cache(maxsize=512)
def _statement(level: Level, computed: tuple[str, ...], dialect: str) -> str:
    """Say what is read of rows; which of them is the one parameter."""
    table = _TABLES[level]
    columns = [f"{table}.id", "study.patient_id", "study.patient_name_folded", "study.patient_birth_date"]
    columns += [f"{name}.attributes" for name in _tables(level)]
    columns += [column for least, _, column in _UIDS if level >= least]
    listing = "json_group_array" if dialect == "sqlite" else "json_agg"
    columns += [_SUMMARIES[tag].format(list=listing) for tag in computed]
    among = "IN (SELECT value FROM json_each(?))" if dialect == "sqlite" else "= ANY(?)"
    return f"SELECT {', '.join(columns)} FROM {JOINED[level]} WHERE {table}.id {among}"


def _tables(level: Level) -> tuple[str, ...]:
    return ("study", "series", "instance")[: max(level, 1)]


def _merged(level: Level, values: Sequence[Any], computed: tuple[str, ...]) -> dict[str, Any]:
    tables = len(_tables(level))
    answer: dict[str, Any] = {}
    # The lowest level's own word stands over that of its parents.
    for attributes in values[:tables]:
        answer.update(_read(attributes))
    if level is Level.PATIENT:
        answer = {tag: element for tag, element in answer.items() if tag in KNOWN[level]}
    uids = [tag for least, tag, _ in _UIDS if level >= least]
    for tag, uid in zip(uids, values[tables:], strict=False):
        answer[tag] = {"vr": "UI", "Value": [uid]}
    for tag, value in zip(computed, values[tables + len(uids) :], strict=True):
        answer[tag] = _listed(tag, value) if tag in _LISTS else {"vr": "IS", "Value": [int(value)]}
    # DICOM JSON is UTF-8, whatever the object was (PS3.18 F.2.2).
    answer[_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    answer[_AVAILABILITY] = {"vr": "CS", "Value": ["ONLINE"]}
    return answer


def _listed(tag: str, value: Any) -> dict[str, Any]:
    return _held(tag, value) if isinstance(value, str) else _sorted(tag, value or ())


@lru_cache(maxsize=256)
def _held(tag: str, text: str) -> dict[str, Any]:
    return _sorted(tag, _read(text))


def _sorted(tag: str, values: Iterable[str | None]) -> dict[str, Any]:
    vr = "CS" if tag == _MODALITIES else "UI"
    held = sorted(one for one in values if one)
    return {"vr": vr, "Value": held} if held else {"vr": vr}


def _read(value: Any) -> Any:
    # SQLite gives JSON as text, PostgreSQL's driver reads it. No space is around what was written here.
    return _decode(value)[0] if isinstance(value, str) else value


def _count_patients(
    connection: Connection, found: Sequence[tuple[PatientKey, dict[str, Any]]], tags: Sequence[str]
) -> None:
    """Add what there is of each row's patient; one patient is counted once, however many rows there are of it."""
    keys = {key for key, _ in found}
    counts: dict[PatientKey, Sequence[int]] = {}
    counted = ", ".join(_PATIENT_COUNTS[tag] for tag in tags)
    sqlite = connection.dialect.name == "sqlite"

    def count(column: str, values: Iterable[str], where: str) -> None:
        wanted = sorted(values)
        if wanted:
            among = "IN (SELECT value FROM json_each(?))" if sqlite else "= ANY(?)"
            grouped = "study.patient_id, study.patient_name_folded, study.patient_birth_date"
            by = "study.patient_id" if column == "patient_id" else grouped
            named = "study.patient_id, '', ''" if column == "patient_id" else grouped
            sql = f"SELECT {named}, {counted} FROM study WHERE study.{column} {among}{where} GROUP BY {by}"
            for row in run(connection, sql, (json.dumps(wanted) if sqlite else wanted,)):
                counts[row[0], row[1], row[2]] = [int(one) for one in row[3:]]

    count("patient_id", {key[0] for key in keys if key[0]}, "")
    count("patient_name_folded", {key[1] for key in keys if not key[0]}, " AND study.patient_id = ''")
    for key, answer in found:
        for tag, number in zip(tags, counts.get(key, [0] * len(tags)), strict=True):
            answer[tag] = {"vr": "IS", "Value": [number]}
