"""Files that no row names."""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from flask import Flask
from sqlalchemy import update

from tests.conftest import app_on, make_user
from tests.worker.conftest import install_model, picture, submit, wait_for
from webapp.deletion import delete_scan
from webapp.extensions import db
from webapp.models import Dataset, JobStatus, TrainingRun, new_id
from webapp.storage import Storage, StorageError, storage
from worker import orphaned_files, retention, tasks

TWO_HOURS_S = 7200


def age(files: Path) -> None:
    """Let everything that is stored have been written two hours ago."""
    for path in files.rglob("*"):
        os.utime(path, (time.time() - TWO_HOURS_S,) * 2)


def keys() -> list[str]:
    """Return what is stored, models aside."""
    return [
        key
        for kind in ("originals", "images", "thumbnails", "heatmaps", "checkpoints")
        for key in storage.keys(kind)
    ]


def test_what_a_deletion_could_not_remove_is_removed_later(
    any_worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    kept, deleted = submit(picture(1), picture(2))
    tasks.predict_scans()
    before = keys()
    assert len(before) == 8

    def away(self: Storage, key: str) -> None:
        raise StorageError("A stored file cannot be removed.")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", away)
        assert not delete_scan(deleted)
    assert keys() == before
    orphaned_files.remove_orphans()
    assert keys() == before  # They might belong to a row that is not committed yet.
    age(tmp_path / "files")
    orphaned_files.remove_orphans()
    assert len(keys()) == 4 and sum(kept in key for key in keys()) == 3


def test_open_runs_need_their_checkpoints_and_failed_ones_for_a_week(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    install_model()
    ids = {status: new_id() for status in JobStatus}
    for status, run_id in ids.items():
        run = TrainingRun(
            id=run_id,
            architecture="alexnet",
            settings={},
            initial_weights="random",
            seed=0,
            status=status,
        )
        run.finished_at = datetime.now(UTC) if status.is_final else None
        db.session.add(run)
        storage.put(f"checkpoints/{run_id}.zip", b"half a model")
    db.session.commit()
    age(tmp_path / "files")
    orphaned_files.remove_orphans()
    assert set(keys()) == {
        f"checkpoints/{ids[status]}.zip"
        for status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED)
    }

    db.session.execute(
        update(TrainingRun).values(finished_at=datetime.now(UTC) - timedelta(days=8))
    )
    db.session.commit()
    orphaned_files.remove_orphans()
    assert set(keys()) == {
        f"checkpoints/{ids[status]}.zip" for status in (JobStatus.QUEUED, JobStatus.RUNNING)
    }


def test_a_data_set_of_use_needs_its_archive_and_its_sheet(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    install_model()
    needed = set()
    for status in JobStatus:
        dataset = Dataset(
            id=new_id(), name=status, status=status, archive_key=f"datasets/{new_id()}.zip"
        )
        files = {dataset.archive_key, f"sheets/{dataset.id}.png"}
        needed |= set() if status in (JobStatus.FAILED, JobStatus.CANCELLED) else files
        for key in files:
            storage.put(key, b"something")
        db.session.add(dataset)
    db.session.commit()
    storage.put(f"datasets/{new_id()}.zip", b"of nobody")
    age(tmp_path / "files")
    orphaned_files.remove_orphans()
    assert {*storage.keys("datasets"), *storage.keys("sheets")} == needed and len(needed) == 6


def test_a_model_whose_training_was_killed_before_its_version_was_written_goes(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    installed = [install_model(), install_model(gain=2.0, live=False)]
    before = storage.keys("models")
    storage.put(f"models/{new_id()}/model.onnx", b"of no version")
    orphaned_files.remove_orphans()
    assert len(storage.keys("models")) == len(before) + 1  # It might be committed in a moment.
    age(tmp_path / "files")
    orphaned_files.remove_orphans()
    assert storage.keys("models") == before
    assert {orphaned_files.folder_of(key) for key in before} == {
        version.storage_prefix for version in installed
    }


def test_what_a_killed_process_was_writing_goes_and_the_file_stays(
    worker_app: Flask, tmp_path: Path
) -> None:
    install_model()
    (scan_id,) = submit(picture())
    (tmp_path / "files" / "originals" / f"{scan_id}.png.{new_id()}.part").write_bytes(b"half")
    age(tmp_path / "files")
    orphaned_files.remove_orphans()
    assert keys() == [f"originals/{scan_id}.png"]


def test_a_storage_that_is_away_is_asked_again_another_time(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(self: Storage, prefix: str) -> dict[str, object]:
        raise StorageError("The storage cannot be read.")

    install_model()
    monkeypatch.setattr(Storage, "written", away)
    with caplog.at_level(logging.WARNING):
        orphaned_files.remove_orphans()
    assert "cannot look for orphans" in caplog.text


def test_what_is_not_named_as_ours_stays(worker_app: Flask, tmp_path: Path) -> None:
    install_model()
    strangers = {
        "originals/README.txt",
        f"originals/folder/{new_id()}.png",
        f"originals/{new_id()}",
    }
    for key in strangers:
        storage.put(key, b"of somebody else")
    age(tmp_path / "files")
    orphaned_files.remove_orphans()
    assert set(keys()) == strangers


def test_a_marker_of_a_folder_in_a_bucket_does_not_take_the_folder_with_it(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, STORAGE_URL=s3_url)
    make_user(app, "ann")
    with app.app_context():
        install_model()
        scan_ids = submit(picture(1), picture(2))
        lost = new_id()
        storage.put(f"originals/{lost}.png", b"of nobody")
        boto3.client("s3").put_object(Bucket="hemoscan", Key="some/where/originals/", Body=b"")
        monkeypatch.setattr(orphaned_files, "ABANDONED_AFTER", timedelta(seconds=-60))
        orphaned_files.remove_orphans()
        assert {orphaned_files.id_in(key) for key in storage.keys("originals")} - {""} == set(
            scan_ids
        )
        db.session.remove()
        db.engine.dispose()


def test_another_database_removes_nothing(
    worker_app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install_model()
    (scan_id,) = submit(picture())
    orphaned_files.remove_orphans()
    age(tmp_path / "files")
    other = app_on(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    with other.app_context():
        orphaned_files.remove_orphans()  # Without a model version it is nobody yet.
        install_model()
        orphaned_files.remove_orphans()
        db.session.remove()
        db.engine.dispose()
    assert "belongs to another database" in caplog.text
    assert storage.exists(f"originals/{scan_id}.png")


def test_the_task_does_not_wait_for_a_storage_that_hangs(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), []

    def hang() -> None:
        began.set()
        may_end.wait(60)
        ended.append("one")

    monkeypatch.setattr(retention, "remove_orphans", hang)
    tasks.clean_up()
    assert began.wait(60)
    tasks.clean_up()  # A second one is not begun.
    assert ended == []
    may_end.set()
    wait_for(lambda: ended == ["one"] and not retention._cleaning_up.locked())
