"""Data sets that an admin imports."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from flask import Flask
from PIL import Image
from sqlalchemy import select

from ml.phantoms import phantom, write_png
from webapp.extensions import db
from webapp.models import Dataset, JobStatus
from webapp.storage import storage
from worker import tasks
from worker.presence import presence


def archive_of(tmp_path: Path, labels: str, heads: int = 4) -> bytes:
    """Return a ZIP of phantoms 0.png, 1.png, ..., the odd ones with blood, and a table of labels."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for seed in range(heads):
            write_png(phantom(seed, hemorrhage=seed % 2 == 1, size=64), tmp_path / f"{seed}.png")
            archive.write(tmp_path / f"{seed}.png", f"set/{seed}.png")
        archive.writestr("set/labels.csv", labels)
    return content.getvalue()


def import_archive(content: bytes) -> Dataset:
    """Queue a data set, let a train worker look for work, and return the row."""
    dataset = Dataset(name="phantoms", archive_key="datasets/1.zip")
    storage.put(dataset.archive_key, content)
    db.session.add(dataset)
    db.session.commit()
    tasks.train_model()
    return db.session.scalars(select(Dataset), execution_options={"populate_existing": True}).one()


def test_a_data_set_is_explored_before_it_counts(worker_app: Flask, tmp_path: Path) -> None:
    labels = "filename,label,patient\n0.png,0,a\n1.png,1,b\n2.png,0,c\n3.png,1,d\n"
    dataset = import_archive(archive_of(tmp_path, labels))
    assert (dataset.status, dataset.error) == ("done", None)
    assert dataset.fingerprint and dataset.exploration
    assert (dataset.exploration["images"], dataset.exploration["positive"], dataset.exploration["patients"]) == (4, 2, 4)
    assert [probe["name"] for probe in dataset.exploration["probes"]][:2] == ["file size", "width and height"]
    assert len(dataset.exploration["histograms"]["positive"]) == 32
    assert Image.open(io.BytesIO(storage.get(dataset.contact_sheet_key or ""))).width > 0
    assert list(presence().folder.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("filename,label\n0.png,0\n9.png,1\n", "9.png is missing"),
        ("filename,label\n0.png,0\n2.png,0\n", "both classes are needed"),
        ("filename,label\n0.png,perhaps\n1.png,1\n", "'perhaps'"),
    ],
)
def test_a_data_set_that_cannot_be_used_fails_with_a_sentence(worker_app: Flask, tmp_path: Path, labels: str, said: str) -> None:
    dataset = import_archive(archive_of(tmp_path, labels))
    assert dataset.status == JobStatus.FAILED
    assert said in (dataset.error or "")
    assert dataset.exploration is None and storage.keys("sheets") == []
    assert not storage.exists(dataset.archive_key)
    assert list(presence().folder.iterdir()) == []


def test_a_data_set_that_trips_a_bug_fails_with_a_neutral_sentence(worker_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("worker.importing.datasets.unpack", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        import_archive(b"")
    dataset = db.session.scalars(select(Dataset), execution_options={"populate_existing": True}).one()
    assert (dataset.status, dataset.error) == (
        "failed",
        "Something unexpected went wrong while this data set was read; the log has the details.",
    )


def test_a_worker_that_is_to_stop_hands_the_data_set_back(worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([False])  # The worker is asked to stop when it has begun.
    monkeypatch.setattr(presence(), "stopping", lambda: next(asked, True))
    dataset = import_archive(archive_of(tmp_path, "filename,label\n0.png,0\n1.png,1\n2.png,0\n3.png,1\n"))
    assert (dataset.status, dataset.attempts, dataset.counted_deaths, dataset.lease_owner) == ("queued", 0, 0, None)
    assert storage.exists(dataset.archive_key)
