"""Putting files and rows in agreement after a start, a folder at a time, while the node already works.

A file without a row is either deleted already (its tombstone says so), or was never acknowledged: it is adopted, since
its sender may not come again. A row without a file is recorded as damage. However much is held, only one folder's
names are in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, Table, exists, select

from storage import damage, schema
from storage.blobs import Blobs, file_size
from storage.database import Database
from storage.errors import NotDicom
from storage.headers import file_digest, read_header
from storage.index import Origin, Outcome, insert_instance, is_made_here, quarantine_blob

__all__ = ["Reconciled", "clear_incoming", "reconcile", "remove_leftovers", "steps", "still_missing"]


@dataclass(slots=True, kw_only=True)
class Reconciled:
    """What was found: files adopted, refused and removed; rows whose file is gone.

    ``leftovers`` were made by this node and never committed: that work is done again, and they can go.
    """

    adopted: int = 0
    quarantined: int = 0
    removed: int = 0
    missing: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    #: Orphans that could not be read.
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Places:
    database: Database
    blobs: Blobs
    refused: Blobs
    device_uids: Container[str]
    before: int | None

    def is_settled(self, blobs: Blobs, name: str) -> bool:
        """Whether a file was there before the node started: what comes now has its row in a moment."""
        changed = blobs.changed_at(name)
        return changed is not None and (self.before is None or changed < self.before)


def clear_incoming(incoming: Path) -> int:
    """Remove half-written files, which were never acknowledged; before the first receiver starts."""
    half_written = [path for path in incoming.iterdir() if path.is_file()]
    for path in half_written:
        path.unlink()
    return len(half_written)


def reconcile(
    database: Database, blobs: Blobs, refused: Blobs, incoming: Path, device_uids: Container[str] = ()
) -> Reconciled:
    """Put everything in agreement at once; only while nothing else writes."""
    found = Reconciled(removed=clear_incoming(incoming))
    for _ in steps(database, blobs, refused, device_uids, found):
        pass
    found.removed += remove_leftovers(database, blobs, found.leftovers)
    found.missing = still_missing(database, found.missing)
    return found


def steps(
    database: Database,
    blobs: Blobs,
    refused: Blobs,
    device_uids: Container[str],
    found: Reconciled,
    *,
    before: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Look at folder after folder, those first in which something was changed last.

    Parameters
    ----------
    found
        What is found is added to it.
    before
        Files changed at this time or later (nanoseconds, as the file system has it) are left alone: other processes
        of the node may be taking them in. None where there are none.

    Yields
    ------
    int, int
        How many folders were looked at, of how many.
    """
    places = _Places(database, blobs, refused, device_uids, before)
    held, aside = blobs.shards(), refused.shards()
    done, total = 0, len(held) + len(aside)
    for shard in held:
        _reconcile_held(places, shard, found)
        done += 1
        yield done, total
    for shard in aside:
        _reconcile_refused(places, shard, found)
        done += 1
        yield done, total


def remove_leftovers(database: Database, blobs: Blobs, leftovers: Collection[str]) -> int:
    """Remove files of this node's making that no row names; returns how many there were."""
    removed = 0
    i, v = schema.instance.c, schema.variant.c
    for blob in leftovers:
        with database.read() as connection:
            named = connection.execute(
                select(exists().where(i.blob == blob) | exists().where(v.blob == blob))
            ).scalar_one()
        if not named:
            blobs.delete(blob)
            removed += 1
    return removed


def still_missing(database: Database, missing: Collection[str]) -> list[str]:
    """Return those whose bytes have not been found under another name meanwhile."""
    if not missing:
        return []
    with database.read() as connection:
        noted = set(connection.execute(select(schema.damage.c.blob)).scalars())
    return [blob for blob in missing if blob in noted]


