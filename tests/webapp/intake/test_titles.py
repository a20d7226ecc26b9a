"""What scans are called: never by what may be a patient's name, number or date."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from webapp.intake.clean_copy import Taken
from webapp.intake.dicom import DicomHeader
from webapp.intake.series import SeriesFiles
from webapp.intake.titles import description_of, titles_of, unique_titles, untitled_number

ONE = ("one",)


def scan(
    folder: str = "", name: str = "1.png", kind: str = "png", files: int = 1, **header: str
) -> SeriesFiles:
    """Return a scan of so many files of one folder."""
    path = f"folder/{folder}" if folder else None
    taken = Taken(Path(name), kind, 1, name, path, dicom=replace(DicomHeader(), **header))  # type: ignore[arg-type]
    return SeriesFiles((taken,) * files, "", ())


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("Head 5.0 H31s", "Head 5.0 H31s"),
        ("CT HEAD W/O CONTRAST", "CT head without contrast"),
        ("scct_head_hu_2mm.nii.gz", "Head HU 2mm"),
        ("HeadCT", "Head CT"),
        ("Doe^John CT Head 20240312", "CT Head"),
        ("AX 12.05.80 JD45 0815", "AX"),
        ("Axial 1.25 mm, Smith (1954)", "Axial 1.25mm"),
        ("DOE JOHN", ""),
        ("Doe with contrast", ""),  # Nothing in it says what was scanned.
        ("MRN880001", ""),
        ("ID_000cb0b16.jpg", ""),
        ("head\x00\x1b[31m\n", ""),
    ],
)
def test_only_known_words_are_taken_from_a_description(text: str, description: str) -> None:
    assert description_of(text) == description


@pytest.mark.parametrize(
    ("folder", "title"),
    [
        ("Night shift/Case 07/S2", "Case 07"),
        ("study-12", "Study 12"),
        ("Doe John exam 3", "Exam 3"),
        ("phantom-2", "Phantom 2"),
        ("patients/049", "Folder 049"),
        ("head/7/series", "Folder 7 · Head"),
        ("1980", ""),
        ("patient 3", ""),
        ("case 12 1980-03-01", ""),
        ("case 880001", ""),
    ],
)
def test_the_number_of_an_examination_is_taken_from_a_folder(folder: str, title: str) -> None:
    assert titles_of([scan(folder, files=3)], [ONE]) == [title]


def test_a_title_is_the_examination_and_the_first_description_that_says_something() -> None:
    one = scan("Case 7", kind="dicom", files=3, series_description="DOE", body_part="HEAD")
    assert titles_of([one], [ONE]) == ["Case 7 · Head"]
    assert titles_of([one], [ONE], "Monday") == ["Monday"]
    assert titles_of([one], [ONE], "Monday", number=4) == ["Monday · Case 7 · Head"]


def test_scans_of_which_nothing_is_known_are_counted() -> None:
    scans = [scan(), scan(files=3), scan(kind="dicom"), scan(kind="dicom", series_number="7")]
    studies = [(place,) for place in range(4)]
    counted = ["PNG slice 1", "PNG series 2", "CT slice 3", "CT slice 4"]
    assert titles_of(scans, studies) == counted
    assert titles_of(scans[:1], studies[:1]) == [""]
    assert titles_of(scans[:1], studies[:1], number=12) == ["PNG slice 12"]


def test_the_next_untitled_scan_has_the_next_number() -> None:
    assert untitled_number([]) == 1
    assert untitled_number(["Scan 9", "Scan 10", "Monday", "Scan 99 · Head", "Rescan 50", ""]) == 11


def test_twins_get_the_number_of_their_study_or_series() -> None:
    def series(number: str) -> SeriesFiles:
        values = {"series_description": "Head 5.0", "study_description": "CT HEAD"}
        return scan(kind="dicom", files=3, series_number=number, **values)

    assert titles_of([series("2"), series("2")], [ONE, ("two",)]) == [
        "Study 1 · Head 5.0",
        "Study 2 · Head 5.0",
    ]
    # What the series of a study share is the title of the study.
    assert titles_of([series("2"), series("3")], [ONE, ONE]) == [
        "CT head · Head 5.0 (series 2)",
        "CT head · Head 5.0 (series 3)",
    ]
    assert titles_of([series("2"), series("2")], [ONE, ONE]) == [
        "CT head · Head 5.0",
        "CT head · Head 5.0 (2)",
    ]
    pictures = [scan(name=f"{name}_head.png") for name in ("doe", "roe")]
    assert titles_of(pictures, [ONE, ("two",)]) == ["Head (1)", "Head (2)"]


def test_a_number_never_makes_a_title_too_long_or_equal_to_another() -> None:
    assert unique_titles(["x" * 80] * 2) == ["x" * 80, "x" * 76 + " (2)"]
    assert unique_titles(["Head"], ["Head", "Head (7)"], first=7) == ["Head (8)"]
