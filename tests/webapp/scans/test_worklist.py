"""The worklist: orders, filters, news, what is unread, and what is done with several scans."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, insert, select, text

from ml.verdict import state_of
from tests.conftest import PASSWORD, make_user
from tests.plans import statements
from tests.webapp.scans.test_scans import add_scan, add_verdict
from tests.webapp.test_api import make_token, problem_of
from webapp.extensions import database_now, db, utc_now
from webapp.models import (
    AuditEvent,
    Finding,
    JobStatus,
    Opinion,
    Order,
    Scan,
    User,
    new_id,
)
from webapp.scans import changes
from webapp.scans.worklist_query import (
    COLUMNS,
    conditions,
    neighbors_of,
    order_columns,
    places_of_page,
)
from webapp.storage import storage

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

UNANSWERED = ["urgent waits", "waits"]

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
                scan.verdict_state = state_of(
                    positive=probability >= threshold, uncertain=scan.margin < 0.06
                )
                scan.status, scan.finished_at = JobStatus.DONE, scan.created_at
            db.session.add(scan)
        db.session.commit()
    return client


def titles_on(page: str) -> list[str]:
    """Return the titles of the scans on a page of the worklist, from the top."""
    return re.findall(r'<th scope="row" class="title">\s*<a [^>]+>([^<]+)</a>', page)


ORDERS: tuple[tuple[str, list[str]], ...] = (
    ("", NEWEST),
    ("?order=newest", NEWEST),
    ("?order=risk", BY_RISK),
    ("?order=uncertainty", BY_UNCERTAINTY),
    ("?order=nonsense", NEWEST),
    ("?order=%00", NEWEST),
    ("?order=-", NEWEST),
    ("?order=-submitted", NEWEST),
    ("?order=submitted", NEWEST[::-1]),
    ("?order=title", sorted(NEWEST)),
    ("?order=-title", sorted(NEWEST, reverse=True)),
    ("?order=probability", ["clear", "urgent", "same", "near", "certain", *UNANSWERED]),
    ("?order=-probability", ["certain", "same", "near", "urgent", "clear", *UNANSWERED]),
    ("?order=verdict", ["certain", "same", "near", "urgent", "clear", *UNANSWERED]),
    ("?order=-verdict", ["urgent", "clear", "same", "near", "certain", *UNANSWERED]),
    (
        "?order=-priority",
        ["urgent waits", "urgent", "same", "waits", "certain", "near", "clear"],
    ),
    ("?order=status", [*UNANSWERED, "same", "urgent", "certain", "near", "clear"]),
    ("?order=-slices", NEWEST),
)


def test_the_worklist_has_the_order_that_is_asked_for(ann: FlaskClient) -> None:
    for query, titles in ORDERS:
        assert titles_on(ann.get(f"/scans{query}").text) == titles, query


@pytest.mark.parametrize("order", [*Order, *COLUMNS, *(f"-{name}" for name in COLUMNS)])
def test_pages_of_the_list_follow_each_other_in_every_order(ann: FlaskClient, order: str) -> None:
    whole = ann.get(f"/api/v1/scans?order={order}").json
    ids_listed, address = [], f"/api/v1/scans?order={order}&limit=2"
    while address:
        page = ann.get(address).json
        ids_listed += [scan["id"] for scan in page["items"]]
        address = page["next"]
    assert ids_listed == [scan["id"] for scan in whole["items"]] and whole["next"] is None
    assert len(ids_listed) == len(SCANS)


def test_the_list_has_the_filters_of_the_worklist(app: Flask, ann: FlaskClient) -> None:
    def titles(query: str) -> list[str]:
        return [scan["title"] for scan in ann.get(f"/api/v1/scans?{query}").json["items"]]

    for query in (
        "title=e&status=done",
        "verdict=suspected&order=-probability",
        "priority=stat&since=2020-01-01",
        "until=2020-01-01",
    ):
        assert titles(query) == titles_on(ann.get(f"/scans?{query}").text), query
    assert titles("title=waits&limit=1") == ["urgent waits"] or titles("title=waits&limit=1") == [
        "waits"
    ]
    assert titles("finished_since=2100-01-01T00:00:00Z") == []
    table = ann.get("/api/v1/scans/export.csv?order=risk&limit=3")
    assert [row["title"] for row in csv.DictReader(io.StringIO(table.text))] == BY_RISK[:3]
    assert 'rel="next"' in table.headers["Link"]


def test_an_order_that_there_is_not_is_422(ann: FlaskClient) -> None:
    assert problem_of(ann.get("/api/v1/scans?order=oldest"), 422).startswith("order: ")
    assert [scan["title"] for scan in ann.get("/api/v1/scans?order=").json["items"]] == NEWEST


def test_urgent_scans_are_marked_and_the_pages_keep_the_order(
    ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.scans.worklist.PER_PAGE", 3)
    page = ann.get("/scans?order=risk&page=2").text
    assert titles_on(page) == BY_RISK[3:6]
    assert 'class="badge stat"' not in page
    assert (
        'href="/scans?page=1&amp;order=risk"' in page
        and 'href="/scans?page=3&amp;order=risk"' in page
    )
    assert re.search(r'href="/scans\?order=risk" aria-current="true"[^>]*>Highest risk<', page)
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


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"verdict": "suspected", "status": "done", "priority": "routine"},
        {"since": date(2026, 1, 1), "until": date(2036, 1, 1), "title": "t"},
    ],
    ids=["all", "of a state", "of a time"],
)
def test_filters_and_orders_read_an_index_and_no_row(
    any_database_app: Flask, ann: FlaskClient, chosen: dict[str, Any]
) -> None:
    with any_database_app.app_context():
        ann_id = db.session.scalars(select(User.id)).one()
        explain, expected = "EXPLAIN QUERY PLAN", "COVERING INDEX"
        if db.engine.dialect.name == "postgresql":
            explain, expected = "EXPLAIN", "Index Only Scan"
            add_many_answered_scans(any_database_app)
        for order in (f"{sign}{name}" for name in COLUMNS for sign in ("", "-")):
            which = conditions(ann_id, chosen)
            with statements() as sent:
                db.session.execute(places_of_page(which, order, 20, 0, apart=False)).all()
            plan = "\n".join(
                str(row)
                for row in db.session.connection().exec_driver_sql(
                    f"{explain} {sent[-1][0]}", sent[-1][1]
                )
            )
            assert expected in plan, (order, plan)
            every = db.session.execute(places_of_page(which, order, 9999, 0, apart=False)).all()
            last = places_of_page(which, order, 5, 1, apart=False, backward=True)
            assert db.session.execute(last).all() == every[-2:-7:-1]


def add_many_answered_scans(app: Flask) -> None:
    """Add as many as PostgreSQL needs to prefer an index to reading all rows, most of them somebody
    else's, and let it count them.
    """
    ben_id = make_user(app, "ben")
    ann_id = db.session.scalars(select(User.id).where(User.username == "ann")).one()
    rows = [
        {
            "user_id": ann_id if number % 10 == 0 else ben_id,
            "title": f"Head {number}",
            "kind": "png",
            "original_key": "o",
            "stat": number % 30 == 0,
            "status": JobStatus.DONE,
            "risk": number / 2000,
            "notes": ["A sentence about the upload. " * 20],
            "verdict_state": "suspected" if number % 20 == 0 else "not found",
        }
        for number in range(2000)
    ]
    # Otherwise the vacuum may not yet mark their pages as visible to all.
    db.session.execute(text("SET LOCAL synchronous_commit = on"))
    db.session.execute(insert(Scan), rows)
    db.session.commit()
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(20):
            connection.exec_driver_sql("VACUUM (ANALYZE) scan")
            # Another session's snapshot, such as autovacuum's, keeps pages from being marked.
            pages = "SELECT relallvisible = relpages FROM pg_class WHERE relname = 'scan'"
            if connection.exec_driver_sql(pages).scalar():
                break


# --- studies


def add_study(app: Flask, title: str, *series: tuple[str, float | None], minutes: int) -> str:
    """Add a study of Ann's with these series, each with a probability where it was answered; return
    its id.
    """
    with app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == "ann")).one()
        study_id, at = new_id(), utc_now() - timedelta(minutes=minutes)
        for name, probability in series:
            scan = Scan(
                user_id=user_id,
                study_id=study_id,
                title=f"{title} · {name}",
                kind="dicom",
                slice_count=10,
                original_key="o",
                created_at=at,
            )
            if probability is not None:
                scan.risk, scan.margin = probability, abs(probability - 0.4)
                scan.verdict_state = state_of(
                    positive=probability >= 0.4, uncertain=scan.margin < 0.06
                )
                scan.status, scan.finished_at = JobStatus.DONE, at
            db.session.add(scan)
        db.session.commit()
        return study_id


def places_on(page: str) -> list[str]:
    """Return what stands in the rows of a page of the worklist: studies in brackets."""
    matches = re.findall(
        r'<th scope="row" class="title( study-title)?">\s*<a [^>]+>([^<]+)</a>', page
    )
    return [f"[{title}]" if is_study else title for is_study, title in matches]


@pytest.fixture
def studies(any_database_app: Flask, ann: FlaskClient) -> tuple[str, str]:
    """The ids of two studies, the older one first."""
    return (
        add_study(
            any_database_app,
            "old",
            ("Series 1", 0.1),
            ("Series 10", None),
            ("Series 2", 0.42),
            ("Series 9", None),
            minutes=3,
        ),
        add_study(any_database_app, "new", ("Series 1", 0.99), ("Series 2", 0.01), minutes=-5),
    )


OLD = ["[old]", "Series 2", "Series 1", "Series 9", "Series 10"]
NEW = ["[new]", "Series 1", "Series 2"]


def test_series_of_a_study_stand_below_it_the_worst_verdict_first(
    studies: tuple[str, str], ann: FlaskClient
) -> None:
    newest = places_on(ann.get("/scans").text)
    assert newest[:3] == NEW
    at = newest.index("[old]")
    assert newest[at : at + 5] == OLD
    assert sorted(newest[3:at] + newest[at + 5 :]) == sorted(NEWEST)
    row = re.search(rf'<tr id="study-{studies[0]}".*?</tr>', ann.get("/scans").text, re.DOTALL)
    assert row
    assert "4 series" in row[0] and ">40<" in row[0]  # Slices of all of them.
    assert "Inconclusive" in row[0] and "42.0%" in row[0] and "Waiting" in row[0]


@pytest.mark.parametrize(
    ("order", "places"),
    [
        ("-probability", ["[new]", "certain", "same", "near", "[old]", "urgent", "clear"]),
        ("verdict", ["[new]", "certain", "same", "[old]", "near", "urgent", "clear"]),
        ("-slices", ["[old]", "[new]"]),
        ("status", ["urgent waits", "[old]", "waits", "[new]"]),
        ("-title", ["waits", "urgent waits", "urgent", "same", "[old]", "[new]", "near"]),
        ("risk", ["urgent", "urgent waits", "[new]", "certain", "same", "near", "[old]"]),
        ("uncertainty", ["urgent", "urgent waits", "[old]", "same", "near"]),
    ],
)
def test_a_study_stands_where_the_best_placed_of_its_series_belongs(
    studies: tuple[str, str], ann: FlaskClient, order: str, places: list[str]
) -> None:
    page = places_on(ann.get(f"/scans?order={order}").text)
    assert [each for each in page if not each.startswith("Series")][: len(places)] == places


def test_filters_choose_series_and_the_study_says_how_many(
    studies: tuple[str, str], ann: FlaskClient
) -> None:
    page = ann.get("/scans?verdict=inconclusive&order=title").text
    assert places_on(page) == ["near", "[old]", "Series 2", "same"]
    assert "1 of 4 series match the filters" in page and "3 scans match the filters" in page
    page = ann.get("/scans?title=old").text
    assert places_on(page) == OLD and "match the filters" in page


def test_pages_count_studies_and_none_is_cut_in_two(
    studies: tuple[str, str], ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.scans.worklist.PER_PAGE", 2)
    for order in ("newest", "title", "-probability", "risk"):
        places: list[str] = []
        for page in range(1, 6):
            ids_by_page = places_on(ann.get(f"/scans?order={order}&page={page}").text)
            places += ids_by_page
            assert len([each for each in ids_by_page if not each.startswith("Series")]) in (1, 2)
        assert len(places) == len(SCANS) + len(OLD) + len(NEW) == len(set(places)) + 2


def test_of_a_large_study_the_worst_are_shown_and_all_in_a_list_of_its_own(
    any_database_app: Flask, ann: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = [(f"No. {number}", number / 100) for number in range(1, 31)]
    study = add_study(any_database_app, "large", *series, minutes=-5)
    page = ann.get("/scans").text
    assert places_on(page)[1:9] == [f"No. {number}" for number in range(30, 22, -1)]
    assert "30 series, 8 shown" in page and f'href="/scans?study={study}"' in page
    monkeypatch.setattr("webapp.scans.worklist.SERIES_PER_PAGE", 20)
    of_study = f"/scans?study={study}&order=probability"
    assert titles_on(ann.get(of_study).text) == [f"large · No. {n}" for n in range(1, 21)]
    rest = ann.get(f"{of_study}&page=2").text
    assert titles_on(rest) == [f"large · No. {n}" for n in range(21, 31)]
    assert "[" not in "".join(places_on(rest))


def test_rows_of_a_study_come_with_the_study(
    any_database_app: Flask, studies: tuple[str, str], ann: FlaskClient
) -> None:
    page = ann.get("/scans?status=queued").text
    first = ann.get(rows_of(page))
    assert "[old]" in places_on(first.text)
    with any_database_app.app_context():
        for scan in db.session.scalars(select(Scan).where(Scan.study_id == studies[0])):
            scan.status, scan.verdict_state, scan.risk = JobStatus.DONE, "suspected", 0.9
        db.session.commit()
    again = ann.get(rows_of(page), headers={"If-None-Match": first.headers["ETag"]})
    row = re.search(rf'<tr id="study-{studies[0]}".*?</tr>', again.text, re.DOTALL)
    assert row and "Suspected" in row[0] and "90.0%" in row[0] and "Done" in row[0]


def test_nobody_sees_a_study_of_others_and_nonsense_is_reported(
    any_database_app: Flask, studies: tuple[str, str], ann: FlaskClient
) -> None:
    make_user(any_database_app, "bob")
    bob = any_database_app.test_client()
    bob.post("/login", data={"username": "bob", "password": PASSWORD})
    assert places_on(bob.get(f"/scans?study={studies[0]}").text) == []
    page = ann.get("/scans?study=x").text
    assert "There is no such study. All scans are shown." in page and "[old]" in places_on(page)


# --- filters


FILTERS: tuple[tuple[str, list[str]], ...] = (
    ("status=queued", UNANSWERED),
    ("status=done", ["same", "urgent", "certain", "near", "clear"]),
    ("verdict=suspected", ["certain"]),
    ("verdict=inconclusive", ["same", "near"]),
    ("verdict=not+found", ["urgent", "clear"]),
    ("priority=stat", ["urgent waits", "urgent"]),
    ("priority=routine", ["same", "waits", "certain", "near", "clear"]),
    ("title=URGENT", ["urgent waits", "urgent"]),
    ("title=+wait+", UNANSWERED),
    ("title=%25", []),
    ("title=_", []),
    ("priority=stat&status=queued&title=u", ["urgent waits"]),
    ("since=2000-01-01&until=9999-12-31", NEWEST),
    ("until=2000-01-01", []),
    ("since=9999-12-31", []),
    ("verdict=inconclusive&order=-submitted&page=1", ["same", "near"]),
)


def test_filters_in_the_address_choose_the_scans(ann: FlaskClient) -> None:
    for query, titles in FILTERS:
        page = ann.get(f"/scans?{query}")
        assert page.status_code == 200, query
        assert titles_on(page.text) == titles, query
        assert "You have no scans yet" not in page.text
        assert ("No scans match these filters." in page.text) == (not titles), query


def test_days_are_whole_days(any_database_app: Flask, ann: FlaskClient) -> None:
    with any_database_app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == "ann")).one()
        scan = Scan(user_id=user_id, title="old", kind="png", original_key="o")
        scan.created_at = datetime(2020, 2, 3, 23, 59, 59, tzinfo=UTC)
        db.session.add(scan)
        db.session.commit()
    for query, shown in (
        ("since=2020-02-03&until=2020-02-03", ["old"]),
        ("until=2020-02-02", []),
        ("since=2020-02-04&until=2020-02-10", []),
    ):
        assert titles_on(ann.get(f"/scans?{query}").text) == shown


@pytest.mark.parametrize(
    "query",
    [
        "status=lost",
        "verdict=maybe",
        "priority=high",
        "since=soon",
        "until=2026-02-31",
        "title=%00",
    ],
)
def test_a_filter_with_nonsense_is_named_and_not_applied(ann: FlaskClient, query: str) -> None:
    page = ann.get(f"/scans?{query}")
    assert page.status_code == 200
    assert page.text.count('aria-invalid="true"') == 1
    assert titles_on(page.text) == NEWEST


def test_links_keep_the_filters(ann: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webapp.scans.worklist.PER_PAGE", 1)
    page = ann.get("/scans?verdict=not+found&order=title&since=nonsense").text
    assert "2 scans match the filters" in page
    assert 'href="/scans?page=2&amp;verdict=not+found&amp;order=title"' in page
    assert (
        '<th scope="col" aria-sort="ascending" class="of-title">'
        '<a href="/scans?verdict=not+found&amp;order=-title"' in page
    )
    assert '<option selected value="not found">' in page


# --- news and what is unread


def rows_of(page: str) -> str:
    """Return the address that the worklist's script asks, with the ids of what is pending."""
    opened = re.search(r'data-opened="([^"]+)"', page)
    assert opened
    ids = re.findall(r'<tr id="scan-([0-9a-f]{32})"[^>]* data-pending', page)
    return "/scans/rows?opened=" + opened[1].replace("+", "%2B") + "".join(f"&id={i}" for i in ids)


