"""The volume that a viewer loads: a NIfTI file like any other, of which one slice can be read
alone.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ml.scans.read import read_series
from ml.scans.slices import Series, Slice
from ml.scans.volume import has_volume, write_volume
from tests.ml.made_scans import slice_hu


def a_series(
    count: int = 5,
    spacing_mm: tuple[float, float] | None = (0.4, 0.5),
    distance_mm: float | None = 3.0,
) -> Series:
    slices = tuple(
        Slice(slice_hu(number)[:, 8:].astype(np.float32), "hu", spacing_mm)
        for number in range(1, count + 1)
    )
    return Series(slices, (), distance_mm)


def written(folder: Path, series: Series) -> Path:
    write_volume(series, folder / "volume.nii.gz")
    return folder / "volume.nii.gz"


def starts_of(content: bytes) -> list[int]:
    """The index in the gzip header."""
    assert content[:4] == b"\x1f\x8b\x08\x04"
    (length,) = struct.unpack_from("<H", content, 10)
    extra = content[12 : 12 + length]
    assert extra[:2] == b"HS" and struct.unpack_from("<H", extra, 2) == (length - 4,)
    return list(struct.unpack(f"<{(length - 4) // 4}I", extra[4:]))


def test_a_written_series_reads_back_as_itself(tmp_path: Path) -> None:
    series = a_series(spacing_mm=(0.4, 0.4))
    back = read_series([written(tmp_path, series)])
    for one, other in zip(series.slices, back.slices, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert other.spacing_mm == pytest.approx((0.4, 0.4))
    assert (back.warnings, back.distance_mm) == ((), 3.0)


@pytest.mark.parametrize(
    ("spacing_mm", "distance_mm", "steps_mm", "measured"),
    [
        ((0.4, 0.5), 3.0, (), b"measured: pixels slices"),
        ((0.4, 0.5), 3.0, (3.0, 3.0, 2.9, 3.1), b"measured: pixels slices"),
        ((0.4, 0.5), 3.0, (3.0, 3.0, 6.0, 3.0), b"measured: pixels"),
        ((0.4, 0.5), None, (), b"measured: pixels"),
        (None, None, (), b"measured:"),
    ],
)
def test_only_distances_that_were_measured_are_named(
    tmp_path: Path,
    spacing_mm: tuple[float, float] | None,
    distance_mm: float | None,
    steps_mm: tuple[float, ...],
    measured: bytes,
) -> None:
    series = replace(a_series(5, spacing_mm, distance_mm), steps_mm=steps_mm)
    header = nibabel.load(written(tmp_path, series)).header
    assert header["descrip"].item() == b"Hemoscan; " + measured


def test_a_single_slice_has_a_volume_where_it_holds_hounsfield_units() -> None:
    slice = Slice(np.zeros((4, 4), np.float32), "hu")
    assert has_volume(Series((slice,)))
    assert not has_volume(Series((replace(slice, unit="display"),)))
    assert has_volume(Series((replace(slice, unit="display"),) * 2))


def test_each_slice_is_inflated_alone(tmp_path: Path) -> None:
    series = a_series(7)
    content = written(tmp_path, series).read_bytes()
    starts = starts_of(content)
    assert len(starts) == 7
    for start, slice in zip(starts, series.slices, strict=True):
        stored = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            content[start:], slice.pixels.size * 2
        )
        voxels = np.frombuffer(stored, "<i2").reshape(slice.pixels.shape)
        np.testing.assert_array_equal(voxels[::-1, ::-1], slice.pixels)


def test_the_file_is_ordinary_gzip_with_the_header_of_the_standard(tmp_path: Path) -> None:
    # it compares length and checksum
    content = gzip.decompress(written(tmp_path, a_series()).read_bytes())
    assert len(content) == 352 + 5 * 64 * 56 * 2
    assert struct.unpack_from("<i", content) == (348,)
    assert struct.unpack_from("<8h", content, 40) == (3, 56, 64, 5, 1, 1, 1, 1)
    assert struct.unpack_from("<12f", content, 280) == pytest.approx(
        [0.5, 0, 0, -13.75, 0, 0.4, 0, -12.6, 0, 0, 3, -6]
    )
    assert content[344:348] == b"n+1\0"


def test_nibabel_sees_the_patient_the_right_way_round(tmp_path: Path) -> None:
    series = a_series()
    volume = nibabel.load(written(tmp_path, series))
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.header.get_zooms() == pytest.approx((0.5, 0.4, 3))
    np.testing.assert_allclose(volume.get_qform(), volume.get_sform(), atol=1e-6)
    to_the_right_front_and_head = np.asarray(volume.dataobj)
    shown = to_the_right_front_and_head[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(shown, [slice.pixels for slice in series.slices])


def test_display_values_are_stored_as_thousandths(tmp_path: Path) -> None:
    pixels = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    path = written(tmp_path, Series((Slice(pixels, "display"), Slice(pixels[::-1] / 2, "display"))))
    content = gzip.decompress(path.read_bytes())
    assert struct.unpack_from("<2f", content, 112) == pytest.approx((0.001, 0))
    # what is assumed where nothing is known
    assert struct.unpack_from("<4f", content, 76) == (1, 1, 1, 5)
    assert np.frombuffer(content, "<i2", offset=352).max() == 1000
    np.testing.assert_allclose(read_series([path]).slices[0].pixels, pixels, atol=0.0006)


def test_large_slices_are_made_smaller_and_keep_their_size_in_mm(tmp_path: Path) -> None:
    large = np.kron(slice_hu(1), np.ones((16, 12))).astype(np.float32)  # 1024 x 768
    content = gzip.decompress(
        written(tmp_path, Series((Slice(large, "hu", (0.2, 0.3)),), (), None)).read_bytes()
    )
    assert struct.unpack_from("<4h", content, 40) == (3, 384, 512, 1)
    assert struct.unpack_from("<2f", content, 80) == pytest.approx((0.6, 0.4))
    stored = np.frombuffer(content, "<i2", offset=352).reshape(512, 384)
    np.testing.assert_array_equal(stored[::-1, ::-1][4::8, 3::6], slice_hu(1))


def test_slices_of_other_sizes_take_that_of_the_first(tmp_path: Path) -> None:
    pixels = slice_hu(1).astype(np.float32)
    series = Series(
        (Slice(pixels, "hu"), Slice(np.kron(pixels, np.ones((2, 2), np.float32)), "hu"))
    )
    back = read_series([written(tmp_path, series)])
    np.testing.assert_array_equal(back.slices[1].pixels, pixels)


def test_values_beyond_16_bits_are_cut_off(tmp_path: Path) -> None:
    pixels = slice_hu(1).astype(np.float32)
    pixels[5, 5] = 1e6
    content = gzip.decompress(written(tmp_path, Series((Slice(pixels, "hu"),))).read_bytes())
    assert np.frombuffer(content, "<i2", offset=352).max() == 32767
