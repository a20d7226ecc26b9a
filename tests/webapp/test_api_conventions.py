"""What all operations of the API have in common: scopes, keys for requests that are sent again,
limits.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.conftest import app_on, make_user
from tests.ml.made_scans import write_series
from tests.webapp.test_api import add_scan, client_of, make_token, png, problem_of
from webapp.api import idempotency
from webapp.api.access import SCOPE_OF
from webapp.extensions import db, utc_now
from webapp.models import (
    ApiToken,
    AuditEvent,
    IdempotentRequest,
    JobStatus,
    Role,
    Scan,
    Scope,
    User,
)

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


def limit_token(app: Flask, **columns: Any) -> None:
    """Change all tokens."""
    with app.app_context():
        db.session.execute(update(ApiToken).values(**columns))
        db.session.commit()


def sent_scan(client: FlaskClient, picture: bytes | None = None, **headers: str) -> Any:
    """Submit a picture with a key."""
    file = (io.BytesIO(picture or png()), "a.png")
    return client.post("/api/v1/scans", data={"file": file}, headers={**KEY, **headers})


def count(app: Flask, table: Any = Scan) -> int:
    """Return how many rows a table has."""
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(table)) or 0


# --- tokens


def test_a_token_does_what_its_scopes_allow_and_nothing_else(app: Flask) -> None:
    ann = client_of(app, "ann")
    limit_token(app, scopes="submit")
    assert sent_scan(ann).status_code == 202
    refused = ann.get("/api/v1/scans")
    assert "scope “read”; this one has: submit" in problem_of(refused, 403)
    challenge = refused.headers["WWW-Authenticate"]
    assert "error=insufficient_scope" in challenge and "scope=read" in challenge
    assert ann.get("/api/v1/token").json["scopes"] == ["submit"]


def test_the_scope_admin_counts_while_its_owner_is_an_admin(app: Flask) -> None:
    boss = app.test_client()
    user_id = make_user(app, "boss", Role.ADMIN)
    boss.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(app, user_id)}"
    assert "have been computed" in problem_of(boss.get("/api/v1/site-figures"), 404)
    app.config["REQUIRE_SECOND_FACTOR"] = True
    assert "second factor" in problem_of(boss.get("/api/v1/site-figures"), 403)
    with app.app_context():
        db.session.get_one(User, user_id).role = Role.REVIEWER
        db.session.commit()
    assert "administrators" in problem_of(boss.get("/api/v1/site-figures"), 403)
    assert "admin" not in boss.get("/api/v1/token").json["scopes"]
    with app.app_context():
        assert db.session.scalars(select(AuditEvent.act)).all() == ["access refused"]


@pytest.mark.parametrize(
    "body",
    ["{", b"\xff", "[" * 100_000 + "]" * 100_000, f'{{"ids": [{"9" * 5000}]}}'],
    ids=["cut off", "no text", "nested too deep", "a number of thousands of digits"],
)
def test_a_body_that_is_not_json_is_refused_with_a_sentence(app: Flask, body: str | bytes) -> None:
    refused = client_of(app, "ann").post(
        "/api/v1/scans/changes", data=body, content_type="application/json"
    )
    assert problem_of(refused, 400) == "The body is not valid JSON."


def test_a_token_that_has_expired_is_refused(app: Flask) -> None:
    ann = client_of(app, "ann")
    limit_token(app, expires_at=utc_now() + timedelta(minutes=1))
    assert ann.get("/api/v1/scans").status_code == 200
    limit_token(app, expires_at=utc_now())
    refused = ann.get("/api/v1/scans")
    assert "expired" in problem_of(refused, 401)
    assert "error=invalid_token" in refused.headers["WWW-Authenticate"]


def test_every_operation_says_which_scope_it_needs(app: Flask) -> None:
    document = app.test_client().get("/api/v1/openapi.json").json
    values = {
        operation["operationId"]: operation["security"][0]["token"]
        for path in document["paths"].values()
        for method, operation in path.items()
        if method != "parameters"
    }
    endpoints = {
        rule.endpoint.removeprefix("api.")
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("api.")
    }
    assert endpoints == SCOPE_OF.keys() and len(values) == len(endpoints)
    assert [name for name, scopes in values.items() if not scopes] == ["read_token"]
    assert {scope for scopes in values.values() for scope in scopes} == set(Scope)


# --- requests that are sent again


def test_an_upload_that_is_sent_again_is_one_scan_with_one_answer(
    any_database_app: Flask,
) -> None:
    ann = client_of(any_database_app, "ann")
    first, again = sent_scan(ann), sent_scan(ann)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json == first.json and again.headers["Idempotency-Replayed"] == "true"
    assert count(any_database_app) == 1
    quoted = sent_scan(ann, **{"Idempotency-Key": f'"{KEY["Idempotency-Key"]}"'})
    assert quoted.json == first.json
    assert "another request" in problem_of(sent_scan(ann, png(65)), 422)
    other = ann.post(f"/api/v1/scans/{first.json['id']}/cancel", headers=KEY)
    assert "another request" in problem_of(other, 422)
    bob = client_of(any_database_app, "bob")
    assert sent_scan(bob).json["id"] != first.json["id"]  # Keys are each person's own.
    with any_database_app.app_context():
        db.session.execute(
            update(IdempotentRequest).values(created_at=utc_now() - timedelta(hours=25))
        )
        db.session.commit()
    assert sent_scan(ann).json["id"] != first.json["id"]


def test_of_uploads_at_once_with_one_key_one_is_taken_and_the_others_may_try_again(
    any_database_app: Flask,
) -> None:
    clients = [client_of(any_database_app, "ann")]
    for _ in range(3):
        clients.append(any_database_app.test_client())
        clients[-1].environ_base.update(clients[0].environ_base)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda client=client: answers.append(sent_scan(client)))
        for client in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json["id"] for answer in answers if answer.status_code == 202}) == 1
    for answer in answers:
        assert answer.status_code == 202 or answer.headers["Retry-After"] == "2"
    assert count(any_database_app) == 1


class Killed(BaseException):
    """Stands for the end of a process: nothing is tidied up after it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, client: FlaskClient, owner: Any, name: str) -> None:
    """Submit a picture to a process that dies when it calls that function."""

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        patch.setattr(idempotency.Claim, "release", die)
        with pytest.raises(Killed):
            sent_scan(client)


