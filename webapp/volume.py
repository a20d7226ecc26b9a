"""A stored series, of which one slice is read and shown at a time: `ml/scans/volume.py` writes what
this reads.

The file is NIfTI-1 (int16, gzip) and says in its gzip header where each slice's compressed data
begins, so that a slice costs two short reads of the storage whatever the series' length. A web
process has no numpy; a look-up table over the 65,536 values of a voxel does.
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
"""Holds the positions of 2,000 slices and the NIfTI header behind them; a series has no more
slices.
"""
NIFTI_BYTES = 348
SUBFIELD = Struct("<2sH")
POSITIONS = b"HS"
FAST = 1
"""zlib's level: a slice is sent once or twice and then forgotten."""
GRAY, INDEXED = 0, 3
"""A PNG's types of color."""

Color = tuple[int, int, int, int]
"""Red, green, blue and opacity, 0..255."""


class Window(NamedTuple):
    """The range of values that is shown from black to white, as radiologists say it: HU, or 0..1
    where a series has no HU.
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
    """What the head of a stored series says.

    `starts` are the positions of the slices in the file, in anatomical order; `measured` names the
    distances that are not assumed, "pixels" and "slices". Files of earlier versions name none.
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
        """False where the series was submitted as pictures, whose grays are no Hounsfield units."""
        return self.slope == 1

    def png(self, index: int, window: Window | None = None) -> bytes:
        """Return a slice as an 8-bit gray PNG as radiologists look at it: the forehead up, the
        patient's left on the right.

        Args:
            index: counts from 0 in anatomical order.
            window: what is shown; where it is left out the brain window. Of pictures without HU the
                grays are shown as they were submitted, unless a window other than those for HU is
                given.

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
        # Stored to the right and to the front (RAS), looked at from the foot end with the face up:
        # turned by 180 degrees.
        return png(shown[::-1], self.columns)

    def voxels(self, index: int, voxel_bytes: int) -> bytes:
        """Return a slice as it is stored, its voxels one after the other.

        Raises:
            IndexError: there is no such slice.
            StorageError: it cannot be read, or its voxels are of another size.
        """
        if not 0 <= index < len(self.starts):
            raise IndexError(index)
        stop = self.starts[index + 1] if index + 1 < len(self.starts) else None
        stored = storage.get(self.key, self.starts[index], stop)
        size = voxel_bytes * self.columns * self.rows
        try:
            found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size)
        except zlib.error as err:
            raise StorageError("A stored series is damaged.") from err
        if len(found) != size:
            raise StorageError("A stored series is damaged.")
        return found


def open_volume(key: str) -> Volume:
    """Read the head of the series that is stored under `key`.

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
    """Return the gray of each value of a voxel, by its 16 bits read without sign: black below the
    window, white above.
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
    """Return rows of bytes, one after the other, as a PNG file: grays, or numbers of the colors in
    a palette.
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
