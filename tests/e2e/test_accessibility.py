"""axe-core finds nothing serious on any page, in light and in dark, on a desk and on a phone; menu
and theme work by keyboard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import make_user
from tests.e2e.conftest import READY_S, Service, a_service
from tests.e2e.test_browser_journey import FLAGS, log_in
from tests.e2e.test_series_viewer import answers
from tests.webapp.series import add_series
from webapp.extensions import db
from webapp.models import ModelVersion, Role, Scan

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The web processes alone, with an administrator and a series of hers."""
    with a_service(tmp_path_factory.mktemp("service")) as service:
        make_user(service.app, "root", Role.ADMIN)
        hu = np.broadcast_to(np.arange(7)[:, None, None] * 8, (7, 64, 64))
        add_series(service.app, hu, "root")
        service.start("web")
        service.eventually(lambda: answers(service), "The web processes answer", READY_S)
        yield service


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Chromium, without windows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def addresses(service: Service) -> dict[str, list[str]]:
    """The pages for everybody, and those of an administrator."""
    with service.app.app_context():
        scan_id = db.session.query(Scan.id).scalar()
        version_id = db.session.query(ModelVersion.id).filter_by(reads="slice").limit(1).scalar()
    return {
        "anybody": ["/", "/login", "/signup", "/nowhere"],
        "root": [
            *("/scans", "/scans?verdict=inconclusive", "/scans/new", f"/scans/{scan_id}"),
            *("/account", "/admin", "/admin/datasets", "/admin/runs", "/admin/runs/new"),
            *("/admin/models", f"/admin/models/{version_id}", "/admin/users", "/admin/audit"),
        ],
    }


def findings(page: Page) -> list[str]:
    """Return what axe-core finds on this page that is serious, a line each."""
    page.evaluate(AXE.read_text("utf-8"))
    found: list[dict[str, Any]] = json.loads(
        page.evaluate(
            "axe.run({ resultTypes: ['violations'], preload: false })"
            ".then(found => JSON.stringify(found.violations))"
        )
    )
    return [
        f"{page.url} {each['id']}: {each['help']} {[node['target'] for node in each['nodes']][:3]}"
        for each in found
        if each["impact"] in SERIOUS
    ]


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", DESK), ("dark", PHONE)], ids=["light desk", "dark phone"]
)
def test_axe_finds_nothing_serious(
    service: Service,
    browser: Browser,
    addresses: dict[str, list[str]],
    scheme: str,
    viewport: dict[str, int],
) -> None:
    page = browser.new_page(base_url=service.url, color_scheme=scheme, viewport=viewport)  # type: ignore[arg-type]
    found, wide = [], []
    for who, theirs in addresses.items():
        if who != "anybody":
            log_in(page, who)
        for address in theirs:
            page.goto(address)
            found += findings(page)
            if page.evaluate("document.documentElement.scrollWidth") > viewport["width"]:
                wide.append(address)
    page.context.close()
    assert not found, "\n".join(found)
    assert not wide


def test_the_menu_of_a_phone_and_the_theme_work_by_keyboard(
    service: Service, browser: Browser
) -> None:
    page = browser.new_page(base_url=service.url, color_scheme="light", viewport=PHONE)  # type: ignore[arg-type]
    log_in(page, "root")
    menu = page.get_by_role("button", name="Menu")
    expect(page.get_by_role("link", name="Operations")).to_be_hidden()
    menu.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Operations")).to_be_visible()
    page.get_by_label("Theme").select_option("dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Operations")).to_be_hidden()

    answer = page.goto("/account")
    assert answer is not None
    # What the server sends is dark already, so nothing flashes before the scripts run.
    assert re.search(r'<html lang="en" data-theme="dark">', answer.text())
    expect(page.locator("body")).to_have_css("background-color", "rgb(16, 24, 29)")
    menu.click()
    page.get_by_label("Theme").select_option("auto")
    expect(page.locator("body")).to_have_css("background-color", "rgb(243, 246, 248)")
    page.context.close()
