"""What peers ask the node to commit to, what destinations commit to, and who is told that instances are there.

Revision ID: 0004
Revises: 0003
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _key() -> sa.Column[int]:
    return sa.Column("id", _ID, nullable=False)


def _clock() -> list[sa.Column[Any]]:
    """Return what each outgoing report has: its state, its tries and its times."""
    return [
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("refusals", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answer", sa.Text(), server_default="", nullable=False),
    ]


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        batch_op.add_column(sa.Column("stored_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "delivery_commitment",
        _key(),
        sa.Column("delivery_id", _ID, nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("accepted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failure_reason", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["delivery_id"], ["delivery.id"], name=op.f("fk_delivery_commitment_delivery_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery_commitment")),
    )
    with op.batch_alter_table("delivery_commitment", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_delivery_commitment_delivery_id"), ["delivery_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_delivery_commitment_transaction_uid"), ["transaction_uid"], unique=False)
    op.create_table(
        "commitment",
        _key(),
        sa.Column("calling_ae_title", sa.Text(), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        *_clock(),
        sa.Column("weighed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment")),
        sa.UniqueConstraint(
            "calling_ae_title", "transaction_uid", name=op.f("uq_commitment_calling_ae_title_transaction_uid")
        ),
    )
    with op.batch_alter_table("commitment", schema=None) as batch_op:
        batch_op.create_index("ix_commitment_due", ["calling_ae_title", "state", "next_at"], unique=False)
    op.create_table(
        "commitment_reference",
        _key(),
        sa.Column("commitment_id", _ID, nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("failure_reason", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["commitment_id"], ["commitment.id"], name=op.f("fk_commitment_reference_commitment_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment_reference")),
    )
    with op.batch_alter_table("commitment_reference", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_commitment_reference_commitment_id"), ["commitment_id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_commitment_reference_sop_instance_uid"), ["sop_instance_uid"], unique=False
        )
    op.create_table(
        "availability",
        _key(),
        sa.Column("revision_id", _ID, nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        *_clock(),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["revision_id"], ["revision.id"], name=op.f("fk_availability_revision_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_availability")),
        sa.UniqueConstraint("revision_id", "peer", name=op.f("uq_availability_revision_id_peer")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_availability_sop_instance_uid")),
    )
    with op.batch_alter_table("availability", schema=None) as batch_op:
        batch_op.create_index("ix_availability_due", ["peer", "state", "next_at"], unique=False)
