"""Notifications in a real browser: in the page, and by the browser once a person allowed it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from tests.conftest import make_user
from tests.e2e.conftest import Service
from webapp.extensions import database_now, db
from webapp.models import JobStatus, Scan, User

# What the browser is asked for and shows, without asking anybody.
RECORDED = """
  window.asked = 0;
  window.shown = [];
  window.Notification = class {
    static permission = "default";
    static requestPermission() {
      window.asked += 1;
      window.Notification.permission = "granted";
      return Promise.resolve("granted");
    }
    constructor(title, { body }) { window.shown.push(`${title}: ${body}`); }
    addEventListener() {}
  };
"""
LOOK_MS = 16_000


@pytest.fixture
def page(service: Service, visit: Callable[..., Page]) -> Page:
    """A page of somebody new, with a clock that the test moves on."""
    username = f"bell-{uuid4().hex[:6]}"
    make_user(service.app, username)
    page = visit(user=username)
    page.add_init_script(RECORDED)
    page.clock.install()
    page.goto("/scans")
    return page


def finish_a_scan(service: Service, page: Page) -> str:
    """Add a scan of that person that just got a result; return the address of its page."""
    username = page.locator("header [popovertarget=account]").inner_text()
    with service.app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == username)).one()
        scan = Scan(user_id=user_id, kind="png", original_key="o", title="Doe, Jane")
        scan.status, scan.finished_at = JobStatus.DONE, database_now()
        scan.verdict_state = "suspected"
        db.session.add(scan)
        db.session.commit()
        return f"/scans/{scan.id}"


def test_a_result_is_announced_on_whatever_page_is_open(service: Service, page: Page) -> None:
    page.goto("/scans/new")
    expect(page.locator("#toast")).to_be_hidden()
    address = finish_a_scan(service, page)
    page.clock.fast_forward(LOOK_MS)
    link = page.locator("#toast a")
    expect(link).to_have_text("A scan has a result.")
    expect(link).to_have_attribute("href", address)
    finish_a_scan(service, page)
    page.clock.fast_forward(LOOK_MS)
    expect(link).to_have_text("2 scans have a result.")
    expect(link).to_have_attribute("href", "/scans")
    page.locator("#toast button").click()
    expect(page.locator("#toast")).to_be_hidden()
    # What comes between two pages is told of on the second one, and nothing twice.
    address = finish_a_scan(service, page)
    page.goto("/account")
    page.clock.fast_forward(LOOK_MS)
    expect(link).to_have_text("A scan has a result.")
    expect(link).to_have_attribute("href", address)
    page.goto("/scans/new")
    page.clock.fast_forward(LOOK_MS)
    page.wait_for_load_state("networkidle")
    expect(page.locator("#toast")).to_be_hidden()
    assert page.evaluate("[window.asked, window.shown]") == [0, []]


def test_the_browser_tells_once_a_person_has_allowed_it(service: Service, page: Page) -> None:
    page.goto("/account")
    button = page.get_by_role("button", name="Allow browser notifications")
    expect(button).to_be_visible()
    assert page.evaluate("window.asked") == 0
    button.click()
    expect(page.locator("#allowed-notifications")).to_contain_text("shows notifications")
    expect(button).to_be_hidden()
    assert page.evaluate("window.asked") == 1

    page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
    finish_a_scan(service, page)
    page.clock.fast_forward(LOOK_MS)
    expect(page.locator("#toast a")).to_have_text("A scan has a result.")
    assert page.evaluate("window.shown") == ["Hemoscan: A scan has a result."]
