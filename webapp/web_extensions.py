"""The Flask extensions of pages and API: logins, CSRF tokens and rate limits."""

from __future__ import annotations

from flask import Flask, Response, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager
from flask_wtf import CSRFProtect
from werkzeug.routing import IntegerConverter, Map

from webapp.extensions import LARGEST_INTEGER, reads_only

login_manager = LoginManager()
csrf = CSRFProtect()
limiter = Limiter(get_remote_address)

LIMIT_IS_OVER = "X-RateLimit-Retry-After"
"""The header in which the limiter states when its limit resets (`keep_retry_after`)."""


class ColumnInteger(IntegerConverter):
    """An integer in a path. Larger ones than a column holds match no route, so the response is 404:
    a database refuses to compare them.
    """

    def __init__(self, url_map: Map) -> None:
        super().__init__(url_map, max=LARGEST_INTEGER)


def keep_retry_after(answer: Response) -> Response:
    """Send Retry-After only if a limit refused the request: the limiter sets its header on every
    response, and would overwrite values set elsewhere.
    """
    seconds = answer.headers.pop(LIMIT_IS_OVER, None)
    if seconds is not None and answer.status_code == 429:
        answer.headers["Retry-After"] = str(max(1, int(seconds)))
    return answer


def init_web_extensions(app: Flask) -> None:
    """Initialize the extensions for `app`."""
    app.url_map.converters["int"] = ColumnInteger
    login_manager.init_app(app)
    csrf.init_app(app)
    app.after_request(keep_retry_after)  # Runs after the limiter's.
    limiter.init_app(app)

    @app.before_request
    def mark_reading_requests() -> None:
        reads_only.set(request.method in ("GET", "HEAD", "OPTIONS"))

    @app.teardown_request
    def unmark(_error: BaseException | None) -> None:
        reads_only.set(False)  # Code that runs in this thread after the request may write.
