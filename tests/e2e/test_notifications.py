"""Notifications in a real browser: in the page, and by the browser once a person allowed it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from sqlalchemy import select

from tests.conftest import make_user
from tests.e2e.conftest import READY_S, Service, a_service
from tests.e2e.test_browser_journey import FLAGS, log_in
from tests.e2e.test_series_viewer import answers
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


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The web processes alone."""
    with a_service(tmp_path_factory.mktemp("service")) as service:
        make_user(service.app, "ann")
        service.start("web")
        service.eventually(lambda: answers(service), "The web processes answer", READY_S)
        yield service


@pytest.fixture
def page(service: Service, chromium: str) -> Iterator[Page]:
    """A page in which Ann is logged in, with a clock that the test moves on."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(base_url=service.url)
        page.add_init_script(RECORDED)
        log_in(page, "ann")
        page.clock.install()
        yield page


def finish_a_scan(service: Service) -> str:
    """Add a scan of Ann's that just got a result; return the address of its page."""
    with service.app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == "ann")).one()
        scan = Scan(user_id=user_id, kind="png", original_key="o", title="Doe, Jane")
        scan.status, scan.finished_at = JobStatus.DONE, database_now()
        scan.verdict_state = "suspected"
        db.session.add(scan)
        db.session.commit()
        return f"/scans/{scan.id}"


def test_a_result_is_told_of_on_whatever_page_is_open(service: Service, page: Page) -> None:
    page.goto("/scans/new")
    expect(page.locator("#toast")).to_be_hidden()
    address = finish_a_scan(service)
    page.clock.fast_forward(LOOK_MS)
    link = page.locator("#toast a")
    expect(link).to_have_text("A scan has a result.")
    expect(link).to_have_attribute("href", address)
    finish_a_scan(service)
    page.clock.fast_forward(LOOK_MS)
    expect(link).to_have_text("2 scans have a result.")
    expect(link).to_have_attribute("href", "/scans")
    page.locator("#toast button").click()
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
    finish_a_scan(service)
    page.clock.fast_forward(LOOK_MS)
    expect(page.locator("#toast a")).to_have_text("A scan has a result.")
    assert page.evaluate("window.shown") == ["Hemoscan: A scan has a result."]
