"""Single pictures become a series and a series single pictures; whatever happens meanwhile, there
is either what was or what will be.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.errors import DeadlockDetected
from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.exc import OperationalError
from werkzeug.datastructures import FileStorage

from tests.conftest import make_user
from tests.webapp.intake.made import dicom_file, picture
from webapp.extensions import db
from webapp.intake import (
    Choices,
    NotRearranged,
    Pictures,
    accept_upload,
    join_pictures,
    rearrange,
    split_series,
)
from webapp.models import (
    IN_ITS_TURN,
    AuditEvent,
    Dataset,
    JobStatus,
    Scan,
    Share,
    User,
    dataset_scan,
)
from webapp.review.sharing import successor_of
from webapp.storage import Storage, StorageFull, storage

SIDES = (70, 71, 72, 73)


@pytest.fixture
def ann(any_database_app: Flask) -> str:
    """Ann's id."""
    return make_user(any_database_app, "ann")


def single_pictures(user_id: str, **columns: object) -> list[Scan]:
    """Submit pictures of different sizes, each a scan; they have been answered."""
    files = [FileStorage(io.BytesIO(picture(side=side)), f"{side}.png") for side in SIDES]
    scans = accept_upload(user_id, files, "Head", Choices(pictures=Pictures.APART)).scans
    for scan in scans:
        scan.status, scan.verdict_state, scan.notes = JobStatus.DONE, "suspected", ["A note."]
        for name, value in columns.items():
            setattr(scan, name, value)
    db.session.commit()
    return scans


def files_of(app: Flask) -> list[str]:
    """Return the stored files and what waits beside them."""
    home = Path(app.config["HEMOSCAN_HOME"])
    stored = [path for path in (home / "files" / "originals").glob("*") if path.is_file()]
    waiting = [path for path in (home / "incoming").rglob("*") if path.is_file()]
    return sorted(path.name for path in [*stored, *waiting])


def sides_in(scan: Scan) -> list[bytes]:
    """Return the files of a series in their order."""
    with zipfile.ZipFile(io.BytesIO(storage.get(scan.original_key))) as packed:
        return [packed.read(name) for name in packed.namelist()]


def test_pictures_are_joined_in_the_chosen_order_and_split_again(
    any_database_app: Flask, ann: str
) -> None:
    app = any_database_app
    with app.app_context():
        scans = single_pictures(ann, stat=True)
        order = [scans[place].id for place in (2, 0, 3, 1)]
        series = join_pictures(ann, order, "Head")
        assert sides_in(series) == [picture(side=side) for side in (72, 70, 73, 71)]
        assert (series.slice_count, series.kind, series.status, series.stat) == (
            4,
            "png",
            JobStatus.QUEUED,
            True,
        )
        assert series.size == len(storage.get(series.original_key))
        assert series.notes == [
            "Joined from 4 images. Their results before: suspected (4).",
            "A note.",
        ]
        assert list(db.session.scalars(select(Scan.id))) == [series.id]
        assert files_of(app) == [f"{series.id}.zip"]  # Moved, not copied.

        pictures = split_series(ann, series.id)
        assert [storage.get(scan.original_key) for scan in pictures] == [
            picture(side=side) for side in (72, 70, 73, 71)
        ]
        assert [scan.title for scan in pictures] == [f"Head · No. {n}" for n in (1, 2, 3, 4)]
        assert {scan.study_id for scan in pictures} == {series.study_id}
        assert {scan.created_at for scan in pictures} == {series.created_at}
        assert files_of(app) == sorted(f"{scan.id}.png" for scan in pictures)
        events = db.session.execute(
            select(AuditEvent.act, AuditEvent.object_id, AuditEvent.detail).where(
                AuditEvent.act.in_(("scans joined", "scan split"))
            )
        ).all()
        assert {row[1] for row in events if row[0] == "scans joined"} == {*order, series.id}
        assert {row[1] for row in events if row[0] == "scan split"} == {
            series.id,
            *(scan.id for scan in pictures),
        }
        assert {row[2] for row in events} == {"4 into 1", "1 into 4"}
        # Links to what there was before lead to the first one.
        heirs = {successor_of(scan_id, ann) for scan_id in (*order, series.id)}
        assert heirs == {pictures[0].id}