def test_rows_are_sent_once_and_then_when_something_changed(
    any_database_app: Flask, ann: FlaskClient
) -> None:
    page = ann.get("/scans").text
    assert " data-more" in page
    address = rows_of(page)
    first = ann.get(address)
    assert titles_on(first.text) == UNANSWERED
    assert 'data-news="0" data-more' in first.text
    assert "<html" not in first.text and "no-cache" in first.headers["Cache-Control"]
    known = {"If-None-Match": first.headers["ETag"]}
    assert ann.get(address, headers=known).status_code == 304
    with any_database_app.app_context():
        for scan in db.session.scalars(select(Scan).where(Scan.status == JobStatus.QUEUED)):
            scan.status, scan.verdict_state, scan.risk = JobStatus.DONE, "suspected", 0.876
            scan.finished_at = db.session.scalar(select(database_now(1)))
        db.session.commit()
    news = ann.get(address, headers=known)
    assert news.status_code == 200
    assert 'data-news="2">' in news.text  # Nothing is pending any more.
    assert news.text.count("87.6%") == 2 and news.text.count("Suspected") == 2
    assert " data-more" not in ann.get("/scans").text


@pytest.mark.parametrize(
    "opened", ["", "yesterday", "%00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00%2B14:00"]
)
def test_rows_since_no_time_are_400(ann: FlaskClient, opened: str) -> None:
    assert ann.get(f"/scans/rows?opened={opened}").status_code == 400


