"""What modalities say of their work: Modality Performed Procedure Steps (PS3.4 Annex F), evidence for completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from storage import lifecycle, receiving, schema
from storage.database import now
from storage.errors import AlreadyThere, IllegalTransition, Unknown
from storage.records import ProcedureStep

__all__ = ["create", "for_study", "get", "update"]


def create(
    connection: Connection,
    *,
    sop_instance_uid: str,
    study_instance_uid: str | None,
    performed_series: Mapping[str, Sequence[str]],
    attributes: Mapping[str, Any],
    calling_ae_title: str,
) -> ProcedureStep:
    """Keep a step that a modality has begun (N-CREATE): IN PROGRESS, in the caller's write transaction.

    Parameters
    ----------
    study_instance_uid
        That of its first Scheduled Step Attributes item; nothing of the study need have been received.
    performed_series
        Series Instance UID to SOP Instance UIDs; mostly empty at this time.
    attributes
        DICOM JSON of the whole dataset as it stands.

    Raises
    ------
    AlreadyThere
        When there is a step of this UID.
    """
    values = {
        "sop_instance_uid": sop_instance_uid,
        "study_instance_uid": study_instance_uid,
        "state": lifecycle.IN_PROGRESS,
        "performed_series": _plain(performed_series),
        "attributes": dict(attributes),
        "calling_ae_title": calling_ae_title,
        "created_at": now(connection),
    }
    try:
        with connection.begin_nested():
            connection.execute(insert(schema.procedure_step).values(values))
    except IntegrityError:
        raise AlreadyThere(f"procedure step {sop_instance_uid} is there already") from None
    made = get(connection, sop_instance_uid)
    lifecycle.record_creation(
        connection,
        "procedure_step",
        made.id,
        made.state,
        study_id=_study_id(connection, study_instance_uid),
        reason=_what(made),
    )
    return made


def update(
    connection: Connection,
    sop_instance_uid: str,
    *,
    state: str | None = None,
    performed_series: Mapping[str, Sequence[str]] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> ProcedureStep:
    """Take over what a modality has changed (N-SET), in the caller's write transaction; None leaves a value as it is.

    Parameters
    ----------
    state
        COMPLETED or DISCONTINUED end it: its study is looked at again at once.

    Raises
    ------
    Unknown
        When there is no such step.
    IllegalTransition
        When it has ended: nothing of it may be changed any more (PS3.4 F.7.2.2.2, Error ID A710).
    """
    step = get(connection, sop_instance_uid)
    if step.state != lifecycle.IN_PROGRESS:
        raise IllegalTransition(f"procedure step {sop_instance_uid} is {step.state} and may no longer be updated")
    values: dict[str, Any] = {}
    if performed_series is not None:
        values["performed_series"] = _plain(performed_series)
    if attributes is not None:
        values["attributes"] = dict(attributes)
    if values:
        connection.execute(
            sqlalchemy.update(schema.procedure_step).where(schema.procedure_step.c.id == step.id).values(values)
        )
    if state is not None and state != step.state:
        lifecycle.transition(
            connection,
            "procedure_step",
            step.id,
            state,
            study_id=_study_id(connection, step.study_instance_uid),
            reason=_what(get(connection, sop_instance_uid)),
            ended_at=now(connection),
        )
        if step.study_instance_uid is not None:
            receiving.look_again(connection, step.study_instance_uid)
    return get(connection, sop_instance_uid)


def get(connection: Connection, sop_instance_uid: str, *, for_update: bool = False) -> ProcedureStep:
    """Return a step by its SOP Instance UID; ``for_update`` keeps others from changing it in this transaction.

    Raises
    ------
    Unknown
        When there is no such step.
    """
    p = schema.procedure_step
    statement = select(p).where(p.c.sop_instance_uid == sop_instance_uid)
    found = connection.execute(statement.with_for_update() if for_update else statement)
    row = found.mappings().one_or_none()
    if row is None:
        raise Unknown(f"no procedure step {sop_instance_uid}")
    return ProcedureStep(**row)


def for_study(connection: Connection, study_instance_uid: str) -> list[ProcedureStep]:
    """Return what modalities have said about a study, first to last."""
    p = schema.procedure_step
    rows = connection.execute(select(p).where(p.c.study_instance_uid == study_instance_uid).order_by(p.c.id))
    return [ProcedureStep(**row) for row in rows.mappings()]


def _plain(performed_series: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {uid: list(dict.fromkeys(instances)) for uid, instances in performed_series.items()}


def _what(step: ProcedureStep) -> str:
    instances = sum(len(one) for one in step.performed_series.values())
    sender = step.calling_ae_title or "a modality"
    return f"{sender} names {instances} instances in {len(step.performed_series)} series"


def _study_id(connection: Connection, study_instance_uid: str | None) -> int | None:
    s = schema.study.c
    return connection.execute(select(s.id).where(s.study_instance_uid == study_instance_uid)).scalar_one_or_none()
