"""People at their browsers: pages that are logged in, what pages are asked of, and Chromium, which
is started once for each set of flags.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, expect

from tests.conftest import PASSWORD
from tests.webapp.series import add_series

if TYPE_CHECKING:
    from tests.e2e.conftest import Service

FLAGS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
SLICES = 11
STEP_HU = 8
"""From slice to slice, so that the brain window shows the first black and the last white."""


class Browsers:
    """Chromium, without windows, and who is logged in in it."""

    def __init__(self, playwright: Playwright, chromium: str) -> None:
        self._playwright, self._chromium = playwright, chromium
        self._started: dict[tuple[str, ...], Browser] = {}
        self._logins: dict[tuple[str, str], Any] = {}

    def started(self, flags: Sequence[str]) -> Browser:
        """Return Chromium with these flags besides the usual ones."""
        known = self._started.get(tuple(flags))
        if known is None:
            known = self._started[tuple(flags)] = self._playwright.chromium.launch(
                executable_path=self._chromium, args=[*FLAGS, *flags]
            )
        return known

    def context(
        self, url: str, flags: Sequence[str], user: str | None, **options: Any
    ) -> BrowserContext:
        """Return a browser of its own at a service, whose cookies nobody shares; in it `user` is
        logged in.
        """
        if user is not None:
            options["storage_state"] = self._login(url, user)
        return self.started(flags).new_context(base_url=url, **options)

    def close(self) -> None:
        """End all."""
        for browser in self._started.values():
            browser.close()

    def _login(self, url: str, user: str) -> Any:
        """Log in by the page once, and return the cookies."""
        if (url, user) not in self._logins:
            context = self.started(NO_WEBGL).new_context(base_url=url)
            log_in(context.new_page(), user)
            self._logins[url, user] = context.storage_state()
            context.close()
        return self._logins[url, user]


def send(page: Page, field: str) -> None:
    """Press the button of the form that has this field."""
    page.locator(f"main form:has([name={field}]) button").click()


def sign_up(page: Page, username: str) -> None:
    """Make an account, which logs in."""
    page.goto("/signup")
    for name, value in {
        "username": username,
        "name": "A Person",
        "email": f"{username}@example.org",
        "phone": "+49 30 1234",
    }.items():
        page.fill(f"[name={name}]", value)
    page.fill("[name=password]", PASSWORD)
    send(page, "username")
    expect(page).to_have_url(re.compile("/scans$"))


def log_in(page: Page, username: str) -> None:
    """Log in to an account that exists."""
    page.goto("/login")
    page.fill("[name=username]", username)
    page.fill("[name=password]", PASSWORD)
    send(page, "username")
    expect(page).to_have_url(re.compile("/scans$"))


def part(page: Page, name: str) -> Locator:
    """Return a part of the viewer."""
    return page.locator(f"#viewer [data-part={name}]")


def a_series(service: Service, username: str = "ann") -> str:
    """Add a series of which every slice is of one gray; return the address of its page."""
    hu = np.broadcast_to(np.arange(SLICES)[:, None, None] * STEP_HU, (SLICES, 64, 64))
    return f"/scans/{add_series(service.app, hu, username)}"
