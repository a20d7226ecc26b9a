"""Outlines of hemorrhages: contours over slices, a mask to download, and what pages and programs
are told of the volume.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import select, update

from tests.webapp.scans.test_scans import add_scan, add_verdict
from tests.webapp.series import add_series, stored_masks
from tests.webapp.test_api import make_token, problem_of
from webapp.deletion import delete_scan
from webapp.extensions import db
from webapp.models import Heatmap, JobStatus, ModelVersion, Prediction, Scan, User, draw_heatmap
from webapp.scans.outline_view import NOT_COMPARED, agreement, volume_text
from webapp.scans.outlines import contour
from webapp.storage import storage

SLICES = 4


@pytest.fixture
def masks() -> NDArray[np.bool_]:
    """A mask of 4 slices with 10 rows and 8 columns; the second shows a block that is in no
    middle.
    """
    masks = np.zeros((SLICES, 10, 8), bool)
    masks[1, 2:5, 3:7] = True
    return masks


@pytest.fixture
def ann(logged_in: Callable[..., FlaskClient]) -> FlaskClient:
    """Ann's browser."""
    return logged_in("ann")


@pytest.fixture
def program(app: Flask, ann: FlaskClient) -> FlaskClient:
    """A program that acts for Ann, who has logged in."""
    with app.app_context():
        user_id = db.session.scalars(select(User.id)).one()
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(app, user_id)}"
    return client


def add_outlined(app: Flask, masks: NDArray[np.bool_], **columns: object) -> str:
    """Add a series of ann with an outline and without heat maps; return its id."""
    scan_id = add_series(app, np.zeros(masks.shape))
    with app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        assert scan.prediction is not None
        db.session.delete(scan.prediction.heatmap)
        scan.outline_key = f"outlines/{scan_id}.nii.gz"
        storage.put(scan.outline_key, stored_masks(masks))
        values: dict[str, object] = {
            "outlined_slices": [int(index) for index in np.flatnonzero(masks.any(axis=(1, 2)))],
            "areas_mm2": [3.0 * int(mask.sum()) for mask in masks],
            "volume_ml": 12.34,
            **columns,
        }
        for name, value in values.items():
            setattr(scan.prediction, name, value)
        db.session.commit()
    return scan_id


