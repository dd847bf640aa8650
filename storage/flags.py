"""What somebody should look at although nothing waits for it: flags on studies, and how patients collide.

A flag names UIDs, fields and senders, never a patient's data.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select

from storage import changefeed, schema
from storage.attributes import attribute_value
from storage.database import now
from storage.records import Flag, Study

__all__ = [
    "CONFLICT",
    "DEMOGRAPHICS",
    "IDENTITY_FIELDS",
    "INCOMPLETE",
    "LIKENESS",
    "PATIENT",
    "Collision",
    "collisions",
    "contradicting",
    "count",
    "identity_of",
    "latest",
    "of_study",
    "raise_flag",
    "spoken",
]

#: Another study has the same Patient ID and another patient.
PATIENT: Final = "patient"
#: An instance came again with other patient data.
DEMOGRAPHICS: Final = "demographics"
#: It was judged complete although evidence said that something is missing.
INCOMPLETE: Final = "incomplete"
#: An instance stands in another study or series as well.
CONFLICT: Final = "conflict"
#: A picture of another study looks nearly the same.
LIKENESS: Final = "likeness"

IDENTITY_FIELDS: Final = ("patient_id", "name", "birth_date", "sex")
#: So many studies of the same Patient ID are compared, the latest: an archive may hold thousands of "ANONYMOUS".
_COMPARED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Collision:
    """Another study with the same Patient ID, and what differs in it."""

    study_id: int
    study_instance_uid: str
    fields: tuple[str, ...]


def raise_flag(connection: Connection, study_id: int, kind: str, subject: str, reason: str) -> bool:
    """Flag a study in the caller's write transaction, once for each subject; returns whether it is new."""
    f = schema.flag.c
    known = select(f.id).where(f.study_id == study_id, f.kind == kind, f.subject == subject)
    if connection.execute(known).first() is not None:
        return False
    key = connection.execute(
        insert(schema.flag).values(
            study_id=study_id, kind=kind, subject=subject, reason=reason, raised_at=now(connection)
        )
    ).inserted_primary_key
    assert key is not None
    changefeed.append(connection, "flag", int(key[0]), study_id=study_id, after="RAISED", reason=f"{kind}: {reason}")
    return True


def of_study(connection: Connection, study_id: int) -> list[Flag]:
    """Return a study's flags, first to last."""
    f = schema.flag.c
    rows = connection.execute(select(schema.flag).where(f.study_id == study_id).order_by(f.id))
    return [Flag(**row) for row in rows.mappings()]


def latest(connection: Connection, limit: int = 20) -> list[tuple[Flag, str]]:
    """Return the flags that were raised last, newest first, each with its Study Instance UID."""
    rows = connection.execute(
        select(schema.flag, schema.study.c.study_instance_uid)
        .select_from(schema.flag.join(schema.study))
        .order_by(schema.flag.c.id.desc())
        .limit(limit)
    ).mappings()
    return [(Flag(**{key: row[key] for key in schema.flag.c.keys()}), row["study_instance_uid"]) for row in rows]  # noqa: SIM118 - a column collection


def count(connection: Connection) -> int:
    """Return how many flags there are."""
    return connection.execute(select(func.count()).select_from(schema.flag)).scalar_one()


def collisions(connection: Connection, study: Study) -> list[Collision]:
    """Find other studies with the same Patient ID whose name, birth date or sex contradict this one's.

    What is absent contradicts nothing; another Issuer of Patient ID (0010,0021) makes it another id. Reads by the
    index on the Patient ID, and no more than the latest 1000 studies of it.
    """
    if not study.patient_id.strip():
        return []
    s = schema.study.c
    rows = connection.execute(
        select(s.id, s.study_instance_uid, s.attributes)
        .where(s.patient_id == study.patient_id, s.id != study.id, s.excluded.is_(False))
        .order_by(s.id.desc())
        .limit(_COMPARED)
    )
    ours = identity_of(study.attributes)
    found = []
    for row in rows:
        theirs = identity_of(row.attributes)
        if ours["issuer"] and theirs["issuer"] and ours["issuer"] != theirs["issuer"]:
            continue
        fields = contradicting([ours, theirs])
        if fields:
            found.append(Collision(study_id=row.id, study_instance_uid=row.study_instance_uid, fields=fields))
    return found


def contradicting(identities: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return which of id, name, birth date and sex differ beyond encoding; what is absent contradicts nothing."""
    return tuple(
        field for field in IDENTITY_FIELDS if len({str(one.get(field, "")) for one in identities if one.get(field)}) > 1
    )


def spoken(fields: Sequence[str]) -> str:
    """Say fields of an identity in words."""
    return ", ".join(field.replace("_", " ") for field in fields)


def identity_of(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return name, birth date, sex and issuer of a study's attributes, comparable beyond encoding and case."""
    groups = attributes.get("00100010", {}).get("Value", [])
    name = groups[0] if groups and isinstance(groups[0], dict) else {}
    alphabetic = name.get("Alphabetic") or name.get("Ideographic") or ""
    fields = {
        "name": " ".join("^".join(part.strip() for part in alphabetic.split("^")).rstrip("^").split()),
        "birth_date": _text(attributes, "PatientBirthDate"),
        "sex": _text(attributes, "PatientSex"),
        "issuer": _text(attributes, "IssuerOfPatientID"),
    }
    return {key: unicodedata.normalize("NFKC", value).strip().casefold() for key, value in fields.items()}


def _text(attributes: Mapping[str, Any], keyword: str) -> str:
    value = attribute_value(attributes, keyword)
    return "" if value is None else str(value)
