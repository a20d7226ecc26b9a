"""Logins in the database: how they are named, when they end, who may end them; and how guessing is
slowed down.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from itsdangerous import URLSafeTimedSerializer
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError

from tests.conftest import PASSWORD, TOKEN_FORM, app_on, make_user
from webapp.accounts.logins import browser_name, known_browsers
from webapp.extensions import db, utc_now
from webapp.models import Act, ApiToken, AuditEvent, LoginSession
from webapp.models.accounts import secret_hash

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
EDGE = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0"
)


def log_in(
    client: FlaskClient, username: str = "ann", password: str = PASSWORD, **headers: str
) -> int:
    """Try to log in; return the status, 302 if it worked."""
    return client.post(
        "/login", data={"username": username, "password": password}, headers=headers
    ).status_code


def is_logged_in(client: FlaskClient) -> bool:
    """True if that browser may see its account."""
    return client.get("/account").status_code == 200


def set_back(app: Flask, table: type, **ago: timedelta) -> None:
    """Let the rows of `table` have been made or used so long ago."""
    with app.app_context():
        db.session.execute(
            update(table).values({column: utc_now() - time for column, time in ago.items()})
        )
        db.session.commit()


def used_at(app: Flask, table: type) -> Any:
    """Return when the only row was last used."""
    with app.app_context():
        return db.session.scalars(select(table.used_at)).one()  # type: ignore[attr-defined]


# --- how logins end


def test_a_login_that_is_not_used_for_a_day_ends(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    set_back(app, LoginSession, used_at=timedelta(hours=23, minutes=59))
    assert is_logged_in(client)
    set_back(app, LoginSession, used_at=timedelta(hours=24))
    assert not is_logged_in(client)


def test_a_login_in_daily_use_ends_after_its_last_day(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    with app.app_context():
        login = db.session.scalars(select(LoginSession)).one()
        assert login.expires_at - login.created_at == pytest.approx(
            timedelta(days=app.config["LOGIN_DAYS"]), abs=timedelta(seconds=5)
        )
    set_back(app, LoginSession, expires_at=timedelta(seconds=1))
    assert not is_logged_in(client)


def test_logging_in_again_makes_a_new_login_and_ends_the_one_before(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    with client.session_transaction() as cookie:
        before = cookie["_user_id"]
    assert log_in(client) == 302
    with client.session_transaction() as cookie, app.app_context():
        assert cookie["_user_id"] != before
        assert db.session.scalars(select(LoginSession.secret_hash)).all() == [
            secret_hash(cookie["_user_id"])
        ]


def test_a_person_sees_logins_by_browser_address_and_time_and_ends_one_or_all_others(
    app: Flask,
) -> None:
    make_user(app, "ann")
    here, there, elsewhere = (app.test_client() for _ in range(3))
    log_in(there, **{"User-Agent": EDGE})
    with app.app_context():
        there_id = db.session.scalars(select(LoginSession.id)).one()
    log_in(here, **{"User-Agent": FIREFOX})
    log_in(elsewhere)
    page = here.get("/account").text
    assert "Edge on Windows" in page and "127.0.0.1" in page
    assert page.split("current</span>")[0].endswith('Firefox on Linux <span class="badge live">')
    assert here.post(f"/account/logins/{there_id}/end").status_code == 302
    assert [is_logged_in(client) for client in (here, there, elsewhere)] == [True, False, True]
    log_in(there)
    assert here.post("/account/logins/end-others").status_code == 302
    assert [is_logged_in(client) for client in (here, there, elsewhere)] == [True, False, False]


def test_nobody_ends_the_login_of_another(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    ann = logged_in("ann")
    with app.app_context():
        login_id = db.session.scalars(select(LoginSession.id)).one()
    bob = logged_in("bob")
    for path in (login_id, "0" * 32, "%00"):
        assert bob.post(f"/account/logins/{path}/end").status_code == 404
    assert is_logged_in(ann)


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (FIREFOX, "Firefox on Linux"),
        (EDGE, "Edge on Windows"),
        ("curl/8.0", "A browser"),
        ("<script>", "A browser"),
        ("", "A browser"),
    ],
)
def test_a_browser_is_called_by_what_people_call_it(user_agent: str, name: str) -> None:
    assert browser_name(user_agent) == name


# --- when they were last used


@pytest.fixture
def program(app: Flask, logged_in: Callable[..., FlaskClient]) -> FlaskClient:
    """A client with a token of ann's."""
    secret = (
        logged_in("ann")
        .post(
            "/account/tokens", data={"name": "a script", "token_password": PASSWORD, **TOKEN_FORM}
        )
        .text.split('id="token">')[1]
        .split("<")[0]
    )
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {secret}"
    return client


