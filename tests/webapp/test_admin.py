"""The administrator's pages: who sees them, what they refuse, and what they show of each state."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, select
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from ml.catalogue import ARCHITECTURES
from webapp.extensions import database_now, db
from webapp.jobs import PREDICT, TRAIN
from webapp.models import (
    Dataset,
    JobStatus,
    ModelVersion,
    PasswordReset,
    Promotion,
    PromotionRefused,
    Role,
    TrainingRun,
    User,
    Worker,
    live_version,
    promote,
)
from webapp.models.accounts import secret_hash
from webapp.storage import storage

NOBODY = "0" * 32
LogIn = Callable[..., FlaskClient]
EXPLORATION = {
    "layout": "manifest",
    "images": 12,
    "positive": 5,
    "negative": 7,
    "unknown": 0,
    "patients": 0,
    "groups": 11,
    "near_duplicates": [["a.png", "b.png"]],
    "sizes": {"width": {"min": 100, "median": 128, "max": 256}, "height": {"min": 100, "median": 130, "max": 200}},
    "modes": {"L": 10, "RGB": 2},
    "problems": ["c.png is <broken>."],
}
PAGES = ("/admin", "/admin/datasets", "/admin/runs", "/admin/runs/new", "/admin/models", "/admin/users")
POSTS = ("/admin/datasets", "/admin/runs/new", f"/admin/models/{NOBODY}/promote", f"/admin/users/{NOBODY}/reset-link")


def figure(value: float | None, **more: Any) -> dict[str, Any]:
    """A figure as ml writes it."""
    return {"value": value, "low": None, "high": None, "n": 200, **more}


def a_card(**changes: Any) -> dict[str, Any]:
    """A hand-made model card; its operating point is at false positive rate 0.1 and sensitivity 0.9."""
    metrics = {
        "accuracy": figure(0.9, low=0.85, high=0.94),
        "sensitivity": figure(0.9, low=0.84, high=0.95),
        "specificity": figure(0.9, low=0.83, high=0.96),
        "auroc": figure(0.9512, low=0.921, high=0.978),
        "ppv": figure(None, reason="Nothing was called positive."),
    }
    return {
        "format": 1,
        "id": "abcdef012345",
        "architecture": "alexnet_svm",
        "reads": "slice",
        "created_at": "2026-01-02T03:04:05Z",
        "seed": 7,
        "settings": {"layer": "conv5", "folds": 5},
        "preprocessing": {"size": 224, "window_level": 40.0},
        "threshold": 0.41,
        "uncertain_low": 0.3,
        "uncertain_high": 0.5,
        "data": {
            "datasets": ["head_ct"],
            "fingerprint": "f" * 64,
            "images": 200,
            "positive": 100,
            "negative": 100,
            "groups": 180,
            "licence_notes": ["For research."],
        },
        "metrics": metrics,
        "metrics_by_dataset": {"head_ct": metrics},
        "roc": [[0.0, 0.0], [0.1, 0.9], [1.0, 1.0]],
        "confusion": {"tp": 90, "fp": 10, "tn": 90, "fn": 10},
        "protocol": "Five-fold cross-validation by group, pooled.",
        "export_check": {"largest_difference": 3.2e-6, "limit": 1e-4, "passed": True},
        "versions": {"python": "3.11", "keras": "3.1"},
        "command": "python -m ml train",
        "notes": ["A <b>note</b>."],
        "files": {"head.onnx": "a" * 64},
        **changes,
    }


def add(row: Any) -> Any:
    """Commit a row and return it."""
    db.session.add(row)
    db.session.commit()
    return row


def add_version(card_id: str, **columns: Any) -> str:
    """Commit a model version and return its id."""
    version: ModelVersion = add(
        ModelVersion(
            **{
                "card_id": card_id,
                "architecture": "alexnet_svm",
                "reads": "slice",
                "storage_prefix": f"models/{card_id}",
                "card": a_card(id=card_id),
                **columns,
            }
        )
    )
    return version.id


def add_dataset(name: str, status: JobStatus = JobStatus.DONE, **columns: Any) -> str:
    """Commit a data set and return its id."""
    dataset: Dataset = add(Dataset(name=name, status=status, archive_key=f"datasets/{name}.zip", **columns))
    return dataset.id


def add_run(status: JobStatus, **columns: Any) -> str:
    """Commit a training run and return its id."""
    run: TrainingRun = add(
        TrainingRun(
            **{"architecture": "alexnet_svm", "settings": {"folds": 5}, "initial_weights": "random", "seed": 7, **columns}, status=status
        )
    )
    return run.id


def zip_of(**files: str) -> io.BytesIO:
    """A ZIP file with these contents."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    archive.seek(0)
    return archive


