"""Hemoscan's web application: accounts, uploads, results, administration and the JSON API.

Imported inside the functions is what each needs, because every process loads this package: the
supervisor of `make run` works without Flask, and workers without pages and API.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # The supervisor of `make run` works without Flask.
    from flask import Flask

__version__ = "0.1.0"


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Return the application, configured from the environment; `config` overrides the environment
    and may add Flask settings.

    Raises:
        ConfigurationError: a setting is missing or invalid.
    """
    from werkzeug.middleware.proxy_fix import ProxyFix

    from webapp import (
        api,
        audit,
        cli,
        compression,
        dicomweb,
        display,
        errors,
        security_headers,
        space,
    )
    from webapp.intake.spool import Request
    from webapp.web_extensions import init_web_extensions

    app = create_core(config)
    app.request_class = Request
    if proxies := app.config["TRUSTED_PROXIES"]:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=proxies)  # type: ignore[method-assign]

    security_headers.init_policies(app)
    init_web_extensions(app)
    audit.init_audit(app)
    space.init_space(app)
    compression.init_compression(app)

    _register_pages(app)
    api.init_api(app)
    app.register_blueprint(dicomweb.blueprint, url_prefix=app.config["DICOMWEB_URL_PREFIX"])
    display.init_display(app)
    errors.init_errors(app)
    cli.init_cli(app)
    return app


def create_core(config: Mapping[str, Any] | None = None) -> Flask:
    """Return the application without pages, API and commands, as workers need it: with
    configuration, database, queue and storage. It starts in less than half the time.

    Raises:
        ConfigurationError: a setting is missing or invalid.
    """
    from flask import Flask

    from webapp import jobs, storage
    from webapp.config import PROJECT_ROOT, settings
    from webapp.extensions import init_database

    app = Flask(__name__, instance_path=str(PROJECT_ROOT))
    app.config["MIGRATIONS_DIR"] = PROJECT_ROOT / "migrations"
    overrides = dict(config or {})
    known = settings({**os.environ, **{name: str(value) for name, value in overrides.items()}})
    app.config.from_mapping({**overrides, **known})
    init_database(app)
    jobs.make_celery(app)
    storage.init_storage(app)
    return app


def _register_pages(app: Flask) -> None:
    """Register the blueprints; each is one module."""
    from webapp import admin, health, metrics
    from webapp.accounts import auth, notification_pages, second_factor_pages
    from webapp.scans import (
        opinion_pages,
        pages,
        pictures,
        rearranging,
        report_pages,
        submission,
        worklist,
    )

    for module in (
        auth,
        second_factor_pages,
        submission,
        pages,
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
