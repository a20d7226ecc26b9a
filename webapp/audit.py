"""Writes the audit log: an event is committed together with the action that it records, or neither
is.
"""

from __future__ import annotations

from datetime import timedelta

from flask import Flask, Response, g, has_request_context, request
from flask_login import current_user
from sqlalchemy import ColumnElement, select

from webapp.extensions import db, noting, utc_now
from webapp.forms import is_id
from webapp.models import Act, AuditEvent, Scan

SELDOM_S = 60
"""Refused requests are recorded at most once in this time for each user or address, so that nobody
can flood the log.
"""


def init_audit(app: Flask) -> None:
    """Make `app` record requests for objects that belong to others."""
    app.after_request(record_refusal)


def record(
    act: Act,
    object_id: str | None = None,
    *,
    actor_id: str | None = None,
    detail: str | None = None,
) -> None:
    """Add an event; the caller commits it together with the action.

    Args:
        object_id: id of the row that the action applied to.
        actor_id: id of the user who did it; by default the one who sent this request.
        detail: what was chosen, in at most 120 characters and without names of people.
    """
    db.session.add(
        AuditEvent(
            act=act,
            object_id=object_id,
            actor_id=actor_id or whose_request(),
            address=address(),
            detail=detail,
        )
    )


def whose_request() -> str | None:
    """Return the id of the user who sent this request, by login or API token; None if unknown."""
    if not has_request_context():
        return None
    if owner := g.get("token_owner_id"):
        return str(owner)
    return str(current_user.id) if current_user.is_authenticated else None


def address() -> str:
    """Return the client's IP address; outside of requests, the AE title that a study came from, or
    "command line".
    """
    if has_request_context():
        return (request.remote_addr or "")[:45]
    return str(g.get("dicom_sender", "command line"))[:45]


def record_refusal(answer: Response) -> Response:
    """Record a request for another user's scan, or a non-administrator's request for an
    administrator's page; both get status 404.
    """
    if answer.status_code != 404 or request.endpoint is None or (person := whose_request()) is None:
        return answer
    scan_id = (request.view_args or {}).get("scan_id")
    if scan_id is not None:
        others = select(Scan.id).where(Scan.id == scan_id, Scan.user_id != person)
        refused = is_id(scan_id) and db.session.scalar(others) is not None
    else:
        refused = request.blueprint == "admin" and not current_user.is_admin
    if refused:
        db.session.rollback()  # Discard whatever the refused request wrote.
        with noting():
            record_seldom(Act.ACCESS_REFUSED, scan_id, AuditEvent.actor_id == person)
    return answer


def record_seldom(act: Act, object_id: str | None, *whose: ColumnElement[bool]) -> None:
    """Add an event unless one for the same action that matches `whose` was recorded in the last
    `SELDOM_S` seconds; the caller commits.
    """
    newest = (
        select(AuditEvent.at)
        .where(AuditEvent.act == act, *whose)
        .order_by(AuditEvent.id.desc())
        .limit(1)
    )
    last = db.session.scalar(newest)
    if last is None or last < utc_now() - timedelta(seconds=SELDOM_S):
        record(act, object_id)
