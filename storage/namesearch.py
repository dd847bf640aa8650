"""A search structure for a piece of a patient's name, wherever in the name it stands: trigrams, on SQLite (FTS5).

It holds nothing that the rows do not say, and is kept by triggers. It is no part of the migrated schema: it is made
anew wherever it is missing, since a migration that rebuilds the table of studies takes the triggers with it. Without
it (another database, an SQLite without FTS5) names are looked through one by one in their index.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

__all__ = ["TABLE", "is_there", "prepare", "trigram_query"]

TABLE = "study_name_trigram"

_COLUMN = "patient_name_folded"
_LEAVE = f"INSERT INTO {TABLE} ({TABLE}, rowid, {_COLUMN}) VALUES ('delete', old.id, old.{_COLUMN});"
_ENTER = f"INSERT INTO {TABLE} (rowid, {_COLUMN}) VALUES (new.id, new.{_COLUMN});"
_TRIGGERS = {
    f"{TABLE}_inserted": f"AFTER INSERT ON study BEGIN {_ENTER} END",
    f"{TABLE}_deleted": f"AFTER DELETE ON study BEGIN {_LEAVE} END",
    f"{TABLE}_updated": (
        f"AFTER UPDATE OF {_COLUMN} ON study WHEN old.{_COLUMN} <> new.{_COLUMN} BEGIN {_LEAVE} {_ENTER} END"
    ),
}
_SHORTEST = 3
_LONGEST = 64
_KNOWN = "overread_name_trigrams"


def prepare(connection: Connection) -> None:
    """Make the structure on SQLite where it is missing or incomplete; in the caller's write transaction."""
    rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name LIKE ?", (f"{TABLE}%",))
    if {TABLE, *_TRIGGERS} <= set(rows.scalars()):
        return
    for name in _TRIGGERS:
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
    try:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {TABLE}")
        connection.exec_driver_sql(
            f"CREATE VIRTUAL TABLE {TABLE} USING fts5({_COLUMN}, content='study', content_rowid='id', "
            "tokenize='trigram case_sensitive 1')"
        )
    except OperationalError:
        return  # this SQLite was built without FTS5, or is older than its trigrams
    connection.exec_driver_sql(f"INSERT INTO {TABLE} ({TABLE}) VALUES ('rebuild')")
    for name, what in _TRIGGERS.items():
        connection.exec_driver_sql(f"CREATE TRIGGER {name} {what}")


def is_there(connection: Connection) -> bool:
    """Tell whether names can be looked up by their trigrams; asked once a connection."""
    known: bool | None = connection.info.get(_KNOWN)
    if known is None:
        known = connection.dialect.name == "sqlite" and bool(
            connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)).first()
        )
        connection.info[_KNOWN] = known
    return known


def trigram_query(pattern: str) -> str | None:
    """Say in FTS5's words that a text has every piece of a pattern; None where no piece is long enough.

    What stands between wildcards, and between the groups of a name, are pieces.
    """
    pieces = [one.strip(" ^")[:_LONGEST] for one in re.split(r"[*?=]", pattern)]
    quoted = ['"' + one.replace('"', '""') + '"' for one in pieces if len(one) >= _SHORTEST]
    return " AND ".join(quoted) if quoted else None
