"""The pages of training runs: the list with its filters, and each run with its progress."""

from __future__ import annotations

from typing import Any

from flask import Response, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import select
from sqlalchemy.orm import joinedload, selectinload, undefer

from ml.catalogue import ARCHITECTURES
from webapp.admin.pages import (
    blueprint,
    cancel_job,
    flash_start,
    is_pending,
    live_page,
    page_of,
    requested_tab,
    start_again,
)
from webapp.admin.run_form import DescribeForm
from webapp.admin.run_query import SORTS, requested_runs, tags_in_use
from webapp.admin.version_figures import CARD_TABS, figures_of
from webapp.audit import record
from webapp.charts.over_time import TrainingChart, training_charts
from webapp.charts.roc import roc_chart
from webapp.extensions import db
from webapp.models import (
    CURVE_STEPS,
    Act,
    Dataset,
    JobStatus,
    ModelVersion,
    TrainingPoint,
    TrainingRun,
)
from webapp.storage import storage

LINES_SHOWN = 40
"""Number of lines shown from the end of a run's log."""
TABS = {"run": "Run", **CARD_TABS}
NOT_RELAUNCHED = "Only failed or canceled runs can be relaunched."


@blueprint.get("/runs")
@blueprint.get("/runs/progress", endpoint="runs_progress")
def runs() -> Response:
    """List the training runs that match the filters in the address."""
    chosen = requested_runs(request.args)
    page = page_of(
        TrainingRun,
        select(
            TrainingRun,
            ModelVersion.id,
            ModelVersion.card[("metrics", "auroc", "value")].as_float(),
        )
        .outerjoin(TrainingRun.version)
        .options(
            selectinload(TrainingRun.datasets).load_only(Dataset.name),
            joinedload(TrainingRun.launched_by),
        )
        .where(*chosen.where)
        .order_by(*chosen.order),
        *chosen.where,
    )
    return live_page(
        "runs",
        pending=any(is_pending(row[0]) for row in page.rows),
        page=page,
        filters=chosen.filters,
        states=list(JobStatus),
        architectures=list(ARCHITECTURES),
        datasets=db.session.execute(select(Dataset.id, Dataset.name).order_by(Dataset.name)).all(),
        tags=tags_in_use(),
        sorts={name: title for name, (title, _) in SORTS.items()},
    )


@blueprint.get("/runs/<run_id>")
@blueprint.get("/runs/<run_id>/progress", endpoint="run_progress")
def run(run_id: str) -> Response:
    """Show a training run: its progress, then the model it created."""
    row = db.get_or_404(
        TrainingRun,
        run_id,
        options=[
            joinedload(TrainingRun.version),
            joinedload(TrainingRun.launched_by),
            selectinload(TrainingRun.datasets).load_only(Dataset.name, Dataset.fingerprint),
            undefer(TrainingRun.log),
        ],
    )
    version = row.version
    return live_page(
        "run",
        pending=is_pending(row),
        run=row,
        log=(row.log or "").splitlines()[-LINES_SHOWN:],
        form=DescribeForm(name=row.name, tags=", ".join(row.tags), notes=row.notes, formdata=None),
        version=version,
        tabs=TABS,
        tab=requested_tab(TABS) if version else "run",
        curves=curves_of(run_id),
        roc=roc_chart(version.card) if version else None,
        figures=figures_of(version) if version else None,
    )


@blueprint.post("/runs/<run_id>/describe")
def describe_run(run_id: str) -> ResponseReturnValue:
    """Change name, tags and notes of a run."""
    described = db.get_or_404(TrainingRun, run_id)
    form = DescribeForm()
    if form.validate_on_submit():
        form.describe(described)
        record(Act.RUN_DESCRIBED, run_id)
        db.session.commit()
        flash("Saved.", "success")
    else:
        for errors in form.errors.values():
            flash(" ".join(errors), "warning")
    return redirect(url_for("admin.run", run_id=run_id, _anchor="about"))


def curves_of(run_id: str) -> tuple[TrainingChart, ...]:
    """Return a chart for each metric that the folds of a run have reported; controls are left out,
    because they have no signal to follow.
    """
    points = db.session.execute(
        select(TrainingPoint.metric, TrainingPoint.step, TrainingPoint.value, TrainingPoint.stage)
        .where(TrainingPoint.run_id == run_id, ~TrainingPoint.stage.startswith("control "))
        .order_by(TrainingPoint.metric.desc(), TrainingPoint.step)
    )
    return training_charts(((row[0], row[1], row[2], row[3]) for row in points), CURVE_STEPS)


@blueprint.post("/runs/<run_id>/cancel")
def cancel_run(run_id: str) -> ResponseReturnValue:
    """Cancel a queued or running training run; its worker notices within a second, or after its
    current batch.
    """
    if not stop_run(run_id):
        flash("This run does not exist or has already finished.", "warning")
    return redirect(url_for("admin.run", run_id=run_id))


def stop_run(run_id: str) -> bool:
    """Cancel a training run, and commit; False if it does not exist, or has ended."""
    cancelled = cancel_job(TrainingRun, run_id, Act.RUN_CANCELLED)
    if cancelled:
        storage.discard(f"checkpoints/{run_id}.zip")
    return cancelled


@blueprint.post("/runs/<run_id>/retry")
def retry_run(run_id: str) -> ResponseReturnValue:
    """Queue a failed or canceled run again, with the same settings."""
    flash_start(restart_run(run_id), NOT_RELAUNCHED)
    return redirect(url_for("admin.run", run_id=run_id))


def restart_run(run_id: str) -> bool | None:
    """Queue a run again, with the same settings; return what `start_again` returns."""
    fresh: dict[str, Any] = {"eta_s": None, "current_metrics": {}}
    return start_again(TrainingRun, run_id, Act.RUN_RETRIED, **fresh)
