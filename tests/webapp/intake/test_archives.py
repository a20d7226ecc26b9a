"""ZIP archives that people send: members one at a time, and a sentence for each way to do harm."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from ml.datasets.archive import unpack
from tests.webapp.intake.made import zip_of
from webapp.intake.archives import ArchiveRefused, members

DAMAGED = "The ZIP archive is damaged or incomplete."


def unpacked(
    content: bytes, folder: Path, most_files: int = 10, most_bytes: int = 10**6
) -> dict[str, bytes | None]:
    """Return what an archive holds, None for a damaged file."""
    archive = io.BytesIO(content)
    return {
        name: member.read() if is_sound else None
        for name, member, is_sound in members(
            archive, len(content), most_files=most_files, most_bytes=most_bytes, folder=folder
        )
    }


def refusal(content: bytes, folder: Path, **limits: int) -> str:
    """Return why an archive is refused; nothing of it is left."""
    with pytest.raises(ArchiveRefused) as refused:
        unpacked(content, folder, **limits)
    assert list(folder.iterdir()) == []
    return str(refused.value)


def test_members_come_one_at_a_time_without_what_systems_add(tmp_path: Path) -> None:
    files = {"a/1.png": b"one", "a/2.png": b"two" * 1000, "b": b""}
    added = {
        "DICOMDIR": b"x",
        "__MACOSX/a/._1.png": b"x",
        "a/.DS_Store": b"x",
        "a/Thumbs.db": b"x",
        "c/": b"",
    }
    assert unpacked(zip_of({**files, **added}), tmp_path) == files
    assert unpacked(zip_of(files, zipfile.ZIP_STORED), tmp_path) == files


def test_a_member_is_at_hand_only_until_the_next(tmp_path: Path) -> None:
    content = zip_of({"1": b"one", "2": b"two"})
    taken = [
        member
        for _, member, _ in members(
            io.BytesIO(content), len(content), most_files=9, most_bytes=99, folder=tmp_path
        )
    ]
    assert all(member.closed for member in taken)


def test_limits_hold(tmp_path: Path) -> None:
    content = zip_of({str(number): bytes(1000) for number in range(5)})
    assert (
        refusal(content, tmp_path, most_files=4)
        == "The ZIP archive holds 5 files; at most 4 are supported."
    )
    assert (
        refusal(content, tmp_path, most_bytes=4999) == "The ZIP archive unpacks to more than 0 MB."
    )


DIRECTORY, END = b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [(DIRECTORY, 6, 99), (DIRECTORY, 28, 0)],
    ids=["a version that nobody reads", "a member without a name"],
)
def test_a_directory_that_contradicts_itself_is_a_sentence(
    tmp_path: Path, record: bytes, field: int, value: int
) -> None:
    content = bytearray(zip_of({"a": b"one"}))
    struct.pack_into("<H", content, content.index(record) + field, value)
    assert refusal(bytes(content), tmp_path) == DAMAGED


def test_names_that_are_no_text_are_a_sentence(tmp_path: Path) -> None:
    content = zip_of({"é": b"one"}).replace("é".encode(), b"\xff\xff")
    assert refusal(content, tmp_path) == DAMAGED


def test_a_damaged_member_is_none_and_the_others_are_read(tmp_path: Path) -> None:
    files = {"a": bytes(range(256)) * 50, "b": b"x" * 3000, "c": b"y"}
    for damage in (2000, 1, 27):  # In the pixels, in the mark of the member, in a length there.
        content = bytearray(zip_of(files, zipfile.ZIP_STORED))
        content[damage] ^= 1
        assert unpacked(bytes(content), tmp_path) == {**files, "a": None}
    content = bytearray(zip_of(files))
    content[content.index(b"PK\x03\x04", 1) + 33] ^= 0xFF
    assert unpacked(bytes(content), tmp_path) == {**files, "b": None}


def test_a_member_that_begins_before_the_file_is_damaged(tmp_path: Path) -> None:
    content = bytearray(zip_of({"a": b"one"}))
    struct.pack_into("<H", content, content.index(END) + 16, 99)
    assert unpacked(bytes(content), tmp_path) == {"a": None}


def test_a_member_that_is_larger_than_its_directory_says_is_cut_short(tmp_path: Path) -> None:
    content = bytearray(zip_of({"bomb": bytes(5_000_000)}))
    for at in (22, content.index(b"PK\x01\x02") + 24):  # Its sizes in both headers.
        content[at : at + 4] = struct.pack("<I", 1000)
    assert unpacked(bytes(content), tmp_path) == {"bomb": None}


def test_an_archive_that_grows_beyond_measure_is_refused(tmp_path: Path) -> None:
    content = zip_of({"bomb": bytes(100 * 2**20)})
    assert (
        refusal(content, tmp_path, most_bytes=2**30)
        == "The ZIP archive expands to far more than its own size."
    )


def test_a_directory_of_millions_is_not_read(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(40_000):
            archive.writestr(f"{number:060}", b"")
    assert refusal(packed.getvalue(), tmp_path) == "The ZIP archive contains far too many files."


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "..\\up"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    assert (
        refusal(zip_of({"fine": b"x", name: b"x"}), tmp_path)
        == "The ZIP archive contains a file with an unsafe path."
    )


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("Viewer.app/Current")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert unpacked(packed.getvalue(), tmp_path) == {"Viewer.app/Current": b"/etc/passwd"}


def commented(files: dict[str, bytes], comment: bytes) -> bytes:
    """Return an archive with a comment."""
    packed = io.BytesIO(zip_of(files))
    with zipfile.ZipFile(packed, "a") as archive:
        archive.comment = comment
    return packed.getvalue()


FILES = {"a": b"one" * 100, "b": b"two"}
COMMENTS = {
    "a word": b"made by hand",
    "the mark of the end": b"see PK\x05\x06 there",
    "the mark at the end": b"PK\x05\x06",
    "marks": b"PK\x05\x06" * 50,
    "an empty archive": zip_of({}),
    "the end of another archive": zip_of(FILES)[-22:],
    "as much as fits": b"PK\x05\x06".ljust(65_535, b"x"),
}


@pytest.mark.parametrize("comment", COMMENTS.values(), ids=COMMENTS)
def test_a_comment_may_contain_anything(tmp_path: Path, comment: bytes) -> None:
    content = commented(FILES, comment)
    assert unpacked(content, tmp_path) == FILES
    assert unpacked(b"MZ" + bytes(500) + content, tmp_path) == FILES
    path = tmp_path / "set.zip"
    path.write_bytes(content)
    assert (unpack(path, tmp_path / "set") / "a").read_bytes() == FILES["a"]


def test_another_archive_as_the_comment_is_ambiguous(tmp_path: Path) -> None:
    assert refusal(commented(FILES, zip_of({"c": b"x"})), tmp_path) == DAMAGED
    assert refusal(commented(FILES, b"PK\x05\x06" * 200), tmp_path) == DAMAGED


def test_an_archive_stored_inside_does_not_end_the_outer_one(tmp_path: Path) -> None:
    files = {"a": b"one", "report.docx": zip_of(FILES)}
    content = zip_of(files, zipfile.ZIP_STORED)
    assert unpacked(content, tmp_path) == files
    assert unpacked(content + bytes(10), tmp_path) == files


def zip64(content: bytes) -> bytes:
    """Return an archive with the records of a large one."""
    at = content.rindex(END)
    entries, length, place = struct.unpack_from("<H2L", content, at + 10)
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, length, place
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    full = struct.pack("<4s4H2LH", END, 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    return content[:at] + record + locator + full


def streamed(files: dict[str, bytes]) -> bytes:
    """Return an archive whose members' sizes follow them."""

    class Stream(io.RawIOBase):
        content = b""

        def writable(self) -> bool:
            return True

        def write(self, block: object) -> int:
            Stream.content += bytes(block)  # type: ignore[call-overload]
            return len(block)  # type: ignore[arg-type]

    with zipfile.ZipFile(Stream(), "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            archive.writestr(name, content)
    return Stream.content


@pytest.mark.parametrize(
    "content",
    [
        zip64(zip_of(FILES)),
        zip64(zip_of(FILES)) + b"\r\n",
        streamed(FILES),
        zip_of(FILES) + b"\r\n",
        b"PK00" + zip_of(FILES),
        b"PK\x07\x08" + zip_of(FILES),
        b"#!/bin/sh\n" + zip_of(FILES),
    ],
    ids=["zip64", "zip64 and more", "sizes behind", "more", "one part", "one part too", "script"],
)
def test_odd_archives_are_read(tmp_path: Path, content: bytes) -> None:
    assert unpacked(content, tmp_path) == FILES


def test_a_few_files_that_are_packed_otherwise_are_left_out(tmp_path: Path) -> None:
    packed = io.BytesIO(zip_of({str(number): b"x" for number in range(4)}))
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("report.txt", b"y" * 100, zipfile.ZIP_LZMA)
    assert unpacked(packed.getvalue(), tmp_path)["report.txt"] is None
    assert unpacked(packed.getvalue(), tmp_path)["0"] == b"x"


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of({"a": b"x" * 100}))
    for at in (6, content.index(b"PK\x01\x02") + 8):
        content[at] |= 1
    assert refusal(bytes(content), tmp_path) == "The ZIP archive is encrypted."


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    assert refusal(zip_of({"a": b"x" * 100}, zipfile.ZIP_LZMA), tmp_path).startswith(
        "The ZIP archive uses an unsupported compression method."
    )


