"""Pages about data sets whose content a train worker computes: the index of images, previews of
splits, and differences between data sets.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from flask import Response, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from wtforms import Form, IntegerField
from wtforms.validators import InputRequired, NumberRange

from webapp.admin.pages import blueprint, is_pending, live_page, warn_of_delay
from webapp.charts.distributions import distribution_chart
from webapp.charts.intervals import interval_chart
from webapp.extensions import LARGEST_INTEGER, database_now, db, noting
from webapp.forms import is_id
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.learning.corrections import waiting_corrections
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetAnalysis,
    JobStatus,
    analysis_of,
    new_id,
    queue_again,
)

MOST_COMPARED = 4
MOST_SPLITS = 50
"""Maximum number of split previews kept for a data set; the oldest are deleted."""
OFFERED = 100
FOLDS, SEED = 5, 0
DISTRIBUTIONS = {
    "grays": ("Gray levels inside the head", "black", "white"),
    "head": ("Size of the head in the image", "0", "fills it"),
    "size": ("Longer side of the image", "0", None),
}
"""The charts of a data set, with the upper ends of their axes; None means the largest value, in
px.
"""
CLASSES = {"negative": "normal", "positive": "hemorrhage", "unlabeled": "without a label"}
"""The series of a chart, in the order of their colors, with their names."""


class SplitForm(Form):
    """The folds and the seed of a training run; part of the address."""

    folds = IntegerField(
        "Folds",
        [InputRequired("Enter 2 to 10 folds."), NumberRange(2, 10, "Enter 2 to 10 folds.")],
        default=FOLDS,
        render_kw={"type": "number", "min": 2, "max": 10},
    )
    seed = IntegerField(
        "Random seed",
        [
            InputRequired("Enter a seed from 0."),
            NumberRange(0, LARGEST_INTEGER, f"Enter a seed from 0 to {LARGEST_INTEGER}."),
        ],
        default=SEED,
        render_kw={"type": "number", "min": 0},
    )


@blueprint.post("/datasets/<dataset_id>/images")
def index_images(dataset_id: str) -> ResponseReturnValue:
    """Have a worker index the images of a data set that was imported before imports did this, or
    retry.
    """
    dataset = db.get_or_404(Dataset, dataset_id)
    if dataset.status != JobStatus.DONE:
        flash("This data set is not ready.", "warning")
        return redirect(url_for("admin.dataset", dataset_id=dataset_id))
    if not index(dataset_id):
        warn_of_delay()
    return redirect(url_for("admin.images", dataset_id=dataset_id))


def index(dataset_id: str) -> bool:
    """Queue the index of the images of a data set, unless it exists or is queued; return whether a
    worker could be notified.
    """
    known = analysis_of(dataset_id, AnalysisKind.IMAGES)
    if known is None:
        return ask(dataset_id, AnalysisKind.IMAGES)
    retry_question(known)
    return True


@blueprint.get("/datasets/<dataset_id>/split")
@blueprint.get("/datasets/<dataset_id>/split/progress", endpoint="split_progress")
def split(dataset_id: str) -> Response:
    """Show how a training run on a data set alone would split it."""
    dataset = db.get_or_404(Dataset, dataset_id)
    form = SplitForm(request.args, folds=FOLDS, seed=SEED)
    is_valid = form.validate() if {"folds", "seed"} & request.args.keys() else True
    index_job = analysis_of(dataset_id, AnalysisKind.IMAGES)
    answer = None
    if is_valid and index_job is not None and index_job.status == JobStatus.DONE:
        answer = split_preview(dataset_id, int(form.folds.data or 0), int(form.seed.data or 0))
    return live_page(
        "split",
        pending=answer is not None and is_pending(answer),
        dataset=dataset,
        index_job=index_job,
        form=form,
        preview=answer,
        waiting=waiting_corrections(dataset_id),
    )


@blueprint.get("/datasets/compare")
@blueprint.get("/datasets/compare/progress", endpoint="compare_datasets_progress")
def compare_datasets() -> Response:
    """Show several data sets side by side, and how well simple features tell them apart."""
    offered = db.session.execute(
        select(Dataset.id, Dataset.name)
        .where(Dataset.status == JobStatus.DONE)
        .order_by(Dataset.name)
        .limit(OFFERED)
    ).all()
    ids = [value for value in dict.fromkeys(request.args.getlist("set")) if is_id(value)]
    chosen = db.session.scalars(
        select(Dataset)
        .where(Dataset.id.in_(ids[:MOST_COMPARED]), Dataset.status == JobStatus.DONE)
        .order_by(Dataset.name)
    ).all()
    indexed = set(
        db.session.scalars(
            select(DatasetAnalysis.dataset_id).where(
                DatasetAnalysis.dataset_id.in_([dataset.id for dataset in chosen]),
                DatasetAnalysis.kind == AnalysisKind.IMAGES,
                DatasetAnalysis.status == JobStatus.DONE,
            )
        )
    )
    pairs = [
        {"one": one, "other": other, "comparison": source_comparison(one, other)}
        for one, other in combinations(chosen, 2)
        if {one.id, other.id} <= indexed
    ]
    return live_page(
        "compare_datasets",
        pending=any(is_pending(pair["comparison"]) for pair in pairs if pair["comparison"]),
        offered=offered,
        chosen=chosen,
        most=MOST_COMPARED,
        too_many=len(ids) > MOST_COMPARED,
        not_indexed=[dataset for dataset in chosen if dataset.id not in indexed],
        pairs=[{**pair, "chart": _probes_chart(pair["comparison"])} for pair in pairs],
        charts=compared_charts(chosen),
    )


def split_preview(dataset_id: str, folds: int, seed: int) -> DatasetAnalysis | None:
    """Return the preview of a split of a single data set, or the job that computes it."""
    return answer_to(dataset_id, AnalysisKind.SPLIT, f"folds={folds} seed={seed}")


def source_comparison(one: Dataset, other: Dataset) -> DatasetAnalysis | None:
    first, second = sorted((one, other), key=lambda dataset: dataset.id)
    return answer_to(first.id, AnalysisKind.SOURCES, second.id, other_id=second.id)


def _probes_chart(analysis: DatasetAnalysis | None) -> Any:
    if analysis is None or not analysis.result:
        return None
    return interval_chart([(probe["name"], probe["auroc"]) for probe in analysis.result["probes"]])


def compared_charts(datasets: Any) -> list[dict[str, Any]]:
    """Return a chart of each distribution with a line for each data set."""
    charts = []
    for name, (title, low_text, high_text) in DISTRIBUTIONS.items():
        known = [
            (dataset.name, distributions[name])
            for dataset in datasets
            if (distributions := (dataset.exploration or {}).get("distributions"))
            and "all" in distributions[name]["series"]
        ]
        if not known:
            continue
        high = max(distribution["high"] for _, distribution in known)
        series = {
            # On the axis of the data set with the largest values.
            dataset: _on_axis(distribution["series"]["all"], distribution["high"], high)
            for dataset, distribution in known
        }
        chart = distribution_chart(series, 0, high, cuts_ends=name == "grays")
        charts.append(_chart(name, title, low_text, high_text, chart))
    return charts


def distribution_charts(dataset: Dataset) -> list[dict[str, Any]]:
    """Return the charts of a data set: each distribution by class, and by source if it has
    several.
    """
    distributions = (dataset.exploration or {}).get("distributions")
    if not distributions:
        return []
    charts = []
    for name, (title, low_text, high_text) in DISTRIBUTIONS.items():
        series = distributions[name]["series"]
        by_class = {text: series[key] for key, text in CLASSES.items() if key in series}
        by_source = {
            key.removeprefix("source ") or "no folder": shares
            for key, shares in series.items()
            if key.startswith("source ")
        }
        for by, lines in (("class", by_class), ("source", by_source)):
            ends = distributions[name]["low"], distributions[name]["high"]
            chart = distribution_chart(lines, *ends, cuts_ends=name == "grays")
            if chart:
                text = f"{title}, by {by}"
                charts.append(_chart(f"{name}-{by}", text, low_text, high_text, chart))
    return charts


def _chart(
    name: str, title: str, low_text: str, high_text: str | None, chart: Any
) -> dict[str, Any]:
    return {
        "id": name,
        "title": title,
        "low_text": low_text,
        "high_text": high_text or f"{chart.high:g} px",
        "chart": chart,
    }


def _on_axis(shares: list[float], own_high: float, high: float) -> list[float]:
    """Return shares of bins up to `own_high` as shares of as many bins up to `high`; each share is
    assigned to the bin that contains its bin's middle.
    """
    if own_high == high:
        return shares
    moved = [0.0] * len(shares)
    for number, share in enumerate(shares):
        middle = (number + 0.5) / len(shares) * own_high / high
        moved[min(int(middle * len(shares)), len(shares) - 1)] += share
    return moved


def answer_to(
    dataset_id: str, kind: AnalysisKind, question: str, other_id: str | None = None
) -> DatasetAnalysis | None:
    """Return the result of an analysis, or the job that computes it, which is queued if it does not
    exist yet.
    """
    analysis = analysis_of(dataset_id, kind, question)
    if analysis is None:
        ask(dataset_id, kind, question, other_id)
        analysis = analysis_of(dataset_id, kind, question)
    return analysis


def ask(
    dataset_id: str, kind: AnalysisKind, question: str = "", other_id: str | None = None
) -> bool:
    """Queue an analysis for a train worker; the oldest split previews are deleted to make room.
    Return whether a worker could be notified.
    """
    row = DatasetAnalysis(
        id=new_id(),
        kind=kind,
        dataset_id=dataset_id,
        other_id=other_id,
        question=question,
        queued_at=database_now(),
    )
    try:
        with noting():
            old = (
                select(DatasetAnalysis.id)
                .where(
                    DatasetAnalysis.dataset_id == dataset_id,
                    DatasetAnalysis.kind == AnalysisKind.SPLIT,
                )
                .order_by(DatasetAnalysis.created_at.desc())
                .offset(MOST_SPLITS)
            )
            surplus = db.session.scalars(old).all()
            db.session.execute(delete(DatasetAnalysis).where(DatasetAnalysis.id.in_(surplus)))
            db.session.add(row)
    except IntegrityError:
        db.session.rollback()  # The same analysis was queued meanwhile, or the data set deleted.
    return nudge(TRAIN_MODEL)


def retry_question(analysis: DatasetAnalysis) -> bool:
    """Queue a failed analysis again, and commit; return False if it had not failed."""
    again = queue_again(DatasetAnalysis, DatasetAnalysis.id == analysis.id)
    if again:
        db.session.commit()
        nudge(TRAIN_MODEL)
    return again


@blueprint.post("/questions/<analysis_id>/retry")
def ask_again(analysis_id: str) -> ResponseReturnValue:
    """Queue a failed analysis again, and return to its page."""
    analysis = db.get_or_404(DatasetAnalysis, analysis_id)
    retry_question(analysis)
    if analysis.kind == AnalysisKind.SOURCES:
        ids = [analysis.dataset_id, analysis.other_id]
        return redirect(url_for("admin.compare_datasets", set=ids))
    if analysis.kind == AnalysisKind.SPLIT:
        settings: dict[str, Any] = dict(part.split("=") for part in analysis.question.split())
        return redirect(url_for("admin.split", dataset_id=analysis.dataset_id, **settings))
    return redirect(url_for("admin.images", dataset_id=analysis.dataset_id))
