"""Tokens have scopes and an expiry; existing tokens keep their rights

Revision ID: e2a7c9146d30
Revises: d1c0a5e7b342
Created: 2026-11-29 18:10:00
"""

import sqlalchemy as sa
from alembic import op

revision = "e2a7c9146d30"
down_revision = "d1c0a5e7b342"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("api_token") as table:
        table.add_column(
            sa.Column("scopes", sa.String(length=80), nullable=False, server_default="")
        )
        table.add_column(sa.Column("expires_at", sa.DateTime(), nullable=True))
    op.execute("UPDATE api_token SET scopes = 'read submit review'")
    op.execute(
        "UPDATE api_token SET scopes = 'read submit review admin'"
        """ WHERE user_id IN (SELECT id FROM "user" WHERE role = 'admin')"""
    )
    with op.batch_alter_table("api_token") as table:
        table.alter_column("scopes", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("api_token") as table:
        table.drop_column("expires_at")
        table.drop_column("scopes")
