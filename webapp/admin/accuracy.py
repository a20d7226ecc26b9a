"""The accuracy graph of a data set: all versions and architectures, with honest and leaked
protocols side by side.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Response, abort, make_response, render_template, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from ml.named_points import with_widths
from webapp.admin.pages import blueprint, is_pending, live_page
from webapp.admin.papers import PaperForm, expected_here_s, newest_experiment
from webapp.charts.accuracy import AccuracyRow, accuracy_chart
from webapp.display import display_name, name_of_version
from webapp.extensions import db
from webapp.learning.corrections import waiting_corrections
from webapp.models import Dataset, Evaluation, JobStatus, ModelVersion, PaperExperiment

METRICS = ("accuracy", "auroc", "sensitivity", "specificity")
LEVELS = ("slice", "patient")
COLUMNS = (
    "model",
    "from",
    "protocol",
    "level",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "link",
)
LEAKED = "leaked"
PROTOCOLS = ("honest", LEAKED)


@dataclass(frozen=True)
class Shown:
    """A figure of a model on a data set.

    Attributes:
        model: a version, or an architecture with how it was trained.
        source: "out of fold", "evaluation", "control" or "paper".
        protocol: "honest" or "leaked".
        metrics: by level and name, an `ml.figures.Estimate` as JSON.
        link: the page with details.
        version_id, evaluation_id: what it was computed for; None if it is not of that kind.
    """

    model: str
    source: str
    protocol: str
    metrics: Mapping[str, Mapping[str, Any]]
    link: str
    version_id: str | None = None
    evaluation_id: str | None = None


@blueprint.get("/datasets/<dataset_id>/accuracy")
@blueprint.get("/datasets/<dataset_id>/accuracy/progress", endpoint="accuracy_progress")
def accuracy(dataset_id: str) -> Response:
    """Show the accuracy graph of a data set, and the paper's experiment on it."""
    dataset = db.get_or_404(Dataset, dataset_id)
    metric, level = requested_figure()
    experiment = newest_experiment(dataset_id)
    rows = list(rows_of(dataset, experiment, metric, level))
    return live_page(
        "accuracy",
        pending=bool(experiment and is_pending(experiment)),
        dataset=dataset,
        experiment=experiment,
        metric=metric,
        level=level,
        metrics=METRICS,
        levels=LEVELS,
        chart=accuracy_chart(rows, metric) if rows else None,
        form=PaperForm(formdata=None),
        expected_s=expected_here_s(dataset),
        waiting=waiting_corrections(dataset_id),
    )


@blueprint.get("/datasets/<dataset_id>/accuracy.svg")
def accuracy_svg(dataset_id: str) -> ResponseReturnValue:
    """Send the graph as a file."""
    return graph_file(db.get_or_404(Dataset, dataset_id), *requested_figure()) or abort(404)


def graph_file(dataset: Dataset, metric: str, level: str) -> Response | None:
    """Return the graph as an SVG file; None if there is nothing to draw."""
    rows = list(rows_of(dataset, newest_experiment(dataset.id), metric, level))
    if not rows:
        return None
    content = render_template(
        "admin/accuracy.svg",
        chart=accuracy_chart(rows, metric),
        dataset=dataset,
        metric=metric,
        level=level,
    )
    return sent(content, "image/svg+xml", f"{file_name(dataset)}-{metric}-by-{level}.svg")


