"""Second factors: set up once, asked for after every password, spent once, and taken away by those
who may.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyotp
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.conftest import PASSWORD, TOKEN_FORM, app_on, make_user
from tests.webapp.accounts.test_logins import is_logged_in, log_in
from webapp.accounts import second_factors
from webapp.extensions import db, utc_now
from webapp.models import Act, AuditEvent, RecoveryCode, Role, SecondFactor, User

SET_UP, CONFIRM = "/account/second-factor", "/account/second-factor/confirm"
NEW_CODES, TURN_OFF = "/account/second-factor/recovery-codes", "/account/second-factor/remove"


@dataclass
class Person:
    """Somebody with a second factor: a browser that is logged in, and what they wrote down."""

    app: Flask
    browser: FlaskClient
    secret: str
    recovery_codes: list[str]
    user_id: str

    def code(self, steps: int = 0) -> str:
        """Return the app's code of so many steps later."""
        return pyotp.TOTP(self.secret).at(time.time(), counter_offset=steps)

    def wrong_code(self) -> str:
        """Return a code that is none of those near now."""
        near = {self.code(steps) for steps in range(-3, 4)}
        return next(code for code in map("{:06}".format, range(9)) if code not in near)

    def password_given(self, **kwargs: str) -> FlaskClient:
        """Return another browser in which the password was given."""
        client = self.app.test_client()
        answer = client.post("/login", data={"username": "ann", "password": PASSWORD, **kwargs})
        assert (answer.status_code, answer.location) == (302, "/login/code")
        return client

    def give(self, client: FlaskClient, code: str) -> int:
        """Give a code in that browser; return the status, 302 if it was accepted."""
        return client.post("/login/code", data={"code": code}).status_code


def set_up(app: Flask, client: FlaskClient) -> tuple[str, list[str]]:
    """Set up a second factor; return its secret and the recovery codes."""
    page = client.post(SET_UP, data={"factor_password": PASSWORD})
    secret = re.search(r'id="factor-secret">([A-Z2-7]{32})<', page.text)
    assert page.status_code == 200 and secret is not None
    # One step earlier: the tests want the present code for themselves.
    done = client.post(CONFIRM, data={"code": pyotp.TOTP(secret[1]).at(time.time() - 30)})
    assert done.status_code == 200, done.text
    return secret[1], re.findall(r"<li><code>([a-z2-7-]+)</code>", done.text)


def person_on(app: Flask, role: Role = Role.USER) -> Person:
    user_id = make_user(app, "ann", role)
    browser = app.test_client()
    assert log_in(browser) == 302
    return Person(app, browser, *set_up(app, browser), user_id)


@pytest.fixture
def ann(any_database_app: Flask) -> Person:
    """A person with a second factor, on SQLite and on PostgreSQL."""
    return person_on(any_database_app)


@pytest.fixture
def admin(app: Flask) -> Person:
    """An administrator with a second factor, called ann."""
    return person_on(app, Role.ADMIN)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Person]:
    """A person with a second factor where guessing is slowed down."""
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, RATELIMIT_ENABLED=True)
    yield person_on(app)
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def acts(app: Flask) -> list[tuple[str, str | None, str | None]]:
    """Return all events: act, who, to whom."""
    with app.app_context():
        events = db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
        return [(event.act, event.actor_id, event.object_id) for event in events]


# --- setting up


def test_a_secret_is_shown_once_as_a_qr_code_and_counts_once_a_code_confirms_it(
    any_database_app: Flask,
) -> None:
    app = any_database_app
    make_user(app, "ann")
    here, there = app.test_client(), app.test_client()
    assert (log_in(here), log_in(there)) == (302, 302)
    page = here.post(SET_UP, data={"factor_password": PASSWORD})
    secret = re.search(r'id="factor-secret">([A-Z2-7]{32})<', page.text)[1]  # type: ignore[index]
    assert "<svg" in page.text and 'style="' not in page.text
    assert page.headers["Cache-Control"] == "no-store"
    assert log_in(app.test_client()) == 302  # Not yet asked for.
    assert is_logged_in(there)

    refused = here.post(CONFIRM, data={"code": "x"})
    assert refused.status_code == 400 and secret not in refused.text and "<svg" not in refused.text
    done = here.post(CONFIRM, data={"code": pyotp.TOTP(secret).now()})

    codes = re.findall(r"<li><code>([a-z2-7]{4}(?:-[a-z2-7]{4}){5})</code>", done.text)
    assert done.status_code == 200 and done.headers["Cache-Control"] == "no-store"
    assert len(set(codes)) == 10
    assert is_logged_in(here) and not is_logged_in(there)
    shown = here.get("/account").text
    assert "10 recovery codes are left" in shown and secret not in shown
    assert not any(code in shown for code in codes)


