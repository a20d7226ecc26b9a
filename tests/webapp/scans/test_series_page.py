"""The page of a series, before its scripts run; tests/e2e looks at it in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from numpy.typing import NDArray

from tests.webapp.scans.test_scans import add_scan, add_verdict, seen
from tests.webapp.series import add_series
from webapp.extensions import db
from webapp.models import Heatmap, JobStatus, Prediction
from webapp.scans import pages
from webapp.scans.stored_volume import open_volume
from webapp.storage import Storage, StorageError


@pytest.fixture
def hu() -> NDArray[np.int16]:
    """A series of 24 slices with 10 rows and 8 columns."""
    return np.zeros((24, 10, 8), np.int16)


@pytest.fixture
def ann(logged_in: Callable[..., FlaskClient]) -> FlaskClient:
    """Ann's browser."""
    return logged_in("ann")


def test_the_five_slices_to_look_at_first_are_links_and_marks_on_the_slider(
    app: Flask, ann: FlaskClient, hu: NDArray[np.int16]
) -> None:
    scan_id = add_series(app, hu)
    page = ann.get(f"/scans/{scan_id}").text
    assert "Look first at slices" in page
    for index in (23, 22, 21, 20, 19):
        address = f"/scans/{scan_id}/slices/{index}.png?window=brain"
        assert f'<a href="{address}" data-slice="{index}">' in page
        assert f"Slice </span><strong>{index + 1}</strong>" in page
        assert f'<rect class="mark" x="{index + 0.1}"' in page
        assert ann.get(address).status_code == 200


def test_the_most_suspicious_slice_is_shown_first_with_its_heat_map(
    app: Flask, ann: FlaskClient, hu: NDArray[np.int16]
) -> None:
    scan_id = add_series(app, hu)
    page = ann.get(f"/scans/{scan_id}").text
    assert (
        f'<img data-part="image" src="/scans/{scan_id}/slices/23.png?window=brain" width="8"'
        ' height="10" alt="Slice 24 of 24">' in page
    )
    assert f'src="/scans/{scan_id}/slices/23/heatmap.png"' in page
    assert "data-heat='[0, 23]'" in page


def test_every_slice_has_its_bar(app: Flask, ann: FlaskClient, hu: NDArray[np.int16]) -> None:
    page = ann.get(f"/scans/{add_series(app, hu)}").text
    bars = re.findall(
        r'<rect(?: class="first")? x="([0-9.]+)" y="([0-9.]+)" width="0?.9" height="([0-9.]+)"/>',
        page,
    )
    assert [float(height) for _, _, height in bars] == pytest.approx(
        [index / 23 for index in range(24)], abs=0.001
    )
    assert all(float(y) + float(height) == pytest.approx(1) for _, y, height in bars)
    assert page.count('<rect class="first"') == 5


def test_the_page_has_no_scripts_or_styles_inside(
    app: Flask, ann: FlaskClient, hu: NDArray[np.int16]
) -> None:
    assert not re.search(
        r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)",
        ann.get(f"/scans/{add_series(app, hu)}").text,
    )


def test_only_a_series_in_hu_has_windows_and_sides(
    app: Flask, ann: FlaskClient, hu: NDArray[np.int16]
) -> None:
    in_hu = ann.get(f"/scans/{add_series(app, hu)}").text
    of_pictures = ann.get(f"/scans/{add_series(app, hu, unit='display')}").text
    for part in (
        "Brain</button>",
        "Subdural</button>",
        "Bone</button>",
        "Stroke</button>",
        ">R</span>",
    ):
        assert part in in_hu and part not in of_pictures
    assert "As submitted</button>" in of_pictures and "As submitted" not in in_hu
    assert "window=brain" not in of_pictures


