"""Error responses: one sentence for the user or program, never an internal detail."""

from __future__ import annotations

import logging
import traceback
from functools import lru_cache

from flask import Flask, Response, current_app, json, render_template, request
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import IntegrityError, OperationalError
from werkzeug.exceptions import (
    Conflict,
    HTTPException,
    InternalServerError,
    NotFound,
    RequestEntityTooLarge,
    SecurityError,
    ServiceUnavailable,
)
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.routing import RoutingException

from webapp.extensions import db, is_busy, is_full, refers_to_deleted
from webapp.storage import MissingFile, StorageError, StorageFull

log = logging.getLogger(__name__)

SENTENCES = {
    400: "The request is invalid.",
    401: "Please log in first.",
    403: "You do not have permission to do this.",
    404: "Not found, or you do not have access.",
    405: "This address does not support that request method.",
    413: "The upload is larger than {MAX_UPLOAD_MB} MB, the maximum upload size.",
    429: "Too many attempts. Please wait a minute and try again.",
    500: "Something went wrong on our side. The error has been logged; please try again.",
    503: "Part of the service is unavailable. Please try again later.",
}
TOO_MANY_FIELDS = "The request has too many fields, or too long ones."
EXPIRED_FORM = "This form has expired. Please go back, reload the page and submit it again."
BUSY = "The database is busy. Please try again in a few seconds."
BUSY_S = 5
DELETED = (
    "Something that this refers to has just been deleted, so nothing was done. Reload the page and"
    " try again."
)
STORAGE_AWAY_S = 30
OVERLOADED = "Too many uploads are arriving at once. Please send this one again in a few seconds."
OTHER_HOST = "This service is not available under that host name."
DISK_FULL = "The server's disk is full. Please try again later."
DRAINED = 4
"""An oversized upload is read up to this multiple of the limit, so that its sender gets the
response.
"""


class InsufficientStorage(HTTPException):
    """507: there is no room for what was sent (RFC 4918, 11.5)."""

    code = 507
    description = DISK_FULL


def init_errors(app: Flask) -> None:
    """Respond to every error of `app` with a sentence: as a page, or as problem+json in the API."""
    app.register_error_handler(HTTPException, refuse)
    app.register_error_handler(StorageError, refuse_for_storage)
    app.register_error_handler(OperationalError, refuse_for_database)
    app.register_error_handler(IntegrityError, refuse_for_deleted)
    app.register_error_handler(Exception, fail)


def refuse(error: HTTPException) -> Response | HTTPException:
    """Respond to an HTTP error."""
    if isinstance(error, RoutingException) or error.code is None or error.response is not None:
        return error  # A redirect, or an error with a complete response.
    if isinstance(error, (RequestEntityTooLarge, InsufficientStorage)):
        _drain()
    response = Response(status=error.code)
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value  # Allow, Retry-After.
    sentence, more = _sentence(error), _details(error)
    prefixes = ("OPENAPI_URL_PREFIX", "DICOMWEB_URL_PREFIX")
    is_for_program = any(
        request.path.startswith(f"{current_app.config[prefix]}/") for prefix in prefixes
    )
    if is_for_program or request.accept_mimetypes.best == "application/json":
        title = HTTP_STATUS_CODES.get(error.code, "Error")
        problem = {
            "type": "about:blank",
            "title": title,
            "status": error.code,
            "detail": sentence,
            **more,
        }
        response.set_data(json.dumps(problem))
        response.content_type = "application/problem+json"
    elif error.code >= 500 or isinstance(error, SecurityError):
        # Other pages contain links, which cannot be built for an untrusted host. Context processors
        # would query the database for the current user, and it may be the database that failed.
        template = current_app.jinja_env.get_template("errors/failure.html")
        response.set_data(template.render(sentence=sentence, home=request.script_root + "/"))
        response.content_type = "text/html; charset=utf-8"
    else:
        response.set_data(
            render_template("errors/error.html", sentence=sentence, status=error.code)
        )
        response.content_type = "text/html; charset=utf-8"
    return response


