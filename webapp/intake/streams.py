"""Files read in small steps, so that no file, whatever its header claims, takes much memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO

BLOCK = 2**16
FREE_BYTES, MOST_BYTES_OF_ONE = 64 * 2**20, 200
"""Unpacked bytes allowed for any upload, and the allowed multiple of its own size for a larger one:
CT is compressed two- to tenfold, only blank images a hundredfold.
"""
FREE_PARTS, PARTS_OF_FILE = 100_000, 400
"""Chunks, segments and elements allowed for all files of an upload together, and the number that
each file adds: a scanner's slice has about 150.
"""
MOST_SECONDS = 30.0
"""Processor seconds for all files of an upload."""
MAX_PARTS = 50_000
"""Maximum chunks, segments or elements of one file: far more than real files have, but a bound on
the time that a hostile one takes.
"""


class DamagedFile(ValueError):
    """The file ends too early, or contradicts its own format."""


class TooMuchWork(Exception):
    """The upload costs more to parse than its size allows."""


class Budget:
    """The budget for parsing one upload: parts of files, unpacked bytes, and processor seconds.

    Args:
        size: bytes that were sent.
    """

    def __init__(self, size: int = 0) -> None:
        self._parts = FREE_PARTS
        self._bytes = max(FREE_BYTES, MOST_BYTES_OF_ONE * size)
        self._until = time.thread_time() + MOST_SECONDS

    def begin_file(self) -> None:
        """Begin another file.

        Raises:
            TooMuchWork: the budget is used up.
        """
        self._parts += PARTS_OF_FILE
        if time.thread_time() > self._until:
            raise TooMuchWork

    def spend_part(self) -> None:
        """Count a chunk, segment or element.

        Raises:
            TooMuchWork: the budget is used up.
        """
        self._parts -= 1
        if self._parts < 0 or (self._parts % 1000 == 0 and time.thread_time() > self._until):
            raise TooMuchWork

    def allow_parts(self, parts: int) -> None:
        """Allow more parts, for a file that describes many frames."""
        self._parts += parts

    def spend_bytes(self, count: int) -> None:
        """Count unpacked bytes against the budget.

        Raises:
            TooMuchWork: the budget is used up.
        """
        self._bytes -= count
        if self._bytes < 0 or time.thread_time() > self._until:
            raise TooMuchWork


class Unpacked:
    """Reads a decompressing stream within a budget."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer at the end.

        Raises:
            TooMuchWork: the budget is used up.
        """
        content = self._stream.read(count)
        self._budget.spend_bytes(len(content))
        return content

    def seek(self, at: int) -> int:
        """Seek to a position."""
        return self._stream.seek(at)


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """Return the next `count` bytes, which the caller knows to be few.

    Raises:
        DamagedFile: the file ends before that.
    """
    content = stream.read(count)
    if len(content) < count:
        raise DamagedFile
    return content


def copy_exactly(
    stream: IO[bytes],
    target: IO[bytes],
    count: int,
    on_block: Callable[[bytes], None] = lambda block: None,
) -> None:
    """Copy the next `count` bytes; `on_block` is called with each piece.

    Raises:
        DamagedFile: the file ends before that.
    """
    while count:
        block = read_exactly(stream, min(count, BLOCK))
        target.write(block)
        on_block(block)
        count -= len(block)