def test_more_stat_scans_than_allowed_wait_in_their_turn(any_database_app: Flask, ann: str) -> None:
    any_database_app.config["MAX_STAT"] = 2
    with any_database_app.app_context():
        series = join_pictures(ann, [scan.id for scan in single_pictures(ann, stat=True)], "")
        assert series.stat
        pictures = split_series(ann, series.id)
        assert [scan.stat for scan in pictures] == [True, True, False, False]
        assert [IN_ITS_TURN in (scan.notes or []) for scan in pictures] == [
            False,
            False,
            True,
            True,
        ]


def test_what_cannot_be_joined_is_explained_and_left_alone(
    any_database_app: Flask, ann: str
) -> None:
    app = any_database_app
    with app.app_context():
        one, two, *_ = single_pictures(ann)
        [slice_] = accept_upload(ann, [FileStorage(io.BytesIO(dicom_file()))]).scans
        bob = make_user(app, "bob")
        before = files_of(app)
        for user_id, ids, sentence in (
            (ann, [one.id], "at least two"),
            (ann, [one.id, one.id], "at least two"),
            (bob, [one.id, two.id], "at least two"),
            (ann, [one.id, slice_.id], "Only single PNG or JPEG"),
        ):
            with pytest.raises(NotRearranged, match=sentence):
                join_pictures(user_id, ids, "")
        with pytest.raises(NotRearranged, match="Invalid title"):
            join_pictures(ann, [one.id, two.id], "a" * 81)
        for user_id, scan_id in ((ann, one.id), (ann, slice_.id), (bob, one.id), (ann, "0" * 32)):
            with pytest.raises(NotRearranged, match="can be split"):
                split_series(user_id, scan_id)
        app.config["MAX_SLICES"] = 1
        with pytest.raises(NotRearranged, match="at most 1 are supported"):
            join_pictures(ann, [one.id, two.id], "")
        assert files_of(app) == before


def test_a_series_of_pictures_that_a_data_set_knows_is_known_to_it(
    any_database_app: Flask, ann: str
) -> None:
    with any_database_app.app_context():
        known, other = single_pictures(ann)[0], single_pictures(ann)[0]
        dataset = Dataset(name="ours", archive_key="datasets/1.zip")
        db.session.add(dataset)
        db.session.flush()
        row = {"dataset_id": dataset.id, "scan_id": known.id, "study_id": known.study_id}
        db.session.execute(dataset_scan.insert().values(row))
        db.session.commit()
        series = join_pictures(ann, [known.id, other.id], "Head")
        assert series.study_id not in (known.study_id, other.study_id)
        entered = db.session.execute(select(dataset_scan).where(dataset_scan.c.scan_id != known.id))
        assert [tuple(one) for one in entered] == [(dataset.id, series.id, series.study_id)]


def test_what_others_see_or_spoke_of_is_not_joined_or_split(
    any_database_app: Flask, ann: str
) -> None:
    with any_database_app.app_context():
        scans = single_pictures(ann)
        db.session.add(Share(scan_id=scans[0].id))
        db.session.commit()
        with pytest.raises(NotRearranged, match="shared or have opinions"):
            join_pictures(ann, [scan.id for scan in scans], "")


