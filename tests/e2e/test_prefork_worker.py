"""A real prefork worker between a real Redis and a real PostgreSQL."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import func, select
from werkzeug.datastructures import FileStorage

from tests.conftest import make_user
from tests.e2e.conftest import Service, a_service
from tests.e2e.pictures import phantom_dicom, phantom_png
from webapp.extensions import db
from webapp.intake import accept_upload
from webapp.models import JobStatus, ModelVersion, Prediction, Scan, Worker, live_version

EACH = 10


def test_a_prefork_worker_answers_twenty_scans_each_exactly_once(
    tmp_path: Path, postgres_url: str
) -> None:
    with a_service(tmp_path, postgres_url) as service:
        user_id = make_user(service.app, "ann")
        early = [phantom_png(tmp_path, seed, hemorrhage=seed % 2 == 0) for seed in range(EACH)]
        late = [phantom_dicom(tmp_path, seed, hemorrhage=seed % 2 == 0) for seed in range(EACH)]
        # Their nudge waits in Redis until there is a worker.
        submitted = submit(service, user_id, early)
        service.start("worker-predict")
        service.eventually(lambda: verdicts(service) > 0, "The worker answers", within_s=60)
        submitted += submit(service, user_id, late)
        service.eventually(lambda: verdicts(service) == 2 * EACH, "All are answered", within_s=60)

        with service.app.app_context():
            scans = db.session.scalars(select(Scan).where(Scan.id.in_(submitted))).all()
            assert {scan.status for scan in scans} == {JobStatus.DONE}, [
                scan.error for scan in scans
            ]
            live = live_version("slice")
            assert live is not None
            for scan in scans:
                assert_is_answered(scan, live)
            worker = db.session.scalars(select(Worker)).one()
            assert worker.queue == "predict"
            libraries = Path(f"/proc/{worker.pid}/maps")
            # Linux tells what a process has loaded; of a worker, root alone.
            if libraries.exists() and os.geteuid() == 0:
                assert "onnxruntime" in libraries.read_text()
                assert "tensorflow" not in libraries.read_text()


def submit(service: Service, user_id: str, paths: list[Path]) -> list[str]:
    """Take files in as the web application does; return the scans' ids."""
    files = [FileStorage(path.open("rb"), filename=path.name, name="file") for path in paths]
    try:
        with service.app.test_request_context():
            return [scan.id for scan in accept_upload(user_id, files).scans]
    finally:
        for file in files:
            file.close()


def verdicts(service: Service) -> int:
    """Return how many predictions there are."""
    with service.app.app_context():
        return db.session.scalar(select(func.count()).select_from(Prediction)) or 0


def assert_is_answered(scan: Scan, live: ModelVersion) -> None:
    """Check every column that a page shows of a verdict."""
    answer = scan.prediction
    assert answer is not None
    assert answer.model_version_id == live.id
    assert 0 <= answer.probability <= 1
    assert answer.threshold == live.card["threshold"]
    assert answer.positive == (answer.probability >= answer.threshold)
    assert len(answer.slices) == 1
    assert answer.seconds > 0
    assert scan.progress == 1.0
    assert scan.error is None
    assert scan.image_key and scan.thumbnail_key
    assert scan.started_at and scan.finished_at and scan.created_at <= scan.finished_at
    assert answer.heatmap is None, "the live model outlines what it finds"
    assert scan.outline_key is not None or not answer.positive
