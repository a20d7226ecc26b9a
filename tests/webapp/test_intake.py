"""What may come in: every kind that is read, every refusal a sentence, and nothing half-written left behind."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from PIL import Image
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from werkzeug.datastructures import FileStorage

from tests.conftest import make_user
from webapp import intake
from webapp.extensions import db
from webapp.intake import UploadRejected, accept_dataset, accept_scans
from webapp.jobs import IMPORT_DATASET, PREDICT_SCANS
from webapp.models import Dataset, JobStatus, Scan
from webapp.storage import StorageError, storage


def picture(kind: str = "PNG", side: int = 64) -> bytes:
    """Return a grey picture as a file."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(file, kind)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a PNG's chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    """Return a small JPEG that says it is large."""
    small = picture("JPEG")
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", height, width) + small[at + 4 :]


def dicom(syntax: str = ExplicitVRLittleEndian, without: tuple[str, ...] = (), **tags: Any) -> bytes:
    """Return a CT slice of 64 x 64 as a DICOM file, with these tags changed and those left out."""
    header = DicomDataset()
    header.SOPClassUID = CTImageStorage
    header.SOPInstanceUID = generate_uid()
    header.Modality = "CT"
    header.PatientName = "Doe^John"
    header.Rows = header.Columns = 64
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 1
    header.add_new("PixelData", "OW", np.zeros((64, 64), np.int16).tobytes())
    for name, value in tags.items():
        setattr(header, name, value)
    for name in without:
        delattr(header, name)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


REFUSED = [
    (b"", "The file is empty."),
    (b"\x00", "The file is not a PNG, JPEG or DICOM image."),
    (b"Not a picture at all.", "The file is not a PNG, JPEG or DICOM image."),
    (b"GIF89a" + bytes(100), "The file is not a PNG, JPEG or DICOM image."),
    (picture()[:8], "The PNG picture is damaged or incomplete."),
    (picture()[:-20], "The PNG picture is damaged or incomplete."),
    (picture()[: len(picture()) // 2], "The PNG picture is damaged or incomplete."),
    (picture().replace(b"IDAT", b"IDXT"), "The PNG picture is damaged or incomplete."),
    (png_of(30_000, 30_000), "The picture is too large: 30000 x 30000 pixels, at most 16 million are read."),
    (jpeg_of(30_000, 30_000), "The picture is too large: 30000 x 30000 pixels, at most 16 million are read."),
    (b"\xff\xd8\xff" + bytes(10), "The JPEG picture is damaged or incomplete."),
    (dicom(without=("PixelData",)), "The DICOM file has no picture in it."),
    (dicom(without=("Rows",)), "The DICOM file has no picture in it."),
    (dicom(Rows=0), "The DICOM file has no picture in it."),
    (dicom(Rows=30_000, Columns=30_000), "The picture is too large: 30000 x 30000 pixels, at most 16 million are read."),
    (dicom(Modality="MR"), "The DICOM file is not a CT image: its modality is MR."),
    (dicom(NumberOfFrames=3), "The DICOM file has 3 frames; only files with a single slice are read."),
    (dicom(SamplesPerPixel=3), "The DICOM file is a color picture, not a CT slice."),
    (dicom(DeflatedExplicitVRLittleEndian), "The DICOM file is deflated, which is not read; please export it without."),
    (dicom()[:132], "The DICOM file does not say how its pixels are coded (no transfer syntax)."),
    (dicom()[:200], "The DICOM file"),
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

    monkeypatch.setattr(intake, "nudge", nudge)
    return sent


def nothing_is_left(tmp_path: Path) -> bool:
    """True if neither a row nor a file was written."""
    rows = sum(db.session.scalar(select(func.count()).select_from(table)) or 0 for table in (Scan, Dataset))
    return rows == 0 and not files_under(tmp_path / "files") and not files_under(tmp_path / "incoming")


# --- scans


@pytest.mark.parametrize(
    ("content", "kind", "suffix"),
    [
        (picture("PNG"), "png", ".png"),
        (picture("JPEG"), "jpeg", ".jpg"),
        (dicom(), "dicom", ".dcm"),
        (dicom(ImplicitVRLittleEndian), "dicom", ".dcm"),
        (dicom(without=("Modality",)), "dicom", ".dcm"),
    ],
    ids=["png", "jpeg", "dicom", "implicit dicom", "dicom without modality"],
)
def test_what_a_file_is_says_its_content(ann: str, nudges: list[str], content: bytes, kind: str, suffix: str) -> None:
    [scan] = accept_scans(ann, [upload(content, "../../etc/holiday.gif")], "  Monday ")
    assert (scan.kind, scan.title, scan.user_id, scan.status) == (kind, "Monday", ann, JobStatus.QUEUED)
    assert scan.original_key == f"originals/{scan.id}{suffix}"
    assert storage.get(scan.original_key) == content
    assert nudges == [PREDICT_SCANS]


def test_many_files_are_many_scans_and_one_nudge(ann: str, nudges: list[str]) -> None:
    contents = [picture(side=64 + i) for i in range(5)]
    scans = accept_scans(ann, [upload(content) for content in contents])
    assert [storage.get(scan.original_key) for scan in scans] == contents
    assert nudges == [PREDICT_SCANS]


def test_a_large_file_goes_by_way_of_a_file_that_is_removed(
    ann: str, nudges: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "HELD_IN_MEMORY", 100)
    content = picture(side=256)
    [scan] = accept_scans(ann, [upload(content)])
    assert storage.get(scan.original_key) == content
    assert files_under(tmp_path / "incoming") == []


@pytest.mark.parametrize(("content", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_cannot_be_read_is_refused_with_a_sentence(
    ann: str, nudges: list[str], tmp_path: Path, content: bytes, sentence: str
) -> None:
    with pytest.raises(UploadRejected) as refusal:
        accept_scans(ann, [upload(content, "a.png")])
    assert str(refusal.value).startswith(sentence)
    assert str(refusal.value).endswith(".")
    assert nothing_is_left(tmp_path)
    assert nudges == []


def test_of_many_files_the_refused_one_is_named_and_none_is_stored(ann: str, nudges: list[str], tmp_path: Path) -> None:
    with pytest.raises(UploadRejected) as refusal:
        accept_scans(ann, [upload(picture(), "good.png"), upload(b"", "no\u202e\x00thing.png")])
    assert str(refusal.value) == "“nothing.png”: The file is empty."
    with pytest.raises(UploadRejected, match="“number 2”"):
        accept_scans(ann, [upload(picture()), FileStorage(io.BytesIO(b""))])
    assert nothing_is_left(tmp_path)


def test_too_many_files_and_none_are_refused(app: Flask, ann: str) -> None:
    app.config["MAX_FILES_PER_UPLOAD"] = 2
    with pytest.raises(UploadRejected, match=r"The upload has 3 files; at most 2 are accepted at once."):
        accept_scans(ann, [upload(picture())] * 3)
    with pytest.raises(UploadRejected, match=r"There is no file in this upload."):
        accept_scans(ann, [])


def test_a_file_over_the_limit_is_refused(app: Flask, ann: str) -> None:
    app.config["MAX_UPLOAD_MB"] = 1
    with pytest.raises(UploadRejected, match=r"The file is larger than 1 MB."):
        accept_scans(ann, [upload(picture() + bytes(2**20))])


@pytest.mark.parametrize("title", ["x" * 81, "a\x00b", "a\nb"])
def test_a_title_that_cannot_be_stored_is_refused(ann: str, tmp_path: Path, title: str) -> None:
    with pytest.raises(UploadRejected, match=r"The title is not accepted."):
        accept_scans(ann, [upload(picture())], title)
    assert nothing_is_left(tmp_path)


def test_a_storage_that_fails_halfway_leaves_nothing(ann: str, nudges: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    puts = []

    def put(key: str, content: bytes) -> None:
        puts.append(key)
        if len(puts) == 3:
            raise StorageError("The storage did not accept a file; please try again later.")
        store(key, content)

    store = storage.put
    monkeypatch.setattr(intake, "storage", type("Failing", (), {"put": staticmethod(put), "delete": staticmethod(storage.delete)}))
    with pytest.raises(StorageError):
        accept_scans(ann, [upload(picture()) for _ in range(4)])
    assert nothing_is_left(tmp_path)
    assert nudges == []


def test_a_database_that_fails_leaves_no_file(ann: str, nudges: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        if db.session.new:
            raise OperationalError("COMMIT", {}, Exception("disk full"))

    monkeypatch.setattr(db.session, "commit", fail)
    with pytest.raises(OperationalError):
        accept_scans(ann, [upload(picture())])
    assert nothing_is_left(tmp_path)
    assert nudges == []


def test_no_transaction_is_open_while_a_file_is_stored(ann: str, monkeypatch: pytest.MonkeyPatch) -> None:
    db.session.scalar(select(func.count()).select_from(Scan))
    assert db.session().in_transaction()
    seen = []

    def look(*_: object) -> None:
        seen.append(db.session().in_transaction())

    monkeypatch.setattr(intake, "_store", look)
    accept_scans(ann, [upload(picture()), upload(picture())])
    assert seen == [False, False]


def test_a_queue_that_cannot_be_reached_is_told_and_the_scan_waits(ann: str) -> None:
    told: list[bool] = []
    [scan] = accept_scans(ann, [upload(picture())], on_unreachable=lambda: told.append(True))
    assert told == [True]
    assert db.session.get_one(Scan, scan.id).status == JobStatus.QUEUED


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
    assert (dataset.name, dataset.imported_by_id, dataset.status) == ("head_ct", ann, JobStatus.QUEUED)
    assert storage.get(dataset.archive_key) == path.read_bytes()
    assert nudges == [IMPORT_DATASET]


def test_the_name_of_a_data_set_is_unique(ann: str, nudges: list[str], tmp_path: Path) -> None:
    accept_dataset("head_ct", archive(tmp_path), ann)
    with pytest.raises(UploadRejected, match=r"There is a data set named “head_ct” already."):
        accept_dataset("head_ct", archive(tmp_path), None)
    assert len(files_under(tmp_path / "files")) == 1
    assert nudges == [IMPORT_DATASET]


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\x00b"])
def test_a_data_set_needs_a_name(ann: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(UploadRejected, match=r"The name of the data set is not accepted."):
        accept_dataset(name, archive(tmp_path), ann)
    assert nothing_is_left(tmp_path)


def test_only_a_complete_zip_is_a_data_set(ann: str, tmp_path: Path) -> None:
    path = archive(tmp_path)
    for content in (b"", b"text", path.read_bytes()[:-10]):
        path.write_bytes(content)
        with pytest.raises(UploadRejected, match=r"The file is not a complete ZIP archive."):
            accept_dataset("head_ct", path, ann)
    assert nothing_is_left(tmp_path)


def test_an_upload_is_spooled_and_removed_on_every_path(app: Flask, tmp_path: Path) -> None:
    def use(then: Callable[[], None]) -> None:
        with intake.spooled(io.BytesIO(b"content")) as path:
            assert path.read_bytes() == b"content"
            then()

    with app.app_context():
        use(lambda: None)
        with pytest.raises(ZeroDivisionError):
            use(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert files_under(tmp_path / "incoming") == []
