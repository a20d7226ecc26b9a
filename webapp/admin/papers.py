"""The paper's experiment on a data set: launch, cancellation and resumption."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from flask import abort, flash, redirect, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select
from sqlalchemy.orm import joinedload
from wtforms import Field, SelectChoice, SelectField, SelectMultipleField, ValidationError
from wtforms.widgets import CheckboxInput

from ml.catalogue import OF_THE_PAPER
from webapp.admin.pages import (
    blueprint,
    cancel_job,
    flash_start,
    is_pending,
    start_again,
    warn_of_delay,
)
from webapp.admin.run_form import initial_weights
from webapp.audit import record
from webapp.display import display_name
from webapp.extensions import db
from webapp.forms import PostedForm
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.learning.confirmed import RequestRefused
from webapp.models import Act, Dataset, JobStatus, PaperExperiment, new_id

OPEN_ALREADY = "The paper’s experiment is already queued or running on this data set."
NOT_IMPORTED = "This data set has not been imported yet."
HAS_ENDED = "This experiment has already ended."
NOT_RESUMED = "Only the newest experiment can be resumed, and only after it was canceled or failed."

EARLIER_EXPERIMENTS = 5
"""How many finished experiments are searched for one of all architectures, to estimate the
duration.
"""


class PaperForm(PostedForm):
    """The choices for the paper's experiment."""

    architectures = SelectMultipleField(
        "Architectures",
        choices=[SelectChoice(name, display_name(name)) for name in OF_THE_PAPER],
        default=list(OF_THE_PAPER),
        option_widget=CheckboxInput(),
    )
    initial_weights = SelectField("Initial weights")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_weights.choices = initial_weights("alexnet")

    def validate_architectures(self, field: Field) -> None:
        if not field.data:
            raise ValidationError("Choose at least one architecture.")


@blueprint.post("/datasets/<dataset_id>/paper")
def launch_paper(dataset_id: str) -> ResponseReturnValue:
    """Queue the paper's experiment on a data set, unless one is queued or running."""
    form = PaperForm()
    if form.validate_on_submit():
        try:
            experiment = add_experiment(
                dataset_id, form.architectures.data, form.initial_weights.data, current_user.id
            )
        except RequestRefused as err:
            flash(str(err), "warning")
        else:
            if not commit_and_nudge(experiment):
                warn_of_delay()
    else:
        for errors in form.errors.values():
            flash(" ".join(map(str, errors)), "warning")
    return redirect(url_for("admin.accuracy", dataset_id=dataset_id, _anchor="paper"))


@blueprint.post("/papers/<experiment_id>/cancel")
def cancel_paper(experiment_id: str) -> ResponseReturnValue:
    """Cancel the experiment; its finished cells and its checkpoint are kept."""
    experiment = db.get_or_404(PaperExperiment, experiment_id)
    if not stop_experiment(experiment):
        flash(HAS_ENDED, "warning")
    return redirect(url_for("admin.accuracy", dataset_id=experiment.dataset_id, _anchor="paper"))


@blueprint.post("/papers/<experiment_id>/resume")
def resume_paper(experiment_id: str) -> ResponseReturnValue:
    """Queue a canceled or failed experiment again; it resumes where it stopped."""
    experiment = db.get_or_404(PaperExperiment, experiment_id)
    flash_start(resume_experiment(experiment), NOT_RESUMED)
    return redirect(url_for("admin.accuracy", dataset_id=experiment.dataset_id, _anchor="paper"))


def add_experiment(
    dataset_id: str, architectures: Collection[str], weights: str, by_id: str
) -> PaperExperiment:
    """Add an experiment on a data set, which is locked until the caller commits
    (`commit_and_nudge`).

    Args:
        architectures: names of `ml.catalogue.OF_THE_PAPER`.
        weights: one of `initial_weights("alexnet")`.

    Raises:
        NotFound: there is no such data set.
        RequestRefused: it is not ready, or an experiment on it is queued or running.
    """
    dataset = locked_dataset(dataset_id)
    newest = newest_experiment(dataset_id)
    if newest and is_pending(newest):
        raise RequestRefused(OPEN_ALREADY)
    if dataset.status != JobStatus.DONE:
        raise RequestRefused(NOT_IMPORTED)
    experiment = PaperExperiment(
        id=new_id(),
        dataset_id=dataset.id,
        launched_by_id=by_id,
        architectures=[name for name in OF_THE_PAPER if name in architectures],
        initial_weights=weights,
    )
    db.session.add(experiment)
    record(Act.PAPER_LAUNCHED, experiment.id)
    return experiment


def commit_and_nudge(
    experiment: PaperExperiment, before: Callable[[PaperExperiment], object] = lambda _: None
) -> bool:
    """Commit a new experiment, with what `before` stores for it, and notify a worker; return
    whether a worker could be notified.
    """
    db.session.flush()
    before(experiment)
    db.session.commit()
    return nudge(TRAIN_MODEL)


def stop_experiment(experiment: PaperExperiment) -> bool:
    """Cancel an experiment, and commit; False if it has ended."""
    return cancel_job(PaperExperiment, experiment.id, Act.PAPER_CANCELLED)


def resume_experiment(experiment: PaperExperiment) -> bool | None:
    """Queue an experiment again; return what `start_again` returns, or None if it is not the newest
    of its data set.
    """
    locked_dataset(experiment.dataset_id)
    newest = newest_experiment(experiment.dataset_id)
    if newest is None or newest.id != experiment.id:
        return None
    return start_again(PaperExperiment, experiment.id, Act.PAPER_LAUNCHED, eta_s=None)


def locked_dataset(dataset_id: str) -> Dataset:
    """Return a data set, locked until the transaction ends, so that of two simultaneous launches or
    resumptions the second sees the first one's experiment.
    """
    locked = select(Dataset).where(Dataset.id == dataset_id).with_for_update()
    return db.session.scalar(locked) or abort(404)


def newest_experiment(dataset_id: str) -> PaperExperiment | None:
    """Return the newest experiment on a data set."""
    return db.session.scalar(
        select(PaperExperiment)
        .where(PaperExperiment.dataset_id == dataset_id)
        .options(joinedload(PaperExperiment.launched_by))
        .order_by(PaperExperiment.created_at.desc(), PaperExperiment.id)
        .limit(1)
    )


def expected_here_s(dataset: Dataset) -> float | None:
    """Return an estimate of the duration of the whole experiment on a data set, in seconds: the
    time per image of the newest finished experiment; None if there is none, or the images were not
    counted.
    """
    images = (dataset.exploration or {}).get("images")
    finished = db.session.scalars(
        select(PaperExperiment)
        .where(PaperExperiment.status == JobStatus.DONE)
        .order_by(PaperExperiment.created_at.desc(), PaperExperiment.id)
        .limit(EARLIER_EXPERIMENTS)
    )
    for experiment in finished:
        results = experiment.results or {}
        seconds = sum(cell.get("seconds", 0) for cell in results.get("cells", ()))
        is_whole = set(experiment.architectures) == set(OF_THE_PAPER)
        if is_whole and seconds and results.get("images") and images:
            return float(seconds / results["images"] * images)
    return None
