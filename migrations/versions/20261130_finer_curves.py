"""Points of training curves count finer steps: ten of them for one before

Revision ID: 4b7f0c93d8ea
Revises: c07e5d9a3b16
Created: 2026-11-30 17:50:00
"""

import sqlalchemy as sa
from alembic import op

revision = "4b7f0c93d8ea"
down_revision = "c07e5d9a3b16"
branch_labels = None
depends_on = None

POINT = sa.table("training_point", sa.column("step"))
FINER = 10


def upgrade() -> None:
    """Count the steps of stored points in the finer unit."""
    _renumber(POINT.c.step * FINER)


def downgrade() -> None:
    """Keep the points that lie at a coarse step, and count in that unit again."""
    op.execute(sa.delete(POINT).where(POINT.c.step % FINER != 0))
    _renumber(POINT.c.step // FINER)


def _renumber(step: sa.ColumnElement[int]) -> None:
    # By way of negative numbers, because no two points of a curve may have the same step meanwhile.
    op.execute(sa.update(POINT).values(step=-step - 1))
    op.execute(sa.update(POINT).values(step=-POINT.c.step - 1))
