"""The index: rows of studies, series and instances, and what an object is to those that came before it.

Identity is the SOP Instance UID; sameness is the digest of the dataset without file meta.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, bindparam, insert, select, update

from storage import changefeed, damage, flags, schema
from storage.database import now, reserve_ids
from storage.defects import supersede
from storage.flags import contradicting, spoken
from storage.headers import Header
from storage.prepared import Prepared
from storage.rows import series_row, study_row, text_of

__all__ = [
    "MANUFACTURER",
    "Arrival",
    "Indexed",
    "Origin",
    "Outcome",
    "insert_group",
    "insert_instance",
    "is_made_here",
    "quarantine_blob",
]

_REPLACED = "the bytes that were kept were gone or changed; the same object came again and took their place"
#: The manufacturer by which nodes of this software know each other's work.
MANUFACTURER = "Overread"
_KNOWN = Prepared(select(schema.instance.c.id).where(schema.instance.c.sop_instance_uid == bindparam("uid")))
_INSERT_INSTANCE = Prepared(
    insert(schema.instance).inline(), [column.name for column in schema.instance.c if column.name != "excluded"]
)


class Outcome(enum.StrEnum):
    """What became of an object that was offered. All of them are success for the sender."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    #: Known, but the bytes that were kept of it are gone: these have taken their place.
    RESTORED = "restored"
    VARIANT = "variant"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who offered an object: the calling AE title, or what stands in its place over HTTP."""

    calling_ae_title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An object whose bytes are durable, to be indexed; see :func:`insert_instance`."""

    header: Header
    blob: str
    origin: Origin
    made_here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """What an object was to the index, and the instance row that stands for its UID."""

    outcome: Outcome
    instance_id: int
    made_here: bool


def is_made_here(header: Header, device_uids: Container[str]) -> bool:
    """Tell by its Contributing Equipment whether a node of this software, or one of these models, made an object."""
    return MANUFACTURER in header.manufacturers or any(one in device_uids for one in header.device_uids)


def insert_instance(
    connection: Connection,
    header: Header,
    blob: str,
    origin: Origin,
    *,
    made_here: bool,
    holds: Callable[[str], int | None] | None = None,
) -> Indexed:
    """Index one object in the caller's transaction.

    Parameters
    ----------
    made_here
        What its Contributing Equipment says. An object under the UID of one that was made here was made here too,
        whatever it says now.
    holds
        How many bytes of a blob are still there, None where there are none: only where they are what they were is
        the same object again a duplicate. Without this they are taken to be.
    """
    i = schema.instance.c
    namesakes = connection.execute(
        select(
            i.id,
            i.study_id,
            i.digest,
            i.transfer_syntax_uid,
            i.identity,
            i.made_here,
            i.blob,
            i.size,
            i.defect,
            schema.series.c.series_instance_uid,
            schema.study.c.study_instance_uid,
        )
        .select_from(schema.instance.join(schema.series).join(schema.study, i.study_id == schema.study.c.id))
        .where(i.sop_instance_uid == header.sop_instance_uid)
    ).mappings()
    others: list[RowMapping] = []
    for row in namesakes:
        if (row["study_instance_uid"], row["series_instance_uid"]) == (
            header.study_instance_uid,
            header.series_instance_uid,
        ):
            outcome = _again(connection, row, header, blob, origin, holds)
            return Indexed(outcome=outcome, instance_id=row["id"], made_here=row["made_here"])
        others.append(row)
    made_here = made_here or any(row["made_here"] for row in others)
    at = now(connection)
    study_id = study_row(connection, [header], [] if made_here else [header], at)
    series_id = series_row(connection, [header], study_id)
    key = connection.execute(
        insert(schema.instance).values(
            study_id=study_id,
            series_id=series_id,
            **_instance_columns(header, blob, origin),
            made_here=made_here,
            conflicting=bool(others),
            received_at=at,
        )
    ).inserted_primary_key
    assert key is not None
    instance_id = int(key[0])
    changefeed.append(
        connection, "instance", instance_id, study_id=study_id, after="STORED", detail={"made_here": made_here}
    )
    if not others:
        return Indexed(outcome=Outcome.STORED, instance_id=instance_id, made_here=made_here)
    connection.execute(update(schema.instance).where(i.id.in_([row["id"] for row in others])).values(conflicting=True))
    for study in {study_id, *(row["study_id"] for row in others)}:
        changefeed.append(
            connection,
            "instance",
            instance_id,
            study_id=study,
            after="CONFLICT",
            reason=f"SOP Instance UID {header.sop_instance_uid} stands under two Study or Series Instance UIDs",
        )
    for row in others:
        for study, other in ((study_id, row["study_instance_uid"]), (row["study_id"], header.study_instance_uid)):
            place = (
                "two of its series"
                if other == header.study_instance_uid == row["study_instance_uid"]
                else f"study {other}"
            )
            flags.raise_flag(
                connection, study, flags.CONFLICT, other, f"instances of it stand in {place} under the same UID"
            )
    return Indexed(outcome=Outcome.CONFLICT, instance_id=instance_id, made_here=made_here)


