"""Series to verdicts: whole, in order, with their slices for the viewer, and given up when nobody
asks any more.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from PIL import Image
from sqlalchemy import select, update
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse

from ml.inference import predictor
from ml.inference.predictor import Predictor, ScanResult
from ml.scans.phantoms import phantom
from ml.scans.slices import Series, Slice, render
from tests.conftest import PASSWORD
from tests.ml.made_scans import change, write_series
from tests.worker.conftest import install_model, picture
from webapp.deletion import delete_scan
from webapp.extensions import db
from webapp.intake import accept_upload
from webapp.models import Scan, User, cancel
from webapp.scans.pictures import heatmap_key
from webapp.scans.stored_volume import open_volume
from webapp.storage import storage
from worker import background, heat_maps, leases, prediction, tasks, verdicts
from worker.heartbeat import heartbeat
from worker.prediction import answer_next_scans


def submit_zip(files: dict[str, bytes], user_id: str | None = None) -> Scan:
    """Submit an archive as a person does, the first one or that one, and return its scan."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, one in files.items():
            archive.writestr(name, one)
    content.seek(0)
    user_id = user_id or db.session.scalar(select(User.id))
    (scan,) = accept_upload(str(user_id), [FileStorage(content, "study.zip")]).scans
    return scan


def pictures(*brightness: int) -> dict[str, bytes]:
    """Return slices by name; those that are bright are positive to the tiny model."""
    return {f"{place:02}.png": picture(value) for place, value in enumerate(brightness)}


def read(scan: Scan) -> Scan:
    """Return the scan as the database has it now."""
    return db.session.get_one(Scan, scan.id, populate_existing=True)


