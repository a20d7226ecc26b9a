"""Where the voxels of a NIfTI file begin if its header says so wrongly: the length of the file
decides.

Source: nifti1.h of the NIH: four bytes follow the header; if the
first is not 0, extensions follow, each of which begins with its size.
"""

from __future__ import annotations

from struct import unpack
from typing import Protocol

FURTHEST = 16 * 2**20
"""Maximum bytes of header and extensions: an extension may contain a whole DICOM header."""
EXTENDER_BYTES, STEP_OF_EXTENSION = 4, 16
MOST_EXTENSIONS = 1000
BLOCK = 2**16


class Content(Protocol):
    """An inflated file."""

    def read(self, count: int, /) -> bytes:
        """Return the next `count` bytes, fewer at the end."""

    def seek(self, at: int, /) -> int:
        """Seek to a position."""


def first_voxel(
    content: Content, header_bytes: int, declared: float, voxel_bytes: int, order: str
) -> int | None:
    """Return where the voxels begin; None if the header gives an impossible place, or the file is
    too long or too short for each possible one.

    Args:
        content: the file; its position is undefined afterwards.
        declared: the place in the header; 0, which is impossible, if some program left it out.
            Some programs give the end of the header, and some forget an extension.
        voxel_bytes: bytes of all voxels.
        order: the byte order.
    """
    after_header = header_bytes + EXTENDER_BYTES
    if declared != 0 and not header_bytes <= declared <= FURTHEST:
        return None
    content.seek(header_bytes)
    extender = content.read(EXTENDER_BYTES)
    is_extender = extender[1:] == bytes(EXTENDER_BYTES - 1)
    ends = _ends_of_extensions(content, after_header, order) if is_extender and extender[0] else []
    if declared >= after_header and (not ends or ends[0] <= declared):
        return int(declared)
    candidates = [*ends, after_header, header_bytes]
    length = _length(content, max(candidates) + voxel_bytes + 1)
    if declared >= after_header:
        candidates, otherwise = ends, int(declared)
    elif ends:
        otherwise = None
    # Whatever follows the voxels does not look like the four bytes in front of them.
    elif length < after_header + voxel_bytes or not (declared == 0 or is_extender):
        otherwise = header_bytes
    else:
        otherwise = after_header
    return next((begin for begin in candidates if begin + voxel_bytes == length), otherwise)


def _ends_of_extensions(content: Content, begin: int, order: str) -> list[int]:
    """Return where each extension ends; those after the last one may be voxels."""
    ends: list[int] = []
    while len(ends) < MOST_EXTENSIONS:
        content.seek(begin)
        start = content.read(EXTENDER_BYTES)
        if len(start) < EXTENDER_BYTES:
            break
        (size,) = unpack(f"{order}i", start)
        if size < STEP_OF_EXTENSION or size % STEP_OF_EXTENSION or begin + size > FURTHEST:
            break
        begin += size
        ends.append(begin)
    return ends


def _length(content: Content, most: int) -> int:
    """Return the length of a file, but no more than `most`."""
    content.seek(0)
    length = 0
    while length < most and (block := content.read(min(BLOCK, most - length))):
        length += len(block)
    return length
