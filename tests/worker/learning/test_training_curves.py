"""The curves of a training as rows."""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import func, select

from ml.training.progress import Progress
from webapp.charts.over_time import training_charts
from webapp.extensions import db
from webapp.models import CURVE_STEPS, TrainingPoint, TrainingRun
from worker.learning.training_curves import AVERAGED_STEPS, Curves


@pytest.fixture
def run_id(any_worker_app: Flask) -> str:
    run = TrainingRun(architecture="alexnet", settings={}, initial_weights="random", seed=1)
    db.session.add(run)
    db.session.commit()
    return run.id


def report(curves: Curves, fraction: float, fold: int = 1, **metrics: float) -> None:
    curves.add(Progress(f"fold {fold} of 2", fraction, None, metrics))


def points() -> list[tuple[str, int, float, int | None]]:
    order = (TrainingPoint.metric, TrainingPoint.step)
    columns = (*order, TrainingPoint.value, TrainingPoint.epoch)
    return [tuple(row) for row in db.session.execute(select(*columns).order_by(*order))]


def test_metrics_are_averaged_over_a_thousandth_and_written_once(run_id: str) -> None:
    curves = Curves(run_id)
    report(curves, 0.0101, loss=1.0, epoch=1)
    report(curves, 0.0102, loss=2.0, epoch=1)
    curves.write()
    report(curves, 0.0103, loss=6.0, epoch=1)
    report(curves, 0.5, loss=0.5, epoch=2, fold_auroc=0.9)
    report(curves, 0.5, loss=float("nan"), epoch=2)
    curves.write()
    curves.write()
    db.session.commit()
    assert points() == [
        ("fold_auroc", 5000, 0.9, 2),
        ("loss", 100, 3.0, 1),
        ("loss", 5000, 0.5, 2),
    ]


def test_a_run_that_starts_over_replaces_what_it_repeats(run_id: str) -> None:
    for attempt, reached in ((1.0, 0.9), (2.0, 0.2)):
        curves = Curves(run_id)
        for fraction in (0.1, 0.2, reached):
            report(curves, fraction, loss=attempt)
            curves.write()
    db.session.commit()
    assert points() == [("loss", 1000, 2.0, None), ("loss", 2000, 2.0, None)]


def test_a_million_batches_make_no_more_rows_than_steps(run_id: str) -> None:
    curves = Curves(run_id)
    for batch in range(100_000):
        report(curves, batch / 100_000, loss=1.0)
        if batch % 10_000 == 0:
            curves.write()
    curves.write()
    db.session.commit()
    rows = db.session.scalar(select(func.count()).select_from(TrainingPoint))
    assert rows == CURVE_STEPS // AVERAGED_STEPS


def test_a_curve_is_written_at_once_where_nothing_could_be_written_for_long(run_id: str) -> None:
    curves = Curves(run_id)
    for epoch in range(CURVE_STEPS):
        report(curves, epoch / CURVE_STEPS, loss=1.0, validation_loss=1.0, epoch=epoch)
    curves.write()
    db.session.commit()
    rows = db.session.scalar(select(func.count()).select_from(TrainingPoint))
    assert rows == CURVE_STEPS // AVERAGED_STEPS + CURVE_STEPS


