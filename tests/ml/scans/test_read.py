from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from ml.errors import ImageError
from ml.scans.phantoms import phantom, write_dicom
from ml.scans.read import DARK_NOTE, read_series
from ml.scans.slices import Slice, gray_of, render, rendered_size
from tests.ml.made_scans import change

RAMP = np.tile(np.arange(64, dtype=np.uint8), (64, 1))  # its brightest pixel is 63


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    return phantom(1, hemorrhage=False, size=128)


@pytest.fixture
def dicom(tmp_path: Path, hu: np.ndarray) -> Callable[..., Path]:
    """`dicom(Rows=…)` writes a phantom's DICOM with these tags changed, or left out where None."""

    def write(**changed: object) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        write_dicom(hu, path)
        return change(path, **changed)

    return write


def saved(folder: Path, picture: Image.Image, kind: str = "PNG", **options: object) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.of-no-matter"
    picture.save(path, format=kind, **options)
    return path


def pixels_of(path: Path) -> np.ndarray:
    return read_series([path]).slices[0].pixels


# Pictures


def test_an_8_bit_png_becomes_gray_0_to_1(tmp_path: Path) -> None:
    series = read_series([saved(tmp_path, Image.fromarray(RAMP))])
    (slice,) = series.slices
    np.testing.assert_array_equal(slice.pixels, RAMP.astype(np.float32) / np.float32(255))
    assert (slice.unit, slice.spacing_mm, series.warnings) == ("display", None, (DARK_NOTE,))
    assert slice.pixels.dtype == np.float32


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_gray_in_another_mode_is_the_same_picture(tmp_path: Path, mode: str) -> None:
    series = read_series([saved(tmp_path, Image.fromarray(RAMP).convert(mode))])
    np.testing.assert_allclose(series.slices[0].pixels, RAMP / 255, atol=1e-6)
    assert series.warnings == (DARK_NOTE,)


def test_a_16_bit_png_keeps_its_full_range(tmp_path: Path) -> None:
    values = RAMP.astype(np.uint16) * 1000
    np.testing.assert_allclose(
        pixels_of(saved(tmp_path, Image.fromarray(values))), values / 65535, atol=1e-6
    )


def test_12_bits_in_a_16_bit_png_are_read_as_its_range_and_noted(tmp_path: Path) -> None:
    values = RAMP.astype(np.uint16) * 65
    series = read_series([saved(tmp_path, Image.fromarray(values))])
    np.testing.assert_allclose(series.slices[0].pixels, values / 4095, atol=1e-6)
    assert "only 12 bits" in series.warnings[0]


def png_of_16_bits(values: np.ndarray) -> bytes:
    """Return a PNG of gray, gray and opacity, colors, or colors and opacity, by the last axis."""
    height, width, channels = values.shape
    chunks = (
        (b"IHDR", struct.pack(">2I5B", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)),
        (b"eXIf", b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 3, 0, 0)),
        (
            b"IDAT",
            zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)),
        ),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_kept_beside_transparency_and_in_colors(
    tmp_path: Path, hu: np.ndarray, channels: int
) -> None:
    values = np.repeat(hu[::-1, ::-1, np.newaxis].astype(np.int32) + 1024, channels, axis=2)
    if channels in (2, 4):
        values[..., -1] = 65535
    path = tmp_path / "picture"
    path.write_bytes(png_of_16_bits(values))  # half a turn, as its orientation says
    series = read_series([path])
    np.testing.assert_array_equal(series.slices[0].pixels, hu)
    assert len(series.warnings) == 1 and "Hounsfield units" in series.warnings[0]
    if channels in (2, 4):
        shown = np.clip(values, 1024, 1104) * 16
        shown[..., -1] = 65535
        shown[:4, :4, -1] = 0
        path.write_bytes(png_of_16_bits(shown))
        series = read_series([path])
        assert (series.slices[0].pixels[-4:, -4:] == 0).all()
        assert (series.slices[0].pixels[:-4] * 65535 == shown[:3:-1, ::-1, 0]).all()
        assert "transparent parts" in series.warnings[0]
    if channels in (3, 4):
        values[60:70, 60:70, 0] = 0
        path.write_bytes(png_of_16_bits(values))
        series = read_series([path])
        np.testing.assert_array_equal(series.slices[0].pixels[:50], hu[:50])
        assert "converted to gray" in series.warnings[0]


