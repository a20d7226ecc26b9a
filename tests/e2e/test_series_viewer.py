"""A series in a real browser: with WebGL, with pictures alone, and without scripts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.conftest import make_user
from tests.e2e.conftest import READY_S, Service, a_service
from tests.e2e.test_browser_journey import FLAGS, log_in
from tests.webapp.series import add_series
from webapp.extensions import db
from webapp.models import Heatmap, JobStatus

SLICES = 11
# From slice to slice, so that the brain window shows the first black and the last white.
STEP_HU = 8
DRAWN_MS = 30_000  # A processor that plays a graphics card is slow.
WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The web processes alone: the series lie there."""
    with a_service(tmp_path_factory.mktemp("service")) as service:
        make_user(service.app, "ann")
        service.start("web")
        service.eventually(lambda: answers(service), "The web processes answer", READY_S)
        yield service


@pytest.fixture
def visit(service: Service, chromium: str) -> Iterator[Callable[..., Page]]:
    """`visit(*flags)` is a page in which Ann is logged in. Whatever the console complains of fails
    the test.
    """
    complaints: list[str] = []
    with sync_playwright() as playwright:

        def open_page(*flags: str, **options: object) -> Page:
            shared = [flag for flag in FLAGS if flag != "--disable-gpu"]
            browser = playwright.chromium.launch(executable_path=chromium, args=[*shared, *flags])
            page = browser.new_page(base_url=service.url, **options)  # type: ignore[arg-type]
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda said: complaints.append(said.text) if said.type == "error" else None,
            )
            log_in(page, "ann")
            return page

        yield open_page
    assert not complaints


