"""Whole DICOM series: their order, what is left out of them, and what is said about it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from ml.errors import ImageError
from ml.files.image_types import ImageKind
from ml.scans import limits, slices
from ml.scans.files import place_in_series
from ml.scans.phantoms import write_dicom
from ml.scans.read import read_series
from ml.scans.slices import Series
from ml.scans.volume import write_volume
from tests.ml.made_scans import change, head, marks, one_file_of, slice_hu, write_series
from webapp.intake.dicom import DicomFile

TILTED = [1, 0, 0, 0, 0.9483237, -0.3173047]  # by 18.5 degrees


def notes_of(series: Series) -> str:
    return " ".join(series.warnings)


def same(one: Series, other: Series) -> bool:
    alike = all(
        np.array_equal(a.pixels, b.pixels) for a, b in zip(one.slices, other.slices, strict=True)
    )
    return alike and (one.warnings, one.distance_mm) == (other.warnings, other.distance_mm)


def test_a_shuffled_series_gives_the_identical_answer(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12, step_mm=4.5)
    in_order = read_series(paths)
    assert marks(in_order) == list(range(1, 13))
    assert (in_order.warnings, in_order.distance_mm) == ((), 4.5)
    for seed in range(3):
        assert same(in_order, read_series(random.Random(seed).sample(paths, len(paths))))


def test_a_series_that_was_scanned_downwards_is_the_same(tmp_path: Path) -> None:
    upside_down = write_series(tmp_path / "s", 4, places_mm=[15, 10, 5, 0])
    assert marks(read_series(upside_down)) == [4, 3, 2, 1]


def test_a_slice_that_is_there_twice_counts_once_whichever_comes_first(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 5)
    again = tmp_path / "again.dcm"
    write_dicom(slice_hu(77), again, number=6, position_mm=10.01)
    one, other = read_series([*paths, again]), read_series([again, *paths])
    assert marks(one) == [1, 2, 3, 4, 5]
    assert one.warnings == (
        "One slice (again.dcm) was left out: it is from another pass over the same positions.",
    )
    assert same(one, other)
    write_dicom(slice_hu(3), again, number=6, position_mm=10)
    assert read_series([*paths, again]).warnings == (
        "One slice (again.dcm) was left out: it is a copy of another slice.",
    )


def test_a_missing_middle_is_noted_with_its_place(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 12)
    series = read_series(paths[:5] + paths[8:])
    assert series.warnings == (
        (
            "A part of the scan is missing between slices 5 and 6: they are 20 mm apart,"
            " neighboring slices 5 mm."
        ),
    )
    assert series.distance_mm == 5


def test_a_missing_middle_without_positions_is_noted_by_number(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 8, ImagePositionPatient=None)
    series = read_series(paths[:3] + paths[5:])
    assert marks(series) == [1, 2, 3, 6, 7, 8]
    assert "Slices are missing: after number 3 comes number 6." in series.warnings
    assert series.distance_mm == 5  # as thick as the slices are


def test_uneven_spacing_is_noted_and_is_no_gap(tmp_path: Path) -> None:
    base, crown = [4.0 * i for i in range(10)], [36 + 7.0 * i for i in range(1, 11)]
    series = read_series(write_series(tmp_path / "s", 20, places_mm=[*base, *crown]))
    assert series.warnings == ("The slices are unevenly spaced: 4 to 7 mm apart.",)


def test_a_tilted_gantry_is_noted_and_the_distance_is_that_across_the_slices(
    tmp_path: Path,
) -> None:
    series = read_series(write_series(tmp_path / "s", 6, step_mm=5, ImageOrientationPatient=TILTED))
    assert marks(series) == [1, 2, 3, 4, 5, 6]
    assert series.warnings == (
        "The gantry was tilted by 18.5°; the slices are shown as they were scanned.",
    )
    assert series.distance_mm == pytest.approx(5 * 0.9483237, abs=1e-4)


def test_one_damaged_slice_among_many_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 10)
    paths[3].write_bytes(paths[3].read_bytes()[:2000])
    series = read_series(paths)
    assert marks(series) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert (
        series.warnings[0]
        == "A file was left out: 04.dcm: The DICOM file is damaged or incomplete and cannot be"
        " decoded."
    )
    assert "missing between slices 3 and 4" in series.warnings[1]
    (tmp_path / "s" / "05.dcm").write_bytes(b"no picture")
    assert "05.dcm: The file is not a PNG" in notes_of(read_series(paths))  # two of ten are a fifth


def test_more_damaged_slices_than_a_fifth_end_the_scan(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 10)
    for path in paths[3:6]:
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        ImageError,
        match=r"^04\.dcm: The DICOM file is damaged .* 3 or more of the 10 files cannot be read\.$",
    ):
        read_series(paths)


def test_many_files_left_out_are_not_all_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 40)
    for path in paths[:8]:
        path.write_bytes(b"no picture")
    assert read_series(paths).warnings[4:6] == (
        "A file was left out: 05.dcm: The file is not a PNG, JPEG, DICOM or NIfTI image.",
        "3 further files were left out.",
    )


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a localizer"),
        ({"Modality": "SR"}, "its modality is SR"),
        ({"PhotometricInterpretation": "RGB"}, "is a color image"),
    ],
)
def test_files_without_slices_are_left_out_and_noted_in_any_series(
    tmp_path: Path, tags: dict[str, object], sentence: str
) -> None:
    paths = write_series(tmp_path / "s", 2)
    scout = tmp_path / "scout.dcm"
    write_dicom(head(), scout, series="another")
    change(scout, **tags)
    series = read_series([scout, *paths])
    assert marks(series) == [1, 2]
    assert (
        series.warnings[0].startswith("A file was left out: scout.dcm: The DICOM file")
        and sentence in series.warnings[0]
    )
    with pytest.raises(ImageError, match=r"^scout\.dcm: "):
        read_series([scout, scout])


def test_slices_of_another_direction_and_of_another_size_are_left_out(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 6)
    change(paths[1], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write_dicom(np.pad(slice_hu(5), 8), paths[4], number=5, position_mm=20)
    series = read_series(paths)
    assert marks(series) == [1, 3, 4, 6]
    assert series.warnings[:2] == (
        (
            "One slice (02.dcm) was left out: it is not axial (coronal, sagittal or oblique); the"
            " models know axial slices only."
        ),
        "One slice (05.dcm) was left out: its size differs from 64 x 64 pixels.",
    )


@pytest.mark.parametrize("orientation", [[1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]])
def test_a_series_that_is_not_axial_is_refused(tmp_path: Path, orientation: list[int]) -> None:
    paths = write_series(tmp_path / "s", 3, ImageOrientationPatient=orientation)
    with pytest.raises(ImageError, match="slices are not axial"):
        read_series(paths)
    with pytest.raises(ImageError, match="slice is not axial"):
        read_series(paths[:1])


def test_two_patients_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 3)
    write_dicom(head(), tmp_path / "other", series="other", position_mm=15)
    with pytest.raises(ImageError, match="2 different series; a scan is a single series"):
        read_series([*paths, tmp_path / "other"])


def test_too_many_slices_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match="5000 files; at most 1000"):
        read_series([tmp_path / "none"] * 5000)
    paths = write_series(tmp_path / "s", 3)
    monkeypatch.setattr(limits, "MAX_VOXELS", 2 * 64 * 64)
    with pytest.raises(ImageError, match="too large: at most 0 million pixels are read in all"):
        read_series(paths)


def test_pictures_of_another_size_are_left_out(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    paths = [tmp_path / name for name in "abcd"]
    for path, picture in zip(paths, (ramp, ramp, np.tile(ramp, (2, 2)), ramp), strict=True):
        Image.fromarray(picture).save(path, format="PNG")
    series = read_series(paths)
    assert len(series.slices) == 3
    assert series.warnings[0] == "One slice (c) was left out: its size differs from 64 x 64 pixels."


# Several slices in one file


@pytest.mark.parametrize(
    "order",
    [
        lambda paths: paths,
        lambda paths: paths[::-1],
        lambda paths: random.Random(3).sample(paths, len(paths)),
    ],
)
def test_enhanced_ct_is_the_same_scan_as_its_slices(
    tmp_path: Path, order: Callable[[list[Path]], list[Path]]
) -> None:
    paths = write_series(
        tmp_path / "s", 7, step_mm=4, ImageOrientationPatient=TILTED, RescaleIntercept=-24
    )
    whole = one_file_of(order(paths), tmp_path / "whole", functional_groups=True)
    apart, together = read_series(paths), read_series([whole])
    assert same(apart, together)
    assert [slice.spacing_mm for slice in together.slices] == [
        slice.spacing_mm for slice in apart.slices
    ]


@pytest.mark.parametrize("name", ["TemporalPositionIndex", "FrameAcquisitionNumber"])
def test_two_passes_in_one_file_are_never_mixed_and_its_localizers_are_left_out(
    tmp_path: Path, name: str
) -> None:
    paths = write_series(tmp_path / "s", 12, places_mm=[5.0 * (at % 6) for at in range(12)])
    order = random.Random(2).sample(range(12), 12)
    whole = one_file_of([paths[at] for at in order], tmp_path / "whole", functional_groups=True)
    file = pydicom.dcmread(whole)
    for at, frame in zip(order, file.PerFrameFunctionalGroupsSequence, strict=True):
        content, kind = pydicom.Dataset(), pydicom.Dataset()
        setattr(content, name, 1 + at // 6)
        kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if at == 11 else "VOLUME", "NONE"]
        frame.FrameContentSequence, frame.CTImageFrameTypeSequence = [content], [kind]
    file.save_as(whole)
    series = read_series([whole])
    assert marks(series) == [1, 2, 3, 4, 5, 6]
    assert "One frame of the DICOM file was left out: it is a localizer." in series.warnings
    assert "5 slices (whole) were left out" in notes_of(series)


LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
VOLUME = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]


@pytest.mark.parametrize(
    ("of_file", "shared", "of_frames"),
    [
        (LOCALIZER, None, None),
        (LOCALIZER, VOLUME, VOLUME),
        (VOLUME, LOCALIZER, None),
        (VOLUME, None, LOCALIZER),
        (VOLUME, VOLUME, LOCALIZER),
        (["ORIGINAL", "PRIMARY", "SCOUT"], None, None),
        (["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 TOP"], None, None),
    ],
)
def test_enhanced_localizers_are_no_slices_wherever_the_file_says_so(
    tmp_path: Path, of_file: list[str], shared: list[str] | None, of_frames: list[str] | None
) -> None:
    whole = one_file_of(write_series(tmp_path / "s", 3), tmp_path / "w", functional_groups=True)
    file = pydicom.dcmread(whole)
    file.ImageType = of_file
    groups = [(file.SharedFunctionalGroupsSequence[0], shared)]
    groups += [(frame, of_frames) for frame in file.PerFrameFunctionalGroupsSequence]
    for group, frame_type in groups:
        if frame_type:
            kind = pydicom.Dataset()
            kind.FrameType = frame_type
            group.CTImageFrameTypeSequence = [kind]
    file.save_as(whole)
    with pytest.raises(ImageError, match="is a localizer"):
        read_series([whole])
    with whole.open("rb") as stream:  # As intake sees it.
        assert DicomFile(stream).header.image_kind is ImageKind.LOCALIZER


def test_frames_without_a_place_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 4)
    series = read_series([one_file_of(paths, tmp_path / "whole", functional_groups=False)])
    assert marks(series) == [1, 2, 3, 4]
    assert "ordered by instance number" in notes_of(series)


def test_frames_without_a_place_take_their_number_in_the_stack(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 4)
    whole = one_file_of([paths[at] for at in (2, 0, 3, 1)], tmp_path / "w", functional_groups=True)
    file = pydicom.dcmread(whole)
    for number, frame in zip((3, 1, 4, 2), file.PerFrameFunctionalGroupsSequence, strict=True):
        del frame.PlanePositionSequence
        content = pydicom.Dataset()
        content.InStackPositionNumber = number
        frame.FrameContentSequence = [content]
    file.save_as(whole)
    assert marks(read_series([whole])) == [1, 2, 3, 4]


def test_compressed_frames_are_read(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", 4)
    whole = one_file_of(paths, tmp_path / "whole", functional_groups=True)
    file = pydicom.dcmread(whole)
    file.compress(pydicom.uid.RLELossless)
    file.save_as(whole)
    assert same(read_series(paths), read_series([whole]))


def test_a_file_of_more_frames_than_are_read_is_refused(tmp_path: Path) -> None:
    whole = one_file_of(write_series(tmp_path / "s", 4), tmp_path / "whole", functional_groups=True)
    with pytest.raises(ImageError, match="4 slices; at most 3"):
        read_series([whole], max_slices=3)


def test_frames_of_which_one_is_missing_are_refused(tmp_path: Path) -> None:
    whole = one_file_of(write_series(tmp_path / "s", 4), tmp_path / "whole", functional_groups=True)
    with pytest.raises(ImageError, match="damaged or incomplete"):
        read_series([change(whole, NumberOfFrames=5)])


# Real ones


def test_a_real_tilted_series_is_read_whole_in_any_order(shared_data: Path) -> None:
    paths = sorted((shared_data / "dicom_samples" / "series_ge_head").glob("*.dcm"))
    series = read_series(paths)
    assert len(series.slices) == 28
    assert series.warnings == (
        "The gantry was tilted by 18.5°; the slices are shown as they were scanned.",
        "The slices are unevenly spaced: 1.08 to 7 mm apart.",
    )
    assert series.distance_mm == pytest.approx(4, abs=0.01)
    assert same(series, read_series(random.Random(1).sample(paths, len(paths))))


def test_real_slices_are_the_same_as_pictures_and_as_a_shuffled_dicom_series(
    shared_data: Path, tmp_path: Path
) -> None:
    pictures = sorted((shared_data / "ct_ich" / "images").iterdir())[0]
    paths = sorted(pictures.iterdir(), key=place_in_series)
    wrapped = []
    for number, path in enumerate(paths, start=1):
        gray = np.asarray(Image.open(path).convert("L")).astype(np.int16)
        wrapped.append(tmp_path / f"{number}")
        # Gray of the brain window as HU, air below it.
        write_dicom(
            np.where(gray == 0, -1000, np.round(gray / 255 * 80)).astype(np.int16),
            wrapped[-1],
            number=number,
            position_mm=5.0 * number,
        )
    as_dicom = read_series(random.Random(2).sample(wrapped, len(wrapped)))
    assert as_dicom.distance_mm == 5 and len(as_dicom.slices) == len(paths)
    for slice, picture in zip(as_dicom.slices, read_series(paths).slices, strict=True):
        np.testing.assert_allclose(slices.window(slice.pixels, 40, 80), picture.pixels, atol=0.007)


def test_places_and_sizes_that_cannot_be_are_not_known_and_the_series_is_still_a_volume(
    tmp_path: Path,
) -> None:
    paths = write_series(tmp_path / "s", 3, PixelSpacing=["1e300", "1e300"])
    change(paths[2], ImagePositionPatient=["0", "0", "1e300"])
    series = read_series(paths)
    assert (series.slices[0].spacing_mm, series.distance_mm, marks(series)) == (
        None,
        5,
        [1, 2, 3],
    )
    write_volume(series, tmp_path / "volume")
