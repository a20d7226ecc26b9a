"""The scale of a scan's numbers in any container: as it is said, put right and told, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from ml.errors import ImageError
from ml.scans.phantoms import phantom, write_dicom
from ml.scans.read import read_series
from ml.scans.slices import Series
from tests.ml.made_scans import nifti

SIDE = 128
HU = phantom(1, hemorrhage=False, size=SIDE).astype(np.int32)
UNSIGNED = {"PixelRepresentation": 0}
NO_RESCALE = {"RescaleSlope": None, "RescaleIntercept": None}
RING = np.hypot(*np.indices(HU.shape) - (SIDE - 1) / 2) > SIDE / 2 - 2
RINGED = np.where(RING, -1000, HU)


def dicom(path: Path, stored: np.ndarray, **tags: object) -> Path:
    """Write a slice of these numbers, 16 bits each, with tags changed, or left out where None."""
    write_dicom(HU.astype(np.int16), path)
    file = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(file, name)
        elif name.startswith("PixelPadding"):
            file.add_new(name, *value)  # type: ignore[misc]
        else:
            setattr(file, name, value)
    file.PixelData = (stored % 65536).astype("<u2").tobytes()
    file.save_as(path)
    return path


def look_up_table(unit: str = "HU") -> Dataset:
    """Return the table that takes 12 bits to HU + 1024."""
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.ModalityLUTType = unit
    table.add_new("LUTData", "OW", np.arange(4096, dtype="<u2").tobytes())
    return table


PUT_RIGHT: dict[str, tuple[np.ndarray, dict[str, object], str]] = {
    "as the tags say": (HU + 1024, {**UNSIGNED, "RescaleIntercept": -1024}, ""),
    "1024 added": (HU + 1024, UNSIGNED, "Hounsfield units with 1024 added"),
    "32768 added": (HU + 32768, UNSIGNED, "Hounsfield units with 32768 added"),
    "signed read as unsigned": (HU, UNSIGNED, "negative values were stored as large ones"),
    "the same without a rescale": (HU, {**UNSIGNED, **NO_RESCALE}, "stored as large ones"),
    "no rescale": (HU + 1024, {**UNSIGNED, **NO_RESCALE}, "an intercept of -1024 HU was assumed"),
    "rescaled twice": (HU, {"RescaleIntercept": -1024}, "Hounsfield units already"),
    "no type": (HU, {"RescaleType": None}, ""),
    "Hounsfield": (HU, {"RescaleType": "Hounsfield"}, ""),
    "another word": (HU, {"RescaleType": "CTNUM"}, "does not identify its values"),
    "turned over and 1024 added": (
        4095 - (HU + 1024),
        {**UNSIGNED, "BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"},
        "were inverted; this was corrected. The DICOM file's values are Hounsfield units with"
        " 1024 added",
    ),
    "a table": (
        HU + 1024,
        {**UNSIGNED, **NO_RESCALE, "ModalityLUTSequence": [look_up_table()]},
        "Hounsfield units with 1024 added",
    ),
    "a table of another unit beside the rescale": (
        HU + 1024,
        {**UNSIGNED, "RescaleIntercept": -1024, "ModalityLUTSequence": [look_up_table("OD")]},
        "",
    ),
}


@pytest.mark.parametrize("case", PUT_RIGHT)
def test_a_dicom_whose_tags_and_numbers_differ_is_put_right(tmp_path: Path, case: str) -> None:
    stored, tags, note = PUT_RIGHT[case]
    series = read_series([dicom(tmp_path / "slice", stored, **tags)])
    np.testing.assert_array_equal(series.slices[0].pixels, HU)
    assert (note in " ".join(series.warnings)) if note else series.warnings == ()


PADDED: dict[str, tuple[np.ndarray, dict[str, object]]] = {
    "beyond the stored bits": (
        np.where(RING, 63536, HU + 1024),
        {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": ("US", 63536)},
    ),
    "a signed tag of unsigned pixels": (
        np.where(RING, 63536, HU + 1024),
        {"PixelPaddingValue": ("SS", -2000)},
    ),
    "a range": (
        np.where(RING, 63536, HU + 1024),
        {"PixelPaddingValue": ("US", 63500), "PixelPaddingRangeLimit": ("US", 63600)},
    ),
    "no tag": (np.where(RING, 63536, HU + 1024), {}),
    "no tag, the highest of 12 bits": (
        np.where(RING, 4095, HU + 1024),
        {"BitsStored": 12, "HighBit": 11},
    ),
}


@pytest.mark.parametrize("case", PADDED)
def test_padding_is_air_however_it_is_stored(tmp_path: Path, case: str) -> None:
    stored, tags = PADDED[case]
    path = dicom(tmp_path / "slice", stored, **UNSIGNED, RescaleIntercept=-1024, **tags)
    np.testing.assert_array_equal(read_series([path]).slices[0].pixels, RINGED)


def test_an_unsigned_tag_of_signed_pixels_is_the_same_padding(tmp_path: Path) -> None:
    stored = np.where(RING, -2000, HU)
    path = dicom(tmp_path / "slice", stored, PixelPaddingValue=("US", 63536))
    np.testing.assert_array_equal(read_series([path]).slices[0].pixels, RINGED)


def test_values_that_no_scanner_stores_are_air_in_any_number(tmp_path: Path) -> None:
    stored = np.where(RING, 63536, HU + 1024)
    stored[0], stored[-1] = 65535, 64000
    path = dicom(tmp_path / "slice", stored, **UNSIGNED, RescaleIntercept=-1024)
    np.testing.assert_array_equal(read_series([path]).slices[0].pixels, RINGED)


BRAIN_HU = 40
TISSUE_AS_PADDING: dict[str, dict[str, object]] = {
    "a value": {"PixelPaddingValue": ("SS", BRAIN_HU)},
    "a range": {
        "PixelPaddingValue": ("SS", BRAIN_HU - 5),
        "PixelPaddingRangeLimit": ("SS", BRAIN_HU + 5),
    },
    "a range from air to tissue": {
        "PixelPaddingValue": ("SS", BRAIN_HU),
        "PixelPaddingRangeLimit": ("SS", -2000),
    },
}


@pytest.mark.parametrize("case", TISSUE_AS_PADDING)
def test_padding_with_a_value_of_tissue_lies_around_the_scanned_circle(
    tmp_path: Path, case: str
) -> None:
    stored = np.where(RING, BRAIN_HU, HU)
    assert (HU == BRAIN_HU).any()
    padded = dicom(tmp_path / "padded", stored, **TISSUE_AS_PADDING[case])
    np.testing.assert_array_equal(read_series([padded]).slices[0].pixels, RINGED)
    not_padded = dicom(tmp_path / "plain", HU, **TISSUE_AS_PADDING[case])
    np.testing.assert_array_equal(read_series([not_padded]).slices[0].pixels, HU)


def test_metal_inside_a_head_stays_bright(tmp_path: Path) -> None:
    stored = HU + 1024
    stored[60:62, 60:62] = 30000
    path = dicom(tmp_path / "slice", stored, **UNSIGNED, RescaleIntercept=-1024)
    pixels = read_series([path]).slices[0].pixels
    assert (pixels[60:62, 60:62] == 4095).all()
    assert (pixels[0] == HU[0]).all()


def test_values_whose_zero_cannot_be_determined_are_refused(tmp_path: Path) -> None:
    path = dicom(tmp_path / "slice", HU + 1000, **UNSIGNED)
    with pytest.raises(ImageError, match="CT values with an unknown offset; please export"):
        read_series([path])


@pytest.mark.parametrize("word", ["MGML", "Z_EFF", "PCT"])
def test_other_units_are_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(ImageError, match=f"values are {word}, not Hounsfield units"):
        read_series([dicom(tmp_path / "slice", HU, RescaleType=word)])
    table = {**NO_RESCALE, "ModalityLUTSequence": [look_up_table(word)]}
    with pytest.raises(ImageError, match=f"values are {word}, not Hounsfield units"):
        read_series([dicom(tmp_path / "slice", HU + 1024, **UNSIGNED, **table)])


def test_a_decimal_comma_is_a_point(tmp_path: Path) -> None:
    path = dicom(
        tmp_path / "slice", HU + 1000, **UNSIGNED, RescaleIntercept="-1000.0", RescaleSlope="1.0"
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"-1000.0", b"-1000,0").replace(b"1.0 ", b"1,0 "))
    series = read_series([path])
    np.testing.assert_array_equal(series.slices[0].pixels, HU)
    assert series.warnings == ()


def eight_bits(path: Path, grays: np.ndarray, **tags: object) -> Series:
    """Read a slice of 8-bit numbers."""
    dicom(path, HU, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, **tags)
    file = pydicom.dcmread(path)
    file.PixelData = grays.astype(np.uint8).tobytes()
    file.save_as(path)
    return read_series([path])


def test_eight_bits_with_a_rescale_that_makes_them_hu_are_hu(tmp_path: Path) -> None:
    clipped = np.clip(HU, -100, 155)
    series = eight_bits(tmp_path / "slice", clipped + 100, RescaleIntercept=-100)
    assert series.slices[0].unit == "hu"
    np.testing.assert_array_equal(series.slices[0].pixels, clipped)
    assert "8-bit values are Hounsfield units from -100 to 155" in series.warnings[0]


def test_eight_bits_with_the_rescale_of_another_file_are_grays(tmp_path: Path) -> None:
    grays = np.clip(HU, 0, 80) / 80 * 255
    series = eight_bits(tmp_path / "slice", grays, RescaleIntercept=-1024)
    assert series.slices[0].unit == "display"


def test_one_file_without_a_rescale_takes_that_of_the_others(tmp_path: Path) -> None:
    paths = []
    for number in range(1, 5):
        tags = NO_RESCALE if number == 2 else {"RescaleIntercept": -1000}
        place = [-115, -115, 5 * number]
        paths.append(
            dicom(
                tmp_path / f"{number}",
                HU + 1000,
                **UNSIGNED,
                **tags,
                InstanceNumber=number,
                ImagePositionPatient=place,
            )
        )
    series = read_series(paths)
    for slice in series.slices:
        np.testing.assert_array_equal(slice.pixels, HU)


def nifti_of(path: Path, voxels: np.ndarray) -> Series:
    """Read a NIfTI file of a series of equal slices."""
    upright = np.repeat(voxels[:, :, np.newaxis], 3, axis=2)[::-1, ::-1].transpose(1, 0, 2)
    path.write_bytes(nifti(np.ascontiguousarray(upright), np.diag([1.8, 1.8, 5.0, 1.0])))
    return read_series([path])


@pytest.mark.parametrize("kind", ["u1", "i2", "f4"])
def test_hu_of_which_a_brain_window_was_kept_are_hu(tmp_path: Path, kind: str) -> None:
    clipped = np.clip(HU, 0, 80)
    series = nifti_of(tmp_path / "scan", clipped.astype(kind))
    assert series.slices[0].unit == "hu"
    np.testing.assert_array_equal(series.slices[1].pixels, clipped)


def test_hu_cut_off_at_the_ends_of_8_bits_are_hu(tmp_path: Path) -> None:
    series = nifti_of(tmp_path / "scan", np.clip(HU, 0, 255).astype("u1"))
    assert series.slices[0].unit == "hu"
    np.testing.assert_array_equal(series.slices[1].pixels, np.clip(HU, 0, 255))


def test_a_dark_picture_in_eight_bits_is_a_picture(tmp_path: Path) -> None:
    series = nifti_of(tmp_path / "scan", (np.clip(HU, 0, 80) * 3 // 2 + 5).astype(np.uint8))
    assert series.slices[0].unit == "display"


def test_a_nifti_that_does_not_name_its_type_is_read_by_its_bits(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    nifti_of(path, HU.astype("i2"))
    content = bytearray(path.read_bytes())
    content[70:72] = b"\0\0"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_series([path]).slices[1].pixels, HU)


AXES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rows and columns": lambda hu: hu,
    "columns and rows, to the right and the front": lambda hu: hu[::-1, ::-1].T,
}


@pytest.mark.parametrize("case", AXES)
def test_the_affine_that_stands_for_none_is_not_believed(tmp_path: Path, case: str) -> None:
    voxels = np.repeat(AXES[case](HU)[:, :, np.newaxis], 12, axis=2).astype("i2")
    (tmp_path / "scan").write_bytes(nifti(np.ascontiguousarray(voxels), np.eye(4)))
    series = read_series([tmp_path / "scan"])
    np.testing.assert_array_equal(series.slices[5].pixels, HU)
    assert (series.slices[0].spacing_mm, series.distance_mm) == (None, None)
    assert "does not give the patient's orientation" in series.warnings[0]
    assert "does not give its voxel size" in series.warnings[1]


def test_a_whole_head_in_voxels_of_1_mm_keeps_its_sizes(tmp_path: Path) -> None:
    voxels = np.repeat(HU[::-1, ::-1].T[:, :, np.newaxis], 90, axis=2).astype("i2")
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -64, -64, -45
    (tmp_path / "scan").write_bytes(nifti(np.ascontiguousarray(voxels), affine))
    series = read_series([tmp_path / "scan"])
    assert (series.slices[0].spacing_mm, series.distance_mm) == ((1.0, 1.0), 1.0)
    assert series.warnings == ()


@pytest.mark.parametrize("marker", [2000, 3071])
def test_a_marker_in_one_corner_of_one_slice_becomes_air(tmp_path: Path, marker: int) -> None:
    corner = np.add(*np.indices(HU.shape)) < SIDE // 4
    paths = []
    for index in range(4):
        stored = np.where(corner & (index == 2), marker, HU)
        place = {"ImagePositionPatient": [0, 0, 5 * index], "InstanceNumber": index + 1}
        paths.append(dicom(tmp_path / f"{index}", stored, **place))
    slices = read_series(paths).slices
    np.testing.assert_array_equal(slices[2].pixels, np.where(corner, -1000, HU))
    np.testing.assert_array_equal(slices[1].pixels, HU)


@pytest.mark.parametrize(
    ("stored", "tags", "sentence"),
    [
        (-HU, {"RescaleSlope": -1}, ""),
        (HU, {"RescaleSlope": -1}, "slope is negative, but"),
        (HU + 1024, {**UNSIGNED, "RescaleSlope": -1, "RescaleIntercept": -1024}, "negative, but"),
    ],
)
def test_the_sign_of_a_slope_counts_only_if_it_yields_a_head(
    tmp_path: Path, stored: np.ndarray, tags: dict[str, object], sentence: str
) -> None:
    series = read_series([dicom(tmp_path / "file", stored, **tags)])
    np.testing.assert_array_equal(series.slices[0].pixels, HU)
    assert sentence in " ".join(series.warnings) and bool(sentence) == bool(series.warnings)


def test_a_negative_slope_of_one_slice_is_corrected(tmp_path: Path) -> None:
    paths = []
    for index in range(4):
        tags = {**UNSIGNED, "RescaleIntercept": -1024, "RescaleSlope": -1 if index == 2 else 1}
        place = {"ImagePositionPatient": [0, 0, 5 * index], "InstanceNumber": index + 1}
        paths.append(dicom(tmp_path / f"{index}", HU + 1024, **tags, **place))
    series = read_series(paths)
    np.testing.assert_array_equal(series.slices[2].pixels, HU)
    assert "One slice has values with another slope" in series.warnings[0]
