"""Whether the node can do its work: alive is answering at all; ready is database, schema, disk and room.

What is ready and needs somebody all the same (a disk that fills, a certificate that ends) is degraded.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from node.security.tls import Acceptor, trouble
from storage import attempts, chores, damage
from storage.database import Database, schema_versions
from storage.space import Level, Room

__all__ = ["Readiness"]

_BUSY_MILLISECONDS = 1000


class Readiness:
    """Looks whether everything that the node stands on is there.

    Parameters
    ----------
    folder
        On the data directory's disk; written to for a moment.
    room
        What must be free on the disks.
    tls
        Where associations come in over TLS.
    unfit
        Says which versions of models should read studies and cannot, and why.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        room: Room,
        tls: Acceptor | None = None,
        unfit: Callable[[Connection], Mapping[tuple[str, str], str]] = lambda _: {},
    ) -> None:
        self._database = database
        self._folder = folder
        self._room = room
        self._tls = tls
        self._unfit = unfit
        self._schema: str | None = None

    def complaints(self) -> dict[str, str]:
        """Return what is wrong and with what; empty when ready."""
        found = {
            "database": self._database_complaint(),
            "data_dir": self._folder_complaint(),
            "disk": self._disk_complaint(),
        }
        return {name: complaint for name, complaint in found.items() if complaint}

    def warnings(self) -> dict[str, str]:
        """Return what needs somebody while the node still does its work."""
        found = {
            "disk": self._scarce(),
            "tls": trouble(self._tls) if self._tls is not None else "",
            "bytes": self._damage(),
            "models": self._models(),
        }
        return {name: warning for name, warning in found.items() if warning}

    def _scarce(self) -> str:
        try:
            return "; ".join(one.words for one in self._room.readings() if one.level is Level.SCARCE)
        except OSError:
            return ""  # a complaint already

    def _damage(self) -> str:
        try:
            with self._database.read() as connection:
                damaged = {kind: count for kind, count in damage.counts(connection).items() if count}
        except SQLAlchemyError:
            return ""  # a complaint already
        counted = ", ".join(f"{count} {kind}" for kind, count in damaged.items())
        return f"files that are not what their rows say: {counted}; see overread status" if counted else ""

    def _models(self) -> str:
        try:
            with self._database.read() as connection:
                held = attempts.held_up(connection)
                unfit = self._unfit(connection)
        except SQLAlchemyError:
            return ""  # a complaint already
        waits = [f"{model} waits with {count}: {reason}" for model, (count, reason) in sorted(held.items())]
        return "; ".join([*unfit.values(), *waits])

    def background(self) -> dict[str, str]:
        """Return how far work has come that goes on beside everything else."""
        try:
            with self._database.read() as connection:
                return {one.name: f"{one.done} of {one.total}" for one in chores.chores(connection) if not one.ended_at}
        except SQLAlchemyError:
            return {}

    def _database_complaint(self) -> str:
        try:
            if self._schema is None:
                self._schema = schema_versions(self._database.url)[1]
            with self._database.read() as connection:
                current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
            with self._database.engine.connect() as connection:
                refused = self._write_complaint(connection)
        except SQLAlchemyError as error:
            return f"cannot be read ({type(error).__name__}); see that it runs and that its address is right"
        if current != self._schema:
            return f"has schema version {current}, this software needs {self._schema}; start the node to upgrade it"
        return refused

    def _write_complaint(self, connection: Connection) -> str:
        """Try to begin a write, for a moment; nothing is changed."""
        try:
            if connection.dialect.name == "sqlite":
                _begin_sqlite(connection)
            else:
                connection.execute(text(f"SET LOCAL lock_timeout = {_BUSY_MILLISECONDS}"))
                # Fails where the server is read-only or a standby, which a lock alone may not.
                connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
                connection.rollback()
        except (DBAPIError, sqlite3.Error) as error:
            cause = str(getattr(error, "orig", error)).partition("\n")[0]
            return f"cannot be written to ({cause}); see what holds it, its owner and its disk"
        return ""

    def _folder_complaint(self) -> str:
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                file.write(b"ready")
                file.flush()
        except OSError as error:
            return f"cannot be written to ({error.strerror}); see its owner and its disk"
        return ""

    def _disk_complaint(self) -> str:
        try:
            return "; ".join(one.words for one in self._room.readings() if one.level is Level.REFUSED)
        except OSError as error:
            return f"cannot be asked for its free space ({error.strerror})"


def _begin_sqlite(connection: Connection) -> None:
    """Take SQLite's write lock and give it back; past SQLAlchemy, whose connections wait for half a minute."""
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA busy_timeout")
    row = cursor.fetchone()
    assert row is not None
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
    try:
        cursor.execute("BEGIN IMMEDIATE")
        cursor.execute("ROLLBACK")
    finally:
        cursor.execute(f"PRAGMA busy_timeout={int(row[0])}")
        cursor.close()
