"""Scans to verdicts and heat maps."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from PIL import Image
from sqlalchemy import event, func, select, update
from sqlalchemy.orm import Session

from ml.inference.predictor import NOT_HEAD_CT, Predictor, ScanResult
from ml.scans.phantoms import phantom, write_png
from ml.scans.slices import Series
from tests.conftest import make_user
from tests.worker.conftest import install_model, picture, submit
from webapp.deletion import delete_account, delete_scan
from webapp.extensions import database_now, db, utc_now
from webapp.models import (
    OWN_THRESHOLDS,
    Heatmap,
    JobStatus,
    ModelVersion,
    OperatingPoint,
    Prediction,
    Preview,
    Promotion,
    Report,
    Scan,
    User,
    cancel,
    force,
    retry,
)
from webapp.storage import Storage, StorageError, storage
from worker import background, heat_maps, leases, prediction, predictors, scan_files, tasks
from worker.heartbeat import heartbeat
from worker.retries import NO_ROOM


def scan(scan_id: str) -> Scan:
    """Return a scan as the database has it."""
    return db.session.get_one(Scan, scan_id, populate_existing=True)


def test_a_batch_is_answered_and_its_heat_maps_are_drawn(any_worker_app: Flask) -> None:
    version = install_model()
    bright, dark = submit(picture(255), picture(0))
    tasks.predict_scans()

    assert [scan(scan_id).status for scan_id in (bright, dark)] == ["done", "done"]
    verdict = scan(bright).prediction
    assert verdict is not None
    assert verdict.probability == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-3)
    assert (verdict.positive, verdict.uncertain, verdict.threshold, verdict.warnings) == (
        True,
        False,
        0.5,
        [],
    )
    assert verdict.slices == [pytest.approx(verdict.probability)]
    assert verdict.model_version_id == version.id
    assert verdict.seconds > 0
    assert (scan(bright).risk, scan(bright).margin) == (
        verdict.probability,
        pytest.approx(verdict.probability - 0.5),
    )
    assert (scan(bright).verdict_state, scan(dark).verdict_state) == ("suspected", "not found")
    other = scan(dark).prediction
    assert other is not None and not other.positive
    assert (scan(dark).risk, scan(dark).margin) == (
        other.probability,
        pytest.approx(0.5 - other.probability),
    )
    for shown, side in (
        (scan(bright).image_key, 64),
        (scan(bright).thumbnail_key, 64),
        (verdict.heatmap.image_key, 64),
    ):  # type: ignore[union-attr]
        assert Image.open(io.BytesIO(storage.get(shown or ""))).size == (side, side)
    assert scan(bright).image_key == f"images/{bright}.png"
    assert verdict.heatmap is not None and verdict.heatmap.status == "done"
    assert not any(heartbeat().folder.iterdir())


def test_pictures_are_made_as_large_as_a_page_shows_them(worker_app: Flask) -> None:
    install_model()
    (scan_id,) = submit(picture(side=1024))
    prediction.answer_next_scans()
    sizes = [
        Image.open(io.BytesIO(storage.get(f"{kind}/{scan_id}.png"))).size
        for kind in ("images", "thumbnails")
    ]
    assert sizes == [(768, 768), (128, 128)]


def test_what_is_no_head_ct_is_refused_until_its_owner_insists(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    any_worker_app.config["CHECK_HEAD_CT"] = True
    install_model()
    write_png(phantom(1, hemorrhage=True, size=256), tmp_path / "head.png")
    head, odd = submit((tmp_path / "head.png").read_bytes(), picture(side=256))
    prediction.answer_next_scans()
    assert scan(head).status == "done" and scan(head).prediction.warnings == []  # type: ignore[union-attr]
    refused = scan(odd)
    assert (refused.status, refused.error, refused.prediction) == (
        "failed",
        prediction.NOT_HEAD_CT,
        None,
    )
    assert refused.may_be_forced and 0.5 <= (refused.not_head_ct or 0) <= 1

    assert force(odd, refused.user_id)
    db.session.commit()
    assert not force(odd, refused.user_id)
    prediction.answer_next_scans()
    assert scan(odd).status == "done" and not scan(odd).may_be_forced
    assert scan(odd).prediction.warnings[-1] == NOT_HEAD_CT  # type: ignore[union-attr]


def test_scans_that_are_cancelled_or_deleted_while_they_are_read_get_no_verdict(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    kept, cancelled, deleted = submit(picture(), picture(), picture())
    real = prediction.write_verdicts

    def late(*args: object) -> frozenset[str]:
        if scan(kept).status == "running":
            assert cancel(Scan, Scan.id == cancelled)
            delete_scan(deleted)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction, "write_verdicts", late)
    tasks.predict_scans()
    assert [scan(scan_id).status for scan_id in (kept, cancelled)] == ["done", "cancelled"]
    assert db.session.scalars(select(Prediction.scan_id)).all() == [kept]
    assert not [
        key
        for kind in ("originals", "images", "thumbnails", "heatmaps")
        for key in storage.keys(kind)
        if deleted in key
    ]


def test_an_account_that_is_deleted_while_its_scans_are_read_leaves_nothing(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    ids = submit(picture(), b"no picture", picture())
    user_id = scan(ids[0]).user_id
    real = prediction.write_verdicts

    def late(*args: object) -> frozenset[str]:
        assert delete_account(user_id)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction, "write_verdicts", late)
    tasks.predict_scans()
    assert [
        db.session.scalar(select(func.count()).select_from(table))
        for table in (User, Scan, Prediction, Heatmap)
    ] == [0, 0, 0, 0]
    assert [storage.keys(kind) for kind in ("originals", "images", "thumbnails", "heatmaps")] == [
        [],
        [],
        [],
        [],
    ]


def test_a_scan_that_is_deleted_while_its_pictures_fail_leaves_none(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    submit(picture())
    real = prediction.store_pictures

    def late(scan_id: str, series: Series, index: int) -> None:
        real(scan_id, series, index)
        delete_scan(scan_id)
        storage.put(f"images/{scan_id}.png", b"stored after the deletion")
        raise StorageError("The storage did not accept a file; please try again later.")

    monkeypatch.setattr(prediction, "store_pictures", late)
    prediction.answer_next_scans()
    assert [storage.keys(kind) for kind in ("originals", "images", "thumbnails")] == [[], [], []]


def test_a_refused_scan_that_is_tried_again_and_fails_otherwise_cannot_be_forced(
    any_worker_app: Flask,
) -> None:
    any_worker_app.config["CHECK_HEAD_CT"] = True
    install_model()
    (odd,) = submit(picture(side=256))
    prediction.answer_next_scans()
    assert scan(odd).may_be_forced
    assert retry(odd)
    db.session.commit()
    storage.delete(scan(odd).original_key)
    prediction.answer_next_scans()
    assert scan(odd).status == "failed" and not scan(odd).may_be_forced


def test_a_scan_that_is_deleted_before_it_is_read_costs_its_batch_no_time(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_model()
    kept, deleted = submit(picture(), picture())
    real = prediction.read_original

    def late(one: Scan) -> Series:
        if one.id == deleted:
            delete_scan(deleted)
        return real(one)

    monkeypatch.setattr(prediction, "read_original", late)
    prediction.answer_next_scans()
    assert scan(kept).status == "done"
    assert "trying again" not in caplog.text


def test_a_heat_map_of_a_scan_that_was_deleted_meanwhile_is_not_kept(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (scan_id,) = submit(picture())
    prediction.answer_next_scans()

    def late(heatmap: Heatmap) -> None:
        delete_scan(scan_id)
        storage.put(f"heatmaps/{heatmap.id}.png", b"drawn after the deletion")

    monkeypatch.setattr(heat_maps, "draw", late)
    assert heat_maps.draw_next_heatmap()
    assert [storage.keys(kind) for kind in ("originals", "images", "thumbnails", "heatmaps")] == [
        [],
        [],
        [],
        [],
    ]


def test_a_bad_picture_fails_alone_with_its_sentence(worker_app: Flask) -> None:
    install_model()
    ids = submit(picture(), b"Dear sir or madam", picture(), picture()[:100], b"")
    prediction.answer_next_scans()
    assert [scan(scan_id).status for scan_id in ids] == [
        "done",
        "failed",
        "done",
        "failed",
        "failed",
    ]
    assert [scan(scan_id).error for scan_id in ids[1::2]] == [
        "The file is not a PNG, JPEG, DICOM or NIfTI image.",
        "The image is damaged or incomplete and cannot be decoded.",
    ]
    assert scan(ids[4]).error == "The file is empty."


def test_what_nobody_expected_fails_alone_with_a_neutral_sentence(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_model()
    ids = submit(picture(1), picture(2), picture(3))
    real = Predictor.predict_many

    def breaks_on_the_second(
        self: Predictor, series: Sequence[Series], *watch: Any
    ) -> list[ScanResult]:
        if any(round(float(one.slices[0].pixels[20, 44]) * 255) == 2 for one in series):
            raise RuntimeError("a bug")
        return real(self, series)

    monkeypatch.setattr(Predictor, "predict_many", breaks_on_the_second)
    prediction.answer_next_scans()
    assert [scan(scan_id).status for scan_id in ids] == ["done", "failed", "done"]
    assert (
        scan(ids[1]).error
        == "An unexpected error occurred; administrators can find the details in the log."
    )
    assert any(
        record.levelno == logging.ERROR and ids[1] in record.getMessage() and record.exc_info
        for record in caplog.records
    )


def answered_by(scan_id: str) -> str:
    """Return the id of the version that answered."""
    prediction = scan(scan_id).prediction
    assert prediction is not None
    return prediction.model_version_id


def test_a_slice_and_a_series_are_answered_by_the_live_version_of_their_kind(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_slices, of_series = install_model(), install_model(gain=4.0, reads="series")
    whole, single = submit(picture(), picture())
    real = prediction.read_original

    def read(submitted: Scan) -> Series:
        series = real(submitted)
        return Series(tuple(series.slices) * 3) if submitted.id == whole else series

    monkeypatch.setattr(prediction, "read_original", read)
    prediction.answer_next_scans()
    assert (answered_by(single), answered_by(whole)) == (of_slices.id, of_series.id)
    assert len(scan(whole).prediction.slices) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("reads", ["slice", "series"])
def test_the_other_kind_answers_where_a_kind_has_no_live_version(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    only = install_model(reads=reads)
    (single,) = submit(picture())
    prediction.answer_next_scans()
    real = prediction.read_original
    monkeypatch.setattr(
        prediction, "read_original", lambda submitted: Series(tuple(real(submitted).slices) * 2)
    )
    (whole,) = submit(picture())
    prediction.answer_next_scans()
    assert (answered_by(single), answered_by(whole)) == (only.id, only.id)


def test_the_live_version_is_looked_up_at_every_claim(worker_app: Flask) -> None:
    first, second = install_model(), install_model(gain=2.0, live=False)
    answered_by = []
    for version in (first, second, first):
        db.session.add(Promotion(version_id=version.id, reads="slice", reason="A test."))
        (scan_id,) = submit(picture())
        tasks.predict_scans()
        answered = scan(scan_id).prediction
        assert answered is not None
        answered_by.append(answered.model_version_id)
    assert answered_by == [first.id, second.id, first.id]


def test_a_result_is_dated_by_the_clock_of_the_database(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    dated = Prediction.__table__.c.created_at.default
    monkeypatch.setattr(dated, "arg", lambda _: utc_now() - timedelta(minutes=1))
    (scan_id,) = submit(picture(200))
    prediction.answer_next_scans()
    answered = db.session.scalars(select(Prediction)).one()
    promoted = db.session.scalars(select(Promotion)).one()
    assert answered.scan_id == scan_id
    assert answered.created_at >= promoted.at, "otherwise it would not count to the promotion"


def test_a_batch_after_a_change_of_operating_point_uses_its_thresholds(
    any_worker_app: Flask,
) -> None:
    version = install_model()
    (before,) = submit(picture(200))
    prediction.answer_next_scans()
    with Session(db.engine) as elsewhere:
        changed = elsewhere.get_one(ModelVersion, version.id)
        changed.operating_point = OperatingPoint(OWN_THRESHOLDS, 0.999, None)
        elsewhere.commit()
    (after,) = submit(picture(200))
    prediction.answer_next_scans()
    first, second = scan(before).prediction, scan(after).prediction
    assert first is not None and second is not None
    assert (first.threshold, first.positive, first.uncertain) == (0.5, True, False)
    assert (second.threshold, second.positive, second.uncertain) == (0.999, False, True)
    assert second.probability == first.probability


def test_a_heat_map_is_drawn_by_the_version_that_gave_the_verdict(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = install_model()
    submit(picture())
    prediction.answer_next_scans()
    install_model(gain=2.0)
    versions: list[str] = []
    real = heat_maps.predictor_for

    def note(version: ModelVersion) -> Predictor:
        versions.append(version.id)
        return real(version)

    monkeypatch.setattr(heat_maps, "predictor_for", note)
    assert heat_maps.draw_next_heatmap()
    assert versions == [first.id]


def test_without_a_live_model_scans_fail_with_a_sentence(worker_app: Flask) -> None:
    (scan_id,) = submit(picture())
    tasks.predict_scans()
    assert scan(scan_id).error == "No model is live. Ask an administrator to promote one."


def test_one_persons_heat_maps_do_not_make_anothers_wait(any_worker_app: Flask) -> None:
    install_model()
    many = submit(*[picture()] * 4)
    more = submit(*[picture()] * 4, user_id=make_user(any_worker_app, "cy"))
    (single,) = submit(picture(), user_id=make_user(any_worker_app, "bob"))
    any_worker_app.config["PREDICT_BATCH"] = 9
    prediction.answer_next_scans()
    drawn: list[str] = []

    def note(heatmap: Heatmap) -> None:
        drawn.append(heatmap.prediction.scan_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heat_maps, "draw", note)
        while heat_maps.draw_next_heatmap():
            pass
    assert single in drawn[:3] and set(drawn) == {*many, *more, single}
    for of_one in (many, more):
        # The oldest of each first.
        assert [scan_id for scan_id in drawn if scan_id in of_one] == of_one
    assert {scan_id in many for scan_id in drawn[3:5]} == {True, False}


def test_verdicts_go_before_heat_maps(worker_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    install_model()
    worker_app.config["PREDICT_BATCH"] = 1
    submit(picture(), picture())
    done: list[str] = []

    def noting(name: str, act: Callable[[], bool]) -> Callable[[], bool]:
        def noted() -> bool:
            result = act()
            if result:
                done.append(name)
            return result

        return noted

    monkeypatch.setattr(
        prediction, "answer_next_scans", noting("verdict", prediction.answer_next_scans)
    )
    monkeypatch.setattr(heat_maps, "draw_next_heatmap", noting("map", heat_maps.draw_next_heatmap))
    tasks.predict_scans()
    assert done == ["verdict", "verdict", "map", "map"]


def test_a_heat_map_gives_way_to_a_scan_that_comes_and_is_drawn_once(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    submit(picture())
    prediction.answer_next_scans()
    monkeypatch.setattr(background, "LOOK_S", 0.0)
    submit(picture())
    assert not heat_maps.draw_next_heatmap()
    waiting = db.session.scalars(select(Heatmap)).one()
    assert waiting.status == JobStatus.QUEUED and storage.keys("heatmaps") == []
    prediction.answer_next_scans()
    storage.put(f"heatmaps/{waiting.id}.png", b"drawn before")
    assert heat_maps.draw_next_heatmap() and heat_maps.draw_next_heatmap()
    assert storage.get(f"heatmaps/{waiting.id}.png") == b"drawn before"
    assert len(storage.keys("heatmaps")) == 2


def test_a_worker_that_is_asked_to_stop_leaves_the_rest_queued(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    worker_app.config["PREDICT_BATCH"] = 1
    ids = submit(picture(), picture())
    answers = iter([False, True])
    monkeypatch.setattr(heartbeat(), "stopping", lambda: next(answers))
    tasks.predict_scans()
    assert [scan(scan_id).status for scan_id in ids] == ["done", "queued"]


def test_a_batch_whose_lease_was_lost_writes_nothing(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    lost, kept = submit(picture(), picture())
    real = Predictor.predict_many

    def slow(self: Predictor, series: Sequence[Series], *watch: Any) -> list[ScanResult]:
        db.session.execute(
            update(Scan).where(Scan.id == lost).values(lease_expires_at=database_now(-1))
        )
        leases.reap(Scan, "was analyzing this scan")
        db.session.commit()
        return real(self, series)

    monkeypatch.setattr(Predictor, "predict_many", slow)
    prediction.answer_next_scans()
    assert scan(lost).status == "queued"
    assert db.session.scalars(select(Prediction.scan_id)).all() == [kept]
    assert len(db.session.scalars(select(Heatmap)).all()) == 1


def test_the_model_computes_outside_any_transaction(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    submit(picture())
    in_transaction: list[bool] = []
    real_predict, real_heatmap = Predictor.predict_many, Predictor.heatmaps

    def predict(self: Predictor, series: Sequence[Series], *watch: Any) -> list[ScanResult]:
        in_transaction.append(db.session().in_transaction())
        return real_predict(self, series)

    def draw(self: Predictor, series: Series, indices: Sequence[int], *watch: Any) -> object:
        in_transaction.append(db.session().in_transaction())
        return real_heatmap(self, series, indices)

    monkeypatch.setattr(Predictor, "predict_many", predict)
    monkeypatch.setattr(Predictor, "heatmaps", draw)
    tasks.predict_scans()
    assert in_transaction == [False, False, False]  # A phantom, the scan, its heat map.


@pytest.mark.parametrize(("kind", "most"), [("png", 10), ("dicom", 12)])
def test_the_number_of_statements_does_not_grow_with_the_batch(
    any_worker_app: Flask, kind: str, most: int
) -> None:
    install_model()
    prediction.warm_up()
    counts = [0]

    def count(*_: object) -> None:
        counts[-1] += 1

    event.listen(db.engine, "before_cursor_execute", count)
    for size in (1, 8):
        submit(*[picture()] * size, b"bad")
        db.session.execute(update(Scan).values(kind=kind))
        db.session.commit()
        any_worker_app.config["PREDICT_BATCH"] = size + 1
        counts.append(0)
        prediction.answer_next_scans()
        counts.append(0)
    event.remove(db.engine, "before_cursor_execute", count)
    assert counts[1] == counts[3] <= most


def test_a_scan_is_decoded_once_for_its_verdict(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    submit(picture(255), picture(0), b"bad")
    decoded: list[int] = []
    real = scan_files.decode

    def counted(paths: Sequence[Path], **options: Any) -> Series:
        decoded.append(len(paths))
        return real(paths, **options)

    monkeypatch.setattr(scan_files, "decode", counted)
    prediction.answer_next_scans()
    assert decoded == [1, 1, 1]


def test_a_storage_that_is_away_for_a_moment_costs_nothing(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (scan_id,) = submit(picture())
    refusals = iter([True, True, True])
    real = Storage.fetch

    def moody(self: Storage, key: str, path: object) -> None:
        if next(refusals, False):
            raise StorageError("A stored file cannot be read.")
        real(self, key, path)  # type: ignore[arg-type]

    monkeypatch.setattr(Storage, "fetch", moody)
    prediction.answer_next_scans()
    assert scan(scan_id).status == "done"


def take_storage_away(app: Flask) -> Callable[[], object]:
    """Let the folder of the storage be away, as one that is unmounted; return what brings it
    back.
    """
    files = Path(app.config["STORAGE_URL"].removeprefix("file://"))
    elsewhere = files.with_name("elsewhere")
    files.rename(elsewhere)
    return lambda: elsewhere.rename(files)


@pytest.mark.parametrize("when", ["before it is read", "before its pictures are stored"])
def test_a_storage_that_stays_away_sends_scans_back_until_it_is_there(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    install_model()
    prediction.warm_up()
    ids = submit(picture(), picture(), b"no picture")
    real, claims, come_back = leases.claim, [], []

    def note(table: type[Scan], *given: object, **more: object) -> list[Scan]:
        claims.append(table)
        return real(table, *given, **more)  # type: ignore[arg-type]

    def go_away(*_: object) -> None:
        if not come_back:
            come_back.append(take_storage_away(worker_app))
        raise StorageError("The storage did not accept a file; please try again later.")

    monkeypatch.setattr(leases, "claim", note)
    with monkeypatch.context() as patch:
        if when == "before it is read":
            come_back.append(take_storage_away(worker_app))
        else:
            patch.setattr(Storage, "put", go_away)
        tasks.predict_scans()
        assert [
            (scan(id).status, scan(id).attempts, scan(id).counted_deaths, scan(id).error)
            for id in ids
        ] == [("queued", 0, 0, None)] * 3
        tasks.predict_scans()
        # Once each: nothing is claimed as long as it is away.
        assert claims == [Report, Preview, Scan]
    come_back[0]()
    tasks.predict_scans()
    assert [scan(id).status for id in ids] == ["done", "done", "failed"]


def test_a_heat_map_waits_for_a_storage_that_is_away(worker_app: Flask) -> None:
    install_model()
    submit(picture())
    prediction.answer_next_scans()
    come_back = take_storage_away(worker_app)
    tasks.predict_scans()
    heatmap = db.session.scalars(
        select(Heatmap), execution_options={"populate_existing": True}
    ).one()
    assert (heatmap.status, heatmap.attempts, heatmap.error) == ("queued", 0, None)
    come_back()
    tasks.predict_scans()
    assert db.session.scalars(select(Heatmap.status)).one() == "done"


def test_a_heat_map_whose_model_is_in_a_storage_that_is_away_waits_for_it(
    worker_app: Flask,
) -> None:
    """A folder that is not mounted lists no files of a model, which is no failure of the model."""
    install_model()
    submit(picture())
    prediction.answer_next_scans()
    predictors._loaded.clear()
    shutil.rmtree(Path(worker_app.config["HEMOSCAN_HOME"]) / "cache")
    come_back = take_storage_away(worker_app)
    tasks.predict_scans()
    heatmap = db.session.scalars(
        select(Heatmap), execution_options={"populate_existing": True}
    ).one()
    assert (heatmap.status, heatmap.error) == ("queued", None)
    come_back()
    tasks.predict_scans()
    assert db.session.scalars(select(Heatmap.status)).one() == "done"


def test_a_storage_that_refuses_writes_puts_the_scan_off(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (scan_id,) = submit(picture(255))
    sentence = "The storage did not accept a file; please try again later."

    def refuse(self: Storage, key: str, content: object) -> None:
        raise StorageError(sentence)

    def make_due(refused_s: float) -> None:
        times = {"retry_at": database_now(-1), "refused_since": database_now(-refused_s)}
        db.session.execute(update(Scan).values(**times))
        db.session.commit()

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "put", refuse)
        waits = []
        for refused_s in (0.0, 30.0, 3500.0):
            make_due(refused_s)
            assert prediction.answer_next_scans()
            put_off = scan(scan_id)
            assert (put_off.status, put_off.error) == ("queued", None)
            assert put_off.retry_at is not None
            waits.append((put_off.retry_at - utc_now()).total_seconds())
            assert not prediction.answer_next_scans()  # Not before that.
        assert waits == pytest.approx([2, 30, 300], abs=1.5)
        make_due(3601)
        assert prediction.answer_next_scans()
        assert (scan(scan_id).status, scan(scan_id).error) == ("failed", sentence)
        assert db.session.scalar(select(Prediction)) is None

        # Who tries again begins a new hour.
        assert retry(scan_id)
        db.session.commit()
        assert prediction.answer_next_scans()
        assert scan(scan_id).status == "queued"
    make_due(3601)
    assert prediction.answer_next_scans()
    assert scan(scan_id).status == "done"


def test_a_scan_that_is_put_off_holds_no_other_up(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    refused, other = submit(picture(255), picture(255))
    original = Storage.put

    def put(self: Storage, key: str, content: bytes | Path) -> None:
        if refused in key:
            raise StorageError("The storage did not accept a file; please try again later.")
        original(self, key, content)

    monkeypatch.setattr(Storage, "put", put)
    assert prediction.answer_next_scans()
    (later,) = submit(picture(0))
    assert prediction.answer_next_scans()
    assert not prediction.answer_next_scans()
    assert [scan(scan_id).status for scan_id in (refused, other, later)] == [
        "queued",
        "done",
        "done",
    ]


def test_a_heat_map_that_cannot_be_drawn_leaves_the_verdict(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (scan_id,) = submit(picture())
    prediction.answer_next_scans()

    def fails(self: Predictor, *_: object) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Predictor, "heatmaps", fails)
    assert heat_maps.draw_next_heatmap()
    heatmap = db.session.scalars(
        select(Heatmap), execution_options={"populate_existing": True}
    ).one()
    assert heatmap.status == JobStatus.FAILED and heatmap.error
    assert scan(scan_id).status == "done"


def test_warming_up_loads_the_live_model(worker_app: Flask) -> None:
    prediction.warm_up()  # Nothing is live: nothing happens.
    install_model()
    prediction.warm_up()
    assert not db.session().in_transaction()


def test_a_workers_full_disk_is_tried_again_and_never_called_the_files_fault(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (lucky, unlucky) = submit(picture(), picture(3))
    real, refusals = scan_files.decode, iter([True, False, True, True, True, True])

    def decode(paths: Sequence[Path], **limits: int) -> Series:
        if next(refusals, True):
            raise OSError("No space left on device")
        return real(paths, **limits)

    monkeypatch.setattr(scan_files, "decode", decode)
    prediction.answer_next_scans()
    assert scan(lucky).status == "done"
    assert (scan(unlucky).status, scan(unlucky).error) == ("queued", None)
    assert scan(unlucky).refused_since is not None
    hour = {"retry_at": database_now(-1), "refused_since": database_now(-3601)}
    db.session.execute(update(Scan).where(Scan.id == unlucky).values(**hour))
    db.session.commit()
    prediction.answer_next_scans()
    assert (scan(unlucky).status, scan(unlucky).error) == ("failed", NO_ROOM)
