"""Data sets that an admin imports."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flask import Flask
from PIL import Image
from sqlalchemy import UpdateBase, delete, select, update

from ml.scans.phantoms import phantom, write_png
from tests.ml.made_scans import nifti, packed
from webapp.extensions import database_now, db
from webapp.models import Dataset, JobStatus, cancel
from webapp.storage import Storage, StorageError, storage
from worker import decoder, leases, tasks
from worker.decoder import BEYOND_LIMITS, Decoder
from worker.heartbeat import heartbeat
from worker.learning import dataset_import

LABELS = "filename,label,patient\n0.png,0,a\n1.png,1,b\n2.png,0,c\n3.png,1,d\n"


def archive_of(tmp_path: Path, labels: str, heads: int = 4) -> bytes:
    """Return a ZIP of phantoms 0.png, 1.png, ..., the odd ones with blood, and a table of
    labels.
    """
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
    dataset = import_archive(archive_of(tmp_path, LABELS))
    assert (dataset.status, dataset.error) == ("done", None)
    assert dataset.fingerprint and dataset.exploration
    assert (
        dataset.exploration["images"],
        dataset.exploration["positive"],
        dataset.exploration["patients"],
    ) == (4, 2, 4)
    assert [probe["name"] for probe in dataset.exploration["probes"]][:2] == [
        "file size",
        "width and height",
    ]
    assert len(dataset.exploration["histograms"]["positive"]) == 32
    assert Image.open(io.BytesIO(storage.get(dataset.contact_sheet_key or ""))).width > 0
    assert list(heartbeat().folder.iterdir()) == []


def test_a_data_set_of_one_class_is_imported_for_what_it_allows(
    worker_app: Flask, tmp_path: Path
) -> None:
    dataset = import_archive(archive_of(tmp_path, "filename,label\n0.png,0\n2.png,0\n"))
    assert (dataset.status, dataset.error) == ("done", None)
    facts = dataset.exploration or {}
    assert (facts["positive"], facts["negative"]) == (0, 2)
    assert {probe["auroc"]["value"] for probe in facts["probes"]} == {None}
    assert facts["unseen_groups"][""] == {"positive": 0, "negative": 2}
    assert len(facts["unseen_groups"]) == 3, "and by each model that ships"


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("filename,label\n0.png,0\n9.png,1\n", "9.png is missing"),
        ("filename,label\n0.png,perhaps\n1.png,1\n", "'perhaps'"),
    ],
)
def test_a_data_set_that_cannot_be_used_fails_with_a_sentence(
    worker_app: Flask, tmp_path: Path, labels: str, sentence: str
) -> None:
    dataset = import_archive(archive_of(tmp_path, labels))
    assert dataset.status == JobStatus.FAILED
    assert sentence in (dataset.error or "")
    assert dataset.exploration is None and storage.keys("sheets") == []
    assert not storage.exists(dataset.archive_key)
    assert list(heartbeat().folder.iterdir()) == []


def test_a_data_set_that_trips_a_bug_fails_with_a_neutral_sentence(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("worker.learning.dataset_import.unpack", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        import_archive(b"")
    dataset = db.session.scalars(
        select(Dataset), execution_options={"populate_existing": True}
    ).one()
    assert (dataset.status, dataset.error) == (
        "failed",
        "An unexpected error occurred while importing this data set; see the log for details.",
    )


@pytest.fixture
def with_a_swelling_image(tmp_path: Path) -> bytes:
    """A ZIP of four phantoms and a file of 1 MB that needs 600 MB; the decoder of these tests has
    less.
    """
    content = io.BytesIO(archive_of(tmp_path, LABELS + "4.nii.gz,0,e\n"))
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(
            "set/4.nii.gz", packed(nifti(np.zeros((512, 512, 400), np.int16), np.eye(4)))
        )
    return content.getvalue()


@pytest.fixture
def small_decoder(worker_app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    child = Decoder(300, 60, heartbeat().folder)
    monkeypatch.setattr(decoder, "_decoder", child)
    yield child
    child.close()


def test_an_image_that_swells_is_named_and_left_out(
    worker_app: Flask, with_a_swelling_image: bytes, small_decoder: Decoder
) -> None:
    dataset = import_archive(with_a_swelling_image)
    assert (dataset.status, dataset.error) == ("done", None)
    assert dataset.exploration is not None and dataset.exploration["images"] == 4
    assert dataset.exploration["problems"] == [f"4.nii.gz is left out: {BEYOND_LIMITS}"]


def test_a_data_set_of_many_such_images_fails_with_a_sentence(
    worker_app: Flask,
    with_a_swelling_image: bytes,
    small_decoder: Decoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dataset_import, "MOST_BEYOND_LIMITS", 0)
    dataset = import_archive(with_a_swelling_image)
    assert dataset.status == "failed"
    assert (
        dataset.error
        == "More than 0 images, most recently 4.nii.gz, could not be decoded within the limits on"
        " time and memory."
    )


def test_a_worker_that_is_to_stop_hands_the_data_set_back(
    worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = iter([False])  # The worker is asked to stop when it has begun.
    monkeypatch.setattr(heartbeat(), "stopping", lambda: next(stopping, True))
    dataset = import_archive(
        archive_of(tmp_path, "filename,label\n0.png,0\n1.png,1\n2.png,0\n3.png,1\n")
    )
    assert (dataset.status, dataset.attempts, dataset.counted_deaths, dataset.lease_owner) == (
        "queued",
        0,
        0,
        None,
    )
    assert storage.exists(dataset.archive_key)


def test_a_data_set_waits_for_a_storage_that_is_away(
    worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Storage, key: str, path: Path) -> None:
        raise StorageError("A stored file cannot be read.")

    answers = iter([True])  # When the worker looks for work; then no more.
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "fetch", refuse)
        patch.setattr(Storage, "answers", lambda self: next(answers, False))
        dataset = import_archive(archive_of(tmp_path, LABELS))
    assert (dataset.status, dataset.attempts, dataset.counted_deaths, dataset.lease_owner) == (
        "queued",
        0,
        0,
        None,
    )
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "answers", lambda self: False)
        tasks.train_model()
    # Nobody claimed it.
    assert db.session.scalars(select(Dataset.started_at)).one() == dataset.started_at
    tasks.train_model()
    assert db.session.scalars(select(Dataset.status)).one() == "done"


def test_a_data_set_that_the_storage_refuses_is_put_off(
    worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Storage, key: str, path: Path) -> None:
        raise StorageError("A stored file cannot be read.")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "fetch", refuse)
        dataset = import_archive(archive_of(tmp_path, LABELS))
    assert (dataset.status, dataset.error, dataset.attempts) == ("queued", None, 0)
    assert storage.exists(dataset.archive_key)
    tasks.train_model()  # Not yet.
    assert db.session.scalars(select(Dataset.status)).one() == "queued"
    db.session.execute(update(Dataset).values(retry_at=database_now(-1)))
    db.session.commit()
    tasks.train_model()
    assert db.session.scalars(select(Dataset.status)).one() == "done"


@pytest.mark.parametrize("part", dataset_import.PARTS)
def test_an_import_that_is_cancelled_ends_at_its_next_part_and_its_worker_goes_on(
    any_worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    real, stages = leases.write, []

    def note(table: type[Dataset], owner: str, ids: list[str], **columns: object) -> frozenset[str]:
        stages.append(str(columns.get("stage", "the verdict")))
        if stages[-1].startswith(part):
            assert cancel(Dataset, Dataset.name == "phantoms")
        return real(table, owner, ids, **columns)

    monkeypatch.setattr(dataset_import, "LOOK_S", 0)
    monkeypatch.setattr(leases, "write", note)
    dataset = import_archive(archive_of(tmp_path, LABELS))
    assert (dataset.status, dataset.error, dataset.exploration, dataset.contact_sheet_key) == (
        "cancelled",
        None,
        None,
        None,
    )
    assert [stage for stage in stages if stage.startswith(part)] == stages[-1:]
    assert (storage.keys("sheets"), list(heartbeat().folder.iterdir())) == ([], [])

    monkeypatch.setattr(leases, "write", real)
    db.session.execute(update(Dataset).values(status=JobStatus.QUEUED))
    db.session.commit()
    tasks.train_model()
    assert db.session.scalars(select(Dataset.status)).one() == "done"


@pytest.mark.parametrize(
    ("meanwhile", "sheets"),
    [
        (update(Dataset).values(status=JobStatus.CANCELLED, lease_owner=None), 0),
        (delete(Dataset), 0),
        (update(Dataset).values(lease_owner="another"), 1),  # It is that worker's now.
    ],
    ids=["cancelled", "deleted", "lost"],
)
def test_the_contact_sheet_of_an_import_that_was_cancelled_at_the_last_moment_goes(
    any_worker_app: Flask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: UpdateBase,
    sheets: int,
) -> None:
    real = Storage.put

    def late(self: Storage, key: str, content: bytes | Path) -> None:
        if key.startswith("sheets/"):
            db.session.execute(meanwhile)
            db.session.commit()
        real(self, key, content)

    monkeypatch.setattr(Storage, "put", late)
    storage.put("datasets/1.zip", archive_of(tmp_path, LABELS))
    db.session.add(Dataset(name="phantoms", archive_key="datasets/1.zip"))
    db.session.commit()
    tasks.train_model()
    assert len(storage.keys("sheets")) == sheets
    assert db.session.scalars(select(Dataset.fingerprint)).all() in ([None], [])
