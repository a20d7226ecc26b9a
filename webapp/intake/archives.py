"""ZIP archives of uploads: their members one at a time, within limits that are checked before
memory or disk is used.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from struct import error as struct_error
from struct import pack, pack_into, unpack_from
from tempfile import SpooledTemporaryFile
from typing import IO, cast

from webapp.intake.streams import BLOCK

ZIP = b"PK\x03\x04"
EMPTY_ZIP = b"PK\x05\x06"
"""The start of the record that ends an archive; with no members it comes first."""
END_BYTES = 22
DIRECTORY, DIRECTORY_BYTES = b"PK\x01\x02", 46
"""The start of a directory's entry, and its size without name, extra field and comment."""
NAME_IS_UTF_8 = 0x800
MAX_DIRECTORY = 4 * 2**20
"""Bytes of an archive's directory, which zipfile reads whole."""
HELD_IN_MEMORY = 2**20
FREE_OF_RATIO = 64 * 2**20
MAX_RATIO = 200
"""Applies beyond FREE_OF_RATIO unpacked bytes: CT is compressed two- to tenfold, only blank
pictures a hundredfold.
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
"""What zipfile raises over a damaged archive: places before its start and names that are no text
are a ValueError.
"""
NOT_IMAGES = ("dicomdir", "thumbs.db", "desktop.ini")


class ArchiveRefused(ValueError):
    """An archive is not read; the text is a sentence."""


class _DamagedMember(ValueError):
    """A member cannot be unpacked."""


class _Archive:
    """The archive that zipfile is given: the first `size` bytes of `stream`, of which each piece
    that is read is first passed to `mend`.
    """

    def __init__(self, stream: IO[bytes], size: int, mend: Callable[[bytes], bytes]) -> None:
        self._stream, self._size, self.mend = stream, size, mend

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2 and self._size + offset < 0:
            raise OSError  # As of a file; zipfile relies on it.
        return self._stream.seek(*((self._size + offset, 0) if whence == 2 else (offset, whence)))

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self.tell())
        content = self._stream.read(left if size < 0 else min(size, left))
        return self.mend(content)


def _with_true_marks(directory: bytes) -> bytes:
    """Return a directory in which only names in UTF-8 are marked so, or other bytes as they are."""
    marked, at = bytearray(directory), 0
    while directory.startswith(DIRECTORY, at) and len(directory) >= at + DIRECTORY_BYTES:
        (flags,) = unpack_from("<H", directory, at + 8)
        lengths = unpack_from("<3H", directory, at + 28)
        name_at = at + DIRECTORY_BYTES
        try:
            directory[name_at : name_at + lengths[0]].decode()
        except UnicodeDecodeError:
            pack_into("<H", marked, at + 8, flags & ~NAME_IS_UTF_8)
        at = name_at + sum(lengths)
    return bytes(marked)


def _unmarked(header: bytes) -> bytes:
    """Return the header of a member whose name is not marked as UTF-8, or other bytes as they
    are.
    """
    if not header.startswith(ZIP):
        return header
    (flags,) = unpack_from("<H", header, 6)
    return header[:6] + pack("<H", flags & ~NAME_IS_UTF_8) + header[8:]


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
    `folder` until the next is asked for, and whether it is sound; of a damaged file, the content
    ends where the damage was noticed.

    Folders and files added by systems (DICOMDIR, resource forks, hidden files) are skipped. Names
    are returned with slashes between folders, however the archive separates them, and never used as
    paths; a link yields the name of its target as content. Earlier archives of the same upload
    count towards the limits.

    Raises:
        ArchiveRefused: the archive's directory is damaged, or the archive is encrypted, or holds
            unsafe names, too much or too many.
    """
    shown = _Archive(archive, _check_directory(archive, size), _with_true_marks)
    try:
        packed = zipfile.ZipFile(cast(IO[bytes], shown))
    except UNREADABLE as err:
        raise ArchiveRefused("The ZIP archive is damaged or incomplete.") from err
    with packed:
        for info in packed.infolist():
            _check_member(info)
        files = [info for info in packed.infolist() if not _is_passed_over(info)]
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
            with _unpacked(_blocks(shown, packed, info), most, folder) as (content, is_sound):
                left -= content.seek(0, 2)
                content.seek(0)
                yield _path(info), content, is_sound


def _check_directory(archive: IO[bytes], size: int) -> int:
    """Refuse an archive whose directory is missing, or larger than what many slices need; return
    where the archive ends, without its comment.
    """
    tail_begins = max(0, size - 2**16 - END_BYTES)
    archive.seek(tail_begins)
    tail = archive.read(2**16 + END_BYTES)
    at = _end_record(tail)
    if at < 0 or len(tail) - at < END_BYTES:
        raise ArchiveRefused("The ZIP archive is damaged or incomplete.")
    (length,) = unpack_from("<I", tail, at + 12)
    if (locator_at := tail_begins + at - 20) >= 56:
        archive.seek(locator_at)
        locator = archive.read(20)
        # There is a larger form of the same record elsewhere.
        if locator.startswith(b"PK\x06\x07"):
            length = 0 if length == 0xFFFFFFFF else length
            # Where the locator points, or right before it: if there are two records, the version of
            # zipfile decides which one it reads.
            for record_at in (min(size, unpack_from("<Q", locator, 8)[0]), locator_at - 56):
                archive.seek(record_at)
                large = archive.read(56)
                length = max(
                    length,
                    unpack_from("<Q", large, 40)[0] if len(large) == 56 else MAX_DIRECTORY + 1,
                )
    if length > MAX_DIRECTORY:
        raise ArchiveRefused("The ZIP archive contains far too many files.")
    archive.seek(0)
    return tail_begins + at + END_BYTES


def _end_record(tail: bytes) -> int:
    """Return where in the tail of an archive its last record begins: it is followed by a comment,
    which may contain the same mark, up to the end; -1 if there is none.
    """
    at = tail.find(EMPTY_ZIP)
    while 0 <= at <= len(tail) - END_BYTES:
        if at + END_BYTES + unpack_from("<H", tail, at + 20)[0] == len(tail):
            return at
        at = tail.find(EMPTY_ZIP, at + 1)
    return tail.rfind(EMPTY_ZIP)


def _path(info: zipfile.ZipInfo) -> str:
    """Return a member's name; some Windows programs divide folders by backslashes."""
    return info.filename.replace("\\", "/")


def is_of_system(name: str) -> bool:
    """Return whether a file of that name was added by a system or disc, not by a person."""
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
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveRefused(
            "The ZIP archive uses an unsupported compression method. Please create it again."
        )


@contextmanager
def _unpacked(blocks: Iterator[bytes], most: int, folder: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """Give a member as a file, and whether it is sound."""
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


def _blocks(shown: _Archive, packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content of a member.

    Raises:
        _DamagedMember: it cannot be unpacked, or its checksum differs.
    """
    shown.mend = bytes if info.flag_bits & NAME_IS_UTF_8 else _unmarked
    try:
        with packed.open(info) as member:
            shown.mend = bytes
            while block := member.read(BLOCK):
                yield block
    except UNREADABLE as err:
        raise _DamagedMember from err
