"""Restores a backup of a data directory so that nothing is sent a second time by itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from node.errors import BackupError
from node.ops.backup import (
    BESIDE,
    CHUNK,
    DATABASE,
    FORMAT,
    MANIFEST,
    Hashing,
    Progress,
    database_file,
    dataset_digest,
    sqlite_file,
)
from node.ops.directory import LOCK, RESTORING, DataDirectory
from node.settings import Settings
from node.workflow import targets
from storage import changefeed, lifecycle, outbox, schema, studies, worklist
from storage.blobs.files import fsync_directory
from storage.database import Database, migrate

__all__ = ["RestoreReport", "restore"]

_ALL = 1 << 30
#: So many names of what is in the way are given.
_NAMED = 5
#: The folders that a backup holds.
_BLOBS = ("blobs", "quarantine")
_RESTORED = (*_BLOBS, *BESIDE)
#: No part of a name is "." or "..": none leads out of the folder. Nor is a lock of the node's own taken.
_PART = r"/(?!\.{1,2}(?:/|\Z))[^/\x00]+"
MEMBER = re.compile(
    rf"({'|'.join(_BLOBS)})/[0-9a-f]{{2}}/[0-9a-f]{{32}}|({'|'.join(BESIDE)})/[^./\x00][^/\x00]*(?:{_PART})*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What was restored, and how much of it is parked since it may have gone on after the backup."""

    taken_at: str
    studies: int
    instances: int
    files: int
    parked_studies: int
    parked_workitems: int
    parked_deliveries: int
    parked_notifications: int
    parked_commitments: int
    parked_availability: int
    missing: list[str] = field(default_factory=list)


def restore(settings: Settings, file: Path, progress: Progress = lambda _done, _total: None) -> RestoreReport:
    """Unpack a backup into an empty data directory, check every byte, and hold what may have gone on since.

    What was pending when the backup was taken may have been sent afterwards: deliveries, notifications, open
    workitems and studies that were still being received are parked, each with that reason, until an operator
    asks for them. What comes in anew runs as ever. Interrupted, it leaves a mark that keeps a node from starting; run
    again, it starts over.

    Raises
    ------
    ConfigurationError
        With PostgreSQL.
    AlreadyRunning
        When a node holds the data directory.
    BackupError
        When the data directory holds anything but what an interrupted restore has left, or the archive is none of
        ours, incomplete or damaged; then nothing is left behind.
    """
    target = database_file(settings)
    root = settings.data_dir.absolute()
    _refuse_what_is_there(root, target)
    if not file.is_file():
        raise BackupError(f"{file}: no such file")
    existed = root.is_dir()
    with DataDirectory(root).lock():
        # Looked at again: a node may have started in between.
        _refuse_what_is_there(root, target)
        unpacked = root / RESTORING
        _clear_interrupted(root)
        unpacked.mkdir()
        fsync_directory(root)
        try:
            manifest = _unpack(file, unpacked, progress)
            missing = _check_digests(unpacked, set(manifest["damaged"]))
            _complete_folders(unpacked)
            migrate(_url(unpacked / DATABASE))
            held = _hold(unpacked / DATABASE, str(manifest["taken_at"]))
            fsync_directory(unpacked)
        except BaseException:
            shutil.rmtree(unpacked)
            (root / LOCK).unlink()
            if not existed:
                root.rmdir()
            raise
        _put_in_place(unpacked, root, target)
    return RestoreReport(
        taken_at=str(manifest["taken_at"]),
        studies=int(manifest["studies"]),
        instances=int(manifest["instances"]),
        files=len(manifest["files"]) - 1,
        missing=missing,
        **held,
    )


