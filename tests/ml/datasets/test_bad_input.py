"""What people send by mistake: each case is put right and said, or refused with a sentence, and
never silently scored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from ml.errors import ImageError
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.hounsfield import scale_from_air
from ml.scans.phantoms import phantom, write_dicom
from ml.scans.read import DARK_NOTE, read_series
from ml.scans.slices import Series, Slice, render


def with_skin(hu: np.ndarray) -> np.ndarray:
    """Return the phantom with skin as thick as a head's: its own is thinner than its blur, and a
    picture shows none.
    """
    head = (hu > -300).astype(np.uint8)
    skin = cv2.dilate(head, np.ones((7, 7), np.uint8)) - head
    return np.where(skin == 1, 45, hu).astype(hu.dtype)


HU = with_skin(phantom(1, hemorrhage=True, size=256))
GRAY = np.asarray(render(Slice(HU.astype(np.float32), "hu"), 256))
COLORS = np.stack([GRAY] * 3, axis=-1)
CUT = GRAY[22:234, 22:234]
"""With a margin of 22 px it has 256 px again, so the head is looked for at the same scale."""


def framed(margin: int = 22) -> np.ndarray:
    """The head on a white page."""
    return np.pad(CUT, margin, constant_values=255)


def cut_out() -> np.ndarray:
    """The head with white paper for air."""
    return np.where(HU < -500, 255, GRAY).astype(np.uint8)


def in_16_bits(values: np.ndarray) -> Image.Image:
    return Image.fromarray((values % 65536).astype(np.uint16))


def read(folder: Path, picture: Image.Image, kind: str = "PNG", **options: object) -> Series:
    picture.save(folder / "picture", format=kind, **options)
    return read_series([folder / "picture"])


PUT_RIGHT: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "gray": (lambda: Image.fromarray(GRAY), ""),
    "palette": (lambda: Image.fromarray(GRAY).convert("P"), ""),
    "color mode without colors": (lambda: Image.fromarray(COLORS), ""),
    "16 bits of gray": (lambda: in_16_bits(GRAY.astype(np.int64) * 257), ""),
    "8 bits in 16": (lambda: in_16_bits(GRAY.astype(np.int64)), "only 8 bits"),
    "12 bits in 16": (
        lambda: in_16_bits(np.round(GRAY / 255 * 4095).astype(np.int64)),
        "only 12 bits",
    ),
    "HU + 1024 in 16 bits": (lambda: in_16_bits(HU.astype(np.int64) + 1024), "Hounsfield units"),
    "HU + 32768 in 16 bits": (lambda: in_16_bits(HU.astype(np.int64) + 32768), "Hounsfield units"),
    "signed HU in unsigned 16 bits": (lambda: in_16_bits(HU.astype(np.int64)), "Hounsfield units"),
    "upside down": (lambda: Image.fromarray(255 - GRAY), "inverted"),
    "non-square": (lambda: Image.fromarray(np.pad(GRAY, ((0, 0), (0, 120)))), ""),
    "huge": (
        lambda: Image.fromarray(cv2.resize(GRAY, (2560, 2560), interpolation=cv2.INTER_NEAREST)),
        "",
    ),
}


@pytest.mark.parametrize("case", PUT_RIGHT)
def test_a_repaired_file_gives_the_same_input_with_a_note(tmp_path: Path, case: str) -> None:
    make, note = PUT_RIGHT[case]
    series = read(tmp_path, make())
    expected = to_input(Slice(HU.astype(np.float32), "hu"), InputSpec(size=64))[0]
    shown, frame = to_input(series.slices[0], InputSpec(size=64))
    assert frame.shows_head
    # A picture of another size is searched for its head at another scale, which moves the frame by
    # a pixel.
    assert np.abs(shown - expected).mean() < 0.03
    assert (note in "".join(series.warnings)) if note else series.warnings == ()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [("CMYK", "JPEG", {}), ("L", "JPEG", {"progressive": True}), ("L", "JPEG", {})],
)
def test_a_jpeg_of_another_kind_is_the_same_slice(
    tmp_path: Path, mode: str, kind: str, options: dict[str, object]
) -> None:
    series = read(
        tmp_path, Image.fromarray(COLORS).convert("RGB").convert(mode), kind, quality=95, **options
    )
    assert np.abs(series.slices[0].pixels - GRAY / 255).mean() < 0.02
    assert series.warnings == ()


def test_a_white_margin_becomes_black_and_is_noted(tmp_path: Path) -> None:
    series = read(tmp_path, Image.fromarray(framed()))
    assert "white margin" in series.warnings[0]
    plain = to_input(Slice(CUT.astype(np.float32) / 255, "display"), InputSpec(size=64))[0]
    np.testing.assert_allclose(to_input(series.slices[0], InputSpec(size=64))[0], plain, atol=1e-6)


def test_a_dark_picture_is_read_and_noted_to_be_dark(tmp_path: Path) -> None:
    assert read(tmp_path, Image.fromarray(GRAY // 4)).warnings == (DARK_NOTE,)


def test_a_cameras_second_picture_is_left_out_with_a_note(tmp_path: Path) -> None:
    twice = Image.fromarray(COLORS)
    series = read(tmp_path, twice, "MPO", save_all=True, append_images=[twice])
    assert len(series.slices) == 1
    assert "only the first was read" in series.warnings[0]


def upside_down_animation(folder: Path) -> Series:
    return read(
        folder, Image.fromarray(GRAY), save_all=True, append_images=[Image.fromarray(255 - GRAY)]
    )


REFUSED: dict[str, tuple[Callable[[Path], Series], str]] = {
    "animated PNG": (upside_down_animation, "animated: it contains 2 images"),
    "1 bit": (
        lambda at: read(at, Image.fromarray(GRAY).convert("1")),
        "fewer than 16 shades of gray",
    ),
    "almost black": (
        lambda at: read(at, Image.fromarray(GRAY // 64)),
        "fewer than 16 shades of gray",
    ),
    "white paper for air": (lambda at: read(at, Image.fromarray(cut_out())), "white background"),
    "HU + 1000, cut off at air": (
        lambda at: read(at, in_16_bits(HU.astype(np.int64) + 1000)),
        "with an unknown offset",
    ),
    "TIFF of floats": (
        lambda at: read(at, Image.fromarray(HU.astype(np.float32)), "TIFF"),
        "not a PNG, JPEG, DICOM or NIfTI",
    ),
    "GIF": (lambda at: read(at, Image.fromarray(GRAY), "GIF"), "not a PNG, JPEG, DICOM or NIfTI"),
    "BMP": (lambda at: read(at, Image.fromarray(GRAY), "BMP"), "not a PNG, JPEG, DICOM or NIfTI"),
    "WebP": (lambda at: read(at, Image.fromarray(GRAY), "WEBP"), "not a PNG, JPEG, DICOM or NIfTI"),
    "too large": (
        lambda at: read(at, Image.fromarray(np.tile(GRAY, (20, 20)))),
        "too large: 5120 x 5120",
    ),
    "tiny": (lambda at: read(at, Image.fromarray(GRAY[100:120, 100:120])), "too small: 20 x 20"),
    "far from square": (
        lambda at: read(at, Image.fromarray(GRAY[:, 100:150])),
        "at most 4 times as long",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_repaired_is_refused_with_a_sentence(
    tmp_path: Path, case: str
) -> None:
    make, sentence = REFUSED[case]
    with pytest.raises(ImageError, match=sentence) as caught:
        make(tmp_path)
    assert str(caught.value).endswith(".")


def test_pictures_in_hu_and_in_gray_do_not_make_one_scan(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "a", format="PNG")
    in_16_bits(HU.astype(np.int64) + 1024).save(tmp_path / "b", format="PNG")
    with pytest.raises(ImageError, match="Some images of the scan have Hounsfield units"):
        read_series([tmp_path / "a", tmp_path / "b"])


def test_padding_around_the_scanned_circle_does_not_hide_where_zero_lies() -> None:
    # As scanners do it: -1024 outside the circle, air a little noisy inside.
    noisy = HU.astype(np.int64) + np.random.default_rng(0).integers(-8, 9, HU.shape)
    rows, columns = np.indices(HU.shape) - 127.5
    padded = np.where(np.hypot(rows, columns) > 120, -1024, noisy)
    stored = padded + 1024
    scale = scale_from_air(stored.astype(np.float64), bits=16).scale
    assert scale is not None
    np.testing.assert_array_equal(scale.pixels(stored), np.clip(padded, -1024, 4095))


# DICOM


def dicom(folder: Path, pixels: np.ndarray | None = None, **tags: object) -> Series:
    """A phantom's DICOM with tags changed, or left out where None, and perhaps other pixels."""
    write_dicom(HU, folder / "slice")
    file = pydicom.dcmread(folder / "slice")
    for name, value in tags.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    if pixels is not None:
        file.PixelData = pixels.tobytes()
    file.save_as(folder / "slice")
    return read_series([folder / "slice"])