def test_the_qr_code_says_what_apps_expect(ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = second_factors.segno.make
    monkeypatch.setattr(
        second_factors.segno, "make", lambda what, **how: made.append(what) or make(what, **how)
    )
    with ann.app.app_context():
        second_factors.qr_code(db.session.get_one(User, ann.user_id), ann.secret)

    known = pyotp.parse_uri(made[0])
    assert isinstance(known, pyotp.TOTP)
    assert (known.secret, known.name, known.issuer) == (ann.secret, "ann", "Hemoscan")


def test_setting_up_takes_the_password(app: Flask, logged_in: Callable[..., FlaskClient]) -> None:
    client = logged_in("ann")
    refused = client.post(SET_UP, data={"factor_password": "wrong"})
    assert refused.status_code == 400 and "The password is incorrect." in refused.text
    assert "<svg" not in refused.text
    with app.app_context():
        assert db.session.scalars(select(SecondFactor)).all() == []


def test_neither_secret_nor_recovery_codes_stand_in_the_database(ann: Person) -> None:
    with ann.app.app_context():
        for table in ("second_factor", "recovery_code"):
            rows = str(db.session.execute(text(f"SELECT * FROM {table}")).all())
            assert ann.secret not in rows
            for code in ann.recovery_codes:
                assert code not in rows and code.replace("-", "") not in rows


def test_a_second_one_is_set_up_only_once_the_first_is_off(ann: Person) -> None:
    again = ann.browser.post(SET_UP, data={"factor_password": PASSWORD}, follow_redirects=True)
    assert "already set up" in again.text and 'id="factor-secret"' not in again.text
    assert ann.browser.post(CONFIRM, data={"code": ann.code()}).status_code == 400
    assert ann.give(ann.password_given(), ann.code()) == 302


def test_starting_again_forgets_the_secret_before(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    first, second = (
        re.search(
            r'id="factor-secret">(\w+)<',
            client.post(SET_UP, data={"factor_password": PASSWORD}).text,
        )[1]  # type: ignore[index]
        for _ in range(2)
    )
    now = time.time()
    late = {pyotp.TOTP(second).at(now, counter_offset=steps) for steps in (-1, 0, 1, 2)}
    codes = (pyotp.TOTP(first).at(now, counter_offset=steps) for steps in (0, 1, -1))
    stale = next(code for code in codes if code not in late)
    assert client.post(CONFIRM, data={"code": stale}).status_code == 400
    assert client.post(CONFIRM, data={"code": pyotp.TOTP(second).now()}).status_code == 200


# --- logging in


def test_the_password_alone_logs_nobody_in(ann: Person) -> None:
    client = ann.password_given(next="/account")
    assert not is_logged_in(client)
    assert "authenticator app" in client.get("/login/code").text
    assert ann.give(client, ann.wrong_code()) == 400
    assert not is_logged_in(client)
    answer = client.post("/login/code", data={"code": ann.code()})
    assert (answer.status_code, answer.location) == (302, "/account")
    assert is_logged_in(client)


def test_without_a_password_no_code_is_asked_for(ann: Person) -> None:
    stranger = ann.app.test_client()
    for answer in (
        stranger.get("/login/code"),
        stranger.post("/login/code", data={"code": ann.code()}),
    ):
        assert (answer.status_code, answer.location) == (302, "/login")
    assert not is_logged_in(stranger)


def test_a_code_is_accepted_once_and_none_before_it(ann: Person) -> None:
    spent, later = ann.code(), ann.code(1)
    assert ann.give(ann.password_given(), spent) == 302
    assert ann.give(ann.password_given(), spent) == 400
    assert ann.give(ann.password_given(), f" {later[:3]} {later[3:]} ") == 302
    assert ann.give(ann.password_given(), spent) == 400


def test_a_code_of_another_time_is_refused(ann: Person) -> None:
    near = {ann.code(steps) for steps in range(-1, 3)}
    past = next(code for code in map(ann.code, range(-4, -40, -1)) if code not in near)
    assert ann.give(ann.password_given(), past) == 400


def test_a_recovery_code_stands_once_for_the_app(ann: Person) -> None:
    client = ann.password_given()
    assert ann.give(client, ann.recovery_codes[0].upper()) == 302
    assert "9 are left" in client.get("/scans").text
    assert ann.give(ann.password_given(), ann.recovery_codes[0]) == 400
    assert ann.give(ann.password_given(), ann.recovery_codes[1].replace("-", "")) == 302


def test_recovery_codes_of_another_are_worth_nothing(ann: Person) -> None:
    make_user(ann.app, "bob")
    bob = ann.app.test_client()
    assert log_in(bob, "bob") == 302
    _, codes = set_up(ann.app, bob)
    assert ann.give(ann.password_given(), codes[0]) == 400


def test_a_password_that_was_given_too_long_ago_is_asked_for_again(
    ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ann.password_given()
    later = utc_now() + timedelta(minutes=5, seconds=1)
    monkeypatch.setattr(second_factors, "utc_now", lambda: later)
    assert ann.give(client, ann.code()) == 302
    assert not is_logged_in(client)


@pytest.mark.parametrize("change", ["password", "disabled"])
def test_a_password_that_was_changed_or_an_account_that_was_disabled_meanwhile_ends_it(
    ann: Person, change: str
) -> None:
    client = ann.password_given()
    with ann.app.app_context():
        user = db.session.get_one(User, ann.user_id)
        if change == "password":
            user.set_password("quite another password")
        else:
            user.disabled_at = utc_now()
        db.session.commit()
    assert client.post("/login/code", data={"code": ann.code()}).location == "/login"
    assert not is_logged_in(client)


def test_a_reset_link_sets_a_password_and_leaves_the_second_factor(
    app: Flask, admin: Person, logged_in: Callable[..., FlaskClient]
) -> None:
    other = logged_in("root", Role.ADMIN)
    link = re.search(
        r"http://localhost(/reset/[\w-]+)",
        other.post(f"/admin/users/{admin.user_id}/reset-link").text,
    )
    assert link is not None
    stranger = app.test_client()
    new = "another password of hers"
    assert stranger.post(link[1], data={"password": new}).status_code == 302
    answer = stranger.post("/login", data={"username": "ann", "password": new})
    assert answer.location == "/login/code" and not is_logged_in(stranger)


def test_a_token_needs_no_code(ann: Person) -> None:
    page = ann.browser.post(
        "/account/tokens", data={"name": "a script", "token_password": PASSWORD, **TOKEN_FORM}
    ).text
    secret = page.split('id="token">')[1].split("<")[0]
    answer = ann.app.test_client().get(
        "/api/v1/scans", headers={"Authorization": f"Bearer {secret}"}
    )
    assert answer.status_code == 200


def test_another_secret_key_makes_codes_worthless_and_leaves_recovery_codes(
    ann: Person, caplog: pytest.LogCaptureFixture
) -> None:
    ann.app.config["SECRET_KEY"] = "another"
    client = ann.password_given()
    with caplog.at_level(logging.WARNING):
        assert ann.give(client, ann.code()) == 400
    assert "another SECRET_KEY" in caplog.text
    assert ann.give(client, ann.recovery_codes[0]) == 302


# --- guessing


def test_guessing_codes_is_slowed_down_for_each_account_and_leaves_its_known_browsers_alone(
    guarded: Person,
) -> None:
    statuses = []
    for guess in range(12):
        client = guarded.app.test_client()
        client.environ_base["REMOTE_ADDR"] = f"198.51.100.{guess}"
        log_in(client)
        statuses.append(guarded.give(client, guarded.wrong_code()))
    assert statuses == [400] * 10 + [429] * 2
    stranger = guarded.password_given()
    assert guarded.give(stranger, guarded.code()) == 429
    guarded.browser.post("/logout")
    log_in(guarded.browser)
    assert guarded.give(guarded.browser, guarded.code()) == 302


def test_guessing_codes_is_slowed_down_for_each_address(guarded: Person) -> None:
    for _ in range(10):
        assert guarded.give(guarded.password_given(), guarded.wrong_code()) == 400
    make_user(guarded.app, "bob")
    bob = guarded.app.test_client()
    bob.environ_base["REMOTE_ADDR"] = "198.51.100.7"
    log_in(bob, "bob")
    _, codes = set_up(guarded.app, bob)
    bob.environ_base["REMOTE_ADDR"] = "127.0.0.1"
    bob.post("/logout")
    log_in(bob, "bob")
    assert guarded.give(bob, codes[0]) == 429


def test_guessing_in_a_browser_that_was_left_open_is_slowed_down(guarded: Person) -> None:
    form = {"factor_password": PASSWORD, "factor_code": guarded.wrong_code()}
    statuses = [guarded.browser.post(TURN_OFF, data=form).status_code for _ in range(21)]
    assert statuses == [400] * 20 + [429]


# --- changing it


def test_password_and_code_together_turn_it_off(ann: Person) -> None:
    for password, code in (("wrong", ann.code()), (PASSWORD, ann.wrong_code()), (PASSWORD, "")):
        form = {"factor_password": password, "factor_code": code}
        assert ann.browser.post(TURN_OFF, data=form).status_code == 400
    assert ann.password_given()
    form = {"factor_password": PASSWORD, "factor_code": ann.code()}
    assert ann.browser.post(TURN_OFF, data=form).status_code == 302
    client = ann.app.test_client()
    assert log_in(client) == 302 and is_logged_in(client)
    with ann.app.app_context():
        assert db.session.scalars(select(RecoveryCode)).all() == []


def test_new_recovery_codes_replace_the_old_ones(ann: Person) -> None:
    form = {"factor_password": PASSWORD, "factor_code": ann.code()}
    page = ann.browser.post(NEW_CODES, data=form)
    assert page.status_code == 200 and page.headers["Cache-Control"] == "no-store"
    codes = re.findall(r"<li><code>([a-z2-7-]+)</code>", page.text)
    assert len(codes) == 10 and not set(codes) & set(ann.recovery_codes)
    assert ann.give(ann.password_given(), ann.recovery_codes[0]) == 400
    assert ann.give(ann.password_given(), codes[0]) == 302
    # The code that was given for them is spent, too.
    assert ann.browser.post(NEW_CODES, data=form).status_code == 400


@pytest.mark.parametrize("path", [NEW_CODES, TURN_OFF])
def test_what_is_off_cannot_be_changed(logged_in: Callable[..., FlaskClient], path: str) -> None:
    form = {"factor_password": PASSWORD, "factor_code": "123456"}
    answer = logged_in("ann").post(path, data=form, follow_redirects=True)
    assert "The second factor is off." in answer.text


def test_an_admin_takes_away_what_another_lost_but_not_their_own(
    app: Flask, admin: Person, logged_in: Callable[..., FlaskClient]
) -> None:
    own = admin.browser.post(f"/admin/users/{admin.user_id}/second-factor/reset")
    assert own.location == "/account#second-factor"
    assert admin.password_given()
    root = logged_in("root", Role.ADMIN)
    assert "Second factor… of ann" in root.get("/admin/users").text
    answer = root.post(f"/admin/users/{admin.user_id}/second-factor/reset", follow_redirects=True)
    assert "The second factor of ann has been removed" in answer.text
    assert "Second factor… of ann" not in answer.text
    assert not is_logged_in(admin.browser)
    assert log_in(admin.browser) == 302 and is_logged_in(admin.browser)


def test_the_command_line_takes_it_away(app: Flask, admin: Person) -> None:
    run = app.test_cli_runner().invoke
    assert "does not exist" in run(args=["reset-second-factor", "nobody"]).output
    done = run(args=["reset-second-factor", "ANN"])
    assert done.exit_code == 0 and "The second factor of ann is removed" in done.output
    assert not is_logged_in(admin.browser)
    assert log_in(admin.browser) == 302 and is_logged_in(admin.browser)
    again = run(args=["reset-second-factor", "ann"])
    assert again.exit_code == 1 and "has no second factor" in again.output


# --- requiring it


def test_where_it_is_required_an_admin_without_one_administers_nothing(
    app: Flask, logged_in: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.config, "REQUIRE_SECOND_FACTOR", True)
    admin, user = logged_in("ann", Role.ADMIN), logged_in("bob")
    for path in ("/admin", "/admin/users", "/admin/runs/new"):
        answer = admin.get(path)
        assert (answer.status_code, answer.location) == (302, "/account#second-factor")
        assert user.get(path).status_code == 404
    with app.app_context():
        bob = db.session.scalars(select(User).where(User.username == "bob")).one()
    assert admin.post(f"/admin/users/{bob.id}/disable").status_code == 302
    with app.app_context():
        assert db.session.get_one(User, bob.id).disabled_at is None
    assert "you cannot open the administration pages" in admin.get("/account").text
    assert "you cannot open the administration pages" not in user.get("/account").text
    assert admin.get("/scans").status_code == 200

    admin.post(SET_UP, data={"factor_password": PASSWORD})
    assert admin.get("/admin/users").status_code == 302  # It does not count yet.
    set_up(app, admin)
    assert admin.get("/admin/users").status_code == 200


# --- the audit log


def test_what_happens_to_a_second_factor_is_kept(ann: Person) -> None:
    client = ann.password_given()
    ann.give(client, ann.wrong_code())
    ann.give(client, ann.recovery_codes[0])
    form = {"factor_password": PASSWORD, "factor_code": ann.code()}
    ann.browser.post(NEW_CODES, data=form)
    ann.browser.post(TURN_OFF, data={**form, "factor_code": ann.wrong_code()})
    ann.browser.post(TURN_OFF, data={**form, "factor_code": ann.code(1)})

    me = ann.user_id
    assert acts(ann.app) == [
        (Act.LOGGED_IN, me, me),
        (Act.SECOND_FACTOR_SET_UP, me, me),
        (Act.SECOND_FACTOR_FAILED, None, me),
        (Act.RECOVERY_CODE_USED, me, me),
        (Act.LOGGED_IN, me, me),
        (Act.RECOVERY_CODES_MADE, me, me),
        (Act.SECOND_FACTOR_FAILED, me, me),
        (Act.SECOND_FACTOR_REMOVED, me, me),
    ]