def _refuse_what_is_there(root: Path, target: Path) -> None:
    """Refuse a directory that holds anything but a lock and what an interrupted restore has left."""
    there = {one.name for one in root.iterdir()} if root.is_dir() else set()
    expected = {LOCK, RESTORING, *_RESTORED, DATABASE} if RESTORING in there else {LOCK}
    if found := sorted(there - expected):
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise BackupError(
            f"{root} is not empty: it holds {', '.join(found[:_NAMED])}{more}; "
            "restore into a new data_dir, or move what is there away first"
        )
    if target.exists() and not (RESTORING in there and target == root / DATABASE):
        raise BackupError(f"{target} is there already; move it away first")


def _clear_interrupted(root: Path) -> None:
    """Remove what an interrupted restore has left, and the mark that it was interrupted last."""
    if not (root / RESTORING).exists():
        return
    for name in _RESTORED:
        shutil.rmtree(root / name, ignore_errors=True)
    (root / DATABASE).unlink(missing_ok=True)
    fsync_directory(root)
    shutil.rmtree(root / RESTORING)


def _put_in_place(unpacked: Path, root: Path, target: Path) -> None:
    """Move everything to where a node looks for it; no node starts before the emptied folder is gone, which is last."""
    try:
        for one in sorted(unpacked.iterdir(), key=lambda path: path.name == DATABASE):
            one.rename(target if one.name == DATABASE else root / one.name)
        fsync_directory(root)
        fsync_directory(target.parent)
        unpacked.rmdir()
        fsync_directory(root)
    except OSError as error:
        raise BackupError(
            f"{root}: what was unpacked cannot be moved into place ({error.strerror}); mend that and restore again"
        ) from None


def _url(file: Path) -> str:
    return f"sqlite:///{file.absolute()}"


