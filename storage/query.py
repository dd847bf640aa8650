"""Finding patients, studies, series and instances by their attributes: what C-FIND and QIDO-RS both stand on.

SQL narrows by the columns there are and gives ids; rows are then read some at a time, checked by every key that SQL
could not say (PS3.4 C.2.2.2), and told as DICOM JSON (PS3.18 Annex F). However many answers there are, few are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from storage.database import Database
from storage.errors import InvalidQuery
from storage.keys import KNOWN, Key, Level, Query, Test, compiled, parse_key, parse_tag
from storage.matching import is_universal
from storage.narrowing import narrowed, run
from storage.telling import JOINED, PatientKey, told

__all__ = ["Key", "Level", "Query", "find", "parse_key", "parse_tag", "search"]

#: How many ids, and how many rows, are read at once; the first answers are not kept waiting for others.
_IDS = 5000
_FIRST_ROWS = 50
_ROWS = 250

#: What ids are ordered by, so that reading can go on behind any of them.
_ORDER: Mapping[Level, tuple[str, ...]] = {
    # Studies of one patient stand together; those without an id by name and birth date.
    Level.PATIENT: ("study.patient_id", "study.patient_name_folded", "study.patient_birth_date", "study.id"),
    Level.STUDY: ("study.id",),
    Level.SERIES: ("series.id",),
    Level.INSTANCE: ("instance.id",),
}

_Read = Callable[[], AbstractContextManager[Connection]]


def find(connection: Connection, level: Level, query: Query) -> list[dict[str, Any]]:
    """Return what matches every key, as DICOM JSON, in the order in which it came (patients: in that of their ids).

    Sources and results, and objects in conflict, are found alike.

    Raises
    ------
    InvalidQuery
        When a key is not indexed at this level, or its value cannot be read.
    """
    return list(_answers(lambda: nullcontext(connection), level, query))


def search(
    database: Database, level: Level, query: Query, stopped: Callable[[], bool] | None = None
) -> Iterator[dict[str, Any]]:
    """Give what matches every key, as :func:`find` does, while it is read.

    Between answers no transaction is open and no more than some hundred rows are held, so whoever asks may take any
    time. What is deleted meanwhile is left out. ``stopped`` is asked now and then, also while nothing matches.

    Raises
    ------
    InvalidQuery
        At once, when a key is not indexed at this level, or its value cannot be read.
    """
    return _answers(database.read, level, query, stopped)


def _answers(
    read: _Read, level: Level, query: Query, stopped: Callable[[], bool] | None = None
) -> Iterator[dict[str, Any]]:
    keys = [key for key in query.keys if not is_universal(key.value)]
    for key in query.keys:
        if key.path[0] not in KNOWN[level]:
            raise InvalidQuery(f"{'.'.join(key.path)} cannot be searched by at {level.name.lower()} level")
    compiled(keys, query)  # a value that cannot be read is refused, rows or no rows
    return islice(_read_on(read, level, query, keys, stopped or (lambda: False)), query.limit)


def _read_on(
    read: _Read, level: Level, query: Query, keys: list[Key], stopped: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    ids: list[int] = []
    position = 0
    rows = _FIRST_ROWS if query.limit is None else max(_FIRST_ROWS, min(query.limit, _ROWS))
    window: _Window | None = None
    wanted = None if query.include is None else sorted(query.include)
    skip = query.offset
    last: PatientKey | None = None
    while not stopped():
        with read() as connection:
            if window is None:
                window = _Window(connection, level, query, keys)
                if window.exact:
                    window.pass_over, skip = skip, 0
            if position >= len(ids):
                if window.ended:
                    return
                ids, position = window.more(connection), 0
            batch = told(connection, level, ids[position : position + rows], query.include, window.checked)
        position += rows
        rows = _ROWS
        for patient, answer in batch:
            if not all(test(answer) for test in window.tests):
                continue
            if level is Level.PATIENT:
                if patient == last:
                    continue
                last = patient
            if skip:
                skip -= 1
                continue
            tags = sorted(answer) if wanted is None else wanted
            yield {tag: answer[tag] for tag in tags if tag in answer}


class _Window:
    """The ids of what may match, some thousand at a time."""

    def __init__(self, connection: Connection, level: Level, query: Query, keys: list[Key]) -> None:
        conditions = []
        checks = []
        for key in keys:
            condition = narrowed(connection, key, empty_values=query.empty_values)
            if condition is not None:
                conditions.append(condition)
            # A date and its time may be one range: only the attributes tell.
            if condition is None or not condition.exact:
                checks.append(key)
        self.tests: list[Test] = compiled(checks, query)
        self.checked = frozenset(key.path[0] for key in checks)
        #: Each row is an answer.
        self.exact = not self.tests and level is not Level.PATIENT
        self.pass_over = 0
        self.ended = False
        self._after: tuple[Any, ...] | None = None
        # Let SQLite look for what is narrowed by its index, not go through all rows in the order of their ids.
        plus = "+" if conditions and connection.dialect.name == "sqlite" else ""
        self._columns = [*_ORDER[level][:-1], plus + _ORDER[level][-1]]
        self._from = f"SELECT {', '.join(_ORDER[level])} FROM {JOINED[level]}"
        self._where = [one.sql for one in conditions]
        self._parameters = [parameter for one in conditions for parameter in one.parameters]

    def more(self, connection: Connection) -> list[int]:
        """Return the next ids, and note whether they are the last."""
        where, parameters = list(self._where), list(self._parameters)
        if self._after is not None:
            columns, places = ", ".join(self._columns), ", ".join("?" * len(self._columns))
            where.append(f"({columns}) > ({places})")
            parameters += self._after
        text = f"{self._from} WHERE {' AND '.join(where)}" if where else self._from
        text += f" ORDER BY {', '.join(self._columns)} LIMIT {_IDS} OFFSET {self.pass_over}"
        rows = run(connection, text, parameters).all()
        self.pass_over = 0
        self.ended = len(rows) < _IDS
        if rows:
            self._after = tuple(rows[-1])
        return [row[-1] for row in rows]
