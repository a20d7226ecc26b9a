"""Answers that are computed again: on the page of a scan, in samples, on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import delete, select, update

from tests.webapp.admin.conftest import NOBODY, add, add_version
from webapp.extensions import db
from webapp.models import (
    Act,
    AuditEvent,
    EarlierAnswer,
    JobStatus,
    Prediction,
    Replay,
    Role,
    Scan,
    Share,
    User,
)

FACTS = {"probability": 0.9, "threshold": 0.5, "positive": True, "uncertain": False}
SAME: dict[str, Any] = {"differs": [], "not_kept": [], "changes": []}
OTHER: dict[str, Any] = {
    "differs": ["probability", "slices"],
    "not_kept": ["outlines"],
    "changes": [["ONNX Runtime", "1.0", "1.32.0"]],
    "probability": [0.9, 0.91],
    "threshold": [0.5, 0.5],
    "slices": [{"index": 2, "before": 0.9, "now": 0.91}],
    "slices_apart": 3,
    "of_slices": 24,
}


def answered(app: Flask, username: str = "ann") -> str:
    """Commit a scan of that person with an answer and an earlier one; return its id."""
    with app.app_context():
        owner = db.session.scalars(select(User.id).where(User.username == username)).one()
        version = add_version("one")
        scan: Scan = add(
            Scan(user_id=owner, kind="png", original_key="originals/1.png", status=JobStatus.DONE)
        )
        db.session.add(
            Prediction(
                scan_id=scan.id,
                model_version_id=version,
                warnings=[],
                slices=[0.9],
                seconds=1.0,
                **FACTS,
            )
        )
        db.session.add(
            EarlierAnswer(
                scan_id=scan.id, model_version_id=version, answered_at=scan.created_at, **FACTS
            )
        )
        db.session.commit()
        return scan.id


def end(app: Flask, status: JobStatus = JobStatus.DONE, **columns: object) -> None:
    """Let a worker end all replays so."""
    with app.app_context():
        db.session.execute(update(Replay).values(status=status, **columns))
        db.session.commit()


def test_the_page_of_a_scan_says_whether_its_result_was_reproduced(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    ann = logged_in("ann")
    scan_id = answered(app)
    page = ann.get(f"/scans/{scan_id}").text
    assert page.count("Reproduce this") == 2 and 'hx-trigger="every 1s"' not in page
    ann.post(f"/scans/{scan_id}/reproduce", data={"answer": ""})
    page = ann.get(f"/scans/{scan_id}").text
    assert "Waiting to be recomputed with AlexNet SVM · v1" in page
    assert 'hx-trigger="every 1s"' in page  # It will change.
    again = ann.post(f"/scans/{scan_id}/reproduce", follow_redirects=True)
    assert "It is already being computed." in again.text
    end(app, is_same=True, result=SAME)
    page = ann.get(f"/scans/{scan_id}").text
    assert "Reproduced exactly with AlexNet SVM · v1." in page
    end(app, is_same=False, result=OTHER)
    page = ann.get(f"/scans/{scan_id}").text
    for sentence in (
        "Different: the probability and the slice probabilities.",
        "Probability: 0.9 before, 0.91 now.",
        "3 of 24 slices differ: 3 and 2 more.",
        "ONNX Runtime: 1.0 before, 1.32.0 now.",
        "Not compared, because the original is not stored: the outline.",
    ):
        assert sentence in page
    end(app, JobStatus.FAILED, error="It is damaged.")
    assert "Could not be recomputed: It is damaged." in ann.get(f"/scans/{scan_id}").text


def test_an_earlier_answer_is_reproduced_too_and_a_wrong_one_is_refused(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    ann = logged_in("ann")
    scan_id = answered(app)
    with app.app_context():
        earlier = db.session.scalars(select(EarlierAnswer.id)).one()
    wrong = ann.post(f"/scans/{scan_id}/reproduce", data={"answer": "77"}, follow_redirects=True)
    assert "There is no such result." in wrong.text
    ann.post(f"/scans/{scan_id}/reproduce", data={"answer": str(earlier)})
    end(app, is_same=True, result={**SAME, "not_kept": ["slices"], "changes": None})
    page = ann.get(f"/scans/{scan_id}").text
    assert (
        "Reproduced exactly with AlexNet SVM · v1 as far as it could be compared. Not compared,"
        " because the original is not stored: the slice probabilities." in page
    )
    assert "machine that produced this result were not recorded" in page
    with app.app_context():
        db.session.execute(update(Scan).values(original_removed_at=Scan.created_at))
        db.session.commit()
    assert "Reproduce this" not in ann.get(f"/scans/{scan_id}").text
    gone = ann.post(f"/scans/{scan_id}/reproduce", follow_redirects=True)
    assert "no longer stored" in gone.text


def test_owner_and_administrators_who_see_a_scan_may_ask_and_nobody_else(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    logged_in("ann")
    scan_id = answered(app)
    admin, reviewer = logged_in("root", Role.ADMIN), logged_in("eve", Role.REVIEWER)
    assert admin.post(f"/scans/{scan_id}/reproduce").status_code == 404
    with app.app_context():
        add(Share(scan_id=scan_id))
    assert "Reproduce this" not in reviewer.get(f"/scans/{scan_id}").text
    with app.app_context():
        db.session.execute(delete(EarlierAnswer))
        db.session.commit()
    heading = "Check this result"
    assert heading not in reviewer.get(f"/scans/{scan_id}").text, "nothing would be below it"
    assert heading in admin.get(f"/scans/{scan_id}").text
    assert reviewer.post(f"/scans/{scan_id}/reproduce").status_code == 404
    assert admin.post(f"/scans/{scan_id}/reproduce").status_code == 302
    with app.app_context():
        assert db.session.scalars(select(Replay.scan_id)).all() == [scan_id]


def test_a_random_sample_is_followed_and_canceled(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    admin = logged_in("root", Role.ADMIN)
    none = admin.post("/admin/replays", data={"count": "5"}, follow_redirects=True)
    assert "No result has a submitted file that is still stored." in none.text
    assert "from 1 to 1000" in admin.post("/admin/replays", data={"count": "2000"}).text
    answered(app, "root")
    response = admin.post("/admin/replays", data={"count": "5"})
    assert "1 waiting" in admin.get(response.location).text
    with app.app_context():
        sample_id = db.session.scalars(select(Replay.sample_id)).one()
        newest = db.session.scalars(select(AuditEvent).order_by(AuditEvent.id.desc())).first()
        assert newest and (newest.act, newest.detail) == (Act.REPLAY_REQUESTED, "1 answers")
    end(app, is_same=True, result=SAME)
    assert "1 of 1 results reproduced exactly" in admin.get("/admin/replays").text
    assert "Compared in part" not in admin.get("/admin/replays").text
    end(app, is_same=True, result={**SAME, "not_kept": ["types", "outlines"]})
    page = admin.get("/admin/replays").text
    assert "1 of the 1 reproduced ones" in page
    assert "the types of hemorrhage and the outline</dd>" in page
    end(app, is_same=False, result=OTHER)
    page = admin.get("/admin/replays").text
    assert "0 of 1 results reproduced exactly" in page and "ONNX Runtime: 1.0 before" in page
    end(app, JobStatus.QUEUED, is_same=None, result=None)
    admin.post(f"/admin/replays/{sample_id}/cancel")
    assert "No results were recomputed" in admin.get("/admin/replays").text
    for unknown in (NOBODY, "x"):
        assert admin.get(f"/admin/replays?sample={unknown}").status_code == 404


def test_the_command_line_fails_unless_all_are_the_same(
    app: Flask, logged_in: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = app.test_cli_runner()
    assert "No result has a submitted file" in runner.invoke(args=["replay-sample"]).output
    logged_in("ann")
    answered(app)
    outcome: dict[str, Any] = {"is_same": True, "result": SAME}

    def nudge(task: str) -> bool:
        end(app, **outcome)
        return True

    monkeypatch.setattr("webapp.cli.nudge", nudge)
    same = runner.invoke(args=["replay-sample", "10", "--wait"])
    assert (same.exit_code, same.output.splitlines()[-1]) == (
        0,
        "1 of 1 results were reproduced exactly.",
    )
    outcome = {"is_same": False, "result": OTHER}
    other = runner.invoke(args=["replay-sample", "--wait"])
    assert other.exit_code == 1 and "0 of 1 results were reproduced exactly." in other.output
    assert "Probability: 0.9 before, 0.91 now." in other.output
