"""What browsers are told they may do with our answers, and how cookies travel."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.conftest import PASSWORD, app_on, make_user
from webapp.config import PROJECT_ROOT, ConfigurationError, settings
from webapp.extensions import db
from webapp.models import Role
from webapp.security_headers import POLICIES, STRICT_TRANSPORT_SECURITY

TEMPLATES = PROJECT_ROOT / "webapp" / "templates"
TLS = "https://hemoscan.example"


def log_in(app: Flask, base_url: str) -> tuple[FlaskClient, list[str]]:
    """Let ann log in by that address; return the browser and the cookies as they were set."""
    make_user(app, "ann")
    client = app.test_client()
    answer = client.post(
        "/login", data={"username": "ann", "password": PASSWORD}, base_url=base_url
    )
    assert answer.status_code == 302
    return client, answer.headers.getlist("Set-Cookie")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/login",
        "/nowhere",
        "/api/v1/scans",
        "/api/v1/openapi.json",
        "/static/hemoscan.js",
        "/healthz",
    ],
)
def test_every_kind_of_answer_carries_the_policies(app: Flask, path: str) -> None:
    with app.test_client().get(path) as answer:
        assert {name: answer.headers.get(name) for name in POLICIES} == POLICIES
        assert "Strict-Transport-Security" not in answer.headers


def test_no_source_of_scripts_or_styles_but_our_own_files_is_allowed() -> None:
    directives = dict(
        directive.split(" ", 1) for directive in POLICIES["Content-Security-Policy"].split("; ")
    )
    assert (
        directives["default-src"]
        == directives["object-src"]
        == directives["base-uri"]
        == directives["frame-ancestors"]
        == "'none'"
    )
    assert directives["script-src"] == directives["style-src"] == "'self'"
    assert "unsafe" not in POLICIES["Content-Security-Policy"]


def test_no_template_has_a_script_a_style_or_a_handler_of_its_own() -> None:
    for path in TEMPLATES.rglob("*.html"):
        text = path.read_text()
        assert not re.search(
            r"<style|\bstyle=|\son[a-z]+=|javascript:|<script(?![^>]*\bsrc=)", text
        ), path.name
        assert "|safe" not in text.replace(" ", "") and "autoescape" not in text, path.name


def test_htmx_neither_evaluates_text_nor_writes_styles_nor_keeps_pages(app: Flask) -> None:
    config = json.loads(
        re.findall("name=\"htmx-config\" content='([^']+)'", app.test_client().get("/").text)[0]
    )
    assert (
        config["includeIndicatorStyles"]
        is config["allowEval"]
        is config["allowScriptTags"]
        is False
    )
    assert config["selfRequestsOnly"] is True
    assert config["historyCacheSize"] == 0


def test_pages_are_kept_by_no_cache(app: Flask) -> None:
    client, _ = log_in(app, "http://localhost")
    for path in ("/", "/scans", "/account", "/nowhere"):
        assert client.get(path).headers["Cache-Control"] == "no-store", path
    with client.get("/static/hemoscan.css") as answer:
        assert "no-store" not in answer.headers.get("Cache-Control", "")


def test_over_plain_http_cookies_are_hidden_from_scripts_and_other_sites(app: Flask) -> None:
    _, cookies = log_in(app, "http://localhost")
    assert {cookie.partition("=")[0] for cookie in cookies} == {"session", "known"}
    for cookie in cookies:
        attributes = cookie.split("; ")
        assert (
            "HttpOnly" in attributes and "SameSite=Lax" in attributes and "Secure" not in attributes
        )


def test_over_tls_cookies_belong_to_this_host_alone_and_travel_by_tls_only(app: Flask) -> None:
    client, cookies = log_in(app, TLS)
    assert {cookie.partition("=")[0] for cookie in cookies} == {"__Host-session", "__Host-known"}
    for cookie in cookies:
        attributes = cookie.split("; ")
        assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(attributes)
        assert not [attribute for attribute in attributes if attribute.startswith("Domain")]
    answer = client.get("/account", base_url=TLS)
    assert answer.status_code == 200
    assert answer.headers["Strict-Transport-Security"] == STRICT_TRANSPORT_SECURITY


def test_a_proxy_that_does_not_say_so_is_believed_to_speak_tls_by_setting(tmp_path: Path) -> None:
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, SESSION_COOKIE_SECURE="1")
    _, cookies = log_in(app, "http://localhost")
    assert all(cookie.startswith("__Host-") and "Secure" in cookie for cookie in cookies)
    assert "Strict-Transport-Security" in app.test_client().get("/").headers
    with app.app_context():
        db.engine.dispose()


def test_only_as_many_proxies_are_believed_as_the_operator_says(tmp_path: Path) -> None:
    forged = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
    for proxies in (0, 1):
        home = tmp_path / str(proxies)
        home.mkdir()
        app = app_on(f"sqlite:///{home / 'test.db'}", home, TRUSTED_PROXIES=proxies)
        assert (
            "Strict-Transport-Security" in app.test_client().get("/", headers=forged).headers
        ) is bool(proxies)
        with app.app_context():
            db.engine.dispose()


def test_over_tls_a_form_from_another_site_is_refused_and_our_own_is_accepted(app: Flask) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    make_user(app, "ann")
    client = app.test_client()
    token = re.findall(
        r'name="csrf_token" value="([^"]+)"', client.get("/login", base_url=TLS).text
    )[0]
    form = {"username": "ann", "password": PASSWORD, "csrf_token": token}
    for referrer, status in (("https://evil.example/", 400), (f"{TLS}/login", 302)):
        answer = client.post("/login", data=form, base_url=TLS, headers={"Referer": referrer})
        assert answer.status_code == status


def test_a_host_that_is_not_this_services_gets_into_no_link(tmp_path: Path) -> None:
    app = app_on(
        f"sqlite:///{tmp_path / 'test.db'}",
        tmp_path,
        TRUSTED_HOSTS="scans.example.org, .ward.example.org",
    )
    make_user(app, "root", Role.ADMIN)
    user_id = make_user(app, "ann")
    browser = app.test_client()
    mine = {"base_url": "http://scans.example.org"}
    browser.post("/login", data={"username": "root", "password": PASSWORD}, **mine)
    page = browser.post(f"/admin/users/{user_id}/reset-link", **mine)
    assert "http://scans.example.org/reset/" in page.text
    for forged in ("http://evil.example", "http://scans.example.org.evil.example"):
        for path in ("/", "/login", "/api/v1/scans"):
            answer = browser.get(path, base_url=forged)
            assert answer.status_code == 400
            assert "evil" not in answer.text and "Traceback" not in answer.text
    assert browser.get("/login", base_url="http://icu.ward.example.org").status_code == 200
    # As the health check of the container asks.
    assert browser.get("/healthz", base_url="http://127.0.0.1:8000").status_code == 200
    with app.app_context():
        db.engine.dispose()


@pytest.mark.parametrize("hosts", ["https://scans.example.org", "scans.example.org/", "a b", "*"])
def test_a_trusted_host_is_a_name_alone(hosts: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="TRUSTED_HOSTS"):
        settings({"HEMOSCAN_HOME": str(tmp_path), "TRUSTED_HOSTS": hosts})


def test_a_browser_keeps_no_page_of_who_logged_out(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    ann, bob = logged_in("ann"), logged_in("bob")
    ended = (
        ann.post("/logout"),
        bob.post("/account/delete", data={"your_password": PASSWORD}),
    )
    for answer in ended:
        assert answer.headers["Clear-Site-Data"] == '"cache", "storage"'
