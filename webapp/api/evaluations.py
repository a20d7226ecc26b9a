"""Evaluations of model versions on data sets, and comparisons with the live version."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from flask import Response, current_app, g
from sqlalchemy import or_, select
from sqlalchemy.orm import defer, joinedload
from werkzeug.exceptions import Conflict, NotFound

from webapp.admin.evaluations import (
    ENDED,
    NOT_READY,
    NOT_RESTARTED,
    request_evaluation,
    restart_evaluation,
    stop_evaluation,
    stored_file,
)
from webapp.admin.versions import request_comparison_with_live
from webapp.api.access import blueprint, operation, row_of
from webapp.api.lab_schemas import (
    CompareSchema,
    ComparisonSchema,
    ComparisonsPageSchema,
    ComparisonsQuerySchema,
    EvaluateSchema,
    EvaluationSchema,
    EvaluationsPageSchema,
    EvaluationsQuerySchema,
    EvaluationSummarySchema,
)
from webapp.api.lists import listed, page_of
from webapp.api.pictures import BINARY
from webapp.api.work import work_as_json
from webapp.learning.confirmed import RequestRefused
from webapp.models import (
    Comparison,
    Dataset,
    Evaluation,
    JobStatus,
    ModelVersion,
    Scope,
    comparison_of,
    live_version,
)

GET, POST = HTTPMethod.GET, HTTPMethod.POST


@operation(GET, "/evaluations", "list_evaluations", Scope.ADMIN, 422)
@blueprint.arguments(EvaluationsQuerySchema, location="query")
@blueprint.response(200, EvaluationsPageSchema)
def list_evaluations(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the evaluations, newest first; optionally of one version or data set."""
    rows = select(Evaluation).options(
        joinedload(Evaluation.dataset).load_only(Dataset.name),
        defer(Evaluation.curves),
        defer(Evaluation.mistakes),
    )
    if query["version"]:
        rows = rows.where(Evaluation.version_id == query["version"])
    if query["dataset"]:
        rows = rows.where(Evaluation.dataset_id == query["dataset"])
    page = page_of(rows, (Evaluation.created_at.desc(), Evaluation.id), query)
    return listed([evaluation_as_json(row[0]) for row in page])


@operation(POST, "/evaluations", "evaluate_model", Scope.ADMIN, 404)
@blueprint.arguments(EvaluateSchema, location="json")
@blueprint.response(202, EvaluationSummarySchema)
def evaluate_model(body: Mapping[str, Any]) -> dict[str, Any]:
    """Have a version scored on a data set; each pair is scored once, so an existing evaluation is
    returned.
    """
    version = row_of(ModelVersion, body["version_id"])
    dataset = row_of(Dataset, body["dataset_id"])
    if dataset.status != JobStatus.DONE:
        raise Conflict(NOT_READY)
    try:
        evaluation_id, _ = request_evaluation(version.id, dataset.id, g.token_owner_id)
    except RequestRefused as err:
        raise Conflict(str(err)) from err
    return evaluation_as_json(row_of(Evaluation, evaluation_id))


@operation(GET, "/evaluations/<evaluation_id>", "read_evaluation", Scope.ADMIN, 404)
@blueprint.response(200, EvaluationSchema)
def read_evaluation(evaluation_id: str) -> dict[str, Any]:
    """Get an evaluation: its progress, then figures, curves and the worst mistakes."""
    evaluation = row_of(Evaluation, evaluation_id)
    return {
        **evaluation_as_json(evaluation),
        "curves": evaluation.curves,
        "mistakes": evaluation.mistakes or [],
    }


@operation(POST, "/evaluations/<evaluation_id>/cancel", "cancel_evaluation", Scope.ADMIN, 404)
@blueprint.response(200, EvaluationSummarySchema)
def cancel_evaluation(evaluation_id: str) -> dict[str, Any]:
    """Cancel a queued or running evaluation."""
    if not stop_evaluation(row_of(Evaluation, evaluation_id)):
        raise Conflict(ENDED)
    return evaluation_as_json(row_of(Evaluation, evaluation_id))


