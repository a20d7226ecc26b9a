"""Accounts: signing up, logging in and out, passwords and tokens."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.conftest import PASSWORD, TOKEN_FORM, app_on, make_user
from webapp.accounts import logins
from webapp.accounts.auth import local_target
from webapp.extensions import db, utc_now
from webapp.models import ApiToken, LoginSession, PasswordReset, User
from webapp.models.accounts import new_secret, secret_hash

ANN = {
    "username": "Ann",
    "name": "Ann Lee",
    "email": "Ann@example.org",
    "phone": "+49 30 1234",
    "password": PASSWORD,
}


def count(app: Flask, table: type[db.Model]) -> int:  # type: ignore[name-defined]
    """Return how many rows the table has."""
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(table)) or 0


def csrf_of(client: FlaskClient, path: str) -> str:
    """Return the token in the forms of a page."""
    match = re.search(r'name="csrf_token" value="([^"]+)"', client.get(path).text)
    assert match
    return match[1]


def is_logged_in(client: FlaskClient) -> bool:
    """True if that browser may see its account."""
    return client.get("/account").status_code == 200


def reset_link(app: Flask, user_id: str, hours: float = 24) -> str:
    """Return the path of a link that sets a new password."""
    secret = new_secret()
    with app.app_context():
        db.session.add(
            PasswordReset(
                user_id=user_id,
                secret_hash=secret_hash(secret),
                expires_at=utc_now() + timedelta(hours=hours),
            )
        )
        db.session.commit()
    return f"/reset/{secret}"


# --- signing up


def test_signing_up_makes_an_account_and_logs_in(any_database_app: Flask) -> None:
    client = any_database_app.test_client()
    answer = client.post("/signup", data=ANN)
    assert (answer.status_code, answer.location) == (302, "/scans")
    page = client.get("/account").text
    for value in ("Ann Lee", "Ann@example.org", "+49 30 1234"):
        assert value in page
    with any_database_app.app_context():
        user = db.session.scalars(select(User)).one()
        assert user.password_hash.startswith("$argon2id$")
        assert not user.is_admin


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"username": "ANN", "email": "other@example.org"}, "This username is already taken"),
        (
            {"username": "bob", "email": "aNN@example.org"},
            "An account with this email address already exists.",
        ),
    ],
)
def test_username_and_email_are_unique_without_regard_to_case(
    any_database_app: Flask, second: dict[str, str], sentence: str
) -> None:
    assert any_database_app.test_client().post("/signup", data=ANN).status_code == 302
    answer = any_database_app.test_client().post("/signup", data={**ANN, **second})
    assert answer.status_code == 400
    assert sentence in answer.text
    assert count(any_database_app, User) == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"username": ""}, "Please fill in this field."),
        ({"username": "a b"}, "Usernames have"),
        ({"username": "x" * 65}, "at most 64 characters"),
        ({"username": "an\x00n"}, "printable characters"),
        ({"name": "Ann\x00"}, "printable characters"),
        ({"name": "x" * 121}, "at most 120 characters"),
        ({"name": "  "}, "Please fill in this field."),
        ({"email": "nobody"}, "Please enter a valid email address."),
        ({"email": "a\x00@example.org"}, "printable characters"),
        ({"email": "x" * 300 + "@example.org"}, "at most 254 characters"),
        ({"phone": "call me"}, "Phone numbers may contain"),
        ({"password": "too short"}, "at least 10 characters"),
        ({"password": "x" * 201}, "at most 200 characters"),
        (
            {"username": "annabella-lee", "password": "Annabella-Lee"},
            "must differ from the username",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused_with_a_sentence(
    any_database_app: Flask, wrong: dict[str, str], sentence: str
) -> None:
    answer = any_database_app.test_client().post("/signup", data={**ANN, **wrong})
    assert answer.status_code == 400
    assert sentence in answer.text
    assert count(any_database_app, User) == 0


def test_the_phone_number_is_optional(app: Flask) -> None:
    assert app.test_client().post("/signup", data={**ANN, "phone": ""}).status_code == 302


def test_a_name_is_shown_as_text(app: Flask) -> None:
    client = app.test_client()
    client.post("/signup", data={**ANN, "name": "<script>alert(1)</script>"})
    assert "<script>alert" not in client.get("/account").text


# --- logging in and out


def test_a_login_is_a_row_with_only_a_hash(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    with client.session_transaction() as cookie, app.app_context():
        row = db.session.scalars(select(LoginSession)).one()
        assert row.secret_hash == secret_hash(cookie["_user_id"])
        assert row.user_id not in str(dict(cookie))


def test_the_username_is_matched_without_regard_to_case(app: Flask) -> None:
    make_user(app, "ann")
    assert (
        app.test_client()
        .post("/login", data={"username": " ANN ", "password": PASSWORD})
        .status_code
        == 302
    )


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("ann", "wrong password"),
        ("nobody", PASSWORD),
        ("ann\x00", PASSWORD),
        ("ann", PASSWORD + "\x00"),
        ("a" * 5000, PASSWORD),
        ("ann", "x" * 100_000),
    ],
)
def test_a_refused_login_does_not_tell_why(
    any_database_app: Flask, username: str, password: str
) -> None:
    make_user(any_database_app, "ann")
    client = any_database_app.test_client()
    answer = client.post("/login", data={"username": username, "password": password})
    assert answer.status_code == 400
    assert "The username or password is incorrect" in answer.text
    assert password not in answer.text
    assert not is_logged_in(client)


def test_an_unknown_username_costs_an_argon2_check_too(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []
    dummy = logins.nobodys_password_hash()
    monkeypatch.setattr(logins, "nobodys_password_hash", lambda: checks.append(1) or dummy)
    app.test_client().post("/login", data={"username": "nobody", "password": PASSWORD})
    assert checks == [1]


def test_logging_out_ends_the_login_on_the_server(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    with client.session_transaction() as cookie:
        stolen = dict(cookie)
    assert client.post("/logout").status_code == 302
    assert count(app, LoginSession) == 0
    with client.session_transaction() as cookie:
        cookie.update(stolen)
    assert not is_logged_in(client)


def test_a_link_cannot_log_out(logged_in: Callable[..., FlaskClient]) -> None:
    client = logged_in("ann")
    answer = client.get("/logout")
    assert answer.status_code == 405
    assert "This address does not support that request method." in answer.text
    assert is_logged_in(client)


def test_logging_out_twice_is_fine(app: Flask) -> None:
    assert app.test_client().post("/logout").status_code == 302


def test_a_login_expires(app: Flask, logged_in: Callable[..., FlaskClient]) -> None:
    client = logged_in("ann")
    with app.app_context():
        db.session.scalars(select(LoginSession)).one().expires_at = utc_now() - timedelta(seconds=1)
        db.session.commit()
    assert not is_logged_in(client)
    client.post("/login", data={"username": "ann", "password": PASSWORD})
    assert count(app, LoginSession) == 1  # The expired one is swept away.


def test_a_cookie_that_holds_a_users_id_is_no_login(app: Flask) -> None:
    user_id = make_user(app, "ann")
    client = app.test_client()
    with client.session_transaction() as cookie:
        cookie["_user_id"] = user_id
    assert not is_logged_in(client)


def test_a_page_that_needs_a_login_is_shown_after_it(app: Flask) -> None:
    make_user(app, "ann")
    client = app.test_client()
    response = client.get("/scans?page=2")
    assert response.status_code == 302
    form = client.get(response.location)
    assert 'value="/scans?page=2"' in form.text
    answer = client.post(
        "/login", data={"username": "ann", "password": PASSWORD, "next": "/scans?page=2"}
    )
    assert answer.location == "/scans?page=2"


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "https://evil.example",
        "evil.example",
        "javascript:x",
        "",
    ],
)
def test_a_login_leads_to_no_other_site(app: Flask, target: str) -> None:
    make_user(app, "ann")
    answer = app.test_client().post(
        "/login", data={"username": "ann", "password": PASSWORD, "next": target}
    )
    assert (answer.status_code, answer.location) == (302, "/scans")


def test_a_path_of_this_site_is_kept(app: Flask) -> None:
    with app.test_request_context():
        assert local_target("/scans?page=2") == "/scans?page=2"
        assert local_target(None) == "/scans"


def test_a_part_of_a_page_asks_the_whole_page_to_log_in(app: Flask) -> None:
    answer = app.test_client().get(f"/scans/{'0' * 32}/progress", headers={"HX-Request": "true"})
    assert answer.headers["HX-Refresh"] == "true"


def test_too_many_failed_logins_are_slowed_down(tmp_path: Path) -> None:
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, RATELIMIT_ENABLED=True)
    make_user(app, "ann")
    client = app.test_client()
    for _ in range(12):  # Those that succeed do not count.
        assert (
            client.post("/login", data={"username": "ann", "password": PASSWORD}).status_code == 302
        )
    for _ in range(10):
        assert (
            client.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400
        )
    answer = client.post("/login", data={"username": "ann", "password": "wrong"})
    assert answer.status_code == 429
    assert "Too many attempts" in answer.text
    with app.app_context():
        db.engine.dispose()


def test_forms_without_a_csrf_token_are_refused(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    app.config["WTF_CSRF_ENABLED"] = True
    for path in (
        "/login",
        "/signup",
        "/logout",
        "/account",
        "/account/tokens",
        "/scans",
        "/scans/phantom",
    ):
        answer = client.post(path, data=ANN)
        assert answer.status_code == 400, path
        assert "This form has expired" in answer.text
    token = csrf_of(client, "/account")
    assert client.post("/logout", data={"csrf_token": token}).status_code == 302


# --- passwords


def test_changing_the_password_ends_the_other_logins(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    here = logged_in("ann")
    elsewhere = app.test_client()
    elsewhere.post("/login", data={"username": "ann", "password": PASSWORD})
    answer = here.post(
        "/account", data={"current_password": PASSWORD, "password": "another long password"}
    )
    assert answer.status_code == 302
    assert is_logged_in(here)
    assert not is_logged_in(elsewhere)
    fresh = app.test_client()
    assert fresh.post("/login", data={"username": "ann", "password": PASSWORD}).status_code == 400
    assert (
        fresh.post(
            "/login", data={"username": "ann", "password": "another long password"}
        ).status_code
        == 302
    )


@pytest.mark.parametrize(
    ("current", "new", "sentence"),
    [
        ("wrong", "another long password", "The current password is incorrect."),
        (PASSWORD, "short", "at least 10 characters"),
        (PASSWORD, "", "Please fill in this field."),
    ],
)
def test_a_password_is_not_changed_without_reason(
    logged_in: Callable[..., FlaskClient], current: str, new: str, sentence: str
) -> None:
    client = logged_in("ann")
    answer = client.post("/account", data={"current_password": current, "password": new})
    assert answer.status_code == 400
    assert sentence in answer.text
    assert (
        client.post(
            "/account", data={"current_password": PASSWORD, "password": "another long password"}
        ).status_code
        == 302
    )


def test_a_reset_link_works_once_and_ends_all_logins(any_database_app: Flask) -> None:
    app = any_database_app
    user_id = make_user(app, "ann")
    browser = app.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})
    first, second = reset_link(app, user_id), reset_link(app, user_id)
    stranger = app.test_client()
    assert "ann" in stranger.get(first).text
    assert stranger.post(first, data={"password": "short"}).status_code == 400
    answer = stranger.post(first, data={"password": "another long password"})
    assert (answer.status_code, answer.location) == (302, "/login")
    assert not is_logged_in(browser)
    for spent in (first, second):
        assert "has already been used or has expired" in stranger.get(spent).text
        assert stranger.post(spent, data={"password": "yet another password"}).status_code == 404
    assert (
        stranger.post(
            "/login", data={"username": "ann", "password": "another long password"}
        ).status_code
        == 302
    )


@pytest.mark.parametrize("secret", ["nonsense", "%00", "x" * 5000])
def test_an_unknown_reset_link_is_404(any_database_app: Flask, secret: str) -> None:
    assert any_database_app.test_client().get(f"/reset/{secret}").status_code == 404


def test_a_reset_link_expires(app: Flask) -> None:
    link = reset_link(app, make_user(app, "ann"), hours=-0.001)
    assert (
        app.test_client().post(link, data={"password": "another long password"}).status_code == 404
    )


# --- API tokens


def test_a_token_is_shown_once_and_only_its_hash_is_kept(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    answer = client.post(
        "/account/tokens", data={"name": "a script", "token_password": PASSWORD, **TOKEN_FORM}
    )
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    shown = re.search(r'id="token">([^<]+)<', answer.text)
    assert shown
    with app.app_context():
        assert db.session.scalars(select(ApiToken)).one().secret_hash == secret_hash(shown[1])
    again = client.get("/account").text
    assert "a script" in again
    assert shown[1] not in again
    assert (
        app.test_client()
        .get("/api/v1/scans", headers={"Authorization": f"Bearer {shown[1]}"})
        .status_code
        == 200
    )


@pytest.mark.parametrize("name", ["", "x" * 81, "a\x00b"])
def test_a_token_needs_a_name(app: Flask, logged_in: Callable[..., FlaskClient], name: str) -> None:
    assert (
        logged_in("ann")
        .post("/account/tokens", data={"name": name, "token_password": PASSWORD, **TOKEN_FORM})
        .status_code
        == 400
    )
    assert count(app, ApiToken) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scopes": []}, "choose what the token may be used for"),
        ({"scopes": ["admin"]}, "not a valid choice for this field"),
        ({"days": "365"}, "Not a valid choice"),
        ({"days": "0"}, "Not a valid choice"),
    ],
)
def test_a_token_has_scopes_and_an_end_within_the_operators_limits(
    app: Flask, logged_in: Callable[..., FlaskClient], changes: dict[str, Any], sentence: str
) -> None:
    app.config["TOKEN_MAX_DAYS"] = 180
    client = logged_in("ann")
    form = {"name": "a script", "token_password": PASSWORD, **TOKEN_FORM}
    refused = client.post("/account/tokens", data={**form, **changes})
    assert refused.status_code == 400 and sentence in refused.text
    made = client.post("/account/tokens", data={**form, "scopes": ["review"], "days": "180"})
    assert made.status_code == 200
    app.config["TOKEN_MAX_DAYS"] = 0
    assert client.post("/account/tokens", data={**form, "days": "0"}).status_code == 200
    with app.app_context():
        first, second = db.session.scalars(select(ApiToken).order_by(ApiToken.created_at))
        assert first.scopes == "review" and first.expires_at is not None
        assert timedelta(days=179) < first.expires_at - utc_now() <= timedelta(days=180)
        assert (second.scopes, second.expires_at) == ("read submit", None)


def test_a_browser_lets_a_user_leave_a_scope_out(logged_in: Callable[..., FlaskClient]) -> None:
    boxes = re.findall('<input[^>]*name="scopes"[^>]*>', logged_in("ann").get("/account").text)
    assert len(boxes) == 3 and not any("required" in box for box in boxes)


def test_there_is_an_end_to_tokens(app: Flask, logged_in: Callable[..., FlaskClient]) -> None:
    client = logged_in("ann")
    for _ in range(20):
        assert (
            client.post(
                "/account/tokens",
                data={"name": "a script", "token_password": PASSWORD, **TOKEN_FORM},
            ).status_code
            == 200
        )
    assert (
        "Please revoke one first"
        in client.post(
            "/account/tokens", data={"name": "a script", "token_password": PASSWORD, **TOKEN_FORM}
        ).text
    )
    assert count(app, ApiToken) == 20


def test_a_token_is_revoked_by_its_owner_only(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    ann, bob = logged_in("ann"), logged_in("bob")
    ann.post("/account/tokens", data={"name": "a script", "token_password": PASSWORD, **TOKEN_FORM})
    with app.app_context():
        token_id = db.session.scalars(select(ApiToken)).one().id
    for path in (token_id, "0" * 32, "%00"):
        assert bob.post(f"/account/tokens/{path}/revoke").status_code == 404
    assert ann.post(f"/account/tokens/{token_id}/revoke").status_code == 302
    assert count(app, ApiToken) == 0


def api_status(app: Flask, token: str) -> int:
    """Return what the API answers to that token."""
    header = {"Authorization": f"Bearer {token}"}
    return app.test_client().get("/api/v1/scans", headers=header).status_code


def token_of(client: FlaskClient) -> str:
    """Make a token in that browser."""
    answer = client.post(
        "/account/tokens", data={"name": "a", "token_password": PASSWORD, **TOKEN_FORM}
    )
    match = re.search(r'id="token">([^<]+)<', answer.text)
    assert match
    return match[1]


@pytest.mark.parametrize("password", ["", "not the password"])
def test_a_browser_that_was_left_open_makes_no_token(
    app: Flask, logged_in: Callable[..., FlaskClient], password: str
) -> None:
    form = {"name": "a script", "token_password": password, **TOKEN_FORM}
    assert logged_in("ann").post("/account/tokens", data=form).status_code == 400
    assert count(app, ApiToken) == 0


def test_whoever_guesses_in_a_browser_that_was_left_open_is_slowed_down(tmp_path: Path) -> None:
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, RATELIMIT_ENABLED=True)
    make_user(app, "ann")
    client = app.test_client()
    client.post("/login", data={"username": "ann", "password": PASSWORD})
    for _ in range(20):
        client.post(
            "/account/tokens", data={"name": "a script", "token_password": "a guess", **TOKEN_FORM}
        )
    deletion = client.post("/account/delete", data={"your_password": PASSWORD})
    assert deletion.status_code == 429
    assert count(app, User) == 1
    with app.app_context():
        db.engine.dispose()


def test_a_changed_password_revokes_ones_own_tokens_and_nobody_elses(
    any_database_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = any_database_app
    ids = {name: make_user(app, name) for name in ("ann", "bob")}
    browsers = {name: app.test_client() for name in ids}
    for name, browser in browsers.items():
        browser.post("/login", data={"username": name, "password": PASSWORD})
    tokens = {name: token_of(browser) for name, browser in browsers.items()}
    changed = {"current_password": PASSWORD, "password": "another long password"}
    assert browsers["ann"].post("/account", data=changed).status_code == 302
    assert [api_status(app, token) for token in tokens.values()] == [401, 200]

    link = reset_link(app, ids["bob"])
    assert app.test_client().post(link, data=changed).status_code == 302
    assert [api_status(app, token) for token in tokens.values()] == [401, 401]

    browser = app.test_client()
    browser.post("/login", data={"username": "bob", "password": "another long password"})
    monkeypatch.setattr("tests.webapp.accounts.test_auth.PASSWORD", "another long password")
    token = token_of(browser)
    result = app.test_cli_runner().invoke(
        args=["create-admin", "bob"], env={"HEMOSCAN_PASSWORD": "a third long password"}
    )
    assert result.exit_code == 0, result.output
    assert api_status(app, token) == 401


@pytest.mark.parametrize("change", [{"password_hash": "another"}, {"disabled_at": utc_now()}])
def test_a_password_that_is_changed_while_it_is_checked_allows_nothing(
    app: Flask,
    logged_in: Callable[..., FlaskClient],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    client, stranger = logged_in("ann"), app.test_client()
    right = User.has_password

    def changed_meanwhile(user: User, password: str) -> bool:
        is_right = right(user, password)
        with db.engine.begin() as other:
            other.execute(update(User).values(change))
        return is_right

    with app.app_context():
        before = db.session.execute(select(User.password_hash, User.disabled_at)).one()
    for browser, path, form in (
        (stranger, "/login", {"username": "ann", "password": PASSWORD}),
        (client, "/account/tokens", {"name": "a", "token_password": PASSWORD, **TOKEN_FORM}),
        (client, "/account", {"current_password": PASSWORD, "password": "a thief's password"}),
        (client, "/account/delete", {"your_password": PASSWORD}),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(User, "has_password", changed_meanwhile)
            assert browser.post(path, data=form).status_code == 401, path
        with app.app_context():
            now = db.session.execute(select(User.password_hash, User.disabled_at)).one()
            assert now != before
            db.session.execute(update(User).values(before._asdict()))
            db.session.commit()
        assert not is_logged_in(stranger)
    assert count(app, ApiToken) == 0


def test_there_is_an_end_to_tokens_that_are_made_at_once(
    any_database_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = any_database_app
    user_id = make_user(app, "ann")
    with app.app_context():
        for number in range(18):
            db.session.add(
                ApiToken(user_id=user_id, name="a", secret_hash=f"{number}", scopes="read")
            )
        db.session.commit()
    browsers = [app.test_client() for _ in range(4)]
    for browser in browsers:
        browser.post("/login", data={"username": "ann", "password": PASSWORD})

    def record_slowly(*_: object, **__: object) -> None:
        time.sleep(0.3)

    monkeypatch.setattr("webapp.accounts.auth.record", record_slowly)
    form = {"name": "a script", "token_password": PASSWORD, **TOKEN_FORM}
    with ThreadPoolExecutor(len(browsers)) as pool:
        answers = pool.map(lambda browser: browser.post("/account/tokens", data=form), browsers)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 400, 400]
    assert count(app, ApiToken) == 20
    made = app.test_cli_runner().invoke(args=["create-token", "ann"])
    assert made.exit_code != 0 and "20 API tokens" in made.output
