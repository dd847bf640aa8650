"""Keys said in SQL, as far as they can be: which rows may match, and whether those are the ones that do.

Written as text: what a search costs here is mostly what it takes to make the statement. Every name in it comes from
this module, every value is a parameter.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from storage import namesearch
from storage.keys import Key, key_vr
from storage.matching import EMPTY, folded, has_wildcard, is_universal, split_range, value_list

__all__ = ["Condition", "narrowed", "run"]

_STARS = 3
#: What the index keeps of a value in a column; see ``storage.index``.
_COLUMN_CHARACTERS = 512
_PATIENT_NAME, _MODALITIES, _CLASSES = "00100010", "00080061", "00080062"

_COLUMNS = {
    "0020000D": "study.study_instance_uid",
    "00100020": "study.patient_id",
    "00100030": "study.patient_birth_date",
    "00100040": "study.patient_sex",
    "00080050": "study.accession_number",
    "00080020": "study.study_date",
    "00081030": "study.study_description",
    "0020000E": "series.series_instance_uid",
    "00080060": "series.modality",
    "0008103E": "series.series_description",
    "00080018": "instance.sop_instance_uid",
    "00080016": "instance.sop_class_uid",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition with ``?`` for each parameter.

    ``exact`` says that what meets it matches; otherwise all that matches is among what meets it.
    """

    sql: str
    parameters: tuple[Any, ...]
    exact: bool


def run(connection: Connection, sql: str, parameters: Sequence[Any] = ()) -> Any:
    """Execute a statement with ``?`` for each parameter on either database."""
    if connection.dialect.name != "sqlite":
        sql = sql.replace("%", "%%").replace("?", "%s")
    return connection.exec_driver_sql(sql, tuple(parameters))


def narrowed(connection: Connection, key: Key, *, empty_values: bool = False) -> Condition | None:
    """Say a key in SQL, or return None where SQL can tell nothing of it.

    Raises
    ------
    InvalidQuery
        When its value cannot be read.
    """
    if len(key.path) > 1 or (empty_values and key.value.strip() == EMPTY):
        return None
    tag, vr = key.path[0], key_vr(key)
    sqlite = connection.dialect.name == "sqlite"
    if tag == _PATIENT_NAME:
        return _any_of(key.value.split("\\"), lambda one: _named(connection, one))
    if tag in (_MODALITIES, _CLASSES):
        of, column = ("series", "modality") if tag == _MODALITIES else ("instance", "sop_class_uid")
        held = _any_of(value_list(key.value), lambda one: _text(sqlite, f"held.{column}", one))
        if held is None:
            return None
        sql = f"EXISTS (SELECT 1 FROM {of} AS held WHERE held.study_id = study.id AND {held.sql})"
        return Condition(sql, held.parameters, held.exact)
    column = _COLUMNS.get(tag, "")
    if not column:
        return None
    if vr == "UI":
        return _one_of(sqlite, column, value_list(key.value))
    if vr == "DA":
        return _any_of(key.value.split("\\"), lambda one: _dated(column, one))
    parts = value_list(key.value) if vr == "CS" else key.value.split("\\")
    return _any_of(parts, lambda one: _text(sqlite, column, one))


def _any_of(parts: Sequence[str], said: Callable[[str], Condition | None]) -> Condition | None:
    conditions = [said(one.strip()) for one in parts if not is_universal(one)]
    if len(conditions) < len(parts) or not conditions:
        return None  # one of them matches everything
    known = [one for one in conditions if one is not None]
    if len(known) < len(conditions):
        return None
    if len(known) == 1:
        return known[0]
    sql = _either([one.sql for one in known])
    return Condition(sql, tuple(p for one in known for p in one.parameters), all(one.exact for one in known))


def _either(parts: Sequence[str]) -> str:
    """Say that one of some conditions holds, as a tree that grows by their logarithm: SQLite's may be 1,000 deep."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_either(parts[:middle])} OR {_either(parts[middle:])})"


def _one_of(sqlite: bool, column: str, values: list[str]) -> Condition | None:
    if any(is_universal(one) for one in values) or not values:
        return None
    if len(values) == 1:
        return Condition(f"{column} = ?", (values[0],), exact=True)
    if sqlite:
        return Condition(f"{column} IN (SELECT value FROM json_each(?))", (json.dumps(values),), exact=True)
    return Condition(f"{column} = ANY(?)", (values,), exact=True)


def _dated(column: str, value: str) -> Condition:
    first, hyphen, last = split_range("DA", value)
    if not hyphen:
        return Condition(f"{column} = ?", (first,), exact=False)
    # What has no date is in no range.
    bounds, parameters = [f"{column} >= ?"], [first or "0"]
    if last:
        bounds.append(f"{column} <= ?")
        parameters.append(last)
    return Condition(f"({' AND '.join(bounds)})", tuple(parameters), exact=False)


def _text(sqlite: bool, column: str, value: str) -> Condition:
    if has_wildcard(value):
        pattern, whole = _pattern(value)
        return _like(sqlite, column, pattern, exact=whole)
    forms = dict.fromkeys(
        one[:_COLUMN_CHARACTERS] for one in (value, *(unicodedata.normalize(form, value) for form in ("NFC", "NFD")))
    )
    said = f"{column} = ?" if len(forms) == 1 else f"{column} IN ({', '.join('?' * len(forms))})"
    return Condition(said, tuple(forms), exact=all(len(one) < _COLUMN_CHARACTERS for one in forms))


def _named(connection: Connection, value: str) -> Condition | None:
    pattern = folded(value)
    # What is asked may be any of the name's groups, and delimiters at their ends say nothing.
    loose, _ = _pattern("*" + re.sub(r"[ ^]*=[ ^]*", "*", pattern).strip(" ^") + "*", composed=True)
    like = _like(connection.dialect.name == "sqlite", "study.patient_name_folded", loose, exact=False)
    pieces = namesearch.trigram_query(pattern) if namesearch.is_there(connection) else None
    if pieces is None:
        return like
    # Trigrams tell which names have the pieces, the pattern which of those have them where they are asked for.
    among = f"study.id IN (SELECT rowid FROM {namesearch.TABLE} WHERE {namesearch.TABLE} MATCH ?)"
    return Condition(f"({among} AND {like.sql})", (pieces, *like.parameters), exact=False)


def _pattern(value: str, *, composed: bool = False) -> tuple[str, bool]:
    """Return a pattern for a database, and whether it says all that the key's does."""
    plain = value
    if not composed and not value.isascii():
        # Only ASCII is one and the same in whatever form of Unicode a text was sent.
        plain = re.sub(r"[^\x00-\x7f]+", "*", unicodedata.normalize("NFD", value))
    plain = re.sub(r"\*+", "*", plain)
    if plain.count("*") > _STARS:
        # Databases backtrack: many stars could keep one busy for hours. The longest piece narrows well enough.
        return f"*{max(re.split(r'[*?]', plain), key=len)}*", False
    return plain, plain == value


def _like(sqlite: bool, column: str, pattern: str, *, exact: bool) -> Condition:
    if sqlite:
        # GLOB, not LIKE: it tells cases apart, and begins in the index where the pattern begins with a text.
        return Condition(f"{column} GLOB ?", (pattern.replace("[", "[[]"),), exact)
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return Condition(f"{column} LIKE ?", (escaped.replace("*", "%").replace("?", "_"),), exact)
