"""Versions of models, as rows: what each is, its last test, and the audit trail of every change.

A version is registered once and never changes under its number. How its stage moves is :mod:`storage.stages`; how many
changes there are tells every process whether it has to look again.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from storage import lifecycle, schema
from storage.database import Database, now
from storage.errors import AlreadyThere, Unknown
from storage.lifecycle import CANARY, CANDIDATE, LIVE
from storage.records import ModelChange, ModelVersion

__all__ = [
    "ADDED",
    "SHIPPED",
    "Found",
    "KnownDevices",
    "add",
    "device_uids",
    "get",
    "history",
    "insert_version",
    "know_device",
    "note",
    "record_test",
    "released",
    "revision",
    "reword",
    "versions",
    "were_live",
]

SHIPPED = "shipped"
ADDED = "added"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A version as its files say: see :class:`storage.records.ModelVersion`."""

    model: str
    version: str
    digest: str
    device_uid: str
    card_sha256: str
    origin: str


class KnownDevices(Container[str]):
    """The Device UIDs that models of this node have ever had, asked for one at a time: new ones count at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __contains__(self, device_uid: object) -> bool:
        d = schema.model_device.c
        with self._database.read() as connection:
            return connection.execute(select(d.model).where(d.device_uid == device_uid)).first() is not None


def device_uids(connection: Connection) -> frozenset[str]:
    """Return every Device UID that a model of this node has ever had."""
    return frozenset(connection.execute(select(schema.model_device.c.device_uid)).scalars())


def revision(connection: Connection) -> int:
    """Return a number that grows with every change: where it is the same, nothing has changed."""
    # Not the last id: with PostgreSQL a change may be committed after one that has a higher id.
    return connection.execute(select(func.count()).select_from(schema.model_change)).scalar_one()


def versions(connection: Connection, model: str | None = None, *, lock: bool = False) -> list[ModelVersion]:
    """Return every version, or those of one model: by name, oldest first; with ``lock``, to change them."""
    m = schema.model_version.c
    query = select(schema.model_version).order_by(m.model, m.id)
    if model is not None:
        query = query.where(m.model == model)
    if lock:
        query = query.with_for_update()
    return [ModelVersion(**row) for row in connection.execute(query).mappings()]


def get(connection: Connection, model: str, version: str | None = None) -> ModelVersion:
    """Return one version; without its number the one that is live.

    Raises
    ------
    Unknown
        With the versions that there are.
    """
    there = versions(connection, model)
    for one in there:
        if one.version == version or (version is None and one.state == LIVE):
            return one
    if not there:
        names = sorted({one.model for one in versions(connection)})
        raise Unknown(f"no model {model!r} is registered (there is: {', '.join(names) or 'none'})")
    known = ", ".join(f"{one.version} {one.state}" for one in there)
    what = f"no version {version!r} of {model}" if version is not None else f"no version of {model} is live"
    raise Unknown(f"{what} (there is: {known})")


def add(connection: Connection, found: Found, *, by: str, why: str = "") -> tuple[ModelVersion, bool]:
    """Register a version that an operator brings, as a candidate; returns it, and whether it is new.

    Raises
    ------
    AlreadyThere
        When other content stands under its number: a version's bytes never change.
    """
    for one in versions(connection, found.model):
        if one.version != found.version:
            continue
        if one.card_sha256 != found.card_sha256:
            raise AlreadyThere(
                f"{one.name} is registered with other content (card {one.card_sha256[:12]}, not "
                f"{found.card_sha256[:12]}): what has changed needs a version of its own"
            )
        return one, False
    insert_version(connection, found, by, why)
    return get(connection, found.model, found.version), True


def reword(connection: Connection, version: ModelVersion, found: Found, *, by: str, why: str) -> None:
    """Note that the words or samples of a version have changed, and nothing that decides its answers.

    A test that it has passed counts no more, since its samples may be others; one that it has failed stays.

    Raises
    ------
    AlreadyThere
        When what decides its answers is not what it was.
    """
    if version.digest != found.digest:
        raise AlreadyThere(f"{version.name} is registered with other content: what has changed needs its own version")
    m = schema.model_version
    values: dict[str, Any] = {"card_sha256": found.card_sha256}
    if version.is_tested:
        values |= {"tested_digest": None}
    connection.execute(update(m).where(m.c.id == version.id).values(**values))
    note(connection, version, "updated", by=by, why=why, detail={"digest": found.digest})


def record_test(
    connection: Connection, version: ModelVersion, *, passed: bool, report: Mapping[str, Any], by: str
) -> None:
    """Keep what a test of a version has come to; it holds for the digest that was tested."""
    m = schema.model_version
    connection.execute(
        update(m)
        .where(m.c.id == version.id)
        .values(tested_at=now(connection), tested_digest=version.digest, test_passed=passed, test=dict(report))
    )
    why, ran_by = str(report.get("summary", "")), str(report.get("way", ""))
    why += f", by {ran_by}" if ran_by else ""
    note(connection, version, "tested", by=by, why=why, detail={"passed": passed, "way": ran_by})


def released(connection: Connection) -> frozenset[tuple[str, str]]:
    """Return each (model, version) whose results have ever been let out: what was live or a canary, by the trail."""
    c = schema.model_change.c
    rows = connection.execute(select(c.model, c.version).where(c.after.in_((LIVE, CANARY))).distinct())
    return frozenset((model, version) for model, version in rows)


def were_live(connection: Connection, model: str) -> list[str]:
    """Return the versions of a model that have ever been live, by the trail, the last one first."""
    c = schema.model_change.c
    query = (
        select(c.version).where(c.model == model, c.after == LIVE).group_by(c.version).order_by(func.max(c.id).desc())
    )
    return list(connection.execute(query).scalars())


def history(connection: Connection, model: str | None = None, limit: int = 200) -> list[ModelChange]:
    """Return the last changes, of one model or of all, the newest first."""
    c = schema.model_change.c
    query = select(schema.model_change).order_by(c.id.desc()).limit(limit)
    if model is not None:
        query = query.where(c.model == model)
    return [ModelChange(**row) for row in connection.execute(query).mappings()]


def insert_version(connection: Connection, found: Found, by: str, why: str) -> None:
    """Register a version that is not there yet, as a candidate."""
    key = connection.execute(
        insert(schema.model_version).values(
            model=found.model,
            version=found.version,
            digest=found.digest,
            device_uid=found.device_uid,
            card_sha256=found.card_sha256,
            origin=found.origin,
            state=CANDIDATE,
            added_at=now(connection),
        )
    ).inserted_primary_key
    assert key is not None
    reason = f"{found.model}@{found.version} added by {by}"
    lifecycle.record_creation(connection, "model", int(key[0]), CANDIDATE, study_id=None, reason=reason)
    know_device(connection, found)
    version = get(connection, found.model, found.version)
    note(connection, version, "added", after=CANDIDATE, by=by, why=why, detail={"digest": found.digest})


def know_device(connection: Connection, found: Found) -> None:
    """Keep a version's Device UID for good."""
    d = schema.model_device
    if connection.execute(select(d.c.model).where(d.c.device_uid == found.device_uid)).first() is None:
        connection.execute(
            insert(d).values(
                device_uid=found.device_uid,
                model=found.model,
                version=found.version,
                digest=found.digest,
                since=now(connection),
            )
        )


def note(
    connection: Connection,
    version: ModelVersion,
    action: str,
    *,
    by: str,
    why: str,
    before: str | None = None,
    after: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Write one line of the audit trail."""
    connection.execute(
        insert(schema.model_change).values(
            at=now(connection),
            model=version.model,
            version=version.version,
            action=action,
            before=before,
            after=after,
            by=by,
            why=why,
            detail=dict(detail or {}),
        )
    )
