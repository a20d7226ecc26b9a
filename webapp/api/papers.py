"""The accuracy graph of a data set, and the paper's experiment that computes most of it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from flask import Response, current_app, g
from marshmallow import Schema, fields, validate
from sqlalchemy import select
from sqlalchemy.orm import joinedload
from werkzeug.exceptions import Conflict, NotFound, UnprocessableEntity

from ml.catalogue import OF_THE_PAPER
from webapp.admin.accuracy import LEVELS, METRICS, PROTOCOLS, accuracy_csv, graph_file, table_of
from webapp.admin.papers import (
    HAS_ENDED,
    NOT_RESUMED,
    add_experiment,
    commit_and_nudge,
    resume_experiment,
    stop_experiment,
)
from webapp.admin.run_form import initial_weights
from webapp.api.access import blueprint, operation, row_of
from webapp.api.idempotency import keep_answer
from webapp.api.lab_schemas import WorkSchema, an_id
from webapp.api.lists import PageQuerySchema, PageSchema, listed, page_of, part_of
from webapp.api.pictures import BINARY
from webapp.api.schemas import A_ID, COUNT
from webapp.api.work import work_as_json
from webapp.learning.confirmed import RequestRefused
from webapp.models import Dataset, PaperExperiment, Scope

GET, POST = HTTPMethod.GET, HTTPMethod.POST
SOURCES = ("out of fold", "evaluation", "control", "paper")


class AccuracyFigureSchema(Schema):
    """A figure of a model on a data set."""

    model = fields.String(required=True)
    source = fields.String(required=True, validate=validate.OneOf(SOURCES))
    protocol = fields.String(
        required=True,
        validate=validate.OneOf(PROTOCOLS),
        metadata={
            "description": "honest: each patient on one side of every split only. leaked:"
            " images and their copies split at random, so figures are inflated and not a result."
        },
    )
    level = fields.String(required=True, validate=validate.OneOf(LEVELS))
    metric = fields.String(required=True, validate=validate.OneOf(METRICS))
    value = fields.Float(required=True)
    low = fields.Float(
        required=True, allow_none=True, metadata={"description": "A limit of the 95% interval."}
    )
    high = fields.Float(required=True, allow_none=True)
    n = fields.Integer(required=True, allow_none=True, validate=COUNT)
    version_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "null: from the paper's experiment."},
    )
    evaluation_id = fields.String(required=True, allow_none=True)


class AccuracyFiguresPageSchema(PageSchema):
    """One page of the figures of models on a data set."""

    items = fields.List(fields.Nested(AccuracyFigureSchema), required=True)


class GraphQuerySchema(Schema):
    """Which graph to draw."""

    metric = fields.String(load_default=METRICS[0], validate=validate.OneOf(METRICS))
    level = fields.String(load_default=LEVELS[0], validate=validate.OneOf(LEVELS))


class LaunchPaperSchema(Schema):
    """The choices for the paper's experiment."""

    dataset_id = an_id()
    architectures = fields.List(
        fields.String(validate=validate.OneOf(OF_THE_PAPER)),
        load_default=list(OF_THE_PAPER),
        validate=validate.Length(1, len(OF_THE_PAPER)),
    )
    initial_weights = fields.String(
        load_default=None,
        allow_none=True,
        validate=validate.Length(max=200),
        metadata={"description": "One of those that `alexnet` offers; null: the default."},
    )


class PaperExperimentSummarySchema(WorkSchema):
    """The paper's experiment on a data set, without its results."""

    dataset_id = fields.String(required=True)
    architectures = fields.List(fields.String(), required=True)
    initial_weights = fields.String(required=True)
    launched_by = fields.String(required=True, allow_none=True)
    eta_s = fields.Float(required=True, allow_none=True)
    cells = fields.Integer(
        required=True,
        allow_none=True,
        validate=COUNT,
        metadata={"description": "Combinations; null until a worker has counted them."},
    )
    cells_done = fields.Integer(required=True, validate=COUNT)


class PaperExperimentSchema(PaperExperimentSummarySchema):
    """The paper's experiment on a data set, with the results of the finished combinations."""

    results = fields.Dict(required=True, allow_none=True)


class PaperExperimentsPageSchema(PageSchema):
    """One page of experiments, newest first."""

    items = fields.List(fields.Nested(PaperExperimentSummarySchema), required=True)


class PaperExperimentsQuerySchema(PageQuerySchema):
    """Filters for experiments."""

    dataset = fields.String(
        load_default=None,
        validate=A_ID,
        metadata={"description": "Only experiments on this data set."},
    )


@operation(GET, "/datasets/<dataset_id>/accuracy", "list_accuracy_figures", Scope.ADMIN, 404, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, AccuracyFiguresPageSchema)
def list_accuracy_figures(query: Mapping[str, Any], dataset_id: str) -> dict[str, Any]:
    """List all figures of models on a data set: from the paper's experiment, from out-of-fold
    predictions of versions and from their leaked controls, and from evaluations.
    """
    known = list(table_of(row_of(Dataset, dataset_id)))
    for place, figure in enumerate(known):
        figure |= {"source": figure["from"], "place": str(place)}
    return listed(part_of(known, lambda figure: figure["place"], query))


