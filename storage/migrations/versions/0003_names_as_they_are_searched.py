"""Names as they are compared, and modalities beside the study in the index.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from storage.matching import folded

revision = "0003"
down_revision = "0002"

_ROWS = 1000


def upgrade() -> None:
    """Apply."""
    op.add_column("study", sa.Column("patient_name_folded", sa.Text(), server_default="", nullable=False))
    _fold()
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.drop_index("ix_study_patient_name")
        batch_op.create_index(batch_op.f("ix_study_patient_name_folded"), ["patient_name_folded"], unique=False)
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.drop_index("ix_series_study_id")
        batch_op.create_index(batch_op.f("ix_series_study_id_modality"), ["study_id", "modality"], unique=False)


def _fold() -> None:
    connection = op.get_bind()
    study = sa.table("study", sa.column("id"), sa.column("patient_name"), sa.column("patient_name_folded"))
    last = 0
    while rows := connection.execute(
        sa.select(study.c.id, study.c.patient_name).where(study.c.id > last).order_by(study.c.id).limit(_ROWS)
    ).all():
        connection.execute(
            sa.update(study)
            .where(study.c.id == sa.bindparam("of"))
            .values(patient_name_folded=sa.bindparam("folded_name")),
            [{"of": row.id, "folded_name": folded(row.patient_name)[:512]} for row in rows],
        )
        last = rows[-1].id
