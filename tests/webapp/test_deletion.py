"""People who delete their account, and what is left of them: nothing but what they did for all."""

from __future__ import annotations

import html
import io
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from psycopg.errors import DeadlockDetected
from sqlalchemy import ColumnElement, delete, func, select, text
from sqlalchemy.exc import OperationalError

from tests.conftest import PASSWORD, TOKEN_FORM, make_user
from tests.webapp.accounts.test_second_factors import set_up
from tests.webapp.admin.conftest import a_card
from tests.webapp.scans.test_scans import add_scan, add_verdict, form, png
from webapp import deletion
from webapp.deletion import delete_scans
from webapp.extensions import db
from webapp.models import (
    ApiToken,
    Dataset,
    Evaluation,
    Heatmap,
    JobStatus,
    LoginSession,
    ModelVersion,
    PasswordReset,
    Prediction,
    Promotion,
    RecoveryCode,
    Role,
    Scan,
    SecondFactor,
    Share,
    TrainingRun,
    User,
)
from webapp.models.accounts import add_token
from webapp.storage import Storage, StorageError, storage

SALLY = {
    "username": "Sally-Quux",
    "name": "Sally Quuxington",
    "email": "sally.quux@example.org",
    "phone": "+49 30 555777",
    "password": PASSWORD,
}
PERSONAL = (
    LoginSession,
    ApiToken,
    PasswordReset,
    Scan,
    Prediction,
    Heatmap,
    SecondFactor,
    RecoveryCode,
)


def noise(side: int = 64) -> bytes:
    """Return a picture as a PNG file whose bytes are like no other's."""
    file = io.BytesIO()
    Image.frombytes("L", (side, side), random.Random(0).randbytes(side * side)).save(file, "PNG")
    return file.getvalue()


def everything_kept(app: Flask, home: Path) -> bytes:
    """Return every byte of the database and the storage."""
    stored = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    with app.app_context():
        if db.engine.dialect.name == "postgresql":
            for table in db.inspect(db.engine).get_table_names():
                stored += [
                    row.encode()
                    for row in db.session.scalars(text(f'SELECT "{table}"::text FROM "{table}"'))
                ]
        db.session.rollback()
    return b"\n".join(stored)


def rows(app: Flask, *tables: type[db.Model]) -> list[int]:  # type: ignore[name-defined]
    """Return how many rows each table has."""
    with app.app_context():
        return [db.session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


def sign_up(app: Flask) -> FlaskClient:
    """Return the browser of a new person."""
    client = app.test_client()
    assert client.post("/signup", data=SALLY).status_code == 302
    return client


def test_nothing_that_a_person_gave_is_left_in_database_or_storage(
    any_database_app: Flask, tmp_path: Path
) -> None:
    app = any_database_app
    make_user(app, "root", Role.ADMIN)
    sally = sign_up(app)
    submitted = noise()
    scan_id = sally.post("/scans", data=form(submitted, title="Monday, bed 12")).location.rsplit(
        "/", 1
    )[-1]
    add_verdict(app, scan_id)
    assert (
        sally.post(
            "/account/tokens", data={"name": "my script", "token_password": PASSWORD, **TOKEN_FORM}
        ).status_code
        == 200
    )
    admin = app.test_client()
    admin.post("/login", data={"username": "root", "password": PASSWORD})
    with app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == "Sally-Quux")).one()
    assert admin.post(f"/admin/users/{user_id}/reset-link").status_code == 200
    set_up(app, sally)
    assert rows(app, SecondFactor, RecoveryCode) == [1, 10]
    # Ids stay in the audit log, which holds no names.
    traces = [
        *(SALLY[field] for field in ("username", "name", "email", "phone")),
        "sally-quux",
        "Monday, bed 12",
        "my script",
    ]
    with app.app_context():
        pixels = storage.get(f"originals/{scan_id}.png")[2000:2400]
    searched = [*(trace.encode() for trace in traces), pixels]
    before = everything_kept(app, tmp_path)
    assert [trace for trace in searched if trace not in before] == []

    answer = sally.post("/account/delete", data={"your_password": PASSWORD})
    assert (answer.status_code, answer.location) == (302, "/")
    assert "Your account and all your scans have been deleted." in sally.get("/").text
    left = everything_kept(app, tmp_path)
    assert [trace for trace in searched if trace in left] == []
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert rows(app, User, *PERSONAL) == [1, 1, *[0] * 7]  # root, and root's login.