def test_a_bright_marker_around_ct_values_in_a_16_bit_png_is_air(tmp_path: Path) -> None:
    hu = phantom(1, hemorrhage=True, size=128).astype(np.int64)
    around = np.hypot(*np.indices(hu.shape) - 63.5) > 62
    stored = np.where(around, 63536, hu + 1024).astype(np.uint16)
    np.testing.assert_array_equal(
        pixels_of(saved(tmp_path, Image.fromarray(stored))), np.where(around, -1000, hu)
    )


def test_colors_are_removed_and_noted(tmp_path: Path) -> None:
    tinted = np.stack([RAMP, RAMP, RAMP + 60], axis=-1)
    series = read_series([saved(tmp_path, Image.fromarray(tinted))])
    assert series.warnings == ("The image was in color and was converted to gray.", DARK_NOTE)
    assert series.slices[0].pixels.shape == (64, 64)


def test_transparent_parts_become_black_and_are_noted(tmp_path: Path) -> None:
    rgba = np.dstack([np.dstack([RAMP + 137] * 3), np.where(RAMP < 32, 0, 255).astype(np.uint8)])
    series = read_series([saved(tmp_path, Image.fromarray(rgba))])
    assert series.slices[0].pixels[0, 0] == 0
    assert series.slices[0].pixels[0, 63] == pytest.approx(200 / 255)
    assert "transparent" in series.warnings[0]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_of_any_mode_is_read(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP).convert(mode), "JPEG", quality=95)
    np.testing.assert_allclose(pixels_of(path), RAMP / 255, atol=0.02)


def test_a_jpeg_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = saved(tmp_path, Image.fromarray(RAMP), "JPEG", quality=95, exif=exif)
    np.testing.assert_allclose(pixels_of(path), RAMP[::-1, ::-1] / 255, atol=0.02)


def test_several_pictures_stay_in_the_order_given(tmp_path: Path) -> None:
    paths = [saved(tmp_path, Image.fromarray(RAMP + shift)) for shift in (20, 0, 10)]
    series = read_series(paths)
    assert [round(float(slice.pixels.min()) * 255) for slice in series.slices] == [20, 0, 10]
    assert "in the order given" in series.warnings[0]


# What is refused


def test_a_huge_png_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    for side in (9_000, 12_000, 30_000):  # below, between and above Pillow's own two limits
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        path = tmp_path / str(side)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", b"")
            + chunk(b"IEND", b"")
        )
        with pytest.raises(ImageError, match="too large"):
            read_series([path])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"Dear doctor, the scan is attached.", "not a PNG, JPEG, DICOM or NIfTI"),
        (b"GIF89a" + bytes(200), "not a PNG, JPEG, DICOM or NIfTI"),
        (b"\x89PNG\r\n\x1a\n", "damaged or incomplete"),
        (b"\xff\xd8\xff\xe0" + bytes(300), "damaged or incomplete"),
        (bytes(128) + b"DICM", "transfer syntax"),
        (bytes(128) + b"DICM" + b"\xff" * 500, "The DICOM file"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused_with_a_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "scan.png").write_bytes(content)
    with pytest.raises(ImageError, match=sentence) as caught:
        read_series([tmp_path / "scan.png"])
    assert str(caught.value).endswith(".")
    assert "scan.png" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, kind: str, hu: np.ndarray) -> None:
    whole = tmp_path / "whole"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    write_dicom(hu, whole) if kind == "DICOM" else Image.fromarray(noise).save(whole, format=kind)
    content = whole.read_bytes()
    for share in (0.02, 0.1, 0.3, 0.6, 0.9):
        (tmp_path / "cut").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ImageError):
            read_series([tmp_path / "cut"])


