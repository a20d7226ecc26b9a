"""Submit scans, follow them, change them and read their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPMethod
from typing import Any

from flask import Response, g, request, url_for
from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import joinedload, selectinload
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import Conflict, NotFound, UnprocessableEntity, UnsupportedMediaType

from webapp import intake
from webapp.api.access import (
    NO_ROOM,
    NO_SUCH_SCAN,
    UPLOAD_REFUSED,
    blueprint,
    is_own,
    is_visible,
    operation,
    require_bearer_still,
    require_own,
)
from webapp.api.idempotency import keep_answer
from webapp.api.lists import listed, page_of
from webapp.api.opinions import add_opinions
from webapp.api.schemas import (
    ChangedSchema,
    ChangeSchema,
    JobSchema,
    JoinSchema,
    ScanSchema,
    ScansPageSchema,
    ScansQuerySchema,
    SubmissionSchema,
)
from webapp.audit import whose_request
from webapp.deletion import FILES_S, delete_chosen, delete_scan
from webapp.extensions import db
from webapp.forms import SHARED
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    ORIGINAL_REMOVED,
    EarlierAnswer,
    JobStatus,
    ModelVersion,
    Prediction,
    Scan,
    Scope,
    draw_heatmap,
    result_of,
)
from webapp.rates import within_change_rate
from webapp.review.sharing import successor_of
from webapp.scans.changes import (
    ALREADY_FINISHED,
    CHANGES,
    NO_SHEET,
    NOT_ANSWERED,
    NOT_REJECTED,
    NOT_UNANSWERED,
    change_scans,
    other_reading,
)
from webapp.scans.changes import cancel_scan as cancel_own
from webapp.scans.changes import retry_scan as retry_own
from webapp.scans.changes import score_scan_again as score_own_again
from webapp.scans.changes import score_scan_anyway as score_own_anyway
from webapp.scans.table import as_csv
from webapp.scans.worklist_query import conditions, order_columns, own_scans

GET, POST, DELETE = HTTPMethod.GET, HTTPMethod.POST, HTTPMethod.DELETE


@operation(
    POST,
    "/scans",
    "submit_scans",
    Scope.SUBMIT,
    *UPLOAD_REFUSED,
    within=intake.within_rate,
)
@blueprint.doc(
    requestBody={
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": (
                                "A slice (PNG, JPEG or DICOM) or a series (NIfTI or ZIP). Repeat"
                                " the field to send several files."
                            ),
                        },
                        "title": {
                            "type": "string",
                            "description": "Shown in the worklist. Do not include patient names.",
                        },
                        "stat": {
                            "type": "string",
                            "enum": ["", "0", "1"],
                            "description": "1: STAT, analyzed before all routine scans.",
                        },
                        "together": {
                            "type": "string",
                            "enum": ["", "0", "1"],
                            "description": "1: the images are slices of one scan.",
                        },
                        "keep_names": {
                            "type": "string",
                            "enum": ["", "0", "1"],
                            "description": "1: store file names and use them as titles.",
                        },
                        "uncut": {
                            "type": "string",
                            "enum": ["", "0", "1"],
                            "description": (
                                "1: a film sheet is read as a single slice, and not cut into its"
                                " slices."
                            ),
                        },
                    },
                }
            }
        },
    }
)
@blueprint.response(202, SubmissionSchema)
def submit() -> dict[str, Any]:
    """Submit slices or series; all DICOM files of a series become one scan.

    The response is immediate; poll `url` for the result. A scan's `notes` report anything unusual
    about the upload, such as files that were skipped. With an `Idempotency-Key`, an upload that is
    resent because its response was lost counts as one upload.
    """
    if request.mimetype not in ("", "multipart/form-data"):
        raise UnsupportedMediaType("Send the files as multipart/form-data, in the field “file”.")
    pictures = intake.Pictures.TOGETHER if flag("together") else intake.Pictures.BY_FOLDER
    choices = intake.Choices(
        flag("stat"), pictures, keep_names=flag("keep_names"), uncut=flag("uncut")
    )
    return accepted(request.files.getlist("file"), request.form.get("title", ""), choices)


def accepted(files: Sequence[FileStorage], title: str, choices: intake.Choices) -> dict[str, Any]:
    """Accept an upload; return the outcome (`SubmissionSchema`).

    Raises:
        UnprocessableEntity: it is not accepted.
    """

    def keep(scans: Sequence[Scan], _files: object) -> None:
        keep_answer(202, SubmissionSchema().dump(submission(scans)))

    try:
        receipt = intake.accept_upload(
            g.token_owner_id,
            files,
            title,
            choices,
            require_access=require_bearer_still,
            before_commit=keep,
        )
    except intake.UploadRejected as err:
        raise UnprocessableEntity(str(err)) from err
    return submission(receipt.scans)


def flag(name: str) -> bool:
    """Return a yes-or-no field of the form.

    Raises:
        UnprocessableEntity: its value is neither 0 nor 1.
    """
    text = request.form.get(name, "")
    if text not in ("", "0", "1"):
        raise UnprocessableEntity(f"{name}: Must be 0 or 1.")
    return text == "1"


def chosen_by(query: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """Return the SQL conditions of a query (`ScansQuerySchema`), which are the same as the
    worklist's.
    """
    chosen = {**query, "whose": SHARED if query["shared"] else ""}
    which = conditions(g.token_owner_id, chosen)
    if query["finished_since"]:
        which.append(Scan.finished_at >= query["finished_since"])
    return which


def listed_scans(query: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scans of the requested page."""
    scans = with_result(select(Scan), selectinload).where(*chosen_by(query))
    rows = page_of(scans, order_columns(query["order"]), query)
    return [scan_as_json(row[0]) for row in rows]


