"""A whole object takes the place of one that was taken in with a defect: truncated, say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from storage import changefeed, lifecycle, schema
from storage.database import now

__all__ = ["supersede"]


def supersede(connection: Connection, instance_id: int, columns: Mapping[str, Any]) -> None:
    """Let an object stand for the instance of its UID, whose bytes become a variant.

    The study is judged anew: its evidence has changed although no row has come.

    Parameters
    ----------
    columns
        What the instance's row is to say of it.
    """
    i, s = schema.instance.c, schema.study.c
    old = connection.execute(select(schema.instance).where(i.id == instance_id)).one()
    at = now(connection)
    connection.execute(
        insert(schema.variant).values(
            instance_id=instance_id,
            transfer_syntax_uid=old.transfer_syntax_uid,
            digest=old.digest,
            blob=old.blob,
            difference=f"defect ({old.defect})",
            calling_ae_title=old.calling_ae_title,
            received_at=old.received_at,
        )
    )
    connection.execute(update(schema.instance).where(i.id == instance_id).values(**columns, received_at=at))
    changefeed.append(
        connection,
        "instance",
        instance_id,
        study_id=old.study_id,
        after="VARIANT",
        reason=f"the same object came again without its defect ({old.defect}) and took its place",
    )
    if old.made_here:
        return
    connection.execute(
        update(schema.study)
        .where(s.id == old.study_id)
        .values(last_received_at=at, quiet_from=at, evidence_changed=True)
    )
    state = connection.execute(select(s.state).where(s.id == old.study_id)).scalar_one()
    if state == lifecycle.COMPLETE:
        lifecycle.transition(
            connection,
            "study",
            old.study_id,
            lifecycle.RECEIVING,
            study_id=old.study_id,
            reason="an object came again without its defect",
            receiving_from=at,
        )
