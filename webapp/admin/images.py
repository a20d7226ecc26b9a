"""The pages of the images of a data set: a grid with filters, one image, and label corrections.
Addresses contain the numbers of images, patients and groups, never names.
"""

from __future__ import annotations

from typing import Any

from flask import Response, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select
from wtforms import RadioField, SelectChoice, StringField
from wtforms.validators import DataRequired

from webapp.admin.pages import (
    REFUSED,
    blueprint,
    is_pending,
    live_page,
    warn_of_delay,
)
from webapp.extensions import db
from webapp.forms import PostedForm, TextField, at_most
from webapp.learning.corrections import (
    MAX_NAME,
    CorrectionRefused,
    apply_corrections,
    correct,
    corrections_of,
    suggested_name,
    versions_around,
    waiting_corrections,
)
from webapp.learning.dataset_images import LABELS, ImageFilterForm, neighbors_of, page_of_images
from webapp.learning.previews import preview_of
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetImage,
    DatasetPair,
    JobStatus,
    LabelCorrection,
    Preview,
    analysis_of,
    thumbnails_file,
)
from webapp.scans.pictures import private_response
from webapp.scans.stored_volume import WINDOWS
from webapp.storage import StorageError, storage

LABEL_NAMES = {label: name for name, label in LABELS.items()}
MOST_PAIRS_SHOWN = 24


class LabelForm(PostedForm):
    """The label that an image should have, and why."""

    label = RadioField(
        "Label",
        choices=[
            SelectChoice("positive", "Hemorrhage"),
            SelectChoice("negative", "Normal"),
            SelectChoice("unlabeled", "Unknown"),
        ],
        validators=[DataRequired("Choose a label.")],
    )
    reason = TextField(
        "Reason",
        [at_most(200)],
        description="Optional. Stored with the new version; please do not enter patient names.",
    )


class ApplyForm(PostedForm):
    """The name of the next version of a data set."""

    name: StringField = TextField(
        "Name of the new version", [DataRequired("Enter a name."), at_most(MAX_NAME)]
    )


@blueprint.get("/datasets/<dataset_id>/images")
@blueprint.get("/datasets/<dataset_id>/images/progress", endpoint="images_progress")
def images(dataset_id: str) -> Response:
    """Show a page of the images of a data set that match the filters in the address; while a worker
    indexes them, show its progress.
    """
    dataset = db.get_or_404(Dataset, dataset_id)
    index_job = analysis_of(dataset_id, AnalysisKind.IMAGES)
    form = ImageFilterForm(dataset, request.args)
    chosen = form.chosen
    context: dict[str, Any] = {}
    if index_job is not None and index_job.status == JobStatus.DONE:
        page, total, rows = page_of_images(dataset_id, chosen)
        numbers = [row.number for row in rows]
        context = {
            "page": page,
            "total": total,
            "rows": rows,
            "corrected": set(
                db.session.scalars(
                    select(LabelCorrection.number).where(
                        LabelCorrection.dataset_id == dataset_id,
                        LabelCorrection.number.in_(numbers),
                    )
                )
            ),
            "waiting": waiting_corrections(dataset_id),
        }
    return live_page(
        "images",
        pending=index_job is not None and is_pending(index_job),
        dataset=dataset,
        index_job=index_job,
        form=form,
        chosen=chosen,
        filtered=any(name != "sort" for name in chosen),
        label_names=LABEL_NAMES,
        **context,
    )


@blueprint.get("/datasets/<dataset_id>/images/<int:number>")
@blueprint.get(
    "/datasets/<dataset_id>/images/<int:number>/progress", endpoint="dataset_image_progress"
)
def dataset_image(dataset_id: str, number: int) -> Response:
    """Show one image of a data set with its label, facts and near-duplicates."""
    return show_image(dataset_id, number, LabelForm(formdata=None))


def show_image(dataset_id: str, number: int, form: LabelForm, status: int = 200) -> Response:
    """Render the page with this form."""
    dataset, image = db.get_or_404(Dataset, dataset_id), image_of(dataset_id, number)
    chosen = ImageFilterForm(dataset, request.args).chosen
    previous, following = neighbors_of(dataset_id, number, chosen)
    window = request.args.get("window", "brain")
    preview = None
    if image.thumbnail_at is not None:
        may_retry = not request.path.endswith("/progress")
        preview = picture_of(image, window, may_retry=may_retry)
    shows_outline = request.args.get("outline") != "no"
    correction = db.session.get(LabelCorrection, (dataset_id, number))
    if form.label.data is None:
        form.label.data = LABEL_NAMES[correction.label if correction else image.label]
        form.reason.data = correction.reason if correction else ""
    return live_page(
        "image",
        status=status,
        pending=image.thumbnail_at is not None and (preview is None or is_pending(preview)),
        dataset=dataset,
        image=image,
        preview=preview,
        step=step_shown(preview, with_outline=shows_outline) if preview else 0,
        shows_outline=shows_outline,
        window=window if window in WINDOWS else "brain",
        windows=WINDOWS,
        previous=previous,
        following=following,
        chosen=chosen,
        same=same_as(image),
        correction=correction,
        waiting=waiting_corrections(dataset_id),
        form=form,
        label_names=LABEL_NAMES,
    )


