"""People take turns at heat maps too

Revision ID: 7d20c5b81e64
Revises: c7d90b5e41fa
Created: 2026-11-25 11:00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "7d20c5b81e64"
down_revision = "c7d90b5e41fa"
branch_labels = None
depends_on = None

QUEUED = sa.text("status = 'queued'")
OWNER = (
    "SELECT scan.user_id FROM scan JOIN prediction ON prediction.scan_id = scan.id WHERE"
    " prediction.id = heatmap.prediction_id"
)


def upgrade() -> None:
    op.add_column(
        "heatmap",
        sa.Column("user_id", sa.String(length=32), nullable=False, server_default=sa.text("''")),
    )
    op.execute(sa.text(f"UPDATE heatmap SET user_id = ({OWNER})"))
    op.create_index(
        "ix_heatmap_queue",
        "heatmap",
        ["user_id", "queued_at", "id"],
        postgresql_where=QUEUED,
        sqlite_where=QUEUED,
    )


def downgrade() -> None:
    op.drop_index("ix_heatmap_queue", table_name="heatmap")
    op.drop_column("heatmap", "user_id")
