"""One slice of a stored series, read by itself and shown as radiologists look at it."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest
from flask import Flask
from numpy.typing import NDArray
from PIL import Image

from ml.scans.slices import Slice, render
from tests.webapp.series import stored_series
from webapp.scans.stored_volume import HEAD_BYTES, WINDOWS, Volume, Window, open_volume
from webapp.storage import Storage, StorageError, storage

KEY = "volumes/0123456789abcdef0123456789abcdef.nii.gz"


@pytest.fixture
def hu() -> NDArray[np.int16]:
    """A series of 3 slices of 4 rows and 6 columns in which every pixel is another, from -1000 HU
    on.
    """
    return (np.arange(3 * 4 * 6).reshape(3, 4, 6) * 20 - 1000).astype(np.int16)


def shown(volume: Volume, index: int, window: Window | None = None) -> NDArray[np.uint8]:
    """Return the grays of a slice's picture (rows, columns)."""
    picture = Image.open(io.BytesIO(volume.png(index, window)))
    assert picture.mode == "L"
    return np.asarray(picture)


def stored(content: bytes) -> Volume:
    """Store a series and open it."""
    storage.put(KEY, content)
    return open_volume(KEY)


def test_the_head_of_a_series_says_its_shape_and_what_its_values_are(
    app: Flask, hu: NDArray[np.int16]
) -> None:
    with app.app_context():
        volume = stored(stored_series(hu))
        assert (volume.columns, volume.rows, len(volume.starts)) == (6, 4, 3)
        assert (volume.column_mm, volume.row_mm, volume.slice_mm) == (0.5, 0.5, 5.0)
        assert volume.is_hu
        assert volume.measured == {"pixels", "slices"}
        assert not stored(stored_series(hu, "display")).is_hu


@pytest.mark.parametrize(
    ("window", "grays"),
    [
        (None, [0, 0, 0, 128, 255, 255, 255]),
        (Window(40, 80), [0, 0, 0, 128, 255, 255, 255]),
        (Window(80, 200), [0, 0, 26, 76, 128, 255, 255]),
        (Window(600, 2800), [0, 0, 73, 76, 80, 255, 255]),
        (Window(0, 65536), [0, 0, 128, 128, 128, 135, 255]),
        (Window(40_000, 2), [0] * 7),
    ],
)
def test_a_window_is_black_below_and_white_above(
    app: Flask, window: Window | None, grays: list[int]
) -> None:
    hu = np.array([-32768, -32760, 0, 40, 80, 2000, 32767], np.int16)
    with app.app_context():
        gray = shown(stored(stored_series(hu.reshape(1, 1, 7))), 0, window)
    assert gray.tolist() == [grays]


def test_a_slice_looks_as_the_workers_picture_of_it(app: Flask) -> None:
    hu = np.linspace(-200, 1400, 1800, dtype=np.float32).round().reshape(3, 20, 30)
    with app.app_context():
        volume = stored(stored_series(hu))
        for index in range(3):
            for level, width in WINDOWS.values():
                expected = np.asarray(render(Slice(hu[index], "hu"), 30, level, width), np.int16)
                assert np.abs(shown(volume, index, Window(level, width)) - expected).max() <= 1


def test_a_series_of_pictures_is_shown_with_the_grays_that_were_submitted(app: Flask) -> None:
    display = np.array([[[0, 0.25, 0.5, 1]]])
    with app.app_context():
        gray = shown(stored(stored_series(display, "display")), 0)
    assert gray.tolist() == [[0, 64, 128, 255]]


def test_a_slice_is_read_without_the_others(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(1).integers(-1000, 1000, (40, 64, 64)).astype(np.int16)
    content = stored_series(noise)
    read: list[bytes] = []
    get = Storage.get

    def watched(self: Storage, key: str, start: int = 0, stop: int | None = None) -> bytes:
        read.append(get(self, key, start, stop))
        return read[-1]

    monkeypatch.setattr(Storage, "get", watched)
    with app.app_context():
        volume = stored(content)
        for index in (0, 20, 39):
            read.clear()
            assert shown(volume, index).shape == (64, 64)
            assert sum(map(len, read)) < len(content) / 39
        assert len(read) == 1


def test_the_longest_series_fits_the_head(app: Flask) -> None:
    with app.app_context():
        volume = stored(stored_series(np.full((2000, 2, 2), 80, np.int16)))
        assert volume.starts[0] < HEAD_BYTES
        assert shown(volume, 1999).tolist() == [[255, 255], [255, 255]]


def test_there_is_no_slice_before_the_first_or_after_the_last(
    app: Flask, hu: NDArray[np.int16]
) -> None:
    with app.app_context():
        volume = stored(stored_series(hu))
        for index in (-1, 3):
            with pytest.raises(IndexError):
                volume.png(index)


@pytest.mark.parametrize(
    "damage", ["nothing", "short", "no positions", "other positions", "no gzip"]
)
def test_a_damaged_series_is_an_error_of_the_storage(
    app: Flask, hu: NDArray[np.int16], damage: str
) -> None:
    content = stored_series(hu)
    damaged = {
        "nothing": b"",
        "short": content[:40],
        "no positions": gzip.compress(bytes(400)),
        "other positions": content.replace(b"HS", b"XX", 1),
        "no gzip": bytes(400),
    }[damage]
    with app.app_context(), pytest.raises(StorageError, match="A stored series is damaged"):
        stored(damaged)


def test_a_slice_that_ends_too_early_is_an_error_of_the_storage(
    app: Flask, hu: NDArray[np.int16]
) -> None:
    with app.app_context():
        volume = stored(stored_series(hu))
        storage.put(KEY, stored_series(hu)[: volume.starts[2] + 5])
        with pytest.raises(StorageError, match="A stored series is damaged"):
            volume.png(2)
