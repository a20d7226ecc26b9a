"""Where a ZIP archive ends, although its comment may contain the mark of the end.

Python's zipfile takes the last mark. Source: APPNOTE.TXT of PKWARE, 4.3.16.
"""

from __future__ import annotations

import errno
import os
from struct import unpack_from
from typing import IO

END, END_BYTES = b"PK\x05\x06", 22
ENTRY, LOCATOR, LOCATOR_BYTES, LARGE_END_BYTES = b"PK\x01\x02", b"PK\x06\x07", 20, 56
LONGEST_COMMENT = 2**16 - 1
MOST_MARKS = 100


def end_of_zip(file: IO[bytes], size: int) -> int | None:
    """Return the offset of the end record of an archive of `size` bytes; None if there is none, or
    if several are possible.

    If there are several marks, one counts if the archive's directory lies before it. Another
    archive inside may have such a record, too; then the comment must reach to the end of the file.
    """
    begin = max(0, size - END_BYTES - LONGEST_COMMENT - 1)
    file.seek(begin)
    tail = file.read(size - begin)
    marks: list[int] = []
    at = tail.find(END)
    while at >= 0 and len(marks) <= MOST_MARKS:
        if len(tail) - at >= END_BYTES:
            marks.append(begin + at)
        at = tail.find(END, at + 1)
    if len(marks) < 2:
        return marks[0] if marks else None
    sound = [mark for mark in marks[:MOST_MARKS] if _has_directory(file, mark)]
    whole = [mark for mark in sound if mark + END_BYTES + _comment_bytes(file, mark) == size]
    if len(whole) > 1 or len(marks) > MOST_MARKS:
        return None
    return (whole or sound or marks)[-1]


def _comment_bytes(file: IO[bytes], mark: int) -> int:
    file.seek(mark + END_BYTES - 2)
    return int.from_bytes(file.read(2), "little")


def _has_directory(file: IO[bytes], mark: int) -> bool:
    """Return whether a directory, not empty, ends where an end record begins."""
    file.seek(mark)
    record = file.read(END_BYTES)
    (length,), ends = unpack_from("<L", record, 12), mark
    if mark >= LOCATOR_BYTES + LARGE_END_BYTES:
        file.seek(mark - LOCATOR_BYTES)
        if file.read(LOCATOR_BYTES).startswith(LOCATOR):
            ends = mark - LOCATOR_BYTES - LARGE_END_BYTES
            file.seek(ends)
            (length,) = unpack_from("<Q", file.read(LARGE_END_BYTES), 40)
    if not len(ENTRY) <= length <= ends:
        return False
    file.seek(ends - length)
    return file.read(len(ENTRY)) == ENTRY


class UpToEnd:
    """An archive as if it had no comment and nothing followed it: up to its end record.

    Args:
        end: the offset of that record.
    """

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file, self._size, self._at = file, end + END_BYTES, 0

    def read(self, count: int = -1) -> bytes:
        """Return the next `count` bytes, or all."""
        left = max(0, self._size - self._at)
        self._file.seek(self._at)
        block = self._file.read(left if count < 0 else min(count, left))
        self._at += len(block)
        if (of_length := self._at - (self._size - 2)) > 0:  # The length of the comment.
            kept = max(0, len(block) - of_length)
            block = block[:kept] + bytes(len(block) - kept)
        return block

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek to a position.

        Raises:
            OSError: it lies before the beginning.
        """
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "The position lies before the beginning.")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Return the current position."""
        return self._at

    def seekable(self) -> bool:
        """Archives are read at any position."""
        return True
