"""The orders in which a person looks at their scans, on the page and by the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, select

from tests.conftest import PASSWORD, make_user
from tests.webapp.test_api import make_token, problem_of
from webapp.extensions import db, utc_now
from webapp.models import Order, Scan, User

# A title, probability and threshold (none where there is no verdict yet), and whether it is urgent;
# the oldest first.
SCANS = (
    ("clear", 0.05, 0.40, False),
    ("near", 0.45, 0.40, False),
    ("certain", 0.98, 0.40, False),
    ("waits", None, None, False),
    ("urgent", 0.30, 0.60, True),
    ("same", 0.45, 0.40, False),
    ("urgent waits", None, None, True),
)
NEWEST = ["urgent waits", "same", "urgent", "waits", "certain", "near", "clear"]
BY_RISK = ["urgent", "urgent waits", "certain", "same", "near", "clear", "waits"]
BY_UNCERTAINTY = ["urgent", "urgent waits", "same", "near", "clear", "certain", "waits"]

INDEX = {Order.RISK: "ix_scan_risk", Order.UNCERTAINTY: "ix_scan_margin"}


@pytest.fixture
def ann(any_database_app: Flask) -> Iterator[FlaskClient]:
    """A client with Ann's login and token; she has `SCANS`."""
    user_id = make_user(any_database_app, "ann")
    client = any_database_app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(any_database_app, user_id)}"
    client.post("/login", data={"username": "ann", "password": PASSWORD})
    with any_database_app.app_context():
        now = utc_now()
        for age, (title, probability, threshold, stat) in enumerate(reversed(SCANS)):
            scan = Scan(
                user_id=user_id,
                title=title,
                kind="png",
                original_key="o",
                stat=stat,
                created_at=now - timedelta(minutes=age),
            )
            if probability is not None and threshold is not None:
                scan.risk, scan.margin = probability, abs(probability - threshold)
            db.session.add(scan)
        db.session.commit()
    return client


def titles_on(page: str) -> list[str]:
    """Return the titles of the scans on a page of the history, from the top."""
    return re.findall(r"</strong>\s*<span>([^<]+)</span>", page)


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        ("", NEWEST),
        ("?order=newest", NEWEST),
        ("?order=risk", BY_RISK),
        ("?order=uncertainty", BY_UNCERTAINTY),
        ("?order=nonsense", NEWEST),
        ("?order=%00", NEWEST),
    ],
)
def test_the_history_has_the_order_that_is_asked_for(
    ann: FlaskClient, query: str, titles: list[str]
) -> None:
    assert titles_on(ann.get(f"/scans{query}").text) == titles


@pytest.mark.parametrize(
    ("order", "titles"), [("newest", NEWEST), ("risk", BY_RISK), ("uncertainty", BY_UNCERTAINTY)]
)
def test_pages_of_the_list_follow_each_other_in_every_order(
    ann: FlaskClient, order: str, titles: list[str]
) -> None:
    pages = [
        ann.get(f"/api/v1/scans?order={order}&per_page=2&page={page}").json for page in (1, 2, 3, 4)
    ]
    assert [scan["title"] for page in pages for scan in page["items"]] == titles
    assert {page["total"] for page in pages} == {len(SCANS)}


def test_an_order_that_there_is_not_is_422(ann: FlaskClient) -> None:
    assert problem_of(ann.get("/api/v1/scans?order=oldest"), 422).startswith("order: ")
    assert [scan["title"] for scan in ann.get("/api/v1/scans?order=").json["items"]] == NEWEST


def test_urgent_scans_are_marked_and_the_pages_keep_the_order(
    ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.scans.PER_PAGE", 3)
    page = ann.get("/scans?order=risk&page=2").text
    assert titles_on(page) == BY_RISK[3:6]
    assert 'class="badge stat"' not in page
    assert (
        'href="/scans?page=1&amp;order=risk"' in page
        and 'href="/scans?page=3&amp;order=risk"' in page
    )
    assert re.search(r'href="/scans\?order=risk#past" aria-current="true">Highest risk first', page)
    assert ann.get("/scans?order=risk").text.count('class="badge stat"') == 2


@pytest.mark.parametrize("order", [Order.RISK, Order.UNCERTAINTY])
def test_the_order_is_an_index_so_that_a_page_does_not_read_and_sort_them_all(
    any_database_app: Flask, ann: FlaskClient, order: Order
) -> None:
    statements: list[tuple[str, Any]] = []
    with any_database_app.app_context():
        ann_id = db.session.scalars(select(User.id)).one()
        event.listen(
            db.engine, "before_cursor_execute", lambda *args: statements.append((args[2], args[3]))
        )
        db.session.scalars(
            select(Scan.id).where(Scan.user_id == ann_id).order_by(*order.columns).limit(20)
        ).all()
        statement, parameters = statements[-1]
        connection = db.session.connection()
        if connection.dialect.name == "postgresql":
            # Seven rows it would rather read all.
            connection.exec_driver_sql("SET enable_seqscan = off")
            connection.exec_driver_sql("SET enable_bitmapscan = off")
        explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = "\n".join(
            str(row) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)
        )
    assert "Sort" not in plan and "TEMP B-TREE" not in plan, plan
    assert INDEX[order] in plan, plan
