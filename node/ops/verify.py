"""Reads everything that is held again, from the disk, and holds it against the digests taken when it came in.

Works beside a running node. What is wrong is kept as damage, for status, health and metrics, until it is right again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Select, exists, func, select

from storage import chores, damage, results, schema, studies
from storage.blobs import Blobs
from storage.damage import Kind
from storage.database import Database
from storage.errors import NotDicom
from storage.headers import dataset_digest, file_digest

__all__ = ["CHORE", "Finding", "VerifyReport", "verify"]

#: The name of this work among the chores.
CHORE: Final = "verify"
_BATCH = 256
_READERS = 4
_SOURCES: Final = ("instance", "variant", "document", "quarantine")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A file that is not what its row says.

    ``what`` is instance, variant, document or quarantine; the UIDs are empty for quarantine.
    """

    kind: Kind
    what: str
    blob: str
    study_instance_uid: str
    sop_instance_uid: str


@dataclass(slots=True, kw_only=True)
class VerifyReport:
    """What was read, and what was found wrong. ``files`` counts this run alone."""

    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    resumed: bool = False
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    id: int
    blob: str
    digest: str | None
    size: int | None
    study_instance_uid: str
    sop_instance_uid: str


def verify(
    database: Database,
    blobs: Blobs,
    refused: Blobs,
    *,
    study_instance_uid: str | None = None,
    since: datetime | None = None,
    resume: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> VerifyReport:
    """Read again and compare.

    Parameters
    ----------
    study_instance_uid
        Only what belongs to this study.
    since
        Only what came at this time or later.
    resume
        Go on where an interrupted run over everything has stopped.

    Raises
    ------
    Unknown
        When there is no such study.
    """
    started = time.monotonic()
    whole = study_instance_uid is None and since is None
    with database.read() as connection:
        study = None if study_instance_uid is None else studies.by_uid(connection, study_instance_uid)
        sources = _SOURCES if study is None else _SOURCES[:3]
        queries = {name: _query(name, study.id if study else None, since) for name in sources}
        total = sum(_count(connection, query) for query in queries.values())
        noted = set(connection.execute(select(schema.damage.c.blob)).scalars())
        chore = chores.get(connection, CHORE) if whole and resume else None
    report = VerifyReport(resumed=chore is not None and chore.ended_at is None)
    done, first, after = 0, sources[0], 0
    if chore is not None and report.resumed:
        done, first, after = chore.done, str(chore.found["source"]), int(chore.found["after"])
    elif whole:
        with database.write() as connection:
            chores.begin(connection, CHORE, total)
            chores.step(connection, CHORE, 0, {"source": first, "after": 0, "wrong": 0})
    with ThreadPoolExecutor(_READERS, thread_name_prefix="verify") as pool:
        for source in sources[sources.index(first) :]:
            for rows in _batches(database, queries[source], after):
                where = refused if source == "quarantine" else blobs
                found = dict(zip(rows, pool.map(lambda row, where=where: _look(where, row), rows), strict=True))
                report.bytes += sum(size for _, size in found.values())
                wrong = {row: kind for row, (kind, _) in found.items() if kind is not None}
                done, report.files = done + len(rows), report.files + len(rows)
                with database.write() as connection:
                    # Asked again: meanwhile it may have been deleted, or have got other bytes.
                    wrong = {row: kind for row, kind in wrong.items() if _is_named(connection, source, row)}
                    damage.note(connection, {row.blob: kind for row, kind in wrong.items()})
                    _forget_results(connection, wrong)
                    damage.forget(connection, noted & {row.blob for row in rows if row not in wrong})
                    if whole:
                        state = {"source": source, "after": rows[-1].id, "wrong": len(report.findings) + len(wrong)}
                        chores.step(connection, CHORE, done, state)
                report.findings += [
                    Finding(
                        kind=kind,
                        what=source,
                        blob=row.blob,
                        study_instance_uid=row.study_instance_uid,
                        sop_instance_uid=row.sop_instance_uid,
                    )
                    for row, kind in wrong.items()
                ]
                progress(done, max(total, done))
            after = 0
    if whole:
        with database.write() as connection:
            chores.end(connection, CHORE, {"wrong": len(report.findings)})
    report.seconds = round(time.monotonic() - started, 3)
    return report


def _query(source: str, study_id: int | None, since: datetime | None) -> Select[Any]:
    """Select id, blob, digest, size and whose it is; the size is None where the digest says it all."""
    i, v, d, q, w = (getattr(schema, name).c for name in ("instance", "variant", "document", "quarantine", "workitem"))
    study = schema.study.c.study_instance_uid
    if source == "instance":
        query = select(i.id, i.blob, i.digest, study.label("study"), i.sop_instance_uid).select_from(
            schema.instance.join(schema.study, i.study_id == schema.study.c.id)
        )
        of, at = i.study_id, i.received_at
    elif source == "variant":
        query = select(v.id, v.blob, v.digest, study.label("study"), i.sop_instance_uid).select_from(
            schema.variant.join(schema.instance).join(schema.study, i.study_id == schema.study.c.id)
        )
        of, at = i.study_id, v.received_at
    elif source == "document":
        # Almost every document is an instance too, and is looked at as that.
        query = (
            select(d.id, d.blob, d.digest, study.label("study"), d.sop_instance_uid)
            .select_from(schema.document.join(schema.workitem).join(schema.study, w.study_id == schema.study.c.id))
            .where(~exists().where(i.blob == d.blob))
        )
        of, at = w.study_id, d.created_at
    else:
        query = select(q.id, q.blob, q.digest, q.size)
        of, at = None, q.received_at
    if study_id is not None and of is not None:
        query = query.where(of == study_id)
    return query.where(at >= since) if since is not None else query


def _count(connection: Connection, query: Select[Any]) -> int:
    return int(connection.execute(select(func.count()).select_from(query.subquery())).scalar_one())


def _batches(database: Database, query: Select[Any], after: int) -> Iterator[list[_Row]]:
    key = query.selected_columns[0]
    while True:
        with database.read() as connection:
            found = connection.execute(query.where(key > after).order_by(key).limit(_BATCH)).mappings().all()
        if not found:
            return
        yield [
            _Row(
                row["id"],
                row["blob"],
                row["digest"],
                row.get("size"),
                row.get("study", ""),
                row.get("sop_instance_uid", ""),
            )
            for row in found
        ]
        after = int(found[-1]["id"])


def _is_named(connection: Connection, source: str, row: _Row) -> bool:
    c = getattr(schema, source).c
    return connection.execute(select(c.blob).where(c.id == row.id)).scalar_one_or_none() == row.blob


def _forget_results(connection: Connection, wrong: Iterable[_Row]) -> None:
    """Forget what models have said of these studies: nobody knows when a file changed."""
    for uid in {row.study_instance_uid for row in wrong} - {""}:
        results.forget_study(connection, studies.by_uid(connection, uid).id)


def _look(blobs: Blobs, row: _Row) -> tuple[Kind | None, int]:
    """Return what is wrong with a file, and how many bytes were read."""
    path = blobs.path(row.blob)
    try:
        size = path.stat().st_size
        _forget_cached(path)
        if row.size is not None:
            right = size == row.size and row.digest in (None, file_digest(path))
        else:
            right = dataset_digest(path) == row.digest
    except FileNotFoundError:
        return "missing", 0
    except NotDicom:
        return "changed", 0
    except OSError:
        return "unreadable", 0
    return (None if right else "changed"), size


def _forget_cached(path: Path) -> None:
    """Have the next read come from the disk: what memory still holds says nothing about that."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