@operation(GET, "/scans", "list_scans", Scope.READ, 422)
@blueprint.arguments(ScansQuerySchema, location="query")
@blueprint.response(200, ScansPageSchema)
def index(query: Mapping[str, Any]) -> dict[str, Any]:
    """List your scans, or those that are shared with you, with the worklist's filters and sort
    orders.
    """
    total = db.session.scalar(select(func.count()).select_from(Scan).where(*chosen_by(query)))
    return listed(listed_scans(query), total=total)


@operation(GET, "/scans/export.csv", "export_scans", Scope.READ, 422)
@blueprint.arguments(ScansQuerySchema, location="query")
@blueprint.response(200, {"type": "string"}, content_type="text/csv")
def export(query: Mapping[str, Any]) -> Response:
    """Download a page of the same list as a table, with the opinions on each scan; the `Link`
    header leads to the next page.
    """
    scans = ScanSchema(many=True).dump(listed_scans(query))
    add_opinions(scans)
    return Response(as_csv(scans), content_type="text/csv; charset=utf-8")


@operation(POST, "/scans/changes", "change_scans", Scope.SUBMIT, within=within_change_rate)
@blueprint.arguments(ChangeSchema, location="json")
@blueprint.response(200, ChangedSchema)
def change(body: Mapping[str, Any]) -> dict[str, Any]:
    """Change several of your scans at once: cancel, retry or reanalyze them, make them STAT or
    routine, share them with the reviewers, or delete them.
    """
    ids, action = list(dict.fromkeys(body["ids"])), body["action"]
    scans = own_scans(g.token_owner_id, ids)
    not_found = [each for each in ids if each not in {scan.id for scan in scans}]
    summary: dict[str, Any] = {"action": action, "not_found": not_found}
    if action == "delete":
        delete_chosen([scan.id for scan in scans], FILES_S)
        deleted = [scan.id for scan in scans]
        return {**summary, "changed": deleted, "unchanged": [], "unchanged_because": None}
    outcome = change_scans(scans, action)
    reason = f"These scans {CHANGES[action].otherwise}." if outcome.unchanged else None
    return {
        **summary,
        "changed": [scan.id for scan in outcome.changed],
        "unchanged": [scan.id for scan in outcome.unchanged],
        "unchanged_because": reason,
    }


@operation(POST, "/scans/join", "join_scans", Scope.SUBMIT, *NO_ROOM, within=intake.within_rate)
@blueprint.arguments(JoinSchema, location="json")
@blueprint.response(202, JobSchema)
def join(body: Mapping[str, Any]) -> dict[str, Any]:
    """Join several of your single PNG or JPEG images into one series, which replaces them and is
    analyzed.
    """
    try:
        series = intake.join_pictures(g.token_owner_id, body["ids"], body["title"].strip())
    except intake.NotRearranged as err:
        raise Conflict(str(err)) from err
    return job(series.id, series.status)


