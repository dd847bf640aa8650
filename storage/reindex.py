"""Making the index anew from the files alone; what an older index still says is asked where it can be read.

The files say what every object is. An older index adds what no file says: who sent it and when, what was deleted on
purpose, what the node itself has made, and the node's own identity.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from storage import changefeed, damage, lifecycle, schema
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import NotDicom
from storage.headers import Header, file_digest, read_header
from storage.index import Arrival, Origin, insert_group, is_made_here

__all__ = ["MARK", "Before", "Reindexed", "fill"]

#: Stands in ``node_identity`` while an index is being made: until then it is not one to work with.
MARK: Final = "reindexing"
_REASON = "the index was made anew from the files"
_BATCH = 400
_READERS = 4

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Reindexed:
    """What the new index holds. ``unreadable`` files are no DICOM; the next start puts them into quarantine."""

    instances: int = 0
    variants: int = 0
    studies: int = 0
    made_here: int = 0
    quarantined: int = 0
    deleted: int = 0
    unreadable: list[str] = field(default_factory=list)
    #: Files that are not what the older index has of them.
    changed: list[str] = field(default_factory=list)
    #: What of the older index could not be read.
    unknown: list[str] = field(default_factory=list)


class Before:
    """An older index, as far as it can be read; None stands for no older one at all."""

    def __init__(self, database: Database | None) -> None:
        self._database = database
        self.unreadable: list[str] = []

    def rows(self, what: str, query: Select[Any]) -> list[Any]:
        """Return the rows of a query; none where they cannot be read."""
        if self._database is None or what in self.unreadable:
            return []
        try:
            with self._database.read() as connection:
                return list(connection.execute(query).mappings())
        except (SQLAlchemyError, ValueError):
            self.unreadable.append(what)
            return []

    def all_of(self, table: Any) -> list[Any]:
        """Return every row of a small table."""
        return [dict(row) for row in self.rows(table.name, select(table))]

    def arrivals(self, names: Sequence[str]) -> dict[str, tuple[str, datetime, str]]:
        """Return who sent these files, when, and the digest of what came."""
        found: dict[str, tuple[str, datetime, str]] = {}
        for table in (schema.instance, schema.variant):
            c = table.c
            query = select(c.blob, c.calling_ae_title, c.received_at, c.digest).where(c.blob.in_(names))
            rows = self.rows("senders", query)
            found |= {row["blob"]: (row["calling_ae_title"], row["received_at"], row["digest"]) for row in rows}
        return found

    def made_here(self) -> set[str]:
        """Return the SOP Instance UIDs of everything that this node has made."""
        i, d = schema.instance.c, schema.document.c
        made = self.rows("what was made here", select(i.sop_instance_uid).where(i.made_here.is_(True)))
        documents = self.rows("documents", select(d.sop_instance_uid))
        return {row["sop_instance_uid"] for row in (*made, *documents)}


def fill(
    database: Database,
    blobs: Blobs,
    refused: Blobs,
    before: Before,
    device_uids: Collection[str] = (),
    progress: Progress = lambda _done, _total: None,
) -> Reindexed:
    """Fill an empty database of the current schema. Nothing else may write, and no file is touched.

    Every study is *historical*: nothing runs on it until an operator asks. What lies there in two versions keeps the
    older one, by the time at which its file was written.

    Parameters
    ----------
    device_uids
        Device UIDs of the models; see :class:`storage.intake.Archive`.
    """
    found = Reindexed()
    deleted = _copy_what_no_file_says(database, before)
    made_here = before.made_here()
    device_uids = {*device_uids, *(row["device_uid"] for row in before.all_of(schema.model_device))}
    written = sorted((_written_at(blobs, name), name) for name in blobs.names())
    aside = sorted(refused.names())
    total, done = len(written) + len(aside), 0
    progress(done, total)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="reindex") as pool:
        for batch in _batches(written):
            kept = [(at, name) for at, name in batch if name not in deleted]
            found.deleted += len(batch) - len(kept)
            headers = list(pool.map(lambda one: _header(blobs, one[1]), kept))
            found.unreadable += [name for (_, name), header in zip(kept, headers, strict=True) if header is None]
            readable = [(at, name, one) for (at, name), one in zip(kept, headers, strict=True) if one is not None]
            found.changed += _index(database, before, readable, device_uids, made_here)
            done += len(batch)
            progress(done, total)
    old = {row["blob"]: row for row in before.all_of(schema.quarantine)}
    for names in _batches(aside):
        _record_refused(database, refused, [name for name in names if name not in deleted], old)
        done += len(names)
        progress(done, total)
    _make_historical(database)
    found.unknown = list(before.unreadable)
    with database.write() as connection:
        _count(connection, found)
        detail = {"instances": found.instances, "studies": found.studies, "unreadable": len(found.unreadable)}
        changefeed.append(connection, "reindex", None, study_id=None, after="REINDEXED", reason=_REASON, detail=detail)
        connection.execute(delete(schema.node_identity).where(schema.node_identity.c.key == MARK))
    return found


def _copy_what_no_file_says(database: Database, before: Before) -> set[str]:
    """Keep the node's identity, what operators hold still, stages of models, and tombstones.

    Returns
    -------
    set of str
        The names of the files that were deleted.
    """
    tombstones = before.all_of(schema.tombstone)
    with database.write() as connection:
        connection.execute(insert(schema.node_identity).values(key=MARK, value="1"))
        for table, rows in (
            (schema.node_identity, [row for row in before.all_of(schema.node_identity) if row["key"] != MARK]),
            (schema.pause, before.all_of(schema.pause)),
            (schema.model_version, _numbered_anew(before.all_of(schema.model_version))),
            (schema.model_change, _numbered_anew(before.all_of(schema.model_change))),
            (schema.model_device, before.all_of(schema.model_device)),
            (schema.tombstone, tombstones),
        ):
            if rows:
                connection.execute(insert(table), rows)
    return {row["blob"] for row in tombstones}


def _numbered_anew(rows: list[Any]) -> list[Any]:
    """Leave the database its own numbers, in the old order: PostgreSQL does not count those that it is given."""
    return [
        {key: value for key, value in row.items() if key != "id"} for row in sorted(rows, key=lambda row: row["id"])
    ]


def _written_at(blobs: Blobs, name: str) -> int:
    try:
        return blobs.path(name).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _header(blobs: Blobs, name: str) -> Header | None:
    try:
        return read_header(blobs.path(name))
    except (NotDicom, OSError):
        return None


def _index(
    database: Database,
    before: Before,
    files: Sequence[tuple[int, str, Header]],
    device_uids: Collection[str],
    made_here: Collection[str],
) -> list[str]:
    """Index some files; returns those that are not what the older index has of them, with what it has kept of it."""
    known = before.arrivals([name for _, name, _ in files])
    arrivals, times, changed = [], [], []
    for written_at, name, read in files:
        sender, at, digest = known.get(name, ("", datetime.fromtimestamp(written_at / 1e9, UTC), read.digest))
        header = read
        if digest != read.digest:
            # What came is still what it was: the file is to be told from it, and what is sent again restores it.
            header = replace(read, digest=digest)
            changed.append(name)
        arrivals.append(
            Arrival(
                header=header,
                blob=name,
                origin=Origin(calling_ae_title=sender),
                made_here=header.sop_instance_uid in made_here or is_made_here(header, device_uids),
            )
        )
        times.append({"of": name, "at": at})
    if not arrivals:
        return []
    with database.write() as connection:
        insert_group(connection, arrivals)
        for table in (schema.instance, schema.variant):
            statement = update(table).where(table.c.blob == bindparam("of")).values(received_at=bindparam("at"))
            connection.execute(statement, times)
        damage.note(connection, dict.fromkeys(changed, "changed"))
    return changed


def _record_refused(database: Database, refused: Blobs, names: Sequence[str], old: dict[str, Any]) -> None:
    rows = []
    for name in names:
        path, known = refused.path(name), old.get(name)
        stat = path.stat()
        rows.append(
            {
                "blob": name,
                "size": stat.st_size,
                "digest": known["digest"] if known and known["digest"] else file_digest(path),
                "reason": known["reason"] if known else "found without a record when the index was made anew",
                "calling_ae_title": known["calling_ae_title"] if known else "",
                "received_at": known["received_at"] if known else datetime.fromtimestamp(stat.st_mtime, UTC),
            }
        )
    if rows:
        with database.write() as connection:
            connection.execute(insert(schema.quarantine), rows)


def _make_historical(database: Database) -> None:
    """Let nothing run on any study, and say when its objects came."""
    s, i = schema.study.c, schema.instance.c
    last = 0
    while True:
        with database.write() as connection:
            rows = connection.execute(select(s.id, s.state).where(s.id > last).order_by(s.id).limit(_BATCH)).all()
            if not rows:
                return
            for row in rows:
                if row.state == lifecycle.RECEIVING:
                    lifecycle.transition(
                        connection, "study", row.id, lifecycle.COMPLETE, study_id=row.id, reason=_REASON
                    )
            first, latest = (
                select(one(i.received_at)).where(i.study_id == s.id).scalar_subquery() for one in (func.min, func.max)
            )
            connection.execute(
                update(schema.study)
                .where(s.id.in_([row.id for row in rows]))
                .values(historical=True, first_received_at=first, last_received_at=latest, quiet_from=latest)
            )
            last = rows[-1].id


def _count(connection: Connection, found: Reindexed) -> None:
    def count(table: Any, *conditions: Any) -> int:
        return int(connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one())

    found.instances = count(schema.instance)
    found.variants = count(schema.variant)
    found.studies = count(schema.study)
    found.made_here = count(schema.instance, schema.instance.c.made_here.is_(True))
    found.quarantined = count(schema.quarantine)
