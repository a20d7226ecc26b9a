"""Training runs: architectures, launching, monitoring and ending runs."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from flask import Response, g
from sqlalchemy import select
from sqlalchemy.orm import contains_eager, joinedload, selectinload
from werkzeug.exceptions import Conflict, UnprocessableEntity

from ml.catalogue import ARCHITECTURES, Architecture, architecture_named
from ml.errors import SettingError
from webapp.admin.evaluations import NOT_READY
from webapp.admin.launching import add_run
from webapp.admin.outlook import outlook_of
from webapp.admin.run_form import LONGEST_NAME, LONGEST_NOTES, describe, initial_weights, tags_of
from webapp.admin.run_query import requested_runs
from webapp.admin.runs import NOT_RELAUNCHED, restart_run, stop_run
from webapp.api.access import blueprint, operation, row_of
from webapp.api.idempotency import keep_answer
from webapp.api.lab_schemas import (
    ArchitecturesPageSchema,
    CalibrateSchema,
    DescribeSchema,
    LaunchSchema,
    RunSchema,
    RunsPageSchema,
    RunsQuerySchema,
    RunSummarySchema,
)
from webapp.api.lists import PageQuerySchema, listed, page_of, part_of
from webapp.api.work import work_as_json
from webapp.audit import record
from webapp.display import listed as and_listed
from webapp.extensions import db
from webapp.forms import lines_problem, text_problem
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.learning.confirmed import RequestRefused, request_calibration
from webapp.learning.corrections import versions_of_one
from webapp.models import (
    Act,
    Dataset,
    JobStatus,
    ModelVersion,
    Scope,
    TrainingPoint,
    TrainingRun,
)

GET, POST, PUT = HTTPMethod.GET, HTTPMethod.POST, HTTPMethod.PUT
HOW_TO_ACCEPT = "To launch it anyway, set accept_overruled."


@operation(GET, "/architectures", "list_architectures", Scope.ADMIN, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ArchitecturesPageSchema)
def list_architectures(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the architectures that can be trained, with all settings and initial weights."""
    shown = part_of(list(ARCHITECTURES.values()), lambda each: each.name, query)
    return listed([architecture_as_json(each) for each in shown])


def architecture_as_json(architecture: Architecture) -> dict[str, Any]:
    """Return an architecture in the form of `ArchitectureSchema`."""
    return {
        "name": architecture.name,
        "title": architecture.title,
        "summary": architecture.summary,
        "reads": architecture.reads,
        "settings": architecture.settings,
        "initial_weights": weights_of(architecture),
    }


def weights_of(architecture: Architecture) -> list[str]:
    """Return the initial weights that an architecture can start from, the default first."""
    return [str(choice.value) for choice in initial_weights(architecture.encoder)]


