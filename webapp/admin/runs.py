"""The pages of training runs: launch and progress."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from flask import Response, abort, current_app, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select
from sqlalchemy.orm import joinedload, selectinload
from wtforms import (
    Field,
    Form,
    SelectChoice,
    SelectField,
    SelectMultipleField,
    StringField,
    ValidationError,
)
from wtforms.widgets import CheckboxInput, NumberInput

from ml.catalogue import (
    ARCHITECTURES,
    EVALUATION_SETTINGS,
    IMAGENET_WEIGHTS,
    PREPROCESSING,
    STARTER_DIR,
    STARTER_SERIES_DIR,
    Architecture,
    EncoderName,
    Setting,
    architecture_named,
)
from ml.errors import SettingError
from webapp.admin.pages import REFUSED, blueprint, is_pending, live_page, page_of, warn_of_delay
from webapp.audit import record
from webapp.charts import TrainingChart, roc_chart, training_charts
from webapp.display import display_name
from webapp.extensions import db
from webapp.forms import PostedForm, is_id
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.models import (
    CURVE_STEPS,
    Act,
    Dataset,
    JobStatus,
    ModelVersion,
    TrainingPoint,
    TrainingRun,
    cancel,
    new_id,
    queue_again,
)
from webapp.storage import storage

LARGEST_SEED = 2**31 - 1
VERSIONS_OFFERED = 50


@blueprint.get("/runs")
@blueprint.get("/runs/progress", endpoint="runs_progress")
def runs() -> Response:
    """List the training runs, newest first."""
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
        .order_by(TrainingRun.created_at.desc(), TrainingRun.id),
    )
    return live_page("runs", pending=any(is_pending(row[0]) for row in page.rows), page=page)


@blueprint.route("/runs/new", methods=["GET", "POST"])
def launch() -> ResponseReturnValue:
    """Queue a training run with the settings of its architecture (`ml.catalogue`)."""
    try:
        architecture = architecture_named(
            request.values.get("architecture") or next(iter(ARCHITECTURES))
        )
    except SettingError:
        abort(404)
    form = launch_form(architecture)
    if not form.validate_on_submit():
        page = render_template(
            "admin/launch.html",
            form=form,
            groups=settings_in_groups(form, architecture),
            architecture=architecture,
            architectures=ARCHITECTURES.values(),
        )
        return page, REFUSED if form.is_submitted() else 200
    run = TrainingRun(
        id=new_id(),
        launched_by_id=current_user.id,
        architecture=architecture.name,
        settings=architecture.parse_settings(
            {setting.name: form[field_name(setting)].data for setting in architecture.settings}
        ),
        initial_weights=form.initial_weights.data,
        seed=int(form.seed.data),
        datasets=list(
            db.session.scalars(select(Dataset).where(Dataset.id.in_(form.datasets.data)))
        ),
    )
    db.session.add(run)
    record(Act.RUN_LAUNCHED, run.id)
    db.session.commit()
    if not nudge(TRAIN_MODEL):
        warn_of_delay()
    return redirect(url_for("admin.run", run_id=run.id))


@blueprint.get("/runs/<run_id>")
@blueprint.get("/runs/<run_id>/progress", endpoint="run_progress")
def run(run_id: str) -> Response:
    """Show a training run: its progress, then the model it created."""
    found = db.get_or_404(
        TrainingRun,
        run_id,
        options=[
            joinedload(TrainingRun.version),
            joinedload(TrainingRun.launched_by),
            selectinload(TrainingRun.datasets).load_only(Dataset.name, Dataset.fingerprint),
        ],
    )
    version = found.version
    return live_page(
        "run",
        pending=is_pending(found),
        run=found,
        version=version,
        curves=curves_of(run_id),
        roc=roc_chart(version.card) if version else None,
    )


def curves_of(run_id: str) -> tuple[TrainingChart, ...]:
    """Return a chart for each metric that a run has reported."""
    points = db.session.execute(
        select(TrainingPoint.metric, TrainingPoint.step, TrainingPoint.value, TrainingPoint.stage)
        .where(TrainingPoint.run_id == run_id)
        .order_by(TrainingPoint.metric.desc(), TrainingPoint.step)
    )
    return training_charts(((row[0], row[1], row[2], row[3]) for row in points), CURVE_STEPS)


@blueprint.post("/runs/<run_id>/cancel")
def cancel_run(run_id: str) -> ResponseReturnValue:
    """Cancel a queued or running training; its worker notices within a second or a batch."""
    cancelled = cancel(TrainingRun, TrainingRun.id == run_id)
    if cancelled:
        record(Act.RUN_CANCELLED, run_id)
    db.session.commit()
    if cancelled:
        storage.discard(f"checkpoints/{run_id}.zip")
    else:
        flash("This run does not exist or has already finished.", "warning")
    return redirect(url_for("admin.run", run_id=run_id))


@blueprint.post("/runs/<run_id>/retry")
def retry_run(run_id: str) -> ResponseReturnValue:
    """Queue a failed or canceled run again, with the same settings."""
    queued = queue_again(TrainingRun, TrainingRun.id == run_id, eta_s=None, current_metrics={})
    if queued:
        record(Act.RUN_RETRIED, run_id)
    db.session.commit()
    if not queued:
        flash("Only failed or canceled runs can be relaunched.", "warning")
    elif not nudge(TRAIN_MODEL):
        warn_of_delay()
    return redirect(url_for("admin.run", run_id=run_id))


def launch_form(architecture: Architecture) -> Any:
    """Return the launch form for `architecture`: data sets, settings, initial weights and seed."""

    class LaunchForm(PostedForm):
        datasets = SelectMultipleField(
            "Data sets",
            choices=[SelectChoice(id, name) for id, name in db.session.execute(ready_datasets())],
            option_widget=CheckboxInput(),
            default=[given for given in request.args.getlist("datasets") if is_id(given)],
            description=(
                "All images of a patient, and near-duplicates, stay on the same side of a split."
            ),
        )
        initial_weights = SelectField(
            "Initial weights",
            choices=initial_weights(architecture.encoder),
            description="The weights that training starts from.",
        )
        seed = StringField(
            "Seed",
            default="0",
            widget=NumberInput(min=0, max=LARGEST_SEED),
            description="The same seed and data always give the same splits.",
        )

        def validate_datasets(self, field: Field) -> None:
            if not field.data:
                raise ValidationError("Choose at least one data set that is ready.")

        def validate_seed(self, field: Field) -> None:
            if not (
                field.data
                and re.fullmatch("[0-9]{1,10}", field.data)
                and int(field.data) <= LARGEST_SEED
            ):
                raise ValidationError(
                    f"The seed must be a whole number from 0 to {LARGEST_SEED:,}."
                )

    for setting in architecture.settings:
        setattr(LaunchForm, field_name(setting), field_of(setting))
    return LaunchForm()


def settings_in_groups(
    form: PostedForm, architecture: Architecture
) -> list[tuple[str, list[Field]]]:
    """Return the settings' fields in titled groups; those specific to the architecture first."""
    shared = {"Evaluation": EVALUATION_SETTINGS, "Image preprocessing": PREPROCESSING}
    own = [
        setting
        for setting in architecture.settings
        if not any(setting in group for group in shared.values())
    ]
    return [
        (
            title,
            [form[field_name(setting)] for setting in group if setting in architecture.settings],
        )
        for title, group in {"Settings": own, **shared}.items()
    ]


