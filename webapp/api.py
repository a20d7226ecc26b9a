"""The JSON API under /api/v1: submit scans and read verdicts with a bearer token.

Errors are `application/problem+json` (RFC 9457) and come from `webapp/errors.py`, like those of every page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import flask_smorest
from flask import Flask, Response, g, request, url_for
from marshmallow import ValidationError
from sqlalchemy import ColumnElement, Select, and_, func, select
from sqlalchemy.orm import joinedload
from webargs.flaskparser import FlaskParser
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Conflict, HTTPException, NotFound, Unauthorized, UnprocessableEntity, UnsupportedMediaType

from webapp import intake
from webapp.api_schemas import JobSchema, ProblemSchema, ScanSchema, ScansPageSchema, ScansQuerySchema, SubmissionSchema
from webapp.audit import record
from webapp.extensions import csrf, db
from webapp.forms import is_id
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.logins import note_use
from webapp.models import Act, ApiToken, Heatmap, JobStatus, ModelVersion, Prediction, Scan, User, cancel, force, result_of, retry
from webapp.models.accounts import secret_hash
from webapp.scans import delete_scan, picture

PROBLEM = "application/problem+json"
PNG = {"type": "string", "format": "binary"}
REALM = "Hemoscan"
NO_SUCH_SCAN = "You have no such scan."
HEATMAP_WAIT_S = 2.0
"""How long a request for a heat map waits for it: most are drawn within a second of the verdict."""
HEATMAP_LOOK_S = 0.1


class Parser(FlaskParser):
    """Reads query parameters; what it refuses is told in a sentence."""

    def handle_error(self, error: ValidationError, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Answer 422 with every parameter that is wrong."""
        messages_of: dict[str, list[str]] = error.normalized_messages()["query"]  # type: ignore[no-untyped-call]
        sentences = [f"{name}: {' '.join(messages)}" for name, messages in messages_of.items()]
        raise UnprocessableEntity(" ".join(sentences)) from error


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose arguments are read by `Parser`."""

    ARGUMENTS_PARSER = Parser()


class Api(flask_smorest.Api):
    """The documented API; its errors are `webapp/errors.py`'s, so that there is one handler in the application."""

    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_error_handlers(self) -> None:
        """Leave errors alone: flask-smorest would answer in a format of its own, on pages too."""


class NotYet(HTTPException):
    """Not an error: what was asked for is being made, ask again in a second."""

    code = 202

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        """Return the headers, with the time to wait."""
        return [*super().get_headers(*args, **kwargs), ("Retry-After", "1")]


blueprint = Blueprint("api", __name__, url_prefix="/api/v1", description="Scans and their verdicts")
csrf.exempt(blueprint)  # No cookie is believed here, so no other site can act for a browser.


@blueprint.before_request
def require_bearer() -> None:
    """Find the token's owner, whose id becomes `g.token_owner_id`.

    Raises:
        Unauthorized: there is no token in the `Authorization` header, or an unknown one.
    """
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        raise Unauthorized(
            "Send an API token in the header “Authorization: Bearer …”.", www_authenticate=WWWAuthenticate("bearer", {"realm": REALM})
        )
    token = db.session.scalar(
        select(ApiToken).join(ApiToken.user).where(ApiToken.secret_hash == secret_hash(given.token), User.disabled_at.is_(None))
    )
    db.session.commit()  # No transaction, on SQLite the write lock, is open while an upload comes in over a slow line.
    if token is None:
        raise Unauthorized(
            "This API token is not known here; it may have been revoked.",
            www_authenticate=WWWAuthenticate("bearer", {"realm": REALM, "error": "invalid_token"}),
        )
    note_use(token)
    g.token_owner_id = token.user_id


@blueprint.after_request
def answer_conditionally(answer: Response) -> Response:
    """Let a client that polls be told in a few bytes that nothing changed, and let nobody else keep the answer."""
    if request.method in ("GET", "HEAD") and answer.status_code == 200:
        answer.add_etag()
        answer.make_conditional(request)
    answer.headers.setdefault("Cache-Control", "private, no-cache")
    return answer


def documented_problems(*statuses: int) -> Callable[[Any], Any]:
    """Return a decorator that describes these errors in the OpenAPI document; every operation may answer 401."""

    def document(view: Any) -> Any:
        for status in (401, *statuses):
            view = blueprint.alt_response(status, schema=ProblemSchema, content_type=PROBLEM)(view)
        return view

    return document


