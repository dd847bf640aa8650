"""The index: rows of studies, series and instances, and what an object is to those that came before it.

Identity is the SOP Instance UID; sameness is the digest of the dataset without file meta.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, insert, select, update

from storage import changefeed, flags, lifecycle, schema
from storage.attributes import SERIES_KEYWORDS, STUDY_KEYWORDS, attribute_value
from storage.database import now
from storage.flags import contradicting, spoken
from storage.headers import Header
from storage.matching import folded

__all__ = [
    "MANUFACTURER",
    "Indexed",
    "Origin",
    "Outcome",
    "describe_anew",
    "insert_instance",
    "is_made_here",
    "quarantine_blob",
]

#: What a searchable column keeps of a value: PostgreSQL refuses to index much more. The whole stands in attributes.
_COLUMN_CHARACTERS = 512
#: The manufacturer by which nodes of this software know each other's work.
MANUFACTURER = "Overread"


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
class Indexed:
    """What an object was to the index, and the instance row that stands for its UID."""

    outcome: Outcome
    instance_id: int
    made_here: bool


def is_made_here(header: Header, device_uids: Collection[str]) -> bool:
    """Tell by its Contributing Equipment whether a node of this software, or one of these models, made an object."""
    return MANUFACTURER in header.manufacturers or not header.device_uids.isdisjoint(device_uids)


def insert_instance(
    connection: Connection,
    header: Header,
    blob: str,
    origin: Origin,
    *,
    made_here: bool,
    holds: Callable[[str], bool] | None = None,
) -> Indexed:
    """Index one object in the caller's transaction.

    Parameters
    ----------
    made_here
        What its Contributing Equipment says. An object under the UID of one that was made here was made here too,
        whatever it says now.
    holds
        Whether the bytes of a blob are still there: only then is the same object again a duplicate. None takes
        them to be.
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
            _series_uid(),
            _study_uid(),
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
    study_id = _study_row(connection, header, evidence=not made_here)
    series_id = _series_row(connection, header, study_id)
    key = connection.execute(
        insert(schema.instance).values(
            study_id=study_id,
            series_id=series_id,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            transfer_syntax_uid=header.transfer_syntax_uid,
            instance_number=_text(header.instance, "InstanceNumber"),
            attributes=header.instance,
            identity=header.identity,
            digest=header.digest,
            size=header.size,
            blob=blob,
            made_here=made_here,
            conflicting=bool(others),
            calling_ae_title=origin.calling_ae_title,
            received_at=now(connection),
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


def quarantine_blob(connection: Connection, blob: str, size: int, reason: str, origin: Origin) -> None:
    """Record refused bytes."""
    connection.execute(
        insert(schema.quarantine).values(
            blob=blob,
            size=size,
            reason=reason,
            calling_ae_title=origin.calling_ae_title,
            received_at=now(connection),
        )
    )
    changefeed.append(connection, "quarantine", None, study_id=None, after="REFUSED", reason=reason)


def describe_anew(connection: Connection, study_id: int, headers: Sequence[Header]) -> None:
    """Let a study and its series be described by these instances alone, in the order given.

    For when an operator has changed what counts: what was taken out must not name the patient or steer a route.
    """
    attributes: dict[str, Any] = {}
    of_series: dict[str, dict[str, Any]] = {}
    for header in headers:
        attributes |= _added(attributes, header, STUDY_KEYWORDS)
        known = of_series.setdefault(header.series_instance_uid, {})
        known |= _added(known, header, SERIES_KEYWORDS)
    s = schema.series.c
    if headers:
        connection.execute(update(schema.study).where(schema.study.c.id == study_id).values(_study_columns(attributes)))
    for uid, known in of_series.items():
        connection.execute(
            update(schema.series)
            .where(s.study_id == study_id, s.series_instance_uid == uid)
            .values(_series_columns(known))
        )


def _again(
    connection: Connection,
    row: RowMapping,
    header: Header,
    blob: str,
    origin: Origin,
    holds: Callable[[str], bool] | None,
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
    if kept is not None and (holds is None or holds(kept)):
        return Outcome.DUPLICATE
    if kept is not None:
        _restore(connection, table, row, header, blob, kept)
        return Outcome.RESTORED
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


def _restore(connection: Connection, table: Table, row: RowMapping, header: Header, blob: str, gone: str) -> None:
    """Let new bytes of the same dataset stand for those that are gone."""
    values: dict[str, Any] = {"blob": blob, "transfer_syntax_uid": header.transfer_syntax_uid}
    if table is schema.instance:
        values["size"] = header.size
        connection.execute(update(schema.document).where(schema.document.c.blob == gone).values(blob=blob))
    connection.execute(update(table).where(table.c.blob == gone).values(**values))
    changefeed.append(
        connection,
        "instance",
        row["id"],
        study_id=row["study_id"],
        after="RESTORED",
        reason="the bytes that were kept were gone; the same object came again and took their place",
        detail={"gone": gone, "blob": blob},
    )


def _study_row(connection: Connection, header: Header, *, evidence: bool) -> int:
    """Find or make the study; only evidence starts its quiet period anew or opens it again.

    The row stays locked to the end of the transaction, so that no verdict on the study comes in between, and the
    ids of its instances follow each other as their commits do.
    """
    s = schema.study.c
    row = connection.execute(
        select(s.id, s.state, s.attributes).where(s.study_instance_uid == header.study_instance_uid).with_for_update()
    ).first()
    at = now(connection)
    if row is None:
        state = lifecycle.RECEIVING if evidence else lifecycle.COMPLETE
        key = connection.execute(
            insert(schema.study).values(
                study_instance_uid=header.study_instance_uid,
                state=state,
                **_study_columns(header.study),
                first_received_at=at,
                last_received_at=at,
                quiet_from=at,
                receiving_from=at,
            )
        ).inserted_primary_key
        assert key is not None
        lifecycle.record_creation(connection, "study", int(key[0]), state, study_id=int(key[0]))
        return int(key[0])
    if evidence:
        added = _added(row.attributes, header, STUDY_KEYWORDS)
        values = _study_columns({**row.attributes, **added}) if added else {}
        connection.execute(
            update(schema.study).where(s.id == row.id).values(last_received_at=at, quiet_from=at, **values)
        )
        if row.state == lifecycle.COMPLETE:
            lifecycle.transition(
                connection,
                "study",
                row.id,
                lifecycle.RECEIVING,
                study_id=row.id,
                reason="a further instance came",
                receiving_from=at,
            )
    return int(row.id)


def _added(known: dict[str, Any], header: Header, keywords: Sequence[str]) -> dict[str, Any]:
    """Return what an instance says that none before it has said: the first that is not empty counts."""
    silent = [keyword for keyword in keywords if attribute_value(known, keyword) is None]
    return header.elements(silent) if silent else {}


def _study_columns(attributes: dict[str, Any]) -> dict[str, Any]:
    name = _name(attributes)
    return {
        "patient_id": _text(attributes, "PatientID"),
        "patient_name": name,
        "patient_name_folded": folded(name)[:_COLUMN_CHARACTERS],
        "patient_birth_date": _text(attributes, "PatientBirthDate"),
        "patient_sex": _text(attributes, "PatientSex"),
        "accession_number": _text(attributes, "AccessionNumber"),
        "study_date": _text(attributes, "StudyDate"),
        "study_time": _text(attributes, "StudyTime"),
        "study_description": _text(attributes, "StudyDescription"),
        "attributes": attributes,
    }


def _series_columns(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        "modality": _text(attributes, "Modality"),
        "series_number": _text(attributes, "SeriesNumber"),
        "series_description": _text(attributes, "SeriesDescription"),
        "attributes": attributes,
    }


def _series_row(connection: Connection, header: Header, study_id: int) -> int:
    s = schema.series.c
    found = connection.execute(
        select(s.id, s.attributes).where(s.study_id == study_id, s.series_instance_uid == header.series_instance_uid)
    ).one_or_none()
    if found is not None:
        if added := _added(found.attributes, header, SERIES_KEYWORDS):
            connection.execute(
                update(schema.series).where(s.id == found.id).values(_series_columns({**found.attributes, **added}))
            )
        return int(found.id)
    key = connection.execute(
        insert(schema.series).values(
            study_id=study_id,
            series_instance_uid=header.series_instance_uid,
            **_series_columns(header.series),
        )
    ).inserted_primary_key
    assert key is not None
    return int(key[0])


def _series_uid() -> Any:
    return schema.series.c.series_instance_uid


def _study_uid() -> Any:
    return schema.study.c.study_instance_uid


def _text(attributes: Any, keyword: str) -> str:
    value = attribute_value(attributes, keyword)
    if value is None:
        return ""
    text = "\\".join(str(one) for one in value) if isinstance(value, list) else str(value)
    return text[:_COLUMN_CHARACTERS]


def _name(attributes: Any) -> str:
    """Return the patient's name with all its groups, joined as PS3.5 6.2.1 joins them."""
    values = attributes.get("00100010", {}).get("Value", [])
    if not values or not isinstance(values[0], dict):
        return ""
    groups = [values[0].get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")[:_COLUMN_CHARACTERS]