@operation(GET, "/scans/<scan_id>", "read_scan", Scope.READ, 404)
@blueprint.response(200, ScanSchema)
def show(scan_id: str) -> dict[str, Any]:
    """Get a scan and its result.

    A scan is replaced when more of its DICOM series arrives, and when images are joined or split.
    Its id then returns the scan that replaced it (for split images, the first one). `id` in the
    response is the new id, which all other operations need.
    """
    scan = _visible_with_result(scan_id)
    if scan is None and (successor := successor_of(scan_id, g.token_owner_id)):
        scan = _visible_with_result(successor)
    if scan is None:
        raise NotFound(NO_SUCH_SCAN)
    return scan_as_json(scan)


def _visible_with_result(scan_id: str) -> Scan | None:
    scans = db.session.scalars(with_result(select(Scan)).where(is_visible(scan_id)))
    return scans.unique().one_or_none()


@operation(
    POST,
    "/scans/<scan_id>/score-anyway",
    "score_scan_anyway",
    Scope.SUBMIT,
    404,
    within=within_change_rate,
)
@blueprint.response(202, JobSchema)
def score_anyway(scan_id: str) -> dict[str, Any]:
    """Analyze a scan that was rejected because it does not look like a head CT.

    The result will include a warning.
    """
    scan = own_scan(scan_id)
    return queued(scan, score_own_anyway(scan), NOT_REJECTED)


@operation(
    POST, "/scans/<scan_id>/cancel", "cancel_scan", Scope.SUBMIT, 404, within=within_change_rate
)
@blueprint.response(200, JobSchema)
def cancel_scan(scan_id: str) -> dict[str, Any]:
    """Cancel a queued or running scan."""
    if not cancel_own(own_scan(scan_id)):
        raise Conflict(ALREADY_FINISHED)
    return job(scan_id, JobStatus.CANCELLED)


@operation(
    POST, "/scans/<scan_id>/retry", "retry_scan", Scope.SUBMIT, 404, within=within_change_rate
)
@blueprint.response(202, JobSchema)
def retry_scan(scan_id: str) -> dict[str, Any]:
    """Retry a failed or canceled scan."""
    scan = own_scan(scan_id)
    refusal = ORIGINAL_REMOVED if scan.original_removed_at else NOT_UNANSWERED
    return queued(scan, retry_own(scan), refusal)


@operation(
    POST, "/scans/<scan_id>/heatmap", "draw_heatmap", Scope.SUBMIT, 404, within=within_change_rate
)
@blueprint.response(202, JobSchema)
def request_heatmap(scan_id: str) -> dict[str, Any]:
    """Generate the heat maps of a scan. If a model outlines the hemorrhage, they are generated only
    on request.
    """
    removed_at = require_own(scan_id)
    drawn = draw_heatmap(scan_id, g.token_owner_id)
    db.session.commit()
    if not drawn:
        raise Conflict(
            ORIGINAL_REMOVED
            if removed_at
            else "This scan already has heat maps or has no result yet."
        )
    nudge(PREDICT_SCANS)
    return job(scan_id, JobStatus.DONE)


@operation(
    POST,
    "/scans/<scan_id>/score-again",
    "score_scan_again",
    Scope.SUBMIT,
    404,
    within=within_change_rate,
)
@blueprint.response(202, JobSchema)
def score_scan_again(scan_id: str) -> dict[str, Any]:
    """Reanalyze a scan with the live model; its current result moves to `earlier_answers`."""
    scan = own_scan(scan_id)
    refusal = ORIGINAL_REMOVED if scan.original_removed_at else NOT_ANSWERED
    return queued(scan, score_own_again(scan), refusal)


@operation(
    POST,
    "/scans/<scan_id>/cut",
    "cut_scan",
    Scope.SUBMIT,
    404,
    *NO_ROOM,
    within=intake.within_rate,
)
@blueprint.response(202, SubmissionSchema)
def cut(scan_id: str) -> dict[str, Any]:
    """Submit a film sheet again: cut into slices if it was read as one slice, and vice versa.

    The scan itself is kept.
    """
    scan = own_scan(scan_id)
    if (reading := other_reading(scan)) is None:
        raise Conflict(NO_SHEET)
    sheet, choices = reading
    return accepted([sheet], scan.title, choices)


@operation(
    POST,
    "/scans/<scan_id>/split",
    "split_scan",
    Scope.SUBMIT,
    404,
    *NO_ROOM,
    within=intake.within_rate,
)
@blueprint.response(202, SubmissionSchema)
def split(scan_id: str) -> dict[str, Any]:
    """Split a series of PNG or JPEG images into single images, which replace it and are
    analyzed.
    """
    require_own(scan_id)
    try:
        pictures = intake.split_series(g.token_owner_id, scan_id)
    except intake.NotRearranged as err:
        raise Conflict(str(err)) from err
    return submission(pictures)


