"""The processing page: the result of each step on a slice, computed by the same functions as in
training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from flask import Response, abort, current_app, request, url_for
from flask_login import current_user
from sqlalchemy import select
from sqlalchemy.orm import load_only
from wtforms import BooleanField, Form, IntegerField, SelectChoice, SelectField
from wtforms.validators import NumberRange, Optional

from webapp.admin.pages import blueprint, is_pending, live_page
from webapp.display import name_of_version
from webapp.extensions import LARGEST_INTEGER, db
from webapp.forms import is_id
from webapp.learning.previews import preview_of
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetAnalysis,
    DatasetImage,
    JobStatus,
    ModelVersion,
    Preview,
    Scan,
)
from webapp.scans.pictures import private_response
from webapp.storage import MissingFile, storage

OFFERED = 100
SCANS_OFFERED = 50
DEFAULT_PHANTOM = "phantom-5.dcm"
LARGEST_SEED, LAST_SLICE = 20, 9999
STEPS = {
    "original": ("Slice in the window", "The slice before any processing."),
    "input": ("Model input", "With all settings on this page: what a model would see."),
    "head crop": ("Head crop", "The largest bright body; everything outside it is black."),
    "upright": ("Upright", "Turned so that the midline is vertical."),
    "skull stripping": ("Skull stripping", "Only the inside of the skull."),
    "percentiles": (
        "Percentiles",
        "Soft tissue scaled to fixed gray levels; removes tints and window differences.",
    ),
    "equalization": ("Histogram equalization", "Gray levels equalized inside the head."),
    "CLAHE": ("CLAHE", "Equalization by region, with limited contrast."),
    "Otsu": ("Otsu’s threshold", "The denser half of the soft tissue is kept, the rest is dimmed."),
    "GrabCut": ("GrabCut", "What looks like the inside of the head is kept."),
    "watershed": ("Watershed", "Dense bodies that are not mostly bone are kept."),
    "edges": ("Edges", "Canny’s edges, drawn white."),
    "augmentation": ("Augmentation × 10", "The input and nine altered copies, as training uses."),
    "autoencoder": (
        "Restructured by the autoencoder",
        "A version’s own input and its autoencoder’s reconstruction.",
    ),
}
"""The page's description of each step (`ml.exploration.processing`)."""
NORMALIZATIONS = {
    "none": "None",
    "percentile": "Percentiles",
    "equalise": "Equalization",
    "clahe": "CLAHE",
}


def slider(label: str, low: int, high: int, step: int, default: int) -> IntegerField:
    """Return a field rendered as a slider."""
    return IntegerField(
        label,
        [Optional(), NumberRange(low, high, f"Choose {low} to {high}.")],
        default=default,
        render_kw={"type": "range", "min": low, "max": high, "step": step, "data-shows": ""},
    )


class ProcessingForm(Form):
    """The slice and how it is processed, from the address. An invalid field gets its default."""

    dataset = SelectField("Data set", default="", validate_choice=False)
    image = IntegerField(
        "Image",
        [Optional(), NumberRange(1, LARGEST_INTEGER, "Enter the number of an image.")],
        default=1,
        render_kw={"type": "number", "min": 1},
    )
    scan = SelectField("Your scan", default="", validate_choice=False)
    slice = IntegerField(
        "Slice",
        [Optional(), NumberRange(1, LAST_SLICE, "Enter the number of a slice.")],
        default=1,
        render_kw={"type": "number", "min": 1},
    )
    phantom = SelectField("Phantom", default="", validate_choice=False)
    level = slider("Window level (HU)", -100, 600, 5, 40)
    width = slider("Window width (HU)", 10, 1000, 10, 80)
    size = slider("Input size (px)", 64, 512, 32, 224)
    normalization = SelectField(
        "Normalization",
        choices=[SelectChoice(name, text) for name, text in NORMALIZATIONS.items()],
        default="none",
    )
    whole = BooleanField("Whole image, no head crop")
    skull = BooleanField("Skull stripping")
    upright = BooleanField("Upright")
    seed = slider("Seed of the augmentation", 0, LARGEST_SEED, 1, 0)
    version = SelectField("Autoencoder of", default="", validate_choice=False)

    def __init__(self, formdata: Any) -> None:
        super().__init__(formdata)
        self.dataset.choices = [SelectChoice("", "–"), *_choices(_datasets())]
        self.scan.choices = [SelectChoice("", "–"), *_choices(_own_scans())]
        self.phantom.choices = [
            SelectChoice("", "–"),
            *(SelectChoice(file, title) for file, title in phantoms().items()),
        ]
        self.version.choices = list(_choices(_restructuring_versions()))
        self.validate()
        for field in self:
            if field.errors or field.data is None:
                field.data = field.default
        versions = [choice.value for choice in self.version.choices]
        if self.version.data not in versions:
            self.version.data = next(iter(versions), "")

    @property
    def address(self) -> dict[str, Any]:
        """Return the values given in the address of the page."""
        return {name: value for name, value in request.args.items() if name in self._fields}

    @property
    def what(self) -> dict[str, Any]:
        """Return the chosen slice in the format of `webapp.models.Preview`: from a data set,
        otherwise a scan, otherwise a phantom. A scan that this administrator may not see is
        ignored.
        """
        if is_id(self.dataset.data) and self.image.data:
            number = self.image.data - 1
            known = db.session.get(DatasetImage, (self.dataset.data, number))
            if known is not None and known.thumbnail_at is not None:
                return {"dataset": self.dataset.data, "image": number}
            return {}
        if is_id(self.scan.data) and self.slice.data:
            query = select(Scan.id).where(
                Scan.id == self.scan.data, Scan.user_id == current_user.id
            )
            if db.session.scalar(query):
                return {"scan": self.scan.data, "slice": self.slice.data - 1}
            return {}
        chosen = self.phantom.data if self.phantom.data in phantoms() else DEFAULT_PHANTOM
        self.phantom.data = chosen
        return {"phantom": chosen}

    @property
    def settings(self) -> dict[str, Any]:
        """Return how it is processed: an `ml.preprocessing.model_input.InputSpec` as JSON, and what
        else the steps need.
        """
        return {
            "kind": "processing",
            "spec": {
                "size": self.size.data,
                "window_level": float(self.level.data),
                "window_width": float(self.width.data),
                "crop_to_head": not self.whole.data,
                "normalisation": self.normalization.data,
                "skull_stripping": bool(self.skull.data),
                "upright": bool(self.upright.data),
                "segmentation": "none",
            },
            "seed": self.seed.data,
            "version": self.version.data or None,
        }


