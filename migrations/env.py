"""Runs migrations on the application's database, inside `flask --app webapp setup` or `flask --app
webapp db …`.
"""

from typing import Any, Literal

from alembic import context
from flask import current_app

from webapp.extensions import UtcDateTime

extension = current_app.extensions["migrate"]


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Write our own column types as their database types, so that a migration never depends on the
    current code.
    """
    return "sa.DateTime()" if kind == "type" and isinstance(item, UtcDateTime) else False


with extension.db.engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=extension.db.metadata,
        render_item=render_item,
        **extension.configure_args,
    )
    # webapp/extensions.py configures SQLite's driver to leave transactions to us, so its tables
    # change all or nothing too.
    context.get_context().impl.transactional_ddl = True
    with context.begin_transaction():
        context.run_migrations()
