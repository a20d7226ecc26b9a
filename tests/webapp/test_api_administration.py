"""What administrators' programs do: the rules and the audit log are those of the pages."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import make_user
from tests.ml.conftest import named_points_of_card
from tests.webapp.admin.conftest import (
    EXPLORATION,
    a_card,
    add_dataset,
    add_run,
    add_version,
    figure,
)
from tests.webapp.conftest import acts
from tests.webapp.test_api import add_scan, add_verdict, problem_of
from webapp.extensions import db, utc_now
from webapp.models import (
    Dataset,
    JobStatus,
    Scan,
    TrainingRun,
    live_version,
)

KEY = {"Idempotency-Key": "once"}


def test_a_version_is_promoted_rolled_back_and_the_timeline_says_so(
    app: Flask, boss: FlaskClient
) -> None:
    with app.app_context():
        first, second = (add_version(name, checked_at=utc_now()) for name in ("one", "two"))

    def decide(version_id: str, what: str = "promote", **more: Any) -> Any:
        checklist = boss.get(f"/api/v1/models/{version_id}/checklist").json
        body = {"reason": "A reason.", "seen": checklist["seen"]}
        body |= {"confirmation": checklist["confirmation"] or ""} | more
        return boss.post(f"/api/v1/models/{version_id}/{what}", json=body)

    assert decide(first).status_code == 200
    assert "was live before" in problem_of(decide(second, "roll-back"), 409)
    assert "type “promote although it is not" in problem_of(decide(second, confirmation=""), 409)
    assert "promoted" in problem_of(decide(second, seen="none"), 409)
    refused = decide(second, operating_point="sensitive")
    assert problem_of(refused, 422).startswith("operating_point: ")
    own = decide(second, operating_point="own thresholds", scan_threshold=0.25)
    assert own.json["operating_point"] == "own thresholds: series from 0.25"
    assert decide(first, "roll-back").status_code == 200

    timeline = boss.get("/api/v1/promotions?limit=2").json
    assert [each["version_id"] for each in timeline["items"]] == [first, second]
    newest, before = timeline["items"]
    assert newest["until"] is None and before["until"] == newest["at"] and timeline["next"]
    assert before["evidence"]["typed"] == "promote although it is not comparable"
    then = boss.get("/api/v1/promotions", query_string={"at": before["at"]}).json["items"]
    assert [each["id"] for each in then] == [before["id"]]
    (earlier,) = boss.get("/api/v1/promotions/earlier?reads=slice").json["items"]
    assert earlier["version_id"] == second
    live = [each["id"] for each in boss.get("/api/v1/models").json["items"] if each["is_live"]]
    with app.app_context():
        version = live_version("slice")
        assert version is not None and live == [first] == [version.id]
    assert acts(app) == ["version promoted"] * 3


def test_a_threshold_is_judged_by_patient_and_by_slice_at_any_prevalence(
    app: Flask, boss: FlaskClient
) -> None:
    curve = [
        {"threshold": threshold, "sensitivity": 1 - threshold, "specificity": threshold}
        for threshold in (0.0, 0.2, 0.4, 1.0)
    ]
    with app.app_context():
        card = a_card(points=named_points_of_card(), scan_threshold=0.2)
        by_slice = add_version("slices", card={**card, "curves": {"slice": curve}})
    address = f"/api/v1/models/{by_slice}/threshold?at=0.35"
    found = boss.get(f"{address}&level=slice&prevalence=20").json
    assert (found["level"], found["prevalence"], found["both"]) == ("slice", 20.0, [])
    figures = found["figures"]
    assert (figures["sensitivity"], figures["specificity"]) == (0.6, 0.4)
    assert (figures["positive"], figures["negative"]) == (40, 40)
    per_100 = {"alarms": 60.0, "true_alarms": 12.0, "false_alarms": 48.0, "missed": 8.0}
    assert {name: figures[name] for name in per_100} == pytest.approx(per_100)
    assert (figures["ppv"], figures["npv"]) == (pytest.approx(0.2), pytest.approx(0.8))
    by_patient = boss.get(address).json
    assert (by_patient["level"], by_patient["prevalence"]) == ("patient", 10.0)
    assert by_patient["figures"] is None, "the card has no curve by patient"
    for query, name in (("&prevalence=0", "prevalence"), ("&level=head", "level")):
        assert problem_of(boss.get(address + query), 422).startswith(f"{name}: ")
    assert problem_of(boss.get(f"/api/v1/models/{by_slice}/threshold?at=nan"), 422)


def test_a_run_is_launched_once_with_settings_that_there_are(app: Flask, boss: FlaskClient) -> None:
    with app.app_context():
        ready, waiting = add_dataset("ready"), add_dataset("waiting", JobStatus.QUEUED)
    body = {"architecture": "alexnet_svm", "dataset_ids": [ready], "initial_weights": "random"}
    for change, status, sentence in (
        ({"settings": {"speed": 9}}, 422, "settings: "),
        ({"initial_weights": "mine"}, 422, "initial_weights: "),
        ({"dataset_ids": [ready, waiting]}, 409, "ready"),
        ({"architecture": "none"}, 422, "architecture: "),
    ):
        answer = boss.post("/api/v1/runs", json={**body, **change})
        assert sentence in problem_of(answer, status)
    launched = [boss.post("/api/v1/runs", json=body, headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in launched] == [202, 202]
    assert launched[0].json == launched[1].json
    with app.app_context():
        run = db.session.scalars(select(TrainingRun)).one()
        assert run.id == launched[0].json["id"] and run.settings["folds"] == 5
    shown = boss.get(f"/api/v1/runs/{run.id}").json
    assert (shown["launched_by"], shown["datasets"]) == ("boss", [{"id": ready, "name": "ready"}])
    assert boss.post(f"/api/v1/runs/{run.id}/cancel").json["status"] == "cancelled"
    assert boss.post(f"/api/v1/runs/{run.id}/retry").json["status"] == "queued"
    assert acts(app) == ["run launched", "run cancelled", "run retried"]


def test_a_run_is_named_tagged_and_described_when_it_is_launched_and_later(
    app: Flask, boss: FlaskClient
) -> None:
    with app.app_context():
        ready = add_dataset("ready")
    body = {"architecture": "alexnet_svm", "dataset_ids": [ready], "initial_weights": "random"}
    for change, sentence in (
        ({"tags": ["two words"]}, "tags: The tag 'two words' must have"),
        ({"notes": "a\0b"}, "notes: Please use printable"),
        ({"name": "x" * 81}, "name: Longer than maximum length 80."),
    ):
        answer = boss.post("/api/v1/runs", json={**body, **change})
        assert problem_of(answer, 422).startswith(sentence)
    told = {"name": " Baseline ", "tags": ["b", "A", "a"], "notes": "One.\r\nTwo."}
    run = boss.post("/api/v1/runs", json={**body, **told}).json
    assert (run["name"], run["tags"], run["notes"]) == ("Baseline", ["a", "b"], "One.\nTwo.")
    address = f"/api/v1/runs/{run['id']}"
    changed = {"name": None, "tags": ["c", "a"], "notes": None}
    assert "tags: " in problem_of(boss.put(f"{address}/description", json={"name": "x"}), 422)
    described = boss.put(f"{address}/description", json=changed)
    assert described.json == {**run, **changed, "tags": ["a", "c"]}
    assert boss.get(address).json["tags"] == ["a", "c"]
    assert acts(app) == ["run launched", "run described"]

    assert boss.get(f"{address}/log").text == ""
    with app.app_context():
        db.session.get_one(TrainingRun, run["id"]).log = "12:00:00 Reading.\n12:00:01 Fitting."
        db.session.commit()
    log = boss.get(f"{address}/log")
    assert (log.mimetype, log.text.splitlines()[1]) == ("text/plain", "12:00:01 Fitting.")


def test_runs_are_filtered_and_sorted_as_on_the_page(app: Flask, boss: FlaskClient) -> None:
    with app.app_context():
        heads = add_dataset("heads")
        made = {
            "old": add_run(JobStatus.DONE, name="b", notes="the 5% baseline"),
            "good": add_run(JobStatus.DONE, architecture="cnn_gru", name="a"),
            "unnamed": add_run(JobStatus.FAILED),
            "better": add_run(JobStatus.DONE, name="c"),
        }
        run = db.session.get_one(TrainingRun, made["good"])
        run.tags.append("wide")
        run.datasets.append(db.session.get_one(Dataset, heads))
        for name, area in (("old", 0.9), ("good", 0.9), ("better", 0.95)):
            card = a_card(id=name)
            card["metrics"] = {**card["metrics"], "auroc": figure(area)}
            add_version(name, run_id=made[name], card=card)
        db.session.commit()
    names = {run_id: name for name, run_id in made.items()}

    def listed(**query: Any) -> list[str]:
        found = boss.get("/api/v1/runs", query_string={**query, "limit": 1})
        items = []
        while True:
            items += found.json["items"]
            if not found.json["next"]:
                return [names[each["id"]] for each in items]
            found = boss.get(found.json["next"])

    assert listed() == listed(sort="newest") == ["better", "unnamed", "good", "old"]
    assert listed(sort="oldest") == ["old", "good", "unnamed", "better"]
    assert listed(sort="auroc") == ["better", "good", "old", "unnamed"]
    assert listed(sort="name") == ["good", "old", "better", "unnamed"]
    assert listed(sort="architecture") == ["better", "unnamed", "old", "good"]
    assert listed(sort="state") == ["better", "good", "old", "unnamed"]
    for query in (
        {"architecture": "cnn_gru"},
        {"dataset": heads},
        {"tag": "Wide"},
        {"text": "A", "tag": "wide", "status": "done"},
    ):
        assert listed(**query) == ["good"]
    assert listed(text="5% base") == ["old"] and listed(status="failed") == ["unnamed"]
    assert problem_of(boss.get("/api/v1/runs?sort=luck"), 422).startswith("sort: ")


def test_what_the_launch_form_says_first_is_shown_to_programs_too(
    app: Flask, boss: FlaskClient
) -> None:
    with app.app_context():
        normal = add_dataset("normal", exploration={**EXPLORATION, "positive": 0})
        unknown = add_dataset("unknown", exploration={**EXPLORATION, "positive": 90})
    body = {"architecture": "googlenet_unet", "dataset_ids": [normal], "initial_weights": "random"}
    alone = boss.post("/api/v1/runs", json={**body, "accept_overruled": True})
    assert "no labeled images with hemorrhage" in problem_of(alone, 409)
    body |= {"dataset_ids": [unknown], "initial_weights": "starter"}
    held = problem_of(boss.post("/api/v1/runs", json=body), 409)
    assert "would begin from random weights" in held and "accept_overruled" in held
    assert boss.post("/api/v1/runs", json={**body, "accept_overruled": True}).status_code == 202
    assert acts(app) == ["run launched"]


def test_a_calibration_of_a_process_that_died_after_its_commit_is_not_launched_again(
    app: Flask, boss: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.app_context():
        body = {"version_id": add_version("one"), "dataset_id": add_dataset("heads")}

    def die(_task: str) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("webapp.learning.confirmed.nudge", die)
        with pytest.raises(KeyboardInterrupt):
            boss.post("/api/v1/calibrations", json=body, headers=KEY)
    again = boss.post("/api/v1/calibrations", json=body, headers=KEY)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (202, "true")
    with app.app_context():
        assert db.session.scalars(select(TrainingRun.id)).one() == again.json["id"]


def test_an_evaluation_and_a_comparison_are_asked_for(app: Flask, boss: FlaskClient) -> None:
    with app.app_context():
        version_id, dataset_id = add_version("one", checked_at=utc_now()), add_dataset("heads")
    body = {"version_id": version_id, "dataset_id": dataset_id}
    response = [boss.post("/api/v1/evaluations", json=body) for _ in range(2)]
    assert [answer.status_code for answer in response] == [202, 202]
    assert response[0].json["id"] == response[1].json["id"]  # Each pair is scored once.
    listed = boss.get(f"/api/v1/evaluations?version={version_id}").json["items"]
    assert [each["dataset"] for each in listed] == ["heads"]
    alone = boss.post("/api/v1/comparisons", json={"version_id": version_id})
    assert "no other live version" in problem_of(alone, 409)
    assert acts(app) == ["evaluation requested"]


def test_a_data_set_is_imported_and_deleted(app: Flask, boss: FlaskClient) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("normal/1.png", b"one")

    def send(content: bytes, **headers: str) -> Any:
        form = {"name": "mine", "archive": (io.BytesIO(content), "set.zip")}
        return boss.post("/api/v1/datasets", data=form, headers=headers)

    assert "ZIP" in problem_of(send(b"no archive"), 422)
    assert problem_of(
        boss.post("/api/v1/datasets", data={"name": "x"}, content_type="multipart/form-data"), 422
    )
    first, again = (send(packed.getvalue(), **KEY) for _ in range(2))
    assert first.status_code == 202, first.text
    assert again.json == first.json
    assert "already exists" in problem_of(send(packed.getvalue()), 422)
    address = f"/api/v1/datasets/{first.json['id']}"
    assert "being imported" in problem_of(boss.delete(address), 409)
    assert boss.post(f"{address}/cancel").json["status"] == "cancelled"
    assert boss.delete(address).status_code == 204
    with app.app_context():
        assert db.session.scalars(select(Dataset)).all() == []
    assert acts(app) == ["data set imported", "import cancelled", "data set deleted"]


def test_users_get_roles_and_the_log_says_who_gave_them(app: Flask, boss: FlaskClient) -> None:
    ann = make_user(app, "ann")
    assert boss.put(f"/api/v1/users/{ann}/role", json={"role": "reviewer"}).json["role"] == (
        "reviewer"
    )
    assert boss.post(f"/api/v1/users/{ann}/disable").json["disabled_at"] is not None
    with app.app_context():
        me = db.session.execute(db.text("SELECT id FROM user WHERE username = 'boss'")).scalar_one()
    for path in (f"/api/v1/users/{me}/disable",):
        assert "only administrator" in problem_of(boss.post(path), 409)
    assert "account page" in problem_of(boss.delete(f"/api/v1/users/{me}"), 409)
    events = boss.get("/api/v1/audit?by=boss&object=ann").json["items"]
    assert [(each["act"], each["actor"], each["detail"]) for each in events] == [
        ("user disabled", "boss", None),
        ("role changed", "boss", "user → reviewer"),
    ]


def test_many_scans_are_changed_at_once_and_each_change_is_recorded(
    app: Flask, boss: FlaskClient
) -> None:
    waiting, done = add_scan(app, "boss"), add_scan(app, "boss")
    add_verdict(app, done)
    make_user(app, "ann")
    others = add_scan(app, "ann")
    ids = [waiting, done, others, waiting]

    def change(action: str) -> Any:
        return boss.post("/api/v1/scans/changes", json={"action": action, "ids": ids}).json

    made = change("stat")
    assert (made["changed"], made["unchanged"], made["not_found"]) == (
        [waiting, done],
        [],
        [others],
    )
    cancelled = change("cancel")
    assert (cancelled["changed"], cancelled["unchanged"]) == ([waiting], [done])
    assert cancelled["unchanged_because"] == "These scans had already finished."
    assert change("share")["changed"] == [waiting, done]
    assert change("delete")["changed"] == [waiting, done]
    assert change("delete")["not_found"] == [waiting, done, others]
    with app.app_context():
        assert db.session.scalars(select(Scan.id)).all() == [others]
    made_stat, shared, deleted = (
        ["scan made STAT"] * 2,
        ["scan shared"] * 2,
        ["scan deleted"] * 2,
    )
    assert acts(app) == [*made_stat, "scan cancelled", *shared, *deleted]
