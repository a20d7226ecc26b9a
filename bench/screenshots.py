"""Make the screenshots in docs/ and on the front page: the worklist, a series and a single
slice, with phantoms.

    python -m bench.screenshots

Needs Chromium and Playwright, which the tests install.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from bench.service import running_service
from webapp.config import PROJECT_ROOT

DOCS = PROJECT_ROOT / "docs"
STATIC = PROJECT_ROOT / "webapp" / "static"
PHANTOMS = STATIC / "phantoms"
DESK: ViewportSize = {"width": 1440, "height": 900}
SMALL_DESK: ViewportSize = {"width": 1200, "height": 800}
VERDICT = re.compile("Brain Hemorrhage Detected")
VERDICT_MS = 60_000


def main() -> int:
    """Start the service on an empty folder, submit the phantoms, and write the pictures."""
    with service_in_browser() as (base, browser):
        page = browser.new_page(base_url=base, viewport=DESK, color_scheme="light")
        sign_up(page)
        addresses = [submit(page, file) for file in sorted(PHANTOMS.glob("phantom-*.*"))]
        page.goto("/scans")
        picture(page, "worklist.png")
        page.goto(next(each for each in addresses if is_series(page, each)))
        page.keyboard.press("o")
        picture(page, "series.png")
        front_picture(page)
        page.set_viewport_size(DESK)
        page.goto(addresses[0])
        page.keyboard.press("o")
        picture(page, "screenshot.png")
    return 0


@contextmanager
def service_in_browser() -> Iterator[tuple[str, Browser]]:
    """Yield the URL of a service on an empty folder, and a browser.

    Raises:
        SystemExit: there is no Chromium here.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("There is no Chromium here.")
    with running_service() as service, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield f"http://127.0.0.1:{service.port}", browser
        browser.close()


def sign_up(page: Page) -> None:
    """Make an account."""
    page.goto("/signup")
    for name, value in {
        "username": "reader",
        "name": "A Reader",
        "email": "reader@example.org",
        "phone": "+49 30 1234",
    }.items():
        page.fill(f"[name={name}]", value)
    page.fill("[name=password]", "a long enough password")
    page.press("[name=password]", "Enter")
    expect(page).to_have_url(re.compile("/scans"))


def submit(page: Page, file: Path) -> str:
    """Submit a scan, wait for its verdict, and return the URL of its page."""
    page.goto("/scans/new")
    page.set_input_files("main form [name=file]", file)
    page.locator("main form:has([name=file]) button[type=submit]").click()
    expect(page).to_have_url(re.compile("/scans/[0-9a-f]{32}$"))
    expect(page.get_by_text(VERDICT).first).to_be_visible(timeout=VERDICT_MS)
    return page.url


def is_series(page: Page, address: str) -> bool:
    """Whether a page shows a positive series."""
    page.goto(address)
    return page.locator("#slice").count() > 0 and page.locator(".verdict.suspected").count() > 0


def picture(page: Page, name: str) -> None:
    """Save a screenshot of the window to docs/."""
    page.wait_for_timeout(1500)  # until images have loaded
    page.screenshot(path=DOCS / name)
    sys.stdout.write(f"docs/{name}\n")


def front_picture(page: Page) -> None:
    """Save the picture of the front page: the series shown, from the verdict to the end of the
    viewer.
    """
    page.set_viewport_size(SMALL_DESK)
    page.wait_for_timeout(1500)
    top, end = (page.locator(part).bounding_box() for part in ("#result > .verdict", "#viewer"))
    assert top is not None and end is not None
    clip = {**top, "height": end["y"] + end["height"] - top["y"]}
    page.screenshot(path=STATIC / "series.jpg", type="jpeg", quality=80, clip=clip)  # type: ignore[arg-type]
    sys.stdout.write("webapp/static/series.jpg\n")


if __name__ == "__main__":
    sys.exit(main())