def test_damage_is_reported(tmp_path: Path) -> None:
    content = zip_of({"a": bytes(range(256)) * 50, "b": b"x"}, zipfile.ZIP_STORED)
    for damaged in (content[:-10], content[: len(content) // 2], b"PK\x03\x04" + bytes(100)):
        assert refusal(damaged, tmp_path) == DAMAGED


@pytest.mark.parametrize("comment", [b"", b"x" * 0xFFFF], ids=["no comment", "the longest comment"])
def test_a_large_directory_is_not_read_whatever_its_locator_says(
    comment: bytes, tmp_path: Path
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(70_000):  # Of so many zipfile writes the larger record and its locator.
            archive.writestr(f"{number:060}", b"")
    content = packed.getvalue()
    locator_at = content.rindex(b"PK\x06\x07")
    record, end = content[locator_at - 56 : locator_at], content[locator_at + 20 :]
    harmless = record[:40] + struct.pack("<Q", 46) + record[48:]
    # At the start of the file, where the harmless one is put.
    elsewhere = struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
    end = end[:12] + struct.pack("<I", 46) + end[16:20] + struct.pack("<H", len(comment)) + comment
    hidden = harmless + content[: locator_at - 56] + record + elsewhere + end
    assert (
        refusal(hidden, tmp_path, most_files=100) == "The ZIP archive contains far too many files."
    )


def test_folders_divided_by_backslashes_are_folders(tmp_path: Path) -> None:
    content = zip_of({"p1\\1.png": b"a", "p2\\1.png": b"b", "__MACOSX\\._1.png": b"c"})
    assert unpacked(content, tmp_path) == {"p1/1.png": b"a", "p2/1.png": b"b"}
    with pytest.raises(ArchiveRefused, match="unsafe path"):
        unpacked(zip_of({"..\\1.png": b"a"}), tmp_path)


def test_what_is_an_archive_itself_is_not_opened(tmp_path: Path) -> None:
    inner = zip_of({"2.dcm": b"x"})
    files = {"1.dcm": b"a", "report.docx": inner, "viewer.zip": inner}
    assert unpacked(zip_of(files), tmp_path) == files
