"""Every route, asked by everybody, against the table in `access.csv`; and no page shows a person's
text as anything but text.

A cell of the table is the status of an answer to an otherwise empty request; `login` is a
redirection to the login. `scope` is what a token needs for an operation of the API. The owner is
whose the scan, the token, the login, the opinion and the reset link in the address are; the scan is
shared with the reviewers.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import JSON, String, func, select, update
from werkzeug.routing import Rule
from wtforms.fields.core import UnboundField

from tests.conftest import app_on, make_user
from tests.webapp.admin.conftest import EXPLORATION, add_dataset, add_run, add_version
from tests.webapp.admin.test_accuracy import cell
from tests.webapp.admin.test_evaluations import A_MISTAKE, evaluated
from tests.webapp.admin.test_images import indexed
from tests.webapp.admin.test_shadows import shadow_answers
from tests.webapp.series import heat, stored_masks, stored_series
from webapp.extensions import db, utc_now
from webapp.forms import PostedForm
from webapp.models import (
    ApiToken,
    Channel,
    Finding,
    Heatmap,
    JobStatus,
    LoginSession,
    ModelVersion,
    Notification,
    Opinion,
    PaperExperiment,
    PasswordReset,
    Prediction,
    Promotion,
    Replay,
    Report,
    ReportKind,
    ResultDelivery,
    Role,
    Scan,
    Scope,
    Shadow,
    Share,
    SiteFigures,
    User,
    new_preview,
    promote,
    sample_answers,
)
from webapp.models.accounts import new_secret, secret_hash
from webapp.scans.pictures import heatmap_key
from webapp.security_headers import POLICIES
from webapp.storage import storage

ROLES = ("anonymous", "other", "owner", "reviewer", "admin", "disabled", "revoked")
TABLE = Path(__file__).with_name("access.csv")
REFUSED = ("login", "401", "403", "404")
TOKENED = ("/api/v1/", "/dicom-web/")
PUBLIC = {("GET", "/api/v1/docs"), ("GET", "/api/v1/openapi.json")}
"""The documentation of the API, which needs no token."""
ONE_PIXEL = b"""{"00280010": {"vr": "US", "Value": [1]}, "00280011": {"vr": "US", "Value": [1]},
"00280100": {"vr": "US", "Value": [8]}}"""
"""What a picture of one pixel says in the DICOM JSON model."""
SAME = {"differs": [], "not_kept": [], "changes": []}
PICTURED = {"name": "original", "pictures": [[0, 8]], "notes": ["a note"]}
HOSTILE = """<script>alert(1)</script>'"><img src=x onerror=alert(1)>"""


@dataclass(frozen=True)
class World:
    """An application with a row of everything, and who asks it.

    `addresses`: what stands for each variable part of a route; `unshared_id`: a scan of the owner
    that is shared with nobody; `secrets`: the login and the token of each role.
    """

    app: Flask
    addresses: dict[str, str]
    unshared_id: str
    secrets: dict[str, tuple[str, str]]
    saved: Path

    def client(self, role: str) -> FlaskClient:
        """Return a client whose requests carry the cookie and the token of that role."""
        client = self.app.test_client()
        if role in self.secrets:
            login, token = self.secrets[role]
            with client.session_transaction() as cookie:
                cookie["_user_id"] = login
            client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"
        return client

    def save(self) -> None:
        """Keep the database and the files as they are now, for `restore`."""
        with self.app.app_context():
            db.session.remove()
            db.engine.dispose()
        shutil.copytree(self.app.config["HEMOSCAN_HOME"], self.saved, dirs_exist_ok=True)

    def restore(self) -> None:
        """Put the database and the files back to what they were when they were saved."""
        home: Path = self.app.config["HEMOSCAN_HOME"]
        with self.app.app_context():
            db.session.remove()
            db.engine.dispose()
        for path in home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.saved, home, dirs_exist_ok=True)