def _unpack(file: Path, folder: Path, progress: Progress) -> dict[str, Any]:
    """Unpack an archive of ours and nothing else: every name is one that a backup writes, every byte is checked."""
    found: dict[str, str] = {}
    manifest: dict[str, Any] | None = None
    try:
        with tarfile.open(file) as archive:
            for number, member in enumerate(archive, start=1):
                known = member.name in (DATABASE, MANIFEST) or MEMBER.fullmatch(member.name)
                if not known or not member.isreg() or member.name in found:
                    raise BackupError(
                        f"{file}: holds {member.name!r}, which no backup of a node does; nothing restored"
                    )
                content = archive.extractfile(member)
                assert content is not None
                if member.name == MANIFEST:
                    manifest = json.load(content)
                    continue
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                hashing = Hashing(content)
                with path.open("xb") as out:
                    shutil.copyfileobj(hashing, out, CHUNK)
                    out.flush()
                    os.fsync(out.fileno())
                found[member.name] = hashing.digest.hexdigest()
                progress(number, number)
    except (tarfile.TarError, EOFError, OSError, json.JSONDecodeError) as error:
        raise BackupError(f"{file}: cannot be unpacked: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or DATABASE not in found:
        raise BackupError(f"{file}: is no complete backup of a node (format {FORMAT})")
    wrong = sorted(
        name for name in found.keys() | manifest["files"].keys() if found.get(name) != manifest["files"].get(name)
    )
    if wrong:
        raise BackupError(f"{file}: {wrong[0]} (and {len(wrong) - 1} more) is not what was backed up; nothing restored")
    for parent in {(folder / name).parent for name in found}:
        fsync_directory(parent)
    return manifest


def _check_digests(folder: Path, damaged: set[str]) -> list[str]:
    """Hold each instance's dataset against the digest in its row.

    Returns
    -------
    list of str
        The names that have no file, and those that were damaged before the backup was taken.
    """
    folders = [one for one in folder.iterdir() if one.is_dir()]
    missing: list[str] = []
    with sqlite_file(folder / DATABASE) as database:
        rows = database.execute(
            "SELECT blob, digest FROM instance UNION ALL SELECT blob, digest FROM variant"
        ).fetchall()
    for blob, digest in rows:
        path = next((one / blob[:2] / blob for one in folders if (one / blob[:2] / blob).is_file()), None)
        if path is None or blob in damaged:
            missing.append(blob)
        elif dataset_digest(path) != digest:
            raise BackupError(f"{blob}: the object's dataset is not the one that was received; nothing restored")
    return missing


def _complete_folders(folder: Path) -> None:
    """Make the subfolders that had no file: blobs are adopted into folders that are there."""
    for one in folder.iterdir():
        if one.is_dir() and one.name not in BESIDE:
            for number in range(256):
                (one / f"{number:02x}").mkdir(exist_ok=True)
            fsync_directory(one)


def _hold(file: Path, taken_at: str) -> dict[str, int]:
    """Park everything that was under way: it may have been finished and sent after the backup was taken."""
    reason = (
        f"restored from a backup of {taken_at}; it may have gone on after that: look at the PACS and the receiver, "
        "then retry what is missing there"
    )
    database = Database(_url(file))
    try:
        with database.write() as connection:
            held = {
                "parked_workitems": _hold_workitems(connection, reason),
                "parked_studies": _hold_studies(connection, reason),
                "parked_deliveries": _hold_outgoing(connection, "delivery", reason),
                "parked_notifications": _hold_outgoing(connection, "notification", reason),
                "parked_commitments": _hold_outgoing(connection, "commitment", reason),
                "parked_availability": _hold_outgoing(connection, "availability", reason),
            }
            changefeed.append(connection, "restore", None, study_id=None, after="RESTORED", reason=reason, detail=held)
    finally:
        database.close()
    with sqlite_file(file) as restored:
        # One file again, nothing beside it.
        restored.execute("PRAGMA journal_mode=DELETE")
    return held


def _hold_workitems(connection: Connection, reason: str) -> int:
    w = schema.workitem.c
    query = select(w.id).where(w.state.in_((lifecycle.SCHEDULED, lifecycle.IN_PROGRESS)))
    found = connection.execute(query).scalars().all()
    for workitem_id in found:
        worklist.cancel(connection, worklist.get(connection, workitem_id), reason)
        worklist.set_parked(connection, worklist.get(connection, workitem_id), True, reason)
    return len(found)


def _hold_studies(connection: Connection, reason: str) -> int:
    """Park what was being received or not yet routed; what was about to be reported is held as reported."""
    s = schema.study.c
    unrouted = set()
    for revision in studies.revisions_in(connection, lifecycle.OPEN, limit=_ALL):
        unrouted.add(revision.study_id)
        _move(connection, "revision", revision.id, lifecycle.ROUTED, revision.study_id, reason)
    for revision in studies.revisions_in(connection, lifecycle.ROUTED, limit=_ALL):
        _move(connection, "revision", revision.id, lifecycle.REPORTED, revision.study_id, reason)
    parked = 0
    for row in connection.execute(select(s.id, s.state)).all():
        if row.state == lifecycle.COMPLETE and row.id in unrouted:
            # So that a retry opens a revision although nothing new has come.
            studies.judge_anew(connection, row.id)
            _move(connection, "study", row.id, lifecycle.RECEIVING, row.id, reason)
        elif row.state != lifecycle.RECEIVING:
            continue
        _move(connection, "study", row.id, lifecycle.PARKED, row.id, reason)
        parked += 1
    return parked


def _hold_outgoing(connection: Connection, kind: outbox.Kind, reason: str) -> int:
    table = {
        "delivery": schema.delivery,
        "notification": schema.notification,
        "commitment": schema.commitment,
        "availability": schema.availability,
    }[kind]
    found = connection.execute(select(table.c.id).where(table.c.state == lifecycle.PENDING)).scalars().all()
    for object_id in found:
        study_id = targets.resolve(connection, f"{kind}:{object_id}").study_id
        outbox.park(connection, kind, object_id, study_id=study_id, answer=reason)
    return len(found)


def _move(connection: Connection, kind: str, object_id: int, to: str, study_id: int, reason: str) -> None:
    lifecycle.transition(connection, kind, object_id, to, study_id=study_id, reason=reason)
