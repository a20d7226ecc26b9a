"""Reports from the request to the file, on both databases."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from flask import Flask
from sqlalchemy import select, update

from tests.ml.made_scans import write_series
from tests.worker.conftest import install_model, picture, submit
from tests.worker.reports.readers import require_valid, text_of
from tests.worker.test_outlines import install_outlining, submit_bleeding
from tests.worker.test_series import submit_zip
from webapp.deletion import delete_scan
from webapp.extensions import database_now, db
from webapp.models import (
    JobStatus,
    Report,
    ReportKind,
    ReportRefused,
    Scan,
    ask_for_report,
    report_kinds,
)
from webapp.models.reports import KEEP_S, MAX_OPEN
from webapp.storage import Storage, StorageError, storage
from worker import leases, retention, tasks
from worker.heartbeat import heartbeat
from worker.reports import sources
from worker.reports.making import can_be_segmented, make_next_report
from worker.sweep import DOING


def scan_of(scan_id: str) -> Scan:
    """Return a scan as the database has it now."""
    return db.session.get_one(Scan, scan_id, populate_existing=True)


def answered(folder: Path) -> Scan:
    """Return a DICOM series of four slices with its result."""
    install_model()
    install_model(reads="series")
    paths = write_series(folder, 4, PatientName="Doe^Jane", PatientID="MRN4711X")
    scan = submit_zip({path.name: path.read_bytes() for path in paths})
    tasks.predict_scans()
    return scan_of(scan.id)


def requested(scan: Scan, kind: ReportKind) -> str:
    """Ask for a report as its owner does; return its id."""
    report, replaced = ask_for_report(scan, kind)
    db.session.commit()
    for key in replaced:
        storage.discard(key)
    return report.id


def report_of(report_id: str) -> Report:
    """Return a report as the database has it now."""
    return db.session.get_one(Report, report_id, populate_existing=True)


def test_each_kind_is_made_of_the_stored_copy_and_read_by_others(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    scan = answered(tmp_path / "series")
    made = {kind: requested(scan, kind) for kind in report_kinds(scan)}
    tasks.predict_scans()

    assert set(made) == set(ReportKind) - {ReportKind.SEGMENTATION}
    reports = {kind: report_of(report_id) for kind, report_id in made.items()}
    assert {report.status for report in reports.values()} == {JobStatus.DONE}
    files = {kind: storage.get(report.file_key) for kind, report in reports.items()}
    assert scan.id in text_of(files[ReportKind.PDF])
    studies = set()
    for kind in (ReportKind.STRUCTURED_REPORT, ReportKind.SECONDARY_CAPTURE):
        path = tmp_path / f"{kind}.dcm"
        path.write_bytes(files[kind])
        require_valid(path)
        read = pydicom.dcmread(path)
        studies.add(read.StudyInstanceUID)
        assert read.SOPInstanceUID == f"2.25.{int(made[kind], 16)}"
        assert (read.PatientName, read.PatientIdentityRemoved) == ("", "YES")
        assert b"Jane" not in files[kind] and b"MRN4711X" not in files[kind]
    assert len(studies) == 1 and next(iter(studies)).startswith("2.25.")


def test_an_outline_is_drawn_measured_and_made_a_segmentation(
    worker_app: Flask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install_outlining()
    scan = submit_bleeding(tmp_path / "series")
    tasks.predict_scans()
    scan = scan_of(scan.id)
    assert scan.prediction is not None
    scan.prediction.first_slices = scan.prediction.outlined_slices
    made = {kind: requested(scan, kind) for kind in report_kinds(scan)}
    tasks.predict_scans()

    assert set(made) == set(ReportKind)
    assert {report_of(one).error for one in made.values()} == {None}
    files = {kind: storage.get(report_of(one).file_key) for kind, one in made.items()}
    text = text_of(files[ReportKind.PDF])
    assert "Outline: where the model suspects hemorrhage" in text and "Heat map:" not in text
    assert "The volume outlined by the model is about" in " ".join(text.split())
    for kind in (ReportKind.STRUCTURED_REPORT, ReportKind.SEGMENTATION):
        path = tmp_path / f"{kind}.dcm"
        path.write_bytes(files[kind])
        require_valid(path)
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    voxel_ml = np.prod(volume.spacing) / 1000
    assert volume.array.sum() * voxel_ml == pytest.approx(scan.prediction.volume_ml, rel=0.02)

    assert scan.prediction.can_be_segmented is True

    def stumble(_headers: object, _slices: int) -> None:
        raise TypeError("an odd header")

    monkeypatch.setattr(sources, "located", stumble)
    assert not can_be_segmented(scan, 1) and "an odd header" in caplog.text
    scan.prediction.can_be_segmented = False
    assert ReportKind.SEGMENTATION not in report_kinds(scan)
    with pytest.raises(ReportRefused, match="do not say where each slice lies"):
        ask_for_report(scan, ReportKind.SEGMENTATION)


def test_only_a_dicom_scan_has_dicom_objects_and_only_a_result_a_report(
    any_worker_app: Flask,
) -> None:
    (scan_id,) = submit(picture(200))
    with pytest.raises(ReportRefused, match="once the scan has a result"):
        ask_for_report(scan_of(scan_id), ReportKind.PDF)
    install_model()
    tasks.predict_scans()
    scan = scan_of(scan_id)
    with pytest.raises(ReportRefused, match="only for scans that were submitted as DICOM"):
        ask_for_report(scan, ReportKind.STRUCTURED_REPORT)
    assert report_kinds(scan) == (ReportKind.PDF,)
    scan.kind, scan.original_removed_at = "dicom", scan.finished_at
    with pytest.raises(ReportRefused, match="no longer stored"):
        ask_for_report(scan, ReportKind.STRUCTURED_REPORT)


def test_asking_again_waits_for_the_same_report_and_then_replaces_it(worker_app: Flask) -> None:
    install_model()
    (scan_id,) = submit(picture(200))
    tasks.predict_scans()
    scan = scan_of(scan_id)
    first = requested(scan, ReportKind.PDF)
    assert requested(scan, ReportKind.PDF) == first
    tasks.predict_scans()
    second = requested(scan, ReportKind.PDF)
    assert storage.keys("reports") == []
    tasks.predict_scans()

    assert storage.keys("reports") == sorted(report_of(second).file_keys)
    assert db.session.scalars(select(Report.id)).all() == [second]


def test_one_person_may_have_so_many_reports_waiting(worker_app: Flask) -> None:
    install_model()
    ids = submit(*[picture(200)] * (MAX_OPEN + 1))
    tasks.predict_scans()
    for scan_id in ids[:MAX_OPEN]:
        requested(scan_of(scan_id), ReportKind.PDF)
    with pytest.raises(ReportRefused, match="already waiting"):
        ask_for_report(scan_of(ids[-1]), ReportKind.PDF)


def test_a_result_does_not_wait_for_many_reports(worker_app: Flask) -> None:
    install_model()
    ids = submit(*[picture(200)] * 3)
    tasks.predict_scans()
    reports = [requested(scan_of(scan_id), ReportKind.PDF) for scan_id in ids]
    (late,) = submit(picture(10))
    order: list[str] = []
    worker_app.extensions["heartbeat"].stopping = lambda: bool(
        order.append(scan_of(late).status) or False
    )
    tasks.predict_scans()

    assert order[:2] == [JobStatus.QUEUED, JobStatus.DONE]  # After one report.
    assert {report_of(one).status for one in reports} == {JobStatus.DONE}


def test_a_report_that_cannot_be_made_says_so_in_a_sentence(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (scan_id,) = submit(picture(200))
    tasks.predict_scans()
    report_id = requested(scan_of(scan_id), ReportKind.PDF)

    def fails(*_: object) -> bytes:
        raise RuntimeError("secret")

    monkeypatch.setattr("worker.reports.page.pdf_of", fails)
    assert make_next_report()
    report = report_of(report_id)
    assert report.status == JobStatus.FAILED
    assert report.error and "unexpected error" in report.error and "secret" not in report.error
    assert storage.keys("reports") == []


def test_a_storage_that_is_away_fails_no_report(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (scan_id,) = submit(picture(200))
    tasks.predict_scans()
    report_id = requested(scan_of(scan_id), ReportKind.PDF)
    with monkeypatch.context() as away:

        def refuse(*_: object) -> bytes:
            raise StorageError("away")

        away.setattr(Storage, "get", refuse)
        away.setattr(Storage, "answers", lambda _: False)
        make_next_report()
        assert report_of(report_id).status == JobStatus.QUEUED
    tasks.predict_scans()
    assert report_of(report_id).status == JobStatus.DONE


def test_a_report_whose_worker_died_is_made_by_the_next(any_worker_app: Flask) -> None:
    install_model()
    (scan_id,) = submit(picture(200))
    tasks.predict_scans()
    report_id = requested(scan_of(scan_id), ReportKind.PDF)
    leases.claim(Report, "a worker that dies")
    db.session.execute(update(Report).values(lease_expires_at=database_now(-1)))
    db.session.commit()
    leases.reap(Report, DOING[Report])
    db.session.commit()
    tasks.predict_scans()
    assert report_of(report_id).status == JobStatus.DONE


def test_the_file_goes_with_its_scan_and_after_a_day(worker_app: Flask) -> None:
    install_model()
    ids = submit(picture(200), picture(10))
    tasks.predict_scans()
    reports = [requested(scan_of(scan_id), ReportKind.PDF) for scan_id in ids]
    tasks.predict_scans()
    assert len(storage.keys("reports")) == 2
    delete_scan(ids[0])
    assert storage.keys("reports") == sorted(report_of(reports[1]).file_keys)

    retention.remove_old_reports()
    assert len(storage.keys("reports")) == 1
    db.session.execute(update(Report).values(finished_at=database_now(-KEEP_S - 1)))
    db.session.commit()
    retention.remove_old_reports()
    assert storage.keys("reports") == []
    assert db.session.scalars(select(Report.id)).all() == []


def test_a_report_of_a_scan_that_is_deleted_meanwhile_leaves_no_file(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (scan_id,) = submit(picture(200))
    tasks.predict_scans()
    requested(scan_of(scan_id), ReportKind.PDF)

    def deletes(*_: object) -> bytes:
        delete_scan(scan_id)
        return b"%PDF"

    monkeypatch.setattr("worker.reports.page.pdf_of", deletes)
    assert make_next_report()
    assert storage.keys("reports") == []
    assert heartbeat().last_reported_for
