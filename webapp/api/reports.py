"""Reports of a scan as files: requested first, then downloaded once they are ready."""

from __future__ import annotations

from http import HTTPMethod
from typing import Any

from flask import Response, g, url_for
from werkzeug.exceptions import Conflict, NotFound

from webapp.api.access import blueprint, operation
from webapp.api.pictures import BINARY, NotYet, may_come
from webapp.api.schemas import ReportSchema
from webapp.models import JobStatus, ReportKind, ReportRefused, Scan, Scope
from webapp.scans.reports import (
    NO_SUCH_REPORT,
    finished_report,
    queue_report,
    report_file,
    within_report_rate,
)

PATH = "/scans/<scan_id>/reports/<kind>"
KIND = {
    "name": "kind",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "enum": [kind.value for kind in ReportKind]},
    "description": (
        "pdf: one page to print; sr: DICOM Structured Report (TID 1500); sc: DICOM Secondary"
        " Capture of the slice with its outline or heat map; seg: DICOM Segmentation of the"
        " outline, if there is one. The last three exist for DICOM scans only."
    ),
}


@operation(HTTPMethod.POST, PATH, "make_report", Scope.READ, 404, within=within_report_rate)
@blueprint.doc(parameters=[KIND])
@blueprint.response(202, ReportSchema)
def make_report(scan_id: str, kind: str) -> dict[str, Any]:
    """Request a report of a scan; it replaces an earlier one of its kind, and is kept for a day.

    The response is immediate; GET the same URL for the file.
    """
    try:
        report = queue_report(scan_id, Scan.user_id == g.token_owner_id, kind)
    except ReportRefused as err:
        raise Conflict(str(err)) from err
    address = url_for("api.read_report", scan_id=scan_id, kind=kind, _external=True)
    return {"kind": ReportKind(report.kind), "status": report.status, "url": address}


@operation(HTTPMethod.GET, PATH, "read_report", Scope.READ, 404, 409)
@may_come
@blueprint.doc(
    parameters=[KIND],
    responses={
        200: {
            "description": "The report.",
            "content": {kind.media_type: {"schema": BINARY} for kind in ReportKind},
        }
    },
)
def read_report(scan_id: str, kind: str) -> Response:
    """Download a requested report; the request waits for up to two seconds."""
    report = finished_report(scan_id, Scan.user_id == g.token_owner_id, kind)
    if report is None:
        raise NotFound(NO_SUCH_REPORT)
    if report.status != JobStatus.DONE and report.status.is_final:
        raise Conflict(report.error or "The report could not be created.")
    if report.status != JobStatus.DONE:
        raise NotYet("The report is not ready yet.")
    return report_file(report)
