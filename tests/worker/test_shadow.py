"""A candidate that answers live scans in shadow, and every way in which that ends."""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import select, update

from ml.inference.predictor import Predictor
from tests.worker.conftest import install_model, picture, submit
from webapp.admin.promotion_effects import effect_of, find_out
from webapp.deletion import delete_scan
from webapp.extensions import database_now, db
from webapp.models import (
    JobStatus,
    ModelVersion,
    Prediction,
    Promotion,
    Scan,
    Shadow,
    ShadowAnswer,
    end_shadow,
    promote,
    score_again,
    shadows,
    start_shadow,
)
from webapp.storage import storage
from worker import background, predictors, shadow, sweep, tasks


def begun(*, reads: str = "slice", gain: float = 2.0) -> Shadow:
    """Make a live version and a candidate, which runs in shadow."""
    install_model(reads=reads)
    row = start_shadow(install_model(live=False, reads=reads, gain=gain), None)
    db.session.commit()
    return row


def the_shadow() -> Shadow:
    """Return the only one, as the database has it now."""
    db.session.expire_all()
    return db.session.scalars(select(Shadow)).one()


def answers() -> list[ShadowAnswer]:
    """Return all answers, the oldest first."""
    db.session.expire_all()
    rows = db.session.scalars(select(ShadowAnswer).order_by(ShadowAnswer.queued_at)).all()
    db.session.commit()
    return list(rows)


def test_each_live_scan_is_answered_by_the_candidate_too_and_after_all_others(
    any_worker_app: Flask,
) -> None:
    begun()
    ids = submit(picture(200), picture(20), b"no picture")
    tasks.predict_scans()
    rows = answers()
    assert {row.scan_id for row in rows} == set(ids[:2])
    for row in rows:
        live = db.session.scalars(select(Prediction).where(Prediction.scan_id == row.scan_id)).one()
        assert (row.status, row.live_probability) == ("done", live.probability)
        assert (row.live_state, row.state) == (live.state, live.state)
        assert row.probability is not None and row.probability != live.probability
        assert row.seconds and row.finished_at and live.scan.finished_at
        assert row.started_at and row.started_at >= live.scan.finished_at
    # A scan that is scored again is not answered twice; one that is deleted takes its answer along.
    assert score_again(ids[0])
    db.session.commit()
    tasks.predict_scans()
    assert len(answers()) == 2
    delete_scan(ids[0])
    assert [row.scan_id for row in answers()] == [ids[1]]


