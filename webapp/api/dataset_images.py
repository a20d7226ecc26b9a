"""Individual images of a data set, label corrections, and analyses of data sets by a train
worker.

Images, patients and groups have numbers, not names; only the response for a single image contains
names.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from flask import Response, g
from sqlalchemy import select
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import Conflict, NotFound

from webapp.admin.dataset_questions import (
    index,
    retry_question,
    source_comparison,
    split_preview,
)
from webapp.admin.images import picture_of, same_as, step_shown
from webapp.admin.processing import stored_picture
from webapp.api.access import blueprint, operation, row_of
from webapp.api.datasets import dataset_as_json
from webapp.api.explorer_schemas import (
    ApplyCorrectionsSchema,
    CompareDatasetsSchema,
    CorrectionsPageSchema,
    CorrectLabelSchema,
    DatasetImageSchema,
    DatasetImagesPageSchema,
    DatasetImagesQuerySchema,
    DatasetPictureQuerySchema,
    DatasetQuestionSchema,
    SplitQuestionSchema,
)
from webapp.api.lab_schemas import DatasetSummarySchema
from webapp.api.lists import PageQuerySchema, listed, page_of, part_of
from webapp.api.pictures import BINARY, NotYet, may_come
from webapp.api.work import work_as_json
from webapp.extensions import db
from webapp.learning.corrections import (
    CorrectionRefused,
    apply_corrections,
    correct,
    corrections_of,
)
from webapp.learning.dataset_images import LABELS, SORTS, ImageFilterForm, images_of
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetAnalysis,
    DatasetImage,
    JobStatus,
    LabelCorrection,
    Scope,
    analysis_of,
    thumbnails_file,
)
from webapp.storage import storage

GET, POST = HTTPMethod.GET, HTTPMethod.POST
LABEL_NAMES = {label: name for name, label in LABELS.items()}
NO_SUCH_IMAGE = "Image not found."
NOT_READY = "This data set is not ready."
NOT_INDEXED = "The images of this data set are not indexed yet. Call index_images first."
NOT_FAILED = "Only failed analyses can be requested again."


@operation(POST, "/datasets/<dataset_id>/images", "index_images", Scope.ADMIN, 404)
@blueprint.response(202, DatasetQuestionSchema)
def index_images(dataset_id: str) -> dict[str, Any]:
    """Have a worker index the images of a data set that was imported before imports did this, or
    retry; an existing index is returned.
    """
    dataset = row_of(Dataset, dataset_id)
    if dataset.status != JobStatus.DONE:
        raise Conflict(NOT_READY)
    index(dataset.id)
    return question_as_json(_existing(analysis_of(dataset_id, AnalysisKind.IMAGES)))


@operation(GET, "/datasets/<dataset_id>/images", "list_dataset_images", Scope.ADMIN, 404, 409, 422)
@blueprint.arguments(DatasetImagesQuerySchema, location="query")
@blueprint.response(200, DatasetImagesPageSchema)
def list_dataset_images(query: Mapping[str, Any], dataset_id: str) -> dict[str, Any]:
    """List the images of a data set that match the filters, in the requested order."""
    dataset = indexed(dataset_id)
    filters = {
        name: str(value)
        for name, value in query.items()
        if value is not None and name not in ("cursor", "limit")
    }
    # The page validates the same way; sizes and sources must be among those that exist.
    chosen = ImageFilterForm(dataset, MultiDict(filters)).chosen
    if missing := filters.keys() - chosen.keys():
        return listed([], unmatched=sorted(missing))
    _, value, descends = SORTS[chosen.get("sort", "")]
    order = (value.desc() if descends else value.asc(), DatasetImage.number)
    rows = page_of(select(DatasetImage).where(*images_of(dataset_id, chosen)), order, query)
    return listed([image_as_json(row[0]) for row in rows], unmatched=[])


@operation(
    GET, "/datasets/<dataset_id>/images/<int:number>", "read_dataset_image", Scope.ADMIN, 404
)
@blueprint.response(200, DatasetImageSchema)
def read_dataset_image(dataset_id: str, number: int) -> dict[str, Any]:
    """Get an image of a data set with everything known about it, its near-duplicates, and the
    pending correction of its label.
    """
    return whole_image(image_of(dataset_id, number))


@operation(
    GET,
    "/datasets/<dataset_id>/images/<int:number>/thumbnail.jpg",
    "read_dataset_thumbnail",
    Scope.ADMIN,
    404,
)
@blueprint.response(200, BINARY, content_type="image/jpeg")
def read_dataset_thumbnail(dataset_id: str, number: int) -> Response:
    """Download the thumbnail of an image."""
    image = image_of(dataset_id, number)
    start, length = image.thumbnail_at, image.thumbnail_bytes
    if start is None or length is None:
        raise NotFound("This image has no thumbnail because it could not be read.")
    content = storage.get(thumbnails_file(dataset_id), start, start + length)
    return Response(content, content_type="image/jpeg")


@operation(
    GET,
    "/datasets/<dataset_id>/images/<int:number>/picture.png",
    "read_dataset_picture",
    Scope.ADMIN,
    404,
    422,
)
@may_come
@blueprint.arguments(DatasetPictureQuerySchema, location="query")
@blueprint.response(200, BINARY, content_type="image/png")
def read_dataset_picture(query: Mapping[str, Any], dataset_id: str, number: int) -> Response:
    """Download an image at full size, in a window and with its outline; a worker renders it on the
    first request.
    """
    image = image_of(dataset_id, number)
    if image.thumbnail_at is None:
        raise NotFound("This image cannot be shown because it could not be read.")
    preview = picture_of(image, query["window"], may_retry=True)
    if preview is None or not JobStatus(preview.status).is_final:
        raise NotYet("The image is not ready yet.")
    if preview.status != JobStatus.DONE:
        raise NotFound(preview.error or "The image could not be generated.")
    step = step_shown(preview, with_outline=query["outline"] == "yes")
    return stored_picture(preview, step, 0)


@operation(
    POST, "/datasets/<dataset_id>/images/<int:number>/label", "correct_label", Scope.ADMIN, 404
)
@blueprint.arguments(CorrectLabelSchema, location="json")
@blueprint.response(200, DatasetImageSchema)
def correct_label(body: Mapping[str, Any], dataset_id: str, number: int) -> dict[str, Any]:
    """Record a label correction, replacing an earlier one; a correction to the current label
    withdraws it. Corrections take effect once they are applied together.
    """
    image = image_of(dataset_id, number)
    try:
        correct(row_of(Dataset, dataset_id), image, LABELS[body["label"]], body["reason"])
    except CorrectionRefused as err:
        raise Conflict(str(err)) from err
    return whole_image(image)


@operation(GET, "/datasets/<dataset_id>/corrections", "list_corrections", Scope.ADMIN, 404, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, CorrectionsPageSchema)
def list_corrections(query: Mapping[str, Any], dataset_id: str) -> dict[str, Any]:
    """List the pending label corrections."""
    waiting = corrections_of(row_of(Dataset, dataset_id).id)
    page = part_of(waiting, lambda correction: str(correction.number), query)
    return listed([correction_as_json(correction) for correction in page])


@operation(POST, "/datasets/<dataset_id>/corrections", "apply_corrections", Scope.ADMIN, 404)
@blueprint.arguments(ApplyCorrectionsSchema, location="json")
@blueprint.response(202, DatasetSummarySchema)
def apply_all_corrections(body: Mapping[str, Any], dataset_id: str) -> dict[str, Any]:
    """Have a worker make the next version of a data set, with all pending corrections."""
    try:
        corrected, _ = apply_corrections(
            row_of(Dataset, dataset_id), body["name"], g.token_owner_id
        )
    except CorrectionRefused as err:
        raise Conflict(str(err)) from err
    return dataset_as_json(corrected)


@operation(POST, "/datasets/<dataset_id>/splits", "preview_split", Scope.ADMIN, 404)
@blueprint.arguments(SplitQuestionSchema, location="json")
@blueprint.response(202, DatasetQuestionSchema)
def preview_split(body: Mapping[str, Any], dataset_id: str) -> dict[str, Any]:
    """Request a preview of how a training run on a data set alone would split it; an identical
    request returns the existing preview.
    """
    dataset = indexed(dataset_id)
    return question_as_json(_existing(split_preview(dataset.id, body["folds"], body["seed"])))


@operation(POST, "/datasets/<dataset_id>/differences", "compare_datasets", Scope.ADMIN, 404)
@blueprint.arguments(CompareDatasetsSchema, location="json")
@blueprint.response(202, DatasetQuestionSchema)
def compare_datasets(body: Mapping[str, Any], dataset_id: str) -> dict[str, Any]:
    """Request a comparison: how well simple features tell two data sets apart, and which images
    both have.
    """
    if body["other_id"] == dataset_id:
        raise Conflict("Choose two data sets.")
    one, other = indexed(dataset_id), indexed(body["other_id"])
    return question_as_json(_existing(source_comparison(one, other)))


@operation(GET, "/questions/<question_id>", "read_question", Scope.ADMIN, 404)
@blueprint.response(200, DatasetQuestionSchema)
def read_question(question_id: str) -> dict[str, Any]:
    """Get an analysis of data sets: its progress, then its result."""
    return question_as_json(row_of(DatasetAnalysis, question_id))


@operation(POST, "/questions/<question_id>/retry", "retry_question", Scope.ADMIN, 404)
@blueprint.response(202, DatasetQuestionSchema)
def ask_again(question_id: str) -> dict[str, Any]:
    """Retry an analysis that failed."""
    if not retry_question(row_of(DatasetAnalysis, question_id)):
        raise Conflict(NOT_FAILED)
    return question_as_json(row_of(DatasetAnalysis, question_id))


def indexed(dataset_id: str) -> Dataset:
    """Return a data set whose images are indexed.

    Raises:
        NotFound: there is no such data set.
        Conflict: its images are not indexed.
    """
    dataset = row_of(Dataset, dataset_id)
    job = analysis_of(dataset_id, AnalysisKind.IMAGES)
    if job is None or job.status != JobStatus.DONE:
        raise Conflict(NOT_INDEXED)
    return dataset


def image_of(dataset_id: str, number: int) -> DatasetImage:
    """Return an image of a data set.

    Raises:
        NotFound: there is none.
    """
    row_of(Dataset, dataset_id)
    image = db.session.get(DatasetImage, (dataset_id, number))
    if image is None:
        raise NotFound(NO_SUCH_IMAGE)
    return image


def _existing(question: DatasetAnalysis | None) -> DatasetAnalysis:
    """Return the analysis that was just requested.

    Raises:
        NotFound: the data set was deleted meanwhile.
    """
    if question is None:
        raise NotFound("Data set not found.")
    return question


def image_as_json(image: DatasetImage) -> dict[str, Any]:
    """Return an image in the form used in lists (`DatasetImageSummarySchema`)."""
    return {
        "number": image.number,
        "label": LABEL_NAMES[image.label],
        "types": [name for name in (image.types or "").split("|") if name],
        "patient": image.patient,
        "group": image.group,
        "source": image.source,
        "width": image.width,
        "height": image.height,
        "has_outline": image.mask is not None,
        "has_thumbnail": image.thumbnail_at is not None,
        "problems": [{"kind": kind, "sentence": sentence} for kind, sentence in image.problems],
    }


def whole_image(image: DatasetImage) -> dict[str, Any]:
    """Return an image in the form of `DatasetImageSchema`."""
    waits = db.session.get(LabelCorrection, (image.dataset_id, image.number))
    return {
        **image_as_json(image),
        "name": image.name,
        "bytes": image.bytes,
        "sha256": image.sha256,
        "dhash": image.dhash,
        "gray": image.gray,
        "head_share": image.head_share,
        "slice": image.slice,
        "place_mm": image.place_mm,
        "near_duplicates": [image_as_json(other) for other in same_as(image)],
        "correction": waits and correction_as_json(waits),
    }


def correction_as_json(correction: LabelCorrection) -> dict[str, Any]:
    """Return a correction in the form of `CorrectionSchema`."""
    return {
        "number": correction.number,
        "was": LABEL_NAMES[correction.image.label],
        "label": LABEL_NAMES[correction.label],
        "reason": correction.reason,
        "by": correction.by and correction.by.username,
        "at": correction.at,
    }


def question_as_json(question: DatasetAnalysis) -> dict[str, Any]:
    """Return an analysis in the form of `DatasetQuestionSchema`."""
    return {
        **work_as_json(question),
        "kind": AnalysisKind(question.kind),
        "dataset_id": question.dataset_id,
        "other_id": question.other_id,
        "result": question.result,
    }
