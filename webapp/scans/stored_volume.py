"""Reads single slices from a stored series, which `ml/scans/volume.py` writes, and windows them.

The file is NIfTI-1 (int16, gzip). Its gzip header lists where each slice's compressed data begins,
so that a slice costs two short reads of the storage, however long the series is. A web process has
no numpy, so gray levels come from a look-up table of the 65,536 possible values of a voxel.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct, error, iter_unpack, pack, unpack_from
from typing import NamedTuple

from webapp.storage import StorageError, storage

HEAD_BYTES = 2**14
"""Enough for the positions of 2,000 slices, the most that a series has, and the NIfTI header after
them.
"""
NIFTI_BYTES = 348
SUBFIELD = Struct("<2sH")
POSITIONS = b"HS"
FAST = 1
"""The zlib level of PNG files, which are sent once or twice and not stored."""
GRAY, INDEXED = 0, 3
"""The color types of a PNG."""

Color = tuple[int, int, int, int]
"""Red, green, blue and opacity, 0..255."""


class Window(NamedTuple):
    """The range of values shown from black to white, as level and width: in HU, or as gray levels
    0..1 if a series has no HU.
    """

    level: float
    width: float


WINDOWS = {
    "brain": Window(40, 80),
    "subdural": Window(80, 200),
    "bone": Window(600, 2800),
    "stroke": Window(40, 40),
}
AS_SUBMITTED = Window(0.5, 1)


@dataclass(frozen=True)
class Volume:
    """The header of a stored series.

    Attributes:
        key: where the series is stored.
        columns, rows: of each slice, in pixels.
        column_mm, row_mm, slice_mm: distances of neighboring columns, rows and slices.
        slope, intercept: value = voxel x slope + intercept.
        starts: offset of each slice in the file, in bytes, in anatomical order.
        measured: which distances are not assumed: "pixels", "slices". Files of earlier versions
            contain none.
    """

    key: str
    columns: int
    rows: int
    column_mm: float
    row_mm: float
    slice_mm: float
    slope: float
    intercept: float
    starts: tuple[int, ...]
    measured: frozenset[str] = frozenset()

    @property
    def is_hu(self) -> bool:
        """False if the series was submitted as images, which have gray levels but no HU."""
        return self.slope == 1

    def png(self, index: int, window: Window | None = None) -> bytes:
        """Return a slice as an 8-bit gray PNG of `rows` x `columns` pixels in radiological
        orientation: forehead at the top, the patient's left on the right.

        Args:
            index: from 0, in anatomical order.
            window: by default the brain window. A series without HU is shown with the submitted
                gray levels, unless the window is none of `WINDOWS`.

        Raises:
            IndexError: there is no such slice.
            StorageError: it cannot be read.
        """
        voxels = array("H", self.voxels(index, 2))
        if sys.byteorder == "big":
            voxels.byteswap()
        if window is None or (window in WINDOWS.values() and not self.is_hu):
            window = WINDOWS["brain"] if self.is_hu else AS_SUBMITTED
        gray = gray_of(window, self.slope, self.intercept)
        shown = bytes([gray[voxel] for voxel in voxels])
        # Stored to the right and to the front (RAS), viewed from the feet with the face up: rotated
        # by 180 degrees.
        return png(shown[::-1], self.columns)

    def voxels(self, index: int, voxel_bytes: int) -> bytes:
        """Return a slice as it is stored, one voxel after the other.

        Raises:
            IndexError: there is no such slice.
            StorageError: it cannot be read, or its size is wrong.
        """
        if not 0 <= index < len(self.starts):
            raise IndexError(index)
        stop = self.starts[index + 1] if index + 1 < len(self.starts) else None
        stored = storage.get(self.key, self.starts[index], stop)
        size = voxel_bytes * self.columns * self.rows
        try:
            voxels = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size)
        except zlib.error as err:
            raise StorageError("A stored series is damaged.") from err
        if len(voxels) != size:
            raise StorageError("A stored series is damaged.")
        return voxels


def open_volume(key: str) -> Volume:
    """Read the header of the series that is stored under `key`.

    Raises:
        StorageError: it cannot be read.
    """
    head = storage.get(key, 0, HEAD_BYTES)
    try:
        (extra_bytes,) = unpack_from("<H", head, 10)
        extra = head[12 : 12 + extra_bytes]
        name, length = SUBFIELD.unpack_from(extra)
        while name != POSITIONS:
            extra = extra[SUBFIELD.size + length :]
            name, length = SUBFIELD.unpack_from(extra)
        starts = tuple(
            start for (start,) in iter_unpack("<I", extra[SUBFIELD.size : SUBFIELD.size + length])
        )
        nifti = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            head[12 + extra_bytes :], NIFTI_BYTES
        )
        _, columns, rows, slices = unpack_from("<4h", nifti, 40)
        column_mm, row_mm, slice_mm = unpack_from("<3f", nifti, 80)
        slope, intercept = unpack_from("<2f", nifti, 112)
        (description,) = unpack_from("80s", nifti, 148)
    except (error, zlib.error) as err:
        raise StorageError("A stored series is damaged.") from err
    if slices != len(starts) or min(columns, rows) < 1:
        raise StorageError("A stored series is damaged.")
    _, _, measured = description.rstrip(b"\0").decode("ascii", "replace").partition("measured:")
    return Volume(
        key,
        columns,
        rows,
        column_mm,
        row_mm,
        slice_mm,
        slope,
        intercept,
        starts,
        frozenset(measured.split()),
    )


@lru_cache(maxsize=16)
def gray_of(window: Window, slope: float, intercept: float) -> bytes:
    """Return the gray level, 0..255, for each of the 65,536 values of a voxel, indexed by its 16
    bits as an unsigned number: black below the window, white above.
    """
    low = (window.level - window.width / 2 - intercept) / slope
    span = window.width / slope
    first, last = (min(max(int(edge), -32768), 32768) for edge in (low, low + span + 1))
    ramp = bytes(
        [min(max(round(255 * (value - low) / span), 0), 255) for value in range(first, last)]
    )
    grays = bytes(first + 32768) + ramp + b"\xff" * (32768 - last)
    return grays[32768:] + grays[:32768]


def png(grays: bytes, columns: int, palette: Sequence[Color] = ()) -> bytes:
    """Return rows of bytes, one after the other, as a PNG file: gray levels, or color indices of a
    palette.
    """
    rows = [grays[start : start + columns] for start in range(0, len(grays), columns)]
    header = pack(">2I5B", columns, len(rows), 8, INDEXED if palette else GRAY, 0, 0, 0)
    pixels = zlib.compress(b"".join([b"\0" + row for row in rows]), FAST)
    colors = (
        _chunk(b"PLTE", b"".join(bytes(color[:3]) for color in palette))
        + _chunk(b"tRNS", bytes(color[3] for color in palette))
        if palette
        else b""
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + colors
        + _chunk(b"IDAT", pixels)
        + _chunk(b"IEND", b"")
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return pack(">I", len(content)) + name + content + pack(">I", zlib.crc32(name + content))
