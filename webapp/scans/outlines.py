"""The outline of a hemorrhage as a contour over a slice, drawn from the stored masks
(`ml.scans.volume.write_masks`) without numpy: a row of a mask is represented by the bits of one
long integer.
"""

from __future__ import annotations

from webapp.scans.stored_volume import Color, open_volume, png

CONTOUR: tuple[Color, Color] = ((0, 0, 0, 0), (0, 229, 255, 255))
"""Transparent, and a blue that occurs in neither a slice nor a heat map."""
SIDE_PER_PIXEL = 256
"""A contour is one pixel wide for every so many pixels of the slice's longer side, at least one."""


def contour(key: str, index: int) -> bytes:
    """Return the contour around the outlined area in one slice of a stored mask, as a PNG to
    overlay on the slice.

    The line runs outside of the outlined area, so that all of that stays visible.

    Raises:
        IndexError: there is no such slice.
        StorageError: it cannot be read.
    """
    stored = open_volume(key)
    width = max(1, round(max(stored.columns, stored.rows) / SIDE_PER_PIXEL))
    # Rotated by 180 degrees, as in `webapp.scans.stored_volume.Volume.png`.
    shown = stored.voxels(index, 1)[::-1]
    return png(_around(shown, stored.columns, width), stored.columns, CONTOUR)


def _around(mask: bytes, columns: int, width: int) -> bytes:
    """Return a mask of bytes that is 1 within `width` pixels around a mask of 0 and 1, and 0 inside
    the mask and elsewhere.

    Each row gets a margin, so that bits shifted past its end do not reach the next row.
    """
    rows = [mask[start : start + columns] for start in range(0, len(mask), columns)]
    margin = bytes(width)
    bits = int.from_bytes(b"".join(margin + row + margin for row in rows), "big")
    byte, row_bits = 8, 8 * (columns + 2 * width)
    grown = bits
    for _ in range(width):
        grown |= grown << byte | grown >> byte
        grown |= grown << row_bits | grown >> row_bits
    size = len(rows) * row_bits // 8
    # Bits shifted beyond the first row are cut off.
    ring = (grown & ~bits) & ((1 << 8 * size) - 1)
    drawn = ring.to_bytes(size, "big")
    step = columns + 2 * width
    return b"".join(
        drawn[start + width : start + width + columns] for start in range(0, size, step)
    )
