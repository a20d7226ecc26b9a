"""The pages of a user's scans: progress and result."""

from __future__ import annotations

import hashlib
import logging

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
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.deletion import delete_scan
from webapp.extensions import database_now, db, noting
from webapp.forms import SHARED, OpinionForm, ShareForm, is_id
from webapp.health import checks_by_rows
from webapp.intake import UploadRejected, within_rate
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    ORIGINAL_REMOVED,
    EarlierAnswer,
    JobStatus,
    ModelVersion,
    Prediction,
    Scan,
    draw_heatmap,
    replays_of,
    report_kinds,
)
from webapp.rates import within_change_rate
from webapp.review.opinions import panel
from webapp.review.queue import neighbors_in_queue
from webapp.review.sharing import successor_of, visible_to, why_gone
from webapp.scans.bleeding_types import typed
from webapp.scans.changes import (
    ALREADY_FINISHED,
    IS_COMPUTED,
    NO_SHEET,
    NOT_ANSWERED,
    NOT_UNANSWERED,
    other_reading,
    reproduce_answer,
    score_scan_anyway,
)
from webapp.scans.changes import cancel_scan as cancel_own
from webapp.scans.changes import retry_scan as retry_own
from webapp.scans.changes import score_scan_again as score_own_again
from webapp.scans.outline_view import outline_view
from webapp.scans.replay_view import replay_view
from webapp.scans.series_view import series_view
from webapp.scans.stored_volume import open_volume
from webapp.scans.submission import QUEUE_UNAVAILABLE, submit_and_redirect
from webapp.scans.verdict_view import verdict_scale
from webapp.scans.worklist_query import address_of, conditions, filters_in, neighbors_of
from webapp.storage import StorageError

log = logging.getLogger(__name__)
blueprint = Blueprint("scans", __name__)

NAMED = (ModelVersion.architecture, ModelVersion.card_id, ModelVersion.number)
"""The columns from which a version's name is built."""
NO_SUCH_SCAN = "This scan does not exist or is not shared with you."
STOP_POLLING = 286
"""The status at which htmx shows the response and stops polling."""


@blueprint.get("/")
def home() -> str | WerkzeugResponse:
    """Show the home page; logged-in users go to their worklist."""
    if current_user.is_authenticated:
        return redirect(url_for("worklist.show"))
    return render_template("scans/home.html")


@blueprint.get("/scans/<scan_id>")
@login_required
def show(scan_id: str) -> str | WerkzeugResponse:
    """Show a scan with its progress or result. The page of a replaced scan redirects to the one
    that replaced it, because somebody may have a link to it; if a scan was deleted, those who could
    see it are told why.
    """
    try:
        scan = visible_scan(scan_id)
    except NotFound:
        successor = successor_of(scan_id, current_user.id)
        if successor is None:
            abort(404, why_gone(scan_id, current_user.id) or NO_SUCH_SCAN)
        flash("The scan you opened was replaced by this one.")
        return _to_scan(successor)
    _note_opened(scan)
    return scan_page(scan)


def scan_page(
    scan: Scan, opinion_form: OpinionForm | None = None, share_form: ShareForm | None = None
) -> str:
    """Return the page of a scan; `opinion_form` is a rejected opinion, `share_form` a rejected
    username.
    """
    return render_template(
        "scans/show.html",
        scan=scan,
        **_standing(scan),
        **_pictured(scan),
        **_place_in_worklist(scan),
        **_answered(scan),
        **typed(scan.prediction),
        **panel(scan, current_user.id, opinion_form, share_form),
    )


def opinions_panel(scan: Scan, opinion_form: OpinionForm | None = None) -> str:
    """Return the opinions panel of a scan's page."""
    return render_template(
        "scans/_opinions.html", scan=scan, **panel(scan, current_user.id, opinion_form)
    )


@blueprint.get("/scans/<scan_id>/progress")
@login_required
def progress(scan_id: str) -> Response:
    """Return the fragment of the scan's page that changes, or 204 if the page already shows it
    (`seen`). The page of a scan that was replaced redirects to the one that replaced it.
    """
    try:
        scan = visible_scan(scan_id)
    except NotFound:
        if successor_of(scan_id, current_user.id) is None:
            raise
        return Response(status=204, headers={"HX-Redirect": _to_scan(scan_id).location})
    standing = _standing(scan)
    if standing["open"] and standing["state"] == request.args.get("seen"):
        return Response(status=204)
    _note_opened(scan)
    page = Response(
        render_template(
            "scans/_progress.html",
            scan=scan,
            address=address_of(*filters_in(request.args)),
            **standing,
            **_pictured(scan),
            **_answered(scan),
            **typed(scan.prediction),
            **panel(scan, current_user.id),
        )
    )
    if not standing["open"]:
        page.status_code = STOP_POLLING
    page.headers["Cache-Control"] = "no-store"
    return page


