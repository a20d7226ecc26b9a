"""The slices of a series, for pages and programs of its owner alone."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from numpy.typing import NDArray
from PIL import Image
from werkzeug.test import TestResponse

from tests.conftest import make_user
from tests.webapp.scans.test_scans import add_scan
from tests.webapp.series import add_series, heat
from tests.webapp.test_api import client_of, problem_of
from webapp.api import pictures
from webapp.extensions import db
from webapp.models import Heatmap, JobStatus, Scan
from webapp.storage import Storage

SLICES = 6


@pytest.fixture
def hu() -> NDArray[np.int16]:
    """A series of 6 slices with 10 rows and 8 columns: slice by slice 0, 16, 32 ... HU."""
    return np.broadcast_to(np.arange(SLICES, dtype=np.int16)[:, None, None] * 16, (SLICES, 10, 8))


@pytest.fixture(params=["page", "program"])
def client(
    request: pytest.FixtureRequest, app: Flask, logged_in: Callable[..., FlaskClient]
) -> tuple[FlaskClient, str]:
    """Ann's browser and the address of her scans, then a program that acts for her."""
    if request.param == "page":
        return logged_in("ann"), "/scans"
    return client_of(app, "ann"), "/api/v1/scans"


def gray(answer: TestResponse) -> int:
    """Return the gray of a picture that is of one gray."""
    assert (answer.status_code, answer.content_type) == (200, "image/png"), answer.text
    (shade,) = set(np.asarray(Image.open(io.BytesIO(answer.data))).flat)
    return int(shade)


@pytest.mark.parametrize(
    ("query", "grays"),
    [
        ("", [0, 51, 102, 153, 204, 255]),
        ("?window=brain", [0, 51, 102, 153, 204, 255]),
        ("?window=subdural", [26, 46, 66, 87, 107, 128]),
        ("?window=bone", [73, 74, 76, 77, 79, 80]),
        ("?level=16&width=32", [0, 128, 255, 255, 255, 255]),
    ],
)
def test_each_slice_is_shown_through_the_window_that_is_asked_for(
    app: Flask, client: tuple[FlaskClient, str], hu: NDArray[np.int16], query: str, grays: list[int]
) -> None:
    browser, scans = client
    address = f"{scans}/{add_series(app, hu)}/slices"
    assert [gray(browser.get(f"{address}/{index}.png{query}")) for index in range(SLICES)] == grays


@pytest.mark.parametrize(
    "query",
    [
        "window=lung",
        "level=40",
        "width=80",
        "level=40&width=0",
        "level=nan&width=80",
        "window=brain&level=40",
        "level=x&width=80",
        "level=40.5&width=5e-324",
    ],
)
def test_a_window_that_makes_no_sense_is_refused(
    app: Flask, client: tuple[FlaskClient, str], hu: NDArray[np.int16], query: str
) -> None:
    browser, scans = client
    assert browser.get(f"{scans}/{add_series(app, hu)}/slices/0.png?{query}").status_code in (
        400,
        422,
    )


def test_the_named_windows_leave_pictures_as_they_were_submitted(
    app: Flask, client: tuple[FlaskClient, str], hu: NDArray[np.int16]
) -> None:
    browser, scans = client
    address = f"{scans}/{add_series(app, hu / 100, unit='display')}/slices/5.png"
    assert gray(browser.get(address)) == gray(browser.get(f"{address}?window=bone")) == 204
    assert gray(browser.get(f"{address}?level=0.4&width=0.8")) == 255


