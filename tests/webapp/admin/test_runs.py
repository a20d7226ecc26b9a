"""Launching training runs and following them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from ml.catalogue import ARCHITECTURES, IMAGENET_WEIGHTS
from ml.expected_time import expected_parts
from tests.conftest import PASSWORD, make_user
from tests.webapp.admin.conftest import (
    EXPLORATION,
    NOBODY,
    a_card,
    add_dataset,
    add_run,
    add_version,
)
from webapp.admin import outlook, pages, run_form
from webapp.admin.version_figures import CARD_TABS
from webapp.extensions import db
from webapp.models import Dataset, JobStatus, Role, TrainingPoint, TrainingRun
from webapp.storage import storage


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


class TestLaunch:
    def test_the_form_shows_the_catalogue_and_the_ready_data_sets(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            add_dataset("ready")
            add_dataset("unread", JobStatus.QUEUED)
        page = admin.get("/admin/runs/new").text
        assert "Number of folds of the grouped cross-validation. Between 2 and 10." in page
        assert 'min="2"' in page and 'max="10"' in page
        assert "ready" in page and "unread" not in page
        assert 'value="random"' in page and 'value="imagenet' not in page

    @pytest.mark.parametrize("field", ["datasets", "initial_weights"])
    def test_a_choice_that_postgresql_refuses_is_refused_with_the_form(
        self, any_database_app: Flask, field: str
    ) -> None:
        make_user(any_database_app, "root", Role.ADMIN)
        client = any_database_app.test_client()
        client.post("/login", data={"username": "root", "password": PASSWORD})
        data = launch_data(architecture="googlenet_unet", **{field: "version:\0"})
        assert client.post("/admin/runs/new", data=data).status_code == 400
        assert client.post("/admin/runs/new/outlook", data=data).status_code == 200

    def test_a_run_is_queued_with_its_settings_as_the_catalogue_reads_them(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            one, two = add_dataset("one"), add_dataset("two")
        answer = admin.post("/admin/runs/new", data=launch_data(one, two))
        with app.app_context():
            run = db.session.scalars(select(TrainingRun)).one()
            assert run.settings == ARCHITECTURES["alexnet_svm"].parse_settings(
                {"layer": "conv4", "folds": 6}
            )
            assert (run.status, run.seed, run.initial_weights, run.architecture) == (
                "queued",
                7,
                "random",
                "alexnet_svm",
            )
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
            ({"initial_weights": "imagenet:alexnet_owt_imagenet_conv.npz"}, "Not a valid choice"),
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

    def test_earlier_versions_of_any_architecture_and_imagenet_weights_are_offered_where_they_are(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            weights = app.config["WEIGHTS_DIR"]
            weights.mkdir(parents=True)
            for name in ("alexnet_owt_imagenet_conv.npz", "alexnet-owt-7be5be79.pth"):
                (weights / name).touch()
            version = add_version(
                "trained-here", architecture="alexnet_cells", run_id=add_run(JobStatus.DONE)
            )
            dataset = add_dataset("one")
        page = admin.get("/admin/runs/new?architecture=alexnet_svm").text
        offered = re.findall(
            '<option (?:selected )?value="((?:imagenet|version|starter|random)[^"]*)"', page
        )
        versions = [
            "imagenet:alexnet_owt_imagenet_conv.npz",
            "imagenet:alexnet-owt-7be5be79.pth",
            "random",
            f"version:{version}",
        ]
        assert [value for value in offered if not value.startswith("starter")] == versions
        assert "AlexNet cells · v1 of " in page
        assert (
            admin.post(
                "/admin/runs/new", data=launch_data(dataset, initial_weights=f"version:{version}")
            ).status_code
            == 302
        )

    def test_both_starters_are_offered_where_they_ship(
        self, admin: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("STARTER_DIR", "STARTER_SERIES_DIR"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "card.json").write_text('{"architecture": "alexnet_cells"}')
            monkeypatch.setattr(run_form, name, folder)
        page = admin.get("/admin/runs/new").text
        assert 'value="starter"' in page and 'value="starter-series"' in page

    def test_weights_of_another_encoder_are_not_offered(
        self, app: Flask, admin: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "card.json").write_text('{"architecture": "googlenet_cells"}')
        monkeypatch.setattr(run_form, "STARTER_DIR", tmp_path)
        monkeypatch.setattr(run_form, "STARTER_SERIES_DIR", tmp_path / "none")
        with app.app_context():
            weights = app.config["WEIGHTS_DIR"]
            weights.mkdir(parents=True)
            for name in IMAGENET_WEIGHTS:
                (weights / name).touch()
            add_version("here", architecture="alexnet_svm", run_id=add_run(JobStatus.DONE))

        def offered(architecture: str) -> set[str]:
            page = admin.get(f"/admin/runs/new?architecture={architecture}").text
            matches = re.findall('value="(imagenet|version|starter|random)', page)
            return set(matches) | set(re.findall("imagenet:([a-z]+)", page))

        assert offered("alexnet_cells") == {"imagenet", "alexnet", "version", "random"}
        assert offered("googlenet_cells") == {"imagenet", "googlenet", "starter", "random"}
        assert offered("autoencoder") == {"random"}

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_architecture_is_launched_from_its_own_form(
        self, app: Flask, admin: FlaskClient, name: str
    ) -> None:
        with app.app_context():
            dataset = add_dataset("one")
        page = admin.get(f"/admin/runs/new?architecture={name}").text
        settings = ARCHITECTURES[name].settings
        for setting in settings:
            assert page.count(f'name="setting_{setting.name}"') == 1
        data = {
            "architecture": name,
            "datasets": [dataset],
            "seed": "0",
            "initial_weights": "random",
        }
        fields = {f"setting_{setting.name}": str(setting.default) for setting in settings}
        assert admin.post("/admin/runs/new", data={**data, **fields}).status_code == 302
        with app.app_context():
            run = db.session.scalars(select(TrainingRun)).one()
            assert run.settings == ARCHITECTURES[name].parse_settings({})

    def test_settings_that_all_architectures_share_are_folded_away_unless_one_is_wrong(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            dataset = add_dataset("one")
        page = admin.get("/admin/runs/new?architecture=alexnet_svm").text
        parts = re.split('<details class="fields"(?: open)?>', page)
        titles = [re.search("<summary>([^<]*)", part) for part in parts[1:]]
        assert [match[1] for match in titles if match] == [
            "Settings",
            "Evaluation",
            "Enlarging the data",
            "Fine-tuning",
            "Convolutions",
            "Image preprocessing",
            "Start",
            "Name, tags and notes",
        ]
        assert 'name="setting_kernel"' in parts[1] and 'name="setting_folds"' in parts[2]
        opened = page.count('<details class="fields" open>')
        wrong = admin.post("/admin/runs/new", data=launch_data(dataset, setting_folds="99")).text
        assert wrong.count('<details class="fields" open>') == opened + 1

    def test_a_preset_fills_in_settings_and_the_rest_of_the_form_stays(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            dataset = add_dataset("one", exploration={**EXPLORATION, "images": 200})
        sent = launch_data(dataset, preset="quick", name="A look", setting_layer="conv3")
        page = admin.post("/admin/runs/new", data=sent)
        assert page.status_code == 200 and "a rough default for two cores" in page.text
        assert re.search('name="setting_folds"[^>]*value="3"', page.text)
        assert '<option selected value="conv5">' in page.text and 'value="A look"' in page.text
        assert re.search('name="datasets"[^>]*checked|checked[^>]*name="datasets"', page.text)
        with app.app_context():
            assert db.session.scalars(select(TrainingRun)).all() == []

    def test_times_are_those_of_earlier_runs_here(self, app: Flask, admin: FlaskClient) -> None:
        parts = expected_parts("alexnet_svm", ARCHITECTURES["alexnet_svm"].parse_settings({}), 200)
        usual = sum(part.seconds for part in parts if part.name != "reading")
        with app.app_context():
            assert outlook.speed_here("alexnet_svm").slowness == 1
            settings = ARCHITECTURES["alexnet_svm"].parse_settings({})
            card = a_card(settings=settings, seconds=3 * usual)
            add_version("slow", run_id=add_run(JobStatus.DONE), card=card)
            speed = outlook.speed_here("alexnet_svm")
            assert speed.slowness == pytest.approx(3)
            assert speed.source == "measured in 1 earlier run of AlexNet SVM here"
            assert "other architectures" in outlook.speed_here("cnn_gru").source

    def test_what_would_be_overruled_is_shown_before_anything_is_launched(
        self,
        app: Flask,
        admin: FlaskClient,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "card.json").write_text('{"architecture": "alexnet_cells", "id": "shipped"}')
        for module in (run_form, outlook):
            monkeypatch.setattr(module, "STARTER_DIR", tmp_path)
        monkeypatch.setattr(outlook, "STARTERS", {"starter": tmp_path})
        counted = {"": {"positive": 50, "negative": 50}, "shipped": {"positive": 3, "negative": 9}}
        with app.app_context():
            dataset = add_dataset("heads", exploration={**EXPLORATION, "unseen_groups": counted})
        sent = launch_data(dataset, initial_weights="starter")
        held = admin.post("/admin/runs/new", data=sent)
        sentence = "The starter model was trained on heads, so training would begin from random"
        assert held.status_code == 400 and sentence in held.text
        assert "Nothing was launched yet" in held.text and "Launch anyway" in held.text
        assert sentence in admin.post("/admin/runs/new/outlook", data=sent).text
        mark = re.search('name="warnings_shown" value="([0-9a-f]+)"', held.text)
        assert mark is not None
        assert (
            admin.post("/admin/runs/new", data={**sent, "warnings_shown": mark[1]}).status_code
            == 302
        )
        # Enough is left in two folds: then part of the data trains only.
        few = admin.post("/admin/runs/new", data={**sent, "setting_folds": "2"}).text
        assert "has seen 88 groups" not in few and sentence in few, "3 positive groups need 4"

    def test_data_that_cannot_be_trained_on_are_refused_with_the_reason(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        def explored(positive: int, negative: int, wholes: int = 0) -> dict[str, Any]:
            groups = {"": {"positive": positive, "negative": negative}}
            return {
                **EXPLORATION,
                "positive": positive,
                "negative": negative,
                "unseen_groups": groups,
                "scan_labels": {"positive": 1, "negative": 1, "unknown": 0, "as_wholes": wholes},
            }

        with app.app_context():
            one = add_dataset("one class", exploration=explored(40, 0))
            few = add_dataset("few", exploration=explored(5, 40))
            whole = add_dataset("wholes", exploration=explored(0, 0, 9))
        page = admin.get("/admin/runs/new").text
        assert "only images with hemorrhage, so it cannot be trained on alone." in page
        assert "only scan-level labels" in page
        assert "only scan-level labels" in admin.get(f"/admin/datasets/{whole}").text
        for datasets, sentence in (
            ([one], "no labeled images without hemorrhage"),
            ([few], "Only 5 groups (patients) have hemorrhage; 6 folds need at least 12."),
        ):
            answer = admin.post("/admin/runs/new", data=launch_data(*datasets))
            assert answer.status_code == 400 and sentence in answer.text
        assert admin.post("/admin/runs/new", data=launch_data(one, few)).status_code == 302

    def test_a_clone_begins_with_what_the_run_had(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            dataset = add_dataset("heads")
        sent = launch_data(
            dataset, name="First", tags="Baseline, 2026", notes="Line one\r\nline two"
        )
        run = admin.post("/admin/runs/new", data=sent).location
        page = admin.get(run).text
        assert "Line one\nline two" in page and ">baseline</a>" in page
        form = admin.get(f"/admin/runs/new?from={run.rsplit('/', 1)[1]}").text
        assert 'value="First (copy)"' in form and 'value="2026, baseline"' in form
        assert re.search('name="setting_folds"[^>]*value="6"', form) and 'value="7"' in form
        assert '<option selected value="conv4">' in form

    def test_name_tags_and_notes_can_be_changed(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_run(JobStatus.DONE, tags=["old", "kept"])
        data = {"name": "Better", "tags": "kept new", "notes": "Why."}
        admin.post(f"/admin/runs/{id}/describe", data=data)
        with app.app_context():
            run = db.session.get_one(TrainingRun, id)
            assert (run.name, run.tags, run.notes) == ("Better", ["kept", "new"], "Why.")
        refused = admin.post(f"/admin/runs/{id}/describe", data={"tags": "a/b"})
        assert "must have at most 30 letters" in admin.get(refused.location).text


class TestList:
    def test_filters_stand_in_the_address_and_stay_while_it_is_live(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            heads = db.session.get_one(Dataset, add_dataset("heads"))
            ids = {
                "svm": add_run(JobStatus.RUNNING, name="An SVM", tags=["night"], datasets=[heads]),
                "gru": add_run(JobStatus.FAILED, architecture="cnn_gru", notes="100% SVM-free"),
                "old": add_run(JobStatus.DONE, name="zzz"),
            }
            add_version("best", run_id=ids["old"])

        def shown(query: str) -> list[str]:
            page = admin.get(f"/admin/runs?{query}").text
            matches = re.findall('id="run-([0-9a-f]{32})"', page)
            return [next(name for name, id in ids.items() if id == one) for one in matches]

        for query, expected in (
            ("state=failed", ["gru"]),
            ("architecture=cnn_gru", ["gru"]),
            (f"dataset={heads.id}", ["svm"]),
            ("tag=Night", ["svm"]),
            ("text=100%25", ["gru"]),
            ("text=svm&state=running", ["svm"]),
            ("text=_", []),
            ("sort=oldest", ["svm", "gru", "old"]),
            ("sort=auroc", ["old", "gru", "svm"]),
            ("sort=name", ["svm", "old", "gru"]),
            ("state=nonsense&dataset=x&sort=y&architecture=z", ["old", "gru", "svm"]),
        ):
            assert shown(query) == expected, query
        page = admin.get("/admin/runs?tag=night&text=svm").text
        assert "/admin/runs/progress?page=1&amp;tag=night&amp;text=svm" in page
        assert admin.get("/admin/runs/progress?page=1&tag=none").status_code == 286


class TestRun:
    def test_a_queued_run_waits(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_run(JobStatus.QUEUED)
        page = admin.get(f"/admin/runs/{id}").text
        assert "Queued for training" in page
        assert (
            f'hx-get="/admin/runs/{id}/progress"' in page and '<meta http-equiv="refresh"' in page
        )

    def test_a_running_run_shows_stage_share_time_left_and_figures(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            id = add_run(
                JobStatus.RUNNING,
                stage="Fold 2 of 5",
                progress=0.42,
                eta_s=200.0,
                current_metrics={"auroc": 0.912, "accuracy": 0.875},
            )
        part = admin.get(f"/admin/runs/{id}/progress")
        assert part.status_code == 200
        for text in ("Fold 2 of 5", "42%", "about 3 min left", "AUROC", "0.912", "87.5%"):
            assert text in part.text

    def test_the_loss_on_held_back_images_is_a_dashed_line_in_the_color_of_its_fold(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            id = add_run(JobStatus.RUNNING)
            db.session.add_all(
                TrainingPoint(
                    run_id=id,
                    metric=metric,
                    step=step,
                    value=value,
                    stage=f"fold {1 + step // 500} of 2",
                    epoch=1 + step // 100 % 5,
                )
                for step, value in ((100, 0.7), (200, 0.6), (500, 0.7), (600, 0.5))
                for metric in ("loss", "validation_loss", "validation_auroc")
                if step < 500 or metric == "loss"
            )
            db.session.commit()
        page = admin.get(f"/admin/runs/{id}").text
        drawn = re.findall(r'<polyline class="curve ([^"]*)"[^>]*><title>([^<]*)<', page)
        assert drawn == [
            ("own", "fold 1 of 2"),
            ("own validation", "fold 1 of 2, held back"),
            ("other", "fold 2 of 2"),
            ("own", "fold 1 of 2"),
        ]
        assert "<figcaption" in page and "Loss (dashed: held-back images)" in page
        assert "AUROC on held-back images" in page and "They do not influence training" in page

    def test_an_open_run_is_cancelled_and_launched_again(
        self, app: Flask, admin: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nudged: list[str] = []
        monkeypatch.setattr(pages, "nudge", lambda task: nudged.append(task) or True)
        with app.app_context():
            run_id = add_run(JobStatus.RUNNING)
            storage.put(f"checkpoints/{run_id}.zip", b"half a model")
        assert "Cancel this run" in admin.get(f"/admin/runs/{run_id}").text
        assert (
            "Training was canceled"
            in admin.post(f"/admin/runs/{run_id}/cancel", follow_redirects=True).text
        )
        assert (
            "has already finished"
            in admin.post(f"/admin/runs/{run_id}/cancel", follow_redirects=True).text
        )
        with app.app_context():
            assert storage.keys("checkpoints") == []
        for _ in range(2):
            answer = admin.post(f"/admin/runs/{run_id}/retry", follow_redirects=True)
        assert "can be relaunched" in answer.text and nudged == ["hemoscan.train_model"]
        assert "Cancel this run" in answer.text

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
        tabs = [admin.get(f"/admin/runs/{id}?show={tab}").text for tab in CARD_TABS]
        shown = "".join((part.text, *tabs))
        for text in (
            "0.951",
            "0.921–0.978",
            "Nothing was called positive.",
            "Five-fold cross-validation by group, pooled.",
            ">head_ct<",
            "f" * 64,
            "3.2e-06",
            "1e-04",
            ">passed<",
            "A &lt;b&gt;note&lt;/b&gt;.",
            f"/admin/models/{version}",
        ):
            assert text in shown
        assert "0.951" in admin.get("/admin/runs").text

    def test_the_roc_curve_is_drawn_to_scale_without_styles(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            id = add_version("card-one")
        page = admin.get(f"/admin/models/{id}?show=curves").text
        svg = page.split("<svg class=")[1].split("</svg>")[0]
        assert 'points="52.0,300.0 80.0,48.0 332.0,20.0"' in svg
        # The operating point of the confusion matrix lies on the curve.
        assert 'cx="80.0" cy="48.0"' in svg
        assert (
            "False positive rate" in svg and "True positive rate" in svg and 'class="chance"' in svg
        )
        assert "style=" not in page and "<script>" not in page