def launch_data(*datasets: str, **changes: Any) -> dict[str, Any]:
    """What the launch form posts; settings that are left out take their defaults."""
    return {
        "architecture": "alexnet_svm",
        "datasets": list(datasets),
        "seed": "7",
        "initial_weights": "random",
        "setting_layer": "conv4",
        "setting_folds": "6",
        **changes,
    }


@pytest.fixture
def admin(logged_in: LogIn) -> FlaskClient:
    """A browser in which an admin is logged in."""
    return logged_in("root", Role.ADMIN)


class TestPermissions:
    @pytest.mark.parametrize("page", PAGES)
    def test_a_stranger_is_sent_to_the_login(self, app: Flask, page: str) -> None:
        answer = app.test_client().get(page)
        assert answer.status_code == 302
        assert answer.location.startswith("/login")

    @pytest.mark.parametrize("page", PAGES)
    def test_an_admin_sees_every_page_on_an_empty_database(self, admin: FlaskClient, page: str) -> None:
        assert admin.get(page).status_code == 200

    def test_a_user_finds_nothing_there(self, logged_in: LogIn) -> None:
        ann = logged_in("ann")
        assert {ann.get(page).status_code for page in PAGES} == {404}
        assert {ann.post(page).status_code for page in POSTS} == {404}

    def test_a_stranger_cannot_post(self, app: Flask) -> None:
        client = app.test_client()
        assert {client.post(page).location.split("?")[0] for page in POSTS} == {"/login"}

    @pytest.mark.parametrize("room", ["datasets", "runs", "models"])
    def test_what_does_not_exist_is_404(self, admin: FlaskClient, room: str) -> None:
        assert admin.get(f"/admin/{room}/{NOBODY}").status_code == 404
        assert admin.get(f"/admin/{room}/%00").status_code == 404

    def test_changes_are_posts(self, admin: FlaskClient) -> None:
        assert admin.get(f"/admin/models/{NOBODY}/promote").status_code == 405
        assert admin.get(f"/admin/users/{NOBODY}/reset-link").status_code == 405

    @pytest.mark.parametrize("page", POSTS)
    def test_a_post_without_a_csrf_token_changes_nothing(self, app: Flask, admin: FlaskClient, page: str) -> None:
        app.config["WTF_CSRF_ENABLED"] = True
        answer = admin.post(page, data={"name": "x", "archive": (zip_of(a="b"), "x.zip")}, content_type="multipart/form-data")
        assert answer.status_code == 400
        with app.app_context():
            assert db.session.scalars(select(Dataset)).all() == []