@operation(GET, "/runs", "list_runs", Scope.ADMIN, 422)
@blueprint.arguments(RunsQuerySchema, location="query")
@blueprint.response(200, RunsPageSchema)
def list_runs(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the training runs that match the filters, in the requested order."""
    named = {**query, "state": query["status"]}
    names = ("state", "architecture", "dataset", "tag", "text", "sort")
    chosen = requested_runs({name: named[name] for name in names if named[name] is not None})
    rows = (
        select(TrainingRun)
        .outerjoin(TrainingRun.version)
        .options(
            selectinload(TrainingRun.datasets).load_only(Dataset.name),
            joinedload(TrainingRun.launched_by),
            contains_eager(TrainingRun.version).load_only(ModelVersion.id),
        )
        .where(*chosen.where)
    )
    return listed([run_as_json(row[0]) for row in page_of(rows, chosen.order, query)])


@operation(POST, "/runs", "launch_run", Scope.ADMIN)
@blueprint.arguments(LaunchSchema, location="json")
@blueprint.response(202, RunSummarySchema)
def launch_run(body: Mapping[str, Any]) -> dict[str, Any]:
    """Launch a training run on data sets that are ready.

    As on the page, a run that could not be tested is refused, and anything that would differ from
    the request is reported first.
    """
    described = description_in(body)
    architecture = architecture_named(body["architecture"])
    offered = weights_of(architecture)
    weights = body["initial_weights"] or offered[0]
    if weights not in offered:
        raise UnprocessableEntity(f"initial_weights: Must be one of {', '.join(offered)}.")
    ids = set(body["dataset_ids"])
    ready = select(Dataset).where(Dataset.id.in_(ids), Dataset.status == JobStatus.DONE)
    datasets = db.session.scalars(ready).all()
    if len(datasets) < len(ids):
        raise Conflict(NOT_READY)
    if names := versions_of_one(list(ids)):
        raise Conflict(f"{and_listed(names, 'and')} are versions of one data set; choose one.")
    try:
        settings = architecture.parse_settings(body["settings"])
    except SettingError as err:
        raise UnprocessableEntity(f"settings: {err}") from err
    outlook = outlook_of(architecture, settings, weights, datasets)
    if outlook.refused:
        raise Conflict(" ".join(outlook.refused))
    if outlook.overruled and not body["accept_overruled"]:
        raise Conflict(f"{' '.join(outlook.overruled)} {HOW_TO_ACCEPT}")
    run = add_run(g.token_owner_id, architecture, settings, list(ids), weights, body["seed"])
    describe(run, *described)
    keep_run(run)
    db.session.commit()
    nudge(TRAIN_MODEL)
    return run_as_json(run)


def description_in(body: Mapping[str, Any]) -> tuple[str, list[str], str]:
    """Return name, tags and notes from a body (`DescribeSchema`), stripped as in the form.

    Raises:
        UnprocessableEntity: the page would refuse one of them.
    """
    name = (body["name"] or "").strip()
    notes = (body["notes"] or "").replace("\r\n", "\n").replace("\r", "\n").strip()
    for field, problem in (
        ("name", text_problem(name, LONGEST_NAME)),
        ("notes", lines_problem(notes, LONGEST_NOTES)),
    ):
        if problem:
            raise UnprocessableEntity(f"{field}: {problem}")
    try:
        return name, tags_of(body["tags"]), notes
    except ValueError as err:
        raise UnprocessableEntity(f"tags: {err}") from err


def keep_run(run: TrainingRun) -> None:
    """Store the response about a new run; the caller commits both."""
    db.session.flush()
    keep_answer(202, RunSummarySchema().dump(run_as_json(run)))


@operation(GET, "/runs/<run_id>", "read_run", Scope.ADMIN, 404)
@blueprint.response(200, RunSchema)
def read_run(run_id: str) -> dict[str, Any]:
    """Get a training run: its progress, settings, curves and earlier attempts."""
    run = row_of(TrainingRun, run_id)
    points = db.session.scalars(
        select(TrainingPoint)
        .where(TrainingPoint.run_id == run.id)
        .order_by(TrainingPoint.metric, TrainingPoint.step)
    )
    return {
        **run_as_json(run),
        "settings": run.settings,
        "curves": list(points),
        "earlier_attempts": run.history,
    }


@operation(PUT, "/runs/<run_id>/description", "describe_run", Scope.ADMIN, 400, 404, 422)
@blueprint.arguments(DescribeSchema, location="json")
@blueprint.response(200, RunSummarySchema)
def describe_run(body: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """Change name, tags and notes of a run."""
    run = row_of(TrainingRun, run_id)
    describe(run, *description_in(body))
    record(Act.RUN_DESCRIBED, run.id)
    db.session.commit()
    return run_as_json(row_of(TrainingRun, run_id))


@operation(GET, "/runs/<run_id>/log", "read_run_log", Scope.ADMIN, 404)
@blueprint.response(200, {"type": "string"}, content_type="text/plain")
def read_run_log(run_id: str) -> Response:
    """Download the last lines of a run's log, each with the UTC time at which it was written; empty
    until there are any.
    """
    return Response(row_of(TrainingRun, run_id).log or "", content_type="text/plain; charset=utf-8")


@operation(POST, "/runs/<run_id>/cancel", "cancel_run", Scope.ADMIN, 404)
@blueprint.response(200, RunSummarySchema)
def cancel_run(run_id: str) -> dict[str, Any]:
    """Cancel a queued or running training run."""
    run = row_of(TrainingRun, run_id)
    if not stop_run(run.id):
        raise Conflict("This run has already finished.")
    return run_as_json(row_of(TrainingRun, run_id))


@operation(POST, "/runs/<run_id>/retry", "retry_run", Scope.ADMIN, 404)
@blueprint.response(202, RunSummarySchema)
def retry_run(run_id: str) -> dict[str, Any]:
    """Queue a failed or canceled run again, with the same settings."""
    run = row_of(TrainingRun, run_id)
    if restart_run(run.id) is None:
        raise Conflict(NOT_RELAUNCHED)
    return run_as_json(row_of(TrainingRun, run_id))


@operation(POST, "/calibrations", "calibrate_model", Scope.ADMIN, 404)
@blueprint.arguments(CalibrateSchema, location="json")
@blueprint.response(202, RunSummarySchema)
def calibrate_model(body: Mapping[str, Any]) -> dict[str, Any]:
    """Have a version calibrated on a data set of this site; the run produces a separate version."""
    version = row_of(ModelVersion, body["version_id"])
    dataset = row_of(Dataset, body["dataset_id"])
    try:
        run_id, _ = request_calibration(version, dataset, g.token_owner_id, keep_run)
    except RequestRefused as err:
        raise Conflict(str(err)) from err
    return run_as_json(row_of(TrainingRun, run_id))


def run_as_json(run: TrainingRun) -> dict[str, Any]:
    """Return a run in the form of `RunSummarySchema`."""
    return {
        **work_as_json(run),
        "name": run.name,
        "tags": sorted(run.tags),
        "notes": run.notes,
        "architecture": run.architecture,
        "is_calibration": run.is_calibration,
        "seed": run.seed,
        "initial_weights": run.initial_weights,
        "launched_by": run.launched_by and run.launched_by.username,
        "datasets": [{"id": each.id, "name": each.name} for each in run.datasets],
        "eta_s": run.eta_s,
        "current_metrics": run.current_metrics,
        "version_id": run.version and run.version.id,
    }
