"""The forms in the pages: where they are sent, and what a browser would send."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import parse_qsl, urljoin, urlsplit

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from bench.fuzz.rows import ADMIN, ANONYMOUS, USER, Rows

UNSENT = ("submit", "reset", "image", "button")
FOR_PROGRAMS = ("/api/", "/dicom-web/")


@dataclass
class Form:
    """A form of a page.

    Attributes:
        fields: name and value of each field, in order; a name occurs once for each value that can
            be chosen.
        files: the names of the fields for files.
    """

    address: str
    method: str = "GET"
    fields: list[tuple[str, str]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)


FormsByRoute = dict[tuple[str, str], list[Form]]
"""Forms by method and route."""


class Reader(HTMLParser):
    """Reads the forms of a page, and the queries of its links, which are forms without a button."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.forms = address, list[Form]()
        self._by_id: dict[str, Form] = {}
        self._open: Form | None = None
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in a form, a field or a link."""
        own = {name: value or "" for name, value in attrs}
        if tag == "form":
            method = own.get("method", "GET").upper()
            form = self._form(own.get("id", ""))
            form.address, form.method = urljoin(self.address, own.get("action", "")), method
            self._open = form
        elif tag == "a" and "?" in own.get("href", ""):
            target = urlsplit(urljoin(self.address, own["href"]))
            self.forms.append(Form(target.path, "GET", parse_qsl(target.query)))
        form_of_field = self._form(own["form"]) if "form" in own else self._open
        if form_of_field is None:
            return
        if tag == "select":
            self._select = own.get("name", "")
        elif tag == "option" and self._select:
            form_of_field.fields.append((self._select, own.get("value", "")))
        elif tag in ("input", "textarea", "button") and own.get("name"):
            if own.get("type") == "file":
                form_of_field.files.add(own["name"])
            form_of_field.fields.append((own["name"], own.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        """End a form or a field."""
        if tag == "form":
            self._open = None
        elif tag == "select":
            self._select = ""

    def _form(self, name: str) -> Form:
        """Return the form with that id, a new one without an id."""
        if name and name in self._by_id:
            return self._by_id[name]
        form = Form(self.address)
        self.forms.append(form)
        if name:
            self._by_id[name] = form
        return form


def forms_in_pages(rows: Rows) -> FormsByRoute:
    """Return the forms of all pages that the user, the administrator and anybody see."""
    found: FormsByRoute = {}
    for caller in (ANONYMOUS, USER, ADMIN):
        client = rows.client(caller)
        for address in _addresses(rows, caller):
            with client.get(address) as answer:
                if answer.status_code != 200 or answer.mimetype != "text/html":
                    continue
                page = answer.get_data(as_text=True)
            reader = Reader(address)
            reader.feed(page)
            for form in reader.forms:
                if (route := route_of(rows.app, form.address, form.method)) and form.fields:
                    found.setdefault((form.method, route), []).append(form)
    return found


def _addresses(rows: Rows, caller: str) -> Iterator[str]:
    """Yield the addresses of all pages, with the first ids of each kind and with the last ones."""
    with rows.app.test_request_context():
        for rule in rows.app.url_map.iter_rules():
            if "GET" not in (rule.methods or ()) or rule.rule.startswith(FOR_PROGRAMS):
                continue
            for place in (0, -1) if rule.arguments else (0,):
                ids = {name: rows.ids[caller][name][place] for name in rule.arguments}
                yield rows.app.url_for(rule.endpoint, **ids)


def route_of(app: Flask, address: str, method: str) -> str:
    """Return the route of an address, "" if there is none."""
    try:
        rule, _ = app.url_map.bind("localhost").match(
            urlsplit(address).path, method=method, return_rule=True
        )
    except (HTTPException, RequestRedirect):
        return ""
    return str(rule.rule)
