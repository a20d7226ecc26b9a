"""ZIP archives of uploads: their members are read one at a time, within limits that are checked
before memory or disk is used.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from struct import error as struct_error
from struct import unpack_from
from tempfile import SpooledTemporaryFile
from typing import IO, cast

from ml.files.zip_end import UpToEnd, end_of_zip
from webapp.intake.streams import BLOCK

ZIP = b"PK\x03\x04"
PARTED = (b"PK00" + ZIP, b"PK\x07\x08" + ZIP)
"""How an archive begins that was to be divided and fits in one part."""
EMPTY_ZIP = b"PK\x05\x06"
MAX_DIRECTORY = 4 * 2**20
"""Maximum bytes of an archive's directory, which zipfile reads completely."""
HELD_IN_MEMORY = 2**20
FREE_OF_RATIO = 64 * 2**20
MAX_RATIO = 200
"""Maximum compression ratio beyond FREE_OF_RATIO unpacked bytes: CT is compressed two- to tenfold,
only blank images a hundredfold.
"""
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct_error,
    EOFError,
    NotImplementedError,
    OverflowError,
    OSError,
    ValueError,
)
"""The exceptions that zipfile raises for a damaged archive: offsets before its start and
undecodable names raise a ValueError.
"""
METHODS, MOST_PACKED_OTHERWISE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), 1 / 5
"""The supported compression methods, and the maximum share of files with others, which are left
out: some programs choose the method by the kind of file.
"""
NOT_IMAGES = ("dicomdir", "thumbs.db", "desktop.ini")


def is_zip(start: bytes) -> bool:
    """Return whether a file that begins with these 8 bytes is a ZIP archive."""
    return start.startswith((ZIP, EMPTY_ZIP, *PARTED))


class ArchiveRefused(ValueError):
    """An archive is refused; the message is a sentence."""


class _DamagedMember(ValueError):
    """A member cannot be unpacked."""


def members(
    archive: IO[bytes],
    size: int,
    *,
    most_files: int,
    most_bytes: int,
    earlier_files: int = 0,
    earlier_bytes: int = 0,
    folder: Path,
) -> Iterator[tuple[str, IO[bytes], bool]]:
    """Yield name and content of each file in the ZIP `archive` of `size` bytes, unpacked under
    `folder` until the next one is requested, and whether it is intact; the content of a damaged
    file ends where the damage was noticed.

    Folders and files added by operating systems (DICOMDIR, resource forks, hidden files) are
    skipped. Names are returned with slashes between folders, whatever the separator in the archive,
    and never used as paths; a link yields the name of its target as content. Earlier archives of
    the same upload count toward the limits.

    Raises:
        ArchiveRefused: the archive's directory is damaged, or the archive is encrypted, or contains
            unsafe names, or too much or too many files.
    """
    end = _check_directory(archive, size)
    try:
        packed = zipfile.ZipFile(cast(IO[bytes], UpToEnd(archive, end)))
    except UNREADABLE as err:
        raise ArchiveRefused("The ZIP archive is damaged or incomplete.") from err
    with packed:
        for info in packed.infolist():
            _check_member(info)
        files = [info for info in packed.infolist() if not _is_passed_over(info)]
        packed_otherwise = sum(info.compress_type not in METHODS for info in files)
        if packed_otherwise > MOST_PACKED_OTHERWISE * len(files):
            raise ArchiveRefused(
                "The ZIP archive uses an unsupported compression method. Please create it again."
            )
        holds, unpacks = (
            ("archives hold", "archives unpack")
            if earlier_files
            else ("archive holds", "archive unpacks")
        )
        if (total := earlier_files + len(files)) > most_files:
            raise ArchiveRefused(
                f"The ZIP {holds} {total} files; at most {most_files} are supported."
            )
        left = most_bytes - earlier_bytes
        if sum(info.file_size for info in files) > left:
            raise ArchiveRefused(f"The ZIP {unpacks} to more than {most_bytes >> 20} MB.")
        for info in files:
            most = min(left, max(FREE_OF_RATIO, MAX_RATIO * size))
            with _unpacked(_blocks(packed, info), most, folder) as (content, is_sound):
                left -= content.seek(0, 2)
                content.seek(0)
                yield _path(info), content, is_sound


def _check_directory(archive: IO[bytes], size: int) -> int:
    """Return where the end record lies of an archive; refuse one whose directory is missing, or
    larger than many slices need.
    """
    end = end_of_zip(archive, size)
    if end is None:
        raise ArchiveRefused("The ZIP archive is damaged or incomplete.")
    archive.seek(end + 12)
    (length,) = unpack_from("<I", archive.read(4))
    if (locator_at := end - 20) >= 56:
        archive.seek(locator_at)
        locator = archive.read(20)
        # There is a larger version of the same record elsewhere.
        if locator.startswith(b"PK\x06\x07"):
            length = 0 if length == 0xFFFFFFFF else length
            # Where the locator points, or right before it: if there are two records, it depends on
            # the version of zipfile which one it reads.
            for record_at in (min(size, unpack_from("<Q", locator, 8)[0]), locator_at - 56):
                archive.seek(record_at)
                large = archive.read(56)
                length = max(
                    length,
                    unpack_from("<Q", large, 40)[0] if len(large) == 56 else MAX_DIRECTORY + 1,
                )
    if length > MAX_DIRECTORY:
        raise ArchiveRefused("The ZIP archive contains far too many files.")
    return end


def _path(info: zipfile.ZipInfo) -> str:
    """Return a member's name; some Windows programs separate folders with backslashes."""
    return info.filename.replace("\\", "/")


def is_of_system(name: str) -> bool:
    """Return whether a file of this name was added by an operating system or disc, not by a
    person.
    """
    path = PurePosixPath(name)
    hidden = any(
        (part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts
    )
    return hidden or path.name.lower() in NOT_IMAGES


def _is_passed_over(info: zipfile.ZipInfo) -> bool:
    return _path(info).endswith("/") or is_of_system(_path(info))


def _check_member(info: zipfile.ZipInfo) -> None:
    if not info.filename:
        raise ArchiveRefused("The ZIP archive is damaged or incomplete.")
    path = PurePosixPath(_path(info))
    if path.is_absolute() or ".." in path.parts:
        raise ArchiveRefused("The ZIP archive contains a file with an unsafe path.")
    if info.flag_bits & 0x1:
        raise ArchiveRefused("The ZIP archive is encrypted.")


@contextmanager
def _unpacked(blocks: Iterator[bytes], most: int, folder: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """Provide a member as a file, and whether it is intact."""
    with SpooledTemporaryFile(HELD_IN_MEMORY, dir=str(folder)) as content:
        is_sound = True
        try:
            for block in blocks:
                if content.tell() + len(block) > most:
                    raise ArchiveRefused("The ZIP archive expands to far more than its own size.")
                content.write(block)
        except _DamagedMember:
            is_sound = False
        yield cast(IO[bytes], content), is_sound


def _blocks(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content of a member.

    Raises:
        _DamagedMember: it cannot be unpacked, or its checksum differs.
    """
    if info.compress_type not in METHODS:
        raise _DamagedMember
    try:
        with packed.open(info) as member:
            while block := member.read(BLOCK):
                yield block
    except UNREADABLE as err:
        raise _DamagedMember from err
