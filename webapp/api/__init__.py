"""The JSON API under /api/v1: submit scans, read results, and find out which model was live, with a
bearer token.

Errors are `application/problem+json` (RFC 9457) and come from `webapp/errors.py`, like those of
every page.
"""

from __future__ import annotations

from threading import Lock

import flask_smorest
from flask import Flask, Response

from webapp.api import (  # noqa: F401 - importing them registers the operations.
    dataset_images,
    datasets,
    deliveries,
    evaluations,
    models,
    notifications,
    operations,
    opinions,
    papers,
    pictures,
    reference,
    replays,
    reports,
    runs,
    scans,
    shadows,
    site,
    tokens,
)
from webapp.api.access import blueprint
from webapp.api.document import GROUPS, INTRODUCTION, Conventions


class Api(flask_smorest.Api):
    """The documented API; its errors come from `webapp/errors.py`, so that the application has one
    error handler.

    Its document is built on the first request for it: most processes never get one, and building it
    takes a fifth of the startup time.
    """

    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask) -> None:
        self._is_complete, self._lock = False, Lock()
        introduction = {"info": {"description": INTRODUCTION}, "security": [{"token": []}]}
        super().__init__(app, spec_kwargs={**introduction, "extra_plugins": [Conventions()]})

    def _register_error_handlers(self) -> None:
        """Register no error handlers: those of flask-smorest use a format of their own, on pages
        too.
        """

    def _openapi_json(self) -> Response:
        """Respond with the document."""
        with self._lock:
            if not self._is_complete:
                self._complete()
                self._is_complete = True
        answer: Response = super()._openapi_json()
        return answer

    def _complete(self) -> None:
        """Add everything to the document."""
        described = "Create a token on your account page."
        scheme = {"type": "http", "scheme": "bearer", "description": described}
        self.spec.components.security_scheme("token", scheme)
        # Not with `register_blueprint`, which would put all operations into one group.
        blueprint.register_views_in_doc(
            self, self._app, self.spec, name=blueprint.name, parameters=None
        )
        for name, description in GROUPS.items():
            self.spec.tag({"name": name, "description": description})


def init_api(app: Flask) -> None:
    """Register the API and its OpenAPI document with `app`."""
    Api(app)
    app.register_blueprint(blueprint)
    app.register_blueprint(reference.blueprint)
