"""Authentication and authorization of API requests, and what all operations share.

An operation is declared with `operation`, which states the scope that a token needs for it; one
that is registered without it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from http import HTTPMethod, HTTPStatus
from typing import Any, NoReturn, TypeVar

import flask_smorest
from flask import Response, current_app, g, request
from marshmallow import RAISE, Schema, ValidationError
from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import contains_eager
from webargs.flaskparser import FlaskParser
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    NotFound,
    Unauthorized,
    UnprocessableEntity,
)

from webapp.accounts.logins import note_use
from webapp.accounts.second_factors import lacks_required_factor
from webapp.api.idempotency import idempotent
from webapp.api.schemas import ProblemSchema
from webapp.audit import record_seldom, whose_request
from webapp.extensions import Base, db, noting
from webapp.forms import is_id
from webapp.models import Act, ApiToken, AuditEvent, Scan, Scope, User
from webapp.models.accounts import secret_hash
from webapp.review.sharing import visible_to
from webapp.web_extensions import csrf, limiter

PROBLEM = "application/problem+json"
REALM = "Hemoscan"
NOUNS = {
    "ModelVersion": "Model version",
    "Evaluation": "Evaluation",
    "TrainingRun": "Training run",
    "Dataset": "Data set",
    "PaperExperiment": "Experiment",
    "User": "User",
    "Shadow": "Shadow",
    "ReplaySample": "Sample",
    "DatasetAnalysis": "Question",
    "ResultDelivery": "Result",
}
NO_SUCH_SCAN = "Scan not found."
NOT_MODIFIED = "Not modified since the ETag in If-None-Match."
SCOPE_OF: dict[str, Scope | None] = {}
"""The scope that each operation needs, by the name of its view; None: any valid token is enough."""

within_api_rate = limiter.shared_limit(
    lambda: f"{current_app.config['API_REQUESTS_PER_MINUTE']} per minute",
    scope="api",
    key_func=lambda: str(whose_request()),
    exempt_when=lambda: not current_app.config["API_REQUESTS_PER_MINUTE"],
)
"""Decorates all operations: a user's requests count toward one limit, whichever of their tokens are
used.
"""


class Parser(FlaskParser):
    """Parses query parameters and JSON bodies; if it refuses something, such as a misspelled name,
    the response explains why.
    """

    def __init__(self) -> None:
        super().__init__(unknown=RAISE)

    def handle_error(self, error: ValidationError, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Respond with 422 and list every invalid parameter or field."""
        by_place = error.normalized_messages()  # type: ignore[no-untyped-call]
        sentences = [
            sentence for messages in by_place.values() for sentence in _sentences(messages)
        ]
        raise UnprocessableEntity(" ".join(sentences)) from error

    def _raw_load_json(self, req: Any) -> Any:
        """Return the body. A body that is nested too deeply, or contains a number with thousands of
        digits, raises other errors than one that is not JSON.
        """
        try:
            return super()._raw_load_json(req)
        except (RecursionError, ValueError) as err:
            raise BadRequest("The body is not valid JSON.") from err


def _sentences(messages: Any, name: str = "") -> Iterator[str]:
    """Yield the problems of each field; `name` is that of the parent field."""
    if isinstance(messages, dict):
        for key, inner in messages.items():
            inner_name = "" if key == "_schema" else str(key)
            yield from _sentences(inner, ".".join(part for part in (name, inner_name) if part))
    else:
        sentence = " ".join(str(message) for message in messages)
        yield f"{name}: {sentence}" if name else sentence


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose arguments are parsed by `Parser`."""

    ARGUMENTS_PARSER = Parser()

    @staticmethod
    def _make_doc_response_schema(schema: Any) -> Any:
        """Return the class of a schema, to represent it in the document. Each decorator copies what
        the others have documented; copying classes costs nothing, while copying instances took a
        third of the application's startup time.
        """
        return type(schema) if isinstance(schema, Schema) else schema


NO_ROOM = (503, 507)
"""The error statuses of operations that store files: the storage or the broker is unavailable or
full.
"""
UPLOAD_REFUSED = (413, 415, *NO_ROOM)
"""The error statuses of operations that accept files."""

blueprint = Blueprint("api", __name__, url_prefix="/api/v1", description="Scans and their results")
csrf.exempt(blueprint)  # The API ignores cookies, so another site cannot use a browser's login.


def bearer() -> str:
    """Return the bearer token of the request, or an empty string."""
    authorization = request.authorization
    return (
        authorization.token or ""
        if authorization is not None and authorization.type == "bearer"
        else ""
    )


@blueprint.before_request
def require_bearer() -> None:
    """Authenticate the request by its token and set `g.api_token` and `g.token_owner_id`.

    Raises:
        Unauthorized: the `Authorization` header has no token, or an unknown or expired one.
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
        .options(contains_eager(ApiToken.user))
    )
    # No open transaction (on SQLite: write lock) while a slow upload is being received.
    db.session.commit()
    if known is None:
        raise invalid_token("Unknown API token; it may have been revoked.")
    if known.has_expired:
        raise invalid_token("This API token has expired. Create a new one on the account page.")
    note_use(known)
    g.token_owner_id = known.user_id
    g.api_token = known


@blueprint.before_request
def require_scope_of_operation() -> None:
    """Check that the token has the scope that this operation needs.

    Raises:
        Forbidden: it does not (`require_scope`).
    """
    scope = SCOPE_OF[str(request.endpoint).removeprefix(f"{blueprint.name}.")]
    if scope is not None:
        require_scope(scope)


