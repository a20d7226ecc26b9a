"""The audit log as a page: who did what to which object, when and from where."""

from __future__ import annotations

import re

from flask import render_template, request
from flask.typing import ResponseReturnValue
from sqlalchemy import select

from webapp.admin.pages import blueprint
from webapp.extensions import db
from webapp.forms import is_id
from webapp.models import Act, AuditEvent, User

EVENTS_PER_PAGE = 50


@blueprint.get("/audit")
def audit() -> ResponseReturnValue:
    """List events, newest first: those of one act, one person (`by`, a username or an id), one
    object or one address, as the query asks.

    A page begins below an event (`before`) rather than after so many rows, so that the millionth
    costs no more than the first.
    """
    asked = {
        name: request.args.get(name, "").strip() for name in ("act", "by", "object", "address")
    }
    events = select(AuditEvent, User.username).outerjoin(User, User.id == AuditEvent.actor_id)
    if asked["act"] in set(Act):
        events = events.where(AuditEvent.act == asked["act"])
    if asked["by"]:
        events = events.where(AuditEvent.actor_id == id_of(asked["by"]))
    if asked["object"]:
        events = events.where(AuditEvent.object_id == id_of(asked["object"]))
    if asked["address"]:
        events = events.where(AuditEvent.address == printable(asked["address"]))
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
        acts=list(Act),
        asked={name: value for name, value in asked.items() if value},
    )


def id_of(given: str) -> str:
    """Return the id that was given, or that of the person with this username; where there is none,
    an id that nothing has.
    """
    if is_id(given):
        return given
    return (
        db.session.scalar(select(User.id).where(User.username_key == printable(given.lower())))
        or ""
    )


def printable(text: str) -> str:
    """Return `text` without what no name and no address has; PostgreSQL refuses a NUL."""
    return "".join(character for character in text if character.isprintable())
