"""A person's scans in the browser: submit, follow, read, look back; nobody else sees them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import delete, event, func, select

from tests.conftest import PASSWORD, make_user
from tests.webapp.test_api import make_token
from webapp.extensions import database_now, db, utc_now
from webapp.jobs import PREDICT, PREDICT_SCANS
from webapp.models import (
    IN_ITS_TURN,
    ORIGINAL_REMOVED,
    Heatmap,
    JobStatus,
    ModelVersion,
    Order,
    Prediction,
    Role,
    Scan,
    User,
    Worker,
    lead_on,
    result_of,
)
from webapp.scans import pages, submission
from webapp.scans.pictures import heatmap_key
from webapp.storage import Storage, StorageError, storage

NO_ID = "0" * 32


def png(side: int = 64) -> bytes:
    """Return a gray picture as a PNG file."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(file, "PNG")
    return file.getvalue()


def form(*contents: bytes, **fields: str) -> dict[str, Any]:
    """Return what a browser posts."""
    return {
        "file": [(io.BytesIO(content), f"{i}.png") for i, content in enumerate(contents)],
        **fields,
    }


def add_scan(app: Flask, username: str = "ann", **columns: Any) -> str:
    """Add a scan of that person; return its id."""
    with app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == username)).one()
        scan = Scan(user_id=user_id, kind="png", original_key="originals/none.png", **columns)
        db.session.add(scan)
        db.session.commit()
        return scan.id


def add_verdict(
    app: Flask, scan_id: str, drawing: JobStatus | None = JobStatus.DONE, **columns: Any
) -> str:
    """Add the verdict on a scan, with its pictures, and a heat map in that status; return the model
    version's id.
    """
    with app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        scan.status, scan.progress = JobStatus.DONE, 1.0
        scan.started_at = scan.created_at + timedelta(seconds=1)
        scan.finished_at = scan.created_at + timedelta(seconds=1.5)
        scan.image_key, scan.thumbnail_key = f"images/{scan_id}.png", f"thumbnails/{scan_id}.png"
        card = columns.pop("card", {})
        version = ModelVersion(
            card_id="0123456789ab",
            architecture="alexnet_svm",
            reads="slice",
            storage_prefix="models/none",
            card=card,
        )
        values = {
            "probability": 0.9731,
            "threshold": 0.412,
            "positive": True,
            "uncertain": False,
            "warnings": [],
        } | columns
        scan.prediction = Prediction(model_version=version, slices=[0.9731], seconds=0.12, **values)
        scan.verdict_state, scan.risk = scan.prediction.state, values["probability"]
        for key in (scan.image_key, scan.thumbnail_key, f"heatmaps/{scan_id}.png"):
            storage.put(key, png())
        if drawing:
            drawn = f"heatmaps/{scan_id}.png" if drawing == JobStatus.DONE else None
            scan.prediction.heatmap = Heatmap(
                status=drawing,
                image_key=drawn,
                error="Its drawing stopped." if drawing == "failed" else None,
            )
        db.session.add(version)
        db.session.commit()
        return version.id


def a_worker(app: Flask) -> None:
    """Let a predict worker have reported itself just now."""
    with app.app_context():
        now = db.session.execute(select(database_now())).scalar_one()
        db.session.add(Worker(id="w", queue=PREDICT, host="h", pid=1, started_at=now, seen_at=now))
        db.session.commit()


def seen(page: str) -> str:
    """Return the state that a page tells in its next question."""
    match = re.search(r'name="seen" value="([0-9a-f]+)"', page)
    assert match
    return match[1]


def page_of(browser: FlaskClient, scan_id: str) -> str:
    """Return the page of a scan."""
    return browser.get(f"/scans/{scan_id}").text


@pytest.fixture
def ann(logged_in: Callable[..., FlaskClient]) -> FlaskClient:
    """Ann's browser."""
    return logged_in("ann")


# --- the start


def test_strangers_see_what_this_is_and_users_their_scans(app: Flask, ann: FlaskClient) -> None:
    page = app.test_client().get("/")
    assert page.status_code == 200
    assert "Research use only, never a diagnosis" in page.text
    [picture] = re.findall('/static/[^"]+[.]jpg', page.text)
    with app.test_client().get(picture) as answer:
        assert answer.status_code == 200 and len(answer.data) < 200_000
        assert answer.headers["ETag"], "browsers keep it, and ask whether it changed"
    assert ann.get("/").location == "/scans"


def test_no_page_has_scripts_or_styles_inside(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    stranger = app.test_client()
    pages = [stranger.get(path).text for path in ("/", "/login", "/signup", "/nowhere")]
    pages += [ann.get(path).text for path in ("/scans", "/account", f"/scans/{scan_id}")]
    for page in pages:
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page)
        assert "Research use only, never a diagnosis" in page


def test_admins_find_their_pages_and_others_do_not(
    logged_in: Callable[..., FlaskClient], ann: FlaskClient
) -> None:
    assert "/admin" not in ann.get("/scans").text
    assert 'href="/admin/datasets"' in logged_in("root", Role.ADMIN).get("/scans").text


# --- submit