def answers(service: Service) -> bool:
    """True if the web processes answer; without workers the service is never ready."""
    try:
        return requests.get(f"{service.url}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False


def a_series(service: Service) -> str:
    """Add a series of which every slice is of one gray; return the address of its page."""
    hu = np.broadcast_to(np.arange(SLICES)[:, None, None] * STEP_HU, (SLICES, 64, 64))
    return f"/scans/{add_series(service.app, hu)}"


def part(page: Page, name: str) -> Locator:
    """Return a part of the viewer."""
    return page.locator(f"[data-part={name}]")


def set_heatmap(service: Service, address: str, **columns: object) -> None:
    """Change the row of a series' heat maps."""
    with service.app.app_context():
        of_scan = Heatmap.prediction.has(scan_id=address.rsplit("/", 1)[-1])
        db.session.query(Heatmap).filter(of_scan).update(columns, synchronize_session=False)  # type: ignore[arg-type]
        db.session.commit()


def expect_slice(
    service: Service, page: Page, index: int, level: float = 40, width: float = 80
) -> None:
    """Wait until that slice is shown through that window, as its gray tells, and all controls say
    so. Heat is on; the first slice and the last have a heat map.
    """
    expect(part(page, "place")).to_have_text(re.compile(rf"^{index + 1} of {SLICES}, "))
    expect(part(page, "slider")).to_have_value(str(index + 1))
    expect(part(page, "heat")).to_be_visible(visible=index in (0, SLICES - 1))
    expect(part(page, "no-heat")).to_be_visible(visible=index not in (0, SLICES - 1))
    gray = min(max((index * STEP_HU - level + width / 2) / width, 0), 1) * 255

    def is_shown() -> bool:
        picture = Image.open(io.BytesIO(part(page, "stage").screenshot())).convert("L")
        return abs(picture.getpixel((picture.width // 2, picture.height // 3)) - gray) <= 3  # type: ignore[operator]

    service.eventually(
        is_shown, f"Slice {index} at {level}/{width} is of gray {gray:.0f}", DRAWN_MS / 1000
    )


@pytest.mark.parametrize("flags", [WEBGL, NO_WEBGL], ids=["WebGL", "pictures"])
def test_a_series_is_scrolled_and_windowed(
    service: Service, visit: Callable[..., Page], flags: tuple[str, ...], tmp_path: Path
) -> None:
    page = visit(*flags)
    page.goto(a_series(service))
    expect(part(page, "slider")).to_be_visible()
    canvas = page.locator("#viewer canvas")
    if flags is WEBGL:
        expect(canvas).to_be_visible(timeout=DRAWN_MS)
    expect(part(page, "heat")).to_be_hidden()
    page.keyboard.press("h")
    expect_slice(service, page, SLICES - 1)

    part(page, "slider").fill("3")
    expect_slice(service, page, 2)
    page.keyboard.press("ArrowDown")  # The focus is on the slider, which would go the other way.
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    expect_slice(service, page, 3)
    part(page, "stage").focus()
    page.keyboard.press("Home")
    expect_slice(service, page, 0)
    part(page, "stage").hover()
    page.mouse.wheel(0, 100)
    expect_slice(service, page, 1)
    strip = part(page, "slider").bounding_box()
    assert strip is not None
    page.mouse.click(strip["x"] + strip["width"] * 5.5 / SLICES, strip["y"] + strip["height"] / 2)
    expect_slice(service, page, 5)
    page.locator("#viewer .first-slices a").nth(1).click()
    expect_slice(service, page, SLICES - 2)
    expect(page.locator("#viewer .first-slices a[aria-current]")).to_contain_text(
        f"Slice {SLICES - 1}"
    )

    bone = page.get_by_role("button", name="Bone")
    bone.click()
    expect_slice(service, page, SLICES - 2, level=600, width=2800)
    expect(bone).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Brain").click()
    expect(bone).to_have_attribute("aria-pressed", "false")
    box = part(page, "stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 200, box["y"] + 50, steps=5)
    page.mouse.up(button="right")
    page.mouse.move(box["x"] + 300, box["y"] + 300)  # The button is up: nothing follows any more.
    expect(part(page, "window")).to_have_text("Level 60, width 120 HU")
    expect_slice(service, page, SLICES - 2, level=60, width=120)
    page.screenshot(path=tmp_path / "series.png", full_page=True)
    assert canvas.count() == (1 if flags is WEBGL else 0)


def test_heat_maps_come_to_the_slice_that_is_being_looked_at(
    service: Service, visit: Callable[..., Page]
) -> None:
    address = a_series(service)
    set_heatmap(service, address, status=JobStatus.RUNNING, slices=None)
    page = visit(*NO_WEBGL)
    page.goto(address)
    part(page, "slider").fill("1")
    part(page, "stage").evaluate("stage => { stage.neverReplaced = true; }")
    expect(page.get_by_text("The heat maps are being generated…")).to_be_visible()
    expect(part(page, "heat-on")).to_be_disabled()
    set_heatmap(service, address, status=JobStatus.DONE, slices=[0, SLICES - 1])
    expect(part(page, "heat-on")).to_be_enabled()
    expect(part(page, "heat")).to_be_hidden()
    part(page, "heat-on").check()
    expect(part(page, "heat")).to_be_visible()
    expect_slice(service, page, 0)
    assert part(page, "stage").evaluate("stage => stage.neverReplaced") is True
    page.locator("#opacity").fill("20")
    expect(part(page, "heat")).to_have_css("opacity", "0.2")


def test_keys_reach_everything_without_a_click(
    service: Service, visit: Callable[..., Page]
) -> None:
    older, newer = a_series(service), a_series(service)
    page = visit(*NO_WEBGL)
    page.goto(newer)
    expect(part(page, "window")).to_have_text("Level 40, width 80 HU")  # The scripts run.
    heat = part(page, "heat")
    expect(heat).to_be_hidden()
    page.keyboard.press("h")
    expect(heat).to_be_visible()
    page.keyboard.press("h")
    expect(heat).to_be_hidden()

    page.keyboard.press("ArrowUp")
    expect(part(page, "place")).to_have_text(re.compile(f"^{SLICES - 1} of "))
    for key, window in (("2", "80, width 200"), ("3", "600, width 2800"), ("4", "40, width 40")):
        page.keyboard.press(key)
        expect(part(page, "window")).to_have_text(f"Level {window} HU")
    page.keyboard.press("1")
    expect(part(page, "window")).to_have_text("Level 40, width 80 HU")

    keys = page.get_by_role("dialog", name="Keys")
    expect(keys).to_be_hidden()
    page.keyboard.press("?")
    expect(keys).to_be_visible()
    page.keyboard.press("ArrowUp")  # Belongs to the dialog.
    page.keyboard.press("Escape")
    expect(keys).to_be_hidden()
    expect(part(page, "place")).to_have_text(re.compile(f"^{SLICES - 1} of "))

    page.keyboard.press("f")
    expect(page.locator("#result:fullscreen")).to_have_count(1)
    expect(page.locator("#result h1")).to_be_in_viewport()
    page.keyboard.press("f")
    expect(page.locator("#result:fullscreen")).to_have_count(0)

    page.keyboard.press("j")
    expect(page).to_have_url(re.compile(f"{older}$"))
    expect(part(page, "window")).to_have_text("Level 40, width 80 HU")
    page.keyboard.press("k")
    expect(page).to_have_url(re.compile(f"{newer}$"))


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_picture_comes_first_and_the_verdict_stays(
    service: Service, visit: Callable[..., Page], width: int, height: int
) -> None:
    page = visit(*NO_WEBGL, viewport={"width": width, "height": height})
    page.goto(a_series(service))
    expect(part(page, "window")).not_to_be_empty()  # The scripts run.
    picture = part(page, "stage").bounding_box()
    assert picture is not None
    assert picture["width"] >= 380 and picture["y"] + picture["height"] < height
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    verdict = page.locator("#result h1")
    expect(verdict).to_be_in_viewport()
    expect(verdict).to_have_text("Brain Hemorrhage Detected.")


def test_without_scripts_the_slices_to_look_at_first_are_pictures_and_links(
    service: Service, visit: Callable[..., Page]
) -> None:
    page = visit(*NO_WEBGL, java_script_enabled=False)
    page.goto(a_series(service))
    expect(part(page, "image")).to_be_visible()
    expect(part(page, "slider")).to_be_hidden()
    expect(part(page, "heat")).to_be_hidden()
    part(page, "heat-on").check()
    expect(part(page, "heat")).to_be_visible()
    first = page.locator("#viewer .first-slices a")
    expect(first).to_have_count(5)
    address = first.nth(2).get_attribute("href") or ""
    assert re.search(rf"/slices/{SLICES - 3}\.png\?window=brain$", address)
    assert page.request.get(address).headers["content-type"] == "image/png"