def test_a_verdict_without_suspicious_slices_begins_in_the_middle(
    app: Flask, ann: FlaskClient, hu: NDArray[np.int16]
) -> None:
    scan_id = add_series(app, hu)
    with app.app_context():
        db.session.query(Prediction).update({"first_slices": None})
        db.session.commit()
    page = ann.get(f"/scans/{scan_id}").text
    assert 'alt="Slice 12 of 24"' in page
    assert "Look at" not in page and 'rect class="mark"' not in page


def test_heat_maps_that_are_drawn_later_come_by_themselves(
    app: Flask, ann: FlaskClient, hu: NDArray[np.int16]
) -> None:
    scan_id = add_series(app, hu)
    with app.app_context():
        db.session.query(Heatmap).update({"status": JobStatus.RUNNING, "slices": None})
        db.session.commit()
    page = ann.get(f"/scans/{scan_id}").text
    assert "The heat maps are being generated…" in page
    assert "data-heat='[]'" in page
    assert "heatmap.png" not in page
    ask = f"/scans/{scan_id}/progress?seen={seen(page)}"
    assert ann.get(ask).status_code == 204
    with app.app_context():
        db.session.query(Heatmap).update({"status": JobStatus.DONE, "slices": [0, 23]})
        db.session.commit()
    answer = ann.get(ask)
    assert (
        answer.status_code,
        "data-heat='[0, 23]'" in answer.text,
        'id="viewer" hx-preserve' in answer.text,
    ) == (286, True, True)


def test_a_series_whose_slices_cannot_be_read_shows_the_slice_that_stands_for_it(
    app: Flask,
    ann: FlaskClient,
    hu: NDArray[np.int16],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scan_id = add_series(app, hu)

    def away(*_: object) -> bytes:
        raise StorageError("A stored file cannot be read.")

    monkeypatch.setattr(Storage, "get", away)
    answer = ann.get(f"/scans/{scan_id}")
    assert answer.status_code == 200
    assert 'id="slice"' not in answer.text and f"/scans/{scan_id}/image.png" in answer.text
    assert f"scan={scan_id} cannot show its slices" in caplog.text


def test_a_single_slice_has_nothing_to_scroll_or_window(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    page = ann.get(f"/scans/{scan_id}").text
    assert 'alt="The submitted slice"' in page and 'data-part="heat-on"' in page
    assert 'id="slice"' not in page and "data-level" not in page


def test_a_single_slice_in_hu_is_windowed_and_measured(app: Flask, ann: FlaskClient) -> None:
    scan_id = add_series(app, np.zeros((1, 10, 8), np.int16))
    page = ann.get(f"/scans/{scan_id}").text
    for part in ("Brain</button>", ">Ruler</button>", 'data-part="value"', 'alt="The submitted'):
        assert part in page
    assert 'id="slice"' not in page and "Coronal" not in page


def test_planes_and_ruler_need_distances_that_were_measured(
    app: Flask, ann: FlaskClient, hu: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_id = add_series(app, hu)
    page = ann.get(f"/scans/{scan_id}").text
    assert ">Ruler</button>" in page and 'data-plane="coronal"' in page
    with app.app_context():
        volume = open_volume(f"volumes/{scan_id}.nii.gz")
    for measured, has_ruler in ((frozenset({"pixels"}), True), (frozenset(), False)):
        known = replace(volume, measured=measured)
        monkeypatch.setattr("webapp.scans.pages.open_volume", lambda key, known=known: known)
        page = ann.get(f"/scans/{scan_id}").text
        assert (">Ruler</button>" in page, "data-plane" in page) == (has_ruler, False)


def test_outlines_are_a_layer_where_there_are_any(
    app: Flask, ann: FlaskClient, hu: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_id = add_series(app, hu)
    assert "outline-on" not in ann.get(f"/scans/{scan_id}").text
    pictured = pages._pictured
    monkeypatch.setattr(pages, "_pictured", lambda scan: pictured(scan) | {"outlined_slices": [23]})
    page = ann.get(f"/scans/{scan_id}").text
    assert "data-outline='[23]'" in page and 'data-part="outline-on"' in page
    assert f'src="/scans/{scan_id}/slices/23/outline.png"' in page