def opaque(content: bytes) -> NDArray[np.bool_]:
    """Return where one sees a contour (rows, columns)."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., 3] > 0


def test_a_contour_runs_around_what_is_outlined_as_the_slice_is_looked_at(
    app: Flask, masks: NDArray[np.bool_]
) -> None:
    masks[2, 0, :3] = masks[2, 9, 7] = True  # At the border, from which nothing may reach across.
    expected = np.zeros_like(masks)
    expected[1, 1:6, 2:8] = True
    expected[2, :2, :4] = expected[2, 8:, 6:] = True
    with app.app_context():
        storage.put("outlines/1.nii.gz", stored_masks(masks))
        for index in range(SLICES):
            drawn = opaque(contour("outlines/1.nii.gz", index))
            np.testing.assert_array_equal(drawn, expected[index] & ~masks[index])


def test_the_contour_of_a_large_slice_is_two_pixels_wide(app: Flask) -> None:
    mask = np.zeros((1, 512, 512), bool)
    mask[0, 100:200, 300:400] = True
    with app.app_context():
        storage.put("outlines/1.nii.gz", stored_masks(mask))
        drawn = opaque(contour("outlines/1.nii.gz", 0))
    assert drawn.sum() == 104**2 - 100**2 and drawn[98, 298] and not drawn[97, 298]


def test_holes_and_narrow_gaps_have_no_contour_but_bays_do(app: Flask) -> None:
    block, holes, bay = (np.zeros((1, 24, 24), bool) for _ in range(3))
    block[0, 2:20, 2:20] = True
    holes[0, 4:7, 4:7] = holes[0, 16, 10:20] = True
    bay[0, 8:13, 14:20] = True
    with app.app_context():
        storage.put("outlines/1.nii.gz", stored_masks(block & ~holes & ~bay))
        drawn = opaque(contour("outlines/1.nii.gz", 0))
    assert not drawn[holes[0]].any()
    np.testing.assert_array_equal(
        drawn[8:13, 14:20], [[True] * 6, *[[True] + 5 * [False]] * 3, [True] * 6]
    )


@pytest.mark.parametrize("way", ["page", "program"])
def test_contours_and_mask_are_served_beside_the_slices(
    app: Flask, ann: FlaskClient, program: FlaskClient, masks: NDArray[np.bool_], way: str
) -> None:
    scan_id = add_outlined(app, masks, first_slices=[1])
    client, scans = (ann, "/scans") if way == "page" else (program, "/api/v1/scans")
    address = f"{scans}/{scan_id}"
    of_slice = client.get(f"{address}/slices/1/outline.png")
    assert (of_slice.status_code, of_slice.content_type) == (200, "image/png")
    assert opaque(of_slice.data).sum() == 5 * 6 - 3 * 4
    assert client.get(f"{address}/outline.png").data == of_slice.data
    for index in (0, 9):
        assert client.get(f"{address}/slices/{index}/outline.png").status_code == 404
    mask = client.get(f"{address}/outline.nii.gz")
    assert mask.headers["Content-Disposition"] == f"attachment; filename=outline-{scan_id}.nii.gz"
    voxels = np.frombuffer(gzip.decompress(mask.data)[352:], np.uint8).reshape(masks.shape)
    np.testing.assert_array_equal(voxels[:, ::-1, ::-1], masks)


def test_another_answer_under_the_same_key_is_fetched_anew(
    app: Flask, ann: FlaskClient, masks: NDArray[np.bool_]
) -> None:
    scan_id = add_outlined(app, masks)
    addresses = [f"/scans/{scan_id}/slices/1/outline.png", f"/scans/{scan_id}/outline.nii.gz"]
    tags = [ann.get(address).headers["ETag"] for address in addresses]
    for address, tag in zip(addresses, tags, strict=True):
        assert ann.get(address, headers={"If-None-Match": tag}).status_code == 304
    with app.app_context():
        db.session.execute(update(Prediction).values(id="f" * 32))
        db.session.commit()
    for address, tag in zip(addresses, tags, strict=True):
        assert ann.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_a_program_gets_the_volume_and_where_the_outlines_are(
    app: Flask, program: FlaskClient, masks: NDArray[np.bool_]
) -> None:
    scan_id = add_outlined(app, masks)
    result = program.get(f"/api/v1/scans/{scan_id}").json["result"]
    assert (result["volume_ml"], result["no_volume_because"]) == (12.34, None)
    address = f"http://localhost/api/v1/scans/{scan_id}"
    assert result["outline_url"] == f"{address}/outline.nii.gz"
    assert [one["area_mm2"] for one in result["slices"]] == [0, 36, 0, 0]
    urls = [one["outline_url"] for one in result["slices"]]
    assert urls == [None, f"{address}/slices/1/outline.png", None, None]
    assert result["heatmap_url"] is None


def test_a_page_tells_the_volume_and_offers_the_mask(
    app: Flask, ann: FlaskClient, masks: NDArray[np.bool_]
) -> None:
    scan_id = add_outlined(app, masks)
    page = ann.get(f"/scans/{scan_id}").text
    assert page.count("about 12 mL") == 2 and NOT_COMPARED in page
    assert f'<a href="/scans/{scan_id}/outline.nii.gz" download>' in page
    assert "Generate heat maps" in page


def test_a_page_says_why_there_is_no_volume(
    app: Flask, ann: FlaskClient, masks: NDArray[np.bool_]
) -> None:
    reason = "The size of a pixel is unknown."
    page = ann.get(
        f"/scans/{add_outlined(app, masks, volume_ml=None, no_volume_because=reason)}"
    ).text
    assert "No volume: the size of a pixel is unknown." in page and " mL" not in page


def test_a_scan_without_outline_says_nothing_of_it(
    app: Flask, ann: FlaskClient, program: FlaskClient
) -> None:
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    page = ann.get(f"/scans/{scan_id}").text
    assert 'id="outlined"' not in page
    for name in ("outline.png", "outline.nii.gz", "slices/0/outline.png"):
        problem_of(program.get(f"/api/v1/scans/{scan_id}/{name}"), 404)
    waiting = add_scan(app)
    assert program.get(f"/api/v1/scans/{waiting}/outline.png").status_code == 202


def test_heat_maps_are_drawn_for_those_who_ask(
    app: Flask, ann: FlaskClient, program: FlaskClient, masks: NDArray[np.bool_]
) -> None:
    scan_id = add_outlined(app, masks)
    on_the_picture = 'form="ask-heat"'
    assert on_the_picture in ann.get(f"/scans/{scan_id}").text
    response = ann.post(f"/scans/{scan_id}/heatmap?order=risk")
    assert (response.status_code, response.location) == (302, f"/scans/{scan_id}?order=risk")
    page = ann.get(f"/scans/{scan_id}").text
    assert "being generated" in page and "Generate heat maps" not in page
    assert on_the_picture not in page
    with app.app_context():
        (drawn,) = db.session.query(Heatmap)
        assert (drawn.status, drawn.user_id) == (JobStatus.QUEUED, drawn.prediction.scan.user_id)
    problem_of(program.post(f"/api/v1/scans/{scan_id}/heatmap"), 409)
    other = add_outlined(app, masks)
    answer = program.post(f"/api/v1/scans/{other}/heatmap")
    assert (answer.status_code, answer.json["id"]) == (202, other)


def test_nobody_asks_for_heat_maps_of_other_peoples_scans(
    app: Flask, masks: NDArray[np.bool_], ann: FlaskClient
) -> None:
    scan_id = add_outlined(app, masks)
    with app.app_context():
        assert not draw_heatmap(scan_id, "0" * 32)
        assert draw_heatmap(scan_id, str(db.session.get_one(Scan, scan_id).user_id))
        assert not draw_heatmap(scan_id, str(db.session.get_one(Scan, scan_id).user_id))


def test_an_outline_is_deleted_with_its_scan(
    app: Flask, ann: FlaskClient, masks: NDArray[np.bool_]
) -> None:
    scan_id = add_outlined(app, masks)
    with app.app_context():
        assert storage.keys("outlines") and delete_scan(scan_id)
        assert not storage.keys("outlines")


def test_the_page_tells_how_well_outlines_agree_with_annotated_ones(
    app: Flask, ann: FlaskClient, masks: NDArray[np.bool_]
) -> None:
    scan_id = add_outlined(app, masks)
    dice = {"value": 0.6161, "low": 0.52, "high": 0.7, "n": 31}
    unknown = {"value": None, "low": None, "high": None, "n": 0, "reason": "nothing"}
    measured = {"ct_ich": {"patient_dice": dice}, "other": {"patient_dice": unknown}}
    with app.app_context():
        db.session.execute(update(ModelVersion).values(card={"outlines": measured}))
        db.session.commit()
    assert "was 0.62 (0.52 to 0.70) on 31 patients of ct_ich." in ann.get(f"/scans/{scan_id}").text
    assert agreement({"other": {"patient_dice": unknown}}) == agreement({}) == NOT_COMPARED


@pytest.mark.parametrize(
    ("volume_ml", "text"),
    [
        (0.0, "less than 1 mL"),
        (0.99, "less than 1 mL"),
        (1.0, "about 1 mL"),
        (12.34, "about 12 mL"),
        (99.4, "about 99 mL"),
        (99.6, "about 100 mL"),
        (126.0, "about 130 mL"),
    ],
)
def test_a_volume_is_reported_with_two_digits(volume_ml: float, text: str) -> None:
    assert volume_text(volume_ml) == text
