"""What administrators' programs do with shadows, replays and the images of data sets."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import delete, select, update

from tests.conftest import make_user
from tests.webapp.admin.conftest import add_dataset, add_version
from tests.webapp.admin.test_accuracy import a_graph
from tests.webapp.admin.test_evaluations import A_MISTAKE, evaluated
from tests.webapp.admin.test_images import indexed
from tests.webapp.admin.test_promotions import answered_scan, promoted
from tests.webapp.admin.test_shadows import shadow_answers
from tests.webapp.conftest import acts
from tests.webapp.test_api import add_scan, add_verdict, make_token, problem_of
from webapp.extensions import db, utc_now
from webapp.models import (
    DatasetAnalysis,
    DatasetImage,
    JobStatus,
    ModelVersion,
    PaperExperiment,
    Preview,
    ReceivedStudy,
    Replay,
    ResultDelivery,
    Shadow,
    ShadowAnswer,
    User,
    promote,
)
from webapp.storage import storage

KEY = {"Idempotency-Key": "once"}


def followed(client: FlaskClient, path: str) -> list[Any]:
    """Return all items of a list, a page at a time."""
    items = []
    while path:
        page = client.get(path).json
        items += page["items"]
        path = (page["next"] or "").replace("http://localhost", "")
    return items


def test_a_shadow_is_started_once_read_and_stopped(app: Flask, boss: FlaskClient) -> None:
    with app.app_context():
        live, candidate = add_version("one"), add_version("two")
        promote(db.session.get_one(ModelVersion, live), None, "A reason.")
        db.session.commit()
    make_user(app, "ann")
    hidden, disputed = add_scan(app), add_scan(app)

    refused = boss.post("/api/v1/shadows", json={"version_id": live})
    assert "This version is live" in problem_of(refused, 409)
    started = [
        boss.post("/api/v1/shadows", json={"version_id": candidate}, headers=KEY) for _ in range(2)
    ]
    assert [answer.status_code for answer in started] == [201, 201]
    assert started[0].json == started[1].json
    shadow = started[0].json
    assert (shadow["against_id"], shadow["started_by"]) == (live, "boss")
    assert "already in shadow mode" in problem_of(
        boss.post("/api/v1/shadows", json={"version_id": candidate}), 409
    )
    with app.app_context():
        db.session.add_all(shadow_answers(shadow["id"], [hidden, disputed]))
        db.session.commit()

    read = boss.get(f"/api/v1/shadows/{shadow['id']}").json
    agreement = read["agreement"]
    assert (agreement["n"], agreement["same"], agreement["only_live"]) == (2, 1, 1)
    assert agreement["low"] < agreement["share"] < agreement["high"]
    assert {"live": "suspected", "candidate": "not found", "count": 1} in agreement["states"]
    assert read["cost"] == {
        "answered": 2, "failed": 0, "waiting": 0, "seconds": 1.0, "seconds_each": 0.5
    }  # fmt: skip
    assert [period["n"] for period in read["drift"]] == [1, 1]
    address = f"/api/v1/shadows/{shadow['id']}/disagreements"
    (apart,) = followed(boss, address)
    # Somebody else's scan, which is not shared, stays a number.
    assert (apart["scan_id"], apart["live_state"], apart["state"]) == (
        None, "suspected", "not found"
    )  # fmt: skip
    same = followed(boss, f"{address}?live=suspected&candidate=suspected")
    assert [one["probability"] for one in same] == [0.8]

    stop = f"/api/v1/shadows/{shadow['id']}/stop"
    assert boss.post(stop).json["ended_because"] == "An administrator stopped it."
    assert "already ended" in problem_of(boss.post(stop), 409)
    assert [one["id"] for one in followed(boss, "/api/v1/shadows?limit=1")] == [shadow["id"]]
    assert acts(app) == ["shadow started", "shadow stopped"]
    with app.app_context():
        db.session.execute(delete(ShadowAnswer))
        db.session.commit()


def test_what_a_promotion_changed_is_read_and_found_out(app: Flask, boss: FlaskClient) -> None:
    theirs = make_user(app, "ann")
    with app.app_context():
        old, new = add_version("old"), add_version("new")
        first, second = promoted(old, "the first"), promoted(new, "finds more")
        mine = db.session.scalars(select(User.id).where(User.username == "boss")).one()
        scans = [
            answered_scan(user_id, new, probability)
            for user_id, probability in ((mine, 0.9), (theirs, 0.8), (mine, 0.7), (mine, 0.6))
        ]
        ended = utc_now()
        shadow = Shadow(version_id=old, against_id=new, reads="slice", ended_at=ended)
        db.session.add(shadow)
        db.session.flush()
        for scan_id, probability in zip(scans, (0.1, 0.2, 0.6), strict=False):
            (answer,) = shadow_answers(shadow.id, [scan_id])
            answer.probability, answer.threshold = probability, 0.41
            db.session.add(answer)
        db.session.commit()

    address = f"/api/v1/promotions/{second}"
    effect = boss.get(address).json
    assert (effect["reason"], effect["before"]["id"]) == ("finds more", first)
    assert effect["before"]["until"] == effect["at"] and not effect["is_point_only"]
    names = ("scans", "known", "missing", "changed", "suspected_with_only")
    assert [effect[name] for name in names] == [4, 3, 1, 2, 2]
    apart = followed(boss, f"{address}/changed?limit=1")
    assert [(one["scan_id"], one["without_probability"]) for one in apart] == [
        (None, 0.2), (scans[0], 0.1)
    ]  # fmt: skip
    assert {(one["state"], one["without_state"]) for one in apart} == {("suspected", "not found")}

    begun = [boss.post(f"{address}/find-out", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in begun] == [202, 202]
    assert begun[0].json == begun[1].json and begun[0].json["version_id"] == old
    assert boss.get(address).json["shadow_id"] == begun[0].json["id"]
    refused = boss.post(f"{address}/find-out")
    assert "already in shadow mode" in problem_of(refused, 409)
    alone = f"/api/v1/promotions/{first}"
    assert boss.get(alone).json["before"] is None
    assert "No version was live before" in problem_of(boss.post(f"{alone}/find-out"), 409)
    assert problem_of(boss.get("/api/v1/promotions/99"), 404) == "Promotion not found."
    assert acts(app) == ["shadow started"]


def test_answers_are_drawn_and_computed_again_and_those_that_differ_are_listed(
    app: Flask, boss: FlaskClient
) -> None:
    nothing = boss.post("/api/v1/replays", json={"count": 5})
    assert "No result" in problem_of(nothing, 409)
    ann = make_user(app, "ann")
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    owner = app.test_client()
    owner.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(app, ann)}"

    sample = boss.post("/api/v1/replays", json={"count": 5}).json
    assert (sample["waiting"], sample["requested_by"]) == (1, "boss")
    with app.app_context():
        db.session.execute(
            update(Replay).values(status=JobStatus.FAILED, error="The file is damaged.")
        )
        db.session.commit()
    address = f"/api/v1/replays/{sample['id']}"
    assert boss.get(address).json["failed"] == 1
    (unlike,) = followed(boss, f"{address}/unlike")
    assert (unlike["scan_id"], unlike["outcome"]) == (None, "failed")
    assert unlike["headline"].endswith("The file is damaged.")
    assert boss.post(f"{address}/cancel").json["failed"] == 1
    assert [one["id"] for one in followed(boss, "/api/v1/replays")] == [sample["id"]]

    reproduce = f"/api/v1/scans/{scan_id}/reproduce"
    assert problem_of(boss.post(reproduce, json={}), 404) == "Scan not found."
    queued = owner.post(reproduce, json={})
    assert (queued.status_code, queued.json["outcome"]) == (202, "waiting")
    assert "already being computed" in problem_of(owner.post(reproduce, json={}), 409)
    partly = {"differs": [], "not_kept": ["outlines"], "changes": []}
    with app.app_context():
        columns = {"status": JobStatus.DONE, "is_same": True, "error": None, "result": partly}
        db.session.execute(update(Replay).values(columns))
        db.session.commit()
    (again, *_) = owner.get(f"/api/v1/scans/{scan_id}/replays").json["items"]
    assert (again["outcome"], again["not_compared"]) == ("same", ["outlines"])
    sample = boss.get(address).json
    assert (sample["same"], sample["same_in_part"]) == (1, 1)
    none = owner.post(reproduce, json={"earlier_answer_id": 99})
    assert problem_of(none, 409) == "There is no such result."
    (waiting,) = followed(owner, f"/api/v1/scans/{scan_id}/replays")
    assert waiting["id"] == queued.json["id"]
    assert acts(app).count("replay requested") == 2


def test_images_are_filtered_corrected_and_the_corrections_applied(
    app: Flask, boss: FlaskClient
) -> None:
    with app.app_context():
        dataset_id, fresh = add_dataset("mine"), add_dataset("fresh")
        indexed(dataset_id)
    address = f"/api/v1/datasets/{dataset_id}"
    assert "not indexed yet" in problem_of(boss.get(f"/api/v1/datasets/{fresh}/images"), 409)
    response = boss.post(f"/api/v1/datasets/{fresh}/images")
    assert (response.status_code, response.json["kind"]) == (202, "images")

    all_images = followed(boss, f"{address}/images?limit=2")
    assert [one["number"] for one in all_images] == [0, 1, 2, 3, 4, 5]
    outlined = boss.get(f"{address}/images?mask=yes").json["items"]
    assert [one["number"] for one in outlined] == [1]
    unread = boss.get(f"{address}/images?problem=left out").json["items"]
    assert unread[0]["problems"][0]["kind"] == "left out" and not unread[0]["has_thumbnail"]
    by_size = followed(boss, f"{address}/images?sort=smallest&limit=4")
    assert by_size[0]["number"] == 5 and len(by_size) == 6
    nowhere = boss.get(f"{address}/images?source=elsewhere").json
    assert (nowhere["items"], nowhere["unmatched"]) == ([], ["source"])
    one = boss.get(f"{address}/images/0").json
    assert [other["number"] for other in one["near_duplicates"]] == [3]
    assert boss.get(f"{address}/images/0/thumbnail.jpg").data == b"picture 00"
    assert "could not be read" in problem_of(boss.get(f"{address}/images/5/thumbnail.jpg"), 404)
    assert problem_of(boss.get(f"{address}/images/99"), 404) == "Image not found."

    with app.app_context():
        was = db.session.get_one(DatasetImage, (dataset_id, 0)).label
    other, label = ("negative", "positive") if was else ("positive", "negative")
    corrected = boss.post(f"{address}/images/0/label", json={"label": other, "reason": "A vessel."})
    waits = corrected.json["correction"]
    assert (waits["was"], waits["label"], waits["by"]) == (label, other, "boss")
    assert followed(boss, f"{address}/corrections") == [waits]
    boss.post(f"{address}/images/0/label", json={"label": label})
    assert followed(boss, f"{address}/corrections") == []
    nothing = boss.post(f"{address}/corrections", json={"name": "mine v2"})
    assert "no pending corrections" in problem_of(nothing, 409)
    boss.post(f"{address}/images/0/label", json={"label": other})
    made = [
        boss.post(f"{address}/corrections", json={"name": "mine v2"}, headers=KEY) for _ in range(2)
    ]
    assert made[0].json == made[1].json and made[0].json["name"] == "mine v2"
    assert acts(app).count("data set corrected") == 1


def test_an_image_is_shown_at_full_size_in_a_window_with_and_without_its_outline(
    app: Flask, boss: FlaskClient
) -> None:
    with app.app_context():
        dataset_id = add_dataset("mine")
        indexed(dataset_id)
    address = f"/api/v1/datasets/{dataset_id}/images/1/picture.png"
    waits = boss.get(f"{address}?window=bone")
    assert (waits.status_code, waits.headers["Retry-After"]) == (202, "1")
    with app.app_context():
        preview = db.session.scalars(select(Preview)).one()
        assert preview.what == {"dataset": dataset_id, "image": 1}
        assert preview.settings == {"kind": "picture", "level": 600, "width": 2800}
        preview.status, preview.finished_at = JobStatus.DONE, utc_now()
        preview.result = [
            {"name": "picture", "pictures": [[0, 5]], "notes": ["hu"]},
            {"name": "outline", "pictures": [[5, 8]], "notes": []},
        ]
        storage.put(preview.file_key, b"plainoutlined")
        db.session.commit()
    shown = boss.get(f"{address}?window=bone")
    assert (shown.mimetype, shown.data) == ("image/png", b"outlined")
    assert boss.get(f"{address}?window=bone&outline=no").data == b"plain"
    assert boss.get(address).status_code == 202, "another window is another picture"
    with app.app_context():
        failed = {"status": JobStatus.FAILED, "error": "No.", "finished_at": utc_now()}
        db.session.execute(update(Preview).values(**failed))
        db.session.commit()
    assert problem_of(boss.get(address), 404) == "No."
    assert problem_of(boss.get(f"{address}?window=lung"), 422).startswith("window: ")
    unread = boss.get(f"/api/v1/datasets/{dataset_id}/images/5/picture.png")
    assert "could not be read" in problem_of(unread, 404)


def test_the_worst_mistakes_of_a_version_and_of_an_evaluation_are_shown(
    app: Flask, boss: FlaskClient
) -> None:
    with app.app_context():
        version_id, plain = add_version("one"), add_version("plain")
        version = db.session.get_one(ModelVersion, version_id)
        version.mistakes = [A_MISTAKE]
        storage.put(version.mistake_key(0), b"of the version")
        storage.put(version.mistake_key(0, "-heat"), b"its heat")
        db.session.commit()
        evaluation_id = evaluated(version_id, add_dataset("heads"))
    for address, picture, heat in (
        (f"/api/v1/models/{version_id}", b"of the version", b"its heat"),
        (f"/api/v1/evaluations/{evaluation_id}", b"a picture", b"a layer"),
    ):
        assert boss.get(address).json["mistakes"] == [A_MISTAKE]
        shown = boss.get(f"{address}/mistakes/0.png")
        assert (shown.mimetype, shown.data) == ("image/png", picture)
        assert boss.get(f"{address}/mistakes/0/heatmap.png").data == heat
        for name in ("1.png", "1/heatmap.png"):
            assert "no such mistake" in problem_of(boss.get(f"{address}/mistakes/{name}"), 404)
    assert boss.get(f"/api/v1/models/{plain}").json["mistakes"] is None


def test_a_question_about_data_sets_is_asked_once_and_again_where_it_failed(
    app: Flask, boss: FlaskClient
) -> None:
    with app.app_context():
        one, other = add_dataset("one"), add_dataset("other")
        known = indexed(one)
        indexed(other)
    address = f"/api/v1/datasets/{one}"
    assert boss.post(f"{address}/splits", json={}).json["id"] == known
    split = boss.post(f"{address}/splits", json={"folds": 3, "seed": 1})
    assert (split.status_code, split.json["status"], split.json["result"]) == (202, "queued", None)
    apart = [
        boss.post(f"/api/v1/datasets/{first}/differences", json={"other_id": second}).json["id"]
        for first, second in ((one, other), (other, one))
    ]
    assert apart[0] == apart[1]
    alone = boss.post(f"{address}/differences", json={"other_id": one})
    assert "two data sets" in problem_of(alone, 409)
    question = f"/api/v1/questions/{apart[0]}"
    assert "failed" in problem_of(boss.post(f"{question}/retry"), 409)
    with app.app_context():
        db.session.execute(update(DatasetAnalysis).values(status=JobStatus.FAILED, error="No."))
        db.session.commit()
    assert boss.get(question).json["error"] == "No."
    assert boss.post(f"{question}/retry").json["status"] == "queued"


def test_results_on_their_way_are_listed_hurried_and_given_up(
    app: Flask, boss: FlaskClient
) -> None:
    ann = make_user(app, "ann")
    waits, sent = add_scan(app), add_scan(app)
    with app.app_context():
        rows = [
            ResultDelivery(user_id=ann, scan_id=waits, destination="pacs", error="It is down."),
            ResultDelivery(
                user_id=ann, scan_id=sent, destination="pacs", status=JobStatus.DONE, sent="sr, sc"
            ),
        ]
        db.session.add_all(
            [*rows, ReceivedStudy(sent_by="CT1", files=3, scans=0, sentence="No images.")]
        )
        db.session.commit()
        first, last = (row.id for row in rows)
    assert {one["id"] for one in followed(boss, "/api/v1/deliveries?limit=1")} == {first, last}
    (done,) = followed(boss, f"/api/v1/deliveries?status=done&scan={sent}")
    assert (done["destination"], done["sent"]) == ("pacs", ["sr", "sc"])
    (study,) = followed(boss, "/api/v1/received-studies")
    assert (study["sent_by"], study["sentence"]) == ("CT1", "No images.")
    assert "been sent" in problem_of(boss.post(f"/api/v1/deliveries/{last}/retry"), 409)
    assert boss.post(f"/api/v1/deliveries/{first}/retry").json["status"] == "queued"
    assert boss.post(f"/api/v1/deliveries/{first}/cancel").json["status"] == "cancelled"
    assert "canceled in the meantime" in problem_of(
        boss.post(f"/api/v1/deliveries/{first}/cancel"), 409
    )
    assert acts(app) == ["result sent again", "result cancelled"]


def test_the_accuracy_graph_and_its_experiment_are_the_page_s(
    app: Flask, boss: FlaskClient
) -> None:
    dataset, failed = a_graph(app)
    address = f"/api/v1/datasets/{dataset}/accuracy"
    known = followed(boss, f"{address}?limit=2")
    assert [
        (each["protocol"], each["value"], each["low"])
        for each in known
        if each["source"] == "paper"
    ] == [("honest", 0.8, pytest.approx(0.7)), ("leaked", 0.97, pytest.approx(0.87))]
    assert all(each["version_id"] for each in known if each["source"] != "paper")
    assert {bool(each["evaluation_id"]) for each in known if each["source"] == "evaluation"} == {
        True
    }
    assert "<svg" in boss.get(f"{address}.svg").text
    assert boss.get(f"{address}.csv").text.count("\n") == len(known) + 1
    problem_of(boss.get(f"{address}.svg?level=patient&metric=ece"), 422)
    with app.app_context():
        empty = add_dataset("other")
    assert "No model has been tested" in problem_of(
        boss.get(f"/api/v1/datasets/{empty}/accuracy.svg"), 404
    )

    experiments = "/api/v1/paper-experiments"
    assert boss.get(f"{experiments}/{failed}").json["results"]["cells"]
    assert boss.post(f"{experiments}/{failed}/resume").json["status"] == "queued"
    assert "newest" in problem_of(boss.post(f"{experiments}/{failed}/resume"), 409)
    body = {"dataset_id": dataset, "architectures": ["alexnet", "alexnet_svm"]}
    assert "already" in problem_of(boss.post(experiments, json=body), 409)
    assert boss.post(f"{experiments}/{failed}/cancel").json["status"] == "cancelled"
    assert "ended" in problem_of(boss.post(f"{experiments}/{failed}/cancel"), 409)
    for weights in ("nothing", ""):
        wrong = {**body, "initial_weights": weights}
        assert "Must be one of" in problem_of(boss.post(experiments, json=wrong), 422)
    launched = [boss.post(experiments, json=body, headers=KEY) for _ in range(2)]
    assert launched[0].json == launched[1].json and launched[0].status_code == 202
    assert launched[0].json["architectures"] == ["alexnet_svm", "alexnet"], "in the paper's order"
    listed = followed(boss, f"{experiments}?dataset={dataset}&limit=1")
    assert [each["id"] for each in listed] == [launched[0].json["id"], failed]
    assert followed(boss, f"{experiments}?dataset={empty}") == []
    assert "newest" in problem_of(boss.post(f"{experiments}/{failed}/resume"), 409)
    with app.app_context():
        db.session.execute(update(PaperExperiment).values(status=JobStatus.DONE))
        db.session.commit()
    newest = f"{experiments}/{launched[0].json['id']}"
    assert "canceled or failed" in problem_of(boss.post(f"{newest}/resume"), 409)
