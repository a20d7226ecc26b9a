"""Series whose files say too little, or contradict each other: each property comes from the next
best source, and what is left out is named.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ml.errors import ImageError
from ml.scans.phantoms import write_dicom
from ml.scans.read import read_series
from tests.ml.made_scans import change, marks, slice_hu, write_series

ALL = list(range(1, 13))


def in_any_order(paths: list[Path]) -> list[list[Path]]:
    """Return the files in their order and in two others."""
    return [paths, paths[::-1], random.Random(7).sample(paths, len(paths))]


def test_places_that_are_all_the_same_say_nothing(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12, places_mm=[0.0] * 12)
    for number, path in enumerate(paths):
        change(path, SliceLocation=5.0 * number)
    for given in in_any_order(paths):
        series = read_series(given)
        assert (marks(series), series.distance_mm) == (ALL, 5)
        assert "ordered by slice location" in series.warnings[0]
    for path in paths:
        change(path, SliceLocation=None)
    by_number = read_series(paths[::-1])
    assert (marks(by_number), by_number.distance_mm) == (ALL, 5)


@pytest.mark.parametrize("tell", ["SliceLocation", "InstanceNumber"])
@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_place_that_one_file_lacks_comes_from_what_it_has(
    tmp_path: Path, tell: str, at: int
) -> None:
    paths = write_series(tmp_path / "s", 12, step_mm=1.25)
    if tell == "SliceLocation":
        for number, path in enumerate(paths):
            change(path, SliceLocation=100 + 1.25 * number, InstanceNumber=None)
    change(paths[at], ImagePositionPatient=None)
    for given in in_any_order(paths):
        series = read_series(given)
        assert marks(series) == ALL
        np.testing.assert_allclose(series.steps_mm, 1.25)


def test_a_slice_location_that_runs_the_other_way_turns_no_scan_over(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12, step_mm=1.25)
    for number, path in enumerate(paths):
        change(path, SliceLocation=-1.25 * number)
    change(paths[3], ImagePositionPatient=None)
    for given in in_any_order(paths):
        series = read_series(given)
        assert marks(series) == ALL
        np.testing.assert_allclose(series.steps_mm, 1.25)
        assert series.warnings == ()


@pytest.mark.parametrize("files", [slice(1, None, 3), slice(4, 5)])
def test_places_of_zero_among_others_are_no_places(tmp_path: Path, files: slice) -> None:
    paths = write_series(tmp_path / "s", 12)
    for path in paths[files]:
        change(path, ImagePositionPatient=[0, 0, 0])
    for given in in_any_order(paths):
        series = read_series(given)
        assert (marks(series), series.distance_mm) == (ALL, 5)


def test_the_place_of_one_slice_in_most_files_is_none(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    place = pydicom.dcmread(paths[1]).ImagePositionPatient
    for path in paths[2:]:
        change(path, ImagePositionPatient=list(place))
    for given in in_any_order(paths):
        series = read_series(given)
        assert marks(series) == ALL
        assert not any("left out" in warning for warning in series.warnings)


def test_each_slice_may_have_a_slope_of_its_own(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    for number, path in enumerate(paths, start=1):
        slope, intercept = [(0.5, -1024), (1, -1000), (2, -2000), (0.25, -1100)][number % 4]
        stored = np.round((slice_hu(number) - float(intercept)) / slope).clip(0)
        change(
            path,
            PixelData=stored.astype("<u2").tobytes(),
            PixelRepresentation=0,
            RescaleSlope=slope,
            RescaleIntercept=intercept,
        )
    series = read_series(paths)
    np.testing.assert_allclose(series.slices[6].pixels, slice_hu(7), atol=1)
    np.testing.assert_allclose(series.slices[4].pixels, slice_hu(5), atol=1)


def test_a_slice_with_another_offset_is_corrected_with_a_note(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    stored = (slice_hu(6).astype(np.int32) + 1024).astype("<u2")
    change(paths[5], PixelData=stored.tobytes(), PixelRepresentation=0)
    series = read_series(paths)
    assert marks(series) == ALL
    assert series.warnings == (
        "One slice has values with another offset than the others; this was corrected.",
    )


@pytest.mark.parametrize(
    "tags",
    [
        {"ConvolutionKernel": "H60s"},
        {"KVP": 80},
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"SliceThickness": 1},
    ],
)
def test_two_reconstructions_of_one_acquisition_are_never_mixed(
    tmp_path: Path, tags: dict[str, object]
) -> None:
    first, second = write_series(tmp_path / "a", 6), write_series(tmp_path / "b", 6, **tags)
    for number, path in enumerate(second, start=41):
        change(path, PixelData=slice_hu(number).tobytes())
    files = [path.rename(tmp_path / f"{at * 7 % 12:02}") for at, path in enumerate(first + second)]
    for given in in_any_order(files):
        assert marks(read_series(given)) in ([1, 2, 3, 4, 5, 6], [41, 42, 43, 44, 45, 46])


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_uid_that_one_file_lacks_changes_nothing(tmp_path: Path, name: str) -> None:
    paths = write_series(tmp_path / "s", 12)
    change(paths[4], **{name: None})
    assert marks(read_series(paths)) == ALL


def test_implausible_sizes_are_corrected_or_ignored(tmp_path: Path) -> None:
    meters = write_series(
        tmp_path / "m",
        12,
        PixelSpacing=[0.0036, 0.0036],
        SliceThickness=0.005,
        ImagePositionPatient=None,
    )
    series = read_series(meters)
    assert series.slices[0].spacing_mm == pytest.approx((3.6, 3.6))
    assert series.distance_mm == pytest.approx(5)
    assert "another unit" in series.warnings[-1]
    ones = write_series(tmp_path / "o", 12, step_mm=1.0, PixelSpacing=[1, 1])
    series = read_series(ones)
    assert (series.slices[0].spacing_mm, series.distance_mm, series.steps_mm) == (None, None, ())
    assert "does not give its voxel size" in series.warnings[-1]


def test_a_distance_may_be_negative(tmp_path: Path) -> None:
    paths = write_series(
        tmp_path / "s", 6, ImagePositionPatient=None, SliceThickness=None, SpacingBetweenSlices=-4
    )
    assert read_series(paths).distance_mm == 4


def test_a_slice_without_any_position_is_left_out_and_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    change(paths[3], ImagePositionPatient=None, InstanceNumber=None)
    series = read_series(paths)
    assert marks(series) == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    assert series.warnings[0].startswith(
        "One slice (04.dcm) was left out: it is without a position"
    )


@pytest.mark.parametrize("missing", [[0], [4], list(range(12))])
def test_a_direction_that_files_lack_is_that_of_the_others(
    tmp_path: Path, missing: list[int]
) -> None:
    paths = write_series(tmp_path / "s", 12, step_mm=1.25)
    for at in missing:
        change(paths[at], ImageOrientationPatient=None)
    for given in in_any_order(paths):
        series = read_series(given)
        assert (marks(series), series.distance_mm) == (ALL, 1.25)
    assert ("orientation" in series.warnings[0]) == bool(missing)


def test_two_acquisitions_are_never_mixed(tmp_path: Path) -> None:
    first = write_series(tmp_path / "a", 6)
    second = write_series(tmp_path / "b", 6)
    for number, path in enumerate(second, start=1):
        write_dicom(slice_hu(number + 40), path, number=number, position_mm=5.0 * (number - 1))
        change(path, AcquisitionNumber=2)
    for given in in_any_order([*first, *second]):
        series = read_series(given)
        assert marks(series) == [1, 2, 3, 4, 5, 6]
        assert series.warnings[0].startswith("6 slices (01.dcm, 02.dcm, 03.dcm, …) were left out")
    for path in second:
        change(path, AcquisitionNumber=1)
        change(path, InstanceNumber=pydicom.dcmread(path).InstanceNumber + 6)
    assert marks(read_series([*second, *first])) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("tags", [{"AcquisitionNumber": 2}, {"SliceThickness": 1.25}])
def test_slices_of_another_acquisition_between_those_of_one_are_never_mixed_in(
    tmp_path: Path, tags: dict[str, object]
) -> None:
    first, second = write_series(tmp_path / "a", 6), write_series(tmp_path / "b", 6)
    for number, path in enumerate(second, start=1):
        write_dicom(slice_hu(number + 40), path, number=number, position_mm=5.0 * number - 3.2)
        change(path, **tags)
    for given in in_any_order([*first, *second]):
        series = read_series(given)
        assert marks(series) in ([1, 2, 3, 4, 5, 6], [41, 42, 43, 44, 45, 46])
        assert "another pass over the same positions" in series.warnings[0]


@pytest.mark.parametrize("first_number", [1, 7])
@pytest.mark.parametrize("shift_mm", [1.8, 3.4])
def test_a_repeated_scan_that_only_its_numbers_distinguish_is_never_mixed_in(
    tmp_path: Path, shift_mm: float, first_number: int
) -> None:
    first, second = write_series(tmp_path / "a", 6), write_series(tmp_path / "b", 6)
    for at, path in enumerate(second):
        number, position_mm = first_number + at, 5.0 * at + shift_mm
        write_dicom(slice_hu(at + 41), path, number=number, position_mm=position_mm)
    for given in in_any_order([*first, *second]):
        series = read_series(given)
        assert marks(series) in ([1, 2, 3, 4, 5, 6], [41, 42, 43, 44, 45, 46])
        assert "another pass over the same positions" in series.warnings[0]


@pytest.mark.parametrize(
    ("length", "shift_mm", "numbers"),
    [
        (12, 0.0, [*range(13, 16), None, *range(17, 25)]),
        (10, 0.0, range(13, 23)),
        (12, 0.0, range(24, 12, -1)),
        (10, 1.8, range(1, 11)),
        (7, 1.8, range(1, 8)),
        (12, 1.8, [1, 2, 3, None, *range(5, 13)]),
        (12, 1.8, [None] * 12),
        (12, 2.5, range(1, 13)),
        (10, 2.5, range(1, 11)),
        (12, 2.5, range(13, 25)),
        (12, 2.5, range(24, 12, -1)),
        (12, 2.5, [1, 2, 3, None, *range(5, 13)]),
    ],
)
def test_two_passes_in_one_series_are_never_mixed_whatever_one_file_lacks(
    tmp_path: Path, length: int, shift_mm: float, numbers: list[int | None]
) -> None:
    first, second = write_series(tmp_path / "a", 12), []
    (tmp_path / "b").mkdir()
    for at, number in zip(range(length), numbers, strict=True):
        second.append(tmp_path / "b" / f"{at * 5 % 12:02}.dcm")
        write_dicom(slice_hu(at + 41), second[-1], number=1, position_mm=5.0 * at + shift_mm)
        change(second[-1], InstanceNumber=number)
    if None in numbers and set(numbers) == {None}:
        for path in first:
            change(path, InstanceNumber=None)
    for given in in_any_order([*first, *second]):
        series = read_series(given)
        assert marks(series) in (ALL, list(range(41, 41 + length)))
        assert "another pass over the same positions" in series.warnings[0]


def test_passes_half_a_step_apart_that_may_be_one_scan_are_read_as_one_with_a_note(
    tmp_path: Path,
) -> None:
    paths = write_series(tmp_path / "s", 12, step_mm=2.5, SliceThickness=2.5)
    for at, path in enumerate(paths):
        change(path, InstanceNumber=at // 2 + 1)
    series = read_series(paths)
    assert marks(series) == ALL
    assert any("may be of two scans" in warning for warning in series.warnings)


@pytest.mark.parametrize(
    "number_of",
    [
        lambda at: at // 2 + 1,
        lambda at: (at % 2) * 6 + at // 2 + 1,
        lambda at: (at * 5) % 12 + 1,
        lambda at: 1,
        lambda at: 12 - at,
    ],
    ids=["pairs", "odd before even", "shuffled", "all alike", "from the top"],
)
def test_numbers_alone_split_no_series_with_even_steps(
    tmp_path: Path, number_of: Callable[[int], int]
) -> None:
    paths = write_series(tmp_path / "s", 12)
    for at, path in enumerate(paths):
        change(path, InstanceNumber=number_of(at))
    assert marks(read_series(paths)) == ALL


@pytest.mark.parametrize(
    "tags_of",
    [
        lambda at: {"AcquisitionNumber": at, "SliceThickness": None if at == 4 else 5.0},
        lambda at: {
            "AcquisitionNumber": at,
            "SliceThickness": 5.0,
            "KVP": None if at == 4 else 120,
        },
        lambda at: {"AcquisitionNumber": at, "SliceThickness": 5.0 - 0.01 * (at % 2)},
        lambda at: {"AcquisitionNumber": at // 2, "SliceThickness": 5.0 - 0.1 * (at % 2)},
        lambda at: {"AcquisitionNumber": at % 2, "SliceThickness": 5.0},
        lambda at: {"AcquisitionNumber": at % 2, "SliceThickness": None},
    ],
    ids=["no thickness", "no voltage", "jitter", "rotations", "interleaved", "unknown thickness"],
)
def test_acquisitions_that_fill_each_others_gaps_lose_no_slice(
    tmp_path: Path, tags_of: Callable[[int], dict[str, object]]
) -> None:
    paths = write_series(tmp_path / "s", 12)
    for number, path in enumerate(paths):
        change(path, **tags_of(number))
    assert marks(read_series(paths)) == ALL


def test_a_thickness_or_voltage_that_is_written_differently_makes_no_second_pass(
    tmp_path: Path,
) -> None:
    paths = write_series(tmp_path / "s", 12)
    for number, path in enumerate(paths):
        change(path, SliceThickness=[5.0, 4.9, None][number % 3], KVP=["120", "120.0"][number % 2])
    assert marks(read_series(paths)) == ALL


def test_a_pixel_size_that_files_lack_is_that_of_the_others(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    spacing_mm = read_series(paths).slices[0].spacing_mm
    for path in paths[::3]:
        change(path, PixelSpacing=None)
    series = read_series(paths)
    assert {slice.spacing_mm for slice in series.slices} == {spacing_mm}
    assert series.warnings == (
        "4 files (01.dcm, 04.dcm, 07.dcm, …) do not give a pixel size; that of the other slices"
        " was assumed.",
    )


def test_acquisitions_that_continue_each_other_are_one_scan(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    for number, path in enumerate(paths):
        change(path, AcquisitionNumber=12 - number)
    assert marks(read_series(paths)) == ALL
    again = tmp_path / "again.dcm"
    write_dicom(slice_hu(99), again, number=13, position_mm=0.0)
    change(again, AcquisitionNumber=13)
    series = read_series([*paths, again])
    assert marks(series) == ALL
    assert "again.dcm" in series.warnings[0] and "another pass" in series.warnings[0]


def test_a_series_uid_for_each_slice_makes_one_series_with_a_note(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    for number, path in enumerate(paths):
        change(path, SeriesInstanceUID=f"1.2.3.{number}")
    series = read_series(paths)
    assert marks(series) == ALL
    assert "its own series UID" in series.warnings[0]
    change(paths[0], SeriesNumber=9)
    with pytest.raises(ImageError, match="12 different series"):
        read_series(paths)


def test_a_study_uid_for_each_slice_makes_one_series_if_they_lie_evenly(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    for number, path in enumerate(paths):
        change(path, StudyInstanceUID=f"1.2.{number}", SeriesInstanceUID=f"1.2.3.{number}")
    series = read_series(paths)
    assert marks(series) == ALL
    assert "its own study UID" in series.warnings[0]
    change(paths[3], ImagePositionPatient=[-115, -115, 16.5])
    with pytest.raises(ImageError, match="12 different series"):
        read_series(paths)


def test_two_studies_of_one_series_uid_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    for path in paths[6:]:
        change(path, StudyInstanceUID="1.2.3")
    with pytest.raises(ImageError, match="2 different series"):
        read_series(paths)


CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "a page of text"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "DOSE INFO"]}, "a page of text"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, "a page of text"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"SOPClassUID": CAPTURE}, "made from other slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MPR"]}, "made from other slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, "made from other slices"),
    ],
)
@pytest.mark.parametrize("position_mm", [27.5, 60.0, 999.0])
def test_what_is_no_slice_is_left_out_of_a_series_wherever_it_lies(
    tmp_path: Path, tags: dict[str, object], reason: str, position_mm: float
) -> None:
    paths = write_series(tmp_path / "s", 12)
    write_dicom(slice_hu(77), tmp_path / "other.dcm", number=13, position_mm=position_mm)
    for given in in_any_order([*paths, change(tmp_path / "other.dcm", **tags)]):
        series = read_series(given)
        assert marks(series) == ALL
        assert any("other.dcm" in note and reason in note for note in series.warnings)


def test_a_series_of_reformatted_slices_is_read(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12, ImageType=["DERIVED", "SECONDARY", "MPR"])
    series = read_series(paths)
    assert (marks(series), series.warnings) == (ALL, ())


def test_a_number_far_from_the_others_says_nothing_about_the_position(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    change(paths[11], ImagePositionPatient=None, InstanceNumber=900)
    series = read_series(paths)
    assert marks(series) == ALL[:11]
    assert series.warnings[0].startswith("One slice (12.dcm) was left out: it is without a pos")


def test_a_page_of_text_is_left_out_and_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    page = tmp_path / "dose.dcm"
    write_dicom(slice_hu(77), page, number=13)
    change(
        page,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelData=slice_hu(77).astype(np.uint8).tobytes(),
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
    )
    series = read_series([page, *paths])
    assert marks(series) == ALL
    assert series.warnings == (
        "One slice (dose.dcm) was left out: it is of another type, with 8-bit pixels.",
    )
    write_dicom(slice_hu(77), page, number=13)
    change(page, ImagePositionPatient=None, ImageOrientationPatient=None)
    series = read_series([page, *paths])
    assert marks(series) == ALL
    assert "dose.dcm" in series.warnings[0] and "without a position" in series.warnings[0]


def test_slices_that_lie_the_other_way_are_left_out(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    change(paths[2], ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    series = read_series(paths)
    assert len(series.slices) == 11
    assert "03.dcm" in series.warnings[0]


def test_files_that_say_nothing_of_their_order_stay_as_given_and_are_as_thick(
    tmp_path: Path,
) -> None:
    paths = write_series(tmp_path / "s", 6, ImagePositionPatient=None, InstanceNumber=None)
    series = read_series([paths[2], paths[0], *paths[3:], paths[1]])
    assert marks(series) == [3, 1, 4, 5, 6, 2]
    assert "in the order given" in series.warnings[0]
    assert series.distance_mm == 5


def test_oblong_pixels_become_square(tmp_path: Path) -> None:
    hu = slice_hu(1)
    write_dicom(hu[::2], tmp_path / "slice")
    change(tmp_path / "slice", PixelSpacing=[2 * 230 / 64, 230 / 64])
    (slice,) = read_series([tmp_path / "slice"]).slices
    assert slice.pixels.shape == (64, 64)
    assert slice.spacing_mm == (230 / 64, 230 / 64)
    change(tmp_path / "slice", PixelSpacing=None, PixelAspectRatio=[2, 1])
    (slice,) = read_series([tmp_path / "slice"]).slices
    assert (slice.pixels.shape, slice.spacing_mm) == ((64, 64), None)


def test_a_file_without_preamble_or_meta_information_is_read(tmp_path: Path) -> None:
    path = tmp_path / "slice"
    write_dicom(slice_hu(5), path)
    whole = path.read_bytes()
    file = pydicom.dcmread(path)
    length = 132 + 12 + file.file_meta.FileMetaInformationGroupLength
    (tmp_path / "no-meta").write_bytes(whole[:132] + whole[length:])
    (tmp_path / "no-preamble").write_bytes(whole[132:])
    (tmp_path / "bare").write_bytes(whole[length:])
    for name in ("no-meta", "no-preamble", "bare"):
        np.testing.assert_array_equal(
            read_series([tmp_path / name]).slices[0].pixels, slice_hu(5).astype(np.float32)
        )
