"""The web forms: mutated files and unusual text, sent like a browser, and the resulting pages."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Mapping, Sequence
from html import unescape
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.datastructures import FileStorage
from wtforms.fields.core import UnboundField

from bench.fuzz.mutations import FILE_NAMES
from bench.fuzz.service import (
    ADMIN,
    ADMIN_WITH_FACTOR,
    PASSWORD,
    USERNAME,
    Service,
    Tally,
)
from tests.webapp.intake.made import picture
from webapp.config import PROJECT_ROOT
from webapp.extensions import db
from webapp.forms import PostedForm
from webapp.models import Dataset, ModelVersion, Scan, User

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
TEMPLATES = PROJECT_ROOT / "webapp" / "templates"
TARGET = "fuzz-target"
"""The user who is disabled and deleted."""
NAME = re.compile(r'\bname="([a-z_]+)"')
PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
FOR_PROGRAMS = ("/api/", "/dicom-web/")
WITH_BODY = {"POST", "PUT", "PATCH"}
NOT_POSTED = ("/logout", "/account/logins/end-others")
"""Routes without fields, which end the sessions that the other requests need."""
SHARE_OF_FIELDS = 0.3
VALUES: tuple[object, ...] = (
    *(0, -1, 1.5, 10**30, True, None),
    *([], ["a", "b"], [1], {"a": 1}, {"a": []}),
    *("text", "\0", "\ud800", "x" * 10_000),
)
TEXTS = ("text", "123456", "", "-1", "9" * 400, "NaN", "\0", MARKUP, "x" * 10_000)
RAW = (b"%ED%A0%80", b"%FF", b"%00", b"a&a&=&&", b"%", b"%F0%9F")
"""Form values as they are sent, including lone surrogates and invalid text."""
REFUSAL = re.compile(r'<p class="error"[^>]*>(.*?)</p>', re.DOTALL)


def post_odd_types(service: Service, posts: int, seed: int, tally: Tally) -> None:
    """Send that many bodies with fields of unexpected types to each route that takes a body: to
    pages as an administrator (who may open all of them), as a user without a second factor, as one
    with it, and as one who was asked for the code; to the API with an administrator's token.
    """
    rng = random.Random(f"{seed} odd types")
    browsers = [
        Browser(service, ADMIN),
        Browser(service, ADMIN_WITH_FACTOR),
        Browser(service, ADMIN),
    ]
    token = service.new_token(ADMIN)
    parameters = _parameters(service, browsers[0], token)
    browsers[2].give_password(ADMIN_WITH_FACTOR)
    routes, names = forms_of(service.app), field_names()
    api, names_of_api = operations_of(service.app), property_names(service.app)
    for _ in range(posts):
        for route in routes:
            rng.choice(browsers).post_odd_types(rng, tally, route, names, parameters)
        for method, route in api:
            client = service.client(token)
            _ask_odd_types(client, rng, tally, (method, route), names_of_api, parameters)


def forms_of(app: Flask) -> list[str]:
    """Return the routes of the pages that take a form."""
    return sorted(
        rule.rule
        for rule in app.url_map.iter_rules()
        if "POST" in (rule.methods or ())
        and not rule.rule.startswith(FOR_PROGRAMS)
        and rule.rule not in NOT_POSTED
    )


def operations_of(app: Flask) -> list[tuple[str, str]]:
    """Return method and route of the operations of the API that take a body."""
    return sorted(
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/")
        for method in WITH_BODY & set(rule.methods or ())
    )


def field_names() -> list[str]:
    """Return the names of all fields of the forms and the pages."""
    names = {name for page in TEMPLATES.rglob("*.html") for name in NAME.findall(page.read_text())}
    kinds = [PostedForm]
    for kind in kinds:
        kinds += kind.__subclasses__()
        names |= {name for name in vars(kind) if isinstance(getattr(kind, name), UnboundField)}
    return sorted(names - {"csrf_token"})


def property_names(app: Flask) -> list[str]:
    """Return the names of all properties of the objects that the API's document describes."""
    document = app.test_client().get("/api/v1/openapi.json").get_json()
    schemas = document["components"]["schemas"].values()
    return sorted({name for schema in schemas for name in schema.get("properties", ())} | {"file"})


