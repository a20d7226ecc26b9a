"""A disk that is nearly full, or full: nothing more is taken in, and all else goes on."""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import delete, event, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from tests.conftest import PASSWORD, make_user
from tests.webapp.intake.test_intake import files_under
from tests.webapp.test_api import client_of
from tests.webapp.test_health import add_worker
from webapp import space
from webapp.deletion import delete_account, delete_chosen, delete_scans
from webapp.extensions import db, utc_now
from webapp.models import Scan, ScanTotals
from webapp.storage import StorageFull

GB = 2**30


@pytest.fixture
def picture() -> bytes:
    """A PNG of 1 MB, which waits in a file."""
    content = io.BytesIO()
    Image.frombytes("L", (1000, 1000), os.urandom(1_000_000)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def ann(app: Flask) -> FlaskClient:
    """An API client that acts for Ann."""
    return client_of(app, "ann")


@pytest.fixture
def browser(app: Flask, ann: FlaskClient) -> FlaskClient:
    """Ann's browser."""
    browser = app.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})
    return browser


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sent(client: FlaskClient, picture: bytes, path: str = "/api/v1/scans") -> TestResponse:
    """Submit a picture."""
    # Encoded here: Werkzeug's client spools a large body to a file, which `files_end_at` would cut.
    boundary, body = encode_multipart({"file": FileStorage(io.BytesIO(picture), "a.png")})
    return client.post(path, data=body, content_type=f"multipart/form-data; boundary={boundary}")


def number_of_scans(app: Flask) -> int:
    """Return how many scans there are."""
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(Scan)) or 0


