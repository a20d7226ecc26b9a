"""axe-core finds nothing serious on any page, in light and in dark, on a desk and on a phone; menu
and theme work by keyboard.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from werkzeug.serving import make_server

from tests.e2e.browser import DESK, NO_WEBGL, PHONE, Browsers, a_series
from tests.e2e.conftest import Service
from tests.webapp.admin.test_shadows import shadow_answers
from tests.webapp.test_every_route import World, address_of, routes, world  # noqa: F401
from webapp.admin.versions import TABS
from webapp.extensions import db
from webapp.models import ModelVersion, Scan, Shadow

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")
CUT_OFF = """
  document.documentElement.scrollWidth > window.innerWidth
  || window.innerWidth < 700 && [...document.querySelectorAll("table.stacks")]
    .some(({ parentElement: room }) => room.scrollWidth > room.clientWidth)
"""
"""Whether the page is wider than the window, or on a phone a list whose rows are blocks."""


FULL_PAGES = (
    *("/", "/login", "/signup", "/scans", "/scans/new", "/account", "/admin", "/admin/datasets"),
    *("/admin/runs", "/admin/models", "/admin/users", "/admin/audit", "/admin/processing"),
)
"""What the first test visits already, with more on it."""


@pytest.fixture(scope="module")
def addresses(service: Service) -> dict[str, list[str]]:
    """The pages for everybody, and those of an administrator, who has a series."""
    address = a_series(service, "root")
    with service.app.app_context():
        version_id = db.session.query(ModelVersion.id).filter_by(reads="slice").limit(1).scalar()
        # Of the version with itself, which a page shows like any other.
        shadow = Shadow(version_id=version_id, against_id=version_id, reads="slice")
        db.session.add(shadow)
        db.session.flush()
        (answer,) = shadow_answers(shadow.id, [db.session.query(Scan.id).limit(1).scalar()])
        answer.state = "not found"
        db.session.add(answer)
        db.session.commit()
    return {
        "anybody": ["/", "/login", "/signup", "/nowhere"],
        "root": [
            *("/scans", "/scans?verdict=inconclusive", "/scans/new", address),
            *("/account", "/admin", "/admin/datasets", "/admin/runs", "/admin/runs/new"),
            *("/admin/models", f"/admin/models/{version_id}", "/admin/users", "/admin/audit"),
            *(f"/admin/models/{version_id}?show={tab}" for tab in TABS if tab != "promotion"),
            *(f"/admin/shadows/{shadow.id}", "/admin/replays"),
            *("/admin/datasets/compare", "/admin/processing"),
        ],
    }


def findings(page: Page) -> list[str]:
    """Return what axe-core finds on this page that is serious, a line each."""
    page.evaluate(AXE.read_text("utf-8"))
    violations: list[dict[str, Any]] = json.loads(
        page.evaluate(
            "axe.run({ resultTypes: ['violations'], preload: false })"
            ".then(found => JSON.stringify(found.violations))"
        )
    )
    return [
        f"{page.url} {each['id']}: {each['help']} {[node['target'] for node in each['nodes']][:3]}"
        for each in violations
        if each["impact"] in SERIOUS
    ]


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", DESK), ("dark", PHONE)], ids=["light desk", "dark phone"]
)
def test_axe_finds_nothing_serious(
    service: Service,
    visit: Callable[..., Page],
    addresses: dict[str, list[str]],
    scheme: str,
    viewport: dict[str, int],
) -> None:
    violations, wide = [], []
    for who, theirs in addresses.items():
        user = None if who == "anybody" else who
        page = visit(user=user, lossy=True, color_scheme=scheme, viewport=viewport)
        for address in theirs:
            page.goto(address)
            violations += findings(page)
            if page.evaluate(CUT_OFF):
                wide.append(address)
    assert not violations, "\n".join(violations)
    assert not wide


@pytest.fixture
def page_of_admin(world: World, browsers: Browsers) -> Iterator[Page]:  # noqa: F811
    """A phone on which the administrator of `world` is logged in."""
    server = make_server("127.0.0.1", 0, world.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.port}"
    context = browsers.started(NO_WEBGL).new_context(
        base_url=url, color_scheme="light", viewport=PHONE
    )
    cookie = world.client("admin").get_cookie("session")
    assert cookie is not None
    context.add_cookies([{"name": "session", "value": cookie.value, "url": url}])
    yield context.new_page()
    context.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_axe_finds_nothing_serious_on_any_other_page(
    world: World,  # noqa: F811
    page_of_admin: Page,
) -> None:
    """Every route that gives a page, with a row of every kind."""
    client, violations, seen = world.client("admin"), [], 0
    for (method, route), rule in routes(world.app).items():
        if method != "GET" or route.startswith(("/api", "/dicom-web")) or route in FULL_PAGES:
            continue
        with client.get(address := address_of(world, rule)) as answer:
            is_page = answer.status_code == 200 and answer.mimetype == "text/html"
            if not is_page or b"<html" not in answer.data:
                continue
        page_of_admin.goto(address)
        violations += findings(page_of_admin)
        seen += 1
    assert not violations, "\n".join(violations)
    assert seen > 15


def test_the_menu_of_a_phone_and_the_theme_work_by_keyboard(visit: Callable[..., Page]) -> None:
    page = visit(user="root", color_scheme="light", viewport=PHONE)
    page.goto("/scans")
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