def site_figures_of(version_id: str) -> dict[str, Any]:
    """Return site figures of a version as a worker writes them."""
    share = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 10, "reason": None}
    missing = {"value": None, "low": None, "high": None, "n": 0, "reason": "there is none"}
    figures = {
        "scans": 10,
        "with_hemorrhage": 5,
        "represented": 50.0,
        "metrics": {"sensitivity": share, "specificity": missing},
        "bins": [{"low": 0.8, "high": 1.0, "scans": 10, "predicted": 0.9, "observed": share}],
    }
    return {
        "version_id": version_id,
        "card_id": "card-one",
        "architecture": "alexnet_svm",
        "reads": "slice",
        "all": figures,
        "months": [{"month": "2026-11", **figures}],
        "notes": ["a note"],
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Rows of every kind that all tests of this module request, each time as they were created."""
    made = world_in(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("saved"))
    made.save()
    yield made
    with made.app.app_context():
        db.engine.dispose()


def world_in(home: Path, saved: Path) -> World:
    """Return an application with rows of every kind, in `home`; `saved` is where it keeps a copy.

    One function, because it is a list: the rows refer to each other.
    """
    app = app_on(f"sqlite:///{home / 'test.db'}", home)
    users = {
        role: make_user(app, role, Role(role) if role in list(Role) else Role.USER)
        for role in ROLES[1:6]
    }
    secrets = {role: (new_secret(), new_secret()) for role in ROLES[1:]}
    link = new_secret()
    with app.app_context():
        soon = utc_now() + timedelta(days=1)
        for role, user_id in users.items():
            db.session.add(
                LoginSession(
                    user_id=user_id, secret_hash=secret_hash(secrets[role][0]), expires_at=soon
                )
            )
            db.session.add(
                ApiToken(
                    user_id=user_id,
                    secret_hash=secret_hash(secrets[role][1]),
                    name="a script",
                    scopes=" ".join(Scope),
                )
            )
        db.session.get_one(User, users["disabled"]).disabled_at = utc_now()
        db.session.add(
            PasswordReset(user_id=users["owner"], secret_hash=secret_hash(link), expires_at=soon)
        )
        for key in (
            "images/1.png",
            "thumbnails/1.png",
            "heatmaps/1.png",
            "originals/1.png",
            "sheets/1.png",
        ):
            storage.put(key, b"a picture")
        dataset_id = add_dataset(
            "mine",
            exploration=EXPLORATION,
            contact_sheet_key="sheets/1.png",
            imported_by_id=users["admin"],
            made_from={"since": "2026-01-01", "until": None, "kind": "series", "opinions": 2},
        )
        run_id = add_run(
            JobStatus.DONE, launched_by_id=users["admin"], current_metrics={"auroc": 0.5}
        )
        version_id = add_version("card-one", run_id=run_id)
        promote(db.session.get_one(ModelVersion, version_id), users["admin"], "a reason")
        evaluation_id = evaluated(version_id, dataset_id)
        analysis_id = indexed(dataset_id)
        preview = new_preview({"phantom": "phantom-1.png"}, {"kind": "processing"})
        preview.status, preview.result = JobStatus.DONE, [PICTURED]
        storage.put(preview.file_key, b"pictures")
        version = db.session.get_one(ModelVersion, version_id)
        version.mistakes = [A_MISTAKE]
        for layer in ("", "-heat"):
            storage.put(version.mistake_key(0, layer), b"a picture")
        experiment = PaperExperiment(
            dataset_id=dataset_id,
            architectures=["cnn_lstm"],
            status=JobStatus.FAILED,
            results={"cells": [cell("honest", 0.8)]},
        )
        db.session.add(experiment)
        db.session.flush()
        experiment_id = experiment.id
        columns = {"user_id": users["owner"], "kind": "png", "original_key": "originals/1.png"}
        scan = Scan(
            **columns,
            status=JobStatus.DONE,
            title="mine",
            notes=["a note"],
            image_key="images/1.png",
            volume_key="volumes/1.nii.gz",
            outline_key="outlines/1.nii.gz",
            thumbnail_key="thumbnails/1.png",
            study_uid="2.25.1",
        )
        facts = {
            "probability": 0.9,
            "threshold": 0.5,
            "positive": True,
            "uncertain": False,
            "seconds": 1.0,
        }
        scan.prediction = Prediction(
            model_version_id=version_id,
            warnings=["a warning"],
            slices=[0.9],
            outlined_slices=[0],
            volume_ml=12.0,
            **facts,
        )
        scan.prediction.heatmap = Heatmap(
            status=JobStatus.DONE, image_key="heatmaps/1.png", slices=[0]
        )
        failed = Scan(
            **columns, status=JobStatus.FAILED, error="It cannot be read.", not_head_ct=0.9
        )
        db.session.add_all((scan, failed))
        db.session.flush()
        opinion = Opinion(
            scan_id=scan.id,
            author_id=users["owner"],
            finding=Finding.PRESENT,
            types=["subdural"],
            comment="a comment",
            region={"x": 0.5, "y": 0.5, "rx": 0.1, "ry": 0.2},
            model_version_id=version_id,
        )
        other_opinion = Opinion(
            scan_id=scan.id, author_id=users["admin"], finding=Finding.ABSENT, comment="a vessel"
        )
        share = Share(scan_id=scan.id)
        figures = SiteFigures(
            status=JobStatus.DONE, finished_at=utc_now(), figures=[site_figures_of(version_id)]
        )
        db.session.add_all((opinion, other_opinion, share, figures))
        db.session.flush()
        candidate_id = add_version("card-two")
        shadow = Shadow(version_id=candidate_id, against_id=version_id, reads="slice")
        db.session.add(shadow)
        db.session.flush()
        db.session.add_all(shadow_answers(shadow.id, [scan.id, failed.id]))
        sample, _ = sample_answers(1, users["admin"])
        db.session.flush()
        db.session.execute(update(Replay).values(status=JobStatus.DONE, is_same=True, result=SAME))
        report = Report(
            scan_id=scan.id, user_id=scan.user_id, kind=ReportKind.PDF, status=JobStatus.DONE
        )
        capture = Report(
            scan_id=scan.id,
            user_id=scan.user_id,
            kind=ReportKind.SECONDARY_CAPTURE,
            status=JobStatus.DONE,
            series_uid="2.25.2",
        )
        notification = Notification(
            user_id=scan.user_id, scan_id=scan.id, channel=Channel.EMAIL, error="No."
        )
        unsent = ResultDelivery(
            user_id=scan.user_id, scan_id=scan.id, destination="pacs", error="No."
        )
        db.session.add_all((report, capture, notification, unsent))
        db.session.flush()
        storage.put(report.file_key, b"a report")
        for key in capture.file_keys:
            storage.put(key, ONE_PIXEL if key.endswith(".json") else b"ab")
        storage.put(scan.volume_key, stored_series(np.zeros((2, 4, 4))))
        storage.put("outlines/1.nii.gz", stored_masks(np.ones((1, 4, 4), bool)))
        storage.put(heatmap_key(scan.prediction.heatmap.id, 0), heat(0))
        db.session.commit()
        of_owner = {
            table: db.session.scalar(select(table.id).where(table.user_id == users["owner"]))
            for table in (ApiToken, LoginSession)
        }
        addresses = {
            "scan_id": scan.id,
            "opinion_id": opinion.id,
            "share_id": share.id,
            "token_id": str(of_owner[ApiToken]),
            "login_id": str(of_owner[LoginSession]),
            "channel": "browser",
            "index": "0",
            "kind": "pdf",
            "study_uid": scan.study_uid,
            "series_uid": capture.series_uid,
            "instance_uid": capture.sop_instance_uid,
            "frames": "1",
            "secret": link,
            "dataset_id": dataset_id,
            "number": "0",
            "analysis_id": analysis_id,
            "question_id": analysis_id,
            "preview_id": preview.id,
            "step": "0",
            "delivery_id": unsent.id,
            "evaluation_id": evaluation_id,
            "promotion_id": str(db.session.scalar(select(func.max(Promotion.id)))),
            "experiment_id": experiment_id,
            "run_id": run_id,
            "sample_id": sample.id,
            "shadow_id": shadow.id,
            "version_id": version_id,
            "user_id": users["other"],
            "filename": "hemoscan.css",
        }
        return World(app, addresses, failed.id, secrets, saved)


def routes(app: Flask) -> dict[tuple[str, str], Rule]:
    """Return every method and route, but the methods that Flask answers by itself."""
    return {
        (method, rule.rule): rule
        for rule in app.url_map.iter_rules()
        for method in sorted(rule.methods or ())
        if method not in ("HEAD", "OPTIONS")
    }


def address_of(world: World, rule: Rule) -> str:
    """Return the route with ids of rows that there are."""
    unknown = rule.arguments - set(world.addresses)
    assert not unknown, f"{rule.rule}: say in `world` what {unknown} is"
    with world.app.test_request_context():
        return world.app.url_for(
            rule.endpoint, **{name: world.addresses[name] for name in rule.arguments}
        )


def rows(app: Flask) -> dict[str, list[Any]]:
    """Return everything in the database but when logins and tokens were last used, and that
    somebody was refused.
    """
    with app.app_context():
        return {
            table.name: db.session.execute(
                select(*(column for column in table.c if column.name != "used_at"))
            ).all()
            for table in db.metadata.sorted_tables
            if table.name != "audit_event"
        }


def answer_to(world: World, role: str, method: str, address: str) -> str:
    """Ask as somebody in that role, and return the status; every answer carries the policies."""
    with world.client(role).open(address, method=method) as answer:
        assert {name: answer.headers.get(name) for name in POLICIES} == POLICIES
        assert answer.status_code != 500
        return (
            "login"
            if answer.status_code == 302 and answer.location.partition("?")[0] == "/login"
            else str(answer.status_code)
        )


def expected() -> dict[tuple[str, str], dict[str, str]]:
    """Return the table: for each method and route the answer for each role."""
    with TABLE.open(newline="") as file:
        return {
            (row["method"], row["route"]): {role: row[role] for role in ROLES}
            for row in csv.DictReader(file)
        }


def scopes() -> dict[tuple[str, str], str]:
    """Return for each operation of the API the scope that a token needs, or "any"."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["method"], row["route"]): row["scope"]
        for row in rows
        if row["route"].startswith(TOKENED) and row["scope"]
    }


