"""Sorts the files of an upload: each is identified by its content and copied without patient data,
archives are opened, and the copies become series.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from flask import current_app
from werkzeug.datastructures import FileStorage

from ml.files.zip_end import end_of_zip
from webapp.intake.archives import ArchiveRefused, is_of_system, is_zip, members
from webapp.intake.choices import Choices
from webapp.intake.clean_copy import NoSlice, Taken, UploadRejected, take
from webapp.intake.dicom import is_dicom
from webapp.intake.nifti import GZIP
from webapp.intake.originals import PACKED, SUFFIXES
from webapp.intake.series import (
    PICTURES,
    LeftOut,
    SeriesFiles,
    disc_of,
    sentences_about,
    series_of,
)
from webapp.intake.streams import Budget, TooMuchWork
from webapp.intake.uids import NewUids

NAMES_OF_PICTURES = (".png", ".jpg", ".jpeg")
NAMES_OF_NOTES = (
    *(".txt", ".md", ".csv", ".tsv", ".rtf"),
    *(".doc", ".docx", ".odt", ".xls", ".xlsx", ".ods"),
)
"""Text files that people put next to a patient's images; the viewer on a CD comes with programs."""
DROPPED = "folder"
"""The prefix of the paths of files in dropped folders."""
START_BYTES = 132
MOST_PACKED = 20
"""Maximum number of NIfTI files of one upload that are inflated: a malicious one takes seconds."""


@dataclass(frozen=True)
class SortedFiles:
    """The files of an upload as series.

    Attributes:
        series: the series.
        study_uids: the Study Instance UID in the copies of each; None if there is none.
        notes: the sentences about all of them.
        refused: why a file was left out, by its position in the upload, from 0; files in archives
            are not among them.
    """

    series: list[SeriesFiles]
    study_uids: list[str | None]
    notes: list[str]
    refused: dict[int, str]


class NothingTaken(UploadRejected):
    """All files of an upload were refused; `refused` is as in `SortedFiles`."""

    def __init__(self, refused: dict[int, str]) -> None:
        super().__init__(next(iter(refused.values())))
        self.refused = refused


def sort_files(
    files: Sequence[FileStorage], folder: Path, choices: Choices, new_uid: NewUids
) -> SortedFiles:
    """Return the series of an upload, cleaned under `folder`."""
    budget = Budget(sum(file.stream.seek(0, 2) for file in files))
    copies: list[Taken] = []
    left_out: list[LeftOut] = []
    number = packed = 0
    sent_as: dict[int, int | None] = {}
    for number, (name, content, archive_folder, place) in enumerate(_contents(files, folder), 1):
        sent_as[number] = place
        if content is None:
            left_out.append(_damaged_member(number, name, archive_folder))
            continue
        content.seek(0)
        packed += content.read(len(GZIP)) == GZIP
        if packed > MOST_PACKED:
            raise UploadRejected(
                f"The upload has more than {MOST_PACKED} compressed NIfTI files; please send them"
                " in parts."
            )
        try:
            budget.begin_file()
            file = take(
                content,
                folder / f"{number}",
                new_uid,
                number=number,
                name=name,
                folder=archive_folder,
                budget=budget,
            )
            copies.append(_as_copied(file, new_uid))
        except TooMuchWork as err:
            raise UploadRejected(
                "The upload takes too long to process for its size; please send it in parts, or"
                " without compression."
            ) from err
        except UploadRejected as err:
            (folder / f"{number}").unlink(missing_ok=True)
            left_out.append(LeftOut(number, name, err, archive_folder, is_dicom(content)))
    copies = _without_pictures_of_viewer(copies, left_out)
    if number == 0:
        raise UploadRejected("The ZIP archive contains no images.")
    refused = {
        place: str(file.reason) for file in left_out if (place := sent_as[file.number]) is not None
    }
    if choices.reports_each_file and not copies:
        raise NothingTaken(refused)
    has_folder = {file.folder for file in copies} | {file.folder for file in left_out} != {None}
    notes = sentences_about(
        left_out,
        number,
        may_leave_out=has_folder or choices.leave_out or choices.reports_each_file,
        may_be_damaged=choices.reports_each_file,
        with_names=choices.keep_names,
    )
    series = series_of(copies, choices.pictures)
    study_uids = [entry.files[0].dicom.study or None for entry in series]
    return SortedFiles(series, study_uids, notes, refused)


def _damaged_member(number: int, name: str, folder: str | None) -> LeftOut:
    """Return a file that could not be unpacked: a slice, unless its name is that of an image."""
    is_dicom = not name.lower().endswith(NAMES_OF_PICTURES)
    reason = UploadRejected("The file cannot be unpacked from the ZIP archive.")
    return LeftOut(number, name, reason, folder, is_dicom)


def _as_copied(file: Taken, new_uid: NewUids) -> Taken:
    """Return a file with the study and series UIDs of its copy."""
    uids = {name: getattr(file.dicom, name) for name in ("study", "series", "concatenation")}
    new: dict[str, Any] = {name: new_uid(uid) for name, uid in uids.items() if uid}
    return replace(file, dicom=replace(file.dicom, **new))


