"""Forms and bodies with fields of unexpected types, sent to every route that takes a body."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from flask import Flask
from werkzeug.datastructures import FileStorage
from wtforms.fields.core import UnboundField

from bench.fuzz.mutations import FILE_NAMES, spoiled
from bench.fuzz.odd import OBJECTS, odd_text, quoted
from bench.fuzz.page_forms import FOR_PROGRAMS, Form, FormsByRoute
from bench.fuzz.rows import ADMIN, ANONYMOUS, HALF_LOGGED_IN, USER, WITH_FACTOR, Rows
from bench.fuzz.seeds import Seed
from webapp.config import PROJECT_ROOT
from webapp.forms import PostedForm

TEMPLATES = PROJECT_ROOT / "webapp" / "templates"
NAME = re.compile(r'\bname="([a-z_]+)"')
PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
WITH_BODY = {"POST", "PUT", "PATCH"}
OF_DICOMWEB = "/dicom-web/"
SHARE_OF_FIELDS = 0.3
SHARE_OF_PAGES = 0.8
"""The share of bodies that start as a form of a page, if a page has one for the route."""
CHANGES = (0, 1, 1, 1, 2, 3)
ASKS_FOR_CODE = "/login/code"


def post_odd_types(
    rows: Rows, forms: FormsByRoute, seeds: Sequence[Seed], posts: int, seed: int
) -> None:
    """Send that many bodies with fields of unexpected types to each route that takes a body, as an
    administrator, and as many as somebody else.

    Args:
        seeds: valid files, which are corrupted where a form has a file.
    """
    rng = random.Random(f"{seed} odd types")
    names = {True: _field_names(), False: _property_names(rows.app)}
    for _ in range(posts):
        for method, route in routes_with_body(rows.app):
            is_page = not route.startswith(FOR_PROGRAMS)
            for caller in (ADMIN, rng.choice((ANONYMOUS, USER, WITH_FACTOR))):
                known = forms.get((method, route), ())
                if known and rng.random() < SHARE_OF_PAGES:
                    form = rng.choice(known)
                    address, body = form.address, _spoiled_form(rng, form, names[True], seeds)
                else:
                    address = address_of(rng, route, rows.ids[caller])
                    body = _odd_body(rng, names[is_page], rows.ids[caller])
                who = HALF_LOGGED_IN if route == ASKS_FOR_CODE else caller
                rows.ask(who, method, address, f"{method} {route} (unexpected types)", **body)


def routes_with_body(app: Flask) -> list[tuple[str, str]]:
    """Return method and route of the pages and of the API's operations that take a body."""
    return sorted(
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if not rule.rule.startswith(OF_DICOMWEB)
        for method in WITH_BODY & set(rule.methods or ())
    )


def address_of(rng: random.Random, route: str, ids: Mapping[str, Sequence[Any]]) -> str:
    """Return an address of a route, with ids that exist."""
    return PARAMETER.sub(lambda match: quote(str(rng.choice(ids[match[1]]))), route)


def _field_names() -> list[str]:
    """Return the names of all fields of the forms and the pages."""
    names = {name for page in TEMPLATES.rglob("*.html") for name in NAME.findall(page.read_text())}
    kinds = [PostedForm]
    for kind in kinds:
        kinds += kind.__subclasses__()
        names |= {name for name in vars(kind) if isinstance(getattr(kind, name), UnboundField)}
    return sorted(names - {"csrf_token"})


def _property_names(app: Flask) -> list[str]:
    """Return the names of all properties of the objects that the API's document describes."""
    document = app.test_client().get("/api/v1/openapi.json").get_json()
    schemas = document["components"]["schemas"].values()
    return sorted({name for schema in schemas for name in schema.get("properties", ())} | {"file"})


def _spoiled_form(
    rng: random.Random, form: Form, names: Sequence[str], seeds: Sequence[Seed]
) -> dict[str, Any]:
    """Return what a browser would send from a form, with up to three changes: odd values, fields
    that are missing, sent twice, foreign or of another type.
    """
    fields: list[tuple[str, Any]] = []
    for name in dict.fromkeys(name for name, _ in form.fields):
        value: Any = rng.choice([value for key, value in form.fields if key == name])
        if name in form.files:
            sound = rng.choice(seeds)
            content = spoiled(sound, [sound], rng) if rng.random() < 0.5 else sound.content
            value = FileStorage(io.BytesIO(content), rng.choice(FILE_NAMES))
        fields.append((name, value))
    for _ in range(rng.choice(CHANGES)):
        place = rng.randrange(len(fields)) if fields else 0
        name = fields[place][0] if fields else rng.choice(names)
        match rng.randrange(8):
            case 0:
                del fields[place : place + 1]
            case 1:
                fields += [(name, odd_text(rng))] * rng.choice((1, 1, 300))
            case 2:
                fields.append((rng.choice(names), odd_text(rng)))
            case 3:
                fields[place : place + 1] = [(name, FileStorage(io.BytesIO(b"text"), "a.png"))]
            case _:
                fields[place : place + 1] = [(name, odd_text(rng))]
    return _encoded(rng, fields)


def _encoded(rng: random.Random, fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return fields as arguments of a test client: as a form, as JSON, or with invalid UTF-8."""
    is_text = not any(isinstance(value, FileStorage) for _, value in fields)
    kind = rng.choice(("form", "form", "form", "json", "raw")) if is_text else "form"
    if kind == "json":
        return {"json": dict(fields)}
    if kind == "raw":
        spoiled_one = rng.randrange(len(fields) + 1)
        body = "&".join(
            f"{quote(name)}={quoted(rng)}" if place == spoiled_one else urlencode({name: value})
            for place, (name, value) in enumerate(fields)
        )
        return {"data": body, "content_type": "application/x-www-form-urlencoded"}
    form: dict[str, list[Any]] = {}
    for name, value in fields:
        form.setdefault(name, []).append(value)
    return {"data": form}


def _odd_body(
    rng: random.Random, names: Sequence[str], ids: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return a body whose fields have any type: JSON, or a form of text and files; some fields have
    an id that exists.
    """
    fields = [name for name in names if rng.random() < SHARE_OF_FIELDS]
    if rng.random() < 0.4:
        known = {name: rng.choice(ids[name]) for name in fields if name in ids}
        texts = {name: value for name, value in known.items() if isinstance(value, str)}
        whole = {name: rng.choice(OBJECTS) for name in fields} | texts
        return {"json": rng.choice([whole, whole, rng.choice(OBJECTS)])}
    values = [
        (name, FileStorage(io.BytesIO(b"text"), rng.choice(FILE_NAMES)))
        if rng.random() < 0.3
        else (name, odd_text(rng))
        for name in fields
        for _ in range(rng.choice((1, 1, 2)))
    ]
    return _encoded(rng, values)