def test_a_point_on_held_back_images_belongs_to_its_own_fold_and_epoch(run_id: str) -> None:
    curves = Curves(run_id)
    for fold in (1, 2):
        for epoch in (1, 2, 3):
            done = (3 * (fold - 1) + epoch) / 6000
            report(curves, done, fold, validation_loss=10 * fold + epoch, epoch=epoch)
            report(curves, done, fold, fold_auroc=0.5 * fold)
            report(curves, done, min(fold + epoch // 3, 2), loss=1.0, epoch=epoch % 3 + 1)
    curves.write()
    db.session.commit()
    columns = TrainingPoint.stage, TrainingPoint.epoch, TrainingPoint.value
    of_epochs = select(*columns).where(TrainingPoint.metric == "validation_loss")
    assert sorted(tuple(row) for row in db.session.execute(of_epochs)) == [
        (f"fold {fold} of 2", epoch, 10 * fold + epoch) for fold in (1, 2) for epoch in (1, 2, 3)
    ]
    of_folds = select(TrainingPoint.stage, TrainingPoint.value)
    ended = db.session.execute(of_folds.where(TrainingPoint.metric == "fold_auroc"))
    assert sorted(tuple(row) for row in ended) == [("fold 1 of 2", 0.5), ("fold 2 of 2", 1.0)]


def test_folds_that_a_checkpoint_holds_keep_their_points(run_id: str) -> None:
    curves = Curves(run_id)
    for fold, fraction in ((1, 0.2), (2, 0.6)):
        report(curves, fraction, fold, loss=1.0, epoch=1)
        report(curves, fraction + 0.2, fold, fold_auroc=0.9)
    curves.write()
    resumed = Curves(run_id)
    report(resumed, 0.4, 1, fold_auroc=0.9)
    resumed.write()
    db.session.commit()
    losses = select(func.count()).where(TrainingPoint.metric == "loss")
    assert db.session.scalar(losses) == 2


def test_each_stage_is_a_line_and_a_single_point_a_dot() -> None:
    loss, area = training_charts(
        [
            ("loss", 0, 2.0, "fold 1"),
            ("loss", 250, 1.0, "fold 1"),
            ("loss", 500, 2.0, "fold 2"),
            ("loss", 1000, 0.0, "fold 2"),
            ("fold_auroc", 500, 0.9, "fold 1"),
        ],
        1000,
    )
    axes = loss.axes
    assert loss.lines == {
        "fold 1": axes.points([(0, 1), (0.25, 0.5)]),
        "fold 2": axes.points([(0.5, 1), (1, 0)]),
    }
    assert (area.lines, area.dots) == ({}, ((axes.x(0.5), axes.y(1), "fold 1: 0.900"),))


def test_the_loss_on_held_back_images_is_drawn_into_the_chart_of_the_loss_which_comes_first() -> (
    None
):
    loss, area = training_charts(
        [
            ("validation_loss", 250, 3.0, "fold 1"),
            ("validation_loss", 500, 4.0, "fold 1"),
            ("validation_loss", 600, 2.0, "fold 2"),
            ("validation_auroc", 250, 0.5, "fold 1"),
            ("validation_auroc", 500, 1.0, "fold 1"),
            ("loss", 0, 2.0, "fold 1"),
            ("loss", 500, 0.0, "fold 1"),
        ],
        1000,
    )
    axes = loss.axes
    assert (loss.metric, loss.highest, area.metric) == ("loss", 4.0, "validation_auroc")
    assert loss.lines == {"fold 1": axes.points([(0, 0.5), (0.5, 0)])}
    assert loss.validation == {"fold 1": axes.points([(0.25, 0.75), (0.5, 1)])}
    assert loss.dots == ((axes.x(0.6), axes.y(0.5), "fold 2, held back: 2.000"),)
    assert area.lines == {"fold 1": axes.points([(0.25, 0.5), (0.5, 1)])} and not area.validation


def test_a_loss_that_rises_on_held_back_images_is_never_cut_off() -> None:
    learned = [("loss", step, 0.05, "fold 1") for step in range(100)]
    rising = [("validation_loss", 10 * at, 0.6 + 0.1 * at, "fold 1") for at in range(10)]
    (loss,) = training_charts([*learned, *rising], 100)
    assert (loss.is_cut, loss.highest) == (False, pytest.approx(1.5))


def test_a_few_outlying_values_do_not_flatten_the_curve() -> None:
    values = [32.0, 1.0, *[0.5] * 20]
    (loss,) = training_charts(
        [("loss", step, value, "fold 1") for step, value in enumerate(values)], 100
    )
    assert (loss.is_cut, loss.highest) == (True, 0.75)
    axes = loss.axes
    first, second, third, *_ = loss.lines["fold 1"].split()
    assert [first, second, third] == axes.points([(0, 1), (0.01, 1), (0.02, 0.5 / 0.75)]).split()