def test_below_the_floor_uploads_are_refused_and_logins_and_reading_go_on(
    app: Flask,
    ann: FlaskClient,
    browser: FlaskClient,
    picture: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_worker(app, "predict")
    add_worker(app, "maintenance", delivered_s_ago=1)
    scan_id = sent(ann, picture).get_json()["id"]
    before = files_under(tmp_path / "files")
    monkeypatch.setattr(space, "free_bytes", lambda folder: GB - 1)

    refusal = sent(ann, picture)
    assert refusal.status_code == 507
    assert refusal.get_json(force=True)["detail"] == space.NO_SPACE
    page = sent(browser, picture, "/scans")
    assert (page.status_code, space.NO_SPACE in page.text) == (507, True)
    phantom = browser.post("/scans/phantom", data={"name": "phantom-1.png"})
    assert (phantom.status_code, space.NO_SPACE in phantom.text) == (507, True)
    assert number_of_scans(app) == 1
    assert files_under(tmp_path / "files") == before
    assert files_under(tmp_path / "incoming") == []

    ready = browser.get("/readyz")
    assert ready.status_code == 503
    assert [name for name, holds in ready.get_json()["checks"].items() if not holds] == [
        "free_space"
    ]
    assert browser.get(f"/scans/{scan_id}").status_code == 200
    other = app.test_client()
    login = other.post("/login", data={"username": "ann", "password": PASSWORD})
    assert login.status_code == 302
    assert other.get("/scans").status_code == 200


def test_an_upload_is_refused_that_would_not_leave_the_floor(
    ann: FlaskClient, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = GB + space.COPIES * (len(picture) + 1000)
    monkeypatch.setattr(space, "free_bytes", lambda folder: enough)
    assert sent(ann, picture).status_code == 202
    monkeypatch.setattr(space, "free_bytes", lambda folder: enough - 2 * len(picture))
    assert sent(ann, picture).status_code == 507


def test_uploads_that_come_at_once_are_counted_together(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda folder: GB + 4 * space.COPIES)

    def announce(size: int) -> None:
        with app.test_request_context("/", method="POST"):
            space.require_space(size)

    with app.test_request_context("/", method="POST"), ThreadPoolExecutor(1) as another:
        space.require_space(3)
        with pytest.raises(StorageFull):
            another.submit(announce, 2).result()
        another.submit(announce, 1).result()
    announce(4)
    assert space._announced.total == 0


@pytest.mark.parametrize("size", [20_000, 600_000], ids=["at once", "half way"])
def test_a_disk_that_is_full_while_an_upload_is_written_is_reported(
    app: Flask, ann: FlaskClient, browser: FlaskClient, picture: bytes, tmp_path: Path, size: int
) -> None:
    with files_end_at(size):
        by_api = sent(ann, picture)
        by_page = sent(browser, picture, "/scans")

    assert (by_api.status_code, by_page.status_code) == (507, 507)
    assert space.NO_SPACE in by_page.text
    assert number_of_scans(app) == 0
    assert files_under(tmp_path / "incoming") == []


def test_a_storage_that_is_full_is_reported(
    app: Flask, ann: FlaskClient, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(key: str, content: bytes | Path) -> None:
        with files_end_at(20_000):
            original(key, content)

    storage = app.extensions["storage"]
    original = storage.put
    monkeypatch.setattr(storage, "put", put)

    assert sent(ann, picture).status_code == 507
    assert number_of_scans(app) == 0
    assert files_under(storage.folder / "originals") == []


def test_all_people_together_may_store_so_much(
    app: Flask, ann: FlaskClient, picture: bytes
) -> None:
    app.config["TOTAL_QUOTA_MB"] = 1
    assert sent(ann, picture).status_code == 202
    assert sent(client_of(app, "ben"), picture).status_code == 202

    refusal = sent(client_of(app, "cleo"), picture)
    assert refusal.status_code == 507
    assert refusal.get_json(force=True)["detail"] == space.CAP_REACHED
    assert app.test_client().get("/readyz").get_json()["checks"]["free_space"] is False


def recounted() -> dict[str, tuple[int, int, int]]:
    """Return by user how many scans and studies there are, and their bytes, from all rows."""
    db.session.commit()
    by_user: dict[str, list[Scan]] = {}
    for scan in db.session.scalars(select(Scan)):
        by_user.setdefault(scan.user_id, []).append(scan)
    return {
        user_id: (
            len(scans),
            len({(scan.created_at, scan.study_id) for scan in scans}),
            sum(scan.size for scan in scans),
        )
        for user_id, scans in by_user.items()
    }


def totals() -> dict[str, tuple[int, int, int]]:
    """Return the same as the triggers counted it."""
    db.session.commit()
    return {
        row.user_id: (row.scans, row.studies, row.size)
        for row in db.session.execute(select(*ScanTotals.__table__.columns))
        if row.scans or row.studies or row.size
    }


def test_totals_follow_every_way_in_which_scans_come_and_go(any_database_app: Flask) -> None:
    ann, ben = (make_user(any_database_app, name) for name in ("ann", "ben"))
    at = [utc_now() - timedelta(hours=hours) for hours in range(3)]
    rows = [
        {"id": f"{user[:8]}{n}", "user_id": user, "study_id": f"study {n // 2}", "size": 10**n}
        | {"created_at": at[n // 4], "kind": "png", "original_key": f"{user}{n}"}
        for user in (ann, ben)
        for n in range(8)
    ]
    mine = [str(row["id"]) for row in rows[:8]]
    with any_database_app.app_context():
        db.session.execute(insert(Scan), rows)
        assert totals() == recounted() == dict.fromkeys((ann, ben), (8, 4, 11111111))
        db.session.add(Scan(**{**rows[0], "id": "x", "size": 5}))
        db.session.flush()
        db.session.rollback()
        assert totals()[ann] == (8, 4, 11_111_111)

        db.session.execute(update(Scan).where(Scan.id == mine[7]).values(size=0, title="removed"))
        assert totals()[ann] == (8, 4, 1_111_111)
        delete_chosen([mine[0], mine[0], mine[7]])
        assert totals()[ann] == (6, 4, 1_111_110)
        delete_chosen([mine[1]])
        assert totals()[ann] == (5, 3, 1_111_100)
        assert delete_scans(Scan.id.in_([*mine[2:4], str(rows[8]["id"])]), 9) == 3
        assert totals() == recounted() == {ann: (3, 2, 1_110_000), ben: (7, 4, 11_111_110)}

        delete_account(ann)
        assert totals() == recounted() == {ben: (7, 4, 11_111_110)}
        assert db.session.scalar(select(func.count()).select_from(ScanTotals)) == 1


@pytest.mark.parametrize("column", ["user_id", "study_id", "created_at"])
def test_what_totals_are_counted_by_does_not_change(any_database_app: Flask, column: str) -> None:
    ann, ben = (make_user(any_database_app, name) for name in ("ann", "ben"))
    with any_database_app.app_context():
        db.session.add(Scan(user_id=ann, kind="png", original_key="x", size=5, study_id="study"))
        db.session.commit()
        before = totals()
        other = {"user_id": ben, "study_id": "other", "created_at": utc_now()}[column]
        with pytest.raises(IntegrityError, match="the owner, the study and the time of a scan"):
            db.session.execute(update(Scan).values({column: other}))
        db.session.rollback()
        db.session.execute(update(Scan).values({column: getattr(Scan, column), "title": "same"}))
        assert totals() == recounted() == before == {ann: (1, 1, 5)}


def test_totals_hold_where_series_of_one_study_come_and_go_at_once(any_database_app: Flask) -> None:
    ann, at = make_user(any_database_app, "ann"), utc_now()

    def change(numbers: Iterable[int], *, goes: bool = False) -> None:
        with any_database_app.app_context():
            for n in numbers:
                if goes:
                    db.session.execute(delete(Scan).where(Scan.id == f"{n}"))
                else:
                    db.session.add(
                        Scan(
                            id=f"{n}",
                            user_id=ann,
                            study_id="one",
                            created_at=at,
                            kind="png",
                            original_key=f"{n}",
                            size=n,
                        )
                    )
                db.session.commit()

    with ThreadPoolExecutor(2) as both:
        list(both.map(change, (range(1, 9), range(11, 19))))
        with any_database_app.app_context():
            assert totals() == recounted() == {ann: (16, 1, 36 + 116)}
        list(both.map(partial(change, goes=True), (range(1, 9), range(11, 18))))
    with any_database_app.app_context():
        assert totals() == recounted() == {ann: (1, 1, 18)}


def test_a_database_whose_disk_is_full_is_reported(app: Flask) -> None:
    make_user(app, "ann")
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with app.app_context():
        event.listen(
            db.engine,
            "begin",
            lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"),
        )
    browser = app.test_client()
    answers = {
        browser.post("/login", data={"username": f"ann{n}", "password": "x"}).status_code
        for n in range(400)
    }

    assert 507 in answers
    assert 500 not in answers
    assert browser.get("/login").status_code == 200
