"""Groups the files of an upload into series; each becomes one scan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from flask import current_app

from webapp.intake.clean_copy import NoSlice, Taken, UploadRejected
from webapp.intake.dicom_series import Group, by_numbers, scans_of, series_key

FEWEST_NUMBERED = 3
"""Minimum number of images to be treated as the slices of one scan."""
FEWEST_FOR_LEAVING_OUT = 5
MOST_DAMAGED = 1 / 5
MOST_NAMED = 5
PICTURES = ("png", "jpeg")
LAST_NUMBER = re.compile(r"(.*?)([0-9]*)([^0-9]*)", re.DOTALL)
COUNTING_PEOPLE = ("case", "exam", "patient", "person", "study", "subject")
"""Words before the last number of a name which show that it counts people, not slices."""
SHARP_KERNEL = re.compile(r"BONE|EDGE|LUNG|ULTRA|SHARP|[BHJU][a-z]?[67][0-9]|FC[358][0-9]")


class Pictures(StrEnum):
    """Which PNG and JPEG files of an upload are the slices of one scan.

    `AS_NUMBERED`: files of one folder, size and kind whose names differ only in the last number,
    unless it counts people ("patient 3.png").
    `BY_FOLDER`: the files of each folder in an archive, but none that were sent individually.
    """

    AS_NUMBERED = "as numbered"
    TOGETHER = "together"
    APART = "apart"
    BY_FOLDER = "by folder"


class Studies(StrEnum):
    """Which series of an upload form a study.

    `AS_SENT`: those of one examination according to their headers; without such headers, the series
    of one folder.
    """

    AS_SENT = "as sent"
    ONE = "one"
    NONE = "none"


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one scan in reading order, which part of a series they are (such as ", pass 2"),
    and sentences for its owner.
    """

    files: tuple[Taken, ...]
    part: str
    notes: tuple[str, ...]

    @property
    def slice_count(self) -> int:
        """The number of slices according to the headers of its files."""
        return sum(file.slices for file in self.files)


@dataclass(frozen=True)
class LeftOut:
    """A file that was left out, its position in the upload, and the reason.

    Attributes:
        folder: as in `Taken`.
        is_dicom: its content is DICOM, sound or not, or unknown.
    """

    number: int
    name: str
    reason: UploadRejected
    folder: str | None
    is_dicom: bool


def series_of(copies: Sequence[Taken], pictures: Pictures) -> list[SeriesFiles]:
    """Group files into scans: DICOM files by their headers (`webapp.intake.dicom_series`), images
    as the owner chose.

    Every other file is a separate scan. Images have no position, so they are ordered by the numbers
    in their names.

    Scans are in the order of their folders and names.

    Raises:
        UploadRejected: a series is too large, or its files name two patients.
    """
    groups: dict[tuple[object, ...], list[Taken]] = {}
    numbered = Counter(_look(file) for file in copies if file.kind in PICTURES)
    for file in copies:
        key: tuple[object, ...] = ("alone", file.number)
        if file.kind == "dicom":
            key = series_key(file)
        elif file.kind in PICTURES:
            is_one_of_many = pictures is Pictures.TOGETHER or (
                pictures is Pictures.BY_FOLDER and file.folder is not None
            )
            if is_one_of_many:
                key = ("pictures", file.folder, file.kind)
            elif pictures is Pictures.AS_NUMBERED and numbered[_look(file)] >= FEWEST_NUMBERED:
                key = ("numbered", *_look(file))
        groups.setdefault(key, []).append(file)
    scans = sorted(scans_of(list(groups.values())), key=_by_path)
    return [_series(group) for group in scans]


def study_of(series: SeriesFiles, place: int, studies: Studies) -> tuple[object, ...]:
    """Return a key that the series of a study share in an upload; `place` is the index of the
    series.
    """
    first = series.files[0]
    if studies is Studies.ONE:
        return ("all",)
    if studies is Studies.NONE:
        return ("alone", place)
    if first.dicom.study or first.dicom.patient:
        return ("examination", first.dicom.study or first.dicom.patient)
    if first.folder is not None and series.slice_count > 1:
        return ("folder", first.folder)
    return ("alone", place)


