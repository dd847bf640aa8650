"""Backs up a data directory while the node runs.

The order makes the copy consistent: first a snapshot of the database, then every file that the snapshot names.
Files are never changed under their names, so that only a deletion can come in between; its tombstone is then in the
database that runs, and the snapshot is given it too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import make_url

from node.errors import BackupError, ConfigurationError
from node.settings import Settings
from storage.blobs import FileBlobs
from storage.blobs.files import fsync_directory
from storage.errors import NotDicom
from storage.headers import read_header

__all__ = ["BackupReport", "Hashing", "backup", "database_file", "dataset_digest", "sqlite_file"]

FORMAT = 1
DATABASE = "overread.sqlite"
MANIFEST = "manifest.json"
#: Folders of the data directory that hold files by other names than blobs have.
BESIDE = ("heat-maps", "models", "shadows")
CHUNK = 1 << 20
_BUSY_SECONDS = 30
_POSTGRESQL = (
    "database.url: the state of this node is in PostgreSQL, which has tools of its own. Back up in this order: "
    "'pg_dump --format=custom --file=overread.dump URL' first, then a copy of data_dir. Restore with 'pg_restore' "
    "and the copy; docs/operations.md says what to hold still before the node starts again"
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What a backup holds; ``missing`` and ``damaged`` name files whose bytes are not what the database says."""

    file: Path
    studies: int
    instances: int
    files: int
    size: int
    seconds: float
    deleted_meanwhile: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def backup(settings: Settings, file: Path, progress: Progress = lambda _done, _total: None) -> BackupReport:
    """Write one archive (tar; compressed where the name ends with gz) of the data directory, and read it back.

    Raises
    ------
    ConfigurationError
        With PostgreSQL, whose own tools do it.
    BackupError
        When there is nothing to back up, the file is there already, the disk is full, or what was written reads back
        wrong; then nothing is left of it.
    """
    started = time.monotonic()
    database = database_file(settings)
    if not database.is_file():
        raise BackupError(f"{database}: no such database; has a node run with this data_dir?")
    if file.exists():
        raise BackupError(f"{file} is there already; name another file")
    partial = file.with_name(f".{file.name}.partial")
    snapshot = file.with_name(f".{file.name}.database")
    try:
        _snapshot(database, snapshot)
        found = _write_archive(settings.data_dir, database, snapshot, partial, file, progress)
        _read_back(partial)
        partial.rename(file)
        fsync_directory(file.absolute().parent)
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{file}: no backup could be made: {error}; nothing of it is left") from None
    finally:
        partial.unlink(missing_ok=True)
        snapshot.unlink(missing_ok=True)
    return BackupReport(file=file, size=file.stat().st_size, seconds=round(time.monotonic() - started, 3), **found)


def database_file(settings: Settings) -> Path:
    """Return the file of the SQLite database; raises ConfigurationError with any other database."""
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise ConfigurationError(_POSTGRESQL)
    return Path(url.database)


