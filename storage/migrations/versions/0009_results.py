"""Results that are kept for the next time, and perceptual hashes of pictures.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "result",
        sa.Column("id", _ID, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("precision", sa.String(length=16), nullable=False),
        sa.Column("findings", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("blob", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_result_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result")),
        sa.UniqueConstraint("key", "provider", "precision", name=op.f("uq_result_key_provider_precision")),
    )
    for column in ("study_id", "blob", "used_at"):
        op.create_index(op.f(f"ix_result_{column}"), "result", [column])
    op.create_table(
        "fingerprint",
        sa.Column("id", _ID, nullable=False),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_fingerprint_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fingerprint")),
        sa.UniqueConstraint("sop_instance_uid", "kind", name=op.f("uq_fingerprint_sop_instance_uid_kind")),
    )
    op.create_index(op.f("ix_fingerprint_study_id"), "fingerprint", ["study_id"])
    op.create_table(
        "fingerprint_piece",
        sa.Column("piece", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("fingerprint_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["fingerprint_id"], ["fingerprint.id"], name=op.f("fk_fingerprint_piece_fingerprint_id")
        ),
        sa.PrimaryKeyConstraint("piece", "fingerprint_id", name=op.f("pk_fingerprint_piece")),
    )
    op.create_index(op.f("ix_fingerprint_piece_fingerprint_id"), "fingerprint_piece", ["fingerprint_id"])
