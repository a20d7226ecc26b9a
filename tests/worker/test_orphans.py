"""Files that no row names."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest
from flask import Flask

from tests.worker.conftest import install_model, picture, submit
from webapp.extensions import db
from webapp.models import JobStatus, TrainingRun, new_id
from webapp.scans import delete_scan
from webapp.storage import Storage, StorageError, storage
from worker import tasks

TWO_HOURS_S = 7200


def age(files: Path) -> None:
    """Let everything that is stored have been written two hours ago."""
    for path in files.rglob("*"):
        os.utime(path, (time.time() - TWO_HOURS_S,) * 2)


def keys() -> list[str]:
    """Return what is stored, models aside."""
    return [key for kind in ("originals", "images", "thumbnails", "heatmaps", "checkpoints") for key in storage.keys(kind)]


def test_what_a_deletion_could_not_remove_is_removed_later(any_worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    tasks.remove_orphans()
    assert keys() == before  # They might belong to a row that is not committed yet.
    age(tmp_path / "files")
    tasks.remove_orphans()
    assert len(keys()) == 4 and sum(kept in key for key in keys()) == 3


def test_only_open_runs_need_their_checkpoints(any_worker_app: Flask, tmp_path: Path) -> None:
    ids = {status: new_id() for status in JobStatus}
    for status, run_id in ids.items():
        db.session.add(TrainingRun(id=run_id, architecture="alexnet", settings={}, initial_weights="random", seed=0, status=status))
        storage.put(f"checkpoints/{run_id}.zip", b"half a model")
    db.session.commit()
    age(tmp_path / "files")
    tasks.remove_orphans()
    assert set(keys()) == {f"checkpoints/{ids[status]}.zip" for status in (JobStatus.QUEUED, JobStatus.RUNNING)}


def test_what_a_killed_process_was_writing_goes_and_the_file_stays(worker_app: Flask, tmp_path: Path) -> None:
    (scan_id,) = submit(picture())
    (tmp_path / "files" / "originals" / f"{scan_id}.png.{new_id()}.part").write_bytes(b"half")
    age(tmp_path / "files")
    tasks.remove_orphans()
    assert keys() == [f"originals/{scan_id}.png"]


def test_a_storage_that_is_away_is_asked_again_another_time(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(self: Storage, prefix: str) -> dict[str, object]:
        raise StorageError("The storage cannot be read.")

    monkeypatch.setattr(Storage, "written", away)
    with caplog.at_level(logging.WARNING):
        tasks.remove_orphans()
    assert "orphans of originals could not be looked for" in caplog.text
