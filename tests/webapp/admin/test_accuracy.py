"""The accuracy graph of a data set, and the paper's experiment that is launched from its page."""

from __future__ import annotations

import csv
import io
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from ml.artifacts.folder import read_card
from ml.catalogue import OF_THE_PAPER, STARTER_DIR
from ml.typed_json import to_json
from tests.conftest import PASSWORD, app_on, make_user, remove_all_rows
from tests.webapp.admin.conftest import (
    EXPLORATION,
    a_card,
    add,
    add_dataset,
    add_run,
    add_version,
    figure,
)
from tests.webapp.admin.test_evaluations import evaluated
from webapp.admin.papers import expected_here_s
from webapp.admin.version_figures import tiles_of
from webapp.extensions import db
from webapp.models import Dataset, JobStatus, ModelVersion, PaperExperiment, Role

SVG = "{http://www.w3.org/2000/svg}"


def cell(protocol: str, accuracy: float, copies: int = 1) -> dict[str, Any]:
    """A cell of the paper's experiment as its results hold it."""
    return {
        "architecture": "cnn_lstm",
        "restructured": True,
        "augmentation": copies,
        "protocol": protocol,
        "metrics": {"slice": {"accuracy": figure(accuracy, low=accuracy - 0.1, high=accuracy)}},
    }


def a_graph(app: Flask) -> tuple[str, str]:
    """A data set with a version and its leaked control, an evaluation and two cells; the ids of
    the data set and the experiment.
    """
    leaked = {"name": "leaked", "accuracy": figure(0.99), "auroc": figure(0.995)}
    with app.app_context():
        dataset = add_dataset("head_ct", exploration=EXPLORATION)
        run = add_run(JobStatus.DONE)
        add_version("one", run_id=run, card=a_card(controls=[leaked]))
        evaluated(add_version("two", card=a_card(metrics_by_dataset={})), dataset)
        results = {"cells": [cell("honest", 0.8, 10), cell("leaked", 0.97, 5)]}
        row = PaperExperiment(
            dataset_id=dataset,
            architectures=["cnn_lstm"],
            status=JobStatus.FAILED,
            error="A sentence.",
            results=results,
        )
        return dataset, add(row).id


def test_the_graph_sets_honest_beside_leaked_with_intervals(app: Flask, admin: FlaskClient) -> None:
    dataset, _ = a_graph(app)
    page = admin.get(f"/admin/datasets/{dataset}/accuracy").text
    assert "AlexNet SVM · v1, honest, out of fold: 90.0% (85.0% to 94.0%), n = 200" in page
    assert "AlexNet SVM · v1, leaked, out of fold: 99.0%, n = 200" in page
    lstm = "restructured, augmented, honest, paper: 80.0% (70.0% to 80.0%), n = 200"
    assert "Honest, %" in page and "Leaked, %" in page and "Accuracy, % by slice" in page
    assert lstm in page and "augmented, leaked, paper: 97.0%" in page
    other = admin.get(f"/admin/datasets/{dataset}/accuracy?metric=auroc&level=slice").text
    assert "AUROC by slice on" in other and "Honest, %" not in other
    assert "· evaluation" in other and "0.875" in other and "0.995" in other
    nonsense = admin.get(f"/admin/datasets/{dataset}/accuracy?metric=x&level=y")
    assert nonsense.status_code == 200
    with app.app_context():
        empty = add_dataset("other", exploration=EXPLORATION)
    assert "No model has been tested on this" in admin.get(f"/admin/datasets/{empty}/accuracy").text
    assert admin.get(f"/admin/datasets/{empty}/accuracy.svg").status_code == 404


