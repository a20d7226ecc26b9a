from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ml.catalogue import PREPROCESSING
from ml.preprocessing.head import find_head
from ml.preprocessing.model_input import CHOICES, Frame, InputSpec, to_input
from ml.scans.phantoms import phantom, write_dicom, write_png
from ml.scans.read import read_series
from ml.scans.slices import Slice, window

WHOLE = InputSpec(size=64, crop_to_head=False)


def a_head(
    height: int = 300,
    width: int = 400,
    middle: tuple[int, int] = (200, 150),
    half: tuple[int, int] = (70, 90),
) -> np.ndarray:
    """A gray head with a white skull on black, float32 (height, width). `middle` and `half` are (x,
    y).
    """
    picture = np.zeros((height, width), np.float32)
    cv2.ellipse(picture, middle, half, 0, 0, 360, 1.0, cv2.FILLED)
    cv2.ellipse(picture, middle, (half[0] - 8, half[1] - 8), 0, 0, 360, 0.4, cv2.FILLED)
    cv2.circle(picture, middle, 12, 0.0, cv2.FILLED)  # a dark ventricle
    return picture


def test_the_brain_window_maps_0_40_and_80_hu() -> None:
    values = np.array([-1000, 0, 20, 40, 80, 3000], np.float32)
    np.testing.assert_array_equal(
        window(values, 40, 80), np.array([0, 0, 0.25, 0.5, 1, 1], np.float32)
    )
    assert window(values, 40, 80).dtype == np.float32


def test_a_whole_picture_is_padded_to_a_square_around_its_middle() -> None:
    pixels, frame = to_input(Slice(np.ones((32, 64), np.float32), "display"), WHOLE)
    assert frame == Frame(top=-16, left=0, height=64, width=64, shows_head=False)
    assert pixels.shape == (64, 64, 1)
    assert pixels.dtype == np.float32
    expected = np.zeros((64, 64), np.float32)
    expected[16:48] = 1
    np.testing.assert_array_equal(pixels[..., 0], expected)


def test_shrinking_takes_the_mean_of_each_block() -> None:
    picture = np.zeros((128, 128), np.float32)
    picture[0, 0] = picture[2, 3] = 1
    pixels, _ = to_input(Slice(picture, "display"), WHOLE)
    assert pixels[0, 0, 0] == pytest.approx(0.25)
    assert pixels[1, 1, 0] == pytest.approx(0.25)
    assert pixels.sum() == pytest.approx(0.5)


def test_hu_are_windowed_and_display_values_are_not() -> None:
    assert to_input(Slice(np.full((64, 64), 40, np.float32), "hu"), WHOLE)[0] == pytest.approx(0.5)
    assert to_input(Slice(np.full((64, 64), 0.25, np.float32), "display"), WHOLE)[
        0
    ] == pytest.approx(0.25)


def test_the_head_fills_the_input_wherever_it_lies() -> None:
    for middle in ((100, 150), (300, 150), (200, 120)):
        _, frame = to_input(Slice(a_head(middle=middle), "display"), InputSpec())
        assert frame.shows_head
        assert frame.height == frame.width == pytest.approx(190, abs=8)  # 2 x 90 px and the margins
        assert frame.left + frame.width / 2 == pytest.approx(middle[0], abs=2)
        assert frame.top + frame.height / 2 == pytest.approx(middle[1], abs=2)


def test_holes_of_the_head_are_inside_it() -> None:
    head = find_head(a_head())
    assert head is not None
    assert head[150, 200]  # the dark ventricle
    assert not head[5, 5]


def test_table_letters_and_margin_are_removed() -> None:
    clean = a_head()
    dressed = clean.copy()
    cv2.ellipse(dressed, (200, 150), (150, 140), 0, 20, 160, 1.0, 3)  # a table below
    dressed[10:40, 10:14] = dressed[36:40, 10:26] = 1  # a panel letter
    dressed[:, 396:] = 0.9
    np.testing.assert_array_equal(
        to_input(Slice(dressed, "display"), InputSpec())[0],
        to_input(Slice(clean, "display"), InputSpec())[0],
    )


def test_a_gray_background_becomes_black() -> None:
    pixels, frame = to_input(Slice(np.maximum(a_head(), 0.15), "display"), InputSpec())
    assert frame.height == pytest.approx(190, abs=8)
    assert pixels[0, 0, 0] == 0


def test_jpeg_artifacts_do_not_move_the_crop(tmp_path: Path) -> None:
    _, sharp = to_input(Slice(a_head(), "display"), InputSpec())
    coded = cv2.imencode(".jpg", (a_head() * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 15])[
        1
    ]
    (tmp_path / "slice").write_bytes(coded.tobytes())
    _, blocky = to_input(read_series([tmp_path / "slice"]).slices[0], InputSpec())
    np.testing.assert_allclose(
        [sharp.top, sharp.left, sharp.height, sharp.width],
        [blocky.top, blocky.left, blocky.height, blocky.width],
        atol=4,
    )