@blueprint.post("/scans/<scan_id>/score-anyway")
@login_required
@within_change_rate
def score_anyway(scan_id: str) -> WerkzeugResponse:
    """Analyze a scan that was rejected because it does not look like a head CT."""
    queued = score_scan_anyway(own_scan(scan_id))
    return _queued(scan_id, queued, "This scan was not rejected, so it does not need an override.")


@blueprint.post("/scans/<scan_id>/cut")
@within_rate
@login_required
def cut(scan_id: str) -> WerkzeugResponse:
    """Submit a film sheet again: cut into slices if it was read as one slice, and vice versa."""
    scan = own_scan(scan_id)
    if (reading := other_reading(scan)) is None:
        flash(NO_SHEET, "warning")
        return redirect(url_for("scans.show", scan_id=scan_id))
    sheet, choices = reading
    try:
        return submit_and_redirect([sheet], scan.title, choices)
    except UploadRejected as err:
        flash(str(err), "warning")
        return redirect(url_for("scans.show", scan_id=scan_id))


@blueprint.post("/scans/<scan_id>/cancel")
@login_required
@within_change_rate
def cancel_scan(scan_id: str) -> WerkzeugResponse:
    """Cancel a queued or running scan."""
    if not cancel_own(own_scan(scan_id)):
        flash(ALREADY_FINISHED, "warning")
    return _to_scan(scan_id)


@blueprint.post("/scans/<scan_id>/score-again")
@login_required
@within_change_rate
def score_scan_again(scan_id: str) -> WerkzeugResponse:
    """Analyze a scan again with the current live model; its prediction moves to the earlier
    ones.
    """
    scan = own_scan(scan_id)
    otherwise = ORIGINAL_REMOVED if scan.original_removed_at else NOT_ANSWERED
    return _queued(scan.id, score_own_again(scan), otherwise)


@blueprint.post("/scans/<scan_id>/reproduce")
@login_required
@within_change_rate
def reproduce(scan_id: str) -> WerkzeugResponse:
    """Have a prediction of a scan computed again, the current one or the earlier one in `answer`;
    for the scan's owner, and for administrators who see the scan.
    """
    scan = visible_scan(scan_id)
    if not _may_reproduce(scan):
        abort(404, "Scan not found.")
    earlier = request.form.get("answer", "")
    answer = (
        next((each for each in scan.earlier_answers if str(each.id) == earlier), None)
        if earlier
        else scan.prediction
    )
    if answer is None:
        flash("There is no such result.", "warning")
        return _to_scan(scan_id)
    otherwise = ORIGINAL_REMOVED if scan.original_removed_at else IS_COMPUTED
    return _queued(scan.id, reproduce_answer(scan, answer), otherwise)


@blueprint.post("/scans/<scan_id>/retry")
@login_required
@within_change_rate
def retry_scan(scan_id: str) -> WerkzeugResponse:
    """Retry a failed or canceled scan."""
    scan = own_scan(scan_id)
    otherwise = ORIGINAL_REMOVED if scan.original_removed_at else NOT_UNANSWERED
    return _queued(scan.id, retry_own(scan), otherwise)


@blueprint.post("/scans/<scan_id>/heatmap")
@login_required
@within_change_rate
def request_heatmap(scan_id: str) -> WerkzeugResponse:
    """Generate the heat maps of a scan whose model outlines the hemorrhage."""
    scan = own_scan(scan_id)
    drawn = draw_heatmap(scan.id, current_user.id)
    db.session.commit()
    if not drawn:
        flash("No heat maps can be generated for this scan.", "warning")
    elif not nudge(PREDICT_SCANS):
        flash(QUEUE_UNAVAILABLE, "warning")
    address = address_of(*filters_in(request.args))
    return redirect(url_for("scans.show", scan_id=scan_id, **address))


