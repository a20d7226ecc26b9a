"""What PostgreSQL does for a statement, in rows: figures that are the same on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from webapp.extensions import db

Statement = tuple[str, Any]


@contextmanager
def statements() -> Iterator[list[Statement]]:
    """Gather the statements that are sent to the current application's database meanwhile, with
    their parameters.
    """
    sent: list[Statement] = []

    def note(*args: Any) -> None:
        sent.append(args[2:4])

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


def rows_touched(statement: Statement) -> int:
    """Return how many rows PostgreSQL makes or throws away for a statement, over all steps of its
    plan. What it writes is undone.
    """
    with db.engine.connect() as connection:
        (plan,) = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {statement[0]}", statement[1]
        ).scalar_one()
        connection.rollback()
    return _rows_of(plan["Plan"])


def _rows_of(node: dict[str, Any]) -> int:
    each = node["Actual Rows"] + sum(
        number for name, number in node.items() if name.startswith("Rows Removed")
    )
    return int(each * node["Actual Loops"]) + sum(_rows_of(part) for part in node.get("Plans", []))
