"""A worker that is alive says so."""

from __future__ import annotations

import mmap
import os
import time

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from tests.worker.conftest import install_model, picture, submit, wait_for
from webapp.extensions import database_now, db
from webapp.models import Scan, Worker
from worker import leases
from worker.heartbeat import (
    ABANDONED_S,
    DOWNLOAD_ABANDONED_S,
    Heartbeat,
    heartbeat,
    models_of,
    remove_abandoned_folders,
)


def away(*_: object) -> None:
    """Stand in for a database that cannot be reached."""
    raise OperationalError("UPDATE", {}, OSError("gone"))


def seen_s_ago(owner: str) -> float | None:
    """Return for how long a worker has been silent, on the database's clock; None if it has no
    row.
    """
    seen = db.session.execute(
        select(database_now(), Worker.seen_at).where(Worker.id == owner)
    ).first()
    db.session.commit()
    return None if seen is None else (seen[0] - seen[1]).total_seconds()


def test_a_worker_shows_up_and_signs_off(any_worker_app: Flask) -> None:
    mine = Heartbeat(any_worker_app, "predict")
    mine.start()
    shown = db.session.get_one(Worker, mine.owner)
    assert (shown.queue, shown.host) == ("predict", mine.host)
    db.session.commit()
    with mine.work_folder() as folder:
        (folder / "file").touch()
    mine.stop()
    assert seen_s_ago(mine.owner) is None
    assert not mine.folder.exists()


def test_what_one_child_found_of_the_storage_its_successor_knows(worker_app: Flask) -> None:
    shared = mmap.mmap(-1, 1)
    first, second, stranger = (
        Heartbeat(worker_app, "train", storage_away=byte) for byte in (shared, shared, None)
    )
    first.misses_storage = True
    assert (second.misses_storage, stranger.misses_storage) == (True, False)
    second.misses_storage = False
    assert not first.misses_storage


def test_the_heartbeat_goes_on_by_itself_and_renews_what_is_held(any_worker_app: Flask) -> None:
    any_worker_app.config["HEARTBEAT_S"] = 0.01
    install_model()
    held, stray = submit(picture(), picture())
    mine = Heartbeat(any_worker_app, "predict")
    leases.claim(Scan, mine.owner, 2)
    db.session.execute(update(Scan).values(lease_expires_at=database_now(-5)))
    db.session.commit()

    def is_renewed(scan_id: str) -> bool:
        renewed = db.session.scalar(
            select(Scan.lease_expires_at > database_now(5)).where(Scan.id == scan_id)
        )
        db.session.commit()
        return bool(renewed)

    with mine.holding(Scan, [held]):
        mine.start()
        wait_for(lambda: is_renewed(held))
    mine.stop()
    assert not is_renewed(stray)


def test_a_row_that_was_swept_away_comes_back(worker_app: Flask) -> None:
    mine = heartbeat()
    mine.beat()
    db.session.delete(db.session.get_one(Worker, mine.owner))
    db.session.commit()
    mine.beat()
    assert seen_s_ago(mine.owner) is not None


def test_a_database_that_is_away_does_not_stop_the_heart(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = heartbeat()
    with monkeypatch.context() as patched:
        patched.setattr("worker.heartbeat.update", away)
        mine.beat()
    mine.beat()
    assert seen_s_ago(mine.owner) is not None


def test_downloads_of_models_that_a_killed_worker_left_are_removed(worker_app: Flask) -> None:
    models = models_of(worker_app)
    model, left, current = models / "3f2a", models / ".fetched-1", models / ".checked-2"
    for folder in (model, left, current):
        folder.mkdir(parents=True)
        (folder / "features.onnx").touch()
    long_ago = time.time() - 2 * DOWNLOAD_ABANDONED_S
    for folder in (model, left):
        os.utime(folder, (long_ago, long_ago))
    remove_abandoned_folders()
    assert set(models.iterdir()) == {model, current}


def test_only_folders_of_workers_that_are_gone_are_removed(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, killed = heartbeat(), Heartbeat(worker_app, "predict")
    long_ago = time.time() - 2 * ABANDONED_S
    with mine.work_folder() as folder, killed.work_folder():
        remove_abandoned_folders()
        assert folder.is_dir()
        assert killed.folder.is_dir(), "a worker that only just started may have no row yet"
        for of in (mine, killed):
            os.utime(of.folder, (long_ago, long_ago))
        with monkeypatch.context() as patched:
            patched.setattr("worker.heartbeat.update", away)
            mine.beat()
        remove_abandoned_folders()
        assert folder.is_dir(), "its heart beats, though the database was away all the time"
        assert not killed.folder.exists()
        mine.beat()
        os.utime(mine.folder, (long_ago, long_ago))
        remove_abandoned_folders()
        assert folder.is_dir(), "the database has heard of it, whatever this machine's clock says"
