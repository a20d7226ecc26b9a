"""Any stored values become the HU or grays that the standards say they mean: computed once more
here, one pixel at a time.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pydicom
from hypothesis import assume, example, given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from ml.errors import ImageError
from ml.scans.dicom import read_planes
from ml.scans.hounsfield import AIR_HU, BRIGHTEST_CORNER_HU, is_clipped_window
from ml.scans.ordering import slices_of
from ml.scans.pictures import read_picture
from ml.scans.slices import Slice, render, window

SIDE = 32
REPAIRED = (
    "sign was ignored.",
    "was subtracted.",
    "was not applied.",
    "were stored as large ones; this was corrected.",
)
a_few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def pixels_of(values: list[int], rim: int, seed: int) -> np.ndarray:
    """Return a picture (32, 32) of these values in some order, all of its rim alike."""
    pixels = np.random.default_rng(seed).choice(np.array(values, np.int64), (SIDE, SIDE))
    pixels[[0, -1]] = rim
    pixels[:, [0, -1]] = rim
    return pixels


def each(pixels: np.ndarray, meaning: Callable[[int], float]) -> np.ndarray:
    """Return what `meaning` says of each pixel, float32."""
    return np.array([[meaning(int(value)) for value in row] for row in pixels], np.float32)


def dicom_of(
    words: np.ndarray, allocated: int, stored: int, signed: bool, **tags: object
) -> io.BytesIO:
    """Return a DICOM file of these words, the bits of the value and whatever lies above them; tags
    that are None are left out.
    """
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid(
        entropy_srcs=["a slice"]
    )
    file.Modality, file.SamplesPerPixel = "CT", 1
    file.Rows, file.Columns = words.shape
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = (
        allocated,
        stored,
        stored - 1,
        int(signed),
    )
    file.PixelData = words.astype("<u2" if allocated == 16 else "u1").tobytes()
    file["PixelData"].VR = "OW" if allocated == 16 else "OB"
    for name, value in tags.items():
        if value is not None:
            file.add_new(name, "SS" if signed else "US", value) if name.startswith(
                "PixelPadding"
            ) else setattr(file, name, value)
    content = io.BytesIO()
    pydicom.dcmwrite(content, file, enforce_file_format=True)
    content.seek(0)
    return content


def one_slice_with_notes(file: io.BytesIO) -> tuple[Slice, list[str]]:
    slices, notes = slices_of(read_planes(file, max_pixels=10_000, max_slices=1))
    return slices[0], notes


def one_slice(file: io.BytesIO) -> Slice:
    return one_slice_with_notes(file)[0]


@a_few
@given(
    st.lists(st.integers(-1024, 4095), min_size=1, max_size=40),
    st.integers(-200, 800),
    st.integers(1, 4000),
)
def test_a_window_is_a_line_between_black_and_white(
    values: list[int], level: int, width: int
) -> None:
    hu = np.array([values], np.float32)
    exact = [
        min(max((Fraction(value) - level + Fraction(width, 2)) / width, Fraction(0)), Fraction(1))
        for value in values
    ]
    shown = window(hu, level, width)
    assert shown.dtype == np.float32
    np.testing.assert_allclose(shown[0], [float(share) for share in exact], rtol=0, atol=1e-6)
    assert [share in (0, 1) for share in exact] == [value in (0, 1) for value in shown[0].tolist()]
    picture = np.asarray(render(Slice(hu, "hu"), 1000, level, width), np.float64)
    assert np.abs(picture[0] - [float(255 * share) for share in exact]).max() <= 0.501


@st.composite
def ct_values(draw: st.DrawFn) -> tuple[int, bool, np.ndarray]:
    """Bits that are stored, whether they are signed, and a picture of such values."""
    bits, signed = draw(st.sampled_from([12, 12, 9, 10, 15, 16])), draw(st.booleans())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    value = st.integers(low, high) | st.sampled_from(
        [edge for edge in (low, -1, 0, 3095, 3096, high) if low <= edge <= high]
    )
    return (
        bits,
        signed,
        pixels_of(
            draw(st.lists(value, min_size=1, max_size=8)), draw(value), draw(st.integers(0, 1000))
        ),
    )


def marked_as_padding(
    pixels: np.ndarray, padded: str, hu_by_tags: Callable[[int], Fraction] | None
) -> np.ndarray:
    """Return the mask of what a file marks with the value at [1, 1], or the range from there to
    the value of the rim. Of values of tissue, only what is connected with the rim counts, and of
    a range from air to tissue only the value. `hu_by_tags` is None if the tags do not say what is
    tissue.
    """
    low, high = sorted((int(pixels[1, 1]), int(pixels[0, 0])))
    if padded == "nothing":
        return np.zeros(pixels.shape, bool)
    if padded == "a value":
        low = high = int(pixels[1, 1])
    marked = (pixels >= low) & (pixels <= high)
    if hu_by_tags is None:
        return marked
    ends = sorted((hu_by_tags(low), hu_by_tags(high)))
    if ends[0] < -200 <= ends[1]:
        marked = pixels == pixels[1, 1]
    if ends[1] < -200 or ends[0] > 200:
        return marked
    bodies, _ = ndimage.label(np.pad(marked, 1, constant_values=True))
    return np.asarray(bodies[1:-1, 1:-1] == bodies[0, 0]) & marked[0, 0]


@a_few
@given(
    ct_values(),
    st.sampled_from([None, "1", "0.5", "2", "-1", "1.25"]),
    st.sampled_from([None, "0", "-1024", "-1000", "24.5"]),
    st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    st.sampled_from(["nothing", "a value", "a range"]),
    st.integers(0, 2**16 - 1),
)
@example((12, False, pixels_of([3095, 3096], 10, 0)), "1", "0", "MONOCHROME2", "nothing", 0)
def test_any_ct_values_become_their_hounsfield_units(
    given_values: tuple[int, bool, np.ndarray],
    slope: str | None,
    intercept: str | None,
    photometric: str,
    padded: str,
    above: int,
) -> None:
    bits, signed, pixels = given_values
    everything = [int(value) for value in pixels.ravel()]
    padding, limit = int(pixels[1, 1]), int(pixels[0, 0])
    tags = {
        "PixelPaddingValue": None if padded == "nothing" else padding,
        "PixelPaddingRangeLimit": limit if padded == "a range" else None,
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "PhotometricInterpretation": photometric,
    }

    def tag_scale(value: int) -> Fraction:
        return Fraction(value) * Fraction(slope or "1") + Fraction(intercept or "0")

    # an old overlay lies in the bits that are not stored
    words = (pixels & (2**bits - 1)) | ((above << bits) & 0xFFFF)

    rim = [*pixels[0], *pixels[-1], *pixels[:, 0], *pixels[:, -1]]
    turned = photometric == "MONOCHROME1" and statistics.median(map(int, rim)) > Fraction(
        sum(everything), len(everything)
    )
    upright = [
        ((-1 if signed else 2**bits - 1) - value) if turned else value for value in everything
    ]
    wrapped = (
        bits == 12
        and not signed
        and intercept is not None
        and float(intercept) == 0
        and max(upright) >= 3096
    )
    marked = marked_as_padding(
        pixels, padded, hu_by_tags=None if intercept is None and not signed else tag_scale
    )
    scanned = [value for value, is_out in zip(upright, marked.ravel(), strict=True) if not is_out]
    try:
        result, notes = one_slice_with_notes(dicom_of(words, 16, bits, signed, **tags))
    except ImageError as err:
        assert "unknown offset" in str(err)  # Values that fit two scales (test_hounsfield.py).
        reject()
    # What looks like a head on another scale is repaired, and gray values that are marked as
    # inverted are read as they stand if only so they are those of a head (test_hounsfield.py).
    assume(not any(note.endswith(REPAIRED) for note in notes))
    assume(not turned or any("inverted" in note for note in notes))
    assumed = 0 if min(scanned, default=0) < 0 else -1024
    if any("an intercept of -1000 HU was assumed" in note for note in notes):
        assert assumed == -1024 and 0 in scanned  # air, and a brain that is too dark with 1024
        assumed = -1000

    def hounsfield(value: int) -> float:
        if turned:
            value = (-1 if signed else 2**bits - 1) - value
        if wrapped and value >= 3096:
            value -= 4096
        hu = Fraction(value) * Fraction(slope or "1") + Fraction(
            assumed if intercept is None else intercept
        )
        return -1000.0 if hu > 30710 else float(min(max(hu, Fraction(-1024)), Fraction(4095)))

    assert result.unit == "hu"
    expected = np.where(marked, np.float32(-1000), each(pixels, hounsfield))
    if expected[0, 0] > BRIGHTEST_CORNER_HU and result.pixels[0, 0] == AIR_HU:
        expected[pixels == pixels[0, 0]] = AIR_HU  # a white frame around soft tissue
    np.testing.assert_array_equal(result.pixels, expected)


@a_few
@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=12),
    st.integers(0, 255),
    st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
def test_eight_bits_are_grays_and_monochrome1_is_white_at_zero(
    values: list[int], rim: int, photometric: str
) -> None:
    pixels = pixels_of(values, rim, 0)
    assume(not is_clipped_window(pixels))  # HU of a brain window (test_hounsfield.py)
    result = one_slice(dicom_of(pixels, 8, 8, False, PhotometricInterpretation=photometric))
    assert result.unit == "display"
    expected = each(
        pixels, lambda value: (255 - value if photometric == "MONOCHROME1" else value) / 255
    )
    np.testing.assert_allclose(result.pixels, expected, rtol=0, atol=1e-7)


COLORS = st.tuples(
    st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.sampled_from([0, 255])
)


@a_few
@given(st.lists(COLORS, min_size=1, max_size=16), st.integers(0, 1000))
def test_a_palette_shows_the_luminance_of_its_colors_and_black_where_it_is_transparent(
    palette: list[tuple[int, int, int, int]], seed: int
) -> None:
    black = (0, 0, 0, 255)
    palette = [black, *palette]
    indices = pixels_of(list(range(len(palette))), 0, seed)
    picture = Image.fromarray(indices.astype(np.uint8)).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette([channel for color in palette for channel in color[:3]])
    content = io.BytesIO()
    picture.save(content, "PNG", transparency=bytes(color[3] for color in palette))
    content.seek(0)

    def luminance(index: int) -> float:
        """ITU-R BT.601, to the nearest of 255 grays."""
        red, green, blue, opacity = palette[index]
        return 0 if opacity == 0 else int((299 * red + 587 * green + 114 * blue) / 1000 + 0.5) / 255

    result, notes = read_picture(content, 10_000)
    assert result.unit == "display"
    np.testing.assert_allclose(result.pixels, each(indices, luminance), rtol=0, atol=1.01 / 255)
    shown = {palette[index] for index in indices.ravel()}
    colored = sum(
        max(color[:3]) - min(color[:3]) > 24 and color[3] == 255
        for color in (palette[index] for index in indices.ravel())
    )
    assert any("in color" in note for note in notes) == (colored > 0.001 * indices.size)
    assert any("transparent" in note for note in notes) == any(color[3] == 0 for color in shown)


@a_few
@given(
    st.sampled_from(
        [
            (255, st.integers(0, 255)),
            (4095, st.integers(256, 900) | st.integers(1400, 4095)),
            (65535, st.integers(5000, 30000)),
        ]
    ),
    st.data(),
)
def test_sixteen_bits_that_are_no_ct_values_are_grays_of_the_range_in_use(
    kind: tuple[int, st.SearchStrategy[int]], data: st.DataObject
) -> None:
    white, values = kind
    pixels = pixels_of(data.draw(st.lists(values, min_size=1, max_size=12)), 0, 0)
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16)).save(content, "PNG")
    content.seek(0)
    result, _ = read_picture(content, 10_000)
    assert result.unit == "display"
    np.testing.assert_allclose(
        result.pixels, each(pixels, lambda value: value / white), rtol=0, atol=1e-6
    )
