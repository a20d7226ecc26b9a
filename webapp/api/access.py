"""Who may ask, for what, and how every operation is answered and documented."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import flask_smorest
from flask import Response, g, request
from marshmallow import RAISE, ValidationError
from sqlalchemy import ColumnElement, and_, select
from webargs.flaskparser import FlaskParser
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import NotFound, Unauthorized, UnprocessableEntity

from webapp.api.schemas import ProblemSchema
from webapp.extensions import csrf, db
from webapp.forms import is_id
from webapp.logins import note_use
from webapp.models import ApiToken, Scan, User
from webapp.models.accounts import secret_hash

PROBLEM = "application/problem+json"
REALM = "Hemoscan"
NO_SUCH_SCAN = "Scan not found."


class Parser(FlaskParser):
    """Reads query parameters; what it refuses, such as one that is misspelled, is told in a
    sentence.
    """

    def __init__(self) -> None:
        super().__init__(unknown=RAISE)

    def handle_error(self, error: ValidationError, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Answer 422 with every parameter that is wrong."""
        messages_of: dict[str, list[str]] = error.normalized_messages()["query"]  # type: ignore[no-untyped-call]
        sentences = [f"{name}: {' '.join(messages)}" for name, messages in messages_of.items()]
        raise UnprocessableEntity(" ".join(sentences)) from error


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose arguments are read by `Parser`."""

    ARGUMENTS_PARSER = Parser()


blueprint = Blueprint("api", __name__, url_prefix="/api/v1", description="Scans and their verdicts")
csrf.exempt(blueprint)  # No cookie is believed here, so no other site can act for a browser.


def bearer() -> str:
    """Return the token that a request carries, or nothing."""
    given = request.authorization
    return given.token or "" if given is not None and given.type == "bearer" else ""


@blueprint.before_request
def require_bearer() -> None:
    """Find the token's owner, whose id becomes `g.token_owner_id`.

    Raises:
        Unauthorized: there is no token in the `Authorization` header, or an unknown one.
    """
    if not (token := bearer()):
        raise Unauthorized(
            "Send an API token in the header “Authorization: Bearer …”.",
            www_authenticate=WWWAuthenticate("bearer", {"realm": REALM}),
        )
    known = db.session.scalar(
        select(ApiToken)
        .join(ApiToken.user)
        .where(ApiToken.secret_hash == secret_hash(token), User.disabled_at.is_(None))
    )
    # No transaction, on SQLite the write lock, is open while an upload comes in over a slow line.
    db.session.commit()
    if known is None:
        raise unknown_token()
    note_use(known)
    g.token_owner_id = known.user_id
    g.token_id = known.id


def unknown_token() -> Unauthorized:
    """Return the answer to a token that was revoked or never was."""
    return Unauthorized(
        "Unknown API token; it may have been revoked.",
        www_authenticate=WWWAuthenticate("bearer", {"realm": REALM, "error": "invalid_token"}),
    )


def require_bearer_still() -> None:
    """Refuse a request whose token was revoked since it came, and let nobody revoke it until the
    caller commits.

    Raises:
        Unauthorized: so it is.
    """
    token = select(ApiToken.id).where(ApiToken.id == g.token_id).with_for_update(read=True)
    if db.session.scalar(token) is None:
        raise unknown_token()


@blueprint.after_request
def answer_conditionally(answer: Response) -> Response:
    """Let a client that polls be told in a few bytes that nothing changed, and let nobody else keep
    the answer.
    """
    if request.method in ("GET", "HEAD") and answer.status_code == 200:
        answer.add_etag()
        answer.make_conditional(request)
    answer.headers.setdefault("Cache-Control", "private, no-cache")
    return answer


def documented(operation_id: str, *problems: int) -> Callable[[Any], Any]:
    """Return a decorator that names an operation in the OpenAPI document and describes its errors;
    every operation may answer 401.
    """

    def document(view: Any) -> Any:
        view = blueprint.doc(operationId=operation_id)(view)
        for status in (401, *problems):
            view = blueprint.alt_response(status, schema=ProblemSchema, content_type=PROBLEM)(view)
        return view

    return document


def require_own(scan_id: str) -> datetime | None:
    """Refuse a request about a scan that the token's owner does not have; return when its original
    was removed, None if it is kept.

    Raises:
        NotFound: there is no such scan for them.
    """
    found = db.session.execute(
        select(Scan.original_removed_at).where(is_own(scan_id))
    ).one_or_none()
    if found is None:
        raise NotFound(NO_SUCH_SCAN)
    return found.original_removed_at


def is_own(scan_id: str) -> ColumnElement[bool]:
    """Return the condition for the scan with that id, if it is the token owner's.

    Raises:
        NotFound: this is no id at all.
    """
    if not is_id(scan_id):
        raise NotFound(NO_SUCH_SCAN)
    return and_(Scan.id == scan_id, Scan.user_id == g.token_owner_id)