def test_flipped_bytes_give_a_slice_or_an_image_error_and_nothing_else(
    tmp_path: Path, dicom: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(5)
    for source in (
        saved(tmp_path, Image.fromarray(RAMP)),
        saved(tmp_path, Image.fromarray(RAMP), "JPEG"),
        dicom(),
    ):
        content = np.frombuffer(source.read_bytes(), np.uint8)
        head = min(len(content), 1800)  # where headers lie
        for _ in range(60):
            broken = content.copy()
            broken[rng.integers(8, head, 4)] = rng.integers(0, 256, 4)
            (tmp_path / "broken").write_bytes(broken.tobytes())
            try:
                assert np.isfinite(pixels_of(tmp_path / "broken")).all()
            except ImageError as err:
                assert str(err).endswith(".")


def test_a_blank_a_tiny_and_a_too_heavy_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="blank"):
        read_series([saved(tmp_path, Image.new("L", (64, 64), 7))])
    with pytest.raises(ImageError, match="too small: 31 x 64"):
        read_series([saved(tmp_path, Image.fromarray(RAMP[:, :31]))])
    with pytest.raises(ImageError, match="too large: more than"):
        read_series([saved(tmp_path, Image.fromarray(RAMP))], max_bytes=50)


def test_no_files_too_many_files_and_mixed_kinds_are_refused(
    tmp_path: Path, dicom: Callable[..., Path]
) -> None:
    picture = saved(tmp_path, Image.fromarray(RAMP))
    with pytest.raises(ImageError, match="no file"):
        read_series([])
    with pytest.raises(ImageError, match="3 files; at most 2"):
        read_series([picture] * 3, max_slices=2)
    with pytest.raises(ImageError, match="mixes DICOM and PNG"):
        read_series([picture, dicom()])
    with pytest.raises(ImageError, match="cannot be opened"):
        read_series([tmp_path])


def test_the_error_of_one_file_among_several_names_it_and_not_its_folder(
    tmp_path: Path, dicom: Callable[..., Path]
) -> None:
    picture, slice_ = saved(tmp_path, Image.fromarray(RAMP)), dicom()
    empty, text, cut = (tmp_path / name for name in ("empty.png", "text.png", "cut.png"))
    empty.touch()
    text.write_text("hello")
    cut.write_bytes(picture.read_bytes()[:60])
    for good, bad in (
        (picture, empty),
        (slice_, text),
        (picture, cut),
        (picture, tmp_path / "gone.png"),
    ):
        with pytest.raises(ImageError, match=f"^{bad.name}: The ") as several:
            read_series([good, bad])
        assert str(tmp_path) not in str(several.value)
        with pytest.raises(ImageError) as alone:
            read_series([bad])
        assert str(several.value) == f"{bad.name}: {alone.value}"


# DICOM


def test_a_dicom_is_read_in_hounsfield_units(dicom: Callable[..., Path], hu: np.ndarray) -> None:
    series = read_series([dicom()])
    (slice,) = series.slices
    np.testing.assert_array_equal(slice.pixels, hu.astype(np.float32))
    assert (slice.unit, slice.spacing_mm, series.warnings) == ("hu", (1.796875, 1.796875), ())


