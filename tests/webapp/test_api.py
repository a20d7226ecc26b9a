"""The JSON API under /api/v1."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import validate
from PIL import Image
from sqlalchemy import event, select
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from tests.conftest import PASSWORD, app_on, make_user
from webapp.api import pictures
from webapp.extensions import db, utc_now
from webapp.models import (
    ORIGINAL_REMOVED,
    ApiToken,
    Heatmap,
    JobStatus,
    ModelVersion,
    Prediction,
    Scan,
    Scope,
    User,
    promote,
)
from webapp.models.accounts import new_secret, secret_hash
from webapp.storage import storage


def png(side: int = 64) -> bytes:
    """Return a gray picture as a PNG file."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(file, "PNG")
    return file.getvalue()


def make_token(app: Flask, user_id: str) -> str:
    """Return a fresh API token of that person."""
    secret = new_secret()
    with app.app_context():
        db.session.add(
            ApiToken(
                user_id=user_id,
                name="a test",
                secret_hash=secret_hash(secret),
                scopes=" ".join(Scope),
            )
        )
        db.session.commit()
    return secret


def client_of(app: Flask, username: str) -> FlaskClient:
    """Return an API client that acts for a new person."""
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = (
        f"Bearer {make_token(app, make_user(app, username))}"
    )
    return client


@pytest.fixture
def ann(app: Flask) -> FlaskClient:
    """An API client that acts for Ann."""
    return client_of(app, "ann")


def add_scan(app: Flask, username: str = "ann", **columns: Any) -> str:
    """Add a scan of that person; return its id."""
    with app.app_context():
        user_id = db.session.execute(
            db.text("SELECT id FROM user WHERE username = :name"), {"name": username}
        ).scalar_one()
        scan = Scan(user_id=user_id, kind="png", original_key="originals/none.png", **columns)
        db.session.add(scan)
        db.session.commit()
        return scan.id


def add_verdict(
    app: Flask, scan_id: str, *, drawing: JobStatus = JobStatus.QUEUED, **heatmap: str | None
) -> str:
    """Add the verdict on a scan and the row of its heat map; return the model version's id."""
    with app.app_context():
        version = ModelVersion(
            card_id="0" * 12,
            architecture="alexnet_svm",
            reads="slice",
            storage_prefix="models/none",
            card={},
        )
        scan = db.session.get_one(Scan, scan_id)
        scan.status, scan.progress, scan.finished_at = JobStatus.DONE, 1.0, utc_now()
        scan.prediction = Prediction(
            model_version=version,
            probability=0.75,
            threshold=0.5,
            positive=True,
            uncertain=False,
            warnings=["Small."],
            slices=[0.75],
            seconds=0.1,
        )
        scan.prediction.heatmap = Heatmap(status=drawing, **heatmap)
        db.session.add(version)
        db.session.commit()
        return version.id


def problem_of(answer: TestResponse, status: int) -> str:
    """Return the sentence of an error, after a look at its form."""
    assert answer.status_code == status, answer.text
    assert answer.content_type.startswith("application/problem+json")
    assert answer.json["status"] == status
    assert {"type", "title", "detail"} <= set(answer.json)
    return str(answer.json["detail"])


# --- who may ask


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer nonsense"},
    ],
)
def test_without_a_known_token_there_is_nothing(app: Flask, header: dict[str, str]) -> None:
    answer = app.test_client().get("/api/v1/scans", headers=header)
    assert "token" in problem_of(answer, 401)
    assert answer.headers["WWW-Authenticate"].lower().startswith("bearer")


def test_a_login_in_a_browser_is_no_token(logged_in: Callable[..., FlaskClient]) -> None:
    browser = logged_in("ann")
    problem_of(browser.get("/api/v1/scans"), 401)
    problem_of(browser.post("/api/v1/scans", data={"file": (io.BytesIO(png()), "a.png")}), 401)


def test_a_persons_uploads_are_counted_together_by_whichever_token_or_browser_they_come(
    tmp_path: Path,
) -> None:
    app = app_on(
        f"sqlite:///{tmp_path / 'test.db'}", tmp_path, RATELIMIT_ENABLED=True, UPLOADS_PER_MINUTE=3
    )
    ann = client_of(app, "ann")
    with app.app_context():
        ann_id = db.session.scalars(select(User.id)).one()
    other = app.test_client()
    other.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(app, ann_id)}"
    browser = app.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})

    def send(client: FlaskClient, path: str) -> int:
        return client.post(path, data={"file": (io.BytesIO(png()), "a.png")}).status_code

    assert [send(ann, "/api/v1/scans"), send(other, "/api/v1/scans"), send(browser, "/scans")] == [
        202,
        202,
        302,
    ]
    assert [send(ann, "/api/v1/scans"), send(other, "/api/v1/scans"), send(browser, "/scans")] == [
        429,
        429,
        429,
    ]
    assert send(client_of(app, "bob"), "/api/v1/scans") == 202
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def test_the_api_sets_no_cookie(ann: FlaskClient) -> None:
    assert "Set-Cookie" not in ann.get("/api/v1/scans").headers