class InsufficientScope(Forbidden):
    """403: the token lacks the scope that an operation needs (RFC 6750, 3.1)."""

    def __init__(self, scope: Scope, description: str) -> None:
        super().__init__(description)
        self.scope = scope

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        """Return the headers, with the missing scope."""
        challenge = WWWAuthenticate(
            "bearer", {"realm": REALM, "error": "insufficient_scope", "scope": self.scope.value}
        )
        return [*super().get_headers(*args, **kwargs), ("WWW-Authenticate", str(challenge))]


def require_scope(scope: Scope) -> None:
    """Check that the request's token has a scope.

    Raises:
        Forbidden: it does not, or the scope is for administrators and the owner of the token is not
            one, or has to set up a second factor first.
    """
    token: ApiToken = g.api_token
    if scope is Scope.ADMIN and not token.user.is_admin:
        with noting():
            record_seldom(Act.ACCESS_REFUSED, None, AuditEvent.actor_id == token.user_id)
        raise InsufficientScope(scope, "Only administrators can do this.")
    if scope not in token.granted:
        has = ", ".join(token.granted) or "none"
        raise InsufficientScope(
            scope,
            f"This needs a token with the scope “{scope}”; this one has: {has}. Create another one"
            " on the account page.",
        )
    if scope is Scope.ADMIN and lacks_required_factor(token.user):
        raise Forbidden("Administrators must set up a second factor first, on the account page.")


def invalid_token(sentence: str) -> Unauthorized:
    """Return the error for a token that was revoked, never existed or has expired."""
    challenge = WWWAuthenticate("bearer", {"realm": REALM, "error": "invalid_token"})
    return Unauthorized(sentence, www_authenticate=challenge)


def require_bearer_still() -> None:
    """Check again that the request's token is valid, and lock it until the caller commits.

    Raises:
        Unauthorized: the token was revoked while the request was being received.
    """
    token = select(ApiToken.id).where(ApiToken.id == g.api_token.id).with_for_update(read=True)
    if db.session.scalar(token) is None:
        raise invalid_token("This API token was revoked during the request.")


@blueprint.after_request
def answer_conditionally(answer: Response) -> Response:
    """Add an ETag, so that polling clients get 304 while nothing changes, and forbid shared
    caching. A page of a list gets a link to the next one.
    """
    if next_page := g.get("next_page"):
        answer.headers["Link"] = f'<{next_page}>; rel="next"'
    if request.method in ("GET", "HEAD") and answer.status_code == 200:
        answer.direct_passthrough = False  # Small files are read into memory to compute their ETag.
        answer.add_etag()
        answer.make_conditional(request)
    answer.headers.setdefault("Cache-Control", "private, no-cache")
    return answer


def operation(
    method: HTTPMethod,
    path: str,
    operation_id: str,
    scope: Scope | None,
    *problems: int,
    within: Callable[[Any], Any] = lambda view: view,
    streams: bool = False,
) -> Callable[[Any], Any]:
    """Return the decorator that makes a view an operation of the API.

    POSTs are `idempotent`, and the responses that all operations share are documented.

    Args:
        path: below /api/v1, in Flask's notation.
        operation_id: its name in the OpenAPI document, and in generated clients.
        scope: what a token needs; None: any valid token is enough.
        problems: error statuses besides 401, 403 and 429.
        within: a separate rate limit.
        streams: the view itself reads the body, which is too large to be parsed before.
    """

    def add(view: Any) -> Any:
        SCOPE_OF[view.__name__] = scope
        statuses = {401, 429, *problems}
        if scope is not None:
            statuses.add(403)
        if method is HTTPMethod.POST:
            view = idempotent(view, streams=streams)
            statuses |= {400, 409, 422}
        responses: dict[int, dict[str, Any]] = {}
        if method is HTTPMethod.GET:
            responses[304] = {"description": NOT_MODIFIED}
        for status in sorted(statuses):
            phrase, content = HTTPStatus(status).phrase, {PROBLEM: {"schema": ProblemSchema}}
            responses[status] = {"description": phrase, "content": content}
        security = [{"token": [scope.value] if scope else []}]
        document = blueprint.doc(operationId=operation_id, security=security, responses=responses)
        view = document(view)
        # Grouped by module, in the document and in generated clients.
        tags = [view.__module__.rsplit(".", 1)[-1]]
        return blueprint.route(path, methods=[method], tags=tags)(within_api_rate(within(view)))

    return add


Table = TypeVar("Table", bound=Base)


def row_of(table: type[Table], row_id: str) -> Table:
    """Return a row by its id, with its current values.

    Raises:
        NotFound: there is none.
    """
    row = db.session.get(table, row_id, populate_existing=True) if is_id(row_id) else None
    if row is None:
        raise NotFound(f"{NOUNS[table.__name__]} not found.")
    return row


def require_own(scan_id: str) -> datetime | None:
    """Check that a scan belongs to the token's owner; return when its original was deleted, None if
    it is still stored.

    Raises:
        NotFound: the token's owner has no such scan.
    """
    row = db.session.execute(select(Scan.original_removed_at).where(is_own(scan_id))).one_or_none()
    if row is None:
        raise NotFound(NO_SUCH_SCAN)
    return row.original_removed_at


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
