"""Data sets: import, content and deletion; and data sets of confirmed scans."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from io import BytesIO
from pathlib import Path
from typing import Any

from flask import Response, current_app, g, request, send_file
from sqlalchemy import select
from sqlalchemy.orm import defer
from werkzeug.exceptions import (
    Conflict,
    NotFound,
    RequestEntityTooLarge,
    UnprocessableEntity,
    UnsupportedMediaType,
)

from webapp.admin.datasets import IMPORTED, stop_import, uploaded_form
from webapp.api.access import UPLOAD_REFUSED, blueprint, operation, row_of
from webapp.api.lab_schemas import (
    ConfirmedDatasetSchema,
    DatasetSchema,
    DatasetsPageSchema,
    DatasetSummarySchema,
)
from webapp.api.lists import PageQuerySchema, listed, page_of
from webapp.api.pictures import BINARY
from webapp.api.work import work_as_json
from webapp.deletion import StillNeeded, delete_dataset
from webapp.intake import UploadRejected, accept_dataset
from webapp.learning.confirmed import Filter, RequestRefused, request_dataset
from webapp.models import Dataset, Scope
from webapp.storage import storage

GET, POST, DELETE = HTTPMethod.GET, HTTPMethod.POST, HTTPMethod.DELETE


@operation(GET, "/datasets", "list_datasets", Scope.ADMIN, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, DatasetsPageSchema)
def list_datasets(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the data sets, newest first."""
    rows = select(Dataset).options(defer(Dataset.exploration))
    page = page_of(rows, (Dataset.created_at.desc(), Dataset.id), query)
    return listed([dataset_as_json(row[0]) for row in page])


@operation(POST, "/datasets", "import_dataset", Scope.ADMIN, *UPLOAD_REFUSED, streams=True)
@blueprint.doc(
    requestBody={
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "archive"],
                    "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": 80},
                        "archive": {
                            "type": "string",
                            "format": "binary",
                            "description": (
                                "A ZIP file in one of the layouts that the documentation describes."
                            ),
                        },
                    },
                }
            }
        },
    }
)
@blueprint.response(202, DatasetSummarySchema)
def import_dataset() -> dict[str, Any]:
    """Import a ZIP file of labeled images, which a worker reads. Names are unique, so a repeated
    import is refused.
    """
    if request.mimetype not in ("", "multipart/form-data"):
        raise UnsupportedMediaType("Send multipart/form-data with “name” and “archive”.")
    with uploaded_form() as form:
        if form is None:
            most = current_app.config["MAX_DATASET_MB"]
            raise RequestEntityTooLarge(f"The archive is larger than the limit of {most:,} MB.")
        name, archive = form.get("name"), form.get("archive")
        if not isinstance(name, str) or archive is None or isinstance(archive, str):
            raise UnprocessableEntity("Send a text “name” and a ZIP file “archive”.")
        try:
            dataset = accept_dataset(name, Path(archive.stream.name), g.token_owner_id)
        except UploadRejected as err:
            raise UnprocessableEntity(str(err)) from err
    return dataset_as_json(dataset)


@operation(POST, "/datasets/confirmed", "make_confirmed_dataset", Scope.ADMIN)
@blueprint.arguments(ConfirmedDatasetSchema, location="json")
@blueprint.response(202, DatasetSummarySchema)
def make_confirmed_dataset(body: Mapping[str, Any]) -> dict[str, Any]:
    """Have a data set made from the confirmed scans that are shared with the reviewers."""
    chosen = Filter(
        since=body["since"].isoformat() if body["since"] else None,
        until=body["until"].isoformat() if body["until"] else None,
        kind=body["kind"],
        opinions=body["opinions"],
    )
    try:
        dataset, _ = request_dataset(body["name"].strip(), chosen, g.token_owner_id)
    except RequestRefused as err:
        raise Conflict(str(err)) from err
    return dataset_as_json(dataset)


@operation(GET, "/datasets/<dataset_id>", "read_dataset", Scope.ADMIN, 404)
@blueprint.response(200, DatasetSchema)
def read_dataset(dataset_id: str) -> dict[str, Any]:
    """Get a data set: the progress of its import, then what was found in it."""
    dataset = row_of(Dataset, dataset_id)
    return {**dataset_as_json(dataset), "exploration": dataset.exploration}


@operation(POST, "/datasets/<dataset_id>/cancel", "cancel_import", Scope.ADMIN, 404)
@blueprint.response(200, DatasetSummarySchema)
def cancel_import(dataset_id: str) -> dict[str, Any]:
    """Cancel a queued or running import."""
    if not stop_import(row_of(Dataset, dataset_id)):
        raise Conflict(IMPORTED)
    return dataset_as_json(row_of(Dataset, dataset_id))


@operation(DELETE, "/datasets/<dataset_id>", "delete_dataset", Scope.ADMIN, 404, 409)
@blueprint.response(204)
def remove_dataset(dataset_id: str) -> None:
    """Delete a data set that is not in use, with its archive and its evaluations."""
    row_of(Dataset, dataset_id)
    try:
        delete_dataset(dataset_id)
    except StillNeeded as err:
        raise Conflict(str(err)) from err


@operation(GET, "/datasets/<dataset_id>/contact-sheet.png", "read_contact_sheet", Scope.ADMIN, 404)
@blueprint.response(200, BINARY, content_type="image/png")
def read_contact_sheet(dataset_id: str) -> Response:
    """Download the contact sheet of sample images."""
    key = row_of(Dataset, dataset_id).contact_sheet_key
    if key is None:
        raise NotFound("This data set has no contact sheet.")
    return send_file(BytesIO(storage.get(key)), mimetype="image/png", etag=key, max_age=0)


def dataset_as_json(dataset: Dataset) -> dict[str, Any]:
    """Return a data set in the form of `DatasetSummarySchema`."""
    return {
        **work_as_json(dataset),
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "made_from": dataset.made_from,
    }
