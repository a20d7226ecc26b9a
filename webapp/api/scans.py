"""Submit scans, follow them, and read what became of them."""

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
    is_own,
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
from webapp.audit import record
from webapp.deletion import delete_scan
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    ORIGINAL_REMOVED,
    Act,
    JobStatus,
    ModelVersion,
    Prediction,
    Scan,
    cancel,
    force,
    result_of,
    retry,
)


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
                                "A slice as PNG, JPEG or DICOM, or a series as NIfTI or ZIP; repeat"
                                " the field for several."
                            ),
                        },
                        "title": {
                            "type": "string",
                            "description": "Shown in the history; give no patient's name.",
                        },
                        "stat": {
                            "type": "string",
                            "enum": ["", "0", "1"],
                            "description": "1: read before all scans that are not.",
                        },
                        "together": {
                            "type": "string",
                            "enum": ["", "0", "1"],
                            "description": "1: the pictures are slices of one scan.",
                        },
                        "keep_names": {
                            "type": "string",
                            "enum": ["", "0", "1"],
                            "description": "1: file names may be kept, as title.",
                        },
                    },
                }
            }
        },
    }
)
@documented("submit_scans", 413, 415, 422, 429, 503)
@blueprint.response(202, SubmissionSchema)
def submit() -> dict[str, Any]:
    """Submit slices and series; DICOM files of one series become one scan.

    The answer comes at once; poll `url` for the verdict. What is read of an upload and what is not,
    a scan's `notes` say.
    """
    if request.mimetype not in ("", "multipart/form-data"):
        raise UnsupportedMediaType("Send the files as multipart/form-data, in the field “file”.")
    try:
        choices = intake.Choices(flag("stat"), flag("together"), flag("keep_names"))
        scans = intake.accept_scans(
            g.token_owner_id,
            request.files.getlist("file"),
            request.form.get("title", ""),
            choices,
            require_access=require_bearer_still,
        )
    except intake.UploadRejected as err:
        raise UnprocessableEntity(str(err)) from err
    jobs = [job(scan.id, scan.status) for scan in scans]
    return {**jobs[0], "scans": jobs}


def flag(name: str) -> bool:
    """Return a choice of the form.

    Raises:
        UnprocessableEntity: it is neither 0 nor 1.
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
    """List the scans of the token's owner.

    In the orders by risk and by uncertainty urgent scans come first, and those without a result
    last.
    """
    page, per_page = query["page"], query["per_page"]
    mine = [Scan.user_id == g.token_owner_id]
    if query["status"]:
        mine.append(Scan.status == query["status"])
    total = db.session.scalar(select(func.count()).select_from(Scan).where(*mine))
    ordered = with_result(select(Scan), selectinload).where(*mine).order_by(*query["order"].columns)
    shown = ordered.limit(per_page).offset((page - 1) * per_page)
    return {
        "items": [told(scan) for scan in db.session.scalars(shown)],
        "page": page,
        "per_page": per_page,
        "total": total,
    }


@blueprint.get("/scans/<scan_id>")
@documented("read_scan", 404)
@blueprint.alt_response(
    304, description="Unchanged since the answer with the ETag in If-None-Match.", success=True
)
@blueprint.response(200, ScanSchema)
def show(scan_id: str) -> dict[str, Any]:
    """Poll one scan."""
    scan = (
        db.session.scalars(with_result(select(Scan)).where(is_own(scan_id))).unique().one_or_none()
    )
    if scan is None:
        raise NotFound(NO_SUCH_SCAN)
    return told(scan)


@blueprint.post("/scans/<scan_id>/score-anyway")
@documented("score_scan_anyway", 404, 409)
@blueprint.response(202, JobSchema)
def score_anyway(scan_id: str) -> dict[str, Any]:
    """Score a scan that was refused because it does not look like a head CT.

    Its result carries a warning.
    """
    require_own(scan_id)
    refusal = (
        "This scan was not rejected by the head CT check, or it is already being scored anyway."
    )
    return queued(scan_id, Act.SCAN_FORCED, force(scan_id, g.token_owner_id), refusal)


@blueprint.post("/scans/<scan_id>/cancel")
@documented("cancel_scan", 404, 409)
@blueprint.response(200, JobSchema)
def cancel_scan(scan_id: str) -> dict[str, Any]:
    """End a scan that waits or is being read, as cancelled."""
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
    """Queue a scan again that failed or was cancelled."""
    removed_at = require_own(scan_id)
    refusal = ORIGINAL_REMOVED if removed_at else "Only failed or canceled scans can be retried."
    return queued(scan_id, Act.SCAN_RETRIED, retry(scan_id), refusal)


@blueprint.delete("/scans/<scan_id>")
@documented("delete_scan", 404)
@blueprint.response(204)
def remove(scan_id: str) -> None:
    """Delete a scan with its file, its pictures and its verdict.

    Files that the storage does not remove at once are removed within hours.
    """
    require_own(scan_id)
    delete_scan(scan_id)


def queued(scan_id: str, act: Act, was_queued: bool, refusal: str) -> dict[str, Any]:
    """Commit what was queued again, wake a worker and return what a client polls.

    Raises:
        Conflict: nothing was queued; it says `refusal`.
    """
    if was_queued:
        record(act, scan_id)
    db.session.commit()
    if not was_queued:
        raise Conflict(refusal)
    nudge(PREDICT_SCANS)  # Where the queue cannot be reached the row waits, and the sweeper nudges.
    return job(scan_id, JobStatus.QUEUED)


def job(scan_id: str, status: JobStatus) -> dict[str, Any]:
    """Return what a client polls (`JobSchema`)."""
    return {
        "id": scan_id,
        "status": status,
        "url": url_for("api.show", scan_id=scan_id, _external=True),
    }


def with_result(scans: Select[Scan], load: Callable[..., Any] = joinedload) -> Select[Scan]:
    """Return the statement that also loads all that `told` needs, but no model's card, which is
    long.

    A page of many asks for its verdicts in a second statement (`selectinload`): joined before the
    page is cut out, they would all be read.
    """
    prediction = load(Scan.prediction)
    return scans.options(
        load(Scan.history),
        prediction.joinedload(Prediction.model_version).load_only(ModelVersion.architecture),
        prediction.joinedload(Prediction.heatmap),
    )


def told(scan: Scan) -> dict[str, Any]:
    """Return what a client is told of a scan (`ScanSchema`)."""
    result = result_of(scan)
    if result is not None:
        drawing = scan.prediction.heatmap if scan.prediction else None
        comes = drawing is not None and (drawing.image_key or not drawing.status.is_final)
        result["heatmap_url"] = (
            url_for("api.heatmap", scan_id=scan.id, _external=True) if comes else None
        )
    return {
        "id": scan.id,
        "status": scan.status,
        "progress": scan.progress,
        "error": scan.error,
        "title": scan.title,
        "kind": scan.kind,
        "slice_count": scan.slice_count,
        "stat": scan.stat,
        "notes": scan.notes or [],
        "created_at": scan.created_at,
        "finished_at": scan.finished_at,
        "original_removed_at": scan.original_removed_at,
        "score_anyway_url": (
            url_for("api.score_anyway", scan_id=scan.id, _external=True)
            if scan.may_be_forced
            else None
        ),
        "earlier_attempts": scan.history,
        "result": result,
    }
