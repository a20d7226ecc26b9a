"""Keyset pagination: conditions for the rows after, or before, a known row in an order of several
columns. The cost does not depend on the position in the list, and new rows do not shift it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, UnaryExpression, and_, literal, or_
from sqlalchemy.sql.operators import asc_op, desc_op


def split(column: Any) -> tuple[ColumnElement[Any], bool]:
    """Return the expression of an ORDER BY column, and whether its order is descending."""
    if isinstance(column, UnaryExpression) and column.modifier in (desc_op, asc_op):
        return column.element, column.modifier is desc_op
    return column, False


def directed(column: ColumnElement[Any], descending: bool) -> ColumnElement[Any]:
    """Return the ORDER BY column of an expression."""
    return column.desc() if descending else column.asc()


def beyond(
    columns: Sequence[tuple[ColumnElement[Any], bool]], values: Sequence[Any], backward: bool
) -> ColumnElement[bool]:
    """Return the condition for rows after one with these values in an order of `split` columns, or
    before it if `backward`. NULLs sort last.
    """
    alternatives: list[ColumnElement[bool]] = []
    equal: list[ColumnElement[bool]] = []
    for (column, descending), value in zip(columns, values, strict=True):
        if value is None:  # NULLs sort last, so only equality is possible here.
            equal.append(column.is_(None))
            continue
        wants_smaller = descending is not backward
        bound = literal(value, column.type)
        alternatives.append(and_(*equal, column < bound if wants_smaller else column > bound))
        equal.append(column == bound)
    (first, descending), value = columns[0], values[0]
    if value is None or isinstance(value, bool):
        return or_(*alternatives)
    # Redundant bound on the first column, so that the index can seek.
    wants_smaller = descending is not backward
    return and_(first <= value if wants_smaller else first >= value, or_(*alternatives))