def test_a_picture_that_is_shared_meanwhile_is_not_joined(
    any_database_app: Flask, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with any_database_app.app_context():
        scans = single_pictures(ann)
        store = rearrange.store_series

        def store_late(key: str, one: object) -> int:
            db.session.add(Share(scan_id=scans[0].id))
            db.session.commit()
            return store(key, one)  # type: ignore[arg-type]

        monkeypatch.setattr(rearrange, "store_series", store_late)
        with pytest.raises(NotRearranged, match="shared or have opinions"):
            join_pictures(ann, [scan.id for scan in scans], "")
        assert db.session.scalar(select(func.count(Scan.id))) == len(scans)
        assert db.session.scalar(select(func.count(Share.id))) == 1


def test_a_picture_that_is_deleted_meanwhile_leaves_the_others(
    any_database_app: Flask, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = any_database_app
    with app.app_context():
        scans = single_pictures(ann)
        store = rearrange.store_series

        def store_late(key: str, one: object) -> int:
            size = store(key, one)  # type: ignore[arg-type]
            db.session.execute(delete(Scan).where(Scan.id == scans[0].id))
            db.session.commit()
            return size

        monkeypatch.setattr(rearrange, "store_series", store_late)
        with pytest.raises(NotRearranged, match="been deleted or changed"):
            join_pictures(ann, [scan.id for scan in scans], "")
        left = {scan.id for scan in scans[1:]}
        assert set(db.session.scalars(select(Scan.id))) == left
        assert left <= {name.removesuffix(".png") for name in files_of(app)}
        assert not any(name.endswith(".zip") for name in files_of(app))


def test_a_storage_that_is_full_half_way_leaves_the_series(
    any_database_app: Flask, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = any_database_app
    with app.app_context():
        series = join_pictures(ann, [scan.id for scan in single_pictures(ann)], "")
        put, stored = Storage.put, []

        def put_two(self: Storage, key: str, content: bytes) -> None:
            if len(stored) == 2:
                raise StorageFull("The storage is full.")
            stored.append(key)
            put(self, key, content)

        monkeypatch.setattr(Storage, "put", put_two)
        with pytest.raises(StorageFull):
            split_series(ann, series.id)
        assert list(db.session.scalars(select(Scan.id))) == [series.id]
        assert files_of(app) == [f"{series.id}.zip"]


@pytest.fixture
def browser(app: Flask, logged_in: Callable[..., FlaskClient]) -> FlaskClient:
    """Ann's browser; she has single pictures."""
    return logged_in("ann")


def test_the_pages_ask_first_and_keep_the_chosen_places(app: Flask, browser: FlaskClient) -> None:
    with app.app_context():
        user_id = db.session.scalars(select(User.id)).one()
        ids = [scan.id for scan in single_pictures(user_id)]
    response = browser.post("/scans/selected", data={"id": ids[::-1], "action": "join"})
    assert "Join 4 images into one series?" in response.text
    assert response.text.index(ids[0]) < response.text.index(
        ids[1]
    )  # By the numbers in their titles.
    assert 'name="title" maxlength="80" value="Head"' in response.text
    for places, sentence in (
        (["1", "2", "2", "3"], "Two images have the same position."),
        (["1", "2", "", "3"], "whole number"),
        (["1", "2", "3"], "whole number"),
    ):
        answer = browser.post("/scans/selected/join", data={"id": ids, "place": places})
        assert answer.status_code == 400 and sentence in answer.text
    data = {"id": ids, "place": ["4", "3", "2", "1"], "title": "Head"}
    shown = browser.post("/scans/selected/join", data=data)
    with app.app_context():
        [series] = db.session.scalars(select(Scan)).all()
        assert shown.location == f"/scans/{series.id}"
        assert sides_in(series) == [picture(side=side) for side in SIDES[::-1]]
    response = browser.post("/scans/selected", data={"id": series.id, "action": "split"})
    assert "This series will be replaced by 4 single images" in response.text
    browser.post("/scans/selected/split", data={"id": [series.id, "x"]})
    assert "4 images are being reanalyzed" in browser.get("/scans").text
    nothing = browser.post("/scans/selected", data={"id": series.id, "action": "split"})
    assert nothing.location == "/scans"


def test_nobody_joins_or_splits_what_is_not_theirs(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    user_id = make_user(app, "ann")
    with app.app_context():
        ids = [scan.id for scan in single_pictures(user_id)]
    bob = logged_in("bob")
    data = {"id": ids, "place": ["1", "2", "3", "4"]}
    assert bob.post("/scans/selected/join", data=data).status_code == 400
    bob.post("/scans/selected/split", data={"id": ids})
    with app.app_context():
        assert set(db.session.scalars(select(Scan.id))) == set(ids)


def test_joining_that_meets_a_deadlock_is_tried_again(
    any_database_app: Flask, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = rearrange.files_of, iter([True, True])

    def moody(which: ColumnElement[bool]) -> list[str]:
        if next(failures, False):
            raise OperationalError("DELETE", {}, DeadlockDetected())
        return real(which)

    with any_database_app.app_context():
        scans = single_pictures(ann)
        monkeypatch.setattr(rearrange, "files_of", moody)
        series = join_pictures(ann, [scan.id for scan in scans], "Head")
        assert list(db.session.scalars(select(Scan.id))) == [series.id]
        assert files_of(any_database_app) == [f"{series.id}.zip"]
