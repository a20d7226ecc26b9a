"""What protects a promotion: the comparison with the live version, what must be typed, and two
administrators at once.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import make_user
from tests.webapp.admin.conftest import add_version, figure, promote_by_form
from webapp.admin.comparisons import compared_by_patient, results_between, verdict_of
from webapp.admin.promotion_checks import Decision, checklist_of, mark_of_live, promote_as_admin
from webapp.extensions import db, utc_now
from webapp.models import (
    Comparison,
    JobStatus,
    ModelVersion,
    Promotion,
    PromotionRefused,
    Role,
    live_version,
    promote,
)

WORSE = "promote although it is worse"
UNKNOWN = "promote although it is not comparable"


def level(low: float, value: float, high: float, positive: int = 40) -> dict[str, Any]:
    """A compared level with that difference of the AUROC."""
    curve = [
        {"threshold": 0.0, "sensitivity": 1.0, "specificity": 0.0},
        {"threshold": 0.5, "sensitivity": 0.8, "specificity": 0.9},
        {"threshold": 1.0, "sensitivity": 0.0, "specificity": 1.0},
    ]
    run = {name: figure(0.9) for name in ("auroc", "accuracy", "sensitivity", "specificity")}
    return {
        "n": 100,
        "positive": positive,
        "negative": 60,
        "auroc": figure(value, low=low, high=high),
        "accuracy": figure(0.0, low=0.0, high=0.0),
        "sensitivity": figure(0.1, low=0.0, high=0.2),
        "specificity": figure(-0.1, low=-0.2, high=0.0),
        "runs": {"own": {**run, "curve": curve}, "other": {**run, "curve": curve}},
    }


def result(low: float, value: float, high: float, positive: int = 40) -> dict[str, Any]:
    """A result of a comparison with that difference, by slice and by patient."""
    both = {name: level(low, value, high, positive) for name in ("slice", "patient")}
    return {"source": "out of fold", "own": "out of fold", "other": "out of fold", **both}


def without_patients() -> dict[str, Any]:
    """A result of versions that have slices in common, but no patient."""
    undefined = figure(None, reason="one class is missing")
    return {**result(0.01, 0.05, 0.09), "patient": {"n": 0, "auroc": undefined}}


def two_versions(*results: dict[str, Any]) -> tuple[str, str]:
    """Commit a live version and a candidate that was compared with it; return their ids."""
    live, candidate = add_version("live-card"), add_version("new-card", checked_at=utc_now())
    promote(db.session.get_one(ModelVersion, live), None, "It ships.")
    if results:
        row = Comparison(
            version_id=candidate, other_id=live, results=list(results), status=JobStatus.DONE
        )
        db.session.add(row)
    db.session.commit()
    return live, candidate


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([result(0.01, 0.05, 0.09)], "better"),
        ([result(-0.05, -0.01, 0.03)], "not worse"),
        ([result(-0.3, -0.16, -0.1)], "worse"),
        ([result(0.01, 0.05, 0.09), result(-0.3, -0.16, -0.1)], "worse"),
        ([result(-0.3, -0.16, 0.1, positive=9)], "not comparable"),
        ([without_patients()], "not comparable"),
        (
            [{"source": "out of fold", "reason": "These runs have no image in common."}],
            "not comparable",
        ),
        ([], "not comparable"),
    ],
)
def test_the_verdict_is_by_patient_and_the_worst_of_all_sources(
    results: list[dict[str, Any]], verdict: str
) -> None:
    assert verdict_of(compared_by_patient(results)) == verdict


def test_versions_without_a_common_patient_are_said_to_have_none(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        _, candidate = two_versions(without_patients())
    page = admin.get(f"/admin/models/{candidate}").text
    assert "The two versions have no patient in common." in page
    assert "one class is missing" not in page


@pytest.mark.parametrize(
    ("results", "phrase"),
    [([result(-0.3, -0.16, -0.1)], WORSE), ([], UNKNOWN)],
)
def test_what_is_worse_or_not_comparable_goes_live_only_with_its_phrase_typed(
    app: Flask, admin: FlaskClient, results: list[dict[str, Any]], phrase: str
) -> None:
    with app.app_context():
        live, candidate = two_versions(*results)
    page = admin.get(f"/admin/models/{candidate}").text
    assert f"type “{phrase}”" in page
    for typed in ("", "yes", {WORSE: UNKNOWN, UNKNOWN: WORSE}[phrase]):
        answer = promote_by_form(admin, candidate, reason="I like it.", confirmation=typed)
        assert answer.status_code == 400 and f"type “{phrase}”" in answer.text
    with app.app_context():
        assert (version := live_version("slice")) and version.id == live
    answer = promote_by_form(admin, candidate, reason="Only a test.", confirmation=phrase.upper())
    assert answer.status_code == 302
    with app.app_context():
        newest = db.session.scalars(select(Promotion).order_by(Promotion.id.desc())).first()
        assert newest and newest.version_id == candidate and newest.evidence
        assert newest.evidence["typed"] == phrase.upper()
        assert newest.evidence["live"] == {"id": live, "card_id": "live-card"}
    assert f"Typed: “{phrase.upper()}”" in admin.get("/admin/models").text


def test_what_is_better_needs_a_reason_only_and_both_stand_side_by_side(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        live, candidate = two_versions(result(0.01, 0.05, 0.09))
    page = admin.get(f"/admin/models/{candidate}").text
    assert 'name="confirmation"' not in page
    assert "Better: AUROC by patient +0.050 (+0.010 to +0.090) on 100 patients" in page
    assert page.count('class="chart overlay"') == 2
    order = ("AUROC, this version", "Checklist", ">Promote</button>", 'class="chart overlay"')
    assert sorted(order, key=page.index) == list(order), "what decides comes first"
    part = admin.get(f"/admin/models/{candidate}/both", query_string={"at": "0.4"}).text
    assert part.count(">80.0<") == part.count(">90.0<") == 2 and "this version" in part
    wrong = admin.get(f"/admin/models/{candidate}/both", query_string={"at": "low"}).text
    assert "A threshold must be a number from 0 to 1" in wrong
    assert promote_by_form(admin, candidate, reason="Better.").status_code == 302
    # From the other side it is worse.
    assert f"type “{WORSE}”" in admin.get(f"/admin/models/{live}").text
    with app.app_context():
        versions = [db.session.get_one(ModelVersion, id) for id in (live, candidate)]
        (comparison,) = results_between(*versions) or []
        assert comparison["patient"]["auroc"] == figure(-0.05, low=-0.09, high=-0.01)
        assert checklist_of(versions[0]).verdict == "worse"


def test_a_form_that_was_shown_beside_another_live_version_is_refused(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        _, candidate = two_versions(result(0.01, 0.05, 0.09))
        seen = mark_of_live("slice")
        other = add_version("third-card")
        promote(db.session.get_one(ModelVersion, other), None, "It came between.")
        db.session.commit()
    path, data = f"/admin/models/{candidate}/promote", {"reason": "Better.", "seen": seen}
    answer = admin.post(path, data=data)
    assert answer.status_code == 400
    assert "promoted AlexNet SVM · v3 at" in answer.text and "It came between." in answer.text
    answer = admin.post(path, data={"reason": "Better."})
    assert "Please open it again." in answer.text
    with app.app_context():
        assert (version := live_version("slice")) and version.id == other


def test_of_two_who_promote_at_once_one_wins_and_the_other_reads_a_sentence(
    any_database_app: Flask,
) -> None:
    app = any_database_app
    make_user(app, "ann", Role.ADMIN)
    with app.app_context():
        _, first = two_versions(result(0.01, 0.05, 0.09))
        second = add_version("second-card")
        live = live_version("slice")
        assert live is not None
        db.session.add(
            Comparison(
                version_id=second,
                other_id=live.id,
                results=[result(0.01, 0.05, 0.09)],
                status=JobStatus.DONE,
            )
        )
        db.session.commit()
        seen = mark_of_live("slice")
        db.session.commit()
    ready, ended = threading.Barrier(2), dict[str, str]()

    def decide(version_id: str) -> None:
        with app.app_context():
            version = db.session.get_one(ModelVersion, version_id)
            db.session.commit()
            ready.wait(20)
            try:
                promote_as_admin(version, Decision(None, "Now.", None, seen=seen))
                db.session.commit()
                ended[version_id] = "won"
            except PromotionRefused as err:
                db.session.rollback()
                ended[version_id] = str(err)
            db.session.remove()

    threads = [threading.Thread(target=decide, args=(id,)) for id in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended) == sorted((first, second))
    (winner,) = [id for id, outcome in ended.items() if outcome == "won"]
    (sentence,) = [outcome for outcome in ended.values() if outcome != "won"]
    assert "Compare with that version, then decide again." in sentence
    with app.app_context():
        assert (newest := live_version("slice")) and newest.id == winner


def test_the_first_promotion_of_a_kind_is_decided_once_too(any_database_app: Flask) -> None:
    app, ended = any_database_app, list[str]()
    with app.app_context():
        first, second = add_version("first-card"), add_version("second-card")
        seen = mark_of_live("slice")
        db.session.commit()
    decision = Decision(None, "Now.", None, seen=seen)

    def decide_too() -> None:
        with app.app_context():
            try:
                promote_as_admin(db.session.get_one(ModelVersion, second), decision)
                ended.append("won")
            except PromotionRefused as err:
                ended.append(str(err))
            db.session.rollback()
            db.session.remove()

    rival = threading.Thread(target=decide_too)
    with app.app_context():
        promote_as_admin(db.session.get_one(ModelVersion, first), decision)
        rival.start()
        rival.join(1)  # Unless it waits for the one that is not committed yet, it ends here.
        assert not ended
        db.session.commit()
        rival.join(60)
    assert len(ended) == 1 and "Compare with that version, then decide again." in ended[0]


def test_the_timeline_says_what_was_live_at_any_time(app: Flask, admin: FlaskClient) -> None:
    noon = utc_now() - timedelta(hours=5)
    with app.app_context():
        for hours, card_id in ((0, "old-card"), (2, "new-card")):
            version = db.session.get_one(ModelVersion, add_version(card_id))
            promotion = promote(version, None, f"Reason of {card_id}.")
            promotion.at = noon + timedelta(hours=hours)
            db.session.commit()

    def at(hours: float) -> str:
        moment = noon + timedelta(hours=hours)
        page = admin.get("/admin/models", query_string={"at": f"{moment:%Y-%m-%dT%H:%M:%S}"})
        assert page.status_code == 200
        return page.text

    assert ">AlexNet SVM · v1</a>, as trained; promoted by setup: “Reason of old-card.”" in at(1)
    assert ">AlexNet SVM · v2</a>, as trained; promoted by setup: “Reason of new-card.”" in at(3)
    assert "no slice model was live" in at(-1) and "no series model was live" in at(3)
    for wrong in ("noon", "2026-13-01T00:00", "9999-12-31T23:59:59-23:59"):
        answer = admin.get("/admin/models", query_string={"at": wrong})
        assert answer.status_code == 200 and "This is not a valid date and time" in answer.text