def disc_of(folder: str | None) -> str | None:
    """Return the archive or dropped folder that contains a folder; None if there is none."""
    return None if folder is None else folder.partition("/")[0]


def _by_path(group: Group) -> tuple[object, ...]:
    """Return the key that sorts scans by folder and file name, as a file manager would."""
    first = min(
        group.files, key=lambda file: (by_numbers(file.folder or ""), by_numbers(file.name))
    )
    return by_numbers(first.folder or ""), by_numbers(first.name), first.number


def _look(file: Taken) -> tuple[object, ...]:
    """Return the key that the images of one scan share: folder, kind, size, and name without its
    last number. A name without a number is a separate key.
    """
    start, number, end = LAST_NUMBER.fullmatch(file.name.lower()).groups()  # type: ignore[union-attr]
    is_a_slice = number and not start.rstrip(" _.-#").endswith(COUNTING_PEOPLE)
    name = (start, end) if is_a_slice else file.number
    return file.folder, file.kind, file.size, name


def _series(group: Group) -> SeriesFiles:
    files = list(group.files)
    slices, pixels = sum(file.slices for file in files), sum(file.pixels for file in files)
    most, most_pixels = current_app.config["MAX_SLICES"], current_app.config["MAX_SERIES_PIXELS"]
    if slices > most:
        raise UploadRejected(f"The series has {slices} slices; at most {most} are supported.")
    if len(files) > 1 and pixels > most_pixels:
        raise UploadRejected(
            f"The series has {pixels / 1e6:.0f} million pixels; at most {most_pixels / 1e6:g}"
            " million are supported."
        )
    if len({file.dicom.patient for file in files} - {""}) > 1:
        raise UploadRejected(
            "The files of one series are from different patients; please send each patient's files"
            " separately."
        )
    if files[0].kind in PICTURES:
        files = sorted(files, key=lambda file: (by_numbers(file.name), file.number))
    first = files[0].dicom
    notes = [*group.notes]
    if SHARP_KERNEL.match(first.kernel):
        notes.append(
            f"The series was reconstructed with a sharp kernel ({first.kernel}), meant for bone;"
            " the models were trained on soft kernels."
        )
    if any(file.dicom.has_burned_in_text for file in files):
        notes.append(
            "The file is marked as having burned-in text, which may include patient information."
        )
    return SeriesFiles(tuple(files), group.part, tuple(notes))


def sentences_about(
    left_out: Sequence[LeftOut],
    total: int,
    *,
    may_leave_out: bool,
    may_be_damaged: bool = False,
    with_names: bool,
) -> list[str]:
    """Return the notes for the owner about files that were left out, without their names unless
    these may be kept.

    Files without slices are always left out of archives. Damaged files are left out if most files
    are sound, or if `may_be_damaged`.

    Raises:
        UploadRejected: nothing of the upload is left, or too much of it is damaged.
    """
    if not left_out:
        return []
    foreign = Counter(file.reason.what for file in left_out if isinstance(file.reason, NoSlice))
    damaged = [file for file in left_out if not isinstance(file.reason, NoSlice)]
    first = (damaged or left_out)[0]
    if len(left_out) == total and total == 1:
        raise first.reason
    many = may_be_damaged or (
        total >= FEWEST_FOR_LEAVING_OUT and len(damaged) <= MOST_DAMAGED * total
    )
    if len(left_out) == total or (damaged and not many) or not (may_leave_out or many):
        raise UploadRejected(
            f"“{printable(first.name) or f'number {first.number}'}”: {first.reason}"
        ) from first.reason
    sentences = [f"Skipped, not slices: {what} ({count})." for what, count in foreign.items()]
    for file in damaged[:MOST_NAMED]:
        which = (
            f"“{printable(file.name)}”"
            if with_names and printable(file.name)
            else f"File {file.number} of {total}"
        )
        sentences.append(f"{which} was skipped: {file.reason}")
    if len(damaged) > MOST_NAMED:
        sentences.append(f"{len(damaged) - MOST_NAMED} more damaged files were skipped.")
    return sentences


def printable(name: str) -> str:
    """Return a file's name in the form in which it may be shown."""
    return "".join(character for character in name if character.isprintable())[:80]
