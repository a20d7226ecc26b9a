"""Who sees the administrator's pages."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.webapp.admin.conftest import NOBODY, PAGES, LogIn, zip_of
from webapp.extensions import db
from webapp.models import Dataset

POSTS = (
    "/admin/datasets",
    f"/admin/datasets/{NOBODY}/cancel",
    f"/admin/datasets/{NOBODY}/delete",
    "/admin/runs/new",
    f"/admin/models/{NOBODY}/promote",
    f"/admin/users/{NOBODY}/reset-link",
    f"/admin/users/{NOBODY}/delete",
)


class TestPermissions:
    @pytest.mark.parametrize("page", PAGES)
    def test_a_stranger_is_sent_to_the_login(self, app: Flask, page: str) -> None:
        answer = app.test_client().get(page)
        assert answer.status_code == 302
        assert answer.location.startswith("/login")

    @pytest.mark.parametrize("page", PAGES)
    def test_an_admin_sees_every_page_on_an_empty_database(
        self, admin: FlaskClient, page: str
    ) -> None:
        assert admin.get(page).status_code == 200

    def test_a_user_finds_nothing_there(self, logged_in: LogIn) -> None:
        ann = logged_in("ann")
        assert {ann.get(page).status_code for page in PAGES} == {404}
        assert {ann.post(page).status_code for page in POSTS} == {404}

    def test_a_stranger_cannot_post(self, app: Flask) -> None:
        client = app.test_client()
        assert {client.post(page).location.split("?")[0] for page in POSTS} == {"/login"}

    @pytest.mark.parametrize("room", ["datasets", "runs", "models"])
    def test_what_does_not_exist_is_404(self, admin: FlaskClient, room: str) -> None:
        assert admin.get(f"/admin/{room}/{NOBODY}").status_code == 404
        assert admin.get(f"/admin/{room}/%00").status_code == 404

    def test_changes_are_posts(self, admin: FlaskClient) -> None:
        assert admin.get(f"/admin/models/{NOBODY}/promote").status_code == 405
        assert admin.get(f"/admin/users/{NOBODY}/reset-link").status_code == 405

    @pytest.mark.parametrize("page", POSTS)
    def test_a_post_without_a_csrf_token_changes_nothing(
        self, app: Flask, admin: FlaskClient, page: str
    ) -> None:
        app.config["WTF_CSRF_ENABLED"] = True
        answer = admin.post(
            page,
            data={"name": "x", "archive": (zip_of(a="b"), "x.zip")},
            content_type="multipart/form-data",
        )
        assert answer.status_code == 400
        with app.app_context():
            assert db.session.scalars(select(Dataset)).all() == []