def test_a_series_has_an_answer_for_each_slice_and_pictures_of_all(any_worker_app: Flask) -> None:
    version = install_model(reads="series")
    scan = submit_zip(pictures(0, 0, 255, 0, 200, 0, 0))
    assert (scan.slice_count, scan.kind) == (7, "png")
    tasks.predict_scans()
    done = read(scan)
    verdict = done.prediction
    assert verdict is not None
    assert (done.status, verdict.model_version_id, len(verdict.slices)) == ("done", version.id, 7)
    assert verdict.first_slices is not None and verdict.first_slices[:2] == [2, 4]
    assert [value >= verdict.threshold for value in verdict.slices] == [
        False,
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert not verdict.types
    volume = open_volume(done.volume_key or "")
    assert len(volume.starts) == 7
    assert Image.open(io.BytesIO(volume.png(2))).size == (64, 64)
    shown = np.asarray(Image.open(io.BytesIO(storage.get(done.image_key or ""))))
    assert shown[20, 44] == 255  # The slice to look at first stands for the scan.
    drawn = verdict.heatmap
    assert drawn is not None and drawn.slices is not None
    assert drawn.slices[:2] == [2, 4] and set(drawn.slices) == set(verdict.first_slices)
    assert drawn.image_key == heatmap_key(drawn.id, 2)
    assert all(storage.exists(heatmap_key(drawn.id, index)) for index in drawn.slices)
    assert not any(heartbeat().folder.iterdir())


def test_types_of_bleeding_are_kept_with_the_verdict_of_a_model_that_tells_them(
    any_worker_app: Flask,
) -> None:
    install_model(reads="series", tells_types=True)
    scan = submit_zip(pictures(0, 255, 0))
    tasks.predict_scans()
    verdict = read(scan).prediction
    assert verdict is not None and verdict.types is not None
    for name, share in (("epidural", 0.75), ("subdural", 0.25)):
        assert verdict.types[name]["probability"] == pytest.approx(
            share * verdict.probability, abs=1e-4
        )
        assert verdict.types[name]["slices"] == pytest.approx(
            [share * value for value in verdict.slices], abs=1e-4
        )


def test_no_type_that_is_kept_is_likelier_than_a_hemorrhage() -> None:
    values = {"types": {"epidural": 0.96346}, "slice_types": {"epidural": (0.96346, 0.00009)}}
    result = ScanResult(0.96346, 0.5, True, False, (0.96346, 0.00009), (), **values)  # type: ignore[arg-type]
    assert verdicts.types_of(result) == {
        "epidural": {"probability": 0.9634, "slices": [0.9634, 0.0]}
    }


def test_every_positive_slice_has_a_heat_map_up_to_twenty(worker_app: Flask) -> None:
    install_model(reads="series")
    scan = submit_zip(pictures(*[0, *range(255, 195, -2), 0]))
    tasks.predict_scans()
    verdict = read(scan).prediction
    assert (
        verdict is not None and verdict.heatmap is not None and verdict.heatmap.slices is not None
    )
    assert len(verdict.heatmap.slices) == heat_maps.MOST_HEATMAPS
    assert 0 not in verdict.heatmap.slices


def test_a_shuffled_series_with_headers_has_the_identical_answer(
    worker_app: Flask, tmp_path: Path
) -> None:
    install_model(reads="series")
    files = {path.name: path.read_bytes() for path in write_series(tmp_path / "series", 9)}
    answers = []
    for order in (
        sorted(files),
        sorted(files, key=lambda name: name[::-1]),
        sorted(files, reverse=True),
    ):
        scan = submit_zip({f"{place}.dcm": files[name] for place, name in enumerate(order)})
        tasks.predict_scans()
        verdict = read(scan).prediction
        assert verdict is not None, read(scan).error
        answers.append(
            (verdict.probability, verdict.slices, verdict.first_slices, verdict.warnings)
        )
    assert answers[0] == answers[1] == answers[2]


def test_a_gap_is_reported_and_the_rest_is_read(worker_app: Flask, tmp_path: Path) -> None:
    install_model(reads="series")
    paths = write_series(tmp_path / "series", 9)
    scan = submit_zip(
        {path.name: path.read_bytes() for place, path in enumerate(paths) if place not in (4, 5)}
    )
    tasks.predict_scans()
    verdict = read(scan).prediction
    assert verdict is not None and len(verdict.slices) == 7
    assert any("missing" in warning or "gap" in warning.lower() for warning in verdict.warnings), (
        verdict.warnings
    )


def test_a_long_series_is_read_alone_and_the_others_are_handed_back(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    monkeypatch.setattr(prediction, "MOST_SLICES", 4)
    long, first, second = (
        submit_zip(pictures(0, 0, 0, 0, 0)),
        submit_zip(pictures(0, 0)),
        submit_zip(pictures(0, 0, 0)),
    )
    prediction.answer_next_scans()
    assert [(read(scan).status, read(scan).attempts) for scan in (long, first, second)] == [
        ("done", 0),
        ("queued", 0),
        ("queued", 0),
    ]
    prediction.answer_next_scans()
    assert [read(scan).status for scan in (first, second)] == ["done", "queued"]


def test_urgent_scans_and_other_people_are_not_handed_back_for_older_series(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    monkeypatch.setattr(prediction, "MOST_SLICES", 4)
    older = [submit_zip(pictures(0, 0, 0)) for _ in range(4)]
    urgent = submit_zip(pictures(0, 0, 0))
    ben = User(username="ben", password="a good long one")
    db.session.add(ben)
    db.session.commit()
    bens = submit_zip(pictures(0, 0, 0), ben.id)
    db.session.execute(update(Scan).where(Scan.id == urgent.id).values(stat=True))
    db.session.commit()
    for _ in range(3):
        prediction.answer_next_scans()
    assert [read(scan).status for scan in (urgent, bens)] == ["done", "done"]
    assert sorted(read(scan).status for scan in older) == ["done", "queued", "queued", "queued"]


def interrupted(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[int]:
    """Let `act` happen while the first chunk of a series is read; return the slices done at each
    report.
    """
    monkeypatch.setattr(prediction, "PROGRESS_S", 0.0)
    seen: list[int] = []
    real = Predictor.predict_many

    def predict(
        self: Predictor, series: Sequence[Series], on_progress: Any, should_stop: Any
    ) -> list[ScanResult]:
        def report(done: int, total: int) -> None:
            if not seen:
                act()
            seen.append(done)
            on_progress(done, total)

        return real(self, series, report, should_stop)

    monkeypatch.setattr(Predictor, "predict_many", predict)
    return seen


def noting(reports: list[tuple[float, str]]) -> Callable[..., frozenset[str]]:
    """Return what writes as leases do, and notes progress and stage where they are told."""
    real = leases.write

    def write(table: Any, owner: str, ids: Any, **columns: Any) -> frozenset[str]:
        if columns.get("stage"):
            reports.append((columns["progress"], columns["stage"]))
        return real(table, owner, ids, **columns)

    return write


def test_progress_is_reported_slice_by_slice(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(reads="series")
    scan = submit_zip(pictures(*[0] * 40))
    reports: list[tuple[float, str]] = []
    monkeypatch.setattr(leases, "write", noting(reports))
    monkeypatch.setattr(prediction, "PROGRESS_S", 0.0)
    prediction.answer_next_scans()
    assert read(scan).status == "done"
    assert reports == [(done / 40, f"Analyzing slice {done} of 40") for done in range(1, 41)]


def test_series_that_are_read_together_count_their_own_slices_only(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(reads="series")
    submit_zip(pictures(*[0] * 20))
    submit_zip(pictures(*[0] * 30))
    reports: list[tuple[float, str]] = []
    monkeypatch.setattr(leases, "write", noting(reports))
    monkeypatch.setattr(prediction, "PROGRESS_S", 0.0)
    prediction.answer_next_scans()
    assert {stage for _, stage in reports} == {"Analyzing slices of several scans"}


def test_a_series_that_is_cancelled_is_given_up_at_the_next_slices(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(reads="series")
    scan = submit_zip(pictures(*[0] * 60))

    def give_up() -> None:
        cancel(Scan, Scan.id == scan.id)
        db.session.commit()

    prediction.warm_up()
    seen = interrupted(monkeypatch, give_up)
    prediction.answer_next_scans()
    assert seen == [1]
    assert (read(scan).status, read(scan).prediction, read(scan).volume_key) == (
        "cancelled",
        None,
        None,
    )
    assert storage.keys("volumes") == storage.keys("images") == []


def test_a_worker_that_is_asked_to_stop_hands_a_series_back(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(reads="series")
    scan = submit_zip(pictures(*[0] * 60))
    stopping: list[bool] = []
    monkeypatch.setattr(heartbeat(), "stopping", lambda: bool(stopping))
    prediction.warm_up()
    seen = interrupted(monkeypatch, lambda: stopping.append(True))
    prediction.answer_next_scans()
    assert seen == [1]
    assert (read(scan).status, read(scan).attempts, read(scan).prediction) == ("queued", 0, None)


def test_one_damaged_slice_of_many_is_named_and_the_rest_is_read(
    worker_app: Flask, tmp_path: Path
) -> None:
    install_model(reads="series")
    paths = write_series(tmp_path / "series", 10)
    change(paths[3], PixelData=bytes(10))
    scan = submit_zip({path.name: path.read_bytes() for path in paths})
    tasks.predict_scans()
    verdict = read(scan).prediction
    assert verdict is not None and len(verdict.slices) == 9
    assert any("file-0004.dcm" in warning for warning in verdict.warnings), verdict.warnings


def test_what_was_made_for_a_series_goes_with_it(any_worker_app: Flask) -> None:
    install_model(reads="series")
    scan = submit_zip(pictures(0, 255, 0))
    tasks.predict_scans()
    assert storage.keys("volumes") and len(storage.keys("heatmaps")) == 3
    assert delete_scan(scan.id)
    assert [
        storage.keys(kind) for kind in ("originals", "images", "thumbnails", "volumes", "heatmaps")
    ] == [[]] * 5


def test_a_lost_lease_leaves_the_series_to_its_new_owner(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(reads="series")
    scan = submit_zip(pictures(*[0] * 60))

    def lose() -> None:
        db.session.execute(update(Scan).values(lease_owner="another"))
        db.session.commit()

    interrupted(monkeypatch, lose)
    prediction.answer_next_scans()
    assert (read(scan).status, read(scan).lease_owner, read(scan).prediction) == (
        "running",
        "another",
        None,
    )


def note_slices(monkeypatch: pytest.MonkeyPatch, note: Callable[[], object]) -> None:
    """Call `note` whenever the heat map of a slice is computed."""
    real = predictor.occlusion

    def occlusion(*given: Any) -> Any:
        note()
        return real(*given)

    monkeypatch.setattr(predictor, "occlusion", occlusion)


def test_heat_maps_of_a_worker_that_is_asked_to_stop_are_left_to_another(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(reads="series")
    scan = submit_zip(pictures(*[255] * 12))
    prediction.answer_next_scans()
    drawn_slices: list[object] = []
    note_slices(monkeypatch, lambda: drawn_slices.append(None))
    monkeypatch.setattr(heartbeat(), "stopping", lambda: len(drawn_slices) == 2)
    assert not heat_maps.draw_next_heatmap()
    assert len(drawn_slices) == 2  # Of five that share what the convolutions see.
    drawn = read(scan).prediction.heatmap  # type: ignore[union-attr]
    assert drawn is not None and (drawn.status, drawn.attempts, drawn.image_key) == (
        "queued",
        0,
        None,
    )


def test_heat_maps_of_a_scan_that_is_deleted_meanwhile_end_and_leave_nothing(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(reads="series")
    scan = submit_zip(pictures(*[255] * 12))
    prediction.answer_next_scans()
    drawn_slices: list[object] = []

    def delete_at_the_seventh() -> None:
        drawn_slices.append(None)
        if len(drawn_slices) == 7:
            assert len(storage.keys("heatmaps")) == 5
            delete_scan(scan.id)

    note_slices(monkeypatch, delete_at_the_seventh)
    monkeypatch.setattr(background, "LOOK_S", 0)
    assert heat_maps.draw_next_heatmap()
    assert (len(drawn_slices), storage.keys("heatmaps")) == (7, [])


def test_a_film_sheet_is_cut_and_its_owner_may_have_it_read_as_one_slice(
    worker_app: Flask,
) -> None:
    install_model()
    install_model(reads="series")
    head = np.asarray(
        render(Slice(phantom(1, hemorrhage=True, size=160).astype(np.float32), "hu"), 160)
    )
    sheet = io.BytesIO()
    Image.fromarray(np.tile(head, (3, 4))).save(sheet, "PNG")
    browser = worker_app.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})

    def page_after(answer: TestResponse) -> str:
        """Return the page of the scan that was just submitted, once it is answered."""
        assert answer.status_code == 302
        while answer_next_scans():
            pass
        return browser.get(answer.headers["Location"]).text

    sheet.seek(0)
    submitted = browser.post("/scans", data={"file": (sheet, "sheet.png"), "title": "Film"})
    page = page_after(submitted)
    assert "a sheet of 12 slices; it was cut" in page and "Read as one slice" in page
    assert "<dd>PNG, cut into 12 slices</dd>" in page
    as_one = browser.post(f"{submitted.headers['Location']}/cut")
    page = page_after(as_one)
    assert "it was read as a single slice" in page and "Cut into slices" in page
    page_after(browser.post(f"{as_one.headers['Location']}/cut"))
    scans = db.session.scalars(select(Scan).order_by(Scan.created_at)).all()
    assert [(scan.title, scan.uncut, len(scan.prediction.slices)) for scan in scans] == [
        ("Film", False, 12),
        ("Film", True, 1),
        ("Film", False, 12),
    ]
