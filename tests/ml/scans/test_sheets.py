"""Pictures of several slices, and of a slice and more."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ml.errors import ImageError
from ml.scans.panels import brain_window
from ml.scans.phantoms import phantom
from ml.scans.read import read_series
from ml.scans.slices import Series, Slice, render

SIDE = 160
HEAD = np.asarray(
    render(Slice(phantom(1, hemorrhage=True, size=SIDE).astype(np.float32), "hu"), SIDE)
)


def read(folder: Path, picture: np.ndarray, *, crops: bool = True, cuts: bool = True) -> Series:
    Image.fromarray(picture).save(folder / "picture.png")
    return read_series([folder / "picture.png"], crops=crops, cuts=cuts)


def on_canvas(height: int, width: int, top: int, left: int, gray: int = 0) -> np.ndarray:
    canvas = np.full((height, width), gray, np.uint8)
    canvas[top : top + SIDE, left : left + SIDE] = HEAD
    return canvas


def test_a_slice_by_itself_stays_as_it_is(tmp_path: Path) -> None:
    series = read(tmp_path, HEAD)
    np.testing.assert_array_equal(series.slices[0].pixels, HEAD.astype(np.float32) / 255)
    assert series.warnings == ()


@pytest.mark.parametrize(("top", "left"), [(0, 0), (200, 300), (460, 100)])
def test_a_wide_margin_is_cut_off_with_a_note(tmp_path: Path, top: int, left: int) -> None:
    series = read(tmp_path, on_canvas(640, 640, top, left))
    (slice,) = series.slices
    assert max(slice.pixels.shape) < 200
    assert "small part of the image" in series.warnings[0]
    assert slice.pixels.max() == 1 and (slice.pixels > 0.9).sum() == (HEAD > 229).sum()


def test_a_margin_stays_where_pictures_must_keep_their_size(tmp_path: Path) -> None:
    canvas = on_canvas(640, 640, 200, 300)
    assert read(tmp_path, canvas, crops=False).slices[0].pixels.shape == canvas.shape


def test_the_window_of_a_viewer_is_cut_off(tmp_path: Path) -> None:
    canvas = on_canvas(360, 480, 100, 260)
    canvas[:, :180] = 40
    canvas[20:340:40, 10:170] = 90
    series = read(tmp_path, canvas)
    assert "small part of the image" in series.warnings[0]
    assert series.slices[0].pixels.shape[0] < 200


def test_a_sheet_is_cut_into_its_slices_row_by_row(tmp_path: Path) -> None:
    sheet = np.zeros((3 * SIDE, 4 * SIDE), np.uint8)
    for at in range(12):
        row, column = divmod(at, 4)
        cell = HEAD.copy()
        # brain, in which the number of the slice stands
        cell[SIDE // 2 : SIDE // 2 + 4, SIDE // 2 : SIDE // 2 + 4] = 20 * at + 5
        sheet[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = cell
    series = read(tmp_path, sheet)
    assert len(series.slices) == 12
    assert len({slice.pixels.shape for slice in series.slices}) == 1
    middle = series.slices[0].pixels.shape[0] // 2
    near = [
        slice.pixels[middle - 12 : middle + 12, middle - 12 : middle + 12]
        for slice in series.slices
    ]
    for at, one in enumerate(near):
        assert (np.round(one * 255) == 20 * at + 5).sum() >= 16
    assert "a sheet of 12 slices" in series.warnings[0]


def test_a_sheet_stays_whole_where_that_is_wanted_with_a_note(tmp_path: Path) -> None:
    series = read(tmp_path, np.tile(HEAD, (3, 4)), cuts=False)
    assert [slice.pixels.shape for slice in series.slices] == [(3 * SIDE, 4 * SIDE)]
    assert "a sheet of 12 slices; it was read as a single slice" in series.warnings[0]


def test_two_heads_are_noted(tmp_path: Path) -> None:
    series = read(tmp_path, np.hstack([HEAD, HEAD]))
    assert len(series.slices) == 1
    assert "several heads (2)" in series.warnings[0]


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_a_film_strip_of_any_length_is_cut(tmp_path: Path, shape: tuple[int, int]) -> None:
    strip = np.tile(HEAD, shape)
    series = read(tmp_path, strip)
    assert len(series.slices) == 6 and "sheet of 6 slices" in series.warnings[0]
    with pytest.raises(ImageError, match="at most 4 times as long as it is wide"):
        read(tmp_path, strip, cuts=False)


@pytest.mark.parametrize("paper", [0, 120, 255])
def test_blank_cells_of_a_sheet_are_no_slices(tmp_path: Path, paper: int) -> None:
    cells = 2, 4
    sheet = np.full((cells[0] * 170 + 10, cells[1] * 170 + 10), paper, np.uint8)
    for number in range(6):
        row, column = divmod(number, cells[1])
        sheet[10 + row * 170 :, 10 + column * 170 :][:SIDE, :SIDE] = HEAD
    assert len(read(tmp_path, sheet).slices) == 6


@pytest.mark.parametrize("bone_first", [True, False])
def test_the_same_slice_in_a_bone_window_beside_it_is_cut_off(
    tmp_path: Path, bone_first: bool
) -> None:
    hu = Slice(phantom(1, hemorrhage=True, size=SIDE).astype(np.float32), "hu")
    windows = [HEAD, np.asarray(render(hu, SIDE, 600, 2800))]
    series = read(tmp_path, np.hstack(windows[::-1] if bone_first else windows))
    (slice,) = series.slices
    assert max(slice.pixels.shape) < 200 and (slice.pixels > 0.9).sum() == (HEAD > 229).sum()
    assert "small part of the image" in series.warnings[0]


@pytest.mark.parametrize("white", [0.9, 0.6])
def test_a_head_on_a_photographed_monitor_is_cut_out(tmp_path: Path, white: float) -> None:
    photograph = np.full((600, 800), 60.0)  # the room, and a viewport that is not quite black
    photograph[50:550, 100:700] = 24
    photograph[200 : 200 + SIDE, 300 : 300 + SIDE] = HEAD * white + 24
    photograph += np.random.default_rng(0).normal(0, 3, photograph.shape)
    series = read(tmp_path, np.clip(photograph, 0, 255).astype(np.uint8))
    (slice,) = series.slices
    assert max(slice.pixels.shape) < 200 and "small part of the image" in series.warnings[0]


@pytest.mark.parametrize("side", [36, 48, 56])
def test_a_head_of_too_few_pixels_is_refused(tmp_path: Path, side: int) -> None:
    canvas = np.zeros((512, 512), np.uint8)
    canvas[100 : 100 + side, 60 : 60 + side] = cv2.resize(
        HEAD, (side, side), interpolation=cv2.INTER_AREA
    )
    with pytest.raises(ImageError, match="head in the image is only"):
        read(tmp_path, canvas)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0), (2, 0, 1)])
def test_of_one_slice_in_several_windows_the_brain_window_is_read(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    hu = Slice(phantom(1, hemorrhage=True, size=SIDE).astype(np.float32), "hu")
    subdural, bone, stroke = (
        np.asarray(render(hu, SIDE, *window)) for window in ((80, 200), (600, 2800), (40, 40))
    )
    series = read(tmp_path, np.hstack([[HEAD, subdural, bone, stroke][panel] for panel in order]))
    (slice,) = series.slices
    assert slice.pixels.shape[0] < 200 and (slice.pixels > 0.9).sum() == (HEAD > 229).sum()
    assert "only the brain window was read" in series.warnings[0]


def test_of_windows_that_all_clip_the_ventricles_none_is_the_brain_window() -> None:
    down, across = np.indices((SIDE, SIDE)) / (SIDE / 2) - 1
    head = np.hypot(down, across).astype(np.float32)
    wide, narrow = (np.clip(slope * (head - 0.2), 0, 1) for slope in (0.5, 1))
    assert brain_window([wide, narrow]) == -1
    assert brain_window([narrow, narrow]) is None


def test_a_scout_with_the_positions_of_the_slices_is_left_out_of_a_sheet(tmp_path: Path) -> None:
    scout = np.zeros((SIDE, SIDE), np.uint8)
    cv2.ellipse(scout, (80, 67), (53, 58), 0, 0, 360, (150,), -1)
    cv2.ellipse(scout, (80, 67), (45, 50), 0, 0, 360, (95,), -1)
    for row in range(16, 120, 8):
        cv2.line(scout, (13, row), (147, row + 10), (230,), 1)
    sheet = np.tile(HEAD, (2, 3))
    sheet[:SIDE, :SIDE] = scout
    series = read(tmp_path, sheet)
    assert len(series.slices) == 5 and "scout" in series.warnings[1]


def test_a_head_of_few_pixels_is_read_with_a_warning(tmp_path: Path) -> None:
    canvas = np.zeros((512, 512), np.uint8)
    canvas[100:212, 60:172] = cv2.resize(HEAD, (112, 112), interpolation=cv2.INTER_AREA)
    assert "the result is unreliable" in read(tmp_path, canvas).warnings[1]


@pytest.mark.parametrize("side", [SIDE, 256])
def test_an_inverted_head_is_turned_back_although_its_skin_is_too_thin_to_be_seen(
    tmp_path: Path, side: int
) -> None:
    hu = phantom(1, hemorrhage=True, size=side).astype(np.float32)
    head = np.asarray(render(Slice(hu, "hu"), side))
    series = read(tmp_path, 255 - head)
    np.testing.assert_allclose(series.slices[0].pixels, head / 255, atol=1e-6)
    assert "inverted" in series.warnings[0]


@pytest.mark.parametrize("radius", [0.5, 0.55])
def test_white_corners_around_the_scanned_circle_become_black(
    tmp_path: Path, radius: float
) -> None:
    distance = np.hypot(*(np.indices(HEAD.shape) - (SIDE - 1) / 2))
    series = read(tmp_path, np.where(distance > radius * SIDE, 255, HEAD).astype(np.uint8))
    np.testing.assert_array_equal(series.slices[0].pixels, HEAD.astype(np.float32) / 255)
    assert "white corners" in series.warnings[0]
