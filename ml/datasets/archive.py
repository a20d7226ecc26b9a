"""Unpack a data set from a ZIP file, with limits."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, cast

from ml.errors import DatasetError
from ml.files.zip_end import UpToEnd, end_of_zip

ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
DOCUMENTS = (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".jar")
"""Nested archives, which nobody expects to be unpacked."""
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 1024
"""Maximum length of a name and a path on common file systems, less the folder for unpacking."""


DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
    struct.error,
)
"""The exceptions that zipfile raises for a damaged archive."""


def unpack(
    archive: Path,
    into: Path,
    max_bytes: int = 4 * 2**30,
    max_files: int = 50_000,
    max_ratio: int = 200,
    on_file: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Unpack a ZIP file into the new folder `into` and return that folder; nothing is left behind
    on failure.

    `on_file` is called with (files unpacked, number of files) and may raise to stop.

    Paths that lead outside, invalid names, links, devices and encrypted files are refused before
    anything is written, as are nested archives and archives that would exceed `max_bytes`,
    `max_files` or `max_ratio` times their own size. Sizes and contents are checked again while
    writing, since the archive's directory may be wrong.

    Raises:
        DatasetError: the file is not a ZIP file, or a limit is exceeded.
    """
    if into.exists():
        raise DatasetError(f"The folder {into.name} already exists.")
    limit = min(max_bytes, max_ratio * max(archive.stat().st_size, 1) + 2**20)
    complete = False
    try:
        into.mkdir(parents=True)
        with (
            archive.open("rb") as file,
            zipfile.ZipFile(cast(IO[bytes], _with_fewer_entries(file, max_files))) as opened,
        ):
            members = [info for info in opened.infolist() if not _path(info).endswith("/")]
            if len(members) > max_files:
                raise DatasetError(
                    f"The archive holds {len(members):,} files; at most {max_files:,} are allowed."
                )
            for info in members:
                _require_safe(info)
            _extract(opened, members, into, limit, on_file)
        complete = True
    except DAMAGED as err:
        raise DatasetError(f"{archive.name} is not a readable ZIP file.") from err
    finally:
        if not complete:
            shutil.rmtree(into, ignore_errors=True)
    return into


def _with_fewer_entries(file: IO[bytes], most: int) -> UpToEnd:
    """Return an archive up to its end; refuse it by its directory before zipfile reads all of it
    into memory: its entries, including folders, are counted without being kept.
    """
    size = file.seek(0, 2)
    end = end_of_zip(file, size)
    if end is None:
        raise zipfile.BadZipFile
    before = min(end, 76)
    file.seek(end - before)
    records = file.read(before + 22)
    (length,) = struct.unpack_from("<I", records, before + 12)
    start = end - length
    if before == 76 and records[56:60] == b"PK\x06\x07":  # ZIP64
        (length,) = struct.unpack_from("<Q", records, 40)
        start = end - 76 - length
    if not 0 <= start <= size:
        raise zipfile.BadZipFile
    file.seek(start)
    entries = 0
    while (head := file.read(46)).startswith(b"PK\x01\x02") and len(head) == 46:
        entries += 1
        if entries > 2 * most:
            raise DatasetError(
                f"The archive holds more than {2 * most:,} files and folders; at most"
                f" {most:,} files are allowed."
            )
        file.seek(sum(struct.unpack_from("<3H", head, 28)), 1)
    return UpToEnd(file, end)


def path_in(info: zipfile.ZipInfo) -> str:
    """Return the path of a member in the folder that `unpack` creates."""
    return Path(_path(info)).as_posix()


def _path(info: zipfile.ZipInfo) -> str:
    """Return a member's name; some Windows programs separate folders by backslashes."""
    return info.filename.replace("\\", "/")


def _require_safe(info: zipfile.ZipInfo) -> None:
    parts = Path(_path(info)).parts
    leads_outside = ".." in parts or info.filename.startswith(("/", "\\")) or ":" in info.filename
    if leads_outside or stat.S_ISLNK(info.external_attr >> 16):
        raise DatasetError(f"The archive holds {info.filename[:100]!r}, which leads outside it.")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise DatasetError(
            f"The archive holds {info.filename[:100]!r}, which is not a regular file."
        )
    longest = max((len(part.encode()) for part in parts), default=0)
    if (
        not info.filename.isprintable()
        or longest > MAX_NAME_BYTES
        or len(info.filename.encode()) > MAX_PATH_BYTES
    ):
        raise DatasetError(
            f"The archive holds {info.filename[:100]!r}, which is too long or not a valid file"
            " name."
        )
    if info.flag_bits & 1:
        raise DatasetError("The archive is encrypted; give it without a password.")


def _extract(
    opened: zipfile.ZipFile,
    members: Sequence[zipfile.ZipInfo],
    into: Path,
    limit: int,
    on_file: Callable[[int, int], None],
) -> None:
    written = 0
    for done, info in enumerate(members):
        on_file(done, len(members))
        target = into / _path(info)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sink = target.open("xb")
        except (FileExistsError, NotADirectoryError) as err:
            raise DatasetError(f"The archive holds {info.filename[:100]!r} twice.") from err
        with sink, opened.open(info) as source:
            while block := source.read(2**20):
                is_archive = not sink.tell() and block.startswith(ZIP_SIGNATURES)
                if is_archive and target.suffix.lower() not in DOCUMENTS:
                    raise DatasetError(
                        f"The archive holds another archive, {info.filename[:100]!r}; please unpack"
                        " that one first."
                    )
                written += len(block)
                if written > limit:
                    raise DatasetError(
                        f"The archive grows beyond {limit / 2**20:,.0f} MB when unpacked, which is"
                        " the limit."
                    )
                sink.write(block)
