"""The data directory: its folders, the lock of whoever works in it, and whether a node may start on what is there."""

from __future__ import annotations

import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from sqlalchemy import make_url, select

from inference.ownership import hand_over
from node.errors import AlreadyRunning, BackupError
from storage import schema
from storage.blobs import FileBlobs
from storage.database import Database, schema_versions
from storage.reindex import MARK

__all__ = ["LOCK", "RESTORING", "DataDirectory", "refuse_incomplete"]

#: Held by whoever works in the directory.
LOCK: Final = "node.lock"
#: Is there from the first to the last moment of a restore.
RESTORING: Final = "restoring"


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The folders of a data directory. What is accepted, being taken in, and refused lie on one file system."""

    root: Path

    @property
    def blobs(self) -> FileBlobs:
        """The bytes of every instance."""
        return FileBlobs(self.root / "blobs")

    @property
    def refused(self) -> FileBlobs:
        """The bytes that were refused."""
        return FileBlobs(self.root / "quarantine")

    @property
    def incoming(self) -> Path:
        """Where bytes are written before they have a name."""
        folder = self.root / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def moment(self) -> int:
        """Return the time by the file system's own clock, in nanoseconds: what changes from now on is no older."""
        with tempfile.NamedTemporaryFile(dir=self.root, prefix=".moment-") as file:
            return os.fstat(file.fileno()).st_ctime_ns

    def lock(self) -> IO[str]:
        """Hold the directory for this process and its children.

        Raises
        ------
        AlreadyRunning
            When another node, or a restore, holds it.
        """
        # It will hold patients' data. A folder that is there already keeps the mode that somebody chose.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (self.root / LOCK).open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise AlreadyRunning(
                f"{self.root} is held by another node (process {holder}); stop it, or give this one its own data_dir"
            ) from None
        if not _is_still(file, self.root / LOCK):
            # Whoever held it has taken it away with the directory's content.
            file.close()
            return self.lock()
        hand_over(self.root / LOCK)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file


def _is_still(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def refuse_incomplete(root: Path, database_url: str) -> None:
    """Refuse a directory that a node would take for a new one, and then send again everything that lies in it.

    Raises
    ------
    BackupError
        When a restore did not come to its end, or there are objects and no database that knows them.
    """
    if (root / RESTORING).exists():
        raise BackupError(
            f"{root}: a restore was interrupted, and what is here is not whole; run 'overread restore FILE' again"
        )
    blobs = root / "blobs"
    if not blobs.is_dir() or next(FileBlobs(blobs).names(), None) is None:
        return
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        missing = f"the database {url.database} is missing"
    elif schema_versions(database_url)[0] is None:
        missing = "the database is empty"
    elif _is_half_made(database_url):
        raise BackupError(f"the index of {blobs} is not whole: run 'overread reindex' again, to its end")
    else:
        return
    raise BackupError(
        f"{blobs} holds objects, but {missing}; started like this, every study would be read and sent again. "
        "Put the database back, restore a backup into a new data_dir, or make the database anew from the files with "
        "'overread reindex'; to begin anew, move the folder away"
    )


def _is_half_made(database_url: str) -> bool:
    """Whether a reindexing of this database did not come to its end."""
    database = Database(database_url)
    n = schema.node_identity.c
    try:
        with database.read() as connection:
            return connection.execute(select(n.key).where(n.key == MARK)).first() is not None
    finally:
        database.close()
