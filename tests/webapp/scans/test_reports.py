"""Reports on pages and in the API: asked for, waited for, downloaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.webapp.scans.test_scans import add_scan, add_verdict
from tests.webapp.test_api import make_token
from webapp.extensions import db, utc_now
from webapp.models import Act, AuditEvent, JobStatus, Report, ReportKind, Scan, User
from webapp.models.reports import MAX_OPEN
from webapp.scans import reports
from webapp.storage import storage


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is there to wait for."""
    monkeypatch.setattr(reports, "WAIT_S", 0.0)


@pytest.fixture
def ann(app: Flask, logged_in: Callable[..., FlaskClient]) -> FlaskClient:
    """A client with Ann's login and token."""
    client = logged_in("ann")
    with app.app_context():
        user_id = db.session.scalars(select(User.id)).one()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(app, user_id)}"
    return client


def answered(app: Flask, kind: str = "dicom") -> str:
    """Add a scan with a result; return its id."""
    scan_id = add_scan(app)
    add_verdict(app, scan_id)
    with app.app_context():
        db.session.get_one(Scan, scan_id).kind = kind
        db.session.commit()
    return scan_id


def finish(app: Flask, content: bytes = b"%PDF-1.7") -> None:
    """Make the report that waits, as a worker does."""
    with app.app_context():
        (report,) = db.session.scalars(select(Report)).all()
        report.status, report.finished_at = JobStatus.DONE, utc_now()
        storage.put(report.file_key, content)
        db.session.commit()


def test_the_page_of_a_scan_offers_the_reports_that_there_are(app: Flask, ann: FlaskClient) -> None:
    waiting = add_scan(app)
    assert 'id="report"' not in ann.get(f"/scans/{waiting}").text
    page = ann.get(f"/scans/{answered(app)}").text
    for kind in ReportKind:
        # Nothing is outlined in it.
        assert (f"/reports/{kind}" in page) == (kind != ReportKind.SEGMENTATION)
    assert "report.json" in page
    picture = ann.get(f"/scans/{answered(app, 'png')}").text
    assert "/reports/pdf" in picture and "/reports/sr" not in picture


def test_a_report_is_asked_for_waited_for_and_downloaded(app: Flask, ann: FlaskClient) -> None:
    scan_id = answered(app)
    address = f"/scans/{scan_id}/reports/pdf"
    assert ann.get(address).status_code == 404
    answer = ann.post(address)
    assert (answer.status_code, answer.location) == (302, address)
    page = ann.get(address, follow_redirects=True)
    assert page.request.full_path == f"{address}?waited=1"
    assert "Preparing your report" in page.text
    assert '<meta http-equiv="refresh" content="2">' in page.text
    assert "No worker is currently running." in page.text
    finish(app)

    ready = ann.get(f"{address}?waited=1").text  # A page that waits would remain after a download.
    assert "Your report is ready" in ready and "Preparing" not in ready
    assert f'<meta http-equiv="refresh" content="0; url={address}">' in ready
    file = ann.get(address)
    assert (file.data, file.mimetype) == (b"%PDF-1.7", "application/pdf")
    name = f"hemoscan-{scan_id[:8]}.pdf"
    assert file.headers["Content-Disposition"] == f"attachment; filename={name}"
    with app.app_context():
        acts = db.session.execute(
            select(AuditEvent.object_id, AuditEvent.detail).where(
                AuditEvent.act == Act.REPORT_ASKED_FOR
            )
        ).all()
        assert [tuple(act) for act in acts] == [(scan_id, "pdf")]
    ann.post(address)
    with app.app_context():
        assert storage.keys("reports") == []  # The old one went; a new one is being made.


def test_a_report_that_failed_says_why_and_can_be_asked_for_again(
    app: Flask, ann: FlaskClient
) -> None:
    address = f"/scans/{answered(app)}/reports/sc"
    ann.post(address)
    with app.app_context():
        (report,) = db.session.scalars(select(Report)).all()
        report.status, report.error = JobStatus.FAILED, "A stored file no longer exists."
        db.session.commit()
    page = ann.get(address, follow_redirects=True).text
    assert "A stored file no longer exists." in page and "Try again" in page
    assert "http-equiv" not in page
    answer = ann.get(f"/api/v1{address}")
    assert (answer.status_code, answer.json["detail"]) == (409, "A stored file no longer exists.")


def test_a_kind_that_there_is_not_is_404_and_one_that_cannot_be_made_a_sentence(
    app: Flask, ann: FlaskClient
) -> None:
    scan_id = answered(app, "png")
    assert ann.post(f"/scans/{scan_id}/reports/docx").status_code == 404
    assert ann.get(f"/scans/{scan_id}/reports/docx").status_code == 404
    page = ann.post(f"/scans/{scan_id}/reports/sr", follow_redirects=True).text
    assert "only for scans that were submitted as DICOM" in page
    refused = ann.post(f"/api/v1/scans/{scan_id}/reports/sr")
    assert (
        refused.status_code == 409
        and "only for scans that were submitted as DICOM" in refused.json["detail"]
    )


def test_a_program_asks_waits_and_downloads(app: Flask, ann: FlaskClient) -> None:
    scan_id = answered(app)
    address = f"/api/v1/scans/{scan_id}/reports/sr"
    response = ann.post(address)
    assert response.status_code == 202
    assert response.json == {"kind": "sr", "status": "queued", "url": f"http://localhost{address}"}
    waits = ann.get(address)
    assert (waits.status_code, waits.headers["Retry-After"]) == (202, "1")
    finish(app, b"DICM")
    done = ann.get(address)
    assert (done.data, done.mimetype) == (b"DICM", "application/dicom")


def test_who_has_many_reports_waiting_is_asked_to_wait(app: Flask, ann: FlaskClient) -> None:
    ids = [answered(app) for _ in range(MAX_OPEN + 1)]
    for scan_id in ids[:-1]:
        assert ann.post(f"/api/v1/scans/{scan_id}/reports/pdf").status_code == 202
    refused = ann.post(f"/api/v1/scans/{ids[-1]}/reports/pdf")
    assert refused.status_code == 409 and "already waiting" in refused.json["detail"]


def test_the_json_of_a_scan_is_what_the_api_tells(app: Flask, ann: FlaskClient) -> None:
    scan_id = answered(app)
    file = ann.get(f"/scans/{scan_id}/report.json")
    assert file.json.items() >= ann.get(f"/api/v1/scans/{scan_id}").json.items()
    assert "attachment" in file.headers["Content-Disposition"]
    assert ann.get("/scans/nonsense/report.json").status_code == 404