def test_slope_and_intercept_are_applied(dicom: Callable[..., Path], hu: np.ndarray) -> None:
    path = dicom(
        RescaleSlope=2,
        RescaleIntercept=-1024,
        PixelData=((hu.astype(np.int32) + 1024) // 2).astype("<i2").tobytes(),
    )
    np.testing.assert_allclose(pixels_of(path), hu, atol=1)


def test_unsigned_12_bits_in_16_ignore_what_lies_above_them(
    dicom: Callable[..., Path], hu: np.ndarray
) -> None:
    # an old overlay in the unused bits
    stored = (hu.astype(np.int32) + 1024).clip(0, 4095) | 0x7000
    path = dicom(
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
        RescaleIntercept=-1024,
        PixelData=stored.astype("<u2").tobytes(),
    )
    np.testing.assert_array_equal(pixels_of(path), hu)


def test_signed_12_bits_in_16_keep_their_sign(dicom: Callable[..., Path], hu: np.ndarray) -> None:
    stored = hu.astype(np.int32) & 0x0FFF
    path = dicom(BitsStored=12, HighBit=11, PixelData=stored.astype("<u2").tobytes())
    np.testing.assert_array_equal(pixels_of(path), hu)


def test_missing_rescale_values_are_assumed_and_noted(
    dicom: Callable[..., Path], hu: np.ndarray
) -> None:
    signed = read_series([dicom(RescaleSlope=None, RescaleIntercept=None)])
    np.testing.assert_array_equal(signed.slices[0].pixels, hu)
    assert "intercept of 0 HU was assumed" in signed.warnings[0]
    shifted = (hu.astype(np.int32) + 1024).astype("<i2").tobytes()
    unsigned = read_series(
        [dicom(RescaleSlope=None, RescaleIntercept=None, PixelRepresentation=0, PixelData=shifted)]
    )
    np.testing.assert_array_equal(unsigned.slices[0].pixels, hu)
    assert "intercept of -1024 HU was assumed" in unsigned.warnings[0]
    shifted = (hu.astype(np.int32) + 1000).clip(0).astype("<i2").tobytes()
    unsigned = read_series(
        [dicom(RescaleSlope=None, RescaleIntercept=None, PixelRepresentation=0, PixelData=shifted)]
    )
    np.testing.assert_array_equal(unsigned.slices[0].pixels, hu.clip(-1000))
    assert "intercept of -1000 HU was assumed" in unsigned.warnings[0]


def test_negative_values_wrapped_into_12_bits_are_put_right(
    dicom: Callable[..., Path], hu: np.ndarray
) -> None:
    path = dicom(
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
        PixelData=(hu.astype(np.int32) & 0x0FFF).astype("<u2").tobytes(),
    )
    series = read_series([path])
    np.testing.assert_array_equal(series.slices[0].pixels, hu)
    assert "wrapped around" in series.warnings[0]


UNSIGNED: dict[str, object] = {"PixelRepresentation": 0, "RescaleIntercept": -1024}


def words(hu: np.ndarray, added: int = 1024, shift: int = 0) -> bytes:
    return ((hu.astype(np.int32) + added).clip(0, 4095) << shift).astype("<u2").tobytes()


@pytest.mark.parametrize(
    ("stored", "tags"),
    [
        ((1024, 4), {**UNSIGNED, "BitsStored": 12, "HighBit": 15}),
        ((1024, 0), {**UNSIGNED, "BitsStored": 12, "HighBit": 15}),
        ((1024, 0), {"RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 11}),
        ((1024, 0), {**UNSIGNED, "BitsStored": 0}),
        ((1000, 0), {**UNSIGNED, "RescaleIntercept": ["-1000", ""]}),
        ((1000, 0), {**UNSIGNED, "RescaleIntercept": [-1000, -1000]}),
        ((1024, 0), {**UNSIGNED, "SamplesPerPixel": None, "PhotometricInterpretation": None}),
        ((1024, 0), {**UNSIGNED, "BitsStored": None, "BitsAllocated": None, "HighBit": None}),
        ((1024, 0), {**UNSIGNED, "PixelRepresentation": None}),
    ],
    ids=[
        "the highest bits",
        "the lowest bits, of which the header says otherwise",
        "not signed, although the header says so",
        "no bits",
        "an empty value at the end",
        "a value that is there twice",
        "no word of gray",
        "no number of bits",
        "no word of a sign",
    ],
)
def test_pixels_that_are_described_wrongly_or_not_at_all_are_hounsfield_units(
    dicom: Callable[..., Path], hu: np.ndarray, stored: tuple[int, int], tags: dict[str, object]
) -> None:
    path = dicom(**{"PixelData": words(hu, *stored), **tags})
    np.testing.assert_array_equal(pixels_of(path), hu.clip(-stored[0], 4095 - stored[0]))


def test_an_overlay_below_the_numbers_is_no_part_of_them(
    dicom: Callable[..., Path], hu: np.ndarray
) -> None:
    stored = np.frombuffer(words(hu, 1024, 4), "<u2").reshape(hu.shape).copy()
    stored[40:60, 40:60] |= 1
    path = dicom(**UNSIGNED, BitsStored=12, HighBit=15, PixelData=stored.tobytes())
    np.testing.assert_array_equal(pixels_of(path), hu)


def test_one_pixel_size_is_that_of_both_sides(dicom: Callable[..., Path]) -> None:
    path = dicom(PixelSpacing=None)
    file = pydicom.dcmread(path)
    file.add_new("PixelSpacing", "DS", "0.5")
    file.save_as(path)
    assert read_series([path]).slices[0].spacing_mm == (0.5, 0.5)


def test_a_padding_value_that_is_tissue_is_none(dicom: Callable[..., Path], hu: np.ndarray) -> None:
    path = dicom()
    file = pydicom.dcmread(path)
    file.add_new("PixelPaddingValue", "SS", 0)
    file.save_as(path)
    assert (hu == 0).any()
    np.testing.assert_array_equal(pixels_of(path), hu)


def test_padding_becomes_air_and_markers_are_clipped(
    dicom: Callable[..., Path], hu: np.ndarray
) -> None:
    marked = hu.copy()
    marked[:10] = 2000
    marked[-10:] = -3000
    path = dicom(PixelData=marked.tobytes())
    file = pydicom.dcmread(path)
    file.add_new("PixelPaddingValue", "SS", 2000)
    file.save_as(path)
    pixels = pixels_of(path)
    assert (pixels[:10] == -1000).all()
    assert (pixels[-10:] == -1024).all()
    np.testing.assert_array_equal(pixels[10:-10], hu[10:-10])


def test_monochrome1_changes_nothing_unless_the_values_are_upside_down(
    dicom: Callable[..., Path], hu: np.ndarray
) -> None:
    np.testing.assert_array_equal(pixels_of(dicom(PhotometricInterpretation="MONOCHROME1")), hu)
    stored = 4095 - (hu.astype(np.int32) + 1024)
    path = dicom(
        PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, PixelRepresentation=0,
        RescaleIntercept=-1024, PixelData=stored.astype("<u2").tobytes(),
    )  # fmt: skip
    series = read_series([path])
    np.testing.assert_array_equal(series.slices[0].pixels, hu)
    assert "inverted" in series.warnings[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_pixels_are_read(
    tmp_path: Path, dicom: Callable[..., Path], hu: np.ndarray, syntax: pydicom.uid.UID
) -> None:
    file = pydicom.dcmread(dicom())
    file.compress(syntax)
    file.save_as(tmp_path / "compressed")
    np.testing.assert_array_equal(pixels_of(tmp_path / "compressed"), hu)


def test_a_jpeg_coded_dicom_of_8_bits_is_read_as_a_picture(
    tmp_path: Path, dicom: Callable[..., Path]
) -> None:
    coded = io.BytesIO()
    Image.fromarray(np.tile(RAMP, (2, 2))).save(coded, format="JPEG", quality=95)
    file = pydicom.dcmread(dicom(BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0))
    file.PixelData = encapsulate([coded.getvalue()])
    file["PixelData"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    file.save_as(tmp_path / "jpeg")
    series = read_series([tmp_path / "jpeg"])
    assert series.slices[0].unit == "display"
    np.testing.assert_allclose(series.slices[0].pixels, np.tile(RAMP, (2, 2)) / 255, atol=0.02)
    assert "without Hounsfield units" in series.warnings[0]


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_rows_and_columns_that_the_header_exchanges_are_exchanged_back(
    tmp_path: Path, hu: np.ndarray, syntax: str | None
) -> None:
    write_dicom(hu[8:-8], tmp_path / "slice")
    file = pydicom.dcmread(tmp_path / "slice")
    file.save_as(tmp_path / "oblong")
    if syntax:
        file.compress(syntax)
    file.Rows, file.Columns = file.Columns, file.Rows
    file.save_as(tmp_path / "slice")
    series = read_series([tmp_path / "slice"])
    np.testing.assert_array_equal(series.slices[0].pixels, hu[8:-8])
    assert series.warnings == (
        "The DICOM file's header exchanges rows and columns; this was corrected.",
    )
    assert read_series([tmp_path / "oblong"]).warnings == ()


def test_a_compressed_stream_larger_than_announced_is_refused(
    tmp_path: Path, dicom: Callable[..., Path]
) -> None:
    file = pydicom.dcmread(dicom())
    file.compress(JPEG2000Lossless)
    stream = bytearray(file.PixelData)
    at = stream.index(b"\xff\x4f\xff\x51") + 8
    stream[at : at + 8] = struct.pack(">2I", 60_000, 60_000)
    file.PixelData = bytes(stream)
    file.save_as(tmp_path / "bomb")
    with pytest.raises(
        ImageError, match="declares 128 x 128 pixels, but 60000 x 60000 are encoded"
    ):
        read_series([tmp_path / "bomb"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"PixelData": None}, "contains no image"),
        ({"Modality": "MR"}, "not a CT image: its modality is MR"),
        ({"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "modality is unknown"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"NumberOfFrames": 12}, "damaged or incomplete"),
        ({"SamplesPerPixel": 3}, "color image"),
        ({"Rows": 30000, "Columns": 30000}, "too large: 30000 x 30000"),
        ({"Rows": None}, "damaged or incomplete"),
        ({"Rows": 129}, "damaged or incomplete"),
        ({"RescaleSlope": 0}, "rescale slope is 0"),
        (
            {"PixelData": np.tile(np.arange(2000, 2128, dtype="<i2"), (128, 1)).tobytes()},
            "shows no brain: its values range from 2000 to 2127",
        ),
        ({"PixelData": bytes(128 * 128 * 2)}, "blank"),
    ],
)
def test_a_dicom_that_is_no_ct_slice_is_refused(
    dicom: Callable[..., Path], changed: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ImageError, match=sentence):
        read_series([dicom(**changed)])


def test_a_missing_modality_is_forgiven_to_a_ct_image(
    dicom: Callable[..., Path], hu: np.ndarray
) -> None:
    np.testing.assert_array_equal(pixels_of(dicom(Modality=None)), hu)


def test_a_deflated_dicom_is_refused_before_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dicom: Callable[..., Path]
) -> None:
    file = pydicom.dcmread(dicom())
    file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file.save_as(tmp_path / "deflated")
    monkeypatch.setattr(
        "pydicom.filereader.zlib.decompress", lambda *_: pytest.fail("it was inflated")
    )
    with pytest.raises(ImageError, match="Deflated Explicit VR Little Endian"):
        read_series([tmp_path / "deflated"])


def test_slices_are_ordered_from_foot_to_head(tmp_path: Path, hu: np.ndarray) -> None:
    for number, position in enumerate((5.0, -5.0, 0.0), start=1):
        marked = hu.copy()
        marked[0, 0] = position
        write_dicom(marked, tmp_path / str(number), number=number, position_mm=position)
    series = read_series([tmp_path / "1", tmp_path / "2", tmp_path / "3"])
    assert [float(slice.pixels[0, 0]) for slice in series.slices] == [-5, 0, 5]
    assert series.warnings == ()


def test_slices_without_a_position_are_ordered_by_number_with_a_note(
    tmp_path: Path, hu: np.ndarray
) -> None:
    for number in (2, 1):
        marked = hu.copy()
        marked[0, 0] = number
        write_dicom(marked, tmp_path / str(number), number=number)
        file = pydicom.dcmread(tmp_path / str(number))
        del file.ImagePositionPatient
        file.save_as(tmp_path / str(number))
    series = read_series([tmp_path / "2", tmp_path / "1"])
    assert [float(slice.pixels[0, 0]) for slice in series.slices] == [1, 2]
    assert "ordered by instance number" in series.warnings[0]


def test_a_series_may_have_slices_of_air_but_not_only(tmp_path: Path, hu: np.ndarray) -> None:
    air = np.full_like(hu, -1000)
    write_dicom(hu, tmp_path / "head", number=1)
    write_dicom(air, tmp_path / "air", number=2, position_mm=5)
    assert len(read_series([tmp_path / "head", tmp_path / "air"]).slices) == 2
    with pytest.raises(ImageError, match="blank"):
        read_series([tmp_path / "air"])


def test_a_word_from_a_file_is_quoted_without_control_characters_and_never_logged(
    dicom: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = dicom()
    path.write_bytes(path.read_bytes().replace(b"CS\x02\x00CT", b"CS\x02\x00M\x1b"))
    with pytest.raises(ImageError, match=r"its modality is M\.$"):
        read_series([path])
    assert caplog.text == ""


def test_files_of_two_series_are_refused(tmp_path: Path, hu: np.ndarray) -> None:
    write_dicom(hu, tmp_path / "a", series="a")
    write_dicom(hu, tmp_path / "b", series="b")
    with pytest.raises(ImageError, match="2 different series"):
        read_series([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        ([-1, 0, 0, 0, 1, 0], lambda pixels: pixels[:, ::-1]),
        ([1, 0, 0, 0, -1, 0], lambda pixels: pixels[::-1]),
        ([-1, 0, 0, 0, -1, 0], lambda pixels: pixels[::-1, ::-1]),
        ([0, 1, 0, 1, 0, 0], lambda pixels: pixels.T),
    ],
)
def test_a_slice_is_turned_upright(
    dicom: Callable[..., Path],
    hu: np.ndarray,
    orientation: list[int],
    turned: Callable[[np.ndarray], np.ndarray],
) -> None:
    stored = np.ascontiguousarray(turned(hu))  # each of these turns undoes itself
    np.testing.assert_array_equal(
        pixels_of(dicom(ImageOrientationPatient=orientation, PixelData=stored.tobytes())), hu
    )


def test_real_slices_are_read(shared_data: Path) -> None:
    for path in sorted((shared_data / "dicom_samples" / "single").glob("*.dcm")):
        (slice,) = read_series([path]).slices
        assert (slice.unit, slice.pixels.shape) == ("hu", (512, 512)), path.name
        assert -1024 <= slice.pixels.min() < -990 < 1000 < slice.pixels.max(), path.name


# Rendering


def test_hu_are_rendered_through_the_window() -> None:
    slice = Slice(np.array([[-50, 0], [40, 100]], np.float32), "hu")
    np.testing.assert_array_equal(np.asarray(render(slice, 10)), np.array([[0, 0], [128, 255]]))
    np.testing.assert_array_equal(
        np.asarray(render(slice, 10, window_level=0, window_width=200)),
        np.array([[64, 128], [178, 255]]),
    )


def test_grays_are_hu_in_the_window_or_display_values_as_they_are() -> None:
    hu = Slice(np.array([[-50, 0], [40, 100]], np.float32), "hu")
    assert gray_of(hu).tolist() == [[0, 0], [0.5, 1]]
    assert gray_of(hu, 0, 200).tolist() == [[0.25, 0.5], [pytest.approx(0.7), 1]]
    shown = gray_of(Slice(np.array([[-0.5, 0.25], [1, 2]], np.float32), "display"), 0, 200)
    assert shown.tolist() == [[0, 0.25], [1, 1]] and shown.dtype == np.float32


def test_a_render_keeps_the_aspect_and_never_enlarges() -> None:
    slice = Slice(np.zeros((100, 50), np.float32), "display")
    assert render(slice, 1000).size == (50, 100)
    assert render(slice, 20).size == (10, 20)
    assert render(slice, 20).mode == "L"
    assert rendered_size((1000, 1), 10) == (1, 10)


def test_a_picture_far_from_square_is_refused(tmp_path: Path) -> None:
    # Padded to a square, 40 x 8000 pixels would be 8000 x 8000.
    Image.new("L", (40, 8000), 90).save(tmp_path / "thin.png")
    with pytest.raises(ImageError, match="40 x 8000 pixels; a slice is at most 4 times as long"):
        read_series([tmp_path / "thin.png"])