EIGHT_BITS = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
NO_RESCALE = {"RescaleSlope": None, "RescaleIntercept": None}


@pytest.mark.parametrize(
    ("pixels", "tags", "note"),
    [
        (None, {}, ""),
        # a bone window is for the viewer; the values are the same
        (None, {"WindowCenter": 600, "WindowWidth": 2800}, ""),
        (None, {"RescaleType": "US"}, ""),
        (None, NO_RESCALE, "an intercept of 0 HU was assumed"),
        (GRAY, {**EIGHT_BITS, **NO_RESCALE}, "8-bit pixels"),
        (
            255 - GRAY,
            {**EIGHT_BITS, **NO_RESCALE, "PhotometricInterpretation": "MONOCHROME1"},
            "8-bit pixels",
        ),
        (None, {"BodyPartExamined": "CHEST"}, "shows CHEST, not a head"),
        (None, {"BodyPartExamined": ""}, ""),
        (None, {"ImageOrientationPatient": None}, "forehead is assumed"),
    ],
)
def test_a_dicom_that_can_be_read_becomes_the_same_input(
    tmp_path: Path, pixels: np.ndarray | None, tags: dict[str, object], note: str
) -> None:
    series = dicom(tmp_path, pixels, **tags)
    expected = to_input(Slice(HU.astype(np.float32), "hu"), InputSpec(size=64))[0]
    np.testing.assert_allclose(
        to_input(series.slices[0], InputSpec(size=64))[0], expected, atol=0.01
    )
    assert (note in "".join(series.warnings)) if note else series.warnings == ()


@pytest.mark.parametrize(
    ("pixels", "tags", "sentence"),
    [
        (None, {"PhotometricInterpretation": "PALETTE COLOR"}, "color image (PALETTE COLOR)"),
        (None, {"PhotometricInterpretation": "RGB"}, "color image (RGB)"),
        (None, {"RescaleType": "MGML"}, "values are MGML, not Hounsfield units"),
        (GRAY.astype(np.int16), {}, "values range from 0 to 255, like those of an ordinary image"),
        (None, {"RescaleSlope": 1000}, "no soft tissue"),
        (
            GRAY.astype(np.uint16) * 16,
            {**NO_RESCALE, "PixelRepresentation": 0, "WindowCenter": 2048, "WindowWidth": 4096},
            "no soft tissue",
        ),
        (None, {"Modality": "PT"}, "its modality is PT"),
        (None, {"NumberOfFrames": 3}, "damaged or incomplete"),
    ],
)
def test_a_dicom_of_another_kind_or_range_is_refused(
    tmp_path: Path, pixels: np.ndarray | None, tags: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ImageError) as caught:
        dicom(tmp_path, pixels, **tags)
    assert sentence in str(caught.value) and str(caught.value).endswith(".")
