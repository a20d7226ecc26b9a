"""Links to replaced scans lead to the scans that replaced them

Revision ID: c07e5d9a3b16
Revises: 91b4c6e07d2f
Created: 2026-11-30 07:20:00
"""

import sqlalchemy as sa
from alembic import op

revision = "c07e5d9a3b16"
down_revision = "91b4c6e07d2f"
branch_labels = None
depends_on = None

SCAN = sa.table(
    "scan",
    sa.column("id"),
    sa.column("created_at"),
    sa.column("replaces", sa.JSON(none_as_null=True)),
)


def upgrade() -> None:
    """Add the table, filled from what scans record about those that they replaced."""
    replaced = op.create_table(
        "replaced_scan",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("scan_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["scan_id"], ["scan.id"], name=op.f("fk_replaced_scan_scan_id_scan"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replaced_scan")),
    )
    op.create_index(op.f("ix_replaced_scan_scan_id"), "replaced_scan", ["scan_id"])
    scans = sa.select(SCAN.c.id, SCAN.c.replaces).where(SCAN.c.replaces.is_not(None))
    newest_last = op.get_bind().execute(scans.order_by(SCAN.c.created_at, SCAN.c.id))
    heirs = {item["scan_id"]: row.id for row in newest_last for item in row.replaces or ()}
    op.bulk_insert(replaced, [{"id": id, "scan_id": heir} for id, heir in heirs.items()])


def downgrade() -> None:
    """Remove the table; links to replaced scans no longer work."""
    op.drop_table("replaced_scan")
