"""Results as DICOM objects that DICOMweb lists: their study and series, and the scans for which
they are made automatically

Revision ID: e91d4b7c0a35
Revises: f09b3d7a5c12
Created: 2026-11-29 17:50:00
"""

import sqlalchemy as sa
from alembic import op

revision = "e91d4b7c0a35"
down_revision = "f09b3d7a5c12"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("scan", sa.Column("study_uid", sa.String(length=64), nullable=True))
    op.add_column(
        "scan", sa.Column("dicom_results", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.create_index(op.f("ix_scan_study_uid"), "scan", ["study_uid"])
    op.add_column("report", sa.Column("series_uid", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("report", "series_uid")
    op.drop_index(op.f("ix_scan_study_uid"), table_name="scan")
    op.drop_column("scan", "dicom_results")
    op.drop_column("scan", "study_uid")
