"""The pages of evaluations: a version scored once on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from flask import Response, abort, flash, redirect, request, send_file, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import defer, joinedload
from wtforms import SelectChoice, SelectField
from wtforms.validators import InputRequired

from ml.named_points import with_widths
from webapp.admin.operating_points import chosen_for
from webapp.admin.pages import (
    blueprint,
    cancel_job,
    flash_start,
    is_pending,
    live_page,
    start_again,
    warn_of_delay,
)
from webapp.admin.run_form import ready_datasets
from webapp.admin.version_figures import charts_of, differ_by_patient, levels_shown
from webapp.audit import record
from webapp.display import excerpt
from webapp.extensions import db
from webapp.forms import PostedForm
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.learning.confirmed import RequestRefused
from webapp.models import (
    Act,
    Dataset,
    Evaluation,
    JobStatus,
    ModelVersion,
    new_id,
)
from webapp.storage import MissingFile, storage

GONE = "The data set and its evaluations were deleted."
NOT_READY = "Choose a data set that is ready."
ENDED = "This evaluation has already ended."
NOT_RESTARTED = "Only failed or canceled evaluations can be started again."


class EvaluateForm(PostedForm):
    """The data set to score a version on."""

    dataset = SelectField(
        "Data set", validators=[InputRequired("Choose a data set that is ready.")]
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dataset.choices = [
            SelectChoice(id, name) for id, name in db.session.execute(ready_datasets())
        ]


def evaluations_of(version: ModelVersion) -> Sequence[Evaluation]:
    """Return the evaluations of a version, newest first."""
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
    """Queue an evaluation of a version, or show the existing one."""
    version = db.get_or_404(ModelVersion, version_id)
    form = EvaluateForm()
    if not form.validate_on_submit():
        flash(NOT_READY, "warning")
        return redirect(url_for("admin.model", version_id=version_id, show="evaluations"))
    try:
        evaluation_id, was_nudged = request_evaluation(
            version.id, form.dataset.data, current_user.id
        )
    except RequestRefused as err:
        flash(str(err), "warning")
        return redirect(url_for("admin.model", version_id=version_id, show="evaluations"))
    if not was_nudged:
        warn_of_delay()
    return redirect(url_for("admin.evaluation", evaluation_id=evaluation_id))


def request_evaluation(version_id: str, dataset_id: str, user_id: str) -> tuple[str, bool]:
    """Queue an evaluation of a version on a data set, unless there is one already; return its id,
    and whether a worker could be notified.

    Raises:
        RequestRefused: the data set was deleted meanwhile.
    """
    same = (Evaluation.version_id == version_id, Evaluation.dataset_id == dataset_id)
    known_id = db.session.scalar(select(Evaluation.id).where(*same))
    if known_id is not None:
        return known_id, True
    evaluation = Evaluation(
        id=new_id(), version_id=version_id, dataset_id=dataset_id, requested_by_id=user_id
    )
    db.session.add(evaluation)
    record(Act.EVALUATION_REQUESTED, evaluation.id)
    try:
        db.session.commit()
    except IntegrityError as err:
        # The same evaluation was requested at the same time, or the data set was deleted.
        db.session.rollback()
        known_id = db.session.scalar(select(Evaluation.id).where(*same))
        if known_id is None:
            raise RequestRefused(GONE) from err
        return known_id, True
    return evaluation.id, nudge(TRAIN_MODEL)


@blueprint.get("/evaluations/<evaluation_id>")
@blueprint.get("/evaluations/<evaluation_id>/progress", endpoint="evaluation_progress")
def evaluation(evaluation_id: str) -> Response:
    """Show an evaluation: its progress, then figures, curves and the worst mistakes."""
    row = db.get_or_404(
        Evaluation,
        evaluation_id,
        options=[joinedload(Evaluation.version), joinedload(Evaluation.requested_by)],
    )
    result = row.result or {}
    levels = levels_shown(differ_by_patient(result.get("patient"), result.get("slice")))
    return live_page(
        "evaluation",
        pending=is_pending(row),
        evaluation=row,
        result=with_widths(row.result),
        levels=levels,
        charts=charts_of(row.curves or {}, levels),
        notes=excerpt([*result.get("notes", []), *result.get("problems", [])]),
        chosen=chosen_for(row.version),
    )


@blueprint.post("/evaluations/<evaluation_id>/cancel")
def cancel_evaluation(evaluation_id: str) -> ResponseReturnValue:
    """Cancel a queued or running evaluation; its worker notices within a second, or after its
    current scan.
    """
    if not stop_evaluation(db.get_or_404(Evaluation, evaluation_id)):
        flash(ENDED, "warning")
    return redirect(url_for("admin.evaluation", evaluation_id=evaluation_id))


def stop_evaluation(evaluation: Evaluation) -> bool:
    """Cancel an evaluation, and commit; False if it has ended."""
    cancelled = cancel_job(Evaluation, evaluation.id, Act.EVALUATION_CANCELLED)
    if cancelled:
        storage.discard(
            evaluation.storage_prefix
        )  # Files of an evaluation that a worker returned to the queue.
    return cancelled


@blueprint.post("/evaluations/<evaluation_id>/retry")
def retry_evaluation(evaluation_id: str) -> ResponseReturnValue:
    """Queue a failed or canceled evaluation again."""
    flash_start(restart_evaluation(evaluation_id), NOT_RESTARTED)
    return redirect(url_for("admin.evaluation", evaluation_id=evaluation_id))


def restart_evaluation(evaluation_id: str) -> bool | None:
    """Queue an evaluation again; returns what `start_again` returns."""
    return start_again(Evaluation, evaluation_id, Act.EVALUATION_REQUESTED)


@blueprint.get("/evaluations/<evaluation_id>/answers.csv")
def evaluation_answers(evaluation_id: str) -> ResponseReturnValue:
    """Send the table of all predictions (`ml.evaluation.answers`)."""
    return stored_file(done(evaluation_id), "answers.csv", "text/csv")


@blueprint.get("/evaluations/<evaluation_id>/mistakes/<int:index>.png")
@blueprint.get(
    "/evaluations/<evaluation_id>/mistakes/<int:index>-heat.png", endpoint="mistake_heat"
)
def mistake_picture(evaluation_id: str, index: int) -> ResponseReturnValue:
    """Send the image of one of the worst mistakes, or its heat map."""
    evaluation = done(evaluation_id)
    if index >= len(evaluation.mistakes or ()):
        abort(404)
    layer = "-heat" if request.path.endswith("-heat.png") else ""
    return stored_file(
        evaluation, evaluation.mistake_key(index, layer).rsplit("/", 1)[-1], "image/png"
    )


def done(evaluation_id: str) -> Evaluation:
    """Return a finished evaluation; 404 for others."""
    evaluation = db.get_or_404(Evaluation, evaluation_id)
    if evaluation.status != JobStatus.DONE:
        abort(404)
    return evaluation


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