@operation(DELETE, "/scans/<scan_id>", "delete_scan", Scope.SUBMIT, 404, within=within_change_rate)
@blueprint.response(204)
def remove(scan_id: str) -> None:
    """Delete a scan with its file, images and result.

    Files that cannot be deleted immediately are deleted within a few hours.
    """
    require_own(scan_id)
    delete_scan(scan_id)


def own_scan(scan_id: str) -> Scan:
    """Return a scan of the token's owner.

    Raises:
        NotFound: they have no such scan.
    """
    scan = db.session.scalar(
        select(Scan).where(is_own(scan_id)).options(joinedload(Scan.prediction))
    )
    if scan is None:
        raise NotFound(NO_SUCH_SCAN)
    return scan


def queued(scan: Scan, was_queued: bool, refusal: str) -> dict[str, Any]:
    """Notify a worker of a scan that was queued again, and return its job.

    Raises:
        Conflict: it was not queued, for the reason `refusal`.
    """
    if not was_queued:
        raise Conflict(refusal)
    nudge(PREDICT_SCANS)  # If the broker is unreachable, the next sweep sends the message.
    return job(scan.id, JobStatus.QUEUED)


def submission(scans: Sequence[Scan]) -> dict[str, Any]:
    """Return the jobs of an upload (`SubmissionSchema`)."""
    jobs = [job(scan.id, scan.status) for scan in scans]
    return {**jobs[0], "scans": jobs}


def job(scan_id: str, status: JobStatus) -> dict[str, Any]:
    """Return the job that a client polls (`JobSchema`)."""
    return {
        "id": scan_id,
        "status": status,
        "url": url_for("api.show", scan_id=scan_id, _external=True),
    }


def with_result(scans: Select[Scan], load: Callable[..., Any] = joinedload) -> Select[Scan]:
    """Return the statement that loads everything `scan_as_json` needs, except model cards, which
    are large.

    Lists load results in a second statement (`selectinload`): with a join, the database would read
    the results of all scans before it selects the page.
    """
    prediction = load(Scan.prediction)
    return scans.options(
        load(Scan.user),
        load(Scan.history),
        load(Scan.earlier_answers)
        .joinedload(EarlierAnswer.model_version)
        .load_only(ModelVersion.architecture),
        prediction.joinedload(Prediction.model_version).load_only(ModelVersion.architecture),
        prediction.joinedload(Prediction.heatmap),
    )


def add_outlines(result: dict[str, Any], scan: Scan) -> None:
    """Add the addresses of a scan's outlines to its result."""
    outlined = (scan.prediction and scan.prediction.outlined_slices) or ()
    result["outline_url"] = (
        url_for("api.outline_mask", scan_id=scan.id, _external=True) if outlined else None
    )
    for of_slice in result["slices"]:
        index = of_slice["index"]
        of_slice["outline_url"] = (
            url_for("api.slice_outline", scan_id=scan.id, index=index, _external=True)
            if index in outlined
            else None
        )


def scan_as_json(scan: Scan) -> dict[str, Any]:
    """Return a scan in the form of `ScanSchema`."""
    result = result_of(scan)
    if result is not None:
        drawing = scan.prediction.heatmap if scan.prediction else None
        comes = drawing is not None and (drawing.image_key or not drawing.status.is_final)
        result["heatmap_url"] = (
            url_for("api.heatmap", scan_id=scan.id, _external=True) if comes else None
        )
        add_outlines(result, scan)
    return {
        "id": scan.id,
        "study_id": scan.study_id,
        "status": scan.status,
        "progress": scan.progress,
        "error": scan.error,
        "title": scan.title,
        "submitter": scan.user.username,
        "kind": scan.kind,
        "slice_count": scan.slice_count,
        "stat": scan.stat,
        "notes": scan.notes or [],
        "created_at": scan.created_at,
        "finished_at": scan.finished_at,
        "original_removed_at": scan.original_removed_at,
        "score_anyway_url": (
            url_for("api.score_anyway", scan_id=scan.id, _external=True)
            if scan.may_be_forced and scan.user_id == whose_request()
            else None
        ),
        "earlier_attempts": scan.history,
        "earlier_answers": scan.earlier_answers,
        "result": result,
    }
