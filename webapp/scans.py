"""The pages of a person's scans: progress and result."""

from __future__ import annotations

import hashlib
import logging
from io import BytesIO

from flask import (
    Blueprint,
    Response,
    abort,
    flash,
    redirect,
    render_template,
    request,
    url_for,
)
from flask_login import current_user, login_required
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import joinedload, selectinload
from werkzeug.datastructures import FileStorage
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.audit import record
from webapp.bleeding_types import typed
from webapp.deletion import delete_scan
from webapp.extensions import database_now, db, noting
from webapp.forms import SHARED, OpinionForm, is_id
from webapp.health import checks_by_rows
from webapp.intake import Choices, UploadRejected, within_rate
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
    report_kinds,
    retry,
    score_again,
)
from webapp.opinions import panel
from webapp.outline_view import outline_view
from webapp.series_view import series_view
from webapp.sharing import visible_to
from webapp.storage import StorageError, storage
from webapp.submission import QUEUE_AWAY, submitted
from webapp.verdict_view import verdict_scale
from webapp.volume import open_volume
from webapp.worklist_query import address_of, asked_for, conditions, neighbors_of

log = logging.getLogger(__name__)
blueprint = Blueprint("scans", __name__)

NAMED = (ModelVersion.architecture, ModelVersion.card_id, ModelVersion.number)
"""What the name of a version is made of."""
STOP_POLLING = 286
"""htmx shows the response and stops polling."""


@blueprint.get("/")
def home() -> str | WerkzeugResponse:
    """Show the home page; logged-in users go to their worklist."""
    if current_user.is_authenticated:
        return redirect(url_for("worklist.show"))
    return render_template("scans/home.html")


@blueprint.get("/scans/<scan_id>")
@login_required
def show(scan_id: str) -> str:
    """Show a scan with its progress or result."""
    scan = visible_scan(scan_id)
    _note_opened(scan)
    return scan_page(scan)


def scan_page(scan: Scan, opinion_form: OpinionForm | None = None) -> str:
    """Return the page of a scan; `opinion_form` is an opinion that was refused."""
    return render_template(
        "scans/show.html",
        scan=scan,
        **_standing(scan),
        **_pictured(scan),
        **_place_in_worklist(scan),
        **_answered(scan),
        **typed(scan.prediction),
        **panel(scan, current_user.id, opinion_form),
    )


@blueprint.get("/scans/<scan_id>/progress")
@login_required
def progress(scan_id: str) -> Response:
    """Return the part of the scan's page that changes, or 204 if the page already shows it
    (`seen`).
    """
    scan = visible_scan(scan_id)
    standing = _standing(scan)
    if standing["open"] and standing["state"] == request.args.get("seen"):
        return Response(status=204)
    _note_opened(scan)
    page = Response(
        render_template(
            "scans/_result.html",
            scan=scan,
            is_owner=scan.user_id == current_user.id,
            address=address_of(*asked_for(request.args)),
            **standing,
            **_pictured(scan),
            **_answered(scan),
            **typed(scan.prediction),
        )
    )
    if not standing["open"]:
        page.status_code = STOP_POLLING
    page.headers["Cache-Control"] = "no-store"
    return page


@blueprint.post("/scans/<scan_id>/score-anyway")
@login_required
def score_anyway(scan_id: str) -> WerkzeugResponse:
    """Score a scan that was rejected because it does not look like a head CT."""
    scan = own_scan(scan_id)
    return _queued(
        scan.id,
        Act.SCAN_FORCED,
        force(scan.id, current_user.id),
        "This scan was not rejected, so there is nothing to override.",
    )


@blueprint.post("/scans/<scan_id>/cut")
@within_rate
@login_required
def cut(scan_id: str) -> WerkzeugResponse:
    """Submit a film sheet again: cut into its slices if it was read as one, as one if it was
    cut.
    """
    scan = own_scan(scan_id)
    if scan.sheet_may_be is None:
        flash("This scan is not a film sheet, or its file is no longer stored.", "warning")
        return redirect(url_for("scans.show", scan_id=scan_id))
    sheet = FileStorage(BytesIO(storage.get(scan.original_key)))
    try:
        return submitted([sheet], scan.title, Choices(stat=scan.stat, uncut=not scan.uncut))
    except UploadRejected as err:
        flash(str(err), "warning")
        return redirect(url_for("scans.show", scan_id=scan_id))