def picture_of(image: DatasetImage, window: str, *, may_retry: bool) -> Preview | None:
    """Return a readable image as a rendered preview, in a window of `WINDOWS` (the brain window for
    any other name), and with its outline; the first request queues it (`preview_of`).
    """
    level, width = WINDOWS.get(window, WINDOWS["brain"])
    return preview_of(
        {"dataset": image.dataset_id, "image": image.number},
        {"kind": "picture", "level": level, "width": width},
        may_retry=may_retry,
    )


def step_shown(preview: Preview, *, with_outline: bool) -> int:
    """Return which step of a finished `picture_of` is shown: 1, the outlined one, if it was
    requested and exists.
    """
    outlined = (preview.result or [])[1:]
    return int(with_outline and bool(outlined) and bool(outlined[0]["pictures"]))


def image_of(dataset_id: str, number: int) -> DatasetImage:
    """Return an image of a data set; 404 if there is none."""
    image: DatasetImage = db.get_or_404(DatasetImage, (dataset_id, number))
    return image


def same_as(image: DatasetImage) -> list[DatasetImage]:
    """Return the near-duplicates of an image."""
    return list(
        db.session.scalars(
            select(DatasetImage)
            .join(
                DatasetPair,
                (DatasetPair.dataset_id == DatasetImage.dataset_id)
                & (DatasetPair.other == DatasetImage.number),
            )
            .where(DatasetPair.dataset_id == image.dataset_id, DatasetPair.number == image.number)
            .order_by(DatasetImage.number)
            .limit(MOST_PAIRS_SHOWN)
        )
    )


@blueprint.get("/datasets/<dataset_id>/images/<int:number>/thumbnail.jpg")
def image_thumbnail(dataset_id: str, number: int) -> ResponseReturnValue:
    """Send the thumbnail of an image, which a worker made; a placeholder if it is missing."""
    image = image_of(dataset_id, number)
    start, length = image.thumbnail_at, image.thumbnail_bytes
    if start is not None and length is not None:
        key, stop = thumbnails_file(dataset_id), start + length
        try:
            return private_response(
                "image/jpeg", f"{key} {start}", lambda: storage.get(key, start, stop)
            )
        except StorageError:
            pass  # The page shows a message instead.
    return redirect(url_for("static", filename="no-picture.svg"))


@blueprint.post("/datasets/<dataset_id>/images/<int:number>/label")
def correct_label(dataset_id: str, number: int) -> ResponseReturnValue:
    """Record a label correction, to be applied together with others."""
    dataset, image = db.get_or_404(Dataset, dataset_id), image_of(dataset_id, number)
    form = LabelForm()
    if form.validate_on_submit():
        try:
            waits = correct(dataset, image, LABELS[form.label.data], form.reason.data or "")
        except CorrectionRefused as err:
            form.form_errors.append(str(err))
        else:
            flash(
                "The correction has been saved. It takes effect when you apply it as a new version."
                if waits
                else "This image has no pending correction.",
                "success",
            )
            chosen = ImageFilterForm(dataset, request.args).chosen
            return redirect(
                url_for("admin.dataset_image", dataset_id=dataset_id, number=number, **chosen)
            )
    return show_image(dataset_id, number, form, REFUSED)


@blueprint.get("/datasets/<dataset_id>/corrections")
def corrections(dataset_id: str) -> Response:
    """Show the pending corrections of a data set, and those already applied in it."""
    return show_corrections(dataset_id, ApplyForm(formdata=None))


def show_corrections(dataset_id: str, form: ApplyForm, status: int = 200) -> Response:
    """Render the page with this form."""
    dataset = db.get_or_404(Dataset, dataset_id)
    form.name.data = form.name.data or suggested_name(dataset.name)
    before, after = versions_around(dataset)
    return live_page(
        "corrections",
        status=status,
        pending=False,
        dataset=dataset,
        waiting=corrections_of(dataset_id),
        before=before,
        after=after,
        form=form,
        label_names=LABEL_NAMES,
    )


@blueprint.post("/datasets/<dataset_id>/corrections")
def apply_all(dataset_id: str) -> ResponseReturnValue:
    """Have a worker make the next version of a data set, with all pending corrections."""
    dataset = db.get_or_404(Dataset, dataset_id)
    form = ApplyForm()
    if form.validate_on_submit():
        try:
            corrected, was_nudged = apply_corrections(dataset, form.name.data, current_user.id)
        except CorrectionRefused as err:
            form.form_errors.append(str(err))
        else:
            if not was_nudged:
                warn_of_delay()
            flash(f"{corrected.name} is waiting for a worker.", "success")
            return redirect(url_for("admin.dataset", dataset_id=corrected.id))
    return show_corrections(dataset_id, form, REFUSED)
