"""The pages of evaluations: a version scored once on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from flask import Response, abort, flash, redirect, send_file, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import defer, joinedload
from wtforms import SelectChoice, SelectField
from wtforms.validators import InputRequired

from webapp.admin.operating_points import chosen_for
from webapp.admin.pages import blueprint, is_pending, live_page, warn_of_delay
from webapp.admin.runs import ready_datasets
from webapp.audit import record
from webapp.charts import calibration_chart, precision_overlay, roc_overlay
from webapp.display import excerpt
from webapp.extensions import db
from webapp.forms import PostedForm
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.models import (
    Act,
    Dataset,
    Evaluation,
    JobStatus,
    ModelVersion,
    cancel,
    new_id,
    queue_again,
)
from webapp.storage import MissingFile, storage

GONE = "The data set was deleted, and its evaluations with it."
LEVELS = ("patient", "slice")


class EvaluateForm(PostedForm):
    """The data set that a version is to be scored on."""

    dataset = SelectField(
        "Data set", validators=[InputRequired("Choose a data set that is ready.")]
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dataset.choices = [
            SelectChoice(id, name) for id, name in db.session.execute(ready_datasets())
        ]


def evaluations_of(version: ModelVersion) -> Sequence[Evaluation]:
    """Return the evaluations of a version, the newest first."""
    return db.session.scalars(
        select(Evaluation)
        .where(Evaluation.version_id == version.id)
        .options(
            joinedload(Evaluation.dataset).load_only(Dataset.name),
            defer(Evaluation.curves),
            defer(Evaluation.mistakes),
        )
        .order_by(Evaluation.created_at.desc(), Evaluation.id)
    ).all()


@blueprint.post("/models/<version_id>/evaluate")
def evaluate(version_id: str) -> ResponseReturnValue:
    """Queue an evaluation of a version; one that there is already is shown instead."""
    version = db.get_or_404(ModelVersion, version_id)
    form = EvaluateForm()
    if not form.validate_on_submit():
        flash("Choose a data set that is ready.", "warning")
        return redirect(url_for("admin.model", version_id=version_id, _anchor="evaluations"))
    same = (Evaluation.version_id == version.id, Evaluation.dataset_id == form.dataset.data)
    found = db.session.scalar(select(Evaluation.id).where(*same))
    if found is None:
        evaluation = Evaluation(
            id=new_id(),
            version_id=version.id,
            dataset_id=form.dataset.data,
            requested_by_id=current_user.id,
        )
        db.session.add(evaluation)
        record(Act.EVALUATION_REQUESTED, evaluation.id)
        try:
            db.session.commit()
        except IntegrityError:
            # Somebody else asked for the same at this moment, or deleted the data set.
            db.session.rollback()
            found = db.session.scalar(select(Evaluation.id).where(*same))
            if found is None:
                flash(GONE, "warning")
                return redirect(url_for("admin.model", version_id=version_id))
        else:
            found = evaluation.id
            if not nudge(TRAIN_MODEL):
                warn_of_delay()
    return redirect(url_for("admin.evaluation", evaluation_id=found))


@blueprint.get("/evaluations/<evaluation_id>")
@blueprint.get("/evaluations/<evaluation_id>/progress", endpoint="evaluation_progress")
def evaluation(evaluation_id: str) -> Response:
    """Show an evaluation: its progress, then figures, curves and the worst mistakes."""
    found = db.get_or_404(
        Evaluation,
        evaluation_id,
        options=[joinedload(Evaluation.version), joinedload(Evaluation.requested_by)],
    )
    result = found.result or {}
    return live_page(
        "evaluation",
        pending=is_pending(found),
        evaluation=found,
        result=found.result,
        charts=charts_of(found.curves or {}),
        notes=excerpt([*result.get("notes", []), *result.get("problems", [])]),
        chosen=chosen_for(found.version),
    )


def charts_of(curves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return by level the charts that its answers allow: "roc" and "precision" need both classes,
    "calibration" any answer.
    """
    charts: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        found = curves.get(level)
        if not found or not found["calibration"]:
            continue
        charts[level] = {"calibration": calibration_chart(found["calibration"])}
        if found["thresholds"]:
            own = {"own": found["thresholds"]}
            charts[level]["roc"] = roc_overlay(own)
            charts[level]["precision"] = precision_overlay(
                own, found["positive"], found["negative"]
            )
    return charts


@blueprint.post("/evaluations/<evaluation_id>/cancel")
def cancel_evaluation(evaluation_id: str) -> ResponseReturnValue:
    """Cancel a queued or running evaluation; its worker notices within a second or a scan."""
    found = db.get_or_404(Evaluation, evaluation_id)
    cancelled = cancel(Evaluation, Evaluation.id == evaluation_id)
    if cancelled:
        record(Act.EVALUATION_CANCELLED, evaluation_id)
    db.session.commit()
    if cancelled:
        storage.discard(found.storage_prefix)  # What a worker handed back.
    else:
        flash("This evaluation has already ended.", "warning")
    return redirect(url_for("admin.evaluation", evaluation_id=evaluation_id))


@blueprint.post("/evaluations/<evaluation_id>/retry")
def retry_evaluation(evaluation_id: str) -> ResponseReturnValue:
    """Queue a failed or canceled evaluation again."""
    queued = queue_again(Evaluation, Evaluation.id == evaluation_id)
    if queued:
        record(Act.EVALUATION_REQUESTED, evaluation_id)
    db.session.commit()
    if not queued:
        flash("Only failed or canceled evaluations can be started again.", "warning")
    elif not nudge(TRAIN_MODEL):
        warn_of_delay()
    return redirect(url_for("admin.evaluation", evaluation_id=evaluation_id))


@blueprint.get("/evaluations/<evaluation_id>/answers.csv")
def evaluation_answers(evaluation_id: str) -> ResponseReturnValue:
    """Send the table of all answers (`ml.evaluation.answers`)."""
    return stored_file(done(evaluation_id), "answers.csv", "text/csv")


@blueprint.get("/evaluations/<evaluation_id>/mistakes/<int:index>.png")
def mistake_picture(evaluation_id: str, index: int) -> ResponseReturnValue:
    """Send the picture of one of the worst mistakes."""
    found = done(evaluation_id)
    if index >= len(found.mistakes or ()):
        abort(404)
    return stored_file(found, found.mistake_key(index).rsplit("/", 1)[-1], "image/png")


def done(evaluation_id: str) -> Evaluation:
    """Return an evaluation that is done; 404 for others."""
    found = db.get_or_404(Evaluation, evaluation_id)
    if found.status != JobStatus.DONE:
        abort(404)
    return found


def stored_file(evaluation: Evaluation, name: str, mimetype: str) -> ResponseReturnValue:
    """Send a file of an evaluation."""
    try:
        content = storage.get(f"{evaluation.storage_prefix}/{name}")
    except MissingFile:
        abort(404)
    return send_file(
        BytesIO(content),
        mimetype=mimetype,
        download_name=name,
        as_attachment=mimetype == "text/csv",
        max_age=0,
    )
