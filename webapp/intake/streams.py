"""Files read in small steps: nothing large is held in memory, whatever a hostile file says of
itself.
"""

from __future__ import annotations

from typing import IO

BLOCK = 2**16
MAX_PARTS = 50_000
"""Chunks, segments or elements of one file: far more than real ones have, and a bound for the time
a hostile one takes.
"""


class DamagedFile(ValueError):
    """The file ends too early, or contradicts its own format."""


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """Return the next `count` bytes, which the caller knows to be few.

    Raises:
        DamagedFile: the file ends before.
    """
    content = stream.read(count)
    if len(content) < count:
        raise DamagedFile
    return content


def copy_exactly(stream: IO[bytes], target: IO[bytes], count: int) -> None:
    """Copy the next `count` bytes.

    Raises:
        DamagedFile: the file ends before.
    """
    while count:
        block = read_exactly(stream, min(count, BLOCK))
        target.write(block)
        count -= len(block)