@contextmanager
def sqlite_file(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a database file past the schema, as bytes to copy."""
    with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as connection:
        yield connection


def _snapshot(database: Path, snapshot: Path) -> None:
    """Copy the database as it stands at one moment, with the node's processes reading and writing on."""
    snapshot.unlink(missing_ok=True)
    _make_private(snapshot)
    with sqlite_file(database) as live, sqlite_file(snapshot) as copy:
        live.backup(copy)
        # One file, no write-ahead log beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
        verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
    if verdict != "ok":
        raise BackupError(f"{database}: the database is damaged ({verdict}); restore an earlier backup")


def _make_private(file: Path) -> None:
    """Make a file that is not there yet, for its owner only from the first byte on: it will hold patients' data."""
    file.touch(mode=0o600, exist_ok=False)


def _write_archive(
    data_dir: Path, database: Path, snapshot: Path, partial: Path, file: Path, progress: Progress
) -> dict[str, Any]:
    folders = {folder.name: FileBlobs(folder) for folder in sorted(data_dir.iterdir()) if (folder / "ff").is_dir()}
    with sqlite_file(snapshot) as copy:
        digests: dict[str, str | None] = dict(
            copy.execute("SELECT blob, digest FROM instance UNION ALL SELECT blob, digest FROM variant")
        )
        digests.update((row[0], None) for row in copy.execute("SELECT blob FROM quarantine"))
    written: dict[str, str] = {}
    missing: list[str] = []
    damaged: list[str] = []
    deleted = 0
    mode = "x:gz" if file.suffix in (".gz", ".tgz") else "x"
    _make_private(partial)
    with partial.open("wb") as raw:
        with tarfile.open(fileobj=raw, mode=mode) as archive:  # type: ignore[call-overload]
            for number, (blob, digest) in enumerate(sorted(digests.items()), start=1):
                progress(number, len(digests))
                name = _add_blob(archive, folders, blob, written)
                if name is None:
                    if _deleted_meanwhile(database, snapshot, blob):
                        deleted += 1
                    else:
                        missing.append(blob)
                elif digest is not None and dataset_digest(folders[name].path(blob)) != digest:
                    damaged.append(blob)
            for path in _beside(data_dir):
                try:
                    content = path.open("rb")
                except FileNotFoundError:
                    # Its images were deleted, or it has taken its name, since the folder was read.
                    continue
                with content:
                    member = path.relative_to(data_dir).as_posix()
                    written[member] = _add(archive, member, content, content.seek(0, io.SEEK_END))
            with snapshot.open("rb") as content:
                written[DATABASE] = _add(archive, DATABASE, content, snapshot.stat().st_size)
            counts = _counts(snapshot)
            manifest = {
                "format": FORMAT,
                "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "missing": missing,
                "damaged": damaged,
                "files": written,
                **counts,
            }
            text = json.dumps(manifest).encode()
            _add(archive, MANIFEST, io.BytesIO(text), len(text))
        raw.flush()
        os.fsync(raw.fileno())
    return {
        **counts,
        "files": len(written) - 1,
        "deleted_meanwhile": deleted,
        "missing": missing,
        "damaged": damaged,
    }


def _beside(data_dir: Path) -> Iterator[Path]:
    """Yield the files of models that were added at run time, heat maps, and the masks that shadows have made.

    Directly below those folders a name that begins with a point is the node's own: a lock, or a version that is being
    brought in. Further down it is a model's file like any other (a bundle's .gitattributes), which its card may name.
    """
    for name in BESIDE:
        for path in sorted((data_dir / name).rglob("*")):
            parts = path.relative_to(data_dir).parts
            if path.is_file() and not path.is_symlink() and not parts[1].startswith("."):
                yield path


def _add_blob(
    archive: tarfile.TarFile, folders: Mapping[str, FileBlobs], blob: str, written: dict[str, str]
) -> str | None:
    """Add one file under the folder that has it; None where no folder does."""
    for name, blobs in folders.items():
        try:
            content = blobs.path(blob).open("rb")
        except FileNotFoundError:
            continue
        with content:
            member = f"{name}/{blob[:2]}/{blob}"
            written[member] = _add(archive, member, content, content.seek(0, io.SEEK_END))
        return name
    return None


class Hashing:
    """Hashes what is read through it."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        part = self._content.read(size)
        self.digest.update(part)
        return part


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> str:
    content.seek(0)
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    hashing = Hashing(content)
    archive.addfile(member, hashing)
    return hashing.digest.hexdigest()


def _deleted_meanwhile(database: Path, snapshot: Path, blob: str) -> bool:
    """Whether a file was deleted on purpose since the snapshot; if so the snapshot learns of it."""
    with sqlite_file(database) as live:
        row = live.execute(
            "SELECT blob, sop_instance_uid, reason, deleted_at FROM tombstone WHERE blob = ?", (blob,)
        ).fetchone()
    if row is None:
        return False
    with sqlite_file(snapshot) as copy, copy:
        copy.execute(
            "INSERT OR IGNORE INTO tombstone (blob, sop_instance_uid, reason, deleted_at) VALUES (?,?,?,?)", row
        )
        copy.execute(
            "DELETE FROM variant WHERE blob = ? OR instance_id IN (SELECT id FROM instance WHERE blob = ?)",
            (blob, blob),
        )
        copy.execute("DELETE FROM instance WHERE blob = ?", (blob,))
    return True


def _counts(snapshot: Path) -> dict[str, int]:
    with sqlite_file(snapshot) as copy:
        return {
            "studies": copy.execute("SELECT count(*) FROM study").fetchone()[0],
            "instances": copy.execute("SELECT count(*) FROM instance").fetchone()[0],
        }


def dataset_digest(file: Path) -> str | None:
    """Return SHA-256 of a file's dataset without file meta; None where it is no DICOM file any more."""
    try:
        return read_header(file).digest
    except NotDicom:
        return None


def _read_back(file: Path) -> None:
    """Hold every byte of a written archive against the digests taken while it was written."""
    found: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    with tarfile.open(file) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            if member.name == MANIFEST:
                manifest = json.load(content)
            else:
                found[member.name] = _sha256(content)
    if found != manifest.get("files"):
        raise BackupError(f"{file}: what was written reads back differently; is the disk sound?")


def _sha256(content: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while part := content.read(CHUNK):
        digest.update(part)
    return digest.hexdigest()