def test_the_last_use_of_a_token_is_noted_at_most_once_a_minute(
    app: Flask, program: FlaskClient
) -> None:
    assert used_at(app, ApiToken) is None
    program.get("/api/v1/scans")
    first = used_at(app, ApiToken)
    assert utc_now() - first < timedelta(seconds=30)
    program.get("/api/v1/scans")
    assert used_at(app, ApiToken) == first
    set_back(app, ApiToken, used_at=timedelta(seconds=61))
    program.get("/api/v1/scans")
    assert used_at(app, ApiToken) >= first


def test_a_page_notes_the_use_of_its_login_although_it_only_reads(any_database_app: Flask) -> None:
    app = any_database_app
    make_user(app, "ann")
    client = app.test_client()
    log_in(client)
    set_back(app, LoginSession, used_at=timedelta(hours=1))
    assert client.get("/scans").status_code == 200
    assert utc_now() - used_at(app, LoginSession) < timedelta(seconds=30)


def test_a_page_that_is_left_open_keeps_no_login_alive(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    set_back(app, LoginSession, used_at=timedelta(hours=1))
    before = used_at(app, LoginSession)
    assert client.get("/scans", headers={"HX-Request": "true"}).status_code == 200
    assert used_at(app, LoginSession) == before


def test_a_page_is_shown_although_its_use_cannot_be_noted(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    client = logged_in("ann")
    set_back(app, LoginSession, used_at=timedelta(hours=1))

    def refuse(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE login_session"):
            raise OperationalError(statement, {}, Exception("database is locked"))

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", refuse)
    try:
        assert client.get("/scans").status_code == 200
    finally:
        event.remove(engine, "before_cursor_execute", refuse)


# --- guessing


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Flask]:
    """An application that slows guessing down; ann has an account."""
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, RATELIMIT_ENABLED=True)
    make_user(app, "ann")
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def guesses(app: Flask, username: str, number: int) -> list[int]:
    """Guess so often, each time from another address, and return the statuses."""
    statuses = []
    for guess in range(number):
        stranger = app.test_client()
        stranger.environ_base["REMOTE_ADDR"] = f"198.51.100.{guess}"
        statuses.append(log_in(stranger, username, "wrong"))
    return statuses


@pytest.mark.parametrize("username", ["ann", "ANN ", "nobody"])
def test_an_account_is_guarded_from_many_addresses_whether_or_not_it_exists(
    guarded: Flask, username: str
) -> None:
    assert guesses(guarded, username, 22) == [400] * 20 + [429] * 2


def test_guessing_does_not_keep_an_owner_out_who_was_here_before(guarded: Flask) -> None:
    owner = guarded.test_client()
    assert log_in(owner) == 302
    owner.post("/logout")
    assert guesses(guarded, "ann", 21)[-1] == 429
    assert log_in(guarded.test_client()) == 429  # A browser that nobody knows.
    assert log_in(owner) == 302
    for _ in range(10):
        owner.post("/logout")
        assert log_in(owner, password="wrong") == 400
    # The address has its own limit, whatever it is known for.
    assert log_in(owner, "bob", "wrong") == 429


def test_a_browser_is_known_to_the_account_that_it_was_in_and_to_no_other(guarded: Flask) -> None:
    make_user(guarded, "bob")
    bob = guarded.test_client()
    assert log_in(bob, "bob") == 302
    assert guesses(guarded, "ann", 21)[-1] == 429
    assert log_in(bob, "ann") == 429


def test_a_forged_cookie_makes_no_browser_known(guarded: Flask) -> None:
    owner, forger = guarded.test_client(), guarded.test_client()
    assert log_in(owner) == 302
    known = owner.get_cookie("known")
    assert known is not None
    with guarded.app_context():
        content = known_browsers().loads(known.value)
    forger.set_cookie(
        "known",
        str(URLSafeTimedSerializer("another key", salt="hemoscan known browser").dumps(content)),
    )
    assert guesses(guarded, "ann", 21)[-1] == 429
    assert log_in(forger) == 429


def test_throttling_is_recorded_once_a_minute_for_each_address(guarded: Flask) -> None:
    client = guarded.test_client()
    for _ in range(14):
        log_in(client, password="wrong")
    with guarded.app_context():
        acts = list(db.session.scalars(select(AuditEvent.act)))
    assert (acts.count(Act.LOGIN_FAILED), acts.count(Act.LOGIN_THROTTLED)) == (10, 1)


def test_a_password_is_taken_from_a_form_alone_which_the_throttles_look_at(app: Flask) -> None:
    make_user(app, "ann")
    right = {"username": "ann", "password": PASSWORD}
    client = app.test_client()
    assert client.post("/login", json=right).status_code == 400
    assert client.post("/login", query_string=right).status_code == 400
    as_files = {name: (io.BytesIO(text.encode()), "x.txt") for name, text in right.items()}
    assert client.post("/login", data=as_files).status_code == 400
    assert not is_logged_in(client)
    assert client.post("/login", data=right).status_code == 302