def _reconcile_held(places: _Places, shard: str, found: Reconciled) -> None:
    database, blobs = places.database, places.blobs
    # The names first: what comes meanwhile has a row that is too new to be missed, and no name that is an orphan's.
    names = set(blobs.names(shard))
    with database.read() as connection:
        rows = _named(connection, shard)
        deleted = _of_shard(connection, schema.tombstone, shard)
        noted = _of_shard(connection, schema.damage, shard)
    for blob in sorted(names - rows):
        if not places.is_settled(blobs, blob):
            continue
        if blob in deleted:
            blobs.delete(blob)
            found.removed += 1
        else:
            try:
                _count(found, blob, _adopt(places, blob))
            except OSError:
                # One file that cannot be read, or is none, must not keep the others from being looked at.
                found.unreadable.append(blob)
    missing = sorted(blob for blob in rows - names if blobs.changed_at(blob) is None)
    if missing or noted:
        with database.write() as connection:
            # Asked again only now: what was adopted may stand in the place of what was gone, or it was deleted.
            rows = _named(connection, shard)
            missing = [blob for blob in missing if blob in rows]
            damage.note(connection, dict.fromkeys(missing, "missing"))
            there = {blob for blob in noted if blob not in rows or (blob in names and _is_missing(connection, blob))}
            damage.forget(connection, there)
        found.missing += missing


def _is_missing(connection: Connection, blob: str) -> bool:
    d = schema.damage.c
    return connection.execute(select(d.kind).where(d.blob == blob)).scalar_one_or_none() == "missing"


def _reconcile_refused(places: _Places, shard: str, found: Reconciled) -> None:
    names = set(places.refused.names(shard))
    with places.database.read() as connection:
        rows = _of_shard(connection, schema.quarantine, shard)
        deleted = _of_shard(connection, schema.tombstone, shard)
    for blob in sorted(names - rows):
        if not places.is_settled(places.refused, blob):
            continue
        if blob in deleted:
            places.refused.delete(blob)
            found.removed += 1
            continue
        size, digest = _facts(places.refused.path(blob))
        reason = "found without a record at start-up"
        with places.database.write() as connection:
            quarantine_blob(connection, blob, size, digest, reason, Origin(calling_ae_title=""))
        found.quarantined += 1


def _count(found: Reconciled, blob: str, adopted: Outcome | str) -> None:
    if adopted == "refused":
        found.quarantined += 1
    elif adopted == "leftover":
        found.leftovers.append(blob)
    elif adopted in (Outcome.DUPLICATE, "gone"):
        found.removed += adopted is Outcome.DUPLICATE
    else:
        found.adopted += 1


def _adopt(places: _Places, blob: str) -> Outcome | str:
    """Index an orphan; returns what it was to the index, or that it was refused, has gone, or is a leftover."""
    database, blobs = places.database, places.blobs
    origin = Origin(calling_ae_title="")
    path = blobs.path(blob)
    try:
        header = read_header(path)
    except FileNotFoundError:
        return "gone"
    except NotDicom as error:
        size, digest = _facts(path)
        kept = places.refused.adopt(path)
        with database.write() as connection:
            quarantine_blob(connection, kept, size, digest, str(error), origin)
        return "refused"
    made_here = is_made_here(header, places.device_uids)
    i = schema.instance.c
    with database.write() as connection:
        known = connection.execute(select(exists().where(i.sop_instance_uid == header.sop_instance_uid))).scalar_one()
        if made_here and not known:
            return "leftover"
        indexed = insert_instance(
            connection,
            header,
            blob,
            origin,
            made_here=made_here,
            holds=lambda kept: file_size(blobs.path(kept)),
        )
    if indexed.outcome is Outcome.DUPLICATE:
        blobs.delete(blob)
    return indexed.outcome


def _facts(path: Path) -> tuple[int, str]:
    return path.stat().st_size, file_digest(path)


def _named(connection: Connection, shard: str) -> set[str]:
    """Return the blobs of a folder that rows name."""
    return _of_shard(connection, schema.instance, shard) | _of_shard(connection, schema.variant, shard)


def _of_shard(connection: Connection, table: Table, shard: str) -> set[str]:
    # Names are lowercase hexadecimal digits; "g" stands behind all of them in every collation.
    blob = table.c.blob
    return set(connection.execute(select(blob).where(blob >= shard, blob < shard + "g")).scalars())
