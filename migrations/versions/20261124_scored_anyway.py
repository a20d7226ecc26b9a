"""What does not look like a head CT, and what a person wants scored anyway

Revision ID: 3c7a90d41be2
Revises: f203e6f3101d
Created: 2026-11-24 14:36:00
"""

import sqlalchemy as sa
from alembic import op

revision = "3c7a90d41be2"
down_revision = "f203e6f3101d"
branch_labels = None
depends_on = None

# Plain statements, not batches: to alter in a batch, SQLite makes the table anew, and dropping the
# old one would take the verdicts along.


def upgrade() -> None:
    op.add_column("scan", sa.Column("not_head_ct", sa.Double(), nullable=True))
    op.add_column("scan", sa.Column("forced_at", sa.DateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("scan", "forced_at")
    op.drop_column("scan", "not_head_ct")