def test_what_an_administrator_did_stays_by_nobody(any_database_app: Flask) -> None:
    app = any_database_app
    other, leaving = make_user(app, "root", Role.ADMIN), make_user(app, "adam", Role.ADMIN)
    with app.app_context():
        version = ModelVersion(
            card_id="0123456789ab",
            architecture="alexnet_svm",
            reads="slice",
            storage_prefix="models/none",
            card=a_card(),
        )
        run = TrainingRun(
            architecture="alexnet",
            settings={},
            initial_weights="random",
            seed=0,
            launched_by_id=leaving,
        )
        db.session.add_all(
            [run, Dataset(name="head_ct", archive_key="datasets/1.zip", imported_by_id=leaving)]
        )
        db.session.add(
            Promotion(version=version, reads="slice", by_id=leaving, reason="The best so far.")
        )
        db.session.add(
            PasswordReset(user_id=other, made_by_id=leaving, secret_hash="x", expires_at=func.now())
        )
        db.session.commit()
    browser = app.test_client()
    browser.post("/login", data={"username": "root", "password": PASSWORD})
    assert (
        "The account adam and all its scans have been deleted."
        in browser.post(f"/admin/users/{leaving}/delete", follow_redirects=True).text
    )
    with app.app_context():
        authors = (
            Dataset.imported_by_id,
            TrainingRun.launched_by_id,
            Promotion.by_id,
            PasswordReset.made_by_id,
        )
        assert [db.session.scalars(select(author)).all() for author in authors] == [[None]] * 4
        assert db.session.scalars(select(Promotion.reason)).all() == ["The best so far."]
    for page in ("/admin", "/admin/datasets", "/admin/runs", "/admin/models", "/admin/users"):
        assert browser.get(page).status_code == 200


def test_other_peoples_scans_stay(app: Flask, logged_in: Callable[..., FlaskClient]) -> None:
    ann, bob = logged_in("ann"), logged_in("bob")
    gone, response = (browser.post("/scans", data=form(png())).location for browser in (ann, bob))
    assert ann.post("/account/delete", data={"your_password": PASSWORD}).status_code == 302
    assert (ann.get(gone).status_code, bob.get(response).status_code) == (302, 200)
    with app.app_context():
        assert [
            key for key in storage.keys("originals") if response.rsplit("/", 1)[-1] not in key
        ] == []
    assert (
        app.test_client().post("/login", data={"username": "ann", "password": PASSWORD}).status_code
        == 400
    )


@pytest.mark.parametrize(
    ("password", "sentence"),
    [("wrong", "The password is incorrect."), ("", "Please fill in this field.")],
)
def test_an_account_is_not_deleted_without_its_password(
    app: Flask, logged_in: Callable[..., FlaskClient], password: str, sentence: str
) -> None:
    answer = logged_in("ann").post("/account/delete", data={"your_password": password})
    assert answer.status_code == 400
    assert sentence in answer.text
    assert rows(app, User) == [1]


def test_the_last_administrator_cannot_be_deleted(any_database_app: Flask) -> None:
    app = any_database_app
    make_user(app, "root", Role.ADMIN)
    make_user(app, "ann")
    root = app.test_client()
    root.post("/login", data={"username": "root", "password": PASSWORD})
    answer = root.post("/account/delete", data={"your_password": PASSWORD})
    assert answer.status_code == 400
    assert "This is the only administrator" in answer.text
    make_user(app, "second", Role.ADMIN)
    assert root.post("/account/delete", data={"your_password": PASSWORD}).status_code == 302
    with app.app_context():
        assert set(db.session.scalars(select(User.username))) == {"ann", "second"}