def test_every_operation_of_the_api_needs_the_scope_of_the_table(world: World) -> None:
    operations = {key for key in expected() if key[1].startswith(TOKENED)} - PUBLIC
    assert scopes().keys() == operations
    world.restore()
    for (method, route), scope in scopes().items():
        with world.app.app_context():
            others = " ".join(each for each in Scope if each != scope)
            db.session.execute(update(ApiToken).values(scopes=others))
            db.session.commit()
        before = rows(world.app)
        with world.client("admin").open(
            address_of(world, routes(world.app)[method, route]), method=method
        ) as answer:
            assert (answer.status_code == 403) is (scope != "any"), (method, route)
        assert rows(world.app) == before


def test_the_table_has_a_row_for_every_route_and_for_nothing_else(app: Flask) -> None:
    assert sorted(expected()) == sorted(routes(app))


@pytest.mark.parametrize(("method", "route"), sorted(expected()))
def test_everybody_gets_the_answer_of_the_table_and_who_is_refused_changes_nothing(
    world: World, method: str, route: str
) -> None:
    address = address_of(world, routes(world.app)[method, route])
    answers = {}
    world.restore()
    before = rows(world.app)
    for role in ROLES:
        answers[role] = answer_to(world, role, method, address)
        if answers[role] in REFUSED:
            assert rows(world.app) == before, role
        else:
            world.restore()
    assert answers == expected()[method, route]