def test_the_whole_series_is_sent_as_one_file_in_pieces(
    app: Flask, client: tuple[FlaskClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, scans = client
    noise = np.random.default_rng(1).integers(-1000, 1000, (40, 64, 64)).astype(np.int16)
    scan_id = add_series(app, noise)
    monkeypatch.setattr(Storage, "get", lambda *_: pytest.fail("The file was read as a whole."))
    answer = browser.get(f"{scans}/{scan_id}/volume")
    assert (answer.status_code, answer.content_type) == (200, "application/gzip")
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Content-Disposition"] == f"attachment; filename={scan_id}.nii.gz"
    assert gzip.decompress(answer.data)[352:] == noise[:, ::-1, ::-1].tobytes()


def test_a_slices_heat_map_is_sent_where_one_is_drawn(
    app: Flask, client: tuple[FlaskClient, str], hu: NDArray[np.int16]
) -> None:
    browser, scans = client
    address = f"{scans}/{add_series(app, hu)}"
    assert browser.get(f"{address}/slices/0/heatmap.png").data == heat(0)
    assert browser.get(f"{address}/slices/5/heatmap.png").data == heat(5)
    assert browser.get(f"{address}/heatmap.png").data == heat(5)
    assert browser.get(f"{address}/slices/3/heatmap.png").status_code == 404


PATHS = (
    "volume",
    "slices/0.png",
    "slices/0.png?window=bone",
    "slices/0/heatmap.png",
    "image.png",
    "heatmap.png",
)


@pytest.mark.parametrize("path", PATHS)
def test_an_unchanged_answer_is_304_and_reads_no_file(
    app: Flask,
    client: tuple[FlaskClient, str],
    hu: NDArray[np.int16],
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    browser, scans = client
    address = f"{scans}/{add_series(app, hu)}/{path}"
    first = browser.get(address)
    assert first.headers["Cache-Control"] == "private, no-cache"
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    for read in ("get", "open"):
        monkeypatch.setattr(Storage, read, lambda *_: pytest.fail("A file was read."))
    again = browser.get(address, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_no_two_pictures_have_the_same_etag(
    app: Flask, client: tuple[FlaskClient, str], hu: NDArray[np.int16]
) -> None:
    browser, scans = client
    scan_id = add_series(app, hu)
    paths = (
        *PATHS[:2],
        *PATHS[2:5],
        "slices/1.png",
        "slices/0.png?level=1&width=2",
        "slices/5/heatmap.png",
    )
    tags = [browser.get(f"{scans}/{scan_id}/{path}").headers["ETag"] for path in paths]
    assert len(set(tags)) == len(paths)


@pytest.mark.parametrize("path", PATHS)
def test_somebody_elses_series_is_404(
    app: Flask, client: tuple[FlaskClient, str], hu: NDArray[np.int16], path: str
) -> None:
    browser, scans = client
    make_user(app, "bob")
    bobs = add_series(app, hu, "bob")
    for scan_id in (bobs, "0" * 32, "nonsense", "%00"):
        answer = browser.get(f"{scans}/{scan_id}/{path}")
        assert answer.status_code == 404
        assert "Scan not found." in answer.text


def test_there_is_no_slice_beyond_the_last(
    app: Flask, client: tuple[FlaskClient, str], hu: NDArray[np.int16]
) -> None:
    browser, scans = client
    scan_id = add_series(app, hu)
    for index in (SLICES, 10**30, -1, "x"):
        assert browser.get(f"{scans}/{scan_id}/slices/{index}.png").status_code == 404
        assert browser.get(f"{scans}/{scan_id}/slices/{index}/heatmap.png").status_code == 404


@pytest.mark.parametrize("path", ["volume", "slices/0.png", "slices/0/heatmap.png"])
def test_a_single_slice_has_no_series(
    app: Flask, client: tuple[FlaskClient, str], path: str
) -> None:
    browser, scans = client
    scan_id = add_scan(app, status=JobStatus.DONE)
    assert browser.get(f"{scans}/{scan_id}/{path}").status_code == 404


@pytest.mark.parametrize("path", ["volume", "slices/0.png", "slices/0/heatmap.png"])
def test_a_program_that_asks_too_early_is_asked_to_wait(app: Flask, path: str) -> None:
    browser = client_of(app, "ann")
    answer = browser.get(f"/api/v1/scans/{add_scan(app, status=JobStatus.RUNNING)}/{path}")
    problem_of(answer, 202)
    assert answer.headers["Retry-After"] == "1"


def test_a_program_waits_a_moment_for_a_slices_heat_map(
    app: Flask, hu: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = client_of(app, "ann")
    scan_id = add_series(app, hu)
    with app.app_context():
        drawn = db.session.query(Heatmap).one()
        key = drawn.image_key
        drawn.status, drawn.image_key, drawn.slices = JobStatus.RUNNING, None, None
        db.session.commit()

    def draw_meanwhile(_seconds: float) -> None:
        with app.app_context():
            db.session.query(Heatmap).update(
                {"status": JobStatus.DONE, "image_key": key, "slices": [0, 5]}
            )
            db.session.commit()

    monkeypatch.setattr(time, "sleep", draw_meanwhile)
    assert program.get(f"/api/v1/scans/{scan_id}/slices/0/heatmap.png").data == heat(0)
    monkeypatch.setattr(pictures, "HEATMAP_WAIT_S", 0)
    problem_of(program.get(f"/api/v1/scans/{scan_id}/slices/1/heatmap.png"), 404)


def test_a_program_gets_every_slice_and_which_to_look_at_first(
    app: Flask, hu: NDArray[np.int16]
) -> None:
    program = client_of(app, "ann")
    result = program.get(f"/api/v1/scans/{add_series(app, hu)}").json["result"]
    assert result["slices"] == [
        {
            "index": index,
            "probability": index / 5,
            "types": {},
            "area_mm2": None,
            "outline_url": None,
        }
        for index in range(SLICES)
    ]
    assert result["first_slices"] == [5, 4, 3, 2, 1]
    assert result["heatmap_slices"] == [0, 5]


def test_deleting_a_series_leaves_no_byte(
    app: Flask, client: tuple[FlaskClient, str], hu: NDArray[np.int16], tmp_path: Path
) -> None:
    browser, scans = client
    scan_id = add_series(app, hu)
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    if scans.startswith("/api"):
        browser.delete(f"{scans}/{scan_id}")
    else:
        browser.post(f"{scans}/{scan_id}/delete")
    with app.app_context():
        assert db.session.get(Scan, scan_id) is None
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
