"""The form for uploads: mutated files and unusual text, sent like a browser, and the resulting
pages.
"""

from __future__ import annotations

import io
import random
import re
import time
from html import unescape
from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse

from bench.fuzz.mutations import FILE_NAMES
from bench.fuzz.odd import MARKUP
from bench.fuzz.service import PASSWORD, USERNAME, Service
from bench.fuzz.tally import Tally
from webapp.extensions import db
from webapp.models import Scan

TITLES = (
    "",
    " ",
    "A head",
    MARKUP,
    "'\"><img src=x>",
    "{{ 7 * 7 }}",
    "\0",
    "\u202ereversed",
    "é" * 80,
    "x" * 81,
    "x" * 100_000,
    "=1+1",
    "a\r\nb: c",
)
CHOICES = ("", "y", "n", "0", "off", "\0", MARKUP)
REFUSAL = re.compile(r'<p class="error"[^>]*>(.*?)</p>', re.DOTALL)


class Browser:
    """A browser in which the fuzzer's user is logged in."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.client: FlaskClient = service.app.test_client()
        form = {"csrf_token": self._token("/login"), "username": USERNAME, "password": PASSWORD}
        self.client.post("/login", data=form)
        self._csrf_token = self._token("/scans")

    def _token(self, page: str) -> str:
        field = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', self.client.get(page).text)
        if field is None:
            raise RuntimeError(f"The page {page} has no form.")
        return field[1]

    def upload(self, content: bytes, rng: random.Random, tally: Tally) -> tuple[list[str], str]:
        """Send one file by the form; return the ids of its scans, none if it was refused, and the
        error message.
        """
        with self.service.app.app_context():
            before = set(db.session.scalars(select(Scan.id)))
        form = {
            "csrf_token": self._csrf_token,
            "file": FileStorage(io.BytesIO(content), rng.choice(FILE_NAMES)),
            "title": rng.choice(TITLES),
            **{
                name: rng.choice(CHOICES)
                for name in ("together", "stat", "keep_names")
                if rng.random() < 0.5
            },
        }
        answer = self._ask("POST", "/scans", "POST /scans (the form)", tally, data=form)
        with self.service.app.app_context():
            ids = sorted(set(db.session.scalars(select(Scan.id))) - before)
        tally.check(
            answer.status_code in (302, 400), f"the form was answered with {answer.status_code}"
        )
        tally.check(
            (answer.status_code == 302) == bool(ids),
            "the form was rejected but created a scan, or the other way round",
        )
        refusal = " ".join(REFUSAL.findall(answer.text))
        return ids, unescape(refusal)

    def look_at(self, scan_id: str, tally: Tally) -> None:
        """Open a scan's page and the history."""
        for page, name in (
            (f"/scans/{scan_id}", "GET /scans/{scan_id} (the page)"),
            ("/scans", "GET /scans (the page)"),
        ):
            answer = self._ask("GET", page, name, tally)
            tally.check(answer.status_code == 200, f"a page was answered with {answer.status_code}")

    def _ask(
        self, method: str, address: str, operation: str, tally: Tally, **arguments: Any
    ) -> TestResponse:
        began = time.monotonic()
        answer = self.client.open(address, method=method, **arguments)
        tally.answered(operation, answer.status_code, time.monotonic() - began)
        tally.check_page(operation, answer.text)
        return answer
