"""Paginated lists of the API: `next` is the address of the next page, which is also in the header
`Link`.

A page begins after a row, not at an offset, so that rows that are added or deleted meanwhile cause
no duplicates or gaps. The cursor contains the row's position and is signed, so a forged cursor is
refused before the database sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from flask import current_app, g, request, url_for
from itsdangerous import BadSignature, URLSafeSerializer
from marshmallow import Schema, fields, validate
from sqlalchemy import Row, Select
from werkzeug.exceptions import UnprocessableEntity

from webapp.extensions import UtcDateTime, db
from webapp.keyset import beyond, directed, split

PER_PAGE, MOST_PER_PAGE = 20, 100
NOT_IN_CURSOR = ("cursor", "limit")

Item = TypeVar("Item")


class PageQuerySchema(Schema):
    """Which page of a list to return."""

    cursor = fields.String(
        load_default=None,
        validate=validate.Length(max=2000),
        metadata={"description": "From `next` of the previous page; omit it for the first page."},
    )
    limit = fields.Integer(
        load_default=PER_PAGE,
        validate=validate.Range(1, MOST_PER_PAGE),
        metadata={"description": "The maximum number of items on a page."},
    )


class PageSchema(Schema):
    """A page of a list."""

    next = fields.Url(
        required=True,
        allow_none=True,
        metadata={"format": "uri", "description": "The next page; null on the last one."},
    )


def page_of(
    rows: Select[*tuple[Any, ...]], order: Sequence[Any], query: Mapping[str, Any]
) -> list[Row[*tuple[Any, ...]]]:
    """Return the requested page of `rows`; the address of the next one is kept for `listed`.

    Args:
        order: what to sort by; the last column is unique.
        query: as loaded by `PageQuerySchema`.
    """
    columns = [split(column) for column in order]
    if query["cursor"] is not None:
        values = [
            datetime.fromisoformat(value)
            if value is not None and isinstance(column.type, UtcDateTime)
            else value
            for (column, _), value in zip(columns, _place(query["cursor"]), strict=True)
        ]
        rows = rows.where(beyond(columns, values, backward=False))
    places = [column.label(f"place_{number}") for number, (column, _) in enumerate(columns)]
    sorted_rows = rows.add_columns(*places).order_by(
        *(directed(column, down) for column, down in columns)
    )
    page = list(db.session.execute(sorted_rows.limit(query["limit"] + 1)).all())
    if len(page) > query["limit"]:
        del page[query["limit"] :]
        last = list(page[-1])[-len(columns) :]
        _note_next([value.isoformat() if isinstance(value, datetime) else value for value in last])
    return page


def part_of(
    items: Sequence[Item], key: Callable[[Item], str], query: Mapping[str, Any]
) -> list[Item]:
    """Return the same for a short list in memory; `key` identifies its items."""
    first = 0
    if query["cursor"] is not None:
        [after] = _place(query["cursor"])
        places = [number for number, item in enumerate(items) if key(item) == after]
        if not places:
            _refuse(
                "The last item of the previous page no longer exists. Please start from the"
                " first page."
            )
        first = places[0] + 1
    shown = list(items[first : first + query["limit"]])
    if len(items) > first + query["limit"]:
        _note_next([key(shown[-1])])
    return shown


def listed(items: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return a page with these items in the form of `PageSchema`."""
    return {"items": items, "next": g.get("next_page"), **more}


def _note_next(place: list[Any]) -> None:
    """Record the address of the page after this position."""
    cursor = str(_serializer().dumps([_of_list(), *place]))
    arguments: dict[str, Any] = {**request.args.to_dict(flat=False), "cursor": cursor}
    arguments |= request.view_args or {}
    g.next_page = url_for(str(request.endpoint), **arguments, _external=True)


def _place(cursor: str) -> list[Any]:
    """Return the position in a cursor.

    Raises:
        UnprocessableEntity: it is not from this list, in this order, with these filters.
    """
    try:
        of_list, *place = _serializer().loads(cursor)
    except BadSignature:
        _refuse("It was not issued by this service.")
    if of_list != _of_list():
        _refuse("It belongs to another list, or to other filters or another order.")
    return list(place)


def _of_list() -> str:
    """Return a digest of the list and its filters."""
    filters = sorted((k, v) for k, v in request.args.items(multi=True) if k not in NOT_IN_CURSOR)
    return hashlib.sha256(repr((request.path, filters)).encode()).hexdigest()[:16]


def _serializer() -> URLSafeSerializer:
    return URLSafeSerializer(current_app.config["SECRET_KEY"], salt="hemoscan cursor")


def _refuse(sentence: str) -> NoReturn:
    raise UnprocessableEntity(f"cursor: {sentence}")
