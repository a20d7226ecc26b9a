"""Notifications on pages: what a person chooses, what became of messages, and what is new."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import make_user
from tests.webapp.scans.test_scans import add_scan
from tests.webapp.test_api import client_of, problem_of
from webapp.extensions import db, utc_now
from webapp.models import (
    Channel,
    JobStatus,
    LoginSession,
    Notification,
    Role,
    Scan,
    User,
    Wanted,
    choices_of,
    choose,
)


@pytest.fixture
def ann(logged_in: Callable[..., FlaskClient]) -> FlaskClient:
    """Ann's browser."""
    return logged_in("ann")


def id_of(username: str) -> str:
    """Return the id of a person."""
    return db.session.scalars(select(User.id).where(User.username == username)).one()


def test_only_channels_that_the_operator_set_up_are_offered(app: Flask, ann: FlaskClient) -> None:
    page = ann.get("/account").text
    assert 'name="browser"' in page
    assert not any(f'name="{channel}"' in page for channel in ("email", "chat", "webhook"))
    assert "Send a test message" not in page

    app.config["NOTIFY_EMAIL_URL"] = "mailtos://smtp.example.org"
    page = ann.get("/account").text
    assert 'name="email"' in page and 'name="chat"' not in page
    assert "Send a test message" in page
    # A channel that is not offered is not chosen either.
    ann.post("/account/notifications", data={"browser": "all", "email": "stat", "chat": "all"})
    with app.app_context():
        assert choices_of(id_of("ann")) == {
            Channel.BROWSER: Wanted.ALL,
            Channel.EMAIL: Wanted.STAT,
            Channel.CHAT: Wanted.NONE,
            Channel.WEBHOOK: Wanted.NONE,
        }
    assert '<option selected value="stat">' in ann.get("/account").text


@pytest.mark.parametrize("value", ["", "nonsense", "ALL"])
def test_a_choice_that_there_is_not_is_refused(app: Flask, ann: FlaskClient, value: str) -> None:
    answer = ann.post("/account/notifications", data={"browser": value})
    assert answer.status_code == 400
    assert "Not a valid choice" in answer.text
    with app.app_context():
        assert choices_of(id_of("ann"))[Channel.BROWSER] == Wanted.ALL


def test_a_test_message_is_queued_for_each_chosen_channel_and_shown(
    app: Flask, ann: FlaskClient
) -> None:
    app.config.update(NOTIFY_EMAIL_URL="mailto://x", NOTIFY_CHAT_URL="json://x")
    answer = ann.post("/account/notifications/test", follow_redirects=True)
    assert "Choose a channel and save it first" in answer.text
    ann.post("/account/notifications", data={"browser": "all", "email": "all", "chat": "none"})
    page = ann.post("/account/notifications/test", follow_redirects=True).text
    assert "A test message is being sent" in page
    assert "waiting</span>" in page
    with app.app_context():
        (message,) = db.session.scalars(select(Notification)).all()
        assert (message.channel, message.scan_id) == (Channel.EMAIL, None)
        message.tries, message.error = 2, "There was no response within 15 seconds."
        message.retry_at = utc_now() + timedelta(seconds=60)
        db.session.commit()
    page = ann.get("/account").text
    assert "There was no response within 15 seconds." in page


def test_a_program_chooses_notifications_and_follows_messages(app: Flask) -> None:
    app.config.update(NOTIFY_EMAIL_URL="mailto://x", NOTIFY_CHAT_URL="json://x")
    ann, bob = client_of(app, "ann"), client_of(app, "bob")
    address = "/api/v1/notifications"
    nothing = problem_of(ann.post(f"{address}/test"), 409)
    assert nothing == "You have not turned on any channel that sends messages."
    chosen = ann.put(f"{address}/email", json={"wanted": "stat"})
    assert chosen.json == {"channel": "email", "wanted": "stat"}
    assert ann.get(address).json["items"] == [
        {"channel": "browser", "wanted": "all"},
        {"channel": "email", "wanted": "stat"},
        {"channel": "chat", "wanted": "none"},
    ]
    assert bob.get(f"{address}?limit=2").json["items"][1]["wanted"] == "none"
    for channel in ("webhook", "pigeon"):
        refused = ann.put(f"{address}/{channel}", json={"wanted": "all"})
        assert problem_of(refused, 404) == "There is no such channel here."
    wrong = ann.put(f"{address}/email", json={"wanted": "ALL"})
    assert problem_of(wrong, 422).startswith("wanted: ")
    queued = ann.post(f"{address}/test")
    assert (queued.status_code, queued.json) == (202, {"queued": 1})
    (message,) = ann.get(f"{address}/messages").json["items"]
    assert (message["channel"], message["scan_id"], message["status"]) == ("email", None, "queued")
    assert bob.get(f"{address}/messages").json["items"] == []