@blueprint.post("/scans/<scan_id>/delete")
@login_required
@within_change_rate
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
    return redirect(url_for("worklist.show", **address_of(*filters_in(request.args))))


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
    """Record that the owner of an unread scan has seen its outcome."""
    if scan.is_unread and scan.user_id == current_user.id:
        with noting():
            db.session.execute(
                update(Scan).where(Scan.id == scan.id).values(opened_at=database_now()),
                execution_options={"synchronize_session": False},
            )


def _place_in_worklist(scan: Scan) -> dict[str, object]:
    """Return the ids of the scans before and after this one in the worklist that the address
    describes, as `previous_id` and `next_id`, and that address. Scans of other users are looked up
    among those shared with the reader, or in the review queue if they were opened from it.
    """
    if request.args.get("queue") and current_user.is_reviewer:
        before, after = neighbors_in_queue(current_user.id, scan.id)
        return {"previous_id": before, "next_id": after, "address": {"queue": 1}}
    chosen, order = filters_in(request.args)
    if scan.user_id != current_user.id:
        chosen = {**chosen, "whose": SHARED}
    before, after = neighbors_of(scan, conditions(current_user.id, chosen), order)
    return {"previous_id": before, "next_id": after, "address": address_of(chosen, order)}


def _to_scan(scan_id: str) -> WerkzeugResponse:
    """Return to a scan's page, at its position in the worklist."""
    address = address_of(*filters_in(request.args))
    return redirect(url_for("scans.show", scan_id=scan_id, **address))


def _may_reproduce(scan: Scan) -> bool:
    """Return whether the viewer of a scan's page may have its predictions computed again."""
    return bool(current_user.id == scan.user_id or current_user.is_admin)


def _standing(scan: Scan) -> dict[str, object]:
    """Return the progress of a scan for its page.

    `open`: something will still change; `drawing`: the heat map will; `state`: a hash that changes
    whenever the page does; `report_kinds`: the reports that can be requested; `nobody_reads`: the
    scan is queued and no predict worker is running; `replays`: the result of each prediction's
    replay.
    """
    rows = replays_of(scan)
    replaying = [row for row in rows.values() if not row.status.is_final]
    heatmap = scan.prediction.heatmap if scan.prediction else None
    drawing = heatmap is not None and not heatmap.status.is_final
    nobody_reads = scan.status == JobStatus.QUEUED and not checks_by_rows()["predict_worker"]
    seen = (
        f"{scan.status} {scan.progress:.2f} {scan.stage} {scan.image_key} {scan.volume_key}"
        f" {heatmap and heatmap.status} {nobody_reads} {len(replaying)}"
    )
    state = hashlib.sha256(seen.encode()).hexdigest()[:16]
    return {
        "open": drawing or bool(replaying) or not scan.status.is_final,
        "drawing": drawing,
        "report_kinds": report_kinds(scan),
        "state": state,
        "nobody_reads": nobody_reads,
        "replays": {answer_id: replay_view(row) for answer_id, row in rows.items()},
        "may_reproduce": scan.may_be_scored_again and _may_reproduce(scan),
    }


def _pictured(scan: Scan) -> dict[str, object]:
    """Return what the viewer shows: the `series`, if its slices are stored, the overlays
    (`drawn_slices` have a heat map, `outlined_slices` an outline), and the text on the outline.

    While the storage is unavailable, the page shows only the slice that represents the scan.
    """
    series = None
    if scan.volume_key and scan.prediction:
        try:
            series = series_view(open_volume(scan.volume_key), scan.prediction)
        except StorageError as err:
            log.error("scan=%s cannot show its slices: %s", scan.id, type(err.__cause__).__name__)
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
    """Return what is shown of a scan's prediction: its `scale`, the `doubts` about it, and the
    `notes` on the images.
    """
    prediction = scan.prediction
    doubts = [*scan.cautions, *prediction.doubts_of_answer] if prediction else []
    notes = [*(scan.notes or []), *(prediction.notes_on_images if prediction else ())]
    return {
        "scale": verdict_scale(prediction) if prediction else None,
        "doubts": doubts,
        "notes": [note for note in dict.fromkeys(notes) if note not in doubts],
    }


def _queued(scan_id: str, queued: bool, otherwise: str) -> WerkzeugResponse:
    """Notify a worker of a scan that was queued again and redirect to the scan's page, with the
    message `otherwise` if nothing was queued.
    """
    if not queued:
        flash(otherwise, "warning")
    elif not nudge(PREDICT_SCANS):
        flash(QUEUE_UNAVAILABLE, "warning")
    return _to_scan(scan_id)