@blueprint.post("/scans/<scan_id>/cancel")
@login_required
def cancel_scan(scan_id: str) -> WerkzeugResponse:
    """Cancel a queued or running scan."""
    scan = own_scan(scan_id)
    cancelled = cancel(Scan, Scan.id == scan.id)
    if cancelled:
        record(Act.SCAN_CANCELLED, scan.id)
    db.session.commit()
    if not cancelled:
        flash("This scan has already finished.", "warning")
    return _to_scan(scan_id)


@blueprint.post("/scans/<scan_id>/score-again")
@login_required
def score_scan_again(scan_id: str) -> WerkzeugResponse:
    """Score an answered scan with the model that is live now; the answer joins the earlier ones."""
    scan = own_scan(scan_id)
    otherwise = (
        ORIGINAL_REMOVED
        if scan.original_removed_at
        else "Only scans that have a result can be scored again."
    )
    return _queued(scan.id, Act.SCAN_SCORED_AGAIN, score_again(scan.id), otherwise)


@blueprint.post("/scans/<scan_id>/retry")
@login_required
def retry_scan(scan_id: str) -> WerkzeugResponse:
    """Retry a failed or canceled scan."""
    scan = own_scan(scan_id)
    otherwise = (
        ORIGINAL_REMOVED
        if scan.original_removed_at
        else "Only failed or canceled scans can be retried."
    )
    return _queued(scan.id, Act.SCAN_RETRIED, retry(scan.id), otherwise)


@blueprint.post("/scans/<scan_id>/heatmap")
@login_required
def request_heatmap(scan_id: str) -> WerkzeugResponse:
    """Generate the heat maps of a scan whose model outlines the hemorrhage."""
    scan = own_scan(scan_id)
    drawn = draw_heatmap(scan.id, current_user.id)
    db.session.commit()
    if not drawn:
        flash("No heat maps can be generated for this scan.", "warning")
    elif not nudge(PREDICT_SCANS):
        flash(QUEUE_AWAY, "warning")
    return redirect(url_for("scans.show", scan_id=scan_id))


@blueprint.post("/scans/<scan_id>/delete")
@login_required
def remove(scan_id: str) -> WerkzeugResponse:
    """Delete a scan with everything derived from it."""
    if delete_scan(own_scan(scan_id).id):
        flash("The scan and all its results have been deleted.", "success")
    else:
        flash(
            "The scan has been deleted. Some of its files could not be removed yet; they will be"
            " removed within a few hours.",
            "warning",
        )
    return redirect(url_for("worklist.show", **address_of(*asked_for(request.args))))


def own_scan(scan_id: str) -> Scan:
    """Return a scan of the current user with its result; 404 for anybody else's."""
    return _scan_where(scan_id, Scan.user_id == current_user.id)


def visible_scan(scan_id: str) -> Scan:
    """Return a scan that the current user may see, with its result; 404 for any other."""
    return _scan_where(scan_id, visible_to(current_user.id))


def _scan_where(scan_id: str, allowed: ColumnElement[bool]) -> Scan:
    prediction = joinedload(Scan.prediction)
    scan = is_id(scan_id) and db.session.scalar(
        select(Scan)
        .where(Scan.id == scan_id, allowed)
        .options(
            joinedload(Scan.user),
            prediction.joinedload(Prediction.heatmap),
            prediction.joinedload(Prediction.model_version).load_only(*NAMED),
            selectinload(Scan.earlier_answers)
            .joinedload(EarlierAnswer.model_version)
            .load_only(*NAMED),
        )
    )
    if not scan:
        abort(404, "Scan not found.")
    return scan