def test_an_administrator_sees_what_was_not_sent_and_no_name(
    app: Flask, ann: FlaskClient, logged_in: Callable[..., FlaskClient]
) -> None:
    root = logged_in("root", Role.ADMIN)
    assert "Undelivered notifications" not in root.get("/admin").text
    with app.app_context():
        columns: dict[str, Any] = {"user_id": id_of("ann"), "channel": Channel.WEBHOOK}
        failed = Notification(
            **columns, status=JobStatus.FAILED, tries=6, error="The webhook responded with 500."
        )
        db.session.add_all((failed, Notification(**columns)))
        db.session.commit()
        failed_id = failed.id
    page = root.get("/admin").text.split('id="unsent"')[1].split("</table>")[0]
    assert page.count("<tr>") == 2 and failed_id[:8] in page
    assert "The webhook responded with 500." in page and ">ann<" not in page


def test_a_page_gets_what_is_new_of_what_its_reader_wants(app: Flask, ann: FlaskClient) -> None:
    before = utc_now() - timedelta(seconds=60)
    make_user(app, "bob")
    with app.app_context():
        for username, state, stat in (
            ("ann", "suspected", False),
            ("ann", "not found", True),
            ("bob", "suspected", True),
        ):
            db.session.add(
                Scan(
                    user_id=id_of(username),
                    kind="png",
                    original_key="o",
                    status=JobStatus.DONE,
                    finished_at=utc_now() - timedelta(seconds=20),
                    verdict_state=state,
                    stat=stat,
                    title=f"{username} {state}",
                )
            )
        db.session.commit()
        ids = dict(db.session.execute(select(Scan.title, Scan.id)).all())

    def titles_since(after: str) -> list[str]:
        return list(ann.get(f"/notifications/news?after={quote(after)}").json["results"])

    suspected, not_found = (f"/scans/{ids[f'ann {state}']}" for state in ("suspected", "not found"))
    assert sorted(titles_since(before.isoformat())) == sorted([suspected, not_found])
    for wanted, results in ((Wanted.SUSPICIOUS, [suspected]), (Wanted.STAT, [not_found]),
                            (Wanted.NONE, [])):  # fmt: skip
        with app.app_context():
            choose(id_of("ann"), {Channel.BROWSER: wanted})
            db.session.commit()
        assert titles_since(before.isoformat()) == results
    now = ann.get(f"/notifications/news?after={quote(before.isoformat())}").json["now"]
    assert titles_since(now) == []


def test_a_result_that_is_committed_late_is_in_the_next_answer_until_it_is_opened(
    app: Flask, ann: FlaskClient
) -> None:
    def news(after: str) -> Any:
        return ann.get(f"/notifications/news?after={quote(after)}").json

    written_at = utc_now()
    answer = news((written_at - timedelta(seconds=5)).isoformat())
    assert answer["results"] == []
    scan_id = add_scan(app, finished_at=written_at, status=JobStatus.DONE)
    for _ in range(2):
        answer = news(answer["now"])
        assert answer["results"] == [f"/scans/{scan_id}"]
    ann.get(f"/scans/{scan_id}")
    assert news(answer["now"])["results"] == []


@pytest.mark.parametrize(
    "after",
    [
        "",
        "yesterday",
        "2026-11-29",
        "2026-11-29T10:00:00",
        "0001-01-01T00:00:00%2B00:00",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_nonsense_for_a_time_is_refused(ann: FlaskClient, after: str) -> None:
    assert ann.get(f"/notifications/news?after={after}").status_code == 400


def test_a_page_that_asks_by_itself_keeps_no_login_alive(app: Flask, ann: FlaskClient) -> None:
    long_ago = utc_now() - timedelta(hours=5)
    with app.app_context():
        db.session.query(LoginSession).update({"used_at": long_ago})
        db.session.commit()
    address = f"/notifications/news?after={quote(utc_now().isoformat())}"
    assert ann.get(address, headers={"HX-Request": "true"}).status_code == 200
    with app.app_context():
        assert db.session.scalars(select(LoginSession.used_at)).one() == long_ago


def test_messages_go_with_their_scan_and_their_person(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    with app.app_context():
        db.session.add(Notification(user_id=id_of("ann"), scan_id=scan_id, channel=Channel.EMAIL))
        db.session.commit()
    ann.post(f"/scans/{scan_id}/delete")
    with app.app_context():
        assert db.session.scalars(select(Notification.id)).all() == []