class TestOverview:
    def test_a_worker_is_alive_while_the_database_clock_is_within_its_lease(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            now = db.session.scalar(select(database_now()))
            assert now is not None
            for id, queue, age_s in (("a", PREDICT, 1), ("b", TRAIN, 600)):
                seen = now - timedelta(seconds=age_s)
                db.session.add(Worker(id=id, queue=queue, host=f"host-{id}", pid=1, started_at=seen, seen_at=seen))
            db.session.commit()
        page = admin.get("/admin").text
        alive, silent = page.split("host-b")
        assert "host-a" in alive and ">alive<" in alive
        assert ">silent<" in silent and "10 min ago" in silent

    def test_queues_are_counted_by_state(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            for _ in range(3):
                add_run(JobStatus.QUEUED)
            add_run(JobStatus.FAILED)
            add_run(JobStatus.DONE)
        row = admin.get("/admin/progress").text.split("Training runs")[1].split("</tr>")[0]
        assert [cell.split("<")[0] for cell in row.split('class="number">')[1:]] == ["3", "0", "1"]

    def test_the_live_version_is_named(self, app: Flask, admin: FlaskClient) -> None:
        assert "No model is live" in admin.get("/admin").text
        with app.app_context():
            promote(db.session.get_one(ModelVersion, add_version("card-one")), None, "First.")
            db.session.commit()
        page = admin.get("/admin").text
        assert "card-one" in page and "No model is live" not in page


class TestImport:
    def post(self, admin: FlaskClient, archive: io.BytesIO | None, name: str = "head_ct") -> Any:
        files = {} if archive is None else {"archive": FileStorage(archive, "set.zip")}
        # Encoded here: werkzeug's client puts a large body into a temporary file and leaves it open.
        boundary, body = encode_multipart({"name": name, **files})
        return admin.post("/admin/datasets", data=body, content_type=f"multipart/form-data; boundary={boundary}")

    def test_a_zip_file_becomes_a_queued_data_set_and_the_spooled_file_is_gone(
        self, app: Flask, admin: FlaskClient, tmp_path: Path
    ) -> None:
        answer = self.post(admin, zip_of(**{"labels.csv": "id,hemorrhage\n"}))
        assert answer.status_code == 302
        with app.app_context():
            dataset = db.session.scalars(select(Dataset)).one()
            assert (dataset.name, dataset.status) == ("head_ct", "queued")
            assert dataset.imported_by is not None and dataset.imported_by.username == "root"
            assert zipfile.is_zipfile(storage.open(dataset.archive_key))
        assert answer.location == f"/admin/datasets/{dataset.id}"
        assert list((tmp_path / "incoming").iterdir()) == []
        assert "waits for a train worker" in admin.get(answer.location).text

    @pytest.mark.parametrize(
        ("content", "name", "sentence"),
        [
            (b"this is no archive", "head_ct", "ZIP"),
            (b"", "head_ct", "ZIP"),
            (None, "head_ct", "Choose a ZIP file."),
            (zip_of(a="b").getvalue(), "", "Give the data set a name."),
            (zip_of(a="b").getvalue(), "n" * 81, "at most 80 characters"),
        ],
    )
    def test_a_refused_import_says_why_and_leaves_nothing(
        self, app: Flask, admin: FlaskClient, tmp_path: Path, content: bytes | None, name: str, sentence: str
    ) -> None:
        answer = self.post(admin, None if content is None else io.BytesIO(content), name)
        assert answer.status_code == 400
        assert sentence in answer.text
        with app.app_context():
            assert db.session.scalars(select(Dataset)).all() == []
            assert storage.keys("datasets") == []
        assert list((tmp_path / "incoming").iterdir()) == []

    def test_a_name_is_taken_once(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            add_dataset("head_ct")
        answer = self.post(admin, zip_of(a="b"))
        assert answer.status_code == 400
        assert "head_ct" in answer.text.split('role="alert"')[1].split("</p>")[0]

    def test_an_archive_over_the_limit_is_refused_with_the_limit(self, app: Flask, admin: FlaskClient) -> None:
        app.config["MAX_DATASET_MB"] = 1
        answer = self.post(admin, io.BytesIO(bytes(3 * 2**20)))
        assert answer.status_code == 413
        assert "larger than 1 MB" in answer.text

    def test_an_archive_may_be_larger_than_a_scan(self, app: Flask, admin: FlaskClient) -> None:
        app.config["MAX_CONTENT_LENGTH"] = 2**20
        assert "ZIP" in self.post(admin, io.BytesIO(bytes(3 * 2**20))).text

    def test_the_form_with_its_csrf_token_is_accepted(self, app: Flask, admin: FlaskClient) -> None:
        app.config["WTF_CSRF_ENABLED"] = True
        token = admin.get("/admin/datasets").text.split('name="csrf_token" value="')[1].split('"')[0]
        data = {"name": "head_ct", "archive": (zip_of(a="b"), "set.zip"), "csrf_token": token}
        assert admin.post("/admin/datasets", data=data, content_type="multipart/form-data").status_code == 302


class TestDatasets:
    def test_a_ready_data_set_shows_what_is_in_it(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            storage.put("sheets/s.png", b"a picture")
            id = add_dataset("mine", exploration=EXPLORATION, fingerprint="e" * 64, contact_sheet_key="sheets/s.png")
        page = admin.get(f"/admin/datasets/{id}").text
        for part in (
            "manifest",
            "11",
            "100–256 px, median 128 px",
            "L: 10, RGB: 2",
            "c.png is &lt;broken&gt;.",
            "a.png and b.png",
            "e" * 64,
        ):
            assert part in page
        assert "Shortcuts" not in page  # it was imported before there were probes
        sheet = admin.get(f"/admin/datasets/{id}/contact-sheet.png")
        assert (sheet.data, sheet.mimetype) == (b"a picture", "image/png")
        again = admin.get(f"/admin/datasets/{id}/contact-sheet.png", headers={"If-None-Match": sheet.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")
        row = admin.get("/admin/datasets").text.split('id="datasets"')[1]
        assert ">12<" in row and ">5<" in row and ">7<" in row

    def test_shortcuts_and_greys_of_a_data_set_are_shown(self, app: Flask, admin: FlaskClient) -> None:
        figure = {"value": 0.83, "low": 0.75, "high": 0.9, "n": 12}
        missing = {"value": None, "low": None, "high": None, "n": 1, "reason": "fewer than two groups of a class"}
        explored = {
            **EXPLORATION,
            "slices_per_patient": {"min": 1, "median": 2.5, "max": 4},
            "histograms": {"positive": [0.25, 0.75], "negative": []},
            "probes": [
                {"name": "file <size>", "auroc": figure, "accuracy": figure, "majority": 0.58, "suspicious": True},
                {"name": "border pixels", "auroc": missing, "accuracy": missing, "majority": None, "suspicious": False},
            ],
        }
        with app.app_context():
            id = add_dataset("mine", exploration=explored)
        page = admin.get(f"/admin/datasets/{id}").text
        shown = ("file &lt;size&gt;", "0.830<br>", "(0.750–0.900)", "0.580", "fewer than two groups of a class", "1–4, median 2.5")
        for part in shown:
            assert part in page
        assert page.count("above chance</td>") == 1
        # A quarter and three quarters of the width; the higher share reaches the top, 170 px above the base line at 190.
        assert '<polyline class="positive" points="167.0,133.3 397.0,20.0"' in page
        assert '<polyline class="negative"' not in page

    def test_there_is_no_contact_sheet_before_the_worker_made_it(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_dataset("mine", JobStatus.QUEUED)
        assert admin.get(f"/admin/datasets/{id}/contact-sheet.png").status_code == 404

    def test_a_failed_data_set_shows_its_sentence_and_ends_the_polling(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_dataset("mine", JobStatus.FAILED, error="The image 3.png is missing.")
        answer = admin.get(f"/admin/datasets/{id}/progress")
        assert answer.status_code == 286
        assert "The image 3.png is missing." in answer.text
        assert "hx-trigger" not in admin.get(f"/admin/datasets/{id}").text

    def test_the_list_follows_a_data_set_that_is_read(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            add_dataset("mine", JobStatus.RUNNING, progress=0.25, stage="Reading images")
        assert 'hx-get="/admin/datasets/progress' in admin.get("/admin/datasets").text
        part = admin.get("/admin/datasets/progress")
        assert part.status_code == 200
        assert "25 % · Reading images" in part.text and "<html" not in part.text
        assert admin.get("/admin/datasets/progress", headers={"If-None-Match": part.headers["ETag"]}).status_code == 304


class TestLaunch:
    def test_the_form_shows_the_catalogue_and_the_ready_data_sets(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            add_dataset("ready")
            add_dataset("unread", JobStatus.QUEUED)
        page = admin.get("/admin/runs/new").text
        assert "Folds of the grouped cross-validation. Between 2 and 10." in page
        assert 'min="2"' in page and 'max="10"' in page
        assert "ready" in page and "unread" not in page
        assert 'value="random"' in page and 'value="imagenet"' not in page

    def test_a_run_is_queued_with_its_settings_as_the_catalogue_reads_them(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            one, two = add_dataset("one"), add_dataset("two")
        answer = admin.post("/admin/runs/new", data=launch_data(one, two))
        with app.app_context():
            run = db.session.scalars(select(TrainingRun)).one()
            assert run.settings == ARCHITECTURES["alexnet_svm"].parse_settings({"layer": "conv4", "folds": 6})
            assert (run.status, run.seed, run.initial_weights, run.architecture) == ("queued", 7, "random", "alexnet_svm")
            assert {dataset.name for dataset in run.datasets} == {"one", "two"}
            assert run.launched_by is not None and run.launched_by.username == "root"
        assert answer.location == f"/admin/runs/{run.id}"

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"setting_folds": "99"}, "folds must lie between 2 and 10, not 99."),
            ({"setting_folds": "many"}, "folds must be a whole number, not &#39;many&#39;."),
            ({"setting_layer": "conv9"}, "layer must be one of"),
            ({"datasets": []}, "Choose at least one data set that is ready."),
            ({"datasets": [NOBODY]}, "valid choice"),
            ({"seed": "-1"}, "The seed must be a whole number from 0 to"),
            ({"seed": "x"}, "The seed must be a whole number from 0 to"),
            ({"initial_weights": "imagenet"}, "Not a valid choice"),
        ],
    )
    def test_a_wrong_launch_says_why_and_queues_nothing(
        self, app: Flask, admin: FlaskClient, changes: dict[str, Any], sentence: str
    ) -> None:
        with app.app_context():
            one = add_dataset("one")
        answer = admin.post("/admin/runs/new", data=launch_data(one, **changes))
        assert answer.status_code == 400
        assert sentence in answer.text
        with app.app_context():
            assert db.session.scalars(select(TrainingRun)).all() == []

    def test_an_unread_data_set_cannot_be_trained_on(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            unread = add_dataset("unread", JobStatus.FAILED)
        assert admin.post("/admin/runs/new", data=launch_data(unread)).status_code == 400

    def test_an_unknown_architecture_is_404(self, admin: FlaskClient) -> None:
        assert admin.get("/admin/runs/new?architecture=nonesuch").status_code == 404

    def test_an_earlier_version_and_imagenet_weights_are_offered_where_they_are(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            weights = app.config["WEIGHTS_DIR"]
            weights.mkdir(parents=True)
            (weights / "alexnet_owt_imagenet_conv.npz").touch()
            version = add_version("trained-here", run_id=add_run(JobStatus.DONE))
            dataset = add_dataset("one")
        page = admin.get("/admin/runs/new").text
        assert 'value="imagenet"' in page and f'value="version:{version}"' in page
        assert admin.post("/admin/runs/new", data=launch_data(dataset, initial_weights=f"version:{version}")).status_code == 302


class TestRun:
    def test_a_queued_run_waits(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_run(JobStatus.QUEUED)
        page = admin.get(f"/admin/runs/{id}").text
        assert "It waits for a train worker." in page
        assert f'hx-get="/admin/runs/{id}/progress"' in page and '<meta http-equiv="refresh"' in page

    def test_a_running_run_shows_stage_share_time_left_and_figures(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_run(JobStatus.RUNNING, stage="Fold 2 of 5", progress=0.42, eta_s=200.0, current_metrics={"auroc": 0.912})
        part = admin.get(f"/admin/runs/{id}/progress")
        assert part.status_code == 200
        for text in ("Fold 2 of 5", "42 %", "about 3 min left", "AUROC", "0.912"):
            assert text in part.text

    def test_a_failed_run_shows_its_sentence(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_run(JobStatus.FAILED, error="The data set holds one class only.")
        part = admin.get(f"/admin/runs/{id}/progress")
        assert part.status_code == 286
        assert "The data set holds one class only." in part.text

    def test_a_done_run_shows_its_card(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_run(JobStatus.DONE)
            version = add_version("made-by-it", run_id=id)
        part = admin.get(f"/admin/runs/{id}/progress")
        assert part.status_code == 286
        for text in (
            "0.951",
            "0.921–0.978",
            "Nothing was called positive.",
            "Five-fold cross-validation by group, pooled.",
            "On head_ct",
            "f" * 64,
            "3.2e-06",
            "1e-04",
            ">passed<",
            "A &lt;b&gt;note&lt;/b&gt;.",
            f"/admin/models/{version}",
        ):
            assert text in part.text
        assert "0.951" in admin.get("/admin/runs").text

    def test_the_roc_curve_is_drawn_to_scale_without_styles(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_version("card-one")
        page = admin.get(f"/admin/models/{id}").text
        svg = page.split("<svg class=")[1].split("</svg>")[0]
        assert 'points="52.0,300.0 80.0,48.0 332.0,20.0"' in svg
        assert 'cx="80.0" cy="48.0"' in svg  # The operating point of the confusion matrix lies on the curve.
        assert "False positive rate" in svg and "True positive rate" in svg and 'class="chance"' in svg
        assert "style=" not in page and "<script>" not in page


class TestPromotion:
    def test_promoting_and_rolling_back_append_to_the_history(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            old, new = add_version("old-card"), add_version("new-card")
            promote(db.session.get_one(ModelVersion, old), None, "It ships.")
            db.session.commit()
        assert admin.post(f"/admin/models/{new}/promote", data={"reason": "Better AUROC."}).location == "/admin/models"
        with app.app_context():
            live = live_version("slice")
            assert live is not None and live.id == new
        page = admin.get("/admin/models").text
        assert "Roll back to old-card" in page and f'action="/admin/models/{old}/promote"' in page
        assert f'action="/admin/models/{old}/promote"' in admin.get(f"/admin/models/{new}").text
        assert admin.post(f"/admin/models/{old}/promote", data={"reason": "It missed a bleed."}).status_code == 302
        with app.app_context():
            live = live_version("slice")
            assert live is not None and live.id == old
            history = db.session.scalars(select(Promotion).order_by(Promotion.id)).all()
            assert [(p.version_id, p.reason, p.by.username if p.by else None) for p in history] == [
                (old, "It ships.", None),
                (new, "Better AUROC.", "root"),
                (old, "It missed a bleed.", "root"),
            ]
        page = admin.get("/admin/models").text
        assert page.index("It missed a bleed.") < page.index("Better AUROC.") < page.index("It ships.")
        assert "Roll back to new-card" in page

    def test_a_blocked_version_is_refused_with_its_sentence(self, app: Flask, admin: FlaskClient) -> None:
        sentence = "The export differs by 0.02 from what was trained."
        with app.app_context():
            id = add_version("blocked", blocked_because=sentence)
        assert f'action="/admin/models/{id}/promote"' not in admin.get(f"/admin/models/{id}").text
        answer = admin.post(f"/admin/models/{id}/promote", data={"reason": "I want it."})
        assert answer.status_code == 400
        assert sentence in answer.text
        with app.app_context():
            assert live_version("slice") is None

    @pytest.mark.parametrize("reason", ["", "   ", "r" * 501, "a\x00b"])
    def test_a_promotion_needs_a_reason(self, app: Flask, admin: FlaskClient, reason: str) -> None:
        with app.app_context():
            id = add_version("card-one")
        assert admin.post(f"/admin/models/{id}/promote", data={"reason": reason}).status_code == 400
        with app.app_context():
            assert live_version("slice") is None
            with pytest.raises(PromotionRefused, match="needs a reason"):
                promote(db.session.get_one(ModelVersion, id), None, " ")

    def test_what_is_live_is_not_promoted_twice(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_version("card-one")
        assert admin.post(f"/admin/models/{id}/promote", data={"reason": "First."}).status_code == 302
        assert "is live already" in admin.post(f"/admin/models/{id}/promote", data={"reason": "Again."}).text

    def test_each_kind_has_its_own_live_version(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            for card_id, reads in (("slices", "slice"), ("whole", "series")):
                promote(db.session.get_one(ModelVersion, add_version(card_id, reads=reads)), None, "First.")
            db.session.commit()
            live = [live_version("slice"), live_version("series")]
            assert [version.card_id for version in live if version] == ["slices", "whole"]
        assert admin.get("/admin/models").text.count("There is no earlier version to roll back to.") == 2


class TestUsers:
    def test_a_reset_link_is_shown_once_and_works_once(self, app: Flask, admin: FlaskClient, logged_in: LogIn) -> None:
        logged_in("ann")
        with app.app_context():
            ann = db.session.scalars(select(User).where(User.username == "ann")).one().id
        assert "ann@example.org" in admin.get("/admin/users").text
        older = admin.post(f"/admin/users/{ann}/reset-link")
        answer = admin.post(f"/admin/users/{ann}/reset-link")
        assert answer.headers["Cache-Control"] == "no-store"
        old_path, path = ("/reset/" + page.text.split("/reset/")[1].split("<")[0] for page in (older, answer))
        with app.app_context():
            reset = db.session.scalars(select(PasswordReset)).one()  # The older link ended.
            assert reset.secret_hash == secret_hash(path.removeprefix("/reset/"))
            assert reset.expires_at - reset.created_at >= timedelta(hours=app.config["RESET_LINK_HOURS"] - 1)
        stranger = app.test_client()
        assert stranger.get(old_path).status_code == 404
        assert stranger.post(path, data={"password": "another long password"}).status_code == 302
        assert stranger.post(path, data={"password": "yet another password"}).status_code == 404
        login = app.test_client().post("/login", data={"username": "ann", "password": "another long password"})
        assert login.status_code == 302

    def test_a_link_for_nobody_is_404(self, admin: FlaskClient) -> None:
        assert admin.post(f"/admin/users/{NOBODY}/reset-link").status_code == 404


class TestCheapness:
    @pytest.mark.parametrize("page", ["/admin", "/admin/datasets", "/admin/runs", "/admin/models", "/admin/users"])
    def test_a_long_list_costs_as_many_queries_as_a_short_one(self, app: Flask, admin: FlaskClient, page: str) -> None:
        def add_one_of_each(number: int) -> None:
            with app.app_context():
                run = add_run(
                    JobStatus.DONE,
                    datasets=[db.session.get_one(Dataset, add_dataset(f"set {number}"))],
                    launched_by_id=db.session.scalars(select(User.id).where(User.username == "root")).one(),
                )
                version = db.session.get_one(ModelVersion, add_version(f"card {number}", run_id=run))
                promote(version, None, "A reason.")
                add(User(username=f"user{number}", password="p"))

        def queries() -> int:
            statements: list[str] = []
            with app.app_context():
                engine = db.engine

            def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
                statements.append(statement)

            event.listen(engine, "before_cursor_execute", count)
            try:
                assert admin.get(page).status_code == 200
            finally:
                event.remove(engine, "before_cursor_execute", count)
            return len(statements)

        add_one_of_each(1)
        add_one_of_each(2)
        few = queries()
        for number in range(3, 6):
            add_one_of_each(number)
        assert queries() == few

    def test_a_list_is_paged(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            for number in range(30):
                db.session.add(Dataset(name=f"set-{number:02}", status=JobStatus.DONE, archive_key="datasets/x.zip"))
            db.session.commit()
        first, second = (admin.get(f"/admin/datasets?page={page}").text for page in (1, 2))
        assert first.count(">set-") == 25 and second.count(">set-") == 5
        assert "Page 2 of 2" in admin.get("/admin/datasets?page=99").text


def test_the_pages_work_on_postgresql_too(any_database_app: Flask) -> None:
    with any_database_app.app_context():
        add_version("card-one", run_id=add_run(JobStatus.DONE))
        add_dataset("mine", exploration=EXPLORATION)
        add(User(username="root", password="a long enough password", role=Role.ADMIN))
    client = any_database_app.test_client()
    client.post("/login", data={"username": "root", "password": "a long enough password"})
    assert [client.get(page).status_code for page in PAGES] == [200] * len(PAGES)
    assert "0.951" in client.get("/admin/runs").text
