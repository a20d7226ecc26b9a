"""What several modules of the web application's tests share."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import make_user
from tests.webapp.test_api import make_token
from webapp.extensions import db
from webapp.models import AuditEvent, Role


@pytest.fixture
def boss(app: Flask) -> FlaskClient:
    """An API client that acts for an administrator."""
    client = app.test_client()
    token = make_token(app, make_user(app, "boss", Role.ADMIN))
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return client


def acts(app: Flask) -> list[str]:
    """Return the acts in the audit log, the oldest first."""
    with app.app_context():
        return list(db.session.scalars(select(AuditEvent.act).order_by(AuditEvent.id)))