@blueprint.post("/scans")
@blueprint.doc(
    requestBody={
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "A slice as PNG, JPEG or DICOM; repeat the field for several.",
                        },
                        "title": {"type": "string", "description": "Shown in the history; give no patient's name."},
                    },
                }
            }
        },
    }
)
@documented_problems(413, 415, 422, 503)
@blueprint.response(202, SubmissionSchema)
def submit() -> dict[str, Any]:
    """Submit one or more slices.

    All of them are accepted, or none. The answer comes at once; poll `url` for the verdict.
    """
    if request.mimetype not in ("", "multipart/form-data"):
        raise UnsupportedMediaType("Send the files as multipart/form-data, in the field “file”.")
    try:
        scans = intake.accept_scans(g.token_owner_id, request.files.getlist("file"), request.form.get("title", ""))
    except intake.UploadRejected as err:
        raise UnprocessableEntity(str(err)) from err
    jobs = [job(scan.id, scan.status) for scan in scans]
    return {**jobs[0], "scans": jobs}


@blueprint.get("/scans")
@documented_problems(422)
@blueprint.arguments(ScansQuerySchema, location="query")
@blueprint.response(200, ScansPageSchema)
def index(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the scans of the token's owner, newest first."""
    page, per_page = query["page"], query["per_page"]
    mine = [Scan.user_id == g.token_owner_id]
    if query["status"]:
        mine.append(Scan.status == query["status"])
    total = db.session.scalar(select(func.count()).select_from(Scan).where(*mine))
    newest = with_result(select(Scan)).where(*mine).order_by(Scan.created_at.desc(), Scan.id).limit(per_page).offset((page - 1) * per_page)
    return {"items": [told(scan) for scan in db.session.scalars(newest)], "page": page, "per_page": per_page, "total": total}


@blueprint.get("/scans/<scan_id>")
@documented_problems(404)
@blueprint.alt_response(304, description="Unchanged since the answer with the ETag in If-None-Match.", success=True)
@blueprint.response(200, ScanSchema)
def show(scan_id: str) -> dict[str, Any]:
    """Poll one scan."""
    scan = db.session.scalar(with_result(select(Scan)).where(is_own(scan_id)))
    if scan is None:
        raise NotFound(NO_SUCH_SCAN)
    return told(scan)


@blueprint.post("/scans/<scan_id>/score-anyway")
@documented_problems(404, 409)
@blueprint.response(202, JobSchema)
def score_anyway(scan_id: str) -> dict[str, Any]:
    """Score a scan that was refused because it does not look like a head CT.

    Its result carries a warning.
    """
    require_own(scan_id)
    refusal = "This scan was not refused for looking unlike a head CT, or is scored anyway already."
    return queued(scan_id, Act.SCAN_FORCED, force(scan_id, g.token_owner_id), refusal)


@blueprint.post("/scans/<scan_id>/cancel")
@documented_problems(404, 409)
@blueprint.response(200, JobSchema)
def cancel_scan(scan_id: str) -> dict[str, Any]:
    """End a scan that waits or is being read, as cancelled."""
    require_own(scan_id)
    cancelled = cancel(Scan, Scan.id == scan_id)
    if cancelled:
        record(Act.SCAN_CANCELLED, scan_id)
    db.session.commit()
    if not cancelled:
        raise Conflict("This scan has ended already.")
    return job(scan_id, JobStatus.CANCELLED)


@blueprint.post("/scans/<scan_id>/retry")
@documented_problems(404, 409)
@blueprint.response(202, JobSchema)
def retry_scan(scan_id: str) -> dict[str, Any]:
    """Queue a scan again that failed or was cancelled."""
    require_own(scan_id)
    return queued(scan_id, Act.SCAN_RETRIED, retry(scan_id), "Only a scan that failed or was cancelled can be tried again.")


@blueprint.delete("/scans/<scan_id>")
@documented_problems(404)
@blueprint.response(204)
def remove(scan_id: str) -> None:
    """Delete a scan with its file, its pictures and its verdict.

    Files that the storage does not remove at once are removed within hours.
    """
    require_own(scan_id)
    delete_scan(scan_id)


@blueprint.get("/scans/<scan_id>/image.png")
@documented_problems(404)
@blueprint.alt_response(202, schema=ProblemSchema, content_type=PROBLEM, description="Not made yet; see Retry-After.", success=True)
@blueprint.response(200, PNG, content_type="image/png")
def image(scan_id: str) -> Response:
    """Fetch the slice as the model's reader sees it."""
    look = db.session.execute(select(Scan.status, Scan.image_key).where(is_own(scan_id))).one_or_none()
    if look is None:
        raise NotFound(NO_SUCH_SCAN)
    if look.image_key:
        return picture(look.image_key)
    if look.status.is_final:
        raise NotFound("This scan has no picture.")
    raise NotYet("The picture is not made yet.")


@blueprint.get("/scans/<scan_id>/heatmap.png")
@documented_problems(404)
@blueprint.alt_response(202, schema=ProblemSchema, content_type=PROBLEM, description="Not drawn yet; see Retry-After.", success=True)
@blueprint.response(200, PNG, content_type="image/png")
def heatmap(scan_id: str) -> Response:
    """Fetch the heat map, to be laid over the image.

    It is drawn after the verdict; this waits for it a moment.
    """
    give_up_at = time.monotonic() + HEATMAP_WAIT_S
    find = (
        select(Scan.status, Heatmap.status.label("drawing"), Heatmap.image_key)
        .outerjoin(Scan.prediction)
        .outerjoin(Prediction.heatmap)
        .where(is_own(scan_id))
    )
    while True:
        look = db.session.execute(find).one_or_none()
        db.session.rollback()  # No transaction is open while this request waits.
        if look is None:
            raise NotFound(NO_SUCH_SCAN)
        if look.image_key:
            return picture(look.image_key)
        if (look.drawing or look.status).is_final:
            raise NotFound("This scan has no heat map.")
        if look.drawing is None or time.monotonic() >= give_up_at:
            raise NotYet("The heat map is not drawn yet.")
        time.sleep(HEATMAP_LOOK_S)


def queued(scan_id: str, act: Act, was_queued: bool, refusal: str) -> dict[str, Any]:
    """Commit what was queued again, wake a worker and return what a client polls.

    Raises:
        Conflict: nothing was queued; it says `refusal`.
    """
    if was_queued:
        record(act, scan_id)
    db.session.commit()
    if not was_queued:
        raise Conflict(refusal)
    nudge(PREDICT_SCANS)  # Where the queue cannot be reached the row waits, and the sweeper nudges.
    return job(scan_id, JobStatus.QUEUED)


def job(scan_id: str, status: JobStatus) -> dict[str, Any]:
    """Return what a client polls (`JobSchema`)."""
    return {"id": scan_id, "status": status, "url": url_for("api.show", scan_id=scan_id, _external=True)}


def require_own(scan_id: str) -> None:
    """Refuse a request about a scan that the token's owner does not have.

    Raises:
        NotFound: there is no such scan for them.
    """
    if db.session.scalar(select(Scan.id).where(is_own(scan_id))) is None:
        raise NotFound(NO_SUCH_SCAN)


def is_own(scan_id: str) -> ColumnElement[bool]:
    """Return the condition for the scan with that id, if it is the token owner's.

    Raises:
        NotFound: this is no id at all.
    """
    if not is_id(scan_id):
        raise NotFound(NO_SUCH_SCAN)
    return and_(Scan.id == scan_id, Scan.user_id == g.token_owner_id)


def with_result(scans: Select[Scan]) -> Select[Scan]:
    """Return the statement that also loads all that `told` needs, but no model's card, which is long."""
    prediction = joinedload(Scan.prediction)
    return scans.options(
        prediction.joinedload(Prediction.model_version).load_only(ModelVersion.architecture), prediction.joinedload(Prediction.heatmap)
    )


def told(scan: Scan) -> dict[str, Any]:
    """Return what a client is told of a scan (`ScanSchema`)."""
    result = result_of(scan)
    if result is not None:
        drawing = scan.prediction.heatmap if scan.prediction else None
        comes = drawing is not None and (drawing.image_key or not drawing.status.is_final)
        result["heatmap_url"] = url_for("api.heatmap", scan_id=scan.id, _external=True) if comes else None
    return {
        "id": scan.id,
        "status": scan.status,
        "progress": scan.progress,
        "error": scan.error,
        "created_at": scan.created_at,
        "finished_at": scan.finished_at,
        "score_anyway_url": url_for("api.score_anyway", scan_id=scan.id, _external=True) if scan.may_be_forced else None,
        "result": result,
    }


def init_api(app: Flask) -> None:
    """Add the API and its OpenAPI document to `app`."""
    api = Api(
        app,
        spec_kwargs={
            "info": {"description": "Brain hemorrhage detection on head CT. Research use, never a diagnosis."},
            "security": [{"token": []}],
        },
    )
    api.spec.components.security_scheme("token", {"type": "http", "scheme": "bearer", "description": "From your account page."})
    api.register_blueprint(blueprint)