def test_a_slice_is_submitted_and_its_page_opens(app: Flask, ann: FlaskClient) -> None:
    answer = ann.post("/scans", data=form(png(), title=" Monday "))
    assert answer.status_code == 302
    with app.app_context():
        scan = db.session.scalars(select(Scan)).one()
        assert (answer.location, scan.title, scan.kind) == (f"/scans/{scan.id}", "Monday", "png")
        assert storage.get(scan.original_key) == png()
    page = ann.get(answer.location).text
    assert "Waiting for a worker…" in page
    assert "Monday" in page


def test_several_slices_become_several_scans(app: Flask, ann: FlaskClient) -> None:
    answer = ann.post("/scans", data=form(png(64), png(65), png(66)))
    assert answer.location == "/scans"
    assert "3 scans were submitted." in ann.get("/scans").text
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(Scan)) == 3


def test_a_queue_that_cannot_be_reached_is_reported_and_the_scan_is_kept(ann: FlaskClient) -> None:
    answer = ann.post("/scans", data=form(png()))
    assert (
        "The queue is currently unavailable. Your scan has been saved"
        in ann.get(answer.location).text
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "Please choose a PNG, JPEG, DICOM, NIfTI or ZIP file."),
        (form(b""), "The file is empty."),
        (form(b"text"), "The file is not a PNG, JPEG, DICOM or NIfTI image."),
        (form(png(), title="x" * 81), "Please use at most 80 characters."),
        (form(png(), title="a\x00b"), "Please use printable characters only."),
    ],
    ids=["nothing", "empty", "text", "long title", "NUL"],
)
def test_a_refusal_is_a_sentence_on_the_form(
    app: Flask, ann: FlaskClient, data: dict[str, Any], sentence: str
) -> None:
    answer = ann.post("/scans", data=data, content_type="multipart/form-data")
    assert answer.status_code == 400
    assert sentence in answer.text
    assert answer.text.count("<form") >= 2
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(Scan)) == 0


@pytest.mark.parametrize(
    "path",
    [
        "/scans",
        f"/scans/{NO_ID}",
        f"/scans/{NO_ID}/progress",
        f"/scans/{NO_ID}/image.png",
        "/account",
    ],
)
def test_strangers_are_asked_to_log_in(app: Flask, path: str) -> None:
    answer = app.test_client().get(path)
    assert answer.status_code == 302
    assert answer.location.startswith("/login?next=")
    assert app.test_client().post("/scans", data=form(png())).location == "/login"


# --- phantoms


