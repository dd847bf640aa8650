"""Opening the database, its transactions and its clock: SQLite by default, PostgreSQL where it is asked for.

A write on SQLite takes the lock at its start (BEGIN IMMEDIATE), so that two writers wait for each other instead
of failing half-way. Commits are durable when they return: ``synchronous=FULL`` with a write-ahead log.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, QueuePool, Table, create_engine, event, func, select, text

from storage import namesearch
from storage.errors import StorageError
from storage.prepared import Prepared

__all__ = ["Database", "Watch", "Writer", "migrate", "now", "reserve_ids", "schema_versions"]

#: A transaction takes some milliseconds; with 0.3 ms a sixth fewer objects were taken in over four associations.
_TURN_PAUSE_SECONDS = 0.0001
_WATCH_SECONDS = 0.03
_KEPT_CONNECTIONS = 40
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """A database, opened in the process that uses it: an engine must never cross a fork.

    Parameters
    ----------
    url
        SQLAlchemy's URL: ``sqlite:////abs/path.sqlite`` or ``postgresql+psycopg://...``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _create_engine(url)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection in a read transaction: one consistent view."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a write transaction that is durable once the block is left without an error."""
        with self.engine.connect().execution_options(overread_write=True) as connection, connection.begin():
            yield connection

    def checkpoint(self) -> None:
        """Bring SQLite's write-ahead log into the database, so that it does not grow without end."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


class Writer:
    """Write transactions one after the other on a connection that is kept: to fetch one each time takes longer.

    Not for several threads at the same time.

    Parameters
    ----------
    database
        Where to write.
    turn_seconds
        How long to let other writers of SQLite go first. Who holds the turn for longer hangs, and must not hold up the
        others: SQLite's own lock then tells whether they can write.
    """

    def __init__(self, database: Database, turn_seconds: float = 5.0) -> None:
        self._turn_seconds = turn_seconds
        self._engine = database.engine
        self._connection: Connection | None = None
        name = self._engine.url.database if self._engine.dialect.name == "sqlite" else None
        self._turn = os.open(f"{name}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666) if name else None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give the connection in a write transaction that is durable once the block is left without an error."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self._engine.connect().execution_options(overread_write=True)
        self._take_turn()
        try:
            with connection.begin():
                yield connection
        except BaseException:
            # Whatever state it is in, the next transaction gets another one.
            self._give_back()
            raise
        finally:
            if self._turn is not None:
                fcntl.flock(self._turn, fcntl.LOCK_UN)

    def _take_turn(self) -> None:
        """Wait for the others; SQLite itself would look only after milliseconds whether they are done."""
        if self._turn is None:
            return
        deadline = time.monotonic() + self._turn_seconds
        while True:
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return
            time.sleep(_TURN_PAUSE_SECONDS)

    def close(self) -> None:
        """End; there are no further transactions."""
        self._give_back()
        if self._turn is not None:
            os.close(self._turn)
            self._turn = None

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Watch:
    """Waits for something to change in the database, so that work is taken up at once and idling costs little.

    SQLite tells another connection's commits by its data version; elsewhere the wait is a plain pause.
    """

    def __init__(self, database: Database) -> None:
        self._engine = database.engine
        self._sqlite = self._engine.dialect.name == "sqlite"
        self._connection = self._engine.raw_connection() if self._sqlite else None
        self._seen = self._version()

    def wait(self, stop: Event, seconds: float) -> None:
        """Return when something was committed elsewhere, when ``stop`` is set, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            version = self._version()
            if version != self._seen:
                self._seen = version
                return
            stop.wait(min(left, _WATCH_SECONDS if self._sqlite else left))

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()

    def _version(self) -> int:
        if self._connection is None:
            return 0
        cursor = self._connection.cursor()
        cursor.execute("PRAGMA data_version")
        row = cursor.fetchone()
        cursor.close()
        assert row is not None
        return int(row[0])


def now(connection: Connection) -> datetime:
    """Return the database's own time, the only clock that leases and queues go by."""
    if connection.dialect.name == "sqlite":
        row = _SQLITE_NOW.first(connection)
        assert row is not None
        return datetime.fromisoformat(row[0]).replace(tzinfo=UTC)
    value: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return value.astimezone(UTC)


def reserve_ids(connection: Connection, table: Table, count: int) -> Sequence[int]:
    """Return ids for rows that the caller inserts in the same write transaction."""
    if connection.dialect.name == "sqlite":
        # Nobody else writes before this transaction has ended; it is what SQLite itself would choose.
        row = _last_id(table).first(connection)
        last = row[0] if row is not None and row[0] is not None else 0
        return range(last + 1, last + 1 + count)
    sequence = text("SELECT nextval(pg_get_serial_sequence(:name, 'id')) FROM generate_series(1, :count)")
    return connection.execute(sequence, {"name": table.name, "count": count}).scalars().all()


_SQLITE_NOW = Prepared(select(func.strftime("%Y-%m-%d %H:%M:%f", "now")))


@cache
def _last_id(table: Table) -> Prepared:
    return Prepared(select(func.max(table.c.id)))


def migrate(url: str) -> None:
    """Bring the schema to this version's (Alembic), creating it where there is none.

    Raises
    ------
    StorageError
        When the database was written by a newer version of the software.
    """
    config = _alembic_config(url)
    script = ScriptDirectory.from_config(config)
    engine = _create_engine(url)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in {one.revision for one in script.walk_revisions()}:
            raise StorageError(
                f"the database has schema version {current}, which this version of Overread does not know; "
                "run the version that wrote it, or restore a backup"
            )
        if current != script.get_current_head():
            with engine.connect().execution_options(overread_write=True) as connection, connection.begin():
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        if engine.dialect.name == "sqlite":
            with engine.connect().execution_options(overread_write=True) as connection, connection.begin():
                namesearch.prepare(connection)
    finally:
        engine.dispose()


def schema_versions(url: str) -> tuple[str | None, str | None]:
    """Return the schema version that the database has and the one that this software has."""
    engine = _create_engine(url)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return current, ScriptDirectory.from_config(_alembic_config(url)).get_current_head()


def _alembic_config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def _create_engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    # Each thread that watches holds a connection for good, so their number must have no limit. Kept connections
    # make a read transaction five times as quick as a connection each time would (0.1 against 0.5 ms).
    engine = create_engine(
        url, connect_args={"timeout": 30}, poolclass=QueuePool, pool_size=_KEPT_CONNECTIONS, max_overflow=-1
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: the begin event below does.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA busy_timeout=30000")
        # 16 MB: the same pages are brought into the database less often than with SQLite's 4 MB.
        cursor.execute("PRAGMA wal_autocheckpoint=4000")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get("overread_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine
