"""Which DICOM files of an upload make one scan: by study, series, size, direction and, where slices
share a place, acquisition; the same whatever order the files came in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml.scans.phantoms import write_dicom
from ml.scans.read import read_series
from tests.ml.made_scans import change, marks, one_file_of, slice_hu, write_series
from webapp.intake.clean_copy import Taken
from webapp.intake.dicom import DicomFile, DicomHeader
from webapp.intake.dicom_series import Group, scans_of, series_key

AXIAL, TILTED, CORONAL = (
    (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0, 0.0, 0.87, 0.5),
    (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
)


def slices(count: int, start: int = 0, *, slices_of: int = 1, **headers: Any) -> list[Taken]:
    """Return the files of a series, 5 mm apart; `headers` is what their headers say besides."""
    files = []
    for at in range(count):
        values: dict[str, Any] = {
            "study": "1",
            "series": "1.1",
            "series_number": "2",
            "number": at + 1.0,
            "position": (0.0, 0.0, 5.0 * at),
            "orientation": AXIAL,
            "rows": 64,
            "columns": 64,
            **headers,
        }
        number = start + at
        name = f"IM{number:04}"
        files.append(
            Taken(
                Path(name),
                "dicom",
                number,
                name,
                slices=slices_of,
                dicom=DicomHeader(**values),
                digest=bytes([number]),
            )
        )
    return files


def grouped(files: Sequence[Taken]) -> list[Group]:
    """Return the scans of files, however these are shuffled before."""
    results = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(list(files), len(files))
        groups: dict[tuple[object, ...], list[Taken]] = {}
        for file in shuffled:
            groups.setdefault(series_key(file), []).append(file)
        results.append(
            sorted(scans_of(list(groups.values())), key=lambda one: (one.files[0].number, one.part))
        )
    assert results[0] == results[1] == results[2]
    return results[0]


def numbers(scans: Sequence[Group]) -> list[list[int]]:
    """Return the places in the upload of the files of each scan."""
    return [[file.number for file in one.files] for one in scans]


def test_a_series_is_one_scan_in_the_order_of_its_numbers() -> None:
    assert numbers(grouped(slices(6))) == [[0, 1, 2, 3, 4, 5]]


def test_two_studies_of_one_series_uid_are_two_scans() -> None:
    assert numbers(grouped([*slices(3), *slices(3, 3, study="2")])) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "headers", [{"rows": 32, "columns": 32}, {"orientation": TILTED}, {"acquisition": 2.0}]
)
def test_what_cannot_be_of_one_pass_is_a_scan_of_its_own(headers: dict[str, Any]) -> None:
    scans = grouped([*slices(4, acquisition=1.0), *slices(4, 4, **{"acquisition": 1.0, **headers})])
    assert numbers(scans) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_passes_without_an_acquisition_are_distinguished_by_their_numbers_and_names() -> None:
    later = [
        replace(file, dicom=replace(file.dicom, number=file.dicom.number + 4))  # type: ignore[operator]
        for file in slices(4, 4)
    ]
    scans = grouped([*slices(4), *later])
    assert numbers(scans) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [one.part for one in scans] == [", pass 1", ", pass 2"]
    assert "covers the same positions 2 times" in scans[0].notes[0]
    alike = [*slices(4), *slices(4, 4)]
    assert numbers(grouped(alike)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    "headers",
    [{"rows": 32}, {"orientation": CORONAL}, {"number": 9.0, "position": (0.0, 0.0, 5.0)}],
)
def test_an_odd_file_stays_with_the_rest(headers: dict[str, Any]) -> None:
    assert numbers(grouped([*slices(4), *slices(1, 4, **{"number": 9.0, **headers})])) == [
        [0, 1, 2, 3, 4]
    ]


def test_an_acquisition_for_each_slice_is_one_scan() -> None:
    files = [
        replace(file, dicom=replace(file.dicom, acquisition=float(9 - at)))
        for at, file in enumerate(slices(6))
    ]
    assert numbers(grouped(files)) == [[0, 1, 2, 3, 4, 5]]


def test_reconstructions_with_the_same_numbers_are_distinguished_by_their_technique() -> None:
    soft = slices(4, technique=("H31s", ""))
    bone = slices(4, 4, technique=("H60s", ""))
    names = iter(random.Random(1).sample(range(100), 8))
    files = [replace(file, name=f"{next(names)}") for file in soft + bone]
    assert numbers(grouped(files)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("headers", [{"acquisition": 2.0}, {"thickness": 1.25}, {"folder": "b"}])
def test_slices_of_another_scan_between_those_of_one_are_a_scan_of_their_own(
    headers: dict[str, Any],
) -> None:
    folder = headers.pop("folder", "a")
    first = slices(4, acquisition=1.0, thickness=5.0)
    second = [
        replace(file, dicom=replace(file.dicom, position=(0.0, 0.0, 5.0 * at + 1.8)))
        for at, file in enumerate(slices(4, 4, **{"acquisition": 1.0, "thickness": 5.0, **headers}))
    ]
    files = [replace(file, folder="a") for file in first]
    files += [replace(file, folder=folder) for file in second]
    assert numbers(grouped(files)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("first_number", [1, 5])
def test_a_repeated_scan_that_only_its_numbers_distinguish_is_a_scan_of_its_own(
    first_number: int,
) -> None:
    second = [
        replace(
            file,
            dicom=replace(
                file.dicom, position=(0.0, 0.0, 5.0 * at + 1.8), number=float(first_number + at)
            ),
        )
        for at, file in enumerate(slices(4, 4, thickness=5.0))
    ]
    files = [*slices(4, thickness=5.0), *second]
    assert numbers(grouped(files)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    copy = replace(files[2], name="IM0099", number=8)
    assert numbers(grouped([*files, copy])) == [[0, 1, 2, 8, 3], [4, 5, 6, 7]]


def test_acquisitions_that_fill_each_others_gaps_are_one_scan() -> None:
    files = slices(12, thickness=5.0)
    for of_slice in (
        lambda at: {"acquisition": float(at), "thickness": 0.0 if at == 4 else 5.0},
        lambda at: {"acquisition": float(at), "thickness": 5.0 - 0.01 * (at % 2)},
        lambda at: {"acquisition": float(at // 2), "thickness": 5.0 - 0.1 * (at % 2)},
        lambda at: {"acquisition": float(at % 2), "thickness": 5.0},
        lambda at: {"acquisition": float(at % 2), "thickness": 0.0},
    ):
        changed = [
            replace(file, dicom=replace(file.dicom, **of_slice(at)))
            for at, file in enumerate(files)
        ]
        assert numbers(grouped(changed)) == [list(range(12))]


@pytest.mark.parametrize(
    "header_of",
    [
        lambda at: {"acquisition": float(at % 2)},
        lambda at: {"number": float(at // 2 + 12 * (at % 2))},
    ],
)
def test_acquisitions_that_fill_gaps_are_one_scan_although_its_step_changes(
    header_of: Callable[[int], dict[str, float]],
) -> None:
    files = slices(24, thickness=5.0)
    for at, file in enumerate(files):
        place = 2.5 * at if at < 10 else 5.0 * (at - 5)
        headers = {"position": (0.0, 0.0, place), **header_of(at)}
        files[at] = replace(file, dicom=replace(file.dicom, **headers))  # type: ignore[arg-type]
    [scan] = grouped(files)
    assert len(scan.files) == 24


def test_thick_and_thin_slices_that_begin_alike_are_two_scans() -> None:
    thin = [
        replace(file, dicom=replace(file.dicom, position=(0.0, 0.0, 1.0 * at)))
        for at, file in enumerate(slices(16, 4, thickness=1.0))
    ]
    scans = grouped([*slices(4, thickness=5.0), *thin])
    assert numbers(scans) == [[0, 1, 2, 3], list(range(4, 20))]


def test_a_place_that_one_file_lacks_leaves_the_places_of_the_others() -> None:
    first, second = (
        [
            replace(file, dicom=replace(file.dicom, location=-5.0 * at))
            for at, file in enumerate(slices(6, start, acquisition=acquisition))
        ]
        for start, acquisition in ((0, 1.0), (6, 2.0))
    )
    first[2] = replace(first[2], dicom=replace(first[2].dicom, position=()))
    assert numbers(grouped([*first, *second])) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_techniques_that_continue_each_other_are_one_scan() -> None:
    base = slices(4, technique=("", "140"))
    cerebrum = [
        replace(
            file, dicom=replace(file.dicom, number=5.0 + at, position=(0.0, 0.0, 20.0 + 5 * at))
        )
        for at, file in enumerate(slices(4, 4, technique=("", "120")))
    ]
    assert numbers(grouped([*base, *cerebrum])) == [list(range(8))]


@pytest.mark.parametrize("headers", [{"series": ""}, {"study": ""}, {"study": "", "series": ""}])
def test_a_file_without_a_uid_stays_with_the_only_series_that_it_may_belong_to(
    headers: dict[str, str],
) -> None:
    files = [replace(file, folder="1/study") for file in slices(6)]
    files[3] = replace(files[3], dicom=replace(files[3].dicom, **headers))  # type: ignore[arg-type]
    assert numbers(grouped(files)) == [[0, 1, 2, 3, 4, 5]]


def test_a_file_without_a_uid_that_may_belong_to_two_series_stays_alone() -> None:
    files = slices(6)
    files[3] = replace(files[3], dicom=replace(files[3].dicom, series="", series_number=""))
    two = [*files, *slices(6, 6, series="1.2", series_number="3")]
    assert numbers(grouped(two)) == [[0, 1, 2, 4, 5], [3], [6, 7, 8, 9, 10, 11]]


def test_a_file_that_names_another_patient_stays_alone() -> None:
    files = slices(6, patient="one")
    files[3] = replace(files[3], dicom=replace(files[3].dicom, series="", patient="two"))
    assert numbers(grouped(files)) == [[0, 1, 2, 4, 5], [3]]


def test_a_study_uid_for_each_slice_makes_one_scan_if_they_lie_evenly() -> None:
    files = [
        replace(file, dicom=replace(file.dicom, study=f"{file.number}", series=f"1.{file.number}"))
        for file in slices(6)
    ]
    assert numbers(grouped(files)) == [[0, 1, 2, 3, 4, 5]]
    files[2] = replace(files[2], dicom=replace(files[2].dicom, position=(0.0, 0.0, 11.0)))
    assert len(grouped(files)) == 6


def test_places_of_zero_among_others_part_nothing() -> None:
    files = [
        replace(
            file,
            dicom=replace(
                file.dicom,
                position=(0.0, 0.0, 0.0) if at in (1, 4, 7) else (-115.0, -115.0, 5.0 * at),
            ),
        )
        for at, file in enumerate(slices(8))
    ]
    assert numbers(grouped(files)) == [list(range(8))]


def test_the_place_of_one_slice_in_most_files_parts_nothing() -> None:
    files = [
        replace(file, dicom=replace(file.dicom, position=(-115.0, -115.0, 5.0 * min(at, 4))))
        for at, file in enumerate(slices(16))
    ]
    assert numbers(grouped(files)) == [list(range(16))]


def test_copies_make_no_second_pass() -> None:
    copies = [replace(file, digest=bytes([file.number - 4])) for file in slices(4, 4)]
    assert numbers(grouped([*slices(4), *copies])) == [[0, 4, 1, 5, 2, 6, 3, 7]]


def test_places_that_are_all_zero_part_nothing() -> None:
    files = [
        replace(
            file, dicom=replace(file.dicom, position=(0.0, 0.0, 0.0), location=file.number * 5.0)
        )
        for file in slices(6)
    ]
    assert numbers(grouped(files)) == [[0, 1, 2, 3, 4, 5]]


def test_a_series_uid_for_each_slice_makes_one_scan() -> None:
    files = [
        replace(file, dicom=replace(file.dicom, series=f"1.{file.number}")) for file in slices(6)
    ]
    assert numbers(grouped(files)) == [[0, 1, 2, 3, 4, 5]]
    other = [*files[:5], replace(files[5], dicom=replace(files[5].dicom, series_number="3"))]
    assert numbers(grouped(other)) == [[0, 1, 2, 3, 4], [5]]


def test_without_a_series_uid_study_and_number_make_a_scan() -> None:
    assert numbers(
        grouped([*slices(3, series=""), *slices(3, 3, series="", series_number="3")])
    ) == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    nothing = slices(2, series="", study="", series_number="")
    assert numbers(grouped(nothing)) == [[0], [1]]
    in_folder = [replace(file, folder="1/study") for file in nothing]
    assert numbers(grouped(in_folder)) == [[0, 1]]


def test_the_files_of_a_concatenation_are_one_scan_and_others_of_several_frames_are_not() -> None:
    files = slices(3, slices_of=40, concatenation="1.9")
    assert numbers(grouped(files)) == [[0, 1, 2]]
    assert numbers(grouped(slices(3, slices_of=40))) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("places_mm", "scans"),
    [
        ((25.0, 0.0), [[2, 1]]),
        ((0.0, 25.0), [[1, 2]]),
        ((0.0, 20.0), [[1], [2]]),
        ((0.0, 0.0), [[1], [2]]),
        ((0.0, 2.5), [[1], [2]]),
        ((0.0, 40.0), [[1], [2]]),
    ],
    ids=["below", "above", "one slice twice", "the same place", "between", "a gap"],
)
def test_enhanced_files_of_one_series_are_one_scan_if_they_continue_each_other(
    tmp_path: Path, places_mm: tuple[float, float], scans: list[list[int]]
) -> None:
    files = []
    for number, first_mm in enumerate(places_mm, start=1):
        slices_mm = [first_mm + 5 * at for at in range(5)]
        paths = write_series(tmp_path / f"{number}", 5, places_mm=slices_mm)
        path = one_file_of(paths, tmp_path / f"{number}.dcm", functional_groups=True)
        with path.open("rb") as stream:
            header = DicomFile(stream).header
        files.append(Taken(path, "dicom", number, path.name, slices=5, dicom=header))
    assert numbers(grouped(files)) == scans
    if len(scans) == 1:
        series = read_series([file.path for file in files])
        assert (len(series.slices), series.distance_mm) == (10, 5.0)
    other = replace(files[1], dicom=replace(files[1].dicom, series="1.9"))
    assert numbers(grouped([files[0], other])) == [[1], [2]]


def test_without_place_and_number_names_tell_the_order() -> None:
    files = slices(12, position=(), number=None)
    assert numbers(grouped(files)) == [list(range(12))]


def write_passes(folder: Path, seed: int) -> tuple[list[Path], int]:
    """Write two or three passes over a head, each with an acquisition number or told by instance
    numbers, and one slice of yet another pass, as files named by the mark of each; return their
    paths and that odd slice's mark.
    """
    draw = random.Random(seed)
    with_acquisition = draw.random() < 0.5
    paths, number = [], 0
    for acquisition in range(1, draw.choice([3, 4])):
        first_mm = draw.choice([0.0, 5.0, 10.0])
        for at in range(draw.randint(4, 7)):
            number += 1
            paths.append(folder / f"{number:02}.dcm")
            write_dicom(slice_hu(number), paths[-1], number=number, position_mm=first_mm + 5 * at)
            if with_acquisition:
                change(paths[-1], AcquisitionNumber=acquisition, InstanceNumber=at + 1)
    odd = number + 1
    paths.append(folder / f"{odd:02}.dcm")
    write_dicom(slice_hu(odd), paths[-1], number=odd, position_mm=15.0)
    if with_acquisition:
        change(paths[-1], AcquisitionNumber=9)
    return paths, odd


@pytest.mark.parametrize("seed", range(6))
def test_the_workers_see_the_same_passes(tmp_path: Path, seed: int) -> None:
    # Grouped twice: by headers at upload, and by pixels when a worker reads the files.
    paths, odd = write_passes(tmp_path, seed)
    files = []
    for path in paths:
        with path.open("rb") as stream:
            header = DicomFile(stream).header
        number = int(path.stem)
        files.append(
            Taken(path, "dicom", number, path.name, dicom=header, digest=path.stem.encode())
        )

    scans = [[file.path for file in one.files] for one in grouped(files)]

    assert len(scans) > 1
    read = [marks(read_series(one)) for one in scans]
    # Each scan is one pass for the worker too, and of all the files it would read the fullest.
    assert sorted(mark for one in read for mark in one) == list(range(1, odd))
    assert marks(read_series(paths)) in read
    assert len(marks(read_series(paths))) == max(map(len, read))