def field_name(setting: Setting) -> str:
    """Return the name of a setting's form field, which cannot collide with other fields."""
    return f"setting_{setting.name}"


def field_of(setting: Setting) -> Field:
    """Return the form field of a setting, validated by the catalogue."""

    def fits(_: Form, field: Field) -> None:
        try:
            setting.parse(field.data)
        except SettingError as err:
            raise ValidationError(str(err)) from err

    label = display_name(setting.name)
    if setting.kind == "choice":
        return cast(
            Field,
            SelectField(
                label,
                choices=list(setting.choices),
                default=setting.default,
                description=setting.help,
                validators=[fits],
                validate_choice=False,
            ),
        )
    step = "1" if setting.kind == "int" else "any"
    between = (
        f" Between {setting.low:g} and {setting.high:g}."
        if setting.low is not None and setting.high is not None
        else ""
    )
    return cast(
        Field,
        StringField(
            label,
            default=str(setting.default),
            description=setting.help + between,
            validators=[fits],
            widget=NumberInput(step=step, min=setting.low, max=setting.high),
        ),
    )


def ready_datasets() -> Any:
    """Select id and name of the imported data sets."""
    return (
        select(Dataset.id, Dataset.name)
        .where(Dataset.status == JobStatus.DONE)
        .order_by(Dataset.name)
    )


def initial_weights(encoder: EncoderName | None) -> list[SelectChoice]:
    """Return the initial weights that an architecture with this encoder can start from, the best
    default first.
    """
    random = SelectChoice("random", "Random")
    if encoder is None:
        return [random]
    choices = []
    for value, folder, reads in (
        ("starter", STARTER_DIR, "slices"),
        ("starter-series", STARTER_SERIES_DIR, "series"),
    ):
        card = folder / "card.json"
        if card.exists() and encoder == encoder_of(json.loads(card.read_bytes())["architecture"]):
            choices.append(
                SelectChoice(value, f"Starter model for {reads} (included with Hemoscan)")
            )
    for name, (whose, title) in IMAGENET_WEIGHTS.items():
        if whose == encoder and (current_app.config["WEIGHTS_DIR"] / name).exists():
            choices.append(SelectChoice(f"imagenet:{name}", title))
    choices.append(random)
    alike = [each.name for each in ARCHITECTURES.values() if each.encoder == encoder]
    earlier = db.session.execute(
        select(
            ModelVersion.id,
            ModelVersion.architecture,
            ModelVersion.number,
            ModelVersion.created_at,
        )
        .where(ModelVersion.run_id.is_not(None), ModelVersion.architecture.in_(alike))
        .order_by(ModelVersion.created_at.desc())
        .limit(VERSIONS_OFFERED)
    )
    for id, architecture, number, created_at in earlier:
        choices.append(
            SelectChoice(
                f"version:{id}",
                f"{display_name(architecture)} · v{number} of {created_at:%Y-%m-%d %H:%M} UTC",
            )
        )
    return choices


def encoder_of(architecture: str) -> EncoderName | None:
    """Return the encoder of an architecture, None where it has none or is not in the catalogue."""
    known = ARCHITECTURES.get(architecture)
    return known.encoder if known else None
