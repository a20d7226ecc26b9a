"""Operations for administrators: queues and workers, users, and the audit log.

Password-reset links, second factors and tokens are handed out to people only, never through the
API.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from flask import g
from sqlalchemy import select
from werkzeug.exceptions import Conflict

from webapp.accounts.second_factors import confirmed_factor
from webapp.admin.audit import filtered
from webapp.admin.operations import WORK, count_work, recent_workers, seconds_since, stuck_jobs
from webapp.admin.users import AccountRefused, disable, enable, set_role
from webapp.api.access import blueprint, operation, row_of
from webapp.api.lab_schemas import (
    AuditQuerySchema,
    EventsPageSchema,
    NewRoleSchema,
    OperationsSchema,
    PeoplePageSchema,
    PersonSchema,
)
from webapp.api.lists import PageQuerySchema, listed, page_of
from webapp.api.work import work_as_json
from webapp.deletion import StillNeeded, delete_account
from webapp.extensions import database_now, db
from webapp.models import AuditEvent, Role, Scope, SecondFactor, User

GET, POST, PUT, DELETE = HTTPMethod.GET, HTTPMethod.POST, HTTPMethod.PUT, HTTPMethod.DELETE


@operation(GET, "/operations", "read_operations", Scope.ADMIN)
@blueprint.response(200, OperationsSchema)
def read_operations() -> dict[str, Any]:
    """Get the number of queued, running and failed jobs, the workers, and the stuck jobs."""
    now = db.session.scalars(select(database_now())).one()
    stuck = [(what, job) for table, what in WORK.items() for job in stuck_jobs(table)]
    return {
        "queues": count_work(now),
        "workers": [
            {
                "id": worker.id,
                "queue": worker.queue,
                "host": worker.host,
                "started_at": worker.started_at,
                "seen_at": worker.seen_at,
                "silent_s": seconds_since(worker.seen_at, now),
                "alarm": worker.alarm,
            }
            for worker in recent_workers()
        ],
        "stuck": [{"what": what, **work_as_json(job)} for what, job in stuck],
    }


@operation(GET, "/users", "list_users", Scope.ADMIN, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, PeoplePageSchema)
def list_users(query: Mapping[str, Any]) -> dict[str, Any]:
    """List all users, newest first."""
    rows = select(User, SecondFactor.confirmed_at).outerjoin(
        SecondFactor, SecondFactor.user_id == User.id
    )
    page = page_of(rows, (User.created_at.desc(), User.id), query)
    return listed([person_as_json(row[0], row[1] is not None) for row in page])


@operation(PUT, "/users/<user_id>/role", "set_role", Scope.ADMIN, 400, 404, 409, 422)
@blueprint.arguments(NewRoleSchema, location="json")
@blueprint.response(200, PersonSchema)
def change_role(body: Mapping[str, Any], user_id: str) -> dict[str, Any]:
    """Change a user's role; the last administrator cannot be demoted."""
    user = row_of(User, user_id)
    try:
        set_role(user, Role(body["role"]))
    except AccountRefused as err:
        raise Conflict(str(err)) from err
    return person_as_json(user, confirmed_factor(user.id) is not None)


@operation(POST, "/users/<user_id>/disable", "disable_user", Scope.ADMIN, 404)
@blueprint.response(200, PersonSchema)
def disable_user(user_id: str) -> dict[str, Any]:
    """Disable a user: sessions end, and password and tokens no longer work; scans are kept."""
    user = row_of(User, user_id)
    try:
        disable(user)
    except AccountRefused as err:
        raise Conflict(str(err)) from err
    return person_as_json(user, confirmed_factor(user.id) is not None)


@operation(POST, "/users/<user_id>/enable", "enable_user", Scope.ADMIN, 404)
@blueprint.response(200, PersonSchema)
def enable_user(user_id: str) -> dict[str, Any]:
    """Enable a user again, with the same password and tokens."""
    user = row_of(User, user_id)
    enable(user)
    return person_as_json(user, confirmed_factor(user.id) is not None)


@operation(DELETE, "/users/<user_id>", "delete_user", Scope.ADMIN, 404, 409)
@blueprint.response(204)
def delete_user(user_id: str) -> None:
    """Delete another user's account with all scans; your own is deleted on the account page."""
    user = row_of(User, user_id)
    if user.id == g.token_owner_id:
        raise Conflict(
            "To delete your own account, use the account page; it asks for your password."
        )
    try:
        delete_account(user.id)
    except StillNeeded as err:
        raise Conflict(str(err)) from err


@operation(GET, "/audit", "list_events", Scope.ADMIN, 422)
@blueprint.arguments(AuditQuerySchema, location="query")
@blueprint.response(200, EventsPageSchema)
def list_events(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the events of the audit log, newest first: who did what to which object."""
    filters = {name: query[name] or "" for name in ("act", "by", "object", "address")}
    filters |= {name: str(query[name] or "") for name in ("since", "until")}
    rows = page_of(filtered(filters), (AuditEvent.id.desc(),), query)
    return listed(
        [
            {
                "id": event.id,
                "at": event.at,
                "act": event.act,
                "actor_id": event.actor_id,
                "actor": username,
                "object_id": event.object_id,
                "address": event.address,
                "detail": event.detail,
            }
            for event, username, *_ in rows
        ]
    )


def person_as_json(user: User, has_second_factor: bool) -> dict[str, Any]:
    """Return a user in the form of `PersonSchema`."""
    return {
        "id": user.id,
        "username": user.username,
        "name": user.name,
        "email": user.email,
        "role": user.role,
        "created_at": user.created_at,
        "disabled_at": user.disabled_at,
        "has_second_factor": has_second_factor,
    }