@blueprint.get("/datasets/<dataset_id>/accuracy.csv")
def accuracy_csv(dataset_id: str) -> ResponseReturnValue:
    """Send all figures as a table."""
    dataset = db.get_or_404(Dataset, dataset_id)
    written = io.StringIO()
    table = csv.DictWriter(written, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in table_of(dataset):
        table.writerow({name: as_text(row[name]) for name in COLUMNS})
    return sent(written.getvalue(), "text/csv", f"{file_name(dataset)}-accuracy.csv")


def table_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield all figures on a data set that have a value, as rows of `COLUMNS`, with the ids of
    their version and evaluation.
    """
    for shown in figures_on(dataset, newest_experiment(dataset.id)):
        facts = {
            "model": shown.model,
            "from": shown.source,
            "protocol": shown.protocol,
            "link": shown.link,
            "version_id": shown.version_id,
            "evaluation_id": shown.evaluation_id,
        }
        for level, metrics in shown.metrics.items():
            for metric in METRICS:
                figure = metrics.get(metric) or {}
                if figure.get("value") is not None:
                    ends = {name: figure.get(name) for name in ("value", "low", "high", "n")}
                    yield {**facts, "level": level, "metric": metric, **ends}


def requested_figure() -> tuple[str, str]:
    """Return the metric and the level in the query string, or the defaults."""
    metric, level = request.args.get("metric", ""), request.args.get("level", "")
    return (
        metric if metric in METRICS else METRICS[0],
        level if level in LEVELS else LEVELS[0],
    )


def rows_of(
    dataset: Dataset, experiment: PaperExperiment | None, metric: str, level: str
) -> Iterator[AccuracyRow]:
    """Yield the rows of the graph, each with the honest and the leaked figure of a model."""
    by_model: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for shown in figures_on(dataset, experiment):
        figure = (shown.metrics.get(level) or {}).get(metric) or {}
        if figure.get("value") is not None and shown.protocol in PROTOCOLS:
            source = "out of fold" if shown.source == "control" else shown.source
            by_model.setdefault((shown.model, source, shown.link), {})[shown.protocol] = figure
    for (model, source, link), figures in by_model.items():
        honest, leaked = figures.get("honest"), figures.get(LEAKED)
        if honest or leaked:
            yield AccuracyRow(model, source, link, honest, leaked)


def figures_on(dataset: Dataset, experiment: PaperExperiment | None) -> Iterator[Shown]:
    """Yield all figures of models on a data set."""
    yield from _of_paper(dataset, experiment)
    versions: Sequence[ModelVersion] = db.session.scalars(
        select(ModelVersion)
        .options(joinedload(ModelVersion.run))
        .order_by(ModelVersion.created_at, ModelVersion.id)
    ).all()
    for version in versions:
        yield from _out_of_fold(version, dataset)
    for evaluation in db.session.scalars(
        select(Evaluation)
        .where(Evaluation.dataset_id == dataset.id, Evaluation.status == JobStatus.DONE)
        .options(joinedload(Evaluation.version))
        .order_by(Evaluation.created_at, Evaluation.id)
    ):
        result = evaluation.result or {}
        yield Shown(
            name_of_version(evaluation.version),
            "evaluation",
            "honest",
            with_widths({level: result.get(level) or {} for level in LEVELS}),
            url_for("admin.evaluation", evaluation_id=evaluation.id),
            evaluation.version_id,
            evaluation.id,
        )


def _of_paper(dataset: Dataset, experiment: PaperExperiment | None) -> Iterator[Shown]:
    for cell in ((experiment.results or {}) if experiment else {}).get("cells", ()):
        restructured = ", restructured" if cell["restructured"] else ""
        # Honest and leaked cells share a row although their numbers of repetitions differ.
        copies = ", augmented" if cell["augmentation"] > 1 else ""
        yield Shown(
            f"{display_name(cell['architecture'])}{restructured}{copies}",
            "paper",
            cell["protocol"],
            cell["metrics"],
            url_for("admin.accuracy", dataset_id=dataset.id, _anchor="paper"),
        )


def _out_of_fold(version: ModelVersion, dataset: Dataset) -> Iterator[Shown]:
    card, name = version.card, dataset.name
    by_slice = (card.get("metrics_by_dataset") or {}).get(name)
    if not by_slice:
        return
    by_patient = (card.get("patient_metrics_by_dataset") or {}).get(name) or {}
    link = url_for("admin.model", version_id=version.id)
    title = name_of_version(version)
    metrics = with_widths({"slice": by_slice, "patient": by_patient})
    yield Shown(title, "out of fold", "honest", metrics, link, version.id)
    if len(card["metrics_by_dataset"]) > 1:
        return  # Its leaked control covers all of its data sets together.
    for control in card.get("controls") or ():
        if control["name"] == LEAKED and control.get("auroc"):
            figures = {metric: control.get(metric) for metric in ("accuracy", "auroc")}
            metrics = with_widths({"slice": figures})
            yield Shown(title, "control", LEAKED, metrics, link, version.id)


def as_text(value: object) -> str:
    """Return a cell of the table; text that looks like a spreadsheet formula is quoted."""
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def file_name(dataset: Dataset) -> str:
    """Return the name of a data set as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", dataset.name).strip("-.") or "data-set"


def sent(content: str, mimetype: str, name: str) -> Response:
    """Return a file as a download."""
    answer = make_response(content)
    answer.mimetype = mimetype
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer
