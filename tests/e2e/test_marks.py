"""Opinions in a real browser: an ellipse stays on the slice on which it was drawn, and keys agree
and disagree beside the picture.
"""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, Route, expect
from sqlalchemy import select

from tests.e2e.browser import SLICES, a_series, part
from tests.e2e.conftest import Service
from webapp.extensions import db
from webapp.models import Finding, Opinion


def test_an_ellipse_stays_on_its_slice_and_keys_answer_without_leaving_the_picture(
    service: Service, visit: Callable[..., Page]
) -> None:
    page = visit(user="ann", lossy=True)
    address = a_series(service)
    page.goto(address)
    page.get_by_text("Comment, type, slice or mark").click()
    page.get_by_role("button", name="Mark on the image").click()
    box = part(page, "image").bounding_box()
    assert box is not None
    left, top = box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"]
    page.mouse.move(left, top)
    page.mouse.down()
    page.keyboard.press("ArrowUp")  # Another slice comes while the mark is drawn.
    page.mouse.move(left + 0.2 * box["width"], top + 0.1 * box["height"], steps=3)
    page.mouse.up()
    number = page.locator("#opinion-slice")
    expect(number).to_have_value(str(SLICES))  # On which it was begun.
    expect(page.locator(".marks .new")).to_have_count(0)
    page.get_by_role("button", name="Use current slice").click()
    expect(number).to_have_value(str(SLICES))
    expect(page.get_by_text(f"The mark is on slice {SLICES}. Save it or remove it")).to_be_visible()
    page.get_by_role("radio", name="Present").check()
    page.get_by_role("button", name="Save opinion").click()
    expect(page.locator("#saved")).to_have_text(f"Saved: hemorrhage present in slice {SLICES}.")
    of_scan = select(Opinion).where(Opinion.scan_id == address.rpartition("/")[2])
    with service.app.app_context():
        opinion = db.session.scalars(of_scan).one()
    assert opinion.slice_index == SLICES - 1 and opinion.region is not None
    for name, expected in (("x", 0.4), ("y", 0.35), ("rx", 0.1), ("ry", 0.05)):
        assert abs(opinion.region[name] - expected) < 0.01
    expect(page.locator(".marks .given")).to_have_count(0)
    page.keyboard.press("ArrowDown")
    expect(page.locator(".marks .given")).to_have_count(1)

    page.locator("#answers-label").click()  # The focus is nowhere.
    page.evaluate("window.neverReloaded = true; window.scrollTo(0, 40)")
    page.keyboard.press("n")
    expect(page.locator("#saved")).to_have_text("Saved: no hemorrhage.")
    expect(page.locator("#saved")).to_be_in_viewport()
    expect(page.locator("#opinions [data-key=n]")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text("disagrees with the model")).to_be_visible()
    assert page.evaluate("[window.neverReloaded, window.scrollY]") == [True, 40]
    with service.app.app_context():
        row = db.session.scalars(of_scan.where(Opinion.slice_index.is_(None))).one()
        assert row.finding == Finding.ABSENT and row.agrees is False

    def lost(route: Route) -> None:
        route.abort()

    page.route("**/opinions", lost)
    page.keyboard.press("y")
    expect(page.locator("#saved")).to_contain_text(
        "was not saved because the server cannot be reached."
    )
    expect(page.locator("#opinions [data-key=n]")).to_have_attribute("aria-pressed", "true")
    panel, picture = page.locator("#opinions").bounding_box(), part(page, "stage").bounding_box()
    assert panel is not None and picture is not None
    assert panel["x"] > picture["x"] + picture["width"]  # Beside the picture.
    assert panel["y"] < picture["y"] + picture["height"] / 2