def test_a_scan_is_unread_until_its_page_is_opened(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    ann = logged_in("ann")
    scan_id = add_scan(app, title="Monday")
    assert "unread" not in ann.get("/scans").text
    ann.get(f"/scans/{scan_id}")
    add_verdict(app, scan_id)
    with app.app_context():
        scan = db.session.get_one(Scan, scan_id)
        scan.finished_at = db.session.scalar(select(database_now(-1)))
        scan.opened_at = db.session.scalar(select(database_now(-2)))
        db.session.commit()
    assert "(unread)" in ann.get("/scans").text
    assert logged_in("bob").get(f"/scans/{scan_id}").status_code == 404
    assert "(unread)" in ann.get("/scans").text
    ann.get(f"/scans/{scan_id}/progress")
    assert "unread" not in ann.get("/scans").text


# --- several at once


def ids_of(app: Flask, *titles: str) -> list[str]:
    """Return the ids of the scans with these titles, all if none is named."""
    with app.app_context():
        named = Scan.title.in_(titles) if titles else Scan.id.is_not(None)
        return list(db.session.scalars(select(Scan.id).where(named).order_by(Scan.title)))


def scan_of(app: Flask, title: str) -> Scan:
    """Return the scan with that title, as it is now."""
    with app.app_context():
        return db.session.scalars(select(Scan).where(Scan.title == title)).one()


def acts(app: Flask) -> list[str]:
    """Return what the audit log says was done to scans."""
    with app.app_context():
        return [
            event.act
            for event in db.session.scalars(select(AuditEvent).order_by(AuditEvent.id))
            if event.act.startswith("scan")
        ]


def test_several_scans_are_cancelled_and_retried(any_database_app: Flask, ann: FlaskClient) -> None:
    app = any_database_app
    ids = ids_of(app, "waits", "urgent waits", "clear")
    answer = ann.post(
        "/scans/selected?order=risk&page=1&status=bogus", data={"id": ids, "action": "cancel"}
    )
    assert answer.location == "/scans?order=risk&page=1"
    page = ann.get("/scans").text
    assert "2 scans were canceled." in page and "1 scan had already finished." in page
    assert scan_of(app, "waits").status == scan_of(app, "urgent waits").status == "cancelled"
    ann.post("/scans/selected", data={"id": ids, "action": "retry"})
    assert "2 scans were queued again." in ann.get("/scans").text
    assert scan_of(app, "waits").status == "queued"
    assert acts(app) == ["scan cancelled"] * 2 + ["scan retried"] * 2


def test_a_result_that_was_forced_says_in_the_list_that_it_may_be_of_no_head(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    ann, sentence = logged_in("ann"), "Does not look like a head CT; analyzed anyway."
    scan_id = add_scan(app, forced_at=utc_now())
    assert sentence not in ann.get("/scans").text  # It waits.
    add_verdict(app, scan_id)
    assert sentence in ann.get("/scans").text


def test_answered_scans_are_scored_again(app: Flask, logged_in: Callable[..., FlaskClient]) -> None:
    ann = logged_in("ann")
    answered, waits = add_scan(app, title="answered"), add_scan(app, title="waits")
    add_verdict(app, answered)
    ann.post("/scans/selected", data={"id": [answered, waits], "action": "again"})
    page = ann.get("/scans").text
    assert "1 scan was queued again." in page and "1 scan had no result to replace" in page
    scan = scan_of(app, "answered")
    assert (scan.status, scan.verdict_state) == (JobStatus.QUEUED, None)
    assert acts(app) == ["scan scored again"]


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_heat_maps_of_scans_that_are_scored_again_take_only_seconds_to_delete(
    app: Flask,
    logged_in: Callable[..., FlaskClient],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    ann = logged_in("ann")
    scan_ids = [add_scan(app, title=title) for title in ("one", "other")]
    for scan_id in scan_ids:
        add_verdict(app, scan_id)
    with app.app_context():
        stored = len(list(storage.keys("heatmaps")))
    monkeypatch.setattr(changes, "FILES_S", seconds)
    ann.post("/scans/selected", data={"id": scan_ids, "action": "again"})
    assert "2 scans were queued again." in ann.get("/scans").text
    with app.app_context():
        assert len(list(storage.keys("heatmaps"))) == (0 if seconds else stored)


def test_stat_is_switched_within_the_limit(any_database_app: Flask, ann: FlaskClient) -> None:
    app = any_database_app
    app.config["MAX_STAT"] = 1  # "urgent waits" is that one.
    ids = ids_of(app, "waits", "clear", "urgent")
    ann.post("/scans/selected", data={"id": ids, "action": "stat"})
    page = ann.get("/scans").text
    assert "1 scan was made STAT." in page and "2 scans stay as they are" in page
    assert [scan_of(app, title).stat for title in ("clear", "waits")] == [True, False]
    ann.post("/scans/selected", data={"id": ids_of(app), "action": "routine"})
    assert "3 scans were made routine." in ann.get("/scans").text
    ann.post("/scans/selected", data={"id": ids_of(app, "waits"), "action": "stat"})
    assert scan_of(app, "waits").stat
    assert acts(app) == ["scan made STAT", *["scan made routine"] * 3, "scan made STAT"]


def test_deleting_asks_first(any_database_app: Flask, ann: FlaskClient) -> None:
    app = any_database_app
    ids = ids_of(app, "waits", "clear")
    page = ann.post("/scans/selected?title=a", data={"id": ids, "action": "delete"})
    assert page.status_code == 200
    assert "Delete these 2 scans?" in page.text and "<li>waits</li>" in page.text
    assert "<li>clear (hemorrhage not found)</li>" in page.text
    assert len(ids_of(app)) == len(SCANS) and acts(app) == []
    assert 'action="/scans/selected/delete?title=a"' in page.text
    answer = ann.post("/scans/selected/delete?title=a", data={"id": ids})
    assert answer.location == "/scans?title=a"
    assert "2 scans and all results have been deleted." in ann.get("/scans").text
    assert len(ids_of(app)) == len(SCANS) - 2
    assert acts(app) == ["scan deleted"] * 2


def test_the_export_is_what_the_api_tells_with_the_opinions(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    ann = logged_in("ann")
    ids = [add_scan(app, title="=HYPERLINK(1)"), add_scan(app, title="waits")]
    add_verdict(app, ids[0])
    with app.app_context():
        ann_id = db.session.scalars(select(User.id)).one()
        given = {"finding": Finding.PRESENT, "types": ["subdural"], "comment": "thin,\nleft"}
        for columns in ({"slice_index": 2, "finding": Finding.UNCLEAR}, given):
            db.session.add(Opinion(scan_id=ids[0], author_id=ann_id, **columns))
        db.session.commit()
    token = {"Authorization": f"Bearer {make_token(app, ann_id)}"}
    exported = ann.post("/scans/selected", data={"id": ids, "action": "json"})
    assert exported.headers["Content-Disposition"] == "attachment; filename=scans.json"
    told = [ann.get(f"/api/v1/scans/{i}", headers=token).json for i in ids]
    opinions = ann.get(f"/api/v1/scans/{ids[0]}/opinions", headers=token).json["items"]
    told[0] |= {"opinions": opinions, "confirmed": "present", "disputed": False}
    told[1] |= {"opinions": [], "confirmed": None, "disputed": False}
    assert exported.json == told and ann.get(f"/scans/{ids[0]}/report.json").json == told[0]
    table = ann.post("/scans/selected", data={"id": ids, "action": "csv"})
    assert table.mimetype == "text/csv"
    done, waiting = csv.DictReader(table.text.splitlines())
    assert (done["id"], done["title"], done["state"]) == (ids[0], "'=HYPERLINK(1)", "suspected")
    assert (done["probability"], done["architecture"]) == ("0.9731", "alexnet_svm")
    assert done["confirmed"] == "present" and done["opinions"] == (
        "ann: present (subdural), “thin, left”; ann on slice 3: cannot tell"
    )
    by_api = csv.DictReader(ann.get("/api/v1/scans/export.csv", headers=token).text.splitlines())
    assert [row["opinions"] for row in by_api if row["id"] == ids[0]] == [done["opinions"]]
    assert (waiting["status"], waiting["probability"]) == ("queued", "")


@pytest.mark.parametrize(
    "action",
    ["cancel", "retry", "again", "stat", "routine", "delete", "join", "split", "csv", "json"],
)
def test_nobody_sees_or_changes_scans_of_others(
    any_database_app: Flask, ann: FlaskClient, action: str
) -> None:
    app = any_database_app
    make_user(app, "bob")
    bob = app.test_client()
    bob.post("/login", data={"username": "bob", "password": PASSWORD})
    ids = ids_of(app)
    answer = bob.post("/scans/selected", data={"id": [*ids, "x", "0" * 32], "action": action})
    assert answer.location == "/scans"
    page = bob.get("/scans").text
    assert "Please select at least one scan." in page and titles_on(page) == []
    bob.post("/scans/selected/delete", data={"id": ids})
    now = "2026-01-01T00:00:00%2B00:00"
    rows = bob.get(f"/scans/rows?opened={now}" + "".join(f"&id={i}" for i in ids)).text
    assert 'data-news="0">' in rows and titles_on(rows) == []
    assert len(ids_of(app)) == len(SCANS) and acts(app) == []


def test_an_action_that_there_is_not_is_400(any_database_app: Flask, ann: FlaskClient) -> None:
    data = {"id": ids_of(any_database_app), "action": "promote"}
    assert ann.post("/scans/selected", data=data).status_code == 400


@pytest.mark.parametrize("path", ["/scans/selected", "/scans/selected/delete"])
def test_without_the_forms_secret_nothing_happens(
    any_database_app: Flask, ann: FlaskClient, path: str
) -> None:
    any_database_app.config["WTF_CSRF_ENABLED"] = True
    ids = ids_of(any_database_app)
    for action in ("cancel", "delete", "routine"):
        assert ann.post(path, data={"id": ids, "action": action}).status_code == 400
    assert len(ids_of(any_database_app)) == len(SCANS) and acts(any_database_app) == []


# --- to the next scan and to the one before


@pytest.mark.parametrize(
    "chosen", [{}, {"priority": "routine"}, {"title": "e"}, {"status": "done"}], ids=str
)
def test_the_neighbors_of_a_scan_are_those_of_its_row_in_any_order(
    any_database_app: Flask, ann: FlaskClient, chosen: dict[str, str]
) -> None:
    orders = [*Order, *COLUMNS, *(f"-{name}" for name in COLUMNS)]
    with any_database_app.app_context():
        user_id = db.session.scalars(select(User.id)).one()
        which = conditions(user_id, chosen)
        for order in orders:
            in_order = select(Scan.id).where(*which).order_by(*order_columns(order))
            ids = db.session.scalars(in_order).all()
            assert len(ids) > 1
            scans = [db.session.get_one(Scan, each) for each in ids]
            assert [neighbors_of(scan, which, order) for scan in scans] == list(
                zip([None, *ids[:-1]], [*ids[1:], None], strict=True)
            ), order


def test_rows_lead_to_scans_within_the_filter_and_back(ann: FlaskClient) -> None:
    address = "title=urgent&amp;order=risk"
    page = ann.get("/scans?title=urgent&order=risk").text
    first, second = re.findall(r'href="(/scans/[0-9a-f]{32})\?' + re.escape(address), page)
    shown = ann.get(f"{first}?title=urgent&order=risk").text
    assert f'rel="next" href="{second}?{address}"' in shown and 'rel="prev"' not in shown
    assert f'href="/scans?{address}">Worklist' in shown
    # What makes no sense is not applied, as in the worklist.
    assert ann.get(f"{first}?verdict=nonsense&order=nonsense").status_code == 200
