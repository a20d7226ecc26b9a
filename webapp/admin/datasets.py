"""The pages of data sets: import, exploration and deletion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

from flask import Response, abort, current_app, flash, redirect, request, send_file, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from flask_wtf.csrf import CSRFError
from flask_wtf.file import FileField, FileRequired
from sqlalchemy import select
from sqlalchemy.orm import defer
from werkzeug.datastructures import CombinedMultiDict, MultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from wtforms.validators import DataRequired

from webapp.admin.dataset_questions import distribution_charts
from webapp.admin.outlook import what_a_data_set_allows
from webapp.admin.pages import (
    REFUSED,
    blueprint,
    cancel_job,
    is_pending,
    live_page,
    page_of,
    warn_of_delay,
)
from webapp.charts.distributions import histogram_chart
from webapp.deletion import StillNeeded, delete_dataset
from webapp.extensions import db
from webapp.forms import PostedForm, TextField, at_most
from webapp.intake import UploadRejected, accept_dataset
from webapp.intake.spool import incoming_folder
from webapp.learning.corrections import versions_around, waiting_corrections
from webapp.models import Act, Dataset
from webapp.space import as_storage_full, require_space
from webapp.storage import storage
from webapp.web_extensions import csrf

IMPORTED = "This import has already finished."
MULTIPART_ALLOWANCE = 2**20  # For multipart boundaries and small fields.


class ImportDatasetForm(PostedForm):
    """A name and a ZIP file."""

    name = TextField(
        "Name", validators=[DataRequired("Enter a name for the data set."), at_most(80)]
    )
    archive = FileField(
        "ZIP file",
        validators=[FileRequired("Choose a ZIP file.")],
        description=(
            "A CSV manifest (filename, label and, if known, patient, slice and scan_label), one"
            " folder per class, or the layout of Kaggle's head_ct, the 2019 RSNA challenge or"
            " CQ500."
        ),
    )


@blueprint.get("/datasets")
@blueprint.get("/datasets/progress", endpoint="datasets_progress")
def datasets() -> Response:
    """List the data sets, with a form to import another."""
    return list_datasets(ImportDatasetForm())


def list_datasets(form: ImportDatasetForm, status: int = 200) -> Response:
    """Render the list with this form."""
    counts = [Dataset.exploration[key].as_integer() for key in ("images", "positive", "negative")]
    page = page_of(
        Dataset,
        select(Dataset, *counts)
        .options(defer(Dataset.exploration))
        .order_by(Dataset.created_at.desc(), Dataset.id),
    )
    pending = any(is_pending(row[0]) for row in page.rows)
    return live_page("datasets", status=status, pending=pending, page=page, form=form)


@blueprint.post("/datasets")
# The global check would read the archive into a temporary folder first; the form checks the token.
@csrf.exempt
def import_dataset() -> ResponseReturnValue:
    """Accept a ZIP file as a data set, for a train worker to import."""
    user_id = current_user.id
    # An upload may take minutes, and an open transaction would hold SQLite's write lock.
    db.session.commit()
    with uploaded_form() as fields:
        if fields is None:
            form = ImportDatasetForm(formdata=None)
            form.form_errors.append(
                f"The archive is larger than the limit of {current_app.config['MAX_DATASET_MB']:,}"
                " MB."
            )
            return list_datasets(form, 413)
        form = ImportDatasetForm(fields)
        if form.validate():
            try:
                dataset = accept_dataset(
                    form.name.data, Path(form.archive.data.stream.name), user_id, warn_of_delay
                )
            except UploadRejected as err:
                form.form_errors.append(str(err))
            else:
                flash(
                    f"The data set {dataset.name} has been uploaded and is queued for import.",
                    "success",
                )
                return redirect(url_for("admin.dataset", dataset_id=dataset.id))
        if "csrf_token" in form.errors:
            raise CSRFError(form.errors["csrf_token"][0])
    return list_datasets(form, REFUSED)


@contextmanager
def uploaded_form() -> Iterator[MultiDict[str, Any] | None]:
    """Yield the posted fields and files, or None if the body exceeds the limit for data sets.

    Files are spooled under HEMOSCAN_HOME, readable by their owner only, and deleted when the
    context ends.
    """
    with ExitStack() as spooled:

        def spool(*_: object, **__: object) -> IO[bytes]:
            require_space(request.content_length or 0)
            return spooled.enter_context(
                NamedTemporaryFile(dir=incoming_folder(), prefix="dataset-", suffix=".zip")
            )

        parser = FormDataParser(
            stream_factory=spool,
            max_content_length=current_app.config["MAX_DATASET_MB"] * 2**20 + MULTIPART_ALLOWANCE,
            max_form_memory_size=current_app.config["MAX_FORM_MEMORY_SIZE"],
            max_form_parts=10,
        )
        try:
            with as_storage_full():
                _, fields, files = parser.parse_from_environ(request.environ)
        except RequestEntityTooLarge:
            yield None
            return
        with as_storage_full():
            for stream in files.values():
                stream.flush()
        yield CombinedMultiDict([files, fields])


@blueprint.get("/datasets/<dataset_id>")
@blueprint.get("/datasets/<dataset_id>/progress", endpoint="dataset_progress")
def dataset(dataset_id: str) -> Response:
    """Show the contents of a data set."""
    row = db.get_or_404(Dataset, dataset_id)
    histograms = (row.exploration or {}).get("histograms")
    charts = distribution_charts(row)
    before, after = versions_around(row)
    return live_page(
        "dataset",
        pending=is_pending(row),
        dataset=row,
        allows=what_a_data_set_allows(row.exploration),
        charts=charts,
        # A data set imported by an earlier version lacks the other charts.
        grays=histogram_chart(histograms) if histograms and not charts else None,
        before=before,
        after=after,
        waiting=waiting_corrections(dataset_id),
    )


@blueprint.post("/datasets/<dataset_id>/cancel")
def cancel_import(dataset_id: str) -> ResponseReturnValue:
    """Cancel a queued or running import; its worker notices within seconds and continues with
    others.
    """
    if not stop_import(db.get_or_404(Dataset, dataset_id)):
        flash(IMPORTED, "warning")
    return redirect(url_for("admin.dataset", dataset_id=dataset_id))


def stop_import(dataset: Dataset) -> bool:
    """Cancel the import of a data set, and commit; False if it has ended."""
    cancelled = cancel_job(Dataset, dataset.id, Act.IMPORT_CANCELLED)
    # A corrected version shares the archive of the version before.
    if cancelled and dataset.corrections is None:
        storage.discard(dataset.archive_key)
    return cancelled


@blueprint.post("/datasets/<dataset_id>/delete")
def remove_dataset(dataset_id: str) -> ResponseReturnValue:
    """Delete a data set with its archive."""
    name = db.get_or_404(Dataset, dataset_id).name
    try:
        all_removed = delete_dataset(dataset_id)
    except StillNeeded as err:
        flash(str(err), "warning")
        return redirect(url_for("admin.dataset", dataset_id=dataset_id))
    if all_removed:
        flash(f"The data set {name} has been deleted.", "success")
    else:
        flash(
            f"The data set {name} has been deleted. Its files will be removed soon.",
            "warning",
        )
    return redirect(url_for("admin.datasets"))


@blueprint.get("/datasets/<dataset_id>/contact-sheet.png")
def contact_sheet(dataset_id: str) -> ResponseReturnValue:
    """Send the contact sheet of sample images."""
    key = db.session.scalar(select(Dataset.contact_sheet_key).where(Dataset.id == dataset_id))
    if key is None:
        abort(404)
    # A storage key is never written twice, so it identifies the content.
    if request.if_none_match.contains(key):
        return "", 304
    return send_file(BytesIO(storage.get(key)), mimetype="image/png", etag=key, max_age=0)
