"""Hemoscan's web application: accounts, uploads, results, administration and the JSON API."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

__version__ = "0.1.0"


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Return the application, configured from the environment; `config` overrides the environment
    and may add Flask settings.

    Raises:
        ConfigurationError: a setting is missing or invalid.
    """
    from webapp import (
        api,
        audit,
        cli,
        display,
        errors,
        jobs,
        security_headers,
        space,
        storage,
    )
    from webapp.config import PROJECT_ROOT, settings
    from webapp.extensions import init_extensions
    from webapp.intake.spool import Request

    app = Flask(__name__, instance_path=str(PROJECT_ROOT))
    app.request_class = Request
    app.config["MIGRATIONS_DIR"] = PROJECT_ROOT / "migrations"
    given = dict(config or {})
    known = settings({**os.environ, **{name: str(value) for name, value in given.items()}})
    app.config.from_mapping({**given, **known})

    if proxies := app.config["TRUSTED_PROXIES"]:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=proxies)  # type: ignore[method-assign]

    security_headers.init_policies(app)
    init_extensions(app)
    audit.init_audit(app)
    jobs.make_celery(app)
    storage.init_storage(app)
    space.init_space(app)

    _register_pages(app)
    api.init_api(app)
    display.init_display(app)
    errors.init_errors(app)
    cli.init_cli(app)
    return app


def _register_pages(app: Flask) -> None:
    """Register the blueprints; each is one module."""
    from webapp import (
        admin,
        auth,
        health,
        metrics,
        notification_pages,
        opinion_pages,
        pictures,
        rearranging,
        report_pages,
        scans,
        second_factor_pages,
        submission,
        worklist,
    )

    for module in (
        auth,
        second_factor_pages,
        submission,
        scans,
        opinion_pages,
        worklist,
        rearranging,
        pictures,
        report_pages,
        notification_pages,
        admin,
        health,
        metrics,
    ):
        app.register_blueprint(module.blueprint)
