"""The people with an account, and their reset links."""

from __future__ import annotations

from datetime import timedelta

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.webapp.admin.conftest import NOBODY, LogIn
from webapp.extensions import db
from webapp.models import PasswordReset, User
from webapp.models.accounts import secret_hash


class TestUsers:
    def test_a_reset_link_is_shown_once_and_works_once(self, app: Flask, admin: FlaskClient, logged_in: LogIn) -> None:
        logged_in("ann")
        with app.app_context():
            ann = db.session.scalars(select(User).where(User.username == "ann")).one().id
        assert "ann@example.org" in admin.get("/admin/users").text
        older = admin.post(f"/admin/users/{ann}/reset-link")
        answer = admin.post(f"/admin/users/{ann}/reset-link")
        assert answer.headers["Cache-Control"] == "no-store"
        old_path, path = ("/reset/" + page.text.split("/reset/")[1].split("<")[0] for page in (older, answer))
        with app.app_context():
            reset = db.session.scalars(select(PasswordReset)).one()  # The older link ended.
            assert reset.secret_hash == secret_hash(path.removeprefix("/reset/"))
            assert reset.expires_at - reset.created_at >= timedelta(hours=app.config["RESET_LINK_HOURS"] - 1)
        stranger = app.test_client()
        assert stranger.get(old_path).status_code == 404
        assert stranger.post(path, data={"password": "another long password"}).status_code == 302
        assert stranger.post(path, data={"password": "yet another password"}).status_code == 404
        login = app.test_client().post("/login", data={"username": "ann", "password": "another long password"})
        assert login.status_code == 302

    def test_a_link_for_nobody_is_404(self, admin: FlaskClient) -> None:
        assert admin.post(f"/admin/users/{NOBODY}/reset-link").status_code == 404
