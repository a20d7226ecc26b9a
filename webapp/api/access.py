"""Authentication and authorization of API requests, and what all operations share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import flask_smorest
from flask import Response, g, request
from marshmallow import RAISE, ValidationError
from sqlalchemy import ColumnElement, and_, select
from webargs.flaskparser import FlaskParser
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import BadRequest, NotFound, Unauthorized, UnprocessableEntity

from webapp.api.schemas import ProblemSchema
from webapp.extensions import csrf, db
from webapp.forms import is_id
from webapp.logins import note_use
from webapp.models import ApiToken, Scan, User
from webapp.models.accounts import secret_hash
from webapp.sharing import visible_to

PROBLEM = "application/problem+json"
REALM = "Hemoscan"
NO_SUCH_SCAN = "Scan not found."


class Parser(FlaskParser):
    """Reads query parameters and JSON bodies; what it refuses, such as a name that is misspelled,
    is told in a sentence.
    """

    def __init__(self) -> None:
        super().__init__(unknown=RAISE)

    def handle_error(self, error: ValidationError, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Respond with 422 and list every invalid parameter or field."""
        by_place = error.normalized_messages()  # type: ignore[no-untyped-call]
        sentences = [sentence for found in by_place.values() for sentence in _sentences(found)]
        raise UnprocessableEntity(" ".join(sentences)) from error

    def _handle_invalid_json_error(self, error: Any, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Respond with 400 to a body that is not JSON."""
        raise BadRequest("The body is not valid JSON.") from error


def _sentences(found: Any, name: str = "") -> Iterator[str]:
    """Yield what is wrong with each field; `name` is that of the field that holds them."""
    if isinstance(found, dict):
        for key, inner in found.items():
            own = "" if key == "_schema" else str(key)
            yield from _sentences(inner, ".".join(part for part in (name, own) if part))
    else:
        told = " ".join(str(message) for message in found)
        yield f"{name}: {told}" if name else told


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose arguments are read by `Parser`."""

    ARGUMENTS_PARSER = Parser()


blueprint = Blueprint("api", __name__, url_prefix="/api/v1", description="Scans and their results")
csrf.exempt(blueprint)  # The API ignores cookies, so no other site can act for a browser.


def bearer() -> str:
    """Return the bearer token of the request, or an empty string."""
    given = request.authorization
    return given.token or "" if given is not None and given.type == "bearer" else ""


@blueprint.before_request
def require_bearer() -> None:
    """Authenticate the request by its token and set `g.token_owner_id` and `g.token_id`.

    Raises:
        Unauthorized: the `Authorization` header has no token or an unknown one.
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
    # No open transaction (on SQLite: write lock) while a slow upload is being received.
    db.session.commit()
    if known is None:
        raise unknown_token()
    note_use(known)
    g.token_owner_id = known.user_id
    g.token_id = known.id


def unknown_token() -> Unauthorized:
    """Return the error for a token that was revoked or never existed."""
    return Unauthorized(
        "Unknown API token; it may have been revoked.",
        www_authenticate=WWWAuthenticate("bearer", {"realm": REALM, "error": "invalid_token"}),
    )


def require_bearer_still() -> None:
    """Check again that the request's token is valid, and lock it until the caller commits.

    Raises:
        Unauthorized: the token was revoked while the request was being received.
    """
    token = select(ApiToken.id).where(ApiToken.id == g.token_id).with_for_update(read=True)
    if db.session.scalar(token) is None:
        raise unknown_token()


@blueprint.after_request
def answer_conditionally(answer: Response) -> Response:
    """Add an ETag, so that polling clients get 304 while nothing changes, and forbid shared
    caching.
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
    """Check that a scan belongs to the token's owner; return when its original was deleted, None if
    it is still stored.

    Raises:
        NotFound: the token's owner has no such scan.
    """
    found = db.session.execute(
        select(Scan.original_removed_at).where(is_own(scan_id))
    ).one_or_none()
    if found is None:
        raise NotFound(NO_SUCH_SCAN)
    return found.original_removed_at


def is_own(scan_id: str) -> ColumnElement[bool]:
    """Return the SQL condition for the scan with that id and owned by the token's owner.

    Raises:
        NotFound: `scan_id` is not a valid id.
    """
    if not is_id(scan_id):
        raise NotFound(NO_SUCH_SCAN)
    return and_(Scan.id == scan_id, Scan.user_id == g.token_owner_id)


def is_visible(scan_id: str) -> ColumnElement[bool]:
    """Return the SQL condition for the scan with that id if the token's owner may see it: their own
    or one that is shared with them.

    Raises:
        NotFound: `scan_id` is not a valid id.
    """
    if not is_id(scan_id):
        raise NotFound(NO_SUCH_SCAN)
    return and_(Scan.id == scan_id, visible_to(g.token_owner_id))


def require_visible(scan_id: str) -> None:
    """Check that the token's owner may see a scan.

    Raises:
        NotFound: they see no such scan.
    """
    if db.session.scalar(select(Scan.id).where(is_visible(scan_id))) is None:
        raise NotFound(NO_SUCH_SCAN)
