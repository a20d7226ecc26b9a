"""Data sets record the studies of the scans that they were made from

Revision ID: 6e2d94b7a1c8
Revises: c1d0a7f3e8b2
Created: 2026-11-29 17:50:00
"""

import sqlalchemy as sa
from alembic import op

revision = "6e2d94b7a1c8"
down_revision = "c1d0a7f3e8b2"
branch_labels = None
depends_on = None

TO_SCAN = "fk_dataset_scan_scan_id_scan"


def upgrade() -> None:
    with op.batch_alter_table("dataset_scan") as table:
        table.add_column(
            sa.Column(
                "study_id", sa.String(length=32), server_default=sa.text("''"), nullable=False
            )
        )
    op.execute(
        "UPDATE dataset_scan SET study_id ="
        " (SELECT scan.study_id FROM scan WHERE scan.id = dataset_scan.scan_id)"
    )
    # A scan may be deleted; the fact that a model learned from it remains true.
    with op.batch_alter_table("dataset_scan") as table:
        table.drop_constraint(TO_SCAN, type_="foreignkey")
        table.drop_index("ix_dataset_scan_scan_id")
        table.create_index("ix_dataset_scan_study_id", ["study_id"])
        table.alter_column(
            "study_id", existing_type=sa.String(length=32), server_default=None, nullable=False
        )


def downgrade() -> None:
    op.execute("DELETE FROM dataset_scan WHERE scan_id NOT IN (SELECT id FROM scan)")
    with op.batch_alter_table("dataset_scan") as table:
        table.drop_index("ix_dataset_scan_study_id")
        table.create_index("ix_dataset_scan_scan_id", ["scan_id"])
        table.drop_column("study_id")
        table.create_foreign_key(TO_SCAN, "scan", ["scan_id"], ["id"], ondelete="CASCADE")