def _without_pictures_of_viewer(copies: Sequence[Taken], left_out: list[LeftOut]) -> list[Taken]:
    """Return the files without the images in archives or dropped folders that contain DICOM slices:
    these belong to the viewer on an exported CD, whether readable or not. They are moved to
    `left_out`.

    Exception: they are kept in dropped folders of patients whose slices are images.
    """
    discs = {disc_of(file.folder) for file in copies if file.kind == "dicom"} - {None}
    of_patients = _folders_of_pictures(copies, left_out)
    reason = NoSlice(
        "PNG and JPEG images sent along with DICOM slices are skipped. Submit them separately.",
        "PNG or JPEG images sent along with DICOM slices",
    )

    def is_of_viewer(folder: str | None) -> bool:
        return disc_of(folder) in discs and folder not in of_patients

    for at, skipped in enumerate(left_out):
        if (
            is_of_viewer(skipped.folder)
            and not skipped.is_dicom
            and not isinstance(skipped.reason, NoSlice)
        ):
            left_out[at] = replace(skipped, reason=reason)
    slices = []
    for file in copies:
        if file.kind in PICTURES and is_of_viewer(file.folder):
            left_out.append(LeftOut(file.number, file.name, reason, file.folder, is_dicom=False))
            file.path.unlink()
        else:
            slices.append(file)
    return slices


def _folders_of_pictures(copies: Sequence[Taken], left_out: Sequence[LeftOut]) -> set[str]:
    """Return the dropped folders that contain, besides images, only notes or damaged DICOM files,
    with more images than damaged files.

    The page sends a folder that contains only images separately. On an exported CD, the viewer's
    images are next to its other files, and previews are next to the slices they show, in equal
    numbers.
    """
    pictures, damaged, others = Counter[str](), Counter[str](), set[str]()
    with_notes = set[str]()
    for folder, is_picture in [(file.folder, file.kind in PICTURES) for file in copies]:
        if folder is not None and is_picture:
            pictures[folder] += 1
        elif folder is not None:
            others.add(folder)
    for file in left_out:
        if file.folder is None:
            continue
        name = file.name.lower()
        is_slice = not isinstance(file.reason, NoSlice)
        if is_slice if file.is_dicom else name.endswith(SUFFIXES["dicom"]):
            damaged[file.folder] += 1
        elif name.endswith(NAMES_OF_NOTES):
            with_notes.add(file.folder)
        elif name == "dicomdir" or not (name.endswith(NAMES_OF_PICTURES) or is_of_system(name)):
            others.add(file.folder)
    return {
        folder
        for folder, count in pictures.items()
        if disc_of(folder) == DROPPED
        and damaged[folder] < count
        and (damaged[folder] or folder in with_notes)
        and folder not in others
    }


def _contents(
    files: Sequence[FileStorage], folder: Path
) -> Iterator[tuple[str, IO[bytes] | None, str | None, int | None]]:
    """Yield name and content of each file, its folder, and its position in the upload. For files in
    archives, the folder is named after the archive, and the position is None; the content of a
    damaged file is None. The limits apply to all archives together.
    """
    unpacked_files = unpacked_bytes = 0
    for place, file in enumerate(files):
        name, stream = file.filename or "", file.stream
        size = stream.seek(0, 2)
        stream.seek(0)
        start = stream.read(START_BYTES)
        stream.seek(0)
        if not (is_zip(start) or _is_behind_others(stream, size, name, start)):
            inside, is_in_folder, last = name.replace("\\", "/").rpartition("/")
            yield last, stream, f"{DROPPED}/{inside}" if is_in_folder else None, place
            continue
        config = current_app.config
        if size > config["MAX_UPLOAD_MB"] * 2**20:
            raise UploadRejected(f"The file is larger than {config['MAX_UPLOAD_MB']} MB.")
        packed_as = re.sub(r"\.zip$", "", name.replace("\\", "/"), flags=re.IGNORECASE)
        limits = {
            "most_files": config["MAX_SLICES"],
            "most_bytes": config["MAX_UNPACKED_MB"] * 2**20,
        }
        limits |= {"earlier_files": unpacked_files, "earlier_bytes": unpacked_bytes}
        try:
            for member, content, is_sound in members(stream, size, **limits, folder=folder):
                unpacked_files += 1
                unpacked_bytes += content.seek(0, 2)
                inside, _, last = member.rpartition("/")
                inside = f"{place}/{packed_as}/{inside}".rstrip("/")
                yield last, content if is_sound else None, inside, None
        except ArchiveRefused as err:
            raise UploadRejected(str(err)) from err


def _is_behind_others(stream: IO[bytes], size: int, name: str, start: bytes) -> bool:
    """Return whether a file is a ZIP archive with other bytes in front, such as a program that
    unpacks it.
    """
    is_named = name.lower().endswith((PACKED, ".exe"))
    found = is_named and start[128:132] != b"DICM" and end_of_zip(stream, size) is not None
    stream.seek(0)
    return found