def test_another_users_scan_is_404_everywhere(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    bob = client_of(app, "bob")
    for path in ("", "/image.png", "/heatmap.png"):
        refusals = {
            problem_of(bob.get(f"/api/v1/scans/{id}{path}"), 404)
            for id in (scan_id, "0" * 32, "nonsense", "%00")
        }
        assert refusals == {"Scan not found."}
    assert bob.get("/api/v1/scans").json["total"] == 0
    assert ann.get("/api/v1/scans").json["total"] == 1


# --- submit


def test_a_picture_is_accepted_at_once(app: Flask, ann: FlaskClient) -> None:
    answer = ann.post(
        "/api/v1/scans", data={"file": (io.BytesIO(png()), "a.png"), "title": "Monday"}
    )
    assert answer.status_code == 202, answer.text
    assert set(answer.json) == {"id", "status", "url", "scans"}
    first = {name: answer.json[name] for name in ("id", "status", "url")}
    assert answer.json["scans"] == [first]
    assert first["status"] == "queued"
    polled = ann.get(first["url"])
    assert polled.status_code == 200
    assert polled.json["id"] == first["id"]
    with app.app_context():
        assert db.session.get_one(Scan, first["id"]).title == "Monday"


def test_no_transaction_is_open_while_an_upload_comes_in(ann: FlaskClient) -> None:
    open_while_read = []

    class Line(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            open_while_read.append(db.session.registry().in_transaction())
            return super().readinto(buffer)

    boundary, body = encode_multipart({"file": FileStorage(io.BytesIO(png()), "a.png")})
    answer = ann.post(
        "/api/v1/scans",
        input_stream=Line(body),
        content_type=f"multipart/form-data; boundary={boundary}",
    )
    assert answer.status_code == 202, answer.text
    assert set(open_while_read) == {False}


def test_several_pictures_become_several_scans_in_their_order(ann: FlaskClient) -> None:
    answer = ann.post(
        "/api/v1/scans", data={"file": [(io.BytesIO(png(64 + i)), f"{i}.png") for i in range(3)]}
    )
    assert answer.status_code == 202, answer.text
    assert len({job["id"] for job in answer.json["scans"]}) == 3
    assert answer.json["id"] == answer.json["scans"][0]["id"]


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"", "empty.png"), (b"This is a text.", "text.png"), (png()[:40], "truncated.png")],
    ids=["empty", "text", "truncated"],
)
def test_a_bad_file_is_refused_with_a_sentence_and_nothing_is_kept(
    app: Flask, ann: FlaskClient, content: bytes, name: str
) -> None:
    answer = ann.post(
        "/api/v1/scans",
        data={"file": [(io.BytesIO(png()), "good.png"), (io.BytesIO(content), name)]},
    )
    assert problem_of(answer, 422).endswith(".")
    assert ann.get("/api/v1/scans").json["total"] == 0
    with app.app_context():
        assert storage.keys("originals") == []


def test_no_file_is_reported(ann: FlaskClient) -> None:
    assert "file" in problem_of(
        ann.post("/api/v1/scans", data={"title": "none"}, content_type="multipart/form-data"), 422
    )
    assert "file" in problem_of(ann.post("/api/v1/scans"), 422)


@pytest.mark.parametrize(
    "media", ["application/json", "image/png", "application/x-www-form-urlencoded"]
)
def test_a_body_that_is_not_multipart_is_reported(ann: FlaskClient, media: str) -> None:
    assert "multipart/form-data" in problem_of(
        ann.post("/api/v1/scans", data=b"{}", content_type=media), 415
    )


def test_a_body_over_the_limit_is_413(app: Flask, ann: FlaskClient) -> None:
    app.config["MAX_CONTENT_LENGTH"] = 2**20
    problem_of(
        ann.post(
            "/api/v1/scans", data=bytes(3 * 2**20), content_type="multipart/form-data; boundary=x"
        ),
        413,
    )
    assert ann.get("/api/v1/scans").json["total"] == 0


# --- poll


