"""The pages of reports: a button that requests one, a page that waits for it, and the download."""

from __future__ import annotations

from flask import (
    Blueprint,
    Response,
    abort,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    url_for,
)
from flask_login import current_user, login_required
from sqlalchemy import select
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.api.opinions import add_opinions
from webapp.api.scans import scan_as_json, with_result
from webapp.api.schemas import ScanSchema
from webapp.extensions import db
from webapp.forms import is_id
from webapp.health import checks_by_rows
from webapp.models import JobStatus, ReportRefused, Scan
from webapp.scans.reports import (
    NO_SUCH_REPORT,
    finished_report,
    queue_report,
    report_file,
    within_report_rate,
)

blueprint = Blueprint("reports", __name__, url_prefix="/scans/<scan_id>")


@blueprint.post("/reports/<kind>")
@login_required
@within_report_rate
def ask(scan_id: str, kind: str) -> WerkzeugResponse:
    """Request a report, and redirect to its address."""
    try:
        queue_report(scan_id, Scan.user_id == current_user.id, kind)
    except ReportRefused as err:
        flash(str(err), "warning")
        return redirect(url_for("scans.show", scan_id=scan_id))
    return redirect(url_for("reports.show", scan_id=scan_id, kind=kind))


@blueprint.get("/reports/<kind>")
@login_required
def show(scan_id: str, kind: str) -> Response | WerkzeugResponse | str:
    """Send a report, or redirect to a page that waits for it. A browser that downloads a file keeps
    showing the page it was on, so that page says first that the report is ready, and then requests
    the file. It has an address of its own, so that its Back button leads to the scan.
    """
    report = finished_report(scan_id, Scan.user_id == current_user.id, kind)
    if report is None:
        abort(404, NO_SUCH_REPORT)
    if "waited" not in request.args:
        if report.status == JobStatus.DONE:
            return report_file(report)
        return redirect(url_for("reports.show", scan_id=scan_id, kind=kind, waited=1))
    return render_template(
        "reports/waiting.html",
        report=report,
        nobody_works=not checks_by_rows()["predict_worker"],
    )


@blueprint.get("/report.json")
@login_required
def as_json(scan_id: str) -> Response:
    """Send a scan in the API's format, with the opinions on it, as a file."""
    scan = (
        is_id(scan_id)
        and db.session.scalars(
            with_result(select(Scan)).where(Scan.id == scan_id, Scan.user_id == current_user.id)
        )
        .unique()
        .one_or_none()
    )
    if not scan:
        abort(404, "Scan not found.")
    content = ScanSchema().dump(scan_as_json(scan))
    add_opinions([content])
    answer = Response(current_app.json.dumps(content), mimetype="application/json")
    name = f"hemoscan-{scan.id[:8]}.json"
    answer.headers.set("Content-Disposition", "attachment", filename=name)
    answer.headers["Cache-Control"] = "no-store"
    return answer