def test_a_phantom_can_be_tried(
    app: Flask, ann: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_phantom_folder", lambda: tmp_path)
    (tmp_path / "phantom-1.png").write_bytes(png())
    (tmp_path / "index.json").write_text(
        json.dumps([{"file": "phantom-1.png", "title": "A <small> bleeding"}])
    )
    assert "A &lt;small&gt; bleeding" in ann.get("/scans/new").text
    answer = ann.post("/scans/phantom", data={"name": "phantom-1.png"})
    assert answer.status_code == 302
    with app.app_context():
        assert db.session.scalars(select(Scan)).one().title == "A <small> bleeding"
    assert "<summary>Try a phantom</summary>" not in ann.get("/scans/new").text
    add_scan(app, title="a patient's")
    assert "<summary>Try a phantom</summary>" in ann.get("/scans/new").text
    for name in ("index.json", "../index.json", "", "nothing", "\x00"):
        assert ann.post("/scans/phantom", data={"name": name}).status_code == 404


def test_without_phantoms_none_are_offered(
    ann: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_phantom_folder", lambda: tmp_path)
    page = ann.get("/scans/new")
    assert page.status_code == 200
    assert "phantom" not in page.text


def test_every_phantom_that_is_shipped_is_accepted(app: Flask, ann: FlaskClient) -> None:
    with app.app_context():
        shipped = submission.phantoms()
    for phantom in shipped:
        assert ann.post("/scans/phantom", data={"name": phantom["file"]}).status_code == 302


# --- follow


def test_a_waiting_scan_is_polled_and_the_page_works_without_scripts(
    app: Flask, ann: FlaskClient
) -> None:
    a_worker(app)
    scan_id = add_scan(app)
    page = ann.get(f"/scans/{scan_id}").text
    assert f'hx-get="/scans/{scan_id}/progress"' in page
    assert '<noscript><meta http-equiv="refresh"' in page
    assert 'aria-live="polite"' in page
    assert "No predict worker is running" not in page
    part = ann.get(f"/scans/{scan_id}/progress")
    assert part.status_code == 200
    assert "<html" not in part.text


def test_a_scan_that_nobody_can_read_now_says_so(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    assert (
        "No worker is currently running. Your scan has been saved"
        in ann.get(f"/scans/{scan_id}").text
    )


def test_an_unchanged_part_is_not_sent_again(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    state = seen(ann.get(f"/scans/{scan_id}").text)
    path = f"/scans/{scan_id}/progress?seen={state}"
    assert ann.get(path).status_code == 204
    with app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        scan.status, scan.progress, scan.stage = JobStatus.RUNNING, 0.4, "Reading the slice"
        db.session.commit()
    part = ann.get(path)
    assert part.status_code == 200
    assert "Reading the slice" in part.text
    assert 'value="0.4"' in part.text


def test_polling_goes_on_until_the_heat_map_is_drawn(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, drawing=JobStatus.RUNNING)
    part = ann.get(f"/scans/{scan_id}/progress")
    assert part.status_code == 200
    assert "Brain Hemorrhage Detected." in part.text
    assert "The heat map is being generated…" in part.text
    assert "hx-get" in ann.get(f"/scans/{scan_id}").text
    with app.app_context():
        heatmap = db.session.scalars(select(Heatmap)).one()
        heatmap.status, heatmap.image_key = JobStatus.DONE, f"heatmaps/{scan_id}.png"
        db.session.commit()
    part = ann.get(f"/scans/{scan_id}/progress?seen={seen(part.text)}")
    assert part.status_code == 286
    assert part.text.count("<title>") == 1  # The tab says that the result is there.
    assert 'id="heat"' in part.text
    assert "hx-get" not in ann.get(f"/scans/{scan_id}").text


@pytest.mark.parametrize("drawing", [JobStatus.FAILED, None])
def test_polling_stops_without_a_heat_map_too(
    app: Flask, ann: FlaskClient, drawing: JobStatus | None
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, drawing=drawing)
    part = ann.get(f"/scans/{scan_id}/progress")
    assert part.status_code == 286
    assert ("Its drawing stopped." in part.text) == (drawing is not None)
    assert 'id="heat"' not in part.text


# --- read


def test_a_verdict_is_reported_with_all_that_belongs_to_it(app: Flask, ann: FlaskClient) -> None:
    then = utc_now().replace(2026, 3, 4, 5, 6, 7)
    scan_id = add_scan(app, title="Monday", created_at=then, queued_at=then)
    add_verdict(app, scan_id, warnings=["The image was in color and was converted to gray."])
    page = ann.get(f"/scans/{scan_id}").text
    for text in (
        "<h1>Brain Hemorrhage Detected.</h1>",
        "97.3%",
        "threshold 41.2%",
        "The image was in color and was converted to gray.",
        "0123456789ab",
        ">AlexNet SVM · v1<",
        "2026-03-04 05:06:07 UTC",
        "2026-03-04 05:06:08 UTC",
        "1.5 s (model:",
        "0.12 s",
        f'src="/scans/{scan_id}/image.png"',
        f'src="/scans/{scan_id}/heatmap.png"',
        'data-opacity-of="heat"',
        "Research use only, never a diagnosis.",
    ):
        assert text in page
    assert "Inconclusive" not in page and 'class="verdict suspected"' in page
    assert "http-equiv" not in page
    assert "/admin/" not in page


def test_no_hemorrhage_is_reported(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, positive=False, probability=0.02)
    page = ann.get(f"/scans/{scan_id}").text
    assert "<h1>No Brain Hemorrhage Detected.</h1>" in page
    assert 'class="verdict not-found"' in page and "Inconclusive" not in page


def test_heat_is_off_until_somebody_asks_for_it(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    toggle = re.search(r'<input type="checkbox" data-part="heat-on"[^>]*>', page_of(ann, scan_id))
    assert toggle and "checked" not in toggle[0] and "disabled" not in toggle[0]
    with app.app_context():
        db.session.query(Heatmap).update({"status": JobStatus.RUNNING, "image_key": None})
        db.session.commit()
    toggle = re.search(r'<input type="checkbox" data-part="heat-on"[^>]*>', page_of(ann, scan_id))
    assert toggle and "disabled" in toggle[0]


def test_the_picture_comes_before_everything_but_the_verdict(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app, notes=["One file was left out."])
    add_verdict(app, scan_id, warnings=["The picture has colors."], types=TYPES)
    page = page_of(ann, scan_id)
    places = [
        page.index(text)
        for text in (
            "<h1>Brain Hemorrhage Detected.</h1>",
            f'src="/scans/{scan_id}/image.png"',
            "The picture has colors.",
            "Probability and threshold",
            "Model: ",
            "Possible types of hemorrhage",
            "Notes on the images (1)",
            "One file was left out.",
            "About this scan",
            "Analyze again with the live model",
            "Delete this scan",
        )
    ]
    assert places == sorted(places)


def test_links_lead_to_the_next_and_the_previous_scan_of_the_list(
    app: Flask, ann: FlaskClient
) -> None:
    make_user(app, "eve")
    now = utc_now()
    same = [add_scan(app, created_at=now - timedelta(minutes=1)) for _ in range(2)]
    newest, oldest = add_scan(app, created_at=now), add_scan(app, created_at=now.replace(2025))
    add_scan(app, "eve", created_at=now - timedelta(seconds=30))
    with app.app_context():
        of_same = select(Scan.id).where(Scan.id.in_(same)).order_by(*Order.NEWEST.columns)
        listed = [newest, *db.session.scalars(of_same), oldest]
    shown = re.findall(r'href="/scans/([0-9a-f]{32})"', ann.get("/scans").text)
    assert list(dict.fromkeys(shown)) == listed
    for place, scan_id in enumerate(listed):
        page = page_of(ann, scan_id)
        before = re.findall(r'rel="prev" href="/scans/([0-9a-f]{32})"', page)
        after = re.findall(r'rel="next" href="/scans/([0-9a-f]{32})"', page)
        assert (before, after) == (listed[max(place - 1, 0) : place], listed[place + 1 : place + 2])


@pytest.mark.parametrize("positive", [True, False])
def test_an_inconclusive_scan_has_no_headline_of_either_side(
    app: Flask, ann: FlaskClient, positive: bool
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, positive=positive, uncertain=True, probability=0.35)
    page, worklist = ann.get(f"/scans/{scan_id}").text, ann.get("/scans").text
    assert "<h1>Inconclusive. Please have this scan read.</h1>" in page
    assert "<title>Inconclusive" in page and 'class="verdict inconclusive"' in page
    assert page.count("Brain Hemorrhage Detected.") == 1, "the sentence of the paper stays"
    side = "above" if positive else "below"
    assert page.count(f"not far enough {side} the") == 1, "and is not relied on"
    assert "Brain Hemorrhage Detected." not in worklist and "badge inconclusive" in worklist


TYPES = {
    "epidural": {"probability": 0.213, "slices": [0.213]},
    "subdural": {"probability": 0.642, "slices": [0.642]},
    "subarachnoid": {"probability": 0.05, "slices": [0.05]},
}
JUDGED = {
    "epidural": {
        "given": True,
        "patients": 12,
        "patient": {"auroc": {"value": 0.736, "low": 0.584, "high": 0.856, "n": 49}},
    },
    "subdural": {"given": True, "patients": 4, "scores": []},
    "subarachnoid": {
        "given": True,
        "patients": 20,
        "patient": {
            "auroc": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 49},
            "auroc_among_bleeding": {"value": 0.6, "low": None, "high": None, "n": 24},
        },
    },
    "intraparenchymal": {"given": False, "patients": 2, "scores": []},
    "intraventricular": {"given": False, "patients": 1, "scores": []},
}


def test_types_of_bleeding_stand_below_a_positive_verdict_with_how_far_to_trust_them(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, types=TYPES, card={"types": JUDGED})
    page = ann.get(f"/scans/{scan_id}").text
    assert (
        0
        < page.index("Brain Hemorrhage Detected.</h1>")
        < page.index("Possible types of hemorrhage")
        < page.index("About this scan")
    )
    places = [
        page.index(text) for text in ("Subdural", "64%", "Epidural", "21%", "Subarachnoid", "5%")
    ]
    assert places == sorted(places), "the most probable type comes first"
    assert "Only 4 patients with this type" in page
    assert "AUROC 0.74 (0.58 to 0.86) among all test patients, 12 of whom have this type." in page
    assert "20 of whom have this type; 0.60 among patients with hemorrhage." in page
    assert "does not report intraparenchymal or intraventricular hemorrhage" in page
    assert "most in slice" not in page, "there is only one"
    assert "Possible types of hemorrhage" in ann.get(f"/scans/{scan_id}/progress").text


def test_the_slice_that_shows_a_type_most_is_named_and_a_card_without_types_says_nobody_tested(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, types={"epidural": {"probability": 0.4, "slices": [0.1, 0.4, 0.2]}})
    page = ann.get(f"/scans/{scan_id}").text
    assert (
        'highest in <a href="#viewer" data-go-to="1">slice 2</a>' in page
        and "This type has not been evaluated." in page
        and "does not tell" not in page
    )


@pytest.mark.parametrize(
    ("testable", "sentence"),
    [
        (("epidural",), "does not report the type because it could not reliably tell epidural"),
        (
            ("epidural", "subdural", "subarachnoid"),
            "could not reliably tell epidural, subdural, and subarachnoid hemorrhage apart on"
            " test data.",
        ),
    ],
)
def test_a_model_that_reports_no_type_says_so_in_a_sentence(
    app: Flask, ann: FlaskClient, testable: tuple[str, ...], sentence: str
) -> None:
    scan_id = add_scan(app)
    card = {"types": {name: {"given": False, "patients": 3} for name in testable}}
    add_verdict(app, scan_id, card=card)
    page = page_of(ann, scan_id)
    assert sentence in page and "Possible types" not in page


def test_types_are_shown_where_the_verdict_is_uncertain_and_not_where_it_is_a_plain_no(
    app: Flask, ann: FlaskClient
) -> None:
    pages = []
    for uncertain in (True, False):
        scan_id = add_scan(app)
        add_verdict(app, scan_id, types=TYPES, positive=False, uncertain=uncertain, probability=0.3)
        pages.append(ann.get(f"/scans/{scan_id}").text)
    assert ["Possible types of hemorrhage" in page for page in pages] == [True, False]


def test_admins_get_a_link_to_the_model(app: Flask, logged_in: Callable[..., FlaskClient]) -> None:
    root = logged_in("root", Role.ADMIN)
    scan_id = add_scan(app, "root")
    version_id = add_verdict(app, scan_id)
    assert f'href="/admin/models/{version_id}"' in root.get(f"/scans/{scan_id}").text


def test_a_failed_scan_tells_its_sentence(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(
        app, status=JobStatus.FAILED, error="No model is live. Ask an administrator to promote one."
    )
    page = ann.get(f"/scans/{scan_id}").text
    assert "No model is live. Ask an administrator to promote one." in page
    assert "hx-get" not in page
    assert ann.get(f"/scans/{scan_id}/progress").status_code == 286
    assert "No model is live" in ann.get("/scans").text


def test_a_scan_that_looks_like_no_head_ct_can_be_scored_anyway_once(
    any_database_app: Flask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_user(any_database_app, "ann")
    browser = any_database_app.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})
    nudged: list[str] = []
    monkeypatch.setattr(pages, "nudge", lambda task: nudged.append(task) or True)
    scan_id = add_scan(
        any_database_app,
        status=JobStatus.FAILED,
        error="This does not look like a head CT.",
        not_head_ct=0.97,
    )
    page = browser.get(f"/scans/{scan_id}").text
    assert (
        "This scan was not analyzed." in page
        and "This does not look like a head CT." in page
        and "Analyze anyway" in page
    )

    for _ in range(2):
        answer = browser.post(f"/scans/{scan_id}/score-anyway", follow_redirects=True)
        assert answer.status_code == 200
    assert (
        "This scan was not rejected, so it does not need an override." in answer.text
        and "Analyze anyway" not in answer.text
    )
    assert nudged == [PREDICT_SCANS]
    with any_database_app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        assert (scan.status, scan.error, scan.finished_at) == (
            "queued",
            None,
            None,
        ) and scan.forced_at is not None


@pytest.mark.parametrize(
    "columns",
    [
        {"status": JobStatus.QUEUED},
        {"status": JobStatus.FAILED, "error": "The image is damaged."},
    ],
)
def test_nothing_else_can_be_scored_anyway(
    app: Flask, ann: FlaskClient, columns: dict[str, Any]
) -> None:
    scan_id = add_scan(app, **columns)
    assert "Analyze anyway" not in ann.get(f"/scans/{scan_id}").text
    assert (
        "does not need an override"
        in ann.post(f"/scans/{scan_id}/score-anyway", follow_redirects=True).text
    )
    with app.app_context():
        assert db.session.get_one(Scan, scan_id).forced_at is None


def test_nobody_else_can_have_a_scan_scored_anyway(
    app: Flask, ann: FlaskClient, logged_in: Callable[..., FlaskClient]
) -> None:
    scan_id = add_scan(
        app, status=JobStatus.FAILED, error="This does not look like a head CT.", not_head_ct=0.97
    )
    assert logged_in("eve").post(f"/scans/{scan_id}/score-anyway").status_code == 404
    assert app.test_client().post(f"/scans/{scan_id}/score-anyway").status_code in (302, 401)
    with app.app_context():
        assert db.session.get_one(Scan, scan_id).status == JobStatus.FAILED


def test_a_cancelled_scan_says_so(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app, status=JobStatus.CANCELLED)
    assert "This scan was canceled." in ann.get(f"/scans/{scan_id}").text


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
def test_an_open_scan_is_cancelled_and_can_be_tried_again(
    any_database_app: Flask, monkeypatch: pytest.MonkeyPatch, status: JobStatus
) -> None:
    make_user(any_database_app, "ann")
    browser = any_database_app.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})
    nudged: list[str] = []
    monkeypatch.setattr(pages, "nudge", lambda task: nudged.append(task) or True)
    scan_id = add_scan(
        any_database_app,
        status=status,
        attempts=2,
        counted_deaths=2,
        lease_owner="worker",
        stage="Reading",
    )
    assert "Cancel</button>" in browser.get(f"/scans/{scan_id}").text
    assert (
        "This scan was canceled."
        in browser.post(f"/scans/{scan_id}/cancel", follow_redirects=True).text
    )
    assert (
        "has already finished"
        in browser.post(f"/scans/{scan_id}/cancel", follow_redirects=True).text
    )
    with any_database_app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        assert (scan.status, scan.lease_owner, scan.stage) == (
            "cancelled",
            None,
            None,
        ) and scan.finished_at is not None
    for _ in range(2):
        answer = browser.post(f"/scans/{scan_id}/retry", follow_redirects=True)
    assert "Only failed or canceled scans" in answer.text and nudged == [PREDICT_SCANS]
    with any_database_app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        assert (scan.status, scan.attempts, scan.counted_deaths, scan.finished_at) == (
            "queued",
            2,
            0,
            None,
        )


@pytest.mark.parametrize(("waiting", "urgent"), [(0, True), (1, False)])
@pytest.mark.parametrize("verb", ["retry", "score-anyway"])
def test_an_urgent_scan_that_is_asked_for_again_is_urgent_only_if_few_are(
    app: Flask, ann: FlaskClient, verb: str, waiting: int, urgent: bool
) -> None:
    app.config["MAX_STAT"] = 1
    scan_id = add_scan(
        app, status=JobStatus.FAILED, not_head_ct=0.9, stat=True, notes=["One file is left out."]
    )
    for _ in range(waiting):
        add_scan(app, stat=True)
    ann.post(f"/scans/{scan_id}/{verb}")
    with app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        assert (scan.status, scan.stat) == (JobStatus.QUEUED, urgent)
        assert scan.notes == ["One file is left out.", *([] if urgent else [IN_ITS_TURN])]


def test_a_deleted_scan_leaves_no_row_and_no_byte(any_database_app: Flask, tmp_path: Path) -> None:
    make_user(any_database_app, "ann")
    browser = any_database_app.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})
    submitted = png(65)
    scan_id = browser.post("/scans", data=form(submitted)).location.rsplit("/", 1)[-1]
    add_verdict(any_database_app, scan_id)
    with any_database_app.app_context():
        heatmap = db.session.scalars(select(Heatmap)).one()
        for kind, name in (("images", scan_id), ("thumbnails", scan_id), ("heatmaps", heatmap.id)):
            storage.put(f"{kind}/{name}.png", submitted)
    assert len([path for path in (tmp_path / "files").rglob("*") if path.is_file()]) >= 4

    answer = browser.post(f"/scans/{scan_id}/delete", follow_redirects=True)
    assert (
        "have been deleted" in answer.text and browser.get(f"/scans/{scan_id}").status_code == 404
    )
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    with any_database_app.app_context():
        assert [
            db.session.scalar(select(func.count()).select_from(table))
            for table in (Scan, Prediction, Heatmap)
        ] == [0, 0, 0]


