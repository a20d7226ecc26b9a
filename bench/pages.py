"""Benchmark of pages: how much a browser with an empty cache transfers until a page is shown, with
phantoms.

    python -m bench.pages

Needs Chromium and Playwright, which the tests install. Bytes and requests do not depend on the
machine; the exit status is 1 where one exceeds its limit.
"""

from __future__ import annotations

import sys

from playwright.sync_api import Browser, Page, StorageState

from bench.alone import Figures, report
from bench.screenshots import DESK, PHANTOMS, service_in_browser, sign_up, submit

QUIET_MS = 1500
"""Milliseconds after which scripts that load more once the page is shown have done so."""
LIMITS = {
    "front_kb": 250.0,
    "worklist_kb": 150.0,
    "slice_kb": 250.0,
    "series_kb": 250.0,
    "series_requests": 30.0,
    "volume_kb": 1500.0,
}
TRANSFERRED = """() => performance.getEntriesByType("navigation")
    .concat(performance.getEntriesByType("resource")).map(each => each.transferSize)"""


def main() -> int:
    """Submit a slice and a series, open the pages, and print what each transfers."""
    with service_in_browser() as (base, browser):
        page = browser.new_page(base_url=base, viewport=DESK)
        sign_up(page)
        addresses = {
            "slice": submit(page, PHANTOMS / "phantom-5.dcm"),
            "series": submit(page, PHANTOMS / "phantom-7.zip"),
        }
        state = page.context.storage_state()
        figures = weights(fresh(browser, base, None), "/", "front")
        for name, address in {"worklist": "/scans", **addresses}.items():
            page = fresh(browser, base, state)
            figures |= weights(page, address, name)
        page.get_by_role("button", name="Coronal").click()
        page.wait_for_timeout(2 * QUIET_MS)
        figures |= transferred(page, "volume")
    return report(figures, LIMITS)


def fresh(browser: Browser, base: str, state: StorageState | None) -> Page:
    """Return a page of a browser without a cache; with a `state`, somebody is logged in."""
    return browser.new_context(base_url=base, viewport=DESK, storage_state=state).new_page()


def weights(page: Page, address: str, name: str) -> Figures:
    """Open a page, and return what it transferred."""
    page.goto(address)
    page.wait_for_timeout(QUIET_MS)
    return transferred(page, name)


def transferred(page: Page, name: str) -> Figures:
    """Return the kilobytes and the number of requests of a page so far."""
    sizes: list[int] = page.evaluate(TRANSFERRED)
    return {f"{name}_kb": sum(sizes) / 1000, f"{name}_requests": float(len(sizes))}


if __name__ == "__main__":
    sys.exit(main())