def test_administrators_delete_themselves_by_password_only(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    root = logged_in("root", Role.ADMIN)
    second = make_user(app, "second", Role.ADMIN)
    with app.app_context():
        own_id = db.session.scalars(select(User.id).where(User.id != second)).one()
    answer = root.post(f"/admin/users/{own_id}/delete")
    assert (answer.status_code, answer.location) == (302, "/account#delete")
    assert rows(app, User) == [2]


def test_files_that_cannot_be_removed_at_once_are_reported(
    app: Flask, logged_in: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = logged_in("ann")
    ann.post("/scans", data=form(png(), png()))

    def away(self: Storage, key: str) -> None:
        raise StorageError("A stored file cannot be removed.")

    monkeypatch.setattr(Storage, "delete", away)
    page = ann.post("/account/delete", data={"your_password": PASSWORD}, follow_redirects=True).text
    assert (
        "Your account and all your scans have been deleted." in page
        and "they will be removed within a few hours" in page
    )
    assert rows(app, User, Scan) == [0, 0]


def test_a_request_does_not_remove_files_for_ever(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id = make_user(app, "ann")
    for _ in range(2):
        add_scan(app, status=JobStatus.DONE)
    monkeypatch.setattr(deletion, "FILES_S", 0.0)
    with app.app_context():
        storage.put("originals/none.png", b"there")
        assert not deletion.delete_account(user_id)
        assert storage.exists("originals/none.png")
    assert rows(app, User, Scan) == [0, 0]


@pytest.mark.parametrize("what", [User, Scan])
def test_a_deletion_that_meets_a_deadlock_is_tried_again(
    app: Flask, monkeypatch: pytest.MonkeyPatch, what: type[User | Scan]
) -> None:
    user_id = make_user(app, "ann")
    scan_id = add_scan(app, status=JobStatus.DONE)
    real, failures = deletion.files_of, iter([True, True])

    def moody(which: object) -> list[str]:
        if next(failures, False):
            raise OperationalError("DELETE", {}, DeadlockDetected())
        return real(which)  # type: ignore[arg-type]

    monkeypatch.setattr(deletion, "files_of", moody)
    with app.app_context():
        if what is User:
            deletion.delete_account(user_id)
        else:
            deletion.delete_scan(scan_id)
    assert rows(app, what) == [0]


def test_the_files_of_a_series_go_too(app: Flask, logged_in: Callable[..., FlaskClient]) -> None:
    ann = logged_in("ann")
    scan_id = ann.post("/scans", data=form(png())).location.rsplit("/", 1)[-1]
    add_verdict(app, scan_id)
    with app.app_context():
        heatmap = db.session.scalars(select(Heatmap)).one()
        heatmap.slices = [0, 17]
        db.session.get_one(Scan, scan_id).volume_key = f"volumes/{scan_id}.nii.gz"
        db.session.commit()
        for key in (
            f"volumes/{scan_id}.nii.gz",
            f"heatmaps/{heatmap.id}.0.png",
            f"heatmaps/{heatmap.id}.17.png",
        ):
            storage.put(key, png())
        assert deletion.delete_scan(scan_id)
        assert storage.keys("") == []


def token_for(app: Flask, user_id: str) -> str:
    """Return a fresh API token of that person."""
    with app.app_context():
        _, secret = add_token(user_id, "a script")
        db.session.commit()
    return secret


def upload(app: Flask, token: str) -> tuple[int, str]:
    """Send a scan by the API; return the status and what was told."""
    answer = app.test_client().post(
        "/api/v1/scans",
        data={"file": (io.BytesIO(png()), "1.png")},
        headers={"Authorization": f"Bearer {token}"},
    )
    return answer.status_code, answer.text


def stored_files(home: Path) -> list[Path]:
    """Return what is in the storage."""
    return [path for path in (home / "files").rglob("*") if path.is_file()]


def when_stored(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have `act` done when the next upload has stored a file and not written its row yet."""
    put = Storage.put

    def put_and_act(self: Storage, key: str, content: bytes | Path) -> None:
        put(self, key, content)
        monkeypatch.setattr(Storage, "put", put)
        act()

    monkeypatch.setattr(Storage, "put", put_and_act)


def elsewhere(app: Flask, act: Callable[[], object]) -> Callable[[], None]:
    """Return `act` as another process would do it, at the same time."""

    def done() -> None:
        def in_context() -> None:
            with app.app_context():
                act()

        other = threading.Thread(target=in_context)
        other.start()
        other.join(30)

    return done


def test_an_evaluation_that_is_being_requested_keeps_its_data_set(any_database_app: Flask) -> None:
    app, refusals = any_database_app, []

    def delete_it(dataset_id: str) -> None:
        with app.app_context():
            try:
                deletion.delete_dataset(dataset_id)
            except deletion.StillNeeded as err:
                refusals.append(str(err))

    with app.app_context():
        version = ModelVersion(
            card_id="a", architecture="alexnet", reads="slice", storage_prefix="m", card=a_card()
        )
        dataset = Dataset(name="heads", archive_key="heads.zip", status=JobStatus.DONE)
        db.session.add_all([version, dataset])
        db.session.commit()
        db.session.add(Evaluation(version_id=version.id, dataset_id=dataset.id))
        db.session.flush()
        deleting = threading.Thread(target=delete_it, args=[dataset.id])
        deleting.start()
        deleting.join(0.5)
        assert deleting.is_alive()  # It waits for the request.
        db.session.commit()
        deleting.join(30)
    assert len(refusals) == 1 and "still queued or running" in refusals[0]
    assert rows(app, Dataset, Evaluation) == [1, 1]


def test_an_upload_that_its_account_does_not_outlive_is_refused_and_leaves_no_file(
    any_database_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = any_database_app
    make_user(app, "root", Role.ADMIN)
    user_id = make_user(app, "ann")
    token = token_for(app, user_id)
    assert upload(app, token)[0] == 202
    when_stored(monkeypatch, elsewhere(app, lambda: deletion.delete_account(user_id)))
    status, body = upload(app, token)
    assert status == 422 and "deleted or disabled" in body
    assert stored_files(tmp_path) == []
    assert rows(app, User, Scan) == [1, 0]


def test_no_upload_slips_in_between_the_list_of_files_and_the_end_of_an_account(
    any_database_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = any_database_app
    make_user(app, "root", Role.ADMIN)
    user_id = make_user(app, "ann")
    token = token_for(app, user_id)
    answers: list[int] = []
    uploading = threading.Thread(target=lambda: answers.append(upload(app, token)[0]))
    files_of = deletion.files_of

    def list_slowly(which: ColumnElement[bool]) -> list[str]:
        listed = files_of(which)
        uploading.start()
        uploading.join(2)
        return listed

    monkeypatch.setattr(deletion, "files_of", list_slowly)
    with app.app_context():
        assert deletion.delete_account(user_id)
    uploading.join(30)
    assert answers in ([401], [422])
    assert stored_files(tmp_path) == []


def test_a_token_that_is_revoked_in_mid_upload_is_refused_at_the_end(
    any_database_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = any_database_app
    token = token_for(app, make_user(app, "ann"))

    def revoke() -> None:
        db.session.execute(delete(ApiToken))
        db.session.commit()

    when_stored(monkeypatch, elsewhere(app, revoke))
    assert upload(app, token)[0] == 401
    assert stored_files(tmp_path) == []
    assert rows(app, Scan) == [0]


def test_a_login_that_ends_in_mid_upload_is_refused_at_the_end(
    any_database_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = any_database_app
    make_user(app, "ann")
    browser = app.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})

    def end() -> None:
        db.session.execute(delete(LoginSession))
        db.session.commit()

    when_stored(monkeypatch, elsewhere(app, end))
    assert browser.post("/scans", data=form(png())).status_code == 401
    assert stored_files(tmp_path) == []
    assert rows(app, Scan) == [0]


def test_who_could_see_a_scan_is_told_why_it_is_gone_and_nobody_else_that_it_existed(
    any_database_app: Flask,
) -> None:
    app, browsers = any_database_app, {}
    for name in ("ann", "bob", "carl", "dora"):
        make_user(app, name, Role.REVIEWER if name == "dora" else Role.USER)
        browsers[name] = app.test_client()
        browsers[name].post("/login", data={"username": name, "password": PASSWORD})

    def told(name: str, scan_id: str) -> str:
        answer = browsers[name].get(f"/scans/{scan_id}")
        assert answer.status_code == 404
        return html.unescape(answer.text.split("<h1>Not found</h1>\n  <p>")[1].split("</p>")[0])

    def submitted() -> str:
        sent = browsers["ann"].post("/scans/phantom", data={"name": "phantom-1.png"})
        scan_id = sent.location.rsplit("/", 1)[-1]
        for whom in ({"username": "bob"}, {"username": "carl"}, {"reviewers": "1"}):
            browsers["ann"].post(f"/scans/{scan_id}/shares", data=whom)
        with app.app_context():
            of_carl = select(Share.id).join(Share.with_user).where(User.username == "carl")
            share = db.session.scalar(of_carl.where(Share.scan_id == scan_id))
        browsers["ann"].post(f"/scans/{scan_id}/shares/{share}/end")
        return scan_id

    nothing = told("ann", "0" * 32)
    assert nothing.startswith("This scan does not exist")
    deleted, expired, there = submitted(), submitted(), submitted()
    assert told("carl", there) == nothing, "it is not shared with him any more"
    browsers["ann"].post(f"/scans/{deleted}/delete")
    with app.app_context():
        assert delete_scans(Scan.id == expired, most=9) == 1  # What retention does.
    assert told("ann", deleted) == "You deleted this scan."
    assert "limited time" in told("ann", expired)
    for name in ("bob", "dora"):
        assert told(name, deleted) == "The owner of this scan deleted it."
        assert (
            told(name, expired)
            == "This scan was deleted, automatically or with its owner’s account."
        )
    assert [told("carl", scan_id) for scan_id in (deleted, expired)] == [nothing] * 2