def test_files_that_a_deletion_could_not_remove_are_reported(
    app: Flask, ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_id = add_scan(app)

    def away(self: Storage, key: str) -> None:
        raise StorageError("A stored file cannot be removed.")

    monkeypatch.setattr(Storage, "delete", away)
    assert (
        "could not be removed yet"
        in ann.post(f"/scans/{scan_id}/delete", follow_redirects=True).text
    )
    assert ann.get(f"/scans/{scan_id}").status_code == 404


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_scan_whose_original_is_not_kept_says_so_and_cannot_be_tried_again(
    app: Flask, ann: FlaskClient, status: JobStatus
) -> None:
    scan_id = add_scan(app, status=status, not_head_ct=0.9, original_removed_at=utc_now())
    page = ann.get(f"/scans/{scan_id}").text
    assert "<dd>deleted <time" in page
    assert "/retry" not in page and "/score-anyway" not in page
    for what, sentence in (
        ("retry", ORIGINAL_REMOVED),
        ("score-anyway", "does not need an override"),
    ):
        assert sentence in ann.post(f"/scans/{scan_id}/{what}", follow_redirects=True).text
    with app.app_context():
        assert db.session.get_one(Scan, scan_id).status == status


@pytest.mark.parametrize("what", ["cancel", "retry", "delete"])
def test_nobody_else_can_end_retry_or_delete_a_scan(
    app: Flask, ann: FlaskClient, logged_in: Callable[..., FlaskClient], what: str
) -> None:
    scan_id = add_scan(app, status=JobStatus.FAILED if what == "retry" else JobStatus.QUEUED)
    assert logged_in("eve").post(f"/scans/{scan_id}/{what}").status_code == 404
    assert app.test_client().post(f"/scans/{scan_id}/{what}").status_code in (302, 401)
    with app.app_context():
        assert db.session.get_one(Scan, scan_id).status == (
            JobStatus.FAILED if what == "retry" else JobStatus.QUEUED
        )


@pytest.mark.parametrize("name", ["image", "thumbnail", "heatmap"])
def test_pictures_are_sent_privately_and_once(app: Flask, ann: FlaskClient, name: str) -> None:
    scan_id = add_scan(app)
    path = f"/scans/{scan_id}/{name}.png"
    assert ann.get(path).status_code == 404
    add_verdict(app, scan_id)
    answer = ann.get(path)
    assert answer.status_code == 200
    assert answer.mimetype == "image/png"
    assert answer.data == png()
    assert "private" in answer.headers["Cache-Control"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    again = ann.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    assert again.data == b""


# --- whose


def test_a_link_to_a_scan_that_was_replaced_leads_to_the_newest_one_in_its_place(
    any_database_app: Flask,
) -> None:
    app, gone = any_database_app, NO_ID
    for name in ("ann", "bob"):
        make_user(app, name)
    with app.app_context():
        owner = db.session.scalars(select(User.id).where(User.username == "ann")).one()
        for number in (1, 2, 3):
            db.session.add(Scan(id=f"{number}" * 32, user_id=owner, kind="png", original_key="x"))
        db.session.flush()
        lead_on([gone, "b" * 32], "2" * 32)
        lead_on(["2" * 32, "b" * 32], "3" * 32)
        db.session.execute(delete(Scan).where(Scan.id == "2" * 32))
        db.session.commit()
    for name, status in (("ann", 302), ("bob", 404)):
        client = app.test_client()
        client.post("/login", data={"username": name, "password": PASSWORD})
        answer = client.get(f"/scans/{gone}")
        assert answer.status_code == status
        assert status == 404 or answer.location == f"/scans/{'3' * 32}"
        asked = client.get(f"/scans/{gone}/progress?order=risk")  # by a page that is still open
        onward = f"/scans/{gone}?order=risk" if name == "ann" else None
        assert asked.headers.get("HX-Redirect") == onward
        assert client.get(f"/scans/{'c' * 32}").status_code == 404
        with app.app_context():
            user_id = db.session.scalars(select(User.id).where(User.username == name)).one()
        bearer = {"Authorization": f"Bearer {make_token(app, user_id)}"}
        answer = app.test_client().get(f"/api/v1/scans/{gone}", headers=bearer)
        assert answer.status_code == (200 if name == "ann" else 404)
        assert status == 404 or answer.get_json()["id"] == "3" * 32


@pytest.mark.parametrize("path", ["", "/progress", "/image.png", "/thumbnail.png", "/heatmap.png"])
def test_another_users_scan_is_404(
    app: Flask, ann: FlaskClient, logged_in: Callable[..., FlaskClient], path: str, tmp_path: Path
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    assert ann.get(f"/scans/{scan_id}{path}").status_code in (200, 286)
    for other in (logged_in("bob"), logged_in("root", Role.ADMIN)):
        answers = [other.get(f"/scans/{id}{path}") for id in (scan_id, NO_ID)]
        assert [answer.status_code for answer in answers] == [404, 404]
        # The token and the time of the page are its own.
        varying = re.compile('(name="csrf_token" value|data-after)="[^"]+"')
        assert len({varying.sub("", answer.text) for answer in answers}) == 1
        assert scan_id not in other.get("/scans").text


@pytest.mark.parametrize("scan_id", ["%00", "nonsense", "x" * 1000, "0" * 31 + "%00"])
def test_what_is_no_id_is_404(any_database_app: Flask, scan_id: str) -> None:
    make_user(any_database_app, "ann")
    client = any_database_app.test_client()
    client.post("/login", data={"username": "ann", "password": "a long enough password"})
    assert client.get(f"/scans/{scan_id}").status_code == 404


# --- the worklist


def test_the_worklist_has_pages_of_fifty_newest_first(app: Flask, ann: FlaskClient) -> None:
    start = utc_now()
    for i in range(51):
        add_scan(app, title=f"scan-{i:02}", created_at=start + timedelta(seconds=i))
    first, second = ann.get("/scans").text, ann.get("/scans?page=2").text
    assert re.findall(r">(scan-\d\d)<", first) == [f"scan-{i:02}" for i in range(50, 0, -1)]
    assert re.findall(r">(scan-\d\d)<", second) == ["scan-00"]
    assert "Page 1 of 2" in first
    assert 'href="/scans?page=2"' in first
    assert "51 scans" in first


@pytest.mark.parametrize("page", ["0", "-1", "x", "", "99", "9" * 30, "%00", "1.5", "٣"])
def test_a_page_that_is_not_there_is_the_nearest_one(any_database_app: Flask, page: str) -> None:
    make_user(any_database_app, "ann")
    client = any_database_app.test_client()
    client.post("/login", data={"username": "ann", "password": "a long enough password"})
    assert client.get(f"/scans?page={page}").status_code == 200


def test_the_worklist_shows_thumbnails_and_verdicts_in_few_questions(
    app: Flask, ann: FlaskClient
) -> None:
    ids = [add_scan(app) for _ in range(5)]
    for scan_id in ids:
        add_verdict(app, scan_id)
    statements: list[str] = []
    with app.app_context():
        event.listen(
            db.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
        )
    page = ann.get("/scans").text
    assert page.count('<span class="badge suspected">Suspected</span>') == 5
    assert page.count("97.3%") == 5
    for scan_id in ids:
        assert f'src="/scans/{scan_id}/thumbnail.png"' in page
    assert sum(statement.startswith("SELECT") for statement in statements) <= 9


# --- how the verdict came about, and what was answered before


def test_the_duration_counts_from_the_request_for_the_newest_analysis(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    with app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        scan.queued_at = scan.created_at + timedelta(hours=2)  # It was analyzed again.
        scan.finished_at = scan.queued_at + timedelta(seconds=4)
        db.session.commit()
    assert "<dt>Duration</dt><dd>4.0 s" in page_of(ann, scan_id)


def test_doubts_about_the_answer_are_amber_and_notes_on_images_one_line(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = add_scan(app, notes=["One file was left out."])
    tilt, doubt = "The gantry was tilted by 18.5°.", "No head was found in the image."
    add_verdict(app, scan_id, warnings=[tilt, doubt], doubts=[doubt])
    page = page_of(ann, scan_id)
    assert re.findall(r'<p class="message warning">([^<]*)</p>', page) == [doubt]
    assert '<a href="#doubts">Read the warning</a>' in page  # In the bar with the result.
    assert "Notes on the images (2)" in page and f"<li>{tilt}</li>" in page


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.45, 0.97, 1.0])
def test_the_scale_has_threshold_band_and_mark_and_a_sentence_with_figures(
    app: Flask, ann: FlaskClient, probability: float
) -> None:
    scan_id = add_scan(app)
    metrics = {"sensitivity": {"value": 0.8}, "specificity": {"value": 0.9}}
    card = {"threshold": 0.412, "uncertain_low": 0.35, "uncertain_high": 0.5, "metrics": metrics}
    add_verdict(app, scan_id, probability=probability, card=card)
    page = page_of(ann, scan_id)
    place = re.search(r'<path class="mark" d="M([0-9.]+),', page)
    band = re.search(r'<rect class="band" x="([0-9.]+)" y="[0-9.]+" width="([0-9.]+)"', page)
    threshold = re.search(r'<path class="threshold" d="M([0-9.]+),', page)
    assert place and band and threshold
    assert float(place[1]) == pytest.approx(4 + 312 * probability, abs=0.06)
    assert float(threshold[1]) == pytest.approx(4 + 312 * 0.412, abs=0.06)
    assert [float(band[1]), float(band[2])] == pytest.approx([4 + 312 * 0.35, 312 * 0.15], abs=0.1)
    assert "In tests with this threshold: of 100 slices, 10 of them with hemorrhage" in page
    assert "finds 8, misses 2, flags 9 of the 90 without." in page


def test_a_threshold_of_ones_own_means_what_was_measured_at_it(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = add_scan(app)
    points = {
        name: {
            "threshold": threshold,
            "sensitivity": {"value": state, "n": 50},
            "specificity": {"value": 1 - state / 2, "n": 50},
        }
        for name, threshold, state in (
            ("sensitive", 0.1, 1.0),
            ("balanced", 0.5, 0.8),
            ("specific", 0.9, 0.4),
        )
    }
    curve = [{"threshold": 0.3, "sensitivity": 0.7, "specificity": 0.9}]
    card = {"threshold": 0.5, "metrics": {}, "points": {"slice": points}}
    add_verdict(app, scan_id, threshold=0.3, card={**card, "curves": {"slice": curve}})
    page = page_of(ann, scan_id)
    assert "finds 7, misses 3, flags 9 of the 90 without." in page
    assert "between sensitive and balanced" not in page.lower()


def test_a_card_without_figures_has_a_scale_without_a_band(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    page = page_of(ann, scan_id)
    assert 'class="threshold"' in page and 'class="band"' not in page and "In tests" not in page


def test_a_scan_is_scored_again_and_keeps_its_earlier_answer(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    with app.app_context():
        drawn = db.session.scalars(select(Heatmap)).one()
        drawn.slices = [0]
        storage.put(heatmap_key(drawn.id, 0), b"a picture")
        db.session.commit()
    assert ann.post(f"/scans/{scan_id}/score-again").location == f"/scans/{scan_id}"
    with app.app_context():
        assert list(storage.keys("heatmaps")) == []
        scan = db.session.get_one(Scan, scan_id)
        assert (scan.status, scan.verdict_state, scan.risk) == (JobStatus.QUEUED, None, 0.0)
        assert scan.prediction is None and scan.history == []
        assert db.session.query(Heatmap).count() == 0
    page = ann.get(f"/scans/{scan_id}").text
    match = re.search(r'<ul class="answers">.*?</ul>', page, re.DOTALL)
    assert match
    for text in ("Suspected", "97.3%", "threshold 41.2%", "AlexNet SVM · v1", "0123456789ab"):
        assert text in match[0]
    # While it waits there is nothing to score again.
    assert "/score-again" not in page
    answer = ann.post(f"/scans/{scan_id}/score-again", follow_redirects=True)
    assert "Only scans that have a result can be analyzed again." in answer.text
    add_verdict(app, scan_id, positive=False, probability=0.1)
    page = ann.get(f"/scans/{scan_id}").text
    assert "No Brain Hemorrhage Detected." in page and page.count('<ul class="answers">') == 1


def test_without_its_original_a_scan_is_not_scored_again(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app, original_removed_at=utc_now())
    add_verdict(app, scan_id)
    assert "/score-again" not in ann.get(f"/scans/{scan_id}").text
    answer = ann.post(f"/scans/{scan_id}/score-again", follow_redirects=True)
    assert ORIGINAL_REMOVED in answer.text
    with app.app_context():
        assert db.session.get_one(Scan, scan_id).prediction is not None


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("uncertain", [True, False])
def test_worklist_page_and_api_tell_the_same_state(
    app: Flask, ann: FlaskClient, positive: bool, uncertain: bool
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id, positive=positive, uncertain=uncertain)
    with app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        result = result_of(scan)
        assert result is not None and result["state"] == scan.verdict_state
        state = result["state"]
    name = state.replace(" ", "-")
    assert f'<span class="badge {name}">' in ann.get("/scans").text
    assert f'class="verdict {name}"' in ann.get(f"/scans/{scan_id}").text


def test_an_image_that_was_made_again_is_not_taken_from_the_browsers_cache(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    tag = ann.get(f"/scans/{scan_id}/image.png").headers["ETag"]
    again = {"If-None-Match": tag}
    assert ann.get(f"/scans/{scan_id}/image.png", headers=again).status_code == 304
    with app.app_context():
        db.session.get_one(Scan, scan_id).finished_at = utc_now()
        db.session.commit()
    assert ann.get(f"/scans/{scan_id}/image.png", headers=again).status_code == 200


def test_the_bar_gets_an_outcome_for_each_file(app: Flask, ann: FlaskClient) -> None:
    sent = [(io.BytesIO(png()), f"head/{number}.png") for number in range(4)]
    sent.append((io.BytesIO(b"text"), "head/notes.txt"))
    choices = {"pictures": "as numbered", "studies": "as sent"}
    data = {"file": sent, "title": "Monday", **choices}
    answer = ann.post("/scans/files", data=data)
    assert answer.status_code == 201 and answer.json
    [scan] = answer.json["scans"]
    assert (scan["title"], scan["slices"]) == ("Monday", 4)
    assert scan["url"] == f"/scans/{scan['id']}"
    assert answer.json["refused"] == {"4": "The file is not a PNG, JPEG, DICOM or NIfTI image."}
    for data, sentence in (
        ({"file": [(io.BytesIO(b""), "0.png")], **choices}, "The file is empty."),
        ({**choices}, "Please choose a PNG, JPEG, DICOM, NIfTI or ZIP file."),
        ({"file": [(io.BytesIO(png()), "0.png")], "pictures": "x"}, "Not a valid choice."),
    ):
        refused = ann.post("/scans/files", data=data)
        assert (refused.status_code, refused.json) == (400, {"error": sentence})


def test_a_page_that_asks_for_json_gets_its_errors_so(app: Flask, ann: FlaskClient) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    headers = {"Accept": "application/json"}
    answer = ann.post("/scans/files", data=form(png()), headers=headers)
    assert answer.status_code == 400 and answer.json
    assert answer.json["detail"].startswith("This form has expired.")