def _note_opened(scan: Scan) -> None:
    """Note that the owner of an unread scan sees what became of it."""
    if scan.is_unread and scan.user_id == current_user.id:
        with noting():
            db.session.execute(
                update(Scan).where(Scan.id == scan.id).values(opened_at=database_now()),
                execution_options={"synchronize_session": False},
            )


def _place_in_worklist(scan: Scan) -> dict[str, object]:
    """Return the ids of the scans before and after this one in the worklist that the address
    describes, as `previous_id` and `next_id`, and that address. Scans of others are in the worklist
    of what is shared with the reader.
    """
    chosen, order = asked_for(request.args)
    if scan.user_id != current_user.id:
        chosen = {**chosen, "whose": SHARED}
    before, after = neighbors_of(scan, conditions(current_user.id, chosen), order)
    return {"previous_id": before, "next_id": after, "address": address_of(chosen, order)}


def _to_scan(scan_id: str) -> WerkzeugResponse:
    """Return to a scan's page, at its place in the worklist."""
    address = address_of(*asked_for(request.args))
    return redirect(url_for("scans.show", scan_id=scan_id, **address))


def _standing(scan: Scan) -> dict[str, object]:
    """Return the progress of a scan for its page.

    `open`: something will still change; `drawing`: the heat map will; `state`: a hash that changes
    whenever the page does; `report_kinds`: what may be asked for; `nobody_reads`: the scan is
    queued and no predict worker is running.
    """
    heatmap = scan.prediction.heatmap if scan.prediction else None
    drawing = heatmap is not None and not heatmap.status.is_final
    nobody_reads = scan.status == JobStatus.QUEUED and not checks_by_rows()["predict_worker"]
    seen = (
        f"{scan.status} {scan.progress:.2f} {scan.stage} {scan.image_key} {scan.volume_key}"
        f" {heatmap and heatmap.status} {nobody_reads}"
    )
    state = hashlib.sha256(seen.encode()).hexdigest()[:16]
    return {
        "open": drawing or not scan.status.is_final,
        "drawing": drawing,
        "report_kinds": report_kinds(scan),
        "state": state,
        "nobody_reads": nobody_reads,
    }


def _pictured(scan: Scan) -> dict[str, object]:
    """Return what the viewer shows: `series`, where slices are stored in it, the layers over them
    (`drawn_slices` have a heat map, `outlined_slices` an outline), and what is told of the outline.

    While the storage is unavailable, the page shows only the slice that represents the scan.
    """
    series = None
    if scan.volume_key and scan.prediction:
        try:
            series = series_view(open_volume(scan.volume_key), scan.prediction)
        except StorageError as err:
            log.error(
                "scan=%s its slices cannot be shown: %s", scan.id, type(err.__cause__).__name__
            )
    heatmap = scan.prediction.heatmap if scan.prediction else None
    drawn = (heatmap and heatmap.slices) or []
    if heatmap and heatmap.image_key and scan.prediction and len(scan.prediction.slices) == 1:
        drawn = [0]
    return {
        "series": series,
        "drawn_slices": drawn,
        "outlined_slices": (scan.prediction and scan.prediction.outlined_slices) or [],
        "outline": outline_view(scan.prediction),
    }


def _answered(scan: Scan) -> dict[str, object]:
    """Return what is told of a scan's answer: its `scale`, the `doubts` about it, and the `notes`
    on the images.
    """
    prediction = scan.prediction
    notes = [*(scan.notes or []), *(prediction.notes_on_images if prediction else ())]
    return {
        "scale": verdict_scale(prediction) if prediction else None,
        "doubts": prediction.doubts_of_answer if prediction else [],
        "notes": list(dict.fromkeys(notes)),
    }


def _queued(scan_id: str, act: Act, queued: bool, otherwise: str) -> WerkzeugResponse:
    """Commit a scan that was queued again, wake a worker and redirect to the scan's page, with the
    message `otherwise` if nothing was queued.
    """
    if queued:
        record(act, scan_id)
    db.session.commit()
    if not queued:
        flash(otherwise, "warning")
    elif not nudge(PREDICT_SCANS):
        flash(QUEUE_AWAY, "warning")
    return _to_scan(scan_id)
