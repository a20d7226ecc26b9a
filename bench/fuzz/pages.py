"""The web forms: mutated files and unusual text, sent like a browser, and the resulting pages."""

from __future__ import annotations

import io
import random
import re
from html import unescape

from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.datastructures import FileStorage

from bench.fuzz.mutations import FILE_NAMES
from bench.fuzz.service import PASSWORD, USERNAME, Service, Tally
from webapp.extensions import db
from webapp.models import Scan

MARKUP = "<script>alert(1)</script>"
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
FORMS = {
    "/login": ("username", "password", "next"),
    "/signup": ("username", "name", "email", "phone", "password"),
    "/account": ("current_password", "password"),
    "/account/tokens": ("name", "token_password"),
    "/account/delete": ("your_password",),
    "/scans": ("file", "title", "together", "stat", "keep_names"),
    "/scans/phantom": ("name",),
}
"""The fields of the forms that any user may post."""
VALUES: tuple[object, ...] = (0, -1, 1.5, True, None, [], ["a", "b"], [1], {"a": 1}, "text")
REFUSAL = re.compile(r'<p class="error"[^>]*>(.*?)</p>', re.DOTALL)


def post_odd_types(given: Service, posts: int, seed: int, tally: Tally) -> None:
    """Post that many forms with fields of wrong types as a logged-in user."""
    browser, rng = Browser(given), random.Random(f"{seed} odd types")
    for _ in range(posts):
        browser.post_odd_types(rng, tally)


class Browser:
    """A browser with the fuzzer's user logged in."""

    def __init__(self, given: Service) -> None:
        self.given = given
        self.client: FlaskClient = given.app.test_client()
        self.client.post(
            "/login",
            data={"username": USERNAME, "password": PASSWORD, "csrf_token": self._token("/login")},
        )
        self._csrf_token = self._token("/scans")

    def _token(self, page: str) -> str:
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', self.client.get(page).text)
        if found is None:
            raise RuntimeError(f"The page {page} has no form.")
        return found[1]

    def upload(self, content: bytes, rng: random.Random, tally: Tally) -> tuple[list[str], str]:
        """Send one file by the form; return the ids of its scans, none if it was refused, and the
        error message.
        """
        with self.given.app.app_context():
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
        answer = self.client.post("/scans", data=form)
        self._note("POST /scans (the form)", answer.status_code, answer.text, tally)
        with self.given.app.app_context():
            ids = sorted(set(db.session.scalars(select(Scan.id))) - before)
        tally.check(
            answer.status_code in (302, 400), f"the form was answered with {answer.status_code}"
        )
        tally.check(
            (answer.status_code == 302) == bool(ids),
            "the form was refused and made a scan, or the other way round",
        )
        said = " ".join(REFUSAL.findall(answer.text))
        return ids, unescape(said)

    def look_at(self, scan_id: str, tally: Tally) -> None:
        """Open the page of a scan and the history."""
        for page, name in (
            (f"/scans/{scan_id}", "GET /scans/{scan_id} (the page)"),
            ("/scans", "GET /scans (the page)"),
        ):
            answer = self.client.get(page)
            self._note(name, answer.status_code, answer.text, tally)
            tally.check(answer.status_code == 200, f"a page was answered with {answer.status_code}")

    def post_odd_types(self, rng: random.Random, tally: Tally) -> None:
        """Post a form with field types that a browser does not send."""
        path, fields = rng.choice(list(FORMS.items()))
        headers = {"X-CSRFToken": self._csrf_token}
        if rng.random() < 0.5:
            body = rng.choice([{name: rng.choice(VALUES) for name in fields}, rng.choice(VALUES)])
            answer = self.client.post(path, json=body, headers=headers)
        else:
            form = {
                name: rng.choice(["text", FileStorage(io.BytesIO(b"text"), "text.txt")])
                for name in fields
            }
            answer = self.client.post(path, data=form, headers=headers)
        self._note(f"POST {path} (odd types)", answer.status_code, answer.text, tally)
        tally.check(
            answer.status_code < 500, f"odd types at {path} were answered with {answer.status_code}"
        )

    @staticmethod
    def _note(operation: str, status: int, page: str, tally: Tally) -> None:
        tally.statuses[operation, status] += 1
        tally.check(MARKUP not in page, "a page shows a text as markup")