def test_a_queued_scan_has_no_result(app: Flask, ann: FlaskClient) -> None:
    body = ann.get(f"/api/v1/scans/{add_scan(app)}").json
    assert set(body) == {
        *("id", "status", "progress", "error", "title", "kind", "slice_count", "stat", "notes"),
        *(
            "created_at",
            "finished_at",
            "original_removed_at",
            "score_anyway_url",
            "earlier_attempts",
            "earlier_answers",
            "result",
            "study_id",
            "submitter",
        ),
    }
    assert (
        body["status"],
        body["progress"],
        body["error"],
        body["finished_at"],
        body["result"],
    ) == ("queued", 0.0, None, None, None)
    assert body["created_at"].endswith("+00:00")


def test_a_failed_scan_tells_why(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(
        app, status=JobStatus.FAILED, error="The image is empty.", finished_at=utc_now()
    )
    body = ann.get(f"/api/v1/scans/{scan_id}").json
    assert (body["status"], body["error"], body["result"]) == (
        "failed",
        "The image is empty.",
        None,
    )


def test_a_scan_that_looks_like_no_head_ct_can_be_scored_anyway_once(
    app: Flask, ann: FlaskClient
) -> None:
    refused = {
        "status": JobStatus.FAILED,
        "error": "This does not look like a head CT.",
        "not_head_ct": 0.97,
        "finished_at": utc_now(),
    }
    scan_id, other = (
        add_scan(app, **refused),
        add_scan(app, status=JobStatus.FAILED, error="The image is empty."),
    )
    url = ann.get(f"/api/v1/scans/{scan_id}").json["score_anyway_url"]
    assert url.endswith(f"/api/v1/scans/{scan_id}/score-anyway")
    problem_of(client_of(app, "eve").post(url), 404)
    answer = ann.post(url)
    assert (answer.status_code, answer.json["id"], answer.json["status"]) == (
        202,
        scan_id,
        "queued",
    )
    body = ann.get(f"/api/v1/scans/{scan_id}").json
    assert (body["status"], body["error"], body["score_anyway_url"]) == ("queued", None, None)
    problem_of(ann.post(url), 409)
    problem_of(ann.post(f"/api/v1/scans/{other}/score-anyway"), 409)


def test_a_scan_is_cancelled_tried_again_and_deleted(app: Flask, ann: FlaskClient) -> None:
    url = f"/api/v1/scans/{add_scan(app)}"
    for verb in ("cancel", "retry"):
        problem_of(client_of(app, f"eve-{verb}").post(f"{url}/{verb}"), 404)
    problem_of(client_of(app, "eve").delete(url), 404)
    problem_of(ann.post(f"{url}/retry"), 409)
    assert (ann.post(f"{url}/cancel").status_code, ann.get(url).json["status"]) == (
        200,
        "cancelled",
    )
    problem_of(ann.post(f"{url}/cancel"), 409)
    assert (ann.post(f"{url}/retry").status_code, ann.get(url).json["status"]) == (202, "queued")
    gone = ann.delete(url)
    assert (gone.status_code, gone.data) == (204, b"")
    problem_of(ann.get(url), 404)
    problem_of(ann.delete(url), 404)


def test_a_scan_whose_original_is_not_kept_tells_so_and_cannot_be_tried_again(
    app: Flask, ann: FlaskClient
) -> None:
    kept = add_scan(app)
    assert ann.get(f"/api/v1/scans/{kept}").json["original_removed_at"] is None
    scan_id = add_scan(app, status=JobStatus.FAILED, not_head_ct=0.9, original_removed_at=utc_now())
    body = ann.get(f"/api/v1/scans/{scan_id}").json
    assert body["original_removed_at"] is not None and body["score_anyway_url"] is None
    assert problem_of(ann.post(f"/api/v1/scans/{scan_id}/retry"), 409) == ORIGINAL_REMOVED
    assert problem_of(ann.post(f"/api/v1/scans/{scan_id}/score-anyway"), 409)


def test_a_heat_map_that_could_not_be_drawn_answers_with_its_sentence(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, drawing=JobStatus.FAILED, error=ORIGINAL_REMOVED)
    assert problem_of(ann.get(f"/api/v1/scans/{scan_id}/heatmap.png"), 404) == ORIGINAL_REMOVED


def test_a_verdict_is_reported_in_full(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    version_id = add_verdict(app, scan_id)
    body = ann.get(f"/api/v1/scans/{scan_id}").json
    assert (body["status"], body["progress"]) == ("done", 1.0)
    assert body["result"] == {
        "verdict": "Brain Hemorrhage Detected.",
        "positive": True,
        "uncertain": False,
        "state": "suspected",
        "probability": 0.75,
        "threshold": 0.5,
        "warnings": ["Small."],
        "model_version": {"id": version_id, "architecture": "alexnet_svm"},
        "types": {},
        "slices": [
            {"index": 0, "probability": 0.75, "types": {}, "area_mm2": None, "outline_url": None}
        ],
        "first_slices": [],
        "heatmap_slices": [],
        "heatmap_url": f"http://localhost/api/v1/scans/{scan_id}/heatmap.png",
        "volume_ml": None,
        "no_volume_because": None,
        "outline_url": None,
    }


def test_types_of_bleeding_are_reported_for_the_scan_and_for_each_slice(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    with app.app_context():
        values = {
            name: {"probability": value, "slices": [value]}
            for name, value in (("epidural", 0.5), ("subdural", 0.25))
        }
        db.session.query(Prediction).update({"types": values})
        db.session.commit()
    result = ann.get(f"/api/v1/scans/{scan_id}").json["result"]
    assert result["types"] == {"epidural": 0.5, "subdural": 0.25}
    assert [slice["types"] for slice in result["slices"]] == [{"epidural": 0.5, "subdural": 0.25}]


def test_a_heat_map_that_could_not_be_drawn_has_no_url(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, drawing=JobStatus.FAILED)
    assert ann.get(f"/api/v1/scans/{scan_id}").json["result"]["heatmap_url"] is None
    problem_of(ann.get(f"/api/v1/scans/{scan_id}/heatmap.png"), 404)


def test_polling_an_unchanged_scan_is_304_until_it_changes(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    first = ann.get(f"/api/v1/scans/{scan_id}")
    again = ann.get(f"/api/v1/scans/{scan_id}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    add_verdict(app, scan_id)
    assert (
        ann.get(
            f"/api/v1/scans/{scan_id}", headers={"If-None-Match": first.headers["ETag"]}
        ).status_code
        == 200
    )


def test_polling_is_two_statements_and_reads_no_card(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    statements: list[str] = []
    with app.app_context():
        event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    ann.get(f"/api/v1/scans/{scan_id}")
    selects = [text for text in statements if text.startswith("SELECT")]
    assert len(selects) == 2  # The token and the scan.
    assert "card" not in selects[1]


# --- list


def test_the_list_is_paged_newest_first(app: Flask, ann: FlaskClient) -> None:
    now = utc_now()
    ids = [add_scan(app, created_at=now - timedelta(minutes=age)) for age in range(5)]
    first = ann.get("/api/v1/scans?limit=2")
    assert [scan["id"] for scan in first.json["items"]] == ids[:2]
    assert first.headers["Link"] == f'<{first.json["next"]}>; rel="next"'
    add_scan(app, created_at=now + timedelta(minutes=1))  # It shifts no page.
    second = ann.get(first.json["next"]).json
    assert ([scan["id"] for scan in second["items"]], second["total"]) == (ids[2:4], 6)
    last = ann.get(second["next"])
    assert [scan["id"] for scan in last.json["items"]] == ids[4:]
    assert last.json["next"] is None and "Link" not in last.headers


def test_the_list_can_be_limited_to_a_status(app: Flask, ann: FlaskClient) -> None:
    add_scan(app)
    failed = add_scan(app, status=JobStatus.FAILED, error="No.")
    page = ann.get("/api/v1/scans?status=failed").json
    assert ([scan["id"] for scan in page["items"]], page["total"]) == ([failed], 1)


@pytest.mark.parametrize(
    "query",
    [
        "page=2",
        "limit=0",
        "limit=x",
        "limit=101",
        "cursor=made.up",
        "status=finished",
        "order=size",
        "since=yesterday",
        "study=1",
    ],
)
def test_a_nonsensical_query_is_422_and_names_the_parameter(ann: FlaskClient, query: str) -> None:
    assert problem_of(ann.get(f"/api/v1/scans?{query}"), 422).startswith(query.split("=")[0])


# --- pictures


def test_a_heat_map_is_sent_once_drawn(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, drawing=JobStatus.DONE, image_key="heatmaps/x.png")
    with app.app_context():
        storage.put("heatmaps/x.png", b"\x89PNG...")
    answer = ann.get(f"/api/v1/scans/{scan_id}/heatmap.png")
    assert (answer.status_code, answer.data, answer.content_type) == (
        200,
        b"\x89PNG...",
        "image/png",
    )
    assert "private" in answer.headers["Cache-Control"]


def test_a_request_for_a_heat_map_waits_until_it_is_drawn(
    app: Flask, ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    with app.app_context():
        storage.put("heatmaps/x.png", b"drawn")

    def draw_meanwhile(_seconds: float) -> None:
        # Another process; it could not write here if the request held a transaction.
        with app.app_context():
            db.session.query(Heatmap).update(
                {"status": JobStatus.DONE, "image_key": "heatmaps/x.png"}
            )
            db.session.commit()

    monkeypatch.setattr(time, "sleep", draw_meanwhile)
    assert ann.get(f"/api/v1/scans/{scan_id}/heatmap.png").data == b"drawn"


def test_a_heat_map_that_takes_longer_is_202_with_the_time_to_wait(
    app: Flask, ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "HEATMAP_WAIT_S", 0)
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    answer = ann.get(f"/api/v1/scans/{scan_id}/heatmap.png")
    problem_of(answer, 202)
    assert answer.headers["Retry-After"] == "1"
    assert "no-cache" in answer.headers["Cache-Control"]


def test_before_the_verdict_a_heat_map_is_not_waited_for(
    app: Flask, ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("It waited."))
    problem_of(ann.get(f"/api/v1/scans/{add_scan(app)}/heatmap.png"), 202)


def test_a_failed_scan_has_neither_picture(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app, status=JobStatus.FAILED, error="No.")
    problem_of(ann.get(f"/api/v1/scans/{scan_id}/heatmap.png"), 404)
    problem_of(ann.get(f"/api/v1/scans/{scan_id}/image.png"), 404)


def test_the_picture_is_202_until_made_and_then_sent(app: Flask, ann: FlaskClient) -> None:
    problem_of(ann.get(f"/api/v1/scans/{add_scan(app)}/image.png"), 202)
    with app.app_context():
        storage.put("images/x.png", b"made")
    assert (
        ann.get(f"/api/v1/scans/{add_scan(app, image_key='images/x.png')}/image.png").data
        == b"made"
    )


# --- errors and the document


def test_an_unknown_path_and_a_wrong_method_are_problems(ann: FlaskClient) -> None:
    problem_of(ann.get("/api/v1/nonsense"), 404)
    problem_of(ann.delete("/api/v1/scans"), 405)


def test_the_openapi_document_is_valid_and_says_what_an_upload_may_be_answered(app: Flask) -> None:
    document = app.test_client().get("/api/v1/openapi.json").json
    validate(document)
    assert document["security"] == [{"token": []}]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    submit = document["paths"]["/api/v1/scans"]["post"]
    assert (
        submit["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["file"][
            "type"
        ]
        == "array"
    )
    assert submit["security"] == [{"token": ["submit"]}]
    assert set(submit["responses"]) == {
        "202",
        "400",
        "401",
        "403",
        "409",
        "413",
        "415",
        "422",
        "429",
        "503",
        "507",
    }
    assert set(submit["responses"]["422"]["content"]) == {"application/problem+json"}
    page = document["components"]["schemas"]["ScansPage"]["properties"]
    assert set(page) == {"items", "next", "total"}


def test_which_models_were_live_at_a_time_is_reported(app: Flask, ann: FlaskClient) -> None:
    noon = utc_now().replace(microsecond=0) - timedelta(hours=5)
    with app.app_context():
        for hours, card_id in ((0, "old"), (2, "new")):
            version = ModelVersion(
                card_id=card_id, architecture="a", reads="slice", storage_prefix="x", card={}
            )
            db.session.add(version)
            promote(version, None, "A reason.").at = noon + timedelta(hours=hours)
            db.session.commit()

    def live_at(hours: float) -> Any:
        at = (noon + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer = ann.get("/api/v1/models/live", query_string={"at": at})
        assert answer.status_code == 200
        return answer.json

    assert live_at(-1)["slice"] is None and live_at(3)["series"] is None
    first = live_at(1)["slice"]
    assert (first["card_id"], first["operating_point"]) == ("old", "as trained")
    assert first["until"] == live_at(3)["slice"]["since"]
    now = ann.get("/api/v1/models/live").json
    assert (now["slice"]["card_id"], now["slice"]["until"]) == ("new", None)
    refused = ann.get("/api/v1/models/live?at=noon")
    assert refused.status_code == 422 and refused.json["detail"].startswith("at: ")


def test_how_earlier_attempts_ended_is_reported(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(
        app, status=JobStatus.FAILED, error="The file is empty.", finished_at=utc_now()
    )
    assert ann.post(f"/api/v1/scans/{scan_id}/retry").status_code == 202
    (attempt,) = ann.get(f"/api/v1/scans/{scan_id}").json["earlier_attempts"]
    assert (attempt["outcome"], attempt["started_at"]) == ("The file is empty.", None)
