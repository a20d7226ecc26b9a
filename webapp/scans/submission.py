"""Submitting scans: the bar on the worklist sends its uploads one by one, the form works without
scripts, and phantoms are submitted by a click.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from flask import (
    Blueprint,
    abort,
    current_app,
    flash,
    redirect,
    render_template,
    url_for,
)
from flask_login import current_user, login_required
from flask_wtf.file import FileRequired, MultipleFileField
from sqlalchemy import select
from werkzeug.datastructures import FileStorage
from werkzeug.wrappers import Response as WerkzeugResponse
from wtforms import BooleanField, HiddenField, IntegerField, SelectChoice, SelectField
from wtforms.validators import NumberRange, Optional

from webapp.accounts.logins import require_login_still
from webapp.extensions import db
from webapp.forms import MAX_TITLE, PostedForm, TextField, at_most, required
from webapp.intake import (
    Choices,
    Pictures,
    Receipt,
    Studies,
    UploadRejected,
    accept_upload,
    within_rate,
)
from webapp.models import Scan

blueprint = Blueprint("submission", __name__)

QUEUE_UNAVAILABLE = (
    "The queue is currently unavailable. Your scan has been saved and will be analyzed once the"
    " queue is back."
)


class ScanForm(PostedForm):
    """Scans to submit."""

    # No `accept`: files of a DICOM series often have no extension.
    file = MultipleFileField(
        "Files",
        [FileRequired("Please choose a PNG, JPEG, DICOM, NIfTI or ZIP file.")],
        description=(
            "A single slice (PNG, JPEG or DICOM) or a series (DICOM files, NIfTI or a ZIP of"
            " slices). Each series becomes one scan."
        ),
    )
    title = TextField(
        "Title",
        [Optional(), at_most(MAX_TITLE)],
        description="Optional. Please do not enter patient names.",
    )
    pictures = SelectField(
        "PNG and JPEG images",
        choices=[
            SelectChoice(Pictures.AS_NUMBERED.value, "Series if numbered in sequence"),
            SelectChoice(Pictures.TOGETHER.value, "All images are one series"),
            SelectChoice(Pictures.APART.value, "Each image is a separate scan"),
        ],
        default=Pictures.AS_NUMBERED.value,
        description=(
            "Images in one folder that have the same size and numbered names look like the"
            " slices of"
            " one scan, unless the number counts patients (“patient 3.png”). You can join"
            " and split them later."
        ),
    )
    studies = SelectField(
        "Studies",
        choices=[
            SelectChoice(Studies.AS_SENT.value, "By examination"),
            SelectChoice(Studies.ONE.value, "Everything is one examination"),
            SelectChoice(Studies.NONE.value, "Each series on its own"),
        ],
        default=Studies.AS_SENT.value,
        description="How series are grouped in the worklist.",
    )
    stat = BooleanField("STAT", description="Analyze before all routine scans.")
    keep_names = BooleanField(
        "File names as titles",
        description=(
            "Use file names as titles and in messages. File names may identify patients. Unless you"
            " select this, only words such as “CT head” and numbers such as “Case 12” are used."
        ),
    )


class PartForm(ScanForm):
    """One batch from the upload bar on the worklist, and its position among the files that were
    dropped together.
    """

    number = IntegerField("Number", [Optional(), NumberRange(0, 10_000)])
    dropped_ms = IntegerField("Time", [Optional()])

    @property
    def dropped_at(self) -> datetime | None:
        """The time of the drop; None if missing or invalid."""
        try:
            dropped_ms = self.dropped_ms.data
            return None if dropped_ms is None else datetime.fromtimestamp(dropped_ms / 1000, UTC)
        except (OverflowError, OSError, ValueError):
            return None


class PhantomForm(PostedForm):
    """The phantom to submit."""

    name = HiddenField(validators=[required])


@blueprint.get("/scans/new")
@login_required
def new() -> str:
    """Show the form to submit scans, and the phantoms."""
    return _page(ScanForm(formdata=None))


@blueprint.post("/scans")
@within_rate
@login_required
def submit() -> tuple[str, int] | WerkzeugResponse:
    """Submit slices and series; each becomes a scan."""
    form = ScanForm()
    if form.validate_on_submit():
        try:
            return _redirect_to_result(_accept_form(form, leave_out=False))
        except UploadRejected as err:
            form.file.errors = [str(err)]
    return _page(form), 400


@blueprint.post("/scans/files")
@within_rate
@login_required
def submit_files() -> tuple[dict[str, Any], int]:
    """Submit one batch from the upload bar: files that may belong together.

    Return, as JSON, the scans, and a sentence for each file that was left out (`refused`, by its
    index among the files); or an `error` if no file was accepted.
    """
    form = PartForm()
    if not form.validate_on_submit():
        return {"error": " ".join(chain.from_iterable(form.errors.values()))}, 400
    try:
        receipt = _accept_form(
            form, leave_out=True, number=form.number.data or 0, dropped_at=form.dropped_at
        )
    except UploadRejected as err:
        return {"error": str(err)}, 400
    scans = [
        {
            "id": scan.id,
            "url": url_for("scans.show", scan_id=scan.id),
            "title": scan.title or "Untitled scan",
            "slices": scan.slice_count,
            "notes": scan.notes,
        }
        for scan in receipt.scans
    ]
    return {"scans": scans, "refused": receipt.refused}, 201


@blueprint.post("/scans/phantom")
@within_rate
@login_required
def submit_phantom() -> tuple[str, int] | WerkzeugResponse:
    """Submit one of the phantoms."""
    form = PhantomForm()
    phantom = (
        next((phantom for phantom in phantoms() if phantom["file"] == form.name.data), None)
        if form.validate_on_submit()
        else None
    )
    if phantom is None:
        abort(404, "Phantom not found.")
    with _phantom_folder().joinpath(phantom["file"]).open("rb") as content:
        file = FileStorage(content, phantom["file"])
        return submit_and_redirect([file], phantom["title"], Choices())


def submit_and_redirect(
    files: Sequence[FileStorage], title: str, choices: Choices
) -> WerkzeugResponse:
    """Submit files of the current user, and redirect to the scan, or to the worklist if there are
    several.

    Raises:
        UploadRejected: the files are not accepted.
    """
    return _redirect_to_result(_accept_files(files, title, choices))


def phantoms() -> list[dict[str, str]]:
    """Return the installed phantoms, each with `file` (in static/phantoms) and `title`."""
    try:
        offered: list[dict[str, str]] = json.loads(
            _phantom_folder().joinpath("index.json").read_text("utf-8")
        )
    except FileNotFoundError:
        return []
    return offered


def offered_phantoms() -> dict[str, Any]:
    """Return the `phantoms` for a page, and whether the user has another scan (`has_real_scan`),
    which collapses them.
    """
    offered = phantoms()
    real = select(Scan.id).where(
        Scan.user_id == current_user.id,
        Scan.title.not_in([phantom["title"] for phantom in offered]),
    )
    return {
        "phantoms": offered,
        "has_real_scan": db.session.scalar(real.limit(1)) is not None,
    }


def _phantom_folder() -> Path:
    return Path(current_app.static_folder or "") / "phantoms"


def _page(form: ScanForm) -> str:
    return render_template("scans/new.html", form=form, **offered_phantoms())


def _accept_form(form: ScanForm, **more: Any) -> Receipt:
    choices = Choices(
        stat=form.stat.data,
        pictures=Pictures(form.pictures.data),
        studies=Studies(form.studies.data),
        keep_names=form.keep_names.data,
        **more,
    )
    return _accept_files(form.file.data, form.title.data or "", choices)


def _accept_files(files: Sequence[FileStorage], title: str, choices: Choices) -> Receipt:
    return accept_upload(current_user.id, files, title, choices, require_access=require_login_still)


def _redirect_to_result(receipt: Receipt) -> WerkzeugResponse:
    """Redirect to the submitted scan, or to the worklist if there are several."""
    if not receipt.reachable:
        flash(QUEUE_UNAVAILABLE, "warning")
    scans = receipt.scans
    if len(scans) == 1:
        return redirect(url_for("scans.show", scan_id=scans[0].id))
    flash(f"{len(scans)} scans were submitted.", "success")
    for note in scans[0].notes or []:
        flash(note, "warning")
    return redirect(url_for("worklist.show"))