@lru_cache(maxsize=64)  # Called by the main loop of the web server.
def overload_answer(app: Flask, for_program: bool, retry_after_s: int) -> bytes:
    """Return the complete HTTP response to an upload for which there is no time (`webapp.serving`):
    429, with Retry-After; there is no request context, and the database is not queried.
    """
    if for_program:
        problem = {
            "type": "about:blank",
            "title": HTTP_STATUS_CODES[429],
            "status": 429,
            "detail": OVERLOADED,
        }
        body, content_type = app.json.dumps(problem), "application/problem+json"
    else:
        template = app.jinja_env.get_template("errors/failure.html")
        body, content_type = template.render(sentence=OVERLOADED, home="/"), "text/html"
    response = Response(body, 429, content_type=f"{content_type}; charset=utf-8")
    response.headers["Retry-After"] = str(retry_after_s)
    response.headers["Connection"] = "close"
    with app.test_request_context():
        response = app.process_response(response)
    head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    return f"HTTP/1.1 {response.status}\r\n{head}\r\n".encode("latin-1") + response.get_data()


def refuse_for_storage(error: StorageError) -> Response | HTTPException:
    """Respond to a storage failure or a missing file with its message, and log it."""
    db.session.rollback()
    if isinstance(error, MissingFile):
        log.error("A file of a row is missing, at %s", request.endpoint)
        return refuse(NotFound(str(error)))
    log.error("The storage failed at %s: %s", request.endpoint, type(error.__cause__).__name__)
    if isinstance(error, StorageFull):
        return refuse(InsufficientStorage(str(error)))
    return refuse(ServiceUnavailable(str(error), retry_after=STORAGE_AWAY_S))


def refuse_for_database(error: OperationalError) -> Response | HTTPException:
    """Respond to a database that was locked too long or whose disk is full; nothing was done, so
    clients may retry.
    """
    if is_full(error):
        db.session.rollback()
        log.error("The database's disk is full at %s", request.endpoint)
        return refuse(InsufficientStorage(DISK_FULL))
    if not is_busy(error):
        return fail(error)
    db.session.rollback()
    log.warning("The database was busy for too long at %s", request.endpoint)
    return refuse(ServiceUnavailable(BUSY, retry_after=BUSY_S))


def refuse_for_deleted(error: IntegrityError) -> Response | HTTPException:
    """Respond to a row that refers to another one which was deleted meanwhile: a data set, a scan,
    an account. The transaction was undone.
    """
    if not refers_to_deleted(error):
        return fail(error)
    db.session.rollback()
    log.info("%s referred to something that was deleted meanwhile", request.endpoint)
    return refuse(Conflict(DELETED))


def fail(error: Exception) -> Response | HTTPException:
    """Respond to an unexpected exception with a neutral sentence, and log where it happened."""
    if current_app.config["PROPAGATE_EXCEPTIONS"] or (
        current_app.config["PROPAGATE_EXCEPTIONS"] is None and current_app.testing
    ):
        raise error
    db.session.rollback()
    # Only types and locations: the message of an exception may contain file names, patient tags or
    # personal data.
    kinds: list[str] = []
    cause: BaseException | None = error
    frames = traceback.format_tb(error.__traceback__)
    while cause is not None:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    log.error("%s failed with %s\n%s", request.endpoint, " from ".join(kinds), "".join(frames))
    return refuse(InternalServerError())


def _sentence(error: HTTPException) -> str:
    """Return the message of the error if it has one, otherwise the default for its status."""
    if isinstance(error, CSRFError):
        return EXPIRED_FORM
    if isinstance(error, SecurityError):
        return OTHER_HOST
    details = getattr(error, "data", None) or {}  # flask-smorest's and webargs' abort(…, message=…)
    text = details.get("message")
    if (
        text is None
        and error.code not in (429, 500)
        and error.description != type(error).description
    ):
        text = error.description
    if text is None and isinstance(error, RequestEntityTooLarge) and _is_within_limit():
        return TOO_MANY_FIELDS
    usual = SENTENCES.get(error.code or 500) or type(error).description or SENTENCES[400]
    return str(text) if text else usual.format_map(current_app.config)


def _is_within_limit() -> bool:
    """True if a request declares a body that is not larger than the upload limit."""
    most, length = request.max_content_length, request.content_length
    return length is not None and (most is None or length <= most)


def _details(error: HTTPException) -> dict[str, object]:
    """Return the invalid fields, if a schema rejected the request."""
    details = getattr(error, "data", None) or {}
    errors = details.get("errors") or details.get("messages")
    return {"errors": errors} if errors else {}


def _drain() -> None:
    """Read and discard some of the body: closing a connection with unread bytes resets it, and the
    client never sees the response.
    """
    left = min(
        request.content_length or 0, DRAINED * (current_app.config["MAX_CONTENT_LENGTH"] or 0)
    )
    source = request.environ["wsgi.input"]
    try:
        while left > 0 and (read := source.read(min(left, 2**16))):
            left -= len(read)
    except (OSError, ValueError):
        # The client has disconnected, or the server has closed the body.
        return
