"""How often a person may do what costs others something."""

from __future__ import annotations

from pathlib import Path

from flask import Flask
from flask_limiter.util import get_qualified_name

from tests.conftest import PASSWORD, app_on, make_user
from tests.webapp.scans.test_scans import add_scan
from tests.webapp.test_api import make_token
from webapp.web_extensions import limiter

CHANGING = {"POST", "PUT", "PATCH", "DELETE"}
UNLIMITED = {
    "auth.logout",
    "auth.end_login",
    "auth.end_other_logins",
    "auth.revoke_token",
}
"""What only takes back rights of one's own."""


def test_whatever_changes_something_is_limited_but_for_administrators(app: Flask) -> None:
    with app.app_context():
        unlimited = {
            rule.endpoint
            for rule in app.url_map.iter_rules()
            if rule.methods and rule.methods & CHANGING and not rule.endpoint.startswith("admin.")
            if not limiter.limit_manager.decorated_limits(
                get_qualified_name(app.view_functions[rule.endpoint])
            )
        }
    assert unlimited == UNLIMITED


def test_a_person_shares_so_often_by_page_and_api_together(tmp_path: Path) -> None:
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, RATELIMIT_ENABLED=True)
    ann, bob = make_user(app, "ann"), make_user(app, "bob")
    scan_id = add_scan(app)
    page, api = app.test_client(), app.test_client()
    page.post("/login", data={"username": "ann", "password": PASSWORD})
    api.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(app, ann)}"
    for _ in range(15):
        assert page.post(f"/scans/{scan_id}/shares", data={"username": "no"}).status_code == 400
        refused = api.post(f"/api/v1/scans/{scan_id}/shares", json={"username": "no"})
        assert refused.status_code == 409
    assert page.post(f"/scans/{scan_id}/shares", data={"username": "bob"}).status_code == 429
    api.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(app, bob)}"
    refused = api.post(f"/api/v1/scans/{scan_id}/shares", json={"username": "no"})
    assert refused.status_code == 404  # Everybody is counted alone.