def insert_group(
    connection: Connection, arrivals: Sequence[Arrival], holds: Callable[[str], int | None] | None = None
) -> list[Indexed]:
    """Index several objects as :func:`insert_instance` does one by one; those that are new share their statements."""
    uids = {one.header.sop_instance_uid for one in arrivals}
    known = {uid for uid in uids if _KNOWN.first(connection, uid=uid) is not None}
    new: list[Arrival] = []
    for one in arrivals:
        if one.header.sop_instance_uid not in known:
            known.add(one.header.sop_instance_uid)
            new.append(one)
    ids = dict(zip(map(id, new), _insert_new(connection, new), strict=True))
    return [
        Indexed(outcome=Outcome.STORED, instance_id=ids[id(one)], made_here=one.made_here)
        if id(one) in ids
        else insert_instance(connection, one.header, one.blob, one.origin, made_here=one.made_here, holds=holds)
        for one in arrivals
    ]


def _insert_new(connection: Connection, arrivals: Sequence[Arrival]) -> Iterable[int]:
    """Insert instances whose UIDs are not known, and return their ids."""
    if not arrivals:
        return ()
    at = now(connection)
    studies: dict[str, int] = {}
    series: dict[tuple[str, str], int] = {}
    # In the order of their UIDs: two receivers lock the same studies in the same order.
    for uid, of_study in sorted(_grouped(arrivals, lambda one: one.header.study_instance_uid).items()):
        headers = [one.header for one in of_study]
        evidence = [one.header for one in of_study if not one.made_here]
        studies[uid] = study_row(connection, headers, evidence, at)
        for series_uid, of_series in _grouped(of_study, lambda one: one.header.series_instance_uid).items():
            found = series_row(connection, [one.header for one in of_series], studies[uid])
            series[uid, series_uid] = found
    ids = reserve_ids(connection, schema.instance, len(arrivals))
    _INSERT_INSTANCE.run_many(
        connection,
        [
            {
                "id": key,
                "study_id": studies[one.header.study_instance_uid],
                "series_id": series[one.header.study_instance_uid, one.header.series_instance_uid],
                **_instance_columns(one.header, one.blob, one.origin),
                "made_here": one.made_here,
                "conflicting": False,
                "received_at": at,
            }
            for key, one in zip(ids, arrivals, strict=True)
        ],
    )
    changefeed.append_stored(
        connection,
        [(key, studies[one.header.study_instance_uid], one.made_here) for key, one in zip(ids, arrivals, strict=True)],
        at,
    )
    return ids


def _instance_columns(header: Header, blob: str, origin: Origin) -> dict[str, Any]:
    return {
        "sop_instance_uid": header.sop_instance_uid,
        "sop_class_uid": header.sop_class_uid,
        "transfer_syntax_uid": header.transfer_syntax_uid,
        "instance_number": text_of(header.instance, "InstanceNumber"),
        "attributes": header.instance,
        "identity": header.identity,
        "digest": header.digest,
        "size": header.size,
        "defect": header.defect,
        "blob": blob,
        "calling_ae_title": origin.calling_ae_title,
    }


def _grouped(arrivals: Iterable[Arrival], key: Callable[[Arrival], str]) -> dict[str, list[Arrival]]:
    groups: dict[str, list[Arrival]] = {}
    for one in arrivals:
        groups.setdefault(key(one), []).append(one)
    return groups


