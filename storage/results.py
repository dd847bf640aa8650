"""Findings kept under what they are a function of, so that the same input costs a look-up.

Nothing depends on them: a row or a file of them may be lost, damaged or deleted at any time, and all that follows is
that a model runs again. So they lie in a folder of their own, are no part of a backup, and are no orphans there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from storage import schema
from storage.blobs import Blobs
from storage.database import Database, now
from storage.prepared import Prepared

__all__ = [
    "Kept",
    "Sealed",
    "Totals",
    "empty",
    "evict",
    "find",
    "forget",
    "forget_study",
    "put",
    "seal",
    "sweep",
    "totals",
]

#: A result's last use is written down again only after so long: a hit is to cost no write.
_USED_AGAIN = timedelta(days=1)
_EVICTED = 256

_r = schema.result.c
_FIND = Prepared(
    select(_r.findings, _r.digest, _r.blob, _r.provider, _r.precision, _r.used_at, _r.id)
    .where(_r.key == bindparam("key"))
    .order_by(_r.id.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One result: findings as JSON-ready values, and the file that holds their arrays, if there are any."""

    id: int
    findings: dict[str, Any]
    file: Path | None
    provider: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A result to be kept: findings as JSON, its file, and the SHA-256 and bytes of both together."""

    findings: bytes
    blob: str | None
    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How many results are kept, and their bytes."""

    results: int
    size: int


def find(database: Database, blobs: Blobs, key: str) -> Kept | None:
    """Return the result of a key. One that is damaged is none, and is forgotten."""
    with database.read() as connection:
        row = _FIND.first(connection, key=key)
        if row is None:
            return None
        findings, digest, blob, provider, precision, used_at, result_id = row
        stale = used_at < now(connection) - _USED_AGAIN
    file = blobs.path(blob) if blob is not None else None
    try:
        sound = _digest(findings, file) == digest
        values = json.loads(findings) if sound else None
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        forget(database, blobs, result_id)
        return None
    if stale:
        with database.write() as connection:
            connection.execute(update(schema.result).where(_r.id == result_id).values(used_at=now(connection)))
    return Kept(id=result_id, findings=values, file=file, provider=provider, precision=precision)


def seal(blobs: Blobs, findings: dict[str, Any], blob: str | None) -> Sealed:
    """Make a result ready to be kept, before any transaction: its file is read to the end, and may be large."""
    text = json.dumps(findings, separators=(",", ":")).encode()
    file = blobs.path(blob) if blob is not None else None
    size = len(text) + (file.stat().st_size if file is not None else 0)
    return Sealed(findings=text, blob=blob, digest=_digest(text, file), size=size)


def put(
    connection: Connection, key: str, sealed: Sealed, *, study_id: int, model: str, provider: str, precision: str
) -> bool:
    """Keep a result in the caller's transaction; the file's bytes are durable already. Whether it was new."""
    known = select(_r.id).where(_r.key == key, _r.provider == provider, _r.precision == precision)
    if connection.execute(known).first() is not None:
        return False
    at = now(connection)
    connection.execute(
        insert(schema.result).values(
            key=key,
            study_id=study_id,
            model=model,
            provider=provider,
            precision=precision,
            findings=sealed.findings,
            digest=sealed.digest,
            blob=sealed.blob,
            size=sealed.size,
            created_at=at,
            used_at=at,
        )
    )
    return True


def forget(database: Database, blobs: Blobs, result_id: int) -> None:
    """Forget one result."""
    with database.write() as connection:
        blob = connection.execute(select(_r.blob).where(_r.id == result_id)).scalar_one_or_none()
        connection.execute(delete(schema.result).where(_r.id == result_id))
    if blob is not None:
        blobs.delete(blob)


def forget_study(connection: Connection, study_id: int) -> None:
    """Forget the results of a study in the caller's transaction; :func:`sweep` removes their files."""
    connection.execute(delete(schema.result).where(_r.study_id == study_id))


def totals(connection: Connection) -> Totals:
    """Count what is kept."""
    count, size = connection.execute(select(func.count(), func.coalesce(func.sum(_r.size), 0))).one()
    return Totals(results=count, size=int(size))


def evict(database: Database, blobs: Blobs, most_bytes: float) -> int:
    """Forget results until they take no more than so much, those first that were not used for longest."""
    forgotten = 0
    while True:
        with database.write() as connection:
            over = totals(connection).size - most_bytes
            if over <= 0:
                return forgotten
            rows = connection.execute(select(_r.id, _r.blob, _r.size).order_by(_r.used_at, _r.id).limit(_EVICTED)).all()
            going = []
            for row in rows:
                if over <= 0:
                    break
                going.append(row)
                over -= row.size
            connection.execute(delete(schema.result).where(_r.id.in_([row.id for row in going])))
        for row in going:
            if row.blob is not None:
                blobs.delete(row.blob)
        forgotten += len(going)


def empty(database: Database, blobs: Blobs) -> Totals:
    """Forget every result; returns what there was."""
    with database.write() as connection:
        was = totals(connection)
        files = connection.execute(select(_r.blob).where(_r.blob.is_not(None))).scalars().all()
        connection.execute(delete(schema.result))
    for blob in files:
        blobs.delete(str(blob))
    return was


def sweep(database: Database, blobs: Blobs, before: int) -> int:
    """Remove files that no result names and that took their name before a moment: a crash came in between.

    Parameters
    ----------
    before
        In nanoseconds, by the file system's clock.
    """
    removed = 0
    for shard in blobs.shards():
        names = list(blobs.names(shard))
        if not names:
            continue
        with database.read() as connection:
            known = set(connection.execute(select(_r.blob).where(_r.blob.in_(names))).scalars())
        for name in names:
            changed_at = blobs.changed_at(name)
            if name not in known and changed_at is not None and changed_at < before:
                with contextlib.suppress(OSError):
                    blobs.delete(name)
                    removed += 1
    return removed


def _digest(findings: bytes, file: Path | None) -> str:
    digest = hashlib.sha256(findings)
    if file is not None:
        with file.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()