@operation(GET, "/datasets/<dataset_id>/accuracy.svg", "draw_accuracy_graph", Scope.ADMIN, 404, 422)
@blueprint.arguments(GraphQuerySchema, location="query")
@blueprint.response(200, BINARY, content_type="image/svg+xml")
def draw_accuracy_graph(query: Mapping[str, Any], dataset_id: str) -> Response:
    """Download the accuracy graph of a data set, with honest and leaked figures side by side."""
    drawn = graph_file(row_of(Dataset, dataset_id), query["metric"], query["level"])
    if drawn is None:
        raise NotFound("No model has been tested on this data set this way.")
    return drawn


@operation(GET, "/datasets/<dataset_id>/accuracy.csv", "export_accuracy_figures", Scope.ADMIN, 404)
@blueprint.response(200, {"type": "string"}, content_type="text/csv")
def export_accuracy_figures(dataset_id: str) -> Response:
    """Download all figures of models on a data set as a table."""
    row_of(Dataset, dataset_id)
    return current_app.make_response(accuracy_csv(dataset_id))


@operation(GET, "/paper-experiments", "list_paper_experiments", Scope.ADMIN, 422)
@blueprint.arguments(PaperExperimentsQuerySchema, location="query")
@blueprint.response(200, PaperExperimentsPageSchema)
def list_paper_experiments(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the paper's experiments, newest first; optionally on one data set."""
    rows = select(PaperExperiment).options(joinedload(PaperExperiment.launched_by))
    if query["dataset"]:
        rows = rows.where(PaperExperiment.dataset_id == query["dataset"])
    page = page_of(rows, (PaperExperiment.created_at.desc(), PaperExperiment.id), query)
    return listed([experiment_as_json(row[0]) for row in page])


@operation(POST, "/paper-experiments", "launch_paper_experiment", Scope.ADMIN, 404)
@blueprint.arguments(LaunchPaperSchema, location="json")
@blueprint.response(202, PaperExperimentSummarySchema)
def launch_paper_experiment(body: Mapping[str, Any]) -> dict[str, Any]:
    """Launch the paper's experiment on a data set: each architecture plain and restructured, with
    and without augmentation, honest and leaked. Only one can be queued or running for a data set.
    """
    row_of(Dataset, body["dataset_id"])
    offered = [str(choice.value) for choice in initial_weights("alexnet")]
    weights = offered[0] if body["initial_weights"] is None else body["initial_weights"]
    if weights not in offered:
        raise UnprocessableEntity(f"initial_weights: Must be one of {', '.join(offered)}.")
    try:
        experiment = add_experiment(
            body["dataset_id"], body["architectures"], weights, g.token_owner_id
        )
    except RequestRefused as err:
        raise Conflict(str(err)) from err
    commit_and_nudge(experiment, keep_experiment)
    return experiment_as_json(experiment)


def keep_experiment(experiment: PaperExperiment) -> None:
    """Store the response about a new experiment; the caller commits both."""
    keep_answer(202, PaperExperimentSummarySchema().dump(experiment_as_json(experiment)))


@operation(GET, "/paper-experiments/<experiment_id>", "read_paper_experiment", Scope.ADMIN, 404)
@blueprint.response(200, PaperExperimentSchema)
def read_paper_experiment(experiment_id: str) -> dict[str, Any]:
    """Get an experiment: its progress, and the results of the finished combinations."""
    experiment = row_of(PaperExperiment, experiment_id)
    return {**experiment_as_json(experiment), "results": experiment.results}


@operation(
    POST, "/paper-experiments/<experiment_id>/cancel", "cancel_paper_experiment", Scope.ADMIN, 404
)
@blueprint.response(200, PaperExperimentSummarySchema)
def cancel_paper_experiment(experiment_id: str) -> dict[str, Any]:
    """Cancel a queued or running experiment; its results are kept, and it can be resumed."""
    if not stop_experiment(row_of(PaperExperiment, experiment_id)):
        raise Conflict(HAS_ENDED)
    return experiment_as_json(row_of(PaperExperiment, experiment_id))


@operation(
    POST, "/paper-experiments/<experiment_id>/resume", "resume_paper_experiment", Scope.ADMIN, 404
)
@blueprint.response(202, PaperExperimentSummarySchema)
def resume_paper_experiment(experiment_id: str) -> dict[str, Any]:
    """Queue a canceled or failed experiment again; it resumes where it stopped."""
    if resume_experiment(row_of(PaperExperiment, experiment_id)) is None:
        raise Conflict(NOT_RESUMED)
    return experiment_as_json(row_of(PaperExperiment, experiment_id))


def experiment_as_json(experiment: PaperExperiment) -> dict[str, Any]:
    """Return an experiment in the form of `PaperExperimentSummarySchema`."""
    return {
        **work_as_json(experiment),
        "dataset_id": experiment.dataset_id,
        "architectures": experiment.architectures,
        "initial_weights": experiment.initial_weights,
        "launched_by": experiment.launched_by and experiment.launched_by.username,
        "eta_s": experiment.eta_s,
        "cells": experiment.cells,
        "cells_done": experiment.cells_done,
    }