def quarantine_blob(connection: Connection, blob: str, size: int, digest: str, reason: str, origin: Origin) -> None:
    """Record refused bytes; ``digest`` is SHA-256 of all of them."""
    connection.execute(
        insert(schema.quarantine).values(
            blob=blob,
            size=size,
            digest=digest,
            reason=reason,
            calling_ae_title=origin.calling_ae_title,
            received_at=now(connection),
        )
    )
    changefeed.append(connection, "quarantine", None, study_id=None, after="REFUSED", reason=reason)


def _again(
    connection: Connection,
    row: RowMapping,
    header: Header,
    blob: str,
    origin: Origin,
    holds: Callable[[str], int | None] | None,
) -> Outcome:
    v = schema.variant.c
    kept: str | None = row["blob"]
    table = schema.instance
    if row["digest"] != header.digest:
        kept = connection.execute(
            select(v.blob).where(v.instance_id == row["id"], v.digest == header.digest)
        ).scalar_one_or_none()
        table = schema.variant
    if kept == blob:
        return Outcome.STORED  # by a COMMIT whose end was not heard of
    if kept is not None and (holds is None or _is_whole(connection, table, row, kept, holds)):
        return Outcome.DUPLICATE
    if kept is not None:
        _restore(connection, table, row, header, blob, kept)
        return Outcome.RESTORED
    if row["defect"] and not header.defect:
        supersede(connection, row["id"], _instance_columns(header, blob, origin))
        return Outcome.VARIANT
    if row["transfer_syntax_uid"] != header.transfer_syntax_uid:
        difference = f"transfer syntax {header.transfer_syntax_uid}"
    elif row["identity"] != header.identity:
        difference = "patient identity"
    else:
        difference = "dataset"
    connection.execute(
        insert(schema.variant).values(
            instance_id=row["id"],
            transfer_syntax_uid=header.transfer_syntax_uid,
            digest=header.digest,
            blob=blob,
            difference=difference,
            calling_ae_title=origin.calling_ae_title,
            received_at=now(connection),
        )
    )
    changefeed.append(
        connection,
        "instance",
        row["id"],
        study_id=row["study_id"],
        after="VARIANT",
        reason=f"the same SOP Instance UID came again with another {difference}; the first is kept",
    )
    changed = contradicting([row["identity"], header.identity])
    if changed and not row["made_here"]:
        flags.raise_flag(
            connection,
            row["study_id"],
            flags.DEMOGRAPHICS,
            ",".join(changed),
            f"instances came again from {origin.calling_ae_title or 'an unknown sender'} with another "
            f"{spoken(changed)}; the first are kept",
        )
    return Outcome.VARIANT


def _is_whole(
    connection: Connection, table: Table, row: RowMapping, kept: str, holds: Callable[[str], int | None]
) -> bool:
    """Whether what is kept of an object is what came, as far as is known without reading all of it."""
    size = holds(kept)
    if size is None or (table is schema.instance and size != row["size"]):
        return False
    return not damage.is_noted(connection, kept)


def _restore(connection: Connection, table: Table, row: RowMapping, header: Header, blob: str, gone: str) -> None:
    """Let new bytes of the same dataset stand for those that are gone, or that are not what they were."""
    values: dict[str, Any] = {"blob": blob, "transfer_syntax_uid": header.transfer_syntax_uid}
    if table is schema.instance:
        values["size"] = header.size
        connection.execute(update(schema.document).where(schema.document.c.blob == gone).values(blob=blob))
    connection.execute(update(table).where(table.c.blob == gone).values(**values))
    damage.forget(connection, [gone])
    # Where there still is a file of that name it must not come back as an orphan.
    connection.execute(
        insert(schema.tombstone).values(
            blob=gone, sop_instance_uid=header.sop_instance_uid, reason=_REPLACED, deleted_at=now(connection)
        )
    )
    changefeed.append(
        connection,
        "instance",
        row["id"],
        study_id=row["study_id"],
        after="RESTORED",
        reason=_REPLACED,
        detail={"gone": gone, "blob": blob},
    )