def test_the_graph_is_a_file_and_a_table(app: Flask, admin: FlaskClient) -> None:
    dataset, _ = a_graph(app)
    svg = admin.get(f"/admin/datasets/{dataset}/accuracy.svg?metric=accuracy&level=slice")
    assert svg.mimetype == "image/svg+xml"
    assert 'filename="head_ct-accuracy-by-slice.svg"' in svg.headers["Content-Disposition"]
    root = ElementTree.fromstring(svg.text)
    marks = root.findall(f".//{SVG}circle")
    assert root.tag == f"{SVG}svg" and len(marks) == 4, "two of the version, two of the paper"
    assert all(mark.get("fill") for mark in marks), "a file has no style sheet"
    table = admin.get(f"/admin/datasets/{dataset}/accuracy.csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    paper = [row for row in rows if row["from"] == "paper"]
    assert [(row["protocol"], row["value"], row["n"]) for row in paper] == [
        ("honest", "0.8", "200"),
        ("leaked", "0.97", "200"),
    ]
    assert {row["from"] for row in rows} == {"paper", "out of fold", "control", "evaluation"}


def test_the_paper_s_experiment_is_launched_canceled_and_resumed(
    app: Flask, admin: FlaskClient
) -> None:
    dataset, failed = a_graph(app)
    address = f"/admin/datasets/{dataset}/accuracy"
    assert "A sentence." in admin.get(address).text and "Resume" in admin.get(address).text
    admin.post(f"/admin/papers/{failed}/resume")
    with app.app_context():
        assert db.session.get_one(PaperExperiment, failed).status == "queued"
        assert db.session.get_one(PaperExperiment, failed).results, "finished results stay"
    admin.post(f"/admin/papers/{failed}/resume")
    assert "only after it was canceled or failed" in admin.get(address).text
    sent = {"architectures": ["alexnet", "alexnet_svm"], "initial_weights": "random"}
    admin.post(f"/admin/datasets/{dataset}/paper", data=sent)
    assert "already queued or running on this data set" in admin.get(address).text
    assert "hx-get" in admin.get(address).text
    admin.post(f"/admin/datasets/{dataset}/delete")
    assert "is queued or running on this data set. Cancel it first" in admin.get(
        "/admin/datasets"
    ).text or (
        "is queued or running on this data set. Cancel it"
        " first" in admin.get(f"/admin/datasets/{dataset}").text
    )
    admin.post(f"/admin/papers/{failed}/cancel")
    admin.post(f"/admin/datasets/{dataset}/paper", data={**sent, "architectures": []})
    assert "Choose at least one architecture." in admin.get(address).text
    admin.post(f"/admin/datasets/{dataset}/paper", data=sent)
    with app.app_context():
        rows = db.session.scalars(select(PaperExperiment).where(PaperExperiment.id != failed)).all()
        assert [row.architectures for row in rows] == [["alexnet_svm", "alexnet"]]
    admin.post(f"/admin/papers/{failed}/resume")
    with app.app_context():
        assert db.session.get_one(PaperExperiment, failed).status == "cancelled", "only the newest"


def test_how_long_the_experiment_takes_is_measured_here(app: Flask, admin: FlaskClient) -> None:
    dataset, experiment = a_graph(app)
    address = f"/admin/datasets/{dataset}/accuracy"
    page = admin.get(address).text
    assert "It waits for other jobs" in page and "completed here" not in page
    with app.app_context():
        timed = {"images": 200, "cells": [{**cell("honest", 0.8), "seconds": 900.0}] * 2}
        other = add_dataset("other heads", exploration={"images": 100})
        row = db.session.get_one(PaperExperiment, experiment)
        row.status, row.results = JobStatus.DONE, timed
        row.architectures = ["alexnet"]
        db.session.commit()
        assert expected_here_s(db.session.get_one(Dataset, other)) is None, "of some only"
        row.architectures = list(OF_THE_PAPER)
        db.session.commit()
        assert expected_here_s(db.session.get_one(Dataset, other)) == 900.0
    page = admin.get(f"/admin/datasets/{other}/accuracy").text
    assert "It takes about 15 min" in page and "completed here" in page


def test_of_two_who_launch_at_once_the_second_finds_the_experiment_of_the_first(
    postgres_with_tables: str, tmp_path: Path
) -> None:
    remove_all_rows(postgres_with_tables)
    app = app_on(postgres_with_tables, tmp_path)
    make_user(app, "root", Role.ADMIN)
    client = app.test_client()
    client.post("/login", data={"username": "root", "password": PASSWORD})
    sent = {"architectures": ["alexnet_svm"], "initial_weights": "random"}
    with app.app_context(), ThreadPoolExecutor(1) as other:
        dataset = add_dataset("heads")
        db.session.scalar(select(Dataset.id).where(Dataset.id == dataset).with_for_update())
        db.session.add(PaperExperiment(dataset_id=dataset, architectures=["alexnet"]))
        db.session.flush()
        posted = other.submit(client.post, f"/admin/datasets/{dataset}/paper", data=sent)
        wait([posted], timeout=1)  # It waits for the lock on the data set.
        db.session.commit()
        assert posted.result(30).status_code == 302
        rows = db.session.scalars(select(PaperExperiment)).all()
        assert [row.architectures for row in rows] == [["alexnet"]]
        db.session.remove()
        db.engine.dispose()


def test_tiles_of_series_models_are_by_patient_and_follow_the_operating_point(
    app: Flask,
) -> None:
    patients = {
        "auroc": figure(0.8, n=40),
        "sensitivity": figure(0.7, low=0.6, high=0.8, n=20),
        "specificity": figure(0.6, n=20),
        "ece": figure(0.05, low=0.01, high=0.1, n=40),
    }
    curve = [
        {"threshold": at, "sensitivity": 1 - at, "specificity": at} for at in (0.0, 0.25, 0.5, 1.0)
    ]
    with app.app_context():
        single = db.session.get_one(ModelVersion, add_version("single"))
        assert [tile.what for tile in tiles_of(single)][:2] == [
            "200 images with hemorrhage",
            "200 images without hemorrhage",
        ]
        card = a_card(patient_metrics=patients, curves={"patient": curve})
        slices = db.session.get_one(ModelVersion, add_version("slices", card=card))
        assert tiles_of(slices)[0] == tiles_of(single)[0], "it is used for slices"
        version = db.session.get_one(
            ModelVersion, add_version("several", card=card, reads="series")
        )
        tiles = tiles_of(version)
        assert [tile.figure and tile.figure["value"] for tile in tiles] == [0.7, 0.6, 0.8, 0.05]
        assert tiles[0].what == "20 patients with hemorrhage"
        version.point, version.scan_threshold = "own thresholds", 0.3
        tile_figure = tiles_of(version)[0].figure
        assert tile_figure and (tile_figure["value"], tile_figure["low"]) == (0.5, None)


def test_a_tile_says_how_few_series_its_operating_point_was_judged_on(app: Flask) -> None:
    card = read_card(STARTER_DIR)
    series = card.points["patient"]["balanced"].sensitivity.n
    assert series < (card.patient_metrics.sensitivity.n or 0), "most patients have one slice"
    with app.app_context():
        version = db.session.get_one(
            ModelVersion, add_version("starter", card=to_json(card), reads="series")
        )
        for point, threshold in ((None, None), ("sensitive", 0.4), ("own thresholds", 0.4)):
            version.point = point
            version.slice_threshold = version.scan_threshold = threshold
            tiles = tiles_of(version)
            assert tiles[0].what == f"{series} scans of several slices with hemorrhage"
            of_all = f"{card.patient_metrics.auroc.n:,} patients"
            assert tiles[2].what == f"{of_all}, those with a single image included"
