"""A series in a real browser: with WebGL, with pictures alone, and without scripts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.e2e.browser import NO_WEBGL, PHONE, SLICES, STEP_HU, WEBGL, a_series, part
from tests.e2e.conftest import Service
from tests.webapp.scans.test_outlines import add_outlined
from tests.webapp.series import add_series
from webapp.extensions import db
from webapp.models import Heatmap, JobStatus, Scan

DRAWN_MS = 30_000  # A processor that plays a graphics card is slow.
AROUND_AND_INSIDE = ((15.5, 32), (24, 32))
"""Places of a slice on the contour of the mask, and in the middle of the mask."""


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
    page = visit(*flags, user="ann")
    page.goto(a_series(service))
    expect(part(page, "slider")).to_be_visible()
    canvas = page.locator("#viewer canvas")
    expect(part(page, "heat")).to_be_hidden()
    page.keyboard.press("h")
    expect_slice(service, page, SLICES - 1)
    assert canvas.count() == 0  # Nobody has scrolled yet.

    part(page, "slider").fill("3")
    expect_slice(service, page, 2)
    if flags is WEBGL:
        expect(canvas).to_be_visible(timeout=DRAWN_MS)
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


def test_heat_maps_that_were_asked_for_come_to_the_slice_that_is_being_looked_at(
    service: Service, visit: Callable[..., Page]
) -> None:
    address = a_series(service)
    with service.app.app_context():
        scan = db.session.get_one(Scan, address.rsplit("/", 1)[-1])
        drawn = scan.prediction.heatmap
        columns = {"id": drawn.id, "image_key": drawn.image_key, "slices": drawn.slices}
        db.session.delete(drawn)
        db.session.commit()
    page = visit(*NO_WEBGL, user="ann")
    page.goto(address)
    page.keyboard.press("h")
    expect(page.get_by_text("The heat maps are being generated…")).to_be_visible()
    expect(part(page, "window")).to_have_text("Level 40, width 80 HU")  # The scripts run.
    expect(part(page, "heat-on")).to_be_disabled()
    part(page, "slider").fill("1")
    part(page, "stage").evaluate("stage => { stage.neverReplaced = true; }")
    set_heatmap(service, address, status=JobStatus.DONE, **columns)
    expect(part(page, "heat")).to_be_visible()
    expect(part(page, "heat-on")).to_be_checked()
    expect_slice(service, page, 0)
    assert part(page, "stage").evaluate("stage => stage.neverReplaced") is True
    page.locator("#opacity").fill("20")
    expect(part(page, "heat")).to_have_css("opacity", "0.2")


def test_keys_reach_everything_without_a_click(
    service: Service, visit: Callable[..., Page]
) -> None:
    older, unread, newer = (a_series(service) for _ in range(3))
    with service.app.app_context():
        for address in (older, newer):
            db.session.get_one(Scan, address.rsplit("/", 1)[-1]).title = "Follow-up"
        db.session.commit()
    page = visit(*NO_WEBGL, user="ann")
    page.goto("/scans?title=follow-up")
    page.locator(f"a[href^='{newer}']").click()
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

    keys = page.get_by_role("dialog", name="Keyboard shortcuts")
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

    page.keyboard.press("j")  # The scan between them does not match the worklist's filter.
    expect(page).to_have_url(re.compile(f"{older}\\?title=follow-up$"))
    expect(part(page, "window")).to_have_text("Level 40, width 80 HU")
    page.keyboard.press("k")
    expect(page).to_have_url(re.compile(f"{newer}\\?title=follow-up$"))
    page.goto(newer)
    expect(page.locator("a[rel=next]")).to_have_attribute("href", unread)


def test_values_distances_and_the_other_planes(
    service: Service, visit: Callable[..., Page]
) -> None:
    slices, rows, columns = np.meshgrid(*map(np.arange, (SLICES, 64, 64)), indexing="ij")
    hu = 100 * slices + 400 * (columns >= 32) + 200 * (rows < 32)
    page = visit(*WEBGL, user="ann")
    page.goto(f"/scans/{add_series(service.app, hu)}")
    page.wait_for_load_state("networkidle")
    sent = "performance.getEntries().reduce((sum, each) => sum + (each.transferSize || 0), 0)"
    assert 0 < page.evaluate(sent) < 1_000_000
    loaded = "performance.getEntriesByType('resource').map(each => each.name.split('/').pop())"
    assert not {"volume", "niivue.umd.js"} & set(page.evaluate(loaded))

    def expect_value(across: float, down: float, value: int) -> None:
        """Both the value that is told and the gray that is drawn (bone window) must be right."""
        box = part(page, "stage").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        expect(part(page, "value")).to_have_text(f"{value} HU", timeout=DRAWN_MS)
        gray = (value - 600 + 1400) / 2800 * 255

        def is_drawn() -> bool:
            picture = Image.open(io.BytesIO(part(page, "stage").screenshot())).convert("L")
            place = (int(across * picture.width), int(down * picture.height))
            return abs(picture.getpixel(place) - gray) <= 4  # type: ignore[operator]

        service.eventually(is_drawn, f"{value} HU are drawn", DRAWN_MS / 1000)

    page.keyboard.press("3")
    expect(page.locator("#viewer canvas")).to_be_visible(timeout=DRAWN_MS)
    assert {"volume", "niivue.umd.js"} <= set(page.evaluate(loaded))
    expect_value(0.75, 0.25, 1600)
    expect_value(0.25, 0.25, 1200)
    expect_value(0.25, 0.75, 1000)
    page.keyboard.press("c")
    expect(part(page, "place")).to_have_text("33 of 64, coronal")
    expect_value(0.75, 0.23, 1200 + 200)  # The third slice from above, before the middle.
    expect_value(0.25, 0.77, 200 + 200)
    page.keyboard.press("ArrowUp")
    expect(part(page, "place")).to_have_text("32 of 64, coronal")
    expect_value(0.25, 0.77, 200)
    page.keyboard.press("s")
    expect_value(0.75, 0.23, 800 + 200)
    expect_value(0.25, 0.23, 800)
    page.keyboard.press("a")
    expect(part(page, "place")).to_have_text(re.compile(rf"^{SLICES} of {SLICES}, "))

    page.keyboard.press("r")
    box = part(page, "stage").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    expect(part(page, "length")).to_have_text(re.compile(r"^(15\.9|16\.[01]) mm$"))
    page.keyboard.press("ArrowRight")  # By keyboard: from beside the middle, ten voxels up.
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Enter")
    expect(part(page, "length")).to_have_text("5.0 mm")
    page.keyboard.press("Escape")
    expect(part(page, "length")).to_be_hidden()


def test_a_picture_is_enlarged_and_moved(service: Service, visit: Callable[..., Page]) -> None:
    page = visit(*NO_WEBGL, user="ann")
    page.goto(a_series(service))
    expect(part(page, "window")).not_to_be_empty()  # The scripts run.
    stage, picture = part(page, "stage"), part(page, "picture")
    whole = stage.bounding_box()
    assert whole is not None

    def expect_box(left: float, width: float) -> None:
        """Where the picture begins and how wide it is, in widths of the stage."""

        def is_there() -> bool:
            box = picture.bounding_box()
            assert box is not None
            place = ((box["x"] - whole["x"]) / whole["width"], box["width"] / whole["width"])
            return place == pytest.approx((left, width), abs=0.02)

        service.eventually(is_there, f"The image is at {left}, {width} wide", 5)

    page.keyboard.press("+")
    expect_box(-0.2, 1.4)
    page.keyboard.press("+")
    expect_box(-0.48, 1.96)
    x, y = whole["x"] + whole["width"] / 2, whole["y"] + whole["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.3 * whole["width"], y, steps=4)
    page.mouse.up()
    expect_box(-0.18, 1.96)
    page.keyboard.press("0")
    expect_box(0, 1)
    page.mouse.move(whole["x"] + 1, y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -50)
    page.keyboard.up("Control")
    expect_box(0, 1.65)
    page.get_by_role("button", name="Fit").click()
    expect_box(0, 1)
    expect(part(page, "place")).to_have_text(re.compile(f"^{SLICES} of "))  # Nothing has scrolled.


def test_the_outline_is_drawn_around_the_hemorrhage_when_somebody_asks(
    service: Service, visit: Callable[..., Page]
) -> None:
    masks = np.zeros((SLICES, 64, 64), bool)
    masks[-1, 24:40, 16:32] = True
    page = visit(*WEBGL, user="ann")
    page.goto(f"/scans/{add_outlined(service.app, masks)}")
    expect(part(page, "outline")).to_be_hidden()
    page.keyboard.press("o")
    expect(part(page, "outline")).to_be_visible()

    def is_drawn() -> bool:
        picture = Image.open(io.BytesIO(part(page, "outline").screenshot())).convert("RGB")
        side = picture.width / 64
        at = (picture.getpixel((round(x * side), round(y * side))) for x, y in AROUND_AND_INSIDE)
        around, inside = (max(color) - min(color) > 100 for color in at)  # type: ignore[arg-type]
        return around and not inside

    service.eventually(is_drawn, "The contour runs around the mask", DRAWN_MS / 1000)
    page.keyboard.press("ArrowUp")
    expect(part(page, "outline")).to_be_hidden()
    expect(part(page, "no-outline")).to_be_visible()


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_picture_comes_first_and_the_verdict_stays(
    service: Service, visit: Callable[..., Page], width: int, height: int
) -> None:
    page = visit(*NO_WEBGL, user="ann", viewport={"width": width, "height": height})
    page.goto(a_series(service))
    expect(part(page, "window")).not_to_be_empty()  # The scripts run.
    picture = part(page, "stage").bounding_box()
    assert picture is not None
    assert picture["width"] >= 380 and picture["y"] + picture["height"] < height
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scrolls = "getComputedStyle(each).overflowX === 'auto'"
    cut = f"each => each.offsetParent && !({scrolls}) && each.scrollWidth > each.clientWidth + 1"
    controls = page.locator("#viewer .controls, #viewer .controls > *")
    assert controls.evaluate_all(f"all => all.filter({cut}).length") == 0
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    verdict = page.locator("#result h1")
    expect(verdict).to_be_in_viewport()
    expect(verdict).to_have_text("Brain Hemorrhage Detected.")


def test_a_lost_picture_says_so_and_fingers_scroll_and_zoom(
    service: Service, visit: Callable[..., Page]
) -> None:
    page = visit(*NO_WEBGL, user="ann", lossy=True, viewport=PHONE, has_touch=True)
    page.route("**/slices/*.png**", lambda route: route.abort())
    page.goto(a_series(service))
    expect(part(page, "failed")).to_contain_text(f"Slice {SLICES} could not be loaded.")
    page.unroute("**/slices/*.png**")
    page.get_by_role("button", name="Try again").tap()
    expect(part(page, "failed")).to_be_hidden()
    expect(part(page, "image")).to_have_js_property("naturalWidth", 64)
    small = "each => each.offsetParent && each.getBoundingClientRect().height < 40"
    assert page.locator("#viewer button").evaluate_all(f"all => all.filter({small}).length") == 0

    box = part(page, "stage").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x + dx, "y": y + dy, "id": id} for id, (dx, dy) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", (0, 0))
    for across in range(-10, -61, -10):
        fingers("touchMove", (across, 0))
    fingers("touchEnd")
    expect(part(page, "place")).to_have_text(re.compile(f"^{SLICES - 2} of "))
    fingers("touchStart", (-20, 0), (20, 0))
    for apart in range(20, 61, 10):
        fingers("touchMove", (-apart, 0), (apart, 0))
    fingers("touchEnd")
    expect(part(page, "picture")).to_have_attribute("style", re.compile(r"scale\((2|3)\.?"))
    expect(part(page, "place")).to_have_text(re.compile(f"^{SLICES - 2} of "))


def test_without_scripts_the_slices_to_look_at_first_are_pictures_and_links(
    service: Service, visit: Callable[..., Page]
) -> None:
    page = visit(*NO_WEBGL, user="ann", java_script_enabled=False)
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