def test_a_process_that_dies_leaves_one_scan_or_none_and_its_key_has_an_end(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = client_of(app, "ann")
    killed_at(monkeypatch, ann, idempotency.Claim, "write")  # Before its scan counts.
    assert count(app) == 0
    refused = sent_scan(ann)
    assert "still being answered" in problem_of(refused, 409)
    with app.app_context():
        db.session.execute(update(IdempotentRequest).values(claimed_until=utc_now()))
        db.session.commit()
    killed_at(monkeypatch, ann, idempotency, "noting")  # After the commit, before the answer.
    again = sent_scan(ann)
    assert (again.status_code, count(app)) == (202, 1)
    assert ann.get(again.json["url"]).json["status"] == JobStatus.QUEUED


def test_a_request_that_was_taken_for_dead_makes_nothing(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = client_of(app, "ann")
    write = idempotency.Claim.write

    def late(claim: idempotency.Claim, *answer: Any) -> bool:
        # Another process takes over while this one stores its files.
        db.session.execute(update(IdempotentRequest).values(claim="x"))
        return write(claim, *answer)

    monkeypatch.setattr(idempotency.Claim, "write", late)
    problem_of(sent_scan(ann), 409)
    assert count(app) == 0


def test_a_request_that_failed_may_be_sent_again_with_its_key(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    problem_of(ann.post(f"/api/v1/scans/{scan_id}/retry", headers=KEY), 409)
    assert count(app, IdempotentRequest) == 0
    for key in ("", "x" * 256, "with space"):
        answer = ann.post(f"/api/v1/scans/{scan_id}/cancel", headers={"Idempotency-Key": key})
        assert "Idempotency-Key" in problem_of(answer, 400)
    assert ann.post(f"/api/v1/scans/{scan_id}/cancel", headers=KEY).status_code == 200
    assert ann.post(f"/api/v1/scans/{scan_id}/cancel", headers=KEY).status_code == 200
    problem_of(ann.post(f"/api/v1/scans/{scan_id}/cancel"), 409)


@pytest.fixture
def ann(app: Flask) -> FlaskClient:
    """An API client that acts for Ann."""
    return client_of(app, "ann")


def test_what_dicomweb_stores_with_a_key_is_answered_alike_and_other_instances_are_not(
    app: Flask, tmp_path: Path
) -> None:
    ann = client_of(app, "ann")
    first, second = (path.read_bytes() for path in write_series(tmp_path, 2))

    def store(*parts: bytes) -> Any:
        head = b"\r\n--next\r\nContent-Type: application/dicom\r\n\r\n"
        return ann.post(
            "/dicom-web/studies",
            data=b"".join(head + part for part in parts) + b"\r\n--next--\r\n",
            content_type='multipart/related; type="application/dicom"; boundary=next',
            headers=KEY,
        )

    stored, again = store(first), store(first)
    assert (stored.status_code, again.status_code) == (200, 200)
    assert again.headers["Idempotency-Replayed"] == "true" and again.data == stored.data
    assert again.mimetype == stored.mimetype == "application/dicom+json"
    assert "another request" in problem_of(store(first, second), 422)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
@pytest.mark.parametrize("query", ["scans?finished_since", "models/live?at"])
def test_a_time_that_is_none_in_utc_is_refused(ann: FlaskClient, query: str, time: str) -> None:
    path, name = query.split("?")
    refused = ann.get(f"/api/v1/{path}", query_string={name: time})
    assert problem_of(refused, 422) == f"{name}: Not a valid datetime."


# --- limits


@pytest.fixture
def limited_app(tmp_path: Path) -> Iterator[Flask]:
    """An application that counts requests."""
    app = app_on(
        f"sqlite:///{tmp_path / 'test.db'}",
        tmp_path,
        RATELIMIT_ENABLED=True,
        API_REQUESTS_PER_MINUTE=3,
    )
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def test_answers_say_how_many_requests_are_left_and_a_refusal_when_to_try_again(
    limited_app: Flask,
) -> None:
    ann = client_of(limited_app, "ann")
    scan_id = add_scan(limited_app)
    answers = [ann.get("/api/v1/scans"), ann.get(f"/api/v1/scans/{scan_id}/image.png")]
    assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["2", "1"]
    assert answers[0].headers["X-RateLimit-Limit"] == "3"
    assert "Retry-After" not in answers[0].headers and answers[1].headers["Retry-After"] == "1"
    ann.get("/api/v1/token")
    refused = ann.get("/api/v1/scans")
    problem_of(refused, 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert client_of(limited_app, "bob").get("/api/v1/scans").status_code == 200


def test_requests_by_dicomweb_count_with_the_apis_of_the_same_person_only(
    limited_app: Flask,
) -> None:
    stranger = limited_app.test_client()
    refused = [stranger.get("/dicom-web/studies").status_code for _ in range(4)]
    assert refused == [401] * 4
    ann, bob = client_of(limited_app, "ann"), client_of(limited_app, "bob")
    for address in ("/dicom-web/studies", "/api/v1/token", "/dicom-web/series"):
        assert ann.get(address).status_code < 300
    problem_of(ann.get("/dicom-web/studies"), 429)
    assert bob.get("/dicom-web/studies").status_code == 204