@blueprint.get("/processing")
@blueprint.get("/processing/progress", endpoint="processing_progress")
def processing() -> Response:
    """Show the output of each step for the slice in the address, or the worker's progress."""
    form = ProcessingForm(request.args)
    what = form.what
    is_part = request.path.endswith("/progress")
    preview = preview_of(what, form.settings, may_retry=not is_part) if what else None
    page = live_page(
        "processing",
        pending=bool(what) and (preview is None or is_pending(preview)),
        form=form,
        what=what,
        preview=preview,
        steps=STEPS,
        address=form.address,
        has_autoencoder=bool(form.version.choices),
    )
    if is_part and "HX-Request" in request.headers and form.address:
        # A slider was moved, so its value is in the address.
        page.headers["HX-Replace-Url"] = url_for("admin.processing", **form.address)
    return page


@blueprint.get("/previews/<preview_id>/<int:step>/<int:index>.png")
def preview_picture(preview_id: str, step: int, index: int) -> Response:
    """Send an image of a preview; previews of a scan only to the scan's owner."""
    preview = db.get_or_404(Preview, preview_id)
    if preview.scan_id is not None:
        query = select(Scan.id).where(Scan.id == preview.scan_id, Scan.user_id == current_user.id)
        if db.session.scalar(query) is None:
            abort(404)
    return stored_picture(preview, step, index)


def stored_picture(preview: Preview, step: int, index: int) -> Response:
    """Return an image of a preview; 404 if there is none."""
    try:
        start, length = (preview.result or [])[step]["pictures"][index]
    except IndexError:
        abort(404)
    name = f"{preview.file_key} {preview.finished_at} {start}"
    try:
        return private_response(
            "image/png", name, lambda: storage.get(preview.file_key, start, start + length)
        )
    except MissingFile:
        abort(404)


@cache
def phantoms() -> dict[str, str]:
    """Return the titles of the phantoms that are single slices, by file."""
    folder = Path(current_app.static_folder or "") / "phantoms"
    listed = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return {
        phantom["file"]: phantom["title"]
        for phantom in listed
        if not phantom["file"].endswith(".zip")
    }


def _choices(rows: Sequence[tuple[str, str]]) -> list[SelectChoice]:
    return [SelectChoice(value, text) for value, text in rows]


def _datasets() -> list[tuple[str, str]]:
    looked_at = select(DatasetAnalysis.dataset_id).where(
        DatasetAnalysis.kind == AnalysisKind.IMAGES, DatasetAnalysis.status == JobStatus.DONE
    )
    rows = db.session.execute(
        select(Dataset.id, Dataset.name)
        .where(Dataset.id.in_(looked_at), Dataset.status == JobStatus.DONE)
        .order_by(Dataset.name)
        .limit(OFFERED)
    )
    return [(row.id, row.name) for row in rows]


def _own_scans() -> list[tuple[str, str]]:
    rows = db.session.execute(
        select(Scan.id, Scan.title, Scan.created_at)
        .where(
            Scan.user_id == current_user.id,
            Scan.status == JobStatus.DONE,
            Scan.original_removed_at.is_(None),
        )
        .order_by(Scan.created_at.desc(), Scan.id)
        .limit(SCANS_OFFERED)
    )
    return [(row.id, f"{row.title or 'Untitled'}, {row.created_at:%Y-%m-%d %H:%M}") for row in rows]


def _restructuring_versions() -> list[tuple[str, str]]:
    """Return the versions that restructure their inputs, newest first."""
    versions = db.session.scalars(
        select(ModelVersion)
        .where(ModelVersion.card[("settings", "restructure")].as_string() == "autoencoder")
        .options(load_only(ModelVersion.number, ModelVersion.architecture))
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id)
        .limit(OFFERED)
    )
    return [(version.id, name_of_version(version)) for version in versions]
