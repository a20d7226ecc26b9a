"""Pages, operations of the API and DICOMweb resources, asked with odd queries, odd parts of their
addresses and odd headers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from bench.fuzz.forms import PARAMETER
from bench.fuzz.odd import quoted
from bench.fuzz.page_forms import Form, FormsByRoute
from bench.fuzz.rows import ADMIN, ANONYMOUS, UNREADY, USER, Rows
from webapp.dicomweb.access import TAGS

OF_DICOMWEB = (
    *TAGS,
    *TAGS.values(),
    *("limit", "offset", "fuzzymatching", "includefield", "accept", "00081115.00080060", "x" * 99),
)
UNUSUAL = 0.15
"""The share of parts of addresses that are no id."""
HEADERS = {
    "Accept": (
        *("", "*/*", "a", ";q=1", "application/json;q=nan", "*/*;q=9e999", ",,,", "image/" * 500),
        *("multipart/related; type=application/dicom", 'multipart/related; type="', "application/"),
        'multipart/related; type="application/octet-stream"; transfer-syntax=*',
        *("application/dicom+json", "application/dicom+xml", "image/png", "text/xml; q=0"),
    ),
    "Accept-Encoding": ("gzip;q=nan", "identity;q=0", "*;q=0", "br, gzip", "\u00e9"),
    "If-None-Match": ('W/"', '"a", *', "*", '"\u00e9"', '"' * 99),
    "If-Modified-Since": ("Mon, 30 Feb 2026 25:00:00 GMT", "0", "Thu, 01 Jan 0000 00:00:00 GMT"),
    "Range": ("bytes=0-0", "bytes=-0", "bytes=9-1", "bytes=0-,0-,0-", f"bytes={'9' * 30}-", "a=b"),
    "Origin": ("null", "https://viewer.example.org", "\u00e9"),
    "Authorization": (
        "",
        "Bearer",
        "Bearer \u00e9",
        "Basic YTpi",
        "Basic =",
        f"Bearer {'x' * 9999}",
    ),
    "Cookie": ("session=", "session=a.b.c", "theme=\u00e9; theme=<", "theme=" + "x" * 9999),
}


def ask_odd_queries(rows: Rows, forms: FormsByRoute, requests: int, seed: int) -> None:
    """Ask for each page and resource that many times as an administrator, and as many times as
    somebody else.
    """
    rng = random.Random(f"{seed} queries")
    documented = rows.app.test_client().get("/api/v1/openapi.json").get_json()["paths"]
    routes = sorted(
        rule.rule
        for rule in rows.app.url_map.iter_rules()
        if "GET" in (rule.methods or ()) and rule.rule != UNREADY
    )
    for _ in range(requests):
        for route in routes:
            for caller in (ADMIN, rng.choice((ANONYMOUS, USER))):
                names = _parameters(route, documented, forms.get(("GET", route), ()))
                address = f"{_address(rng, route, rows.ids[caller])}{_query(rng, names)}"
                label = f"GET {route} (unusual queries)"
                rows.ask(caller, "GET", address, label, headers=_headers(rng))


def _parameters(
    route: str, documented: Mapping[str, Any], forms: Sequence[Form]
) -> dict[str, list[str]]:
    """Return the names of a route's parameters with usual values, if any are known."""
    if route.startswith("/dicom-web/"):
        return {name: [] for name in OF_DICOMWEB}
    operation = documented.get(PARAMETER.sub(r"{\1}", route), {}).get("get", {})
    known: dict[str, list[str]] = {}
    for parameter in operation.get("parameters", ()):
        if parameter.get("in") == "query":
            usual = [str(value) for value in parameter.get("schema", {}).get("enum", ())]
            known[parameter["name"]] = usual
    for form in forms:
        for name, value in form.fields:
            known.setdefault(name, []).append(value)
    return known


def _address(rng: random.Random, route: str, ids: Mapping[str, Sequence[Any]]) -> str:
    def value(name: str) -> str:
        if rng.random() < UNUSUAL:
            return quoted(rng)[:2_000]
        return quote(str(rng.choice(ids[name])))

    return PARAMETER.sub(lambda match: value(match[1]), route)


def _query(rng: random.Random, names: Mapping[str, Sequence[str]]) -> str:
    chosen = rng.sample(list(names), k=min(len(names), rng.choice((0, 1, 1, 2, 4))))
    parts = []
    for name in chosen * rng.choice((1, 1, 1, 2, 300)):
        usual = rng.choice(names[name]) if names[name] else ""
        parts.append(f"{quote(name)}={quoted(rng, usual=usual)}")
    return "?" + "&".join(parts) if parts else ""


def _headers(rng: random.Random) -> dict[str, str]:
    """Return up to two odd headers, most often none."""
    names = rng.sample(list(HEADERS), k=rng.choice((0, 0, 1, 2)))
    return {name: rng.choice(HEADERS[name]) for name in names}
