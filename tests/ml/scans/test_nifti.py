"""NIfTI volumes: the same scan however its voxels lie in the file, and sentences for what cannot be
read.
"""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ml.errors import ImageError
from ml.scans.phantoms import FIELD_MM
from ml.scans.read import read_series
from ml.scans.slices import Series
from tests.ml.made_scans import (
    BEGINNINGS,
    SIDE,
    begins_otherwise,
    marks,
    nifti,
    packed,
    slice_hu,
    write_series,
)

STEP_MM, PIXEL_MM = 4.0, FIELD_MM / SIDE
# slices, rows, columns: to the head, the back, the left
SCAN = np.stack([slice_hu(number) for number in range(1, 7)])
RAS = np.ascontiguousarray(SCAN[:, ::-1, ::-1].transpose(2, 1, 0))
AFFINE = np.diag([PIXEL_MM, PIXEL_MM, STEP_MM, 1.0])
AFFINE[:3, 3] = -100, -110, 20


def stored_as(axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scan with its axes x, y, z (to the right, front, head) in another order and turned
    over where -1, and its affine.
    """
    voxels = RAS.transpose(axes)[tuple(np.s_[::sign] for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = AFFINE[:3, axes] * signs
    start = [0 if sign == 1 else size - 1 for sign, size in zip(signs, voxels.shape, strict=True)]
    affine[:3, 3] = AFFINE[:3, 3] + sum(
        AFFINE[:3, axis] * at for axis, at in zip(axes, start, strict=True)
    )
    return np.ascontiguousarray(voxels), affine


def read(folder: Path, content: bytes) -> Series:
    path = folder / "scan.png"  # the name means nothing
    path.write_bytes(content)
    return read_series([path])


def require_the_scan(series: Series, warnings: tuple[str, ...] = ()) -> None:
    np.testing.assert_array_equal(
        [slice.pixels for slice in series.slices], SCAN.astype(np.float32)
    )
    assert series.distance_mm == pytest.approx(STEP_MM)
    assert series.slices[0].spacing_mm == pytest.approx((PIXEL_MM, PIXEL_MM), rel=1e-6)
    assert series.slices[0].unit == "hu"
    assert series.warnings == warnings


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)])
def test_the_scan_is_the_same_however_its_voxels_lie(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    require_the_scan(read(tmp_path, nifti(*stored_as(axes, signs))))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("form", ["sform", "qform"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "SLA", "IAL", "ARI"])
def test_nibabel_writes_an_oblique_scan_and_sees_the_same_in_it(
    tmp_path: Path, kind: type, form: str, codes: str
) -> None:
    about_z, about_x = np.radians(9), np.radians(-7)
    turn_z = [
        [np.cos(about_z), -np.sin(about_z), 0],
        [np.sin(about_z), np.cos(about_z), 0],
        [0, 0, 1],
    ]
    turn_x = [
        [1, 0, 0],
        [0, np.cos(about_x), -np.sin(about_x)],
        [0, np.sin(about_x), np.cos(about_x)],
    ]
    oblique = AFFINE.copy()
    oblique[:3, :3] = np.array(turn_x) @ turn_z @ AFFINE[:3, :3]
    start = nibabel.orientations.io_orientation(oblique)
    stored = kind(RAS, oblique).as_reoriented(
        nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(tuple(codes)))
    )
    affine = stored.affine.copy()
    stored.set_sform(affine if form == "sform" else None, int(form == "sform"))
    stored.set_qform(affine if form == "qform" else None, int(form == "qform"))
    path = tmp_path / "scan.nii.gz"
    stored.to_filename(path)
    assert nibabel.aff2axcodes(nibabel.load(path).affine) == tuple(codes)
    require_the_scan(read_series([path]))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_both_versions_both_byte_orders_packed_or_not(
    tmp_path: Path, version: int, order: str, is_packed: bool
) -> None:
    content = nifti(RAS, AFFINE, version=version, order=order)
    require_the_scan(read(tmp_path, packed(content) if is_packed else content))


@pytest.mark.parametrize("kind", ["f4", "f8", "u2"])
def test_slope_and_intercept_make_hu_of_any_kind_of_voxels(tmp_path: Path, kind: str) -> None:
    stored = ((RAS.astype(np.float64) + 1024) / 0.5).astype(kind)
    require_the_scan(read(tmp_path, nifti(stored, AFFINE, slope=0.5, intercept=-1024)))


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("begins", BEGINNINGS)
def test_voxels_are_read_from_where_they_begin(
    tmp_path: Path, begins: str, is_packed: bool
) -> None:
    content = begins_otherwise(nifti(RAS, AFFINE), begins)
    require_the_scan(read(tmp_path, packed(content) if is_packed else content))


@pytest.mark.parametrize("place", [1, 300, 347, -352, float("nan"), 1e9])
def test_voxels_within_the_header_or_nowhere_are_refused(tmp_path: Path, place: float) -> None:
    content = bytearray(nifti(RAS, AFFINE))
    struct.pack_into("<f", content, 108, place)
    with pytest.raises(ImageError, match="damaged"):
        read(tmp_path, bytes(content))


def test_an_extension_whose_end_is_unknown_is_refused(tmp_path: Path) -> None:
    content = begins_otherwise(nifti(RAS, AFFINE), "behind an extension, but no place is given")
    with pytest.raises(ImageError, match="damaged"):
        read(tmp_path, content + b"more")


def test_it_is_the_same_scan_as_its_dicom_series(tmp_path: Path) -> None:
    as_dicom = read_series(write_series(tmp_path / "s", 6, step_mm=STEP_MM))
    require_the_scan(as_dicom)


def test_a_quaternion_says_where_the_voxels_lie(tmp_path: Path) -> None:
    voxels, _ = stored_as((0, 1, 2), (-1, -1, 1))  # half a turn about the z axis: d = 1
    require_the_scan(read(tmp_path, nifti(voxels, AFFINE, quaternion=(0, 0, 1))))


def test_without_a_place_the_usual_one_is_assumed_and_noted(tmp_path: Path) -> None:
    voxels, _ = stored_as((0, 1, 2), (-1, 1, 1))
    series = read(tmp_path, nifti(voxels, None))
    assert marks(series) == [1, 2, 3, 4, 5, 6]
    assert series.warnings == (
        "The NIfTI file does not give the patient's orientation; the usual one was assumed.",
        "The NIfTI file does not give its voxel size: 6 slices of 1 mm would not cover a head.",
    )
    assert (series.slices[0].spacing_mm, series.distance_mm) == (None, None)


@pytest.mark.parametrize(
    ("at", "layout", "values"),
    [
        (108, "<f", [0.0]),
        (72, "<h", [8]),
        (112, "<2f", [float("nan"), float("nan")]),
        (112, "<2f", [float("inf"), 0.0]),
        (76, "<4f", [1.0, -PIXEL_MM, -PIXEL_MM, -STEP_MM]),
        (40, "<8h", [4, *RAS.shape, 0, 0, 0, 0]),
        (40, "<8h", [4, *RAS.shape, 1, 0, 0, 0]),
        (0, "<i", [0]),
        (0, "<i", [540]),
        (344, "<4s", [b"ni1\0"]),
    ],
    ids=[
        "no place of the voxels",
        "other bits",
        "no slope",
        "an endless slope",
        "negative sizes",
        "no volumes",
        "one volume",
        "no size of the header",
        "the size of another version's header",
        "the mark of a pair",
    ],
)
def test_a_field_that_is_wrong_is_replaced_by_what_the_others_say(
    tmp_path: Path, at: int, layout: str, values: list[float | bytes]
) -> None:
    require_the_scan(read(tmp_path, broken(at, layout, *values)))


def test_sizes_without_a_place_may_be_negative(tmp_path: Path) -> None:
    content = bytearray(broken(76, "<4f", 1.0, -PIXEL_MM, -PIXEL_MM, -STEP_MM))
    struct.pack_into("<2h", content, 252, 0, 0)
    series = read(tmp_path, bytes(content))
    assert (series.distance_mm, series.slices[0].spacing_mm) == (STEP_MM, (PIXEL_MM, PIXEL_MM))


@pytest.mark.parametrize(("unit", "factor"), [(1, 1.0), (2, 0.001)], ids=["meters", "mm"])
def test_sizes_in_another_unit_than_the_file_says_are_converted_with_a_note(
    tmp_path: Path, unit: int, factor: float
) -> None:
    affine = AFFINE.copy()
    affine[:3] *= factor
    content = bytearray(nifti(RAS, affine))
    content[123] = unit
    series = read(tmp_path, bytes(content))
    assert series.distance_mm == pytest.approx(STEP_MM)
    assert series.slices[0].spacing_mm == pytest.approx((PIXEL_MM, PIXEL_MM))
    assert "another unit" in series.warnings[0]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("form", ["sform", "qform"])
@pytest.mark.parametrize(
    ("unit", "factor"), [(1, 1e-3), (3, 1e3), (0, 1.0)], ids=["meters", "micrometers", "unknown"]
)
def test_sizes_and_places_are_in_the_unit_that_the_file_says(
    tmp_path: Path, unit: int, factor: float, form: str, version: int
) -> None:
    voxels, affine, quaternion = RAS, AFFINE.copy(), None
    if form == "qform":
        voxels, quaternion = stored_as((0, 1, 2), (-1, -1, 1))[0], (0, 0, 1)
    affine[:3] *= factor
    content = bytearray(nifti(voxels, affine, version=version, quaternion=quaternion))
    struct.pack_into("<B" if version == 1 else "<i", content, 123 if version == 1 else 500, unit)
    require_the_scan(read(tmp_path, bytes(content)))


def test_an_identity_gives_way_to_the_quaternion_and_a_contradiction_is_noted(
    tmp_path: Path,
) -> None:
    voxels, _ = stored_as((0, 1, 2), (-1, -1, 1))  # half a turn about the z axis: d = 1
    content = bytearray(nifti(voxels, AFFINE, quaternion=(0, 0, 1)))
    struct.pack_into("<h", content, 254, 1)
    struct.pack_into("<12f", content, 280, *np.eye(4)[:3].ravel())
    require_the_scan(read(tmp_path, bytes(content)))
    struct.pack_into("<12f", content, 280, *np.diag([PIXEL_MM, PIXEL_MM, STEP_MM, 1])[:3].ravel())
    series = read(tmp_path, bytes(content))
    assert "contradict each other" in series.warnings[0]


def test_rows_that_come_first_are_noticed_without_an_origin(tmp_path: Path) -> None:
    slices = np.stack([slice_hu(number) for number in range(1, 7)], axis=-1)
    series = read(tmp_path, nifti(slices, np.diag([PIXEL_MM, PIXEL_MM, STEP_MM, 1.0])))
    assert marks(series) == [1, 2, 3, 4, 5, 6]
    assert "does not give the patient's orientation" in series.warnings[0]


def test_a_tilted_gantry_is_noted(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = STEP_MM * np.tan(np.radians(20))
    series = read(tmp_path, nifti(RAS, sheared))
    assert marks(series) == [1, 2, 3, 4, 5, 6]
    assert series.warnings == (
        "The gantry was tilted by 20°; the slices are shown as they were scanned.",
    )
    assert series.distance_mm == pytest.approx(STEP_MM)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FA00000], ids=["quiet", "signaling"])
def test_voxels_that_are_no_numbers_are_air(tmp_path: Path, bits: int) -> None:
    voxels = RAS.astype(np.float32)
    voxels.view(np.uint32)[5:9, 5:9] = bits
    assert (read(tmp_path, nifti(voxels, AFFINE)).slices[0].pixels[-9:-5, -9:-5] == -1000).all()


@pytest.mark.parametrize(
    ("voxels", "sentence"),
    [
        (np.clip(RAS * 3, 0, 255).astype("u1"), "8-bit voxels"),
        (np.clip(RAS / 80, 0, 1).astype("f4"), "from 0 to 1"),
    ],
)
def test_windowed_voxels_are_read_as_pictures(
    tmp_path: Path, voxels: np.ndarray, sentence: str
) -> None:
    series = read(tmp_path, nifti(voxels, AFFINE))
    assert series.slices[0].unit == "display" and sentence in series.warnings[0]
    expected = voxels / (255 if voxels.dtype == np.uint8 else 1)
    np.testing.assert_allclose(series.slices[2].pixels, expected[::-1, ::-1, 2].T, atol=1e-6)


RIPPLE = np.random.default_rng(0).normal(0, 1.5, RAS.shape).astype("f4")


def broken(at: int, layout: str, *values: object) -> bytes:
    content = bytearray(nifti(RAS, AFFINE))
    struct.pack_into(layout, content, at, *values)
    return bytes(content)


CORONAL = np.diag([PIXEL_MM, 12.0, PIXEL_MM, 1.0])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (nifti(RAS, AFFINE)[:-1], "damaged or incomplete"),
        (packed(nifti(RAS, AFFINE))[:-2000], "damaged or incomplete"),
        # the checksum of another file
        (packed(nifti(RAS, AFFINE))[:-8] + b"\0" * 8, "damaged or incomplete"),
        (broken(108, "<f232x4s", 0.0, b"ni1\0"), r"header of a pair \(\.hdr and \.img\)"),
        (broken(70, "<h", 128), "colors or complex numbers"),
        (broken(40, "<8h", 4, 64, 64, 6, 30, 1, 1, 1), "holds 30 volumes"),
        (broken(40, "<8h", 3, 64, -64, 6, 1, 1, 1, 1), "damaged or incomplete"),
        (broken(40, "<8h", 3, 32767, 32767, 6, 1, 1, 1, 1), "too large: 32767 x 32767 pixels"),
        (broken(40, "<8h", 3, 64, 64, 32767, 1, 1, 1, 1), "32767 slices; at most 1000"),
        (broken(108, "<f", 1e30), "damaged or incomplete"),
        (broken(108, "<f", float("nan")), "damaged or incomplete"),
        (broken(0, "<i36x8h", 1234, *[0] * 8), "damaged or incomplete"),
        (nifti(RAS, CORONAL), "not axial"),
        (packed(b"not a volume" * 100), "not a PNG, JPEG, DICOM or NIfTI"),
        (nifti(np.full_like(RAS, -1000), AFFINE), "blank"),
        (nifti((RAS / 1000).clip(-1, 1).astype("f4"), AFFINE), "no Hounsfield units"),
        (nifti(((RAS - RAS.mean()) / RAS.std()).astype("f4"), AFFINE), "no Hounsfield units"),
        (nifti((RAS * 3.0).clip(0, 255).astype("f4") + RIPPLE, AFFINE), "no Hounsfield units"),
    ],
)
def test_unreadable_files_are_refused_with_a_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    with pytest.raises(ImageError, match=sentence) as caught:
        read(tmp_path, content)
    assert str(caught.value).endswith(".")


def test_flipped_bytes_give_slices_or_an_image_error_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for version in (1, 2):
        whole = nifti(RAS, AFFINE, version=version)
        for content in (whole, packed(whole)):
            for _ in range(150):
                flipped = bytearray(content)
                for at in rng.integers(0, min(len(flipped), 540), 3):
                    flipped[at] = rng.integers(256)
                try:
                    series = read(tmp_path, bytes(flipped))
                except ImageError as err:
                    assert str(err).endswith(".")
                else:
                    assert all(np.isfinite(slice.pixels).all() for slice in series.slices)


def test_a_packed_file_is_not_inflated_further_than_its_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inflated = 0
    real = gzip.GzipFile.readinto

    def counting(self: gzip.GzipFile, into: memoryview) -> int:
        nonlocal inflated
        inflated += (got := real(self, into))
        return got

    monkeypatch.setattr(gzip.GzipFile, "readinto", counting)
    require_the_scan(read(tmp_path, packed(nifti(RAS, AFFINE) + bytes(50 * 2**20))))
    assert inflated == RAS.nbytes


def test_several_volumes_are_no_one_scan(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(nifti(RAS, AFFINE))
    with pytest.raises(ImageError, match="2 NIfTI files"):
        read_series([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(("added", "kind"), [(1024, "i2"), (1024, "u2"), (32768, "u2")])
def test_what_was_added_to_the_values_is_taken_off_and_noted(
    tmp_path: Path, added: int, kind: str
) -> None:
    shifted = (RAS.astype(np.int64) + added).astype(kind)
    require_the_scan(
        read(tmp_path, nifti(shifted, AFFINE)),
        (
            f"The NIfTI file's values are Hounsfield units with {added} added, which was"
            " subtracted.",
        ),
    )


def test_values_of_which_it_cannot_be_determined_what_was_added_are_refused(tmp_path: Path) -> None:
    cut_off = np.maximum(RAS.astype(np.int64) + 1010, 0).astype("i2")
    cut_off[cut_off < 300] = 0  # No air is left that would tell.
    with pytest.raises(ImageError, match="an unknown offset"):
        read(tmp_path, nifti(cut_off, AFFINE))


def test_hu_whose_air_is_cut_off_at_zero_stay_what_they_are(tmp_path: Path) -> None:
    series = read(tmp_path, nifti(np.maximum(RAS, 0), AFFINE))
    np.testing.assert_array_equal([slice.pixels for slice in series.slices], np.maximum(SCAN, 0))
    assert series.warnings == ()
