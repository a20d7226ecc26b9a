"""The JSON API under /api/v1: submit scans, read results, and ask which model was live, with a
bearer token.

Errors are `application/problem+json` (RFC 9457) and come from `webapp/errors.py`, like those of
every page.
"""

from __future__ import annotations

import flask_smorest
from flask import Flask

from webapp.api import (  # noqa: F401 - they add the operations.
    models,
    opinions,
    pictures,
    reports,
    scans,
    site,
)
from webapp.api.access import blueprint


class Api(flask_smorest.Api):
    """The documented API; its errors are `webapp/errors.py`'s, so that there is one handler in the
    application.
    """

    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_error_handlers(self) -> None:
        """Leave errors alone: flask-smorest would answer in a format of its own, on pages too."""


def init_api(app: Flask) -> None:
    """Register the API and its OpenAPI document with `app`."""
    api = Api(
        app,
        spec_kwargs={
            "info": {
                "description": (
                    "Brain hemorrhage detection on head CT. Research use, never a diagnosis."
                )
            },
            "security": [{"token": []}],
        },
    )
    api.spec.components.security_scheme(
        "token",
        {"type": "http", "scheme": "bearer", "description": "Create a token on your account page."},
    )
    api.register_blueprint(blueprint)
