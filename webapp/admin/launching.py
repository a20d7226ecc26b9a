"""Launching a training run: the form, its preview, and the database row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask import abort, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select
from werkzeug.exceptions import Conflict

from ml.catalogue import ARCHITECTURES, Architecture, architecture_named, presets_of
from ml.errors import SettingError
from webapp.admin.outlook import Outlook, outlook_of, what_a_data_set_allows
from webapp.admin.pages import REFUSED, blueprint, warn_of_delay
from webapp.admin.run_form import (
    field_name,
    launch_form,
    settings_in_groups,
    settings_of,
    shown_for_clone,
)
from webapp.audit import record
from webapp.extensions import db
from webapp.forms import is_id
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.models import Act, Dataset, JobStatus, TrainingRun, new_id

DATASET_DELETED = (
    "A data set that you chose has just been deleted. Reload the page and choose another."
)


@blueprint.route("/runs/new", methods=["GET", "POST"])
def launch() -> ResponseReturnValue:
    """Queue a training run with the settings of its architecture (`ml.catalogue`).

    Anything that would differ from the request is shown first; a form that confirms these warnings
    queues the run. Buttons that fill in a preset, or only check the form, queue nothing.
    """
    original = cloned()
    architecture = requested_architecture(original)
    form = launch_form(architecture, **shown_at_first(original))
    preset = next(
        (
            preset
            for preset in presets_of(architecture)
            if preset.name == request.form.get("preset")
        ),
        None,
    )
    if preset:
        parsed = architecture.parse_settings(preset.settings)
        for setting in architecture.settings:
            form[field_name(setting)].data = str(parsed[setting.name])
        return launch_page(architecture, form, original)
    if not form.is_submitted() or "check" in request.form:
        form.validate() if form.is_submitted() else None
        return launch_page(architecture, form, original)
    if not form.validate():
        return launch_page(architecture, form, original), REFUSED
    outlook = outlook_in(architecture, form)
    if outlook and (outlook.refused or outlook.has_news_for(form.warnings_shown.data)):
        return launch_page(architecture, form, original, is_on_hold=True), REFUSED
    run = add_run(
        current_user.id,
        architecture,
        settings_of(form, architecture),
        [dataset.id for dataset in chosen_datasets(form)],
        form.initial_weights.data,
        int(form.seed.data),
    )
    form.describe(run)
    db.session.commit()
    if not nudge(TRAIN_MODEL):
        warn_of_delay()
    return redirect(url_for("admin.run", run_id=run.id))


def add_run(
    user_id: str,
    architecture: Architecture,
    settings: Mapping[str, object],
    dataset_ids: Sequence[str],
    weights: str,
    seed: int,
) -> TrainingRun:
    """Queue a training run; the caller commits and notifies a worker.

    Args:
        settings: those that differ from the architecture's defaults.
        weights: one of `initial_weights`.

    Raises:
        SettingError: a setting is unknown or out of range.
        Conflict: a data set was deleted since it was chosen.
    """
    # Locked, so that none of them is deleted before the run refers to it.
    chosen = select(Dataset).where(Dataset.id.in_(dataset_ids))
    datasets = list(db.session.scalars(chosen.with_for_update(read=True, key_share=True)))
    if len(datasets) < len(set(dataset_ids)):
        raise Conflict(DATASET_DELETED)
    run = TrainingRun(
        id=new_id(),
        launched_by_id=user_id,
        architecture=architecture.name,
        settings=architecture.parse_settings(settings),
        initial_weights=weights,
        seed=seed,
        datasets=datasets,
    )
    db.session.add(run)
    record(Act.RUN_LAUNCHED, run.id)
    return run


@blueprint.post("/runs/new/outlook")
def launch_outlook() -> ResponseReturnValue:
    """Show the outlook of a run with the current form values, as a fragment of the form's page."""
    architecture = requested_architecture(None)
    form = launch_form(architecture)
    outlook = outlook_in(architecture, form)
    return render_template(
        "admin/_outlook.html", outlook=outlook, presets=presets_of(architecture), form=form
    )


def launch_page(
    architecture: Architecture, form: Any, original: TrainingRun | None, *, is_on_hold: bool = False
) -> str:
    """Render the form; `is_on_hold` means that it was submitted but has warnings to be
    confirmed.
    """
    datasets = db.session.execute(
        select(Dataset.id, Dataset.exploration).where(Dataset.status == JobStatus.DONE)
    )
    return render_template(
        "admin/launch.html",
        form=form,
        groups=settings_in_groups(form, architecture),
        architecture=architecture,
        architectures=ARCHITECTURES.values(),
        presets=presets_of(architecture),
        outlook=outlook_in(architecture, form),
        original=original,
        is_on_hold=is_on_hold,
        allows={id: what_a_data_set_allows(exploration) for id, exploration in datasets},
    )


def cloned() -> TrainingRun | None:
    """Return the run to clone, according to the address; None for a new run."""
    run_id = request.args.get("from", "")
    original = db.session.get(TrainingRun, run_id) if is_id(run_id) else None
    return original if original and not original.is_calibration else None


def requested_architecture(original: TrainingRun | None) -> Architecture:
    """Return the architecture that the address or the form names; 404 for an unknown one."""
    name = request.values.get("architecture") or (
        original.architecture if original else next(iter(ARCHITECTURES))
    )
    try:
        return architecture_named(name)
    except SettingError:
        abort(404)


def shown_at_first(original: TrainingRun | None) -> dict[str, Any]:
    """Return the values of the form before anything is posted."""
    if original:
        return shown_for_clone(original)
    return {"datasets": [id for id in request.args.getlist("datasets") if is_id(id)]}


def chosen_datasets(form: Any) -> list[Dataset]:
    """Return the data sets that are chosen and ready."""
    ids = [id for id in form.datasets.data or () if is_id(id)]
    ready = select(Dataset).where(Dataset.id.in_(ids), Dataset.status == JobStatus.DONE)
    return list(db.session.scalars(ready))


def outlook_in(architecture: Architecture, form: Any) -> Outlook | None:
    """Return what a run with the current form values would do; None while a setting is invalid."""
    try:
        settings = settings_of(form, architecture)
    except SettingError:
        return None
    datasets: Sequence[Dataset] = chosen_datasets(form)
    offered = [choice.value for choice in form.initial_weights.choices]
    weights = form.initial_weights.data
    return outlook_of(
        architecture, settings, weights if weights in offered else offered[0], datasets
    )
