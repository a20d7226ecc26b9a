"""The images of a data set one by one, questions about data sets, and previews."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from PIL import Image
from sqlalchemy import delete, select, update

from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.phantoms import phantom, write_dicom
from ml.scans.read import read_series
from tests.worker.conftest import install_model, picture, submit
from webapp.deletion import delete_dataset
from webapp.extensions import db
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetAnalysis,
    DatasetImage,
    DatasetPair,
    JobStatus,
    Preview,
    analysis_of,
    cancel,
    new_preview,
    sample_file,
    thumbnails_file,
)
from webapp.storage import storage
from worker import leases, previews, tasks
from worker.heartbeat import heartbeat
from worker.learning import dataset_analysis
from worker.learning.dataset_analysis import analyze_next_dataset
from worker.learning.dataset_images import Described
from worker.previews import make_next_preview

SPEC = InputSpec(size=64).to_dict()
BRAIN = {"kind": "picture", "level": 40, "width": 80}


def archive_of(folder: Path) -> bytes:
    """Return a ZIP of eight phantoms of two sources, the odd ones with blood; the last is a copy of
    the first with another label, the second has an outline, and a ninth file is damaged.
    """
    content, table = io.BytesIO(), io.StringIO()
    rows = csv.writer(table)
    rows.writerow(("filename", "label", "patient", "mask"))
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(8):
            seed = number % 7
            path = folder / f"{number}.dcm"
            write_dicom(phantom(seed, hemorrhage=seed % 2 == 1, size=96), path)
            name = f"{'ab'[number % 2]}/{number}.dcm"
            archive.write(path, f"set/{name}")
            mask = "masks/1.png" if number == 1 else ""
            rows.writerow((name, number % 2, f"p{number}", mask))
        outline = np.zeros((96, 96), np.uint8)
        outline[30:50, 30:50] = 255
        png = io.BytesIO()
        Image.fromarray(outline).save(png, "PNG")
        archive.writestr("set/masks/1.png", png.getvalue())
        archive.writestr("set/a/broken.png", b"no picture")
        rows.writerow(("a/broken.png", 0, "p9", ""))
        archive.writestr("set/labels.csv", table.getvalue())
    return content.getvalue()


def import_archive(content: bytes, name: str) -> Dataset:
    """Import an archive as a data set and return its row."""
    dataset = Dataset(name=name, archive_key=f"datasets/{name}.zip")
    storage.put(dataset.archive_key, content)
    db.session.add(dataset)
    db.session.commit()
    tasks.train_model()
    db.session.refresh(dataset)
    assert dataset.status == JobStatus.DONE, dataset.error
    return dataset


def images_of(dataset: Dataset) -> list[DatasetImage]:
    """Return the images of a data set."""
    rows = select(DatasetImage).where(DatasetImage.dataset_id == dataset.id)
    return list(
        db.session.scalars(
            rows.order_by(DatasetImage.number), execution_options={"populate_existing": True}
        )
    )


def columns_of(images: list[DatasetImage]) -> list[tuple[Any, ...]]:
    """Return all values of the rows."""
    names = [column.key for column in DatasetImage.__mapper__.column_attrs]
    return [tuple(getattr(image, name) for name in names) for image in images]


def ask(
    dataset: Dataset, kind: AnalysisKind, question: str = "", **columns: Any
) -> DatasetAnalysis:
    """Ask a question, have it answered, and return the row."""
    row = DatasetAnalysis(dataset_id=dataset.id, kind=kind, question=question, **columns)
    db.session.add(row)
    db.session.commit()
    assert analyze_next_dataset()
    db.session.refresh(row)
    return row


def test_an_import_writes_its_images_down_and_questions_are_answered_from_that(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    dataset = import_archive(archive_of(tmp_path), "heads")
    images = images_of(dataset)

    assert [image.name for image in images][-2:] == ["b/7.dcm", "a/broken.png"]
    assert [image.label for image in images] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert [image.patient for image in images] == [*range(1, 9), 9]
    # The copy is in the group of the first; the broken one in none.
    assert [image.group for image in images] == [1, 2, 3, 4, 5, 6, 7, 1, None]
    assert [image.source for image in images[:2]] == ["a", "b"]
    assert images[1].mask == "set/masks/1.png" and images[1].files == ["set/b/1.dcm"]
    assert images[0].kinds == images[7].kinds == "|contradiction|near-duplicate|"
    assert images[8].kinds == "|left out|" and "broken" not in images[8].problems[0][1]
    thumbnails = storage.get(thumbnails_file(dataset.id))
    for image in images[:8]:
        assert image.thumbnail_at is not None and image.thumbnail_bytes
        end = image.thumbnail_at + image.thumbnail_bytes
        shown = Image.open(io.BytesIO(thumbnails[image.thumbnail_at : end]))
        assert shown.size == (96, 96) and np.asarray(shown).max() > 200
    pairs = db.session.execute(select(DatasetPair.number, DatasetPair.other)).all()
    assert sorted(map(tuple, pairs)) == [(0, 7), (7, 0)]
    distributions = (dataset.exploration or {})["distributions"]
    assert distributions["sources"] == {"a": 4, "b": 4} and distributions["common_sizes"] == [
        [96, 96, 8]
    ]
    assert set(distributions["grays"]["series"]) == {
        "all",
        "positive",
        "negative",
        "source a",
        "source b",
    }

    # One that was imported before is indexed, with the same result.
    before = columns_of(images)
    exploration = {**(dataset.exploration or {})}
    del exploration["distributions"]
    dataset.exploration = exploration
    for table in (DatasetImage, DatasetPair, DatasetAnalysis):
        db.session.execute(delete(table))
    for key in (thumbnails_file(dataset.id), sample_file(dataset.id)):
        storage.delete(key)
    db.session.commit()
    assert ask(dataset, AnalysisKind.IMAGES).status == JobStatus.DONE
    assert columns_of(images_of(dataset)) == before
    assert storage.get(thumbnails_file(dataset.id)) == thumbnails
    db.session.refresh(dataset)
    assert (dataset.exploration or {})["distributions"] == distributions

    split = ask(dataset, AnalysisKind.SPLIT, "folds=2 seed=0").result
    assert split and len(split["folds"]) == 2 and split["groups"] == 7
    assert (split["crossing_groups"], split["crossing_duplicates"]) == (0, 0)
    refused = ask(dataset, AnalysisKind.SPLIT, "folds=10 seed=0").result
    assert refused and "10 folds need at least 20" in refused["refused"]

    other = import_archive(archive_of(tmp_path), "others")
    result = ask(dataset, AnalysisKind.SOURCES, other.id, other_id=other.id).result
    # Both hold the same files; two of the eight are one.
    assert result and result["shared"] == 7
    assert [probe["name"] for probe in result["probes"]][-1] == "grays of the head"
    assert list(heartbeat().folder.iterdir()) == []


def test_a_corrected_version_is_read_from_the_same_archive(
    worker_app: Flask, tmp_path: Path
) -> None:
    dataset = import_archive(archive_of(tmp_path), "heads")
    changes = [{"name": "b/1.dcm", "was": 1, "label": 0, "reason": ""}]
    corrected = Dataset(
        name="heads v2",
        archive_key=dataset.archive_key,
        corrected_from_id=dataset.id,
        corrections=changes,
    )
    unknown = Dataset(
        name="heads v3",
        archive_key=dataset.archive_key,
        corrections=[{"name": "gone.dcm", "was": 1, "label": 0, "reason": ""}],
    )
    db.session.add_all((corrected, unknown))
    db.session.commit()
    tasks.train_model()
    tasks.train_model()
    for row in (corrected, unknown):
        db.session.refresh(row)
    assert corrected.fingerprint not in (None, dataset.fingerprint)
    image = images_of(corrected)[1]
    # What was outlined cannot be true of an image without hemorrhage.
    assert (image.label, image.mask, image.kinds) == (0, None, "|mask left out|")
    assert images_of(dataset)[1].label == 1
    assert unknown.status == JobStatus.FAILED and "gone.dcm" in (unknown.error or "")
    assert storage.exists(dataset.archive_key)


def test_a_question_without_what_it_needs_ends_with_a_sentence(
    worker_app: Flask, tmp_path: Path
) -> None:
    dataset = import_archive(archive_of(tmp_path), "heads")
    db.session.execute(delete(DatasetImage))
    storage.put(sample_file(dataset.id), b"damaged")
    db.session.commit()
    for kind, question, sentence in (
        (AnalysisKind.SPLIT, "folds=2 seed=0", "are not indexed"),
        (AnalysisKind.SOURCES, dataset.id, "can no longer be read"),
    ):
        row = ask(dataset, kind, question, other_id=dataset.id)
        assert row.status == JobStatus.FAILED and sentence in (row.error or "")
    storage.delete(dataset.archive_key)
    db.session.execute(delete(DatasetAnalysis))
    assert ask(dataset, AnalysisKind.IMAGES).error == "A stored file no longer exists."


def test_an_import_that_is_cancelled_while_it_writes_leaves_no_image(
    worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew = leases.renew

    def cancelled(*arguments: Any) -> frozenset[str]:
        if db.session.scalar(select(DatasetImage.number).limit(1)) is not None:
            cancel(Dataset)
            db.session.commit()
        return renew(*arguments)

    monkeypatch.setattr(leases, "renew", cancelled)
    monkeypatch.setattr("worker.learning.dataset_images.ROWS_AT_ONCE", 2)
    dataset = Dataset(name="heads", archive_key="datasets/1.zip")
    storage.put(dataset.archive_key, archive_of(tmp_path))
    db.session.add(dataset)
    db.session.commit()
    tasks.train_model()
    db.session.refresh(dataset)
    assert dataset.status == JobStatus.CANCELLED
    assert images_of(dataset) == [] and storage.keys("tiles") == []
    assert analysis_of(dataset.id, AnalysisKind.IMAGES) is None


class TestPreviews:
    def made(self, what: dict[str, Any], settings: dict[str, Any]) -> Preview:
        """Return a preview as a worker made it."""
        preview = new_preview(what, settings)
        db.session.commit()
        assert make_next_preview()
        db.session.refresh(preview)
        return preview

    def pictures(self, preview: Preview) -> dict[str, list[np.ndarray]]:
        """Return the pictures of each step."""
        content = storage.get(preview.file_key)
        return {
            step["name"]: [
                np.asarray(Image.open(io.BytesIO(content[start : start + length])))
                for start, length in step["pictures"]
            ]
            for step in preview.result or ()
        }

    def test_an_image_of_a_data_set_is_shown_in_a_window_with_its_outline(
        self, worker_app: Flask, tmp_path: Path
    ) -> None:
        dataset = import_archive(archive_of(tmp_path), "heads")
        settings = BRAIN
        shown = self.pictures(self.made({"dataset": dataset.id, "image": 1}, settings))
        assert shown["picture"][0].shape == (96, 96)
        changed = (shown["outline"][0] != shown["picture"][0][..., np.newaxis]).any(axis=2)
        assert changed[28:52, 28:52].any() and not changed[33:46, 33:46].any()
        bone = self.made(
            {"dataset": dataset.id, "image": 1}, {"kind": "picture", "level": 600, "width": 2800}
        )
        assert self.pictures(bone)["picture"][0].mean() != shown["picture"][0].mean()
        for image, sentence in ((8, "not a PNG"), (99, "no longer stored")):
            failed = self.made({"dataset": dataset.id, "image": image}, settings)
            assert failed.status == JobStatus.FAILED and sentence in (failed.error or "")

    def test_its_archive_may_write_paths_in_another_way_or_be_damaged(
        self, worker_app: Flask, tmp_path: Path
    ) -> None:
        content = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(archive_of(tmp_path))) as plain,
            zipfile.ZipFile(content, "w") as odd,
        ):
            for info in plain.infolist():
                odd.writestr(f"./{info.filename.replace('/', '//')}", plain.read(info))
        dataset = import_archive(content.getvalue(), "heads")
        shown = self.made({"dataset": dataset.id, "image": 1}, BRAIN)
        assert shown.status == JobStatus.DONE, shown.error
        storage.put(dataset.archive_key, content.getvalue()[:-100])
        failed = self.made({"dataset": dataset.id, "image": 2}, BRAIN)
        assert failed.error == previews.ARCHIVE_DAMAGED

    def test_each_step_is_what_training_computes(self, worker_app: Flask) -> None:
        settings = {"kind": "processing", "spec": SPEC, "seed": 0, "version": None}
        preview = self.made({"phantom": "phantom-5.dcm"}, settings)
        shown = self.pictures(preview)
        file = Path(worker_app.static_folder or "") / "phantoms" / "phantom-5.dcm"
        slice_ = read_series([file]).slices[0]
        for name, spec in {
            "input": InputSpec(size=64),
            "GrabCut": InputSpec(size=64, segmentation="grabcut"),
            "skull stripping": InputSpec(size=64, skull_stripping=True),
        }.items():
            expected = np.round(to_input(slice_, spec)[0][..., 0] * 255).astype(np.uint8)
            np.testing.assert_array_equal(shown[name][0], expected)
        assert len(shown["augmentation"]) == 10
        np.testing.assert_array_equal(shown["augmentation"][0], shown["input"][0])

    def test_a_step_that_fails_says_so_and_the_others_are_shown(
        self, worker_app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr("ml.exploration.processing.augmented_copies", fails)
        version = install_model()
        settings = {"kind": "processing", "spec": SPEC, "seed": 0, "version": version.id}
        preview = self.made({"scan": submit(picture())[0], "slice": 0}, settings)
        steps = {step["name"]: step for step in preview.result or ()}
        assert preview.status == JobStatus.DONE and len(steps["Otsu"]["pictures"]) == 1
        assert steps["augmentation"]["notes"] == [previews.NOT_COMPUTED]
        assert steps["autoencoder"]["notes"] == ["This model does not restructure its inputs."]

    def test_the_least_recently_used_make_room(
        self, worker_app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(previews, "MOST_KEPT", 2)
        made = [self.made({"phantom": f"phantom-{n}.png"}, BRAIN) for n in (1, 2)]
        newer = made[1].used_at.replace(year=made[1].used_at.year + 1)
        db.session.execute(update(Preview).where(Preview.id == made[0].id).values(used_at=newer))
        db.session.commit()
        last = self.made({"phantom": "phantom-3.png"}, BRAIN)
        values = set(db.session.scalars(select(Preview.id)))
        assert values == {made[0].id, last.id}
        assert storage.keys("previews") == sorted(f"previews/{one}.pack" for one in values)

    def test_one_that_is_deleted_meanwhile_leaves_no_file(
        self, worker_app: Flask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new_preview({"phantom": "phantom-1.png"}, BRAIN)
        db.session.commit()
        read = previews._read

        def deleted(*arguments: Any) -> Any:
            db.session.execute(delete(Preview))
            db.session.commit()
            return read(*arguments)

        monkeypatch.setattr(previews, "_read", deleted)
        assert make_next_preview() and not make_next_preview()
        assert storage.keys("previews") == []


class TestDataSetsThatAreDeletedUnderAnAnalysis:
    """An open analysis does not keep a data set: it is deleted with it, and its worker stops."""

    @pytest.mark.parametrize(
        ("kind", "which"),
        [*((kind, "dataset") for kind in AnalysisKind), (AnalysisKind.SOURCES, "other")],
    )
    def test_a_running_one_ends_and_leaves_nothing(
        self,
        any_worker_app: Flask,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        kind: AnalysisKind,
        which: str,
    ) -> None:
        dataset = import_archive(archive_of(tmp_path), "heads")
        other = import_archive(archive_of(tmp_path), "others")
        is_about_other = kind == AnalysisKind.SOURCES
        db.session.execute(delete(DatasetAnalysis))
        question = {"split": "folds=2 seed=0", "sources": other.id}.get(kind, "")
        db.session.add(
            DatasetAnalysis(
                dataset_id=dataset.id,
                kind=kind,
                question=question,
                other_id=other.id if is_about_other else None,
            )
        )
        db.session.commit()
        deleted = dataset if which == "dataset" else other
        answer = dataset_analysis.ANSWERS[kind]

        def delete_first(row: DatasetAnalysis, folder: Path) -> dict[str, Any] | None:
            assert delete_dataset(deleted.id)
            result: dict[str, Any] | None = answer(row, folder)
            return result

        monkeypatch.setitem(dataset_analysis.ANSWERS, kind, delete_first)
        assert analyze_next_dataset() and not analyze_next_dataset()
        assert db.session.scalars(select(DatasetAnalysis)).all() == []
        assert "failed unexpectedly" not in caplog.text
        assert not [key for key in storage.keys("") if deleted.id in key]
        assert list(heartbeat().folder.iterdir()) == []

    def test_files_that_are_stored_after_the_deletion_are_removed(
        self, any_worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset = import_archive(archive_of(tmp_path), "heads")
        for table in (DatasetImage, DatasetPair, DatasetAnalysis):
            db.session.execute(delete(table))
        db.session.commit()
        store = Described.store

        def delete_first(self: Described, *arguments: Any) -> None:
            assert delete_dataset(dataset.id)
            store(self, *arguments)

        monkeypatch.setattr(Described, "store", delete_first)
        db.session.add(
            DatasetAnalysis(dataset_id=dataset.id, kind=AnalysisKind.IMAGES, question="")
        )
        db.session.commit()
        assert analyze_next_dataset()
        assert db.session.scalars(select(DatasetImage)).all() == []
        assert storage.keys("") == []

    def test_a_queued_one_is_not_started(self, any_worker_app: Flask, tmp_path: Path) -> None:
        dataset = import_archive(archive_of(tmp_path), "heads")
        db.session.add(
            DatasetAnalysis(
                dataset_id=dataset.id, kind=AnalysisKind.SPLIT, question="folds=2 seed=0"
            )
        )
        db.session.commit()
        assert delete_dataset(dataset.id)
        assert not analyze_next_dataset()
        assert db.session.scalars(select(DatasetAnalysis)).all() == []