def _parameters(service: Service, browser: Browser, token: str) -> dict[str, str]:
    """Return values for the parameters of routes: ids of existing objects, a user whom nothing else
    needs, and a link for resetting a password.
    """
    with service.app.app_context():
        target = User(username=TARGET, password=PASSWORD)
        dataset = Dataset(name="fuzz", archive_key="datasets/none.zip")
        version_id = db.session.scalars(select(ModelVersion.id)).first() or ""
        db.session.add_all([target, dataset])
        db.session.commit()
        ids = {"version_id": version_id, "user_id": target.id, "dataset_id": dataset.id}
    sent = service.app.test_client().post(
        "/api/v1/scans",
        data={"file": (io.BytesIO(picture()), "1")},
        headers={"Authorization": f"Bearer {token}"},
    )
    return {
        **ids,
        "scan_id": sent.get_json()["id"],
        "kind": "pdf",
        "secret": browser.make_reset_link(),
    }


def _address(route: str, parameters: Mapping[str, str]) -> str:
    """Return the URL of a route; an unknown parameter becomes the number 1, which is no id."""
    return PARAMETER.sub(lambda match: parameters.get(match[1], "1"), route)


def _odd_body(rng: random.Random, names: Sequence[str]) -> dict[str, Any]:
    """Return a body with fields of unexpected types, as arguments of a test client: JSON, a form
    whose fields are text, files or both, once or several times, or a form with values that are not
    text.
    """
    fields = [name for name in names if rng.random() < SHARE_OF_FIELDS]
    kind = rng.choice(("json", "form", "form", "raw"))
    if kind == "json":
        whole = {name: rng.choice(VALUES) for name in fields}
        return {"json": rng.choice([whole, whole, rng.choice(VALUES)])}
    if kind == "raw":
        body = b"&".join(name.encode() + b"=" + rng.choice(RAW) for name in fields)
        return {"data": body, "content_type": "application/x-www-form-urlencoded"}
    form = {
        name: [
            FileStorage(io.BytesIO(b"text"), rng.choice(FILE_NAMES))
            if rng.random() < 0.5
            else rng.choice(TEXTS)
            for _ in range(rng.choice((1, 1, 2)))
        ]
        for name in fields
    }
    return {"data": form}


def _ask_odd_types(
    client: FlaskClient,
    rng: random.Random,
    tally: Tally,
    operation: tuple[str, str],
    names: Sequence[str],
    parameters: Mapping[str, str],
) -> None:
    """Send a body with unexpected types to an operation of the API."""
    method, route = operation
    address = _address(route, parameters)
    answer = client.open(address, method=method, **_odd_body(rng, names))
    label = f"{method} {route} (unexpected types)"
    tally.statuses[label, answer.status_code] += 1
    tally.check(answer.status_code < 500, f"{label} was answered with {answer.status_code}")


class Browser:
    """A browser in which one of the fuzzer's users is logged in."""

    def __init__(self, service: Service, username: str = USERNAME) -> None:
        self.service = service
        self.client: FlaskClient = service.app.test_client()
        self._csrf_token = ""
        self.give_password(username)
        if username == ADMIN_WITH_FACTOR:
            self._post("/login/code", code=service.recovery_code)
        self._csrf_token = self._token("/scans")

    def give_password(self, username: str) -> None:
        """Log in as that user, as far as a password alone goes."""
        self._csrf_token = self._csrf_token or self._token("/login")
        self._post("/login", username=username, password=PASSWORD)

    def make_reset_link(self) -> str:
        """Return the secret of a new link with which the usual user can reset the password."""
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
            answer = self.client.get(page)
            self._note(name, answer.status_code, answer.text, tally)
            tally.check(answer.status_code == 200, f"a page was answered with {answer.status_code}")

    def post_odd_types(
        self,
        rng: random.Random,
        tally: Tally,
        route: str,
        names: Sequence[str],
        parameters: Mapping[str, str],
    ) -> None:
        """Post a form whose fields have other types than a browser sends."""
        answer = self.client.post(
            _address(route, parameters),
            headers={"X-CSRFToken": self._csrf_token},
            **_odd_body(rng, names),
        )
        self._note(f"POST {route} (unexpected types)", answer.status_code, answer.text, tally)
        tally.check(
            answer.status_code < 500,
            f"unexpected types at {route} were answered with {answer.status_code}",
        )

    @staticmethod
    def _note(operation: str, status: int, page: str, tally: Tally) -> None:
        tally.statuses[operation, status] += 1
        tally.check(MARKUP not in page, "a page renders text as markup")
