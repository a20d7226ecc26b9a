"""Who did what to which object, when and from where."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import flask_migrate
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from tests.conftest import PASSWORD, TOKEN_FORM, make_user
from tests.webapp.admin.conftest import NOBODY, add_dataset, add_run, add_version, zip_of
from webapp import create_app
from webapp.audit_chain import seal, trim, verify
from webapp.extensions import db, utc_now
from webapp.models import (
    Act,
    ApiToken,
    AuditEvent,
    Dataset,
    JobStatus,
    LoginSession,
    Role,
    Scan,
    User,
)

YEAR = timedelta(days=365)
PHANTOM = "phantom-1.png"


def events(app: Flask) -> list[tuple[str, str | None, str | None]]:
    """Return act, actor and object of all events, oldest first."""
    with app.app_context():
        rows = db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
        return [(event.act, event.actor_id, event.object_id) for event in rows]


def newest(app: Flask) -> tuple[str, str | None, str | None]:
    """Return act, actor and object of the newest event."""
    return events(app)[-1]


def only_id(app: Flask, table: type) -> str:
    """Return the id of the only row."""
    with app.app_context():
        return str(db.session.scalars(select(table)).one().id)  # type: ignore[attr-defined]


def set_status(app: Flask, status: JobStatus, **columns: object) -> None:
    """Put all scans into a state that only a worker could."""
    with app.app_context():
        db.session.execute(update(Scan).values(status=status, **columns))
        db.session.commit()


def test_what_happens_to_an_account_is_kept(any_database_app: Flask) -> None:
    app = any_database_app
    client = app.test_client()
    person = {"username": "ann", "name": "Ann", "email": "ann@example.org", "password": PASSWORD}
    client.post("/signup", data=person)
    ann = only_id(app, User)
    client.post(
        "/account", data={"current_password": PASSWORD, "password": "another long password"}
    )
    client.post(
        "/account/tokens",
        data={"name": "a script", "token_password": "another long password", **TOKEN_FORM},
    )
    token = only_id(app, ApiToken)
    client.post(f"/account/tokens/{token}/revoke")
    client.post("/account/logins/end-others")
    client.post("/logout")
    client.post("/login", data={"username": "ann", "password": "wrong"})
    client.post("/login", data={"username": "nobody", "password": "wrong"})
    assert events(app) == [
        (Act.SIGNED_UP, ann, ann),
        (Act.LOGGED_IN, ann, ann),
        (Act.PASSWORD_CHANGED, ann, ann),
        (Act.TOKEN_MADE, ann, token),
        (Act.TOKEN_REVOKED, ann, token),
        (Act.LOGINS_ENDED, ann, ann),
        (Act.LOGGED_OUT, ann, ann),
        (Act.LOGIN_FAILED, None, ann),
        (Act.LOGIN_FAILED, None, None),
    ]
    with app.app_context():
        events_text = str([vars(event) for event in db.session.scalars(select(AuditEvent))])
    assert "127.0.0.1" in events_text
    # People type passwords into the field for the username.
    assert "example.org" not in events_text and "nobody" not in events_text


def test_what_happens_to_a_scan_is_kept_whether_a_browser_or_a_token_asks(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    browser = logged_in("ann")
    ann = only_id(app, User)
    answer = browser.post(
        "/account/tokens", data={"name": "a script", "token_password": PASSWORD, **TOKEN_FORM}
    )
    secret = answer.text.split('id="token">')[1].split("<")[0]
    program = app.test_client()
    program.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {secret}"

    for client, path in ((browser, "/scans"), (program, "/api/v1/scans")):
        assert browser.post("/scans/phantom", data={"name": PHANTOM}).status_code == 302
        scan = only_id(app, Scan)
        assert newest(app) == (Act.SCAN_SUBMITTED, ann, scan)
        for act, done in ((Act.SCAN_CANCELLED, "cancel"), (Act.SCAN_RETRIED, "retry")):
            client.post(f"{path}/{scan}/{done}")
            assert newest(app) == (act, ann, scan)
        set_status(app, JobStatus.FAILED, not_head_ct=0.9)
        client.post(f"{path}/{scan}/score-anyway")
        assert newest(app) == (Act.SCAN_FORCED, ann, scan)
        before = events(app)
        set_status(app, JobStatus.DONE)
        for refused in ("cancel", "retry", "score-anyway"):
            client.post(f"{path}/{scan}/{refused}")
        assert events(app) == before  # What was refused did not happen.
        client.delete(f"{path}/{scan}") if client is program else client.post(
            f"{path}/{scan}/delete"
        )
        assert newest(app) == (Act.SCAN_DELETED, ann, scan)


def test_what_an_admin_does_is_kept(app: Flask, logged_in: Callable[..., FlaskClient]) -> None:
    ann = make_user(app, "ann")
    admin = logged_in("root", Role.ADMIN)
    with app.app_context():
        root = db.session.scalars(select(User.id).where(User.username == "root")).one()
        version, run = add_version("one", checked_at=utc_now()), add_run(JobStatus.QUEUED)
        failed = add_dataset("mine", JobStatus.FAILED)
    for path, data, expected in (
        (f"/admin/users/{ann}/reset-link", {}, (Act.RESET_LINK_MADE, root, ann)),
        (f"/admin/users/{ann}/disable", {}, (Act.USER_DISABLED, root, ann)),
        (f"/admin/users/{ann}/enable", {}, (Act.USER_ENABLED, root, ann)),
        (
            f"/admin/models/{version}/promote",
            {"reason": "better"},
            (Act.VERSION_PROMOTED, root, version),
        ),
        (f"/admin/runs/{run}/cancel", {}, (Act.RUN_CANCELLED, root, run)),
        (f"/admin/runs/{run}/retry", {}, (Act.RUN_RETRIED, root, run)),
    ):
        assert admin.post(path, data=data).status_code in (200, 302)
        assert newest(app) == expected
    form = {"name": "mine", "archive": (zip_of(a="b"), "x.zip")}
    assert (
        admin.post("/admin/datasets", data=form, content_type="multipart/form-data").status_code
        == 302
    )
    dataset = only_id(app, Dataset)
    assert events(app)[-2:] == [
        (Act.DATASET_DELETED, root, failed),
        (Act.DATASET_IMPORTED, root, dataset),
    ]
    for path, expected in (
        (f"/admin/datasets/{dataset}/cancel", (Act.IMPORT_CANCELLED, root, dataset)),
        (f"/admin/datasets/{dataset}/delete", (Act.DATASET_DELETED, root, dataset)),
        (f"/admin/users/{ann}/delete", (Act.ACCOUNT_DELETED, root, ann)),
    ):
        assert admin.post(path).status_code == 302
        assert newest(app) == expected


def test_what_is_done_at_the_command_line_is_kept(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEMOSCAN_PASSWORD", PASSWORD)
    commands = app.test_cli_runner()
    assert commands.invoke(args=["create-admin", "root"]).exit_code == 0
    assert newest(app) == (Act.ADMIN_MADE, None, only_id(app, User))
    assert commands.invoke(args=["create-token", "root"]).exit_code == 0
    assert newest(app) == (Act.TOKEN_MADE, None, only_id(app, ApiToken))
    with app.app_context():
        assert set(db.session.scalars(select(AuditEvent.address))) == {"command line"}


def test_who_asks_for_what_is_not_theirs_is_kept_once_a_minute(any_database_app: Flask) -> None:
    app = any_database_app
    make_user(app, "ann")
    bob = make_user(app, "bob")
    owner, other = app.test_client(), app.test_client()
    for client, username in ((owner, "ann"), (other, "bob")):
        client.post("/login", data={"username": username, "password": PASSWORD})
    owner.post("/scans/phantom", data={"name": PHANTOM})
    scan = only_id(app, Scan)
    before = events(app)
    for path in ("/scans/nonsense", f"/scans/{NOBODY}", "/nowhere", "/scans/%00/image.png"):
        assert other.get(path).status_code == 404
    assert owner.get(f"/scans/{scan}/heatmap.png").status_code == 404  # Not drawn, but theirs.
    assert events(app) == before
    for path in (f"/scans/{scan}", f"/scans/{scan}/image.png", "/admin/users"):
        assert other.get(path).status_code == 404
    assert events(app)[len(before) :] == [(Act.ACCESS_REFUSED, bob, scan)]
    with app.app_context():
        past = AuditEvent(
            act=Act.ACCESS_REFUSED, actor_id=bob, address="", at=utc_now() - timedelta(seconds=61)
        )
        db.session.add(past)
        db.session.commit()
    assert other.post("/admin/runs/new").status_code == 404
    assert newest(app) == (Act.ACCESS_REFUSED, bob, None)


def test_an_act_that_is_not_committed_leaves_no_event(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_user(app, "ann")
    client = app.test_client()

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("webapp.accounts.logins.browser_name", fails)
    with pytest.raises(ZeroDivisionError):
        client.post("/login", data={"username": "ann", "password": PASSWORD})
    assert events(app) == []
    with app.app_context():
        assert db.session.scalars(select(LoginSession)).all() == []


def test_the_database_refuses_to_change_or_delete_an_event(
    database_url: str, tmp_path: Path
) -> None:
    app = create_app(
        {
            "SECRET_KEY": "x",
            "HEMOSCAN_HOME": tmp_path,
            "DATABASE_URL": database_url,
            "BROKER_URL": f"redis+socket://{tmp_path / 'none'}",
        }
    )
    with app.app_context():
        flask_migrate.upgrade()
        db.session.add(AuditEvent(act=Act.LOGGED_OUT, address="192.0.2.1"))
        db.session.commit()
        for change in ("UPDATE audit_event SET act = 'nothing'", "DELETE FROM audit_event"):
            with pytest.raises(DBAPIError, match="The audit log is append-only"):
                db.session.execute(text(change))
            db.session.rollback()
        assert db.session.scalars(select(AuditEvent.act)).all() == [Act.LOGGED_OUT]
        # Only what its retention trims goes, by way of an anchor that cannot be changed either.
        db.session.add(AuditEvent(act=Act.LOGGED_IN, address="192.0.2.1", at=utc_now() - YEAR))
        db.session.commit()
        db.session.execute(text("DELETE FROM audit_event WHERE id < 0"))
        assert seal() == 2
        db.session.commit()
        assert trim(100) == 0  # The older one was sealed after the newer one.
        assert trim(0) == 2
        assert seal() == 1
        db.session.commit()
        for change in (
            "UPDATE audit_link SET hash = ''",
            "UPDATE audit_anchor SET position = 9",
            "DELETE FROM audit_anchor",
        ):
            with pytest.raises(DBAPIError, match="The audit log is append-only"):
                db.session.execute(text(change))
            db.session.rollback()
        with pytest.raises(DBAPIError, match="The audit log is append-only"):
            db.session.execute(text("DELETE FROM audit_event"))
        db.session.rollback()
        verification = verify()
        assert (verification.events, verification.problem) == (1, None)
        flask_migrate.downgrade(revision="9a6f20c84be1")
        with pytest.raises(DBAPIError, match="The audit log is append-only"):
            db.session.execute(text("DELETE FROM audit_event"))
        db.session.rollback()
        db.session.remove()
        db.engine.dispose()


class TestPage:
    def test_events_are_filtered_by_act_person_and_object(self, any_database_app: Flask) -> None:
        app = any_database_app
        root, ann = make_user(app, "root", Role.ADMIN), make_user(app, "ann")
        admin = app.test_client()
        admin.post("/login", data={"username": "root", "password": PASSWORD})
        app.test_client().post("/login", data={"username": "ann", "password": PASSWORD})
        admin.post(f"/admin/users/{ann}/disable")

        def shown(query: str) -> list[str]:
            rows = admin.get(f"/admin/audit?{query}").text.split("<tbody>")[-1].split("<tr>")[1:]
            return [row.split("<td>")[3].split("<")[0] for row in rows]

        assert shown("") == ["user disabled", "logged in", "logged in"]
        assert shown("act=logged+in") == ["logged in", "logged in"]
        assert shown("by=ROOT") == shown(f"by={root}") == ["user disabled", "logged in"]
        assert shown("object=ann") == shown(f"object={ann}") == ["user disabled", "logged in"]
        assert shown("by=root&object=ann") == ["user disabled"]
        assert len(shown("address=127.0.0.1")) == 3
        for nothing in (
            "by=nobody",
            "address=%00",
            "address=192.0.2.1",
            "object=%00",
            "by=' OR 1=1 --",
            "before=0",
        ):
            assert shown(nothing) == [], nothing
        assert shown("act=no-such-act&before=x") == shown("")

    def test_a_long_log_is_paged_and_no_page_counts_it(
        self, app: Flask, logged_in: Callable[..., FlaskClient]
    ) -> None:
        admin = logged_in("root", Role.ADMIN)
        with app.app_context():
            db.session.add_all(
                AuditEvent(act=Act.SCAN_SUBMITTED, address="192.0.2.1", object_id=f"{number:032}")
                for number in range(60)
            )
            db.session.commit()
        page = admin.get("/admin/audit?act=scan+submitted").text
        assert page.count("192.0.2.1") == 50
        older = page.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
        rest = admin.get(older).text
        assert rest.count("192.0.2.1") == 10
        assert f"{9:032}" in rest and f"{10:032}" not in rest
        assert 'rel="next"' not in rest

    def test_a_deleted_person_stays_in_the_log_by_id_alone(
        self, app: Flask, logged_in: Callable[..., FlaskClient]
    ) -> None:
        ann = make_user(app, "ann")
        app.test_client().post("/login", data={"username": "ann", "password": PASSWORD})
        with app.app_context():
            db.session.delete(db.session.get_one(User, ann))
            db.session.commit()
        page = logged_in("root", Role.ADMIN).get(f"/admin/audit?by={ann}").text
        assert page.count(f"<td>{ann}</td>") == 1
