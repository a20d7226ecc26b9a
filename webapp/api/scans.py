"""Submit scans, follow them and read their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import g, request, url_for
from sqlalchemy import Select, func, select
from sqlalchemy.orm import joinedload, selectinload
from werkzeug.exceptions import Conflict, NotFound, UnprocessableEntity, UnsupportedMediaType

from webapp import intake
from webapp.api.access import (
    NO_SUCH_SCAN,
    blueprint,
    documented,
    is_visible,
    require_bearer_still,
    require_own,
)
from webapp.api.schemas import (
    JobSchema,
    ScanSchema,
    ScansPageSchema,
    ScansQuerySchema,
    SubmissionSchema,
)
from webapp.audit import record, whose_request
from webapp.deletion import delete_scan
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    ORIGINAL_REMOVED,
    Act,
    EarlierAnswer,
    JobStatus,
    ModelVersion,
    Prediction,
    Scan,
    cancel,
    draw_heatmap,
    force,
    result_of,
    retry,
    score_again,
)
from webapp.sharing import shared_with


@blueprint.post("/scans")
@intake.within_rate
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
@documented("submit_scans", 413, 415, 422, 429, 503, 507)
@blueprint.response(202, SubmissionSchema)
def submit() -> dict[str, Any]:
    """Submit slices or series; all DICOM files of a series become one scan.

    The response is immediate; poll `url` for the result. A scan's `notes` report anything unusual
    about the upload, such as files that were skipped.
    """
    if request.mimetype not in ("", "multipart/form-data"):
        raise UnsupportedMediaType("Send the files as multipart/form-data, in the field “file”.")
    try:
        pictures = intake.Pictures.TOGETHER if flag("together") else intake.Pictures.BY_FOLDER
        choices = intake.Choices(
            flag("stat"), pictures, keep_names=flag("keep_names"), uncut=flag("uncut")
        )
        scans = intake.accept_upload(
            g.token_owner_id,
            request.files.getlist("file"),
            request.form.get("title", ""),
            choices,
            require_access=require_bearer_still,
        ).scans
    except intake.UploadRejected as err:
        raise UnprocessableEntity(str(err)) from err
    jobs = [job(scan.id, scan.status) for scan in scans]
    return {**jobs[0], "scans": jobs}


def flag(name: str) -> bool:
    """Return a yes-or-no field of the form.

    Raises:
        UnprocessableEntity: its value is neither 0 nor 1.
    """
    given = request.form.get(name, "")
    if given not in ("", "0", "1"):
        raise UnprocessableEntity(f"{name}: Must be 0 or 1.")
    return given == "1"


@blueprint.get("/scans")
@documented("list_scans", 422)
@blueprint.arguments(ScansQuerySchema, location="query")
@blueprint.response(200, ScansPageSchema)
def index(query: Mapping[str, Any]) -> dict[str, Any]:
    """List your scans, or those that are shared with you.

    When ordered by risk or uncertainty, STAT scans come first and scans without a result last.
    """
    page, per_page = query["page"], query["per_page"]
    which = [Scan.user_id == g.token_owner_id]
    if query["shared"]:
        which = [Scan.id.in_(shared_with(g.token_owner_id)), Scan.user_id != g.token_owner_id]
    if query["status"]:
        which.append(Scan.status == query["status"])
    total = db.session.scalar(select(func.count()).select_from(Scan).where(*which))
    ordered = (
        with_result(select(Scan), selectinload).where(*which).order_by(*query["order"].columns)
    )
    shown = ordered.limit(per_page).offset((page - 1) * per_page)
    return {
        "items": [scan_as_json(scan) for scan in db.session.scalars(shown)],
        "page": page,
        "per_page": per_page,
        "total": total,
    }


@blueprint.get("/scans/<scan_id>")
@documented("read_scan", 404)
@blueprint.alt_response(
    304, description="Not modified since the ETag in If-None-Match.", success=True
)
@blueprint.response(200, ScanSchema)
def show(scan_id: str) -> dict[str, Any]:
    """Get a scan and its result."""
    scan = (
        db.session.scalars(with_result(select(Scan)).where(is_visible(scan_id)))
        .unique()
        .one_or_none()
    )
    if scan is None:
        raise NotFound(NO_SUCH_SCAN)
    return scan_as_json(scan)


@blueprint.post("/scans/<scan_id>/score-anyway")
@documented("score_scan_anyway", 404, 409)
@blueprint.response(202, JobSchema)
def score_anyway(scan_id: str) -> dict[str, Any]:
    """Score a scan that was rejected because it does not look like a head CT.

    The result will include a warning.
    """
    require_own(scan_id)
    refusal = (
        "This scan was not rejected by the head CT check, or it is already being analyzed anyway."
    )
    return queued(scan_id, Act.SCAN_FORCED, force(scan_id, g.token_owner_id), refusal)


@blueprint.post("/scans/<scan_id>/cancel")
@documented("cancel_scan", 404, 409)
@blueprint.response(200, JobSchema)
def cancel_scan(scan_id: str) -> dict[str, Any]:
    """Cancel a queued or running scan."""
    require_own(scan_id)
    cancelled = cancel(Scan, Scan.id == scan_id)
    if cancelled:
        record(Act.SCAN_CANCELLED, scan_id)
    db.session.commit()
    if not cancelled:
        raise Conflict("This scan has already finished.")
    return job(scan_id, JobStatus.CANCELLED)


@blueprint.post("/scans/<scan_id>/retry")
@documented("retry_scan", 404, 409)
@blueprint.response(202, JobSchema)
def retry_scan(scan_id: str) -> dict[str, Any]:
    """Retry a failed or canceled scan."""
    removed_at = require_own(scan_id)
    refusal = ORIGINAL_REMOVED if removed_at else "Only failed or canceled scans can be retried."
    return queued(scan_id, Act.SCAN_RETRIED, retry(scan_id), refusal)


@blueprint.post("/scans/<scan_id>/heatmap")
@documented("draw_heatmap", 404, 409)
@blueprint.response(202, JobSchema)
def request_heatmap(scan_id: str) -> dict[str, Any]:
    """Generate the heat maps of a scan whose model outlines the hemorrhage, for which none are
    generated otherwise.
    """
    removed_at = require_own(scan_id)
    drawn = draw_heatmap(scan_id, g.token_owner_id)
    db.session.commit()
    if not drawn:
        raise Conflict(
            ORIGINAL_REMOVED if removed_at else "This scan has heat maps, or has no result yet."
        )
    nudge(PREDICT_SCANS)
    return job(scan_id, JobStatus.DONE)


@blueprint.post("/scans/<scan_id>/score-again")
@documented("score_scan_again", 404, 409)
@blueprint.response(202, JobSchema)
def score_scan_again(scan_id: str) -> dict[str, Any]:
    """Score a scan that has a result with the live model; the result joins `earlier_answers`."""
    removed_at = require_own(scan_id)
    refusal = (
        ORIGINAL_REMOVED if removed_at else "Only scans that have a result can be scored again."
    )
    return queued(scan_id, Act.SCAN_SCORED_AGAIN, score_again(scan_id), refusal)


@blueprint.delete("/scans/<scan_id>")
@documented("delete_scan", 404)
@blueprint.response(204)
def remove(scan_id: str) -> None:
    """Delete a scan with its file, images and result.

    Files that cannot be deleted immediately are deleted within a few hours.
    """
    require_own(scan_id)
    delete_scan(scan_id)


def queued(scan_id: str, act: Act, was_queued: bool, refusal: str) -> dict[str, Any]:
    """Commit a scan that was queued again, wake a worker and return its job.

    Raises:
        Conflict: nothing was queued, for the reason `refusal`.
    """
    if was_queued:
        record(act, scan_id)
    db.session.commit()
    if not was_queued:
        raise Conflict(refusal)
    nudge(PREDICT_SCANS)  # If the broker is unreachable, the next sweep sends the message.
    return job(scan_id, JobStatus.QUEUED)


def job(scan_id: str, status: JobStatus) -> dict[str, Any]:
    """Return the job that a client polls (`JobSchema`)."""
    return {
        "id": scan_id,
        "status": status,
        "url": url_for("api.show", scan_id=scan_id, _external=True),
    }


def with_result(scans: Select[Scan], load: Callable[..., Any] = joinedload) -> Select[Scan]:
    """Return the statement with everything that `scan_as_json` needs loaded, except model cards,
    which are large.

    Lists load results in a second statement (`selectinload`): with a join, the database would read
    the results of all scans before it cuts out the page.
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
    """Return a scan as the API shows it (`ScanSchema`)."""
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