def test_a_head_cut_off_by_the_edge_is_found() -> None:
    _, frame = to_input(Slice(a_head(300, 140, (70, 150), (80, 120)), "display"), InputSpec())
    assert frame.shows_head
    assert frame.height == pytest.approx(250, abs=8)
    assert frame.left < 0


def test_a_tiny_crown_is_not_blown_up() -> None:
    picture = np.zeros((500, 500), np.float32)
    cv2.circle(picture, (250, 250), 45, 1.0, cv2.FILLED)
    _, frame = to_input(Slice(picture, "display"), InputSpec())
    assert (frame.height, frame.shows_head) == (200, True)


def test_without_a_head_the_whole_picture_is_taken() -> None:
    picture = np.zeros((100, 100), np.float32)
    picture[3:6, 3:6] = 1
    _, frame = to_input(Slice(picture, "display"), InputSpec())
    assert frame == Frame(0, 0, 100, 100, shows_head=False)
    assert find_head(np.zeros((100, 100), np.float32)) is None


def test_a_dicom_and_its_windowed_png_become_the_same_input(tmp_path: Path) -> None:
    hu = phantom(3, hemorrhage=True)
    write_dicom(hu, tmp_path / "a")
    write_png(hu, tmp_path / "b")
    from_dicom, dicom_frame = to_input(read_series([tmp_path / "a"]).slices[0], InputSpec())
    from_png, png_frame = to_input(read_series([tmp_path / "b"]).slices[0], InputSpec())
    assert dicom_frame == png_frame
    np.testing.assert_allclose(from_dicom, from_png, atol=1 / 255)


def test_a_spec_survives_the_card() -> None:
    spec = InputSpec(
        96,
        50,
        100,
        False,
        normalisation="clahe",
        skull_stripping=True,
        upright=True,
        segmentation="otsu",
    )
    assert InputSpec.from_dict(spec.to_dict()) == spec
    assert InputSpec.from_dict({}) == InputSpec()


@pytest.mark.parametrize(
    "given",
    [
        {"turn": 90},
        {"size": "224"},
        {"size": 0},
        {"size": 64.5},
        {"size": True},
        {"window_width": 0},
        {"crop_to_head": 1},
        {"upright": "yes"},
        {"normalisation": "magic"},
        {"segmentation": None},
    ],
)
def test_a_spec_of_another_version_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="preprocessing"):
        InputSpec.from_dict(given)


def test_the_card_of_a_model_from_before_the_settings_means_what_it_meant() -> None:
    older = {"size": 96, "window_level": 40.0, "window_width": 80.0, "crop_to_head": True}
    slice = Slice(a_head(), "display")
    np.testing.assert_array_equal(
        to_input(slice, InputSpec.from_dict(older))[0], to_input(slice, InputSpec(size=96))[0]
    )
    assert InputSpec.from_dict(older) == InputSpec(
        96, normalisation="none", skull_stripping=False, upright=False, segmentation="none"
    )


def test_settings_of_an_architecture_become_a_spec() -> None:
    settings = {
        "layer": "conv5",
        "input_size": 128,
        "upright": "yes",
        "skull_stripping": "no",
        "normalisation": "percentile",
    }
    assert InputSpec.from_settings(settings) == InputSpec(
        size=128, upright=True, normalisation="percentile"
    )
    assert InputSpec.from_settings({"folds": 5}) == InputSpec()
    with pytest.raises(ValueError, match="normalisation"):
        InputSpec.from_settings({"normalisation": "yes"})


def test_the_catalogue_offers_what_a_spec_takes_with_the_same_defaults() -> None:
    defaults = {setting.name: setting.default for setting in PREPROCESSING}
    assert InputSpec.from_settings(defaults) == InputSpec()
    assert {
        setting.name: setting.choices for setting in PREPROCESSING if setting.name in CHOICES
    } == CHOICES


def test_a_tint_becomes_a_shade_of_gray_and_nothing_else(tmp_path: Path) -> None:
    gray = (a_head() * np.linspace(150, 200, 400)).astype(np.uint8)
    tinted = np.stack([gray, gray, gray * 1.25], axis=-1).astype(np.uint8)  # blue
    # OpenCV writes blue first
    for name, picture in (("gray", gray), ("tinted", tinted[..., ::-1])):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    plain, tint = (
        to_input(read_series([tmp_path / f"{name}.png"]).slices[0], InputSpec())[0]
        for name in ("gray", "tinted")
    )
    shade = tint[plain > 0.1] / plain[plain > 0.1]
    assert shade.max() - shade.min() < 0.03
    np.testing.assert_array_equal(tint == 0, plain == 0)


def test_heads_are_found_in_the_real_sets(shared_data: Path) -> None:
    paths = [
        *sorted((shared_data / "head_ct" / "head_ct").glob("*.png"))[::10],
        *sorted(shared_data.glob("ct_ich/images/*/*"))[10::150],
    ]
    assert len(paths) > 25
    for path in paths:
        slice = read_series([path]).slices[0]
        head = find_head(slice.pixels)
        assert head is not None, path.name
        assert 0.03 < head.mean() < 0.95, path.name
