"""The page of the audit log: who did what to which object, when and from where."""

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
    """List events, newest first, filtered by action, user (`by`, a username or id), object or
    address.

    Pages start below an event (`before`) instead of at an offset, so that late pages cost no more
    than the first.
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
    """Return `given` if it is an id, else the id of the user with that name, or "" if there is
    none.
    """
    if is_id(given):
        return given
    return (
        db.session.scalar(select(User.id).where(User.username_key == printable(given.lower())))
        or ""
    )


def printable(text: str) -> str:
    """Return `text` without unprintable characters; PostgreSQL rejects NUL characters."""
    return "".join(character for character in text if character.isprintable())
