"""Opinions in a real browser: an ellipse is drawn on a slice, and keys agree and disagree."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect
from sqlalchemy import select

from tests.e2e.conftest import Service
from tests.e2e.test_series_viewer import (  # noqa: F401 - `service` and `visit` are fixtures.
    NO_WEBGL,
    a_series,
    part,
    service,
    visit,
)
from webapp.extensions import db
from webapp.models import Finding, Opinion


def test_an_ellipse_drawn_on_a_slice_is_stored_in_numbers_and_shown_there_only(
    service: Service,  # noqa: F811
    visit: Callable[..., Page],  # noqa: F811
) -> None:
    page = visit(*NO_WEBGL)
    address = a_series(service)
    page.goto(address)
    page.get_by_text("Comment, type, slice or mark").click()
    page.get_by_role("button", name="Mark on the picture").click()
    box = part(page, "image").bounding_box()
    assert box is not None
    left, top = box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"]
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + 0.2 * box["width"], top + 0.1 * box["height"], steps=3)
    page.mouse.up()
    number = page.get_by_label("Slice", exact=True).and_(page.locator("#opinion-slice"))
    expect(number).not_to_have_value("")
    shown = int(number.input_value())
    page.get_by_role("radio", name="Present").check()
    page.get_by_role("button", name="Save opinion").click()
    expect(page.get_by_text("Your opinion has been saved.")).to_be_visible()
    with service.app.app_context():
        opinion = db.session.scalars(select(Opinion)).one()
    assert opinion.slice_index == shown - 1 and opinion.region is not None
    for name, expected in (("x", 0.4), ("y", 0.35), ("rx", 0.1), ("ry", 0.05)):
        assert abs(opinion.region[name] - expected) < 0.01
    expect(page.locator(".marks .given")).to_have_count(1)
    page.keyboard.press("ArrowUp")
    expect(page.locator(".marks .given")).to_have_count(0)

    page.keyboard.press("n")

    expect(page.get_by_text("disagrees with the model")).to_be_visible()
    with service.app.app_context():
        found = db.session.scalars(select(Opinion).where(Opinion.slice_index.is_(None))).one()
    assert found.finding in (Finding.PRESENT, Finding.ABSENT) and found.agrees is False