@operation(POST, "/evaluations/<evaluation_id>/retry", "retry_evaluation", Scope.ADMIN, 404)
@blueprint.response(202, EvaluationSummarySchema)
def retry_evaluation(evaluation_id: str) -> dict[str, Any]:
    """Queue a failed or canceled evaluation again."""
    row_of(Evaluation, evaluation_id)
    if restart_evaluation(evaluation_id) is None:
        raise Conflict(NOT_RESTARTED)
    return evaluation_as_json(row_of(Evaluation, evaluation_id))


@operation(
    GET, "/evaluations/<evaluation_id>/answers.csv", "read_evaluation_answers", Scope.ADMIN, 404
)
@blueprint.response(200, {"type": "string"}, content_type="text/csv")
def read_evaluation_answers(evaluation_id: str) -> Response:
    """Download the table of all predictions of an evaluation."""
    return file_of(evaluation_id, "answers.csv", "text/csv")


@operation(
    GET,
    "/evaluations/<evaluation_id>/mistakes/<int:index>.png",
    "read_mistake",
    Scope.ADMIN,
    404,
)
@blueprint.response(200, BINARY, content_type="image/png")
def read_mistake(evaluation_id: str, index: int) -> Response:
    """Download the image of one of the worst mistakes."""
    return mistake_of(evaluation_id, index)


@operation(
    GET,
    "/evaluations/<evaluation_id>/mistakes/<int:index>/heatmap.png",
    "read_mistake_heatmap",
    Scope.ADMIN,
    404,
)
@blueprint.response(200, BINARY, content_type="image/png")
def read_mistake_heatmap(evaluation_id: str, index: int) -> Response:
    """Download the heat map of a mistake as an overlay for its image."""
    return mistake_of(evaluation_id, index, "-heat")


def mistake_of(evaluation_id: str, index: int, layer: str = "") -> Response:
    """Return the image of a mistake of an evaluation, or its heat map ("-heat").

    Raises:
        NotFound: there is none.
    """
    evaluation = row_of(Evaluation, evaluation_id)
    if index >= len(evaluation.mistakes or ()):
        raise NotFound("This evaluation has no such mistake.")
    name = evaluation.mistake_key(index, layer).rsplit("/", 1)[-1]
    return file_of(evaluation_id, name, "image/png")


def file_of(evaluation_id: str, name: str, media: str) -> Response:
    """Return a file of a finished evaluation."""
    evaluation = row_of(Evaluation, evaluation_id)
    if evaluation.status != JobStatus.DONE:
        raise NotFound("The evaluation has not finished.")
    return current_app.make_response(stored_file(evaluation, name, media))


@operation(GET, "/comparisons", "list_comparisons", Scope.ADMIN, 422)
@blueprint.arguments(ComparisonsQuerySchema, location="query")
@blueprint.response(200, ComparisonsPageSchema)
def list_comparisons(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the comparisons of versions on the same images, newest first."""
    rows = select(Comparison)
    if version_id := query["version"]:
        rows = rows.where(
            or_(Comparison.version_id == version_id, Comparison.other_id == version_id)
        )
    page = page_of(rows, (Comparison.created_at.desc(), Comparison.id), query)
    return listed([comparison_as_json(row[0]) for row in page])


@operation(POST, "/comparisons", "compare_with_live", Scope.ADMIN, 404)
@blueprint.arguments(CompareSchema, location="json")
@blueprint.response(202, ComparisonSchema)
def compare_with_live(body: Mapping[str, Any]) -> dict[str, Any]:
    """Have a version compared with the live one on the images that both have predictions for."""
    version = row_of(ModelVersion, body["version_id"])
    try:
        request_comparison_with_live(version)
    except RequestRefused as err:
        raise Conflict(str(err)) from err
    live = live_version(version.reads)
    comparison = comparison_of(version, live) if live else None
    if comparison is None:
        raise Conflict("Another version was promoted at the same time. Please try again.")
    return comparison_as_json(comparison)


def evaluation_as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation in the form of `EvaluationSummarySchema`."""
    return {
        **work_as_json(evaluation),
        "version_id": evaluation.version_id,
        "dataset_id": evaluation.dataset_id,
        "dataset": evaluation.dataset.name,
        "result": evaluation.result,
    }


def comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison in the form of `ComparisonSchema`."""
    return {
        **work_as_json(comparison),
        "version_id": comparison.version_id,
        "other_id": comparison.other_id,
        "results": comparison.results,
    }