def test_a_waiting_scan_goes_first_even_in_the_middle_of_a_series(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun()
    first = submit(picture(200))
    monkeypatch.setattr(shadow, "answer_next_in_shadow", lambda: False)
    tasks.predict_scans()
    monkeypatch.undo()
    assert [row.status for row in answers()] == ["queued"]
    monkeypatch.setattr(background, "LOOK_S", 0.0)
    later = submit(picture(20))
    assert shadow.answer_next_in_shadow()
    assert [(row.status, row.attempts) for row in answers()] == [("queued", 0)]
    tasks.predict_scans()
    assert [row.status for row in answers()] == ["done", "done"]
    assert [row.scan_id for row in answers()] == [*first, *later]


def test_more_than_may_wait_are_skipped_and_counted(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun()
    monkeypatch.setattr(shadows, "MOST_WAITING", 1)
    submit(picture(200), picture(20), picture(30))
    tasks.predict_scans()
    assert (len(answers()), the_shadow().skipped) == (1, 2)
    # A file that is gone says nothing of the candidate.
    monkeypatch.setattr(shadow, "answer_next_in_shadow", lambda: False)
    (scan_id,) = submit(picture(210))
    tasks.predict_scans()
    monkeypatch.undo()
    storage.discard(db.session.get_one(Scan, scan_id).original_key)
    tasks.predict_scans()
    assert (len(answers()), the_shadow().skipped, the_shadow().ended_at) == (1, 3, None)


def test_it_ends_after_some_failures_in_a_row_and_no_verdict_suffers(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = begun().version
    predict = Predictor.predict

    def fail(self: Predictor, *given: object, **how: object) -> object:
        if self.card.id == candidate.card_id and not shadow_may_work:
            raise ValueError("a bug")
        return predict(self, *given, **how)  # type: ignore[arg-type]

    shadow_may_work = True
    predictors.predictor_for(candidate)  # Its check of the phantom passes.
    monkeypatch.setattr(Predictor, "predict", fail)
    submit(picture(200))
    tasks.predict_scans()
    shadow_may_work = False
    submit(*[picture(20 + number) for number in range(8)])
    tasks.predict_scans()
    row = the_shadow()
    sentence = (
        "It failed on 5 scans in a row. The last error was: The candidate failed (ValueError)."
    )
    assert row.ended_because == sentence and row.ended_at
    assert sorted(one.status for one in answers()) == [*["cancelled"] * 3, "done", *["failed"] * 5]
    assert {scan.status for scan in db.session.scalars(select(Scan))} == {JobStatus.DONE}
    submit(picture(40))
    tasks.predict_scans()
    assert len(answers()) == 9


def test_a_candidate_whose_files_are_damaged_ends_it_with_a_sentence(worker_app: Flask) -> None:
    candidate = begun().version
    storage.put(f"{candidate.storage_prefix}/head.onnx", b"damaged")
    submit(picture(200), picture(20))
    tasks.predict_scans()
    because = the_shadow().ended_because
    assert because and because.startswith("The candidate cannot be used: Model version")
    assert [row.status for row in answers()] == ["cancelled", "cancelled"]
    assert {scan.status for scan in db.session.scalars(select(Scan))} == {JobStatus.DONE}


def test_it_ends_when_another_version_goes_live_or_itself_or_it_is_blocked(
    worker_app: Flask,
) -> None:
    row = begun()
    sweep.sweep()
    assert the_shadow().ended_at is None
    promote(row.version, None, "It is better.")
    db.session.commit()
    sweep.sweep()
    assert the_shadow().ended_because == "This version went live."
    for act, sentence in (
        (lambda: install_model(), "Another version went live, so the comparison ended"),
        (block, "It leaks."),
    ):
        again = start_shadow(install_model(live=False), None)
        db.session.commit()
        act()
        sweep.sweep()
        db.session.expire_all()
        assert sentence in (db.session.get_one(Shadow, again.id).ended_because or "")


def block() -> None:
    """Block the version that is in shadow."""
    in_shadow = select(Shadow.version_id).where(Shadow.ended_at.is_(None))
    db.session.execute(
        update(ModelVersion)
        .where(ModelVersion.id.in_(in_shadow))
        .values(blocked_because="It leaks.")
    )
    db.session.commit()


def test_a_worker_that_dies_three_times_fails_the_answer_alone(worker_app: Flask) -> None:
    begun()
    submit(picture(200))
    tasks.predict_scans()
    db.session.execute(
        update(ShadowAnswer).values(
            status=JobStatus.RUNNING,
            lease_owner="a dead worker",
            lease_expires_at=database_now(-1),
            counted_deaths=2,
            death_counts=True,
        )
    )
    db.session.commit()
    sweep.sweep()
    (row,) = answers()
    assert row.status == "failed" and the_shadow().ended_at is None
    assert (
        row.error == "The worker stopped three times while it was analyzing this scan in"
        " shadow mode."
    )


def test_what_a_worker_queues_while_the_shadow_ends_is_not_answered(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun()
    monkeypatch.setattr(shadow, "answer_next_in_shadow", lambda: False)
    submit(picture(200))
    tasks.predict_scans()
    monkeypatch.undo()
    # As on PostgreSQL, where the end does not see a row that is committed after it.
    db.session.execute(update(Shadow).values(ended_at=database_now(), ended_because="Stopped."))
    db.session.commit()
    tasks.predict_scans()
    assert [(one.status, one.probability) for one in answers()] == [("cancelled", None)]


def test_what_waits_ends_with_the_shadow_and_what_runs_is_dropped(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = begun()
    submit(picture(200), picture(20))

    def stopped_meanwhile(answer: ShadowAnswer) -> object:
        end_shadow(row.id, "ann stopped it.")
        db.session.commit()
        return real(answer)

    real = shadow._answered
    monkeypatch.setattr(shadow, "_answered", stopped_meanwhile)
    tasks.predict_scans()
    assert [(one.status, one.probability) for one in answers()] == [("cancelled", None)] * 2


def test_the_version_before_answers_the_scans_of_a_promotion_once_and_no_others(
    any_worker_app: Flask,
) -> None:
    first = install_model(gain=8.0)
    first.card = first.card | {
        "threshold": 0.5,
        "uncertain_low": 0.4,
        "uncertain_high": 0.6,
        "metrics": {},
    }
    submit(picture(250))
    tasks.predict_scans()
    promoted = install_model(gain=1.0)  # Its probabilities lie nearer to one half.
    ids = submit(picture(250), picture(20), picture(150))
    tasks.predict_scans()
    install_model(gain=4.0)
    promotion = db.session.scalars(
        select(Promotion).where(Promotion.version_id == promoted.id)
    ).one()
    effect = effect_of(promotion)
    assert {one.scan_id for one in effect.results} == set(ids)
    assert not effect.beside and effect.missing == 3
    row = find_out(promotion, None)
    db.session.commit()
    submit(picture(200))
    tasks.predict_scans()
    assert {answer.scan_id for answer in answers()} == set(ids)
    sweep.sweep()
    assert the_shadow().ended_because == shadows.PAST_IS_ANSWERED
    effect = effect_of(promotion)
    assert not effect.missing and effect.running is None
    assert [one.state for one in effect.beside] != [one.result.state for one in effect.beside]
    # What it says is what it answers when it is live again.
    promote(db.session.get_one(ModelVersion, row.version_id), None, "back")
    for scan_id in ids:
        assert score_again(scan_id)
    db.session.commit()
    tasks.predict_scans()
    values = {one.result.scan_id: (one.probability, one.state) for one in effect.beside}
    for scan_id in ids:
        now = db.session.scalars(select(Prediction).where(Prediction.scan_id == scan_id)).one()
        assert values[scan_id] == (now.probability, now.state)
