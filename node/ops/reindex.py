"""Makes the index of a data directory anew from its files, beside the old one, and puts it in its place when whole.

With SQLite a new file is filled and renamed over the old one, which stays under another name: killed at any moment,
there is either the old or the new. With PostgreSQL an empty database is filled; until it is whole it bears a mark that
keeps a node from starting on it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import make_url, select, text
from sqlalchemy.exc import SQLAlchemyError

from node.errors import ReindexError
from node.ops.backup import Progress, sqlite_file
from node.ops.directory import RESTORING, DataDirectory
from node.settings import Settings
from storage import schema
from storage.blobs.files import fsync_directory
from storage.database import Database, migrate, schema_versions
from storage.reindex import MARK, Before, Reindexed, fill

__all__ = ["ReindexReport", "reindex"]

_BESIDE = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReindexReport:
    """What the new index holds, and where the old one was put; empty where there was none."""

    found: Reindexed
    old: str


def reindex(
    settings: Settings,
    device_uids: Collection[str],
    *,
    old_database_url: str | None = None,
    progress: Progress = lambda _done, _total: None,
) -> ReindexReport:
    """Make the index anew.

    Parameters
    ----------
    device_uids
        Device UIDs of the models: what carries one was made by such a model.
    old_database_url
        An older index to ask what no file says; with SQLite, the one that is replaced.

    Raises
    ------
    AlreadyRunning
        When a node works in the data directory.
    ReindexError
        When there is nothing to index, or PostgreSQL's database is not empty.
    """
    root = settings.data_dir.absolute()
    if not (root / "blobs").is_dir():
        raise ReindexError(f"{root} holds no objects; name the right data_dir")
    if (root / RESTORING).exists():
        raise ReindexError(f"{root}: a restore was interrupted; run 'overread restore FILE' again first")
    directory = DataDirectory(root)
    with directory.lock():
        url = make_url(settings.database_url)
        if url.get_backend_name() == "sqlite" and url.database:
            return _beside(Path(url.database), directory, device_uids, old_database_url, progress)
        return _into_empty(settings.database_url, directory, device_uids, old_database_url, progress)


def _beside(
    target: Path,
    directory: DataDirectory,
    device_uids: Collection[str],
    old_database_url: str | None,
    progress: Progress,
) -> ReindexReport:
    new = target.with_name(f"{target.name}.reindex")
    _remove(new)
    # For its owner only from the first byte on: it will hold patients' data.
    new.touch(mode=0o600)
    url = f"sqlite:///{new}"
    migrate(url)
    old_url = old_database_url or (f"sqlite:///{target}" if target.is_file() else None)
    with _opened(url) as database, _old(old_url) as before:
        found = fill(database, directory.blobs, directory.refused, before, device_uids, progress)
    with sqlite_file(new) as connection:
        # One file, nothing beside it.
        connection.execute("PRAGMA journal_mode=DELETE")
    _sync(new)
    kept = _keep(target) if target.is_file() else None
    new.rename(target)
    fsync_directory(target.parent)
    return ReindexReport(found=found, old=str(kept) if kept else "")


def _keep(target: Path) -> Path:
    """Give the old index a second name, with what belongs to it, and leave only its one file under the first."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    kept = target.with_name(f"{target.name}.before-{stamp}")
    with suppress(sqlite3.Error), sqlite_file(target) as connection:
        # Brings the write-ahead log into the file. One that is damaged keeps its log beside it.
        connection.execute("PRAGMA journal_mode=DELETE")
    for suffix in ("", *_BESIDE):
        part = target.with_name(target.name + suffix)
        if part.exists():
            kept.with_name(kept.name + suffix).hardlink_to(part)
    fsync_directory(target.parent)
    # A log that stayed would be taken for the new file's.
    for suffix in _BESIDE:
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    fsync_directory(target.parent)
    return kept


def _into_empty(
    url: str, directory: DataDirectory, device_uids: Collection[str], old_database_url: str | None, progress: Progress
) -> ReindexReport:
    try:
        current = schema_versions(url)[0]
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        raise ReindexError(f"database.url cannot be reached: {cause}") from None
    if current is not None:
        with _opened(url) as database:
            if not _is_marked(database):
                raise ReindexError(
                    "database.url holds an index already; make an empty database, name it in database.url, and give "
                    "the old one as --old, so that what was deleted on purpose stays deleted"
                )
            _empty(database)
    migrate(url)
    with _opened(url) as database, _old(old_database_url) as before:
        found = fill(database, directory.blobs, directory.refused, before, device_uids, progress)
    return ReindexReport(found=found, old="")


def _is_marked(database: Database) -> bool:
    n = schema.node_identity.c
    try:
        with database.read() as connection:
            return connection.execute(select(n.key).where(n.key == MARK)).first() is not None
    except SQLAlchemyError:
        return False


def _empty(database: Database) -> None:
    """Remove what an interrupted run has left."""
    with database.write() as connection:
        schema.metadata.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _old(url: str | None) -> Iterator[Before]:
    if url is None:
        yield Before(None)
        return
    with _opened(url) as database:
        yield Before(database)


def _remove(file: Path) -> None:
    for suffix in ("", *_BESIDE):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
