"""How urgent a workitem is, and the queue of open workitems by it.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply."""
    op.add_column("workitem", sa.Column("priority", sa.Integer(), server_default="2", nullable=False))
    is_open = sa.text("state IN ('SCHEDULED', 'IN PROGRESS')")
    op.create_index(
        "ix_workitem_open", "workitem", ["shadow", "priority", "id"], sqlite_where=is_open, postgresql_where=is_open
    )
