"""What may come in: every kind that is read, every refusal a sentence, and nothing half-written
left behind.
"""

from __future__ import annotations

import gzip
import io
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import nibabel
import pydicom
import pytest
from flask import Flask
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from werkzeug.datastructures import FileStorage

from tests.conftest import make_user
from tests.webapp.intake.made import (
    dicom_file,
    jpeg_of,
    nifti_file,
    picture,
    planted_everywhere,
    png_of,
    zip_of,
)
from tests.webapp.test_api import client_of
from webapp.extensions import db, utc_now
from webapp.intake import (
    Choices,
    Pictures,
    Studies,
    UploadRejected,
    accept,
    accept_dataset,
    accept_upload,
    dataset_upload,
    originals,
    sorting,
    spool,
)
from webapp.intake.spool import empty_incoming
from webapp.jobs import IMPORT_DATASET, PREDICT_SCANS
from webapp.models import IN_ITS_TURN, ApiToken, Dataset, JobStatus, Scan, Scope
from webapp.models.accounts import new_secret, secret_hash
from webapp.storage import Storage, StorageError, storage

SAYS_IMPLICIT = dicom_file().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1)
REFUSED = [
    (b"", "The file is empty."),
    (b"\x00", "The file is not a PNG, JPEG, DICOM or NIfTI image."),
    (b"Not a picture at all.", "The file is not a PNG, JPEG, DICOM or NIfTI image."),
    (b"GIF89a" + bytes(100), "The file is not a PNG, JPEG, DICOM or NIfTI image."),
    *(
        (start, "The file is an archive of another kind than ZIP; please send a ZIP archive.")
        for start in (
            b"7z\xbc\xaf\x27\x1c" + bytes(100),
            b"Rar!\x1a\x07\x00" + bytes(100),
            b"slice.dcm".ljust(257, b"\0") + b"ustar\x0000" + bytes(300),
        )
    ),
    (
        gzip.compress(b"slice.dcm".ljust(257, b"\0") + b"ustar\x0000" + bytes(300)),
        "The file is compressed, and not a NIfTI image; please unpack it first.",
    ),
    (picture()[:8], "The PNG image is damaged or incomplete."),
    (picture()[:-20], "The PNG image is damaged or incomplete."),
    (picture()[: len(picture()) // 2], "The PNG image is damaged or incomplete."),
    (picture().replace(b"IDAT", b"IDXT"), "The PNG image is damaged or incomplete."),
    (
        png_of(30_000, 30_000),
        "The image is too large: 30000 x 30000 pixels, at most 16 million are supported.",
    ),
    (
        jpeg_of(30_000, 30_000),
        "The image is too large: 30000 x 30000 pixels, at most 16 million are supported.",
    ),
    (b"\xff\xd8\xff" + bytes(10), "The JPEG image is damaged or incomplete."),
    (dicom_file(without=("PixelData",)), "The DICOM file contains no image."),
    (dicom_file(without=("Rows",)), "The DICOM file contains no image."),
    (dicom_file(Rows=0), "The DICOM file contains no image."),
    (
        dicom_file(Rows=30_000, Columns=30_000),
        "The image is too large: 30000 x 30000 pixels, at most 16 million are supported.",
    ),
    (dicom_file(Modality="MR"), "The DICOM file is not a CT image: its modality is MR."),
    (dicom_file(NumberOfFrames=-3), "The DICOM file is damaged or incomplete."),
    (dicom_file(NumberOfFrames=5000), "The series has 5000 slices; at most 2000 are supported."),
    (dicom_file()[:-1], "The DICOM file is damaged or incomplete."),
    (dicom_file(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "The DICOM file is a localizer"),
    (
        dicom_file().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"),
        "The DICOM file’s pixels are coded in an unsupported way",
    ),
    (nifti_file()[:-1], "The NIfTI file is damaged or incomplete."),
    (nifti_file(packed=True)[:-30], "The NIfTI file is damaged or incomplete."),
    (
        nifti_file((64, 64, 5, 3)),
        "The NIfTI file holds 3 volumes; please send one scan in one file.",
    ),
    (zip_of({}), "The ZIP archive contains no images."),
    (zip_of({"notes.txt": b"text"}), "The file is not a PNG, JPEG, DICOM or NIfTI image."),
    (zip_of({"../1.png": picture()}), "The ZIP archive contains a file with an unsafe path."),
    (dicom_file(SamplesPerPixel=3), "The DICOM file is a color image, not a CT slice."),
    (
        dicom_file(DeflatedExplicitVRLittleEndian),
        "The DICOM file uses deflate compression, which is not supported.",
    ),
    (
        dicom_file()[:132],
        "The DICOM file does not specify a transfer syntax.",
    ),
    (dicom_file()[:200], "The DICOM file"),
    (bytes(128) + b"DICM" + b"\xff" * 500, "The DICOM file"),
]


def upload(content: bytes, name: str = "slice") -> FileStorage:
    """Return what a form's field holds."""
    return FileStorage(io.BytesIO(content), name)


def files_under(folder: Path) -> list[Path]:
    """Return all files under a folder, which need not exist."""
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def ann(app: Flask) -> Iterator[str]:
    """Ann's id; the application's context is pushed."""
    user_id = make_user(app, "ann")
    with app.app_context():
        yield user_id


@pytest.fixture
def nudges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nudges that were sent, each after its row was committed."""
    sent: list[str] = []

    def nudge(task: str) -> bool:
        assert not db.session.new
        assert not db.session().in_transaction()
        sent.append(task)
        return True

    monkeypatch.setattr(accept, "nudge", nudge)
    monkeypatch.setattr(dataset_upload, "nudge", nudge)
    return sent


def nothing_is_left(tmp_path: Path) -> bool:
    """True if neither a row nor a file was written."""
    rows = sum(
        db.session.scalar(select(func.count()).select_from(table)) or 0 for table in (Scan, Dataset)
    )
    return (
        rows == 0 and not files_under(tmp_path / "files") and not files_under(tmp_path / "incoming")
    )


# --- scans


@pytest.mark.parametrize(
    ("content", "kind", "suffix"),
    [
        (picture("PNG"), "png", ".png"),
        (picture("JPEG"), "jpeg", ".jpg"),
        (dicom_file(), "dicom", ".dcm"),
        (dicom_file(ImplicitVRLittleEndian), "dicom", ".dcm"),
        (dicom_file(without=("Modality",)), "dicom", ".dcm"),
        (dicom_file()[128:], "dicom", ".dcm"),
        (SAYS_IMPLICIT, "dicom", ".dcm"),
        (nifti_file(), "nifti", ".nii"),
        (nifti_file(packed=True), "nifti", ".nii"),
        (zip_of({"1.png": picture()}), "png", ".png"),
    ],
    ids=[
        "png",
        "jpeg",
        "dicom",
        "implicit dicom",
        "dicom without modality",
        "dicom without an empty preamble",
        "dicom that is coded in another way than it says",
        "nifti",
        "packed nifti",
        "one picture in an archive",
    ],
)
def test_what_a_file_is_says_its_content(
    ann: str, nudges: list[str], content: bytes, kind: str, suffix: str
) -> None:
    [scan] = accept_upload(ann, [upload(content, "../../etc/holiday.gif")], "  Monday ").scans
    assert (scan.kind, scan.title, scan.user_id, scan.status) == (
        kind,
        "Monday",
        ann,
        JobStatus.QUEUED,
    )
    assert (scan.original_key, scan.slice_count, scan.stat, scan.notes) == (
        f"originals/{scan.id}{suffix}",
        5 if kind == "nifti" else 1,
        False,
        [],
    )
    assert scan.size == len(storage.get(scan.original_key)) > 0
    assert nudges == [PREDICT_SCANS]


def test_many_files_are_many_scans_and_one_nudge(ann: str, nudges: list[str]) -> None:
    contents = [picture(side=64 + i) for i in range(5)]
    scans = accept_upload(ann, [upload(content) for content in contents]).scans
    assert [storage.get(scan.original_key) for scan in scans] == contents
    assert nudges == [PREDICT_SCANS]


def test_a_large_file_goes_by_way_of_a_file_that_is_removed(
    ann: str, nudges: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(originals, "HELD_IN_MEMORY", 100)
    content = picture(side=256)
    [scan] = accept_upload(ann, [upload(content)]).scans
    assert storage.get(scan.original_key) == content
    assert files_under(tmp_path / "incoming") == []


@pytest.mark.parametrize(("content", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_cannot_be_read_is_refused_with_a_sentence(
    ann: str, nudges: list[str], tmp_path: Path, content: bytes, sentence: str
) -> None:
    with pytest.raises(UploadRejected) as refusal:
        accept_upload(ann, [upload(content, "a.png")])
    assert str(refusal.value).startswith(sentence)
    assert str(refusal.value).endswith(".")
    assert nothing_is_left(tmp_path)
    assert nudges == []


def test_of_many_files_the_refused_one_is_named_and_none_is_stored(
    ann: str, nudges: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UploadRejected) as refusal:
        accept_upload(ann, [upload(picture(), "good.png"), upload(b"", "no\u202e\x00thing.png")])
    assert str(refusal.value) == "“nothing.png”: The file is empty."
    with pytest.raises(UploadRejected, match="“number 2”"):
        accept_upload(ann, [upload(picture()), FileStorage(io.BytesIO(b""))])
    assert nothing_is_left(tmp_path)


def test_too_many_files_and_none_are_refused(app: Flask, ann: str) -> None:
    app.config["MAX_FILES_PER_UPLOAD"] = 2
    with pytest.raises(
        UploadRejected, match=r"The upload has 3 files; at most 2 are accepted per upload."
    ):
        accept_upload(ann, [upload(picture())] * 3)
    with pytest.raises(UploadRejected, match=r"The upload contains no files."):
        accept_upload(ann, [])


def test_a_file_over_the_limit_is_refused(app: Flask, ann: str) -> None:
    app.config["MAX_UPLOAD_MB"] = 1
    with pytest.raises(UploadRejected, match=r"The file is larger than 1 MB."):
        accept_upload(ann, [upload(picture() + bytes(2**20))])


@pytest.mark.parametrize("title", ["x" * 81, "a\x00b", "a\nb"])
def test_a_title_that_cannot_be_stored_is_refused(ann: str, tmp_path: Path, title: str) -> None:
    with pytest.raises(UploadRejected, match=r"Invalid title."):
        accept_upload(ann, [upload(picture())], title)
    assert nothing_is_left(tmp_path)


def test_a_storage_that_fails_halfway_leaves_nothing(
    ann: str, nudges: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = []

    def put(key: str, content: bytes) -> None:
        puts.append(key)
        if len(puts) == 3:
            raise StorageError("The storage did not accept a file; please try again later.")
        store(key, content)

    store = storage.put
    monkeypatch.setattr(originals, "storage", type("Failing", (), {"put": staticmethod(put)}))
    with pytest.raises(StorageError):
        accept_upload(ann, [upload(picture()) for _ in range(4)])
    assert nothing_is_left(tmp_path)
    assert nudges == []


def test_a_database_that_fails_leaves_no_file(
    ann: str, nudges: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        if db.session.new:
            raise OperationalError("COMMIT", {}, Exception("disk full"))

    monkeypatch.setattr(db.session, "commit", fail)
    with pytest.raises(OperationalError):
        accept_upload(ann, [upload(picture())])
    assert nothing_is_left(tmp_path)
    assert nudges == []


def test_no_transaction_is_open_while_a_file_is_stored(
    ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.session.scalar(select(func.count()).select_from(Scan))
    assert db.session().in_transaction()
    seen = []

    def look(*_: object) -> int:
        seen.append(db.session().in_transaction())
        return 0

    monkeypatch.setattr(accept, "store_series", look)
    accept_upload(ann, [upload(picture()), upload(picture())])
    assert seen == [False, False]


def test_a_queue_that_cannot_be_reached_is_reported_and_the_scan_waits(ann: str) -> None:
    receipt = accept_upload(ann, [upload(picture())])
    assert not receipt.reachable
    assert db.session.get_one(Scan, receipt.scans[0].id).status == JobStatus.QUEUED


# --- series


def series(number: int = 1, slices: int = 4, **tags: object) -> list[bytes]:
    """Return the files of a series."""
    return [
        dicom_file(
            SeriesInstanceUID=f"1.2.{number}",
            SeriesNumber=number,
            InstanceNumber=place,
            ImagePositionPatient=[0, 0, 5 * place],
            **tags,
        )
        for place in range(slices)
    ]


def packed(scan: Scan) -> list[bytes]:
    """Return the files that are stored for a series."""
    with storage.open(scan.original_key) as file, zipfile.ZipFile(file) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        return [archive.read(name) for name in archive.namelist()]


def test_the_files_of_each_dicom_series_become_one_scan(ann: str, nudges: list[str]) -> None:
    one, two = series(1), series(2, slices=3)
    mixed = [content for pair in zip(one, two, strict=False) for content in pair] + one[3:]
    scans = accept_upload(ann, [upload(content) for content in mixed], "Monday").scans
    assert [(scan.title, scan.slice_count, scan.kind) for scan in scans] == [
        ("Monday · Series 1", 4, "dicom"),
        ("Monday · Series 2", 3, "dicom"),
    ]
    assert all(scan.original_key == f"originals/{scan.id}.zip" for scan in scans)
    places = [
        [pydicom.dcmread(io.BytesIO(content)).InstanceNumber for content in packed(scan)]
        for scan in scans
    ]
    assert places == [[0, 1, 2, 3], [0, 1, 2]]
    assert nudges == [PREDICT_SCANS]


@pytest.mark.parametrize("number", ["9" * 5000, "1_0", "one"])
def test_a_series_number_that_is_none_is_not_shown(
    ann: str, nudges: list[str], number: str
) -> None:
    written = dicom_file(SeriesNumber="7").replace(
        b"IS\2\x007 ", b"IS" + struct.pack("<H", len(number)) + number.encode()
    )
    [scan] = accept_upload(ann, [upload(written)], "Monday").scans
    assert (scan.title, scan.status) == ("Monday", JobStatus.QUEUED)


def test_a_number_of_frames_that_is_none_is_a_short_sentence(ann: str, tmp_path: Path) -> None:
    for number in ("9" * 4000, "1" * 90, "1_0"):
        written = dicom_file(NumberOfFrames="7").replace(
            b"IS\2\x007 ", b"IS" + struct.pack("<H", len(number)) + number.encode()
        )
        with pytest.raises(UploadRejected, match=r"^The DICOM file is damaged or incomplete\.$"):
            accept_upload(ann, [upload(written)])
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("number", ["0", ""])
def test_no_frames_are_one_frame(ann: str, nudges: list[str], number: str) -> None:
    [scan] = accept_upload(ann, [upload(dicom_file(NumberOfFrames=number))]).scans
    assert scan.slice_count == 1


def test_an_archive_of_a_study_is_a_scan_for_each_series_and_says_what_it_left(
    ann: str, nudges: list[str]
) -> None:
    files = {
        f"a/{place}": content
        for place, content in enumerate(series(1) + series(2, ConvolutionKernel="BONE"))
    }
    files |= {
        "scout": dicom_file(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "dose": dicom_file(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
        "readme.txt": b"text",
        "mr": dicom_file(Modality="MR"),
    }
    soft, bone = accept_upload(ann, [upload(zip_of(files))]).scans
    assert (soft.title, bone.title) == ("Series 1", "Series 2")
    left = [
        f"Skipped, not slices: {what} (1)."
        for what in (
            "localizers",
            "pages of text and screen captures",
            "files that are not images",
            "files with a modality other than CT",
        )
    ]
    assert soft.notes == left
    assert bone.notes[:-1] == left
    assert bone.notes[-1].startswith("The series was reconstructed with a sharp kernel (BONE)")


def test_what_a_viewer_on_a_disc_adds_decides_nothing(ann: str, nudges: list[str]) -> None:
    link = zipfile.ZipInfo("Viewer.app/Current")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(link, "A")
        for number, content in enumerate(series(1)):
            archive.writestr(f"DICOM/{number}", content)
        for name, content in {
            "viewer.zip": zip_of({"1.png": picture()}),
            "report.docx": zip_of({"word/document.xml": b"x"}),
            "logo.jpg": b"\xff\xd8\xff" + bytes(10),
            "huge.png": png_of(30_000, 30_000),
            "readme.gz": b"\x1f\x8b\x08" + b"\xff" * 50,
        }.items():
            archive.writestr(name, content)
    [scan] = accept_upload(ann, [upload(packed.getvalue())]).scans
    assert scan.slice_count == len(series(1))
    assert set(scan.notes or []) == {
        "Skipped, not slices: files that are not images (1).",
        "Skipped, not slices: archives and documents (2).",
        "Skipped, not slices: PNG or JPEG images sent along with DICOM slices (3).",
    }


EACH = Choices(pictures=Pictures.AS_NUMBERED, reports_each_file=True)
DAMAGED_DICOM = dicom_file()[:200]


@pytest.mark.parametrize("damaged", [DAMAGED_DICOM, b"no DICOM at all", b""])
def test_a_damaged_dicom_file_among_a_patient_s_pictures_does_not_make_them_a_viewer_s(
    ann: str, nudges: list[str], damaged: bytes
) -> None:
    files = [(f"drop/a/{number}.dcm", one) for number, one in enumerate(series(1))]
    files += [(f"drop/b/{number}.png", picture(side=72)) for number in (1, 2, 3)]
    files += [("drop/b/4.png", picture()[:40]), ("drop/b/5.dcm", damaged)]
    receipt = accept_upload(ann, [upload(one, name) for name, one in files], choices=EACH)
    assert [(scan.kind, scan.slice_count) for scan in receipt.scans] == [("dicom", 4), ("png", 3)]
    assert set(receipt.refused) == {7, 8}
    assert receipt.refused[7] == "The PNG image is damaged or incomplete."


@pytest.mark.parametrize("beside", ["notes.txt", "Report.DOCX", "list.csv"])
def test_notes_among_a_patient_s_pictures_do_not_make_them_a_viewer_s(
    ann: str, nudges: list[str], beside: str
) -> None:
    files = [(f"drop/a/{number}.dcm", one) for number, one in enumerate(series(1))]
    files += [(f"drop/b/{number}.png", picture(side=72)) for number in (1, 2, 3)]
    files += [(f"drop/b/{beside}", b"Seen today."), ("drop/b/.DS_Store", b"Bud1")]
    receipt = accept_upload(ann, [upload(one, name) for name, one in files], choices=EACH)
    assert [(scan.kind, scan.slice_count) for scan in receipt.scans] == [("dicom", 4), ("png", 3)]
    assert set(receipt.refused) == {7, 8}


@pytest.mark.parametrize(
    "beside",
    [
        {"1.dcm": DAMAGED_DICOM, "1.png": picture()},  # A preview for each slice.
        {"1.dcm": dicom_file(), "bad.dcm": DAMAGED_DICOM, "1.png": picture(), "2.png": picture()},
        {"bad.dcm": DAMAGED_DICOM, "viewer.exe": b"MZ", "1.png": picture(), "2.png": picture()},
        {
            "mr.dcm": dicom_file(Modality="MR"),
            "bad.dcm": DAMAGED_DICOM,
            "1.png": picture(),
            "2.png": picture(),
        },
        {"viewer.dll": b"MZ", "1.png": picture(), "2.png": picture()},
        {"readme.txt": b"How to", "index.htm": b"<html>", "1.png": picture(), "2.png": picture()},
        {"readme.txt": b"How to", "DICOMDIR": b"", "1.png": picture(), "2.png": picture()},
        {"1.png": picture(), "2.png": picture()},
    ],
)
def test_pictures_on_a_copied_disc_stay_out_also_where_a_slice_is_damaged(
    ann: str, nudges: list[str], beside: dict[str, bytes]
) -> None:
    disc = {f"DICOM/{number}.dcm": one for number, one in enumerate(series(1))}
    disc |= {f"B/{name}": content for name, content in beside.items()}
    for sent in (
        [upload(content, f"disc/{name}") for name, content in disc.items()],
        [upload(zip_of(disc))],
    ):
        assert {scan.kind for scan in accept_upload(ann, sent, choices=EACH).scans} == {"dicom"}


def test_an_archive_with_a_damaged_slice_among_its_previews_is_still_a_disc(
    ann: str, nudges: list[str]
) -> None:
    disc = {f"DICOM/{number}.dcm": one for number, one in enumerate(series(1))}
    disc |= {"B/bad.dcm": DAMAGED_DICOM, "B/1.png": picture(), "B/2.png": picture()}
    assert [
        scan.kind for scan in accept_upload(ann, [upload(zip_of(disc))], choices=EACH).scans
    ] == ["dicom"]


def test_an_archive_that_holds_only_another_is_refused(ann: str, tmp_path: Path) -> None:
    with pytest.raises(UploadRejected, match="contains another archive"):
        accept_upload(ann, [upload(zip_of({"inner.zip": zip_of({"1.png": picture()})}))])
    assert nothing_is_left(tmp_path)


def test_the_pictures_of_a_folder_in_an_archive_are_one_scan_by_the_numbers_in_their_names(
    ann: str, nudges: list[str]
) -> None:
    sides = {"a/slice 10.png": 74, "a/slice 9.png": 73, "b/1.png": 64, "a/slice 2.png": 72}
    first, second = accept_upload(
        ann, [upload(zip_of({name: picture(side=side) for name, side in sides.items()}))]
    ).scans
    assert packed(first) == [picture(side=side) for side in (72, 73, 74)]
    assert (first.kind, first.slice_count, second.slice_count) == ("png", 3, 1)


def test_pictures_are_one_scan_if_their_owner_says_so(ann: str, nudges: list[str]) -> None:
    files = [("2.png", picture(side=72)), ("10.png", picture(side=80)), ("1.png", picture(side=71))]
    [scan] = accept_upload(
        ann,
        [upload(content, name) for name, content in files],
        choices=Choices(pictures=Pictures.TOGETHER),
    ).scans
    assert packed(scan) == [picture(side=side) for side in (71, 72, 80)]
    assert len(accept_upload(ann, [upload(content, name) for name, content in files]).scans) == 3


NUMBERED = Choices(pictures=Pictures.AS_NUMBERED)


def test_pictures_that_look_like_slices_of_one_scan_are_one_by_default(
    ann: str, nudges: list[str]
) -> None:
    files = [
        ("head/IM-1-10.png", picture(side=70)),
        ("head/IM-1-9.png", picture(side=70)),
        ("head/IM-1-2.png", picture(side=70)),
        ("head/IM-1-3.png", picture(side=64)),  # Of another size.
        ("head/overview.png", picture(side=70)),  # Without a number.
        ("other/IM-1-4.png", picture(side=70)),  # In another folder, ...
        ("other/IM-1-5.png", picture(side=70)),  # ... where two are too few.
    ]
    sent = [upload(content, name) for name, content in files]
    series, *alone = accept_upload(ann, sent, choices=NUMBERED).scans
    assert packed(series) == [picture(side=70)] * 3
    assert [scan.slice_count for scan in alone] == [1] * 4
    with zipfile.ZipFile(storage.open(series.original_key)) as stored:
        assert stored.namelist() == ["file-0003.png", "file-0002.png", "file-0001.png"]
    apart = accept_upload(
        ann, [upload(content) for _, content in files], choices=Choices(pictures=Pictures.APART)
    ).scans
    assert len(apart) == len({scan.study_id for scan in apart}) == 7


def test_series_of_one_examination_are_a_study(ann: str, nudges: list[str]) -> None:
    def one(uid: str, number: int) -> dict[str, bytes]:
        files = series(number, StudyInstanceUID=uid, PatientID=uid)
        return {f"{uid}/{number}/{place}.dcm": content for place, content in enumerate(files)}

    files = {**one("1.2", 1), **one("1.2", 2), **one("1.3", 1)}
    scans = accept_upload(ann, [upload(zip_of(files))]).scans
    first, second, other = (scan.study_id for scan in scans)
    assert first == second != other
    # Those of a study came at one time; the first folder stands first among the newest.
    assert scans[0].created_at == scans[1].created_at > scans[2].created_at
    together = accept_upload(
        ann, [upload(zip_of(files))], choices=Choices(studies=Studies.ONE)
    ).scans
    assert len({scan.study_id for scan in together}) == 1
    apart = accept_upload(ann, [upload(zip_of(files))], choices=Choices(studies=Studies.NONE)).scans
    assert len({scan.study_id for scan in apart}) == 3


def test_scans_of_one_drop_have_distinct_titles_in_the_order_of_their_folders(
    ann: str, nudges: list[str]
) -> None:
    def study(uid: str, *numbers: int) -> dict[str, bytes]:
        return {
            f"drop/{uid}/{number}-{place}.dcm": content
            for number in numbers
            for place, content in enumerate(series(number, StudyInstanceUID=uid, PatientID=uid))
        }

    files = {**study("10", 2), **study("9", 2), **study("2", 2, 3)}
    sent = [upload(content, name) for name, content in files.items()]
    dropped_at = utc_now() - timedelta(minutes=1)
    first = Choices(number=1, dropped_at=dropped_at)
    second = Choices(number=2, dropped_at=dropped_at, pictures=Pictures.AS_NUMBERED)
    scans = accept_upload(ann, [upload(picture(), "drop/z.png")], "Monday", second).scans
    scans += accept_upload(ann, sent, "Monday", first).scans
    newest = sorted(scans, key=lambda scan: (-scan.created_at.timestamp(), scan.title))
    assert [scan.title.removeprefix("Monday · ") for scan in newest] == [
        "Study 1 · Series 2",
        "Study 1 · Series 3",
        "Study 2 · Series 2",
        "Study 3 · Series 2",
        "PNG slice 2",
    ]
    # Another drop some seconds later does not know the titles of this one.
    again = Choices(number=1, dropped_at=dropped_at + timedelta(seconds=3))
    [next_drop] = accept_upload(ann, [upload(picture(), "drop/y.png")], choices=again).scans
    afterwards = Choices(number=1, dropped_at=dropped_at + timedelta(seconds=9))
    [last_drop] = accept_upload(ann, [upload(picture(), "drop/x.png")], choices=afterwards).scans
    assert (next_drop.title, last_drop.title) == ("PNG slice 1", "PNG slice 1")
    later = Choices(keep_names=True, dropped_at=utc_now() + timedelta(days=1))
    [accepted] = accept_upload(ann, sent[:4], choices=later).scans
    assert accepted.title == "10" and accepted.created_at <= utc_now()


def test_numbered_names_of_people_are_no_slices_and_sizes_are_apart(
    ann: str, nudges: list[str]
) -> None:
    sizes = {"study_1": 70, "study_2": 70, "study_3": 70, "1": 70, "2": 70, "3": 70}
    sizes |= {"4": 64, "5": 64, "6": 64}
    sent = [upload(picture(side=side), f"drop/{name}.png") for name, side in sizes.items()]
    scans = accept_upload(ann, sent, choices=NUMBERED).scans
    assert [(scan.slice_count, scan.title) for scan in scans] == [
        (3, "PNG series 1"),
        (3, "PNG series 2"),
        (1, "Study 1"),
        (1, "Study 2"),
        (1, "Study 3"),
    ]
    assert len({scan.study_id for scan in scans}) == 4  # Two series of one folder are a study.


def test_what_has_no_header_is_a_study_by_its_archive(ann: str, nudges: list[str]) -> None:
    files = {f"{place}.nii": nifti_file() for place in (1, 2)} | {"key.png": picture()}
    one, two, single = accept_upload(ann, [upload(zip_of(files))]).scans
    assert one.study_id == two.study_id != single.study_id
    loose = accept_upload(ann, [upload(content) for content in files.values()]).scans
    assert len({scan.study_id for scan in loose}) == 3


def test_the_outcome_of_each_file_is_reported(ann: str, nudges: list[str]) -> None:
    files = [*series(slices=8), b"text", series()[0][:-5]]
    sent = [upload(content, f"head/{place}.dcm") for place, content in enumerate(files)]
    receipt = accept_upload(ann, sent, choices=Choices(leave_out=True))
    assert [scan.slice_count for scan in receipt.scans] == [8]
    assert receipt.refused == {
        8: "The file is not a PNG, JPEG, DICOM or NIfTI image.",
        9: "The DICOM file is damaged or incomplete.",
    }


def test_one_damaged_slice_among_many_is_left_out_and_noted(ann: str, nudges: list[str]) -> None:
    files = series(slices=10)
    files[6] = files[6][:-5]
    [scan] = accept_upload(
        ann, [upload(content, f"Doe^John {place}.dcm") for place, content in enumerate(files)]
    ).scans
    assert (scan.slice_count, scan.notes) == (
        9,
        ["File 7 of 10 was skipped: The DICOM file is damaged or incomplete."],
    )
    packed = zip_of({f"{place}.dcm": content for place, content in enumerate(files)})
    [named] = accept_upload(
        ann, [upload(packed, "Doe, case 4.zip")], choices=Choices(keep_names=True)
    ).scans
    assert named.notes == ["“6.dcm” was skipped: The DICOM file is damaged or incomplete."]
    assert named.title == "Doe, case 4"
    [unnamed] = accept_upload(ann, [upload(packed, "Doe, case 4.zip")]).scans
    assert unnamed.title.startswith("Case 4")


def test_a_damaged_member_of_an_archive_is_left_out_and_noted(
    ann: str, nudges: list[str], tmp_path: Path
) -> None:
    packed = bytearray(
        zip_of(
            {f"study/{place}": content for place, content in enumerate(series(slices=10))},
            zipfile.ZIP_STORED,
        )
    )
    packed[packed.index(b"study/7") + 1000] ^= 1
    [scan] = accept_upload(ann, [upload(bytes(packed))]).scans
    assert (scan.slice_count, scan.notes) == (
        9,
        ["File 8 of 10 was skipped: The file cannot be unpacked from the ZIP archive."],
    )
    [named] = accept_upload(ann, [upload(bytes(packed))], choices=Choices(keep_names=True)).scans
    assert named.notes == ["“7” was skipped: The file cannot be unpacked from the ZIP archive."]
    alone = bytearray(zip_of({"1.png": picture()}, zipfile.ZIP_STORED))
    alone[100] ^= 1
    with pytest.raises(
        UploadRejected, match=r"^The file cannot be unpacked from the ZIP archive\.$"
    ):
        accept_upload(ann, [upload(bytes(alone))])


def test_too_many_damaged_slices_are_sent_again(ann: str, tmp_path: Path) -> None:
    files = [
        content[: -5 * (place > 6)] if place > 6 else content
        for place, content in enumerate(series(slices=10))
    ]
    with pytest.raises(UploadRejected, match=r"“7.dcm”: The DICOM file is damaged or incomplete."):
        accept_upload(
            ann, [upload(zip_of({f"{place}.dcm": content for place, content in enumerate(files)}))]
        )
    assert nothing_is_left(tmp_path)


def test_two_patients_in_one_series_are_refused_and_in_two_they_are_two_scans(
    ann: str, nudges: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UploadRejected, match="are from different patients"):
        accept_upload(
            ann,
            [upload(content) for content in [*series(PatientID="one"), *series(PatientID="two")]],
        )
    assert nothing_is_left(tmp_path)
    assert (
        len(
            accept_upload(
                ann,
                [
                    upload(content)
                    for content in [*series(1, PatientID="one"), *series(2, PatientID="two")]
                ],
            ).scans
        )
        == 2
    )


def test_a_series_that_is_too_long_or_too_large_is_refused(
    app: Flask, ann: str, tmp_path: Path
) -> None:
    app.config["MAX_SLICES"] = 3
    with pytest.raises(UploadRejected, match=r"The series has 4 slices; at most 3 are supported."):
        accept_upload(ann, [upload(content) for content in series()])
    with pytest.raises(
        UploadRejected, match=r"The ZIP archive holds 4 files; at most 3 are supported."
    ):
        accept_upload(
            ann, [upload(zip_of({str(place): content for place, content in enumerate(series())}))]
        )
    app.config |= {"MAX_SLICES": 2000, "MAX_SERIES_PIXELS": 64 * 64 * 3}
    with pytest.raises(UploadRejected, match=r"at most 0.012288 million are supported."):
        accept_upload(ann, [upload(content) for content in series()])
    assert nothing_is_left(tmp_path)


def test_the_limits_on_archives_are_those_of_the_upload(
    app: Flask, ann: str, nudges: list[str], tmp_path: Path
) -> None:
    archives = [zip_of({f"{place}.png": picture(side=400) for place in range(3)}) for _ in range(3)]
    app.config |= {"MAX_SLICES": 9}
    assert len(accept_upload(ann, [upload(content) for content in archives]).scans) == 3
    app.config |= {"MAX_SLICES": 8}
    with pytest.raises(
        UploadRejected, match=r"The ZIP archives hold 9 files; at most 8 are supported."
    ):
        accept_upload(ann, [upload(content) for content in archives])
    blank = zip_of({"1.nii": nifti_file((64, 64, 60))})
    app.config |= {"MAX_UNPACKED_MB": 1}
    with pytest.raises(UploadRejected, match=r"The ZIP archives unpack to more than 1 MB."):
        accept_upload(ann, [upload(blank) for _ in range(3)])
    assert not files_under(tmp_path / "incoming")


def test_scans_without_a_title_are_numbered_for_each_user(
    ann: str, app: Flask, nudges: list[str]
) -> None:
    bob = make_user(app, "bob")
    titles = [
        accept_upload(owner, [upload(picture(), "Doe, Jane 1950.png")], title).scans[0].title
        for owner, title in ((ann, ""), (ann, "Monday"), (ann, ""), (bob, ""), (ann, "Scan 7"))
    ]
    assert titles == ["Scan 1", "Monday", "Scan 2", "Scan 1", "Scan 7"]
    assert accept_upload(ann, [upload(picture())]).scans[0].title == "Scan 8"


@pytest.mark.parametrize(
    "tag", [b"\x18\0\x50\0DS", b"\x20\0\x11\0IS"], ids=["thickness", "series number"]
)
@pytest.mark.parametrize("length", [100, 5000, 65535])
def test_a_number_of_thousands_of_digits_is_no_number(
    ann: str, nudges: list[str], tag: bytes, length: int
) -> None:
    content = dicom_file()
    at = content.index(b"\x28\0\x02\0US")
    long = tag + length.to_bytes(2, "little") + b"1" * length
    [scan] = accept_upload(
        ann,
        [upload(zip_of({f"{place}": content[:at] + long + content[at:] for place in range(2)}))],
    ).scans
    assert (scan.slice_count, scan.title) == (2, "Scan 1")


def test_packed_volumes_are_few_in_one_upload(
    ann: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sorting, "MOST_PACKED", 2)
    volume = nifti_file((8, 8, 2), packed=True)
    with pytest.raises(UploadRejected, match=r"more than 2 compressed NIfTI files"):
        accept_upload(ann, [upload(zip_of({str(place): volume for place in range(3)}))])
    assert nothing_is_left(tmp_path)


def test_urgent_scans_are_few(app: Flask, ann: str, nudges: list[str]) -> None:
    app.config["MAX_STAT"] = 2
    urgent = Choices(stat=True)
    assert [
        scan.stat for scan in accept_upload(ann, [upload(picture())], choices=urgent).scans
    ] == [True]
    late = accept_upload(ann, [upload(picture()), upload(picture())], choices=urgent).scans
    assert [scan.stat for scan in late] == [True, False]
    assert [scan.notes for scan in late] == [
        [],
        ["You already have too many STAT scans waiting; this one was queued with normal priority."],
    ]


def test_whoever_has_stored_as_much_as_one_may_deletes_first(
    app: Flask, ann: str, nudges: list[str]
) -> None:
    app.config["QUOTA_MB"] = 2
    accept_upload(ann, [upload(nifti_file((512, 512, 3)))])
    with pytest.raises(
        UploadRejected,
        match=(
            r"With this upload your scans would use 4 MB, but you may store 2 MB. Please delete"
            r" some."
        ),
    ):
        accept_upload(ann, [upload(nifti_file((512, 512, 3)))])
    assert len(storage.keys("originals")) == 1
    app.config["QUOTA_MB"] = 1
    with pytest.raises(
        UploadRejected,
        match=r"Your scans use 1 of the 1 MB that you may store. Please delete some.",
    ):
        accept_upload(ann, [upload(picture())])


@pytest.mark.parametrize("limit", ["MAX_STAT", "QUOTA_MB"])
def test_uploads_at_the_same_time_keep_to_the_limits_together(
    any_database_app: Flask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str
) -> None:
    """All are stored before the first of them is committed."""
    ann = make_user(any_database_app, "ann")
    any_database_app.config |= {limit: 2}
    monkeypatch.setattr(accept, "nudge", lambda task: True)
    real, all_stored = Storage.put, threading.Barrier(4)
    refused: list[str] = []

    def put(self: Storage, key: str, content: bytes | Path) -> None:
        real(self, key, content)
        all_stored.wait(30)

    monkeypatch.setattr(Storage, "put", put)

    def send() -> None:
        with any_database_app.test_request_context():
            try:
                accept_upload(ann, [upload(nifti_file((512, 512, 2)))], choices=Choices(stat=True))
            except UploadRejected as err:
                refused.append(str(err))

    uploads = [threading.Thread(target=send) for _ in range(4)]
    for thread in uploads:
        thread.start()
    for thread in uploads:
        thread.join()
    with any_database_app.app_context():
        scans = db.session.scalars(select(Scan)).all()
        if limit == "MAX_STAT":
            assert (sorted(scan.stat for scan in scans), refused) == (
                [False, False, True, True],
                [],
            )
            assert sorted(scan.notes or [] for scan in scans) == [
                [],
                [],
                [IN_ITS_TURN],
                [IN_ITS_TURN],
            ]
        else:
            assert sum(scan.size for scan in scans) <= 2 * 2**20
            assert (len(scans), len(refused), len(storage.keys("originals"))) == (1, 3, 1)


def test_nothing_that_names_a_patient_is_kept(
    app: Flask, ann: str, nudges: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, secrets = planted_everywhere()
    volume = nifti_file(secrets=True, packed=True)
    archive = zip_of(
        {
            f"PLANT910X/{place}/PLANT911X.dcm": one
            for place, one in enumerate([*series(StudyDescription="PLANT912X"), content])
        }
    )
    accept_upload(
        ann,
        [
            upload(content, "PLANT913X.dcm"),
            upload(volume, "PLANT914X.nii.gz"),
            upload(archive, "PLANT915X.zip"),
        ],
    )
    secret = new_secret()
    db.session.add(
        ApiToken(
            user_id=ann, name="a test", secret_hash=secret_hash(secret), scopes=" ".join(Scope)
        )
    )
    db.session.commit()
    ids = db.session.scalars(select(Scan.id)).all()
    assert len(ids) == 3
    db.session.remove()
    client = app.test_client()
    addresses = ["/api/v1/scans", *(f"/api/v1/scans/{scan_id}" for scan_id in ids)]
    answers = [
        client.get(address, headers={"Authorization": f"Bearer {secret}"}) for address in addresses
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    db.engine.dispose()
    everything = (
        b"".join(path.read_bytes() for path in files_under(tmp_path)) + caplog.text.encode()
    )
    everything += b"".join(answer.data for answer in answers)
    assert len(secrets) >= 60
    assert b"PLANT" not in everything
    assert ann.encode() in everything
    stored = [path for path in files_under(tmp_path / "files") if path.suffix == ".nii"]
    assert nibabel.Nifti1Image.from_bytes(gzip.decompress(stored[0].read_bytes())).shape == (
        64,
        64,
        5,
    )


def test_what_a_killed_server_left_is_removed_at_the_next_start(app: Flask, tmp_path: Path) -> None:
    left = tmp_path / "incoming" / "tmp1"
    left.mkdir(parents=True)
    (left / "1").write_bytes(b"x")
    (tmp_path / "incoming" / "dataset-1.zip").write_bytes(b"x")
    empty_incoming(tmp_path / "incoming")
    assert list((tmp_path / "incoming").iterdir()) == []
    empty_incoming(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("ending", "status", "files"),
    [
        (b"\r\n--end--\r\n", 422, 1),  # Not an image.
        (b"\r\n--end\r\nContent-Disposition: form-data; name=file; filename=b\r\n\r\n", 422, 2),
        (b"\r\n--end\r\nContent-Disposition: form-data; name=title\r\n\r\n" + b"x" * 10**6, 413, 1),
    ],
    ids=["refused", "breaks off", "too long a field"],
)
def test_files_of_a_refused_form_are_closed_with_the_request(
    app: Flask, monkeypatch: pytest.MonkeyPatch, ending: bytes, status: int, files: int
) -> None:
    opened: list[IO[bytes]] = []

    def temporary_file(*args: Any, **kwargs: Any) -> IO[bytes]:
        opened.append(TemporaryFile(*args, **kwargs))  # noqa: SIM115
        return opened[-1]

    monkeypatch.setattr(spool, "TemporaryFile", temporary_file)
    start = b"--end\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n"
    answer = client_of(app, "ann").post(
        "/api/v1/scans",
        data=start + bytes(spool.HELD_IN_MEMORY) + ending,
        content_type="multipart/form-data; boundary=end",
    )
    assert answer.status_code == status
    assert [file.closed for file in opened] == [True] * files


# --- data sets


def archive(tmp_path: Path) -> Path:
    """Return a ZIP archive."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("labels.csv", "filename,label\n")
    return path


def test_a_data_set_is_stored_and_queued(ann: str, nudges: list[str], tmp_path: Path) -> None:
    path = archive(tmp_path)
    dataset = accept_dataset(" head_ct ", path, ann)
    assert (dataset.name, dataset.imported_by_id, dataset.status) == (
        "head_ct",
        ann,
        JobStatus.QUEUED,
    )
    assert storage.get(dataset.archive_key) == path.read_bytes()
    assert nudges == [IMPORT_DATASET]


def test_the_name_of_a_data_set_is_unique(ann: str, nudges: list[str], tmp_path: Path) -> None:
    accept_dataset("head_ct", archive(tmp_path), ann)
    with pytest.raises(UploadRejected, match=r"A data set named “head_ct” already exists."):
        accept_dataset("head_ct", archive(tmp_path), None)
    assert len(files_under(tmp_path / "files")) == 1
    assert nudges == [IMPORT_DATASET]


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\x00b"])
def test_a_data_set_needs_a_name(ann: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(UploadRejected, match=r"Invalid data set name."):
        accept_dataset(name, archive(tmp_path), ann)
    assert nothing_is_left(tmp_path)


def test_only_a_complete_zip_is_a_data_set(ann: str, tmp_path: Path) -> None:
    path = archive(tmp_path)
    for content in (b"", b"text", path.read_bytes()[:-10]):
        path.write_bytes(content)
        with pytest.raises(UploadRejected, match=r"The file is not a complete ZIP archive."):
            accept_dataset("head_ct", path, ann)
    assert nothing_is_left(tmp_path)