@pytest.mark.parametrize("role", ["other", "reviewer", "admin"])
def test_nobody_reaches_a_scan_that_is_not_shared_with_them(world: World, role: str) -> None:
    world.restore()
    before = rows(world.app)
    requests = 0
    for (method, _), rule in routes(world.app).items():
        if "scan_id" not in rule.arguments:
            continue
        address = address_of(world, rule).replace(world.addresses["scan_id"], world.unshared_id)
        assert answer_to(world, role, method, address) in ("404", "422"), (method, rule.rule)
        requests += 1
    assert requests > 30
    assert rows(world.app) == before


def test_no_change_is_made_for_a_page_of_another_site(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(world.app.config, "WTF_CSRF_ENABLED", True)
    world.restore()
    before = rows(world.app)
    changes = [
        rule
        for (method, route), rule in routes(world.app).items()
        if method != "GET" and not route.startswith(("/api/", "/dicom-web/"))
    ]
    assert len(changes) > 20
    for rule in changes:
        for role in ("owner", "admin"):
            status = answer_to(world, role, "POST", address_of(world, rule))
            # To who is no admin there is nothing anyway.
            assert status == "400" or (role, status) == ("owner", "404"), rule.rule
            assert rows(world.app) == before, rule.rule


def fields_of(form: type) -> set[str]:
    """Return the names of the fields of a form and of all forms made after it."""
    own = {name for name, value in vars(form).items() if isinstance(value, UnboundField)}
    return own.union(*map(fields_of, form.__subclasses__()))


def odd_bodies() -> Iterator[dict[str, Any]]:
    """Yield bodies in which a field is not what a browser sends: text as a file, a file as text,
    JSON of every type.
    """
    # The last ones belong to forms that are made when they are asked for.
    fields = sorted(fields_of(PostedForm) | {"csrf_token", "architecture", "datasets", "seed"})
    assert {"username", "current_password", "file", "reason", "archive"} <= set(fields)
    yield {"data": dict.fromkeys(fields, "x")}
    for name in fields:
        yield {"data": dict.fromkeys(fields, "x") | {name: (io.BytesIO(b"x"), "x.txt")}}
    for value in ("x", 7, 1.5, True, None, [], ["x", "y"], [7], {"x": 7}):
        yield {"json": dict.fromkeys(fields, value)}
        yield {"json": value}


@pytest.mark.parametrize(
    ("method", "route"), [key for key in sorted(expected()) if key[0] == "POST"]
)
def test_a_field_of_another_type_than_a_browser_sends_is_refused_and_breaks_nothing(
    world: World, method: str, route: str
) -> None:
    address = address_of(world, routes(world.app)[method, route])
    world.restore()
    is_for_admins = route.startswith("/admin") or scopes().get((method, route)) == "admin"
    client = world.client("admin" if is_for_admins else "owner")
    for body in odd_bodies():
        with client.open(address, method=method, **body) as answer:
            assert answer.status_code < 500, body


class Markup(HTMLParser):
    """What a browser would see in a page that it must not: scripts without a file, handlers,
    pictures from nowhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if (
            (tag == "script" and "src" not in names)
            or names.get("src") == "x"
            or any(name.startswith("on") for name in names)
        ):
            self.foreign.append(self.get_starttag_text() or tag)


def made_hostile(value: Any) -> Any:
    """Return a JSON value with every text in it replaced."""
    if isinstance(value, dict):
        return {key: made_hostile(part) for key, part in value.items()}
    if isinstance(value, list):
        return [made_hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) else value


def plant(app: Flask) -> None:
    """Put a script into every column of text that is not an id, a key, a secret or one of a few
    words.
    """
    stored = {
        "status",
        "role",
        "kind",
        "reads",
        "act",
        "channel",
        "wanted",
        "architecture",
        "password_hash",
        "secret_hash",
        "storage_prefix",
        "username_key",
        "card_id",
        "finding",
        "scopes",
    }
    with app.app_context():
        for table in db.metadata.sorted_tables:
            for column in table.c:
                if (
                    column.primary_key
                    or column.foreign_keys
                    or column.name in stored
                    or column.name.endswith(("_id", "_key"))
                ):
                    continue
                if isinstance(column.type, JSON):
                    keys = table.primary_key.columns
                    for *key, value in db.session.execute(select(*keys, column)).all():
                        own = [one == part for one, part in zip(keys, key, strict=True)]
                        changed = {column.name: made_hostile(value)}
                        db.session.execute(update(table).where(*own).values(changed))
                elif isinstance(column.type, String):
                    text = HOSTILE + table.c.id if column.unique else HOSTILE
                    db.session.execute(update(table).values({column.name: text}))
        db.session.commit()


@pytest.fixture
def hostile(world: World) -> Iterator[World]:
    """The world, with a script in every text that anybody could have written."""
    world.restore()
    plant(world.app)
    yield world
    world.restore()


@pytest.mark.parametrize("role", ["owner", "admin"])
def test_no_page_shows_a_text_as_anything_but_text(hostile: World, role: str) -> None:
    showing = 0
    for (method, _), rule in routes(hostile.app).items():
        if method != "GET":
            continue
        with hostile.client(role).get(address_of(hostile, rule)) as answer:
            if answer.mimetype != "text/html":
                continue
            seen = Markup()
            seen.feed(answer.text)
            assert seen.foreign == [], rule.rule
            showing += "&lt;script&gt;alert(1)" in answer.text
    assert showing >= {"owner": 3, "admin": 10}[role]
