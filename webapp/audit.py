"""The audit log's writer: an event joins the transaction of the act itself, so that neither is kept
without the other.
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
"""What is refused is recorded at most this often for each person or address: those who try must not
fill the log either.
"""


def init_audit(app: Flask) -> None:
    """Record who asks `app` for what is not theirs."""
    app.after_request(record_refusal)


def record(
    act: Act,
    object_id: str | None = None,
    *,
    actor_id: str | None = None,
    detail: str | None = None,
) -> None:
    """Add an event; the caller commits it with the act.

    Args:
        object_id: the row that it was done to.
        actor_id: who did it; the person who is logged in, or whose token this request carries, if
            left out.
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
    """Return the id of the person who asks, or None where that is not known."""
    if not has_request_context():
        return None
    if owner := g.get("token_owner_id"):
        return str(owner)
    return str(current_user.id) if current_user.is_authenticated else None


def address() -> str:
    """Return where the act came from."""
    return (request.remote_addr or "")[:45] if has_request_context() else "command line"


def record_refusal(answer: Response) -> Response:
    """Record that somebody asked for another person's scan or for an administrator's page, which is
    404 to them.
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
        db.session.rollback()  # Of what was refused nothing is kept but this.
        with noting():
            record_seldom(Act.ACCESS_REFUSED, scan_id, AuditEvent.actor_id == person)
    return answer


def record_seldom(act: Act, object_id: str | None, *whose: ColumnElement[bool]) -> None:
    """Add an event unless there is one of this act, by `whose` condition, of the last minute; the
    caller commits.
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
