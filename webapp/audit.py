"""The audit log's only writer: an event joins the transaction of the act itself, so that neither is kept without the other."""

from __future__ import annotations

from flask import g, has_request_context, request
from flask_login import current_user

from webapp.extensions import db
from webapp.models.operations import Act, AuditEvent


def record(act: Act, object_id: str | None = None, *, actor_id: str | None = None) -> None:
    """Add an event; the caller commits it with the act.

    Args:
        object_id: the row that it was done to.
        actor_id: who did it; the person who is logged in, or whose token this request carries, if left out.
    """
    db.session.add(AuditEvent(act=act, object_id=object_id, actor_id=actor_id or whose_request(), address=address()))


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
