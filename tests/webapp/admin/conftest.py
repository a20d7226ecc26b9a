"""What the tests of the administrator's pages share: rows to show, a filled card, and a browser of
an admin.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update
from werkzeug.test import TestResponse

from webapp.admin import versions
from webapp.extensions import db
from webapp.models import Dataset, JobStatus, ModelVersion, Role, TrainingRun, waits_for_check

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
    "sizes": {
        "width": {"min": 100, "median": 128, "max": 256},
        "height": {"min": 100, "median": 130, "max": 200},
    },
    "modes": {"L": 10, "RGB": 2},
    "problems": ["c.png is <broken>."],
}
PAGES = (
    "/admin",
    "/admin/datasets",
    "/admin/runs",
    "/admin/runs/new",
    "/admin/models",
    "/admin/users",
)


def figure(value: float | None, **more: Any) -> dict[str, Any]:
    """A figure as ml writes it."""
    return {"value": value, "low": None, "high": None, "n": 200, **more}


def a_card(**changes: Any) -> dict[str, Any]:
    """A hand-made model card; its operating point is at false positive rate 0.1 and sensitivity
    0.9.
    """
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
    dataset: Dataset = add(
        Dataset(name=name, status=status, archive_key=f"datasets/{name}.zip", **columns)
    )
    return dataset.id


def add_run(status: JobStatus, **columns: Any) -> str:
    """Commit a training run and return its id."""
    run: TrainingRun = add(
        TrainingRun(
            **{
                "architecture": "alexnet_svm",
                "settings": {"folds": 5},
                "initial_weights": "random",
                "seed": 7,
                **columns,
            },
            status=status,
        )
    )
    return run.id


def promote_by_form(client: FlaskClient, version_id: str, **data: str) -> TestResponse:
    """Open a version's page and send its form, with the phrase typed that it asks for."""
    page = client.get(f"/admin/models/{version_id}").text
    seen = re.search(r'name="seen" value="([^"]+)"', page)
    phrase = re.search(r"anyway, type “([^”]+)”", page)
    hidden = {"seen": seen[1]} if seen else {}
    typed = {"confirmation": phrase[1]} if phrase else {}
    return client.post(f"/admin/models/{version_id}/promote", data={**hidden, **typed, **data})


def zip_of(**files: str) -> io.BytesIO:
    """A ZIP file with these contents."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    archive.seek(0)
    return archive


@pytest.fixture
def worker_that_checks(app: Flask, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """A predict worker that checks each version when it is nudged; what it finds can be set under
    "error".
    """
    outcome: dict[str, str | None] = {"error": None}

    def nudge(task: str) -> bool:
        with app.app_context():
            db.session.execute(
                update(ModelVersion)
                .where(waits_for_check())
                .values(checked_at=ModelVersion.check_requested_at, check_error=outcome["error"])
            )
            db.session.commit()
        return True

    monkeypatch.setattr(versions, "nudge", nudge)
    return outcome


@pytest.fixture
def admin(logged_in: LogIn) -> FlaskClient:
    """A browser in which an admin is logged in."""
    return logged_in("root", Role.ADMIN)
