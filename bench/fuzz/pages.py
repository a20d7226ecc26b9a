"""The web forms: mutated files and unusual text, sent like a browser, and the resulting pages."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Mapping
from html import unescape

from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.datastructures import FileStorage

from bench.fuzz.mutations import FILE_NAMES
from bench.fuzz.service import (
    ADMIN,
    ADMIN_WITH_FACTOR,
    PASSWORD,
    USERNAME,
    Service,
    Tally,
)
from webapp.extensions import db
from webapp.models import ModelVersion, Scan, User

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
    "/account/tokens": ("name", "scopes", "days", "token_password"),
    "/account/delete": ("your_password",),
    "/account/second-factor": ("factor_password",),
    "/account/second-factor/confirm": ("code",),
    "/account/second-factor/recovery-codes": ("factor_password", "factor_code"),
    "/account/second-factor/remove": ("factor_password", "factor_code"),
    "/login/code": ("code",),
    "/reset/{reset_link}": ("password",),
    "/scans": ("file", "title", "together", "stat", "keep_names"),
    "/scans/phantom": ("name",),
    "/admin/datasets": ("name", "archive"),
    "/admin/runs/new": ("architecture", "datasets", "initial_weights", "seed", "epochs"),
    "/admin/models/{version_id}/promote": ("reason", "seen", "confirmation", "point"),
    "/admin/models/{version_id}/evaluate": ("dataset",),
}
"""The fields of all forms."""
VALUES: tuple[object, ...] = (0, -1, 1.5, True, None, [], ["a", "b"], [1], {"a": 1}, "text")
TEXTS = ("text", "123456", "", "\0", MARKUP, "x" * 10_000)
REFUSAL = re.compile(r'<p class="error"[^>]*>(.*?)</p>', re.DOTALL)


def post_odd_types(service: Service, posts: int, seed: int, tally: Tally) -> None:
    """Post so many forms with fields of odd types, as an administrator, to whom all are open: one
    without a second factor, one with, and one who was asked for the code.
    """
    rng = random.Random(f"{seed} odd types")
    browsers = [
        Browser(service, ADMIN),
        Browser(service, ADMIN_WITH_FACTOR),
        Browser(service, ADMIN),
    ]
    with service.app.app_context():
        version_id = db.session.scalars(select(ModelVersion.id)).first()
    addresses = {"version_id": version_id, "reset_link": browsers[0].make_reset_link()}
    browsers[2].give_password(ADMIN_WITH_FACTOR)
    for _ in range(posts):
        rng.choice(browsers).post_odd_types(rng, tally, addresses)


class Browser:
    """A browser in which a person of the fuzzer is logged in."""

    def __init__(self, service: Service, username: str = USERNAME) -> None:
        self.service = service
        self.client: FlaskClient = service.app.test_client()
        self._csrf_token = ""
        self.give_password(username)
        if username == ADMIN_WITH_FACTOR:
            self._post("/login/code", code=service.recovery_code)
        self._csrf_token = self._token("/scans")

    def give_password(self, username: str) -> None:
        """Log in as that person, as far as the password does it."""
        self._csrf_token = self._csrf_token or self._token("/login")
        self._post("/login", username=username, password=PASSWORD)

    def make_reset_link(self) -> str:
        """Return the secret of a new link with which the usual person sets a new password."""
        with self.service.app.app_context():
            user_id = db.session.scalar(select(User.id).where(User.username == USERNAME))
        page = self._post(f"/admin/users/{user_id}/reset-link")
        link = re.search(r"/reset/([\w-]+)", page)
        if link is None:
            raise RuntimeError("There is no link to a new password.")
        return link[1]

    def _post(self, path: str, **fields: str) -> str:
        headers = {"X-CSRFToken": self._csrf_token}
        return self.client.post(path, data=fields, headers=headers).text

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
        answer = self.client.post("/scans", data=form)
        self._note("POST /scans (the form)", answer.status_code, answer.text, tally)
        with self.service.app.app_context():
            ids = sorted(set(db.session.scalars(select(Scan.id))) - before)
        tally.check(
            answer.status_code in (302, 400), f"the form was answered with {answer.status_code}"
        )
        tally.check(
            (answer.status_code == 302) == bool(ids),
            "the form was refused and made a scan, or the other way round",
        )
        refusal = " ".join(REFUSAL.findall(answer.text))
        return ids, unescape(refusal)

    def look_at(self, scan_id: str, tally: Tally) -> None:
        """Open the page of a scan and the history."""
        for page, name in (
            (f"/scans/{scan_id}", "GET /scans/{scan_id} (the page)"),
            ("/scans", "GET /scans (the page)"),
        ):
            answer = self.client.get(page)
            self._note(name, answer.status_code, answer.text, tally)
            tally.check(answer.status_code == 200, f"a page was answered with {answer.status_code}")

    def post_odd_types(
        self, rng: random.Random, tally: Tally, addresses: Mapping[str, str | None]
    ) -> None:
        """Post a form whose fields are of other types than a browser sends: a JSON body, or a form
        in which fields are texts, files, or both, once or several times.

        Args:
            addresses: what stands for the parts in braces of a form's address.
        """
        form_at, fields = rng.choice(list(FORMS.items()))
        path = form_at.format(**addresses)
        headers = {"X-CSRFToken": self._csrf_token}
        if rng.random() < 0.5:
            body = rng.choice([{name: rng.choice(VALUES) for name in fields}, rng.choice(VALUES)])
            answer = self.client.post(path, json=body, headers=headers)
        else:
            form = {
                name: [
                    FileStorage(io.BytesIO(b"text"), "text.txt")
                    if rng.random() < 0.5
                    else rng.choice(TEXTS)
                    for _ in range(rng.choice((1, 1, 2)))
                ]
                for name in fields
            }
            answer = self.client.post(path, data=form, headers=headers)
        self._note(f"POST {form_at} (odd types)", answer.status_code, answer.text, tally)
        tally.check(
            answer.status_code < 500,
            f"odd types at {form_at} were answered with {answer.status_code}",
        )

    @staticmethod
    def _note(operation: str, status: int, page: str, tally: Tally) -> None:
        tally.statuses[operation, status] += 1
        tally.check(MARKUP not in page, "a page shows a text as markup")
