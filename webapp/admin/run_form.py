"""The forms of training runs: description and launch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, cast

from flask import current_app
from sqlalchemy import select
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
    CONVOLUTIONS,
    ENRICHMENT,
    EVALUATION_SETTINGS,
    FINE_TUNE_EPOCHS,
    IMAGENET_WEIGHTS,
    INITIAL_SHARE,
    PREPROCESSING,
    STARTER_DIR,
    STARTER_SERIES_DIR,
    Architecture,
    EncoderName,
    Setting,
)
from ml.errors import SettingError
from webapp.display import display_name, listed
from webapp.extensions import LARGEST_INTEGER, db
from webapp.forms import LinesField, PostedForm, TextField, at_most, lines_problem
from webapp.learning.corrections import versions_of_one
from webapp.models import Dataset, JobStatus, ModelVersion, TrainingRun

VERSIONS_OFFERED = 50
MOST_TAGS = 10
LONGEST_NAME, LONGEST_NOTES = 80, 5000
LONGEST_TAG = 30
TAG = re.compile(rf"[\w.+-]{{1,{LONGEST_TAG}}}")


def tags_in(text: str) -> list[str]:
    """Return the tags in a text, in lower case and without duplicates.

    Raises:
        ValueError: as `tags_of`.
    """
    return tags_of(tag for tag in re.split(r"[,\s]+", text) if tag)


def tags_of(words: Iterable[str]) -> list[str]:
    """Return words as tags, in lower case and without duplicates.

    Raises:
        ValueError: one is not a word, or there are too many; the message is a sentence.
    """
    tags = sorted({word.lower() for word in words})
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise ValueError(
                f"The tag {tag[:40]!r} must have at most {LONGEST_TAG} letters, digits, points,"
                " hyphens or underscores."
            )
    if len(tags) > MOST_TAGS:
        raise ValueError(f"A run has at most {MOST_TAGS} tags.")
    return tags


def describe(run: TrainingRun, name: str, tags: Iterable[str], notes: str) -> None:
    """Write name, tags (`tags_of`) and notes into the row of a run; the caller commits."""
    run.name = name or None
    run.notes = notes or None
    wanted = list(tags)
    for tag in set(run.tags) - set(wanted):
        run.tags.remove(tag)
    for tag in wanted:
        if tag not in run.tags:
            run.tags.append(tag)


class DescribeForm(PostedForm):
    """Name, tags and notes of a run."""

    name = TextField("Name", validators=[at_most(LONGEST_NAME)])
    tags = TextField(
        "Tags",
        description="Keywords for finding runs, separated by commas, such as: baseline, 2026.",
    )
    notes = LinesField("Notes")

    def validate_tags(self, field: Field) -> None:
        try:
            tags_in(field.data or "")
        except ValueError as err:
            raise ValidationError(str(err)) from err

    def validate_notes(self, field: Field) -> None:
        if problem := lines_problem(field.data or "", longest=LONGEST_NOTES):
            raise ValidationError(problem)

    def describe(self, run: TrainingRun) -> None:
        """Write the form's values into the row; the caller commits."""
        tags = tags_in(self.tags.data or "")
        describe(run, self.name.data or "", tags, self.notes.data or "")


class LaunchForm(DescribeForm):
    """The fields that all architectures share; `launch_form` adds their settings.

    `warnings_shown` carries the mark of the warnings that the page showed.
    """

    datasets = SelectMultipleField(
        "Data sets",
        option_widget=CheckboxInput(),
        description=(
            "All images of a patient, and near-duplicates, stay on the same side of a split."
        ),
    )
    initial_weights = SelectField(
        "Initial weights", description="The weights that training starts from."
    )
    seed = StringField(
        "Seed",
        default="0",
        widget=NumberInput(min=0, max=LARGEST_INTEGER),
        description="The same seed and data always give the same splits.",
    )
    warnings_shown = TextField("Warnings shown")

    def validate_datasets(self, field: Field) -> None:
        if field.errors:
            return  # Not one of the choices offered, so it must not reach the database.
        if not field.data:
            raise ValidationError("Choose at least one data set that is ready.")
        if names := versions_of_one(field.data):
            raise ValidationError(
                f"{listed(names, 'and')} are versions of one data set; choose one of them."
            )

    def validate_seed(self, field: Field) -> None:
        if not (
            field.data
            and re.fullmatch("[0-9]{1,10}", field.data)
            and int(field.data) <= LARGEST_INTEGER
        ):
            raise ValidationError(f"The seed must be a whole number from 0 to {LARGEST_INTEGER:,}.")


def launch_form(architecture: Architecture, **shown: Any) -> Any:
    """Return the launch form for `architecture`: data sets, settings, initial weights and seed;
    `shown` are the values of fields that were not posted.
    """
    fields = {field_name(setting): field_of(setting) for setting in architecture.settings}
    form = type("LaunchFormOfArchitecture", (LaunchForm,), fields)(**shown)
    ready = [SelectChoice(id, name) for id, name in db.session.execute(ready_datasets())]
    form.datasets.choices = ready
    if len(ready) == 1 and not form.is_submitted() and not form.datasets.data:
        form.datasets.data = [ready[0].value]
    form.initial_weights.choices = initial_weights(architecture.encoder)
    return form


def shown_for_clone(run: TrainingRun) -> dict[str, Any]:
    """Return the form values for a run like that one."""
    return {
        "name": f"{run.name} (copy)"[:LONGEST_NAME] if run.name else None,
        "tags": ", ".join(run.tags),
        "notes": run.notes,
        "datasets": [dataset.id for dataset in run.datasets],
        "initial_weights": run.initial_weights,
        "seed": str(run.seed),
        **{f"setting_{name}": str(value) for name, value in run.settings.items()},
    }


def settings_of(form: Any, architecture: Architecture) -> dict[str, int | float | str]:
    """Return the settings from a form.

    Raises:
        SettingError: one of them is invalid.
    """
    return architecture.parse_settings(
        {setting.name: form[field_name(setting)].data for setting in architecture.settings}
    )


def settings_in_groups(
    form: PostedForm, architecture: Architecture
) -> list[tuple[str, list[Field]]]:
    """Return the settings' fields in titled groups; those specific to the architecture first."""
    shared = {
        "Evaluation": EVALUATION_SETTINGS,
        "Enlarging the data": ENRICHMENT,
        "Fine-tuning": (FINE_TUNE_EPOCHS, INITIAL_SHARE),
        "Convolutions": CONVOLUTIONS,
        "Image preprocessing": PREPROCESSING,
    }
    specific = [
        setting
        for setting in architecture.settings
        if not any(setting in group for group in shared.values())
    ]
    return [
        (
            title,
            [form[field_name(setting)] for setting in group if setting in architecture.settings],
        )
        for title, group in {"Settings": specific, **shared}.items()
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
    """Select the id and name of the imported data sets."""
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
    """Return the encoder of an architecture; None if it has none or is not in the catalogue."""
    known = ARCHITECTURES.get(architecture)
    return known.encoder if known else None
