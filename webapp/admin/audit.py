"""The page of the audit log, which shows who did what to which object, when and from where; and its
export.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from flask import Response, flash, render_template, request, stream_with_context
from flask.typing import ResponseReturnValue
from sqlalchemy import Row, Select, select

from webapp.admin.pages import blueprint
from webapp.audit import record
from webapp.audit_chain import newest_check
from webapp.extensions import db, noting
from webapp.forms import is_id
from webapp.models import Act, AuditEvent, AuditLink, User

Events = Iterator[dict[str, Any]]

EVENTS_PER_PAGE = 50
EXPORTED_AT_ONCE = 1000
FILTERS = ("act", "by", "object", "address", "since", "until")
EXPORTED = (
    "id",
    "at",
    "act",
    "actor_id",
    "username",
    "object_id",
    "detail",
    "address",
    "position",
    "hash",
)


@blueprint.get("/audit")
def audit() -> ResponseReturnValue:
    """List events, newest first, filtered by action, user (`by`, a username or id), object, address
    and days (UTC).

    Pages start below an event (`before`) instead of at an offset, so that late pages cost no more
    than the first.
    """
    filters = _filters()
    for name in ("since", "until"):
        if filters[name] and day_of(filters[name]) is None:
            flash(
                f"“{printable(filters[name][:40])}” is not a date. Use the form 2026-01-31.",
                "warning",
            )
    events = filtered(filters)
    if re.fullmatch("[0-9]{1,9}", before := request.args.get("before", "")):
        events = events.where(AuditEvent.id < int(before))
    rows = db.session.execute(
        events.order_by(AuditEvent.id.desc()).limit(EVENTS_PER_PAGE + 1)
    ).all()
    shown = rows[:EVENTS_PER_PAGE]
    return render_template(
        "admin/audit.html",
        events=shown,
        older_than=shown[-1].AuditEvent.id if len(rows) > len(shown) else None,
        is_first=not before,
        acts=sorted(Act),
        filters={name: value for name, value in filters.items() if value},
        check=newest_check(),
    )


@blueprint.get("/audit.csv")
def audit_as_csv() -> Response:
    """Send the events that match the same filters as a table."""
    return _export("csv", "text/csv", _as_csv)


@blueprint.get("/audit.json")
def audit_as_json() -> Response:
    """Send the events that match the same filters as JSON."""
    return _export("json", "application/json", _as_json)


def _export(form: str, media: str, as_text: Callable[[Events], Iterator[str]]) -> Response:
    """Return events, oldest first, each with its link of the hash chain, as a streamed file."""
    filters = _filters()
    chosen = ", ".join(f"{name} {value}" for name, value in filters.items() if value)
    with noting():
        record(Act.AUDIT_EXPORTED, detail=printable(f"{form}: {chosen or 'all'}")[:120])
    answer = Response(stream_with_context(as_text(_exported(filters))), mimetype=media)
    answer.headers.set("Content-Disposition", "attachment", filename=f"audit-log.{form}")
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _filters() -> dict[str, str]:
    return {name: request.args.get(name, "").strip() for name in FILTERS}


def filtered(filters: dict[str, str]) -> Select[AuditEvent, str]:
    """Return the statement for events with the usernames of those who caused them."""
    events = select(AuditEvent, User.username).outerjoin(User, User.id == AuditEvent.actor_id)
    if filters["act"] in set(Act):
        events = events.where(AuditEvent.act == filters["act"])
    if filters["by"]:
        events = events.where(AuditEvent.actor_id == id_of(filters["by"]))
    if filters["object"]:
        events = events.where(AuditEvent.object_id == id_of(filters["object"]))
    if filters["address"]:
        events = events.where(AuditEvent.address == printable(filters["address"]))
    if since := day_of(filters["since"]):
        events = events.where(AuditEvent.at >= since)
    if until := day_of(filters["until"]):
        events = events.where(AuditEvent.at < until + timedelta(days=1))
    return events


def _exported(filters: dict[str, str]) -> Events:
    """Yield the events in batches, so that a long log does not fill the memory."""
    events = (
        filtered(filters)
        .add_columns(AuditLink.position, AuditLink.hash)
        .outerjoin(AuditLink, AuditLink.event_id == AuditEvent.id)
        .order_by(AuditEvent.id)
        .limit(EXPORTED_AT_ONCE)
    )
    last = 0
    while rows := db.session.execute(events.where(AuditEvent.id > last)).all():
        last = rows[-1].AuditEvent.id
        yield from map(_exported_event, rows)
        db.session.commit()


def _exported_event(row: Row[Any]) -> dict[str, Any]:
    event: AuditEvent = row.AuditEvent
    known = {
        "at": event.at.isoformat(timespec="microseconds"),
        "username": row.username,
        "position": row.position,
        "hash": row.hash,
    }
    return {name: known[name] if name in known else getattr(event, name) for name in EXPORTED}


def _as_json(events: Events) -> Iterator[str]:
    before = "[\n"
    for event in events:
        yield before + json.dumps(event)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _as_csv(events: Events) -> Iterator[str]:
    line = io.StringIO()
    table = csv.DictWriter(line, EXPORTED)
    table.writeheader()
    for event in events:
        table.writerow(event)
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    yield line.getvalue()  # The header, if there were no events.


def day_of(text: str) -> datetime | None:
    """Return the start of a day in UTC; None if the text is not a date."""
    try:
        day = date.fromisoformat(text)
        return datetime(day.year, day.month, day.day, tzinfo=UTC) if day.year < 9999 else None
    except ValueError:
        return None


def id_of(text: str) -> str:
    """Return `text` if it is an id, else the id of the user with that name, or "" if there is
    none.
    """
    if is_id(text):
        return text
    return (
        db.session.scalar(select(User.id).where(User.username_key == printable(text.lower()))) or ""
    )


def printable(text: str) -> str:
    """Return `text` without unprintable characters; PostgreSQL rejects NUL characters."""
    return "".join(character for character in text if character.isprintable())
