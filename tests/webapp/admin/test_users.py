"""The people with an account, their reset links, and who is kept out."""

from __future__ import annotations

import re
from datetime import timedelta

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import PASSWORD, TOKEN_FORM
from tests.webapp.admin.conftest import NOBODY, LogIn
from webapp.extensions import db
from webapp.models import Act, AuditEvent, PasswordReset, Role, User
from webapp.models.accounts import secret_hash


class TestUsers:
    def test_a_reset_link_is_shown_once_and_works_once(
        self, app: Flask, admin: FlaskClient, logged_in: LogIn
    ) -> None:
        logged_in("ann")
        with app.app_context():
            ann = db.session.scalars(select(User).where(User.username == "ann")).one().id
        assert "ann@example.org" in admin.get("/admin/users").text
        older = admin.post(f"/admin/users/{ann}/reset-link")
        answer = admin.post(f"/admin/users/{ann}/reset-link")
        assert answer.headers["Cache-Control"] == "no-store"
        old_path, path = (
            "/reset/" + page.text.split("/reset/")[1].split("<")[0] for page in (older, answer)
        )
        with app.app_context():
            reset = db.session.scalars(select(PasswordReset)).one()  # The older link ended.
            assert reset.secret_hash == secret_hash(path.removeprefix("/reset/"))
            assert reset.expires_at - reset.created_at >= timedelta(
                hours=app.config["RESET_LINK_HOURS"] - 1
            )
        stranger = app.test_client()
        assert stranger.get(old_path).status_code == 404
        assert stranger.post(path, data={"password": "another long password"}).status_code == 302
        assert stranger.post(path, data={"password": "yet another password"}).status_code == 404
        login = app.test_client().post(
            "/login", data={"username": "ann", "password": "another long password"}
        )
        assert login.status_code == 302

    def test_a_link_for_nobody_is_404(self, admin: FlaskClient) -> None:
        assert admin.post(f"/admin/users/{NOBODY}/reset-link").status_code == 404


class TestAccess:
    def test_who_is_disabled_is_out_at_once_and_in_again_when_enabled(
        self, app: Flask, admin: FlaskClient, logged_in: LogIn
    ) -> None:
        browser = logged_in("ann")
        token = (
            browser.post(
                "/account/tokens",
                data={"name": "a script", "token_password": PASSWORD, **TOKEN_FORM},
            )
            .text.split('id="token">')[1]
            .split("<")[0]
        )
        with app.app_context():
            ann = db.session.scalars(select(User.id).where(User.username == "ann")).one()
        link = (
            "/reset/"
            + admin.post(f"/admin/users/{ann}/reset-link").text.split("/reset/")[1].split("<")[0]
        )

        def lets_in() -> dict[str, bool]:
            stranger = app.test_client()
            return {
                "login": browser.get("/scans").status_code == 200,
                "token": stranger.get(
                    "/api/v1/scans", headers={"Authorization": f"Bearer {token}"}
                ).status_code
                == 200,
                "password": stranger.post(
                    "/login", data={"username": "ann", "password": PASSWORD}
                ).status_code
                == 302,
                "reset link": stranger.get(link).status_code == 200,
            }

        assert set(lets_in().values()) == {True}
        assert admin.post(f"/admin/users/{ann}/disable").status_code == 302
        assert "Disabled since" in admin.get("/admin/users").text
        assert set(lets_in().values()) == {False}
        assert admin.post(f"/admin/users/{ann}/enable").status_code == 302
        # Logins have ended for good.
        assert lets_in() == {"login": False, "token": True, "password": True, "reset link": True}

    def test_a_disabled_account_answers_a_right_password_like_a_wrong_one(
        self, app: Flask, admin: FlaskClient, logged_in: LogIn
    ) -> None:
        logged_in("ann")
        with app.app_context():
            ann = db.session.scalars(select(User.id).where(User.username == "ann")).one()
        admin.post(f"/admin/users/{ann}/disable")

        def answer(password: str) -> tuple[int, str]:
            page = app.test_client().post("/login", data={"username": "ann", "password": password})
            return page.status_code, re.sub('name="csrf_token" value="[^"]+"', "", page.text)

        assert answer(PASSWORD) == answer("wrong")

    def test_the_last_admin_who_can_come_in_cannot_be_disabled(
        self, app: Flask, admin: FlaskClient, logged_in: LogIn
    ) -> None:
        logged_in("second", Role.ADMIN)
        with app.app_context():
            root, second = db.session.scalars(select(User.id).order_by(User.created_at))
        assert admin.post(f"/admin/users/{second}/disable").status_code == 302
        answer = admin.post(f"/admin/users/{root}/disable", follow_redirects=True)
        assert "This is the only administrator who can log in" in answer.text
        assert admin.post(f"/admin/users/{second}/enable").status_code == 302
        assert admin.post(f"/admin/users/{root}/disable").status_code == 302
        assert admin.get("/admin/users").status_code == 302  # Now another one could.

    def test_roles_are_set_in_the_browser_and_the_last_admin_keeps_theirs(
        self, app: Flask, admin: FlaskClient, logged_in: LogIn
    ) -> None:
        ann = logged_in("ann")
        with app.app_context():
            root, ann_id = db.session.scalars(select(User.id).order_by(User.created_at))
        response = admin.post(
            f"/admin/users/{root}/role", data={"role": "user"}, follow_redirects=True
        )
        assert "This is the only administrator who can log in" in response.text
        made = admin.post(
            f"/admin/users/{ann_id}/role", data={"role": "admin"}, follow_redirects=True
        )
        assert "ann is now an administrator." in made.text
        assert ann.get("/admin/users").status_code == 200
        # Who gives up the role leaves these pages.
        left = admin.post(f"/admin/users/{root}/role", data={"role": "reviewer"})
        assert left.location == "/scans"
        assert admin.get("/admin/users").status_code == 404
        assert ann.post(f"/admin/users/{root}/role", data={"role": "x"}).status_code == 400
        with app.app_context():
            changes = db.session.scalars(
                select(AuditEvent.detail).where(AuditEvent.act == Act.ROLE_CHANGED)
            )
            assert list(changes) == ["user → admin", "admin → reviewer"]

    def test_nobody_is_404(self, admin: FlaskClient) -> None:
        for what in ("disable", "enable"):
            assert admin.post(f"/admin/users/{NOBODY}/{what}").status_code == 404
